"""Files without a header, any separator and encoding, time formats, and sessions cut by a gap: as pandas reads them."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, date, datetime, time, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from data_oracle import Row, Session, assert_same_store, assert_store_is, group_by_session, tiny_batches
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gru4rec_fast.data import InteractionGraph, SessionStore, Vocabulary, prepare

differential = settings(
    max_examples=100,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
NAMES = ["SessionId", "ItemId", "Time"]
WORDS = st.sampled_from(["a", "ä", "b c", "x,y", "x::y", ":z", "7", "007", 'in"ch', "ß§", "tab\tbed"])


@st.composite
def text_logs(draw: st.DrawFn) -> tuple[bytes, str, dict[str, Any]]:
    """Return the content of a text file, its suffix, and the options to read it, for pandas as well."""
    rows = draw(st.lists(st.tuples(WORDS, WORDS, st.integers(0, 99).map(str)), min_size=1, max_size=8))
    separator = draw(st.sampled_from(["::", "||", "§", ", ", "\t", ";"]))
    encoding = draw(st.sampled_from(["utf-8", "latin-1", "cp1252", "utf-16", "utf-8-sig", "utf-16-le"]))
    end = draw(st.sampled_from(["\n", "\r\n"]))
    quoting = csv.QUOTE_ALL if draw(st.booleans()) else csv.QUOTE_MINIMAL
    has_header = draw(st.booleans())
    lines = []
    for row in [NAMES, *rows] if has_header else rows:
        text = io.StringIO()
        # The csv module writes one character, which stands for the separator, and does not quote fields because of it.
        fields = [f'"{field}"' if separator in field and quoting == csv.QUOTE_MINIMAL else field for field in row]
        if fields == [*row]:
            csv.writer(text, delimiter="\x00", lineterminator=end, quoting=quoting).writerow(row)
            lines.append(text.getvalue().replace("\x00", separator))
        else:
            lines.append(separator.join('"' + field.replace('"', '""') + '"' for field in row) + end)
        if draw(st.integers(0, 9)) == 0:
            lines.append(end)
    options = {"separator": separator, "encoding": encoding, "columns": None if has_header else NAMES}
    data = "".join(lines).encode(encoding)
    return (gzip.compress(data, mtime=0), ".csv.gz", options) if draw(st.booleans()) else (data, ".csv", options)


def split_text(data: bytes, options: dict[str, Any]) -> list[Row]:
    """Return the rows of a text file, split by pandas if it can: its separator of many characters ignores quotes."""
    pandas = pytest.importorskip("pandas")
    text = data.decode(options["encoding"]).removeprefix("\ufeff")
    separator = options["separator"]
    if len(separator.encode()) > 1:
        text, separator = text.replace(separator, "\x01"), "\x01"
    names = options["columns"]
    frame = pandas.read_csv(
        io.StringIO(text), sep=separator, header=0 if names is None else None, names=names, dtype=str, na_filter=False
    )
    frame = frame.map(lambda value: value.replace("\x01", options["separator"]).strip())
    return [(session, item, float(time)) for session, item, time in frame[NAMES].itertuples(index=False)]


@pytest.mark.parametrize("read", [SessionStore.from_events, InteractionGraph.from_table])
def test_text_of_any_separator_and_encoding_is_read_as_pandas_reads_it(
    tmp_path: Path, read: Callable[..., SessionStore | InteractionGraph]
) -> None:
    pytest.importorskip("pandas")

    @given(log=text_logs())
    @differential
    def read_both(log: tuple[bytes, str, dict[str, Any]]) -> None:
        data, suffix, options = log
        path = tmp_path / f"log{suffix}"
        path.write_bytes(data)
        rows = split_text(gzip.decompress(data) if suffix.endswith(".gz") else data, options)
        with tiny_batches(batch_rows=3):
            if read == SessionStore.from_events:
                assert_sessions(read(path, **options), rows)
            else:
                graph = read(path, user_key="SessionId", **options)
                assert isinstance(graph, InteractionGraph)
                users, items = graph.interactions()
                edges = zip(graph.users.ids[users].tolist(), graph.items.ids[items].tolist(), strict=True)
                assert {(str(u), str(i)) for u, i in edges} == {(u, i) for u, i, _ in rows}

    read_both()


def assert_sessions(store: Any, rows: list[Row]) -> None:
    """Assert that a store holds the sessions of rows, whose ids are compared as strings."""
    expected = group_by_session(rows)
    assert [str(session) for session in store.session_ids.tolist()] == [session.id for session in expected]
    items = [str(item) for item in store.vocabulary.ids[store.items].tolist()]
    assert items == [item for session in expected for _, _, item in session.events]
    assert np.diff(store.offsets).tolist() == [len(session.events) for session in expected]
    assert store.start_times.tolist() == [session.events[0][0] for session in expected]


MOVIELENS = "1::1193::5::978300760\n1::661::3::978302109\n2::1193::4::978298413\n\n2::1357::5::978298709\n"
MOVIELENS_COLUMNS = ["UserId", "ItemId", "Rating", "Time"]


@pytest.mark.parametrize("in_batches", [False, True])
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "utf-16"])
@pytest.mark.parametrize("name", ["ratings.dat", "ratings.dat.gz", "ratings.dat.zst"])
def test_ratings_of_movielens_are_read_by_every_function(
    tmp_path: Path, name: str, encoding: str, in_batches: bool
) -> None:
    data, path = MOVIELENS.encode(encoding), tmp_path / name
    compress = {"gz": gzip.compress, "zst": lambda data: pytest.importorskip("zstandard").compress(data)}
    path.write_bytes(compress.get(name[12:], bytes)(data))
    options: dict[str, Any] = {"separator": "::", "columns": MOVIELENS_COLUMNS, "encoding": encoding}
    with tiny_batches(batch_rows=2) if in_batches else nullcontext():
        store = SessionStore.from_events(path, session_key="UserId", **options)
        prepared = prepare(path, tmp_path / "prepared", session_key="UserId", **options)["train"]
    expected = SessionStore.from_arrays(
        [0, 1, 0, 2],
        [0, 2, 4],
        start_times=[978298413, 978300760],
        end_times=[978298709, 978302109],
        session_ids=[2, 1],
        vocabulary=Vocabulary([1193, 1357, 661]),
    )
    assert_same_store(store, expected)
    assert_same_store(prepared, expected)
    graph = InteractionGraph.from_table(path, **options)
    assert graph.users.ids.tolist() == [1, 2] and graph.items.ids.tolist() == [661, 1193, 1357]
    assert [items.tolist() for items in graph.interactions()] == [[0, 0, 1, 1], [0, 1, 1, 2]]


def test_the_separator_of_a_file_without_header_is_the_one_that_gives_the_columns(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    for separator in "\t,;| ":
        path.write_text(separator.join(["1", '"a;b, c|d e\tf"', "3"]) + "\n")
        assert SessionStore.from_events(path, columns=NAMES).vocabulary.ids.tolist() == ["a;b, c|d e\tf"]


def test_adjacency_lists_of_any_encoding(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_bytes("ä ö ü\nß ö\n".encode("latin-1"))
    graph = InteractionGraph.from_text(path, encoding="latin-1")
    assert graph.users.ids.tolist() == ["ß", "ä"] and graph.items.ids.tolist() == ["ö", "ü"] and graph.n_edges == 3
    with pytest.raises(ValueError, match=r"train\.txt is damaged.*in line 1; convert the file to UTF-8, or give enc"):
        InteractionGraph.from_text(path)
    path.write_bytes("ä ö\nß ü\n".encode("utf-16"))
    assert InteractionGraph.from_text(path, encoding="utf-16").n_edges == 2


LINES = "1,5,0\n1,6,1\n2,5,2\n"
# Case: content of log.csv, options, and the expected error.
INVALID_TEXTS: dict[str, tuple[bytes, dict[str, Any], str]] = {
    "header, and columns": (
        f"SessionId,ItemId,Time\n{LINES}".encode(),
        {"columns": NAMES},
        r"log\.csv, line 1 .*: this is a header with the names of the columns: leave out columns=\.\.\. \(--columns\)",
    ),
    "header of other names, and columns": (
        f"\nsid,iid,at\n{LINES}".encode(),
        {"columns": NAMES},
        r"log\.csv: the first row, with the ids 'sid', 'iid', seems to be a header, because all other ids are integers",
    ),
    "header in small letters, and ids of two kinds": (
        b"sessionid,itemid,time\na,5,0\na,6,1\n",
        {"columns": NAMES},
        r"log\.csv, line 1 .*: this is a header with the names of the columns: leave out columns=\.\.\. \(--columns\)",
    ),
    "UTF-8 with a byte order mark, and another encoding": (
        codecs.BOM_UTF8 + LINES.encode(),
        {"columns": NAMES, "encoding": "cp1252"},
        r"log\.csv begins with the byte order mark of UTF-8: encoding='cp1252' is wrong",
    ),
    "no header, and no columns": (LINES.encode(), {}, r"has no column 'SessionId'; its columns are \['1', '5', '0'\]"),
    "too few columns": (
        LINES.encode(),
        {"columns": NAMES[:2]},
        r"log\.csv, line 1 \(split at ','\): it has 3 fields, but columns=\.\.\. \(--columns\) has 2 names: name all",
    ),
    "too many columns": (LINES.encode(), {"columns": [*NAMES, "x"]}, "it has 3 fields, but .* has 4 names"),
    "columns without a wanted one": (
        LINES.encode(),
        {"columns": ["SessionId", "ItemId", "when"]},
        r"has no column 'Time'; its columns are \['SessionId', 'ItemId', 'when'\]",
    ),
    "one column twice": (
        LINES.replace(",", ",7,").encode(),
        {"columns": ["SessionId", "x", "Time", "ItemId", "Time"]},
        "2 columns named 'Time'",
    ),
    "long line": (
        f"{LINES}1,2,3,4\n".encode(),
        {"columns": NAMES},
        r"log\.csv, line 4: it has more fields than columns=\.\.\., which has 3 names",
    ),
    "long line, long separator": (
        f"{LINES}1,2,3,4\n".replace(",", "::").encode(),
        {"columns": NAMES, "separator": "::"},
        r"log\.csv, line 4: it has more fields than columns=\.\.\., which has 3 names",
    ),
    "short line, long separator": (
        b"1::2::3\n1::2\n",
        {"columns": NAMES, "separator": "::"},
        r"column 'Time', row 2 \(the first is 1\), value None: a time is missing",
    ),
    "empty field, long separator": (
        b"1::2::3\n::2::4\n",
        {"columns": NAMES, "separator": "::"},
        r"column 'SessionId', row 2 \(the first is 1\), value None: an id is missing",
    ),
    "separator that is absent": (
        LINES.encode(),
        {"columns": NAMES, "separator": "::"},
        r"line 1 \(split at '::'\): it has 1 field, but .* 3 names: .* give another separator",
    ),
    "separator that is absent from the header": (
        f"SessionId,ItemId,Time\n{LINES}".encode(),
        {"separator": "::"},
        r"its columns are \['SessionId,ItemId,Time'\] \(split at '::'; give separator=",
    ),
    "unit separator": (
        b"1::2::3\n1::2\x1f::3\n",
        {"columns": NAMES, "separator": "::", "encoding": "latin-1"},
        r"log\.csv, line 2: it has the control character '\\x1f'",
    ),
    "quote that is not closed, long separator": (
        b'1::2::3\n1::"2::4\n',
        {"columns": NAMES, "separator": "::"},
        r"log\.csv, line 2: the row that begins here has a quoted field that is not closed",
    ),
    "no such encoding": (LINES.encode(), {"encoding": "latin-99"}, "encoding='latin-99': there is no such text enc"),
    "encoding of bytes": (LINES.encode(), {"encoding": "base64"}, "encoding='base64': there is no such text encoding"),
    "wrong encoding": (
        f"SessionId,ItemId,Time\n{LINES}1,ä,2\n".encode("latin-1"),
        {},
        r"log\.csv is damaged, .* in line 5; convert the file to UTF-8, or give encoding=\.\.\. \(--encoding \.\.\.\)",
    ),
    "another wrong encoding": (
        f"SessionId,ItemId,Time\n{LINES}1,ä,2\n".encode("latin-1"),
        {"encoding": "ascii"},
        r"log\.csv is damaged, .* in line 5; encoding='ascii' is wrong, or the file is damaged",
    ),
    "wide encoding of bytes": (
        f"SessionId,ItemId,Time\n{LINES}".encode(),
        {"encoding": "utf-16"},
        r"log\.csv.* (is damaged|has no column 'SessionId')",
    ),
    "bytes": (bytes(range(256)), {}, r"log\.csv.* (is damaged|has no column 'SessionId'|is empty)"),
    "an error of several lines": (b"?||1\n1\n", {"encoding": "punycode"}, r"log\.csv is damaged.*in line 1; encoding="),
    "bytes of any encoding": (bytes(range(256)), {"encoding": "latin-1"}, r"log\.csv.*"),
    "nothing, in another encoding": (b"\xff\xfe\n\x00", {"encoding": "utf-16"}, r"log\.csv is empty"),
}


@pytest.mark.parametrize("in_batches", [False, True])
@pytest.mark.parametrize("case", INVALID_TEXTS)
def test_error_names_a_bad_file_and_the_problem(tmp_path: Path, case: str, in_batches: bool) -> None:
    data, options, message = INVALID_TEXTS[case]
    (tmp_path / "log.csv").write_bytes(data)
    with (
        tiny_batches(batch_rows=2) if in_batches else nullcontext(),
        pytest.raises(ValueError, match=message) as caught,
    ):
        SessionStore.from_events(tmp_path / "log.csv", **options, out=tmp_path / "store")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


def test_a_header_is_refused_by_graphs_without_header(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user,item\n1,2\n3,4\n")
    with pytest.raises(ValueError, match="the first row, with the ids 'user', 'item', seems to be a header"):
        InteractionGraph.from_table(tmp_path / "log.csv", columns=["UserId", "ItemId"])
    (tmp_path / "log.csv").write_text("user,item\na,2\n3,b\n")  # nothing tells that the first row is a header
    assert InteractionGraph.from_table(tmp_path / "log.csv", columns=["UserId", "ItemId"]).n_edges == 3


@pytest.mark.parametrize("columns", ["SessionId", ["SessionId", 1]])
def test_columns_must_be_a_list_of_names(tmp_path: Path, columns: Any) -> None:
    (tmp_path / "log.csv").write_text(LINES)
    for read in (SessionStore.from_events, InteractionGraph.from_table):
        with pytest.raises(TypeError, match=r"columns=.*: give a list of the names of all columns, in order"):
            read(tmp_path / "log.csv", columns=columns)


@pytest.mark.parametrize(("option", "value"), [("encoding", "latin-1"), ("columns", NAMES), ("separator", "::")])
@pytest.mark.parametrize("source", ["dict", "log.parquet", "log.pickle"])
def test_options_of_text_files_are_an_error_for_other_sources(
    tmp_path: Path, source: str, option: str, value: Any
) -> None:
    (tmp_path / source).write_text("not read")
    for read in (SessionStore.from_events, InteractionGraph.from_table, partial(prepare, out=tmp_path / "out")):
        with pytest.raises(ValueError, match=rf"{option}=.* has no effect on .*{source}.*, which is no text file"):
            read({} if source == "dict" else tmp_path / source, allow_pickle=True, **{option: value})


def test_columns_are_an_error_for_recbole_files(tmp_path: Path) -> None:
    path = tmp_path / "log.inter"
    path.write_bytes("user_id:token\titem_id:token\nä\t2\n".encode("latin-1"))
    assert InteractionGraph.from_table(path, encoding="latin-1").users.ids.tolist() == ["ä"]
    with pytest.raises(ValueError, match=r"columns=\.\.\.: \.inter files have a header"):
        InteractionGraph.from_table(path, columns=["UserId", "ItemId"])


# Formats of times that name the whole date; the first ones are parsed by polars.
FORMATS = [
    "%Y-%m-%d %H:%M:%S UTC",
    "%d.%m.%Y %H:%M",
    "%Y%m%d%H%M%S",
    "%m/%d/%Y",
    "%Y-%m-%dT%H:%M:%S.%f",
    "%d/%b/%Y:%H:%M:%S %z",
    "%a %b %d %H:%M:%S %z %Y",
    "%I:%M %p, %B %d %y",
    "%Y-%j",
    "%d. %m. %Y %Hh",
    "100%% %Y-%m-%d",
]


@given(
    time_format=st.sampled_from(FORMATS),
    times=st.lists(st.datetimes(datetime(1969, 1, 1), datetime(2068, 1, 1)), min_size=1, max_size=6),
    zone=st.integers(-12, 12),
    wrong=st.sampled_from([None, None, "2014-02-30", "2014-04-07 10:51:60 UTC", "4.7.2014 1:02", "", "07.04.14 10:51"]),
)
@differential
def test_times_of_any_format_are_those_of_strptime(
    time_format: str, times: list[datetime], zone: int, wrong: str | None
) -> None:
    texts = [time.replace(tzinfo=timezone(timedelta(hours=zone))).strftime(time_format) for time in times]
    if wrong is not None:
        texts.append(wrong)
    seconds = []
    for row, text in enumerate(texts, 1):
        try:
            parsed = datetime.strptime(text, time_format)
        except ValueError:
            place = rf"column 'Time', row {row} \(.*\), value '{text}': not of the form time_format="
            with pytest.raises(ValueError, match=place):
                SessionStore.from_events(
                    {"SessionId": range(len(texts)), "ItemId": texts, "Time": texts}, time_format=time_format
                )
            return
        seconds.append((parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp())
    table = {"SessionId": range(len(texts)), "ItemId": range(len(texts)), "Time": texts}
    store = SessionStore.from_events(table, time_format=time_format)
    assert store.start_times.dtype == np.float64
    assert dict(zip(store.session_ids.tolist(), store.start_times.tolist(), strict=True)) == dict(enumerate(seconds))


def test_times_of_a_format_in_files(tmp_path: Path) -> None:
    rows = [(1, "a", "01.02.2020 10:00"), (2, "b", " 1.2.2020 9:59 "), (1, "c", "31.01.2020 23:59")]
    (tmp_path / "log.csv").write_text("".join(f"{s};{i};{t}\n" for s, i, t in rows))
    options: dict[str, Any] = {"columns": NAMES, "time_format": "%d.%m.%Y %H:%M"}
    expected = [
        (1, "a", datetime(2020, 2, 1, 10, tzinfo=UTC).timestamp()),
        (2, "b", datetime(2020, 2, 1, 9, 59, tzinfo=UTC).timestamp()),
        (1, "c", datetime(2020, 1, 31, 23, 59, tzinfo=UTC).timestamp()),
    ]
    with tiny_batches(batch_rows=2):
        store = SessionStore.from_events(tmp_path / "log.csv", **options)
        assert_store_is(store, group_by_session(expected))
        stores = prepare(tmp_path / "log.csv", tmp_path / "out", min_session_length=1, **options)
        assert_same_store(stores["train"], store)
    with (tmp_path / "log.csv").open("a") as file:
        file.write("\n3;d;1.1.2020\n")
    place = r"log\.csv: column 'Time', row 5 \(the first is 1\), value '1\.1\.2020': not of the form time_format='%d"
    with pytest.raises(ValueError, match=place):
        SessionStore.from_events(tmp_path / "log.csv", **options)


@pytest.mark.parametrize(
    ("time_format", "message"),
    [
        ("%Q", "time_format='%Q' is not a format of datetime.strptime: 'Q' is a bad directive"),
        ("%Y %", "is not a format of datetime.strptime: stray %"),
        ("%Y %Y", "is not a format of datetime.strptime: redefinition"),
        ("%H:%M:%S", "has no year, such as %Y"),
        ("%m-%d", "has no year, such as %Y"),
        ("", "has no year, such as %Y"),
        ("%Y-%m-%d %H:%M:%S %Z", "names of time zones are ambiguous"),
    ],
)
def test_a_wrong_time_format_is_an_error(time_format: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SessionStore.from_events({"SessionId": [1], "ItemId": [1], "Time": ["2020"]}, time_format=time_format)


def test_a_time_format_is_an_error_for_times_that_are_no_texts() -> None:
    for times in ([5], [5.5], [date(2020, 1, 1)], [datetime(2020, 1, 1)]):
        with pytest.raises(ValueError, match=r"column 'Time': time_format='%Y' is for texts and has no effect on"):
            SessionStore.from_events({"SessionId": [1], "ItemId": [1], "Time": times}, time_format="%Y")


def test_dates_and_times_of_day_in_two_columns(tmp_path: Path) -> None:
    moments = [datetime(2020, 1, 2, 3, 4, 5), datetime(2020, 1, 1, 23, 59, 59, 500_000), datetime(1969, 12, 31)]
    expected = group_by_session([(s, s, t.replace(tzinfo=UTC).timestamp()) for s, t in enumerate(moments)])
    table = {"SessionId": [0, 1, 2], "ItemId": [0, 1, 2]}
    keys = {"time_key": "day", "time_of_day_key": "clock"}
    days, clocks = [m.date() for m in moments], [m.time() for m in moments]
    texts = {"day": [str(day) for day in days], "clock": [str(clock) for clock in clocks]}
    pl.DataFrame({**table, **texts}).write_csv(tmp_path / "log.csv")
    pl.DataFrame({**table, "day": days, "clock": clocks}).write_parquet(tmp_path / "log.parquet")
    mixed = {"day": texts["day"], "clock": clocks}
    for source in (tmp_path / "log.csv", tmp_path / "log.parquet", {**table, **texts}, {**table, **mixed}):
        with tiny_batches(batch_rows=2):
            assert_store_is(SessionStore.from_events(source, **keys), expected)
    formatted = {"day": [day.strftime("%d.%m.%y") for day in days], "clock": ["3:04", "23:59", "0:00"]}
    store = SessionStore.from_events({**table, **formatted}, time_format="%d.%m.%y %H:%M", **keys)
    minutes = [moment.replace(second=0, microsecond=0, tzinfo=UTC).timestamp() for moment in moments]
    assert store.start_times.tolist() == sorted(minutes)
    (tmp_path / "log.csv").write_text("SessionId,ItemId,day,clock\n1,2,2020-01-01,10:00\n1,3,2020-01-02,25:00\n")
    with pytest.raises(
        ValueError, match=r"log\.csv: column 'day' \+ 'clock', row 2 .*, value '2020-01-02 25:00': this is no ISO 8601"
    ):
        SessionStore.from_events(tmp_path / "log.csv", **keys)
    (tmp_path / "log.csv").write_text("SessionId,ItemId,day,clock\n1,2,2020-01-01,10:00\n1,3,2020-01-02,\n")
    with pytest.raises(ValueError, match=r"column 'day' \+ 'clock', row 2 .*: a time is missing"):
        SessionStore.from_events(tmp_path / "log.csv", **keys)
    for wrong in ({"day": [1], "clock": ["10:00"]}, {"day": ["2020-01-01"], "clock": [10]},
                  {"day": moments[:1], "clock": ["10:00"]}):  # fmt: skip
        with pytest.raises(ValueError, match="in two columns, times must be texts or the types Date and Time, not"):
            SessionStore.from_events({"SessionId": [1], "ItemId": [2], **wrong}, **keys)
    with pytest.raises(ValueError, match=r"column of times of day by time_of_day_key=\.\.\. \(--time-of-day-key"):
        SessionStore.from_events({**table, **texts}, time_key="day", time_of_day_key="clocks")
    with pytest.raises(ValueError, match="must be different columns"):
        SessionStore.from_events({**table, **texts}, time_key="day", time_of_day_key="day")


def cut(rows: list[Row], gap: float) -> list[Session]:
    """Cut the rows (user, item, time) into sessions, in plain Python."""
    events: dict[int, Row] = {}  # by input row
    for user in group_by_session(rows):
        number, previous = 1, user.events[0][0]
        for when, row, item in user.events:
            number += when - previous > gap
            previous = when
            events[row] = (f"{user.id}:{number}", item, when)
    return group_by_session([events[row] for row in sorted(events)])


@given(
    rows=st.lists(
        st.tuples(st.sampled_from([1, 2, 7]), st.integers(0, 5), st.integers(-60, 60)), min_size=1, max_size=30
    ),
    gap=st.sampled_from([0.5, 1, 7.5, 20]),
    is_text=st.booleans(),
    divisor=st.sampled_from([1, 8]),
)
@differential
def test_sessions_of_users_are_cut_by_a_gap(
    rows: list[tuple[int, int, int]], gap: float, is_text: bool, divisor: int
) -> None:
    events: list[Row] = [
        (f"u{user}" if is_text else user, item, time if divisor == 1 else time / divisor) for user, item, time in rows
    ]
    table = dict(zip(["UserId", "ItemId", "Time"], map(list, zip(*events, strict=True)), strict=True))
    expected = cut(events, gap)
    with tiny_batches():
        store = SessionStore.from_events(table, session_gap=gap)
    assert_store_is(store, expected)
    assert_store_is(SessionStore.from_events(table, session_gap=gap), expected)


def test_sessions_cut_by_a_gap_are_those_of_pandas(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    generator = np.random.default_rng(0)
    times = pandas.to_datetime(generator.integers(1_500_000_000, 1_500_100_000, 500), unit="s")
    frame = pandas.DataFrame(
        {"who": generator.integers(0, 9, 500), "what": generator.integers(0, 50, 500), "at": times}
    )
    frame.to_csv(tmp_path / "log.csv", index=False)
    keys: dict[str, Any] = {"user_key": "who", "item_key": "what", "time_key": "at", "session_gap": 1800}
    store = SessionStore.from_events(tmp_path / "log.csv", **keys)
    frame = frame.sort_values(["who", "at"], kind="stable")
    is_first = frame["at"].diff() > pandas.Timedelta(minutes=30)
    is_first |= frame["who"].diff() != 0
    assert store.n_sessions == is_first.sum() > 100 and store.n_events == 500
    number = is_first.astype(int).groupby(frame["who"]).cumsum()
    lengths = frame.groupby([frame["who"], number]).size()
    expected = {f"{user}:{k}": length for (user, k), length in lengths.items()}
    assert dict(zip(store.session_ids.tolist(), np.diff(store.offsets).tolist(), strict=True)) == expected
    assert_same_store(SessionStore.from_events(frame.sort_index(), **keys), store)
    prepared = prepare(tmp_path / "log.csv", tmp_path / "out", remove_duplicates=False, split="fraction=0.5", **keys)
    assert sum(part.n_sessions for part in prepared.values()) < store.n_sessions
    assert all(np.diff(part.offsets).min() >= 2 for part in prepared.values())
    assert "user" in store.meta["ids"]


def test_gaps_of_extreme_times() -> None:
    table = {"UserId": [1, 1, 1], "ItemId": [1, 2, 3], "Time": [-(2**63), 2**63 - 1, 2**63 - 1]}
    assert np.diff(SessionStore.from_events(table, session_gap=2.0**63).offsets).tolist() == [1, 2]
    assert np.diff(SessionStore.from_events(table, session_gap=2.0**64).offsets).tolist() == [3]
    table["Time"] = [-1e308, 1e308, 1e308]  # type: ignore[list-item]
    assert np.diff(SessionStore.from_events(table, session_gap=1e308).offsets).tolist() == [1, 2]


def test_the_test_log_of_a_model_is_cut_before_unknown_items_are_removed() -> None:
    table = {"UserId": [1] * 5, "ItemId": [1, 9, 2, 3, 1], "Time": [0, 10, 20, 50, 60]}
    store = SessionStore.from_events(table, session_gap=15, vocabulary=Vocabulary([1, 2, 3]))
    assert store.session_ids.tolist() == ["1:1", "1:2"] and store.items.tolist() == [0, 1, 2, 0]


@pytest.mark.parametrize("gap", [0, -1, float("nan"), float("inf")])
def test_a_gap_must_be_a_positive_number(tmp_path: Path, gap: float) -> None:
    table = {"UserId": [1], "ItemId": [1], "Time": [1]}
    for read in (SessionStore.from_events, partial(prepare, out=tmp_path / "out")):
        with pytest.raises(ValueError, match=rf"session_gap={gap}: give a positive number, in the unit of the times"):
            read(table, session_gap=gap)


def test_columns_of_sessions_and_users_exclude_each_other() -> None:
    table = {"UserId": [1], "who": [1], "SessionId": [1], "ItemId": [1], "Time": [1]}
    with pytest.raises(ValueError, match="session_key='who' has no effect with session_gap: leave it out"):
        SessionStore.from_events(table, session_key="who", session_gap=1)
    with pytest.raises(ValueError, match="user_key='who' has no effect without session_gap: leave it out"):
        SessionStore.from_events(table, user_key="who")
    with pytest.raises(ValueError, match=r"no column 'UserId'.*column of users by user_key"):
        SessionStore.from_events({"SessionId": [1], "ItemId": [1], "Time": [1]}, session_gap=1)


def test_times_of_day_have_no_dates(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="times must be numbers, dates or ISO 8601 strings, not Time"):
        SessionStore.from_events({"SessionId": [1], "ItemId": [1], "Time": [time(10)]})


@given(
    sequences=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), min_size=1, max_size=8),
    is_text=st.booleans(),
    known=st.none() | st.sets(st.integers(0, 12), min_size=1),
    known_is_text=st.booleans(),
)
@differential
def test_sequences_give_the_store_of_their_events(
    sequences: list[list[int]], is_text: bool, known: set[int] | None, known_is_text: bool
) -> None:
    lists: list[Any] = [[f"{item}" for item in sequence] if is_text else sequence for sequence in sequences]
    vocabulary = None if known is None else Vocabulary([f"{i}" if known_is_text else i for i in sorted(known)])
    table = pl.DataFrame({"SessionId": range(len(lists)), "ItemId": lists, "Time": range(len(lists))}).explode("ItemId")
    ids = [f"session {k}" for k in range(len(lists))]
    try:
        expected = SessionStore.from_events(table, vocabulary=vocabulary)
    except ValueError as error:  # no session is left
        with pytest.raises(ValueError) as caught:
            SessionStore.from_sequences(lists, vocabulary=vocabulary)
        assert str(caught.value).partition(" (")[0] == str(error).replace("DataFrame", "sequences").partition(" (")[0]
        return
    arrays = [np.array(sequence) for sequence in lists]
    for source in (lists, tuple(map(tuple, lists)), arrays, iter(lists)):
        store = SessionStore.from_sequences(source, vocabulary=vocabulary)
        assert_same_store(store, expected)
        assert dict(store.meta["dropped"]) == dict(expected.meta["dropped"])
    store = SessionStore.from_sequences(lists, session_ids=ids, vocabulary=vocabulary)
    assert store.session_ids.tolist() == [ids[k] for k in expected.session_ids.tolist()]


def test_a_store_of_sequences_is_saved_and_opened(tmp_path: Path) -> None:
    store = SessionStore.from_sequences([["a", "b"], ["b", "c", "b"]], session_ids=[7, 5])
    store.save(tmp_path / "store")
    assert_same_store(SessionStore.open(tmp_path / "store"), store)
    assert store.items.tolist() == [0, 1, 1, 2, 1] and store.session_ids.tolist() == [7, 5]


@pytest.mark.parametrize(
    ("sequences", "error", "message"),
    [
        ([], ValueError, "there are no sequences"),
        ([[1, 2], []], ValueError, r"sequences\[1\] is empty: leave it out"),
        ([[1, 2], "ab"], TypeError, r"sequences\[1\]: a sequence must be a list or array of item ids, not a str"),
        (["ab"], TypeError, r"sequences\[0\]: a sequence must be a list"),
        ([[1], ["a"]], TypeError, r"sequences\[1\]: its ids are strings, but those of sequences\[0\] are integers"),
        ([["a"], [1]], TypeError, r"sequences\[1\]: its ids are integers, but those of sequences\[0\] are strings"),
        ([[1], [1.5]], TypeError, r"sequences\[1\]: ids must be all integers or all strings, not float64"),
        ([[1, "a"]], TypeError, r"sequences\[0\]: ids must be all integers or all strings, not a mixture"),
        ([[1, None]], TypeError, r"sequences\[0\]: ids must be all integers or all strings"),
        ([[True]], TypeError, r"sequences\[0\]: ids must be all integers or all strings, not bool"),
        ([{1, 2}], TypeError, r"sequences\[0\]: ids must be a sequence, not a set"),
        ([[[1]]], ValueError, r"sequences\[0\]: ids must be a one-dimensional sequence"),
        ([[2**63]], TypeError, r"sequences\[0\]: integer ids must fit int64"),
        ([5], TypeError, r"sequences\[0\]: a sequence must be a list or array of item ids, not a int"),
    ],
)
def test_error_names_a_bad_sequence(sequences: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SessionStore.from_sequences(sequences)


def test_session_ids_must_be_as_many_as_sequences() -> None:
    with pytest.raises(ValueError, match="session_ids has 1 elements, but there are 2 sequences"):
        SessionStore.from_sequences([[1], [2]], session_ids=[1])
    for ids, named in ((["a", "b", "a"], "'a'"), ([3, 3, 5], "3")):
        with pytest.raises(ValueError, match=f"session_ids: {named} occurs 2 times; each session needs an id"):
            SessionStore.from_sequences([[1], [2], [3]], session_ids=ids)
    with pytest.raises(TypeError, match="vocabulary must be a Vocabulary, not a list"):
        SessionStore.from_sequences([[1], [2]], vocabulary=[1, 2])


RECORDS = [(3, "a", 5.5), (3, "b", 6.25), (1, "a", 1.0), (1, "ä", 2.0)]


class ArrowStream:
    """A table with nothing but an Arrow stream."""

    def __init__(self, frame: Any) -> None:
        self._frame = frame

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self._frame.__arrow_c_stream__(requested_schema)


@pytest.mark.parametrize("in_batches", [False, True])
def test_record_arrays_and_arrow_streams_give_the_same_store(tmp_path: Path, in_batches: bool) -> None:
    dtype = [("SessionId", "<i4"), ("ItemId", "U2"), ("Time", "f8")]
    array = np.array(RECORDS, dtype)
    swapped = np.array(RECORDS, [("SessionId", ">i8"), ("ItemId", "U9"), ("x", "V3"), ("Time", ">f4")][:2] + dtype[2:])
    frame = pl.DataFrame(RECORDS, schema=NAMES, orient="row")
    expected = SessionStore.from_events(frame)
    with tiny_batches() if in_batches else nullcontext():
        for source in (array, array.view(np.recarray), np.repeat(array, 2)[::2], swapped, ArrowStream(frame)):
            assert_same_store(SessionStore.from_events(source), expected)
        assert_same_store(prepare(array, tmp_path / "out")["train"], expected)
        for source in (array, ArrowStream(frame)):
            graph = InteractionGraph.from_table(source, user_key="SessionId")
            assert graph.n_edges == 4 and graph.items.ids.tolist() == ["a", "b", "ä"]


def test_streams_and_arrays_that_are_no_tables_are_refused() -> None:
    with pytest.raises(TypeError, match="events cannot be read from the ndarray given; give a path, a pandas"):
        SessionStore.from_events(np.zeros((3, 3)))
    with pytest.raises(TypeError, match="events cannot be read from the ndarray given"):
        SessionStore.from_events(np.zeros((1, 2), [(name, "i8") for name in NAMES]))
    with pytest.raises(ValueError, match="the ndarray given has no column 'Time'"):
        SessionStore.from_events(np.zeros(2, [("SessionId", "i8"), ("ItemId", "i8")]))
    with pytest.raises(ValueError, match=r"the ndarray given: column 'ItemId': ids must be integers or strings, not "):
        SessionStore.from_events(np.zeros(2, [("SessionId", "i8"), ("ItemId", "S3"), ("Time", "i8")]))
    with pytest.raises(ValueError, match="the ArrowStream given: its Arrow stream cannot be read"):
        SessionStore.from_events(ArrowStream(pl.Series([1, 2])))
