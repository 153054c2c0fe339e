"""Ranking: reference and native against brute force, bit for bit where the arithmetic is exact."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from native import LEVELS, error_pattern, run_at_level, why_not_emulated
from torch import Tensor
from virtual_memory import skipping_without_address_space, torch_runs, zeros

from gru4rec_fast.ops import ranking
from gru4rec_fast.ops.ranking import target_rank, target_rank_reference, top_k, top_k_reference

native = pytest.mark.usefixtures("native_library")
emulated = pytest.mark.skipif(bool(why_not_emulated("ranking")), reason=why_not_emulated("ranking") or "-")
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
shapes = pytest.mark.parametrize(
    ("queries", "items", "width"),
    [(0, 5, 3), (1, 1, 1), (5, 63, 7), (1, 64, 100), (5, 65, 100), (33, 1000, 7), (70, 1000, 100), (3, 20000, 7)],
)


def problem(
    queries: int, items: int, width: int, dtype: torch.dtype, *, integers: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return hidden, weight, bias, targets. With small integers, sums are exact in any order and many scores tie."""
    generator = torch.Generator().manual_seed(queries * 7919 + items * 31 + width)

    def draw(*shape: int) -> Tensor:
        if integers:
            return torch.randint(-2, 3, shape, generator=generator).to(dtype)
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    targets = torch.randint(items, (queries,), generator=generator)
    return draw(queries, width), draw(items, width), draw(items), targets


def brute_force(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> np.ndarray:
    """Return the scores [Q, I] in float64, by NumPy."""
    scores = np.einsum("qh,ih->qi", hidden.double().numpy(), weight.double().numpy())
    return scores if bias is None else scores + bias.double().numpy()


@dtypes
@shapes
@pytest.mark.parametrize("with_bias", [True, False])
def test_target_rank_counts_exactly_on_integers(
    impl: str, dtype: torch.dtype, queries: int, items: int, width: int, with_bias: bool
) -> None:
    hidden, weight, bias, targets = problem(queries, items, width, dtype, integers=True)
    given = bias if with_bias else None
    scores = brute_force(hidden, weight, given)
    own = scores[np.arange(queries), targets.numpy()][:, None]
    greater, equal = target_rank(hidden, weight, given, targets, impl=impl)
    assert greater.dtype == equal.dtype == torch.int64
    np.testing.assert_array_equal(greater.numpy(), (scores > own).sum(1))
    np.testing.assert_array_equal(equal.numpy(), (scores == own).sum(1) - 1)


@dtypes
@shapes
def test_target_rank_of_real_numbers(impl: str, dtype: torch.dtype, queries: int, items: int, width: int) -> None:
    """Only items whose score is within rounding of the score of the target may be counted differently."""
    hidden, weight, bias, targets = problem(queries, items, width, dtype)
    scores = brute_force(hidden, weight, bias)
    gap = scores - scores[np.arange(queries), targets.numpy()][:, None]
    # A sum of n products is off by at most n eps sum |products| (Higham, Accuracy and Stability, section 3.1);
    # there are two such sums in a gap.
    size = np.abs(hidden.double().numpy()) @ np.abs(weight.double().numpy()).T + np.abs(bias.double().numpy())
    bound = 2 * (width + 1) * torch.finfo(dtype).eps * size.max(axis=1, keepdims=True) if queries else gap
    greater, equal = target_rank(hidden, weight, bias, targets, impl=impl)
    assert ((gap > bound).sum(1) <= greater.numpy()).all()
    assert (greater.numpy() + equal.numpy() <= (gap >= -bound).sum(1) - 1).all()


@dtypes
@shapes
@pytest.mark.parametrize("n_exclude", [None, 0, 4])
def test_top_k_on_integers(
    impl: str, dtype: torch.dtype, queries: int, items: int, width: int, n_exclude: int | None
) -> None:
    hidden, weight, bias, _ = problem(queries, items, width, dtype, integers=True)
    k = min(items, 20)
    scores = brute_force(hidden, weight, bias)
    exclude = None
    if n_exclude is not None:
        exclude = torch.randint(-1, items, (queries, n_exclude), generator=torch.Generator().manual_seed(1))
        for q, row in enumerate(exclude.tolist()):
            scores[q, [item for item in row if item >= 0]] = -np.inf
    best, found = top_k(hidden, weight, bias, k, exclude, impl=impl)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    expected = np.take_along_axis(scores, order, axis=1)
    np.testing.assert_array_equal(best.double().numpy(), expected)
    np.testing.assert_array_equal(found.numpy(), np.where(expected == -np.inf, -1, order))


def test_top_k_of_the_whole_catalogue_sorts_it(impl: str) -> None:
    hidden, weight, bias, _ = problem(5, 100, 7, torch.float64)
    best, found = top_k(hidden, weight, bias, 100, impl=impl)
    assert (found.sort(dim=1).values == torch.arange(100)).all()
    assert (best.diff(dim=1) <= 0).all()
    torch.testing.assert_close(best, torch.from_numpy(brute_force(hidden, weight, bias)).gather(1, found))


def test_top_k_pads_where_too_few_items_are_left(impl: str) -> None:
    hidden, weight = torch.ones(2, 1), torch.tensor([[1.0], [3.0], [2.0]])
    best, items = top_k(hidden, weight, None, 3, torch.tensor([[1, 1], [-1, -1]]), impl=impl)
    assert items.tolist() == [[2, 0, -1], [1, 2, 0]]
    assert best.tolist() == [[2.0, 1.0, -torch.inf], [3.0, 2.0, 1.0]]
    barred = torch.tensor([0.0, -torch.inf, 0.0])  # a bias of -inf excludes an item for everybody
    assert top_k(hidden, weight, barred, 3, impl=impl)[1].tolist() == [[2, 0, -1]] * 2


@dtypes
def test_equal_rows_tie_wherever_they_stand(impl: str, dtype: torch.dtype) -> None:
    """The catalogue has many copies of the target's row; the native kernel finds all ties, BLAS those of exact sums."""
    queries, n = (5, 301) if impl == "emulated" else (40, 3001)
    hidden, weight, bias, _ = problem(queries, n, 101, dtype, integers=impl != "native")
    copies = torch.tensor([0, 5, 6, 11, 12, n // 2 - 1, n - 13, n - 2, n - 1])
    weight[copies], bias[copies] = weight[1].clone(), bias[1].clone()
    for copy in copies.tolist():
        _, equal = target_rank(hidden, weight, bias, torch.full((queries,), copy), impl=impl)
        scores = brute_force(hidden, weight, bias)
        others = np.isclose(scores, scores[:, [copy]], rtol=1e-12, atol=0).sum(1) - 1
        np.testing.assert_array_equal(equal.numpy(), others)
        assert (equal >= len(copies)).all()  # row 1 is a copy too
    best, items = top_k(hidden, weight, bias, n, impl=impl)
    for row, score in zip(items, best, strict=True):
        at = [row.tolist().index(item) for item in sorted([1, *copies.tolist()])]
        assert at == sorted(at)
        assert len(score[at].unique()) == 1


@native
@dtypes
def test_native_bits_do_not_depend_on_threads_batch_or_place(dtype: torch.dtype) -> None:
    hidden, weight, bias, targets = problem(70, 5000, 37, dtype)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(
                [
                    *target_rank(hidden, weight, bias, targets, impl="native"),
                    *top_k(hidden, weight, bias, 50, impl="native"),
                ]
            )
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))
    for q in (0, 31, 69):  # alone: another panel width
        alone = slice(q, q + 1)
        single = [
            *target_rank(hidden[alone], weight, bias, targets[alone], impl="native"),
            *top_k(hidden[alone], weight, bias, 50, impl="native"),
        ]
        assert all(torch.equal(one, both[alone]) for one, both in zip(single, results[0], strict=True))
    turn = torch.randperm(5000, generator=torch.Generator().manual_seed(0))
    turned = top_k(hidden, weight[turn], bias[turn], 50, impl="native")
    assert torch.equal(turned[0], results[0][2])
    assert torch.equal(turn[turned[1]], results[0][3])  # no ties among random numbers


@native
@pytest.mark.parametrize("level", LEVELS)
def test_every_instruction_set_counts_alike(level: str) -> None:
    run_at_level(level, __file__, "native and (on_integers or tie_wherever or bits_do_not_depend)")


@pytest.mark.parametrize("place", ["hidden", "weight", "bias"])
@pytest.mark.parametrize("at", [0, 17, 36])
def test_nan_is_an_error_that_names_the_query(impl: str, place: str, at: int) -> None:
    hidden, weight, bias, targets = problem(37, 37, 7, torch.float32)
    {"hidden": hidden, "weight": weight, "bias": bias}[place][at] = torch.nan
    first = at if place == "hidden" else 0
    message = error_pattern(f"query {first} has a NaN score", impl)
    for k in (1, 37):
        with pytest.raises(ranking.NanScoreError, match=message):
            top_k(hidden, weight, bias, k, impl=impl)
    with pytest.raises(ranking.NanScoreError, match=message):
        target_rank(hidden, weight, bias, targets, impl=impl)


def test_infinite_scores_are_ranked(impl: str) -> None:
    weight = torch.tensor([[1.0], [torch.inf], [-torch.inf], [torch.inf]])
    greater, equal = target_rank(torch.ones(3, 1), weight, None, torch.tensor([0, 1, 2]), impl=impl)
    assert greater.tolist() == [2, 0, 3]
    assert equal.tolist() == [0, 1, 0]


def test_bad_arguments_are_named(impl: str) -> None:
    hidden, weight, bias, targets = problem(3, 10, 4, torch.float32)
    for target in (-1, 10):
        targets[1] = target
        with pytest.raises(
            ValueError, match=error_pattern(rf"targets out of range: targets\[1\] = {target}", impl)
        ) as refused:
            target_rank(hidden, weight, bias, targets, impl=impl)
        assert refused.type is ValueError
    with pytest.raises(ValueError, match=r"targets must be int64 \[3\]"):
        target_rank(hidden, weight, bias, targets[:2], impl=impl)
    for k in (0, 11):
        with pytest.raises(ValueError, match=f"k={k}: choose 1 to 10"):
            top_k(hidden, weight, bias, k, impl=impl)
    with pytest.raises(ValueError, match=error_pattern("exclude out of range", impl)) as refused:
        top_k(hidden, weight, bias, 3, torch.full((3, 1), 10), impl=impl)
    assert refused.type is ValueError
    with pytest.raises(ValueError, match=r"exclude must be int64 \[3, E\]"):
        top_k(hidden, weight, bias, 3, torch.full((2, 1), 1), impl=impl)
    with pytest.raises(ValueError, match=r"weight must be float32 \[I, 2\]"):
        top_k(hidden[:, :2], weight, bias, 3, impl=impl)
    with pytest.raises(ValueError, match=r"weight must be float32 .*, not float64"):
        top_k(hidden, weight.double(), bias, 3, impl=impl)
    with pytest.raises(ValueError, match="bias must be"):
        top_k(hidden, weight, bias[:2], 3, impl=impl)
    with pytest.raises(ValueError, match="the catalogue is empty"):
        top_k(hidden, weight[:0], None, 1, impl=impl)
    with pytest.raises(ValueError, match="float32 or float64"):
        top_k(hidden.half(), weight.half(), None, 1, impl=impl)


def test_reference_is_the_same_in_small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, bias, targets = problem(70, 100, 7, torch.float32, integers=True)
    whole = [*target_rank_reference(hidden, weight, bias, targets), *top_k_reference(hidden, weight, bias, 9, None)]
    monkeypatch.setattr(ranking, "SCORES_PER_CHUNK", 300)
    parts = [*target_rank_reference(hidden, weight, bias, targets), *top_k_reference(hidden, weight, bias, 9, None)]
    assert all(torch.equal(one, two) for one, two in zip(whole, parts, strict=True))
    hidden[50] = torch.nan
    with pytest.raises(ValueError, match="query 50 has a NaN score"):
        target_rank_reference(hidden, weight, bias, targets)


def test_no_gradient_is_recorded(impl: str) -> None:
    hidden, weight, bias, targets = problem(3, 10, 4, torch.float32)
    weight.requires_grad_()
    assert not top_k(hidden.requires_grad_(), weight, bias, 3, impl=impl)[0].requires_grad
    target_rank(hidden, weight, bias, targets, impl=impl)


def test_strided_inputs_are_read_right(impl: str) -> None:
    hidden, weight, bias, targets = problem(6, 40, 8, torch.float64)
    plain = target_rank(hidden[::2, ::2], weight[:, ::2], bias, targets[::2], impl=impl)
    copied = target_rank(
        hidden[::2, ::2].clone(memory_format=torch.contiguous_format),
        weight[:, ::2].clone(memory_format=torch.contiguous_format),
        bias,
        targets[::2].clone(),
        impl=impl,
    )
    assert torch.equal(plain[0], copied[0])


@emulated
def test_catalogues_beyond_two_to_the_31st() -> None:
    """A table of more numbers than 32 bits count, whose last row is the target: no other row but two is anything."""
    items, width = 2**17 + 2, 2**14
    with skipping_without_address_space():
        weight = zeros(items, width)
    weight[3], weight[9, 0], weight[-1, -1] = 1.0, 7.0, 7.0
    greater, equal = target_rank(torch.ones(1, width), weight, None, torch.tensor([items - 1]), impl="emulated")
    assert weight.numel() > 2**31
    assert greater.tolist() == [1] and equal.tolist() == [1]


@emulated
def test_exclusions_beyond_two_to_the_31st() -> None:
    """More excluded items than 32 bits count: item 0 for every query, and two more for the last of each tile of 32.
    They are sorted already, and torch's sort, which would write as much again, is left out."""
    queries, n = 33, 70_000_000
    hidden, weight, bias, _ = problem(queries, 8, 3, torch.float32, integers=True)
    with skipping_without_address_space(), torch_runs({"sort.stable": lambda given, **_: (given, given[:0])}):
        exclude = zeros(queries, n, dtype=np.int64)
        exclude[31, -2:], exclude[32, -2:] = torch.tensor([5, 7]), torch.tensor([1, 6])
        found = top_k(hidden, weight, bias, 7, exclude, impl="emulated")
    assert 31 * n > 2**31
    expected = top_k(hidden, weight, bias, 7, exclude[:, -3:], impl="reference")
    assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))


@native
@dtypes
def test_opcheck(dtype: torch.dtype) -> None:
    hidden, weight, bias, targets = problem(5, 65, 7, dtype)
    ops = torch.ops.gru4rec_fast
    torch.library.opcheck(ops.target_rank.default, (hidden, weight, bias, targets))
    torch.library.opcheck(ops.target_rank.default, (hidden, weight, None, targets))
    torch.library.opcheck(ops.top_k.default, (hidden, weight, bias, 3, None))
    torch.library.opcheck(ops.top_k.default, (hidden, weight, bias, 3, targets[:, None]))


@native
def test_compiles_to_one_graph() -> None:
    hidden, weight, bias, targets = problem(5, 65, 7, torch.float32)

    def evaluate(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        return *target_rank(hidden * 2, weight, bias, targets), *top_k(hidden, weight, bias, 4, targets[:, None])

    compiled = torch.compile(evaluate, fullgraph=True, backend="aot_eager")
    for n in (5, 3):
        expected = evaluate(hidden[:n], weight, bias, targets[:n])
        found = compiled(hidden[:n], weight, bias, targets[:n])
        assert all(torch.equal(one, two) for one, two in zip(expected, found, strict=True))
