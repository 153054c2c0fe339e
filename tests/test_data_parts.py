"""Logs in several part files are read as one file with all rows."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import polars as pl
import pytest
from run_cli import cli

from gru4rec_fast import GRU4Rec, InteractionGraph, SessionStore
from gru4rec_fast.data import prepare
from gru4rec_fast.data.sessions.synthetic import markov_events
from gru4rec_fast.distributed import OtherRankError, Ranks

N = 5


def events() -> pl.DataFrame:
    """Return a log in random order, with equal times within sessions, so that the order of the rows matters."""
    log = pl.DataFrame(markov_events(120, 25, seed=3)).with_columns(pl.col("Time") // 50)
    return log.sample(fraction=1.0, shuffle=True, seed=0)


def write_parts(folder: Path, pattern: str, log: pl.DataFrame | None = None, n: int = N) -> list[Path]:
    """Write a log to n files named by a pattern, and what Spark writes beside them."""
    log = events() if log is None else log
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "_SUCCESS").touch()
    (folder / f".{pattern.format(0)}.crc").touch()
    paths = [folder / pattern.format(number) for number in range(n)]
    for number, path in enumerate(paths):
        part = log.slice(number * (len(log) // n), None if number == n - 1 else len(log) // n)
        part.write_parquet(path) if path.suffix == ".parquet" else part.write_csv(path, separator="\t")
    return paths


def assert_same(store: SessionStore, expected: SessionStore) -> None:
    for name in ("items", "offsets", "start_times", "end_times", "support"):
        np.testing.assert_array_equal(getattr(store, name), getattr(expected, name), err_msg=name)
    assert store.vocabulary == expected.vocabulary
    np.testing.assert_array_equal(store.session_ids, expected.session_ids)


@pytest.mark.parametrize("pattern", ["part-{:05}-3f2a-c000.snappy.parquet", "part.{}.parquet", "log_{:03}.tsv"])
@pytest.mark.parametrize("kind", ["folder", "pattern", "list"])
def test_parts_are_read_as_one_file(tmp_path: Path, pattern: str, kind: str) -> None:
    paths = write_parts(tmp_path / "log", pattern)
    suffix = paths[0].suffix
    source = {"folder": tmp_path / "log", "pattern": f"{tmp_path}/log/*{suffix}", "list": paths}[kind]
    assert_same(SessionStore.from_events(source), SessionStore.from_events(events()))


def test_everything_that_reads_logs_reads_parts(tmp_path: Path) -> None:
    write_parts(tmp_path / "log", "part-{}.parquet")
    source = tmp_path / "log"
    model = GRU4Rec(layers=(8,), batch_size=4, n_sample=8, n_epochs=1, seed=0).fit(source, progress=False)
    assert model.evaluate(source).n_targets == model.evaluate(events()).n_targets
    parts, whole = prepare(source, tmp_path / "parts"), prepare(events(), tmp_path / "whole")
    assert_same(parts["train"], whole["train"])
    graph = InteractionGraph.from_table(source, user_key="SessionId")
    assert graph.n_edges == InteractionGraph.from_table(events(), user_key="SessionId").n_edges
    for command in (["prepare", source, tmp_path / "cli"], ["train", source, "--n-epochs", "1"]):
        assert cli(*command).exit_code == 0, command


def test_a_log_longer_than_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gru4rec_fast.data.table_reader.BATCH_ROWS", 50)
    paths = write_parts(tmp_path, "{}.parquet")
    assert_same(SessionStore.from_events(paths), SessionStore.from_events(events()))


def test_ids_that_are_integers_in_the_first_part_only(tmp_path: Path) -> None:
    log = events().with_columns(pl.col("ItemId").cast(pl.String))
    last = log.with_row_index().select(pl.when(pl.col("index") == len(log) - 1).then(pl.lit("x")).otherwise("ItemId"))
    log = log.with_columns(last.to_series().alias("ItemId"))
    store = SessionStore.from_events(write_parts(tmp_path / "text", "{}.tsv", log))
    assert store.vocabulary.holds_strings
    assert store.meta["ids"]["item"]["because"].endswith(f"of {tmp_path / 'text' / '4.tsv'}")


def fail_with(source: Any, message: str, **options: Any) -> None:
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        SessionStore.from_events(source, **options)
    assert message in str(error.value)


def test_errors_name_the_part_and_its_row(tmp_path: Path) -> None:
    log = events()
    n = len(log) // N
    times = [None if row == 2 * n + 6 else time for row, time in enumerate(log["Time"])]
    paths = write_parts(tmp_path, "{}.parquet", log.with_columns(Time=pl.Series(times)))
    fail_with(paths, f"{paths[2]}: column 'Time', row 7 (the first after the header is 1)")


def test_parts_of_different_kinds_are_an_error(tmp_path: Path) -> None:
    paths = write_parts(tmp_path, "{}.parquet")
    events().with_columns(pl.col("ItemId").cast(pl.String)).write_parquet(paths[3])
    fail_with(paths, f"{paths[3]}: column 'ItemId' holds strings, and numbers in {paths[0]}: make the files alike")
    events().with_columns(pl.from_epoch("Time")).write_parquet(paths[3])
    fail_with(paths, f"{paths[3]}: column 'Time' holds dates, and numbers in {paths[0]}")
    events().drop("Time").write_parquet(paths[3])
    fail_with(paths, f"{paths[3]} has no column 'Time'")
    events().write_csv(tmp_path / "3.csv")
    fail_with([paths[0], tmp_path / "3.csv"], "one is a text file, the other is not")


def test_what_is_not_one_log_is_an_error(tmp_path: Path) -> None:
    paths = write_parts(tmp_path / "log", "part{}.csv")
    fail_with([*paths, paths[1]], f"{paths[1]} is in the list of log files twice")
    fail_with([], "the list of log files is empty")
    fail_with(f"{tmp_path}/*.tsv", "no file matches this pattern")
    (tmp_path / "log" / "readme.md").touch()
    fail_with(tmp_path / "log", "log is a folder, not a log, and does not hold part files only: give a pattern such as")
    write_parts(tmp_path / "two", "train{}.csv")
    write_parts(tmp_path / "two", "test{}.csv")
    fail_with(tmp_path / "two", "which look like different logs: give the list of files that form one log")
    (tmp_path / "none").mkdir()
    fail_with(tmp_path / "none", "or open a prepared store with SessionStore.open")


def test_times_that_are_integers_in_some_parts_and_floats_in_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gru4rec_fast.data.table_reader.BATCH_ROWS", 50)
    paths = write_parts(tmp_path, "{}.parquet")
    pl.read_parquet(paths[3]).with_columns(pl.col("Time") * 1.0).write_parquet(paths[3])
    assert_same(SessionStore.from_events(paths), SessionStore.from_events(events()))


class ThreadRanks(Ranks):
    """A rank that is a thread of this process. Values are pickled, as between processes."""

    def __init__(self, rank: int, values: list[bytes], barrier: Barrier) -> None:
        self.rank, self.size = rank, len(values)
        self._values, self._barrier = values, barrier

    def gather(self, value: Any) -> list[Any]:
        self._values[self.rank] = pickle.dumps(value)
        self._barrier.wait(60)
        gathered = [pickle.loads(value) for value in self._values]
        self._barrier.wait(60)
        return gathered


@pytest.fixture
def many_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a log of a few hundred rows one of many batches, in few partitions."""
    monkeypatch.setattr("gru4rec_fast.data.table_reader.BATCH_ROWS", 50)
    monkeypatch.setattr("gru4rec_fast.data.sessions.ingest.PARTITIONS", 5)


def by_ranks(size: int, function: Callable[[Ranks], Any]) -> list[Any]:
    """Call a function on each rank; return the results or errors."""
    values, barrier = [b""] * size, Barrier(size)

    def call(rank: int) -> Any:
        try:
            return function(ThreadRanks(rank, values, barrier))
        except Exception as error:
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(call, range(size)))


def content(folder: Path) -> dict[Path, bytes]:
    """Return the content of all files in a folder."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def with_texts(log: pl.DataFrame, column: str, values: dict[int, Any]) -> pl.DataFrame:
    """Return a log of strings in which some rows have other values in a column; negative rows count from the end."""
    texts = log[column].cast(pl.String).to_list()
    for row, value in values.items():
        texts[row] = value
    return log.with_columns(pl.Series(column, texts))


DATES = pl.from_epoch("Time").dt.to_string("%Y-%m-%d")
LOGS: dict[str, tuple[str, Callable[[pl.DataFrame], pl.DataFrame]]] = {
    "Parquet": ("{}.parquet", lambda log: log),
    "strings in Parquet": ("{}.parquet", lambda log: log.with_columns(pl.col("ItemId").cast(pl.String) + "x")),
    "text": ("{}.tsv", lambda log: log),
    "items are strings in the last part": ("{}.tsv", lambda log: with_texts(log, "ItemId", {-1: "x", -9: " 007"})),
    "sessions are strings from the second part": ("{}.tsv", lambda log: with_texts(log, "SessionId", {150: "x"})),
    "both, in other parts": (
        "{}.tsv",
        lambda log: with_texts(with_texts(log, "SessionId", {300: "x", -1: "y"}), "ItemId", {150: " z"}),
    ),
    "blanks": ("{}.tsv", lambda log: with_texts(log, "ItemId", {5: " 3", 200: "4 ", -1: " 5"})),
    "floats in the last part": ("{}.tsv", lambda log: with_texts(log, "Time", {-1: "1.5"})),
    "dates": ("{}.tsv", lambda log: log.with_columns(Time=DATES)),
    "dates, some of which look like integers": (
        "{}.tsv",
        lambda log: log.with_columns(
            Time=pl.when(pl.int_range(pl.len()) % 3 == 2).then(DATES.str.replace_all("-", "")).otherwise(DATES)
        ),
    ),
}


@pytest.mark.parametrize("name", LOGS)
@pytest.mark.parametrize("size", [2, 3, 9])
@pytest.mark.usefixtures("many_batches")
def test_ranks_read_parts_as_one_process(tmp_path: Path, name: str, size: int) -> None:
    pattern, change = LOGS[name]
    source = tmp_path / "log"
    write_parts(source, pattern, change(events()), n=7)
    one = SessionStore.from_events(source, out=tmp_path / "one")
    stores = by_ranks(size, lambda ranks: SessionStore.from_events(source, out=tmp_path / "many", ranks=ranks))
    assert content(tmp_path / "many") == content(tmp_path / "one")
    for store in stores:
        assert_same(store, one)
    assert {path.name for path in tmp_path.iterdir()} == {"log", "one", "many"}


@pytest.mark.usefixtures("many_batches")
def test_users_in_parts_without_header_are_read_as_one_file(tmp_path: Path) -> None:
    """The parts have no header, another encoding, dates of a given format and a separator of two characters."""
    log = events().with_columns(pl.col("ItemId").cast(pl.String) + "ä", pl.from_epoch("Time").dt.to_string("%d.%m.%Y"))
    (tmp_path / "log").mkdir()
    for number in range(4):
        rows = log.slice(150 * number, 150 if number < 3 else None).rows()
        text = "".join("::".join(map(str, row)) + "\n" for row in rows)
        (tmp_path / f"log/{number}.csv").write_bytes(text.encode("latin-1"))
    options: dict[str, Any] = {"time_format": "%d.%m.%Y", "session_gap": 86400.0, "user_key": "who"}
    text_options = {"separator": "::", "encoding": "latin-1", "columns": ["who", *log.columns[1:]]}
    assert log.columns[0] == "SessionId"
    expected = SessionStore.from_events(log.rename({"SessionId": "who"}), **options)
    one = SessionStore.from_events(tmp_path / "log", out=tmp_path / "one", **options, **text_options)
    assert_same(one, expected)
    read = partial(SessionStore.from_events, tmp_path / "log", out=tmp_path / "many", **options, **text_options)
    for store in by_ranks(3, lambda ranks: read(ranks=ranks)):
        assert_same(store, expected)
    assert content(tmp_path / "many") == content(tmp_path / "one")
    (tmp_path / "log/2.csv").write_text("who::ItemId::Time\n1::2::01.01.2020\n")
    fail_with(tmp_path / "log", "2.csv, line 1 (split at '::'): this is a header", **options, **text_options)


@pytest.mark.usefixtures("many_batches")
def test_ranks_without_rows_before_the_first_date(tmp_path: Path) -> None:
    paths = write_parts(tmp_path / "log", "{}.tsv", events().with_columns(Time=DATES), n=4)
    for path in paths[:2]:
        path.write_text("SessionId\tItemId\tTime\n")
    SessionStore.from_events(paths, out=tmp_path / "one")
    by_ranks(2, lambda ranks: SessionStore.from_events(paths, out=tmp_path / "many", ranks=ranks))
    assert content(tmp_path / "many") == content(tmp_path / "one")


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("options", [
    {"remove_duplicates": False},
    {"min_item_support": 20, "collapse_repeats": True, "split": "fraction=0.2", "validation_split": "fraction=0.1"},
])  # fmt: skip
@pytest.mark.usefixtures("many_batches")
def test_ranks_prepare_as_one_process(tmp_path: Path, options: dict[str, Any], size: int) -> None:
    source = tmp_path / "log"
    write_parts(source, "{}.parquet", pl.concat([events(), events().sample(fraction=0.3, seed=1)]), n=7)
    prepare(source, tmp_path / "one", **options)
    by_ranks(size, lambda ranks: prepare(source, tmp_path / "many", ranks=ranks, **options))
    assert content(tmp_path / "many") == content(tmp_path / "one")


@pytest.mark.parametrize("change", [lambda log: log, lambda log: with_texts(log, "ItemId", {-1: "x"})])
@pytest.mark.usefixtures("many_batches")
def test_ranks_read_with_a_vocabulary(tmp_path: Path, change: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
    vocabulary = SessionStore.from_events(events().filter(pl.col("ItemId") < 15)).vocabulary
    paths = write_parts(tmp_path, "{}.tsv", change(events()))
    options: dict[str, Any] = {"vocabulary": vocabulary}
    SessionStore.from_events(paths, out=tmp_path / "one", **options)
    by_ranks(2, lambda ranks: SessionStore.from_events(paths, out=tmp_path / "many", ranks=ranks, **options))
    assert content(tmp_path / "many") == content(tmp_path / "one")


def broken_parts(folder: Path, name: str) -> tuple[list[Path], int]:
    """Return the parts of a log with an error, and the rank of three that finds it."""
    rows = len(events()) // 7
    if name == "a wrong number":
        log = with_texts(events(), "Time", {5 * rows + 3: "foo"})
        return write_parts(folder, "{}.tsv", log, n=7), 2
    if name == "a date after numbers":
        log = with_texts(events(), "Time", {2 * rows: "2020-02-30"})
        return write_parts(folder, "{}.tsv", log, n=7), 1
    if name == "a number after dates":
        log = with_texts(events().with_columns(Time=DATES), "Time", {4 * rows: "1.5"})
        return write_parts(folder, "{}.tsv", log, n=7), 2
    if name == "no rows":
        return write_parts(folder, "{}.tsv", events().clear(), n=7), 0
    paths = write_parts(folder, "{}.parquet", n=7)
    part = pl.read_parquet(paths[5])
    if name == "a missing id":
        part.with_columns(ItemId=pl.when(pl.int_range(pl.len()) != 4).then("ItemId")).write_parquet(paths[5])
        return paths, 2
    if name == "a missing column":
        part.drop("ItemId").write_parquet(paths[5])
        return paths, 2
    if name == "strings and numbers":
        pl.read_parquet(paths[4]).with_columns(pl.col("ItemId").cast(pl.String)).write_parquet(paths[4])
        return paths, 0
    assert name == "text and Parquet"
    paths[5] = paths[5].with_suffix(".tsv")
    part.write_csv(paths[5], separator="\t")
    return paths, 0


@pytest.mark.parametrize("name", [
    "a wrong number", "a date after numbers", "a number after dates", "no rows", "a missing id", "a missing column",
    "strings and numbers", "text and Parquet",
])  # fmt: skip
def test_an_error_of_one_rank_ends_all(tmp_path: Path, name: str) -> None:
    paths, reporting_rank = broken_parts(tmp_path / "log", name)
    with pytest.raises(ValueError) as expected:
        SessionStore.from_events(paths)
    errors = by_ranks(3, lambda ranks: SessionStore.from_events(paths, out=tmp_path / "many", ranks=ranks))
    for rank, error in enumerate(errors):
        assert type(error) is (ValueError if rank == reporting_rank else OtherRankError), (rank, error)
        assert str(error).endswith(str(expected.value))
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_errors_of_rank_0_and_of_all_ranks(tmp_path: Path) -> None:
    paths = write_parts(tmp_path / "log", "{}.tsv")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()

    def errors(function: Callable[..., Any], source: Any, **options: Any) -> list[str]:
        return [str(error) for error in by_ranks(2, lambda ranks: function(source, ranks=ranks, **options))]

    refused, repeated = errors(SessionStore.from_events, paths, out=tmp_path / "other")
    assert "exists and holds no data" in refused and repeated == f"rank 0: FileExistsError: {refused}"
    refused, repeated = errors(prepare, paths, out=tmp_path / "out", min_item_support=10**6)
    assert refused.startswith("no session is left in ") and repeated == f"rank 0: ValueError: {refused}"
    for source in (paths[0], events()):
        refused, _ = errors(SessionStore.from_events, source, out=tmp_path / "out")
        assert refused.startswith("a single file or table is read by one process")
    assert {*errors(SessionStore.from_events, paths)} == {"ranks needs out, a folder that all ranks share"}
