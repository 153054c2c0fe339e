"""oom_guard gives the same results in smaller parts; explain_oom; real limits of the address space."""

import math
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from markov import markov_store
from memory_growth import needs_plain_allocator, needs_statm
from small_trainer import LANES, make_trainer, weights
from test_captured_step import TrainingSetup
from torch._subclasses.fake_tensor import FakeTensorMode
from without_memory import run_without_memory

from gru4rec_fast import NGCF, GRU4Rec, InteractionGraph, LightGCN, ops
from gru4rec_fast.data import SessionParallelLoader
from gru4rec_fast.nn import GraphNetwork, SampledLoss
from gru4rec_fast.profiling import (
    MemoryProfiler,
    OutOfMemoryWarning,
    attempts,
    explain_oom,
    is_out_of_memory,
    map_parts,
    oom_guard,
)
from gru4rec_fast.profiling.memory_limits import MemoryLimits
from gru4rec_fast.training.graph_capture import CapturedUpdates

TORCH_ERROR = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 1572864 bytes. Error code 12"


def limit_size(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, size: Callable[..., int], most: int) -> None:
    """Let a function fail as if memory ran out where `size` of its arguments is above `most`."""
    function = getattr(owner, name)

    def limited(*arguments: Any, **keywords: Any) -> Any:
        if size(*arguments, **keywords) > most:
            raise RuntimeError(TORCH_ERROR)
        return function(*arguments, **keywords)

    monkeypatch.setattr(owner, name, limited)


@contextmanager
def one_warning(n_parts: int) -> Iterator[None]:
    with pytest.warns(OutOfMemoryWarning) as caught:
        yield
    assert [f"in {n_parts} parts" in str(warning.message) for warning in caught] == [True]


def test_a_work_is_repeated_in_twice_as_many_parts_and_stays_so() -> None:
    tried: list[int] = []

    def work() -> None:
        for attempt in attempts("the test", most=20):
            with attempt:
                tried.append(attempt.n_parts)
                if attempt.n_parts < 4:
                    raise MemoryError
                return

    with (
        oom_guard() as guard,
        pytest.warns(OutOfMemoryWarning, match=r"in the test \(MemoryError\).*4 parts") as caught,
    ):
        work()
        work()
    assert tried == [1, 1, 2, 4, 4]  # once more after freeing memory, then in more parts
    assert len(caught) == 1 and guard.n_parts == {"the test": 4} and guard.n_failures == 3
    tried.clear()
    with oom_guard(n_parts=8):
        work()
    assert tried == [8]


def test_freeing_memory_may_be_enough() -> None:
    errors = [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB")]
    with oom_guard(), pytest.warns(OutOfMemoryWarning, match=r"2.5 GiB were asked for\); repeated it after freeing"):
        for attempt in attempts("the test", most=8):
            with attempt:
                if errors:
                    raise errors.pop()
    assert attempt.n_parts == 1


def test_the_error_is_raised_without_a_guard_and_after_the_smallest_parts() -> None:
    def fail() -> None:
        for attempt in attempts("the test", most=3):
            with attempt:
                raise RuntimeError(TORCH_ERROR)

    with pytest.raises(RuntimeError, match="can't allocate") as caught:
        fail()
    assert not hasattr(caught.value, "__notes__")
    with pytest.raises(RuntimeError, match="can't allocate") as caught, oom_guard():
        fail()
    assert caught.value.__notes__[0].startswith("memory of cpu:\n  asked for: 1.5 MiB")
    with oom_guard(), pytest.raises(ZeroDivisionError):  # any other error at once
        for attempt in attempts("the test", most=3):
            with attempt:
                _ = 1 / 0
    with oom_guard(), pytest.raises(RuntimeError, match="already active in this thread"), oom_guard():
        pass
    with pytest.raises(ValueError, match="n_parts=0: must be at least 1"), oom_guard(n_parts=0):
        pass
    for number in (1.5, math.nan):
        with pytest.raises(TypeError, match=f"n_parts={number}: must be an integer"), oom_guard(n_parts=number):  # type: ignore[arg-type]
            pass
        with pytest.raises(TypeError, match=f"most={number}: must be an integer"):
            next(attempts("the test", most=number))  # type: ignore[arg-type]


def test_a_guard_is_for_its_thread() -> None:
    parts: list[int] = []
    with oom_guard(n_parts=2):
        thread = threading.Thread(target=lambda: parts.extend(len(p) for p in map_parts("x", np.arange(4), list)))
        thread.start()
        thread.join()
        assert map_parts("x", np.arange(4), list) == [[0, 1], [2, 3]]
    assert parts == [4]


@pytest.mark.parametrize(
    ("loss", "options"),
    [
        ("cross-entropy", {"logq": 0.7, "label_smoothing": 0.1}),
        ("bpr-max", {"mask_accidental_hits": True}),
        ("top1", {}),
        ("top1-max", {}),
        ("bpr", {}),
    ],
)
@pytest.mark.parametrize(("in_batch", "n_sample"), [(True, 0), (True, 9), (False, 9)])
def test_the_losses_of_parts_of_the_lanes_add_up(loss: str, options: dict, in_batch: bool, n_sample: int) -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(0, 6, (2, 7), generator=generator)
    targets[1, [0, 3]] = -1
    negatives = torch.randint(0, 6, (2, n_sample), generator=generator) if n_sample else None
    support = torch.arange(1, 7)
    criterion = SampledLoss(
        loss, batch_size=7, support=support, in_batch=in_batch, dtype=torch.float64, **options
    )  # fmt: skip

    def gradients(parts: list[tuple[int, int] | None]) -> list[torch.Tensor]:
        generator.manual_seed(1)
        hidden, weight, bias = (
            torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)
            for shape in ((2, 7, 3), (6, 3), (6,))
        )
        losses = [criterion(hidden, weight, bias, targets, negatives, lanes=part) for part in parts]
        for part in losses:
            part.backward()
        return [torch.stack(losses).sum().detach(), *(x.grad for x in (hidden, weight, bias))]

    whole = gradients([None])
    for parts in ([(0, 7)], [(0, 3), (3, 7)], [(0, 1), (1, 1), (1, 6), (6, 7)]):
        torch.testing.assert_close(gradients(parts), whole, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match=r"lanes=\(3, 8\): must be \(first, end\)"):
        gradients([(3, 8)])


@pytest.mark.parametrize(
    "arguments",
    [{}, {"bptt": 3, "accumulate": 2, "dropout": 0.2, "embedding": "separate", "n_sample": 0, "momentum": 0.1}],
)
def test_updates_by_autograd_in_parts_equal_whole_updates(arguments: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    def train() -> tuple[dict, float]:
        trainer = make_trainer(fused=False, n_epochs=2, dtype=torch.float64, **arguments)
        *_, record = trainer.run()
        return weights(trainer), record["loss"]

    expected, expected_loss = train()
    n_lanes = lambda *_, lanes=None, **__: LANES if lanes is None else lanes[1] - lanes[0]  # noqa: E731
    limit_size(monkeypatch, SampledLoss, "forward", n_lanes, most=3)
    with pytest.raises(RuntimeError, match="can't allocate"):
        train()
    with oom_guard(), one_warning(n_parts=4):
        found, loss = train()
    assert loss == pytest.approx(expected_loss, rel=1e-12)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("fails_at", [0, 5])
def test_a_captured_update_that_runs_out_of_memory_has_not_begun(
    fails_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU, where nothing is captured: the first or the sixth update of a call fails once."""
    expected = TrainingSetup("reference", {})
    blocks = expected.start_epoch(steps_per_graph=1).run(8, expected.network.initial_state(6), step=0)[0]
    setup = TrainingSetup("reference", {})
    epoch, hidden = setup.start_epoch(steps_per_graph=1), setup.network.initial_state(6)
    run, n_calls = CapturedUpdates.run, 0

    def run_or_fail(*arguments: Any) -> None:
        nonlocal n_calls
        n_calls += 1
        if n_calls == fails_at + 1:
            raise torch.OutOfMemoryError(TORCH_ERROR)
        run(*arguments)

    monkeypatch.setattr(CapturedUpdates, "run", run_or_fail)
    with oom_guard():
        if fails_at == 0:
            with pytest.raises(torch.OutOfMemoryError):
                epoch.run(8, hidden, step=0)
        found = epoch.run(8, hidden, step=0)[0]
        if fails_at:
            assert len(found) == fails_at
            found += epoch.run(8 - fails_at, hidden, step=fails_at)[0]
    assert found == blocks
    torch.testing.assert_close(setup.weights(), expected.weights(), rtol=0, atol=0)

    def fail_after_the_update(*arguments: Any) -> None:
        run(*arguments)
        raise torch.OutOfMemoryError(TORCH_ERROR)

    monkeypatch.setattr(CapturedUpdates, "run", fail_after_the_update)
    with pytest.raises(RuntimeError, match="after an update had begun") as caught, oom_guard():
        epoch.run(1, hidden, step=8)
    assert not is_out_of_memory(caught.value)


@pytest.mark.parametrize("step", ["fused", "captured"])
def test_an_error_of_python_after_updates_does_not_repeat_them(
    step: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fused step has made its updates when Python runs out of memory for their results."""
    if step == "fused":
        request.getfixturevalue("native_library")
        runner = make_trainer(n_epochs=1).runner
        epoch, hidden = runner.start_fused_epoch(), runner.network.initial_state(runner.loader.n_lanes)
    else:
        setup = TrainingSetup("reference", {})
        epoch, hidden = setup.start_epoch(steps_per_graph=1), setup.network.initial_state(6)

    def fail(*arguments: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(SessionParallelLoader, "set_position", fail)
    with oom_guard(), pytest.raises(RuntimeError, match="resume from a checkpoint") as caught:
        epoch.run(2, hidden, step=0)
    assert not is_out_of_memory(caught.value)


@needs_statm
@needs_plain_allocator
@pytest.mark.parametrize("training", ["fit_fused", "fit_reference"])
def test_a_fit_goes_on_in_a_process_with_little_memory(training: str, request: pytest.FixtureRequest) -> None:
    """In a real limit of the address space (RLIMIT_AS), the weights equal those of a fit with enough memory."""
    if training == "fit_fused":
        request.getfixturevalue("native_library")
    n_parts = int(run_without_memory(training).removeprefix("trained in parts: "))
    assert n_parts >= 2


@pytest.fixture
def graphs() -> tuple[InteractionGraph, InteractionGraph]:
    generator = np.random.default_rng(0)
    users, items = generator.integers(40, size=300), generator.integers(30, size=300)
    train = InteractionGraph.from_arrays(users, items, n_users=40, n_items=30)
    more = generator.integers(40, size=80), generator.integers(30, size=80)
    return train, InteractionGraph.from_arrays(*more, n_users=40, n_items=30)


@pytest.mark.parametrize("estimator", [NGCF, LightGCN])
@pytest.mark.parametrize("only_needed", [True, False])
def test_graph_models_in_parts_equal_whole_ones(
    estimator: Any, only_needed: bool, graphs: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = graphs
    model = estimator(
        embedding_dim=4, batch_size=50, n_epochs=2, node_dropout=0.2, only_needed=only_needed, seed=0, dtype="float64"
    )
    expected = model.fit(train, progress=False).embeddings()
    metrics = model.evaluate(test).metrics
    found = type(model)(**model.get_params())
    limit_size(monkeypatch, GraphNetwork, "loss", lambda self, users, *_, **__: len(users), most=20)
    with oom_guard(), one_warning(n_parts=4):
        found.fit(train, progress=False)
    torch.testing.assert_close(found.embeddings(), expected, rtol=1e-10, atol=1e-12)
    limit_size(monkeypatch, ops, "top_k", lambda queries, *_, **__: len(queries), most=15)
    users = [*range(40)]
    with pytest.warns(OutOfMemoryWarning, match="in the (evaluation|recommendations)") as caught, oom_guard():
        assert found.evaluate(test).metrics == pytest.approx(metrics)
        recommended = found.recommend(users)
    assert len(caught) == 2
    monkeypatch.undo()
    assert np.array_equal(recommended.items, model.recommend(users).items)


def test_evaluate_and_recommend_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    store = markov_store(n_sessions=50)
    model = GRU4Rec(layers=[8], n_epochs=1, batch_size=8, n_sample=8, seed=0).fit(store, progress=False)
    metrics, best = model.evaluate(store).metrics, model.recommend(store, k=5)
    limit_size(monkeypatch, ops, "target_rank", lambda queries, *_, **__: len(queries), most=20)
    limit_size(monkeypatch, ops, "top_k", lambda queries, *_, **__: len(queries), most=6)
    with pytest.warns(OutOfMemoryWarning) as caught, oom_guard() as guard:
        assert model.evaluate(store).metrics == pytest.approx(metrics, rel=1e-12)
        assert np.array_equal(model.recommend(store, k=5).items, best.items)
    assert len(caught) == 2 and guard.n_parts["the recommendations"] > 1


def test_an_explanation_names_what_holds_memory_and_the_limits() -> None:
    table = torch.nn.Embedding(12345, 67)
    with FakeTensorMode():
        without_memory = torch.empty(10**12)  # as torch.compile makes them
    with MemoryProfiler() as profiler:
        profiler.track(table)
        text = explain_oom(RuntimeError(TORCH_ERROR))
    assert "asked for: 1.5 MiB" in text and "tensors [12345, 67] torch.float32: 3.2 MiB" in text
    assert f"held by the profiled modules: parameters {12345 * 67 * 4 / 2**20:.1f} MiB" in text
    assert re.search(r"this process: [\d.]+ [MG]iB resident", text) and "oom_guard()" in text
    with oom_guard():
        assert "oom_guard" not in explain_oom() and "asked for" not in explain_oom()
    assert f"{without_memory.numel()}" not in text


def test_the_settings_that_help_depend_on_what_ran_out() -> None:
    mib = 2**20
    fragmented = MemoryLimits(allocated=100 * mib, reserved=900 * mib, available=50 * mib, total=1000 * mib)
    first, second = fragmented.advice(asked=300 * mib)
    assert "expandable_segments:True" in first and "max_split_size_mb:300" in second
    assert "800.0 MiB are cached or fragmented" in fragmented.lines()[0]
    assert MemoryLimits(allocated=800 * mib, reserved=900 * mib, available=0, total=1000 * mib).advice(300 * mib) == []
    (limited,) = MemoryLimits(address_space=900, address_limit=1000).advice(300)
    assert limited.startswith("ulimit -v")
    assert "container" in MemoryLimits(group_limit=1000).advice(300)[0]


@pytest.mark.parametrize(
    ("allocate", "expected"),
    [
        (lambda: torch.empty(10**15), True),
        (lambda: np.empty(10**16), True),
        (lambda: bytearray(10**16), True),
        (lambda: torch.empty(-1), False),
    ],
)
def test_errors_of_allocations_are_recognized(allocate: Callable[[], object], expected: bool) -> None:
    with warnings.catch_warnings(), pytest.raises((RuntimeError, MemoryError)) as caught:
        allocate()
    assert is_out_of_memory(caught.value) == expected
