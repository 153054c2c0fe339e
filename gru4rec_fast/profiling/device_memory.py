"""Measurement of the current and the peak memory of a device.

On the CPU the memory is the resident size of the process: on Linux `VmRSS` (current) and `VmHWM` (peak) of
/proc/self/status. A write to /proc/self/clear_refs resets the peak to the current size. If that file cannot be written,
`MemoryMeter.exact` is False: the peak is never reset, so it is an upper bound. Without /proc, `resource.getrusage`
returns the peak since the start of the process. On CUDA the memory is the bytes that PyTorch's caching allocator has
given to tensors, without the bytes that the allocator only holds in reserve.

Importing this module measures nothing, and CUDA is not initialized unless a CUDA device is given.
"""

from __future__ import annotations

import mmap
import sys
import weakref

import torch


def _status_bytes(*fields: str) -> list[int]:
    """Return the values of these fields of /proc/self/status, in bytes."""
    values = {}
    with open("/proc/self/status") as status:
        for line in status:
            name, _, value = line.partition(":")
            if name in fields:
                values[name] = int(value.split()[0]) * 1024
    return [values[name] for name in fields]


def _host_read() -> tuple[int, int]:
    """Return (current, peak) resident bytes of this process."""
    try:
        current, peak = _status_bytes("VmRSS", "VmHWM")
        return current, max(current, peak)
    except (OSError, KeyError, ValueError):
        import resource

        unit = 1 if sys.platform == "darwin" else 1024  # macOS reports bytes, Linux KiB
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return peak, peak


def resident_bytes() -> int:
    """Return the resident bytes of this process."""
    try:
        with open("/proc/self/statm", "rb") as sizes:  # read in a fifth of the time of `status`, but has no peak
            return int(sizes.read().split()[1]) * mmap.PAGESIZE
    except (OSError, IndexError, ValueError):
        return _host_read()[0]


def _host_reset() -> bool:
    """Reset the peak of this process; return whether this was possible."""
    try:
        with open("/proc/self/clear_refs", "w") as clear:
            clear.write("5")  # "5" resets VmHWM
    except OSError:
        return False
    return True


class MemoryMeter:
    """Reads the current and the peak memory of one device, and resets the peak.

    A device has only one peak, and a reset loses it. So `reset` first passes the peak to all `PeakMemory` objects of
    the device.

    Attributes:
        exact: False if the last reset failed, so that the peak may be older than the last call of `reset`.
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
        """Reset the peak to the current size; return what `read` returned before the reset."""
        current, peak = self.read()
        for listener in self._listeners:
            listener.note(peak)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self.exact = _host_reset()
        return current, peak

    def listen(self, listener: PeakMemory) -> None:
        """Call `listener.note(peak)` before each reset."""
        self._listeners.add(listener)


_meters: dict[torch.device, MemoryMeter] = {}


def memory_meter(device: torch.device | str = "cpu") -> MemoryMeter:
    """Return the only meter of a device. All users of the device share the meter, so that a reset loses no peak.

    Raises:
        ValueError: the device is neither the CPU nor a CUDA device. RuntimeError: there is no such CUDA device.
    """
    device = torch.device(device)
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device={str(device)!r}: memory is measured on 'cpu' and 'cuda' devices only")
    if device.type == "cpu":
        device = torch.device("cpu")  # without an index
    elif (device.index or 0) >= torch.cuda.device_count():
        raise RuntimeError(f"there is no device {device}; number of CUDA devices: {torch.cuda.device_count()}")
    elif device == torch.device("cuda"):  # without an index
        device = torch.device("cuda", torch.cuda.current_device())
    return _meters.setdefault(device, MemoryMeter(device))


class PeakMemory:
    """Peak bytes above a baseline, which is the memory in use when the object is created.

    Create the object after the imports, so that it does not count them. Several `PeakMemory` objects can be
    used at the same time.
    """

    def __init__(self, device: torch.device | str = "cpu"):
        self._meter = memory_meter(device)
        self._peak = 0
        self.baseline = self._meter.reset()[0]
        self._meter.listen(self)

    def note(self, peak: int) -> None:
        """Take into account a peak (bytes) that is about to be reset."""
        self._peak = max(self._peak, peak)

    @property
    def bytes(self) -> int:
        """Peak above the baseline since this object was created, never negative."""
        return max(0, self._peak - self.baseline, self._meter.read()[1] - self.baseline)


_process_peak: PeakMemory | None = None


def set_baseline() -> None:
    """Set the baseline of this process to its current memory; call it once, after the imports."""
    global _process_peak
    _load_optimizers()
    _process_peak = PeakMemory()


def peak_memory_bytes() -> int:
    """Return the peak resident bytes above the baseline that `set_baseline` set.

    Raises:
        RuntimeError: `set_baseline` was not called.
    """
    if _process_peak is None:
        raise RuntimeError("no memory baseline: call gru4rec_fast.profiling.set_baseline() after the imports")
    return _process_peak.bytes


def process_baseline() -> PeakMemory | None:
    """Return the `PeakMemory` that `set_baseline` created, or None."""
    return _process_peak


def peak_of_training() -> PeakMemory:
    """Return what measures the peak of a training that begins now: `process_baseline()`, else a new `PeakMemory`."""
    if _process_peak is not None:
        return _process_peak
    _load_optimizers()
    return PeakMemory()


def _load_optimizers() -> None:
    """Load what torch loads when the first optimizer is made: 800 modules, 70 MiB, which are not part of a training."""
    torch.optim.SGD([torch.zeros(1)])
