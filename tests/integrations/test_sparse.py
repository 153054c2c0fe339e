"""integrations.sparse: values and gradients equal torch.sparse.mm; matrices of other formulas are refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gru4rec_fast.data import InteractionGraph
from gru4rec_fast.integrations.sparse import PropagationMatrix, from_adjacency, from_normalized

sp = pytest.importorskip("scipy.sparse")

N_USERS, N_ITEMS = 12, 17
N_NODES = N_USERS + N_ITEMS
_rng = np.random.default_rng(0)
INTERACTIONS = (_rng.random((N_USERS, N_ITEMS)) < 0.3).astype(np.float64)
INTERACTIONS[3] = INTERACTIONS[:, 5] = 0  # a user and an item without interactions
# Adjacency matrices: of users and items; of a graph that is not bipartite; with a self-loop at some nodes only.
BIPARTITE = np.block([[np.zeros((N_USERS, N_USERS)), INTERACTIONS], [INTERACTIONS.T, np.zeros((N_ITEMS, N_ITEMS))]])
GENERAL = np.triu(_rng.random((N_NODES, N_NODES)) < 0.2, 1).astype(np.float64)
GENERAL += GENERAL.T
LOOPS = GENERAL + np.diag((np.arange(N_NODES) % 3 == 0).astype(np.float64))
GRAPHS = {"bipartite": BIPARTITE, "general": GENERAL, "loops": LOOPS}
IDENTITY = np.eye(N_NODES)


def scale(adjacency: np.ndarray, exponent: float, dtype: Any = np.float64) -> np.ndarray:
    """Return the diagonal matrix of the degrees to the power of `exponent`; 0 where the degree is 0."""
    degrees = adjacency.sum(1).astype(dtype)
    return np.diag(np.where(degrees > 0, np.maximum(degrees, 1) ** dtype(exponent), 0).astype(dtype))


# The matrices that public code for LightGCN and NGCF computes, by the formulas of that code.
NORMALIZED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "plain": lambda a: a,
    "symmetric": lambda a: scale(a, -0.5) @ a @ scale(a, -0.5),
    "mean": lambda a: scale(a, -1) @ a,
    "norm": lambda a: scale(a + IDENTITY, -1) @ (a + IDENTITY),
    "plain+I": lambda a: a + IDENTITY,
    "symmetric+I": lambda a: scale(a, -0.5) @ a @ scale(a, -0.5) + IDENTITY,
    "mean+I": lambda a: scale(a, -1) @ a + IDENTITY,
    "symmetric of A + I": lambda a: scale(a + IDENTITY, -0.5) @ (a + IDENTITY) @ scale(a + IDENTITY, -0.5),
}


def coo(matrix: np.ndarray, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.from_numpy(matrix).to(dtype).to_sparse()


def value_and_gradient(product: Callable[[Tensor], Tensor], embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Return a product, and the gradient of the sum of its squares."""
    embeddings = embeddings.clone().requires_grad_()
    value = product(embeddings)
    return value.detach(), torch.autograd.grad(value.square().sum(), embeddings)[0]


def assert_equal_to_torch(operator: PropagationMatrix, matrix: Tensor) -> None:
    """Compare with torch.sparse.mm; the rounding of sums of some 20 products bounds the difference."""
    embeddings = torch.randn(matrix.shape[0], 5, dtype=matrix.dtype)
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if matrix.dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
    ours = value_and_gradient(lambda e: operator @ e, embeddings)
    torchs = value_and_gradient(lambda e: torch.sparse.mm(matrix, e), embeddings)
    torch.testing.assert_close(ours, torchs, **tolerance)


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("name", NORMALIZED)
def test_normalized_matrices_are_recognized(impl: str, graph: str, name: str) -> None:
    matrix = NORMALIZED[name](GRAPHS[graph])
    if graph == "loops" and name.endswith(("+I", "norm", "A + I")):
        with pytest.raises(ValueError, match="not D"):  # I adds a second self-loop to some nodes
            from_normalized(coo(matrix))
    else:
        assert_equal_to_torch(from_normalized(coo(matrix), impl=impl), coo(matrix))


@pytest.mark.parametrize("name", ["symmetric", "mean", "norm", "symmetric+I"])
@pytest.mark.parametrize("epsilon", [0, 1e-7])  # RecBole adds 1e-7 to the degrees
def test_float32_matrices_of_published_code_are_recognized(name: str, epsilon: float) -> None:
    """Normalize a large graph in float32 by scipy, with degrees up to thousands."""
    draws = np.random.default_rng(1).random((100_000, 2)) ** 3
    users, items = (draws * (2000, 3000)).astype(np.int64).T
    interactions = sp.csr_matrix((np.ones(len(users), np.float32), (users, items)), (2000, 3000)).sign()
    adjacency = sp.bmat([[None, interactions], [interactions.T, None]], format="csr")
    if name == "norm":
        adjacency = (adjacency + sp.eye(5000, dtype=np.float32)).tocsr()
    degrees = np.asarray(adjacency.sum(axis=1)).ravel() + np.float32(epsilon)
    with np.errstate(divide="ignore"):
        inverse = np.power(degrees, np.float32(-0.5 if name.startswith("symmetric") else -1.0))
    inverse[~np.isfinite(inverse) | (degrees < 0.5)] = 0
    normalized = sp.diags(inverse).dot(adjacency)
    if name.startswith("symmetric"):
        normalized = normalized.dot(sp.diags(inverse))
    if name.endswith("+I"):
        normalized = normalized + sp.eye(5000, dtype=np.float32)
    normalized = normalized.astype(np.float32).tocoo()
    operator = from_normalized(normalized)
    assert operator.shape == (5000, 5000) and int(operator.graph.offsets.diff().max()) > 1000
    indices = torch.from_numpy(np.stack([normalized.row, normalized.col]).astype(np.int64))
    tensor = torch.sparse_coo_tensor(indices, torch.from_numpy(normalized.data), (5000, 5000), check_invariants=True)
    assert_equal_to_torch(operator, tensor)


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, "uncoalesced", "scipy"])
def test_layouts(layout: Any) -> None:
    matrix = NORMALIZED["symmetric"](BIPARTITE)
    given: Any = torch.from_numpy(matrix)
    if layout == "scipy":
        given = sp.csr_matrix(matrix)
    elif layout == "uncoalesced":  # in another order, with a stored zero, and one value as a sum of two
        (rows, columns), values = coo(matrix).coalesce().indices().flip(1), coo(matrix).coalesce().values().flip(0)
        indices = torch.cat([torch.stack([rows, columns]), torch.tensor([[0, rows[0]], [0, columns[0]]])], dim=1)
        values = torch.cat([values, torch.tensor([0.0, 0.25])])
        values[0] -= 0.25
        given = torch.sparse_coo_tensor(indices, values, matrix.shape, check_invariants=True)
    else:
        given = given.to_sparse(layout=layout)
    assert_equal_to_torch(from_normalized(given), coo(matrix))


@pytest.mark.parametrize("name", ["plain", "symmetric", "mean", "norm", "symmetric+I", "mean+I"])
def test_from_adjacency(name: str) -> None:
    expected = coo(NORMALIZED[name](BIPARTITE))
    graph = InteractionGraph.from_scipy(sp.csr_matrix(BIPARTITE), n_users=N_USERS)
    for adjacency in (graph, coo(BIPARTITE), sp.csr_matrix(BIPARTITE), sp.coo_matrix(BIPARTITE.astype(bool))):
        assert_equal_to_torch(from_adjacency(adjacency, name), expected)


def test_functions_of_torch_multiply() -> None:
    operator, matrix = from_adjacency(coo(BIPARTITE)), coo(NORMALIZED["symmetric"](BIPARTITE))
    embeddings = torch.randn(N_NODES, 3, dtype=torch.float64)
    for product in (torch.sparse.mm, torch.mm, torch.matmul, torch.spmm, lambda a, e: a(e)):
        torch.testing.assert_close(product(operator, embeddings), matrix @ embeddings)
    with pytest.raises(TypeError, match=r"torch\.add"):
        torch.add(operator, embeddings)


def test_operator_is_a_module_of_the_model() -> None:
    """It moves with the model, adds nothing to its state dict, and can be compiled and copied."""
    model = nn.Module()
    model.graph = from_adjacency(coo(BIPARTITE))
    assert model.state_dict() == {}
    assert {str(buffer.device) for buffer in model.to("meta").buffers()} == {"meta"}
    operator = from_adjacency(coo(BIPARTITE))
    embeddings = torch.randn(N_NODES, 3)
    compiled = torch.compile(lambda e: operator(e), fullgraph=True, backend="eager")
    assert torch.equal(compiled(embeddings), operator @ embeddings)


def test_dropout_draws_new_entries_in_each_call_and_keeps_the_identity() -> None:
    matrix = coo(NORMALIZED["symmetric+I"](BIPARTITE))
    operator = from_normalized(matrix, dropout=0.5, seed=3)
    ones = torch.eye(N_NODES, dtype=torch.float64)
    first, second = operator @ ones, operator @ ones
    assert not torch.equal(first, second) and "step" in operator.state_dict()
    dense, off_diagonal = matrix.to_dense(), ~torch.eye(N_NODES, dtype=torch.bool)
    assert torch.equal(first.diagonal(), torch.ones(N_NODES, dtype=torch.float64))  # the identity is never dropped
    kept = (first != 0) & off_diagonal
    torch.testing.assert_close(first[kept], 2 * dense[kept])
    assert 0.3 < kept.sum() / ((dense != 0) & off_diagonal).sum() < 0.7
    torch.testing.assert_close(operator.eval() @ ones, dense)


def changed(matrix: np.ndarray, row: int, column: int, value: float) -> Tensor:
    copy = matrix.copy()
    copy[row, column] = value
    return coo(copy)


SYMMETRIC = NORMALIZED["symmetric"](GENERAL)
ROW, COLUMN = (int(index[0]) for index in np.nonzero(SYMMETRIC))
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "one value": (lambda: changed(SYMMETRIC, ROW, COLUMN, SYMMETRIC[ROW, COLUMN] * 1.00001), rf"\({ROW}, {COLUMN}\)"),
    "NaN": (lambda: changed(SYMMETRIC, ROW, COLUMN, np.nan), rf"\({ROW}, {COLUMN}\) is nan"),
    "scaled": (lambda: coo(2 * SYMMETRIC), "not D"),
    "columns divided": (lambda: coo(NORMALIZED["mean"](GENERAL).T.copy()), "not D"),
    "one entry of the identity": (lambda: changed(SYMMETRIC + IDENTITY, 4, 4, 0), "not D"),
    "directed": (lambda: coo(np.triu(SYMMETRIC)), "undirected"),
    "users x items": (lambda: coo(INTERACTIONS), r"square.*\(12, 17\).*InteractionGraph.from_scipy"),
    "half": (lambda: coo(SYMMETRIC, torch.float16), "float32 or float64"),
    "gradient": (lambda: coo(SYMMETRIC).requires_grad_(), "detach"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_other_matrices_are_refused(case: str) -> None:
    make, message = REFUSED[case]
    with pytest.raises(ValueError, match=f"^normalized: .*{message}") as error:
        from_normalized(make())
    assert "\n" not in str(error.value)


def test_other_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="not a dense tensor"):
        from_normalized(torch.eye(3))
    with pytest.raises(TypeError, match="not ndarray"):
        from_adjacency(np.eye(3))
    with pytest.raises(ValueError, match=r"0 or 1; .*from_normalized"):
        from_adjacency(coo(SYMMETRIC))
    with pytest.raises(ValueError, match="matrix"):
        from_adjacency(coo(GENERAL), "random walk")


def test_the_example_in_the_docs_runs() -> None:
    """Its losses are those of the same code without the added line."""
    page = (Path(__file__).parents[2] / "docs" / "integrations" / "sparse.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert example.count("\n") <= 40
    without, n_removed = re.subn(r"graph = sparse\.from_normalized.*\n", "", example)
    assert n_removed == 1
    runs: list[dict[str, Any]] = [{}, {}]
    exec(example, runs[0])
    exec(without, runs[1])
    assert isinstance(runs[0]["graph"], PropagationMatrix) and isinstance(runs[1]["graph"], Tensor)
    assert runs[0]["losses"][-1] < runs[0]["losses"][0]
    np.testing.assert_allclose(runs[0]["losses"], runs[1]["losses"], rtol=1e-5)
