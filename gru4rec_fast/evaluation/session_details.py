"""What an evaluation of sessions measures in addition to the means of single targets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gru4rec_fast.distributed import Ranks
from gru4rec_fast.evaluation.beyond_accuracy import RecommendationCounts
from gru4rec_fast.evaluation.groups import By, MetricSums, groups_of
from gru4rec_fast.evaluation.metrics import Hits, metrics_per_ranking
from gru4rec_fast.evaluation.session_rankings import Rankings

if TYPE_CHECKING:
    import polars

    from gru4rec_fast.data import SessionStore


class SessionDetails:
    """Adds up metrics of rankings with several targets, by group and by session, and counts recommended items.

    Args: see `evaluate_sessions`; popularity is its `support`.
    """

    def __init__(
        self,
        store: SessionStore,
        cutoffs: tuple[int, ...],
        by: By | None,
        popularity: np.ndarray,
        *,
        beyond_accuracy: bool,
        per_session: bool,
    ) -> None:
        self._store, self._cutoffs, self._by, self._popularity = store, cutoffs, by, popularity
        self._sums, self._groups = MetricSums(), MetricSums()
        self._values = ValuesPerSession(store.n_sessions) if per_session else None
        self._recommended = RecommendationCounts(cutoffs, store.n_items) if beyond_accuracy else None

    def add(self, rankings: Rankings) -> None:
        """Add some rankings."""
        if self._recommended is not None and rankings.top is not None:
            self._recommended.add(rankings.top)
        if rankings.hits is None and self._by is None and self._values is None:
            return
        hits = Hits.of_one_target(rankings.ranks) if rankings.hits is None else rankings.hits
        metrics = metrics_per_ranking(hits, self._cutoffs)
        if rankings.hits is not None:
            self._sums.add(metrics)
        sessions = np.searchsorted(self._store.offsets, rankings.events, side="right") - 1
        if self._values is not None:
            self._values.add(metrics, sessions)
        if rankings.hits is not None and self._by == "popularity":
            for group, own in rankings.hits_by_popularity:
                self._groups.add(metrics_per_ranking(own, self._cutoffs), group)
        elif self._by is not None:
            self._groups.add(metrics, groups_of(self._values_of(rankings.events, sessions, self._by), self._by))

    def _values_of(self, events: np.ndarray, sessions: np.ndarray, by: By) -> np.ndarray:
        """Return the values that the groups of some rankings are formed by."""
        starts, ends = self._store.offsets[sessions], self._store.offsets[sessions + 1]
        if by == "popularity":
            return self._popularity[self._store.items[events + 1]]
        return ends - starts if by == "length" else events + 1 - starts

    def means_of_several_targets(self, ranks: Ranks | None) -> dict[str, float]:
        """Return the mean metrics of rankings with `hits`, over all ranks; {} if there are none."""
        means = self._sums.means(ranks).get(0, {})
        return {name: value for name, value in means.items() if name != "n"}

    def report_fields(self, ranks: Ranks | None) -> dict[str, Any]:
        """Return the fields `beyond_accuracy`, `groups` and `per_session` of the report, over all ranks."""
        fields: dict[str, Any] = {}
        if self._recommended is not None:
            self._recommended.sum_over(ranks)
            fields["beyond_accuracy"] = self._recommended.metrics(self._popularity)
        if self._by is not None:
            fields["groups"] = self._groups.table(self._by, ranks)
        if self._values is not None:
            fields["per_session"] = self._values.frame(self._store.session_ids, ranks)
        return fields


class ValuesPerSession:
    """Adds up the metrics of the rankings of each session."""

    def __init__(self, n_sessions: int) -> None:
        self._n_sessions = n_sessions
        self._sums: dict[str, np.ndarray] = {}  # float64 [n_sessions] by name of the metric

    def add(self, values: dict[str, np.ndarray], sessions: np.ndarray) -> None:
        """Add metrics [R] of rankings of some sessions, int64 [R]."""
        for name, value in {"n_rankings": np.ones(len(sessions)), **values}.items():
            np.add.at(self._sums.setdefault(name, np.zeros(self._n_sessions)), sessions, value)

    def frame(self, session_ids: np.ndarray, ranks: Ranks | None) -> polars.DataFrame:
        """Return the mean metrics of the sessions with rankings, over all ranks, see `evaluate_sessions`."""
        import polars

        if ranks is not None:
            names = max(ranks.gather([*self._sums]), key=len)
            for name in names:
                total = torch.from_numpy(self._sums.get(name, np.zeros(self._n_sessions))).to(ranks.device)
                ranks.sum_(total)  # of one session, all but one rank have 0
                self._sums[name] = total.cpu().numpy()
        n_rankings = self._sums.pop("n_rankings")
        is_ranked = n_rankings > 0
        n_rankings = n_rankings[is_ranked]
        columns: dict[str, Any] = {"session": [str(name) for name in session_ids[is_ranked].tolist()]}
        columns["n_rankings"] = n_rankings.astype(np.int64)
        return polars.DataFrame(columns | {name: sums[is_ranked] / n_rankings for name, sums in self._sums.items()})
