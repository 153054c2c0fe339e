"""The values of the three columns: ids as int64 or strings, times as numbers; what is neither is named with its row."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

import polars as pl

from gru4rec_fast.data.sources import Source

IdKind = Literal["int", "str"]


@dataclass(frozen=True)
class Kinds:
    """What the columns hold, as far as has been seen. A later row may widen "int" to "str", or to "float"."""

    session: IdKind = "int"
    item: IdKind = "int"
    time: Literal["int", "float", "date"] = "int"


class Widened(Exception):
    """A row does not fit the kinds assumed so far: the log has to be read again with these.

    Attributes:
        kinds: what the columns hold.
        reasons: by column, "session" or "item", the first value that makes strings of its ids.
    """

    def __init__(self, kinds: Kinds, reasons: dict[str, str] | None = None) -> None:
        super().__init__(kinds)
        self.kinds = kinds
        self.reasons = reasons or {}


class ColumnReader:
    """Turns the raw frames of one source, in order, into frames of `session`, `item`, `time` and `row`.

    `session` and `item` are Int64 or String, `time` is Int64 or Float64; `row` counts the rows of the source from 0.

    Args:
        source: what is read.
        kinds: what the columns hold; `read` raises `Widened` where a row says otherwise.

    Attributes:
        rows: how many rows were read.
        stripped: how many ids of "session" and "item" lost blanks around them; only those of text do.
    """

    def __init__(self, source: Source, kinds: Kinds) -> None:
        self.source = source
        self.kinds = kinds
        self.rows = 0
        self.stripped = {"session": 0, "item": 0}

    def read(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Convert the next frame. Raises ValueError for a missing id or a time that is none."""
        raw = frame.rename(dict(zip(self.source.columns, ("session", "item", "time"), strict=True)))
        raw = raw.with_columns(row=pl.int_range(self.rows, self.rows + frame.height, dtype=pl.Int64))
        if self.source.is_text:
            raw = self._stripped(raw).filter(~pl.all_horizontal(pl.col("session", "item", "time").is_null()))
        typed = raw.with_columns(
            self._ids(raw, "session", self.kinds.session), self._ids(raw, "item", self.kinds.item), self._times(raw)
        )
        self.rows += frame.height
        return typed

    def _stripped(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Text without blanks around its values; what is nothing but blanks is missing."""
        bare = frame.with_columns(pl.col("session", "item", "time").str.strip_chars().replace("", None))
        for which in self.stripped:
            self.stripped[which] += int((bare[which] != frame[which]).sum())
        return bare

    def _ids(self, frame: pl.DataFrame, which: Literal["session", "item"], kind: IdKind) -> pl.Series:
        ids = frame[which]
        if ids.dtype in (pl.Categorical, pl.Enum):
            ids = ids.cast(pl.String)
        if ids.dtype.is_float():
            ids = ids.fill_nan(None)
        self._refuse(frame, which, ids.is_null(), "an id is missing")
        if ids.dtype.is_float():  # pandas makes floats of an integer column that once had gaps
            whole = ids.cast(pl.Int64, strict=False)
            fits = (whole.cast(pl.Float64) == ids).fill_null(False)
            self._refuse(frame, which, ~fits, "ids must be integers or strings")
            ids = whole
        if not (ids.dtype.is_integer() or ids.dtype == pl.String):
            raise ValueError(f"{self._where(which)}: ids must be integers or strings, not {ids.dtype}")
        if kind == "str":
            return ids.cast(pl.String)
        numbers = ids.cast(pl.Int64, strict=False)
        as_text = numbers.is_null()
        if ids.dtype == pl.String:  # "007" is another id than "7"
            padded = ids.str.starts_with("0") & (ids.str.len_bytes() > 1)
            as_text |= padded | ids.str.starts_with("+") | ids.str.starts_with("-0")
        if as_text.any():
            first = frame.filter(as_text).row(0, named=True)
            kinds = replace(self.kinds, session="str") if which == "session" else replace(self.kinds, item="str")
            raise Widened(kinds, {which: f"{first[which]!r} in row {first['row'] + 1}"})
        return numbers

    def _times(self, frame: pl.DataFrame) -> pl.Series:
        times = frame["time"]
        self._refuse(frame, "time", times.is_null(), "a time is missing")
        if times.dtype == pl.String:
            return self._parsed_times(frame)
        if times.dtype in (pl.Date, pl.Datetime):
            return times.cast(pl.Datetime("us")).dt.epoch("us") / 1e6
        if times.dtype.is_integer():
            numbers = times.cast(pl.Int64, strict=False)
            self._refuse(frame, "time", numbers.is_null(), "the number does not fit int64")
            return numbers
        if times.dtype.is_float() or times.dtype.is_decimal():
            numbers = times.cast(pl.Float64)
            self._refuse(frame, "time", ~numbers.is_finite(), "a time must be finite")
            return numbers
        raise ValueError(f"{self._where('time')}: times must be numbers, dates or ISO 8601 strings, not {times.dtype}")

    def _parsed_times(self, frame: pl.DataFrame) -> pl.Series:
        times = frame["time"]
        if self.kinds.time == "date":
            seconds = pl.Series("time", [_seconds(text) for text in times], dtype=pl.Float64)
            self._refuse(frame, "time", seconds.is_null(), "this is no ISO 8601 date or time, as the first row has")
            return seconds
        numbers = times.cast(pl.Int64 if self.kinds.time == "int" else pl.Float64, strict=False)
        if self.kinds.time == "int" and numbers.null_count():
            if _seconds(times[0]) is not None and self.rows == 0 and numbers[0] is None:
                raise Widened(replace(self.kinds, time="date"))
            floats = times.cast(pl.Float64, strict=False)
            self._refuse(frame, "time", ~floats.is_finite().fill_null(False), "neither a number nor an ISO 8601 time")
            raise Widened(replace(self.kinds, time="float"))
        self._refuse(frame, "time", ~numbers.is_finite().fill_null(False), "this is no finite number")
        return numbers

    def _refuse(self, frame: pl.DataFrame, which: str, bad: pl.Series, why: str) -> None:
        if bad.any():
            first = frame.filter(bad).row(0, named=True)
            raise ValueError(
                f"{self._where(which)}, row {first['row'] + 1} (the first after the header is 1), "
                f"value {first[which]!r}: {why}"
            )

    def _where(self, which: str) -> str:
        return f"{self.source.name}: column {self.source.columns[('session', 'item', 'time').index(which)]!r}"


def _seconds(text: Any) -> float | None:
    """Seconds since 1970 of an ISO 8601 date or time, taken as UTC where it names no zone; None where it is none."""
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
