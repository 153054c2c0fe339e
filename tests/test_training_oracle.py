"""Training compared with tests/oracle, a second implementation in float64 NumPy.

Short epochs in float64 must give equal weights. Single steps in float32, from the states of a run of the oracle, must
be as close to the oracle as plain PyTorch. A lane is one of the sessions in parallel; a dead lane has no session left.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from native import threads, why_not_emulated
from oracle import Dropout, Options, Trainer, random_weights, session_steps, zero_state
from package_run import PackageRun
from plain_pytorch import plain_step

from gru4rec_fast import build_info

N_ITEMS, LANES, N_SAMPLE = 50, 6, 24


def make_weights(mode: str, sizes: tuple[int, ...], form: str = "reset_after") -> dict[str, np.ndarray]:
    """Return random weights of a network with this embedding mode, these layer sizes and this form of the GRU."""
    return random_weights(N_ITEMS, mode, sizes, form, separate_width=9, scale=0.3)


def make_sessions(n: int) -> list[list[int]]:
    """Draw sessions of 2 to 8 items with Zipf popularity."""
    rng = np.random.default_rng(1)
    return [(rng.zipf(1.6, size=rng.integers(2, 9)).clip(1, N_ITEMS) - 1).tolist() for _ in range(n)]


def make_support() -> np.ndarray:
    """Return the number of occurrences of each item plus 1, so that the logarithm is finite."""
    return 1 + np.bincount([item for session in make_sessions(300) for item in session], minlength=N_ITEMS)


CROSS_ENTROPY = Options(batch_size=LANES, learning_rate=0.1, logq=1.0, sample_alpha=0.75)
BPR_MAX = Options(batch_size=LANES, learning_rate=0.05, momentum=0.4, loss="bpr-max", bpreg=1.95, elu_param=0.5)
DROPOUT = Dropout(embed=0.3, hidden=0.2, seed=7)
MOMENTUM = Options(batch_size=LANES, learning_rate=0.1, momentum=0.3)
CASES = {  # options, embedding mode, layer sizes; "xe" is cross-entropy
    "xe-logq-constrained": (CROSS_ENTROPY, "constrained", (12,)),
    "xe-logq-dropout": (Options(**{**CROSS_ENTROPY.__dict__, "dropout": DROPOUT}), "constrained", (12,)),
    "xe-momentum-one-hot": (MOMENTUM, "none", (12,)),
    "xe-momentum-one-hot-two-layers": (MOMENTUM, "none", (11, 7)),
    "bprmax-momentum-constrained": (BPR_MAX, "constrained", (12,)),
    "bprmax-two-unequal-layers": (BPR_MAX, "constrained", (13, 8)),
    "bprmax-separate-dropout": (Options(**{**BPR_MAX.__dict__, "dropout": DROPOUT}), "separate", (13, 8)),
}


def oracle_moments(trainer: Trainer) -> tuple[dict, dict]:
    """Return Adagrad's accumulators and velocities of all weights."""
    zeros = {name: np.zeros_like(value) for name, value in trainer.weights.items()}
    return {**zeros, **trainer.optimizer.accumulator}, {**zeros, **trainer.optimizer.velocity}


def make_steps(n_sessions: int, *, all_live: bool) -> list:
    """Return the steps (mini-batches) of an epoch. With `all_live`, only those in which every lane has a session."""
    steps = session_steps(make_sessions(n_sessions), LANES)
    return [step for step in steps if step.live.all() or not all_live]


def draw_negatives(n_steps: int) -> list[np.ndarray]:
    """Return N_SAMPLE random items for each step."""
    rng = np.random.default_rng(2)
    return [rng.zipf(1.4, size=N_SAMPLE).clip(1, N_ITEMS) - 1 for _ in range(n_steps)]


def distances(arrays: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> dict[str, float]:
    """Return the Euclidean distance between the arrays of each name."""
    return {name: float(np.linalg.norm(arrays[name].astype(np.float64) - expected[name])) for name in expected}


@pytest.mark.parametrize("name", CASES)
def test_float32_is_as_close_to_float64_as_plain_pytorch(name: str, training_impl: str) -> None:
    """Compare 200 steps: losses agree to 1e-5, and errors are at most twice the errors of plain PyTorch."""
    # Plain PyTorch's own rounding errors depend on the number of threads, and so would the bounds.
    with threads(1):
        compare_single_steps(name, training_impl, 200)


needs_emulation = pytest.mark.skipif(bool(why_not_emulated("gru")), reason=why_not_emulated("gru") or "-")


@needs_emulation
@pytest.mark.parametrize("name", ["xe-logq-dropout", "xe-momentum-one-hot", "bprmax-two-unequal-layers"])
def test_emulated_kernels_are_as_close_to_float64_as_plain_pytorch(name: str) -> None:
    compare_single_steps(name, "emulated", 60)


def compare_single_steps(name: str, training_impl: str, n_steps: int) -> None:
    """Compare the loss and all updated tensors of steps that start from the same state of the oracle."""
    options, mode, sizes = CASES[name]
    support = make_support()
    steps = make_steps(400, all_live=True)[:n_steps]
    assert len(steps) == n_steps
    negatives = draw_negatives(n_steps)
    oracle = Trainer(make_weights(mode, sizes), options, support=support)
    package = PackageRun(oracle.weights, options, support=support, dtype=torch.float32, impl=training_impl)
    log_support = np.log(support)
    # A moment's error is the rounding of a single update. A bias has few numbers, so the ratio of its error to plain
    # PyTorch's is noise. So the root mean squares over all steps are compared. The same is done for the output
    # bias if kernels have no fused multiply-add: its first update is lr * g / sqrt(g^2 + 1e-6), which with lr = 0.1
    # magnifies a rounding error of g near 1e-3 by about 30.
    has_fma = training_impl == "reference" or build_info()["simd"] != "baseline"
    averaged = ("accumulator.", "velocity.", *([] if has_fma else ["output.bias"]))
    averaged_errors: dict[str, list[tuple[float, float]]] = {}  # (relative error of the package, of plain PyTorch)
    for step_number, (step, step_negatives) in enumerate(zip(steps, negatives, strict=True)):
        accumulators, velocities = oracle_moments(oracle)
        package.set_weights(oracle.weights)
        package.set_optimizer_state(accumulators, velocities)
        package.set_state(oracle.state)
        plain = [
            {key: torch.from_numpy(value).float() for key, value in arrays.items()}
            for arrays in (oracle.weights, accumulators, velocities)
        ]
        log_frequencies = log_support[step.targets], options.sample_alpha * log_support[step_negatives]
        log_q = np.concatenate(log_frequencies) * options.logq
        plain_loss, plain_state = plain_step(
            *plain,
            [torch.from_numpy(layer).float() for layer in oracle.state],
            *(torch.from_numpy(array) for array in (*step, step_negatives)),
            package.dropout_masks(LANES, step_number),
            loss=options.loss,
            batch_size=LANES,
            learning_rate=options.learning_rate,
            momentum=options.momentum,
            log_q=torch.from_numpy(log_q).float() if options.logq else None,
            elu_param=options.elu_param,
            bpreg=options.bpreg,
        )
        package_loss = package.train_block([step], [step_negatives], step_number)
        loss, _ = oracle.train_block([step], [step_negatives])
        assert package_loss == pytest.approx(loss, rel=1e-5)
        assert plain_loss.item() == pytest.approx(loss, rel=1e-4)  # plain PyTorch computes the same loss
        expected = updated_tensors(oracle.weights, *oracle_moments(oracle), oracle.state, options)
        plain_errors = distances(updated_tensors(*plain, plain_state, options), expected)
        errors = distances(package.weights() | package.optimizer_state() | hidden_by_name(package.state), expected)
        for key, error in errors.items():
            norm = np.linalg.norm(expected[key]) or 1.0  # a norm of 0: no gradient yet, and both errors are 0
            if key.startswith(averaged):
                averaged_errors.setdefault(key, []).append((error / norm, plain_errors[key] / norm))
            else:
                assert error <= 2 * plain_errors[key] + np.finfo(np.float32).eps * norm, (step_number, key)
    for key, pairs in averaged_errors.items():
        error, plain_error = np.sqrt(np.mean(np.square(pairs), axis=0))
        assert error <= 2 * plain_error, key


def updated_tensors(
    weights: dict, accumulators: dict, velocities: dict, state: list, options: Options
) -> dict[str, np.ndarray]:
    """Return all arrays that a step updates, by name: weights, moments of the optimizer, hidden states."""
    moments = {"accumulator": accumulators} | ({"velocity": velocities} if options.momentum else {})
    named = {f"{kind}.{name}": value for kind, arrays in moments.items() for name, value in arrays.items()}
    return {name: np.asarray(value) for name, value in (weights | named).items()} | hidden_by_name(state)


def hidden_by_name(state: list) -> dict[str, np.ndarray]:
    """Return the hidden state of each layer, by the names "state.0", "state.1", ..."""
    return {f"state.{layer}": np.asarray(hidden) for layer, hidden in enumerate(state)}


RUNS = {  # options, embedding mode, layer sizes, GRU form, steps per block
    **{name: (*case, "reset_after", 1) for name, case in CASES.items()},
    "top1": (Options(batch_size=LANES, loss="top1"), "constrained", (9,), "reset_after", 1),
    "top1-max": (Options(batch_size=LANES, loss="top1-max"), "separate", (9,), "reset_after", 1),
    "bpr": (Options(batch_size=LANES, loss="bpr"), "constrained", (9,), "reset_before", 1),
    "smoothing-hits": (
        Options(batch_size=LANES, label_smoothing=0.1, mask_accidental_hits=True),
        "constrained",
        (9,),
        "reset_after",
        1,
    ),
    "bptt": (Options(batch_size=LANES, dropout=DROPOUT, momentum=0.2), "constrained", (10, 8), "reset_after", 5),
    "bptt-reset-before": (Options(batch_size=LANES, loss="bpr-max"), "separate", (10, 8), "reset_before", 4),
    "bptt-one-hot": (Options(batch_size=LANES, dropout=DROPOUT), "none", (10, 8), "reset_after", 3),
}


@pytest.mark.parametrize("name", RUNS)
def test_float64_epoch_equals_the_oracle(name: str, training_impl: str) -> None:
    """Losses and final weights of a short epoch agree to 1e-9. The last steps of the epoch have dead lanes."""
    compare_short_epoch(name, training_impl)


@needs_emulation
@pytest.mark.parametrize("name", RUNS)
def test_float64_epoch_of_emulated_kernels_equals_the_oracle(name: str) -> None:
    compare_short_epoch(name, "emulated")


def compare_short_epoch(name: str, training_impl: str) -> None:
    """Compare the losses of all blocks and the final weights with those of the oracle."""
    options, mode, sizes, form, block_length = RUNS[name]
    support = make_support()
    steps = make_steps(40, all_live=False)
    assert not steps[-1].live.all()
    negatives = draw_negatives(len(steps))
    oracle = Trainer(make_weights(mode, sizes, form), options, support=support)
    package = PackageRun(oracle.weights, options, support=support, impl=training_impl)
    for first in range(0, len(steps), block_length):
        block = steps[first : first + block_length], negatives[first : first + block_length]
        loss = package.train_block(*block, first)
        assert loss == pytest.approx(oracle.train_block(*block)[0], rel=1e-9)
    for key, value in package.weights().items():
        np.testing.assert_allclose(value, oracle.weights[key], rtol=1e-9, atol=1e-9, err_msg=key)


def test_dead_lanes_do_not_update_rows(training_impl: str) -> None:
    """A step with dead lanes updates only the rows of items in live lanes and of negatives."""
    oracle = Trainer(make_weights("separate", (8,)), MOMENTUM)
    package = PackageRun(oracle.weights, MOMENTUM, impl=training_impl)
    step = next(step for step in make_steps(40, all_live=False) if not step.live.all())
    negatives = draw_negatives(1)
    old_weights = package.weights()
    package.state = [torch.from_numpy(hidden) for hidden in zero_state(oracle.weights, LANES)]
    package.train_block([step], negatives, 0)
    touched = {
        "embedding.weight": step.inputs[step.live],
        "output.weight": np.concatenate([step.targets[step.live], negatives[0]]),
    }
    for key, rows in touched.items():
        untouched = np.setdiff1d(np.arange(N_ITEMS), rows)
        assert len(untouched) > 0
        np.testing.assert_array_equal(package.weights()[key][untouched], old_weights[key][untouched])
