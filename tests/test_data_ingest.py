"""Ingest (reading a log and grouping it by session) equals a plain-Python oracle; real logs have published sizes."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from data_oracle import Row, assert_same_store, assert_store_is, group_by_session, remove_unseen_items, tiny_batches
from hypothesis import given, settings
from hypothesis import strategies as st

from gru4rec_fast.data import SessionStore, Vocabulary, prepare

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the recorded data is not at {SHARED}")

integer_rows = st.lists(st.tuples(st.integers(-3, 9), st.integers(0, 6), st.integers(0, 12)), min_size=1, max_size=60)
text_rows = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "ç" * 40, "d e"]),
        st.sampled_from(["x", "y" * 50, "007", "+7", "-07"]),
        st.floats(0, 9, width=16),
    ),
    min_size=1,
    max_size=40,
)
# Arguments of `tiny_batches`: rows read at a time, number of partitions of the log on disk, events assembled at a time.
# None: the default sizes, so that the log is one batch.
batch_sizes = st.sampled_from([None, (1, 1, 1), (3, 4, 5), (7, 2, 100)])


def as_columns(rows: list[Row]) -> dict[str, list[object]]:
    """Return rows as a table for `SessionStore.from_events`."""
    return dict(zip(("SessionId", "ItemId", "Time"), map(list, zip(*rows, strict=True)), strict=True))


@settings(max_examples=150, deadline=None)
@given(rows=st.one_of(integer_rows, text_rows), sizes=batch_sizes)
def test_grouping_and_order_equal_the_oracle(rows: list[Row], sizes: tuple[int, int, int] | None) -> None:
    with tiny_batches(*sizes) if sizes else nullcontext():
        store = SessionStore.from_events(as_columns(rows))
    assert_store_is(store, group_by_session(rows))
    assert store.start_times.dtype == (np.int64 if isinstance(rows[0][2], int) else np.float64)


@settings(max_examples=100, deadline=None)
@given(rows=integer_rows, known=st.lists(st.integers(0, 6), min_size=1, unique=True), sizes=batch_sizes)
def test_unknown_items_are_dropped_and_counted(
    rows: list[Row], known: list[int], sizes: tuple[int, int, int] | None
) -> None:
    with tiny_batches(*sizes) if sizes else nullcontext():
        if not {item for _, item, _ in rows} & set(known):
            with pytest.raises(ValueError, match="training vocabulary"):
                SessionStore.from_events(as_columns(rows), vocabulary=Vocabulary(known))
            return
        expected = remove_unseen_items(group_by_session(rows), set(known), min_length=2, collapse=False)
        if not expected:
            with pytest.raises(ValueError, match="no session is left in the dict given"):
                SessionStore.from_events(as_columns(rows), vocabulary=Vocabulary(known))
            return
        store = SessionStore.from_events(as_columns(rows), vocabulary=Vocabulary(known))
    assert_store_is(store, expected, known)
    dropped = store.meta["dropped"]
    unseen = [item for _, item, _ in rows if item not in known]
    assert dropped["unseen_item_events"] == len(unseen)
    assert dropped["unseen_items"] == len(set(unseen))
    assert dropped["short_sessions"] == len({session for session, _, _ in rows}) - len(expected)
    assert dropped["short_session_events"] == len(rows) - len(unseen) - store.n_events


@settings(max_examples=25, deadline=None)
@given(rows=integer_rows)
def test_store_on_disk_equals_store_in_memory(tmp_path_factory: pytest.TempPathFactory, rows: list[Row]) -> None:
    out = tmp_path_factory.mktemp("out")
    with tiny_batches():
        on_disk = SessionStore.from_events(as_columns(rows), out=out / "store")
    assert_same_store(on_disk, SessionStore.from_events(as_columns(rows)))
    assert [path.name for path in out.iterdir()] == ["store"]


def test_text_log_read_in_many_batches_equals_one_batch(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = zip(rng.integers(0, 300, 2000), rng.zipf(1.5, 2000) % 97, rng.integers(0, 500, 2000), strict=True)
    path = tmp_path / "log.tsv"
    path.write_text("SessionId\tItemId\tTime\n" + "".join(f"{s}\t{i}\t{t}\n" for s, i, t in rows))
    expected = SessionStore.from_events(path)
    with tiny_batches(batch_rows=101, partitions=7, block_events=50):
        assert_same_store(SessionStore.from_events(path), expected)


@pytest.mark.parametrize("column", ["SessionId", "ItemId"])
def test_one_non_integer_id_makes_all_ids_of_a_text_file_strings(tmp_path: Path, column: str) -> None:
    table = {"SessionId": [*"11122"], "ItemId": [*"12321"], "Time": [*"01234"]}
    table[column][-1] = "u7"
    path = tmp_path / "log.csv"
    path.write_text("\n".join(map(",".join, [table, *zip(*table.values(), strict=True)])))
    with tiny_batches(batch_rows=2):
        store = SessionStore.from_events(path)
    ids = store.session_ids if column == "SessionId" else store.vocabulary.ids
    assert ids.tolist() == list(dict.fromkeys(table[column]))
    assert (
        f"  {column[:-2].lower()} ids are strings ('u7' in row 5 is no plain integer)" in store.summary().splitlines()
    )


def test_ids_such_as_2_0_are_strings_and_reported(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("SessionId,ItemId,Time\n1,1,0\n1,2.0,1\n2,1,2\n2,2.0,3\n")
    store = SessionStore.from_events(path)
    with tiny_batches(batch_rows=1):
        prepared = prepare(path, tmp_path / "prepared", split="fraction=0.5")
    for each in (store, *prepared.values()):
        assert each.vocabulary.ids.tolist() == ["1", "2.0"]
        assert each.meta["ids"]["item"] == {"kind": "str", "because": "'2.0' in row 2", "stripped": 0}
        assert "  item ids are strings ('2.0' in row 2 is no plain integer)" in each.summary().splitlines()
        assert "session ids" not in each.summary() and "item ids" not in each.summary(notes=False)
    test = SessionStore.from_events(path, vocabulary=store.vocabulary)
    # With a given vocabulary, the kind of the ids is not determined by this log.
    assert "strings" not in test.summary()


def test_one_fractional_time_makes_all_times_floats() -> None:
    table = {"SessionId": [1, 1, 2, 2], "ItemId": [1, 2, 3, 4], "Time": ["5", "6", "7", "7.5"]}
    with tiny_batches(batch_rows=1):
        store = SessionStore.from_events(table)
    assert store.end_times.tolist() == [6.0, 7.5] and store.start_times.dtype == np.float64


def test_nanosecond_times_keep_their_order() -> None:
    base = 1_700_000_000_000_000_000  # consecutive integers of this size are equal as float64
    store = SessionStore.from_events({"SessionId": [1, 1, 1], "ItemId": [3, 2, 1], "Time": [base + 2, base + 1, base]})
    assert store.vocabulary.ids.tolist() == [1, 2, 3]
    assert store.end_times.tolist() == [base + 2]


def test_vocabulary_of_integers_with_log_of_strings_and_reverse() -> None:
    log = {"SessionId": [1, 1, 1], "ItemId": ["7", "new", "8"], "Time": [0, 1, 2]}
    store = SessionStore.from_events(log, vocabulary=Vocabulary([8, 7]))
    assert store.items.tolist() == [1, 0] and store.vocabulary.ids.tolist() == [8, 7]
    store = SessionStore.from_events({**log, "ItemId": [7, 9, 8]}, vocabulary=Vocabulary(["8", "7", "x"]))
    assert store.items.tolist() == [1, 0] and store.meta["dropped"]["unseen_items"] == 1


@needs_shared
@pytest.mark.needs_shared
# Sizes of the training log: events, sessions, items; of the test log: events, sessions, targets.
@pytest.mark.parametrize("name, train, test", [
    ("rsc15_100k", (70_278, 17_794, 2_933), (13_568, 3_416, 10_152)),
    ("diginetica", (906_140, 186_670, 43_097), (76_821, 15_963, 60_858)),
])  # fmt: skip
def test_real_logs_have_their_published_sizes(
    name: str, train: tuple[int, int, int], test: tuple[int, int, int]
) -> None:
    store = SessionStore.from_events(SHARED / name / "train.tsv.gz")
    assert (store.n_events, store.n_sessions, store.n_items) == train
    assert store.n_targets == store.n_events - store.n_sessions
    held_out = SessionStore.from_events(SHARED / name / "test.tsv.gz", vocabulary=store.vocabulary)
    assert (held_out.n_events, held_out.n_sessions, held_out.n_targets) == test
    assert held_out.n_items == store.n_items and held_out.n_short_sessions == 0
    assert not any(held_out.meta["dropped"].values())
