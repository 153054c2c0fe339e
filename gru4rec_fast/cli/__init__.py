"""gru4rec-fast, the command line: demo, prepare, train, evaluate, recommend, info.

Typer, rich and everything heavier are imported when a command runs, never by `import gru4rec_fast.cli`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 output closed, 2 error, 3 diverged, 130 Ctrl-C, 143 SIGTERM.

    An error is one line on stderr; with --debug it is a traceback.

    Args:
        arguments: without the program's name; by default those of this process.
    """
    from gru4rec_fast.cli.app import run

    return run(sys.argv[1:] if arguments is None else list(arguments))
