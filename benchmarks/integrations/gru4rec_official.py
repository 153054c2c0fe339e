"""Run a script with the official GRU4Rec code and, after a change of the import line only, with this package.

    PYTHONPATH=benchmarks python benchmarks/integrations/gru4rec_official.py --peer official=PATH [--epochs 3]

The script reads rsc15_100k, trains with a parameter string of the official repository, and evaluates. The metrics and
the seconds of training and evaluation are printed for each parameter string, seed and side (the official code or this
package), and the ratio of the seconds for each parameter string.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any
from unittest import mock

import torch
from machine import describe_machine
from peers import checkout_path
from peers.official import OfficialGRU4Rec, quiet
from session_logs import SHARED

LOG = SHARED / "rsc15_100k"
SCRIPT = """
{import_line}
import pandas as pd

data, test = (pd.read_csv(f"{{folder}}/{{name}}.tsv.gz", sep="\\t") for name in ("train", "test"))
started = time.perf_counter()
gru = GRU4Rec(device="cpu")
gru.set_params(**dict(x.split("=") for x in parameter_string.split(",")))
gru.fit(data, sample_cache_max_size=3000000, item_key="ItemId", session_key="SessionId", time_key="Time")
trained = time.perf_counter()
recall, mrr = batch_eval(gru, test, cutoff=[20], batch_size=512, mode="standard", item_key="ItemId")
evaluated = time.perf_counter()
"""
IMPORT_LINES = {
    "official": "from gru4rec_pytorch import GRU4Rec; from evaluation import batch_eval",
    "gru4rec_fast": "from gru4rec_fast.integrations.gru4rec_official import GRU4Rec, batch_eval",
}
# The example in the README of the official repository, and its parameter file for RSC15.
PARAMETER_STRINGS = {
    "BPR-max, L224 B80": "layers=224,batch_size=80,dropout_p_embed=0.5,dropout_p_hidden=0.05,learning_rate=0.05,"
    "momentum=0.4,n_sample=2048,sample_alpha=0.4,bpreg=1.95,logq=0.0,loss=bpr-max,constrained_embedding=True,"
    "elu_param=0.5",
    "cross-entropy, L100 B32": "loss=cross-entropy,constrained_embedding=True,embedding=0,elu_param=0,layers=100,"
    "batch_size=32,dropout_p_embed=0.0,dropout_p_hidden=0.4,learning_rate=0.2,momentum=0.2,n_sample=2048,"
    "sample_alpha=0.5,bpreg=0.0,logq=1.0",
}


def run(side: str, parameter_string: str, seed: int) -> dict[str, float]:
    """Run the script; return its metrics and seconds. `seed` seeds torch's generator, from which both sides draw."""
    torch.manual_seed(seed)
    values: dict[str, Any] = {"folder": LOG, "parameter_string": parameter_string, "time": time}
    with quiet():
        exec(SCRIPT.format(import_line=IMPORT_LINES[side]), values)
    return {
        "recall@20": float(values["recall"][20]),
        "mrr@20": float(values["mrr"][20]),
        "training": values["trained"] - values["started"],
        "evaluation": values["evaluated"] - values["trained"],
    }


def main() -> None:
    """Run all parameter strings and seeds, and print the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--peer", required=True, type=checkout_path, metavar="official=PATH", help="a checkout of the official code"
    )
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--threads", type=int, help="number of threads (default: torch's own choice)")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    print(describe_machine())
    peer = OfficialGRU4Rec(arguments.peer)
    with mock.patch.object(sys, "path", [arguments.peer, *sys.path]), peer.patched_torch():
        for setting, parameter_string in PARAMETER_STRINGS.items():
            seconds = dict.fromkeys(IMPORT_LINES, 0.0)
            for seed in range(arguments.seeds):
                for side in IMPORT_LINES:
                    results = run(side, f"{parameter_string},n_epochs={arguments.epochs}", seed)
                    seconds[side] += results["training"] + results["evaluation"]
                    print(setting, f"seed {seed}", side, *(f"{key} {x:.4f}" for key, x in results.items()), flush=True)
            print(setting, f"ratio {seconds['official'] / seconds['gru4rec_fast']:.2f}", flush=True)


if __name__ == "__main__":
    main()
