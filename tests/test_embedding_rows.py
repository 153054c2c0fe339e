"""The function gather_rows: values, padding, dense and sparse gradients, on the CPU and as on a GPU."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from sync_detector import SyncDetector
from torch import Tensor

from gru4rec_fast.nn import SampledLoss, SessionNetwork, embedding_rows, gather_rows

INDICES = {
    "matrix": torch.tensor([[3, 1], [0, 3]]),
    "padded": torch.tensor([[3, -1], [0, 3]]),
    "padding first": torch.tensor([-1, -1, 4]),
    "padding only": torch.tensor([-1, -1]),
    "scalar": torch.tensor(2),
    "padded scalar": torch.tensor(-1),
    "empty": torch.empty(2, 0, dtype=torch.int64),
}


@pytest.fixture(params=["cpu", "gpu"])
def device_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test twice; with "gpu", no branch may depend on values, as on a GPU and while torch traces a graph."""
    if request.param == "gpu":
        monkeypatch.setattr(embedding_rows, "can_read_values", lambda tensor: False)
    return request.param


@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 2, 3)])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("name", INDICES)
def test_rows_and_gradient(name: str, sparse: bool, shape: tuple[int, ...], device_kind: str) -> None:
    index, generator = INDICES[name], torch.Generator().manual_seed(0)
    table = torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()
    rows = gather_rows(table, index, sparse=sparse)
    coefficients = torch.randn(rows.shape, dtype=torch.float64, generator=generator)
    expected_rows, expected_grad = torch.zeros(rows.shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
    for position in [tuple(p) for p in (index >= 0).nonzero().tolist()]:
        expected_rows[position] = table.detach()[index[position]]
        expected_grad[index[position]] += coefficients[position]
    assert rows.shape == (*index.shape, *shape[1:]) and torch.equal(rows, expected_rows)
    (rows * coefficients).sum().backward()
    assert table.grad is not None and table.grad.is_sparse == sparse
    torch.testing.assert_close(table.grad.to_dense() if sparse else table.grad, expected_grad, rtol=1e-15, atol=1e-15)
    if sparse:  # no row but those of the index; row 0 if everything is padding and values cannot be read
        live = {*index[index >= 0].tolist()}
        allowed = live or ({0} if device_kind == "gpu" and index.numel() else set())
        assert {*table.grad._indices()[0].tolist()} == allowed


@pytest.mark.parametrize("sparse", [False, True])
def test_without_padding_the_result_is_the_same(sparse: bool) -> None:
    table = torch.randn(5, 3)
    index = INDICES["matrix"]
    assert torch.equal(gather_rows(table, index, sparse=sparse, padding=False), table[index])


def test_rows_of_padding_are_zero_for_a_table_with_nan(device_kind: str) -> None:
    table = torch.full((2, 3), torch.nan)
    assert torch.equal(gather_rows(table, torch.tensor([-1])), torch.zeros(1, 3))


@pytest.mark.parametrize("sparse", [False, True])
def test_a_step_with_padding_causes_no_synchronization(sparse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("embedding_rows", "sampled_loss"):
        monkeypatch.setattr(f"gru4rec_fast.nn.{module}.can_read_values", lambda tensor: False)
    loss_operator = import_module("gru4rec_fast.ops.sampled_loss")
    monkeypatch.setattr(loss_operator, "_is_one", lambda grad: False)  # reads a value on the CPU only
    network, criterion = SessionNetwork(9, [5], sparse=sparse), SampledLoss(batch_size=2, sparse=sparse)
    inputs, targets, negatives = (
        torch.tensor([[1, 2], [3, -1]]),
        torch.tensor([[2, 3], [4, -1]]),
        torch.ones(2, 3).long(),
    )
    with SyncDetector() as detector:
        hidden, _ = network(inputs)
        criterion(hidden, network.output_weight, network.output_bias, targets, negatives).backward()
    with SyncDetector(copies=True) as copies, torch.no_grad():
        gather_rows(network.output_weight, inputs, sparse=sparse)
    assert not detector.seen and not copies.seen


@pytest.mark.parametrize("sparse", [False, True])
def test_second_derivative(sparse: bool) -> None:
    def rows(table: Tensor) -> Tensor:
        return gather_rows(table, INDICES["padded"], sparse=sparse) ** 2

    table = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(rows(table).sum(), table, create_graph=True)
    (second,) = torch.autograd.grad(grad.to_dense().sum() if sparse else grad.sum(), table)
    expected = torch.tensor([[2.0] * 2, [0.0] * 2, [0.0] * 2, [4.0] * 2, [0.0] * 2], dtype=torch.float64)
    torch.testing.assert_close(second.to_dense() if sparse else second, expected)
