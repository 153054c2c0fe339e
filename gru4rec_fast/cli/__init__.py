"""The command line program gru4rec-fast: demo, prepare, train, evaluate, recommend, info.

`import gru4rec_fast.cli` imports neither Typer nor rich nor torch; `main` imports them when it runs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 stdout closed, 2 error, 3 diverged, 130 Ctrl-C, 143 SIGTERM.

    An error is one line on stderr; with --debug it is a traceback.

    Args:
        arguments: the command line without the program's name; by default `sys.argv[1:]`.
    """
    try:
        from gru4rec_fast.cli.app import run
    except KeyboardInterrupt:  # `run` handles later ones
        print("interrupted", file=sys.stderr)
        return 130
    return run(sys.argv[1:] if arguments is None else list(arguments))
