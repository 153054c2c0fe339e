"""BPR triples: the documented function of Philox on every path, uniform, no negative is an item of the user."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native import compiler, examples, implementations, native_and_emulated, operators_of
from oracle.philox import philox4x32, seed_key
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from gru4rec_fast import InteractionGraph, _backend
from gru4rec_fast.data import TripleSampler
from gru4rec_fast.ops import bpr_triples

native = pytest.mark.skipif(
    _backend.resolve("auto", "bpr_triples", "cpu") != "native", reason="bpr_triples is not built natively"
)
impls = implementations("bpr_triples")
kernels = native_and_emulated("bpr_triples")
units = pytest.mark.parametrize("by", ["users", "interactions"])
STREAM = 1 << 18


def random_graph(n_users: int, n_items: int, n_draws: int, seed: int) -> InteractionGraph:
    draws = np.random.default_rng(seed)
    users = (draws.random(n_draws) ** 2 * n_users).astype(np.int64)
    items = (draws.random(n_draws) ** 2 * n_items).astype(np.int64)
    return InteractionGraph.from_arrays(users, items, n_users=n_users, n_items=n_items)


def specified_triples(graph: InteractionGraph, by: str, n: int, seed: int, step: int) -> list[tuple[int, int, int]]:
    """Compute the documented triples with lists of plain integers."""
    items = [graph.items_of(user).tolist() for user in range(graph.n_users)]
    candidates = [user for user in range(graph.n_users) if 0 < len(items[user]) < graph.n_items]
    pairs = [(user, item) for user in candidates for item in items[user]]
    triples = []
    for k in range(n):
        first, second = (philox4x32((STREAM, step, k, part), seed_key(seed)).tolist() for part in (0, 1))

        def below(limit: int, high: int, low: int) -> int:
            return limit * (high * 2**32 + low) >> 64

        if by == "users":
            user = candidates[below(len(candidates), first[0], first[1])]
            positive = items[user][below(len(items[user]), first[2], first[3])]
        else:
            user, positive = pairs[below(len(pairs), first[0], first[1])]
        others = [item for item in range(graph.n_items) if item not in items[user]]
        triples.append((user, positive, others[below(len(others), second[0], second[1])]))
    return triples


@impls
@units
@settings(max_examples=examples(40), deadline=None)
@given(
    graph=st.tuples(st.integers(1, 8), st.integers(2, 9), st.integers(1, 40), st.integers(0, 10**6)),
    seed=st.integers(0, 2**63 - 1),
    step=st.integers(0, 2**32 - 1),
)
def test_triples_are_the_stated_function(
    impl: str, by: str, graph: tuple[int, int, int, int], seed: int, step: int
) -> None:
    drawn_graph = random_graph(*graph)
    degrees = np.diff(drawn_graph.offsets[: drawn_graph.n_users + 1])
    if not ((degrees > 0) & (degrees < drawn_graph.n_items)).any():
        with pytest.raises(ValueError, match="every user of the graph has all items, or none"):
            TripleSampler(drawn_graph, 4, sample_by=by, impl=impl)
        return
    sampler = TripleSampler(drawn_graph, 9, sample_by=by, seed=seed, impl=impl)
    triples = torch.stack(sampler.draw(step)).T.tolist()
    assert [tuple(triple) for triple in triples] == specified_triples(drawn_graph, by, 9, seed, step)


@kernels
@units
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_kernels_equal_reference(impl: str, by: str, dtype: torch.dtype) -> None:
    graph = random_graph(300, 500, 8000, 1)
    graph.neighbors = graph.neighbors.astype({torch.int32: np.int32, torch.int64: np.int64}[dtype])
    ours, theirs = (
        torch.stack(TripleSampler(graph, 5000, sample_by=by, seed=2**50 + 1, impl=each).draw(3))
        for each in (impl, "reference")
    )
    assert torch.equal(ours, theirs)


@impls
@units
def test_draws_are_uniform_and_unseen(impl: str, by: str) -> None:
    """Chi-square tests at the 0.1 % level: of users, of the items of a user, and of the other items."""
    graph = random_graph(6, 8, 20, 3)
    users, positives, negatives = TripleSampler(graph, 40_000, sample_by=by, seed=1, impl=impl).draw(0)
    degrees = np.diff(graph.offsets[: graph.n_users + 1])
    drawn = np.flatnonzero((degrees > 0) & (degrees < graph.n_items))
    weight = np.ones(len(drawn)) if by == "users" else degrees[drawn]
    assert_follows(users, drawn, weight / weight.sum())
    for user in drawn.tolist():
        items = graph.items_of(user)
        mask = users == user
        assert_follows(positives[mask], items, np.full(len(items), 1 / len(items)))
        others = np.setdiff1d(np.arange(graph.n_items), items)
        assert_follows(negatives[mask], others, np.full(len(others), 1 / len(others)))


def assert_follows(values: Tensor, support: np.ndarray, share: np.ndarray) -> None:
    critical = {1: 10.83, 2: 13.82, 3: 16.27, 4: 18.47, 5: 20.52, 6: 22.46, 7: 24.32}
    counts = torch.bincount(values, minlength=int(support.max()) + 1).numpy()
    assert counts.sum() == counts[support].sum()
    if len(support) > 1:
        expected = share * len(values)
        assert ((counts[support] - expected) ** 2 / expected).sum() < critical[len(support) - 1]


@impls
def test_a_triple_does_not_depend_on_the_batch_size(impl: str) -> None:
    graph = random_graph(20, 30, 100, 0)
    whole = torch.stack(TripleSampler(graph, 64, seed=5, impl=impl).draw(7))
    assert torch.equal(whole[:, :10], torch.stack(TripleSampler(graph, 10, seed=5, impl=impl).draw(7)))
    assert not torch.equal(whole, torch.stack(TripleSampler(graph, 64, seed=6, impl=impl).draw(7)))
    assert not torch.equal(whole, torch.stack(TripleSampler(graph, 64, seed=5, impl=impl).draw(8)))


def test_an_epoch_draws_as_often_as_there_are_edges() -> None:
    graph = random_graph(20, 30, 100, 0)
    sampler = TripleSampler(graph, 16)
    assert sampler.n_batches == -(-graph.n_edges // 16)
    assert [step for step, _ in sampler.epoch(2)] == list(range(2 * sampler.n_batches, 3 * sampler.n_batches))
    assert TripleSampler(graph, 10**6).n_batches == 1


@native
@units
def test_threads_do_not_change_the_triples(by: str) -> None:
    sampler = TripleSampler(random_graph(300, 500, 8000, 1), 3000, sample_by=by, impl="native")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = torch.stack(sampler.draw(0))
        torch.set_num_threads(2)
        assert torch.equal(one, torch.stack(sampler.draw(0)))
    finally:
        torch.set_num_threads(threads)


# users 0, 1, 2 and items 3, 4; user 0 has item 3, user 1 both items, user 2 none
ARGUMENTS: dict[str, Any] = {
    "offsets": torch.tensor([0, 1, 3, 3, 5, 6]),
    "neighbors": torch.tensor([3, 3, 4, 0, 1, 1], dtype=torch.int32),
    "users": torch.tensor([0]),
    "n": 4,
    "n_users": 3,
    "n_items": 2,
    "starts": None,
    "seed": 0,
    "step": 0,
}
BAD: list[tuple[dict[str, Any], str]] = [
    ({"seed": -1}, "seed=-1"),
    ({"step": 2**32}, f"step={2**32}"),
    ({"n": -1}, "n=-1"),
    ({"n_users": 0}, "n_users=0"),
    ({"n_items": 2**31}, f"n_items={2**31}"),
    ({"n_items": 3}, r"offsets must be int64 \[7\]"),
    ({"neighbors": torch.zeros(6)}, "neighbors must be int32 or int64"),
    ({"users": torch.tensor([], dtype=torch.int64)}, "users must be int64"),
    ({"users": torch.tensor([0], dtype=torch.int32)}, "users must be int64"),
    ({"starts": torch.tensor([0])}, r"starts must be int64 \[2\]"),
    ({"users": torch.tensor([1])}, "do not fit the graph"),
    ({"users": torch.tensor([2])}, "do not fit the graph"),
    ({"users": torch.tensor([3])}, "do not fit the graph"),
    ({"users": torch.tensor([-1])}, "do not fit the graph"),
    ({"starts": torch.tensor([1, 2])}, "do not fit the graph"),
    ({"starts": torch.tensor([0, 2**31])}, "do not fit the graph"),
    ({"neighbors": torch.zeros(0, dtype=torch.int32)}, "do not fit the graph"),
]


@impls
@pytest.mark.parametrize(("changed", "message"), BAD)
def test_bad_arguments_are_named(impl: str, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bpr_triples(**{**ARGUMENTS, **changed}, impl=impl)


@kernels
@pytest.mark.parametrize(("changed", "message"), BAD)
def test_the_operator_itself_checks(impl: str, changed: dict[str, Any], message: str) -> None:
    a = {**ARGUMENTS, **changed}
    with pytest.raises(ValueError, match=message):
        operators_of(impl, "bpr_triples").bpr_triples(
            a["offsets"], a["neighbors"], a["users"], a["starts"], a["n_users"], a["n_items"], a["n"], a["seed"],
            a["step"],
        )  # fmt: skip


def test_bad_samplers() -> None:
    graph = random_graph(3, 4, 6, 0)
    with pytest.raises(ValueError, match="batch_size=0"):
        TripleSampler(graph, 0)
    with pytest.raises(ValueError, match="sample_by='items': choose one of users, interactions"):
        TripleSampler(graph, 1, sample_by="items")


@kernels
def test_opcheck(impl: str) -> None:
    a = ARGUMENTS
    for starts in (None, torch.tensor([0, 1])):
        torch.library.opcheck(
            operators_of(impl, "bpr_triples").bpr_triples,
            (a["offsets"], a["neighbors"], a["users"], starts, 3, 2, 5, 1, 2),
        )


@native
def test_compiled_draws_serve_every_step() -> None:
    counter = CompileCounter()
    sampler = TripleSampler(random_graph(20, 30, 100, 0), 16)

    def draw(step: int) -> Tensor:
        return torch.stack(sampler.draw(step)) * 2

    compiled = torch.compile(draw, fullgraph=True, backend=counter)
    for step in range(5, 12):
        assert torch.equal(compiled(step), draw(step))
    assert counter.frame_count <= 2  # one compilation for the first step, one for all others


@impls
def test_compiles_whole(impl: str) -> None:
    def draw() -> Tensor:
        return bpr_triples(**ARGUMENTS, impl=impl) + 1

    compiled = torch.compile(draw, fullgraph=True, backend=compiler(impl == "native"))
    assert torch.equal(compiled(), draw())


@kernels
def test_items_beyond_two_to_the_31st(impl: str, tmp_path: Path) -> None:
    """Positions in `neighbors` beyond 2^31: the array is a sparse file with a hole in place of the items of user 0."""
    start, n_items = 2**31 + 5, 9
    with open(tmp_path / "neighbors", "wb") as file:
        file.seek(start * 4)
        file.write(np.array([2, 5, 7], np.int32).tobytes())  # items 0, 3 and 5 of user 1; nodes 0 and 1 are users
    neighbors = torch.from_file(str(tmp_path / "neighbors"), size=start + 3, dtype=torch.int32)
    offsets = torch.tensor([0, start, start + 3] + [start + 3] * n_items)
    small = torch.tensor([0, 0, 3] + [3] * n_items), neighbors[start:].clone()
    drawn = [
        bpr_triples(*graph, torch.tensor([1]), 50, n_users=2, n_items=n_items, seed=1, step=2, impl=each)
        for graph, each in (((offsets, neighbors), impl), (small, "reference"))
    ]
    assert torch.equal(*drawn) and set(drawn[0][1].tolist()) == {0, 3, 5}
    assert not {0, 3, 5} & set(drawn[0][2].tolist())
