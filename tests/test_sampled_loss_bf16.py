"""sampled_loss of bfloat16 hidden states and rows: accuracy, rounding of the gradients of scores, dtypes, autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import cuda_emulator
import pytest
import torch
from native import assert_as_close, assert_equal_bits, implementations, native_and_emulated, operators_of
from test_sampled_loss import PARAMETERS, as_float64, problem, strided, value_and_gradients
from torch import Tensor

from gru4rec_fast import ops
from gru4rec_fast.nn import SampledLoss, SessionNetwork
from gru4rec_fast.ops.sampled_loss import LOSSES, sampled_loss_reference

kernels = native_and_emulated("sampled_loss")
impls = implementations("sampled_loss")
losses = pytest.mark.parametrize(("loss", "parameters"), [(loss, p) for loss in LOSSES for p in PARAMETERS[loss]])
in_batch_modes = pytest.mark.parametrize("in_batch", [True, False])
# (M, N, H): hidden states, sampled negatives, units. No size is a multiple of a kernel's tile sizes. With N = 2049, a
# row of scores does not fit into shared memory. With M = 255, a kernel processes the rows of scores in several chunks.
SIZES = ((1, 17, 1), (2, 0, 5), (1, 0, 3), (5, 33, 0), (33, 100, 17), (37, 2049, 20), (255, 31, 33))


def bf16_problem(m: int, n: int, h: int, *, with_masks: bool = True) -> dict[str, Any]:
    """Return arguments of sampled_loss as `problem` does, with bfloat16 hidden and rows; with masks, also counts."""
    arguments = problem(m, n, h, torch.float32, with_masks=with_masks)
    for name in ("hidden", "rows"):
        arguments[name] = arguments[name].detach().bfloat16().requires_grad_()
    if with_masks:
        arguments["count"] = torch.randint(1, 5, (n,), generator=torch.Generator().manual_seed(n)).float()
    return arguments


def loss_and_gradients(impl: str, arguments: dict, loss: str, in_batch: bool, **parameters: float) -> list[Tensor]:
    """Return the loss and the gradients that the operator returns, without autograd; batch_size is 7."""
    operator = sampled_loss_reference
    if impl != "reference":
        operator = operators_of(impl, "sampled_loss").sampled_loss
    all_parameters = {"elu_param": 0.0, "bpreg": 1.0, "label_smoothing": 0.0} | parameters
    tensors = [arguments.get(name) for name in ("hidden", "rows", "bias", "live", "log_q", "ids", "count")]
    with torch.no_grad():
        return list(operator(*tensors, loss, in_batch, 7.0, *all_parameters.values()))


@losses
@in_batch_modes
@kernels
def test_kernels_are_as_close_to_float64_as_the_reference(
    impl: str, loss: str, parameters: dict, in_batch: bool
) -> None:
    for m, n, h in SIZES:
        for with_masks in (True, False):
            arguments = bf16_problem(m, n, h, with_masks=with_masks)
            options = {"loss": loss, "in_batch": in_batch, **parameters}
            oracle = loss_and_gradients("reference", as_float64(arguments), **options)
            reference = loss_and_gradients("reference", arguments, **options)
            ours = loss_and_gradients(impl, arguments, **options)
            assert {t.dtype for t in (*ours, *reference)} == {torch.float32}
            assert_as_close(ours, reference, oracle)


@losses
@in_batch_modes
@impls
def test_gradients_of_scores_are_rounded_once(impl: str, loss: str, parameters: dict, in_batch: bool) -> None:
    """The gradients of the scores are rounded to the nearest bfloat16 numbers, once.

    Let G be the rounded gradients of the scores. The gradient of the rows is G^T hidden. It is G^T, because `hidden` is
    the identity matrix here.
    """
    m, n = 24, 40
    arguments = bf16_problem(m, n, m) | {"hidden": torch.eye(m, dtype=torch.bfloat16)}
    options = {"loss": loss, "in_batch": in_batch, **parameters}
    _, _, grad_rows, grad_bias = loss_and_gradients(impl, arguments, **options)
    _, _, exact, _ = loss_and_gradients("reference", as_float64(arguments), **options)
    assert torch.equal(grad_rows, grad_rows.bfloat16().float())
    error = (grad_rows - exact).abs()
    half_ulp = 2.0 ** (torch.frexp(exact).exponent - 9)  # bfloat16 has 8 significant bits; frexp's mantissa is >= 1/2
    float32_error = 2**-18 * exact.abs() + 2**-20 * exact.abs().max()  # the last term bounds errors by cancellation
    assert bool((error <= half_ulp + float32_error).all())
    assert bool((error > half_ulp / 2).any())  # the gradients were rounded
    torch.testing.assert_close(grad_bias, grad_rows.sum(1), rtol=1e-6, atol=1e-7)


@in_batch_modes
@impls
def test_autograd_returns_gradients_in_the_dtypes_of_the_inputs(impl: str, in_batch: bool) -> None:
    arguments = bf16_problem(33, 100, 17)
    value, *grads = value_and_gradients(arguments, impl, in_batch=in_batch)
    assert [t.dtype for t in (value, *grads)] == [torch.float32, torch.bfloat16, torch.bfloat16, torch.float32]
    oracle = value_and_gradients(as_float64(arguments), "reference", in_batch=in_batch)
    reference = value_and_gradients(arguments, "reference", in_batch=in_batch)
    # The gradient of the bias is not compared. Its only rounding is that of the gradients of the scores, and autograd
    # through the reference does not round them.
    assert_as_close([value, *grads[:2]], reference[:3], oracle[:3])
    if impl != "reference":
        results = loss_and_gradients(impl, arguments, "cross-entropy", in_batch)
        assert_equal_bits([value, *grads], [t.to(g.dtype) for t, g in zip(results, (value, *grads), strict=True)])
    scaled_loss = 3 * ops.sampled_loss(**arguments, batch_size=7, in_batch=in_batch, impl=impl)
    (scaled_grad_bias,) = torch.autograd.grad(scaled_loss, arguments["bias"])
    torch.testing.assert_close(scaled_grad_bias, 3 * grads[2])


@in_batch_modes
@impls
def test_loss_without_hidden_states_is_zero(impl: str, in_batch: bool) -> None:
    value, *grads = loss_and_gradients(impl, bf16_problem(0, 6, 3), "cross-entropy", in_batch)
    assert [t.shape for t in grads] == [(0, 3), (6, 3), (6,)]
    assert [torch.count_nonzero(t).item() for t in (value, *grads)] == [0, 0, 0, 0]


@pytest.mark.parametrize("loss", LOSSES)
@impls
def test_large_scores_give_finite_gradients_and_nan_propagates(impl: str, loss: str) -> None:
    arguments = bf16_problem(5, 40, 3, with_masks=False)
    large = {name: None if t is None else (t.detach() * 40).requires_grad_() for name, t in arguments.items()}
    assert all(bool(t.isfinite().all()) for t in value_and_gradients(large, impl, loss=loss))
    with torch.no_grad():
        arguments["rows"][7] = torch.nan
    value, grad_hidden, _ = value_and_gradients(arguments, impl, loss=loss)
    assert value.isnan() and bool(grad_hidden.isnan().all())


@in_batch_modes
@kernels
def test_bits_do_not_depend_on_order_of_threads_or_memory_layout(impl: str, in_batch: bool) -> None:
    for m, n, h in ((6, 24, 12), (90, 300, 5)):
        arguments, results = bf16_problem(m, n, h), []
        for seed in (1, 2, 3):
            if impl == "emulated":
                cuda_emulator.load().set_seed(seed)  # sets the order in which the emulator runs the threads
            inputs = arguments if seed == 1 else strided(arguments)
            results.append(value_and_gradients(inputs, impl, in_batch=in_batch))
        assert_equal_bits(results[1], results[0])
        assert_equal_bits(results[2], results[0])


@pytest.mark.parametrize("loss", LOSSES)
@kernels
def test_operator_passes_opcheck(impl: str, loss: str) -> None:
    arguments = bf16_problem(4, 5, 3)
    tensors = [arguments[name] for name in ("hidden", "rows", "bias", "live", "log_q", "ids", "count")]
    # After the loss: in_batch, batch_size, elu_param, bpreg and label_smoothing.
    torch.library.opcheck(operators_of(impl, "sampled_loss").sampled_loss, (*tensors, loss, True, 6.0, 0.5, 1.0, 0.0))


def test_public_function_compiles_to_one_graph(native_library: None) -> None:
    arguments = bf16_problem(4, 5, 3)
    compiled = torch.compile(ops.sampled_loss, fullgraph=True)
    torch.testing.assert_close(compiled(**arguments), ops.sampled_loss(**arguments), rtol=1e-6, atol=0)


@impls
def test_error_names_the_argument_of_a_wrong_dtype(impl: str) -> None:
    arguments = bf16_problem(4, 5, 3)
    for name, required, dtype in (
        ("rows", "bfloat16", torch.float32),
        ("bias", "float32", torch.bfloat16),
        ("log_q", "float32", torch.float64),
        ("count", "float32", torch.bfloat16),
    ):
        with pytest.raises(ValueError, match=f"{name} must be {required} .*, not {dtype}".replace("torch.", "")):
            ops.sampled_loss(**arguments | {name: arguments[name].detach().to(dtype)}, impl=impl)


@kernels
def test_operator_error_names_the_argument_of_a_wrong_dtype(impl: str) -> None:
    arguments = bf16_problem(4, 5, 3)
    for name, dtype in (("rows", torch.float32), ("bias", torch.bfloat16), ("count", torch.float64)):
        with pytest.raises(ValueError, match=f"{name} (is|must be)"):
            loss_and_gradients(impl, arguments | {name: arguments[name].detach().to(dtype)}, "bpr", True)


def cpu_autocast(dtype: torch.dtype = torch.bfloat16) -> torch.autocast:
    return torch.autocast("cpu", dtype=dtype)


@in_batch_modes
@impls
def test_autocast_converts_the_operands_of_matrix_products(impl: str, in_batch: bool) -> None:
    arguments = problem(33, 100, 17, torch.float32) | {"count": torch.full((100,), 2.0)}
    options = {"in_batch": in_batch, "loss": "bpr-max"}
    converted = {name: t.bfloat16() if name in ("hidden", "rows") else t for name, t in arguments.items()}
    with cpu_autocast():
        value = ops.sampled_loss(**arguments, batch_size=7, impl=impl, **options)
        mixed = ops.sampled_loss(**arguments | {"hidden": converted["hidden"]}, batch_size=7, impl=impl, **options)
    autocast = [value.detach(), *torch.autograd.grad(value, [arguments[name] for name in ("hidden", "rows", "bias")])]
    bf16_arguments = {name: t.detach().requires_grad_(arguments[name].requires_grad) for name, t in converted.items()}
    bf16 = value_and_gradients(bf16_arguments, impl, **options)
    assert [t.dtype for t in autocast] == [torch.float32] * 4
    assert_equal_bits(autocast, [t.float() for t in bf16])
    assert mixed == bf16[0]
    float32 = value_and_gradients(arguments, impl, **options)
    assert not torch.equal(float32[0], autocast[0])
    with cpu_autocast(torch.float16):
        assert ops.sampled_loss(**arguments, batch_size=7, impl=impl, **options) == float32[0]
        half_hidden = arguments["hidden"].half()
        assert ops.sampled_loss(**arguments | {"hidden": half_hidden}, impl=impl).dtype == torch.float32
    with cpu_autocast(), torch.autocast("cpu", enabled=False):
        assert_equal_bits(value_and_gradients(arguments, impl, **options), float32)


@impls
def test_autocast_does_not_convert_float64(impl: str) -> None:
    arguments = problem(5, 33, 4, torch.float64)
    expected = value_and_gradients(arguments, impl)
    with cpu_autocast():
        assert_equal_bits(value_and_gradients(arguments, impl), expected)
        with pytest.raises(ValueError, match=r"rows must be bfloat16 .*, not float64"):
            ops.sampled_loss(**arguments | {"hidden": arguments["hidden"].float()}, impl=impl)


def network_loss(
    impl: str, dtype: torch.dtype | None = None, forward_context: AbstractContextManager[object] | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Return the loss of a SessionNetwork for one step, and the gradients of all parameters.

    The forward pass runs inside `forward_context`, the backward pass outside it.
    """
    network = SessionNetwork(30, [8], seed=1, impl=impl, dtype=dtype)
    criterion = SampledLoss("cross-entropy", batch_size=4, logq=0.5, support=torch.arange(1, 31), impl=impl)
    inputs, targets = torch.randint(0, 30, (2, 1, 4), generator=torch.Generator().manual_seed(0))
    with forward_context or nullcontext():
        hidden, _ = network(inputs, network.initial_state(4))
        negatives = torch.arange(0, 30, 2).unsqueeze(0)
        value = criterion(hidden, network.output_weight, network.output_bias, targets, negatives)
    value.backward()
    grads = [p.grad for p in network.parameters()]
    return value.detach(), [g.to_dense() if g.is_sparse else g for g in grads]


@impls
def test_network_loss_and_gradients_under_autocast_are_close_to_float32(impl: str) -> None:
    float32_loss, float32_grads = network_loss(impl)
    loss, grads = network_loss(impl, forward_context=cpu_autocast())
    assert {t.dtype for t in (loss, *grads)} == {torch.float32}
    # The relative error of a rounding to bfloat16 is at most 2**-8. A gradient is the result of only a few roundings.
    assert loss.item() != float32_loss.item() and loss.item() == pytest.approx(float32_loss.item(), rel=2**-8)
    for grad, float32_grad in zip(grads, float32_grads, strict=True):
        assert (grad - float32_grad).norm() <= 2**-5 * float32_grad.norm()


def test_loss_of_a_bfloat16_network_is_float32() -> None:
    value, grads = network_loss("reference", torch.bfloat16)
    assert value.dtype == torch.float32 and {g.dtype for g in grads} == {torch.bfloat16}
    assert value.item() == pytest.approx(network_loss("reference")[0].item(), rel=2**-5)
