"""MemoryProfiler: byte-exact phases, modules, the fused step, reports; PeakMemory."""

import contextlib
import copy
import csv
import gc
import io
import json
import mmap
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_cli import write_logs
from small_trainer import make_trainer
from torch import nn
from torch.profiler import ProfilerActivity, profile

from gru4rec_fast import _backend
from gru4rec_fast.data import SessionStore
from gru4rec_fast.profiling import LeakDetector, MemoryProfiler, PeakMemory, active_profiler, memory_meter, phase
from gru4rec_fast.profiling.allocation_counters import TensorCounter, allocation_counter
from gru4rec_fast.training import Callback, MemoryCallback

MIB = 2**20
BIG = 64 * MIB  # much more than the random changes of the resident size of a process

needs_native = pytest.mark.skipif(_backend.resolve("auto", "gru", "cpu") != "native", reason="no native kernels")
needs_exact_peaks = pytest.mark.skipif(
    not (memory_meter().reset() and memory_meter().exact), reason="/proc/self/clear_refs cannot be written here"
)


def new_pages(n_bytes: int) -> torch.Tensor:
    """Return a tensor of ones on new pages of memory, which are freed with the tensor.

    torch.ones would allocate by malloc, which may reuse memory of earlier tests, so that the process does not grow.
    """
    return torch.frombuffer(mmap.mmap(-1, n_bytes), dtype=torch.uint8).fill_(1)


def floats(n: int) -> torch.Tensor:
    return torch.empty(n, dtype=torch.float32)


@pytest.fixture(params=["of this build", "of tensors"])
def profiler(request: pytest.FixtureRequest) -> Iterator[MemoryProfiler]:
    """A profiler with the counter of this build, and one with the counter that is used without native kernels."""
    profiler = MemoryProfiler()
    if request.param == "of tensors":
        profiler._counter = TensorCounter()
    gc.disable()  # a collection would free tensors of earlier tests, which the counter of this build would count
    yield profiler
    gc.enable()


def test_phases_have_the_bytes_of_their_tensors(profiler: MemoryProfiler) -> None:
    before = floats(100)
    with profiler:
        with profiler.phase("a"):
            kept = floats(1000)
            del before
        for _ in range(2):
            with profiler.phase("b"):
                temporary = floats(5000)
                del temporary
        outside = floats(7)
    a, b, total = (profiler.report().phase(*path) for path in (["a"], ["b"], []))
    assert (a.calls, a.allocated_bytes, a.allocations, a.peak_bytes) == (1, 4000, 1, 4000)
    assert (b.calls, b.allocated_bytes, b.freed_bytes, b.kept_bytes, b.allocations) == (2, 40000, 40000, 0, 2)
    assert total.allocated_bytes == 4000 + 40000 + 28 and total.allocations == 4
    assert a.freed_bytes == 0  # the tensor that existed before is not counted
    assert b.peak_bytes == total.peak_bytes == 4000 + 20000
    assert (kept.numel(), outside.numel()) == (1000, 7)  # the tensors exist until here


def test_nested_phases_add_up(profiler: MemoryProfiler) -> None:
    kept = []
    with profiler, profiler.phase("outer"):
        kept.append(floats(10))
        with profiler.phase("x"):
            kept.append(floats(20))
            with profiler.phase("y"):
                kept.append(floats(40))
        with profiler.phase("y"):  # another phase than y within x
            kept.append(floats(80))
        kept.append(floats(160))
    report = profiler.report()
    assert {"/".join(phase.path): phase.allocated_bytes // 4 for phase in report.phases} == {
        "": 310, "outer": 310, "outer/x": 60, "outer/x/y": 40, "outer/y": 80,
    }  # fmt: skip
    assert report.phase("outer", "x").peak_bytes == 4 * 70
    with pytest.raises(KeyError, match="there is no phase x; recorded:"):
        report.phase("x")


def test_an_exception_ends_the_open_phases(profiler: MemoryProfiler) -> None:
    with profiler:
        with pytest.raises(KeyError), profiler.phase("outer"), profiler.phase("inner"):
            raise KeyError
        with profiler.phase("next"):
            pass
    assert [p.path for p in profiler.report().phases] == [(), ("outer",), ("outer", "inner"), ("next",)]
    with pytest.raises(ZeroDivisionError), profiler:
        _ = 1 / 0
    assert active_profiler() is None
    with profiler:  # the context can be entered again
        assert active_profiler() is profiler


def test_only_one_profiler_records_in_a_thread_and_only_that_thread_is_counted(profiler: MemoryProfiler) -> None:
    if isinstance(profiler._counter, TensorCounter):
        pytest.skip("a TensorCounter is a TorchDispatchMode, which torch enters for one thread only")
    others: list[object] = []

    def allocate_in_thread() -> None:
        with phase("in another thread"):
            others.append((active_profiler(), floats(1000)))

    with profiler:
        with pytest.raises(RuntimeError, match="a MemoryProfiler records in this thread already"), MemoryProfiler():
            pass
        thread = threading.Thread(target=allocate_in_thread)
        thread.start()
        thread.join()
    assert others[0][0] is None  # type: ignore[index]
    assert [(p.path, p.allocated_bytes) for p in profiler.report().phases] == [((), 0)]


def test_a_snapshot_is_for_gpus(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="record_history=True is for GPUs, not for cpu; use plot"):
        MemoryProfiler(record_history=True)
    with pytest.raises(RuntimeError, match="no snapshot: make MemoryProfiler"):
        MemoryProfiler().save_snapshot(tmp_path / "memory.pickle")


def test_nothing_is_recorded_outside_the_context() -> None:
    profiler = MemoryProfiler()
    with profiler.phase("a"), phase("b"):
        floats(10)
    assert [p.path for p in profiler.report().phases] == [()] and not profiler.report().timeline
    module = nn.Linear(2, 2)
    profiler.attach(module)
    module(torch.ones(1, 2)).sum().backward()
    assert len(profiler.report().phases) == 1


@needs_native
def test_the_counter_and_torch_profiler_exclude_each_other() -> None:
    with MemoryProfiler(), pytest.raises(RuntimeError), profile(activities=[ProfilerActivity.CPU]):
        pass
    with (
        profile(activities=[ProfilerActivity.CPU]),
        pytest.raises(RuntimeError, match="stop it first"),
        MemoryProfiler(),
    ):
        pass
    assert active_profiler() is None
    with MemoryProfiler() as profiler:
        floats(10)
    assert profiler.report().phases[0].allocated_bytes == 40


@needs_native
def test_the_counter_of_tensors_agrees_with_the_allocator() -> None:
    """Both count the same for operators that allocate nothing but their results."""
    counts = []
    for counter in (allocation_counter(torch.device("cpu")), TensorCounter()):
        counter.start()
        x = torch.ones(8, 8, requires_grad=True)
        x.exp().sum().backward()
        del x
        counts.append(counter.read()[:3])
        counter.stop()
    assert counts[0] == counts[1]


class Net(nn.Module):
    """A module of known sizes: the table has 4,000 bytes, the layer 110 floats; 6 rows are a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(100, 10)
        self.layer = nn.Linear(10, 10)
        self.register_buffer("scale", torch.ones(3))

    def forward(self, index: torch.Tensor) -> torch.Tensor:
        return self.layer(self.table(index)).exp()


def test_attach_records_each_module_and_tells_the_kinds_of_tensors_apart(profiler: MemoryProfiler) -> None:
    net = Net()
    optimizer = torch.optim.Adam(net.parameters())
    profiler.attach(net, "net", optimizer=optimizer)
    index = torch.arange(6)
    with profiler:
        for _ in range(2):
            with profiler.phase("forward"):
                loss = net(index).sum()
            with profiler.phase("backward"):
                loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            del loss
    report = profiler.report()
    forward = report.phase("forward", "net.forward")
    table, layer = (report.phase("forward", "net.forward", f"net.{name}.forward") for name in ("table", "layer"))
    assert (table.calls, table.allocated_bytes) == (2, 2 * 240)
    assert (layer.calls, layer.kept_bytes) == (2, 2 * 240)
    assert forward.kept_bytes == 2 * 2 * 240  # gathered rows and output of the network; the layer's output is freed
    # The weight's and the table's gradients are allocated in the backward of the layer and of the table.
    assert report.phase("backward", "net.layer.backward").allocated_bytes >= 2 * 400
    assert report.phase("backward", "net.table.backward").allocated_bytes >= 2 * 4000
    assert report.tensors == {
        "parameters": 4000 + 440,
        "buffers": 12,
        "gradients": 4000 + 440,
        "optimizer_state": 2 * (4000 + 440) + 3 * 4,  # and the counter of steps of each parameter
        "activations": 48 + 240 + 240,  # index, gathered rows (input of the layer), output (for the gradient of exp)
    }
    n_phases = len(report.phases)
    profiler.detach(net)
    profiler.detach()
    assert not net._forward_hooks and not net.layer.weight._post_accumulate_grad_hooks
    with profiler:
        net(index)
    assert len(profiler.report().phases) == n_phases


def test_attach_without_submodules_and_twice() -> None:
    net, profiler = Net(), MemoryProfiler()
    profiler.attach(net, recurse=False)
    with pytest.raises(ValueError, match=r"Net is already attached; call detach\(\) first"):
        profiler.attach(net)
    with profiler:
        with pytest.raises(IndexError):
            net(torch.tensor([100]))
        net(torch.tensor([1])).sum().backward()
    calls = {"/".join(phase.path): phase.calls for phase in profiler.report().phases[1:]}
    assert calls == {"Net.forward": 2, "Net.backward": 1}


class Failing(torch.autograd.Function):
    """The identity, whose backward raises an error."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        raise ZeroDivisionError


def test_phases_after_a_failed_backward_are_not_within_it() -> None:
    net, profiler = Net(), MemoryProfiler()
    profiler.attach(net, "net")
    with profiler:
        with pytest.raises(ZeroDivisionError):
            Failing.apply(net(torch.arange(6)).exp() * Failing.apply(net.layer.weight).sum()).sum().backward()
        with pytest.raises(ZeroDivisionError):
            (net(torch.arange(6)) * Failing.apply(net.layer.weight).sum()).sum().backward()
        with profiler.phase("after"):
            pass
        net(torch.arange(6)).sum().backward()
    assert profiler.report().phase("after").calls == 1
    assert profiler.report().phase("net.forward").calls == 3
    assert all(len(phase.path) == 1 or phase.path[0].endswith("forward") for phase in profiler.report().phases[1:])


def test_detach_within_a_forward_pass_is_an_error_and_after_it_ends_the_recording() -> None:
    net, profiler = Net(), MemoryProfiler()
    profiler.attach(net, "net")
    with profiler:
        handle = net.layer.register_forward_hook(lambda *_: profiler.detach(net))
        with pytest.raises(RuntimeError, match=r"detach\(\) within a forward pass of Net: call it after the pass"):
            net(torch.arange(6))
        handle.remove()
        loss = net(torch.arange(6)).sum()
        profiler.detach(net)
        loss.backward()
    assert not any("backward" in phase.path[-1] for phase in profiler.report().phases[1:])
    assert torch._C._autograd._top_saved_tensors_default_hooks(False) is None


def test_an_interrupted_forward_pass_leaves_no_hooks_of_saved_tensors() -> None:
    net, profiler = Net(), MemoryProfiler()
    profiler.attach(net, "net")

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    handle = net.layer.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt), profiler:
        net(torch.arange(6))
    assert torch._C._autograd._top_saved_tensors_default_hooks(False) is None
    handle.remove()
    with profiler:
        net(torch.arange(6))
    assert profiler.report().tensors["activations"] == 48 + 240 + 240


def test_the_activations_of_modules_that_contain_each_other_count_once() -> None:
    expected = None
    for attachments in (["net"], ["net", "layer"], ["layer", "net"]):
        net, profiler, other = Net(), MemoryProfiler(), MemoryProfiler()
        for name in attachments:
            profiler.attach(net if name == "net" else net.layer, name)
        other.attach(net)  # records nothing, because its context is not entered
        with profiler:
            net(torch.arange(6)).sum().backward()
        tensors = profiler.report().tensors
        assert expected is None or tensors == expected
        expected = tensors
        assert len(other.report().phases) == 1  # the whole time only


@pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_of_an_attached_module_are_not_recorded(copy_of: Callable[[nn.Module], nn.Module]) -> None:
    net, profiler = Net(), MemoryProfiler()
    profiler.attach(net, "net")
    copied = copy_of(net)
    with profiler:
        copied(torch.arange(6)).sum().backward()
    assert len(profiler.report().phases) == 1
    with profiler:
        net(torch.arange(6))
    assert profiler.report().phase("net.forward").calls == 1


def test_the_backward_of_the_last_submodule_is_not_that_of_its_parent() -> None:
    module, profiler = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), MemoryProfiler()
    profiler.attach(module, "net")
    with profiler:
        module(torch.ones(4, 8)).sum().backward()
    paths = [phase.path[-1] for phase in profiler.report().phases[1:] if "backward" in phase.path[-1]]
    assert paths == ["net.1.backward", "net.0.backward"]


def test_a_context_is_left_in_the_thread_that_entered_it() -> None:
    profiler, errors = MemoryProfiler(), []

    def leave() -> None:
        with pytest.raises(RuntimeError, match="leave the context of a MemoryProfiler in the thread that entered it"):
            profiler.__exit__()
        errors.append(True)

    with profiler:
        thread = threading.Thread(target=leave)
        thread.start()
        thread.join()
        assert active_profiler() is profiler
    assert errors and active_profiler() is None


@pytest.mark.parametrize("device", ["mps", "meta"])
def test_other_devices_are_errors(device: str) -> None:
    for measure in (MemoryProfiler, LeakDetector, PeakMemory):
        with pytest.raises(ValueError, match=f"device='{device}': memory is measured on 'cpu' and 'cuda' devices only"):
            measure(device)


def test_a_device_that_does_not_exist_is_an_error() -> None:
    n = torch.cuda.device_count()
    with pytest.raises(RuntimeError, match=f"there is no device cuda:{n}; number of CUDA devices: {n}"):
        MemoryProfiler(f"cuda:{n}")


def test_arguments_of_other_types_are_errors() -> None:
    profiler: Any = MemoryProfiler()
    for method in (profiler.track, profiler.attach):
        with pytest.raises(TypeError, match=r"module must be an nn\.Module, not int"):
            method(1)
        with pytest.raises(TypeError, match=r"optimizer must be a torch\.optim\.Optimizer, not str"):
            method(nn.Linear(1, 1), optimizer="adam")


@needs_native
def test_a_forward_pass_without_backward_frees_what_autograd_saved() -> None:
    """ReLU saves its own output."""
    module, profiler = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1)), MemoryProfiler()
    profiler.attach(module)
    live = []
    with profiler:
        for _ in range(3):
            module(torch.ones(4, 8))
            live.append(profiler.live_bytes())
    assert live[0] == live[1] == live[2]


def test_second_derivatives_are_the_same_with_hooks() -> None:
    results = []
    for attached in (False, True):
        torch.manual_seed(0)
        module, profiler = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1)), MemoryProfiler()
        if attached:
            profiler.attach(module)
        x = torch.ones(2, 3, requires_grad=True)
        (first,) = torch.autograd.grad(module(x).sum(), x, create_graph=True)
        results.append(torch.autograd.grad(first.pow(2).sum(), x)[0])
    assert torch.equal(*results) and results[0].any()


def test_gradients_are_the_same_with_hooks() -> None:
    gradients = []
    for attached in (False, True):
        torch.manual_seed(0)
        net, profiler = Net(), MemoryProfiler()
        if attached:
            profiler.attach(net)
        with profiler:
            net(torch.arange(6)).sum().backward()
        gradients.append([parameter.grad for parameter in net.parameters()])
    for without, with_hooks in zip(*gradients, strict=True):
        assert torch.equal(without, with_hooks)


def test_sparse_gradients_have_the_bytes_of_their_indices_and_values() -> None:
    table, profiler = nn.Embedding(1000, 10, sparse=True), MemoryProfiler()
    profiler.attach(table)
    with profiler:
        table(torch.arange(6)).sum().backward()
    assert profiler.report().tensors["gradients"] == 6 * (8 + 40)


@needs_native
@pytest.mark.parametrize("arguments", [{}, {"bptt": 3, "accumulate": 2, "dropout": 0.2, "embedding": "separate"}])
def test_the_fused_step_reports_its_phases_and_stays_on(arguments: dict) -> None:
    """The phases allocate the workspace once in an epoch."""
    runs = []
    list(make_trainer(n_epochs=2, **arguments).run())  # allocates the scratch memory of this thread
    for n_epochs in (1, 2):
        trainer = make_trainer(n_epochs=n_epochs, **arguments)
        with MemoryProfiler() as profiler:
            (*_, record) = trainer.run()
        assert trainer.runner.why_not_fused is None
        runs.append((profiler.report(), trainer))
    report, trainer = runs[0]
    names = ["batch", "forward", "loss", "backward", "update"]
    assert {phase.path for phase in report.phases[1:]} == {(name,) for name in names}
    blocks = -(-record["mini_batches"] // arguments.get("bptt", 1))
    assert report.phase("forward").calls == report.phase("loss").calls == blocks
    # Native code reads the clock of Python, so the phases lie within the training, in their order.
    times = [sample.seconds for sample in report.timeline]
    assert times == sorted(times)
    assert 0 < sum(report.phase(name).seconds for name in names) < report.phase().seconds
    # The memory of backward and update is scratch memory of the thread.
    assert all(report.phase(name).allocated_bytes > 0 for name in names[:3])
    assert report.tensors["parameters"] == sum(4 * p.numel() for p in trainer.network.parameters())
    assert report.tensors["optimizer_state"] == report.tensors["parameters"]
    # Each epoch creates a new step, with a new workspace. The workspace of the loss depends on the sampled items.
    forward, total = (
        [sum(run.phase(name).allocated_bytes for name in phases) for run, _ in runs] for phases in (["forward"], names)
    )
    assert forward[1] == 2 * forward[0] and total[0] < total[1] < 2.2 * total[0]


@needs_native
def test_torch_profiler_sees_the_same_allocations_of_a_fused_step() -> None:
    def train() -> None:
        trainer = make_trainer(n_epochs=1)
        step = trainer.runner.start_fused_epoch()
        hidden = trainer.network.initial_state(trainer.runner.loader.n_lanes)
        recorder.__enter__()
        while not step.run(10, hidden, step=0)[1]:
            pass
        recorder.__exit__(None, None, None)

    recorder: object = contextlib.nullcontext()
    train()  # allocates the scratch memory of this thread
    gc.collect()  # else a collection within the training may free tensors of earlier tests
    profiler = MemoryProfiler()
    recorder = profiler
    train()
    phases = [p for p in profiler.report().phases if len(p.path) == 1]
    recorder = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    train()
    reported = [event.nbytes() for event in recorder.profiler.kineto_results.events() if event.name() == "[memory]"]
    total = profiler.report().phase()
    assert total.allocated_bytes == sum(n for n in reported if n > 0)
    assert total.freed_bytes == -sum(n for n in reported if n < 0)
    # Outside the phases, the call allocates no memory of tensors.
    assert sum(p.allocated_bytes for p in phases) == total.allocated_bytes


def test_a_profiler_changes_no_bit_of_a_training() -> None:
    weights = []
    for profiled in (False, True):
        trainer = make_trainer(n_epochs=1, dropout=0.3)
        if profiled:
            with MemoryProfiler():
                trainer.run()
        else:
            trainer.run()
        weights.append([parameter.detach() for parameter in trainer.network.parameters()])
    for plain, profiled_weight in zip(*weights, strict=True):
        assert torch.equal(plain, profiled_weight)


def test_copies_between_devices_are_counted() -> None:
    with MemoryProfiler(count_copies=True) as profiler:
        x = torch.ones(10)
        on_meta = x.to("meta")
        on_meta.copy_(x)
        x.to(torch.float64)
        x.clone()
    assert profiler.report().copies == {"cpu to meta": {"copies": 2, "bytes": 80}}
    assert MemoryProfiler().report().copies is None


def recorded() -> MemoryProfiler:
    net, profiler = Net(), MemoryProfiler()
    profiler.attach(net, "net")
    with profiler, profiler.phase("step"):
        net(torch.arange(6)).sum().backward()
    return profiler


def test_report_as_table_json_csv_and_scalars() -> None:
    report = recorded().report()
    lines = report.table().splitlines()
    assert lines[1].split() == ["phase", "calls", "ms/call", "allocated", "freed", "kept", "peak", "allocations"]
    assert lines[3].startswith("step ") and lines[4].startswith("  net.forward ")
    assert any(line.startswith("tensors: parameters 4.3 KiB, buffers 12 B, gradients 4.3 KiB") for line in lines)
    values = json.loads(report.to_json())
    assert values["phases"][1]["path"] == ["step"]
    assert values["phases"][1]["kept_bytes"] == report.phase("step").kept_bytes
    assert values["tensors"] == report.tensors and len(values["timeline"]) == len(report.timeline)
    rows = list(csv.DictReader(io.StringIO(report.to_csv())))
    assert [row["phase"] for row in rows][:3] == ["", "step", "step/net.forward"]
    assert int(rows[1]["allocated_bytes"]) == report.phase("step").allocated_bytes

    class Writer:
        def __init__(self) -> None:
            self.scalars: dict[str, tuple[float, int]] = {}

        def add_scalar(self, name: str, value: float, step: int) -> None:
            self.scalars[name] = value, step

    writer = Writer()
    report.write_scalars(writer, 7)
    assert writer.scalars["memory/step/peak_bytes"] == (report.phase("step").peak_bytes, 7)
    assert writer.scalars["memory/tensors/gradients"] == (4440, 7)
    assert writer.scalars["memory/resident_bytes"][0] > MIB


def test_plot_draws_the_timeline(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    recorded().report().plot(tmp_path / "memory.png")
    assert (tmp_path / "memory.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ValueError, match="there is nothing to draw"):
        MemoryProfiler().report().plot(tmp_path / "empty.png")
    for path in ("", tmp_path / "memory"):
        with pytest.raises(ValueError, match="give a file name with a suffix"):
            recorded().report().plot(path)
    with pytest.raises(ValueError, match="format"):
        recorded().report().plot(tmp_path / "memory.xyz")
    for last in (0, -1):
        with pytest.raises(ValueError, match=f"last={last}: must be at least 1"):
            recorded().report().plot(tmp_path / "memory.png", last=last)
    assert [path.name for path in tmp_path.iterdir()] == ["memory.png"]


def test_the_timeline_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gru4rec_fast.profiling.memory_profiler._TIMELINE_SAMPLES", 100)
    with MemoryProfiler() as profiler:
        for _ in range(200):
            with profiler.phase("a"):
                pass
    report = profiler.report()
    assert (len(report.timeline), report.dropped_samples) == (100, 302)
    assert report.phase("a").calls == 200


def test_the_estimators_report_to_a_profiler() -> None:
    from gru4rec_fast import GRU4Rec

    store = SessionStore.from_arrays(np.arange(400) % 7, np.arange(0, 401, 4))
    with MemoryProfiler() as profiler:
        GRU4Rec(layers=[8], batch_size=4, n_sample=4, n_epochs=1, seed=0).fit(store, validation=store, progress=False)
    assert profiler.report().phase("evaluation").calls == 1


def test_the_callback_profiles_a_training_and_watches_for_leaks() -> None:
    memory = MemoryCallback(detector=LeakDetector(warm_up=0))
    trainer = make_trainer(n_epochs=1, callbacks=[memory], fused=False)
    (record,) = trainer.run()
    report = memory.profiler.report()
    assert report.phase("update").calls == record["mini_batches"]
    assert report.tensors["parameters"] == sum(4 * p.numel() for p in trainer.network.parameters())
    assert memory.detector.report().steps == record["mini_batches"]
    assert active_profiler() is None
    broken = make_trainer(n_epochs=1, callbacks=[MemoryCallback(), StopWithError()])
    with pytest.raises(ZeroDivisionError):
        broken.run()
    assert active_profiler() is None


class StopWithError(Callback):
    def on_step_end(self, trainer: object, record: object) -> None:
        raise ZeroDivisionError


def test_the_samples_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    write_logs(tmp_path)
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).resolve().parents[1] / "docs/memory.md").read_text()
    samples = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert len(samples) == 8 and all(len(sample.splitlines()) <= 20 for sample in samples)
    names: dict[str, object] = {}
    for sample in samples:
        exec(compile(sample, "docs/memory.md", "exec"), names)


@needs_exact_peaks
def test_peak_memory_is_not_affected_by_resets() -> None:
    earlier = PeakMemory()  # its peak includes the tensor
    tensor = new_pages(BIG)
    del tensor
    later = PeakMemory()  # resets the peak of the process
    assert BIG * 0.9 < earlier.bytes < BIG * 1.3
    assert later.bytes < BIG * 0.3


def test_peak_memory_needs_a_baseline_and_does_not_initialize_cuda() -> None:
    code = (
        "import torch; from gru4rec_fast import profiling as p\n"
        "try: p.peak_memory_bytes()\n"
        "except RuntimeError as error: print(error)\n"
        "p.set_baseline(); x = torch.ones(8 << 20); print(p.peak_memory_bytes() >> 20)\n"
        "with p.MemoryProfiler('cpu') as m, m.phase('x'): pass\n"
        "assert not torch.cuda.is_initialized()"
    )
    lines = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert "set_baseline()" in lines[0]
    assert 31 <= int(lines[1]) <= 64  # MiB; the tensor has 32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_cuda_phases_equal_the_numbers_of_the_allocator(tmp_path: Path) -> None:
    with MemoryProfiler("cuda", record_history=True) as profiler:
        with profiler.phase("large"):
            tensor = torch.ones(BIG, dtype=torch.uint8, device="cuda")
            del tensor
        with profiler.phase("small"):
            small = torch.ones(MIB, dtype=torch.uint8, device="cuda")
    large = profiler.report().phase("large")
    assert (large.allocated_bytes, large.freed_bytes, large.peak_bytes) == (BIG, BIG, BIG)
    assert profiler.report().phase("small").kept_bytes == small.numel()
    profiler.save_snapshot(tmp_path / "memory.pickle")
    traces = pickle.loads((tmp_path / "memory.pickle").read_bytes())["device_traces"]
    assert BIG in {event["size"] for device in traces for event in device}
