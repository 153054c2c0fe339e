"""Runs generated cases of one target in a process of its own, and records what must not happen.

A case is a JSON value that describes an input, such as the content of a file. A case may end with a result or with an
expected error, which is an error type of the target with one short line that names what is wrong. Everything else is a
finding: another exception, a crash, more than 10 seconds or more than 2 GiB.
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import re
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis.strategies import SearchStrategy

import gru4rec_fast

MESSAGE_LENGTH = 500
MEMORY_BYTES = 2 << 30
_PACKAGE, _FUZZERS = Path(gru4rec_fast.__file__).parent, Path(__file__).parent


@dataclass(frozen=True)
class Target:
    """A part of the package that receives generated input.

    Attributes:
        cases: strategy that draws cases.
        run: runs a case in an empty folder. Raises AssertionError for a wrong result.
        subjects: returns words, such as the folder and names of arguments. An error message must name one of them.
        errors: types of expected errors.
        check_messages: whether the message of an expected error must be one short line with one of the subjects.
        timeout_s: time after which a case counts as a hang.
        label: what a crash is named after, such as an operator. After a crash, cases with the same label are skipped.
    """

    cases: SearchStrategy[Any]
    run: Callable[[Any, Path], None]
    subjects: Callable[[Any, Path], list[str]]
    errors: tuple[type[Exception], ...] = (ValueError, TypeError, OSError)
    check_messages: bool = True
    timeout_s: int = 10
    label: Callable[[Any], str] = lambda case: ""


@dataclass(frozen=True)
class Finding:
    """A case with an outcome that must not happen. Two findings of one target with the same name have one cause.

    `detail` is a traceback. `crash_label` is the label of a case that crashed or hung, see `Target`.
    """

    name: str
    detail: str
    case: Any
    crash_label: str | None = None

    def save(self, folder: Path) -> Path:
        """Write the finding to a JSON file, named by its name, and return the path."""
        path = folder / f"{hashlib.blake2b(self.name.encode(), digest_size=6).hexdigest()}.json"
        folder.mkdir(parents=True, exist_ok=True)
        values = {"finding": self.name, "crash_label": self.crash_label, "detail": self.detail, "case": self.case}
        path.write_text(json.dumps(values, indent=1) + "\n")
        return path


def _format_traceback() -> str:
    """Return the end of the traceback of the current exception, without the folders of this machine."""
    text = re.sub(r'File ".*/site-packages/', 'File "', traceback.format_exc())
    return text.replace(f"{_PACKAGE.parent}/", "").replace(f"{_FUZZERS.parents[1]}/", "")[-3000:]


class _WrongOutcome(Exception):
    """Tells hypothesis that a case is a finding, so that it searches for a smaller one."""


class _TimeIsUp(BaseException):
    """Ends a run of hypothesis."""


def run_case(target: Target, case: Any) -> Finding | None:
    """Run a case in this process and return the finding, if it is one."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz"))
    faulthandler.dump_traceback_later(target.timeout_s, exit=True)
    try:
        target.run(case, folder)
    except target.errors as error:
        problem = target.check_messages and _message_problem(str(error), target.subjects(case, folder))
        return Finding(f"{problem}: {_place(error)}", _format_traceback(), case) if problem else None
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # PanicException of polars is no Exception
        return Finding(_place(error), _format_traceback(), case)
    finally:
        faulthandler.cancel_dump_traceback_later()
        shutil.rmtree(folder, ignore_errors=True)
    return None


def _message_problem(message: str, subjects: list[str]) -> str:
    """Return what is wrong with the message of an expected error, or ""."""
    if not message or "\n" in message:
        return "not one line"
    if len(message) >= MESSAGE_LENGTH:
        return "long message"
    return "" if any(subject in message for subject in subjects) else "message names nothing"


def _place(error: BaseException) -> str:
    """Return the type of an error and the innermost function of the package that it comes from."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(_PACKAGE)]
    others = [frame for frame in frames if not Path(frame.filename).is_relative_to(_FUZZERS)]
    frame = (own or others or frames)[-1]
    # A wrong result is found by an assertion in the target itself, whose message is constant.
    text = f" ({error})" if isinstance(error, AssertionError) else ""
    return f"{type(error).__name__} in {Path(frame.filename).name}: {frame.name}{text}"


def run_cases(
    target: Target, work: Path, seconds: float, max_cases: int, first_seed: int, skipped: set[str], known: set[str]
) -> None:
    """Replay the cases in `work`/replay, then run generated cases; write findings to `work`/found.

    Args:
        seconds: maximum duration of the generated cases.
        max_cases: maximum number of generated cases.
        skipped: labels of cases that are not generated.
        known: names of findings that are not reported again.
    """
    limit_memory()
    faulthandler.enable()
    current = work / "current.json"

    def outcome(case: Any) -> Finding | None:
        current.write_text(json.dumps({"label": target.label(case), "case": case}))
        return run_case(target, case)

    for path in sorted((work / "replay").iterdir()):
        finding = outcome(json.loads(path.read_text())["case"])
        if finding:
            finding.save(work / "found" / path.stem)
        path.unlink()  # so that the next process does not replay it again if this one crashes
    deadline, n_cases = time.monotonic() + seconds, 0
    while time.monotonic() < deadline and n_cases < max_cases:
        smallest: Finding | None = None

        @seed(first_seed)
        @settings(
            max_examples=1_000_000,
            database=None,
            deadline=None,
            verbosity=Verbosity.quiet,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        @given(target.cases)
        def search(case: Any) -> None:
            nonlocal smallest, n_cases
            if time.monotonic() > deadline or n_cases >= max_cases:
                raise _TimeIsUp
            if target.label(case) in skipped:
                return
            n_cases += 1
            finding = outcome(case)
            if finding and finding.name not in known and finding.name == (smallest or finding).name:
                smallest = finding  # the last one is the smallest that hypothesis finds
                raise _WrongOutcome(finding.name)

        try:
            search()
        except (_TimeIsUp, Exception):  # hypothesis wraps errors that a case raises only sometimes
            if smallest is None and time.monotonic() < deadline and n_cases < max_cases:
                raise
        if smallest is not None:
            known.add(smallest.name)
            smallest.save(work / "found")
        first_seed += 1
    (work / "cases").write_text(str(n_cases))


def limit_memory() -> None:
    """Limit this process to `MEMORY_BYTES` more than it has, except under sanitizers, which reserve terabytes."""
    from gru4rec_fast import _compile

    if not _compile.sanitizers() and sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
