"""Options that several commands share, alone or in groups. A group is a dataclass with one field per option."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer

from gru4rec_fast.models.parameters import RUNNING, GRU4RecParameters

_log_option = functools.partial(typer.Option, rich_help_panel="Reading log files")
_evaluation_option = functools.partial(typer.Option, rich_help_panel="Evaluation")
running_option = functools.partial(typer.Option, rich_help_panel=RUNNING)
_KEYWORD_ONLY = inspect.Parameter.KEYWORD_ONLY


def given_options(group: Any) -> list[str]:
    """Return the flags, such as "--item-key", of the options of a group that differ from their defaults."""
    return [_flag(entry.name) for entry in fields(group) if getattr(group, entry.name) != entry.default]


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


@dataclass(frozen=True)
class LogFormat:
    """Format of log files, as in the arguments of `SessionStore.from_events` and `InteractionGraph.from_table`."""

    session_key: Annotated[str, _log_option(metavar="NAME", help="Column of the session ids.")] = "SessionId"
    user_key: Annotated[
        str, _log_option(metavar="NAME", help="Column of the user ids (interactions; sessions with --session-gap).")
    ] = "UserId"
    item_key: Annotated[str, _log_option(metavar="NAME", help="Column of the item ids.")] = "ItemId"
    time_key: Annotated[str, _log_option(metavar="NAME", help="Column of the times: numbers or dates.")] = "Time"
    rating_key: Annotated[
        str, _log_option(metavar="NAME", help="Column of the ratings (--min-rating; highest-rated).")
    ] = "Rating"
    min_rating: Annotated[
        float | None,
        _log_option(metavar="R", help="Use only interactions with at least this rating."),
    ] = None
    time_of_day_key: Annotated[
        str | None, _log_option(metavar="NAME", help="Column of the times of day, if --time-key has only dates.")
    ] = None
    time_format: Annotated[
        str | None,
        _log_option(
            metavar="FORMAT",
            help="Format of times that are text, as in Python's strptime: '%d.%m.%Y %H:%M'. By default ISO 8601.",
        ),
    ] = None
    session_gap: Annotated[
        float | None,
        _log_option(
            metavar="GAP",
            help="Cut the events of each user into sessions, where more than this passes between two events: in "
            "seconds for dates, else in the unit of the times.",
        ),
    ] = None
    separator: Annotated[
        str | None,
        _log_option(
            metavar="TEXT",
            help="Separator of a text file's columns, such as '::'; 'tab' for a tab. By default it is found in the "
            "first line.",
        ),
    ] = None
    quote: Annotated[
        str, _log_option(metavar="CHARACTER", help="Character that quotes fields of a text file, or 'none'.")
    ] = '"'
    encoding: Annotated[
        str, _log_option(metavar="NAME", help="Encoding of a text file, such as latin-1 or utf-16.")
    ] = "utf-8"
    columns: Annotated[
        str | None,
        _log_option(metavar="NAME,NAME,...", help="Names of all columns in order, for a text file without a header."),
    ] = None
    allow_pickle: Annotated[
        bool, _log_option("--allow-pickle", help="Allow .pickle files. Reading one runs the code in it.")
    ] = False

    def refuse_unused(self, used: Iterable[str], data: str) -> None:
        """Raise ValueError for a given option that is not among the fields `used`.

        data: the data on which the option has no effect, for the message. --allow-pickle is a permission, which need
        not be used.
        """
        effective = {_flag(name) for name in (*used, "allow_pickle")}
        for flag in given_options(self):
            if flag not in effective:
                raise ValueError(f"{flag} has no effect on {data}: leave it out")

    def session_arguments(self) -> dict[str, Any]:
        """Return keyword arguments for `SessionStore.from_events` and `prepare`."""
        unused = ("user_key" if self.session_gap is None else "session_key", "rating_key", "min_rating")
        return {name: value for name, value in self._arguments().items() if name not in unused}

    def graph_arguments(self, *, with_times: bool = False) -> dict[str, Any]:
        """Return keyword arguments for `InteractionGraph.from_table`, which reads times if `with_times`."""
        unused = ["session_key", "session_gap"]
        if not with_times:
            unused += ["time_key", "time_of_day_key", "time_format"]
        if self.min_rating is None:
            unused += ["rating_key"]
        return {name: value for name, value in self._arguments().items() if name not in unused}

    def text_arguments(self) -> dict[str, Any]:
        """Return keyword arguments for `open_table`."""
        names = ("separator", "quote", "encoding", "columns", "allow_pickle")
        return {name: value for name, value in self._arguments().items() if name in names}

    def _arguments(self) -> dict[str, Any]:
        """Return all fields by name, with a tab character for the separator "tab" and None for the quote "none"."""
        separator = {"tab": "\t", "\\t": "\t"}.get(self.separator or "", self.separator)
        columns = None if self.columns is None else self.columns.split(",")
        quote = None if self.quote == "none" else self.quote
        return {**vars(self), "separator": separator, "quote": quote, "columns": columns}


@dataclass(frozen=True)
class EvaluationOptions:
    """Options of an evaluation."""

    cutoffs: Annotated[str, _evaluation_option(metavar="K,K,...", help="Cut-offs k of the metrics.")] = "20"
    ties: Annotated[
        str | None,
        _evaluation_option(
            metavar="MODE",
            help="Rank of a target among items of the same score: last (conservative), first (standard) or in the "
            "middle (median). Default: conservative; graph models: by item.",
        ),
    ] = None
    targets: Annotated[
        str | None,
        _evaluation_option(
            metavar="next|last|remaining",
            help="What is ranked after an event: the next item, the last item of the session, or all items that follow "
            "(sessions only).",
        ),
    ] = None
    by: Annotated[
        str | None,
        _evaluation_option(
            metavar="popularity|length|position",
            help="Also show the metrics by popularity of the target, length of the session or position in it.",
        ),
    ] = None
    beyond_accuracy: Annotated[
        bool,
        _evaluation_option(
            "--beyond-accuracy", help="Also show coverage, popularity, Gini, entropy and tail of what is recommended."
        ),
    ] = False
    negatives: Annotated[
        int | None,
        _evaluation_option(metavar="N", help="Rank among N random items only, to compare with papers that did so."),
    ] = None
    negatives_by: Annotated[
        str, _evaluation_option(metavar="uniform|popularity", help="How these items are drawn.")
    ] = "uniform"
    negatives_seed: Annotated[int, _evaluation_option(metavar="N", help="Seed of these items.")] = 0
    baselines: Annotated[bool, _evaluation_option("--baselines", help="Also rank by popularity and randomly.")] = False

    def session_arguments(self) -> dict[str, Any]:
        """Return keyword arguments for `GRU4Rec.evaluate`; ValueError for a wrong option."""
        arguments = self._arguments() | {"targets": self.targets, "baselines": self.baselines}
        return arguments | {"ties": self.ties or "conservative"}

    def graph_arguments(self) -> dict[str, Any]:
        """Return keyword arguments for `evaluate` of graph models; ValueError for an option of sessions."""
        for flag in given_options(self):
            if flag in ("--targets", "--baselines"):
                raise ValueError(f"{flag} is for sessions; of users, all test items are ranked")
        return self._arguments()

    def _arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of all models; ValueError for a wrong option."""
        from gru4rec_fast.evaluation import By, NegativesBy, Targets, Ties

        choices = {"ties": Ties, "targets": Targets, "by": By, "negatives_by": NegativesBy}
        for name, allowed in choices.items():
            value = getattr(self, name)
            if value is not None and value not in get_args(allowed):
                raise ValueError(f"{_flag(name)} {value}: choose one of {', '.join(get_args(allowed))}")
        if self.negatives is None and (self.negatives_by, self.negatives_seed) != ("uniform", 0):
            raise ValueError("--negatives-by and --negatives-seed are for --negatives: give it, or leave them out")
        names = ("ties", "by", "beyond_accuracy", "negatives", "negatives_by")
        arguments = {name: getattr(self, name) for name in names}
        return {"cutoffs": self._parse_cutoffs(), **arguments, "seed": self.negatives_seed}

    def _parse_cutoffs(self) -> tuple[int, ...]:
        """Return the cut-offs as integers in ascending order; ValueError for a wrong option."""
        from gru4rec_fast.evaluation import RankMetrics

        try:
            cutoffs = [int(cutoff) for cutoff in self.cutoffs.split(",")]
        except ValueError:
            raise ValueError(
                f"--cutoffs {self.cutoffs}: give whole numbers with commas between them, as in 20,5"
            ) from None
        return tuple(RankMetrics(cutoffs).cutoffs)


def _parameter_help(parameter: str) -> str:
    """Return the help text of a hyper-parameter of GRU4Rec."""
    return str(GRU4RecParameters.__dataclass_fields__[parameter].metadata["help"])


JsonFile = Annotated[
    Path | None, running_option("--json", metavar="FILE", help="Write the results to this file as JSON.")
]
Threads = Annotated[int | None, running_option(min=1, help="CPU threads; by default PyTorch's choice.")]


@dataclass(frozen=True)
class RuntimeOptions:
    """Device, kernels and CPU threads that a loaded model runs with."""

    device: Annotated[str, running_option(metavar="NAME", help=_parameter_help("device"))] = "cpu"
    impl: Annotated[str, running_option(metavar="NAME", help=_parameter_help("impl"))] = "auto"
    threads: Threads = None


def with_option_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command for Typer in which each parameter that is a dataclass is replaced by one option per field.

    The returned command builds the dataclass from the values of these options and passes it to `command`.
    """
    signature = inspect.signature(command, eval_str=True).parameters
    groups: dict[str, Any] = {
        name: parameter.annotation for name, parameter in signature.items() if is_dataclass(parameter.annotation)
    }
    options = {name: _options_of(group) for name, group in groups.items()}

    @functools.wraps(command)
    def wrapper(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{option.name: values.pop(option.name) for option in options[name]})
        command(**values)

    expanded = (
        [parameter.replace(kind=_KEYWORD_ONLY)] if name not in groups else options[name]
        for name, parameter in signature.items()
    )
    return with_signature(wrapper, [parameter for parameters in expanded for parameter in parameters])


def _options_of(group: type) -> list[inspect.Parameter]:
    """Return the options of a dataclass, one for each field, as parameters of a command."""
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(entry.name, _KEYWORD_ONLY, default=entry.default, annotation=hints[entry.name])
        for entry in fields(group)
    ]


def with_signature(command: Callable[..., None], parameters: list[inspect.Parameter]) -> Callable[..., None]:
    """Give a command the parameters from which Typer makes its options, and return the command."""
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def use_threads(threads: int | None) -> None:
    """Set the number of CPU threads of PyTorch and the kernels; None keeps PyTorch's choice."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
