"""Prepare a raw log for training: filter it, split it by time and write the parts as session stores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gru4rec_fast._atomic_writes import explain_disk_full
from gru4rec_fast.data.array_folder import read_meta, scratch_in_replacement, write_meta
from gru4rec_fast.data.sessions.assembly import ItemRenumbering
from gru4rec_fast.data.sessions.events import EventLog, Events
from gru4rec_fast.data.sessions.filters import SessionRules, drop_rare, drop_unseen, require_sessions
from gru4rec_fast.data.sessions.split import Split
from gru4rec_fast.data.sessions.store import PREPARED_FORMAT, SessionStore

if TYPE_CHECKING:
    from gru4rec_fast.distributed import Ranks

_MIN_LENGTH_TO_CUT = 3  # events of a session whose last event is held out, so that two are left to train on


def prepare(
    source: Any,
    out: str | Path,
    *,
    session_key: str = "SessionId",
    user_key: str = "UserId",
    item_key: str = "ItemId",
    time_key: str = "Time",
    time_of_day_key: str | None = None,
    time_format: str | None = None,
    session_gap: float | None = None,
    separator: str | None = None,
    quote: str | None = '"',
    encoding: str = "utf-8",
    columns: Sequence[str] | None = None,
    allow_pickle: bool = False,
    min_item_support: int = 1,
    min_session_length: int = 2,
    remove_duplicates: bool = True,
    collapse_repeats: bool = False,
    split: Split | str | None = None,
    validation_split: Split | str | None = None,
    progress: Callable[[int], None] | None = None,
    ranks: Ranks | None = None,
) -> dict[str, SessionStore]:
    """Filter a log, split it by time and write the parts as stores. The log may be larger than memory.

    First duplicates are removed. Then repeats, rare items and short sessions are removed until nothing changes. Then
    the log is split.

    Args:
        source, session_key, user_key, item_key, time_key, time_of_day_key, time_format, session_gap, separator, quote,
            encoding, columns, allow_pickle, progress, ranks: as for `SessionStore.from_events`.
        out: folder for the stores: `out/train`, with `split` also `out/test`, and with `validation_split` also
            `out/train_tr` and `out/train_valid`. If the split has windows, instead `out/train_1`, `out/test_1`,
            `out/train_1_tr` and so on. If `out` already holds a prepared log, it is replaced at the end.
        min_item_support: keep items that occur at least this often.
        min_session_length: keep sessions of at least this many events.
        remove_duplicates: keep only the first of the rows with the same session, item and time.
        collapse_repeats: keep only the first of consecutive events of a session with the same item.
        split: how to hold out test sessions: a `Split`, or text for `Split.parse`.
        validation_split: how to hold out validation sessions from the training sessions; without windows.

    Returns:
        A dict of memory-mapped stores; the keys are the names of their folders, such as "train". A held-out part has
        the vocabulary of its training part: events of other items are removed, then sessions that are shorter than
        `min_session_length` or than two events. With `last_event`, instead sessions whose last item is not in the
        training part are removed. `meta["dropped"]` of each store counts what was removed, by reason.

    Raises:
        ValueError, OSError, ImportError: as `SessionStore.from_events`; ValueError also if a part has no session left.
        FileExistsError: `out` holds something other than a prepared log.
        gru4rec_fast.distributed.OtherRankError: another rank has raised one of these errors.
    """
    from gru4rec_fast.data.sessions.ingest import ingest, log_columns
    from gru4rec_fast.data.tables import open_table

    for name, value in (("min_item_support", min_item_support), ("min_session_length", min_session_length)):
        if value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")
    split, validation_split = (Split.parse(s) if isinstance(s, str) else s for s in (split, validation_split))
    if validation_split is not None and validation_split.windows is not None:
        raise ValueError("validation_split has windows: give them to split, which cuts the whole log")
    rules = SessionRules(min_session_length, collapse_repeats)
    keys = log_columns(session_key, user_key, item_key, time_key, time_of_day_key, session_gap)
    text_options: dict[str, Any] = {"separator": separator, "quote": quote, "encoding": encoding, "columns": columns}
    folder = scratch_in_replacement(out, PREPARED_FORMAT)
    with folder if ranks is None else ranks.enter_on_first(folder) as scratch, explain_disk_full(Path(out)):
        table = open_table(source, keys, allow_pickle=allow_pickle, ranks=ranks, **text_options)
        log = ingest(
            table,
            Path(scratch),
            time_format=time_format,
            session_gap=session_gap,
            remove_duplicates=remove_duplicates,
            progress=progress,
            ranks=ranks,
        )
        if log is not None:
            drop_rare(log, min_item_support, rules)
            require_sessions(log, table.name)
            dropped = log.dropped
            parts: dict[str, dict[str, int]] = {}  # sizes of each store, by name
            temporary = Path(scratch).parent  # renamed to `out` at the end of the block
            if split is None:
                parts["train"] = _write(log, ItemRenumbering(log.item_ids), temporary / "train", table.name)
            windows = [("", log)] if split is None or split.windows is None else _cut_windows(log, split)
            for suffix, window in windows:
                name = f"train{suffix}"
                if split is not None:
                    window = _write_split(window, split, (name, f"test{suffix}"), temporary, rules, parts, table.name)
                if validation_split is not None:
                    names = (f"{name}_tr", f"{name}_valid")
                    _write_split(window, validation_split, names, temporary, rules, parts, table.name)
            write_meta(temporary, {"format": PREPARED_FORMAT, "version": 1, "parts": parts, "dropped": dropped})
    return open_prepared(out)


def open_prepared(folder: str | Path) -> dict[str, SessionStore]:
    """Open the stores that `prepare` wrote to a folder, by name. Raises the errors of `SessionStore.open`."""
    folder = Path(folder)
    try:
        parts = read_meta(folder)["parts"]
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        raise FileNotFoundError(f"{folder} holds no prepared log; write one with prepare") from None
    return {name: SessionStore.open(folder / name) for name in parts}


def _write_split(
    log: EventLog,
    split: Split,
    names: tuple[str, str],
    folder: Path,
    rules: SessionRules,
    parts: dict[str, Any],
    source: str,
) -> EventLog:
    """Split a log, write both parts as stores and add their sizes to `parts`. Returns the log of the training part.

    `names` are the names of the training part and of the held-out part; `source` is for error messages.
    """
    require_sessions(log, f"the part that is split into {names[0]!r} and {names[1]!r}")
    if split.last_event:
        return _write_last_events(log, names, folder, parts, source)
    held_out = _per_partition(log, split.held_out)
    renumbering = ItemRenumbering(log.item_ids)
    training_log = log.derive(lambda i, events: events.select_sessions(~held_out[i]), names[0])
    training_log.dropped = log.dropped  # what was removed before the split
    parts[names[0]] = _write(training_log, renumbering, folder / names[0], source)
    held_out_log = log.derive(lambda i, events: events.select_sessions(held_out[i]), names[1])
    if held_out_log.support().any():  # if not, `_write` raises the error for an empty part
        drop_unseen(held_out_log, renumbering, replace(rules, min_length=max(2, rules.min_length)))
    parts[names[1]] = _write(held_out_log, renumbering, folder / names[1], source)
    return training_log


def _write_last_events(
    log: EventLog, names: tuple[str, str], folder: Path, parts: dict[str, Any], source: str
) -> EventLog:
    """Hold out the last event of each session of three events or more; as `_write_split` otherwise.

    The held-out part has these sessions as a whole.
    """

    def without_last_events(_: int, events: Events) -> Events:
        mask = np.ones(len(events.items), bool)
        mask[events.offsets[1:][events.lengths >= _MIN_LENGTH_TO_CUT] - 1] = False
        return events.select_events(mask)

    renumbering = ItemRenumbering(log.item_ids)
    training_log = log.derive(without_last_events, names[0])
    training_log.dropped = log.dropped
    parts[names[0]] = _write(training_log, renumbering, folder / names[0], source)
    is_known = renumbering.has_index()
    n_unseen = 0

    def with_known_last_items(_: int, events: Events) -> Events:
        nonlocal n_unseen
        is_cut = events.lengths >= _MIN_LENGTH_TO_CUT
        is_seen = is_known[events.items[events.offsets[1:] - 1]]
        n_unseen += int((is_cut & ~is_seen).sum())
        return events.select_sessions(is_cut & is_seen)

    held_out_log = log.derive(with_known_last_items, names[1])
    held_out_log.dropped["sessions_with_an_unseen_last_item"] = n_unseen
    held_out_log.notes = {"targets": "last"}
    parts[names[1]] = _write(held_out_log, renumbering, folder / names[1], source)
    return training_log


def _cut_windows(log: EventLog, split: Split) -> Iterator[tuple[str, EventLog]]:
    """Yield the suffix of the names of each window's parts, and the log of its sessions."""
    assert split.windows is not None
    window_of = _per_partition(log, lambda starts, ends, first_rows: split.window_of(ends))
    for number in range(1, int(split.windows) + 1):
        masks = [windows == number for windows in window_of]
        window = log.derive(partial(_select_sessions, masks), f"window_{number}")
        window.dropped = log.dropped
        yield f"_{number}", window


def _select_sessions(masks: list[np.ndarray], partition: int, events: Events) -> Events:
    return events.select_sessions(masks[partition])


def _per_partition(
    log: EventLog, function: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
) -> list[np.ndarray]:
    """Return a function of the starts, ends and first rows of all sessions, [n_sessions], as one array per partition.

    A partition is one of the pieces that `for events in log` yields.
    """
    partitions = [(events.starts, events.ends, events.first_rows) for events in log]
    n_sessions = [len(starts) for starts, _, _ in partitions]
    values = function(*map(np.concatenate, zip(*partitions, strict=True)))
    return np.split(values, np.cumsum(n_sessions)[:-1])


def _write(log: EventLog, renumbering: ItemRenumbering, folder: Path, source: str) -> dict[str, int]:
    """Write a log as a store to a new folder and return the sizes of the store."""
    require_sessions(log, f"the part {folder.name!r} of {source}")
    folder.mkdir()
    store = SessionStore.from_log(log, renumbering, folder)
    return {"n_sessions": store.n_sessions, "n_events": store.n_events, "n_items": store.n_items}
