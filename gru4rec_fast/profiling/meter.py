"""How much memory is in use and what the peak was: the meter behind every memory hook.

On the CPU the figure is the resident size of the process (Linux: `VmRSS` and `VmHWM` of /proc/self/status; the kernel's
high-water mark is set back through /proc/self/clear_refs, so that every span of time has a peak of its own). Where that
file cannot be written the peak comes from `resource.getrusage`: it covers the process since its start and never falls,
so a peak is then an upper bound; `MemoryMeter.exact` says which it is. On CUDA the figures are those of PyTorch's
caching allocator: bytes in tensors, not bytes the driver has reserved.

Nothing here acts at import, and nothing touches CUDA unless a CUDA device is named.
"""

from __future__ import annotations

import sys
import weakref

import torch


def _status_bytes(*fields: str) -> list[int]:
    """The named fields of /proc/self/status, in bytes."""
    found = {}
    with open("/proc/self/status") as status:
        for line in status:
            name, _, value = line.partition(":")
            if name in fields:
                found[name] = int(value.split()[0]) * 1024
    return [found[name] for name in fields]


def _host_read() -> tuple[int, int]:
    try:
        current, peak = _status_bytes("VmRSS", "VmHWM")
        return current, max(current, peak)
    except (OSError, KeyError, ValueError):
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return peak, peak


def _host_reset() -> bool:
    try:
        with open("/proc/self/clear_refs", "w") as clear:
            clear.write("5")
    except OSError:
        return False
    return True


class MemoryMeter:
    """Current and peak bytes of one device; the one place that reads and sets back the high-water mark.

    A process has one high-water mark per device and several readers may want it (`PeakMemory`, `MemoryRecord`), so
    every reset first tells all of them what it is about to wipe out.
    """

    def __init__(self, device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        self.exact = True
        self._listeners: weakref.WeakSet[PeakMemory] = weakref.WeakSet()

    def read(self) -> tuple[int, int]:
        """Return (current, peak since the last `reset`) in bytes."""
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device), torch.cuda.max_memory_allocated(self.device)
        return _host_read()

    def reset(self) -> tuple[int, int]:
        """Set the peak back to the current size; return what `read` gave just before."""
        current, peak = self.read()
        for listener in self._listeners:
            listener.note(peak)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self.exact = _host_reset()
        return current, peak

    def listen(self, listener: PeakMemory) -> None:
        """Tell `listener` of every peak that a later `reset` wipes out."""
        self._listeners.add(listener)


_meters: dict[torch.device, MemoryMeter] = {}


def memory_meter(device: torch.device | str = "cpu") -> MemoryMeter:
    """The meter of a device; the same object for everybody, so that readers do not spoil each other's peaks."""
    device = torch.device(device)
    if device.type != "cuda":
        device = torch.device("cpu")
    elif device == torch.device("cuda"):  # without an index: the current one
        device = torch.device("cuda", torch.cuda.current_device())
    return _meters.setdefault(device, MemoryMeter(device))


class PeakMemory:
    """Peak bytes above a baseline: the size when this object was made (take it after the imports).

    Several may live at once, and beside a `MemoryRecord`; each sees the whole time since it was made.
    """

    def __init__(self, device: torch.device | str = "cpu"):
        self._meter = memory_meter(device)
        self._seen = 0
        self.baseline = self._meter.reset()[0]
        self._meter.listen(self)

    def note(self, peak: int) -> None:
        """Take in a peak that is about to be set back."""
        self._seen = max(self._seen, peak)

    @property
    def bytes(self) -> int:
        """Peak above the baseline since this object was made, never negative."""
        return max(0, self._seen - self.baseline, self._meter.read()[1] - self.baseline)


_baseline: PeakMemory | None = None


def set_baseline() -> None:
    """Take the host memory baseline of this process now; call it once, right after the imports."""
    global _baseline
    _baseline = PeakMemory()


def peak_memory_bytes() -> int:
    """Peak resident bytes above the baseline that `set_baseline` took.

    Raises:
        RuntimeError: no baseline was taken.
    """
    if _baseline is None:
        raise RuntimeError("no memory baseline: call gru4rec_fast.profiling.set_baseline() right after the imports")
    return _baseline.bytes


def process_baseline() -> PeakMemory | None:
    """What `set_baseline` took, or None."""
    return _baseline
