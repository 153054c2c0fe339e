"""Base class and fields of the hyper-parameter dataclasses: help, checks, conversion from text. Imports no torch."""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import Field, asdict, field, fields
from typing import Any, ClassVar, Self, TypeVar

from gru4rec_fast._untrusted import brief, parse_json

LAYERSIZE = "layersize"  # a value of the parameter `embedding`: the width of the first layer

Check = Callable[[Any], str | None]  # returns what is wrong with a value, or None
T = TypeVar("T")
P = TypeVar("P", bound="Parameters")


def option(default: Any, panel: str, metavar: str, help: str, check: Check | None = None) -> Any:
    """Return the dataclass field of a parameter, which is also an option in the group `panel` of `train --help`."""
    return field(default=default, metadata={"panel": panel, "metavar": metavar, "help": help, "check": check})


def shared_field(cls: type[Parameters], name: str, default: Any) -> Any:
    """Return a field with the help and check of the parameter `name` of another class, and with another default."""
    return field(default=default, metadata=cls.__dataclass_fields__[name].metadata)


def parameter_class(cls: type[P]) -> type[P]:
    """Document a parameter dataclass, and make its constructor raise UnknownParameterError (a decorator)."""
    construct = cls.__init__

    @functools.wraps(construct)  # keeps the signature
    def __init__(self: P, **parameters: Any) -> None:
        self.check_names(parameters)
        construct(self, **parameters)

    cls.__init__ = __init__  # type: ignore[assignment]
    return document_parameters(cls)


def document_parameters(cls: type[T]) -> type[T]:
    """Append a section "Attributes:" with the help of the fields to the docstring of a dataclass (a decorator)."""
    lines = [
        textwrap.fill(f"{entry.name}: {entry.metadata['help']}", 120, initial_indent=" " * 4, subsequent_indent=" " * 8)
        for entry in fields(cls)  # type: ignore[arg-type]
    ]
    cls.__doc__ = "\n".join([inspect.cleandoc(cls.__doc__ or ""), "", "Attributes:", *lines])
    return cls


def one_of(*choices: str) -> Check:
    """Return a check that a value is one of the choices."""
    return lambda value: None if value in choices else f"choose one of {', '.join(choices)}"


def at_least(minimum: float) -> Check:
    """Return a check that a value is None or at least the minimum."""
    return lambda value: None if value is None or value >= minimum else f"must be at least {minimum:g}"


def positive(value: float) -> str | None:
    """Return what is wrong with a value that is not positive, else None."""
    return None if value > 0 else "must be positive"


def probability(value: float) -> str | None:
    """Return what is wrong with a value that is not in [0, 1), else None."""
    return None if 0 <= value < 1 else "must lie in [0, 1)"


class Parameters:
    """Base class of the parameter dataclasses, which convert and check their values.

    Raises:
        TypeError: a value of the wrong type. ValueError: a value out of range. Both messages name the parameter and
            what is allowed.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    n_epochs: int
    lr_scheduler: str | None
    lr_scheduler_options: Mapping[str, Any] | None
    evaluate_every: int
    monitor: str
    patience: int | None
    min_delta: float
    seed: int | None
    device: str
    impl: str

    def __post_init__(self) -> None:
        self._convert_and_check()

    def _convert_and_check(self) -> None:
        """Convert each value to the type of its field, and check it.

        A value that already has the type of its field stays the same object, as scikit-learn's `clone` requires.

        Raises: see the class.
        """
        for entry in fields(self):
            value = _convert(entry.name, str(entry.type), getattr(self, entry.name))
            setattr(self, entry.name, value)
            problem = entry.metadata["check"](value) if entry.metadata["check"] else None
            if problem:
                raise ValueError(f"{entry.name}={brief(_json_value(value))}: {problem}")
        if getattr(self, "lr_scheduler_options", None) and self.lr_scheduler is None:
            options = brief(self.lr_scheduler_options)
            raise ValueError(f"lr_scheduler_options={options}: give the lr_scheduler they belong to")

    def set_params(self, **parameters: Any) -> Self:
        """Set parameters by name and return self. After an error no parameter has changed.

        Raises:
            TypeError: an unknown name. TypeError, ValueError: a wrong value, see the class.
        """
        self.check_names(parameters)
        previous = {name: getattr(self, name) for name in parameters}
        try:
            vars(self).update(parameters)
            self._convert_and_check()
        except (TypeError, ValueError):
            vars(self).update(previous)
            raise
        return self

    @property
    def ignored_parameter_warnings(self) -> list[str]:
        """One warning for each parameter that has no effect because of other parameters, with the reason."""
        return []

    def to_dict(self) -> dict[str, Any]:
        """Return all parameters as JSON values."""
        return {name: _json_value(value) for name, value in asdict(self).items()}

    @classmethod
    def names(cls) -> list[str]:
        """Return the names of all parameters."""
        return [entry.name for entry in fields(cls)]

    @classmethod
    def check_names(cls, parameters: Iterable[str]) -> None:
        """Raise UnknownParameterError if one of these names is not the name of a parameter."""
        known = cls.names()
        unknown = [name for name in parameters if name not in known]
        if unknown:
            raise UnknownParameterError(cls.__name__.removesuffix("Parameters"), unknown, known)

    @classmethod
    def create(cls, parameters: Mapping[str, Any]) -> Self:
        """Return an instance with these parameters, and defaults for the others. Raises the errors of `set_params`.

        A value may be text, as in a parameter string: "0.1", "512/256", "True", "None".
        """
        return cls(**cls.parse_texts(parameters))

    @classmethod
    def parse_texts(cls, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters; text is converted to the type of its parameter. Raises TypeError, see the class."""
        cls.check_names(parameters)
        types = {entry.name: str(entry.type) for entry in fields(cls)}
        return {
            name: _parse(name, types[name], value) if isinstance(value, str) else value
            for name, value in parameters.items()
        }


class UnknownParameterError(TypeError):
    """Error for parameter names that a model does not have.

    Attributes:
        model: the name of the model.
        unknown: the names that are unknown.
        known: the names of the model's parameters.
    """

    def __init__(self, model: str, unknown: Sequence[str], known: Sequence[str]) -> None:
        super().__init__(model, unknown, known)
        self.model, self.unknown, self.known = model, unknown, known

    def __str__(self) -> str:
        unknown = ", ".join(brief(name, 30) for name in self.unknown)
        similar = (match for name in self.unknown for match in difflib.get_close_matches(name[:100], self.known))
        nearest = " or ".join(f"'{name}'" for name in dict.fromkeys(similar))
        advice = f"did you mean {nearest}?" if nearest else f"help({self.model}) lists them"
        return f"{self.model} has no parameter{'s' if len(self.unknown) > 1 else ''} {unknown}; {advice}"


def _convert(name: str, annotation: str, value: Any) -> Any:
    """Convert a value to the type in the annotation of its field. Text is converted by `_parse` only."""
    if annotation.endswith(" | None") and value is None:
        return None
    convert, _, expected = _CONVERSIONS[annotation.removesuffix(" | None")]
    try:
        return convert(value)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"{name}={brief(value)}: must be {expected}") from None


def _parse(name: str, annotation: str, text: str) -> Any:
    """Convert the text of a value to the type in the annotation of its field."""
    if annotation.endswith(" | None") and text == "None":
        return None
    _, parse, expected = _CONVERSIONS[annotation.removesuffix(" | None")]
    try:
        return parse(text)
    except (TypeError, ValueError):
        raise TypeError(f"{name}={brief(text)}: must be {expected}") from None


def parse_number(text: str) -> float:
    """Return the finite float of a text. Raises ValueError for any other text."""
    return _number(float(text))


def _number(value: Any) -> float:
    if isinstance(value, str | bytes):
        raise TypeError
    converted = float(value)
    if isinstance(value, bool) or not math.isfinite(converted):
        raise ValueError
    return converted


def _integer(value: Any) -> int:
    if isinstance(value, str | bytes):
        raise TypeError
    converted = int(value)
    if isinstance(value, bool) or converted != value:
        raise ValueError
    return converted


def _boolean(value: Any) -> bool:
    if value not in (True, False):  # 1 and 0 are equal to them
        raise ValueError
    return bool(value)


def _parse_boolean(text: str) -> bool:
    if text not in ("1", "true", "True", "0", "false", "False"):
        raise ValueError
    return text in ("1", "true", "True")


def _text(value: Any) -> str:
    if value is None:
        raise ValueError
    return str(value)


def _integers(value: Any) -> tuple[int, ...]:
    integers = tuple(map(_integer, value if isinstance(value, list | tuple) else [value]))
    # A value of the right type must stay the same object, see Parameters._convert_and_check.
    return value if type(value) is tuple and all(type(size) is int for size in value) else integers


def _mapping(value: Any) -> dict[str, Any]:
    if isinstance(value, str | bytes):
        raise TypeError
    return value if isinstance(value, dict) else dict(value)


def _json_value(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


# For each annotation of a field: the function that converts a value, the one that converts its text, and what they
# accept, in words.
_CONVERSIONS: dict[str, tuple[Callable[[Any], Any], Callable[[str], Any], str]] = {
    "bool": (_boolean, _parse_boolean, "True or False"),
    "int": (_integer, int, "a whole number"),
    "float": (_number, parse_number, "a finite number"),
    "str": (_text, str, "text"),
    "Mapping[str, Any]": (_mapping, lambda text: dict(parse_json(text)), "a mapping"),
    "tuple[int, ...]": (
        _integers,
        lambda text: tuple(map(int, text.split("/"))),
        "sizes, as [512, 256], or 512/256 as text",
    ),
    "int | str": (
        lambda value: value if value == LAYERSIZE else _integer(value),
        lambda text: text if text == LAYERSIZE else int(text),
        f"a whole number or {LAYERSIZE!r}",
    ),
}
