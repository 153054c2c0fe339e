"""Go on after an allocation has failed, with the same work in smaller parts; else explain why it failed."""

from __future__ import annotations

import ctypes
import gc
import re
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from gru4rec_fast._untrusted import whole_numbers
from gru4rec_fast.profiling.memory_limits import MemoryLimits
from gru4rec_fast.profiling.memory_profiler import active_profiler
from gru4rec_fast.profiling.memory_report import format_bytes
from gru4rec_fast.profiling.tensor_bytes import storage_bytes

Result = TypeVar("Result")
UPDATE = "the update"  # how warnings of `attempts` name an update of the weights
# Messages of torch's CPU allocator, of std::bad_alloc and of older CUDA calls, whose errors have no class of their own.
_MESSAGES = re.compile(
    r"can't allocate memory|std::bad_alloc|not enough memory|CUDA error: out of memory", re.IGNORECASE
)


class OutOfMemoryWarning(UserWarning):
    """Memory ran out within `oom_guard`, and the work went on in smaller parts."""


class OutOfMemoryGuard:
    """What `oom_guard` yields.

    Attributes:
        n_parts: by the name of a work, such as "the update", in how many parts it was last done.
        n_failures: number of allocations that failed and after which the work went on.
    """

    def __init__(self, n_parts: int = 1) -> None:
        self._first_n_parts = n_parts
        self.n_parts: dict[str, int] = {}
        self.n_failures = 0
        self._announced: set[tuple[str, int]] = set()

    def parts_of(self, work: str, most: int) -> int:
        """Return the number of parts in which to begin a work that has at most `most` parts."""
        return max(1, min(self.n_parts.get(work, self._first_n_parts), most))

    def note_success(self, work: str, n_parts: int, failures: list[str]) -> None:
        """Remember the number of parts; warn if there were failures, once for each number of parts of a work."""
        self.n_parts[work] = n_parts
        self.n_failures += len(failures)
        if failures and (work, n_parts) not in self._announced:
            self._announced.add((work, n_parts))
            how = "after freeing memory" if n_parts == 1 else f"in {n_parts} parts, and stays so: this takes more time"
            warnings.warn(
                f"out of memory in {work} ({failures[0]}); repeated it {how}. The result is the same within rounding.",
                OutOfMemoryWarning,
                stacklevel=4,
            )


@contextmanager
def oom_guard(*, n_parts: int = 1) -> Iterator[OutOfMemoryGuard]:
    """Let trainings, evaluations and recommendations of this thread go on after an allocation has failed.

        with oom_guard():
            model.fit("train.tsv")

    The work whose memory did not suffice is repeated: first after freeing what is free (garbage, torch's cache of GPU
    memory, free memory of malloc), then in two parts, four, and so on. The results are the same within rounding:

        an update of GRU4Rec: the loss is computed for a part of the lanes at a time, with the same negatives, dropout
            masks and in-batch targets; the gradients are added up. The memory of the GRU does not become less. On a
            GPU, the rest of the epoch is trained by autograd.
        an update of NGCF or LightGCN: parts of the triples, whose gradients are added up. The memory of the propagation
            becomes less only with `only_needed`.
        evaluate, recommend: parts of the sessions or users that are processed together.

    An OutOfMemoryWarning says what was done. If the smallest parts do not fit either, the error is raised, with
    the text of `explain_oom` as a note. An error between the first and the last change of an update is never repeated.
    A process that the operating system kills for its memory cannot go on: set a limit (`ulimit -v`), so that
    allocations fail instead.

    Args:
        n_parts: the number of parts to begin with, e.g. if a smaller number is known to fail.

    Raises:
        ValueError, TypeError: n_parts is below 1, or no integer. RuntimeError: there is a guard in this thread already.
    """
    (n_parts,) = whole_numbers(1, n_parts=n_parts)
    if active_guard() is not None:
        raise RuntimeError("an oom_guard is already active in this thread; leave its context first")
    guard = _active.guard = OutOfMemoryGuard(n_parts)
    try:
        yield guard
    except BaseException as error:
        if is_out_of_memory(error):
            try:
                error.add_note(explain_oom(error))
            except MemoryError:
                error.add_note("there is not even the memory for the text of explain_oom")
        raise
    finally:
        _active.guard = None


class Attempt:
    """One attempt of `attempts`: a context, and the number of parts in which to do the work."""

    def __init__(self, n_parts: int, *, is_last: bool) -> None:
        self.n_parts = n_parts
        self.failure: str | None = None
        self.is_done = False
        self._is_last = is_last

    def __enter__(self) -> Attempt:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        self.is_done = error is None
        if error is None or self._is_last or not is_out_of_memory(error):
            return False
        self.failure = _brief(error)
        return True  # the error is dropped, and with it its traceback, which keeps tensors alive


def attempts(work: str, most: int) -> Iterator[Attempt]:
    """Yield attempts to do a work, until one does not run out of memory. Without `oom_guard` there is one attempt.

        for attempt in attempts("the update", most=len(batch)):
            with attempt:
                optimizer.zero_grad()
                for part in batch.chunk(attempt.n_parts):
                    (loss(part) * len(part) / len(batch)).backward()
        optimizer.step()

    Args:
        work: the name of the work in warnings. Later calls with this name begin with the number of parts that sufficed.
        most: the largest number of parts.

    Raises:
        ValueError, TypeError: `most` is below 1, or no integer.
    """
    (most,) = whole_numbers(1, most=most)
    guard = active_guard()
    if guard is None:
        yield Attempt(1, is_last=True)
        return
    n_parts, failures = guard.parts_of(work, most), list[str]()
    while True:
        # The first failure is followed by an attempt with as many parts.
        attempt = Attempt(n_parts, is_last=bool(failures) and n_parts >= most)
        try:
            yield attempt
        finally:  # also if the caller leaves the loop
            if attempt.is_done:
                guard.note_success(work, n_parts, failures)
        if attempt.failure is None:
            return
        failures.append(attempt.failure)
        free_unused_memory()
        if len(failures) > 1:
            n_parts = min(2 * n_parts, most)


def map_parts(work: str, rows: np.ndarray, function: Callable[[np.ndarray], Result]) -> list[Result]:
    """Return the results of a function for all rows: for all at once or, within `oom_guard`, in parts that fit.

    Args:
        work: see `attempts`.
        rows: [n], n at least 1.
        function: is called with a part of the rows; may be called again for the same rows.
    """
    for attempt in attempts(work, most=len(rows)):
        with attempt:
            return [function(part) for part in np.array_split(rows, attempt.n_parts)]
    raise AssertionError("the last attempt raises its error")


_active = threading.local()


def active_guard() -> OutOfMemoryGuard | None:
    """Return the guard whose context this thread is in, or None."""
    return getattr(_active, "guard", None)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that an allocation failed, of Python, NumPy, torch or CUDA."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and _MESSAGES.search(str(error)) is not None


def free_unused_memory() -> None:
    """Free garbage, the GPU memory that torch's allocator keeps, and the free memory that malloc keeps."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:  # glibc
        trim(0)


def _brief(error: BaseException) -> str:
    """Return what an error says about the allocation that failed."""
    asked = _asked_bytes(error)
    return type(error).__name__ if asked is None else f"{format_bytes(asked)} were asked for"


def _asked_bytes(error: BaseException) -> int | None:
    """Return the size of the allocation that failed, from the message of torch or NumPy; None if it does not say."""
    units = {"bytes": 1, "B": 1, **{f"{prefix}iB": 1024 ** (i + 1) for i, prefix in enumerate("KMGTP")}}
    match = re.search(rf"allocate ([0-9.]+) ({'|'.join(units)})\b", str(error))
    return None if match is None else round(float(match[1]) * units[match[2]])


def explain_oom(error: BaseException | None = None, device: torch.device | str | None = None) -> str:
    """Return a text on the memory of a device: what was asked for, what holds memory, the limits, and what may help.

        try:
            train()
        except RuntimeError as error:
            print(explain_oom(error))

    The bytes of parameters, gradients, optimizer state and activations are those of the modules of the MemoryProfiler
    whose context this thread is in.

    Args:
        error: the error of the allocation that failed; None: only the current state is described.
        device: the device whose memory ran out; None: the GPU if `error` is a torch.OutOfMemoryError, else the CPU.
    """
    if device is None:
        device = "cuda" if isinstance(error, torch.OutOfMemoryError) and torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    limits, asked = MemoryLimits.read(device), None if error is None else _asked_bytes(error)
    lines = [f"memory of {device}:"]
    if asked is not None:
        lines.append(f"  asked for: {format_bytes(asked)}")
    lines += [f"  {line}" for line in limits.lines()]
    profiler = active_profiler()
    if profiler is not None:
        held = profiler.report().tensors
        lines.append("  held by the profiled modules: " + ", ".join(f"{k} {format_bytes(n)}" for k, n in held.items()))
    lines += [f"  held by {line}" for line in _largest_tensors(device)]
    lines += [f"  may help: {setting}" for setting in limits.advice(asked)]
    if active_guard() is None:
        lines.append("  may help: with gru4rec_fast.profiling.oom_guard(), the work is repeated in smaller parts")
    return "\n".join(lines)


def _largest_tensors(device: torch.device) -> list[str]:
    """Return a line for each of the five shapes whose tensors, as far as Python code holds them, have most bytes."""
    sizes, counts = Counter[str](), Counter[str]()
    seen = set[int]()
    for x in gc.get_objects():
        # Of other classes, such as those of torch.compile, not all tensors have memory.
        if type(x) not in (Tensor, nn.Parameter) or x.device.type != device.type or x.layout != torch.strided:
            continue
        address, size = x.untyped_storage().data_ptr(), storage_bytes([x])
        if address in seen or not size:
            continue
        seen.add(address)
        name = f"tensors {[*x.shape]} {x.dtype}"
        sizes[name] += size
        counts[name] += 1
    return [f"{counts[name]} {name}: {format_bytes(size)}" for name, size in sizes.most_common(5)]
