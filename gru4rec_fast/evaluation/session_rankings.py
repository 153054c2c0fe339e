"""Rank the targets of sessions by the scores of a network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gru4rec_fast.distributed import digest
from gru4rec_fast.evaluation.batches import run_sessions
from gru4rec_fast.evaluation.groups import hits_by_popularity
from gru4rec_fast.evaluation.lists import Block, complete_lists, find_hits
from gru4rec_fast.evaluation.metrics import Hits, Ties, ranks_from_counts
from gru4rec_fast.evaluation.negatives import NegativeSampler, sampled_lists
from gru4rec_fast.evaluation.network import NextItemNetwork
from gru4rec_fast.evaluation.scores import HistoryScorer, ProductScores, Scores

if TYPE_CHECKING:
    from gru4rec_fast.data import SessionStore

Targets = Literal["next", "last", "remaining"]

# Number of hidden states whose targets are ranked in one call. On the CPU they should fit into a core's L2 cache
# together with a block of the output table. On a GPU each call reads the whole output table, so fewer calls are faster.
_QUERIES_PER_CALL = {"cpu": 512}
_QUERIES_PER_CALL_ON_GPU = 8192


class Rankings(NamedTuple):
    """R rankings, each made after an event of a session.

    Attributes:
        events: int64 [R], index of the event in the store.
        ranks: float64 [R], ranks of the targets, if there is one in each ranking, which is among all items.
        hits: the relevant items found; None if `ranks` has them.
        hits_by_popularity: for each group of popularity, the hits among the targets of the group.
        top: int64 [R, k], the items with the highest scores of the catalogue; None unless they are asked for.
    """

    events: np.ndarray
    ranks: Tensor
    hits: Hits | None = None
    hits_by_popularity: tuple[tuple[int, Hits], ...] = ()
    top: np.ndarray | None = None

    @property
    def n_targets(self) -> int:
        """Number of targets of all rankings."""
        return len(self.ranks) if self.hits is None else int(self.hits.n_relevant.sum())


@dataclass(frozen=True)
class NetworkScorer:
    """Scores all items after events of sessions by the hidden state of a network.

    Attributes:
        network, impl: see `evaluate_sessions`.
    """

    network: NextItemNetwork
    impl: str

    @property
    def n_items(self) -> int:
        """Number of items."""
        return len(self.network.output_weight)

    def digest(self) -> str:
        """Return a digest of the output table."""
        return digest(self.network.output_weight)

    def score_sessions(
        self, store: SessionStore, sessions: np.ndarray, *, only_last: bool
    ) -> Iterator[tuple[ProductScores, np.ndarray]]:
        """Yield scores and events as `HistoryScorer.score_sessions`. Sessions are ordered by length, longest first."""
        weight, bias = self.network.output_weight, self.network.output_bias
        starts = store.offsets[sessions]
        lengths = store.offsets[sessions + 1] - starts - 1
        per_call = _QUERIES_PER_CALL.get(weight.device.type, _QUERIES_PER_CALL_ON_GPU)
        for hidden, events in run_sessions(self.network, store.items, starts, lengths, per_call):
            is_query = events >= 0
            if only_last:
                is_query = events == (starts + lengths - 1)[: events.shape[1]]
                if not is_query.any():
                    continue
            # Autocast may have made the hidden states bfloat16 or float16.
            queries = hidden[torch.from_numpy(is_query).to(weight.device)].to(weight.dtype)
            yield ProductScores(queries, weight, bias, self.impl), events[is_query]


@dataclass(frozen=True)
class SessionRanker:
    """Ranks the targets of sessions.

    Attributes:
        scorer: scores all items after the events of sessions.
        store, targets, ties: see `evaluate_sessions`.
        k: the largest cut-off.
        sampler: samples the items of each ranking; None: rankings are among all items.
        support: int64 [n_items], for hits by popularity; None: they are not needed.
        recommends: whether to return the k items with the highest scores, too.
    """

    scorer: NetworkScorer | HistoryScorer
    store: SessionStore
    targets: Targets
    ties: Ties
    k: int
    sampler: NegativeSampler | None
    support: np.ndarray | None
    recommends: bool

    def rank(self, sessions: np.ndarray) -> list[Rankings]:
        """Return the rankings of some sessions, which are ordered by length, longest first."""
        store = self.store
        rankings = []
        for scores, events in self.scorer.score_sessions(store, sessions, only_last=self.targets == "last"):
            if self.targets == "remaining" or self.sampler is not None:
                ranked = list(self._rank_in_lists(scores, events))
            else:
                greater, equal = scores.target_rank(store.items[events + 1])
                ranked = [Rankings(events, ranks_from_counts(greater, equal, self.ties).cpu())]
            if self.recommends:
                _, top = scores.top_k(min(self.k, store.n_items))
                ranked[0] = ranked[0]._replace(top=top.cpu().numpy())
            rankings += ranked
        return rankings

    def _rank_in_lists(self, scores: Scores, events: np.ndarray) -> Iterator[Rankings]:
        """Yield the rankings after some events, from lists of the items with the highest scores."""
        n_items, relevant = self.store.n_items, self._targets_after(events)

        def search(rows: np.ndarray, length: int) -> tuple[Tensor, Tensor]:
            return scores.select(rows).top_k(length)

        blocks: Iterable[Block]
        if self.sampler is None:
            blocks = complete_lists(search, np.arange(len(events)), self.k, n_items)
        else:
            negatives = self.sampler.draw(events, relevant)
            blocks = [(np.arange(len(events)), *sampled_lists(scores, relevant, negatives))]
        for rows, listed, items in blocks:
            own = [relevant[row] for row in rows]
            groups: tuple[tuple[int, Hits], ...] = ()
            if self.support is not None:
                groups = tuple(hits_by_popularity(listed, items, own, self.support, n_items, self.ties))
            yield Rankings(events[rows], torch.empty(0), find_hits(listed, items, own, n_items, self.ties), groups)

    def _targets_after(self, events: np.ndarray) -> list[np.ndarray]:
        """Return the targets of the ranking after each event, in ascending order."""
        items, ends = self.store.items, events + 2
        if self.targets == "remaining":
            ends = self.store.offsets[np.searchsorted(self.store.offsets, events, side="right")]
        return [np.unique(items[event + 1 : end]).astype(np.int64) for event, end in zip(events, ends, strict=True)]
