"""Where the native library comes from: installed ahead of time, or compiled at first use, its cache and its lock.

Nothing is loaded here. A library counts only if its record (`_build_record.json`, beside it) states the torch, the
Python and the sources that are in use now; anything else is compiled anew or done without.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from gru4rec_fast import _compile
from gru4rec_fast._compile import BuildError, Record

PACKAGE = Path(__file__).parent
CACHE_VARIABLE = "GRU4REC_FAST_CACHE"


@dataclass(frozen=True)
class Library:
    """A native library that fits the running torch: its file, how it was made, and its record."""

    path: Path
    how: str
    record: Record = field(default_factory=dict)


def find_or_compile() -> Library:
    """The library to load, compiled now where none that fits is at hand. BuildError says why there is none."""
    asked = _compile.build_mode()
    mode = asked or str(_compile.read_record(PACKAGE).get("mode", "auto"))
    if mode == "none":
        where = "in the environment" if asked else "when this package was installed"
        raise BuildError(f"{_compile.MODE_VARIABLE}=none {where}")
    csrc = source_folder()
    wanted = _compile.identity(csrc, str(torch.__version__), torch.version.cuda)
    stale = None
    for path in sorted(PACKAGE.glob("_C*.so")):
        record = _compile.read_record(PACKAGE)
        if record.get("identity") == wanted and (mode == "auto" or record.get("cuda") == (mode == "cuda")):
            return Library(path, "ahead of time", record)
        stale = difference(record, wanted)

    def compile_native(folder: Path) -> Record:
        return _compile.build(csrc, folder, mode)

    try:
        return compile_once(wanted, mode, _compile.LIBRARY, compile_native, "the native kernels", why=stale)
    except BuildError as error:
        raise BuildError(f"{stale}, and {error}" if stale else str(error)) from error


def source_folder() -> Path:
    """The C++ sources: inside the installed package, or beside it in a source tree."""
    for folder in (PACKAGE / "csrc", PACKAGE.parent / "csrc"):
        if (folder / "schema.cpp").exists():
            return folder
    raise BuildError("the C++ sources are missing from this installation; reinstall gru4rec_fast")


def difference(record: Record, wanted: dict[str, str]) -> str:
    """In words, why the library installed ahead of time does not fit."""
    built: dict[str, str] = record.get("identity", {})
    if not built:
        return "the installed kernels have no record of the torch they were built for"
    if built.get("torch") != wanted["torch"] or built.get("torch_cuda") != wanted["torch_cuda"]:
        return f"the installed kernels were built for torch {built.get('torch')} and this is torch {wanted['torch']}"
    if built != wanted:
        return "the installed kernels were built from other sources or for another Python"
    return "the installed kernels are of the other kind (CPU or CUDA) than GRU4REC_FAST_BUILD asks for"


def cache_folder() -> Path:
    """GRU4REC_FAST_CACHE, else gru4rec_fast/ in the platform's cache folder. Not created here.

    Raises BuildError where neither that is set nor this user has a home folder.
    """
    try:
        if named := os.environ.get(CACHE_VARIABLE):
            return Path(named).expanduser()
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Caches" / "gru4rec_fast"
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gru4rec_fast"
    except RuntimeError as error:  # a user id without an entry, as containers have, and no HOME
        raise BuildError(f"this user has no home folder to compile kernels into; set {CACHE_VARIABLE}") from error


def compile_once(
    wanted: dict[str, str], mode: str, file: str, build: Callable[[Path], Record], what: str, why: str | None = None
) -> Library:
    """The cached library for this identity, compiled first where the cache has none; one process compiles, others wait.

    `build(folder)` compiles `what` into a folder (`file`, its record and its log) or raises BuildError; `why` is the
    reason, where there is one to tell.

    The finished folder appears by one rename, so that a process killed half way leaves nothing that looks finished, and
    its lock, held by the kernel of the operating system, is gone with it. Raises BuildError.
    """
    key = hashlib.sha256(json.dumps([wanted, mode], sort_keys=True).encode()).hexdigest()[:16]
    finished = cache_folder() / key
    library = finished / file
    if library.exists():
        return Library(library, "at first use", _compile.read_record(finished))
    if reason := _compile.missing_tool():
        raise BuildError(reason)
    try:
        finished.parent.mkdir(parents=True, exist_ok=True)
        with _exclusive(finished.with_suffix(".lock")):
            if not library.exists():
                _compile_into(finished, file, build, f"{f'{why}; ' if why else ''}compiling {what}")
    except OSError as error:
        raise BuildError(
            f"the cache folder {finished.parent} cannot be used ({error}); set {CACHE_VARIABLE}"
        ) from error
    return Library(library, "at first use", _compile.read_record(finished))


def _compile_into(finished: Path, file: str, build: Callable[[Path], Record], what: str) -> None:
    """Compile under the lock; `finished` is there afterwards, or BuildError is raised."""
    log = finished.with_suffix(".log")  # left by a failure that would come again
    if log.exists():
        reason = log.read_text().splitlines()[0]
        raise BuildError(f"{reason} (as recorded in {log}; delete it to try again)")
    partial = Path(tempfile.mkdtemp(prefix=f"{finished.name}.partial-", dir=finished.parent))
    say(f"{what} once, about a minute (into {finished})")
    try:
        record = build(partial)
        ready = partial / "ready"
        ready.mkdir()
        for name in (file, _compile.RECORD, _compile.LOG):
            (partial / name).rename(ready / name)
        ready.rename(finished)
        if torch.version.cuda and record.get("mode") == "auto" and not record["cuda"]:
            say(f"no CUDA kernels: {record['cuda_why_not']}")
    except BuildError as error:
        if not error.lasting:
            raise
        output = (partial / _compile.LOG).read_text(errors="replace")
        log.write_text(f"{error}\n\n{output}")
        raise BuildError(f"{error} (full output: {log})") from error
    finally:
        for left in finished.parent.glob(f"{finished.name}.partial-*"):  # this one, and those of killed processes
            shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Hold a lock on the file `path`; it ends with the block or with the process, however that dies."""
    from filelock import FileLock, Timeout  # here: it would cost every import of the package

    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        say("another process is compiling the native kernels; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def say(line: str) -> None:
    """One line of progress, on standard error."""
    print(f"gru4rec_fast: {line}", file=sys.stderr, flush=True)
