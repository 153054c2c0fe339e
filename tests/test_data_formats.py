"""All input formats give the same store. Bad input raises an error that names the file, the column and the row."""

from __future__ import annotations

import gzip
import pickle
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from data_oracle import assert_same_store, tiny_batches

from gru4rec_fast.data import InteractionGraph, SessionStore, Vocabulary, prepare

COLUMNS = {
    "SessionId": [3, 3, 1, 1, 1, 2, 2],
    "ItemId": [10, 20, 10, 30, 20, 20, 10],
    "Time": [5.5, 6.25, 1.0, 2.0, 3.0, 4.0, 8.0],
}


def as_text(separator: str, header: tuple[str, ...] = tuple(COLUMNS), end: str = "\n") -> bytes:
    """Return COLUMNS as the content of a text file. `end` ends each line."""
    rows = [header, *zip(*COLUMNS.values(), strict=True)]
    return "".join(separator.join(map(str, row)) + end for row in rows).encode()


def zstd_compress(data: bytes) -> bytes:
    return pytest.importorskip("zstandard").compress(data)


def make_pandas_frame() -> Any:
    return pytest.importorskip("pandas").DataFrame(COLUMNS)


def write_parquet(folder: Path) -> Path:
    pl.DataFrame(COLUMNS).write_parquet(folder / "log.parquet", row_group_size=2)
    return folder / "log.parquet"


def writer(name: str, make_content: Callable[[], bytes]) -> Callable[[Path], Path]:
    """Return a function that writes `make_content()` to a file in a given folder and returns the path of the file."""

    def write(folder: Path) -> Path:
        (folder / name).write_bytes(make_content())
        return folder / name

    return write


INTER_HEADER = ("session_id:token", "item_id:token", "timestamp:float")  # header of a RecBole file (.inter)
# Each function gets an empty folder and returns a source for `SessionStore.from_events` that holds COLUMNS.
SOURCES: dict[str, Callable[[Path], Any]] = {
    "tsv": writer("log.tsv", lambda: as_text("\t")),
    "tsv without a last newline": writer("log.tsv", lambda: as_text("\t").rstrip(b"\n")),
    "tsv with empty lines": writer("log.tsv", lambda: as_text("\t").replace(b"\n1\t", b"\n\n\n1\t") + b"\n\n"),
    "tsv with a byte order mark and CRLF": writer("log.tsv", lambda: b"\xef\xbb\xbf" + as_text("\t", end="\r\n")),
    "tsv.gz": writer("log.tsv.gz", lambda: gzip.compress(as_text("\t"))),
    "tsv.zst": writer("log.tsv.zst", lambda: zstd_compress(as_text("\t"))),
    "csv": writer("log.csv", lambda: as_text(",")),
    "csv with quotes": writer(
        "log.csv", lambda: as_text(",").replace(b"SessionId", b'"SessionId"').replace(b"3,", b'"3",')
    ),
    "csv, semicolon": writer("log.csv", lambda: as_text(";")),
    "dat, bar": writer("log.dat", lambda: as_text("|")),
    "txt, blank": writer("log.txt", lambda: as_text(" ")),
    "name with a star": writer("log[1]*.tsv", lambda: as_text("\t")),
    "inter": writer("log.inter", lambda: as_text("\t", INTER_HEADER)),
    "inter.gz": writer("log.inter.gz", lambda: gzip.compress(as_text("\t", INTER_HEADER))),
    "inter, with the default column names": writer(
        "log.inter", lambda: as_text("\t", ("SessionId:token", "ItemId:token", "Time:float"))
    ),
    "parquet": write_parquet,
    "pandas": lambda path: make_pandas_frame(),
    "polars": lambda path: pl.DataFrame(COLUMNS),
    "polars, lazy": lambda path: pl.LazyFrame(COLUMNS),
    "arrow": lambda path: pytest.importorskip("pyarrow", exc_type=ImportError).table(COLUMNS),
    "dict": lambda path: COLUMNS,
    "dict of arrays": lambda path: {key: np.array(values) for key, values in COLUMNS.items()},
}


@pytest.mark.parametrize("in_batches", [False, True])
@pytest.mark.parametrize("name", SOURCES)
def test_every_format_gives_the_same_store(tmp_path: Path, name: str, in_batches: bool) -> None:
    expected = SessionStore.from_arrays(
        [0, 1, 2, 2, 0, 0, 2],
        [0, 3, 5, 7],
        start_times=[1.0, 4.0, 5.5],
        end_times=[3.0, 8.0, 6.25],
        session_ids=[1, 2, 3],
        vocabulary=Vocabulary([10, 30, 20]),
    )
    with tiny_batches() if in_batches else nullcontext():
        store = SessionStore.from_events(SOURCES[name](tmp_path))
    assert_same_store(store, expected)


def test_any_column_names_and_any_separator(tmp_path: Path) -> None:
    path = tmp_path / "clicks.csv"
    path.write_bytes(as_text("~", ("user", "product", "when")))
    keys = {"session_key": "user", "item_key": "product", "time_key": "when"}
    assert SessionStore.from_events(path, separator="~", **keys).n_events == 7


def test_other_columns_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("Price,Time,ItemId,SessionId\nx,1,7,5\n,2,8,5\n")
    store = SessionStore.from_events(path)
    assert store.vocabulary.ids.tolist() == [7, 8] and store.session_ids.tolist() == [5]


def test_pickles_need_allow_pickle(tmp_path: Path) -> None:
    path = tmp_path / "log.pickle"
    path.write_bytes(pickle.dumps(make_pandas_frame()))
    with pytest.raises(ValueError, match=r"log\.pickle is a pickle, and loading one runs.*allow_pickle=True"):
        SessionStore.from_events(path)
    assert_same_store(SessionStore.from_events(path, allow_pickle=True), SessionStore.from_events(COLUMNS))
    path.write_bytes(pickle.dumps(make_pandas_frame())[:-9])
    with pytest.raises(ValueError, match=r"log\.pickle is not a pickle, or is damaged"):
        SessionStore.from_events(path, allow_pickle=True)


@pytest.mark.parametrize(
    "times, expected",
    [
        (["2014-04-07T10:51:09.277Z", "2014-04-07T10:54:09.868Z"], [1396867869.277, 1396868049.868]),
        (["2014-04-07 10:51:09", "2014-04-07T12:51:10+02:00"], [1396867869.0, 1396867870.0]),
        (["2014-04-07", "2014-04-08 00:00:01"], [1396828800.0, 1396915201.0]),
        ([date(2014, 4, 7), date(2014, 4, 8)], [1396828800.0, 1396915200.0]),
        ([datetime(2014, 4, 7, tzinfo=UTC), datetime(2014, 4, 7, 1, tzinfo=UTC)], [1396828800.0, 1396832400.0]),
        (["1e3", "1001"], [1000.0, 1001.0]),
    ],
)
def test_times_in_text_and_dates_become_seconds(times: list[Any], expected: list[float]) -> None:
    for table in (
        {"s": [1, 1], "i": [1, 2], "t": times},
        pytest.importorskip("pandas").DataFrame({"s": 1, "i": 2, "t": times}),
    ):
        if not isinstance(table, dict) and isinstance(times[0], date) and not isinstance(times[0], datetime):
            continue  # pandas stores dates without a time as Python objects, which are not supported
        store = SessionStore.from_events(table, session_key="s", item_key="i", time_key="t")
        assert [store.start_times[0], store.end_times[0]] == expected


def test_nullable_categorical_and_time_zone_columns_of_pandas_are_read() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {
            "SessionId": pandas.array([1, 1, 2], dtype="Int64"),
            "ItemId": pandas.Categorical(["a", "b", "a"]),
            "Time": pandas.to_datetime([3, 4, 5], unit="s").tz_localize("Europe/Budapest"),
        }
    )
    store = SessionStore.from_events(frame)
    assert store.session_ids.tolist() == [1, 2] and store.vocabulary.ids.tolist() == ["a", "b"]
    assert store.start_times.tolist() == [3.0 - 3600, 5.0 - 3600]  # Budapest is one hour ahead of UTC
    frame["SessionId"] = [1.0, 1.0, 2.0]  # pandas converts integers to floats if some are missing
    assert SessionStore.from_events(frame).session_ids.tolist() == [1, 2]
    frame.loc[1, "SessionId"] = np.nan
    with pytest.raises(ValueError, match=r"column 'SessionId', row 2 .*: an id is missing"):
        SessionStore.from_events(frame)


LOG = "SessionId\tItemId\tTime\n1\t5\t0\n1\t6\t1\n2\t5\t2\n"
# Case: name of the file, its content, and the expected error.
INVALID_FILES = {
    "empty": ("log.tsv", b"", r"log\.tsv is empty"),
    "empty, compressed": ("log.tsv.gz", gzip.compress(b""), r"log\.tsv\.gz is empty"),
    "blank": ("log.tsv", b"\n\n", r"log\.tsv is empty"),
    "header only": ("log.tsv", b"SessionId\tItemId\tTime\n", r"log\.tsv holds no events"),
    "no header": (
        "log.tsv",
        LOG.split("\n", 1)[1].encode(),
        r"no column 'SessionId'; its columns are \['1', '5', '0'\]",
    ),
    "missing column": (
        "log.tsv",
        LOG.replace("Time", "When").encode(),
        r"log\.tsv has no column 'Time'; its columns are \['SessionId', 'ItemId', 'When'\]",
    ),
    "missing time": ("log.tsv", LOG.replace("6\t1", "6\t").encode(), r"column 'Time', row 2 .*: a time is missing"),
    "NaN": ("log.tsv", LOG.replace("6\t1", "6\tNaN").encode(), r"column 'Time', row 2 .*'NaN': neither a number"),
    "NaN among fractions": ("log.tsv", LOG.replace("6\t1", "6\t1.5\n1\t7\tnan").encode(), r"'Time', row 3 .*'nan'"),
    "infinite": ("log.tsv", LOG.replace("6\t1", "6\tinf").encode(), r"column 'Time', row 2 .*value 'inf'"),
    "unparsable time": ("log.tsv", LOG.replace("5\t2", "5\tsoon").encode(), r"column 'Time', row 3 .*value 'soon'"),
    "unparsable first time": ("log.tsv", LOG.replace("5\t0", "5\tsoon").encode(), r"column 'Time', row 1 .*'soon'"),
    "date among numbers": ("log.tsv", LOG.replace("5\t2", "5\t2020-01-01").encode(), r"'Time', row 3 .*'2020-01-01'"),
    "number among dates": (
        "log.csv",
        b"SessionId,ItemId,Time\n1,2,2020-01-01\n1,2,17\n",
        r"column 'Time', row 2 .*value '17': this is no ISO 8601 date or time, but the first row is",
    ),
    "missing id": ("log.tsv", LOG.replace("1\t6", "1\t").encode(), r"column 'ItemId', row 2 .*None: an id is missing"),
    "short row": ("log.tsv", LOG.replace("1\t6\t1", "1").encode(), r"column 'ItemId', row 2"),
    "long row": (
        "log.tsv",
        LOG.replace("6\t1", "6\t1\t1\t1").encode(),
        r"log\.tsv, line 3: it has more fields than the header, which has 3 \(split at '\\t'",
    ),
    "not UTF-8": (
        "log.tsv",
        LOG.encode().replace(b"6\t1", b"\xff\xfe\t1"),
        r"log\.tsv is damaged, or its format is not what its name says: .*utf-8 sequence in line 3; convert",
    ),
    "cut short": (
        "log.tsv.gz",
        gzip.compress(LOG.encode() + b"3\t5\t9\n" * 999)[:-12],
        r"log\.tsv\.gz (is damaged|cannot be read).*unexpected end of file",
    ),
    "not parquet": ("log.parquet", LOG.encode(), r"log\.parquet cannot be read"),
}
DUPLICATE_HEADER = ("SessionId", "ItemId", "Time", "ItemId")


def arrow_with_duplicate() -> Any:
    pyarrow = pytest.importorskip("pyarrow", exc_type=ImportError)
    return pyarrow.Table.from_arrays([pyarrow.array([1, 2])] * 4, names=DUPLICATE_HEADER)


def parquet_with_duplicate(folder: Path) -> Path:
    pytest.importorskip("pyarrow.parquet", exc_type=ImportError).write_table(
        arrow_with_duplicate(), folder / "log.parquet"
    )
    return folder / "log.parquet"


def pandas_with_duplicate() -> Any:
    return pytest.importorskip("pandas").DataFrame([[1, 2, 3, 4]], columns=DUPLICATE_HEADER)


# Case: name of the source in the error message, and a function that writes or returns the source.
DUPLICATE_COLUMN_SOURCES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "tsv": ("log.tsv", writer("log.tsv", lambda: "\t".join(DUPLICATE_HEADER).encode() + b"\n1\t2\t3\t4\n")),
    "csv with quotes": (
        "log.csv",
        writer("log.csv", lambda: b'SessionId,"ItemId",Time,ItemId,"a,b"\n1,2,3,4,5\n'),
    ),
    "csv.gz": (
        "log.csv.gz",
        writer("log.csv.gz", lambda: gzip.compress(",".join(DUPLICATE_HEADER).encode() + b"\n1,2,3,4\n")),
    ),
    "inter": (
        "log.inter",
        writer("log.inter", lambda: "\t".join((*INTER_HEADER, "item_id:x")).encode() + b"\n1\t2\t3\t4\n"),
    ),
    "parquet": ("log.parquet", parquet_with_duplicate),
    "pandas": ("the DataFrame given", lambda path: pandas_with_duplicate()),
    "arrow": ("the Table given", lambda path: arrow_with_duplicate()),
}


@pytest.mark.parametrize("name", DUPLICATE_COLUMN_SOURCES)
def test_duplicate_name_of_a_used_column_is_an_error(tmp_path: Path, name: str) -> None:
    source_name, source = DUPLICATE_COLUMN_SOURCES[name]
    column = "item_id" if name == "inter" else "ItemId"
    with pytest.raises(ValueError, match=rf"{source_name} .*'{column}'"):
        SessionStore.from_events(source(tmp_path))


def test_unused_columns_may_share_a_name(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("SessionId,ItemId,Time,,\n5,7,1,,\n5,8,2,,\n")
    assert SessionStore.from_events(path).vocabulary.ids.tolist() == [7, 8]


def test_error_lists_at_most_ten_columns(tmp_path: Path) -> None:
    names = [f"c{i}" for i in range(500)]
    with pytest.raises(ValueError, match=r"its columns are \['c0', .*'c9'\] and 490 more: give"):
        SessionStore.from_events({name: [1] for name in names})
    # Split at the wrong separator, the header is one very long name, which is shortened.
    (tmp_path / "log.tsv").write_text("\t".join(names) + "\n")
    with pytest.raises(ValueError, match=r"its columns are \['c0.*\.\.\.'\] \(split at ','") as caught:
        SessionStore.from_events(tmp_path / "log.tsv", separator=",")
    assert len(str(caught.value)) < 500


def test_the_error_for_a_missing_column_names_the_argument_and_similar_columns(tmp_path: Path) -> None:
    path = tmp_path / "clicks.csv"
    path.write_text("SESSION_ID,item,at\n1,2,3\n")
    with pytest.raises(ValueError) as caught:
        SessionStore.from_events(path)
    assert str(caught.value) == (
        f"{path} has no column 'SessionId'; its columns are ['SESSION_ID', 'item', 'at']: give the name of the column "
        "of sessions by session_key=... (--session-key ...); the nearest is 'SESSION_ID'"
    )
    with pytest.raises(ValueError, match=r"column of times by time_key=\.\.\. \(--time-key \.\.\.\)$"):
        SessionStore.from_events(path, session_key="SESSION_ID", item_key="item")


def test_blanks_around_values_of_text_are_removed_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text('SessionId,ItemId,Time\n1, 5,1\n 1 ,6, 2\n   \n1,"7 ",3.5 \n')
    store = SessionStore.from_events(path)
    assert store.vocabulary.ids.tolist() == [5, 6, 7] and store.end_times.tolist() == [3.5]
    assert [store.meta["ids"][role]["stripped"] for role in ("session", "item")] == [1, 2]
    assert "  2 item ids had blanks around them, which were removed" in store.summary().splitlines()
    assert "strings" not in store.summary()
    path.write_text("SessionId,ItemId,Time\n1,2,1\n1,  ,2\n")
    with pytest.raises(ValueError, match=r"column 'ItemId', row 2 .*an id is missing"):
        SessionStore.from_events(path)
    table = {"SessionId": [1, 1], "ItemId": ["a", " a"], "Time": [1, 2]}  # values of data frames are not stripped
    assert SessionStore.from_events(table).vocabulary.ids.tolist() == ["a", " a"]


TITLES = "SessionId,Title,ItemId,Time\n"
# Case: lines after the header TITLES, and the expected items.
QUOTES = {
    "inch marks": ('1,6" plate,10,1\n1,plain,20,2\n1,9" plate,30,3\n', [10, 20, 30]),
    "an odd inch mark": ('1,6" plate,10,1\n1,plain,20,2\n', [10, 20]),
    "quoted fields": ('1,"6"" plate",10,1\n1,"a,b","20",2\n', [10, 20]),
    "quoted fields and inch marks": ('1,"a,b",10,1\n1,6" plate,20,2\n1,"6"" plate",30,3\n', [10, 20, 30]),
    "line breaks in a field": ('1,"a\n\nb",10,1\n\n1,c,20,2\n', [10, 20]),
    "quotes after a blank": ('1, "a",10,1\n1, "b,20,2\n', [10, 20]),
    "ids with quotes": ('1,a,x"y,1\n1,a,"x""z",2\n1,a,"q",3\n', ['x"y', 'x"z', "q"]),
}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz", "log.csv.zst"])
@pytest.mark.parametrize("case", QUOTES)
def test_quotes_have_an_effect_only_at_the_start_of_a_field(tmp_path: Path, case: str, name: str, end: str) -> None:
    text, items = QUOTES[case]
    data = (TITLES + text).replace("\n", end).encode()
    compress = {"gz": gzip.compress, "zst": zstd_compress}.get(name[8:].strip("."), bytes)
    (tmp_path / name).write_bytes(compress(data))
    with tiny_batches(batch_rows=2):
        store = SessionStore.from_events(tmp_path / name)
    assert store.vocabulary.ids[store.items].tolist() == items


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '1,a,10,1\n1,"6" plate,20,2\n',
            "line 3: the row that begins here has a quoted field that is not closed, or text",
        ),
        ('1,"6 plate,10,1\n1,a,20,2\n', "line 2: the row that begins here .* quote=None"),
        ('1,"a",10,1\n1,b,c,20,2\n', "line 3: it has more fields than the header, which has 4"),
        ('1,"a\nb",10,1\n1,b,c,20,2\n', "line 4: it has more fields than the header"),
        ('1,6" plate,10,1\n1,b,c,20,2\n', "line 3: it has more fields than the header"),
        (",,,\n1,a,10,1\n", "column 'SessionId', row 1 .*: an id is missing"),
        (",a,,\n1,a,10,1\n", "column 'SessionId', row 1 .*: an id is missing"),
        ("1,\udcff,10,1\n", "invalid utf-8 sequence in line 2; convert the file to UTF-8"),
    ],
)
def test_a_line_that_cannot_be_split_is_an_error_that_names_it(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "log.csv").write_bytes((TITLES + text).encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=rf"log\.csv.*{message}") as caught:
        SessionStore.from_events(tmp_path / "log.csv")
    assert "\n" not in str(caught.value)


def test_without_quote_character_no_field_is_quoted(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(TITLES + '1,"6" plate,"10",1\n1,"open,20,2\n')
    store = SessionStore.from_events(tmp_path / "log.csv", quote=None)
    assert store.vocabulary.ids.tolist() == ['"10"', "20"]
    (tmp_path / "log.csv").write_text(TITLES + "1,'a,b',10,1\n")
    for read in (SessionStore.from_events, partial(InteractionGraph.from_table, user_key="SessionId")):
        assert read(tmp_path / "log.csv", quote="'").n_items == 1
        with pytest.raises(ValueError, match="quote='ab': it must be a single ASCII character"):
            read(tmp_path / "log.csv", quote="ab")
    stores = prepare(tmp_path / "log.csv", tmp_path / "out", quote="'", min_session_length=1)
    assert stores["train"].vocabulary.ids.tolist() == [10]


@pytest.mark.parametrize(("option", "value"), [("separator", ";"), ("quote", None), ("quote", "'")])
@pytest.mark.parametrize("source", ["dict", "log.parquet", "log.pickle"])
def test_options_of_text_files_are_an_error_for_other_sources(
    tmp_path: Path, source: str, option: str, value: str | None
) -> None:
    (tmp_path / source).write_text("not read")
    for read in (SessionStore.from_events, InteractionGraph.from_table):
        with pytest.raises(ValueError, match=rf"{option}=.* has no effect on .*{source}.*, which is no text file"):
            read({} if source == "dict" else tmp_path / source, allow_pickle=True, **{option: value})


def test_a_quote_character_is_an_error_for_recbole_files(tmp_path: Path) -> None:
    path = tmp_path / "log.inter"
    path.write_text("user_id:token\titem_id:token\n1\t2\n")
    assert InteractionGraph.from_table(path, quote=None).n_edges == 1
    with pytest.raises(ValueError, match=r"quote=\"'\": fields of \.inter files are never quoted"):
        InteractionGraph.from_table(path, quote="'")


@pytest.mark.parametrize("read", [SessionStore.from_events, InteractionGraph.from_table])
@pytest.mark.parametrize("item_key", ["ItemId", "item_id", "item_id_list"])
def test_augmented_recbole_files_are_refused(tmp_path: Path, read: Callable[..., Any], item_key: str) -> None:
    header = "session_id:token\tuser_id:token\titem_id_list:token_seq\titem_id:token\ttimestamp:float\n"
    (tmp_path / "log.inter").write_text(header + "1\t1\t2 3\t4\t5\n")
    with pytest.raises(
        ValueError, match=r"log\.inter: column 'item_id_list:token_seq' holds several values in each row"
    ):
        read(tmp_path / "log.inter", item_key=item_key)


@pytest.mark.parametrize("column", ["SessionId", "ItemId"])
def test_ids_keep_the_kind_of_their_column(column: str) -> None:
    pandas = pytest.importorskip("pandas")
    digits = ["7", "10", "7"]
    for values in (digits, np.array(digits), pandas.Series(digits, dtype=object), pandas.Categorical(digits)):
        table = {"SessionId": [1, 2, 3], "ItemId": [1, 2, 3], "Time": [1, 2, 3], column: values}
        for source in (
            pandas.DataFrame(table),
            *([table, pl.DataFrame(table), pl.LazyFrame(table)] if values is digits else []),
        ):
            store = SessionStore.from_events(source)
            ids = store.session_ids if column == "SessionId" else store.vocabulary.ids[store.items]
            assert ids.tolist() == (digits if column == "ItemId" else digits[:2])


@pytest.mark.parametrize("in_batches", [False, True])
@pytest.mark.parametrize("name", INVALID_FILES)
def test_error_names_a_bad_file_and_the_problem(tmp_path: Path, name: str, in_batches: bool) -> None:
    file_name, data, message = INVALID_FILES[name]
    (tmp_path / file_name).write_bytes(data)
    with (
        tiny_batches(batch_rows=2) if in_batches else nullcontext(),
        pytest.raises(ValueError, match=message) as caught,
    ):
        SessionStore.from_events(tmp_path / file_name, out=tmp_path / "store")
    assert file_name in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == [file_name]


def test_row_numbers_count_all_batches_and_empty_lines(tmp_path: Path) -> None:
    path = tmp_path / "log.tsv"
    path.write_text("SessionId\tItemId\tTime\n" + "1\t2\t3\n" * 10 + "\n" + "1\t2\tx\n")
    with (
        tiny_batches(batch_rows=4),
        pytest.raises(ValueError, match=r"row 12 \(the first after the header is 1\), value 'x'"),
    ):
        SessionStore.from_events(path)


@pytest.mark.parametrize("separator", [",", ";", "|"])
def test_error_for_a_wrong_separator_lists_the_columns(tmp_path: Path, separator: str) -> None:
    path = tmp_path / "log.tsv"
    path.write_text(LOG)
    columns = r"\['SessionId\\tItemId\\tTime'\]"
    with pytest.raises(ValueError, match=rf"its columns are {columns} \(split at '\{separator}'; give separator="):
        SessionStore.from_events(path, separator=separator)


@pytest.mark.parametrize("options, message", [
    ({"separator": ""}, "separator='': it must be one or more characters, and no line end"),
    ({"separator": ":\n"}, r"separator=':\\n': it must be one or more characters, and no line end"),
    ({"quote": "\r"}, r"quote='\\r': it must be a single ASCII character, and no line end"),
    ({"separator": "'", "quote": "'"}, "separator=\"'\": it has the character that quotes fields"),
    ({"separator": ':"'}, "separator=':\"': it has the character that quotes fields"),
])  # fmt: skip
def test_error_for_a_character_that_cannot_separate_or_quote(
    tmp_path: Path, options: dict[str, str], message: str
) -> None:
    (tmp_path / "log.csv").write_text(TITLES + "1,2,3,4\n")
    with pytest.raises(ValueError, match=message):
        SessionStore.from_events(tmp_path / "log.csv", **options)


def test_times_of_dates(tmp_path: Path) -> None:
    """Dates in a table are the same numbers as their text in a file, also where polars would divide inexactly."""
    microseconds = np.sort(np.random.default_rng(0).integers(0, 4_000_000_000_000_000, 2_000))
    ids = {"SessionId": range(2_000), "ItemId": range(2_000)}
    times = pl.Series("Time", microseconds).cast(pl.Datetime("us"))
    pl.DataFrame([*map(pl.Series, ids, ids.values()), times]).write_csv(tmp_path / "log.csv")
    expected = SessionStore.from_events(tmp_path / "log.csv").start_times
    assert np.array_equal(expected, microseconds / 1e6)
    for series in (times, times.cast(pl.Datetime("ns"))):
        assert np.array_equal(SessionStore.from_events({**ids, "Time": series}).start_times, expected)
    whole = times.cast(pl.Datetime("ms"))
    assert np.array_equal(SessionStore.from_events({**ids, "Time": whole}).start_times, microseconds // 1000 / 1e3)


def test_dates_of_any_year() -> None:
    days = [-(2**31), 2**31 - 1]
    dates = pl.Series(days, dtype=pl.Int32).cast(pl.Date)
    store = SessionStore.from_events({"SessionId": [1, 2], "ItemId": [1, 2], "Time": dates})
    assert store.start_times.tolist() == [86400.0 * day for day in days]


def test_error_names_a_bad_source(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.tsv: there is no such file"):
        SessionStore.from_events(tmp_path / "nothing.tsv")
    with pytest.raises(ValueError, match=r"is a folder, not a log, .* open a prepared store with SessionStore\.open"):
        SessionStore.from_events(tmp_path)
    with pytest.raises(TypeError, match="events cannot be read from the int given"):
        SessionStore.from_events(7)
    with pytest.raises(
        ValueError, match=r"the dict given has no column 'Time'; its columns are \['SessionId', 'ItemId'\]"
    ):
        SessionStore.from_events({"SessionId": [1], "ItemId": [2]})
    with pytest.raises(ValueError, match="session, item, time must be different columns"):
        SessionStore.from_events(COLUMNS, item_key="Time")


@pytest.mark.parametrize(
    "column, values, message",
    [
        ("ItemId", [1.5, 2.0], "column 'ItemId', row 1 .*1.5: ids must be integers or strings"),
        ("ItemId", [1.0, 1e300], "column 'ItemId', row 2 .*: ids must be integers or strings"),
        (
            "ItemId",
            [2.0**53 - 1, 2.0**53],
            "column 'ItemId', row 2 .*: Float64 has no exact integers from 9007199254740992",
        ),
        ("ItemId", np.array([-(2**24), 1], np.float32), "column 'ItemId', row 1 .*: Float32 has no exact integers"),
        ("ItemId", [1.0, float("inf")], "column 'ItemId', row 2 .*: ids must be integers or strings"),
        ("ItemId", [1, 2**63], "column 'ItemId', row 2 .*: integer ids must fit int64; give them as strings"),
        ("ItemId", [1, 2**200], "column 'ItemId', int value too large"),
        ("ItemId", ["a", 1], "column 'ItemId', row 2, value 1: values before it have another type, such as 'a'"),
        ("ItemId", np.array([1, "a"], object), "column 'ItemId', row 2, value 'a': values before it have"),
        ("ItemId", [True, False], "column 'ItemId': ids must be integers or strings, not Boolean"),
        ("SessionId", [1, None], "column 'SessionId', row 2 .*an id is missing"),
        ("Time", [1.0, float("nan")], "column 'Time', row 2 .*nan: a time must be finite"),
        ("Time", [True, False], "column 'Time': times must be numbers, dates or ISO 8601 strings, not Boolean"),
        ("Time", [1, None], "column 'Time', row 2 .*a time is missing"),
        ("SessionId", [1, "a"], "the dict given: its columns cannot be read"),
        ("SessionId", [1, 2, 3], "the dict given: its columns cannot be read"),
    ],
)
def test_error_names_a_bad_column_and_the_problem(column: str, values: list[Any], message: str) -> None:
    table: dict[str, list[Any]] = {"SessionId": [1, 1], "ItemId": [1, 2], "Time": [1, 2]}
    with pytest.raises(ValueError, match=message):
        SessionStore.from_events({**table, column: values})
    # The largest integers that are accepted as floats.
    for number, dtype in ((2**53 - 1, np.float64), (2**24 - 1, np.float32)):
        store = SessionStore.from_events({**table, "ItemId": np.array([number, -number], dtype)})
        assert store.vocabulary.ids.tolist() == [number, -number]
