"""Benchmark the time and the memory of evaluating and recommending.

    pytest benchmarks/bench_evaluation.py --peer official=PATH

GRU4Rec models are evaluated on diginetica (43,097 items, hidden size 100). An evaluation computes Recall@20 and MRR@20
of the next items, for 512 lanes (sessions processed in parallel). A unit of work is one target, an item to predict. The
official code is GRU4Rec_PyTorch_Official, by GRU4Rec's author. Sides (the implementations compared):

    official             batch_eval of the official code
    naive                plain PyTorch; computes and stores the scores of all lanes and items
    reference            this package in pure PyTorch
    evaluate_sessions    this package with native operators

Time is measured on every sixteenth test session. Memory is measured on the whole test log, in a separate process per
side, without the memory of the imports. All sides use the same weights and must compute the same metrics, up to
rounding.

The rows of long sessions and users compare this package with itself, on generated data: one session of 20,000 events
among 511 short ones, and one user with 300,000 items among 3,000 users with few, with the same events spread evenly.
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

import numpy as np
import pytest
import torch
from interleave import timed
from machine import rate_shares
from peers import checkout_path
from session_logs import SessionLogs

from gru4rec_fast import LightGCN, ops, profiling
from gru4rec_fast.data import InteractionGraph, SessionParallelLoader, SessionStore
from gru4rec_fast.evaluation import evaluate_graph, evaluate_sessions, evaluating
from gru4rec_fast.models import recommend
from gru4rec_fast.nn import SessionNetwork

LOG, WIDTH, LANES = "diginetica", 100, 512
SESSION_STRIDE = 16  # time is measured on every sixteenth test session
SIDES = ("official", "naive", "reference", "evaluate_sessions")
Evaluation = Callable[[], tuple[float, float]]  # returns recall@20 and mrr@20


def network_with_realistic_scores(store: SessionStore) -> SessionNetwork:
    """Return an untrained network whose scores vary and are higher for popular items, as after training."""
    network = SessionNetwork(store.n_items, [WIDTH], seed=1)
    with torch.no_grad():
        network.output.weight.mul_(30)
        network.output.bias.copy_(torch.tensor(store.support).clamp(min=1).log())
    return network.eval()


@torch.no_grad()
def naive_evaluation(network: SessionNetwork, test: SessionStore) -> tuple[float, float]:
    """Return recall@20 and mrr@20, computed in plain PyTorch with the scores of all lanes and items of a step."""
    loader = SessionParallelLoader(test, LANES)
    recall = mrr = 0.0
    with evaluating(network):
        state = network.initial_state(loader.n_lanes)
        for block in loader:
            hidden, state = network(block.inputs, state, block.reset)
            is_live = block.targets[0] >= 0
            scores = hidden[0][is_live] @ network.output_weight.T + network.output_bias
            rank = (scores >= scores.gather(1, block.targets[0][is_live].unsqueeze(1))).sum(1)
            recall += float((rank <= 20).sum())
            mrr += float(((rank <= 20) / rank).sum())
    return recall / test.n_targets, mrr / test.n_targets


def package_evaluation(network: SessionNetwork, test: SessionStore, impl: str) -> tuple[float, float]:
    """Return recall@20 and mrr@20, computed by this package with the implementation `impl` of all operators."""
    for module in network.modules():
        if hasattr(module, "impl"):
            module.impl = impl  # type: ignore[assignment]
    metrics = evaluate_sessions(network, test, batch_size=LANES, impl=impl).metrics
    return metrics["recall@20"], metrics["mrr@20"]


def build_evaluation(
    side: str, train: SessionStore, test: SessionStore, official: Any, make_frame: Callable[[], Any]
) -> Evaluation:
    """Return the function that evaluates the test sessions with the implementation `side`.

    official: a peers.official.OfficialGRU4Rec, or None. make_frame: returns the test sessions as a data frame, which
    the official code reads.
    """
    network = network_with_realistic_scores(train)
    if side == "naive":
        return partial(naive_evaluation, network, test)
    if side == "official":
        estimator = official.with_weights(network.state_dict(), train.vocabulary.ids, WIDTH)
        return partial(official.evaluate, estimator, make_frame(), LANES)
    return partial(package_evaluation, network, test, "reference" if side == "reference" else "auto")


def every_sixteenth_session(test: SessionStore) -> SessionStore:
    """Return a store of every sixteenth session."""
    events = [test.items[test.offsets[s] : test.offsets[s + 1]] for s in range(0, test.n_sessions, SESSION_STRIDE)]
    offsets = [0, *torch.tensor([len(e) for e in events]).cumsum(0).tolist()]
    items = torch.cat([torch.tensor(e) for e in events]).numpy()
    return SessionStore.from_arrays(items, offsets, vocabulary=test.vocabulary)


def to_data_frame(test: SessionStore) -> Any:
    """Return the sessions as a data frame for the official code, with the items' ids instead of indices."""
    import pandas as pd

    session = np.repeat(np.arange(test.n_sessions), np.diff(test.offsets))
    return pd.DataFrame({"SessionId": session, "ItemId": test.vocabulary.ids[test.items], "Time": range(test.n_events)})


def measure_in_new_process(side: str, stores: list[Path], peer_options: list[str]) -> dict[str, Any]:
    """Measure memory, time and metrics of one side on the whole test log in a new process, which runs `main`.

    stores: folders of the training and the test log. peer_options: the option --peer official=PATH, or
    nothing.
    """
    command = [
        sys.executable,
        __file__,
        side,
        *map(str, stores),
        *peer_options,
        "--threads",
        str(torch.get_num_threads()),
    ]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def test_time_of_an_evaluation(compare: Any, logs: SessionLogs, official: Any) -> None:
    train, test = logs.store(LOG), every_sixteenth_session(logs.store(LOG, "test"))
    sides = [side for side in SIDES if side != "official" or official is not None]
    evaluations = {side: build_evaluation(side, train, test, official, lambda: to_data_frame(test)) for side in sides}
    metrics = {side: evaluate() for side, evaluate in evaluations.items()}
    for recall, mrr in metrics.values():  # rounding errors of the scores may change the ranks of a few targets
        assert recall == pytest.approx(metrics["naive"][0], abs=3 / test.n_targets)
        assert mrr == pytest.approx(metrics["naive"][1], abs=1e-4)
    seconds = compare(
        {side: timed(evaluate, test.n_targets) for side, evaluate in evaluations.items()},
        row=f"evaluation, {LOG}, L{WIDTH}",
        unit="target",
        goals={"evaluate_sessions": {"official": 8.0}},  # at least 8 times as fast as official
    )
    # cpu_table.py reads from "limits" how close each side is to the speed of the machine's matrix product.
    products = [(train.n_items, LANES, WIDTH)]
    shares = {side: rate_shares(figures["median"] * LANES, products) for side, figures in seconds.items()}
    compare.note(limits=shares, recall_and_mrr=metrics)


def test_peak_memory_of_an_evaluation(compare: Any, request: pytest.FixtureRequest, logs: SessionLogs) -> None:
    stores = [folder for part in ("train", "test") if (folder := logs.store(LOG, part).folder)]
    peers = [peer for peer in request.config.getoption("--peer") if peer.startswith("official=")]
    options = ["--peer", peers[-1]] if peers else []
    sides = [side for side in SIDES if side != "official" or peers]
    *other_sides, last_side = sides
    figures = {side: measure_in_new_process(side, stores, options) for side in other_sides}
    # The last side is measured within `run_once`, because pytest-benchmark needs a call in every test.
    compare.run_once(lambda: figures.update({last_side: measure_in_new_process(last_side, stores, options)}))
    goal = 0.1  # at most a tenth of the peak memory of official
    compare.note(memory={"row": f"memory of an evaluation, {LOG}, L{WIDTH}", "goal": goal, "sides": figures})
    assert all(side_figures["peak_bytes"] > 0 for side_figures in figures.values())


def make_sessions(lengths: list[int]) -> SessionStore:
    """Return a store of sessions of these lengths, of random items among 3,000."""
    items = torch.randint(3000, (sum(lengths),), generator=torch.Generator().manual_seed(0)).numpy()
    return SessionStore.from_arrays(items, np.cumsum([0, *lengths]), n_items=3000)


def make_graph(degrees: list[int]) -> InteractionGraph:
    """Return a graph of users with these numbers of items among 300,100. No user has one of the last 100 items."""
    users = np.repeat(np.arange(len(degrees)), degrees)
    items = np.concatenate([np.linspace(0, 300_000, n, endpoint=False, dtype=np.int64) for n in degrees])
    return InteractionGraph.from_arrays(users, items, n_items=300_100)


def spread_evenly(lengths: list[int]) -> list[int]:
    """Return as many equal lengths with nearly the same sum."""
    return [sum(lengths) // len(lengths)] * len(lengths)


def work_on_sessions(task: str, lengths: list[int]) -> Callable[[], Any]:
    """Return a function that evaluates these sessions, or recommends items that they do not have."""
    network, store = SessionNetwork(3000, [WIDTH]), make_sessions(lengths)
    if task == "evaluate":
        return partial(evaluate_sessions, network, store)
    return partial(recommend, network, store.vocabulary, store, exclude_seen=True)


def work_on_users(task: str, degrees: list[int]) -> Callable[[], Any]:
    """Return a function that ranks the items that each user does not have, in an evaluation or to recommend them."""
    train = make_graph(degrees)
    if task == "recommend":
        model = LightGCN(embedding_dim=64, n_layers=1, n_epochs=1, batch_size=10_000).fit(train)
        return partial(model.recommend, train.users.ids)
    embeddings = torch.randn(train.n_nodes, 64, generator=torch.Generator().manual_seed(0))
    unseen = np.full(train.n_users, 300_050)
    test = InteractionGraph.from_arrays(np.arange(train.n_users), unseen, user_ids=train.users, item_ids=train.items)
    return partial(evaluate_graph, embeddings, train, test)


@pytest.mark.parametrize("task", ["evaluate", "recommend"])
@pytest.mark.parametrize(
    "make_work, lengths, unit",
    [(work_on_sessions, [20_000] + 511 * [5], "event"), (work_on_users, [300_000] + 3000 * [20], "user")],
    ids=["session of 20,000 events", "user with 300,000 items"],
)
def test_one_long_row(
    compare: Any, request: pytest.FixtureRequest, make_work: Any, lengths: list[int], unit: str, task: str
) -> None:
    works = {"spread evenly": make_work(task, spread_evenly(lengths)), "one long row": make_work(task, lengths)}
    figures = {}
    for name, work in works.items():
        work()  # the first call allocates memory that later calls use again
        peak = profiling.PeakMemory()
        work()
        # The memory of the whole process, because a call may need no more than an earlier one has freed.
        figures[name] = {"peak_bytes": peak.baseline + peak.bytes, "loaded_bytes": peak.baseline}
    units = sum(lengths) if unit == "event" else len(lengths)
    compare(
        {name: timed(work, units) for name, work in works.items()},
        row=request.node.callspec.id,
        unit=unit,
        goals={"one long row": {"spread evenly": 1 / 1.5}},  # goal: at most 1.5 times the time
    )
    compare.note(memory={"row": f"memory, {request.node.callspec.id}", "goal": 1.5, "sides": figures})


def main() -> None:
    """Measure one side in this process and print the figures as JSON.

    loaded_bytes: memory of the loaded model and log. peak_bytes: peak memory of the evaluation, including loaded_bytes.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("train", type=Path, help="the training log's store")
    parser.add_argument("test", type=Path, help="the test log's store")
    parser.add_argument("--peer", type=checkout_path, help="official=PATH")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    official = None
    if arguments.side == "official":
        from peers.official import OfficialGRU4Rec

        official = OfficialGRU4Rec(arguments.peer)
    ops.dropout_mask(1, 1, 1, 0.5, seed=0, stream=0, step=0)  # loads the native library, so that it counts as an import
    profiling.set_baseline()
    train, test = SessionStore.open(arguments.train), SessionStore.open(arguments.test)
    evaluate = build_evaluation(arguments.side, train, test, official, lambda: to_data_frame(test))
    gc.collect()
    after_imports = profiling.process_baseline()
    assert after_imports is not None
    after_loading = profiling.PeakMemory()  # .baseline: memory in use now; .bytes: peak above .baseline
    loaded_bytes = after_loading.baseline - after_imports.baseline
    started = time.perf_counter()
    recall, mrr = evaluate()
    figures = {
        "seconds": time.perf_counter() - started,
        "recall": recall,
        "mrr": mrr,
        "loaded_bytes": loaded_bytes,
        "peak_bytes": loaded_bytes + after_loading.bytes,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
