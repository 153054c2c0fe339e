"""Read text files of separated columns as polars frames; find the separator, and check lines and quotes."""

from __future__ import annotations

import codecs
import csv
import gzip
import importlib
import io
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from gru4rec_fast.data.array_folder import counted

try:
    import polars as pl
except ModuleNotFoundError as error:
    raise ImportError("reading a log needs polars: pip install polars (a prepared store opens without it)") from error

# `pl` is exported, so that other modules that import it from here raise the same error if polars is missing.
__all__ = ["TextFile", "first_line", "guess_separator", "line_batches", "pl"]

_SEPARATORS = "\t,;| "
# ASCII "unit separator", which text files do not contain. With it as the separator, each line is one column. It also
# replaces a separator that is not a single ASCII character.
_UNIT_SEPARATOR = "\x1f"
_BATCH_LINES = 1 << 18  # number of lines that are checked at a time


@dataclass(frozen=True)
class TextFile:
    """A text file of separated columns, which has been checked and can be read more than once.

    A quote character quotes a field if it is the first character of the field (RFC 4180). Elsewhere, also after a
    blank, it is an ordinary character.

    Attributes:
        separator: one or more characters.
        quote: one ASCII character; None if no field is quoted.
        encoding: name of a text encoding of Python.
        names: column names in the header, unchanged, or the given ones.
        has_header: whether the first line that is not empty is a header.
        start: index of the first line that is not empty.
        n_lines: number of lines of the file.
        empty_lines: indices of the lines that hold nothing or only blanks, an Int64 series.
        needs_csv_module: True for files that polars would split wrongly: files with line breaks in quoted fields, with
            quoted fields and also quotes within other fields, or with carriage returns that are not followed by a line
            feed; and for files that are not UTF-8, or whose separator is not a single ASCII character. The csv module
            of Python reads them; it is slower.
    """

    path: Path
    separator: str
    quote: str | None
    encoding: str
    names: list[str]
    has_header: bool
    start: int
    n_lines: int
    empty_lines: pl.Series
    needs_csv_module: bool

    @classmethod
    def check(
        cls,
        path: Path,
        wanted: Iterable[str],
        *,
        separator: str | None,
        quote: str | None,
        encoding: str = "utf-8",
        columns: Sequence[str] | None = None,
    ) -> TextFile:
        """Read the lines of a file once and check them.

        Args:
            path: the file, plain or compressed (.gz, .zst).
            wanted: column names.
            separator: None chooses the separator that yields the most of the columns `wanted`, then the most columns;
                for a file without a header, one that yields as many columns as `columns` has.
            quote: the character that quotes fields; None if no field is quoted.
            encoding: encoding of the file; a byte order mark is removed. Files that are not UTF-8 are checked later,
                while they are read.
            columns: names of all columns in order, if the file has no header.

        Raises:
            ValueError: the file is empty or damaged, or a line has more fields than the header, or the first line has
                not as many fields as `columns`, or is a header.
        """
        reads_utf8 = is_utf8(encoding)
        start, first = first_line(path, encoding)
        place = f"{path}, line {start + 1}"
        if separator is None:
            separator = guess_separator(first, wanted, None if columns is None else len(columns), quote)
        if not separator or "\r" in separator or "\n" in separator:
            raise ValueError(f"separator={separator!r}: it must be one or more characters, and no line end")
        if quote is not None and (len(quote) != 1 or not quote.isascii() or quote in "\r\n"):
            raise ValueError(f"quote={quote!r}: it must be a single ASCII character, and no line end")
        if quote is not None and quote in separator:
            raise ValueError(f"separator={separator!r}: it has the character that quotes fields, {quote!r}")
        names = _split(first, separator, quote, place)
        if columns is not None:
            _check_columns(columns, names, wanted, f"{place} (split at {separator!r})")
            names = list(columns)
        if not reads_utf8 or _delimiter(separator) != separator:
            no_lines = pl.Series(dtype=pl.Int64)
            return cls(path, separator, quote, encoding, names, columns is None, start, 0, no_lines, True)
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
                for has_quotes, number in ((False, index.first()), (True, index.filter(is_still_long).first())):
                    if long_line[has_quotes] is None:
                        long_line[has_quotes] = number  # type: ignore[assignment]
        needs_csv_module = has_carriage_return or (has_quoted_field and has_other_quote)
        first_long = long_line[has_quoted_field]
        if first_long is not None and not needs_csv_module:
            raise _long_line_error(path, first_long + 1, separator, len(names), columns is None)
        quote = quote if has_quoted_field else None
        empty = pl.concat(empty_lines)
        return cls(path, separator, quote, encoding, names, columns is None, start, n_lines, empty, needs_csv_module)

    def frames(self, columns: Mapping[str, int], batch_rows: int) -> Iterator[pl.DataFrame]:
        """Yield the String columns with these indices, in frames of at most `batch_rows` rows.

        `columns` maps names in the frames to indices in the file. The additional column "row" is the number of the row,
        counted from 0, after the header if there is one. Empty lines are counted, but not returned.

        Raises ValueError if the file is damaged, or has another number of rows than `check` found.
        """
        yield from (self._csv_frames if self.needs_csv_module else self._polars_frames)(columns, batch_rows)

    def _polars_frames(self, columns: Mapping[str, int], batch_rows: int) -> Iterator[pl.DataFrame]:
        frame = pl.scan_csv(
            self.path,
            has_header=False,
            skip_lines=self.start,
            separator=self.separator,
            quote_char=self.quote,
            schema={str(i): pl.String for i in range(len(self.names))},
            truncate_ragged_lines=True,
            glob=False,
        ).select(pl.col(str(i)).alias(name) for name, i in columns.items())
        n_before = self.start + 1 if self.has_header else 0  # lines before row 0
        empty_rows = self.empty_lines - n_before
        n_rows = self.start - n_before  # -1 for the header
        with _explain_damage(self.path, self.separator):
            for chunk in frame.collect_batches(chunk_size=batch_rows, maintain_order=True, engine="streaming"):
                for batch in chunk.iter_slices(batch_rows):
                    rows = pl.int_range(n_rows, n_rows + len(batch), dtype=pl.Int64, eager=True).alias("row")
                    n_rows += len(batch)
                    yield batch.with_columns(rows).filter((rows >= 0) & ~rows.is_in(empty_rows.implode()))
        if n_rows != self.n_lines - n_before:
            raise ValueError(
                f"{self.path} has {self.n_lines - n_before} lines{' after its header' if self.has_header else ''}, but "
                f"{n_rows} rows were read: did another process write to the file, or does it hold control characters?"
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
        delimiter = _delimiter(self.separator)
        restores = delimiter != self.separator and self.quote is not None
        with _explain_damage(self.path, self.separator, self.encoding):
            lines = _text_lines(self.path, self.encoding)
            reader = csv.reader(
                lines if delimiter == self.separator else self._with_delimiter(lines, delimiter),
                delimiter=delimiter,
                quotechar=self.quote,
                quoting=csv.QUOTE_NONE if self.quote is None else csv.QUOTE_MINIMAL,
                strict=True,
            )
            n_rows, line = -1, 0
            header_found = not self.has_header
            try:
                for row in reader:
                    n_rows += header_found
                    if len(row) > len(self.names):
                        raise _long_line_error(self.path, line + 1, self.separator, len(self.names), self.has_header)
                    line = reader.line_num
                    if restores:  # a quoted field may hold the separator
                        row = [field.replace(delimiter, self.separator) for field in row]
                    if len(row) > 1 or (row and row[0].strip(blanks)):
                        if header_found:
                            yield n_rows, row
                        header_found = True
            except csv.Error as error:
                raise ValueError(
                    f"{self.path}, line {line + 1}: the row that begins here has a quoted field that is not closed, or "
                    f"text after one ({error}); correct it, or give quote=None (--quote none) if no field is quoted"
                ) from error

    def _with_delimiter(self, lines: Iterable[str], delimiter: str) -> Iterator[str]:
        """Yield lines in which a delimiter of one character replaces the separator. ValueError if they have it."""
        for number, line in enumerate(lines, 1):
            if delimiter in line:
                raise ValueError(
                    f"{self.path}, line {number}: it has the control character {delimiter!r}, which is not allowed "
                    f"with separator={self.separator!r}: remove it"
                )
            yield line.replace(self.separator, delimiter)


def is_utf8(encoding: str) -> bool:
    """Return whether a name means UTF-8, with or without a byte order mark; ValueError if it is no text encoding."""
    try:
        io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        return codecs.lookup(encoding).name in ("utf-8", "utf-8-sig")
    except (LookupError, ValueError):
        raise ValueError(
            f"encoding={encoding!r}: there is no such text encoding; give one that Python has, such as 'latin-1', "
            "'cp1252' or 'utf-16'"
        ) from None


def guess_separator(first: str, wanted: Iterable[str], n_columns: int | None = None, quote: str | None = None) -> str:
    """Return the separator of the first line of a file: one that yields `n_columns` columns if that is given.

    If there is none, or no `n_columns`: the one that yields the most wanted columns, then the most columns.
    """

    def score(separator: str) -> tuple[int, int]:
        columns = [column.strip(" ").strip('"').strip(" ") for column in first.split(separator)]
        return sum(name in columns for name in wanted), len(columns)

    for candidate in _SEPARATORS if n_columns is not None else "":
        with suppress(ValueError):
            if len(_split(first, candidate, quote, "")) == n_columns:
                return candidate
    return max(_SEPARATORS, key=score)


def _delimiter(separator: str) -> str:
    """Return a separator of one ASCII character, which replaces any other."""
    return separator if len(separator) == 1 and separator.isascii() else _UNIT_SEPARATOR


def _split(first: str, separator: str, quote: str | None, place: str) -> list[str]:
    """Split the first line of a file; ValueError that begins with `place` if a quoted field is not closed."""
    if quote is None:
        return first.split(separator)
    delimiter = _delimiter(separator)
    try:
        fields = next(
            csv.reader([first.replace(separator, delimiter)], delimiter=delimiter, quotechar=quote, strict=True)
        )
    except csv.Error as error:
        raise ValueError(
            f"{place}: the first line has a wrong quote ({error}); with quote=None (--quote none) no field is quoted"
        ) from None
    return [field.replace(delimiter, separator) for field in fields]


def _check_columns(columns: Sequence[str], fields: Sequence[str], wanted: Iterable[str], place: str) -> None:
    """Raise ValueError if the fields of the first line are a header, or not as many as the given columns."""
    if {name.casefold() for name in wanted} <= {field.strip().casefold() for field in fields}:
        raise ValueError(f"{place}: this is a header with the names of the columns: leave out columns=... (--columns)")
    if len(fields) != len(columns):
        raise ValueError(
            f"{place}: it has {counted(len(fields), 'fields')}, but columns=... (--columns) has "
            f"{counted(len(columns), 'names')}: name all columns in order, or give another separator=..."
        )


def first_line(path: Path, encoding: str = "utf-8") -> tuple[int, str]:
    """Return the index and the text of the first line that is not empty; ValueError if all lines are empty."""
    index = 0
    for lines in line_batches(path, 100, encoding):
        for line in lines:
            if line and line.strip():
                return index, line.lstrip("\r").split("\r")[0]
            index += 1
    raise ValueError(f"{path} is empty")


def line_batches(path: Path, batch_lines: int = _BATCH_LINES, encoding: str = "utf-8") -> Iterator[pl.Series]:
    """Yield the lines of a file as series of strings without line ends; an empty line is null.

    A byte order mark is removed. Lines end with LF or CRLF; in files that are not UTF-8, also with CR. Raises
    ValueError if the file cannot be read.
    """
    if not is_utf8(encoding):
        with _explain_damage(path, encoding=encoding):
            lines = _text_lines(path, encoding)
            while texts := [line.rstrip("\r\n") or None for line in islice(lines, batch_lines)]:
                yield pl.Series("line", texts, pl.String)
        return
    try:
        with _explain_damage(path):
            # polars also decompresses.
            frame = pl.scan_csv(
                path,
                has_header=False,
                separator=_UNIT_SEPARATOR,
                quote_char=None,
                infer_schema=False,
                new_columns=["line"],
                glob=False,
            )
            for batch in frame.collect_batches(chunk_size=batch_lines, maintain_order=True, engine="streaming"):
                yield from (piece["line"] for piece in batch.iter_slices(batch_lines))
    except pl.exceptions.NoDataError:
        raise ValueError(f"{path} is empty") from None


def _text_lines(path: Path, encoding: str) -> Iterator[str]:
    """Yield the lines of a file with their line ends, which may also be a carriage return alone."""
    if path.suffix.lower() == ".zst" and is_utf8(encoding):
        yield from (f"{part}\n" for lines in line_batches(path) for line in lines for part in (line or "").split("\r"))
        return
    with _open_bytes(path) as file:
        lines = io.TextIOWrapper(file, encoding=encoding, newline="")
        if first := next(lines, ""):
            if not is_utf8(encoding) and first.encode(encoding, "replace").startswith(codecs.BOM_UTF8):
                raise ValueError(f"{path} begins with the byte order mark of UTF-8: encoding={encoding!r} is wrong")
            yield first.removeprefix("\ufeff")
        yield from lines


def _open_bytes(path: Path) -> BinaryIO:
    """Open a plain or compressed file."""
    with open(path, "rb") as file:
        magic = file.read(4)
    if magic == b"\x28\xb5\x2f\xfd":
        decompressed: BinaryIO = _zstandard().open(path, "rb")
        return decompressed
    return gzip.open(path) if magic.startswith(b"\x1f\x8b") else open(path, "rb")  # type: ignore[return-value]


def _zstandard() -> Any:
    """Return a module that decompresses .zst files. polars decompresses files that are UTF-8."""
    for name in ("compression.zstd", "zstandard"):  # the first is in Python from 3.14 on
        with suppress(ModuleNotFoundError):
            return importlib.import_module(name)
    raise ImportError("reading a .zst file that is not UTF-8 needs Python 3.14 or: pip install zstandard")


def _long_line_error(path: Path, line: int, separator: str, n_columns: int, has_header: bool) -> ValueError:
    columns = f"the header, which has {n_columns}" if has_header else f"columns=..., which has {n_columns} names"
    return ValueError(
        f"{path}, line {line}: it has more fields than {columns} (split at {separator!r}; give "
        "separator=... if that is wrong, and quote fields that hold the separator)"
    )


def _first_undecodable_line(path: Path, encoding: str) -> int:
    """Return the number of the first line with a byte that is wrong in an encoding, or of the last line."""
    decoder = codecs.getincrementaldecoder(encoding)()
    line = 1
    with _open_bytes(path) as file:
        while piece := file.read(1 << 16):
            state = decoder.getstate()
            try:
                line += decoder.decode(piece).count("\n")
            except UnicodeError:
                decoder.setstate(state)
                with suppress(UnicodeError):
                    for byte in piece:
                        line += decoder.decode(bytes([byte])).count("\n")
                break
    return line


@contextmanager
def _explain_damage(path: Path, separator: str | None = None, encoding: str = "utf-8") -> Iterator[None]:
    """Context manager that replaces an error of a library that reads `path` by a ValueError that names `path`."""
    known = (OSError, EOFError, UnicodeError, zlib.error, pl.exceptions.PolarsError)
    try:
        yield
    except pl.exceptions.NoDataError:
        raise
    except Exception as error:
        if not isinstance(error, known) and type(error).__name__ != "ZstdError":
            raise
        hint = f" (split at {separator!r}; give separator=... if that is wrong)" if separator else ""
        reason = " ".join(str(error).split("\n\n")[0].split())
        if isinstance(error, UnicodeError) or "utf-8" in reason:
            with suppress(OSError, EOFError, zlib.error, ImportError):
                reason += f" in line {_first_undecodable_line(path, encoding)}; " + (
                    "convert the file to UTF-8, or give encoding=... (--encoding ...), such as latin-1"
                    if is_utf8(encoding)
                    else f"encoding={encoding!r} is wrong, or the file is damaged"
                )
        raise ValueError(f"{path} is damaged, or its format is not what its name says{hint}: {reason}") from error
