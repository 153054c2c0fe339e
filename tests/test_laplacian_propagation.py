"""The operator laplacian_propagation: output, gradient and dropout, compared with products of dense float64 matrices.

Results of the implementations (reference, native, emulated CUDA kernels) are also compared with each other.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from graph_oracle import dense_matrix, dropped_entries, random_graph
from hypothesis import given, settings
from hypothesis import strategies as st
from native import (
    compile_backend,
    error_pattern,
    implementations,
    max_examples,
    native_and_emulated,
    operators_of,
    threads,
    why_not_emulated,
)
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from virtual_memory import first_and_last_blocks

from gru4rec_fast import _backend
from gru4rec_fast.ops import laplacian_propagation
from gru4rec_fast.ops.laplacian_propagation import MATRICES

needs_native = pytest.mark.skipif(
    _backend.resolve("auto", "laplacian_propagation", "cpu") != "native",
    reason="laplacian_propagation is not built natively",
)
impls = implementations("laplacian_propagation")  # reference, native, emulated
kernels = native_and_emulated("laplacian_propagation")  # native, emulated
every_matrix = pytest.mark.parametrize("matrix", MATRICES)


def features(n_nodes: int, width: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """Return random features, [n_nodes, width]."""
    return torch.randn(n_nodes, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


@impls
@every_matrix
@settings(max_examples=max_examples(40), deadline=None)
@given(
    graph_sizes=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(0, 40)),  # n_users, n_items, n_draws
    width=st.integers(0, 40),
    use_int64=st.booleans(),
    dropout=st.sampled_from([0.0, 0.1, 0.5, 0.9]),
    step=st.integers(0, 2**32 - 1),
    seed=st.integers(0, 2**63 - 1),
    transposed=st.booleans(),
)
def test_forward_and_gradient_equal_the_dense_matrix(
    impl: str,
    matrix: str,
    graph_sizes: tuple[int, int, int],
    width: int,
    use_int64: bool,
    dropout: float,
    step: int,
    seed: int,
    transposed: bool,
) -> None:
    offsets, neighbors = random_graph(*graph_sizes, seed=seed % 1000, dtype=torch.int64 if use_int64 else torch.int32)
    x = features(len(offsets) - 1, width).requires_grad_()
    dense = dense_matrix(offsets, neighbors, matrix, dropout, seed, step)
    dense = dense.T if transposed else dense
    options: dict[str, Any] = {"dropout": dropout, "seed": seed, "step": step, "transposed": transposed}
    out = laplacian_propagation(x, offsets, neighbors, matrix, **options, impl=impl)
    grad_out = features(len(offsets) - 1, width, seed=1)
    (grad,) = torch.autograd.grad(out, x, grad_out)
    torch.testing.assert_close(out, dense @ x, rtol=0, atol=1e-10)
    torch.testing.assert_close(grad, dense.T @ grad_out, rtol=0, atol=1e-10)


def power_law_graph(dtype: torch.dtype = torch.int32) -> tuple[Tensor, Tensor]:
    """Return a graph of 400 nodes; one of them has so many neighbors that a kernel reads them in several passes."""
    return random_graph(20, 380, 800, seed=5, dtype=dtype, skewed=True)


def some_nodes(n_nodes: int, seed: int) -> Tensor | None:
    """Return None, no node, one node, or a random number of nodes in increasing order, depending on seed % 4."""
    generator = torch.Generator().manual_seed(seed)
    if seed % 4 == 0:
        return None
    n = min(seed % 4 - 1, n_nodes) if seed % 4 < 3 else int(torch.randint(n_nodes + 1, (), generator=generator))
    return torch.randperm(n_nodes, generator=generator)[:n].sort().values


@impls
@every_matrix
@settings(max_examples=max_examples(40), deadline=None)
@given(
    graph_sizes=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(0, 40)),  # n_users, n_items, n_draws
    rows_seed=st.integers(0, 10**6),
    columns_seed=st.integers(0, 10**6),
    dropout=st.sampled_from([0.0, 0.3]),
    transposed=st.booleans(),
)
def test_selected_rows_and_columns_equal_the_dense_matrix(
    impl: str,
    matrix: str,
    graph_sizes: tuple[int, int, int],
    rows_seed: int,
    columns_seed: int,
    dropout: float,
    transposed: bool,
) -> None:
    offsets, neighbors = random_graph(*graph_sizes, seed=rows_seed)
    n_nodes = len(offsets) - 1
    rows, columns = some_nodes(n_nodes, rows_seed), some_nodes(n_nodes, columns_seed)
    dense = dense_matrix(offsets, neighbors, matrix, dropout, seed=3, step=4)
    dense = dense.T if transposed else dense
    dense = dense if rows is None else dense[rows]
    dense = dense if columns is None else dense[:, columns]
    x = features(dense.shape[1], 5).requires_grad_()
    options: dict[str, Any] = {"dropout": dropout, "seed": 3, "step": 4, "transposed": transposed}
    out = laplacian_propagation(x, offsets, neighbors, matrix, rows=rows, columns=columns, **options, impl=impl)
    grad_out = features(dense.shape[0], 5, seed=1)
    (grad,) = torch.autograd.grad(out, x, grad_out)
    torch.testing.assert_close(out, dense @ x, rtol=0, atol=1e-10)
    torch.testing.assert_close(grad, dense.T @ grad_out, rtol=0, atol=1e-10)


@kernels
def test_bits_of_a_row_do_not_depend_on_the_selected_rows(impl: str) -> None:
    offsets, neighbors = power_law_graph()
    x = features(400, 33, torch.float32)
    whole = laplacian_propagation(x, offsets, neighbors, dropout=0.2, seed=1, impl=impl)
    rows = torch.arange(0, 400, 7)
    assert torch.equal(
        laplacian_propagation(x, offsets, neighbors, rows=rows, dropout=0.2, seed=1, impl=impl), whole[rows]
    )


@kernels
@every_matrix
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("width", [1, 3, 16, 31, 64, 100, 128])
def test_kernels_equal_reference(impl: str, matrix: str, dropout: float, width: int) -> None:
    for dtype, transposed in itertools.product((torch.int32, torch.int64), (False, True)):
        offsets, neighbors = power_law_graph(dtype)
        x = features(400, width)
        options: dict[str, Any] = {"dropout": dropout, "seed": 2**40 + 3, "step": 9, "transposed": transposed}
        out = laplacian_propagation(x, offsets, neighbors, matrix, **options, impl=impl)
        expected = laplacian_propagation(x, offsets, neighbors, matrix, **options, impl="reference")
        torch.testing.assert_close(out, expected, rtol=1e-13, atol=1e-13)


@impls
@every_matrix
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_is_within_rounding(impl: str, matrix: str, dtype: torch.dtype) -> None:
    """The tolerance is the error bound of a float32 sum of n rounded terms, plus a rounding to the dtype."""
    offsets, neighbors = power_law_graph()
    x = features(400, 64, dtype)
    dense = dense_matrix(offsets, neighbors, matrix, 0.2, seed=1, step=2)
    out = laplacian_propagation(x, offsets, neighbors, matrix, dropout=0.2, seed=1, step=2, impl=impl)
    assert out.dtype == dtype
    exact = dense @ x.double()
    sum_of_magnitudes = dense @ x.double().abs()
    n_terms = int(offsets.diff().max()) + 4  # 4: the rounding of the factors of a term
    bound = n_terms * 2**-24 * sum_of_magnitudes + exact.abs() * torch.finfo(dtype).eps
    assert bool(((out.double() - exact).abs() <= bound + 1e-30).all())


@kernels
def test_integer_features_sum_exactly(impl: str) -> None:
    """Sums of integers are exact in any dtype and order, so all implementations return the same bits."""
    offsets, neighbors = power_law_graph()
    x = torch.randint(-3, 4, (400, 37), generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float32, torch.float64):
        for dropout in (0.0, 0.5):  # 1 / (1 - 0.5) is a power of two
            out = laplacian_propagation(x.to(dtype), offsets, neighbors, "plain", dropout=dropout, seed=7, impl=impl)
            expected = laplacian_propagation(
                x.to(dtype), offsets, neighbors, "plain", dropout=dropout, seed=7, impl="reference"
            )
            assert torch.equal(out, expected)


@impls
def test_directions_of_an_edge_are_dropped_independently(impl: str) -> None:
    """(row, column) and (column, row) are dropped at the requested rate. The mask depends only on step and seed."""
    offsets, neighbors = power_law_graph()
    x = torch.eye(400, dtype=torch.float64)

    def kept_entries(**changed: int) -> Tensor:
        options: dict[str, Any] = {"seed": 3, "step": 4, **changed}
        return laplacian_propagation(x, offsets, neighbors, "plain", dropout=0.3, **options, impl=impl) != 0

    entries = laplacian_propagation(x, offsets, neighbors, "plain", impl=impl) != 0
    kept = kept_entries()
    assert torch.equal(kept, kept_entries()) and not bool((kept & ~entries).any())
    n, n_kept = int(entries.sum()), int(kept.sum())
    assert abs(n_kept - 0.7 * n) < 4 * math.sqrt(n * 0.3 * 0.7)  # 4 standard deviations, at a fixed seed
    n_kept_both = int((kept & kept.T).sum())  # both directions of an edge are kept; each such edge is counted twice
    assert abs(n_kept_both - 0.49 * n) < 4 * math.sqrt(n * 0.49 * 0.51 * 2)
    for changed in ({"seed": 4}, {"step": 5}, {"seed": 3 + 2**32}):
        assert not torch.equal(kept, kept_entries(**changed))


@impls
def test_mask_is_the_documented_function_of_philox(impl: str) -> None:
    offsets, neighbors = random_graph(4, 5, 12, seed=2)
    x = torch.eye(9, dtype=torch.float64)
    kept = laplacian_propagation(x, offsets, neighbors, "norm", dropout=0.5, seed=11, step=6, impl=impl) != 0
    entries = laplacian_propagation(x, offsets, neighbors, "norm", impl=impl) != 0
    assert bool(entries.diagonal().all())
    assert torch.equal(kept, entries & ~dropped_entries(9, 0.5, 11, 6))


@impls
def test_nodes_without_neighbors_get_zeros_or_with_self_loops_their_features(impl: str) -> None:
    offsets, neighbors = torch.tensor([0, 1, 1, 2]), torch.tensor([2, 0])  # node 1 has no neighbors
    x = features(3, 4)
    for matrix in ("symmetric", "mean", "plain"):
        out = laplacian_propagation(x, offsets, neighbors, matrix, impl=impl)
        assert torch.equal(out, torch.stack([x[2], torch.zeros(4, dtype=torch.float64), x[0]]))
    assert torch.equal(laplacian_propagation(x, offsets, neighbors, "norm", impl=impl)[1], x[1])  # with self-loops


@impls
@pytest.mark.parametrize(("n_nodes", "width"), [(0, 3), (3, 0), (0, 0), (3, 2)])
def test_graph_without_edges_gives_zeros(impl: str, n_nodes: int, width: int) -> None:
    offsets = torch.zeros(n_nodes + 1, dtype=torch.int64)
    x = features(n_nodes, width)
    out = laplacian_propagation(x, offsets, torch.empty(0, dtype=torch.int32), "symmetric", dropout=0.1, impl=impl)
    assert torch.equal(out, torch.zeros(n_nodes, width, dtype=torch.float64))


@impls
def test_nan_affects_only_neighbors(impl: str) -> None:
    offsets, neighbors = random_graph(6, 6, 12, seed=1)
    x = features(12, 20)
    x[3] = math.nan
    is_nan = laplacian_propagation(x, offsets, neighbors, "mean", impl=impl).isnan().any(1)
    adjacent = torch.zeros(12, dtype=torch.bool)
    adjacent[neighbors[offsets[3] : offsets[4]].long()] = True
    assert adjacent.any() and torch.equal(is_nan, adjacent)


@impls
def test_nan_of_a_dropped_entry_has_no_effect(impl: str) -> None:
    offsets, neighbors = random_graph(6, 6, 20, seed=1)
    x = torch.full((12, 3), math.nan, dtype=torch.float64)
    out = laplacian_propagation(x, offsets, neighbors, "mean", dropout=0.9, seed=1, impl=impl)
    has_entries = dense_matrix(offsets, neighbors, "mean", 0.9, seed=1, step=0).any(1)
    assert 0 < int(has_entries.sum()) < 12 and torch.equal(out.isnan().any(1), has_entries)


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_do_not_change_a_bit(dtype: torch.dtype) -> None:
    offsets, neighbors = random_graph(3000, 4000, 60_000, seed=3, skewed=True)
    x = features(7000, 70, dtype)
    results = []
    for n in (1, 2):
        with threads(n):
            results.append(laplacian_propagation(x, offsets, neighbors, dropout=0.1, seed=1, impl="native"))
    assert torch.equal(*results)


@impls
@every_matrix
def test_gradcheck(impl: str, matrix: str) -> None:
    offsets, neighbors = random_graph(4, 5, 11, seed=4)

    def product(x: Tensor) -> Tensor:
        return laplacian_propagation(x, offsets, neighbors, matrix, dropout=0.3, seed=5, step=6, impl=impl)

    x = features(9, 3).requires_grad_()
    assert torch.autograd.gradcheck(product, (x,))
    assert torch.autograd.gradgradcheck(product, (x,))
    rows, columns = torch.tensor([0, 2, 7]), torch.tensor([1, 5, 6, 8])

    def selected_product(x: Tensor) -> Tensor:
        return laplacian_propagation(
            x, offsets, neighbors, matrix, rows=rows, columns=columns, dropout=0.3, seed=5, impl=impl
        )

    assert torch.autograd.gradcheck(selected_product, (features(4, 3).requires_grad_(),))
    assert torch.autograd.gradgradcheck(selected_product, (features(4, 3).requires_grad_(),))


@impls
def test_strided_features_equal_contiguous_features(impl: str) -> None:
    offsets, neighbors = power_law_graph()
    x = features(64, 400).T
    assert not x.is_contiguous()
    out = laplacian_propagation(x, offsets, neighbors, impl=impl)
    assert torch.equal(out, laplacian_propagation(x.contiguous(), offsets, neighbors, impl=impl))


@kernels
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_opcheck(impl: str, dropout: float) -> None:
    offsets, neighbors = random_graph(4, 5, 12, seed=2)
    seed, step = 3, 4
    for matrix, x in (("norm", features(9, 4).requires_grad_()), ("mean", features(4, 9, torch.bfloat16).T)):
        torch.library.opcheck(
            operators_of(impl, "laplacian_propagation").laplacian_propagation,
            # rows, columns: None; counter: None; transposed: False
            (x, offsets, neighbors, None, None, matrix, dropout, seed, step, None, False),
        )
        rows, columns = torch.tensor([0, 2, 7]), torch.tensor([1, 5, 6, 8])
        torch.library.opcheck(
            operators_of(impl, "laplacian_propagation").laplacian_propagation,
            (
                x[:4].detach().requires_grad_(),
                offsets,
                neighbors,
                rows,
                columns,
                matrix,
                dropout,
                seed,
                step,
                torch.tensor(3),
                True,
            ),
        )


@needs_native
def test_compiled_function_is_not_recompiled_for_each_step() -> None:
    counter = CompileCounter()
    offsets, neighbors = power_law_graph()

    def train_step(x: Tensor, step: int) -> Tensor:
        return laplacian_propagation(x, offsets, neighbors, dropout=0.5, seed=2, step=step).relu()

    compiled = torch.compile(train_step, fullgraph=True, backend=counter)
    x = features(400, 8)
    for step in range(5, 12):
        assert torch.equal(compiled(x, step), train_step(x, step))
    assert counter.frame_count <= 2  # one compilation for the first step, one for all others


@impls
def test_compiles_to_one_graph(impl: str) -> None:
    offsets, neighbors = power_law_graph()

    def loss(x: Tensor) -> Tensor:
        return (laplacian_propagation(x * 2, offsets, neighbors, "norm", dropout=0.2, seed=2, impl=impl) ** 2).sum()

    x = features(400, 8).requires_grad_()
    compiled = torch.compile(loss, fullgraph=True, backend=compile_backend(impl == "native"))
    (expected,) = torch.autograd.grad(loss(x), x)
    (grad,) = torch.autograd.grad(compiled(x), x)
    torch.testing.assert_close(grad, expected, rtol=1e-12, atol=1e-12)


# Arguments that replace valid ones, and the pattern of the error.
BAD_ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    ({"matrix": "random-walk"}, "matrix='random-walk': choose one of symmetric, mean, norm, plain"),
    ({"dropout": 1.0}, "dropout=1"),
    ({"dropout": math.nan}, "dropout=nan"),
    ({"seed": -1}, "seed=-1"),
    ({"step": 2**32}, f"step={2**32}"),
    ({"features": torch.zeros(3, 2, dtype=torch.int64)}, "features must be"),
    ({"features": torch.zeros(3, dtype=torch.float32)}, "features must be"),
    ({"offsets": torch.tensor([0, 1, 2])}, r"offsets must be int64 \[n_nodes \+ 1\]"),
    ({"offsets": torch.tensor([0, 1, 1, 2], dtype=torch.int32)}, "offsets must be int64"),
    ({"offsets": torch.tensor([0, 2, 1, 2])}, "offsets must not decrease from 0 to 2"),
    ({"offsets": torch.tensor([0, 1, 1, 3])}, "offsets must not decrease from 0 to 2"),
    ({"offsets": torch.tensor([1, 1, 1, 2])}, "offsets must not decrease from 0 to 2"),
    ({"neighbors": torch.tensor([2, 3])}, r"neighbors\[1\]=3: the graph has nodes 0 to 2"),
    ({"neighbors": torch.tensor([2, -1])}, r"neighbors\[1\]=-1: the graph has nodes 0 to 2"),
    ({"neighbors": torch.tensor([2.0, 0.0])}, "neighbors must be int32 or int64"),
    ({"rows": torch.tensor([0, 3])}, "rows must be strictly increasing nodes from 0 to 2"),
    ({"rows": torch.tensor([-1, 1])}, "rows must be strictly increasing nodes from 0 to 2"),
    ({"rows": torch.tensor([1, 1])}, "rows must be strictly increasing nodes from 0 to 2"),
    ({"rows": torch.tensor([1], dtype=torch.int32)}, "rows must be int64"),
    ({"columns": torch.tensor([2, 1, 0])}, "columns must be strictly increasing nodes from 0 to 2"),
    ({"columns": torch.tensor([0, 1])}, "features has 3 rows, but columns has 2 nodes"),
]


@impls
@pytest.mark.parametrize(("changed", "message"), BAD_ARGUMENTS)
def test_error_names_the_argument(impl: str, changed: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "features": torch.zeros(3, 2),
        "offsets": torch.tensor([0, 1, 1, 2]),
        "neighbors": torch.tensor([2, 0]),
        **changed,
    }
    with pytest.raises(ValueError, match=error_pattern(message, impl)):
        laplacian_propagation(**arguments, impl=impl)


@kernels
@pytest.mark.parametrize(("changed", "message"), BAD_ARGUMENTS)
def test_operator_error_names_the_argument(impl: str, changed: dict[str, Any], message: str) -> None:
    names = ["features", "offsets", "neighbors", "rows", "columns", "matrix", "dropout", "seed", "step"]
    defaults = [torch.zeros(3, 2), torch.tensor([0, 1, 1, 2]), torch.tensor([2, 0]), None, None, "mean", 0.0, 0, 0]
    arguments = [changed.get(name, value) for name, value in zip(names, defaults, strict=True)]
    with pytest.raises(ValueError, match=error_pattern(message, impl)):
        operators_of(impl, "laplacian_propagation").laplacian_propagation(*arguments, counter=None, transposed=False)


@impls
def test_neighbors_of_rows_that_are_not_computed_are_not_read(impl: str) -> None:
    x, offsets, neighbors = features(3, 2), torch.tensor([0, 1, 3, 4]), torch.tensor([1, 0, 2, 1])
    expected = laplacian_propagation(x, offsets, neighbors, rows=torch.tensor([0, 2]), impl=impl)
    for invalid in (-1, 3, 2**63 - 1, -(2**63)):
        damaged = torch.tensor([1, invalid, invalid, 1])
        assert torch.equal(laplacian_propagation(x, offsets, damaged, rows=torch.tensor([0, 2]), impl=impl), expected)
        damaged = torch.tensor([1, invalid, 2, 1])
        with pytest.raises(ValueError, match=error_pattern(rf"neighbors\[1\]={invalid}", impl)):
            laplacian_propagation(x, offsets, damaged, rows=torch.tensor([1]), impl=impl)


@impls
def test_second_derivative_is_right_in_a_sum_of_losses(impl: str) -> None:
    offsets, neighbors = torch.tensor([0, 1, 3, 4]), torch.tensor([1, 0, 2, 1])
    gradients = []
    for run_impl in (impl, "reference"):
        x = features(3, 2).requires_grad_()
        product = laplacian_propagation(x, offsets, neighbors, "mean", dropout=0.3, seed=4, impl=run_impl)
        loss = (product**3).sum()
        (grad,) = torch.autograd.grad(loss, x, create_graph=True)
        (loss + (grad**2).sum()).backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-13)


@impls
def test_tensors_on_different_devices_are_an_error(impl: str) -> None:
    with pytest.raises(ValueError, match=r"neighbors must be int32 or int64 .* on cpu, not int32 .* on meta"):
        laplacian_propagation(
            torch.zeros(1, 2), torch.tensor([0, 1]), torch.zeros(1, dtype=torch.int32, device="meta"), impl=impl
        )


@kernels
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_index_arithmetic_beyond_two_to_the_31st_neighbor(impl: str, tmp_path: Path, dtype: torch.dtype) -> None:
    """`neighbors` has more than 2**31 elements: a sparse file, with a hole in place of the neighbors of node 0.

    Only nodes 1 to 4 are used. The results must be the same as for the graph in which node 0 has no neighbors.
    """
    start = 2**31 + 5  # index in `neighbors` of the first neighbor of node 1
    bytes_per_entry = torch.iinfo(dtype).bits // 8
    with open(tmp_path / "neighbors", "wb") as file:
        file.seek(start * bytes_per_entry)
        file.write(torch.tensor([3, 4, 3, 1, 2, 1], dtype=dtype).numpy().tobytes())
    neighbors = torch.from_file(str(tmp_path / "neighbors"), size=start + 6, dtype=dtype)
    offsets = torch.tensor([0, start, start + 2, start + 3, start + 5, start + 6])
    small_graph = torch.tensor([0, 0, 2, 3, 5, 6]), neighbors[start:].clone()
    nodes = torch.tensor([1, 2, 3, 4])
    x, grad_out = features(4, 7).requires_grad_(), features(4, 7, seed=1)
    options: dict[str, Any] = {"rows": nodes, "columns": nodes, "dropout": 0.3, "seed": 5}
    results = [laplacian_propagation(x, *graph, impl=impl, **options) for graph in ((offsets, neighbors), small_graph)]
    assert torch.equal(*results)
    expected = laplacian_propagation(x, *small_graph, impl="reference", **options)
    torch.testing.assert_close(results[0], expected, rtol=1e-13, atol=1e-13)
    grads = [torch.autograd.grad(result, x, grad_out)[0] for result in results]
    assert grads[0].any() and torch.equal(*grads)


@pytest.mark.skipif(
    bool(why_not_emulated("laplacian_propagation")), reason="laplacian_propagation is not emulated here"
)
def test_index_arithmetic_beyond_two_to_the_31st_feature() -> None:
    """The features and the product have more than 2**31 elements.

    The nodes are 8 users with edges, many users without edges, and 6 items with edges. So the items are the last rows.
    The product is checked for the first rows in the columns of the first block, and for the last rows in the columns
    of the last block.
    """
    offsets, neighbors = random_graph(8, 6, 45, seed=4)
    n_without_edges = 1020
    offsets = torch.cat([offsets[:9], offsets[8].expand(n_without_edges), offsets[9:]])
    neighbors[: offsets[8]] += n_without_edges
    x, nodes_with_edges = torch.empty(len(offsets) - 1, 2**21 + 60), [*range(8), *range(-6, 0)]
    block_columns = 128
    last_block_start = x.shape[1] // block_columns * block_columns
    checked = (slice(0, 8), slice(0, block_columns)), (slice(-2, None), slice(last_block_start, None))
    for seed, (_, columns) in enumerate(checked):
        x[nodes_with_edges, columns] = features(len(nodes_with_edges), len(x[0, columns]), torch.float32, seed)
    with first_and_last_blocks():
        product = laplacian_propagation(x, offsets, neighbors, impl="emulated")
    assert x[:-2].numel() > 2**31 and product[:-2].numel() > 2**31
    for rows, columns in checked:
        expected = laplacian_propagation(x[:, columns].contiguous(), offsets, neighbors, impl="reference")[rows]
        assert expected.any(1).all()
        torch.testing.assert_close(product[rows, columns], expected, rtol=1e-5, atol=1e-6)


@impls
def test_a_tensor_as_step_equals_the_integer(impl: str) -> None:
    offsets, neighbors = random_graph(20, 30, 200, seed=3)

    def run(step: Any) -> tuple[Tensor, Tensor]:
        x = features(50, 4).requires_grad_()
        out = laplacian_propagation(x, offsets, neighbors, dropout=0.5, seed=2, step=step, impl=impl)
        return out.detach(), torch.autograd.grad(out.square().sum(), x)[0]

    assert all(torch.equal(*pair) for pair in zip(run(torch.tensor(7)), run(7), strict=True))
    with pytest.raises(ValueError, match="step"):
        run(torch.tensor(-1))
