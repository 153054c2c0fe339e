"""From a raw log to what training needs: filters, temporal splits, stores on disk."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gru4rec_fast.data.array_folder import read_meta, replace_folder, write_meta
from gru4rec_fast.data.sessions.assembly import ItemIndex
from gru4rec_fast.data.sessions.events import EventLog
from gru4rec_fast.data.sessions.filters import Rules, drop_rare, drop_unseen, require_sessions
from gru4rec_fast.data.sessions.split import Split
from gru4rec_fast.data.sessions.store import PREPARED_FORMAT, SessionStore


def prepare(
    source: Any,
    out: str | Path,
    *,
    session_key: str = "SessionId",
    item_key: str = "ItemId",
    time_key: str = "Time",
    separator: str | None = None,
    allow_pickle: bool = False,
    min_item_support: int = 1,
    min_session_length: int = 2,
    remove_duplicates: bool = True,
    collapse_repeats: bool = False,
    split: Split | str | None = None,
    validation_split: Split | str | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, SessionStore]:
    """Filter a log, split it by time and write the parts as stores under `out`; a log larger than memory goes through.

    The order of things: duplicates; then, repeated until nothing changes, repeats, items, sessions; then the splits.

    Args:
        source, session_key, item_key, time_key, separator, allow_pickle, progress: as for `SessionStore.from_events`.
        out: folder; `out/train` always, `out/test` with `split`, `out/train_tr` and `out/train_valid` with
            `validation_split`. It is written aside and renamed; a prepared log that is there already is replaced.
        min_item_support: keep items that occur at least this often.
        min_session_length: keep sessions of at least this many events.
        remove_duplicates: of the rows with the same session, item and time keep the first.
        collapse_repeats: of consecutive events of a session with the same item keep the first.
        split: which sessions become the test part (a `Split`, or its name as in `Split.parse`).
        validation_split: which sessions of the training part are held out once more.

    Returns:
        The stores by the name of their folder, memory-mapped. The vocabulary of a held-out part is that of the part it
        is held out from: events of other items are removed from it, then sessions of fewer than two events. What was
        dropped, and why, is counted in `meta["dropped"]` of each store.

    Raises:
        ValueError, OSError, ImportError: as `SessionStore.from_events`; and where no session is left in a part.
        FileExistsError: `out` holds something other than a prepared log.
    """
    from gru4rec_fast.data.sessions.ingest import ingest
    from gru4rec_fast.data.tables import open_table

    for name, number in (("min_item_support", min_item_support), ("min_session_length", min_session_length)):
        if number < 1:
            raise ValueError(f"{name}={number}, but it must be at least 1")
    split, validation_split = (Split.parse(s) if isinstance(s, str) else s for s in (split, validation_split))
    rules = Rules(min_session_length, collapse_repeats)
    keys = {"session": session_key, "item": item_key, "time": time_key}
    with replace_folder(out, [PREPARED_FORMAT]) as partial:
        with tempfile.TemporaryDirectory(dir=partial) as scratch:
            table = open_table(source, keys, separator=separator, allow_pickle=allow_pickle)
            log = ingest(table, Path(scratch), remove_duplicates=remove_duplicates, progress=progress)
            drop_rare(log, min_item_support, rules)
            dropped = log.dropped
            parts: dict[str, dict[str, int]] = {}
            if split is None:
                parts["train"] = _write(log, ItemIndex(log.item_ids), partial / "train")
            else:
                log = _write_split(log, split, ("train", "test"), partial, rules, parts)
            if validation_split is not None:
                _write_split(log, validation_split, ("train_tr", "train_valid"), partial, rules, parts)
        write_meta(partial, {"format": PREPARED_FORMAT, "version": 1, "parts": parts, "dropped": dropped})
    return open_prepared(out)


def open_prepared(folder: str | Path) -> dict[str, SessionStore]:
    """The stores that `prepare` wrote to a folder, by name. Raises as `SessionStore.open`."""
    folder = Path(folder)
    try:
        parts = read_meta(folder)["parts"]
    except (OSError, ValueError, KeyError, TypeError):
        raise FileNotFoundError(f"{folder} holds no prepared log; write one with prepare") from None
    return {name: SessionStore.open(folder / name) for name in parts}


def _write_split(
    log: EventLog, split: Split, names: tuple[str, str], folder: Path, rules: Rules, parts: dict[str, dict[str, int]]
) -> EventLog:
    """Write what `split` keeps and what it holds out as two stores; returns the log of the former."""
    times = [(events.starts, events.ends, events.first_rows) for events in log]
    counts = [len(starts) for starts, _, _ in times]
    held = np.split(split.held_out(*map(np.concatenate, zip(*times, strict=True))), np.cumsum(counts)[:-1])
    del times
    index = ItemIndex(log.item_ids)
    kept = log.derived(lambda i, events: events.select(~held[i]), names[0])
    kept.dropped = log.dropped  # what was removed before the split
    parts[names[0]] = _write(kept, index, folder / names[0])
    tested = log.derived(lambda i, events: events.select(held[i]), names[1])
    if tested.support().any():
        drop_unseen(tested, index, Rules(max(2, rules.min_length), rules.collapse))
    parts[names[1]] = _write(tested, index, folder / names[1])
    return kept


def _write(log: EventLog, index: ItemIndex, folder: Path) -> dict[str, int]:
    require_sessions(log, f"the part {folder.name!r}")
    folder.mkdir()
    store = SessionStore.from_log(log, index, folder)
    return {"n_sessions": store.n_sessions, "n_events": store.n_events, "n_items": store.n_items}
