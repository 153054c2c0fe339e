"""Triples for BPR: a user, an item that the user has, and an item that the user has not.

Rendle et al., "BPR: Bayesian personalized ranking from implicit feedback", UAI 2009. All of it is done in integers, so
that a seed means the same triples on every backend and for any thread count.

Triple k of step t takes the words of two Philox counters, (STREAM_TRIPLES, t, k, 0) and (STREAM_TRIPLES, t, k, 1). Two
words (high, low) make a number in [0, m): the product of m with (high * 2**32 + low) / 2**64, rounded down.

    user      users[number below n_candidates]                            words 0, 1 of the first counter
    positive  the user's items[number below the user's degree]            words 2, 3 of the first counter
    negative  the items not the user's[number below n_items - degree]     words 0, 1 of the second counter

With `starts`, interactions are drawn instead of users: words 0, 1 choose one of the candidates' interactions, which is
user and positive at once. The negative is exact, not drawn again until it fits: among a user's rising items s_0, s_1,
... there are s_k - k others before s_k, so the r-th other item is r + the number of k with s_k - k <= r.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gru4rec_fast.ops._dispatch import implementation
from gru4rec_fast.ops._registry import on_load, register_composite
from gru4rec_fast.ops.philox import STREAM_TRIPLES, WORD_RANGE, check_counters, philox4x32

_LIMIT = 1 << 31  # of what is drawn from: users, their interactions, items


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
    step: int,
    impl: str = "auto",
) -> Tensor:
    """Draw triples (user, item it has, item it has not), each a function of (seed, step, number of the triple) alone.

    A user is drawn uniformly, with replacement, then one of its items, then one of all other items, uniformly. With
    `starts` an interaction is drawn uniformly instead of user and item. `gru4rec_fast.data.TripleSampler` prepares the
    arguments for an InteractionGraph.

    Args:
        offsets: int64 [n_users + n_items + 1], neighbors: int32 or int64: the graph, users before items, the
            neighbors of a node rising (that is not checked).
        users: int64 [n_candidates], the users to draw from: each has an item, and none has all items.
        n: number of triples, below 2**32.
        n_users, n_items: both below 2**31.
        starts: None, or int64 [n_candidates + 1]: 0 and the running sum of the candidates' degrees, below 2**31.
        seed: in [0, 2**63). step: in [0, 2**32).
        impl: "auto", "native" or "reference".

    Returns:
        int64 [3, n]: users, positives, negatives; items are counted from 0.

    Raises:
        ValueError: an argument that does not fit, named; a candidate without items or with all of them (native: once
            it is drawn).
    """
    check_counters(seed, step, 1)
    if not 0 <= n < WORD_RANGE:
        raise ValueError(f"n={n}: must be in [0, 2**32)")
    for name, count in (("n_users", n_users), ("n_items", n_items)):
        if not 1 <= count < _LIMIT:
            raise ValueError(f"{name}={count}: must be in [1, 2**31)")
    if offsets.dtype != torch.int64 or offsets.shape != (n_users + n_items + 1,):
        raise ValueError(
            f"offsets must be int64 [{n_users + n_items + 1}] for {n_users} users and {n_items} items, "
            f"not {offsets.dtype} {[*offsets.shape]}"
        )
    if neighbors.dtype not in (torch.int32, torch.int64) or neighbors.dim() != 1:
        raise ValueError(f"neighbors must be int32 or int64 [n_entries], not {neighbors.dtype} {[*neighbors.shape]}")
    if users.dtype != torch.int64 or users.dim() != 1 or not 1 <= users.shape[0] < _LIMIT:
        raise ValueError(f"users must be int64 [n_candidates], one at least, not {users.dtype} {[*users.shape]}")
    if starts is not None and (starts.dtype != torch.int64 or starts.shape != (users.shape[0] + 1,)):
        raise ValueError(f"starts must be int64 [{users.shape[0] + 1}], not {starts.dtype} {[*starts.shape]}")
    draw = implementation("bpr_triples", impl, offsets.device, bpr_triples_reference)
    if draw is bpr_triples_reference and not torch.compiler.is_compiling():
        check_candidates(offsets, neighbors, users, starts, n_items)
    return draw(offsets, neighbors, users, starts, n_users, n_items, n, seed, step)


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
) -> Tensor:
    """Return users, positives and negatives, int64 [3, n]; see the head of this file."""
    device = offsets.device
    stream, now, second = torch.tensor([STREAM_TRIPLES, step, 1], device=device).unbind()
    draw = torch.arange(n, device=device)
    words = philox4x32((stream, now, draw, torch.zeros_like(second)), seed)
    if starts is None:
        user = users[_below(words[0], words[1], users.shape[0])]
        positive = _below(words[2], words[3], offsets[user + 1] - offsets[user])
    else:
        interaction = _below(words[0], words[1], starts[-1])
        candidate = torch.searchsorted(starts, interaction, right=True) - 1
        user, positive = users[candidate], interaction - starts[candidate]
    begin, degree = offsets[user], offsets[user + 1] - offsets[user]
    high, low, _, _ = philox4x32((stream, now, draw, second), seed)
    rank = _below(high, low, n_items - degree)
    negative = rank + _seen_before(neighbors, begin, degree, rank + n_users)
    return torch.stack([user, neighbors[begin + positive].long() - n_users, negative])


def _below(high: Tensor, low: Tensor, limit: Tensor | int) -> Tensor:
    """A number in [0, limit), limit < 2**31, from two 32-bit words."""
    return (high * limit + ((low * limit) >> 32)) >> 32


def _seen_before(neighbors: Tensor, begin: Tensor, degree: Tensor, rank: Tensor) -> Tensor:
    """For each user, how many k there are with neighbors[begin + k] - k <= rank, by bisection of all at once."""
    low, high = torch.zeros_like(degree), degree
    for _ in range(neighbors.shape[0].bit_length()):
        middle = (low + high) >> 1
        below = (low < high) & (neighbors[(begin + middle).clamp(max=neighbors.shape[0] - 1)] - middle <= rank)
        low, high = torch.where(below, middle + 1, low), torch.where(below, high, middle)
    return low


def check_candidates(offsets: Tensor, neighbors: Tensor, users: Tensor, starts: Tensor | None, n_items: int) -> None:
    """Raise ValueError unless every candidate is a user with an item and without another, and `starts` are theirs."""
    in_range = bool(((users >= 0) & (users < offsets.shape[0] - 1 - n_items)).all())
    degrees = offsets[users + 1] - offsets[users] if in_range else users
    fits = in_range and bool(((degrees > 0) & (degrees < n_items)).all()) and int(offsets.max()) <= neighbors.shape[0]
    if starts is not None:
        fits = fits and int(starts[0]) == 0 and torch.equal(starts.diff(), degrees) and int(starts[-1]) < 1 << 31
    if not fits:
        raise ValueError(
            "users and starts do not fit the graph: each user must have at least one item but not all of them, "
            "and starts must be the cumulative sum of their degrees, below 2**31"
        )


def _fake(offsets: Tensor, *rest: Any) -> Tensor:
    *_, n, _seed, _step = rest
    return offsets.new_empty(3, n)


@on_load
def _register(library: str) -> None:
    register_composite(library, "bpr_triples", bpr_triples_reference)
    torch.library.register_fake(f"{library}::bpr_triples", _fake)
