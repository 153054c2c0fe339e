"""A network's items by id: encodes what a recommender is given, and finds the best of what it may answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from gru4rec_fast import ops
from gru4rec_fast.data import SessionStore, Vocabulary
from gru4rec_fast.evaluation.network import NextItemNetwork

Exclude: TypeAlias = Literal["session"] | Iterable[int] | Iterable[str] | None
Unknown: TypeAlias = Literal["error", "skip"]


class Catalogue:
    """The items a network scores, and the ids they go by.

    Args:
        network: see `NextItemNetwork`.
        vocabulary: the ids of its items.
        unknown: what to do with ids outside the vocabulary: "error", or "skip" them.
        impl: "auto", "native" or "reference", for ranking.

    Raises:
        ValueError: network and vocabulary are of different size, or `unknown` is something else.
    """

    def __init__(self, network: NextItemNetwork, vocabulary: Vocabulary, unknown: Unknown, impl: str) -> None:
        if len(network.output_weight) != len(vocabulary):
            raise ValueError(f"the network has {len(network.output_weight)} items, the vocabulary {len(vocabulary)}")
        if unknown not in ("error", "skip"):
            raise ValueError(f"unknown={unknown!r}: choose 'error' or 'skip'")
        self.network, self.vocabulary, self.unknown, self.impl = network, vocabulary, unknown, impl

    def check_k(self, k: int) -> None:
        """Raise ValueError unless 1 <= k <= n_items."""
        if not 1 <= k <= len(self.vocabulary):
            raise ValueError(f"k={k}: choose 1 to {len(self.vocabulary)}, the number of items in the catalogue")

    def encode(self, ids: Sequence[Any], owners: Sequence[Any], what: str) -> np.ndarray:
        """Item indices, int64 [n]; unknown ids are -1, or a ValueError that names `what` and the id's owner."""
        items = self.vocabulary.index_of(ids)
        if self.unknown == "error" and (items < 0).any():
            at = int((items < 0).argmax())
            raise ValueError(
                f"{what} {owners[at]!r}: item {ids[at]!r} is not in the vocabulary "
                "(unknown='skip' passes over such items)"
            )
        return items

    def encode_sessions(self, sessions: Iterable[Sequence[Any]] | SessionStore) -> tuple[np.ndarray, np.ndarray]:
        """Known item indices of all sessions, one after the other, and where each begins, int64 [n + 1].

        Raises ValueError for what is no list of sessions, an unknown id (unless they are skipped), a session without
        items, a foreign store.
        """
        if isinstance(sessions, SessionStore):
            if sessions.vocabulary != self.vocabulary:
                raise ValueError(
                    "the store has another vocabulary: read its log with vocabulary= of the training store"
                )
            items, offsets = sessions.items, sessions.offsets
        else:
            form = "give a list of sessions, each a list of item ids, as in [[7, 3], [7]]"
            lists = [
                _listed(session, "sessions: one of them is ", form) for session in _listed(sessions, "sessions=", form)
            ]
            lengths = [len(session) for session in lists]
            owners = np.repeat(np.arange(len(lengths)), lengths)
            encoded = self.encode(list(chain.from_iterable(lists)), owners.tolist(), "session")
            items, counts = encoded[encoded >= 0], np.bincount(owners[encoded >= 0], minlength=len(lengths))
            offsets = np.concatenate([[0], np.cumsum(counts)])
        empty = np.flatnonzero(np.diff(offsets) == 0)
        if len(empty):
            raise ValueError(
                f"session {empty[0]} is empty, or holds no item of the vocabulary: there is nothing to go by"
            )
        return items, offsets

    def excluded(self, exclude: Exclude) -> np.ndarray | Literal["session"] | None:
        """`exclude` with item ids turned into indices; unknown ones are an error or dropped."""
        if exclude is None:
            return None
        if isinstance(exclude, str) and exclude == "session":
            return "session"
        ids = _listed(exclude, "exclude=", "choose None, 'session' or a list (or set, or array) of item ids")
        items = self.encode(ids, ["exclude"] * len(ids), "argument")
        return items[items >= 0]

    def top_k(
        self,
        hidden: Tensor,
        k: int,
        excluded: np.ndarray | Literal["session"] | None,
        sessions: Sequence[Sequence[int] | np.ndarray],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores and item indices [n, k] for hidden [n, H] of sessions, given as their items; -1 where none is left."""
        weight, bias = self.network.output_weight, self.network.output_bias
        hide = None
        if isinstance(excluded, str):
            hide = pad(sessions).to(weight.device)
        elif excluded is not None:
            hide = torch.from_numpy(excluded).to(weight.device).expand(len(sessions), -1)
        scores, items = ops.top_k(hidden.to(weight.dtype), weight, bias, k, hide, impl=self.impl)
        return scores.cpu().numpy(), items.cpu().numpy()

    def ids_of(self, items: np.ndarray, names: Sequence[Any]) -> np.ndarray:
        """Ids of the items [n, k] recommended in sessions of these names.

        Raises ValueError where fewer than k items were left in a session.
        """
        left = (items >= 0).sum(axis=1)
        if (left < items.shape[1]).any():
            at = int((left < items.shape[1]).argmax())
            raise ValueError(
                f"session {names[at]!r}: k={items.shape[1]}, but only {left[at]} items are left to recommend"
            )
        return self.vocabulary.ids[items]


def _listed(values: Any, what: str, form: str) -> list[Any]:
    """The values of any iterable but a string, an array's as Python's own; ValueError, saying what, for the rest."""
    listed = values.tolist() if hasattr(values, "tolist") else values
    if isinstance(listed, str | bytes) or not isinstance(listed, Iterable):
        raise ValueError(f"{what}{values!r}: {form}")
    return list(listed)


def pad(rows: Sequence[Sequence[int] | np.ndarray]) -> Tensor:
    """Rows of different lengths as one int64 tensor [n, longest], padded with -1."""
    padded = np.full((len(rows), max(map(len, rows), default=0)), -1, np.int64)
    for to, row in zip(padded, rows, strict=True):
        to[: len(row)] = row
    return torch.from_numpy(padded)
