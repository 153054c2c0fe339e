"""Gradients of blocks equal finite differences; tests of the optimizer, dropout, resets and the carried state."""

from functools import partial

import numpy as np
import pytest

from .examples import random_weights
from .losses import LOSSES
from .network import Dropout, run_forward, zero_state
from .philox import bernoulli_keep
from .sessions import Step, session_steps
from .training import Adagrad, Options, Trainer, block_gradients

N_ITEMS, LANES = 7, 3
# In three lanes, some sessions start within the first five steps, and one lane is dead from step 4 on.
SESSIONS = [[0, 1, 2], [3, 4], [5, 1, 1, 6, 0], [2, 6, 3], [4, 0]]


make_weights = partial(random_weights, N_ITEMS)  # further arguments: embedding mode, layer sizes, GRU form


def make_block(weights):
    """Return five steps, four negatives for each step, and a random hidden state."""
    rng = np.random.default_rng(1)
    steps = list(session_steps(SESSIONS, LANES))[:5]
    state = [rng.normal(size=h.shape) for h in zero_state(weights, LANES)]
    return steps, [rng.integers(0, N_ITEMS, size=4) for _ in steps], state


MODES = [(mode, form) for mode in ("constrained", "separate", "none") for form in ("reset_after", "reset_before")]
OPTIONS = [
    *(Options(batch_size=4, loss=loss, elu_param=0.5, bpreg=0.8) for loss in LOSSES),
    Options(batch_size=4, logq=0.6, sample_alpha=0.75, label_smoothing=0.1),
    Options(batch_size=4, mask_accidental_hits=True),
    Options(batch_size=4, loss="bpr-max", in_batch=False),
    Options(batch_size=4, dropout=Dropout(embed=0.3, hidden=0.4, seed=2)),
]


def check_gradients(weights, options):
    """Compare all gradients with central differences. Gradients of rows that the block does not read must be zero."""
    steps, negatives, state = make_block(weights)
    assert any(step.reset.any() for step in steps[1:]) and not steps[-1].live.all()
    arguments = {"support": np.arange(2, 2 + N_ITEMS), "first_step": 9}
    _, grads, touched, _ = block_gradients(weights, steps, negatives, state, options, **arguments)
    for name, grad in grads.items():
        for index in np.ndindex(grad.shape):
            losses = []
            for shift in (1e-5, -1e-5):
                shifted = {**weights, name: weights[name].copy()}
                shifted[name][index] += shift
                losses.append(block_gradients(shifted, steps, negatives, state, options, **arguments)[0])
            assert grad[index] == pytest.approx((losses[0] - losses[1]) / 2e-5, abs=2e-9), (name, index)
    for name, rows in touched.items():
        assert not np.delete(grads[name], rows, axis=0).any()


@pytest.mark.parametrize(("mode", "form"), MODES)
def test_block_gradients_of_every_network(mode, form):
    check_gradients(make_weights(mode, (3, 2), form), OPTIONS[0])


@pytest.mark.parametrize("options", OPTIONS)
def test_block_gradients_of_every_loss(options):
    check_gradients(make_weights(sizes=(2, 3)), options)


def test_no_gradient_flows_through_a_reset():
    """The gradients of a lane that starts a session at step 1 do not depend on its earlier steps and state."""
    weights = make_weights()
    steps = [
        Step(np.array([1]), np.array([2]), np.array([False])),
        Step(np.array([3]), np.array([4]), np.array([True])),
    ]
    negatives = [np.array([5]), np.array([6])]
    state = [np.ones_like(h) for h in zero_state(weights, 1)]
    options = Options(batch_size=1)
    grads = block_gradients(weights, steps, negatives, state, options)[1]
    grads_0 = block_gradients(weights, steps[:1], negatives[:1], state, options)[1]
    grads_1 = block_gradients(weights, steps[1:], negatives[1:], [5 * h for h in state], options)[1]
    for name in weights:
        np.testing.assert_allclose(grads[name], (grads_0[name] + grads_1[name]) / 2, rtol=0, atol=1e-15)


def test_detached_block_equals_the_mean_of_single_steps():
    weights = make_weights("separate")
    steps, negatives, state = make_block(weights)
    loss, grads, _, block = block_gradients(weights, steps, negatives, state, Options(detach_steps=True))
    grads_through_time = block_gradients(weights, steps, negatives, state, Options())[1]
    old_states = [state, *block.states[:-1]]
    single_steps = [
        block_gradients(weights, [step], [step_negatives], old_state, Options())
        for step, step_negatives, old_state in zip(steps, negatives, old_states, strict=True)
    ]
    assert loss == pytest.approx(np.mean([step_loss for step_loss, *_ in single_steps]), rel=1e-14)
    for name in weights:
        mean_grad = np.mean([step_grads[name] for _, step_grads, *_ in single_steps], axis=0)
        np.testing.assert_allclose(grads[name], mean_grad, atol=1e-15)
    assert not np.allclose(grads["layers.0.weight_hh"], grads_through_time["layers.0.weight_hh"])


def test_carried_state_is_the_output_after_dropout():
    weights = make_weights("separate", (4, 3))
    step = Step(np.array([1, 2]), np.array([3, 4]), np.array([True, True]))
    steps = [step, step._replace(reset=np.array([False, False]))]
    dropout = Dropout(embed=0.5, hidden=0.25, seed=4)
    block = run_forward(weights, steps, zero_state(weights, 2), dropout, first_step=6)
    undropped = run_forward(weights, steps, zero_state(weights, 2), dropout._replace(hidden=0.0), first_step=6)
    for t in range(2):
        embedded = weights["embedding.weight"][[1, 2]]
        keep = bernoulli_keep(0.5, seed=4, stream=1, step=6 + t, lanes=2, units=5)
        np.testing.assert_array_equal(block.caches[t][0]["x"], embedded * keep / 0.5)
        for layer, units in enumerate((4, 3)):
            keep = bernoulli_keep(0.25, seed=4, stream=2 + layer, step=6 + t, lanes=2, units=units)
            assert 0 < keep.sum() < keep.size
            np.testing.assert_array_equal(block.caches[t][layer]["mask"], keep / 0.75)
            assert np.array_equal(block.states[t][layer] == 0, ~keep)
    mask = block.caches[0][0]["mask"]
    np.testing.assert_array_equal(block.states[0][0], undropped.states[0][0] * mask)
    np.testing.assert_array_equal(block.caches[0][1]["x"], block.states[0][0])  # input of the next layer
    np.testing.assert_array_equal(block.caches[1][0]["h"], block.states[0][0])  # state of the next step


def test_step_without_live_lanes_is_an_error():
    weights = make_weights()
    dead = Step(np.array([-1]), np.array([-1]), np.array([False]))
    with pytest.raises(ValueError, match="without live lanes"):
        block_gradients(weights, [dead], [np.array([1])], zero_state(weights, 1), Options())


def test_adagrad_updates_only_the_given_rows():
    """Update rows 0 and 1, update them again with a zero gradient in row 1, then update row 2 with a zero gradient."""
    weight, rows = np.array([[1.0], [2.0], [3.0]]), np.array([0, 1])
    optimizer = Adagrad(lr=0.1, momentum=0.5)
    optimizer.update("table", weight, np.array([[3.0], [4.0], [0.0]]), rows)
    first = np.array([-0.3 / np.sqrt(9 + 1e-6), -0.4 / np.sqrt(16 + 1e-6)])
    np.testing.assert_allclose(weight[:, 0], [1 + first[0], 2 + first[1], 3], rtol=1e-15)
    optimizer.update("table", weight, np.array([[4.0], [0.0], [0.0]]), rows)
    second = first / 2 - np.array([0.4 / np.sqrt(25 + 1e-6), 0.0])
    np.testing.assert_allclose(weight[:, 0], [1 + first[0] + second[0], 2 + first[1] + second[1], 3], rtol=1e-15)
    # Momentum does not change rows that are not in the update.
    optimizer.update("table", weight, np.zeros((3, 1)), np.array([2]))
    np.testing.assert_allclose(weight[:, 0], [1 + first[0] + second[0], 2 + first[1] + second[1], 3], rtol=1e-15)


@pytest.mark.parametrize("mode", ["constrained", "separate", "none"])
def test_only_touched_rows_change(mode):
    trainer = Trainer(make_weights(mode), Options(batch_size=2, momentum=0.9, learning_rate=0.1))
    old_weights = {name: value.copy() for name, value in trainer.weights.items()}
    trainer.train_block([Step(np.array([0, -1]), np.array([1, -1]), np.array([True, False]))], [np.array([3, 3])])
    changed_rows = {
        name: set(np.flatnonzero(np.any((trainer.weights[name] != old_weights[name]).reshape(N_ITEMS, -1), axis=1)))
        for name in old_weights
        if not name.startswith("layers.")
    }
    assert changed_rows["output.bias"] == {1, 3}
    assert changed_rows["output.weight"] == ({0, 1, 3} if mode == "constrained" else {1, 3})
    assert mode == "constrained" or changed_rows["embedding.weight"] == {0}
