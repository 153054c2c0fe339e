"""Losses equal their formulas, computed score by score; gradients equal finite differences."""

from math import exp, log

import numpy as np
import pytest

from .losses import LOSSES, SampledScores, sampled_loss

PARAMETERS = [
    ("cross-entropy", {}),
    ("cross-entropy", {"label_smoothing": 0.2}),
    ("bpr-max", {"elu_param": 0.0, "bpreg": 1.3}),
    ("bpr-max", {"elu_param": 0.5, "bpreg": 0.7}),
    ("top1", {}),
    ("top1-max", {}),
    ("bpr", {}),
]
VISIBILITIES = [  # columns of the scores that a lane does not see
    "all",  # none
    "no_in_batch",  # other lanes' targets
    "no_accidental_hits",  # those with the target's id
    "dead_lanes",  # dead lanes' targets
]


def sigmoid(x):
    return 1 / (1 + exp(-x))


def loss_by_formula(loss, row, target, label_smoothing=0.0, elu_param=0.0, bpreg=1.0):
    """Compute the loss of one row of visible scores; row[target] is the score of the target."""
    if loss == "bpr-max" and elu_param:
        row = [y if y > 0 else elu_param * (exp(y) - 1) for y in row]
    y_i, n = row[target], len(row)
    others = [y for j, y in enumerate(row) if j != target]
    total = sum(exp(y) for y in others)
    s = [exp(y) / total for y in others]
    if loss == "cross-entropy":
        log_softmax = [y - log(total + exp(y_i)) for y in row]
        mean_of_others = sum(value for j, value in enumerate(log_softmax) if j != target) / (n - 1)
        return -(1 - label_smoothing) * log_softmax[target] - label_smoothing * mean_of_others
    if loss == "bpr-max":
        mean_sigmoid = sum(s_j * sigmoid(y_i - y) for s_j, y in zip(s, others, strict=True))
        return -log(mean_sigmoid + 1e-24) + bpreg * sum(s_j * y * y for s_j, y in zip(s, others, strict=True))
    if loss == "top1":
        return sum(sigmoid(y - y_i) + sigmoid(y * y) for y in row) / n - sigmoid(y_i * y_i) / n
    if loss == "top1-max":
        return sum(s_j * (sigmoid(y - y_i) + sigmoid(y * y)) for s_j, y in zip(s, others, strict=True))
    return sum(-log(sigmoid(y_i - y)) for y in row)


def make_inputs(visibility):
    """Return the arrays and the options of a call of `sampled_loss` with 5 lanes and 6 negatives."""
    rng = np.random.default_rng(5)
    lanes, samples, size = 5, 6, 4
    arguments = {
        "hidden": rng.normal(size=(lanes, size)),
        "rows": rng.normal(size=(lanes + samples, size)),
        "bias": rng.normal(size=lanes + samples),
        "log_q": rng.normal(size=lanes + samples),
    }
    options = {"batch_size": 8}
    if visibility == "no_in_batch":
        options["in_batch"] = False
    if visibility == "no_accidental_hits":
        options["ids"] = np.array([3, 1, 3, 4, 5, 1, 8, 9, 3, 4, 9])
    if visibility == "dead_lanes":
        options["live"] = np.array([True, False, True, True, False])
    return arguments, options


def visible_columns(visibility, options, lane, lanes, columns):
    """Return the indices of the columns that are visible to `lane`, one of `lanes` lanes."""
    live = options.get("live", [True] * lanes)
    in_batch = [] if visibility == "no_in_batch" else [j for j in range(lanes) if live[j]]
    visible = [*in_batch, *range(lanes, columns)]
    if visibility == "no_accidental_hits":
        visible = [j for j in visible if options["ids"][j] != options["ids"][lane]]
    return sorted({*visible, lane})


@pytest.mark.parametrize("visibility", VISIBILITIES)
@pytest.mark.parametrize(("loss", "parameters"), PARAMETERS)
def test_loss_equals_its_formula(loss, parameters, visibility):
    arguments, options = make_inputs(visibility)
    hidden, rows = arguments["hidden"], arguments["rows"]
    total = 0.0
    for lane in np.flatnonzero(options.get("live", np.ones(len(hidden)))):
        columns = visible_columns(visibility, options, lane, len(hidden), len(rows))
        scores = [float(hidden[lane] @ rows[j] + arguments["bias"][j] - arguments["log_q"][j]) for j in columns]
        total += loss_by_formula(loss, scores, columns.index(lane), **parameters)
    value = sampled_loss(**arguments, loss=loss, **options, **parameters)[0]
    assert value == pytest.approx(total / options["batch_size"], rel=1e-13)


@pytest.mark.parametrize("visibility", VISIBILITIES)
@pytest.mark.parametrize(("loss", "parameters"), PARAMETERS)
def test_gradients_equal_finite_differences(loss, parameters, visibility):
    arguments, options = make_inputs(visibility)
    _, *gradients = sampled_loss(**arguments, loss=loss, **options, **parameters)
    for name, gradient in zip(("hidden", "rows", "bias"), gradients, strict=True):
        for index in np.ndindex(gradient.shape):
            losses = []
            for shift in (1e-5, -1e-5):
                shifted = {key: value.copy() for key, value in arguments.items()}
                shifted[name][index] += shift
                losses.append(sampled_loss(**shifted, loss=loss, **options, **parameters)[0])
            assert gradient[index] == pytest.approx((losses[0] - losses[1]) / 2e-5, abs=1e-9), (name, index)


@pytest.mark.parametrize("loss", LOSSES)
def test_dead_lanes_have_the_effect_of_removed_lanes(loss):
    arguments, options = make_inputs("dead_lanes")
    live = options.pop("live")
    live_columns = np.concatenate([live, np.ones(len(arguments["rows"]) - len(live), dtype=bool)])
    masked = sampled_loss(**arguments, loss=loss, live=live, **options)
    live_arguments = {key: value[live if key == "hidden" else live_columns] for key, value in arguments.items()}
    removed = sampled_loss(**live_arguments, loss=loss, **options)
    assert masked[0] == pytest.approx(removed[0], rel=1e-14)
    for grad, expected, mask in zip(masked[1:], removed[1:], (live, live_columns, live_columns), strict=True):
        np.testing.assert_allclose(grad[mask], expected, rtol=0, atol=1e-15)
        assert not grad[~mask].any()


@pytest.mark.parametrize("loss", LOSSES)
def test_large_scores_stay_finite(loss):
    y = SampledScores(np.array([[800.0, -800.0, 700.0], [-800.0, 800.0, 0.0]]), np.array([0, 0]), np.ones((2, 3), bool))
    value, gradient = LOSSES[loss](y, elu_param=0.5)
    assert np.isfinite(value).all() and np.isfinite(gradient).all()
