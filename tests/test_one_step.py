"""Training steps compared with the oracle: whole runs in float64, and single fp32 steps from states of such a run."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from native import why_not_emulated
from oracle import Dropout, Options, Trainer, random_weights, session_steps, zero_state
from package_run import PackageRun
from plain_pytorch import plain_step

from gru4rec_fast import build_info

N_ITEMS, LANES, N_SAMPLE = 50, 6, 24


def make_weights(mode: str, sizes: tuple[int, ...], form: str = "reset_after") -> dict[str, np.ndarray]:
    return random_weights(N_ITEMS, mode, sizes, form, separate_width=9, scale=0.3)


def make_sessions(n: int) -> list[list[int]]:
    rng = np.random.default_rng(1)
    return [rng.zipf(1.6, size=rng.integers(2, 9)).clip(1, N_ITEMS).astype(int).tolist() for _ in range(n)]


def make_support() -> np.ndarray:
    return 1 + np.bincount([item - 1 for session in make_sessions(300) for item in session], minlength=N_ITEMS)


def as_items(sessions: list[list[int]]) -> list[list[int]]:
    return [[item - 1 for item in session] for session in sessions]


XE = Options(batch_size=LANES, learning_rate=0.1, logq=1.0, sample_alpha=0.75)
BPR_MAX = Options(batch_size=LANES, learning_rate=0.05, momentum=0.4, loss="bpr-max", bpreg=1.95, elu_param=0.5)
DROPOUT = Dropout(embed=0.3, hidden=0.2, seed=7)
MOMENTUM_XE = Options(batch_size=LANES, learning_rate=0.1, momentum=0.3)
CASES = {
    "xe-logq-constrained": (XE, "constrained", (12,)),
    "xe-logq-dropout": (Options(**{**XE.__dict__, "dropout": DROPOUT}), "constrained", (12,)),
    "xe-momentum-one-hot": (MOMENTUM_XE, "none", (12,)),
    "xe-momentum-one-hot-two-layers": (MOMENTUM_XE, "none", (11, 7)),
    "bprmax-momentum-constrained": (BPR_MAX, "constrained", (12,)),
    "bprmax-two-unequal-layers": (BPR_MAX, "constrained", (13, 8)),
    "bprmax-separate-dropout": (Options(**{**BPR_MAX.__dict__, "dropout": DROPOUT}), "separate", (13, 8)),
}


def oracle_moments(trainer: Trainer) -> tuple[dict, dict]:
    zeros = {name: np.zeros_like(value) for name, value in trainer.weights.items()}
    return {**zeros, **trainer.optimizer.accumulator}, {**zeros, **trainer.optimizer.velocity}


def steps_of(n_sessions: int, *, all_live: bool) -> list:
    steps = session_steps(as_items(make_sessions(n_sessions)), LANES)
    return [step for step in steps if step.live.all() or not all_live]


def draws(n: int) -> list[np.ndarray]:
    rng = np.random.default_rng(2)
    return [rng.zipf(1.4, size=N_SAMPLE).clip(1, N_ITEMS) - 1 for _ in range(n)]


def distance(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> dict[str, float]:
    return {name: float(np.linalg.norm(a[name].astype(np.float64) - b[name])) for name in b}


@pytest.mark.parametrize("name", CASES)
def test_fp32_is_as_close_to_float64_as_plain_pytorch(name: str, way: str) -> None:
    """From each of 200 float64 states, the loss agrees to 1e-5, and no tensor's error is over twice plain PyTorch's."""
    one_step_at_a_time(name, way, 200)


emulated = pytest.mark.skipif(bool(why_not_emulated("gru")), reason=why_not_emulated("gru") or "-")


@emulated
@pytest.mark.parametrize("name", ["xe-logq-dropout", "xe-momentum-one-hot", "bprmax-two-unequal-layers"])
def test_the_cuda_kernels_are_as_close_under_emulation(name: str) -> None:
    one_step_at_a_time(name, "emulated", 60)


def one_step_at_a_time(name: str, way: str, n_steps: int) -> None:
    options, mode, sizes = CASES[name]
    support = make_support()
    steps = steps_of(400, all_live=True)[:n_steps]
    assert len(steps) == n_steps
    negatives = draws(n_steps)
    oracle = Trainer(make_weights(mode, sizes), options, support=support)
    ours = PackageRun(oracle.weights, options, support=support, dtype=torch.float32, impl=way)
    log_support = np.log(support)
    errors_of: dict[str, list[tuple[float, float]]] = {}
    without_fma = way != "reference" and build_info()["simd"] == "baseline"
    over_all_states = ("accumulator.", "velocity.", *(["output.bias"] if without_fma else []))
    for number, (step, drawn) in enumerate(zip(steps, negatives, strict=True)):
        accumulators, velocities = oracle_moments(oracle)
        ours.set_weights(oracle.weights)
        ours.set_moments(accumulators, velocities)
        ours.set_state(oracle.state)
        plain = [
            {key: torch.from_numpy(value).float() for key, value in part.items()}
            for part in (oracle.weights, accumulators, velocities)
        ]
        log_q = np.concatenate([log_support[step.targets], options.sample_alpha * log_support[drawn]]) * options.logq
        plain_loss, plain_state = plain_step(
            *plain,
            [torch.from_numpy(layer).float() for layer in oracle.state],
            *(torch.from_numpy(part) for part in (*step, drawn)),
            ours.dropout_masks(LANES, number),
            loss=options.loss,
            batch_size=LANES,
            learning_rate=options.learning_rate,
            momentum=options.momentum,
            log_q=torch.from_numpy(log_q).float() if options.logq else None,
            elu_param=options.elu_param,
            bpreg=options.bpreg,
        )
        our_loss = ours.train_block([step], [drawn], number)
        loss, _ = oracle.train_block([step], [drawn])
        assert our_loss == pytest.approx(loss, rel=1e-5)
        assert plain_loss.item() == pytest.approx(loss, rel=1e-4)  # plain PyTorch computes the same loss
        truth = everything(oracle.weights, *oracle_moments(oracle), oracle.state, options)
        yardstick = distance(everything(*plain, plain_state, options), truth)
        errors = distance(ours.weights() | ours.moments() | state_dict(ours.state), truth)
        for key, error in errors.items():
            norm = np.linalg.norm(truth[key]) or 1.0  # no gradient yet: both errors are 0
            if key.startswith(over_all_states):
                errors_of.setdefault(key, []).append((error / norm, yardstick[key] / norm))
            else:
                assert error <= 2 * yardstick[key] + np.finfo(np.float32).eps * norm, (number, key)
    # The error of a moment is that of one step alone. For a bias with a few values the ratio of two such errors is
    # chance, also between two orders of operations in plain PyTorch. So the errors of all states are averaged. The
    # same holds for the output bias if kernels have no fused multiply-add: its first step is lr g / sqrt(g^2 + 1e-6),
    # which magnifies a rounding of g near 1e-3 by 30.
    for key, pairs in errors_of.items():
        error, own_error = np.sqrt(np.mean(np.square(pairs), axis=0))
        assert error <= 2 * own_error, key


def everything(
    weights: dict, accumulators: dict, velocities: dict, state: list, options: Options
) -> dict[str, np.ndarray]:
    """Return every tensor that a step updates, by name."""
    moments = {"accumulator": accumulators} | ({"velocity": velocities} if options.momentum else {})
    named = {f"{kind}.{name}": value for kind, part in moments.items() for name, value in part.items()}
    return {name: np.asarray(value) for name, value in (weights | named).items()} | state_dict(state)


def state_dict(state: list) -> dict[str, np.ndarray]:
    return {f"state.{layer}": np.asarray(h) for layer, h in enumerate(state)}


RUNS = {
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
def test_float64_run_is_the_oracles(name: str, way: str) -> None:
    """Compare all losses and the final weights of a short epoch, to 1e-9; lanes die towards its end."""
    short_epoch(name, way)


@emulated
@pytest.mark.parametrize("name", RUNS)
def test_the_cuda_kernels_make_the_oracles_run_under_emulation(name: str) -> None:
    short_epoch(name, "emulated")


def short_epoch(name: str, way: str) -> None:
    options, mode, sizes, form, length = RUNS[name]
    support = make_support()
    steps = steps_of(40, all_live=False)
    assert not steps[-1].live.all()
    negatives = draws(len(steps))
    oracle = Trainer(make_weights(mode, sizes, form), options, support=support)
    ours = PackageRun(oracle.weights, options, support=support, impl=way)
    indices = iter(range(len(steps)))
    while block := list(islice(indices, length)):
        arguments = [steps[i] for i in block], [negatives[i] for i in block]
        loss = ours.train_block(*arguments, block[0])
        assert loss == pytest.approx(oracle.train_block(*arguments)[0], rel=1e-9)
    for key, value in ours.weights().items():
        np.testing.assert_allclose(value, oracle.weights[key], rtol=1e-9, atol=1e-9, err_msg=key)


def test_dead_lanes_update_nothing(way: str) -> None:
    """Rows and moments of items that only dead lanes could have are unchanged, bit for bit."""
    oracle = Trainer(make_weights("separate", (8,)), MOMENTUM_XE)
    ours = PackageRun(oracle.weights, MOMENTUM_XE, impl=way)
    steps = [step for step in steps_of(40, all_live=False) if not step.live.all()]
    before = ours.weights()
    ours.state = [torch.from_numpy(h) for h in zero_state(oracle.weights, LANES)]
    ours.train_block(steps[:1], draws(1), 0)
    touched = {
        "embedding.weight": steps[0].inputs[steps[0].live],
        "output.weight": np.concatenate([steps[0].targets[steps[0].live], draws(1)[0]]),
    }
    for key, rows in touched.items():
        untouched = np.setdiff1d(np.arange(N_ITEMS), rows)
        assert len(untouched) > 0
        np.testing.assert_array_equal(ours.weights()[key][untouched], before[key][untouched])
