"""Logs in several part files are read as one file with all rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from run_cli import cli

from gru4rec_fast import GRU4Rec, InteractionGraph, SessionStore
from gru4rec_fast.data import prepare
from gru4rec_fast.data.sessions.synthetic import markov_events

N = 5


def events() -> pl.DataFrame:
    """Return a log in random order, with equal times within sessions, so that the order of the rows matters."""
    log = pl.DataFrame(markov_events(120, 25, seed=3)).with_columns(pl.col("Time") // 50)
    return log.sample(fraction=1.0, shuffle=True, seed=0)


def write_parts(folder: Path, pattern: str, log: pl.DataFrame | None = None) -> list[Path]:
    """Write a log to N files named by a pattern, and what Spark writes beside them."""
    log = events() if log is None else log
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "_SUCCESS").touch()
    (folder / f".{pattern.format(0)}.crc").touch()
    paths = [folder / pattern.format(number) for number in range(N)]
    for number, path in enumerate(paths):
        part = log.slice(number * (len(log) // N), None if number == N - 1 else len(log) // N)
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
