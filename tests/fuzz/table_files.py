"""Target: files and data frames of events or interactions, read by every function that reads them."""

from __future__ import annotations

import gzip
import pickle
import warnings
from pathlib import Path
from typing import Any

import polars as pl
from damage import INTEGERS, TEXTS
from harness import Target
from hypothesis import strategies as st

from gru4rec_fast import InteractionGraph, SessionStore, Vocabulary
from gru4rec_fast.data import prepare

_CELLS = ["1", "2", "3", "1", "2", "-1", "007", "1.0", "1e20", "nan", "inf", "", " 4", "x7", '"', '"a"', '"a', "a\tb",
          "2024-01-01T00:00:00", "2024-01-01", "18446744073709551615", "\x00", "\ufeff", "ö", "\r", "#"]  # fmt: skip
_HEADERS = ["SessionId", "ItemId", "Time", "UserId", "session_id:token", "item_id:token", "timestamp:float", "x", ""]
_DTYPES = ["Int64", "UInt64", "Int8", "Float64", "Float32", "String", "Boolean", "Categorical", "Binary", "List",
           "Datetime", "Date", "Duration", "Null", "Decimal", "Object"]  # fmt: skip


class _CodeInPickle:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@st.composite
def _text_content(draw: st.DrawFn) -> str:
    separator = draw(st.sampled_from(["\t", ",", ";", " "]))
    newline = draw(st.sampled_from(["\n", "\n", "\r\n", "\r"]))
    header = draw(st.sampled_from([_HEADERS[:3], [*_HEADERS[:3], "x"], ["UserId", "ItemId"], _HEADERS[4:7]]))
    header = draw(st.just(header) | st.lists(st.sampled_from(_HEADERS), max_size=5))
    cell = st.sampled_from(_CELLS[:5]) if draw(st.booleans()) else st.sampled_from(_CELLS) | TEXTS
    n = len(header)
    rows = draw(st.lists(st.lists(cell, min_size=n, max_size=n) | st.lists(cell, max_size=5), max_size=8))
    return newline.join(separator.join(row) for row in [header, *rows]) + draw(st.sampled_from(["", newline]))


_TEXT_FILES = st.fixed_dictionaries(
    {
        "suffix": st.sampled_from([".tsv", ".csv", ".inter", ".txt", ".tsv.gz", ".csv.zst", ".parquet", ".pickle", ""]),
        "text": _text_content() | _text_content() | st.text(max_size=60),
        "inserted": st.lists(st.tuples(st.integers(0, 100), st.integers(0, 255)), max_size=2),
        "compressed": st.booleans(),
        "separator": st.sampled_from([None, None, ",", "\t", '"', "", "ab", "é", "\n"]),
    }
)
_NUMBERS = st.integers(0, 4) | INTEGERS | st.floats()
_FRAMES = st.fixed_dictionaries(
    {
        "suffix": st.sampled_from(["", ".parquet", ".pq"]),  # "": a data frame in memory
        "dtypes": st.lists(st.sampled_from([*_DTYPES[:6], *_DTYPES]), min_size=3, max_size=3),
        "columns": st.lists(st.lists(_NUMBERS | st.none(), max_size=5), min_size=3, max_size=3),
        "inserted": st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=2),
    }
)
_READERS = ["sessions", "sessions with given ids", "graph", "graph with given ids", "text", "prepare"]


def _column(dtype: str, values: list[int | None]) -> pl.Series:
    """Return values as a column of the dtype. Values that do not fit become null; in Object, null becomes object()."""
    if dtype == "Object":
        return pl.Series([object() if value is None else value for value in values], dtype=pl.Object)
    floats = pl.Series([None if value is None else float(value) for value in values], dtype=pl.Float64)
    if dtype in ("Float64", "Float32", "Boolean", "Null", "Decimal"):
        return floats.cast(pl.Decimal(38, 2) if dtype == "Decimal" else getattr(pl, dtype), strict=False)
    if dtype in ("String", "Categorical", "Binary"):
        texts = [None if value is None else str(value) for value in values]
        return pl.Series(texts, dtype=pl.String).cast(getattr(pl, dtype))
    integers = pl.Series([value if isinstance(value, int) else None for value in values], dtype=pl.Int128)
    if dtype == "List":
        return pl.Series([[value] for value in integers.cast(pl.Int64, strict=False)], dtype=pl.List(pl.Int64))
    if dtype in ("Datetime", "Duration"):
        integers = integers.cast(pl.Int64, strict=False)
    if dtype == "Date":
        integers = integers.cast(pl.Int32, strict=False)
    return integers.cast(getattr(pl, dtype), strict=False)


def _source(case: Any, folder: Path) -> Any:
    """Return the path of the case's file, or its data frame."""
    path = folder / f"log{case['suffix']}"
    if "text" in case:
        content = case["text"].encode("utf-8", "surrogatepass")
        if case["suffix"] == ".pickle":
            content = pickle.dumps(_CodeInPickle(folder / "code-was-run"))
        if case["compressed"] and case["suffix"].endswith(".gz"):
            content = gzip.compress(content)
    else:
        n = min(map(len, case["columns"]))
        names = ["SessionId", "ItemId", "Time"]
        columns = zip(names, case["dtypes"], case["columns"], strict=True)
        frame = pl.DataFrame([_column(dtype, values[:n]).alias(name) for name, dtype, values in columns])
        if not case["suffix"]:
            return frame
        try:
            frame.write_parquet(path)
        except BaseException:  # a type that cannot be written; PanicException is no Exception
            return frame
        content = path.read_bytes()
    content = bytearray(content)
    for position, byte in case["inserted"]:
        content[position % (len(content) + 1) : position % (len(content) + 1)] = bytes([byte])
    path.write_bytes(content)
    return path


def run(case: Any, folder: Path) -> None:
    """Read a source by one of the functions that read logs."""
    warnings.simplefilter("ignore")
    source, reader = _source(case["source"], folder), case["reader"]
    options = {"separator": case["source"].get("separator")}
    try:
        if reader.startswith("sessions"):
            vocabulary = Vocabulary(case["ids"]) if reader != "sessions" else None
            store = SessionStore.from_events(source, vocabulary=vocabulary, **options)
            assert store.n_events == store.offsets[-1] and (store.items < store.n_items).all(), "wrong store"
            assert store.n_events <= _n_lines(case["source"]), "more events than lines"
            store.save(folder / "out")
            SessionStore.open(folder / "out")
        elif reader == "prepare":
            sets = prepare(source, folder / "out", split=case["split"], **options)
            assert all(store.n_events for store in sets.values()), "empty split"
        else:
            like = InteractionGraph.from_arrays([0], [0], user_ids=Vocabulary(case["ids"]), item_ids=Vocabulary([1]))
            like = like if reader == "graph with given ids" else None
            if reader == "text" and isinstance(source, Path):
                InteractionGraph.from_text(source, like=like)
            else:
                graph = InteractionGraph.from_table(source, user_key="SessionId", like=like, **options)
                assert graph.n_edges <= _n_lines(case["source"]), "more edges than lines"
    finally:
        assert not (folder / "code-was-run").exists(), "code in a pickle was run"


def _n_lines(source: Any) -> int:
    if "text" not in source:
        return len(source["columns"][0])
    return source["text"].count("\n") + source["text"].count("\r") + 1 + len(source["inserted"])


TARGET = Target(
    cases=st.fixed_dictionaries(
        {
            "source": _TEXT_FILES | _FRAMES,
            "reader": st.sampled_from(_READERS),
            "ids": st.sampled_from([[1, 2], ["1", "x7"]]),
            "split": st.sampled_from([None, "fraction=0.5", "days=1"]),
        }
    ),
    run=run,
    subjects=lambda case, folder: [str(folder), "DataFrame given", "separator=", "training vocabulary"],
)
