"""SparseAdagrad and SparseAdam: dense and sparse gradients, comparison with torch's optimizers, state dicts."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

from gru4rec_fast.nn import gather_rows
from gru4rec_fast.optim import SparseAdagrad, SparseAdam, clip_grad_norm_

# Name -> class and arguments.
OPTIMIZERS: dict[str, tuple[Callable[..., torch.optim.Optimizer], dict[str, Any]]] = {
    "adagrad": (SparseAdagrad, {"lr": 0.1}),
    "adagrad with momentum": (SparseAdagrad, {"lr": 0.1, "momentum": 0.4}),
    "adam": (SparseAdam, {"lr": 0.1, "betas": (0.8, 0.999), "eps": 1e-3}),
    "adagrad with weight decay": (SparseAdagrad, {"lr": 0.1, "weight_decay": 0.3}),
    "adam with weight decay": (SparseAdam, {"lr": 0.1, "weight_decay": 0.3, "maximize": True}),
}


def train(make: Callable[..., torch.optim.Optimizer], indices: list[torch.Tensor], sparse: bool) -> torch.Tensor:
    """Train rows of a table towards random targets, and return the table.

    Each tensor of `indices` holds the rows of one step. `sparse` selects sparse or dense gradients.
    """
    generator = torch.Generator().manual_seed(0)
    table = torch.nn.Parameter(torch.randn(6, 3, generator=generator, dtype=torch.float64))
    optimizer = make([table])
    for index in indices:
        target = torch.randn(len(index), 3, generator=generator, dtype=torch.float64)
        rows = gather_rows(table, index, sparse=True) if sparse else table.index_select(0, index)
        optimizer.zero_grad()
        (rows - target).square().sum().backward()
        assert table.grad is not None and table.grad.is_sparse == sparse
        optimizer.step()
    return table.detach()


# Row indices for five steps. Some rows occur several times in a step.
ALL_ROWS = [torch.tensor([0, 1, 2, 3, 4, 5, 1, 1, 0])] * 5
SOME_ROWS = [torch.tensor(rows) for rows in ([0, 3, 3], [5], [0, 1, 1], [3, 5, 0], [0])]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_sparse_and_dense_gradients_give_the_same_update(name: str, impl: str) -> None:
    make, options = OPTIMIZERS[name]
    sparse, dense = (train(lambda p: make(p, **options, impl=impl), ALL_ROWS, is_sparse) for is_sparse in (True, False))
    torch.testing.assert_close(sparse, dense, rtol=1e-12, atol=1e-12)


def test_sparse_adam_equals_torch(impl: str) -> None:
    ours = train(lambda p: SparseAdam(p, lr=0.1, betas=(0.8, 0.999), eps=1e-3, impl=impl), SOME_ROWS, sparse=True)
    theirs = train(lambda p: torch.optim.SparseAdam(p, lr=0.1, betas=(0.8, 0.999), eps=1e-3), SOME_ROWS, sparse=True)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_dense_adam_equals_torch_with_another_eps(impl: str) -> None:
    """torch.optim.Adam adds eps after the bias correction, SparseAdam before it."""

    def ours(eps: float) -> torch.Tensor:
        return train(lambda p: SparseAdam(p, lr=0.1, eps=eps, impl=impl), SOME_ROWS[:1], sparse=False)

    def theirs(eps: float) -> torch.Tensor:
        return train(lambda p: torch.optim.Adam(p, lr=0.1, eps=eps), SOME_ROWS[:1], sparse=False)

    bias_correction = (1 - 0.999) ** 0.5  # of the square root of exp_avg_sq, in the first step
    torch.testing.assert_close(ours(1e-3 * bias_correction), theirs(1e-3), rtol=1e-11, atol=1e-11)
    assert not torch.allclose(ours(1e-3), theirs(1e-3), rtol=1e-4)


def test_momentum_may_be_set_during_training() -> None:
    parameters = [torch.nn.Parameter(torch.ones(3, 2)) for _ in range(2)]
    with_momentum, without_momentum = (SparseAdagrad([p], lr=0.1) for p in parameters)
    for step in range(3):
        if step == 1:
            with_momentum.param_groups[0]["momentum"] = 0.5
        for parameter, optimizer in zip(parameters, (with_momentum, without_momentum), strict=True):
            optimizer.zero_grad()
            gather_rows(parameter, torch.tensor([1]), sparse=True).sum().backward()
            optimizer.step()
        assert torch.equal(*parameters) == (step < 2)  # at step 1 the velocity is still zero


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_loaded_state_dict_continues_the_training(name: str, tmp_path) -> None:
    """An optimizer that has loaded a saved state dict makes the same next step as the optimizer that saved it."""
    make, options = OPTIMIZERS[name]
    parameters = [torch.nn.Parameter(torch.ones(4, 2)) for _ in range(2)]
    optimizers = [make([p], **options) for p in parameters]

    def step_both(grad: int) -> None:
        for parameter, optimizer in zip(parameters, optimizers, strict=True):
            optimizer.zero_grad()
            gather_rows(parameter, torch.tensor([1, 3]), sparse=True).mul(grad).sum().backward()
            optimizer.step()

    for grad in (1, -2):
        step_both(grad)
    torch.save(optimizers[0].state_dict(), tmp_path / "state.pt")
    optimizers[1] = make([parameters[1]], lr=0.7)
    optimizers[1].load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for key, tensor in optimizers[0].state[parameters[0]].items():
        loaded = optimizers[1].state[parameters[1]][key]
        assert torch.equal(loaded, tensor) and loaded.dtype == tensor.dtype
    assert optimizers[1].param_groups[0]["lr"] == 0.1
    step_both(3)
    assert torch.equal(*parameters)


def test_sparse_adam_loads_a_state_dict_of_version_0_1() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer, loaded = (SparseAdam([parameter], betas=betas) for betas in ((0.8, 0.95), (0, 0)))
    state = optimizer.state_dict()
    (group,) = state["param_groups"]
    group["beta1"], group["beta2"] = group.pop("betas")  # as version 0.1 stored them
    loaded.load_state_dict(state)
    assert loaded.param_groups[0]["betas"] == (0.8, 0.95) and "beta1" not in loaded.param_groups[0]


def test_closure_is_called_with_gradients_enabled() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = SparseAdagrad([parameter], lr=1.0, eps=0.0)  # the first step is -lr * sign(gradient)

    def closure() -> torch.Tensor:
        loss = parameter.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 2
    assert parameter.tolist() == [0, 0]


def test_parameters_without_a_gradient_are_unchanged() -> None:
    updated, other = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = SparseAdam([updated, other])
    updated.sum().backward()
    optimizer.step()
    assert torch.equal(other, torch.ones(2)) and not optimizer.state[other]
    assert int(optimizer.state[updated]["step"]) == 1


@pytest.mark.parametrize("sparse", [True, False])
def test_weight_decay_and_maximize_equal_torch(sparse: bool, impl: str) -> None:
    """SparseAdagrad without momentum and eps equals torch's Adagrad, whose sparse gradients know no weight decay."""
    options = {"lr": 0.1, "eps": 0.0, "weight_decay": 0.3, "maximize": True}
    ours = train(lambda p: SparseAdagrad(p, **options, impl=impl), ALL_ROWS, sparse)
    theirs = train(lambda p: torch.optim.Adagrad(p, **options), ALL_ROWS, sparse=False)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_weight_decay_with_a_sparse_gradient_changes_only_its_rows(impl: str) -> None:
    table = torch.nn.Parameter(torch.ones(4, 2))
    optimizer = SparseAdagrad([table], lr=0.5, eps=0.0, weight_decay=0.25, impl=impl)
    (gather_rows(table, torch.tensor([1, 1, 3]), sparse=True) * 0).sum().backward()
    optimizer.step()
    assert optimizer.state[table]["accumulator"][1].tolist() == [0.25**2] * 2  # row 1 decays once
    assert table[:, 0].tolist() == [1, 0.5, 1, 0.5]


def test_negative_weight_decay_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"weight_decay=-1: must not be negative"):
        SparseAdam([torch.nn.Parameter(torch.ones(2))], weight_decay=-1)


@pytest.mark.parametrize("optimizer", [SparseAdagrad, SparseAdam])
def test_a_state_dict_without_weight_decay_can_be_loaded(optimizer: Callable[..., torch.optim.Optimizer]) -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    saved = optimizer([parameter]).state_dict()
    del saved["param_groups"][0]["weight_decay"], saved["param_groups"][0]["maximize"]
    loaded = optimizer([parameter])
    loaded.load_state_dict(saved)
    parameter.sum().backward()
    loaded.step()
    assert loaded.param_groups[0]["weight_decay"] == 0


@pytest.mark.parametrize("norm_type", [1.0, 2.0, torch.inf])
@pytest.mark.parametrize("max_norm", [0.5, 1e3])
def test_clipping_equals_that_of_the_same_dense_gradients(norm_type: float, max_norm: float) -> None:
    table, bias, unused = (torch.nn.Parameter(torch.ones(5, 2)) for _ in range(3))
    (
        (gather_rows(table, torch.tensor([3, 0, 3]), sparse=True) * torch.tensor([[1.0], [-2.0], [4.0]])).sum()
        + 3 * bias[1].sum()
    ).backward()
    copies = [torch.nn.Parameter(torch.ones(5, 2)) for _ in range(2)]
    for dense, parameter in zip(copies, (table, bias), strict=True):
        dense.grad = parameter.grad.to_dense().clone()
    norm = clip_grad_norm_(iter([table, bias, unused]), max_norm, norm_type)
    expected = torch.nn.utils.clip_grad_norm_(copies, max_norm, norm_type)
    torch.testing.assert_close(norm, expected)
    assert table.grad.is_sparse and unused.grad is None
    for dense, parameter in zip(copies, (table, bias), strict=True):
        torch.testing.assert_close(parameter.grad.to_dense(), dense.grad)


@pytest.mark.parametrize("norm_type", [2.0, torch.inf])
def test_clipping_an_empty_sparse_gradient(norm_type: float) -> None:
    table = torch.nn.Parameter(torch.ones(3, 2))
    gather_rows(table, torch.empty(0, dtype=torch.int64), sparse=True).sum().backward()
    assert table.grad.is_sparse and clip_grad_norm_(table, 1.0, norm_type) == 0


def test_options_of_a_parameter_group_are_checked() -> None:
    with pytest.raises(ValueError, match=r"weight_decay=-1: must not be negative"):
        SparseAdagrad([{"params": [torch.nn.Parameter(torch.ones(2))], "weight_decay": -1}])


@pytest.mark.parametrize("optimizer", [SparseAdagrad, SparseAdam])
def test_a_copy_has_the_same_implementation(optimizer: Callable[..., Any]) -> None:
    original = optimizer([torch.nn.Parameter(torch.ones(2))], impl="reference")
    assert copy.deepcopy(original).impl == pickle.loads(pickle.dumps(original)).impl == "reference"


def test_clipping_a_gradient_that_is_not_finite_can_be_an_error() -> None:
    table = torch.nn.Parameter(torch.ones(3, 2))
    (gather_rows(table, torch.tensor([1]), sparse=True) * torch.nan).sum().backward()
    with pytest.raises(RuntimeError, match="non-finite"):
        clip_grad_norm_(table, 1.0, error_if_nonfinite=True)
    assert clip_grad_norm_(table, 1.0).isnan()
    assert clip_grad_norm_([], 1.0) == 0
