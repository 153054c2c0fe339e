"""bpr_triples: triples are the documented function of Philox in all implementations, uniform, and have valid negatives.

A triple is a user, an item that the user has (positive), and an item that the user does not have (negative).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native import compile_backend, implementations, max_examples, native_and_emulated, operators_of, threads
from oracle.philox import philox4x32, seed_key
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from gru4rec_fast import InteractionGraph, _backend
from gru4rec_fast.data import TripleSampler
from gru4rec_fast.ops import bpr_triples

# Marks: run with the native kernels, with all implementations, with all kernels, with each value of sample_by.
needs_native = pytest.mark.skipif(
    _backend.resolve("auto", "bpr_triples", "cpu") != "native", reason="bpr_triples is not built natively"
)
impls = implementations("bpr_triples")
kernels = native_and_emulated("bpr_triples")
each_sample_by = pytest.mark.parametrize("sample_by", ["users", "interactions"])
STREAM = 1 << 18  # first word of the Philox counters of triples


def random_graph(n_users: int, n_items: int, n_draws: int, seed: int) -> InteractionGraph:
    """Return a graph in which users and items of low indices have most of the edges; some may have none."""
    generator = np.random.default_rng(seed)
    users = (generator.random(n_draws) ** 2 * n_users).astype(np.int64)
    items = (generator.random(n_draws) ** 2 * n_items).astype(np.int64)
    return InteractionGraph.from_arrays(users, items, n_users=n_users, n_items=n_items)


def random_below(limit: int, high: int, low: int) -> int:
    """Return a random number in [0, limit) from two random 32-bit words."""
    return limit * (high * 2**32 + low) >> 64


def specified_triples(
    graph: InteractionGraph, sample_by: str, n: int, seed: int, step: int
) -> list[tuple[int, int, int]]:
    """Return the triples that the documentation of `bpr_triples` specifies, computed with Python integers."""
    items = [graph.items_of(user).tolist() for user in range(graph.n_users)]
    candidates = [user for user in range(graph.n_users) if 0 < len(items[user]) < graph.n_items]
    pairs = [(user, item) for user in candidates for item in items[user]]
    triples = []
    for k in range(n):
        first, second = (philox4x32((STREAM, step, k, word), seed_key(seed)).tolist() for word in (0, 1))
        if sample_by == "users":
            user = candidates[random_below(len(candidates), first[0], first[1])]
            positive = items[user][random_below(len(items[user]), first[2], first[3])]
        else:
            user, positive = pairs[random_below(len(pairs), first[0], first[1])]
        others = [item for item in range(graph.n_items) if item not in items[user]]
        triples.append((user, positive, others[random_below(len(others), second[0], second[1])]))
    return triples


@impls
@each_sample_by
@settings(max_examples=max_examples(40), deadline=None)
@given(
    graph=st.tuples(st.integers(1, 8), st.integers(2, 9), st.integers(1, 40), st.integers(0, 10**6)),
    seed=st.integers(0, 2**63 - 1),
    step=st.integers(0, 2**32 - 1),
)
def test_triples_are_the_documented_function_of_philox(
    impl: str, sample_by: str, graph: tuple[int, int, int, int], seed: int, step: int
) -> None:
    drawn_graph = random_graph(*graph)
    degrees = np.diff(drawn_graph.offsets[: drawn_graph.n_users + 1])
    if not ((degrees > 0) & (degrees < drawn_graph.n_items)).any():
        with pytest.raises(ValueError, match="every user of the graph has all items, or none"):
            TripleSampler(drawn_graph, 4, sample_by=sample_by, impl=impl)
        return
    sampler = TripleSampler(drawn_graph, 9, sample_by=sample_by, seed=seed, impl=impl)
    triples = torch.stack(sampler.draw(step)).T.tolist()
    assert [tuple(triple) for triple in triples] == specified_triples(drawn_graph, sample_by, 9, seed, step)


@kernels
@each_sample_by
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_kernels_equal_reference(impl: str, sample_by: str, dtype: torch.dtype) -> None:
    graph = random_graph(300, 500, 8000, 1)
    graph.neighbors = graph.neighbors.astype({torch.int32: np.int32, torch.int64: np.int64}[dtype])

    def triples(impl: str) -> Tensor:
        return torch.stack(TripleSampler(graph, 5000, sample_by=sample_by, seed=2**50 + 1, impl=impl).draw(3))

    assert torch.equal(triples(impl), triples("reference"))


@impls
@each_sample_by
def test_draws_are_uniform(impl: str, sample_by: str) -> None:
    """Users, and the positives and negatives of each user, pass chi-square tests at the 0.1 % level."""
    graph = random_graph(6, 8, 20, 3)
    users, positives, negatives = TripleSampler(graph, 40_000, sample_by=sample_by, seed=1, impl=impl).draw(0)
    degrees = np.diff(graph.offsets[: graph.n_users + 1])
    candidates = np.flatnonzero((degrees > 0) & (degrees < graph.n_items))
    weight = np.ones(len(candidates)) if sample_by == "users" else degrees[candidates]
    assert_distributed(users, candidates, weight / weight.sum())
    for user in candidates.tolist():
        items = graph.items_of(user)
        of_user = users == user
        assert_distributed(positives[of_user], items, np.full(len(items), 1 / len(items)))
        others = np.setdiff1d(np.arange(graph.n_items), items)
        assert_distributed(negatives[of_user], others, np.full(len(others), 1 / len(others)))


def assert_distributed(draws: Tensor, values: np.ndarray, probabilities: np.ndarray) -> None:
    """Assert that only `values` were drawn, and that their frequencies pass a chi-square test at the 0.1 % level."""
    critical = {1: 10.83, 2: 13.82, 3: 16.27, 4: 18.47, 5: 20.52, 6: 22.46, 7: 24.32}  # by degrees of freedom
    counts = torch.bincount(draws, minlength=int(values.max()) + 1).numpy()
    assert counts.sum() == counts[values].sum()
    if len(values) > 1:
        expected = probabilities * len(draws)
        assert ((counts[values] - expected) ** 2 / expected).sum() < critical[len(values) - 1]


@impls
def test_a_triple_does_not_depend_on_the_batch_size(impl: str) -> None:
    graph = random_graph(20, 30, 100, 0)

    def triples(batch_size: int, seed: int, step: int) -> Tensor:
        return torch.stack(TripleSampler(graph, batch_size, seed=seed, impl=impl).draw(step))

    expected = triples(64, seed=5, step=7)
    assert torch.equal(triples(10, seed=5, step=7), expected[:, :10])
    assert not torch.equal(triples(64, seed=6, step=7), expected)
    assert not torch.equal(triples(64, seed=5, step=8), expected)


def test_epoch_has_as_many_triples_as_the_graph_has_edges() -> None:
    graph = random_graph(20, 30, 100, 0)
    sampler = TripleSampler(graph, 16)
    assert sampler.n_batches == -(-graph.n_edges // 16)
    assert [step for step, _ in sampler.epoch(2)] == list(range(2 * sampler.n_batches, 3 * sampler.n_batches))
    assert TripleSampler(graph, 10**6).n_batches == 1


@needs_native
@each_sample_by
def test_threads_do_not_change_the_triples(sample_by: str) -> None:
    sampler = TripleSampler(random_graph(300, 500, 8000, 1), 3000, sample_by=sample_by, impl="native")
    with threads(1):
        expected = torch.stack(sampler.draw(0))
    with threads(2):
        assert torch.equal(torch.stack(sampler.draw(0)), expected)


# Nodes 0, 1, 2 are users, nodes 3, 4 are items. User 0 has one item, user 1 has both items, user 2 has none.
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
INVALID_ARGUMENTS: list[tuple[dict[str, Any], str]] = [
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
    # Differences and sums of these numbers overflow 64 bits.
    ({"offsets": torch.tensor([2**63 - 1, -(2**63), 3, 3, 5, 6])}, "do not fit the graph"),
    ({"offsets": torch.tensor([2**63 - 1, 2**63 - 1, 3, 3, 5, 6])}, "do not fit the graph"),
    ({"offsets": torch.tensor([-(2**63), -(2**63) + 1, 3, 3, 5, 6])}, "do not fit the graph"),
    ({"offsets": torch.tensor([-1, 0, 3, 3, 5, 6])}, "do not fit the graph"),
    ({"users": torch.tensor([0, 0]), "starts": torch.tensor([0, -(2**63), 1])}, "do not fit the graph"),
    ({"neighbors": torch.tensor([2, 3, 4, 0, 1, 1])}, "do not fit the graph"),
    ({"neighbors": torch.tensor([-(2**63), 3, 4, 0, 1, 1])}, "do not fit the graph"),
    ({"neighbors": torch.tensor([2**63 - 1, 3, 4, 0, 1, 1])}, "do not fit the graph"),
]


@impls
@pytest.mark.parametrize(("changed", "message"), INVALID_ARGUMENTS)
def test_error_names_the_argument(impl: str, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bpr_triples(**{**ARGUMENTS, **changed}, impl=impl)


@kernels
@pytest.mark.parametrize(("changed", "message"), INVALID_ARGUMENTS)
def test_operator_error_names_the_argument(impl: str, changed: dict[str, Any], message: str) -> None:
    arguments = {**ARGUMENTS, **changed}
    names = ("offsets", "neighbors", "users", "starts", "n_users", "n_items", "n", "seed", "step")
    with pytest.raises(ValueError, match=message):
        operators_of(impl, "bpr_triples").bpr_triples(*(arguments[name] for name in names), None)


def test_errors_of_triple_sampler() -> None:
    graph = random_graph(3, 4, 6, 0)
    with pytest.raises(ValueError, match="batch_size=0"):
        TripleSampler(graph, 0)
    with pytest.raises(ValueError, match="sample_by='items': choose one of users, interactions"):
        TripleSampler(graph, 1, sample_by="items")


@kernels
def test_opcheck(impl: str) -> None:
    graph = [ARGUMENTS[name] for name in ("offsets", "neighbors", "users")]
    for starts in (None, torch.tensor([0, 1])):
        torch.library.opcheck(
            operators_of(impl, "bpr_triples").bpr_triples,
            (*graph, starts, 3, 2, 5, 1, 2, None),  # the last arguments: n_users, n_items, n, seed, step, counter
        )


@needs_native
def test_compiled_function_is_not_recompiled_for_each_step() -> None:
    counter = CompileCounter()
    sampler = TripleSampler(random_graph(20, 30, 100, 0), 16)

    def draw(step: int) -> Tensor:
        return torch.stack(sampler.draw(step)) * 2

    compiled = torch.compile(draw, fullgraph=True, backend=counter)
    for step in range(5, 12):
        assert torch.equal(compiled(step), draw(step))
    assert counter.frame_count <= 2  # one compilation for the first step, one for all others


@impls
def test_compiles_to_one_graph(impl: str) -> None:
    def draw() -> Tensor:
        return bpr_triples(**ARGUMENTS, impl=impl) + 1

    compiled = torch.compile(draw, fullgraph=True, backend=compile_backend(impl == "native"))
    assert torch.equal(compiled(), draw())


@kernels
def test_index_arithmetic_beyond_two_to_the_31st(impl: str, tmp_path: Path) -> None:
    """`neighbors` has more than 2**31 elements: a sparse file, with a hole in place of the items of user 0.

    Only user 1 is drawn. The triples must be the same as for the graph in which user 0 has no items.
    """
    start, n_items = 2**31 + 5, 9
    with open(tmp_path / "neighbors", "wb") as file:
        file.seek(start * 4)
        file.write(np.array([2, 5, 7], np.int32).tobytes())  # items 0, 3 and 5 of user 1; nodes 0 and 1 are users
    neighbors = torch.from_file(str(tmp_path / "neighbors"), size=start + 3, dtype=torch.int32)
    offsets = torch.tensor([0, start, start + 3] + [start + 3] * n_items)
    small_graph = torch.tensor([0, 0, 3] + [3] * n_items), neighbors[start:].clone()
    users = torch.tensor([1])
    options: dict[str, Any] = {"n_users": 2, "n_items": n_items, "seed": 1, "step": 2}
    triples = bpr_triples(offsets, neighbors, users, 50, **options, impl=impl)
    assert torch.equal(triples, bpr_triples(*small_graph, users, 50, **options, impl="reference"))
    _, positives, negatives = triples.tolist()
    assert set(positives) == {0, 3, 5} and not {0, 3, 5} & set(negatives)


@impls
@pytest.mark.parametrize("sample_by", ["users", "interactions"])
def test_a_tensor_as_step_equals_the_integer(impl: str, sample_by: str) -> None:
    sampler = TripleSampler(random_graph(20, 30, 100, 0), 16, sample_by=sample_by, seed=4, impl=impl)
    assert torch.equal(torch.stack(sampler.draw(torch.tensor(7))), torch.stack(sampler.draw(7)))
    with pytest.raises(ValueError, match="step"):
        sampler.draw(torch.tensor(2**32))


def test_torchs_generator_seeds_a_sampler() -> None:
    graph = random_graph(20, 30, 100, 0)
    torch.manual_seed(3)
    first, second = (TripleSampler(graph, 16) for _ in range(2))
    torch.manual_seed(3)
    assert TripleSampler(graph, 16).seed == first.seed != second.seed
