"""Triples for BPR, drawn from a graph. Specification: `gru4rec_fast.reference.bpr_triples`."""

from __future__ import annotations

import torch
from torch import Tensor

from gru4rec_fast._backend import resolve
from gru4rec_fast.ops._registry import on_load, operators, register_composite
from gru4rec_fast.reference.bpr_triples import bpr_triples as reference_bpr_triples
from gru4rec_fast.reference.bpr_triples import check_candidates
from gru4rec_fast.reference.philox import WORD_RANGE, check_counters

_LIMIT = 1 << 31  # of what is drawn from: users, their interactions, items


def bpr_triples(
    offsets: Tensor,
    neighbours: Tensor,
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
        offsets: int64 [n_users + n_items + 1], neighbours: int32 or int64: the graph, users before items, the
            neighbours of a node rising (that is not checked).
        users: int64 [n_candidates], the users to draw from: each has an item, and none has all items.
        n: number of triples, below 2**32.
        n_users, n_items: both below 2**31.
        starts: None, or int64 [n_candidates + 1]: 0 and the running sum of the candidates' degrees, below 2**31.
        seed: in [0, 2**63). step: in [0, 2**32).
        impl: "auto", "native", "reference" or "emulated".

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
    if neighbours.dtype not in (torch.int32, torch.int64) or neighbours.dim() != 1:
        raise ValueError(f"neighbours must be int32 or int64 [n_entries], not {neighbours.dtype} {[*neighbours.shape]}")
    if users.dtype != torch.int64 or users.dim() != 1 or not 1 <= users.shape[0] < _LIMIT:
        raise ValueError(f"users must be int64 [n_candidates], one at least, not {users.dtype} {[*users.shape]}")
    if starts is not None and (starts.dtype != torch.int64 or starts.shape != (users.shape[0] + 1,)):
        raise ValueError(f"starts must be int64 [{users.shape[0] + 1}], not {starts.dtype} {[*starts.shape]}")
    chosen = resolve(impl, "bpr_triples", offsets.device.type)
    if chosen != "reference":
        return operators(chosen).bpr_triples(offsets, neighbours, users, starts, n_users, n_items, n, seed, step)
    if not torch.compiler.is_compiling():
        check_candidates(offsets, neighbours, users, starts, n_items)
    return reference_bpr_triples(offsets, neighbours, users, starts, n_users, n_items, n, seed, step)


def _fake(
    offsets: Tensor,
    neighbours: Tensor,
    users: Tensor,
    starts: Tensor | None,
    n_users: int,
    n_items: int,
    n: int,
    seed: int,
    step: int,
) -> Tensor:
    return offsets.new_empty(3, n)


@on_load
def _register(library: str) -> None:
    register_composite(library, "bpr_triples", reference_bpr_triples)
    torch.library.register_fake(f"{library}::bpr_triples", _fake)
