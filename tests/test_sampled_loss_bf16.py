"""sampled_loss on bfloat16 hidden and rows: the numbers, their one rounding, their dtypes, and autocast."""

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
everywhere = implementations("sampled_loss")
losses = pytest.mark.parametrize(("loss", "parameters"), [(loss, p) for loss in LOSSES for p in PARAMETERS[loss]])
forms = pytest.mark.parametrize("in_batch", [True, False])
# Nothing of which is a multiple of anything; the last two in several chunks, of rows that shared memory does not hold.
SIZES = ((1, 17, 1), (2, 0, 5), (1, 0, 3), (5, 33, 0), (33, 100, 17), (37, 2049, 20), (255, 31, 33))


def bf16_problem(m: int, n: int, h: int, *, given: bool = True) -> dict[str, Any]:
    """`problem` with bfloat16 operands, and with counts where `given`."""
    arguments = problem(m, n, h, torch.float32, given=given)
    for name in ("hidden", "rows"):
        arguments[name] = arguments[name].detach().bfloat16().requires_grad_()
    if given:
        arguments["count"] = torch.randint(1, 5, (n,), generator=torch.Generator().manual_seed(n)).float()
    return arguments


def with_gradients(impl: str, arguments: dict, loss: str, in_batch: bool, **parameters: float) -> list[Tensor]:
    """Loss and gradients as the operator gives them, or, by "reference", as their specification does."""
    operator = sampled_loss_reference
    if impl != "reference":
        operator = operators_of(impl, "sampled_loss").sampled_loss
    full = {"elu_param": 0.0, "bpreg": 1.0, "label_smoothing": 0.0} | parameters
    names = ("hidden", "rows", "bias", "live", "log_q", "ids", "count")
    with torch.no_grad():
        return list(operator(*(arguments.get(name) for name in names), loss, in_batch, 7.0, *full.values()))


@losses
@forms
@kernels
def test_kernels_are_as_close_as_the_reference(impl: str, loss: str, parameters: dict, in_batch: bool) -> None:
    for m, n, h in SIZES:
        for given in (True, False):
            arguments = bf16_problem(m, n, h, given=given)
            options = {"loss": loss, "in_batch": in_batch, **parameters}
            oracle = with_gradients("reference", as_float64(arguments), **options)
            reference = with_gradients("reference", arguments, **options)
            ours = with_gradients(impl, arguments, **options)
            assert {t.dtype for t in (*ours, *reference)} == {torch.float32}
            assert_as_close(ours, reference, oracle)


@losses
@forms
@everywhere
def test_gradients_of_scores_are_rounded_once(impl: str, loss: str, parameters: dict, in_batch: bool) -> None:
    """Rows of a unit matrix show the gradients themselves: bfloat16 numbers, the nearest to what float64 finds."""
    m, n = 24, 40
    arguments = bf16_problem(m, n, m) | {"hidden": torch.eye(m, dtype=torch.bfloat16)}
    options = {"loss": loss, "in_batch": in_batch, **parameters}
    _, _, grad_rows, grad_bias = with_gradients(impl, arguments, **options)
    _, _, exact, _ = with_gradients("reference", as_float64(arguments), **options)
    assert torch.equal(grad_rows, grad_rows.bfloat16().float())
    half_a_place = 2.0 ** (torch.frexp(exact).exponent - 9)  # of 8 digits, the first of which is 1/2 in frexp's terms
    of_float32 = 2**-18 * exact.abs() + 2**-20 * exact.abs().max()  # and of what cancels in it
    assert bool(((grad_rows - exact).abs() <= half_a_place + of_float32).all())
    assert bool(((grad_rows - exact).abs() > half_a_place / 2).any())  # it was rounded
    torch.testing.assert_close(grad_bias, grad_rows.sum(1), rtol=1e-6, atol=1e-7)


@forms
@everywhere
def test_autograd_gives_the_inputs_dtypes(impl: str, in_batch: bool) -> None:
    arguments = bf16_problem(33, 100, 17)
    value, *grads = value_and_gradients(arguments, impl, in_batch=in_batch)
    assert [t.dtype for t in (value, *grads)] == [torch.float32, torch.bfloat16, torch.bfloat16, torch.float32]
    oracle = value_and_gradients(as_float64(arguments), "reference", in_batch=in_batch)
    reference = value_and_gradients(arguments, "reference", in_batch=in_batch)
    # Not the bias's: autograd through the reference leaves out the one rounding that it has.
    assert_as_close([value, *grads[:2]], reference[:3], oracle[:3])
    if impl != "reference":
        raw = with_gradients(impl, arguments, "cross-entropy", in_batch)
        assert_equal_bits([value, *grads], [t.to(g.dtype) for t, g in zip(raw, (value, *grads), strict=True)])
    thrice = torch.autograd.grad(3 * ops.sampled_loss(**arguments, batch_size=7, in_batch=in_batch, impl=impl),
                                 arguments["bias"])  # fmt: skip
    torch.testing.assert_close(thrice[0], 3 * grads[2])


@forms
@everywhere
def test_no_rows(impl: str, in_batch: bool) -> None:
    value, *grads = with_gradients(impl, bf16_problem(0, 6, 3), "cross-entropy", in_batch)
    assert [t.shape for t in grads] == [(0, 3), (6, 3), (6,)]
    assert [torch.count_nonzero(t).item() for t in (value, *grads)] == [0, 0, 0, 0]


@pytest.mark.parametrize("loss", LOSSES)
@everywhere
def test_large_scores_stay_finite_and_nan_stays(impl: str, loss: str) -> None:
    arguments = bf16_problem(5, 40, 3, given=False)
    large = {name: None if t is None else (t.detach() * 40).requires_grad_() for name, t in arguments.items()}
    assert all(bool(t.isfinite().all()) for t in value_and_gradients(large, impl, loss=loss))
    with torch.no_grad():
        arguments["rows"][7] = torch.nan
    value, grad_hidden, _ = value_and_gradients(arguments, impl, loss=loss)
    assert value.isnan() and bool(grad_hidden.isnan().all())


@forms
@kernels
def test_bits_do_not_depend_on_order_or_layout(impl: str, in_batch: bool) -> None:
    for m, n, h in ((6, 24, 12), (90, 300, 5)):
        arguments, runs = bf16_problem(m, n, h), []
        for seed in (1, 2, 3):
            if impl == "emulated":
                cuda_emulator.load().set_seed(seed)
            runs.append(value_and_gradients(arguments if seed == 1 else strided(arguments), impl, in_batch=in_batch))
        assert_equal_bits(runs[1], runs[0])
        assert_equal_bits(runs[2], runs[0])


@pytest.mark.parametrize("loss", LOSSES)
@kernels
def test_operator_passes_opcheck(impl: str, loss: str) -> None:
    hidden, rows, bias, live, ids, log_q, count = bf16_problem(4, 5, 3).values()
    args = (hidden, rows, bias, live, log_q, ids, count, loss, True, 6.0, 0.5, 1.0, 0.0)
    torch.library.opcheck(operators_of(impl, "sampled_loss").sampled_loss, args)


def test_public_function_compiles_whole(native_library: None) -> None:
    arguments = bf16_problem(4, 5, 3)
    compiled = torch.compile(ops.sampled_loss, fullgraph=True)
    torch.testing.assert_close(compiled(**arguments), ops.sampled_loss(**arguments), rtol=1e-6, atol=0)


@everywhere
def test_bad_dtypes_are_named(impl: str) -> None:
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
def test_operator_names_what_does_not_fit(impl: str) -> None:
    arguments = bf16_problem(4, 5, 3)
    for name, dtype in (("rows", torch.float32), ("bias", torch.bfloat16), ("count", torch.float64)):
        with pytest.raises(ValueError, match=f"{name} (is|must be)"):
            with_gradients(impl, arguments | {name: arguments[name].detach().to(dtype)}, "bpr", True)


def autocast(dtype: torch.dtype = torch.bfloat16) -> torch.autocast:
    return torch.autocast("cpu", dtype=dtype)


@forms
@everywhere
def test_autocast_converts_what_products_multiply(impl: str, in_batch: bool) -> None:
    arguments = problem(33, 100, 17, torch.float32) | {"count": torch.full((100,), 2.0)}
    options = {"in_batch": in_batch, "loss": "bpr-max"}
    narrow = {name: t.bfloat16() if name in ("hidden", "rows") else t for name, t in arguments.items()}
    with autocast():
        value = ops.sampled_loss(**arguments, batch_size=7, impl=impl, **options)
        mixed = ops.sampled_loss(**arguments | {"hidden": narrow["hidden"]}, batch_size=7, impl=impl, **options)
    ours = [value.detach(), *torch.autograd.grad(value, [arguments[name] for name in ("hidden", "rows", "bias")])]
    explicit = {name: t.detach().requires_grad_(arguments[name].requires_grad) for name, t in narrow.items()}
    theirs = value_and_gradients(explicit, impl, **options)
    assert [t.dtype for t in ours] == [torch.float32] * 4
    assert_equal_bits(ours, [t.float() for t in theirs])
    assert mixed == theirs[0]
    exact = value_and_gradients(arguments, impl, **options)
    assert not torch.equal(exact[0], ours[0])
    with autocast(torch.float16):
        assert ops.sampled_loss(**arguments, batch_size=7, impl=impl, **options) == exact[0]
        narrow_hidden = arguments["hidden"].half()
        assert ops.sampled_loss(**arguments | {"hidden": narrow_hidden}, impl=impl).dtype == torch.float32
    with autocast(), torch.autocast("cpu", enabled=False):
        assert_equal_bits(value_and_gradients(arguments, impl, **options), exact)


@everywhere
def test_autocast_leaves_float64_alone(impl: str) -> None:
    arguments = problem(5, 33, 4, torch.float64)
    exact = value_and_gradients(arguments, impl)
    with autocast():
        assert_equal_bits(value_and_gradients(arguments, impl), exact)
        with pytest.raises(ValueError, match=r"rows must be bfloat16 .*, not float64"):
            ops.sampled_loss(**arguments | {"hidden": arguments["hidden"].float()}, impl=impl)


def network_loss(
    impl: str, dtype: torch.dtype | None = None, under: AbstractContextManager[object] | None = None
) -> tuple[Tensor, list[Tensor]]:
    """A step of a network, its forward pass in a context: its loss and all of its gradients."""
    network = SessionNetwork(30, [8], seed=1, impl=impl, dtype=dtype)
    criterion = SampledLoss("cross-entropy", batch_size=4, logq=0.5, support=torch.arange(1, 31), impl=impl)
    inputs, targets = torch.randint(0, 30, (2, 1, 4), generator=torch.Generator().manual_seed(0))
    with under or nullcontext():
        hidden, _ = network(inputs, network.initial_state(4))
        negatives = torch.arange(0, 30, 2).unsqueeze(0)
        value = criterion(hidden, network.output_weight, network.output_bias, targets, negatives)
    value.backward()
    grads = [p.grad for p in network.parameters()]
    return value.detach(), [g.to_dense() if g.is_sparse else g for g in grads]


@everywhere
def test_a_network_trains_under_autocast(impl: str) -> None:
    exact, grads = network_loss(impl)
    value, narrow = network_loss(impl, under=autocast())
    assert {t.dtype for t in (value, *narrow)} == {torch.float32}
    # A bfloat16 number is within 2**-9 to 2**-8 of what it stands for; a gradient here has come through few of them.
    assert value.item() != exact.item() and value.item() == pytest.approx(exact.item(), rel=2**-8)
    for ours, theirs in zip(narrow, grads, strict=True):
        assert (ours - theirs).norm() <= 2**-5 * theirs.norm()


def test_a_network_of_bfloat16_keeps_its_loss() -> None:
    value, grads = network_loss("reference", torch.bfloat16)
    assert value.dtype == torch.float32 and {g.dtype for g in grads} == {torch.bfloat16}
    assert value.item() == pytest.approx(network_loss("reference")[0].item(), rel=2**-5)
