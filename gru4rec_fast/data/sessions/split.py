"""Split: how to hold out the latest sessions of a log, or the last event of each session, for testing."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

_PER_SECOND = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}  # number of time units in a second
_YEAR_2200 = 7_258_118_400  # seconds since 1970


@dataclass(frozen=True)
class Split:
    """Describes what is held out for testing. Give one of `days`, `fraction` and `last_event`.

    Attributes:
        days: hold out the sessions that end within the last `days` times 24 hours of the log.
        fraction: hold out this fraction of the sessions, those that end last. Among sessions with the same end, those
            with the latest start are held out first.
        last_event: hold out the last event of each session of three events or more (leave-one-out). The test sessions
            are whole, since a model reads the other events before it predicts the last one.
        time_unit: unit of numeric times, "s", "ms", "us" or "ns"; with `days` or windows only.
        windows: cut the log into this number of windows first, each of `window_days` times 24 hours, and split each by
            itself. A session belongs to the window of its last event. The last window ends with the log, and what comes
            before the first one is left out.
        window_days: length of a window in days.
    """

    days: float | None = None
    fraction: float | None = None
    time_unit: str = "s"
    last_event: bool = False
    windows: int | None = None
    window_days: float | None = None

    def __post_init__(self) -> None:
        if (self.days is not None) + (self.fraction is not None) + self.last_event != 1:
            raise ValueError("Split: give one of days=..., fraction=... and last_event=True")
        if self.days is not None and not self.days > 0:
            raise ValueError(f"Split: days={self.days}: must be positive")
        if self.fraction is not None and not 0 < self.fraction < 1:
            raise ValueError(f"Split: fraction={self.fraction}: must be between 0 and 1")
        if (self.windows is None) != (self.window_days is None):
            raise ValueError("Split: give both windows=..., their number, and window_days=..., or none of them")
        if self.windows is not None and (self.windows != int(self.windows) or self.windows < 1):
            raise ValueError(f"Split: windows={self.windows}: must be a whole number of at least 1")
        if self.window_days is not None and not 0 < self.window_days < math.inf:
            raise ValueError(f"Split: window_days={self.window_days}: must be positive")
        if self.time_unit not in _PER_SECOND:
            raise ValueError(f"Split: time_unit={self.time_unit!r}: choose one of {', '.join(map(repr, _PER_SECOND))}")
        if not self.uses_time_unit and self.time_unit != "s":
            split = "fraction=..." if self.fraction is not None else "last_event=True"
            raise ValueError(f"Split: time_unit={self.time_unit!r} has no effect on {split}: leave it out")

    @property
    def uses_time_unit(self) -> bool:
        """Whether the split depends on `time_unit`."""
        return self.days is not None or self.windows is not None

    @classmethod
    def parse(cls, text: str, time_unit: str = "s") -> Split:
        """Return the Split for the text "last-day", "days=N", "fraction=F" or "last-event".

        Windows are given as in "last-day,windows=5,window-days=30". Raises ValueError for other text.
        """
        values: dict[str, Any] = {}
        for part in text.split(","):
            name, _, value = ("days=1" if part == "last-day" else part).partition("=")
            try:
                number = True if part == "last-event" else float(value)
            except ValueError:
                name = ""
            allowed = ("last-event",) if part == "last-event" else ("days", "fraction", "windows", "window-days")
            if name not in allowed or name in values:
                raise ValueError(
                    f"split {text!r}: choose last-day, days=N or fraction=F, or last-event; and windows=K,window-days=D"
                )
            values[name] = number
        return cls(**{name.replace("-", "_"): value for name, value in values.items()}, time_unit=time_unit)

    def window_of(self, ends: np.ndarray) -> np.ndarray:
        """Return the window of each session, int64 [n_sessions], from 1 to `windows`; 0 or less: before the first one.

        Window i has the sessions whose last event is at least `windows - i` and less than `windows - i + 1` lengths of
        a window before the last event of the log. `ends` are the times of the last event of each session. Warns as
        `held_out` does.
        """
        assert self.windows is not None and self.window_days is not None
        latest = ends.max()
        self._warn_about_unit(float(latest))
        length = self._period(self.window_days, ends)
        return int(self.windows) - ((latest - ends) // length).astype(np.int64)

    def _period(self, days: float, times: np.ndarray) -> float:
        """Return a number of days in the unit of the times."""
        period = days * 86400 * _PER_SECOND[self.time_unit]
        # Integer times stay integers: nanoseconds since 1970 are not exact in float64.
        return period if times.dtype.kind == "f" else max(round(period), 1)

    def held_out(self, starts: np.ndarray, ends: np.ndarray, first_rows: np.ndarray) -> np.ndarray:
        """Return the mask of held-out sessions of a split by `days` or `fraction`, bool [n_sessions].

        `starts` and `ends` are the times of the first and last event of each session, `first_rows` its first input row.
        Warns if `days` is used and the times, in `time_unit`, are after the year 2200.
        """
        if self.days is not None:
            self._warn_about_unit(float(ends.max()))
            return ends >= ends.max() - self._period(self.days, ends)
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
