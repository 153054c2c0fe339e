"""Read text files of separated columns as polars frames; find the separator, and check lines and quotes."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

try:
    import polars as pl
except ModuleNotFoundError as error:
    raise ImportError("reading a log needs polars: pip install polars (a prepared store opens without it)") from error

# `pl` is exported, so that other modules that import it from here raise the same error if polars is missing.
__all__ = ["TextFile", "first_line", "guess_separator", "line_batches", "pl"]

_SEPARATORS = "\t,;| "
_NO_SEPARATOR = "\x1f"  # ASCII "unit separator", which text files do not contain: each line is one column
_BATCH_LINES = 1 << 18  # number of lines that are checked at a time


@dataclass(frozen=True)
class TextFile:
    """A text file of separated columns, which has been checked and can be read more than once.

    A quote character quotes a field if it is the first character of the field (RFC 4180). Elsewhere, also after a
    blank, it is an ordinary character.

    Attributes:
        separator: one ASCII character.
        quote: one ASCII character; None if no field is quoted.
        names: column names in the header, unchanged.
        header: index of the header, which is the first line that is not empty.
        n_lines: number of lines of the file.
        empty_lines: indices of the lines that hold nothing or only blanks, an Int64 series.
        needs_csv_module: True for files that polars would split wrongly: files with line breaks in quoted fields, with
            quoted fields and also quotes within other fields, or with carriage returns that are not followed by a line
            feed. The csv module of Python reads them; it is slower.
    """

    path: Path
    separator: str
    quote: str | None
    names: list[str]
    header: int
    n_lines: int
    empty_lines: pl.Series
    needs_csv_module: bool

    @classmethod
    def check(cls, path: Path, separator: str | None, quote: str | None, wanted: Iterable[str]) -> TextFile:
        """Read the lines of a file once and check them.

        Args:
            path: the file, plain or compressed (.gz, .zst).
            separator: None chooses the separator that yields the most of the columns `wanted`, then the most columns.
            quote: the character that quotes fields; None if no field is quoted.
            wanted: column names.

        Raises:
            ValueError: the file is empty or damaged, or a line has more fields than the header.
        """
        header, header_text = first_line(path)
        separator = guess_separator(header_text, wanted) if separator is None else separator
        for argument, character in (("separator", separator), ("quote", quote)):
            if character is not None and (len(character.encode()) != 1 or character in "\r\n"):
                raise ValueError(f"{argument}={character!r}: it must be a single ASCII character, and no line end")
        if separator == quote:
            raise ValueError(f"separator={separator!r}: it is also the character that quotes fields")
        names = _column_names(header_text, separator, quote, f"{path}, line {header + 1}")
        # In a regex, characters are written as \xNN, so that they need no escaping.
        s, q = (f"\\x{ord(character):02x}" for character in (separator, quote or '"'))
        field = f"(?:{q}(?:[^{q}]|{q}{q})*{q}|[^{q}{s}]*)"  # a quoted field, or one without quotes
        regular = f"^{field}(?:{s}{field})*$"
        n_lines, empty_lines = 0, []
        has_carriage_return = has_quoted_field = has_other_quote = False
        # Index of the first line with too many separators. For True, separators in quoted fields are not counted.
        long_line: dict[bool, int | None] = {False: None, True: None}
        for lines in line_batches(path):
            index = pl.int_range(n_lines, n_lines + len(lines), dtype=pl.Int64, eager=True)
            n_lines += len(lines)
            n_separators = lines.str.count_matches(separator, literal=True).fill_null(0)
            one_field = n_separators == 0
            is_empty = lines.filter(one_field).fill_null("").str.strip_chars(" \t".replace(separator, "")) == ""
            empty_lines.append(index.filter(one_field).filter(is_empty))
            has_carriage_return |= lines.str.contains("\r", literal=True).any()
            quotes = lines.filter(lines.str.contains(quote, literal=True)) if quote is not None else lines.clear()
            if len(quotes):
                is_regular = quotes.str.contains(regular)
                has_other_quote |= not is_regular.all()
                # The quotes of a regular line are those of quoted fields.
                has_quoted_field |= is_regular.any() or quotes.str.contains(f"(?:^|{s}|\r){q}").any()
            is_long = n_separators >= len(names)
            if is_long.any():
                index, lines = index.filter(is_long), lines.filter(is_long)
                unquoted = lines.str.replace_all(f"{q}[^{q}]*{q}", "")
                is_still_long = unquoted.str.count_matches(separator, literal=True) >= len(names)
                for has_quotes, first in ((False, index.first()), (True, index.filter(is_still_long).first())):
                    if long_line[has_quotes] is None:
                        long_line[has_quotes] = first  # type: ignore[assignment]
        needs_csv_module = has_carriage_return or (has_quoted_field and has_other_quote)
        first_long = long_line[has_quoted_field]
        if first_long is not None and not needs_csv_module:
            raise _long_line_error(path, first_long + 1, separator, len(names))
        quote = quote if has_quoted_field else None
        return cls(path, separator, quote, names, header, n_lines, pl.concat(empty_lines), needs_csv_module)

    def frames(self, columns: Mapping[str, int], batch_rows: int) -> Iterator[pl.DataFrame]:
        """Yield the String columns with these indices, in frames of at most `batch_rows` rows.

        `columns` maps names in the frames to indices in the file. The additional column "row" is the number of the row,
        counted from 0 after the header. Empty lines are counted, but not returned.

        Raises ValueError if the file is damaged, or has another number of rows than `check` found.
        """
        yield from (self._csv_frames if self.needs_csv_module else self._polars_frames)(columns, batch_rows)

    def _polars_frames(self, columns: Mapping[str, int], batch_rows: int) -> Iterator[pl.DataFrame]:
        frame = pl.scan_csv(
            self.path,
            has_header=False,
            skip_lines=self.header,
            separator=self.separator,
            quote_char=self.quote,
            schema={str(i): pl.String for i in range(len(self.names))},
            truncate_ragged_lines=True,
            glob=False,
        ).select(pl.col(str(i)).alias(name) for name, i in columns.items())
        empty_rows = self.empty_lines - self.header - 1
        n_rows = -1  # the first row is the header
        with _explain_damage(self.path, self.separator):
            for chunk in frame.collect_batches(chunk_size=batch_rows, maintain_order=True, engine="streaming"):
                for batch in chunk.iter_slices(batch_rows):
                    rows = pl.int_range(n_rows, n_rows + len(batch), dtype=pl.Int64, eager=True).alias("row")
                    n_rows += len(batch)
                    yield batch.with_columns(rows).filter((rows >= 0) & ~rows.is_in(empty_rows.implode()))
        if n_rows != self.n_lines - self.header - 1:
            raise ValueError(
                f"{self.path} has {self.n_lines - self.header - 1} lines after its header, but {n_rows} rows were "
                "read: did another process write to the file, or does it hold control characters?"
            )

    def _csv_frames(self, columns: Mapping[str, int], batch_rows: int) -> Iterator[pl.DataFrame]:
        rows = self._csv_rows()
        while True:
            numbers: list[int] = []
            values: dict[str, list[str | None]] = {name: [] for name in columns}
            for number, row in islice(rows, batch_rows):  # not a list of rows, which the garbage collector would scan
                numbers.append(number)
                for name, i in columns.items():
                    values[name].append(row[i] if i < len(row) else None)
            if not numbers:
                return
            yield pl.DataFrame({**values, "row": numbers}, schema=dict.fromkeys(values, pl.String) | {"row": pl.Int64})

    def _csv_rows(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the number and the fields of each row that is not empty, as the csv module splits them."""
        blanks = " \t".replace(self.separator, "")
        with _explain_damage(self.path, self.separator):
            reader = csv.reader(
                _text_lines(self.path),
                delimiter=self.separator,
                quotechar=self.quote,
                quoting=csv.QUOTE_NONE if self.quote is None else csv.QUOTE_MINIMAL,
                strict=True,
            )
            n_rows, line = -1, 0
            header_found = False
            try:
                for row in reader:
                    n_rows += header_found
                    if len(row) > len(self.names):
                        raise _long_line_error(self.path, line + 1, self.separator, len(self.names))
                    line = reader.line_num
                    if len(row) > 1 or (row and row[0].strip(blanks)):
                        if header_found:
                            yield n_rows, row
                        header_found = True
            except csv.Error as error:
                raise ValueError(
                    f"{self.path}, line {line + 1}: the row that begins here has a quoted field that is not closed, or "
                    f"text after one ({error}); correct it, or give quote=None (--quote none) if no field is quoted"
                ) from error


def guess_separator(header: str, wanted: Iterable[str]) -> str:
    """Return the separator that yields the most wanted columns, then the most columns."""

    def score(separator: str) -> tuple[int, int]:
        columns = [column.strip(" ").strip('"').strip(" ") for column in header.split(separator)]
        return sum(name in columns for name in wanted), len(columns)

    return max(_SEPARATORS, key=score)


def _column_names(header: str, separator: str, quote: str | None, place: str) -> list[str]:
    """Split a header into column names; ValueError that begins with `place` if a quoted name is not closed."""
    if quote is None:
        return header.split(separator)
    try:
        return next(csv.reader([header], delimiter=separator, quotechar=quote, strict=True))
    except csv.Error as error:
        raise ValueError(
            f"{place}: the header has a wrong quote ({error}); with quote=None (--quote none) no field is quoted"
        ) from None


def first_line(path: Path) -> tuple[int, str]:
    """Return the index and the text of the first line that is not empty; ValueError if all lines are empty."""
    index = 0
    for lines in line_batches(path, 100):
        for line in lines:
            if line and line.strip():
                return index, line.lstrip("\r").split("\r")[0]
            index += 1
    raise ValueError(f"{path} is empty")


def line_batches(path: Path, batch_lines: int = _BATCH_LINES) -> Iterator[pl.Series]:
    """Yield the lines of a file as series of strings without line ends; an empty line is null.

    A byte order mark is removed. Lines end with LF or CRLF. Raises ValueError if the file cannot be read.
    """
    try:
        with _explain_damage(path):
            # polars also decompresses.
            frame = pl.scan_csv(
                path,
                has_header=False,
                separator=_NO_SEPARATOR,
                quote_char=None,
                infer_schema=False,
                new_columns=["line"],
                glob=False,
            )
            for batch in frame.collect_batches(chunk_size=batch_lines, maintain_order=True, engine="streaming"):
                yield from (piece["line"] for piece in batch.iter_slices(batch_lines))
    except pl.exceptions.NoDataError:
        raise ValueError(f"{path} is empty") from None


def _text_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a file with their line ends, which may also be a carriage return alone."""
    if path.suffix.lower() == ".zst":  # Python cannot read it before version 3.14
        yield from (f"{part}\n" for lines in line_batches(path) for line in lines for part in (line or "").split("\r"))
        return
    with _open_bytes(path) as file:
        yield from io.TextIOWrapper(file, encoding="utf-8-sig", newline="")


def _open_bytes(path: Path) -> BinaryIO:
    """Open a plain or gzip-compressed file."""
    with open(path, "rb") as file:
        is_gzip = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if is_gzip else open(path, "rb")  # type: ignore[return-value]


def _long_line_error(path: Path, line: int, separator: str, n_columns: int) -> ValueError:
    return ValueError(
        f"{path}, line {line}: it has more fields than the header, which has {n_columns} (split at {separator!r}; give "
        "separator=... if that is wrong, and quote fields that hold the separator)"
    )


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


@contextmanager
def _explain_damage(path: Path, separator: str | None = None) -> Iterator[None]:
    """Context manager that replaces an error of a library that reads `path` by a ValueError that names `path`."""
    try:
        yield
    except pl.exceptions.NoDataError:
        raise
    except (OSError, EOFError, UnicodeError, zlib.error, pl.exceptions.PolarsError) as error:
        hint = f" (split at {separator!r}; give separator=... if that is wrong)" if separator else ""
        reason = str(error).split("\n\n")[0]
        if "utf-8" in reason and path.suffix.lower() != ".zst":
            with suppress(OSError, EOFError, zlib.error), _open_bytes(path) as file:
                line = next(number for number, line in enumerate(file, 1) if not _is_utf8(line))
                reason += f" in line {line}; convert the file to UTF-8"
        raise ValueError(f"{path} is damaged, or its format is not what its name says{hint}: {reason}") from error
