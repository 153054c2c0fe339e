"""Read the sessions or users that `gru4rec-fast recommend` recommends items to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gru4rec_fast._untrusted import brief, parse_json
from gru4rec_fast.cli.inputs import open_sessions
from gru4rec_fast.cli.options import LogFormat
from gru4rec_fast.cli.output import print_note

if TYPE_CHECKING:
    import numpy as np

    from gru4rec_fast.data import SessionStore, Vocabulary

JSON_LINES_SUFFIXES = (".jsonl", ".ndjson")


@dataclass(frozen=True)
class Users:
    """Ids of users, [n]."""

    ids: np.ndarray
    kind = "user"

    def batch(self, start: int, stop: int) -> np.ndarray:
        """Return the users from `start` to `stop` as an argument of the `recommend` of graph models."""
        return self.ids[start:stop]


@dataclass(frozen=True)
class Sessions:
    """Sessions with their ids [n], the items of all sessions concatenated [n_events], and offsets [n + 1] of sessions.

    `items` holds item ids if `vocabulary` is None, else item indices in `vocabulary`.
    """

    ids: np.ndarray
    items: np.ndarray
    offsets: np.ndarray
    vocabulary: Vocabulary | None = None
    kind = "session"

    def batch(self, start: int, stop: int) -> SessionStore:
        """Return the sessions from `start` to `stop` as an argument of `GRU4Rec.recommend`."""
        from gru4rec_fast.data import SessionStore

        offsets = self.offsets[start : stop + 1]
        items = self.items[offsets[0] : offsets[-1]]
        return SessionStore.from_arrays(items, offsets - offsets[0], vocabulary=self.vocabulary)


def read_users(path: Path, vocabulary: Vocabulary, skip_unknown: bool) -> Users:
    """Return the users in a file of one id per line; see `read_ids`."""
    return Users(read_ids(path, vocabulary, skip_unknown, "user"))


def read_ids(path: Path, vocabulary: Vocabulary, skip_unknown: bool, kind: str) -> np.ndarray:
    """Return the ids in a file of one id per line; empty lines are ignored. `kind` is "user" or "item".

    Raises:
        OSError: the file cannot be read.
        ValueError: there is no id, or the model was not trained on a user or item. With
            `skip_unknown`, unknown ids are skipped; it is an error if no id is left.
    """
    import numpy as np

    from gru4rec_fast.data.array_folder import counted
    from gru4rec_fast.data.vocabulary import STRING

    with open(path, encoding="utf-8-sig") as file:
        lines = [(line_number, line.strip()) for line_number, line in enumerate(file, 1) if line.strip()]
    if not lines:
        raise ValueError(f"{path} has no {kind} id: give one id per line")
    # index_of_any_kind takes 7 and "7" for the same id.
    indices = vocabulary.index_of_any_kind(np.array([text for _, text in lines], STRING))
    known = indices >= 0
    if not known.all() and not skip_unknown:
        line_number, text = lines[int(known.argmin())]
        if not vocabulary.holds_strings and not text.lstrip("-").isdigit():
            raise ValueError(f"{path}, line {line_number}: {text!r} is no {kind} id; the model's ids are integers")
        raise ValueError(
            f"{path}, line {line_number}: the model was not trained on {kind} {_quoted(text, vocabulary)} (a line "
            f"is one id); --skip-unknown skips such {kind}s"
        )
    if not known.any():
        raise ValueError(f"{path}: the model was trained on none of these {kind}s")
    if not known.all():
        print_note(f"skipped: {counted(int((~known).sum()), f'unknown {kind}s')}")
    return vocabulary.ids[indices[known]]


def _quoted(unknown_id: int | str, vocabulary: Vocabulary) -> str:
    """Return an id for an error message, in quotes unless it is an integer and the vocabulary's ids are integers."""
    text = str(unknown_id)
    is_integer = not vocabulary.holds_strings and text.removeprefix("-").isdecimal()
    return brief(text).strip("'") if is_integer else brief(text)


def read_sessions(path: Path, log_format: LogFormat, vocabulary: Vocabulary, skip_unknown: bool) -> Sessions:
    """Return the sessions in a log, a prepared folder or a file of JSON lines.

    Raises:
        OSError, ImportError: see `SessionStore`.
        ValueError: a line is not a session, or the model was not trained on an item. With `skip_unknown`, unknown items
            are skipped; it is an error if no item is left.
    """
    if path.suffix.lower() in JSON_LINES_SUFFIXES:
        return _encode_known_items(_read_json_lines(path), vocabulary, skip_unknown)
    store = open_sessions(path, log_format)  # without vocabulary=, which would drop sessions of one event
    sessions = Sessions(store.session_ids, store.vocabulary.ids[store.items], store.offsets)
    return _encode_known_items(sessions, vocabulary, skip_unknown)


def _read_json_lines(path: Path) -> Sessions:
    """Return the sessions in a file of JSON lines, with item ids, which are strings."""
    import numpy as np

    from gru4rec_fast.data.vocabulary import STRING, as_ids

    ids: list[Any] = []
    items: list[Any] = []
    offsets = [0]
    with open(path, encoding="utf-8-sig") as file:
        for line_number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                session = parse_json(line)
                ids.append(session["session"])
                items += map(str, as_ids(session["items"], "items").tolist())
            except (ValueError, TypeError, KeyError) as error:
                example = '{"session": "a", "items": [1, 2]}'
                raise ValueError(
                    f"{path}, line {line_number}: not a session such as {example} ({brief(error)})"
                ) from None
            offsets.append(len(items))
    if not ids:
        raise ValueError(f"{path} is empty")
    try:
        return Sessions(as_ids(ids, "session"), np.array(items, STRING), np.array(offsets))
    except TypeError as error:
        raise ValueError(f"{path}: {error}") from None


def _encode_known_items(sessions: Sessions, vocabulary: Vocabulary, skip_unknown: bool) -> Sessions:
    """Return sessions of item indices from sessions of item ids, without unknown items and without empty sessions."""
    import numpy as np

    from gru4rec_fast.data.array_folder import counted

    indices = vocabulary.index_of_any_kind(sessions.items)  # takes 7 and "7" for the same id
    known = indices >= 0
    session_of_event = np.repeat(np.arange(len(sessions.ids)), np.diff(sessions.offsets))
    if not known.all() and not skip_unknown:
        first_unknown = int(known.argmin())
        session = sessions.ids[session_of_event[first_unknown : first_unknown + 1]].tolist()[0]
        item = sessions.items[first_unknown : first_unknown + 1].tolist()[0]
        known_item = vocabulary.without_blanks(item)
        hint = "is this a log of the same catalogue?"
        if known_item is not None:
            hint = f"it was trained on {_quoted(known_item, vocabulary)}, without blanks around it;"
        raise ValueError(
            f"session {brief(session)}: the model was not trained on item {_quoted(item, vocabulary)}; {hint} "
            "--skip-unknown skips such items"
        )
    lengths = np.bincount(session_of_event[known], minlength=len(sessions.ids))
    nonempty = lengths > 0
    if not nonempty.any():
        raise ValueError("no session has an item that the model was trained on")
    if not known.all() or not nonempty.all():
        n_items, n_sessions = int((~known).sum()), int((~nonempty).sum())
        events = counted(n_items, "events of unknown items")
        print_note(f"skipped: {events}, {counted(n_sessions, 'sessions without a known item')}")
    offsets = np.concatenate([[0], np.cumsum(lengths[nonempty])])
    return Sessions(sessions.ids[nonempty], indices[known], offsets, vocabulary)
