"""MemoryRecord and PeakMemory: phases, nested phases, hooks of modules, baselines, and NULL_RECORD."""

import mmap
import subprocess
import sys

import pytest
import torch
from torch import nn

from gru4rec_fast.profiling import NULL_RECORD, MemoryRecord, PeakMemory, memory_meter

MIB = 2**20
BIG = 64 * MIB  # much more than the random changes of the resident size of a process

needs_exact_peaks = pytest.mark.skipif(
    not (memory_meter().reset() and memory_meter().exact), reason="/proc/self/clear_refs cannot be written here"
)


def new_pages(n_bytes: int) -> torch.Tensor:
    """Return a tensor of ones on new pages of memory, which are freed with the tensor.

    torch.ones would allocate by malloc, which may reuse memory of earlier tests, so that the process does not grow.
    """
    return torch.frombuffer(mmap.mmap(-1, n_bytes), dtype=torch.uint8).fill_(1)


@needs_exact_peaks
def test_each_phase_has_its_own_peak():
    record = MemoryRecord("cpu")
    size_at_start, _ = memory_meter().read()
    with record.phase("large"):
        tensor = new_pages(BIG)
        del tensor
    with record.phase("small"):
        small_tensor = new_pages(MIB)
    summary = record.summary()
    assert list(summary) == ["large", "small"]
    # The size at the end of the phase is no baseline: the system may have reclaimed pages of this process by then.
    assert BIG * 0.9 < summary["large"]["peak_bytes"] - size_at_start < BIG * 1.2
    assert summary["small"]["peak_bytes"] < summary["large"]["peak_bytes"] - BIG * 0.8
    assert small_tensor.numel() == MIB  # the tensor exists until here


@needs_exact_peaks
def test_peak_of_an_inner_phase_counts_for_the_outer_phase():
    record = MemoryRecord("cpu")
    with record.phase("outer"):
        with record.phase("inner"):
            tensor = new_pages(BIG)
            del tensor
        with record.phase("second inner"):
            pass
    summary = record.summary()
    assert summary["outer"]["peak_bytes"] >= summary["inner"]["peak_bytes"]
    assert summary["second inner"]["peak_bytes"] < summary["inner"]["peak_bytes"] - BIG * 0.8


def test_exception_ends_the_open_phases():
    record = MemoryRecord("cpu")
    with pytest.raises(KeyError), record.phase("outer"), record.phase("inner"):
        raise KeyError
    with record.phase("next"):
        pass
    assert {name: phase["calls"] for name, phase in record.summary().items()} == {"outer": 1, "inner": 1, "next": 1}


class LargeModule(nn.Module):
    """Uses BIG bytes temporarily in forward, and saves BIG bytes for backward."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * self.scale).exp().sum()


@needs_exact_peaks
def test_hooks_record_forward_and_backward_of_any_module():
    record = MemoryRecord("cpu")
    module = LargeModule()
    record.attach(module, "net")
    x = torch.ones(BIG // 4)
    for _ in range(2):
        module(x).backward()
    summary = record.summary()
    assert summary["net.forward"]["calls"] == summary["net.backward"]["calls"] == 2
    current_bytes, _ = memory_meter().read()
    assert summary["net.forward"]["peak_bytes"] - current_bytes > BIG * 0.8
    assert summary["net.backward"]["peak_bytes"] - summary["net.backward"]["current_bytes"] > BIG * 0.8
    with pytest.raises(ValueError, match="already attached"):
        record.attach(module)
    record.detach()
    module(x).backward()
    assert record.summary() == summary


def test_exception_in_forward_ends_the_phase():
    record = MemoryRecord("cpu")
    module = nn.Linear(2, 2)
    record.attach(module, "net")
    with pytest.raises(RuntimeError):
        module(torch.ones(3))
    module(torch.ones(2))
    assert record.summary()["net.forward"]["calls"] == 2


@needs_exact_peaks
def test_peak_memory_is_not_affected_by_resets_of_a_record():
    earlier = PeakMemory()  # its peak includes the tensor
    tensor = new_pages(BIG)
    del tensor
    record = MemoryRecord("cpu")
    with record.phase("phase"):  # start and end of a phase reset the peak of the process
        pass
    later = PeakMemory()
    assert BIG * 0.9 < earlier.bytes < BIG * 1.3
    assert later.bytes < BIG * 0.3


def test_table_has_a_line_for_each_phase():
    record = MemoryRecord("cpu")
    with record.phase("a long phase name"):
        pass
    header, line = record.table().splitlines()
    assert header.split() == ["phase", "current", "MiB", "peak", "MiB", "calls"]
    assert line.startswith("a long phase name") and line.endswith("1")


def test_null_record_does_nothing():
    with NULL_RECORD.phase("forward"):
        pass
    module = nn.Linear(2, 2)
    NULL_RECORD.attach(module)
    NULL_RECORD.detach()
    assert NULL_RECORD.summary() == {}
    assert not module._forward_hooks


def test_peak_memory_needs_a_baseline_and_does_not_initialize_cuda():
    code = (
        "import torch; from gru4rec_fast import profiling as p\n"
        "try: p.peak_memory_bytes()\n"
        "except RuntimeError as error: print(error)\n"
        "p.set_baseline(); x = torch.ones(8 << 20); print(p.peak_memory_bytes() >> 20)\n"
        "with p.MemoryRecord('cpu').phase('x'): pass\n"
        "assert not torch.cuda.is_initialized()"
    )
    lines = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert "set_baseline()" in lines[0]
    assert 31 <= int(lines[1]) <= 64  # MiB; the tensor has 32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_cuda_phases_equal_the_numbers_of_the_allocator():
    record = MemoryRecord("cuda")
    with record.phase("large"):
        tensor = torch.ones(BIG, dtype=torch.uint8, device="cuda")
        del tensor
    with record.phase("small"):
        small = torch.ones(MIB, dtype=torch.uint8, device="cuda")
    summary = record.summary()
    assert summary["large"]["peak_bytes"] - summary["large"]["current_bytes"] == BIG
    assert summary["small"]["peak_bytes"] - summary["large"]["current_bytes"] == small.numel()
