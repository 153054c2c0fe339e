"""Evaluation of session models: ranks the true next item, or other targets, among the whole catalogue or a sample."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from itertools import chain
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import ArrayLike

from gru4rec_fast.distributed import Ranks
from gru4rec_fast.evaluation.baselines import popularity_metrics, random_metrics
from gru4rec_fast.evaluation.batches import batches_by_length
from gru4rec_fast.evaluation.groups import By, check_by
from gru4rec_fast.evaluation.metrics import RankMetrics, Ties, check_ties
from gru4rec_fast.evaluation.negatives import NegativeSampler, NegativesBy
from gru4rec_fast.evaluation.network import NextItemNetwork, evaluating
from gru4rec_fast.evaluation.report import Report
from gru4rec_fast.evaluation.scores import HistoryScorer
from gru4rec_fast.evaluation.session_details import SessionDetails
from gru4rec_fast.evaluation.session_rankings import NetworkScorer, SessionRanker, Targets
from gru4rec_fast.profiling import map_parts

if TYPE_CHECKING:
    from gru4rec_fast.data import SessionStore

_SESSIONS_PER_SORT = 1 << 16  # sessions sorted by length at a time, so that memory does not grow with the log


def evaluate_sessions(
    network: NextItemNetwork | HistoryScorer,
    store: SessionStore,
    *,
    cutoffs: int | Iterable[int] = (20,),
    ties: Ties = "conservative",
    targets: Targets | None = None,
    batch_size: int = 512,
    baselines: bool = False,
    support: ArrayLike | None = None,
    by: By | None = None,
    beyond_accuracy: bool = False,
    negatives: int | None = None,
    negatives_by: NegativesBy = "uniform",
    seed: int = 0,
    per_session: bool = False,
    progress: Callable[[int], None] | None = None,
    impl: str = "auto",
    ranks: Ranks | None = None,
) -> Report:
    """Rank the true next item after each event of the test sessions among the whole catalogue.

    The network receives the events of a session in order, from a hidden state of zero, without dropout. The last event
    of a session has no next item. `batch_size` affects speed and memory; the metrics change at most by rounding errors.

    Args:
        network: see `NextItemNetwork`; its mode (train or eval) is restored afterwards. Or a scorer of histories.
        store: test sessions with the item indices of training (`SessionStore.from_events(..., vocabulary=...)`).
        cutoffs: the values of k in "recall@k" and the other metrics; or a single one.
        ties: "standard": the rank of an item is 1 + the number of other items with a higher score. "conservative" adds
            the number of other items with the same score, "median" adds half of this number. For rankings with several
            targets see `lists.find_hits`.
        targets: the relevant items of the ranking after an event. "next": the next item. "last": only the last item of
            each session is a target, ranked after all events before it. "remaining": all items that follow in the
            session, each once; metrics are means over rankings, see `metrics_per_ranking`. None: "last" for a store
            that a leave-one-out split (`Split(last_event=True)`) has held out, else "next".
        batch_size: sessions processed in parallel. Sessions of similar length are processed together.
        baselines: whether to add the metrics of popularity and of a random order to the report; needs `support`.
        support: int [n_items], number of each item's occurrences in the training log.
        by: add a table of the metrics by group to the report. "popularity": by the support of the target (needs
            `support`); of several targets, only those of the group count as relevant in it. "length": by the number of
            events of the session. "position": by the number of events before the target.
        beyond_accuracy: add coverage, popularity, Gini, entropy and tail of the first k items of all rankings to the
            report, see `beyond_accuracy`; needs `support`. The lists are of the whole catalogue, also with `negatives`.
        negatives: rank the targets of a ranking among this number of random items only, see `NegativeSampler`. None:
            all items. Metrics of samples must not be compared with others, and may order models differently (Krichene &
            Rendle, KDD 2020).
        negatives_by: "uniform" or "popularity" (in proportion to `support`).
        seed: seed of the negatives.
        per_session: add the metrics of each session to the report, as a polars.DataFrame with the columns "session" (id
            as text), "n_rankings" and the metrics, which are means over the session's rankings.
        progress: called several times per batch with the number of targets ranked so far.
        impl: "auto", "native" or "reference", for the ranking.
        ranks: share out the sessions among these processes. Each one must call this function with the same arguments,
            and returns the same report as one process.

    Raises:
        ValueError: an argument is out of range, the store has another number of items than the network, no session has
            two events, or a score is NaN.
    """
    check_ties(ties)
    check_by(by)
    metrics = RankMetrics(cutoffs)
    cutoffs = metrics.cutoffs
    scorer = network if isinstance(network, HistoryScorer) else NetworkScorer(network, impl)
    if scorer.n_items != store.n_items:
        raise ValueError(
            f"the store has {store.n_items} items, the model {scorer.n_items}: read the test log with "
            "vocabulary=STORE.vocabulary, where STORE is the training store"
        )
    targets = _check_targets(targets, store)
    needs_support = {
        "baselines=True": baselines,
        "beyond_accuracy=True": beyond_accuracy,
        "by='popularity'": by == "popularity",
        "negatives_by='popularity'": negatives is not None and negatives_by == "popularity",
    }
    for option, is_given in needs_support.items():
        if is_given and support is None:
            raise ValueError(f"{option} needs support=, the support of the items in the training store")
    popularity = np.zeros(store.n_items, np.int64) if support is None else np.asarray(support)
    if popularity.shape != (store.n_items,):
        raise ValueError(f"support must have one number per item, [{store.n_items}], not shape {popularity.shape}")
    sampler = None if negatives is None else NegativeSampler(negatives, negatives_by, popularity, seed)
    # The baselines, which take little time, come first, so that a wrong support is reported before the long evaluation.
    baseline_metrics = {}
    if baselines:
        if targets == "remaining" or sampler is not None:
            raise ValueError(
                "baselines=True is for one target among all items: leave it out, or targets= and negatives="
            )
        only_last = targets == "last"
        baseline_metrics["popularity"] = popularity_metrics(store, popularity, cutoffs, ties, only_last=only_last)
        baseline_metrics["random"] = random_metrics(store.n_items, cutoffs)
    if ranks is not None:
        settings: dict[str, Any] = {"cutoffs": cutoffs, "ties": ties, "batch_size": batch_size}
        settings |= {"weights": scorer.digest(), "sessions": store.n_sessions, "events": store.n_events}
        settings |= {"targets": targets, "by": by, "beyond_accuracy": beyond_accuracy, "per_session": per_session}
        ranks.check_equal(settings | {"negatives": sampler and (sampler.description, seed)})
    n_short = store.n_short_sessions
    if n_short == store.n_sessions:
        raise ValueError(f"none of the {n_short} sessions has two events: there is nothing to predict")
    dropped = {name: int(count) for name, count in store.meta.get("dropped", {}).items()}
    if n_short:
        warnings.warn(
            f"{n_short} of {store.n_sessions} sessions have fewer than two events and are skipped", stacklevel=2
        )
        dropped["sessions_too_short_to_evaluate"] = n_short

    ranker = SessionRanker(
        scorer,
        store,
        targets,
        ties,
        cutoffs[-1],
        sampler,
        popularity if by == "popularity" else None,
        beyond_accuracy,
    )
    details = SessionDetails(store, cutoffs, by, popularity, beyond_accuracy=beyond_accuracy, per_session=per_session)
    n_targets = 0
    with nullcontext() if isinstance(network, HistoryScorer) else evaluating(network):
        for number, batch in enumerate(_session_batches(store, batch_size)):
            if ranks is not None and number % ranks.size != ranks.rank:
                continue
            for rankings in chain.from_iterable(map_parts("the evaluation", batch, ranker.rank)):
                if rankings.hits is None:
                    metrics.update(rankings.ranks)
                details.add(rankings)
                n_targets += rankings.n_targets
                if progress is not None:
                    progress(n_targets)
    if ranks is not None:
        metrics.sum_over(ranks)
        n_targets = sum(ranks.gather(n_targets))
    return Report(
        metrics=details.means_of_several_targets(ranks) or metrics.compute(),
        n_targets=n_targets,
        n_items=store.n_items,
        n_sessions=store.n_sessions - n_short,
        ties=ties,
        dropped=dropped,
        baselines=baseline_metrics,
        targets=targets,
        sampled=None if sampler is None else sampler.description,
        by=by,
        **details.report_fields(ranks),
    )


def _check_targets(targets: Targets | None, store: SessionStore) -> Targets:
    """Return the targets to rank, by default those that the store was made for; ValueError for others."""
    made_for: Targets = store.meta.get("targets", "next")
    if targets is None:
        return made_for
    if targets not in get_args(Targets):
        raise ValueError(f"targets={targets!r}: choose one of {', '.join(get_args(Targets))}")
    if made_for == "last" != targets:
        raise ValueError(
            f"targets={targets!r}: these sessions were held out by a leave-one-out split, so that all events but the "
            "last of each are training events; choose targets='last'"
        )
    return targets


def _session_batches(store: SessionStore, batch_size: int) -> Iterator[np.ndarray]:
    """Yield the indices of the sessions that have targets, in batches of sessions of similar length, longest first."""
    for first in range(0, store.n_sessions, _SESSIONS_PER_SORT):
        n_targets = np.diff(store.offsets[first : first + _SESSIONS_PER_SORT + 1]) - 1
        for batch in batches_by_length(n_targets, batch_size):
            yield first + batch
