"""tests/oracle (GRU4Rec in float64 NumPy) repeats every recorded run of the published GRU4Rec code.

The mini-batches are equal; losses, hidden states and weights agree to 1e-9.
"""

import numpy as np
import pytest
from golden import golden_folder, golden_names, load
from oracle import Options, Trainer, metrics, ranks_of_sessions, session_steps, split

pytestmark = pytest.mark.skipif(golden_folder() is None, reason="shared/golden is missing next to this checkout")

TOLERANCE = 1e-9
NAMES = golden_names() or ["missing"]  # pytest needs at least one value, also if all tests are skipped


def _steps(run):
    """Return the recorded steps of the epoch. A step is one mini-batch of all lanes (sessions in parallel)."""
    n_sample, lanes = run.config["n_sample"], run.config["batch_size"]
    steps = list(session_steps(split(run.items, run.offsets), lanes, min_live=1 if n_sample else 2))
    if run.config.get("logq"):  # this run was recorded only while all lanes had a session (were live)
        steps = [step for step in steps if step.live.all()]
    return steps


def _options(run):
    """Return the recorded hyper-parameters as options of the oracle."""
    names = ("batch_size", "loss", "learning_rate", "momentum", "sample_alpha", "logq", "elu_param", "bpreg")
    return Options(**{name: run.config[name] for name in names if name in run.config})


def test_there_are_nine_recordings():
    assert len(NAMES) == 9


@pytest.mark.parametrize("name", NAMES)
def test_mini_batches_equal_the_recording(name):
    run = load(name)
    steps = _steps(run)
    assert len(steps) == len(run.inputs)
    for step, inputs, targets in zip(steps, run.inputs, run.targets, strict=True):
        dead = [-1] * int((~step.live).sum())
        np.testing.assert_array_equal([*step.inputs[step.live], *dead], inputs)
        np.testing.assert_array_equal([*step.targets[step.live], *dead], targets)
    np.testing.assert_array_equal(np.bincount(run.items), run.support)


@pytest.mark.parametrize("name", NAMES)
def test_losses_states_and_weights_equal_the_recording(name):
    run = load(name)
    trainer = Trainer(run.weights("before"), _options(run), support=run.support)
    losses, squared_norms = [], []
    for step, negatives in zip(_steps(run), run.negatives, strict=True):
        loss, block = trainer.train_block([step], [negatives])
        losses.append(loss)
        squared_norms.append(sum((state[step.live] ** 2).sum() for state in block.states[-1]))
    np.testing.assert_allclose(losses, run.losses, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(squared_norms, run.hidden_sq_norms, rtol=0, atol=TOLERANCE)
    final_weights = run.weights("after")
    assert trainer.weights.keys() == final_weights.keys()
    for key, expected in final_weights.items():
        np.testing.assert_allclose(trainer.weights[key], expected, rtol=0, atol=TOLERANCE, err_msg=key)


@pytest.mark.parametrize("name", NAMES)
def test_metrics_equal_the_recording(name):
    run = load(name)
    ranks = ranks_of_sessions(run.weights("after"), split(run.items, run.evaluated_offsets), "standard")
    evaluation = metrics(ranks, 5)
    assert len(ranks) == run.evaluation["n"]
    for metric in ("recall@5", "mrr@5"):
        assert evaluation[metric] == pytest.approx(run.evaluation[metric], abs=TOLERANCE)
