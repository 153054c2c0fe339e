"""sampled_loss: values of the five losses compared with plain Python, gradients, and masks.

For M hidden states of H units there are M + N rows of the output table: M targets, then N sampled negatives. With
in_batch=True, the targets of the other hidden states are also negatives. With in_batch=False (padded sequences), only
the sampled ones are. A hidden state is live if it is not padding.
"""

from __future__ import annotations

import math

import cuda_emulator
import pytest
import torch
from native import (
    LEVELS,
    assert_as_close,
    assert_equal_bits,
    compile_backend,
    native_and_emulated,
    operators_of,
    run_at_level,
    threads,
    why_not_emulated,
)

from gru4rec_fast import ops
from gru4rec_fast.ops.sampled_loss import LOSSES, sampled_loss_reference

M, N, H = 4, 5, 3
kernels = native_and_emulated("sampled_loss")


def tensors(dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    """Return random hidden states, rows and biases for M, N and H, which require gradients."""
    g = torch.Generator().manual_seed(1)
    return {
        "hidden": torch.randn(M, H, generator=g, dtype=dtype).requires_grad_(),
        "rows": torch.randn(M + N, H, generator=g, dtype=dtype).requires_grad_(),
        "bias": torch.randn(M + N, generator=g, dtype=dtype).requires_grad_(),
    }


# Optional tensors of sampled_loss, by the name of a test case.
OPTIONAL_TENSORS = {
    "plain": {},
    "live": {"live": torch.tensor([True, True, False, True])},
    "log_q": {"log_q": torch.linspace(-1, 1, M + N, dtype=torch.float64)},
    "ids": {"ids": torch.tensor([7, 3, 7, 1, 3, 9, 7, 2, 9])},
    "count": {"count": torch.tensor([1.0, 3.0, 1.0, 2.0, 5.0], dtype=torch.float64)},
    "all": {
        "count": torch.tensor([2.0, 1.0, 4.0, 1.0, 3.0], dtype=torch.float64),
        "live": torch.tensor([True, True, False, True]),
        "log_q": torch.linspace(-1, 1, M + N, dtype=torch.float64),
        "ids": torch.tensor([7, 3, 7, 1, 3, 9, 7, 2, 9]),
    },
}
# Parameters of each loss that are tested.
PARAMETERS = {
    "cross-entropy": [{}, {"label_smoothing": 0.2}],
    "bpr-max": [{"bpreg": 1.95, "elu_param": 0.5}, {"bpreg": 0.9, "elu_param": 0.0}],
    "top1": [{}],
    "top1-max": [{}],
    "bpr": [{}],
}
CASES = [
    pytest.param(loss, parameters, option, in_batch, id=f"{loss}-{i}-{option}-{'in_batch' if in_batch else 'padded'}")
    for loss in LOSSES
    for i, parameters in enumerate(PARAMETERS[loss])
    for option in OPTIONAL_TENSORS
    for in_batch in (True, False)
]


def plain_python_losses(
    scores: list[list[float]],
    targets: list[int],
    used_columns: list[list[int]],
    loss: str,
    *,
    elu_param=0.0,
    bpreg=1.0,
    label_smoothing=0.0,
) -> list[float]:
    """Return the loss of each row of scores, computed with Python numbers.

    targets[i] is the column of the target of row i. used_columns[i] are the columns of this target and its negatives; a
    column with a count of n is listed n times.
    """

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    losses = []
    for row, target, columns in zip(scores, targets, used_columns, strict=True):
        if loss == "bpr-max" and elu_param:
            row = [x if x > 0 else elu_param * (math.exp(x) - 1) for x in row]
        negatives = [j for j in columns if j != target]
        total = sum(math.exp(row[j]) for j in negatives)
        softmax = [math.exp(row[j]) / total for j in negatives]
        if loss == "cross-entropy":
            log_sum = math.log(sum(math.exp(row[j]) for j in columns))
            smoothing = label_smoothing / len(negatives) * sum(row[j] - log_sum for j in negatives)
            losses.append(-(1 - label_smoothing) * (row[target] - log_sum) - smoothing)
        elif loss == "bpr-max":
            bpr = sum(w * sigmoid(row[target] - row[j]) for w, j in zip(softmax, negatives, strict=True))
            penalty = sum(w * row[j] ** 2 for w, j in zip(softmax, negatives, strict=True))
            losses.append(-math.log(bpr + 1e-24) + bpreg * penalty)
        elif loss == "top1":
            terms = [sigmoid(row[j] - row[target]) + sigmoid(row[j] ** 2) for j in columns]
            losses.append((sum(terms) - sigmoid(row[target] ** 2)) / len(columns))
        elif loss == "top1-max":
            terms = [sigmoid(row[j] - row[target]) + sigmoid(row[j] ** 2) for j in negatives]
            losses.append(sum(w * term for w, term in zip(softmax, terms, strict=True)))
        else:
            losses.append(sum(-math.log(sigmoid(row[target] - row[j])) for j in columns))
    return losses


@pytest.mark.parametrize(("loss", "parameters", "option", "in_batch"), CASES)
def test_value_equals_plain_python(loss: str, parameters: dict, option: str, in_batch: bool, impl: str) -> None:
    t, masks = tensors(), OPTIONAL_TENSORS[option]
    live = masks.get("live", torch.ones(M, dtype=torch.bool)).tolist()
    log_q = masks.get("log_q", torch.zeros(M + N, dtype=torch.float64))
    ids = masks["ids"].tolist() if "ids" in masks else list(range(100, 100 + M + N))
    scores = (t["hidden"] @ t["rows"].T + t["bias"] - log_q).tolist()
    counts = masks["count"].int().tolist() if "count" in masks else [1] * N
    live_rows = [i for i in range(M) if live[i]]
    used_columns = []
    for i in live_rows:
        columns = (live_rows if in_batch else [i]) + [M + j for j in range(N) for _ in range(counts[j])]
        used_columns.append([j for j in columns if j == i or ids[j] != ids[i]])
    losses = plain_python_losses([scores[i] for i in live_rows], live_rows, used_columns, loss, **parameters)
    expected = sum(losses) / 6  # batch_size
    value = ops.sampled_loss(**t, loss=loss, batch_size=6, in_batch=in_batch, impl=impl, **masks, **parameters)
    assert value.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("loss", "parameters", "option", "in_batch"), CASES)
def test_gradients_equal_the_formulas(loss: str, parameters: dict, option: str, in_batch: bool, impl: str) -> None:
    """Gradients by autograd equal finite differences (gradcheck), and the formulas of the reference."""
    t, masks = tensors(), OPTIONAL_TENSORS[option]

    def value(hidden, rows, bias):
        return ops.sampled_loss(
            hidden, rows, bias, loss=loss, batch_size=6, in_batch=in_batch, impl=impl, **masks, **parameters
        )

    assert torch.autograd.gradcheck(value, tuple(t.values()), fast_mode=impl == "emulated")
    all_parameters = {"elu_param": 0.0, "bpreg": 1.0, "label_smoothing": 0.0} | parameters
    mask_arguments = [masks.get(name) for name in ("live", "log_q", "ids", "count")]
    with torch.no_grad():
        loss_value, *grads = sampled_loss_reference(
            *t.values(), *mask_arguments, loss, in_batch, 6.0, *all_parameters.values()
        )
    torch.testing.assert_close(loss_value, value(**t), rtol=1e-12, atol=1e-13)
    for grad, autograd in zip(grads, torch.autograd.grad(value(**t), list(t.values())), strict=True):
        torch.testing.assert_close(grad, autograd, rtol=1e-10, atol=1e-12)


def test_label_smoothing_without_negatives_gives_no_gradient() -> None:
    """All ids are equal, so all negatives are masked and only the target is left."""
    t = tensors()
    ids = torch.full((M + N,), 7)
    # loss, in_batch, batch_size, elu_param, bpreg, label_smoothing
    options = ("cross-entropy", True, 6.0, 0.0, 1.0, 0.2)
    loss, *grads = sampled_loss_reference(*(x.detach() for x in t.values()), None, None, ids, None, *options)
    value = ops.sampled_loss(**t, batch_size=6, ids=ids, label_smoothing=0.2, impl="reference")
    assert loss == value == 0
    for grad, autograd in zip(grads, torch.autograd.grad(value, list(t.values())), strict=True):
        assert torch.count_nonzero(grad) == torch.count_nonzero(autograd) == 0


def test_cross_entropy_with_all_items_as_negatives_is_torch_cross_entropy(impl: str) -> None:
    g = torch.Generator().manual_seed(2)
    table = torch.randn(11, H, generator=g, dtype=torch.float64)
    hidden = torch.randn(M, H, generator=g, dtype=torch.float64)
    targets = torch.tensor([3, 3, 0, 10])
    ids = torch.cat([targets, torch.arange(11)])
    loss = ops.sampled_loss(hidden, table[ids], in_batch=False, ids=ids, impl=impl)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(hidden @ table.T, targets), rtol=1e-12, atol=0)


@pytest.mark.parametrize("loss", LOSSES)
def test_large_scores_stay_finite(loss: str, impl: str) -> None:
    t = {name: (tensor.detach() * 40).float().requires_grad_() for name, tensor in tensors().items()}
    value = ops.sampled_loss(**t, loss=loss, elu_param=0.5, impl=impl)
    assert torch.isfinite(value)
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(value, list(t.values())))


def problem(m: int, n: int, h: int, dtype: torch.dtype, *, with_masks: bool = True) -> dict:
    """Return random arguments of sampled_loss for m hidden states of h units and n sampled negatives.

    With `with_masks`, they include a bias, live, ids and log_q. The scores are small, because torch
    approximates softplus for arguments above 20.
    """
    g = torch.Generator().manual_seed(m + 10 * n + 100 * h)
    hidden, rows, bias = (torch.randn(s, generator=g, dtype=torch.float64) for s in ((m, h), (m + n, h), (m + n,)))
    hidden /= max(h, 1) ** 0.5
    live = torch.rand(m, generator=g) < 0.8
    ids = torch.randint(0, n + 2, (m + n,), generator=g)
    log_q = torch.randn(m + n, generator=g, dtype=torch.float64).to(dtype)
    return {
        "hidden": hidden.to(dtype).requires_grad_(),
        "rows": rows.to(dtype).requires_grad_(),
        "bias": bias.to(dtype).requires_grad_() if with_masks else None,
        **({"live": live, "ids": ids, "log_q": log_q} if with_masks else {}),
    }


def value_and_gradients(arguments: dict, impl: str, **options) -> list[torch.Tensor]:
    """Return the loss for batch_size=7, and by autograd the gradients of hidden, rows and, if given, bias."""
    value = ops.sampled_loss(**arguments, batch_size=7, impl=impl, **options)
    inputs = [arguments[name] for name in ("hidden", "rows", "bias") if arguments[name] is not None]
    return [value.detach(), *torch.autograd.grad(value, inputs)]


def as_float64(arguments: dict) -> dict:
    """Return a copy of the arguments with their floating-point tensors in float64."""
    return {
        name: t.detach().double().requires_grad_(t.requires_grad) if t is not None and t.is_floating_point() else t
        for name, t in arguments.items()
    }


@pytest.mark.parametrize(
    ("loss", "parameters"), [(loss, parameters) for loss in LOSSES for parameters in PARAMETERS[loss]]
)
@pytest.mark.parametrize("in_batch", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@kernels
def test_kernels_are_as_close_as_the_reference(
    impl: str, loss: str, parameters: dict, in_batch: bool, dtype: torch.dtype
) -> None:
    options = {"loss": loss, "in_batch": in_batch, **parameters}
    for m, n, h in ((1, 17, 1), (2, 0, 5), (5, 33, 0), (33, 100, 17), (32, 2048, 100), (255, 31, 33)):
        for with_masks in (True, False):
            arguments = problem(m, n, h, dtype, with_masks=with_masks)
            oracle = value_and_gradients(as_float64(arguments), "reference", **options)
            reference = value_and_gradients(arguments, "reference", **options)
            assert_as_close(value_and_gradients(arguments, impl, **options), reference, oracle)


@pytest.mark.parametrize("in_batch", [True, False])
def test_rows_beyond_one_tile_of_scores(in_batch: bool, native_library: None) -> None:
    """600 x 9000 scores are more than one tile of the kernel, the block of scores that it computes at once (4 MiB)."""
    arguments = problem(600, 9000, 8, torch.float32)
    options = {"loss": "cross-entropy", "in_batch": in_batch}
    oracle = value_and_gradients(as_float64(arguments), "reference", **options)
    reference = value_and_gradients(arguments, "reference", **options)
    assert_as_close(value_and_gradients(arguments, "native", **options), reference, oracle)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("in_batch", [True, False])
def test_all_negatives_masked_gives_zero_gradients(loss: str, in_batch: bool, impl: str) -> None:
    """All ids are equal, so all negatives are masked. The loss must be finite."""
    arguments = problem(1, 4, 3, torch.float64) | {"ids": torch.full((5,), 3), "live": None}
    value, *grads = value_and_gradients(arguments, impl, loss=loss, in_batch=in_batch, label_smoothing=0.1)
    assert torch.isfinite(value)
    assert all(torch.count_nonzero(grad) == 0 for grad in grads)


@kernels
@pytest.mark.parametrize("in_batch", [True, False])
def test_loss_without_hidden_states_is_zero(impl: str, in_batch: bool) -> None:
    value, *grads = value_and_gradients(problem(0, 6, 3, torch.float32), impl, in_batch=in_batch)
    assert value == 0
    assert [torch.count_nonzero(grad).item() for grad in grads] == [0, 0, 0]


@pytest.mark.parametrize("loss", LOSSES)
def test_nan_propagates_to_the_loss(loss: str, impl: str) -> None:
    for name in ("hidden", "rows", "bias"):
        arguments = problem(5, 40, 3, torch.float32, with_masks=False) | {"bias": torch.zeros(45)}
        with torch.no_grad():
            arguments[name][2] = torch.nan
        assert ops.sampled_loss(**arguments, loss=loss, elu_param=0.5, impl=impl).isnan()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("in_batch", [True, False])
def test_bits_do_not_depend_on_threads_or_memory_layout(loss: str, in_batch: bool, native_library: None) -> None:
    for m, n, h in ((6, 24, 12), (80, 2048, 70)):
        arguments = problem(m, n, h, torch.float32)
        options = {"loss": loss, "in_batch": in_batch, "elu_param": 0.5}
        with threads(1):
            expected = value_and_gradients(arguments, "native", **options)
        with threads(2):
            assert_equal_bits(value_and_gradients(arguments, "native", **options), expected)
        assert_equal_bits(value_and_gradients(strided(arguments), "native", **options), expected)


def strided(arguments: dict) -> dict:
    """Return a copy of the arguments whose tensors are not contiguous."""
    copies = {
        name: torch.stack([t, t], -1)[..., 0].detach().requires_grad_(t.requires_grad) for name, t in arguments.items()
    }
    assert not copies["rows"].is_contiguous()
    return copies


@pytest.mark.skipif(bool(why_not_emulated("sampled_loss")), reason=why_not_emulated("sampled_loss") or "-")
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("in_batch", [True, False])
def test_bits_do_not_depend_on_the_order_of_threads(loss: str, in_batch: bool) -> None:
    emulation = cuda_emulator.load()
    # With the second size, the rows of scores are processed in two chunks and do not fit into shared memory.
    for m, n, h in ((6, 24, 12), (90, 300, 5)):
        arguments = problem(m, n, h, torch.float32)
        options = {"loss": loss, "in_batch": in_batch, "elu_param": 0.5}
        emulation.set_seed(1)
        expected = value_and_gradients(arguments, "emulated", **options)
        for seed in (2, 3):
            emulation.set_seed(seed)
            assert_equal_bits(value_and_gradients(strided(arguments), "emulated", **options), expected)


@kernels
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("in_batch", [True, False])
def test_no_live_hidden_states_gives_zero_loss_and_gradients(impl: str, loss: str, in_batch: bool) -> None:
    arguments = problem(5, 40, 3, torch.float32) | {"live": torch.zeros(5, dtype=torch.bool)}
    value, *grads = value_and_gradients(arguments, impl, loss=loss, in_batch=in_batch)
    assert [torch.count_nonzero(t).item() for t in (value, *grads)] == [0, 0, 0, 0]


def test_second_backward_of_a_retained_graph_never_returns_wrong_gradients(impl: str) -> None:
    """The first backward returns tensors that autograd saved. If they are changed in place, the second backward must
    raise an error or return the unchanged gradients."""
    arguments = problem(4, 9, 3, torch.float64)
    value = ops.sampled_loss(**arguments, impl=impl)
    value.backward(retain_graph=True)
    grads = [arguments[name].grad.clone() for name in ("hidden", "rows", "bias")]
    for name in ("hidden", "rows", "bias"):
        arguments[name].grad.mul_(0)
    try:
        value.backward()
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)
    else:
        assert_equal_bits([arguments[name].grad for name in ("hidden", "rows", "bias")], grads)


@pytest.mark.parametrize("level", LEVELS)
def test_every_instruction_set(level: str, native_library: None) -> None:
    run_at_level(
        level,
        __file__,
        "native and (are_as_close or large_scores) or beyond_one_tile or (bits_do_not and memory_layout)",
    )


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("in_batch", [True, False])
def test_count_equals_repeated_negatives(loss: str, in_batch: bool, impl: str) -> None:
    """A negative of count 3 has the loss and the gradients of three equal negatives."""
    t, repeats = tensors(), torch.tensor([1, 3, 1, 2, 5])
    ids = torch.tensor([7, 3, 7, 1, 3, 9, 7, 2, 9])
    columns = torch.cat([torch.arange(M), M + torch.arange(N).repeat_interleave(repeats)])
    options = {"loss": loss, "in_batch": in_batch, "batch_size": 6, "impl": impl}
    options |= {"label_smoothing": 0.1} if loss == "cross-entropy" else {}
    repeated = ops.sampled_loss(t["hidden"], t["rows"][columns], t["bias"][columns], ids=ids[columns], **options)
    counted = ops.sampled_loss(**t, ids=ids, count=repeats.double(), **options)
    torch.testing.assert_close(counted, repeated, rtol=1e-12, atol=0)
    grads = [torch.autograd.grad(value, list(t.values())) for value in (counted, repeated)]
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-13)


def operator_arguments(loss: str, in_batch: bool) -> tuple:
    """Return all arguments of the operator; the last are batch_size, elu_param, bpreg and label_smoothing."""
    masks = [OPTIONAL_TENSORS["all"][name] for name in ("live", "log_q", "ids", "count")]
    return (*tensors().values(), *masks, loss, in_batch, 6.0, 0.5, 1.0, 0.0)


@kernels
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("in_batch", [True, False])
def test_operator_passes_opcheck(impl: str, loss: str, in_batch: bool) -> None:
    torch.library.opcheck(operators_of(impl, "sampled_loss").sampled_loss, operator_arguments(loss, in_batch))


@pytest.mark.parametrize("loss", LOSSES)
def test_second_derivative_is_right_or_an_error(loss: str, impl: str) -> None:
    """It must not be silently wrong where another term of the loss keeps the graph alive."""
    arguments = tensors()
    value = ops.sampled_loss(**arguments, loss=loss, impl=impl)
    if impl != "reference":
        with pytest.raises(RuntimeError, match=r'sampled_loss: its gradient is not differentiable .* impl="reference"'):
            torch.autograd.grad(value, arguments["hidden"], create_graph=True)
        return
    (grad,) = torch.autograd.grad(value, arguments["hidden"], create_graph=True)
    (value + grad.square().sum()).backward()
    inputs = tuple(arguments.values())
    assert torch.autograd.gradgradcheck(lambda *t: ops.sampled_loss(*t, loss=loss, impl=impl), inputs)


@pytest.mark.parametrize("name", ["log_q", "count"])
def test_arguments_without_a_gradient_must_not_require_one(name: str, impl: str) -> None:
    t = OPTIONAL_TENSORS["all"][name].clone().requires_grad_()
    with pytest.raises(ValueError, match=f"{name} requires a gradient"):
        ops.sampled_loss(**tensors(), **{name: t}, impl=impl)
    with torch.no_grad():
        assert ops.sampled_loss(**tensors(), **{name: t}, impl=impl).isfinite()


@pytest.mark.parametrize("in_batch", [True, False])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("argument", ["bias", "log_q"])
def test_negatives_with_a_score_of_minus_infinity_are_masked(
    argument: str, loss: str, in_batch: bool, impl: str
) -> None:
    """Loss and gradients are those without these negatives, here the second and the fourth sampled one."""
    for parameters in PARAMETERS[loss]:
        options = {"loss": loss, "in_batch": in_batch, "batch_size": 3, "impl": impl, **parameters}
        t = tensors() | {"log_q": torch.linspace(-1, 1, M + N, dtype=torch.float64)}
        kept = torch.tensor([0, 1, 2, 3, 4, 6, 8])
        with torch.no_grad():
            t[argument][[M + 1, M + 3]] = -torch.inf if argument == "bias" else torch.inf
        few = {name: (x if name == "hidden" else x[kept]).detach() for name, x in t.items()}
        few |= {name: few[name].requires_grad_() for name in ("hidden", "rows", "bias")}
        value, expected = (ops.sampled_loss(**arguments, **options) for arguments in (t, few))
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
        names = ("hidden", "rows", "bias")
        grads = torch.autograd.grad(value, [t[name] for name in names])
        few_grads = torch.autograd.grad(expected, [few[name] for name in names])
        for name, ours, theirs in zip(names, grads, few_grads, strict=True):
            ours = ours if name == "hidden" else ours[kept]
            torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-13, msg=name)
        assert all(torch.count_nonzero(grad[[M + 1, M + 3]]) == 0 for grad in grads[1:])


@kernels
@pytest.mark.parametrize("in_batch", [True, False])
@pytest.mark.parametrize("loss", LOSSES)
def test_target_with_a_score_of_minus_infinity(loss: str, in_batch: bool, impl: str) -> None:
    """The kernels return what the reference and autograd return: infinity, or the limit of the formula."""
    for parameters in PARAMETERS[loss]:
        results = []
        for run_impl in (impl, "reference"):
            t = tensors()
            with torch.no_grad():
                t["bias"][1] = -torch.inf  # the target of the second hidden state, a negative of the others
            value = ops.sampled_loss(**t, loss=loss, in_batch=in_batch, impl=run_impl, **parameters)
            results.append([value, *torch.autograd.grad(value, list(t.values()))])
        assert results[0][0] == torch.inf if loss in ("cross-entropy", "bpr") else results[0][0].isfinite()
        for ours, theirs in zip(*results, strict=True):
            assert ours.isnan().logical_not().all()
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@kernels
def test_operator_error_names_the_argument(impl: str) -> None:
    args = operator_arguments("bpr", True)
    sampled_loss = operators_of(impl, "sampled_loss").sampled_loss
    for position, wrong, message in (
        (1, torch.zeros(M + N, H), "rows (is Float|must be float64)"),
        (3, torch.zeros(M + 1, dtype=torch.bool), "live must be"),
        (5, torch.zeros(M + N), "ids (is Float|must be int64)"),
        (7, "hinge", "loss=hinge: choose one of"),
        (10, -1.0, "elu_param=-1: must not be negative"),
    ):
        with pytest.raises(ValueError, match=message):
            sampled_loss(*(wrong if i == position else arg for i, arg in enumerate(args)))
    half_args = (t.half() if isinstance(t, torch.Tensor) and t.is_floating_point() else t for t in args)
    with pytest.raises(ValueError, match="float32, float64 or bfloat16, not Half"):
        sampled_loss(*half_args)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("in_batch", [True, False])
def test_operator_compiles_and_equals_the_reference(loss: str, in_batch: bool, native_library: None) -> None:
    args, masks = operator_arguments(loss, in_batch), OPTIONAL_TENSORS["all"]
    t = dict(zip(("hidden", "rows", "bias"), args, strict=False))
    backend = compile_backend(loss == "cross-entropy" and in_batch)
    compiled = torch.compile(lambda *a: torch.ops.gru4rec_fast.sampled_loss(*a)[0], fullgraph=True, backend=backend)
    expected = ops.sampled_loss(
        **t, loss=loss, batch_size=6, in_batch=in_batch, **masks, elu_param=0.5, impl="reference"
    )
    torch.testing.assert_close(compiled(*args), expected, rtol=1e-12, atol=0)
    for ours, theirs in zip(
        torch.autograd.grad(3 * compiled(*args), list(t.values())),
        torch.autograd.grad(3 * expected, list(t.values())),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "hinge"}, "loss='hinge': choose one of cross-entropy"),
        ({"rows": torch.zeros(2, H, dtype=torch.float64)}, "rows"),
        ({"bias": torch.zeros(3, dtype=torch.float64)}, r"bias must be float64 \[9\]"),
        ({"log_q": torch.zeros(M + N)}, r"log_q must be float64 .*, not float32"),
        ({"live": torch.ones(M)}, "live must be bool"),
        ({"count": torch.ones(M + N, dtype=torch.float64)}, r"count must be float64 \[5\]"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"elu_param": -0.5}, "elu_param=-0.5"),
    ],
)
def test_error_names_the_argument(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ops.sampled_loss(**(tensors() | change))
