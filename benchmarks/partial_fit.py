"""Compare a model that continues on new days of rsc15_100k by `partial_fit` with one that is trained on all days.

    python benchmarks/partial_fit.py --seeds 0 1 2 --json build/benchmarks/partial_fit.json

Sides:
    all days       fit on the whole training log
    first half     fit on the sessions that begin in the first half of the days
    partial_fit    the model of "first half", loaded from its file, continues on the other sessions
    no maxima      the same without the saved row maxima of Adagrad's accumulator, as for a model trained elsewhere
    1 epoch        partial_fit with n_epochs=1; the sides above make two epochs
    3 epochs       partial_fit with n_epochs=3
    shrink         partial_fit with n_epochs=3 and shrink=0.8
    replay         the same on the other sessions and a random quarter of those of the first half

All models are evaluated on the test log. The recall of new items counts only targets that do not occur in the first
half of the days. The parameters are those of the README's accuracy table. The script needs ../shared/data/rsc15_100k.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import polars as pl
import torch
from machine import describe_machine

from gru4rec_fast import GRU4Rec
from gru4rec_fast.data import SessionParallelLoader, SessionStore

LOG = Path(__file__).parents[2] / "shared" / "data" / "rsc15_100k"
PARAMETERS: dict[str, Any] = {
    "layers": [100], "batch_size": 32, "learning_rate": 0.1, "dropout_p_embed": 0.1, "logq": 1.0, "n_sample": 2048,
    "sample_alpha": 0.75, "n_epochs": 2,
}  # fmt: skip
DAY, CUTOFF = 86400, 20


def split_by_days(log: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the sessions that begin in the first half of the days, and the others."""
    day = (pl.col("Time").min().over("SessionId") - log["Time"].min()) // DAY
    n_days = log.select(day.max()).item() + 1
    is_first = log.select(day < n_days / 2).to_series()
    return log.filter(is_first), log.filter(~is_first)


def draw_sessions(log: pl.DataFrame, share: float, seed: int) -> pl.DataFrame:
    """Return the events of a random share of the sessions."""
    sessions = log["SessionId"].unique().sort()
    return log.filter(pl.col("SessionId").is_in(sessions.sample(fraction=share, seed=seed).implode()))


def recall_of(model: GRU4Rec, test: SessionStore, items: np.ndarray) -> float:
    """Return the recall of the targets that are among `items` (ids); equal scores count against the target."""
    is_wanted = torch.from_numpy(np.isin(model.vocabulary.ids, items))
    network, loader, hits = model.network, SessionParallelLoader(test, 100), []
    state = network.initial_state(loader.n_lanes)
    with torch.no_grad():
        for block in loader:
            hidden, state = network(block.inputs, state, block.reset)
            targets = block.targets[0]
            lanes = torch.nonzero((targets >= 0) & is_wanted[targets])[:, 0]
            scores = hidden[0, lanes] @ network.output_weight.T + network.output_bias
            own = scores.gather(1, targets[lanes].unsqueeze(1))
            hits += ((scores >= own).sum(1) <= CUTOFF).tolist()
    return mean(hits)


def measure(seed: int, train: pl.DataFrame, test: pl.DataFrame, folder: Path) -> dict[str, dict[str, float]]:
    """Return the metrics and seconds of each side for one seed."""
    first, second = split_by_days(train)
    new_items = np.setdiff1d(second["ItemId"].unique().to_numpy(), first["ItemId"].unique().to_numpy())
    results = {}

    def run(name: str, fit: Callable[[], GRU4Rec]) -> GRU4Rec:
        started = time.perf_counter()
        model = fit()
        seconds = time.perf_counter() - started
        report = model.evaluate(test, cutoffs=CUTOFF)
        store = SessionStore.from_events(test, vocabulary=model.vocabulary)
        results[name] = {
            "recall": report.metrics[f"recall@{CUTOFF}"],
            "mrr": report.metrics[f"mrr@{CUTOFF}"],
            "seconds": seconds,
        }
        if name != "first half":
            results[name]["recall_new"] = recall_of(model, store, new_items)
        return model

    parameters = PARAMETERS | {"seed": seed}
    run("all days", lambda: GRU4Rec(**parameters).fit(train, progress=False))
    half = run("first half", lambda: GRU4Rec(**parameters).fit(first, progress=False))
    path = half.save(folder / "half.safetensors")
    run("partial_fit", lambda: GRU4Rec.load(path).partial_fit(second, progress=False))
    saved = GRU4Rec.load(path)
    options = _training_parameters(parameters)
    no_maxima = GRU4Rec.from_network(saved.network, saved.vocabulary, support=saved.support, **options)
    run("no maxima", lambda: no_maxima.partial_fit(second, progress=False))
    run("1 epoch", lambda: GRU4Rec.load(path).partial_fit(second, n_epochs=1, progress=False))
    run("3 epochs", lambda: GRU4Rec.load(path).partial_fit(second, n_epochs=3, progress=False))
    run("shrink", lambda: GRU4Rec.load(path).partial_fit(second, n_epochs=3, shrink=0.8, progress=False))
    replayed = pl.concat([draw_sessions(first, 0.25, seed), second])
    run("replay", lambda: GRU4Rec.load(path).partial_fit(replayed, n_epochs=3, shrink=0.8, progress=False))
    return results


def _training_parameters(parameters: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters that are not read from a network."""
    return {name: value for name, value in parameters.items() if name not in ("layers", "dropout_p_embed")}


def main() -> None:
    """Measure each seed, print mean and standard deviation of each side, and write the results to a file, if any."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1, help="number of threads")
    parser.add_argument("--json", type=Path, help="a file for the results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    train, test = (pl.read_csv(LOG / f"{name}.tsv.gz", separator="\t") for name in ("train", "test"))
    with tempfile.TemporaryDirectory() as folder:
        by_seed = {seed: measure(seed, train, test, Path(folder)) for seed in arguments.seeds}
    for side in by_seed[arguments.seeds[0]]:
        values = [results[side] for results in by_seed.values()]
        columns = []
        for name in values[0]:
            numbers = [value[name] for value in values]
            spread = f" ({stdev(numbers):.4f})" if len(numbers) > 1 else ""
            columns.append(f"{name} {mean(numbers):.4f}{spread}")
        print(f"{side:14} {', '.join(columns)}")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({"machine": describe_machine(), "seeds": by_seed}, indent=2) + "\n")


if __name__ == "__main__":
    main()
