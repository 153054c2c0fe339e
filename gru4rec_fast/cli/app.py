"""The Typer application with all commands. It prints errors and warnings as one line each."""

from __future__ import annotations

import functools
import inspect
import logging
import os
import signal
import sys
import textwrap
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from gru4rec_fast import __version__
from gru4rec_fast.cli.compare import compare
from gru4rec_fast.cli.demo import demo
from gru4rec_fast.cli.evaluate import evaluate
from gru4rec_fast.cli.info import info
from gru4rec_fast.cli.output import print_note
from gru4rec_fast.cli.prepare import prepare
from gru4rec_fast.cli.processes import is_one_of_many
from gru4rec_fast.cli.recommend import recommend
from gru4rec_fast.cli.train import train

PROGRAM = "gru4rec-fast"
DEBUG = "--debug"
# Exit codes; a command that a signal stops has SIGNAL_BASE plus the signal's number.
OUTPUT_CLOSED, ERROR, DIVERGED, SIGNAL_BASE = 1, 2, 3, 128


def _import_torch() -> None:
    """Import torch; raise KeyboardInterrupt after the import if Ctrl-C was pressed during it.

    If the handler of Ctrl-C raised it during the import, C++ code of torch might end the process, or drop the error and
    leave numpy incomplete.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()  # only this thread can set a handler
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        import torch

        return
    presses: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _frame: presses.append(number))
    try:
        import torch  # noqa: F401
    finally:
        signal.signal(signal.SIGINT, handler)
    if presses:
        raise KeyboardInterrupt


def _with_torch(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command that imports torch first."""

    @functools.wraps(command)
    def wrapper(**values: Any) -> None:
        if is_one_of_many() and command not in (prepare, train, evaluate):
            raise ValueError(f"{command.__name__} runs in one process: start it without torchrun")
        _import_torch()
        command(**values)

    return wrapper


app = typer.Typer(name=PROGRAM, add_completion=False, rich_markup_mode="rich")
for command in (demo, prepare, train, evaluate, compare, recommend, info):
    # A docstring is the help of its command. Typer would keep its line breaks, so each paragraph becomes one line.
    paragraphs = inspect.cleandoc(command.__doc__ or "").split("\n\n")
    app.command(help="\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs))(_with_torch(command))


def _print_version(requested: bool) -> None:
    if requested:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option(DEBUG, help="Show the traceback of an error.")] = False,
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
    """Run one command and return its exit code, see `gru4rec_fast.cli.main`."""
    debug = DEBUG in arguments  # allowed at any position, so that it can be appended to a command line that failed
    arguments = [argument for argument in arguments if argument != DEBUG] or ["--help"]
    with _one_line_warnings():
        try:
            # Typer's own main is not called: its reports of errors and Ctrl-C differ between versions of Typer.
            with typer.main.get_command(app).make_context(PROGRAM, arguments) as context:
                context.command.invoke(context)
            sys.stdout.flush()
        except typer.Exit as exit_request:
            return exit_request.exit_code
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the flush at exit must not fail too
            return OUTPUT_CLOSED
        except (KeyboardInterrupt, Exception) as error:
            message_and_code = _describe(error)
            if debug or message_and_code is None:
                raise
            message, code = message_and_code
            if not _is_of_other_rank(error):
                print(message, file=sys.stderr)
            return code
    return 0


def _describe(error: BaseException) -> tuple[str, int] | None:
    """Return the message and the exit code for an error; None for an error that only a bug can raise."""
    if isinstance(error, KeyboardInterrupt):
        code = SIGNAL_BASE + getattr(error, "signal_number", signal.SIGINT)
        return f"interrupted: {_one_line(error)}" if error.args else "interrupted", code
    if hasattr(error, "format_message"):  # a usage error of Typer or of click, which have no common class
        context = getattr(error, "ctx", None)
        command = context.command_path if context else PROGRAM
        message = textwrap.shorten(error.format_message(), 400, placeholder="...")  # it may repeat a long argument
        return f"error: {message} (see {command} --help)", ERROR
    if isinstance(error, ArithmeticError):
        from gru4rec_fast.training import TrainingDiverged  # not at module level, because this imports torch

        return f"error: {_one_line(error)}", DIVERGED if isinstance(error, TrainingDiverged) else ERROR
    if isinstance(error, ValueError | OSError | ImportError | RuntimeError):
        return f"error: {_one_line(error)}", ERROR
    return None


def _is_of_other_rank(error: BaseException) -> bool:
    """Return whether another process prints this error."""
    if not is_one_of_many():
        return False
    from gru4rec_fast.distributed import OtherRankError  # not at module level, because this imports torch

    return isinstance(error, OtherRankError)


def _one_line(message: Any) -> str:
    """Return an error, warning or text as one line."""
    if isinstance(message, OSError) and message.strerror:
        message = f"{message.filename}: {message.strerror}" if message.filename else message.strerror
    return " ".join(str(message).split())


@contextmanager
def _one_line_warnings() -> Iterator[None]:
    """Print Python's warnings and the package's log messages as `warning: ...` lines on stderr."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        print_note(f"warning: {_one_line(message)}")

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
