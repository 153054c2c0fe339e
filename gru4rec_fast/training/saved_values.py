"""Check the JSON values of a checkpoint before they are used, so that a damaged checkpoint is one clear error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from gru4rec_fast.training.checkpoint import CheckpointError

_RECORD = {"epoch": 1, "loss": 0.0, "seconds": 0.0, "mini_batches": 1, "events": 1, "learning_rate": 0.0}


@contextmanager
def damage_as_checkpoint_error(path: Path | None) -> Iterator[None]:
    """Convert the errors that values of a wrong type or size cause inside the context to a CheckpointError."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{path or 'the checkpoint'} is damaged ({reason}); use an earlier checkpoint") from error


def check_like(saved: Any, example: Any, name: str) -> None:
    """Raise TypeError unless a saved value has the type of an example: an integer, a number, or the same class.

    Of a dict, the values of all keys in the example are checked; a list is compared element by element, and a list with
    one element is an example for lists of any length. None is an example for every value.
    """
    if isinstance(example, dict) and isinstance(saved, dict):
        for key, value in example.items():
            if key not in saved:
                raise KeyError(f"{name}.{key}")
            check_like(saved[key], value, f"{name}.{key}")
    elif isinstance(example, list | tuple) and isinstance(saved, list):
        examples = list(example) * len(saved) if len(example) == 1 else list(example)
        if len(saved) != len(examples):
            raise TypeError(f"{name} has {len(saved)} values, not {len(examples)}")
        for index, (value, element) in enumerate(zip(saved, examples, strict=True)):
            check_like(value, element, f"{name}[{index}]")
    elif example is not None:
        allowed = (int, float) if type(example) is float else (type(example),)
        if type(saved) not in allowed:
            raise TypeError(f"{name} is {saved!r:.50}, not of type {type(example).__name__}")


def check_like_current(saved: Any, current: Mapping[str, Any], name: str) -> None:
    """Raise TypeError unless saved values have the types of the current values of the same names.

    An integer is an example for every number, because schedules change numbers from integers to floats. None may be
    saved where there is a boolean now: torch's optimizers use None for a default.
    """
    compared = {key for key in current if key in saved and not (saved[key] is None and type(current[key]) is bool)}
    check_like(saved, {key: _as_numbers(current[key]) for key in compared}, name)


def _as_numbers(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_as_numbers(element) for element in value]
    return float(value) if type(value) is int else value


def checked_history(progress: Any) -> list[dict[str, Any]]:
    """Return the history in the progress of a checkpoint. Raises KeyError or TypeError if it is damaged."""
    history: list[dict[str, Any]] = progress["history"]
    check_like(history, [{}], "history")
    for record in history:
        if unknown := {*record} - {*_RECORD, "validation"}:
            raise KeyError(f"history: {min(unknown)}")
        expected = {key: value for key, value in _RECORD.items() if key in record or key in ("epoch", "loss")}
        check_like(record, expected, "history")
        check_like(record.get("validation", {}), {name: 0.0 for name in record.get("validation", {})}, "validation")
    return history
