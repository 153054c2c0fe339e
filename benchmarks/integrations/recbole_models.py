"""Compare the models of `gru4rec_fast.integrations.recbole` with RecBole's: test metrics of several seeds, and time.

    python benchmarks/integrations/recbole_models.py                     # all models, three seeds, on one thread
    python benchmarks/integrations/recbole_models.py LightGCN --epochs 50 --set n_layers=3 --set learning_rate=0.002

It needs the environment of docs/integrations/recbole.md. The data is ml-100k, which RecBole contains. Both models of a
pair get the same configuration. For each seed, one is trained after the other, so that both meet the same load of the
machine. RecBole trains them: early stopping on the validation data, then the test metrics of the best epoch.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from typing import Any

import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_seed
from seeds import mean_and_deviation

import gru4rec_fast.integrations.recbole  # noqa: F401  # RecBole finds its models by name

# Name of RecBole's model, name of ours, and settings besides the defaults.
PAIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "LightGCN": ("FastLightGCN", {}),
    "NGCF": ("FastNGCF", {}),
    "GRU4Rec": ("SessionGRU4Rec", {"train_neg_sample_args": None}),  # which RecBole demands for cross-entropy
}


def train(model: str, seed: int, settings: dict[str, Any], folder: str) -> dict[str, float]:
    """Train a model on ml-100k; return seconds per epoch (median), the number of epochs, and the test metrics."""
    fixed = {"seed": seed, "show_progress": False, "state": "ERROR", "checkpoint_dir": folder, "use_gpu": False}
    config = Config(model=model, dataset="ml-100k", config_dict={**settings, **fixed})
    init_seed(seed, reproducibility=True)
    train_data, validation_data, test_data = data_preparation(config, create_dataset(config))
    init_seed(seed, reproducibility=True)
    network = get_model(model)(config, train_data.dataset)
    trainer = get_trainer(config["MODEL_TYPE"], model)(config, network)
    seconds, train_epoch = [], trainer._train_epoch

    def timed(*arguments: Any, **keywords: Any) -> Any:
        start = time.perf_counter()
        loss = train_epoch(*arguments, **keywords)
        seconds.append(time.perf_counter() - start)
        return loss

    trainer._train_epoch = timed
    trainer.fit(train_data, validation_data, show_progress=False)
    metrics = trainer.evaluate(test_data, load_best_model=True, show_progress=False)
    return {"seconds per epoch": statistics.median(seconds), "epochs": len(seconds), **metrics}


def main() -> None:
    """Print a table for each pair of models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(PAIRS), metavar="MODEL", help=f"any of {', '.join(PAIRS)}")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=300, help="at most; RecBole stops early (default: 300)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a key of RecBole's configuration"
    )
    options = parser.parse_args()
    if unknown := set(options.models) - set(PAIRS):
        parser.error(f"{unknown.pop()} is none of {', '.join(PAIRS)}")
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    logging.disable()
    changed: dict[str, Any] = {"epochs": options.epochs, **dict(pair.split("=", 1) for pair in options.set)}
    with tempfile.TemporaryDirectory() as folder:
        for theirs, (ours, settings) in PAIRS.items():
            if theirs not in options.models:
                continue
            runs: dict[str, list[dict[str, float]]] = {theirs: [], ours: []}
            for seed in range(options.seeds):
                for model, results in runs.items():
                    results.append(train(model, seed, {**settings, **changed}, folder))
                    print(model, f"seed={seed}", *(f"{k}={v:.4g}" for k, v in results[-1].items()), flush=True)
            print_table(theirs, ours, runs)


def print_table(theirs: str, ours: str, runs: dict[str, list[dict[str, float]]]) -> None:
    """Print mean and standard deviation over the seeds for both models, and the ratio of the seconds."""
    print(f"\n| | {theirs} | {ours} |\n|---|---|---|")
    for name in runs[theirs][0]:
        columns = [[run[name] for run in runs[model]] for model in (theirs, ours)]
        cells = [mean_and_deviation(c) for c in columns]
        print(f"| {name} | {cells[0]} | {cells[1]} |")
    means = [statistics.mean(run["seconds per epoch"] for run in runs[model]) for model in (theirs, ours)]
    print(f"| speed of training | 1 | {means[0] / means[1]:.2f} |\n", flush=True)


if __name__ == "__main__":
    main()
