"""Split: how to hold out the latest sessions of a log for testing."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

_PER_SECOND = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}  # number of time units in a second
_YEAR_2200 = 7_258_118_400  # seconds since 1970


@dataclass(frozen=True)
class Split:
    """Describes which sessions are held out for testing: those that end last. Give either `days` or `fraction`.

    Attributes:
        days: hold out the sessions that end within the last `days` times 24 hours of the log.
        fraction: hold out this fraction of the sessions. Among sessions with the same end, those with the latest start
            are held out first.
        time_unit: unit of numeric times, "s", "ms", "us" or "ns"; with `days` only.
    """

    days: float | None = None
    fraction: float | None = None
    time_unit: str = "s"

    def __post_init__(self) -> None:
        if (self.days is None) == (self.fraction is None):
            raise ValueError("Split: give either days=... or fraction=...")
        if self.days is not None and not self.days > 0:
            raise ValueError(f"Split: days={self.days}: must be positive")
        if self.fraction is not None and not 0 < self.fraction < 1:
            raise ValueError(f"Split: fraction={self.fraction}: must be between 0 and 1")
        if self.time_unit not in _PER_SECOND:
            raise ValueError(f"Split: time_unit={self.time_unit!r}: choose one of {', '.join(map(repr, _PER_SECOND))}")
        if self.days is None and self.time_unit != "s":
            raise ValueError(f"Split: time_unit={self.time_unit!r} has no effect on fraction=...: leave it out")

    @classmethod
    def parse(cls, text: str, time_unit: str = "s") -> Split:
        """Return the Split for the text "last-day", "days=N" or "fraction=F". Raises ValueError for other text."""
        name, _, value = ("days=1" if text == "last-day" else text).partition("=")
        try:
            number = float(value)
        except ValueError:
            name = ""
        if name not in ("days", "fraction"):
            raise ValueError(f"split {text!r}: choose last-day, days=N or fraction=F")
        return cls(**{name: number}, time_unit=time_unit)

    def held_out(self, starts: np.ndarray, ends: np.ndarray, first_rows: np.ndarray) -> np.ndarray:
        """Return the mask of held-out sessions, bool [n_sessions].

        `starts` and `ends` are the times of the first and last event of each session, `first_rows` its first input row.
        Warns if `days` is used and the times, in `time_unit`, are after the year 2200.
        """
        if self.days is not None:
            self._warn_about_unit(float(ends.max()))
            period = self.days * 86400 * _PER_SECOND[self.time_unit]
            # Integer times stay integers: nanoseconds since 1970 are not exact in float64.
            return ends >= ends.max() - (period if ends.dtype.kind == "f" else round(period))
        assert self.fraction is not None
        latest_sessions = np.lexsort((first_rows, starts, ends))[len(ends) - round(self.fraction * len(ends)) :]
        mask = np.zeros(len(ends), bool)
        mask[latest_sessions] = True
        return mask

    def _warn_about_unit(self, latest: float) -> None:
        """Warn if the latest time of a log is so late that `time_unit` is probably wrong."""
        if latest <= _YEAR_2200 * _PER_SECOND[self.time_unit]:
            return
        finer = [unit for unit, rate in _PER_SECOND.items() if latest <= _YEAR_2200 * rate]
        advice = f"if they are in {finer[0]!r}, give time_unit={finer[0]!r}" if finer else "check the time column"
        warnings.warn(
            f"the log's times reach {latest:.16g}, after the year 2200 in the unit {self.time_unit!r}; {advice}",
            stacklevel=2,
        )
