"""target_rank and top_k compared with brute force. Results must be equal if the arithmetic has no rounding errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from native import LEVELS, assert_equal_bits, error_pattern, run_at_level, threads, why_not_emulated
from torch import Tensor
from virtual_memory import replaced_torch_operators, skipping_without_address_space, zeros

from gru4rec_fast.ops import ranking
from gru4rec_fast.ops.ranking import target_rank, target_rank_reference, top_k, top_k_reference

needs_native = pytest.mark.usefixtures("native_library")
emulated = pytest.mark.skipif(bool(why_not_emulated("ranking")), reason=why_not_emulated("ranking") or "-")
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
shapes = pytest.mark.parametrize(
    ("queries", "items", "width"),
    [(0, 5, 3), (1, 1, 1), (5, 63, 7), (1, 64, 100), (5, 65, 100), (33, 1000, 7), (70, 1000, 100), (3, 20000, 7)],
)


def problem(
    queries: int, items: int, width: int, dtype: torch.dtype, *, integers: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return random hidden [queries, width], weight [items, width], bias [items] and targets [queries].

    With `integers`, all numbers are small integers, so sums are exact in any order and many scores are equal.
    """
    generator = torch.Generator().manual_seed(queries * 7919 + items * 31 + width)

    def draw(*shape: int) -> Tensor:
        if integers:
            return torch.randint(-2, 3, shape, generator=generator).to(dtype)
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    targets = torch.randint(items, (queries,), generator=generator)
    return draw(queries, width), draw(items, width), draw(items), targets


def brute_force(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> np.ndarray:
    """Return the scores [queries, items] in float64, computed with NumPy."""
    scores = np.einsum("qh,ih->qi", hidden.double().numpy(), weight.double().numpy())
    return scores if bias is None else scores + bias.double().numpy()


@emulated
@pytest.mark.parametrize("op", ["target_rank", "top_k"])
def test_all_products_of_the_catalogue_have_equally_aligned_rows(op: str) -> None:
    """BLAS may sum in another order if alignments differ. So with 3 queries a tile has 1344 = 21 * 64 items, not 1365.

    Each of the two calls multiplies three tiles; both may copy their last tile to the same memory.
    """
    hidden, weight, bias, targets = problem(3, 4000, 7, torch.float32, integers=True)
    memory = torch.empty(weight.numel() + 1)
    misaligned = memory[1:].view_as(weight).copy_(weight)
    addresses: list[int] = []

    def mm(a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
        addresses.append(b.data_ptr())
        return out.copy_(torch.einsum("qh,hi->qi", a.double(), b.double()))

    for rows in (misaligned, weight):
        with replaced_torch_operators({"mm.out": mm}):
            if op == "top_k":
                outputs = top_k(hidden, rows, bias, 5, impl="emulated")
                expected = top_k(hidden, weight, bias, 5, impl="reference")
            else:
                outputs = target_rank(hidden, rows, bias, targets, impl="emulated")
                expected = target_rank(hidden, weight, bias, targets, impl="reference")
        assert_equal_bits(outputs, expected)
    assert len({*addresses}) >= 5 and {address % 64 for address in addresses} == {0}


@dtypes
@shapes
@pytest.mark.parametrize("with_bias", [True, False])
def test_target_rank_counts_exactly_on_integers(
    impl: str, dtype: torch.dtype, queries: int, items: int, width: int, with_bias: bool
) -> None:
    hidden, weight, bias, targets = problem(queries, items, width, dtype, integers=True)
    output_bias = bias if with_bias else None
    scores = brute_force(hidden, weight, output_bias)
    target_scores = scores[np.arange(queries), targets.numpy()][:, None]
    greater, equal = target_rank(hidden, weight, output_bias, targets, impl=impl)
    assert greater.dtype == equal.dtype == torch.int64
    np.testing.assert_array_equal(greater.numpy(), (scores > target_scores).sum(1))
    np.testing.assert_array_equal(equal.numpy(), (scores == target_scores).sum(1) - 1)  # not the target itself


@dtypes
@shapes
def test_target_rank_of_real_numbers(impl: str, dtype: torch.dtype, queries: int, items: int, width: int) -> None:
    """Only items whose score is within rounding of the score of the target may be counted differently."""
    hidden, weight, bias, targets = problem(queries, items, width, dtype)
    scores = brute_force(hidden, weight, bias)
    gap = scores - scores[np.arange(queries), targets.numpy()][:, None]
    # The error of a sum of n products is at most n eps sum |products| (Higham, Accuracy and Stability, section 3.1).
    # A gap is the difference of two such sums. Without queries, there is no maximum, and any bound will do.
    magnitude = np.abs(hidden.double().numpy()) @ np.abs(weight.double().numpy()).T + np.abs(bias.double().numpy())
    bound = 2 * (width + 1) * torch.finfo(dtype).eps * magnitude.max(axis=1, keepdims=True) if queries else gap
    greater, equal = target_rank(hidden, weight, bias, targets, impl=impl)
    assert ((gap > bound).sum(1) <= greater.numpy()).all()
    assert (greater.numpy() + equal.numpy() <= (gap >= -bound).sum(1) - 1).all()


@dtypes
@shapes
@pytest.mark.parametrize("n_exclude", [None, 0, 4])
def test_top_k_is_exact_on_integers(
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
    best, chosen = top_k(hidden, weight, bias, k, exclude, impl=impl)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    expected = np.take_along_axis(scores, order, axis=1)
    np.testing.assert_array_equal(best.double().numpy(), expected)
    np.testing.assert_array_equal(chosen.numpy(), np.where(expected == -np.inf, -1, order))


def test_top_k_of_the_whole_catalogue_sorts_it(impl: str) -> None:
    hidden, weight, bias, _ = problem(5, 100, 7, torch.float64)
    best, order = top_k(hidden, weight, bias, 100, impl=impl)
    assert (order.sort(dim=1).values == torch.arange(100)).all()
    assert (best.diff(dim=1) <= 0).all()
    torch.testing.assert_close(best, torch.from_numpy(brute_force(hidden, weight, bias)).gather(1, order))


def test_top_k_pads_rows_with_fewer_than_k_items(impl: str) -> None:
    hidden, weight = torch.ones(2, 1), torch.tensor([[1.0], [3.0], [2.0]])
    best, items = top_k(hidden, weight, None, 3, torch.tensor([[1, 1], [-1, -1]]), impl=impl)
    assert items.tolist() == [[2, 0, -1], [1, 2, 0]]
    assert best.tolist() == [[2.0, 1.0, -torch.inf], [3.0, 2.0, 1.0]]
    bias = torch.tensor([0.0, -torch.inf, 0.0])  # a bias of -inf excludes item 1 for all queries
    assert top_k(hidden, weight, bias, 3, impl=impl)[1].tolist() == [[2, 0, -1]] * 2


@dtypes
def test_equal_rows_tie_wherever_they_are_in_the_table(impl: str, dtype: torch.dtype) -> None:
    """Several rows of the table are copies of row 1. All their scores must be equal.

    The native kernel always computes equal scores from equal rows. BLAS does so only if sums are exact. So the other
    implementations, which use BLAS, get integers.
    """
    queries, n_items = (5, 301) if impl == "emulated" else (40, 3001)
    hidden, weight, bias, _ = problem(queries, n_items, 101, dtype, integers=impl != "native")
    copies = torch.tensor([0, 5, 6, 11, 12, n_items // 2 - 1, n_items - 13, n_items - 2, n_items - 1])
    weight[copies], bias[copies] = weight[1].clone(), bias[1].clone()
    for copy in copies.tolist():
        _, equal = target_rank(hidden, weight, bias, torch.full((queries,), copy), impl=impl)
        scores = brute_force(hidden, weight, bias)
        n_ties = np.isclose(scores, scores[:, [copy]], rtol=1e-12, atol=0).sum(1) - 1
        np.testing.assert_array_equal(equal.numpy(), n_ties)
        assert (equal >= len(copies)).all()  # the other copies, and row 1
    best, items = top_k(hidden, weight, bias, n_items, impl=impl)
    for ranking_of_query, scores_of_query in zip(items, best, strict=True):
        positions = [ranking_of_query.tolist().index(item) for item in sorted([1, *copies.tolist()])]
        assert positions == sorted(positions)  # ties are sorted by item index
        assert len(scores_of_query[positions].unique()) == 1


@needs_native
@dtypes
def test_native_bits_do_not_depend_on_threads_batch_or_row_order(dtype: torch.dtype) -> None:
    hidden, weight, bias, targets = problem(70, 5000, 37, dtype)

    def ranks_and_top_k(queries: slice) -> list[Tensor]:
        return [
            *target_rank(hidden[queries], weight, bias, targets[queries], impl="native"),
            *top_k(hidden[queries], weight, bias, 50, impl="native"),
        ]

    with threads(1):
        expected = ranks_and_top_k(slice(None))
    with threads(2):
        assert_equal_bits(ranks_and_top_k(slice(None)), expected)
    for q in (0, 31, 69):  # the kernel has separate code for a single query
        query = slice(q, q + 1)
        assert_equal_bits(ranks_and_top_k(query), [result[query] for result in expected])
    permutation = torch.randperm(5000, generator=torch.Generator().manual_seed(0))
    scores, items = top_k(hidden, weight[permutation], bias[permutation], 50, impl="native")
    # No two scores are equal, since the numbers are random.
    assert_equal_bits([scores, permutation[items]], expected[2:])


@needs_native
@pytest.mark.parametrize("level", LEVELS)
def test_every_instruction_set(level: str) -> None:
    run_at_level(level, __file__, "native and (on_integers or tie_wherever or bits_do_not_depend)")


@pytest.mark.parametrize("argument", ["hidden", "weight", "bias"])
@pytest.mark.parametrize("row", [0, 17, 36])
def test_nan_score_is_an_error_that_names_the_query(impl: str, argument: str, row: int) -> None:
    hidden, weight, bias, targets = problem(37, 37, 7, torch.float32)
    {"hidden": hidden, "weight": weight, "bias": bias}[argument][row] = torch.nan
    first_query = row if argument == "hidden" else 0  # NaN in weight or bias affects all queries
    message = error_pattern(f"query {first_query} has a NaN score", impl)
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


def test_no_queries_take_no_time(impl: str) -> None:
    hidden, weight = torch.zeros(0, 0), torch.zeros(2**60, 0)
    assert target_rank(hidden, weight, None, torch.zeros(0, dtype=torch.int64), impl=impl)[0].shape == (0,)
    assert top_k(hidden, weight, None, 5, impl=impl)[1].shape == (0, 5)


def test_an_empty_catalogue_is_an_error_of_the_reference() -> None:
    targets = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(ValueError, match="weight has no rows: the catalogue is empty"):
        ranking.target_rank_reference(torch.zeros(0, 7), torch.zeros(0, 7), None, targets)


def test_error_names_the_argument(impl: str) -> None:
    hidden, weight, bias, targets = problem(3, 10, 4, torch.float32)
    for target in (-1, 10):
        targets[1] = target
        with pytest.raises(
            ValueError, match=error_pattern(rf"targets out of range: targets\[1\] = {target}", impl)
        ) as raised:
            target_rank(hidden, weight, bias, targets, impl=impl)
        assert raised.type is ValueError  # not its subclass NanScoreError
    with pytest.raises(ValueError, match=r"targets must be int64 \[3\]"):
        target_rank(hidden, weight, bias, targets[:2], impl=impl)
    for k in (0, 11):
        with pytest.raises(ValueError, match=f"k={k}: choose 1 to 10"):
            top_k(hidden, weight, bias, k, impl=impl)
    with pytest.raises(ValueError, match=error_pattern("exclude out of range", impl)) as raised:
        top_k(hidden, weight, bias, 3, torch.full((3, 1), 10), impl=impl)
    assert raised.type is ValueError  # not its subclass NanScoreError
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


def test_reference_does_not_depend_on_the_chunk_size(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, bias, targets = problem(70, 100, 7, torch.float32, integers=True)
    whole = [*target_rank_reference(hidden, weight, bias, targets), *top_k_reference(hidden, weight, bias, 9, None)]
    monkeypatch.setattr(ranking, "SCORES_PER_CHUNK", 300)
    chunked = [*target_rank_reference(hidden, weight, bias, targets), *top_k_reference(hidden, weight, bias, 9, None)]
    assert_equal_bits(chunked, whole)
    hidden[50] = torch.nan
    with pytest.raises(ValueError, match="query 50 has a NaN score"):
        target_rank_reference(hidden, weight, bias, targets)


def test_no_gradient_is_recorded(impl: str) -> None:
    hidden, weight, bias, targets = problem(3, 10, 4, torch.float32)
    weight.requires_grad_()
    assert not top_k(hidden.requires_grad_(), weight, bias, 3, impl=impl)[0].requires_grad
    target_rank(hidden, weight, bias, targets, impl=impl)


def test_strided_inputs_equal_contiguous_ones(impl: str) -> None:
    hidden, weight, bias, targets = problem(6, 40, 8, torch.float64)
    strided = target_rank(hidden[::2, ::2], weight[:, ::2], bias, targets[::2], impl=impl)
    contiguous = target_rank(
        hidden[::2, ::2].clone(memory_format=torch.contiguous_format),
        weight[:, ::2].clone(memory_format=torch.contiguous_format),
        bias,
        targets[::2].clone(),
        impl=impl,
    )
    assert torch.equal(strided[0], contiguous[0])


@emulated
def test_table_of_more_than_two_to_the_31_elements() -> None:
    """The table has more than 2**31 elements. Its last row is the target; all rows but three are zero."""
    items, width = 2**17 + 2, 2**14
    with skipping_without_address_space():
        weight = zeros(items, width)
    weight[3], weight[9, 0], weight[-1, -1] = 1.0, 7.0, 7.0
    greater, equal = target_rank(torch.ones(1, width), weight, None, torch.tensor([items - 1]), impl="emulated")
    assert weight.numel() > 2**31
    assert greater.tolist() == [1] and equal.tolist() == [1]


@emulated
def test_exclude_of_more_than_two_to_the_31_elements() -> None:
    """`exclude` has more than 2**31 elements. It excludes item 0 for all queries, and two more for queries 31 and 32.

    The kernel processes 32 queries at a time; query 31 is the last of the first 32. `exclude` is sorted already. So
    torch's sort, which would write as much memory again, is replaced by a function that returns its argument.
    """
    queries, n = 33, 70_000_000
    hidden, weight, bias, _ = problem(queries, 8, 3, torch.float32, integers=True)
    with skipping_without_address_space(), replaced_torch_operators({"sort.stable": lambda x, **_: (x, x[:0])}):
        exclude = zeros(queries, n, dtype=np.int64)
        exclude[31, -2:], exclude[32, -2:] = torch.tensor([5, 7]), torch.tensor([1, 6])
        results = top_k(hidden, weight, bias, 7, exclude, impl="emulated")
    assert 31 * n > 2**31
    assert_equal_bits(results, top_k(hidden, weight, bias, 7, exclude[:, -3:], impl="reference"))


@needs_native
@dtypes
def test_opcheck(dtype: torch.dtype) -> None:
    hidden, weight, bias, targets = problem(5, 65, 7, dtype)
    ops = torch.ops.gru4rec_fast
    torch.library.opcheck(ops.target_rank.default, (hidden, weight, bias, targets))
    torch.library.opcheck(ops.target_rank.default, (hidden, weight, None, targets))
    torch.library.opcheck(ops.top_k.default, (hidden, weight, bias, 3, None))
    torch.library.opcheck(ops.top_k.default, (hidden, weight, bias, 3, targets[:, None]))


@needs_native
def test_compiles_to_one_graph() -> None:
    hidden, weight, bias, targets = problem(5, 65, 7, torch.float32)

    def evaluate(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        return *target_rank(hidden * 2, weight, bias, targets), *top_k(hidden, weight, bias, 4, targets[:, None])

    compiled = torch.compile(evaluate, fullgraph=True, backend="aot_eager")
    for n in (5, 3):
        arguments = (hidden[:n], weight, bias, targets[:n])
        assert_equal_bits(compiled(*arguments), evaluate(*arguments))
