"""Ratings, k-cores and splits of interactions, compared with plain Python."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from data_oracle import tiny_batches
from hypothesis import given, settings
from hypothesis import strategies as st
from run_cli import cli

from gru4rec_fast.data import InteractionGraph, Split, k_core, split_interactions

differential = settings(max_examples=100, derandomize=True, database=None, deadline=None)
Edges = set[tuple[Any, Any]]


def edges_of(graph: InteractionGraph) -> Edges:
    """Return the edges of a graph as pairs of a user id and an item id."""
    users, items = graph.interactions()
    return {*zip(graph.users.ids[users].tolist(), graph.items.ids[items].tolist(), strict=True)}


RATINGS = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 4), st.sampled_from([0.5, 1.0, 3.0, 4.5, 5.0])), min_size=1, max_size=20
)


@given(rows=RATINGS, min_rating=st.sampled_from([-1.0, 1.0, 3.5, 5.0]))
@differential
def test_only_interactions_of_a_minimum_rating_are_read(rows: list[tuple[int, int, float]], min_rating: float) -> None:
    table = dict(zip(["UserId", "ItemId", "stars"], map(list, zip(*rows, strict=True)), strict=True))
    expected = {(user, item) for user, item, rating in rows if rating >= min_rating}
    n_low = sum(rating < min_rating for _, _, rating in rows)
    options: dict[str, Any] = {"rating_key": "stars", "min_rating": min_rating}
    if not expected:
        with pytest.raises(ValueError, match=rf"holds no interactions; dropped: {n_low} low rating interaction"):
            InteractionGraph.from_table(table, **options)
        return
    with tiny_batches():
        graph = InteractionGraph.from_table(table, **options)
    assert edges_of(graph) == expected
    assert graph.users.ids.tolist() == sorted({user for user, _ in expected})
    assert graph.meta["dropped"] == {
        "low_rating_interactions": n_low,
        "duplicate_interactions": len(rows) - n_low - len(expected),
    }
    like = InteractionGraph.from_arrays([0, 1], [0, 1])
    known = {edge for edge in expected if max(edge) < 2}
    if known:
        test = InteractionGraph.from_table(table, like=like, **options)
        assert edges_of(test) == known and test.meta["dropped"]["low_rating_interactions"] == n_low


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["4", ""], r"column 'Rating', row 2 .*a rating is missing"),
        (["4", "good"], r"column 'Rating', row 2 .*, value 'good': a rating must be a finite number"),
        (["nan", "4"], r"column 'Rating', row 1 .*, value 'nan': a rating must be a finite number"),
        (["4", "inf"], r"column 'Rating', row 2 .*a rating must be a finite number"),
    ],
)
def test_error_names_a_bad_rating(tmp_path: Path, values: list[str], message: str) -> None:
    path = tmp_path / "ratings.csv"
    path.write_text("UserId,ItemId,Rating\n" + "".join(f"1,2,{value}\n" for value in values))
    with pytest.raises(ValueError, match=rf"ratings\.csv: {message}"):
        InteractionGraph.from_table(path, min_rating=3)
    assert InteractionGraph.from_table(path).n_edges == 1  # no rating is read


def test_wrong_ratings_of_a_table_and_options_without_effect() -> None:
    table: dict[str, Any] = {"UserId": [1], "ItemId": [2], "Rating": [True]}
    with pytest.raises(ValueError, match="column 'Rating': ratings must be numbers, not Boolean"):
        InteractionGraph.from_table(table, min_rating=3)
    with pytest.raises(ValueError, match="rating_key='stars' has no effect without min_rating: leave it out"):
        InteractionGraph.from_table(table, rating_key="stars")
    with pytest.raises(ValueError, match="min_rating=nan: give a finite number"):
        InteractionGraph.from_table(table, min_rating=float("nan"))
    with pytest.raises(ValueError, match=r"no column 'stars'.*column of ratings by rating_key"):
        InteractionGraph.from_table(table, rating_key="stars", min_rating=3)


def core_of(edges: Edges, k: int) -> Edges:
    """Return the k-core of edges: one user or item with too few of them is removed at a time."""
    while True:
        users, items = Counter(user for user, _ in edges), Counter(item for _, item in edges)
        rare_users = [user for user, n in users.items() if n < k]
        rare_items = [item for item, n in items.items() if n < k]
        if rare_users:
            edges = {edge for edge in edges if edge[0] != rare_users[0]}
        elif rare_items:
            edges = {edge for edge in edges if edge[1] != rare_items[0]}
        else:
            return edges


@given(
    edges=st.sets(st.tuples(st.integers(0, 9), st.sampled_from("abcdefgh")), min_size=1, max_size=60),
    k=st.integers(1, 5),
)
@differential
def test_the_k_core_is_the_largest_part_with_k_interactions_each(edges: set[tuple[int, str]], k: int) -> None:
    users, items = zip(*sorted(edges), strict=True)
    graph = InteractionGraph.from_table({"UserId": [*users, users[0]], "ItemId": [*items, items[0]]})
    expected = core_of(edges, k)
    if not expected:
        with pytest.raises(ValueError, match=rf"k={k}: no interaction is left.*give a smaller k"):
            k_core(graph, k)
        return
    core = k_core(graph, k)
    assert edges_of(core) == expected
    assert core.users.ids.tolist() == sorted({user for user, _ in expected})
    assert core.items.ids.tolist() == sorted({item for _, item in expected})
    assert min(np.diff(core.offsets)) >= k
    assert core.meta["dropped"] == {
        "duplicate_interactions": 1,
        "users_outside_the_core": len({*users}) - core.n_users,
        "items_outside_the_core": len({*items}) - core.n_items,
        "interactions_outside_the_core": len(edges) - len(expected),
    }
    assert core.meta["ids"] == graph.meta["ids"]


@pytest.mark.parametrize("k", [0, -1, 1.5])
def test_k_is_a_positive_whole_number(k: float) -> None:
    with pytest.raises(ValueError, match=rf"k={k}: the k of a k-core is a whole number of at least 1"):
        k_core(InteractionGraph.from_arrays([0], [0]), k)  # type: ignore[arg-type]


def test_the_command_line_keeps_rated_interactions_of_the_k_core(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    rows = {"UserId": generator.integers(0, 30, 300), "ItemId": generator.integers(0, 20, 300)}
    frame = pl.DataFrame({**rows, "stars": generator.integers(1, 6, 300)})
    frame.write_csv(tmp_path / "log.csv", include_header=False, separator=";")
    ran = cli("prepare", tmp_path / "log.csv", tmp_path / "out", "--interactions", "--columns", "UserId,ItemId,stars",
              "--rating-key", "stars", "--min-rating", "3", "--k-core", "4")  # fmt: skip
    assert ran.exit_code == 0, ran.stderr
    edges = {(user, item) for user, item, stars in frame.rows() if stars >= 3}
    core = core_of(edges, 4)
    assert edges_of(InteractionGraph.open(tmp_path / "out/train")) == core != edges
    assert f"dropped: {len(edges) - len(core)} interactions outside the core" in ran.stdout
    assert f"dropped: {(frame['stars'] < 3).sum()} low rating interactions" in ran.stdout


def held_out_by_hand(rows: list[tuple[int, int, int]], split: Split) -> Edges:
    """Return the interactions that a split by time holds out of rows of user, item and time."""
    times: dict[tuple[int, int], tuple[int, int]] = {}  # of each edge: time and row of its first interaction
    for row, (user, item, when) in enumerate(rows):
        times[user, item] = min(times.get((user, item), (when, row)), (when, row))
    if split.days is not None:
        latest = max(when for when, _ in times.values())
        return {edge for edge, (when, _) in times.items() if when >= latest - split.days * 86400}
    last = [max((edge for edge in times if edge[0] == user), key=times.__getitem__) for user, _ in times]
    n_edges = Counter(user for user, _ in times)
    return {edge for edge in last if n_edges[edge[0]] > 1}


TIMED_ROWS = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 6), st.sampled_from([0, 1, 40_000, 90_000, 200_000])),
    min_size=1,
    max_size=30,
)


@given(rows=TIMED_ROWS, split=st.sampled_from([Split(last_event=True), Split(days=1), Split(days=0.5)]))
@differential
def test_interactions_are_split_by_their_times(rows: list[tuple[int, int, int]], split: Split) -> None:
    table = dict(zip(["UserId", "ItemId", "Time"], map(list, zip(*rows, strict=True)), strict=True))
    with tiny_batches():
        graph = InteractionGraph.from_table(table, time_key="Time")
    expected = held_out_by_hand(rows, split)
    if not expected or expected == edges_of(graph):
        with pytest.raises(ValueError, match=r"holds out (nothing|all)"):
            split_interactions(graph, split)
        return
    train, test = split_interactions(graph, split)
    assert edges_of(test) == expected and edges_of(train) == edges_of(graph) - expected
    for part in (train, test):
        assert part.users == graph.users and part.items == graph.items
    rest = [row for row in rows if row[:2] not in expected]
    expected = held_out_by_hand(rest, split)
    if expected and expected != edges_of(train):
        assert edges_of(split_interactions(train, split)[1]) == expected


@given(rows=TIMED_ROWS, k=st.integers(1, 3))
@differential
def test_the_k_core_keeps_the_times(rows: list[tuple[int, int, int]], k: int) -> None:
    table = dict(zip(["UserId", "ItemId", "Time"], map(list, zip(*rows, strict=True)), strict=True))
    core = core_of({row[:2] for row in rows}, k)
    rest = [row for row in rows if row[:2] in core]
    if expected := held_out_by_hand(rest, Split(last_event=True)):
        graph = k_core(InteractionGraph.from_table(table, time_key="Time"), k)
        assert edges_of(split_interactions(graph, "last-event")[1]) == expected


def test_a_split_of_interactions_that_cannot_be_made() -> None:
    graph = InteractionGraph.from_arrays([0, 0, 1], [0, 1, 1])
    for split in ("last-event", "last-day"):
        with pytest.raises(ValueError, match="the interactions have no times, which this split needs: read them from"):
            split_interactions(graph, split)
    with pytest.raises(ValueError, match="interactions cannot be split by windows"):
        split_interactions(graph, Split(days=1, windows=2, window_days=7))
    with pytest.raises(ValueError, match="split 'someday': choose last-day"):
        split_interactions(graph, "someday")
    both = split_interactions(graph, 0.5, seed=3), split_interactions(graph, "fraction=0.5", seed=3)
    assert [edges_of(part) for part in both[0]] == [edges_of(part) for part in both[1]]
    table = {"UserId": [1], "ItemId": [2], "Time": ["soon"]}
    with pytest.raises(ValueError, match=r"column 'Time', row 1 .*'soon'"):
        InteractionGraph.from_table(table, time_key="Time")
    for options in ({"time_format": "%Y"}, {"time_of_day_key": "clock"}):
        with pytest.raises(ValueError, match=rf"{next(iter(options))}=.* has no effect without time_key: leave it out"):
            InteractionGraph.from_table(table, **options)


def test_the_command_line_splits_interactions_by_time(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    users, items, minutes = (generator.integers(0, n, 200).tolist() for n in (20, 30, 10_000))
    rows = [(user, item, 60 * minute) for user, item, minute in zip(users, items, minutes, strict=True)]
    lines = []
    for user, item, seconds in rows:
        when = datetime.fromtimestamp(seconds, UTC)
        lines.append(f"{user},{item},{when:%d.%m.%Y},{when:%H:%M}")
    (tmp_path / "log.csv").write_text("\n".join(["UserId,ItemId,day,clock", *lines]) + "\n")
    options = ["--time-key", "day", "--time-of-day-key", "clock", "--time-format", "%d.%m.%Y %H:%M"]
    ran = cli("prepare", tmp_path / "log.csv", tmp_path / "out", "--interactions", *options, "--split", "days=2",
              "--validation-split", "last-event")  # fmt: skip
    assert ran.exit_code == 0, ran.stderr
    parts = {path.name: edges_of(InteractionGraph.open(path)) for path in (tmp_path / "out").iterdir() if path.is_dir()}
    test = held_out_by_hand(rows, Split(days=2))
    rest = [row for row in rows if row[:2] not in test]
    valid = held_out_by_hand(rest, Split(last_event=True))
    train = {row[:2] for row in rest}
    assert parts == {"train": train, "test": test, "train_tr": train - valid, "train_valid": valid}
    milliseconds = [f"{user},{item},{1000 * seconds}" for user, item, seconds in rows]
    (tmp_path / "log.csv").write_text("\n".join(["UserId,ItemId,Time", *milliseconds]) + "\n")
    ran = cli("prepare", tmp_path / "log.csv", tmp_path / "out", "--interactions", "--split", "days=2",
              "--time-unit", "ms")  # fmt: skip
    assert ran.exit_code == 0, ran.stderr
    assert edges_of(InteractionGraph.open(tmp_path / "out/test")) == test
    ran = cli("prepare", tmp_path / "out/train", tmp_path / "other", "--interactions", "--split", "last-event")
    assert ran.exit_code == 2 and "the interactions have no times" in ran.error_line
