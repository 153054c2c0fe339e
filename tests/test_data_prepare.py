"""Preparation: repeated filters, collapsed repeats, splits by time, and counts of dropped events."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from data_oracle import (
    Row,
    Session,
    apply_filters,
    assert_same_store,
    assert_store_is,
    group_by_session,
    items_of,
    remove_unseen_items,
    tiny_batches,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from gru4rec_fast.data import SessionStore, Split, open_prepared, prepare

DAY = 86400
log_rows = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 5), st.integers(0, 9)), min_size=1, max_size=70)


@pytest.fixture(autouse=True, scope="module")
def do_not_flush_files() -> Iterator[None]:
    """Do not flush files to the disk, which would be slow: the tests write hundreds of stores."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gru4rec_fast._atomic_writes.flush_to_disk", lambda path: None)
        yield


def as_columns(rows: list[Row]) -> dict[str, list[object]]:
    """Return rows as a table for `prepare`."""
    return dict(zip(("SessionId", "ItemId", "Time"), map(list, zip(*rows, strict=True)), strict=True))


@settings(max_examples=100, deadline=None)
@given(
    rows=log_rows,
    min_support=st.integers(1, 6),
    min_length=st.integers(1, 4),
    duplicates=st.booleans(),
    collapse=st.booleans(),
)
def test_filtered_log_equals_the_oracle(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[Row],
    min_support: int,
    min_length: int,
    duplicates: bool,
    collapse: bool,
) -> None:
    out = tmp_path_factory.mktemp("out") / "prepared"
    expected = apply_filters(group_by_session(rows), min_support, min_length, duplicates, collapse)

    def run() -> dict[str, SessionStore]:
        return prepare(
            as_columns(rows),
            out,
            min_item_support=min_support,
            min_session_length=min_length,
            remove_duplicates=duplicates,
            collapse_repeats=collapse,
        )

    if not expected:
        with pytest.raises(ValueError, match="no session is left"):
            run()
        assert not any(out.parent.iterdir())
        return
    store = run()["train"]
    assert_store_is(store, expected)
    dropped = store.meta["dropped"]
    n_dropped_events = sum(count for reason, count in dropped.items() if reason.endswith("_events"))
    assert n_dropped_events == len(rows) - store.n_events
    assert dropped["short_sessions"] == len(group_by_session(rows)) - store.n_sessions
    with tiny_batches():
        assert_same_store(run()["train"], store)


def hold_out_days(days: float) -> Callable[[list[Session]], list[bool]]:
    """Return a function that masks the sessions that end within the last `days`."""

    def held_out(sessions: list[Session]) -> list[bool]:
        latest_time = max(s.events[-1][0] for s in sessions)
        return [s.events[-1][0] >= latest_time - days * DAY for s in sessions]

    return held_out


def hold_out_fraction(fraction: float) -> Callable[[list[Session]], list[bool]]:
    """Return a function that masks the `fraction` of the sessions that ends last."""

    def held_out(sessions: list[Session]) -> list[bool]:
        order = sorted(range(len(sessions)), key=lambda s: (sessions[s].events[-1][0], *sessions[s].sort_key()))
        latest = set(order[len(order) - round(fraction * len(order)) :])
        return [s in latest for s in range(len(sessions))]

    return held_out


def split_sessions(
    sessions: list[Session], held_out: list[bool], min_length: int, collapse: bool
) -> tuple[list[Session], list[Session]]:
    """Return the training and the test sessions. Items that are not in training are removed from the test sessions."""
    train = [s for s, is_held_out in zip(sessions, held_out, strict=True) if not is_held_out]
    test = [s for s, is_held_out in zip(sessions, held_out, strict=True) if is_held_out]
    return train, remove_unseen_items(test, set(items_of(train)), min_length, collapse)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 15), st.integers(0, 5), st.integers(0, 40).map(lambda quarters: quarters * DAY // 4)),
        min_size=20,
        max_size=90,
    ),
    split_and_oracle=st.sampled_from(
        [
            ("last-day", hold_out_days(1)),
            ("days=3", hold_out_days(3)),
            (Split(days=0.5), hold_out_days(0.5)),
            ("fraction=0.3", hold_out_fraction(0.3)),
        ]
    ),
    collapse=st.booleans(),
    in_batches=st.booleans(),
)
def test_split_parts_equal_the_oracle(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[Row],
    split_and_oracle: tuple[str | Split, Callable[[list[Session]], list[bool]]],
    collapse: bool,
    in_batches: bool,
) -> None:
    split, hold_out = split_and_oracle
    sessions = apply_filters(group_by_session(rows), 2, 2, remove_duplicates=True, collapse=collapse)
    train: list[Session] = []
    splits: dict[str, list[Session]] = {}
    if sessions:
        train, splits["test"] = split_sessions(sessions, hold_out(sessions), 2, collapse)
        splits["train"] = train
    if train:
        splits["train_tr"], splits["train_valid"] = split_sessions(train, hold_out_fraction(0.4)(train), 2, collapse)
    out = tmp_path_factory.mktemp("out") / "prepared"
    options = {"min_item_support": 2, "collapse_repeats": collapse, "split": split, "validation_split": "fraction=0.4"}
    with tiny_batches() if in_batches else nullcontext():
        if not (len(splits) == 4 and all(splits.values())):
            with pytest.raises(ValueError, match=r"no session is left|none of the items"):
                prepare(as_columns(rows), out, **options)
            return
        stores = prepare(as_columns(rows), out, **options)
    assert list(stores) == ["train", "test", "train_tr", "train_valid"]
    assert sorted(path.name for path in out.iterdir()) == ["meta.json", *sorted(stores)]
    vocabulary_from = {"train": "train", "test": "train", "train_tr": "train_tr", "train_valid": "train_tr"}
    for name, training_part in vocabulary_from.items():
        assert_store_is(stores[name], splits[name], items_of(splits[training_part]))
    unfiltered_test = [s for s, is_held_out in zip(sessions, hold_out(sessions), strict=True) if is_held_out]
    known = set(items_of(train))
    dropped = stores["test"].meta["dropped"]
    assert dropped["unseen_item_events"] == sum(e[2] not in known for s in unfiltered_test for e in s.events)
    assert dropped["unseen_items"] == len({e[2] for s in unfiltered_test for e in s.events} - known)
    assert dropped["short_sessions"] == len(unfiltered_test) - stores["test"].n_sessions


def test_time_of_the_last_event_decides_the_split_of_a_session(tmp_path: Path) -> None:
    # Session 2 starts long before the last day and ends exactly 24 hours before the last event.
    log = {
        "SessionId": [1, 1, 2, 2, 3, 3],
        "ItemId": [5, 6, 5, 6, 6, 5],
        "Time": [0, 1, 2, 10 * DAY, 11 * DAY - 9, 11 * DAY],
    }
    stores = prepare(log, tmp_path / "p", split="last-day")
    assert stores["train"].session_ids.tolist() == [1] and stores["test"].session_ids.tolist() == [2, 3]


@pytest.mark.parametrize("unit, factor", [("ms", 10**3), ("us", 10**6), ("ns", 10**9)])
def test_split_by_days_uses_the_time_unit(tmp_path: Path, unit: str, factor: int) -> None:
    base = 1_700_000_000 * factor
    log = {
        "SessionId": [1, 1, 2, 2],
        "ItemId": [5, 6, 5, 6],
        "Time": [base, base + 1, base + 2, base + DAY * factor + 2],
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert prepare(log, tmp_path / "p", split=Split(days=1, time_unit=unit))["train"].session_ids.tolist() == [1]
        prepare(log, tmp_path / "q", split="fraction=0.5")  # no warning: this split does not depend on the time unit
    advice = rf"times reach \S+, after the year 2200 in the unit 's'; if they are in '{unit}', give time_unit='{unit}'"
    with pytest.warns(UserWarning, match=advice):
        prepare(log, tmp_path / "p", split="last-day")


def test_warning_for_times_that_fit_no_unit(tmp_path: Path) -> None:
    log = {"SessionId": [1, 1, 2, 2], "ItemId": [5, 6, 5, 6], "Time": [0.0, 1.0, 2.0, 1e19]}
    with pytest.warns(UserWarning, match="after the year 2200 in the unit 'ns'; check the time column"):
        prepare(log, tmp_path / "p", split=Split(days=1, time_unit="ns"))


def test_dropped_counts_and_summary(tmp_path: Path) -> None:
    # A duplicate and a repeat in session 1; item 9 is rare, which leaves session 3 with one event.
    log = {"SessionId": [1, 1, 1, 1, 2, 2, 3, 3], "ItemId": [5, 5, 5, 6, 5, 6, 5, 9], "Time": [0, 0, 1, 2, 3, 4, 5, 6]}
    store = prepare(log, tmp_path / "p", min_item_support=2, collapse_repeats=True)["train"]
    reasons = (
        "duplicate_events",
        "rare_items",
        "rare_item_events",
        "repeat_events",
        "short_sessions",
        "short_session_events",
    )
    assert store.meta["dropped"] == dict.fromkeys(reasons, 1)
    assert store.summary().splitlines() == [
        "2 sessions, 4 events, 2 items",
        "  dropped: 1 duplicate event",
        "  dropped: 1 event of 1 rare item",
        "  dropped: 1 repeat event",
        "  dropped: 1 event of 1 short session",
    ]


def test_prepare_replaces_only_an_earlier_prepared_log(tmp_path: Path) -> None:
    log = {"SessionId": [1, 1, 2, 2], "ItemId": [5, 6, 5, 6], "Time": [0, 1, 5, 6]}
    prepare(log, tmp_path / "p", split="fraction=0.5")
    assert list(prepare(log, tmp_path / "p")) == ["train"] == list(open_prepared(tmp_path / "p"))
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == ["meta.json", "train"]
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="own exists and holds no data written by gru4rec_fast"):
        prepare(log, tmp_path / "own")
    assert (tmp_path / "own" / "thesis.tex").read_text() == "years of work"


def test_error_if_no_test_item_is_in_training(tmp_path: Path) -> None:
    log = {"SessionId": [1, 1, 2, 2], "ItemId": [5, 6, 7, 8], "Time": [0, 1, 5 * DAY, 6 * DAY]}
    with pytest.raises(ValueError, match=r"none of the items \(such as 7, 8\) is in the training vocabulary"):
        prepare(log, tmp_path / "p", split="last-day")
    assert not any(tmp_path.iterdir())


def test_error_if_all_sessions_have_one_event(tmp_path: Path) -> None:
    log = {"SessionId": [1, 2, 3], "ItemId": [5, 6, 7], "Time": [0, 1, 2]}
    with pytest.raises(
        ValueError, match=r"no session is left in the dict given; dropped: 3 events of 3 short sessions"
    ):
        prepare(log, tmp_path / "p")
    store = SessionStore.from_events(log)  # filters nothing: sessions of one event are kept
    assert (store.n_sessions, store.n_targets, store.n_short_sessions) == (3, 0, 3)


def test_error_if_a_part_is_empty(tmp_path: Path) -> None:
    log = {"SessionId": [1, 1], "ItemId": [5, 6], "Time": [0, 1]}
    with pytest.raises(ValueError, match="no session is left in the part 'test' of the dict given; dropped: nothing"):
        prepare(log, tmp_path / "p", split="fraction=0.5")


@pytest.mark.parametrize("days, fraction", [(None, None), (1, 0.5), (0, None), (math.nan, None), (None, 0), (None, 1)])
def test_split_arguments_are_checked(days: float | None, fraction: float | None) -> None:
    with pytest.raises(ValueError, match="Split"):
        Split(days=days, fraction=fraction)


@pytest.mark.parametrize("text", ["", "tomorrow", "days", "days=x", "weeks=2", "fraction=", "fraction=2"])
def test_split_text_is_checked(text: str) -> None:
    with pytest.raises(ValueError, match=r"last-day, days=N or fraction=F|fraction=2"):
        Split.parse(text)


def test_prepare_arguments_are_checked(tmp_path: Path) -> None:
    log = {"SessionId": [1, 1], "ItemId": [5, 6], "Time": [0, 1]}
    for name in ("min_item_support", "min_session_length"):
        with pytest.raises(ValueError, match=f"{name}=0"):
            prepare(log, tmp_path / "p", **{name: 0})
    with pytest.raises(ValueError, match="time_unit='h'"):
        Split(days=1, time_unit="h")
    with pytest.raises(ValueError, match=r"time_unit='ms' has no effect on fraction="):
        Split(fraction=0.1, time_unit="ms")


def test_large_log_is_filtered_as_with_pandas(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    rng = np.random.default_rng(1)
    n = 20_000
    frame = pandas.DataFrame(
        {"SessionId": rng.integers(0, 4000, n), "ItemId": rng.zipf(1.4, n) % 3000, "Time": rng.integers(0, 10**6, n)}
    )
    expected = frame.drop_duplicates()
    while True:
        size = len(expected)
        expected = expected[expected.groupby("ItemId")["ItemId"].transform("size") >= 5]
        expected = expected[expected.groupby("SessionId")["SessionId"].transform("size") >= 3]
        if len(expected) == size:
            break
    with tiny_batches(batch_rows=3000, partitions=8, block_events=500):
        store = prepare(frame, tmp_path / "p", min_item_support=5, min_session_length=3)["train"]
    assert (store.n_events, store.n_sessions, store.n_items) == (
        len(expected), expected["SessionId"].nunique(), expected["ItemId"].nunique(),
    )  # fmt: skip
    ordered = expected.sort_values(["SessionId", "Time"], kind="stable").groupby("SessionId")["ItemId"].agg(list)
    bounds = store.offsets.tolist()
    items = store.vocabulary.ids[store.items].tolist()
    for session, start, end in zip(store.session_ids.tolist(), bounds, bounds[1:], strict=False):
        assert items[start:end] == ordered[session]


def sessions_of(store: SessionStore) -> dict[object, list[object]]:
    """Return the item ids of each session, by session id."""
    items, bounds = store.vocabulary.ids[store.items].tolist(), store.offsets.tolist()
    return {name: items[a:b] for name, a, b in zip(store.session_ids.tolist(), bounds, bounds[1:], strict=False)}


def test_last_events_are_held_out(tmp_path: Path) -> None:
    # Session 2 has two events. The last item of session 3 is in no training session.
    sessions = {1: [5, 6, 7, 5], 2: [6, 7], 3: [7, 6, 9], 4: [5, 7, 6]}
    rows = [(name, item, 10 * name + i) for name, items in sessions.items() for i, item in enumerate(items)]
    stores = prepare(as_columns(rows), tmp_path / "p", split="last-event", validation_split=Split(last_event=True))
    assert sessions_of(stores["train"]) == {1: [5, 6, 7], 2: [6, 7], 3: [7, 6], 4: [5, 7]}
    assert sessions_of(stores["test"]) == {1: sessions[1], 4: sessions[4]}
    assert sessions_of(stores["train_tr"]) == {1: [5, 6], 2: [6, 7], 3: [7, 6], 4: [5, 7]}
    assert sessions_of(stores["train_valid"]) == {1: [5, 6, 7]}
    assert stores["test"].meta["dropped"] == {"sessions_with_an_unseen_last_item": 1}
    assert "dropped: 1 session with an unseen last item" in stores["test"].summary()
    assert [store.meta.get("targets") for store in stores.values()] == [None, "last", None, "last"]
    assert stores["train"].end_times.tolist() == [12, 21, 31, 41]
    with pytest.raises(ValueError, match="no session is left in the part 'test'"):
        prepare(as_columns([(1, 5, 0), (1, 6, 1)]), tmp_path / "q", split="last-event")


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4), st.integers(0, 30)), min_size=1, max_size=60))
def test_leave_one_out_equals_the_oracle(tmp_path_factory: pytest.TempPathFactory, rows: list[Row]) -> None:
    out = tmp_path_factory.mktemp("out") / "prepared"
    sessions = {s.id: [e[2] for e in s.events] for s in apply_filters(group_by_session(rows), 1, 2, True, False)}
    train = {name: items[:-1] if len(items) >= 3 else items for name, items in sessions.items()}
    known = {item for items in train.values() for item in items}
    test = {name: items for name, items in sessions.items() if len(items) >= 3 and items[-1] in known}
    if not test:
        with pytest.raises(ValueError, match="no session is left"):
            prepare(as_columns(rows), out, split="last-event")
        return
    with tiny_batches():
        stores = prepare(as_columns(rows), out, split="last-event")
    assert sessions_of(stores["train"]) == train and sessions_of(stores["test"]) == test
    assert stores["test"].vocabulary == stores["train"].vocabulary


@pytest.mark.parametrize("unit, factor", [("s", 1), ("ms", 1000)])
def test_windows_are_split_one_by_one(tmp_path: Path, unit: str, factor: int) -> None:
    # Two sessions per day, of two events; session n ends at n / 2 days.
    rows = [(n, 5 + i, (n * DAY // 2 - 1 + i) * factor) for n in range(1, 25) for i in range(2)]
    split = Split(days=1, windows=3, window_days=3, time_unit=unit)
    with tiny_batches():
        stores = prepare(as_columns(rows), tmp_path / "p", split=split, validation_split="fraction=0.5")
    assert list(stores) == [f"{name}_{i}{part}" for i in (1, 2, 3) for name, part in
                            (("train", ""), ("test", ""), ("train", "_tr"), ("train", "_valid"))]  # fmt: skip
    # The log ends at day 12. The windows are (3, 6], (6, 9] and (9, 12]; a session ends every half day.
    for window, first in ((1, 7), (2, 13), (3, 19)):
        assert sorted(sessions_of(stores[f"train_{window}"])) == list(range(first, first + 3))
        assert sorted(sessions_of(stores[f"test_{window}"])) == list(range(first + 3, first + 6))
        assert len(sessions_of(stores[f"train_{window}_valid"])) == 2
    assert open_prepared(tmp_path / "p").keys() == stores.keys()
    with pytest.raises(ValueError, match="no session is left in the part that is split into 'train_1' and 'test_1'"):
        prepare(as_columns(rows), tmp_path / "p", split="last-day,windows=9,window-days=3")
    with pytest.raises(ValueError, match="validation_split has windows"):
        prepare(as_columns(rows), tmp_path / "p", split="last-day", validation_split=split)


def test_windows_and_last_events_are_checked() -> None:
    expected = Split(days=1, windows=5, window_days=30, time_unit="ms")
    assert Split.parse("last-day,windows=5,window-days=30", "ms") == expected
    assert Split.parse("last-event") == Split(last_event=True)
    for text, message in (
        ("last-day,windows=5", "give both windows"),
        ("windows=5,window-days=3", "give one of days"),
        ("last-day,windows=2.5,window-days=3", "windows=2.5: must be a whole number"),
        ("last-day,windows=2,window-days=0", "window_days=0.0: must be positive"),
        ("last-day,last-event", "give one of days"),
        ("last-event=1", "choose last-day"),
        ("days=1,days=2", "choose last-day"),
    ):
        with pytest.raises(ValueError, match=message):
            Split.parse(text)
    with pytest.raises(ValueError, match="time_unit='ms' has no effect on last_event=True"):
        Split(last_event=True, time_unit="ms")
