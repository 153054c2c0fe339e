"""Draws triples for BPR: a user, an item the user has (positive), and an item the user does not have (negative).

Rendle et al., "BPR: Bayesian personalized ranking from implicit feedback", UAI 2009. The draws are computed in
integers, so a seed gives the same triples on every backend and for any number of threads.

Triple k of training step t uses the words of two Philox counters, (STREAM_TRIPLES, t, k, 0) and
(STREAM_TRIPLES, t, k, 1). Two words (high, low) give a random integer x in [0, m): m * (high * 2**32 + low) / 2**64,
rounded down. The degree is the number of the user's items. A candidate is a user that may be drawn.

    user      users[x], 0 <= x < n_candidates                             words 0, 1 of the first counter
    positive  item number x of the user's items, 0 <= x < degree           words 2, 3 of the first counter
    negative  item number x of all other items, 0 <= x < n_items - degree  words 0, 1 of the second counter

With `starts`, an interaction is drawn instead of a user. The interactions of all candidates form one list, in which
those of candidate c begin at `starts[c]`. Words 0, 1 choose one interaction, which gives the user and the positive.

The negative is drawn without rejection sampling. Let s_0 < s_1 < ... be the items of a user. Then s_k - k other items
are smaller than s_k. So item number r of the other items, counted from 0, is r + (number of k with s_k - k <= r).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gru4rec_fast.ops._checks import check_tensor, split_step
from gru4rec_fast.ops._dispatch import implementation
from gru4rec_fast.ops._registry import on_load, register
from gru4rec_fast.ops.philox import STREAM_TRIPLES, WORD_RANGE, philox4x32, step_word

_LIMIT = 1 << 31  # the numbers of users, items and interactions must be less, so that `_random_below` fits int64


def bpr_triples(
    offsets: Tensor,
    neighbors: Tensor,
    users: Tensor,
    n: int,
    *,
    n_users: int,
    n_items: int,
    starts: Tensor | None = None,
    seed: int,
    step: int | Tensor,
    impl: str = "auto",
) -> Tensor:
    """Draw triples (user, positive, negative); each depends only on seed, step and the index of the triple.

    A user is drawn uniformly with replacement, then one of the user's items (positive), then one of all other items
    (negative), uniformly. With `starts`, an interaction (user and positive) is drawn uniformly instead.
    `gru4rec_fast.data.TripleSampler` prepares the arguments for an InteractionGraph.

    Args:
        offsets: int64 [n_users + n_items + 1]; the graph in CSR form, nodes are users, then items.
        neighbors: int32 or int64 [n_entries]; the neighbors of node r are `neighbors[offsets[r]:offsets[r + 1]]`. They
            must be in increasing order, which is not checked.
        users: int64 [n_candidates], the users to draw from: each has at least one item, and none has all items.
        n: number of triples, less than 2**32.
        n_users, n_items: both less than 2**31.
        starts: None, or int64 [n_candidates + 1]: 0 and the cumulative sum of the candidates' degrees, less than 2**31.
        seed: in [0, 2**63).
        step: number of the training step, in [0, 2**32), an integer or a 0-dim int64 tensor on the device.
        impl: "auto", "native" or "reference".

    Returns:
        int64 [3, n]: users, positives, negatives; items are numbered from 0.

    Raises:
        ValueError: an argument is out of range or does not fit the others; a candidate has no items or all of them, or
            a neighbor of a user is no item (native kernels raise the error only if the candidate or item is drawn).
    """
    device = offsets.device
    draw = implementation("bpr_triples", impl, device, bpr_triples_reference)
    is_reference = draw is bpr_triples_reference
    step, counter = split_step(seed, step, 1, device, reads_value=is_reference)
    if not 0 <= n < WORD_RANGE:
        raise ValueError(f"n={n}: must be in [0, 2**32)")
    for name, count in (("n_users", n_users), ("n_items", n_items)):
        if not 1 <= count < _LIMIT:
            raise ValueError(f"{name}={count}: must be in [1, 2**31)")
    check_tensor("offsets", offsets, torch.int64, (n_users + n_items + 1,), device)
    check_tensor("neighbors", neighbors, (torch.int32, torch.int64), ("n_entries",), device)
    check_tensor("users", users, torch.int64, ("n_candidates",), device)
    if not 1 <= users.shape[0] < _LIMIT:
        raise ValueError(f"users must be int64 [n_candidates] with 1 <= n_candidates < 2**31, not {[*users.shape]}")
    check_tensor("starts", starts, torch.int64, (users.shape[0] + 1,), device)
    if is_reference and not torch.compiler.is_compiling():
        check_candidates(offsets, neighbors, users, starts, n_items)
    return draw(offsets, neighbors, users, starts, n_users, n_items, n, seed, step, counter)


def bpr_triples_reference(
    offsets: Tensor,
    neighbors: Tensor,
    users: Tensor,
    starts: Tensor | None,
    n_users: int,
    n_items: int,
    n: int,
    seed: int,
    step: int,
    counter: Tensor | None,
) -> Tensor:
    """Return users, positives and negatives, int64 [3, n], by the formulas at the top of this file.

    counter: added to `step` unless it is None.
    """
    device = offsets.device
    stream, one = torch.tensor([STREAM_TRIPLES, 1], device=device).unbind()
    number = step_word(step, counter, device)
    triple = torch.arange(n, device=device)
    words = philox4x32((stream, number, triple, torch.zeros_like(one)), seed)
    if starts is None:
        user = users[_random_below(words[0], words[1], users.shape[0])]
        positive = _random_below(words[2], words[3], offsets[user + 1] - offsets[user])
    else:
        interaction = _random_below(words[0], words[1], starts[-1])
        candidate = torch.searchsorted(starts, interaction, right=True) - 1
        user, positive = users[candidate], interaction - starts[candidate]
    row_start, degree = offsets[user], offsets[user + 1] - offsets[user]
    high, low, _, _ = philox4x32((stream, number, triple, one), seed)
    rank = _random_below(high, low, n_items - degree)
    negative = rank + _count_smaller(neighbors, row_start, degree, rank + n_users)
    return torch.stack([user, neighbors[row_start + positive].long() - n_users, negative])


def _random_below(high: Tensor, low: Tensor, limit: Tensor | int) -> Tensor:
    """Return a random integer in [0, limit) from two random 32-bit words; limit < 2**31."""
    return (high * limit + ((low * limit) >> 32)) >> 32


def _count_smaller(neighbors: Tensor, start: Tensor, degree: Tensor, bound: Tensor) -> Tensor:
    """Return for each user the number of k < degree with neighbors[start + k] - k <= bound, by bisection."""
    low, high = torch.zeros_like(degree), degree
    for _ in range(neighbors.shape[0].bit_length()):
        middle = (low + high) >> 1
        below = (low < high) & (neighbors[(start + middle).clamp(max=neighbors.shape[0] - 1)] - middle <= bound)
        low, high = torch.where(below, middle + 1, low), torch.where(below, high, middle)
    return low


def check_candidates(offsets: Tensor, neighbors: Tensor, users: Tensor, starts: Tensor | None, n_items: int) -> None:
    """Raise ValueError unless each of `users` has an item but not all, and `starts` cumulates the users' degrees."""
    in_range = bool(((users >= 0) & (users < offsets.shape[0] - 1 - n_items)).all())
    degrees = offsets[users + 1] - offsets[users] if in_range else users
    n_users = offsets.shape[0] - 1 - n_items
    fits = in_range and int(offsets.min()) >= 0 and int(offsets.max()) <= neighbors.shape[0]
    fits = fits and bool((offsets.diff() >= 0).all()) and bool(((degrees > 0) & (degrees < n_items)).all())
    of_users = neighbors[: int(offsets[n_users])] if fits else neighbors
    fits = fits and bool(((of_users >= n_users) & (of_users < n_users + n_items)).all())
    if starts is not None:
        fits = fits and int(starts[0]) == 0 and torch.equal(starts.diff(), degrees) and int(starts[-1]) < _LIMIT
    if not fits:
        raise ValueError(
            "users and starts do not fit the graph: each user must have at least one item but not every item, "
            "a user's neighbors must be items, and starts must be the cumulative sum of the users' degrees, below 2**31"
        )


def _fake(offsets: Tensor, *rest: Any) -> Tensor:
    *_, n, _seed, _step, _counter = rest
    return offsets.new_empty(3, n)


@on_load
def _register(library: str) -> None:
    register(library, "bpr_triples", bpr_triples_reference, _fake)
