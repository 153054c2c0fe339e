"""Recall@20 and MRR@20 of next items over diginetica's 43,097 items, L100: time and memory of a whole evaluation.

    pytest benchmarks/bench_evaluation.py --peer official=PATH

A unit is a target. Sides: `official` (its batch_eval), `naive` (all scores of 512 lanes by one product, then compared),
`reference` and `evaluate_sessions` (the package, pure PyTorch and native). Time is taken in turns, on every sixteenth
session; memory, above what the imports hold, in a process of its own for each side, on all of the test log. All sides
rank by one and the same weights and have to find the same recall.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import LogShelf
from interleave import timed
from machine import limits

from gru4rec_fast import ops, profiling
from gru4rec_fast.data import SessionParallelLoader, SessionStore
from gru4rec_fast.evaluation import evaluate_sessions, evaluating
from gru4rec_fast.nn import SessionNetwork

LOG, WIDTH, LANES = "diginetica", 100, 512
EVERY = 16  # of the test sessions, where time is taken
SIDES = ("official", "naive", "reference", "evaluate_sessions")
Evaluation = Callable[[], tuple[float, float]]  # returns recall@20 and mrr@20


def trained_network(store: SessionStore) -> SessionNetwork:
    """Weights that tell items apart, without a training: popular items score higher."""
    network = SessionNetwork(store.n_items, [WIDTH], seed=1)
    with torch.no_grad():
        network.output.weight.mul_(30)
        network.output.bias.copy_(torch.tensor(store.support).clamp(min=1).log())
    return network.eval()


@torch.no_grad()
def naive_evaluation(network: SessionNetwork, test: SessionStore) -> tuple[float, float]:
    """What one would write: all scores of a step at once."""
    loader = SessionParallelLoader(test, LANES)
    recall = mrr = 0.0
    with evaluating(network):
        state = network.initial_state(loader.n_lanes)
        for block in loader:
            hidden, state = network(block.inputs, state, block.reset)
            live = block.targets[0] >= 0
            scores = hidden[0][live] @ network.output_weight.T + network.output_bias
            rank = (scores >= scores.gather(1, block.targets[0][live].unsqueeze(1))).sum(1)
            recall += float((rank <= 20).sum())
            mrr += float(((rank <= 20) / rank).sum())
    return recall / test.n_targets, mrr / test.n_targets


def package_evaluation(network: SessionNetwork, test: SessionStore, impl: str) -> tuple[float, float]:
    """The package's, with every operator of the network by `impl`."""
    for module in network.modules():
        if hasattr(module, "impl"):
            module.impl = impl  # type: ignore[assignment]
    found = evaluate_sessions(network, test, batch_size=LANES, impl=impl).metrics
    return found["recall@20"], found["mrr@20"]


def evaluation_of(
    side: str, train: SessionStore, test: SessionStore, official: Any, frame: Callable[[], Any]
) -> Evaluation:
    """One side's evaluation of the test sessions."""
    network = trained_network(train)
    if side == "naive":
        return partial(naive_evaluation, network, test)
    if side == "official":
        estimator = official.with_weights(network.state_dict(), train.vocabulary.ids, WIDTH)
        return partial(official.evaluate, estimator, frame(), LANES)
    return partial(package_evaluation, network, test, "reference" if side == "reference" else "auto")


def thinned(test: SessionStore) -> SessionStore:
    """Every sixteenth session."""
    kept = range(0, test.n_sessions, EVERY)
    events = [test.items[test.offsets[s] : test.offsets[s + 1]] for s in kept]
    offsets = [0, *torch.tensor([len(e) for e in events]).cumsum(0).tolist()]
    items = torch.cat([torch.tensor(e) for e in events]).numpy()
    return SessionStore.from_arrays(items, offsets, vocabulary=test.vocabulary)


def frame_of(test: SessionStore) -> Any:
    """The sessions as a data frame for the official code."""
    import numpy as np
    import pandas as pd

    session = np.repeat(np.arange(test.n_sessions), np.diff(test.offsets))
    return pd.DataFrame({"SessionId": session, "ItemId": test.vocabulary.ids[test.items], "Time": range(test.n_events)})


def peak_of(side: str, stores: list[Path], peer: list[str]) -> dict[str, Any]:
    """Bytes, seconds and metrics of one side over the whole test log, in a fresh process."""
    command = [sys.executable, __file__, side, *map(str, stores), *peer, "--threads", str(torch.get_num_threads())]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def test_time(compare: Any, logs: LogShelf, official: Any) -> None:
    train, test = logs.store(LOG), thinned(logs.store(LOG, "test"))
    sides = [side for side in SIDES if side != "official" or official is not None]
    evaluations = {side: evaluation_of(side, train, test, official, lambda: frame_of(test)) for side in sides}
    found = {side: evaluate() for side, evaluate in evaluations.items()}
    for recall, mrr in found.values():  # a score's rounding may swap two neighbors: a target or two
        assert recall == pytest.approx(found["naive"][0], abs=3 / test.n_targets)
        assert mrr == pytest.approx(found["naive"][1], abs=1e-4)
    seconds = compare(
        {side: timed(evaluate, test.n_targets) for side, evaluate in evaluations.items()},
        row=f"evaluation, {LOG}, L{WIDTH}",
        unit="target",
        subjects={"evaluate_sessions": {"official": 8.0}},
    )
    work = [(train.n_items, LANES, WIDTH)]
    shares = {side: limits(taken["median"] * LANES, work) for side, taken in seconds.items()}
    compare.note(limits=shares, recall_and_mrr=found)


def test_peak_memory(compare: Any, request: pytest.FixtureRequest, logs: LogShelf) -> None:
    stores = [folder for part in ("train", "test") if (folder := logs.store(LOG, part).folder)]
    given = request.config.getoption("--peer")
    peer = [part for one in given for part in ("--peer", one)]
    sides = [side for side in SIDES if side != "official" or given]
    found = {side: peak_of(side, stores, peer) for side in sides[:-1]}
    compare.once(lambda: found.update({sides[-1]: peak_of(sides[-1], stores, peer)}))
    compare.note(memory={"row": f"memory of an evaluation, {LOG}, L{WIDTH}", "goal": 0.1, "sides": found})
    assert all(figures["peak_bytes"] > 0 for figures in found.values())


def main() -> None:
    """Measure one side in this process: what is held once model and log are there, and at the evaluation's peak."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("train", type=Path, help="the training log's store")
    parser.add_argument("test", type=Path, help="the test log's store")
    parser.add_argument("--peer", help="official=PATH")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    official = None
    if arguments.side == "official":
        from peers.official import Official

        official = Official(arguments.peer.partition("=")[2])
    ops.dropout_mask(1, 1, 1, 0.5, seed=0, stream=0, step=0)  # the native library is loaded with the imports
    profiling.set_baseline()
    test = SessionStore.open(arguments.test)
    evaluate = evaluation_of(arguments.side, SessionStore.open(arguments.train), test, official, lambda: frame_of(test))
    gc.collect()
    imports, loaded = profiling.process_baseline(), profiling.PeakMemory()
    assert imports is not None
    started = time.perf_counter()
    recall, mrr = evaluate()
    figures = {
        "seconds": time.perf_counter() - started,
        "recall": recall,
        "mrr": mrr,
        "loaded_bytes": loaded.baseline - imports.baseline,
        "peak_bytes": loaded.baseline - imports.baseline + loaded.bytes,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
