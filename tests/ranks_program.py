"""The program that tests/test_distributed.py runs in several processes. Rank 0 prints a JSON object of results.

    torchrun --nproc-per-node 2 tests/ranks_program.py         # on the CPU, with gloo
    torchrun --nproc-per-node 2 tests/ranks_program.py cuda    # on two GPUs, with NCCL

Each result compares a training by all ranks with the same training by one process, or is an error message.
"""

from __future__ import annotations

import json
import sys
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from markov import markov_store

from gru4rec_fast import NGCF, GRU4Rec, InteractionGraph, LightGCN, SessionParallelLoader
from gru4rec_fast.distributed import Ranks
from gru4rec_fast.evaluation import evaluate_graph, evaluate_sessions
from gru4rec_fast.models import GRU4RecParameters, build_session_network, build_session_runner
from gru4rec_fast.models.builders import build_graph_runner
from gru4rec_fast.training import Callback, SessionEpochRunner, Trainer

STORE, HELD_OUT = markov_store(n_sessions=90), markov_store(n_sessions=50, seed=1)
DEVICE = sys.argv[1] if len(sys.argv) > 1 else "cpu"
BASE = {"layers": (12,), "batch_size": 9, "n_sample": 16, "seed": 1, "device": DEVICE}
# Parameters that change what the ranks exchange, or which lanes, columns and masks a rank needs.
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "cross-entropy": {},
    "momentum": {"momentum": 0.3},
    "separate embedding": {"constrained_embedding": False, "embedding": 8},
    "one-hot inputs": {"constrained_embedding": False},
    "BPR-max, dropout": {"loss": "bpr-max", "dropout_p_embed": 0.2, "dropout_p_hidden": 0.3},
    "logQ, blocks of 4": {"logq": 1.0, "bptt": 4},
    "two layers, accumulation": {"layers": (12, 8), "accumulate": 3, "bptt": 2},
    "accidental hits, shuffle": {"mask_accidental_hits": True, "label_smoothing": 0.1, "shuffle": True},
    "in-batch negatives": {"n_sample": 0},
    "float64": {"dtype": "float64"},
    "bf16": {"precision": "bf16"},
    "independent lanes": {"lanes": "independent", "logq": 1.0},
    "independent lanes, BPR-max": {"lanes": "independent", "loss": "bpr-max", "bptt": 3, "dropout_p_hidden": 0.3},
}
GRAPH = InteractionGraph.from_store(STORE)
GRAPH_BASE = {"n_epochs": 2, "embedding_dim": 8, "batch_size": 8, "learning_rate": 0.01, "seed": 1, "device": DEVICE}
GRAPH_CONFIGURATIONS: dict[str, tuple[type[NGCF] | type[LightGCN], dict[str, Any]]] = {
    "NGCF": (NGCF, {"layer_sizes": (12, 5)}),
    "NGCF, all nodes": (NGCF, {"layer_sizes": (12, 5), "only_needed": False}),
    "NGCF, dropout": (NGCF, {"node_dropout": 0.2, "message_dropout": 0.1, "normalize_messages": True}),
    "LightGCN": (LightGCN, {}),
    "LightGCN, all nodes": (LightGCN, {"only_needed": False, "n_layers": 2}),
    "LightGCN, dropout": (LightGCN, {"node_dropout": 0.2}),
    "LightGCN, float64": (LightGCN, {"dtype": "float64"}),
    "LightGCN, reference": (LightGCN, {"impl": "reference"}),
}
FUSED_ONLY = {"momentum", "in-batch negatives", "bf16"}  # nothing that autograd exchanges depends on the first two


def make_runner(impl: str, **changed: Any) -> SessionEpochRunner:
    """Return a runner of a small model. impl: "fused", "autograd", "dense" (dense gradients) or "reference"."""
    fused, operators = impl == "fused", "reference" if impl == "reference" else "auto"
    p = GRU4RecParameters.create(BASE | {"fused": fused, "impl": operators} | changed)
    return build_session_runner(p, build_session_network(p, STORE.n_items, sparse=impl != "dense"), STORE)


def train(runner: SessionEpochRunner) -> tuple[list[float], torch.Tensor]:
    """Train two epochs; return the losses of all updates, and the weights as one vector."""
    losses = []
    for _ in range(2):
        finished = False
        while not finished:
            outcome = runner.run_updates(1)
            finished = outcome.finished
            losses += [] if outcome.loss is None else [outcome.loss]
        runner.start_next_epoch()
    return losses, torch.cat([weight.detach().cpu().double().flatten() for weight in runner.network.parameters()])


def train_parts(parts: list[tuple[int, int]], **changed: Any) -> tuple[list[float], torch.Tensor]:
    """Return what `train` returns, of a loop that adds up the losses of parts (first, end) of the lanes.

    The in-batch negatives of a lane are the targets of its own part.
    """
    runner, losses = make_runner("autograd", **changed), []
    network, loader, step = runner.network, runner.loader, 0
    for epoch in range(2):
        loader.set_epoch(epoch)
        states = [network.initial_state(end - first) for first, end in parts]
        for block in loader:
            negatives, total = runner._draw_negatives(step, len(block.n_live)), torch.zeros((), device=DEVICE)
            for i, (first, end) in enumerate(parts):
                inputs, targets, reset = (t[:, first:end] for t in (block.inputs, block.targets, block.reset))
                hidden, states[i] = network(inputs, states[i], reset, step=step, lanes=(first, loader.n_lanes))
                total = total + runner.criterion(hidden, network.output_weight, network.output_bias, targets, negatives)
            total.backward()
            runner.optimizer.step()
            runner.optimizer.zero_grad()
            states = [[state.detach() for state in part] for part in states]
            step += len(block.n_live)
            losses.append(total.item())
    return losses, torch.cat([weight.detach().cpu().double().flatten() for weight in network.parameters()])


def compare(ranks: Ranks, impl: str, **changed: Any) -> dict[str, Any]:
    """Train by all ranks and by this process alone; return the largest differences."""
    runner = make_runner(impl, **changed)
    runner.join(ranks)
    losses, weights = train(runner)
    if runner.independent_lanes:
        expected_losses, expected_weights = train_parts(ranks.gather(runner.lanes), **changed)
    else:
        expected_losses, expected_weights = train(make_runner(impl, **changed))
    pairs = zip(losses, expected_losses, strict=True)
    return {
        "updates": len(losses),
        "loss": max(abs(loss - expected) for loss, expected in pairs),
        "weights": float((weights - expected_weights).abs().max()),
        "identical": all(torch.equal(weights, other) for other in ranks.gather(weights)),
    }


def exchanged_bytes(ranks: Ranks, impl: str) -> list[int]:
    """Return the bytes that one update exchanges, measured and by the formula of docs/distributed.md."""
    runner = make_runner(impl)
    block = next(iter(SessionParallelLoader(STORE, BASE["batch_size"])))
    negatives = runner._draw_negatives(step=0, steps=1)
    assert negatives is not None
    columns = {*block.targets.flatten().tolist(), *negatives.flatten().tolist()}
    rows, width = columns | {*block.inputs.flatten().tolist()}, BASE["layers"][0]
    n_gru = sum(weight.numel() for weight in runner.network.gru.parameters())
    before = ranks.n_bytes
    runner.join(ranks)
    runner.run_updates(1)
    return [ranks.n_bytes - before, 4 * (1 + n_gru + len(rows) * width + len(columns))]


def compare_graphs(ranks: Ranks, name: str) -> dict[str, Any]:
    """Train a graph model by all ranks and by this process alone; return the largest differences."""
    kind, changed = GRAPH_CONFIGURATIONS[name]
    together, alone = (
        kind(**GRAPH_BASE | changed).fit(GRAPH, progress=False, ranks=others) for others in (ranks, None)
    )
    weights, expected = (
        torch.cat([weight.detach().cpu().flatten() for weight in model.network.parameters()])
        for model in (together, alone)
    )
    pairs = zip(together.history, alone.history, strict=True)
    return {
        "updates": sum(record["mini_batches"] for record in together.history),
        "loss": max(abs(record["loss"] - other["loss"]) for record, other in pairs),
        "weights": float((weights - expected).abs().max()),
        "identical": all(torch.equal(weights, other) for other in ranks.gather(weights)),
    }


def exchanged_graph_bytes(ranks: Ranks) -> list[int]:
    """Return the bytes that one update of NGCF exchanges, measured and by the formula of docs/distributed.md."""
    model = NGCF(**GRAPH_BASE | {"layer_sizes": (12, 5), "only_needed": False})
    network = model.build_network(GRAPH)
    runner = build_graph_runner(model, network, GRAPH)
    runner.join(ranks)
    before = ranks.n_bytes
    runner._backpropagate(runner.sampler.draw(0), 1)
    n, widths = GRAPH.n_nodes, (8, 12, 5)
    n_layers = sum(weight.numel() for weight in network.layers.parameters())
    return [ranks.n_bytes - before, 4 * (n_layers + n * (sum(widths[:-1]) + sum(widths[1:])))]


class StopOnOneRank(Callback):
    """Stops the training on one rank: at the start, after 20 updates or after the first checkpoint."""

    def __init__(self, method: str, is_own: bool) -> None:
        self.method = method if is_own else ""

    def on_fit_start(self, trainer: Trainer) -> None:
        if self.method == "on_fit_start":
            trainer.stop()

    def on_step_end(self, trainer: Trainer, record: Any) -> None:
        if self.method == "on_step_end" and record.step >= 20:
            trainer.stop()

    def on_checkpoint(self, trainer: Trainer, path: Path) -> None:
        if self.method == "on_checkpoint":
            trainer.stop()


class AddHookOnFirstRank(Callback):
    """Gives rank 0 a reason to train by autograd, after the runners have joined."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks

    def on_fit_start(self, trainer: Trainer) -> None:
        if self.ranks.is_first:
            trainer.network.gru.register_forward_hook(lambda *_: None)


OTHER_RUNNERS: dict[str, dict[str, Any]] = {
    "learning rate": {"learning_rate": 0.1},
    "layers": {"layers": [8]},
    "loss": {"logq": 0.5},
}


def message_of(error_type: type[Exception], function: Any, *arguments: Any, **keywords: Any) -> str:
    """Return the message of the error that a call raises."""
    try:
        function(*arguments, **keywords)
    except error_type as error:
        return str(error)
    return "no error"


def estimators(ranks: Ranks) -> dict[str, Any]:
    """Compare `fit`, `evaluate` and `partial_fit` of the estimators with those of one process."""
    results: dict[str, Any] = {}

    def model(**changed: Any) -> GRU4Rec:
        return GRU4Rec(**BASE | {"n_epochs": 2} | changed)

    together = model().fit(STORE, validation=HELD_OUT, progress=False, ranks=ranks)
    alone = model().fit(STORE, validation=HELD_OUT, progress=False)
    metrics = [[record["validation"] for record in m.history] for m in (together, alone)]
    results["validation"] = metrics
    results["evaluate"] = [
        together.evaluate(HELD_OUT, cutoffs=(5, 20), batch_size=7, ranks=ranks).to_json(),
        together.evaluate(HELD_OUT, cutoffs=(5, 20), batch_size=7).to_json(),
    ]
    few = markov_store(n_sessions=1, seed=2)  # fewer batches than ranks
    options = {"cutoffs": (5, 20), "batch_size": 7, "beyond_accuracy": True, "per_session": True}
    for targets, by, negatives in (
        ("next", "popularity", None),
        ("last", "length", 5),
        ("remaining", "position", None),
    ):
        options |= {"targets": targets, "by": by, "negatives": negatives}
        a, b = (together.evaluate(HELD_OUT, ranks=others, **options) for others in (ranks, None))
        results[f"evaluate {targets}"] = [a.to_json(), b.to_json()]
        results[f"values of {targets}"] = [report.per_session.sort("session").write_csv() for report in (a, b)]
    results["evaluate one session"] = [
        evaluate_sessions(together.network, few, ranks=ranks).to_json(),
        evaluate_sessions(together.network, few).to_json(),
    ]
    for m, others in ((together, ranks), (alone, None)):
        m.partial_fit(HELD_OUT, n_epochs=1, progress=False, ranks=others)
    difference = [a - b for a, b in zip(together.network.parameters(), alone.network.parameters(), strict=True)]
    results["partial_fit"] = max(float(d.detach().abs().max()) for d in difference)

    graph, test = GRAPH, InteractionGraph.from_store(HELD_OUT)
    test = InteractionGraph.from_arrays(*test.interactions(), user_ids=graph.users, item_ids=graph.items)
    embeddings = torch.randn(graph.n_nodes, 8, generator=torch.Generator().manual_seed(0))
    results["evaluate_graph"] = [
        evaluate_graph(embeddings, graph, test, batch_size=4, ranks=ranks).to_json(),
        evaluate_graph(embeddings, graph, test, batch_size=4).to_json(),
    ]
    options = {"batch_size": 4, "ties": "median", "beyond_accuracy": True, "per_user": True}
    for by, negatives in (("popularity", None), ("length", 5)):
        options |= {"by": by, "negatives": negatives}
        a, b = (evaluate_graph(embeddings, graph, test, ranks=others, **options) for others in (ranks, None))
        results[f"evaluate_graph by {by}"] = [a.to_json(), b.to_json()]
        results[f"values of users by {by}"] = [report.per_session.write_csv() for report in (a, b)]

    torch.manual_seed(ranks.rank)
    drawn = model(seed=None, dropout_p_hidden=0.2).fit(STORE, progress=False, ranks=ranks)
    results["seed=None"] = len({weight.detach().sum().item() for weight in ranks.gather(drawn.network.output.weight)})
    results["stop"] = {}
    for method in ("on_fit_start", "on_step_end", "on_checkpoint"):
        # Only rank 0 writes checkpoints, and so calls on_checkpoint.
        stop = StopOnOneRank(method, ranks.rank == (0 if method == "on_checkpoint" else ranks.size - 1))
        with TemporaryDirectory() as folder:
            out = ranks.gather(folder)[0]
            stopped = model().fit(STORE, out=out, checkpoint_every=20, progress=False, ranks=ranks, callbacks=[stop])
        weights = {*ranks.gather(stopped.network.output.weight.sum().item())}
        results["stop"][method] = [len(weights), len(stopped.history)]

    data = STORE if ranks.is_first else HELD_OUT
    results["other data"] = message_of(ValueError, model().fit, data, progress=False, ranks=ranks)
    other = model(learning_rate=0.1 if ranks.is_first else 0.2)
    results["other parameters"] = message_of(ValueError, other.fit, STORE, progress=False, ranks=ranks)
    held_out = HELD_OUT if ranks.is_first else None
    results["validation on one rank"] = message_of(
        ValueError, model().fit, STORE, validation=held_out, progress=False, ranks=ranks
    )
    out = f"folder-{ranks.rank}"
    results["other folder"] = message_of(ValueError, model().fit, STORE, out=out, progress=False, ranks=ranks)
    items = [5, 6 + ranks.is_first]
    log = {"SessionId": [*range(8)] * 2, "ItemId": items * 8, "Time": range(16)}
    results["other ids"] = message_of(ValueError, model().fit, log, progress=False, ranks=ranks)
    hook = AddHookOnFirstRank(ranks)
    results["other step"] = message_of(ValueError, model().fit, STORE, progress=False, ranks=ranks, callbacks=[hook])
    alone = model(seed=ranks.rank).fit(STORE, progress=False)
    results["other weights"] = message_of(ValueError, alone.evaluate, HELD_OUT, ranks=ranks)
    cutoffs = (5, 20) if ranks.is_first else 20
    results["other cutoffs"] = message_of(ValueError, together.evaluate, HELD_OUT, cutoffs=cutoffs, ranks=ranks)
    results["other cutoffs of a graph"] = message_of(
        ValueError, evaluate_graph, embeddings, graph, test, cutoffs=cutoffs, ranks=ranks
    )
    for name, changed in OTHER_RUNNERS.items():
        own = GRU4RecParameters(**BASE | (changed if ranks.is_first else {}))
        session_runner = build_session_runner(own, build_session_network(own, STORE.n_items), STORE)
        results[f"runner with other {name}"] = message_of(ValueError, session_runner.join, ranks)
    same = GRU4RecParameters(**BASE)
    session_runner = build_session_runner(same, build_session_network(same, STORE.n_items), STORE)
    if ranks.is_first:
        session_runner.optimizer.accumulator_and_velocity(session_runner.network.output_weight, 0)
    results["runner with other accumulators"] = message_of(ValueError, session_runner.join, ranks)
    with TemporaryDirectory() as folder, chdir(folder):  # a folder that each rank has of its own
        model(n_epochs=1 if ranks.is_first else 2).fit(STORE, out="run", progress=False)
        resumed = model(n_epochs=3)
        results["other checkpoint"] = message_of(
            ValueError, resumed.fit, STORE, out="run", resume=True, progress=False, ranks=ranks
        )
    no_negatives = model(lanes="independent", n_sample=0)
    results["no negatives"] = message_of(ValueError, no_negatives.fit, STORE, progress=False, ranks=ranks)
    results["few lanes"] = message_of(ValueError, model(batch_size=1).fit, STORE, progress=False, ranks=ranks)
    torch.manual_seed(ranks.rank)
    drawn_graph = NGCF(**GRAPH_BASE | {"seed": None}).fit(graph, validation=test, progress=False, ranks=ranks)
    drawn_graph.partial_fit(test, n_epochs=1, progress=False, ranks=ranks)
    results["graph, seed=None"] = len({table.sum().item() for table in ranks.gather(drawn_graph.network.embedding)})
    with TemporaryDirectory() as folder:  # its arrays are opened read-only
        graph.save(f"{folder}/graph")
        opened = InteractionGraph.open(f"{folder}/graph")
        stored = LightGCN(**GRAPH_BASE).fit(opened, progress=False, ranks=ranks)
    in_memory = LightGCN(**GRAPH_BASE).fit(graph, progress=False, ranks=ranks)
    results["graph of a folder"] = torch.equal(stored.network.embedding, in_memory.network.embedding)
    users, items = graph.interactions()
    ids = {"user_ids": graph.users, "item_ids": graph.items}
    mirrored = InteractionGraph.from_arrays(users, graph.n_items - 1 - items if ranks.is_first else items, **ids)
    before = mirrored.neighbors.copy()
    results["other edges"] = message_of(ValueError, LightGCN(**GRAPH_BASE).fit, mirrored, progress=False, ranks=ranks)
    results["edges are unchanged"] = bool((mirrored.neighbors == before).all())
    other_graph = LightGCN(**GRAPH_BASE | {"reg_weight": 0.1 if ranks.is_first else 0.2})
    runner = build_graph_runner(other_graph, other_graph.build_network(graph), graph)
    results["other graph runner"] = message_of(ValueError, runner.join, ranks)
    return results


def main() -> None:
    torch.set_num_threads(1)
    with Ranks(DEVICE) as ranks:
        ranks.gather(0)
    with Ranks(DEVICE) as ranks:  # a process may have several groups, one after another
        results: dict[str, Any] = {"estimators": estimators(ranks)}
        for impl in ("fused", "autograd") if DEVICE == "cpu" else ("autograd",):
            results[impl] = {
                name: compare(ranks, impl, **changed)
                for name, changed in CONFIGURATIONS.items()
                if impl == "fused" or name not in FUSED_ONLY
            }
            results[f"bytes, {impl}"] = exchanged_bytes(ranks, impl)
        results["graphs"] = {name: compare_graphs(ranks, name) for name in GRAPH_CONFIGURATIONS}
        results["bytes, graphs"] = exchanged_graph_bytes(ranks)
        results["dense"] = {"cross-entropy": compare(ranks, "dense")}
        results["reference"] = {"cross-entropy": compare(ranks, "reference")}
        if ranks.is_first:
            print(json.dumps(results))


if __name__ == "__main__":
    main()
