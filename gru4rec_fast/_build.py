"""Find the native library, or compile it into a cache at first use.

The library may have been compiled ahead of time, when the package was installed. This module does not load it. The
record of a library (`_build_record.json`, in the same folder) contains its identity: the versions of torch and Python
and a hash of the sources for which it was compiled. A library is ignored if its identity differs from the
identity that the current versions and sources require.
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
from gru4rec_fast._atomic_writes import flush_to_disk
from gru4rec_fast._compile import BuildError, Record

PACKAGE = Path(__file__).parent
CACHE_VARIABLE = "GRU4REC_FAST_CACHE"


@dataclass(frozen=True)
class Library:
    """A native library that fits the running torch.

    path: file of the library.
    built: when it was compiled, "ahead of time" or "at first use".
    record: content of its _build_record.json, see `_compile.build`.
    """

    path: Path
    built: str
    record: Record = field(default_factory=dict)


def find_or_compile() -> Library:
    """Return the library to load; compile it if no existing library can be used. Raises BuildError with the reason."""
    requested = _compile.build_mode()
    mode = requested or str(_compile.read_record(PACKAGE).get("mode", "auto"))
    if mode == "none":
        origin = "in the environment" if requested else "when this package was installed"
        raise BuildError(f"{_compile.MODE_VARIABLE}=none {origin}")
    csrc = source_folder()
    required = _compile.library_identity(csrc, str(torch.__version__), torch.version.cuda)
    mismatch = None
    for path in sorted(PACKAGE.glob("_C*.so")):
        record = _compile.read_record(PACKAGE)
        if record.get("identity") == required and (mode == "auto" or record.get("cuda") == (mode == "cuda")):
            return Library(path, "ahead of time", record)
        mismatch = why_unusable(record, required)

    def compile_native(folder: Path) -> Record:
        return _compile.build(csrc, folder, mode)

    try:
        return compile_once(required, mode, _compile.LIBRARY, compile_native, "the native kernels", why=mismatch)
    except BuildError as error:
        raise BuildError(f"{mismatch}, and {error}" if mismatch else str(error)) from error


def source_folder() -> Path:
    """Return the folder of the C++ sources: in the installed package, or next to it in a source tree."""
    for folder in (PACKAGE / "csrc", PACKAGE.parent / "csrc"):
        if (folder / "schema.cpp").exists():
            return folder
    raise BuildError("the C++ sources are missing from this installation; reinstall gru4rec_fast")


def why_unusable(record: Record, required: dict[str, str]) -> str:
    """Return, as a sentence, why the library that was installed ahead of time cannot be used."""
    built: dict[str, str] = record.get("identity", {})
    if not built:
        return "the installed kernels have no record of the torch they were built for"
    if built.get("torch") != required["torch"] or built.get("torch_cuda") != required["torch_cuda"]:
        return f"the installed kernels were built for torch {built.get('torch')} and this is torch {required['torch']}"
    if built != required:
        return "the installed kernels were built from other sources or for another Python"
    return "the installed kernels are not those (CPU or CUDA) that GRU4REC_FAST_BUILD requires"


def cache_folder() -> Path:
    """Return GRU4REC_FAST_CACHE, else gru4rec_fast/ in the cache folder of the platform; the folder need not exist.

    Raises BuildError if the variable is not set and this user has no home folder.
    """
    try:
        if folder := os.environ.get(CACHE_VARIABLE):
            return Path(folder).expanduser()
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Caches" / "gru4rec_fast"
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gru4rec_fast"
    except RuntimeError as error:  # in containers: no HOME, and a user id without an entry in /etc/passwd
        raise BuildError(f"this user has no home folder to compile kernels into; set {CACHE_VARIABLE}") from error


def compile_once(
    required: dict[str, str], mode: str, file: str, build: Callable[[Path], Record], name: str, why: str | None = None
) -> Library:
    """Return the library of identity `required` from the cache; compile it first if the cache does not have it.

    `build(folder)` writes a library to a folder (`file`, its record and its log) or raises BuildError. The message to
    the user says what is compiled (`name`) and why an installed library is not used (`why`).

    A process that compiles holds a lock, and other processes wait for it. The operating system releases the lock when
    the process ends. The library is compiled in a temporary folder, which is renamed when it is complete and on the
    disk, so a killed process or a crash leaves no incomplete library. A library that was changed or truncated later is
    compiled again: loading it could kill the process. Raises BuildError.
    """
    key = hashlib.sha256(json.dumps([required, mode], sort_keys=True).encode()).hexdigest()[:16]
    final_folder = cache_folder() / key
    library = final_folder / file
    if record := _intact_record(library):
        return Library(library, "at first use", record)
    if library.exists():
        why = f"{library} is damaged, or an earlier version compiled it"
    if reason := _compile.missing_tool():
        raise BuildError(reason)
    try:
        final_folder.parent.mkdir(parents=True, exist_ok=True)
        with _exclusive(final_folder.with_suffix(".lock")):
            if not _intact_record(library):
                _compile_into(final_folder, file, build, f"{f'{why}; ' if why else ''}compiling {name}")
    except OSError as error:
        raise BuildError(
            f"the cache folder {final_folder.parent} cannot be used ({error}); set {CACHE_VARIABLE}"
        ) from error
    return Library(library, "at first use", _compile.read_record(final_folder))


def _intact_record(library: Path) -> Record | None:
    """Return the record of a cached library; None if there is no library, or not the one that the record describes.

    Reads the library to compute its digest, which takes 3 ms for 2 MB.
    """
    record = _compile.read_record(library.parent)
    try:
        return record if _digest(library) == record.get("blake2b") else None
    except OSError:
        return None


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def _seal(folder: Path, file: str, record: Record) -> None:
    """Add the digest of a library to its record, and flush the folder to the disk."""
    _compile.write_record(folder, record | {"blake2b": _digest(folder / file)})
    for path in [*folder.iterdir(), folder]:
        flush_to_disk(path)


def _compile_into(final_folder: Path, file: str, build: Callable[[Path], Record], message: str) -> None:
    """Print `message`, then compile into `final_folder`. The caller must hold the lock. Raises BuildError."""
    log = final_folder.with_suffix(".log")  # exists if an earlier compilation failed and would fail again
    if log.exists():
        reason = log.read_text().splitlines()[0]
        raise BuildError(f"{reason} (as recorded in {log}; delete it to try again)")
    temporary = Path(tempfile.mkdtemp(prefix=f"{final_folder.name}.partial-", dir=final_folder.parent))
    say(f"{message} once, which takes a few minutes (into {final_folder})")
    try:
        record = build(temporary)
        complete = temporary / "ready"
        complete.mkdir()
        for name in (file, _compile.RECORD, _compile.LOG):
            (temporary / name).rename(complete / name)
        _seal(complete, file, record)
        if final_folder.exists():  # with a damaged library
            final_folder.rename(temporary / "damaged")
        complete.rename(final_folder)
        if torch.version.cuda and record.get("mode") == "auto" and not record["cuda"]:
            say(f"no CUDA kernels: {record['cuda_why_not']}")
    except BuildError as error:
        if not error.lasting:  # such as a full disk
            raise
        output = (temporary / _compile.LOG).read_text(errors="replace")
        log.write_text(f"{error}\n\n{output}")
        raise BuildError(f"{error} (full output: {log})") from error
    finally:
        for folder in final_folder.parent.glob(f"{final_folder.name}.partial-*"):  # also those of killed processes
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Hold a lock on the file `path` until the end of the block or of the process; wait until it is free."""
    from filelock import FileLock, Timeout  # not at module level, where it would slow down the import of the package

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
    """Print a line of progress on standard error."""
    print(f"gru4rec_fast: {line}", file=sys.stderr, flush=True)
