"""The five losses: written-out values, gradients, masks, and the form for padded trainers."""

from __future__ import annotations

import math

import pytest
import torch

from gru4rec_fast import ops
from gru4rec_fast.reference.sampled_loss import LOSSES
from gru4rec_fast.reference.sampled_loss_gradients import sampled_loss_and_gradients

M, N, H = 4, 5, 3


def tensors(dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return {
        "hidden": torch.randn(M, H, generator=g, dtype=dtype).requires_grad_(),
        "rows": torch.randn(M + N, H, generator=g, dtype=dtype).requires_grad_(),
        "bias": torch.randn(M + N, generator=g, dtype=dtype).requires_grad_(),
    }


OPTIONS = {
    "plain": {},
    "live": {"live": torch.tensor([True, True, False, True])},
    "log_q": {"log_q": torch.linspace(-1, 1, M + N, dtype=torch.float64)},
    "ids": {"ids": torch.tensor([7, 3, 7, 1, 3, 9, 7, 2, 9])},
    "all": {
        "live": torch.tensor([True, True, False, True]),
        "log_q": torch.linspace(-1, 1, M + N, dtype=torch.float64),
        "ids": torch.tensor([7, 3, 7, 1, 3, 9, 7, 2, 9]),
    },
}
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
    for option in OPTIONS
    for in_batch in (True, False)
]


def by_hand(
    y: list[list[float]],
    own: list[int],
    seen: list[list[int]],
    loss: str,
    *,
    elu_param=0.0,
    bpreg=1.0,
    label_smoothing=0.0,
) -> list[float]:
    """Each row's loss, in plain Python, over the columns `seen[i]` it sees (its own among them)."""

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    losses = []
    for row, o, columns in zip(y, own, seen, strict=True):
        if loss == "bpr-max" and elu_param:
            row = [v if v > 0 else elu_param * (math.exp(v) - 1) for v in row]
        others = [j for j in columns if j != o]
        total = sum(math.exp(row[j]) for j in others)
        s = {j: math.exp(row[j]) / total for j in others}
        if loss == "cross-entropy":
            z = math.log(sum(math.exp(row[j]) for j in columns))
            share = label_smoothing / len(others)
            losses.append(-(1 - label_smoothing) * (row[o] - z) - share * sum(row[j] - z for j in others))
        elif loss == "bpr-max":
            better = sum(s[j] * sigmoid(row[o] - row[j]) for j in others)
            losses.append(-math.log(better + 1e-24) + bpreg * sum(s[j] * row[j] ** 2 for j in others))
        elif loss == "top1":
            terms = [sigmoid(row[j] - row[o]) + sigmoid(row[j] ** 2) for j in columns]
            losses.append((sum(terms) - sigmoid(row[o] ** 2)) / len(columns))
        elif loss == "top1-max":
            losses.append(sum(s[j] * (sigmoid(row[j] - row[o]) + sigmoid(row[j] ** 2)) for j in others))
        else:
            losses.append(sum(-math.log(sigmoid(row[o] - row[j])) for j in columns))
    return losses


@pytest.mark.parametrize(("loss", "parameters", "option", "in_batch"), CASES)
def test_value_is_the_formulas(loss: str, parameters: dict, option: str, in_batch: bool) -> None:
    t, given = tensors(), OPTIONS[option]
    live = given.get("live", torch.ones(M, dtype=torch.bool)).tolist()
    log_q = given.get("log_q", torch.zeros(M + N, dtype=torch.float64))
    ids = given["ids"].tolist() if "ids" in given else list(range(100, 100 + M + N))
    scores = (t["hidden"] @ t["rows"].T + t["bias"] - log_q).tolist()
    rows = [i for i in range(M) if live[i]]
    seen = []
    for i in rows:
        columns = (rows if in_batch else [i]) + list(range(M, M + N))
        seen.append([j for j in columns if j == i or ids[j] != ids[i]])
    expected = sum(by_hand([scores[i] for i in rows], rows, seen, loss, **parameters)) / 6
    value = ops.sampled_loss(**t, loss=loss, batch_size=6, in_batch=in_batch, **given, **parameters)
    assert value.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("loss", "parameters", "option", "in_batch"), CASES)
def test_gradients(loss: str, parameters: dict, option: str, in_batch: bool) -> None:
    t, given = tensors(), OPTIONS[option]

    def value(hidden, rows, bias):
        return ops.sampled_loss(
            hidden, rows, bias, loss=loss, batch_size=6, in_batch=in_batch, impl="reference", **given, **parameters
        )

    assert torch.autograd.gradcheck(value, tuple(t.values()))
    full = {"elu_param": 0.0, "bpreg": 1.0, "label_smoothing": 0.0} | parameters
    masks = [given.get(name) for name in ("live", "log_q", "ids")]
    with torch.no_grad():
        written = sampled_loss_and_gradients(*t.values(), *masks, loss, in_batch, 6.0, *full.values())
    torch.testing.assert_close(written[0], value(**t), rtol=1e-12, atol=1e-13)
    for ours, auto in zip(written[1:], torch.autograd.grad(value(**t), list(t.values())), strict=True):
        torch.testing.assert_close(ours, auto, rtol=1e-10, atol=1e-12)


def test_all_items_as_negatives_are_the_full_softmax() -> None:
    g = torch.Generator().manual_seed(2)
    table = torch.randn(11, H, generator=g, dtype=torch.float64)
    hidden = torch.randn(M, H, generator=g, dtype=torch.float64)
    targets = torch.tensor([3, 3, 0, 10])
    ids = torch.cat([targets, torch.arange(11)])
    loss = ops.sampled_loss(hidden, table[ids], in_batch=False, ids=ids)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(hidden @ table.T, targets), rtol=1e-12, atol=0)


@pytest.mark.parametrize("loss", LOSSES)
def test_large_scores_stay_finite(loss: str) -> None:
    t = {name: (tensor.detach() * 40).float().requires_grad_() for name, tensor in tensors().items()}
    value = ops.sampled_loss(**t, loss=loss, elu_param=0.5)
    assert torch.isfinite(value)
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(value, list(t.values())))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("in_batch", [True, False])
def test_operator_passes_opcheck_and_compiles(loss: str, in_batch: bool, native_library: None) -> None:
    t = tensors()
    masks = OPTIONS["all"]
    args = (*t.values(), masks["live"], masks["log_q"], masks["ids"], loss, in_batch, 6.0, 0.5, 1.0, 0.0)
    torch.library.opcheck(torch.ops.gru4rec_fast.sampled_loss, args)
    compiled = torch.compile(lambda *a: torch.ops.gru4rec_fast.sampled_loss(*a)[0], fullgraph=True)
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
        ({"bias": torch.zeros(3, dtype=torch.float64)}, r"bias must be \[9\]"),
        ({"log_q": torch.zeros(M + N)}, "log_q is torch.float32"),
        ({"live": torch.ones(M)}, "live must be bool"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_bad_arguments_are_named(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ops.sampled_loss(**(tensors() | change))
