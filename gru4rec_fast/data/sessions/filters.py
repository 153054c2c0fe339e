"""What is removed from a log: rare and unknown items, repeats, short sessions; counted in `EventLog.dropped`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gru4rec_fast.data.sessions.assembly import ItemIndex
from gru4rec_fast.data.sessions.events import EventLog, Events


@dataclass(frozen=True)
class Rules:
    """What holds for every session of a log: its least number of events, and whether repeats of an item go."""

    min_length: int = 2
    collapse: bool = False

    def keep_items(self, log: EventLog, wanted: np.ndarray, reason: str) -> None:
        """Remove the events of unwanted items (mask [n item codes]), then what the rules remove; count all of it."""

        def kept(events: Events) -> Events:
            mask = wanted[events.items]
            log.dropped[f"{reason}_events"] += int((~mask).sum())
            events = events.keep(mask)
            if self.collapse:
                repeats = events.repeats()
                log.dropped["repeat_events"] += int(repeats.sum())
                events = events.keep(~repeats)
            short = events.lengths < self.min_length
            log.dropped["short_sessions"] += int(short.sum())
            log.dropped["short_session_events"] += int(events.lengths[short].sum())
            return events.select(~short)

        log.update(kept)


def drop_rare(log: EventLog, min_support: int, rules: Rules) -> None:
    """Apply the rules and drop rare items until neither changes anything: each can make work for the other."""
    rare = _rare(log, min_support)
    while True:
        log.dropped["rare_items"] += int(rare.sum())
        rules.keep_items(log, ~rare, "rare_item")
        rare = _rare(log, min_support)
        if not rare.any():
            break
    require_sessions(log, "the log")


def _rare(log: EventLog, min_support: int) -> np.ndarray:
    support = log.support()
    return (support > 0) & (support < min_support)


def drop_unseen(log: EventLog, index: ItemIndex, rules: Rules) -> None:
    """Drop items that have no index yet, then apply the rules. ValueError: no item has one."""
    known = index.known()
    support = log.support()
    log.dropped["unseen_items"] += int(((support > 0) & ~known).sum())
    if not support[known].any():
        some = ", ".join(map(repr, log.item_ids[np.flatnonzero(support)[:3]].tolist()))
        raise ValueError(f"none of the items (such as {some}) is in the training vocabulary; are the ids the same?")
    rules.keep_items(log, known, "unseen_item")


def require_sessions(log: EventLog, what: str) -> None:
    """Raise ValueError, with what was dropped, where the log holds no event."""
    if not any(len(events.items) for events in log):
        counts = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in log.dropped.items() if count)
        raise ValueError(f"no session is left in {what}; dropped: {counts or 'nothing'}")
