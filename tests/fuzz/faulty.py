"""Target with every kind of wrong outcome, for the test of the fuzzers themselves."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from harness import MEMORY_BYTES, Target
from hypothesis import strategies as st

_ERRORS = {
    "expected": ValueError("argument=1: must be 0"),
    "other type": KeyError("argument"),
    "no argument": ValueError("wrong"),
    "two lines": TypeError("argument=1:\nmust be 0"),
    "long": ValueError("argument" * 1000),
    "wrong result": AssertionError("2 is not 1"),
}


def run(case: str, folder: Path) -> None:
    """Show the outcome with the name of the case."""
    if case == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif case == "hang":
        time.sleep(60)
    elif case == "memory":
        bytearray(2 * MEMORY_BYTES)
    elif case in _ERRORS:
        raise _ERRORS[case]


TARGET = Target(
    cases=st.sampled_from(["result", "crash", "hang", "memory", *_ERRORS]),
    run=run,
    subjects=lambda case, folder: ["argument"],
    timeout_s=1,
    label=lambda case: case,
)
