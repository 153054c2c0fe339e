"""LeakDetector: planted leaks are found and named, clean loops are not accused; GrowthEstimator."""

import gc
import io
import tracemalloc
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from gru4rec_fast import _backend
from gru4rec_fast.profiling import LeakDetector, MemoryLeakError, MemoryLeakWarning, MemoryProfiler
from gru4rec_fast.profiling.growth import GrowthEstimator
from gru4rec_fast.profiling.leak_detector import LeakReport

HAS_KERNELS = _backend.resolve("auto", "gru", "cpu") == "native"
kept: list[object] = []


@pytest.fixture(autouse=True)
def only_new_objects() -> Iterator[None]:
    """Hide the objects of modules and earlier tests from gc: looks at all objects take seconds with them."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def leak_a_tensor() -> None:
    kept.append(torch.zeros(256))


def leak_bytes() -> None:
    kept.append(bytearray(1024))


def leak_nothing() -> None:
    n = int(torch.randint(1000, 5000, ()))  # sizes vary from step to step
    (torch.zeros(n) * 2).sum()
    dict.fromkeys(range(20))


def watch(step: Callable[[], None], n_steps: int, **arguments: object) -> LeakReport:
    """Run n steps; return the report at the end."""
    kept.clear()
    with LeakDetector(**arguments) as detector:  # type: ignore[arg-type]
        for _ in range(n_steps):
            leak_nothing()
            step()
            detector.step()
    return detector.report()


def test_a_leaked_tensor_of_a_kilobyte_is_found_and_named_within_500_steps() -> None:
    with pytest.warns(MemoryLeakWarning, match="the memory grows with every step") as caught:
        report = watch(leak_a_tensor, 500)
    assert len(caught) == 1
    assert report.is_leaking and report.allocator is not None
    assert report.allocator.low <= 1024 <= report.allocator.high
    assert report.allocator.high - report.allocator.low < 100
    assert ("Tensor [256] torch.float32 on cpu", pytest.approx(1, abs=0.1)) in report.tensors
    assert any(name == "torch.Tensor" for name, _ in report.types)
    if not HAS_KERNELS:
        return  # the counter of allocations makes more Python objects than the loop
    sites = {source: (place, count) for place, source, _, count in report.sites}
    place, count = sites["kept.append(torch.zeros(256))"]
    assert place == f"{__file__}:{leak_a_tensor.__code__.co_firstlineno + 1}" and count == pytest.approx(1, abs=0.1)
    assert "kept.append(torch.zeros(256))" in str(caught[0].message)


@pytest.mark.skipif(not HAS_KERNELS, reason="without kernels, a growth of Python objects is not judged")
def test_leaked_bytes_are_found_and_named_within_500_steps() -> None:
    with pytest.raises(MemoryLeakError) as caught:
        watch(leak_bytes, 500, on_leak="raise")
    report = caught.value.report
    assert report.steps < 500 and report.python_bytes == pytest.approx(1024 + 56, rel=0.3)
    assert report.sites[0][:2] == (
        f"{__file__}:{leak_bytes.__code__.co_firstlineno + 1}",
        "kept.append(bytearray(1024))",
    )
    assert report.allocator is not None and not report.allocator.is_steady
    assert "the memory grows with every step" in str(caught.value)


def test_5000_clean_steps_are_not_accused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = watch(leak_nothing, 5000)
    assert not report.is_leaking
    assert report.describe().startswith("the memory does not grow with every step (5000 steps)")
    assert not (report.sites or report.types or report.tensors)


def test_a_cache_that_fills_is_not_accused() -> None:
    def fill_cache() -> None:
        if len(kept) < 300:
            kept.append(torch.zeros(256))

    report = watch(fill_cache, 2000)
    assert not report.is_leaking


def test_too_few_steps_give_no_verdict() -> None:
    report = watch(leak_a_tensor, 150)
    assert report.allocator is None and not report.is_leaking
    assert report.describe() == "150 steps are too few to say whether the memory grows"


def test_the_allocations_of_an_active_profiler_are_used() -> None:
    kept.clear()  # what was allocated under another counter would count when it is freed
    with MemoryProfiler() as profiler, profiler.phase("loop"), pytest.warns(MemoryLeakWarning):
        report = watch(leak_a_tensor, 450)
    assert report.allocator is not None and report.allocator.per_step == pytest.approx(1024, rel=0.05)
    assert profiler.report().phase("loop").peak_bytes >= 450 * 1024


def test_the_context_may_be_left_and_entered_again() -> None:
    kept.clear()
    detector = LeakDetector()
    with pytest.warns(MemoryLeakWarning):
        for _ in range(30):
            with detector:
                for _ in range(20):
                    leak_a_tensor()
                    detector.step()
            if not tracemalloc.is_tracing() and detector.report().is_leaking:
                break
        with detector:  # in one piece, so that a trace can end
            for _ in range(600):
                leak_a_tensor()
                detector.step()


def test_live_line() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal, file = Terminal(), io.StringIO()
    watch(leak_nothing, 3, live=terminal)
    watch(leak_nothing, 3, live=file)
    lines = terminal.getvalue().split("\r")[1:]
    assert len(lines) == 3 and lines[2].startswith("step 3: allocator ") and lines[2].endswith("\n")
    assert file.getvalue().startswith("step 1: allocator ") and file.getvalue().count("\n") == 1


def test_step_needs_the_context() -> None:
    with pytest.raises(RuntimeError, match="needs the context: with LeakDetector"):
        LeakDetector().step()


@pytest.mark.parametrize("arguments", [{"warm_up": -1}, {"min_growth": -1.0}, {"on_leak": "ignore"}])
def test_invalid_arguments_are_errors(arguments: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        LeakDetector(**arguments)
    with pytest.raises(TypeError, match=r"live must be a text file such as sys\.stderr, not bool"):
        LeakDetector(live=True)  # type: ignore[arg-type]


def test_a_loop_that_stops_tracemalloc_goes_on() -> None:
    def leak_and_stop() -> None:
        leak_a_tensor()
        tracemalloc.stop()

    kept.clear()
    report = watch(leak_and_stop, 600)
    assert report.allocator is not None and report.allocator.is_steady


def growth_of(values: np.ndarray, threshold: float = 64.0) -> GrowthEstimator:
    estimator = GrowthEstimator(threshold)
    for step, value in enumerate(values):
        estimator.add(step, value)
    return estimator


def test_growth_of_a_line_with_noise() -> None:
    noise = np.random.default_rng(0).exponential(1e5, 4000)
    growth = growth_of(1000 * np.arange(4000) + noise).estimate()
    assert growth is not None and growth.low < 1000 < growth.high
    assert growth.per_step == pytest.approx(1000, rel=0.02) and growth.is_steady


def test_noise_steps_and_saturation_are_no_growth() -> None:
    noise = np.random.default_rng(1).normal(0, 1e6, 4000)
    jump = np.where(np.arange(4000) < 1000, 0, 1e7)
    saturating = 1e7 * np.minimum(np.arange(4000) / 1500, 1)
    for values in (noise, jump, saturating):
        growth = growth_of(values).estimate()
        assert growth is not None and not growth.is_steady


def test_the_estimator_needs_constant_memory() -> None:
    estimator = growth_of(np.arange(100_000.0))
    assert len(estimator._blocks) < 64
    growth = estimator.estimate()
    assert growth is not None and growth.per_step == pytest.approx(1)


def test_a_detector_cannot_be_entered_twice_and_stays_usable() -> None:
    with LeakDetector() as detector:
        with pytest.raises(RuntimeError, match="this LeakDetector is already entered"), detector:
            pass
        detector.step()
    with LeakDetector() as detector:  # no counter was left behind
        detector.step()


@pytest.mark.parametrize("n", [0, -1, float("nan")])
def test_a_step_counts_at_least_one(n: float) -> None:
    with LeakDetector() as detector, pytest.raises(ValueError, match=f"n={n}: must be at least 1"):
        detector.step(n)  # type: ignore[arg-type]
