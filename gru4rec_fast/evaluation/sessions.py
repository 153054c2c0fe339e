"""Evaluation of session models: ranks the true next item among the whole catalogue."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from gru4rec_fast import ops
from gru4rec_fast.distributed import Ranks, digest
from gru4rec_fast.evaluation.baselines import popularity_metrics, random_metrics
from gru4rec_fast.evaluation.batches import batches_by_length, run_sessions
from gru4rec_fast.evaluation.metrics import RankMetrics, Ties, check_ties, ranks_from_counts
from gru4rec_fast.evaluation.network import NextItemNetwork, evaluating
from gru4rec_fast.evaluation.report import Report
from gru4rec_fast.profiling import map_parts

if TYPE_CHECKING:
    from gru4rec_fast.data import SessionStore

# Number of hidden states whose targets are ranked in one call. On the CPU they should fit into a core's L2 cache
# together with a block of the output table. On a GPU each call reads the whole output table, so fewer calls are faster.
_QUERIES_PER_CALL = {"cpu": 512}
_QUERIES_PER_CALL_ON_GPU = 8192
_SESSIONS_PER_SORT = 1 << 16  # sessions sorted by length at a time, so that memory does not grow with the log


def evaluate_sessions(
    network: NextItemNetwork,
    store: SessionStore,
    *,
    cutoffs: int | Iterable[int] = (20,),
    ties: Ties = "conservative",
    batch_size: int = 512,
    baselines: bool = False,
    support: ArrayLike | None = None,
    progress: Callable[[int], None] | None = None,
    impl: str = "auto",
    ranks: Ranks | None = None,
) -> Report:
    """Rank the true next item after each event of the test sessions among the whole catalogue.

    The network receives the events of a session in order, from a hidden state of zero, without dropout. The last event
    of a session has no next item. `batch_size` affects speed and memory; the metrics change at most by rounding errors.

    Args:
        network: see `NextItemNetwork`; its mode (train or eval) is restored afterwards.
        store: test sessions with the item indices of training (`SessionStore.from_events(..., vocabulary=...)`).
        cutoffs: the values of k in "recall@k" and the other metrics; or a single one.
        ties: "standard": the rank of an item is 1 + the number of other items with a higher score. "conservative" adds
            the number of other items with the same score, "median" adds half of this number.
        batch_size: sessions processed in parallel. Sessions of similar length are processed together.
        baselines: whether to add the metrics of popularity and of a random order to the report; needs `support`.
        support: int [n_items], number of each item's occurrences in the training log.
        progress: called several times per batch with the number of targets ranked so far.
        impl: "auto", "native" or "reference", for the ranking.
        ranks: share out the sessions among these processes. Each one must call this function with the same arguments,
            and returns the same report as one process.

    Raises:
        ValueError: an argument is out of range, the store has another number of items than the network, no session has
            two events, or a score is NaN.
    """
    check_ties(ties)
    metrics = RankMetrics(cutoffs)
    weight, bias = network.output_weight, network.output_bias
    if len(weight) != store.n_items:
        raise ValueError(
            f"the store has {store.n_items} items, the network {len(weight)}: read the test log with "
            "vocabulary=STORE.vocabulary, where STORE is the training store"
        )
    if baselines and support is None:
        raise ValueError("baselines=True needs support=, the support of the items in the training store")
    # The baselines, which take little time, come first, so that a wrong support is reported before the long evaluation.
    baseline_metrics = {}
    if baselines and support is not None:
        baseline_metrics["popularity"] = popularity_metrics(store, support, metrics.cutoffs, ties)
        baseline_metrics["random"] = random_metrics(store.n_items, metrics.cutoffs)
    if ranks is not None:
        settings = {"cutoffs": metrics.cutoffs, "ties": ties, "batch_size": batch_size, "weights": digest(weight)}
        ranks.check_equal(settings | {"sessions": store.n_sessions, "events": store.n_events})
    per_call = _QUERIES_PER_CALL.get(weight.device.type, _QUERIES_PER_CALL_ON_GPU)
    n_short = store.n_short_sessions
    if n_short == store.n_sessions:
        raise ValueError(f"none of the {n_short} sessions has two events: there is nothing to predict")
    dropped = {name: int(count) for name, count in store.meta.get("dropped", {}).items()}
    if n_short:
        warnings.warn(
            f"{n_short} of {store.n_sessions} sessions have fewer than two events and are skipped", stacklevel=2
        )
        dropped["sessions_too_short_to_evaluate"] = n_short

    def rank_targets(sessions: np.ndarray) -> list[Tensor]:
        """Return the ranks of the targets of some sessions, which are ordered by length, longest first."""
        target_ranks, starts = [], store.offsets[sessions]
        lengths = store.offsets[sessions + 1] - starts - 1
        for hidden, events in run_sessions(network, store.items, starts, lengths, per_call):
            targets = torch.from_numpy(store.items[events[events >= 0] + 1].astype(np.int64)).to(weight.device)
            live = torch.from_numpy(events >= 0).to(weight.device)
            queries = hidden[live].to(weight.dtype)  # autocast may have made the hidden states bfloat16 or float16
            greater, equal = ops.target_rank(queries, weight, bias, targets, impl=impl)
            target_ranks.append(ranks_from_counts(greater, equal, ties).cpu())
        return target_ranks

    with evaluating(network):
        for number, batch in enumerate(_session_batches(store, batch_size)):
            if ranks is not None and number % ranks.size != ranks.rank:
                continue
            for target_ranks in chain.from_iterable(map_parts("the evaluation", batch, rank_targets)):
                metrics.update(target_ranks)
                if progress is not None:
                    progress(metrics.n_targets)
    if ranks is not None:
        metrics.sum_over(ranks)
    return Report(
        metrics=metrics.compute(),
        n_targets=metrics.n_targets,
        n_items=store.n_items,
        n_sessions=store.n_sessions - n_short,
        ties=ties,
        dropped=dropped,
        baselines=baseline_metrics,
    )


def _session_batches(store: SessionStore, batch_size: int) -> Iterator[np.ndarray]:
    """Yield the indices of the sessions that have targets, in batches of sessions of similar length, longest first."""
    for first in range(0, store.n_sessions, _SESSIONS_PER_SORT):
        n_targets = np.diff(store.offsets[first : first + _SESSIONS_PER_SORT + 1]) - 1
        for batch in batches_by_length(n_targets, batch_size):
            yield first + batch
