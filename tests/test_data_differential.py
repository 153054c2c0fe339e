"""Generated logs are read as pandas reads them, or refused with one line that names the place."""

from __future__ import annotations

import csv
import gzip
import io
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_oracle import group_by_session, tiny_batches
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gru4rec_fast.data import SessionStore

pandas = pytest.importorskip("pandas")

# 200 logs in all; the same ones in each run.
differential = settings(
    max_examples=100,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
IDS = {
    "integers": st.integers(0, 12).map(str),
    "large integers": st.integers(2**63 - 2, 2**63 + 1).map(str),
    "integers with blanks": st.tuples(st.sampled_from(["", " "]), st.integers(0, 5)).map(lambda t: f"{t[0]}{t[1]} "),
    "zero-padded": st.integers(0, 12).map("{:02d}".format),
    "words": st.sampled_from(["a", "ä", "b c", 'in"ch', '"q"', "x\ty", "x,y", "line\nbreak", "7", "007"]),
    "some missing": st.sampled_from(["1", "2", "3", "", " "]),
}
TIMES = {
    "integers": st.integers(0, 99).map(str),
    "fractions": st.integers(0, 999).map(lambda n: str(n / 8)),
    "dates": st.integers(0, 99).map(lambda n: datetime.fromtimestamp(n, UTC).isoformat()),
    "some wrong": st.sampled_from(["1", "2", "3", "nan", "soon", ""]),
}
TITLES = st.sampled_from(
    ["", "plain", '6" plate', '9"', '"whole"', '"open', '"a" b', "a,b", "a\tb", "two\nlines", "ä", "a\rb"]
)


@st.composite
def logs(draw: st.DrawFn) -> tuple[str, bytes]:
    """Return a file name and the content of a log with the columns SessionId, ItemId and Time, and perhaps others."""
    columns = {
        "SessionId": draw(st.sampled_from([*IDS.values()])),
        "ItemId": draw(st.sampled_from([*IDS.values()])),
        "Time": draw(st.sampled_from([*TIMES.values()])),
    }
    if draw(st.booleans()):
        columns["Title"] = TITLES
    names = draw(st.permutations([*columns]))
    n_rows = draw(st.integers(1, 10))
    rows = [[draw(columns[name]) for name in names] for _ in range(n_rows)]
    header = [f" {name}" if draw(st.integers(0, 9)) == 0 else name for name in names]
    separator, end = draw(st.sampled_from(",\t;")), draw(st.sampled_from(["\n", "\n", "\r\n", "\r"]))
    text = io.StringIO()
    quoting = draw(st.sampled_from([None, csv.QUOTE_MINIMAL, csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
    for row in [header, *rows]:
        if quoting is None:  # without any quoting: values are written as they are
            text.write(separator.join(row) + end)
        else:
            csv.writer(text, delimiter=separator, lineterminator=end, quoting=quoting).writerow(row)
        if draw(st.integers(0, 9)) == 0:
            text.write(draw(st.sampled_from(["", "  "])) + end)
    content = text.getvalue()
    if draw(st.booleans()):
        content = content.removesuffix(end)
    encoding = draw(st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "latin-1"]))
    data = content.encode(encoding)
    return ("log.csv.gz", gzip.compress(data, mtime=0)) if draw(st.integers(0, 4)) == 0 else ("log.csv", data)


def read_with_pandas(path: Path) -> list[tuple[str, str, float]]:
    """Return session, item and time of each row; ValueError where pandas cannot read the file or a value is missing."""
    header = path.read_bytes() if path.suffix != ".gz" else gzip.decompress(path.read_bytes())
    separator = next(s for s in ",\t;" if len(re.split(s.encode(), re.split(rb"[\r\n]", header)[0])) > 2)
    frame = pandas.read_csv(
        path, sep=separator, dtype=str, keep_default_na=False, na_filter=False, encoding="utf-8-sig"
    )
    frame.columns = [name.strip() for name in frame.columns]
    rows = [[value.strip() for value in row] for row in frame[["SessionId", "ItemId", "Time"]].to_numpy().tolist()]
    if any("" in row for row in rows):
        raise ValueError("a value is missing")
    return [(session, item, as_time(time)) for session, item, time in rows]


def as_time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp() if text[4:5] == "-" else float(text)


def assert_one_line_with_a_place(error: ValueError, name: str) -> None:
    message = str(error)
    assert "\n" not in message and len(message) < 400
    assert name in message and re.search(r"line \d+|row \d+|'(SessionId|ItemId|Time)'", message), message


def test_text_is_read_as_pandas_reads_it_or_refused(tmp_path: Path) -> None:
    n_read = 0

    @given(log=logs())
    @differential
    def read_both(log: tuple[str, bytes]) -> None:
        nonlocal n_read
        path = tmp_path / log[0]
        path.write_bytes(log[1])
        try:
            with tiny_batches(batch_rows=3):
                store = SessionStore.from_events(path)
        except ValueError as error:
            assert_one_line_with_a_place(error, path.name)
        else:
            assert_equals_pandas(store, path)
            n_read += 1

    read_both()
    assert n_read >= 30


def assert_equals_pandas(store: SessionStore, path: Path) -> None:
    expected = group_by_session(read_with_pandas(path))
    items = [str(item) for item in store.vocabulary.ids[store.items].tolist()]
    assert items == [item for session in expected for _, _, item in session.events]
    assert np.diff(store.offsets).tolist() == [len(session.events) for session in expected]
    assert [str(session) for session in store.session_ids.tolist()] == [session.id for session in expected]
    assert store.start_times.tolist() == [session.events[0][0] for session in expected]


COLUMNS = {
    "int64": lambda ids: pandas.Series(ids),
    "Int64": lambda ids: pandas.Series(ids, dtype="Int64"),
    "uint64": lambda ids: pandas.Series([2**64 - 1 - i for i in ids], dtype="uint64"),
    "float64": lambda ids: pandas.Series([float(i) for i in ids]),
    "float64, large": lambda ids: pandas.Series([2.0**53 - 3 + i for i in ids]),
    "float32": lambda ids: pandas.Series([float(i) for i in ids], dtype="float32"),
    "float32, large": lambda ids: pandas.Series([2.0**24 - 3 + i for i in ids], dtype="float32"),
    "infinite": lambda ids: pandas.Series([np.inf if i == 3 else i for i in ids]),
    "missing": lambda ids: pandas.Series([np.nan if i == 3 else i for i in ids]),
    "digits": lambda ids: pandas.Series([str(i) for i in ids]),
    "words": lambda ids: pandas.Series([f" w{i}" for i in ids]),
    "category": lambda ids: pandas.Series([f"{i}" for i in ids]).astype("category"),
    "integers as objects": lambda ids: pandas.Series(ids, dtype=object),
    "mixed": lambda ids: pandas.Series([str(i) if i == 3 else i for i in ids], dtype=object),
}
READABLE = {"int64", "Int64", "float64", "float32", "digits", "words", "category", "integers as objects"}


@given(
    sessions=st.lists(st.integers(0, 5), min_size=4, max_size=4),
    items=st.lists(st.integers(0, 5), min_size=4, max_size=4),
    kinds=st.tuples(st.sampled_from([*COLUMNS]), st.sampled_from([*COLUMNS])),
)
@differential
def test_ids_of_a_data_frame_come_back_as_they_were_given_or_are_refused(
    sessions: list[int], items: list[int], kinds: tuple[str, str]
) -> None:
    frame = pandas.DataFrame({"SessionId": COLUMNS[kinds[0]](sessions), "ItemId": COLUMNS[kinds[1]](items)})
    frame["Time"] = range(4)
    try:
        store = SessionStore.from_events(frame)
    except ValueError as error:
        assert_one_line_with_a_place(error, "the DataFrame given")
        assert not {*kinds} <= READABLE
        return
    expected: list[Any] = group_by_session(list(frame.itertuples(index=False)))
    assert store.session_ids.tolist() == [session.id for session in expected]
    assert store.vocabulary.ids[store.items].tolist() == [item for s in expected for _, _, item in s.events]
    assert kinds[0] != "uint64" and kinds[1] != "uint64"
