"""From a raw log to what training needs: filters, temporal splits, stores on disk."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gru4rec_fast.data.assembly import ItemIndex, assemble
from gru4rec_fast.data.events import EventLog, Events
from gru4rec_fast.data.files import disk_full_named, read_meta, replace_folder, write_meta
from gru4rec_fast.data.split import Split
from gru4rec_fast.data.store import FORMAT, SessionStore
from gru4rec_fast.data.vocabulary import Vocabulary

PREPARED_FORMAT = "gru4rec_fast.prepared_log"


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
    for name, number in (("min_item_support", min_item_support), ("min_session_length", min_session_length)):
        if number < 1:
            raise ValueError(f"{name}={number}, but it must be at least 1")
    split, validation_split = (Split.parse(s) if isinstance(s, str) else s for s in (split, validation_split))
    rules = _Rules(min_session_length, collapse_repeats)
    dropped: Counter[str] = Counter()
    with replace_folder(out, [PREPARED_FORMAT]) as partial:
        with tempfile.TemporaryDirectory(dir=partial) as scratch:
            log = _reader()(
                source,
                (session_key, item_key, time_key),
                Path(scratch),
                separator=separator,
                allow_pickle=allow_pickle,
                remove_duplicates=remove_duplicates,
                dropped=dropped,
                progress=progress,
            )
            _filter(log, min_item_support, rules, dropped)
            parts = {}
            train = log
            if split is None:
                parts["train"] = _write(log, ItemIndex(log.item_ids), partial / "train", dropped)
            else:
                train = _write_split(log, split, ("train", "test"), partial, rules, dropped, parts)
            if validation_split is not None:
                _write_split(train, validation_split, ("train_tr", "train_valid"), partial, rules, dropped, parts)
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


def store_events(
    source: Any,
    keys: tuple[str, str, str],
    *,
    separator: str | None,
    vocabulary: Vocabulary | None,
    allow_pickle: bool,
    out: str | Path | None,
    progress: Callable[[int], None] | None,
) -> SessionStore:
    """What `SessionStore.from_events` says."""
    dropped: Counter[str] = Counter()
    with (
        replace_folder(out, [FORMAT]) if out is not None else nullcontext() as partial,
        tempfile.TemporaryDirectory(dir=partial) as scratch,
        disk_full_named(Path(out or scratch)),
    ):
        log = _reader()(
            source,
            keys,
            Path(scratch),
            separator=separator,
            vocabulary=vocabulary,
            allow_pickle=allow_pickle,
            dropped=dropped,
            progress=progress,
        )
        index = ItemIndex(log.item_ids, vocabulary)
        if vocabulary is not None:
            _drop_unseen(log, index, _Rules(), dropped)
            _require_sessions(log, "the log", dropped)
        store = assemble(log, index, partial, {"dropped": dict(dropped)})
    return store if out is None else SessionStore.open(out)


def _reader() -> Callable[..., EventLog]:
    try:
        from gru4rec_fast.data.ingest import ingest
    except ModuleNotFoundError as error:
        if error.name != "polars":
            raise
        raise ImportError("reading a log needs polars: pip install polars (a prepared store opens without)") from error
    return ingest


@dataclass(frozen=True)
class _Rules:
    """What holds for every session of a part."""

    min_length: int = 2
    collapse: bool = False

    def apply(self, events: Events, wanted: np.ndarray, reason: str, dropped: Counter[str]) -> Events:
        """Keep the wanted events [n_events], then what the rules let stand; count the rest."""
        dropped[f"{reason}_events"] += int((~wanted).sum())
        events = events.keep(wanted)
        if self.collapse:
            repeats = events.repeats()
            dropped["repeat_events"] += int(repeats.sum())
            events = events.keep(~repeats)
        short = events.lengths < self.min_length
        dropped["short_sessions"] += int(short.sum())
        dropped["short_session_events"] += int(events.lengths[short].sum())
        return events.select(~short)


def _keep_items(log: EventLog, wanted: np.ndarray, rules: _Rules, reason: str, dropped: Counter[str]) -> None:
    log.update(lambda events: rules.apply(events, wanted[events.items], reason, dropped))


def _filter(log: EventLog, min_support: int, rules: _Rules, dropped: Counter[str]) -> None:
    """Apply the rules and drop rare items until neither changes anything: each can make work for the other."""
    support = log.support()
    while True:
        rare = (support > 0) & (support < min_support)
        dropped["rare_items"] += int(rare.sum())
        _keep_items(log, ~rare, rules, "rare_item", dropped)
        support = log.support()
        if not np.any((support > 0) & (support < min_support)):
            break
    _require_sessions(log, "the log", dropped)


def _write_split(
    log: EventLog,
    split: Split,
    names: tuple[str, str],
    folder: Path,
    rules: _Rules,
    dropped: Counter[str],
    parts: dict[str, dict[str, int]],
) -> EventLog:
    """Write what `split` keeps and what it holds out as two stores; returns the log of the former."""
    times = [(events.starts, events.ends, events.first_rows) for events in log]
    counts = [len(starts) for starts, _, _ in times]
    held = np.split(split.held_out(*map(np.concatenate, zip(*times, strict=True))), np.cumsum(counts)[:-1])
    del times
    index = ItemIndex(log.item_ids)
    kept = log.derived(lambda i, events: events.select(~held[i]), names[0])
    parts[names[0]] = _write(kept, index, folder / names[0], dropped)
    tested = log.derived(lambda i, events: events.select(held[i]), names[1])
    unseen: Counter[str] = Counter()
    if tested.support().any():
        _drop_unseen(tested, index, _Rules(max(2, rules.min_length), rules.collapse), unseen)
    parts[names[1]] = _write(tested, index, folder / names[1], unseen)
    return kept


def _drop_unseen(log: EventLog, index: ItemIndex, rules: _Rules, dropped: Counter[str]) -> None:
    known = index.known()
    support = log.support()
    dropped["unseen_items"] += int(((support > 0) & ~known).sum())
    if not support[known].any():
        some = ", ".join(map(repr, log.item_ids[np.flatnonzero(support)[:3]].tolist()))
        raise ValueError(f"none of the items (such as {some}) is in the training vocabulary; are the ids the same?")
    _keep_items(log, known, rules, "unseen_item", dropped)


def _write(log: EventLog, index: ItemIndex, folder: Path, dropped: Counter[str]) -> dict[str, int]:
    _require_sessions(log, f"the part {folder.name!r}", dropped)
    folder.mkdir()
    store = assemble(log, index, folder, {"dropped": dict(dropped)})
    return {"n_sessions": store.n_sessions, "n_events": store.n_events, "n_items": store.n_items}


def _require_sessions(log: EventLog, what: str, dropped: Counter[str]) -> None:
    if not any(len(events.items) for events in log):
        counts = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in dropped.items() if count)
        raise ValueError(f"no session is left in {what}; dropped: {counts or 'nothing'}")
