"""Which sessions of a log are held out for testing: the latest."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

_PER_SECOND = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
_YEAR_2200 = 7_258_118_400  # seconds since 1970


@dataclass(frozen=True)
class Split:
    """Which sessions are held out: the latest. A session belongs to the part that its last event falls in.

    Exactly one of the two is given.

    Attributes:
        days: hold out the sessions that end within the last `days` times 24 hours before the log's last event.
        fraction: hold out this fraction of the sessions, those that end last (ties: those that start last).
        time_unit: unit of numeric times, "s", "ms", "us" or "ns"; only `days` depends on it.
    """

    days: float | None = None
    fraction: float | None = None
    time_unit: str = "s"

    def __post_init__(self) -> None:
        if (self.days is None) == (self.fraction is None):
            raise ValueError("Split: give either days=... or fraction=...")
        if self.days is not None and not self.days > 0:
            raise ValueError(f"Split: days={self.days}, but it must be positive")
        if self.fraction is not None and not 0 < self.fraction < 1:
            raise ValueError(f"Split: fraction={self.fraction}, but it must lie between 0 and 1")
        if self.time_unit not in _PER_SECOND:
            raise ValueError(f"Split: time_unit={self.time_unit!r}; choose one of {', '.join(map(repr, _PER_SECOND))}")

    @classmethod
    def parse(cls, text: str, time_unit: str = "s") -> Split:
        """The split named by "last-day", "days=N" or "fraction=F". Raises ValueError for anything else."""
        name, _, value = ("days=1" if text == "last-day" else text).partition("=")
        try:
            number = float(value)
        except ValueError:
            name = ""
        if name not in ("days", "fraction"):
            raise ValueError(f"split {text!r}: choose last-day, days=N or fraction=F")
        return cls(**{name: number}, time_unit=time_unit)

    def held_out(self, starts: np.ndarray, ends: np.ndarray, first_rows: np.ndarray) -> np.ndarray:
        """bool [n_sessions], from the sessions' first and last times and their order of appearance.

        Warns where `days` are asked for and the times, in `time_unit`, lie beyond the year 2200.
        """
        if self.days is not None:
            self._doubt_unit(float(ends.max()))
            length = self.days * 86400 * _PER_SECOND[self.time_unit]
            # Nanoseconds since 1970 do not fit a float64.
            return ends >= ends.max() - (length if ends.dtype.kind == "f" else round(length))
        assert self.fraction is not None
        latest = np.lexsort((first_rows, starts, ends))[len(ends) - round(self.fraction * len(ends)) :]
        mask = np.zeros(len(ends), bool)
        mask[latest] = True
        return mask

    def _doubt_unit(self, last: float) -> None:
        if last <= _YEAR_2200 * _PER_SECOND[self.time_unit]:
            return
        finer = [unit for unit, rate in _PER_SECOND.items() if last <= _YEAR_2200 * rate]
        advice = f"if they are in {finer[0]!r}, give time_unit={finer[0]!r}" if finer else "check the time column"
        warnings.warn(
            f"the log's times reach {last:.16g}, beyond the year 2200 in the unit {self.time_unit!r}: {advice}",
            stacklevel=2,
        )
