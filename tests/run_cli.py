"""Helpers that run the gru4rec-fast command, in this process or in a new one, and write a small log."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from gru4rec_fast.cli import main
from gru4rec_fast.data.sessions.synthetic import markov_events

# Options of a small model that trains in a second.
SMALL = "layers=16,batch_size=8,n_sample=16,learning_rate=0.1,n_epochs=2"

_CONTROL_CHARACTERS = re.compile(r"[^\n\t\x20-\x7e\u00a0-\U0010ffff]")


@dataclass(frozen=True)
class CommandResult:
    """Exit code, standard output and standard error of a command."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def error_line(self) -> str:
        """Return the last line on stderr. Asserts that it is the only error message, and that stdout is empty."""
        lines = self.stderr.splitlines()
        assert lines[-1].startswith("error: "), self.stderr
        assert sum(line.startswith(("error", "Traceback")) for line in lines) == 1, self.stderr
        assert self.stdout == ""
        return lines[-1]

    def control_characters(self) -> set[str]:
        """Return the control characters in the output, except newlines and tabs."""
        return set(_CONTROL_CHARACTERS.findall(self.stdout + self.stderr))


def cli(*arguments: str | Path) -> CommandResult:
    """Run a command in this process. Its stdout and stderr are not terminals."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        exit_code = main([str(argument) for argument in arguments])
    return CommandResult(exit_code, out.getvalue(), err.getvalue())


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    """Start a command in a new process with the module path of this one. Its outputs are pipes."""
    code = f"import sys; sys.path[:] = {sys.path!r}\nfrom gru4rec_fast.cli import main\nsys.exit(main())"
    command = [sys.executable, "-u", "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def write_logs(folder: Path) -> None:
    """Write train.tsv (500 sessions of 60 items) and test.tsv (100 later sessions)."""
    events = markov_events(600, 60, seed=1)
    for name, mask in (("train", events["SessionId"] <= 500), ("test", events["SessionId"] > 500)):
        rows = zip(*(column[mask].tolist() for column in events.values()), strict=True)
        lines = ["\t".join(events), *("\t".join(map(str, row)) for row in rows)]
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n")
