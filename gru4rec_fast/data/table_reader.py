"""Read the rows of a table as polars frames of ids and times with uniform types."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from gru4rec_fast.data.tables import Table
from gru4rec_fast.data.text_files import pl
from gru4rec_fast.data.vocabulary import STRING

if TYPE_CHECKING:
    from gru4rec_fast.distributed import Ranks

BATCH_ROWS = 1_000_000
# Formats of times with codes that polars reads as Python does, and all that it needs for a date.
_POLARS_CODES = re.compile(r"(?=.*%Y)(?=.*%m)(?=.*%d)(?:(?=.*%H)(?=.*%M)|(?!.*%[HMS]))(?:[^%]|%[YmdHMS])+")
_ID_ROLES = ("session", "user", "item", "group")
_EXACT_INTEGERS = {"Float16": 2**11, "Float32": 2**24, "Float64": 2**53}  # floats represent all smaller integers


class RereadRequired(Exception):
    """Raised when a row does not fit the type that a `TableReader` assumed for its column.

    The reader has changed the type, and the table must be read again from its first row.
    """


class TableReader:
    """Reads a table as frames of ids, times, ratings and texts with uniform types.

    Ids of a text file become Int64, or String if any id of the column is not a plain integer ("007" is another id than
    "7"). Ids of other tables become Int64 or String, as their column. Times become Int64 or Float64, ratings Float64.
    In a text file, blanks around values are removed. A value that is missing or unreadable raises an error with its
    column and row; only texts may be missing, which are then empty.

    Args:
        table: the table to read. If it has the columns "time" and "time_of_day", their texts are joined by a blank.
        time_format: format of times that are texts, see `SessionStore.from_events`.
        kinds: types to assume first, by role, by default "int". With "str", ids are always strings.

    Attributes:
        n_rows: number of rows read so far.
        kinds: type of each column by role, according to the rows read so far: "int" or "str" for ids; "int", "float" or
            "date" for times.
    """

    def __init__(self, table: Table, *, time_format: str | None = None, **kinds: str) -> None:
        self.table = table
        self._time_format = time_format
        if time_format is not None:
            _check_time_format(time_format)
        self.kinds = {**dict.fromkeys(table.columns, "int"), **kinds}
        self.n_rows = 0
        self._id_roles = [role for role in table.columns if role in _ID_ROLES]
        self._reasons: dict[str, str] = {}
        self._stripped: dict[str, int] = {}
        self._part, self._first_row = table, 0  # the file that is read, if there are several, and its first row
        self._families: dict[str, tuple[str, str]] = {}  # by role: family of the first part's dtype, and that part

    def id_parsing(self) -> dict[str, dict[str, Any]]:
        """Return how the ids of each role were read.

        The keys are "kind" ("int" or "str"), "because" (the first id that is not an integer, with its row, or None) and
        "stripped" (number of ids that had blanks around them).
        """
        return {
            role: {"kind": self.kinds[role], "because": self._reasons.get(role), "stripped": self._stripped[role]}
            for role in self._id_roles
        }

    def frames(self) -> Iterator[pl.DataFrame]:
        """Yield frames of `BATCH_ROWS` rows. Their columns are named by role; "row" is the row number, from 0.

        Raises:
            RereadRequired: a type has changed. Discard the frames so far and call `frames` again.
            ValueError: a value is missing or unreadable.
        """
        self.n_rows, self._stripped = 0, dict.fromkeys(self._id_roles, 0)
        for part in self.table.parts or (self.table,):
            self._part, self._first_row = part, self.n_rows
            for frame in part.frames(BATCH_ROWS):
                yield self._clean(frame)

    def agree(self, ranks: Ranks, *, failed: bool) -> bool:
        """Assume the types that one reader of the rows of all ranks would find; return whether all ranks had them.

        If not, ranks whose `kinds` have changed must read their rows again. If so, `id_parsing` is about all rows.

        Args:
            failed: whether reading has raised an error on this rank.

        Raises:
            ValueError: a column has values of different families on different ranks.
        """
        state = (self.kinds, self._reasons, self._families, self._stripped, failed or self.n_rows > 0)
        all_kinds, reasons, families, stripped, has_rows = zip(*ranks.gather(state), strict=True)
        self._families = {}
        for first_parts in families:
            for role, (family, name) in first_parts.items():
                self._require_family(role, family, name)
        kinds = {role: max(kinds[role] for kinds in all_kinds) for role in self._id_roles}  # "str" > "int"
        # The first row of the log decides whether times are dates.
        times = [kinds["time"] for kinds, not_empty in zip(all_kinds, has_rows, strict=True) if not_empty] or ["int"]
        kinds["time"] = times[0] if times[0] == "date" or len({*times}) == 1 else "float"
        self.kinds = kinds
        self._reasons = {role: reason for found in reversed(reasons) for role, reason in found.items()}
        agreed = all(own == kinds for own in all_kinds)
        if agreed:
            self._stripped = {role: sum(counts[role] for counts in stripped) for role in self._id_roles}
        return agreed

    def read(self) -> pl.DataFrame:
        """Return all rows as one frame. Raises ValueError if there are none."""
        while True:
            try:
                frames = list(self.frames())
            except RereadRequired:
                continue
            if not frames:
                raise ValueError(f"{self.table.name} holds no rows")
            return pl.concat(frames)

    def _clean(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return a frame of the table with typed columns and row numbers."""
        if self.table.is_text:
            raw = frame
            frame = raw.with_columns(
                pl.col(list(self.table.columns)).str.strip_chars().replace("", None), pl.col("row") + self._first_row
            )
            for role in self._id_roles:
                self._stripped[role] += int((frame[role] != raw[role]).sum())
        else:
            frame = frame.with_columns(row=pl.int_range(self.n_rows, self.n_rows + frame.height, dtype=pl.Int64))
            self._check_families(frame)
        if not self._part.has_header and self.n_rows == self._first_row:
            self._refuse_header(frame)
        typed = [self._typed_ids(frame, role) for role in self._id_roles]
        if "time_of_day" in self.table.columns:
            frame = self._with_joined_times(frame)
        if "time" in self.table.columns:
            typed.append(self._times(frame))
        if "rating" in self.table.columns:
            typed.append(self._ratings(frame))
        if "text" in self.table.columns:
            typed.append(frame["text"].cast(pl.String).fill_null(""))
        if frame.height:
            self.n_rows = frame["row"][-1] + 1
        return frame.with_columns(typed)

    def _refuse_header(self, frame: pl.DataFrame) -> None:
        """Raise ValueError if only the ids of the first row are no integers, so that it seems to be a header."""
        masks = [plain_integers(frame[role])[1] for role in self._id_roles]
        if all(len(is_text) > 1 and is_text[0] and not is_text[1:].any() for is_text in masks):
            ids = ", ".join(f"{value!r:.80}" for value in frame.select(self._id_roles).row(0))
            raise ValueError(
                f"{self._part.name}: the first row, with the ids {ids}, seems to be a header, because all other ids "
                "are integers: remove it, or use its names instead of columns=... (--columns)"
            )

    def _typed_ids(self, frame: pl.DataFrame, role: str) -> pl.Series:
        """Return the ids of a role as Int64 or String. Raises RereadRequired if the type has to change."""
        ids = frame[role]
        if ids.dtype in (pl.Categorical, pl.Enum):
            ids = ids.cast(pl.String)
        if ids.dtype.is_float():
            ids = ids.fill_nan(None)
        self._raise_if(frame, role, ids.is_null(), "an id is missing")
        if ids.dtype.is_float():  # pandas stores an integer column as floats if it has, or once had, missing values
            integers = ids.cast(pl.Int64, strict=False)
            is_whole = (integers.cast(ids.dtype) == ids).fill_null(False)
            self._raise_if(frame, role, ~is_whole, "ids must be integers or strings")
            limit = _EXACT_INTEGERS[str(ids.dtype)]
            problem = (
                f"{ids.dtype} has no exact integers from {limit} on, so that ids may have been merged: give integers"
            )
            self._raise_if(frame, role, ids.abs() >= limit, problem)
            ids = integers
        if not (ids.dtype.is_integer() or ids.dtype == pl.String):
            raise ValueError(f"{self._label(role)}: ids must be integers or strings, not {ids.dtype}")
        if self.kinds[role] == "str":
            return ids.cast(pl.String)
        if ids.dtype == pl.String and not self.table.is_text:
            self._change_kind(role, "str")
        integers, is_text = plain_integers(ids)
        if not self.table.is_text:
            self._raise_if(frame, role, is_text, "integer ids must fit int64; give them as strings")
        if is_text.any():
            first = frame.filter(is_text).row(0, named=True)
            where = f" of {self._part.name}" if self.table.parts else ""
            self._reasons[role] = f"{first[role]!r:.80} in row {first['row'] - self._first_row + 1}{where}"
            self._change_kind(role, "str")
        return integers

    def _times(self, frame: pl.DataFrame) -> pl.Series:
        """Return the times as Int64 or Float64. Dates become seconds since 1970."""
        times = frame["time"]
        self._raise_if(frame, "time", times.is_null(), "a time is missing")
        if self._time_format is not None:
            if times.dtype != pl.String:
                raise ValueError(
                    f"{self._label('time')}: time_format={self._time_format!r} is for texts and has no effect on "
                    f"{times.dtype}: leave it out"
                )
            seconds = _parse_times_by_format(times, self._time_format)
            self._raise_if(frame, "time", seconds.is_null(), f"not of the form time_format={self._time_format!r}")
            return seconds
        if times.dtype == pl.String:
            return self._parse_times(frame)
        if times.dtype == pl.Date:
            return times.to_physical() * 86400.0
        if isinstance(times.dtype, pl.Datetime):
            return _seconds(times)
        if times.dtype.is_integer():
            integers = times.cast(pl.Int64, strict=False)
            self._raise_if(frame, "time", integers.is_null(), "the number does not fit int64")
            return integers.cast(pl.Float64) if self.kinds["time"] == "float" else integers
        if times.dtype.is_float() or times.dtype.is_decimal():
            floats = times.cast(pl.Float64)
            self._raise_if(frame, "time", ~floats.is_finite(), "a time must be finite")
            if self.kinds["time"] == "int":  # other parts of the log may have integers
                self._change_kind("time", "float")
            return floats
        raise ValueError(f"{self._label('time')}: times must be numbers, dates or ISO 8601 strings, not {times.dtype}")

    def _with_joined_times(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return a frame with dates and times of day in one column "time" of texts."""
        for role, allowed in (("time", pl.Date), ("time_of_day", pl.Time)):
            if frame[role].dtype not in (pl.String, allowed, pl.Null):
                raise ValueError(
                    f"{self._label(role)}: in two columns, times must be texts or the types {pl.Date} and {pl.Time}, "
                    f"not {frame[role].dtype}"
                )
        clock = frame["time_of_day"]
        if clock.dtype == pl.Time:
            clock = clock.dt.strftime("%H:%M:%S%.f")  # a cast to String would lose the fractions of seconds
        both = pl.concat_str(pl.col("time").cast(pl.String), clock.cast(pl.String), separator=" ")
        return frame.with_columns(both.alias("time")).drop("time_of_day")

    def _ratings(self, frame: pl.DataFrame) -> pl.Series:
        """Return the ratings as Float64."""
        ratings = frame["rating"]
        if not (ratings.dtype.is_numeric() or ratings.dtype in (pl.String, pl.Null)):
            raise ValueError(f"{self._label('rating')}: ratings must be numbers, not {ratings.dtype}")
        self._raise_if(frame, "rating", ratings.is_null(), "a rating is missing")
        numbers = ratings.cast(pl.Float64, strict=False)
        self._raise_if(frame, "rating", ~numbers.is_finite().fill_null(False), "a rating must be a finite number")
        return numbers

    def _parse_times(self, frame: pl.DataFrame) -> pl.Series:
        """Parse times that are strings as the assumed kind, which is "int" at first.

        If a time is not an integer, change the kind and raise RereadRequired. The new kind is "date" if the first row
        of the table is a date, else "float".
        """
        times, kind = frame["time"], self.kinds["time"]
        if kind == "date":
            seconds = pl.Series("time", [_parse_iso_time(text) for text in times], dtype=pl.Float64)
            self._raise_if(frame, "time", seconds.is_null(), "this is no ISO 8601 date or time, but the first row is")
            return seconds
        numbers = times.cast(pl.Int64 if kind == "int" else pl.Float64, strict=False)
        if kind == "int" and numbers.null_count():
            if _parse_iso_time(times[0]) is not None and self.n_rows == 0 and numbers[0] is None:
                self._change_kind("time", "date")
            is_finite = times.cast(pl.Float64, strict=False).is_finite().fill_null(False)
            problem = "neither a number nor an ISO 8601 time; give time_format=... (--time-format) for another format"
            self._raise_if(frame, "time", ~is_finite, problem)
            self._change_kind("time", "float")
        self._raise_if(frame, "time", ~numbers.is_finite().fill_null(False), "this is no finite number")
        return numbers

    def _change_kind(self, role: str, kind: str) -> NoReturn:
        self.kinds[role] = kind
        raise RereadRequired

    def _raise_if(self, frame: pl.DataFrame, role: str, mask: pl.Series, problem: str) -> None:
        """Raise ValueError for the first row in which the mask is True."""
        if mask.any():
            index = mask.arg_true()[0]
            # Dates are not shown, because Python cannot represent all of them.
            value = frame[role].dtype if frame[role].dtype.is_temporal() else frame[role][index]
            row = frame["row"][index] - self._first_row + 1
            first = "the first after the header is 1" if self._part.has_header else "the first is 1"
            raise ValueError(f"{self._label(role)}, row {row} ({first}), value {value!r:.80}: {problem}")

    def _label(self, role: str) -> str:
        """Return the names of the source and the column, for an error message."""
        roles = [role, "time_of_day"] if role == "time" else [role]
        columns = [repr(self._part.columns[role]) for role in roles if role in self._part.columns]
        return f"{self._part.name}: column {' + '.join(columns)}"

    def _check_families(self, frame: pl.DataFrame) -> None:
        """Raise ValueError if a column has strings in one part and numbers in another, or dates and numbers."""
        for role in self._part.columns:
            dtype = frame[role].dtype
            family = "numbers" if dtype.is_numeric() else "dates" if dtype.is_temporal() else "strings"
            self._require_family(role, family, self._part.name)

    def _require_family(self, role: str, family: str, name: str) -> None:
        """Raise ValueError if a column has another family in the part `name` than in the first part."""
        first, first_name = self._families.setdefault(role, (family, name))
        if family != first:
            column = self.table.columns[role]
            raise ValueError(
                f"{name}: column {column!r} holds {family}, and {first} in {first_name}: make the files alike"
            )


def plain_integers(ids: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Convert ids to Int64. Also return a mask of the ids that must stay text, such as "x7", "007" and "+7"."""
    integers = ids.cast(pl.Int64, strict=False)
    is_text = integers.is_null()
    if ids.dtype == pl.String:
        zero_padded = ids.str.starts_with("0") & (ids.str.len_bytes() > 1)
        is_text |= zero_padded | ids.str.starts_with("+") | ids.str.starts_with("-0")
    return integers, is_text


def _seconds(times: pl.Series) -> pl.Series:
    """Convert Datetime values to seconds since 1970, Float64."""
    unit = times.dtype.time_unit  # type: ignore[attr-defined]
    if unit == "ns":
        times = times.cast(pl.Datetime("us"))
    # NumPy rounds quotients correctly; polars multiplies by the rounded reciprocal.
    return pl.Series("time", times.to_physical().to_numpy() / (1e3 if unit == "ms" else 1e6))


def _parse_iso_time(text: Any) -> float | None:
    """Convert an ISO 8601 date or time to seconds since 1970; None for other text. Without a time zone it is UTC."""
    try:
        return _timestamp(datetime.fromisoformat(text.strip()))
    except ValueError:
        return None


def _timestamp(time: datetime) -> float:
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def _parse_times_by_format(times: pl.Series, time_format: str) -> pl.Series:
    """Convert texts to seconds since 1970, Float64, as `datetime.strptime` reads them; null for other texts."""
    if not _POLARS_CODES.fullmatch(time_format):
        return pl.Series("time", [_strptime(text, time_format) for text in times], dtype=pl.Float64)
    # polars is faster, but also accepts other texts, such as the second 60. A time that polars formats as the same text
    # is the one that strptime finds.
    parsed = times.str.to_datetime(time_format, time_unit="us", strict=False)
    is_same = (parsed.dt.strftime(time_format) == times) & parsed.dt.year().is_between(1, 9999)
    others = (~is_same.fill_null(False)).arg_true()
    seconds = _seconds(parsed)
    seconds[others] = [_strptime(text, time_format) for text in times[others]]
    return seconds


def _strptime(text: str, time_format: str) -> float | None:
    try:
        return _timestamp(datetime.strptime(text, time_format))
    except (ValueError, OverflowError):
        return None


def _check_time_format(time_format: str) -> None:
    """Raise ValueError for a format that `datetime.strptime` does not know, or that does not state the whole time."""
    example = datetime(2001, 2, 3, 4, 5, 6, tzinfo=UTC)
    try:
        year = datetime.strptime(example.strftime(time_format), time_format).year
    except (ValueError, re.error) as error:
        raise ValueError(f"time_format={time_format!r} is not a format of datetime.strptime: {error}") from None
    if year != example.year:
        raise ValueError(f"time_format={time_format!r} has no year, such as %Y: times cannot be compared without it")
    if "Z" in re.findall("%(.)", time_format):
        raise ValueError(
            f"time_format={time_format!r}: names of time zones are ambiguous: give the name itself, as in '%H:%M UTC', "
            "if it is UTC in all rows, or numeric time zones (%z)"
        )


def numpy_ids(ids: pl.Series) -> np.ndarray:
    """Convert Int64 ids to int64, and String ids to `STRING`."""
    return ids.to_numpy() if ids.dtype == pl.Int64 else np.array(ids.to_list(), STRING)
