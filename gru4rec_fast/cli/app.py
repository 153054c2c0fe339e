"""The Typer application with all commands, and how their errors are reported."""

from __future__ import annotations

import inspect
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from gru4rec_fast import __version__
from gru4rec_fast.cli.demo import demo
from gru4rec_fast.cli.evaluate import evaluate
from gru4rec_fast.cli.info import info
from gru4rec_fast.cli.prepare import prepare
from gru4rec_fast.cli.recommend import recommend
from gru4rec_fast.cli.train import train

PROGRAM = "gru4rec-fast"
DEBUG = "--debug"
OUTPUT_CLOSED, ERROR, DIVERGED, BY_SIGNAL = 1, 2, 3, 128

app = typer.Typer(name=PROGRAM, add_completion=False, rich_markup_mode="rich")
for command in (demo, prepare, train, evaluate, recommend, info):
    paragraphs = inspect.cleandoc(command.__doc__ or "").split("\n\n")
    app.command(help="\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs))(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option(DEBUG, help="Show a traceback where there is an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Train GRU4Rec, the session-based recommender, on a click log; evaluate it; recommend with it.

    Start with: gru4rec-fast demo

    Then: gru4rec-fast train train.tsv --test test.tsv --out run

    Exit codes: 0 done, 2 error (one line on stderr), 3 the training diverged, 130 stopped by Ctrl-C, 143 by SIGTERM.
    """


def run(arguments: list[str]) -> int:
    """Implements `gru4rec_fast.cli.main`."""
    debug = DEBUG in arguments  # at any position, since it is added to a command line that just failed
    arguments = [argument for argument in arguments if argument != DEBUG] or ["--help"]
    with _warnings_in_one_line():
        try:
            # Typer's own main reports errors and Ctrl-C in other ways, which differ by version.
            with typer.main.get_command(app).make_context(PROGRAM, arguments) as context:
                context.command.invoke(context)
            sys.stdout.flush()
        except typer.Exit as done:
            return done.exit_code
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit fails again
            return OUTPUT_CLOSED
        except (KeyboardInterrupt, Exception) as error:
            report = _report(error)
            if debug or report is None:
                raise
            message, code = report
            print(message, file=sys.stderr)
            return code
    return 0


def _report(error: BaseException) -> tuple[str, int] | None:
    """Return the message and the exit code for an error; None for an error that only a bug can raise."""
    if isinstance(error, KeyboardInterrupt):
        code = BY_SIGNAL + getattr(error, "signal_number", signal.SIGINT)
        return f"interrupted: {_one_line(error)}" if error.args else "interrupted", code
    if hasattr(error, "format_message"):  # Typer's and click's usage errors, whichever of them is installed
        context = getattr(error, "ctx", None)
        path = context.command_path if context else PROGRAM
        return f"error: {_one_line(error.format_message())} (see {path} --help)", ERROR
    if isinstance(error, ArithmeticError):
        return f"error: {_one_line(error)}", DIVERGED
    if isinstance(error, ValueError | OSError | ImportError | RuntimeError):
        return f"error: {_one_line(error)}", ERROR
    return None


def _one_line(problem: Any) -> str:
    if isinstance(problem, OSError) and problem.strerror:
        problem = f"{problem.filename}: {problem.strerror}" if problem.filename else problem.strerror
    return " ".join(str(problem).split())


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Print Python's warnings and the package's log as `warning: ...` lines on stderr."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        print(f"warning: {_one_line(message)}", file=sys.stderr)

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("warning: %(message)s"))
    handler.setLevel(logging.WARNING)
    logger = logging.getLogger("gru4rec_fast")
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show
            yield
    finally:
        logger.removeHandler(handler)
