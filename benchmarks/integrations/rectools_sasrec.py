"""Compare RecTools' SASRec with its own losses and with `gru4rec_fast.integrations.rectools`: time, memory and metrics.

    python benchmarks/integrations/rectools_sasrec.py                # a part of rsc15_100k, three seeds, one thread
    python benchmarks/integrations/rectools_sasrec.py softmax "ours 8x sparse" --log diginetica --seeds 1 --epochs 2

It needs the environment of docs/integrations/rectools.md, and the logs in ../shared/data. Sides (the losses compared):

    softmax                       RecTools' softmax over the whole catalogue
    sampled_softmax, BCE, gBCE    RecTools' losses, with NEGATIVES uniform negatives for each position
    ours                          SampledLossModule, with NEGATIVES negatives for each mini-batch
    ours 8x                       the same with 8 * NEGATIVES negatives
    ours 8x sparse                the same with sparse gradients of the item embeddings

Network, data and optimizer are the same on all sides. Each training runs in a process of its own, and the sides take
turns, so that all of them meet the same load of the machine. Metrics: for each event of a test session but the first,
RecTools recommends 20 items from the events before it. Memory is the peak of the resident size during the training,
above the size before it.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from seeds import mean_and_deviation

SHARED = Path(__file__).parents[3] / "shared" / "data"
CUTOFF = 20
OURS = ("ours", "ours 8x", "ours 8x sparse")
SIDES = ("softmax", "sampled_softmax", "BCE", "gBCE", *OURS)
DEFAULT_SIDES = tuple(side for side in SIDES if side != "BCE")


def train(side: str, seed: int, options: argparse.Namespace) -> dict[str, float]:
    """Train one side with one seed; return seconds per epoch (median), MiB and the metrics."""
    import pytorch_lightning as pl
    import torch
    from rectools.dataset import Dataset
    from rectools.models import SASRecModel

    from gru4rec_fast.integrations.rectools import SampledLossModule
    from gru4rec_fast.profiling import PeakMemory

    class Clock(pl.Callback):
        def __init__(self) -> None:
            self.seconds: list[float] = []

        def on_train_epoch_start(self, *_: Any) -> None:
            self.started = time.perf_counter()

        def on_train_epoch_end(self, *_: Any) -> None:
            self.seconds.append(time.perf_counter() - self.started)

    def make_trainer() -> pl.Trainer:
        return pl.Trainer(
            max_epochs=options.epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, callbacks=[Clock()],
        )  # fmt: skip

    warnings.filterwarnings("ignore")
    logging.disable()
    torch.set_num_threads(options.threads)
    events = read(options.log, "train", options.sessions)
    changed: dict[str, Any] = {"loss": side, "n_negatives": options.negatives}
    if side in OURS:
        changed = {
            "lightning_module_type": SampledLossModule,
            "n_negatives": options.negatives * (8 if "8x" in side else 1),
            "lightning_module_kwargs": {
                "logq": options.logq,
                "sample_alpha": options.sample_alpha,
                "mask_accidental_hits": True,
                "sparse": "sparse" in side,
            },
        }
    pl.seed_everything(seed)
    model = SASRecModel(
        n_blocks=options.blocks, n_heads=2, n_factors=options.factors, session_max_len=options.length,
        batch_size=options.batch_size, lr=options.lr, get_trainer_func=make_trainer,
        recommend_torch_device="cpu", **changed,
    )  # fmt: skip
    dataset = Dataset.construct(events)
    memory = PeakMemory()
    model.fit(dataset)
    clock = next(callback for callback in model.fit_trainer.callbacks if type(callback).__name__ == "Clock")
    result = {"seconds per epoch": statistics.median(clock.seconds), "MiB": memory.bytes / 2**20}
    return result | evaluate(model, read(options.log, "test", None))


def read(log: str, part: str, n_sessions: int | None) -> Any:
    """Return the last `n_sessions` sessions of a log (None: all) as a data frame of RecTools' interactions."""
    import pandas as pd

    frame = pd.read_csv(SHARED / log / f"{part}.tsv.gz", sep="\t")
    frame.columns = ["user_id", "item_id", "datetime"]
    if n_sessions is not None:
        starts = frame.groupby("user_id")["datetime"].min().sort_values(kind="stable")
        frame = frame[frame["user_id"].isin(starts.index[-n_sessions:])]
    return frame.assign(datetime=pd.to_datetime(frame["datetime"], unit="s"), weight=1)


def evaluate(model: Any, test: Any) -> dict[str, float]:
    """Return recall and MRR of the next items of the test sessions, without the items that the model does not know."""
    import pandas as pd
    from rectools.dataset import Dataset

    test = test[test["item_id"].isin(model.data_preparator.get_known_item_ids())]
    test = test.sort_values(["user_id", "datetime"], kind="stable")
    sessions = [frame for _, frame in test.groupby("user_id") if len(frame) > 1]
    # The events before each target are the history of a user.
    prefixes = [frame.iloc[max(0, n - model.session_max_len) : n] for frame in sessions for n in range(1, len(frame))]
    targets = pd.Series([item for frame in sessions for item in frame["item_id"].iloc[1:]])
    lengths = [len(prefix) for prefix in prefixes]
    history = pd.concat(prefixes, ignore_index=True).assign(user_id=targets.index.repeat(lengths))
    recommended = model.recommend(targets.index, Dataset.construct(history), k=CUTOFF, filter_viewed=False)
    ranks = recommended["rank"][recommended["item_id"].to_numpy() == targets[recommended["user_id"]].to_numpy()]
    return {
        f"recall@{CUTOFF}": len(ranks) / len(targets),
        f"MRR@{CUTOFF}": float((1 / ranks).sum()) / len(targets),
        "targets": len(targets),
    }


def main() -> None:
    """Print a table of all sides."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sides", nargs="*", default=DEFAULT_SIDES, metavar="SIDE", help=f"any of {', '.join(SIDES)}")
    parser.add_argument("--log", choices=("rsc15_100k", "diginetica"), default="rsc15_100k")
    parser.add_argument(
        "--sessions", type=int, default=8000, help="train on the last SESSIONS sessions (default: 8000)"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--negatives", type=int, default=128)
    parser.add_argument("--sample-alpha", type=float, default=0.5)
    parser.add_argument("--logq", type=float, default=1.0)
    parser.add_argument("--length", type=int, default=10, help="session_max_len (default: 10)")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--factors", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=1)
    parser.add_argument("--lr", type=float, default=0.005)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--run", nargs=2, metavar=("SIDE", "SEED"), help=argparse.SUPPRESS)  # in a process of its own
    options = parser.parse_args()
    if unknown := set(options.sides) - set(SIDES):
        parser.error(f"{unknown.pop()} is none of {', '.join(SIDES)}")
    if options.run:
        print(json.dumps(train(options.run[0], int(options.run[1]), options)))
        return
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in options.sides}
    for seed in range(options.seeds):
        for side, results in runs.items():
            command = [sys.executable, *sys.argv, "--run", side, str(seed)]
            output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            results.append(json.loads(output.splitlines()[-1]))
            print(side, f"seed={seed}", *(f"{k}={v:.4g}" for k, v in results[-1].items()), flush=True)
    print_table(runs)


def print_table(runs: dict[str, list[dict[str, float]]]) -> None:
    """Print mean and standard deviation over the seeds."""
    names = list(next(iter(runs.values()))[0])
    print(f"\n| | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    for side, results in runs.items():
        columns = [[result[name] for result in results] for name in names]
        cells = [mean_and_deviation(c) for c in columns]
        print(f"| {side} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
