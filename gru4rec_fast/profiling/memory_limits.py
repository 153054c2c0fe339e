"""Read how much memory a process may still have, and which settings would give it more."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from gru4rec_fast.profiling.device_memory import resident_bytes
from gru4rec_fast.profiling.memory_report import format_bytes


@dataclass(frozen=True)
class MemoryLimits:
    """What a device has and allows, in bytes; None: not known, or no limit.

    resident, address_space: of this process. address_limit: RLIMIT_AS (`ulimit -v`). group_limit: of the control group,
    e.g. of a container. available: what the machine or the device could still give. allocated, reserved: in tensors and
    in torch's cache of GPU memory.
    """

    resident: int | None = None
    address_space: int | None = None
    address_limit: int | None = None
    group_limit: int | None = None
    available: int | None = None
    total: int | None = None
    allocated: int | None = None
    reserved: int | None = None

    @classmethod
    def read(cls, device: torch.device) -> MemoryLimits:
        """Read the limits of a device now."""
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info(device)
            allocated, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
            return cls(available=free, total=total, allocated=allocated, reserved=reserved)
        if sys.platform != "linux":
            return cls(resident=resident_bytes())
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        sizes = dict(re.findall(r"^(\w+): +(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE))
        return cls(
            resident=resident_bytes(),
            address_space=int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize(),
            address_limit=None if limit == resource.RLIM_INFINITY else limit,
            group_limit=_group_limit(),
            available=1024 * int(sizes["MemAvailable"]),
            total=1024 * int(sizes["MemTotal"]),
        )

    def lines(self) -> list[str]:
        """Return what is known, one line for each limit."""
        texts = []
        if self.allocated is not None and self.reserved is not None:
            texts.append(
                f"torch: {format_bytes(self.allocated)} in tensors, {format_bytes(self.reserved)} reserved: "
                f"{format_bytes(self.reserved - self.allocated)} are cached or fragmented"
            )
        if self.resident is not None:
            texts.append(f"this process: {format_bytes(self.resident)} resident")
        if self.address_space is not None and self.address_limit is not None:
            limit = format_bytes(self.address_limit)
            texts.append(f"address space: {format_bytes(self.address_space)} of {limit} (RLIMIT_AS, ulimit -v)")
        if self.group_limit is not None:
            texts.append(f"limit of the control group (container): {format_bytes(self.group_limit)}")
        if self.available is not None and self.total is not None:
            texts.append(f"available: {format_bytes(self.available)} of {format_bytes(self.total)}")
        return texts

    def advice(self, asked: int | None) -> list[str]:
        """Return one or two settings that would help most, as text; none if there is no limit to raise."""
        settings = []
        cached = (self.reserved or 0) - (self.allocated or 0)
        if self.reserved is not None and cached >= (asked or 1):
            # The bytes are there, but in pieces.
            settings.append("PYTORCH_ALLOC_CONF=expandable_segments:True lets the cached memory be used for this size")
            size = max(20, (asked or 0) >> 20)  # torch refuses less than 20 MiB
            settings.append(
                f"PYTORCH_ALLOC_CONF=max_split_size_mb:{size}, where expandable segments are not available, keeps "
                "larger blocks whole"
            )
        if self.address_limit is not None:
            settings.append("ulimit -v unlimited, or a larger value, before the process starts")
        if self.group_limit is not None and self.address_limit is None:
            settings.append("a larger memory limit of the container or job")
        return settings[:2]


def _group_limit() -> int | None:
    """Return the memory limit of this process's control group (version 2), or None."""
    try:
        group = Path("/proc/self/cgroup").read_text().rpartition("::")[2].strip()
        text = Path(f"/sys/fs/cgroup/{group}/memory.max").read_text().strip()
    except OSError:
        return None
    return None if text == "max" else int(text)
