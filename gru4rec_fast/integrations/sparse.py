"""A graph's propagation matrix in place of a torch sparse matrix: `A @ E` and `torch.sparse.mm(A, E)`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gru4rec_fast.data import InteractionGraph
from gru4rec_fast.nn import GraphIndices, LaplacianPropagation
from gru4rec_fast.ops.laplacian_propagation import node_scales

# Relative tolerance in `from_normalized`. Float32 values have errors below 4e-7; some code adds 1e-7 to the degrees.
_TOLERANCE = 1e-6
_PRODUCTS = (torch.sparse.mm, torch.mm, torch.matmul, torch.spmm)


class PropagationMatrix(LaplacianPropagation):
    """Propagation matrix L of an undirected graph, which multiplies dense matrices as a torch sparse matrix does.

    Make one with `from_normalized` or `from_adjacency`. `A @ E`, `A(E)` and `torch.sparse.mm(A, E)` return L @ E for E
    [n_nodes, d], float32, float64 or bfloat16, and are differentiable in E. Only the indices of the graph are stored;
    the values follow from the degrees (`gru4rec_fast.ops.laplacian_propagation`). It is a module: as an attribute of a
    model, it moves with `model.to(device)`. Its dropout is active in training mode. See `LaplacianPropagation`.
    """

    def __init__(
        self,
        offsets: Tensor,
        neighbors: Tensor,
        matrix: str,
        *,
        dropout: float = 0.0,
        seed: int | None = None,
        impl: str = "auto",
    ) -> None:
        super().__init__(_Structure(offsets, neighbors), matrix, dropout=dropout, seed=seed, impl=impl)
        if not dropout:
            self.step = self.dropout_seed = None  # adds nothing to the state dict of a model

    @property
    def shape(self) -> torch.Size:
        """(n_nodes, n_nodes)"""
        return torch.Size([self.graph.n_nodes, self.graph.n_nodes])

    def __matmul__(self, embeddings: Tensor) -> Tensor:
        return self(embeddings)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Multiply in place of torch.sparse.mm, torch.mm, torch.matmul and torch.spmm."""
        if func in _PRODUCTS and len(args) == 2 and isinstance(args[0], cls) and not kwargs:
            return args[0] @ args[1]
        return NotImplemented


class _Structure(GraphIndices):
    """CSR indices of an undirected graph, which need not be one of users and items."""

    def __init__(self, offsets: Tensor, neighbors: Tensor) -> None:
        nn.Module.__init__(self)
        self.n_nodes = len(offsets) - 1
        self.register_buffer("offsets", offsets, persistent=False)
        self.register_buffer("neighbors", neighbors, persistent=False)


def from_normalized(
    normalized: Any, *, dropout: float = 0.0, seed: int | None = None, impl: str = "auto"
) -> PropagationMatrix:
    """Return the PropagationMatrix of a normalized adjacency matrix, such as `norm_adj` in code for LightGCN and NGCF.

        graph = sparse.from_normalized(graph)  # the line to add
        embeddings = torch.sparse.mm(graph, embeddings)

    Its values must be those of D^-1/2 A D^-1/2, D^-1 A or A, with or without + I, within a relative error of 1e-6. A is
    the 0/1 adjacency matrix of an undirected graph, D the diagonal matrix of its degrees. The graph may have
    self-loops, which count in the degrees.

    Args:
        normalized: torch sparse tensor (COO, CSR or CSC) or scipy sparse matrix [n_nodes, n_nodes], of float32 or
            float64.
        dropout: probability of dropping an entry of the matrix in training mode; the entries that stay are multiplied
            by 1 / (1 - dropout). The identity of + I is never dropped.
        seed: seed of the dropout; None draws one from torch's CPU generator.
        impl: "auto", "native" or "reference".

    Raises:
        TypeError: not a sparse matrix. ValueError: the matrix is none of these.
    """
    rows, columns, values, n_nodes = _entries("normalized", normalized)
    if values.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"normalized: the values must be float32 or float64, not {values.dtype}")
    values = values.double()
    all_entries, off_diagonal = torch.ones_like(rows, dtype=torch.bool), rows != columns
    candidates = [("symmetric", all_entries), ("mean", all_entries), ("plain", all_entries)]
    if int((values[~off_diagonal] == 1).sum()) == n_nodes:
        candidates += [("symmetric+I", off_diagonal), ("mean+I", off_diagonal)]
    for matrix, kept in candidates:
        offsets, neighbors = _csr(rows[kept], columns[kept], n_nodes)
        row_scale, column_scale = node_scales(offsets.diff(), matrix.removesuffix("+I"), torch.float64)
        expected = row_scale[rows[kept]] * column_scale[columns[kept]]
        if torch.allclose(values[kept], expected, rtol=_TOLERANCE, atol=0):
            return PropagationMatrix(offsets, neighbors, matrix, dropout=dropout, seed=seed, impl=impl)
        if matrix == "symmetric":
            entry = int((values - expected).nan_to_num(torch.inf).abs().argmax())
            difference = (
                f"entry ({int(rows[entry])}, {int(columns[entry])}) is {float(values[entry]):.6g}, and "
                f"{float(expected[entry]):.6g} in D^-1/2 A D^-1/2"
            )
    raise ValueError(
        "normalized: the matrix is not D^-1/2 A D^-1/2, D^-1 A or A, with or without + I, of a graph without edge "
        f"weights: {difference}"
    )


def from_adjacency(
    adjacency: Any,
    matrix: str = "symmetric",
    *,
    dropout: float = 0.0,
    seed: int | None = None,
    impl: str = "auto",
) -> PropagationMatrix:
    """Return a propagation matrix of a graph that is given by its 0/1 adjacency matrix.

    Args:
        adjacency: an InteractionGraph; or a torch sparse tensor (COO, CSR or CSC) or scipy sparse matrix [n_nodes,
            n_nodes], symmetric, with values of 1.
        matrix: "symmetric" D^-1/2 A D^-1/2, "mean" D^-1 A, "norm" (D + I)^-1 (A + I) or "plain" A; the suffix "+I"
            adds the identity.
        dropout, seed, impl: see `from_normalized`.

    Raises:
        TypeError: not a sparse matrix. ValueError: the matrix is not square, not symmetric or has other values.
    """
    if isinstance(adjacency, InteractionGraph):
        offsets, neighbors = adjacency.structure()
    else:
        rows, columns, values, n_nodes = _entries("adjacency", adjacency)
        if bool((values != 1).any()):
            raise ValueError(
                "adjacency: the values must be 0 or 1; for a matrix divided by degrees, use from_normalized"
            )
        offsets, neighbors = _csr(rows, columns, n_nodes)
    return PropagationMatrix(offsets, neighbors, matrix, dropout=dropout, seed=seed, impl=impl)


def _entries(name: str, matrix: Any) -> tuple[Tensor, Tensor, Tensor, int]:
    """Return rows, columns, values and n_nodes of the nonzero entries of a sparse matrix, sorted by row, then column.

    Raises TypeError if it is not sparse, and ValueError if it is not square or its nonzero pattern is not symmetric.
    """
    if isinstance(matrix, Tensor) and matrix.layout in (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc):
        if matrix.requires_grad:
            raise ValueError(f"{name}: the matrix requires a gradient, but has none here; pass {name}.detach()")
        entries = matrix.to_sparse_coo()
    elif hasattr(matrix, "tocoo"):
        scipy_entries = matrix.tocoo()
        indices = [torch.from_numpy(index).long() for index in (scipy_entries.row, scipy_entries.col)]
        entries = torch.sparse_coo_tensor(
            torch.stack(indices), torch.from_numpy(scipy_entries.data), scipy_entries.shape, check_invariants=True
        )
    else:
        raise TypeError(
            f"{name}: a torch sparse tensor or a scipy sparse matrix is needed, not "
            f"{'a dense tensor' if isinstance(matrix, Tensor) else type(matrix).__name__}"
        )
    if entries.dim() != 2 or entries.dense_dim() or entries.shape[0] != entries.shape[1]:
        raise ValueError(
            f"{name}: the matrix must be square, over all nodes, not of shape {tuple(entries.shape)}; for a matrix of "
            "users x items, use from_adjacency(InteractionGraph.from_scipy(matrix))"
        )
    entries = entries.coalesce()
    nonzero = entries.values() != 0
    (rows, columns), values, n_nodes = entries.indices()[:, nonzero], entries.values()[nonzero], entries.shape[0]
    transposed = (columns * n_nodes + rows).sort().values
    if not torch.equal(rows * n_nodes + columns, transposed):
        raise ValueError(f"{name}: the matrix must be that of an undirected graph, with a symmetric nonzero pattern")
    return rows, columns, values, n_nodes


def _csr(rows: Tensor, columns: Tensor, n_nodes: int) -> tuple[Tensor, Tensor]:
    """Return the offsets and neighbors of a graph from its sorted entries."""
    offsets = torch.zeros(n_nodes + 1, dtype=torch.int64, device=rows.device)
    offsets[1:] = torch.bincount(rows, minlength=n_nodes).cumsum(0)
    return offsets, columns.int() if n_nodes < 1 << 31 else columns
