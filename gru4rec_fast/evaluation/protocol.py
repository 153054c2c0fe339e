"""Next-item evaluation over the whole catalogue (semantics.md, "Evaluation")."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
from numpy.typing import ArrayLike

from gru4rec_fast import ops
from gru4rec_fast.data import SessionParallelLoader
from gru4rec_fast.evaluation.baselines import popularity_metrics, random_metrics
from gru4rec_fast.evaluation.metrics import RankMetrics, Ties, check_ties, ranks_from_counts
from gru4rec_fast.evaluation.network import NextItemNetwork, evaluating
from gru4rec_fast.evaluation.report import Report

if TYPE_CHECKING:
    from gru4rec_fast.data import SessionStore

# Hidden states that are ranked in one call: on the CPU as many as stay in a core's L2 cache beside a block of the
# table, whose reading is a few per cent of the work then; elsewhere so many that the table is read seldom.
_QUERIES_AT_ONCE = {"cpu": 512}
_QUERIES_AT_ONCE_ELSEWHERE = 8192


def evaluate_sessions(
    network: NextItemNetwork,
    store: SessionStore,
    *,
    cutoffs: Iterable[int] = (20,),
    ties: Ties = "conservative",
    batch_size: int = 512,
    device: torch.device | str | None = None,
    impl: str = "auto",
    baselines: bool = False,
    support: ArrayLike | None = None,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Rank the true next item of every event of the test sessions but the last among the whole catalogue.

    Every event is fed in order; the hidden state starts at zero in each session and dropout is off. The result does not
    depend on `batch_size`, but for rounding in the network.

    Args:
        network: see `NextItemNetwork`; its mode (train or eval) is the same afterwards.
        store: test sessions, indexed by the training vocabulary (`SessionStore.from_events(..., vocabulary=...)`).
        cutoffs: the k of "recall@k" and the others, all in one pass.
        ties: the rank is 1 + the number of other items that score strictly higher ("standard"), + all that score
            exactly as high ("conservative"), + half of these ("median").
        batch_size: sessions played in parallel.
        device: where to evaluate; it must be the network's device, the default.
        impl: "auto", "native" or "reference", for playing the sessions and for ranking.
        baselines: add popularity and a random order to the report; needs `support`.
        support: int [n_items], how often each item occurs in training.
        progress: called after each block with the number of targets ranked so far.

    Raises:
        ValueError: an argument that does not fit, a store of another catalogue, no session of two events, a NaN score.
    """
    check_ties(ties)
    metrics = RankMetrics(cutoffs)
    weight, bias = network.output_weight, network.output_bias
    if len(weight) != store.n_items:
        raise ValueError(
            f"the store has {store.n_items} items, the network {len(weight)}: read the test log with vocabulary= of "
            "the training store"
        )
    if device is not None and torch.zeros(0, device=device).device != weight.device:
        raise ValueError(f"device={str(device)!r}, but the network is on {weight.device}: move it there first")
    if baselines and support is None:
        raise ValueError("baselines=True needs support=, the support of the items in the training store")
    # With a support at hand the baselines cost nothing beside the model: find what is wrong with it first.
    found = {}
    if baselines and support is not None:
        found["popularity"] = popularity_metrics(store, support, metrics.cutoffs, ties)
        found["random"] = random_metrics(store.n_items, metrics.cutoffs)
    at_once = _QUERIES_AT_ONCE.get(weight.device.type, _QUERIES_AT_ONCE_ELSEWHERE)
    steps = max(1, at_once // batch_size) if batch_size > 0 else 1
    loader = SessionParallelLoader(store, batch_size, steps=steps, device=weight.device, impl=impl)
    with evaluating(network):
        state = network.initial_state(loader.n_lanes)
        for block in loader:
            hidden, state = network(block.inputs, state, block.reset)
            live = block.inputs >= 0
            queries = hidden[live].to(weight.dtype)  # under autocast they may be narrower
            greater, equal = ops.target_rank(queries, weight, bias, block.targets[live], impl=impl)
            metrics.update(ranks_from_counts(greater, equal, ties))
            if progress is not None:
                progress(metrics.n_targets)
    dropped = {name: int(count) for name, count in store.meta.get("dropped", {}).items()}
    if loader.n_skipped:
        dropped["sessions_too_short_to_evaluate"] = loader.n_skipped
    return Report(
        metrics=metrics.compute(),
        n_targets=metrics.n_targets,
        n_sessions=store.n_sessions - loader.n_skipped,
        n_items=store.n_items,
        ties=ties,
        dropped=dropped,
        baselines=found,
    )
