"""Measure how the precision of matrix products changes the accuracy of GRU4Rec, without a GPU.

    python benchmarks/precision.py --settings xe-100 --seeds 0 1 2

Sides:
    float32              the fused step
    float32, reference   autograd of the PyTorch reference: the same arithmetic, with sums in another order
    TF32, reference      the same with the factors of every product rounded as TF32 stores them (`TF32Products`)
    bf16                 the fused step with precision="bf16"

Each side trains on rsc15_100k with the same seeds. All models are evaluated in float32, with conservative ties. The
parameters are those of `naive_pytorch.SETTINGS`. The script needs ../shared/data/rsc15_100k.
"""

from __future__ import annotations

import argparse
import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from machine import describe_machine
from naive_pytorch import SETTINGS, Setting
from session_logs import SHARED
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gru4rec_fast import GRU4Rec
from gru4rec_fast.evaluation import Report

LOG, CUTOFF = SHARED / "rsc15_100k", 20
REFERENCE: dict[str, Any] = {"impl": "reference", "fused": False}
SIDES: dict[str, dict[str, Any]] = {
    "float32": {}, "float32, reference": REFERENCE, "TF32, reference": REFERENCE, "bf16": {"precision": "bf16"},
}  # fmt: skip
_DROPPED_BITS = 13  # TF32 has 10 explicit bits of mantissa, float32 has 23
# Operators that multiply matrices, and the positions of the two factors among their arguments.
_FACTORS = {
    torch.ops.aten.mm.default: (0, 1),
    torch.ops.aten.addmm.default: (1, 2),
    torch.ops.aten.bmm.default: (0, 1),
    torch.ops.aten.baddbmm.default: (1, 2),
}


def round_to_tf32(values: Tensor) -> Tensor:
    """Return float32 values rounded to 10 explicit bits of mantissa, to nearest, ties to even.

    The exponent keeps its range, so a value may round to infinity. Infinities and NaN are returned as they are.
    """
    bits = values.view(torch.int32)
    is_odd = (bits >> _DROPPED_BITS) & 1
    rounded = (bits + (1 << (_DROPPED_BITS - 1)) - 1 + is_odd) >> _DROPPED_BITS << _DROPPED_BITS
    return torch.where(values.isfinite(), rounded.view(torch.float32), values)


class TF32Products(TorchDispatchMode):
    """Within this context, the factors of float32 matrix products are rounded to TF32, and sums stay in float32.

    This includes the products of backward passes on the CPU. A GPU sums in another order; by default, cuBLAS also
    rounds so if `torch.backends.cuda.matmul.fp32_precision` is "tf32".

    Attributes:
        n_products: number of products whose factors were rounded.
    """

    def __init__(self) -> None:
        super().__init__()
        self.n_products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        factors = _FACTORS.get(func, ())
        if factors and args[factors[0]].dtype == torch.float32:
            self.n_products += 1
            args = [round_to_tf32(arg) if i in factors else arg for i, arg in enumerate(args)]
        return func(*args, **(kwargs or {}))


def train(side: str, setting: Setting, seed: int, n_epochs: int) -> Report:
    """Train a model as a side does, and evaluate it."""
    model = GRU4Rec(**setting.parameters(), **SIDES[side], n_epochs=n_epochs, seed=seed)
    products = TF32Products() if side.startswith("TF32") else None
    context: AbstractContextManager[object] = products or nullcontext()
    with context:
        model.fit(LOG / "train.tsv.gz", progress=False)
    if products is not None and products.n_products == 0:
        raise RuntimeError("no product was rounded: the training calls none of the operators in _FACTORS")
    return model.evaluate(LOG / "test.tsv.gz", cutoffs=CUTOFF)


def mean_and_deviation(values: list[float]) -> str:
    """Return the mean and, in parentheses, the standard deviation."""
    return f"{mean(values):.4f}" + (f" ({stdev(values):.4f})" if len(values) > 1 else "")


def main() -> None:
    """Train every setting on every side with every seed, and print a table of the accuracies."""
    by_name = {setting.name: setting for setting in SETTINGS if setting.log == LOG.name}
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--settings", nargs="+", choices=by_name, default=["xe-100"])
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--n-epochs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="a file for the results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    metrics, results = (f"recall@{CUTOFF}", f"mrr@{CUTOFF}"), []
    print("| setting | precision of products | Recall@20 | MRR@20 |\n|---|---|---|---|", flush=True)
    for name in arguments.settings:
        for side in arguments.sides:
            reports = [train(side, by_name[name], seed, arguments.n_epochs) for seed in arguments.seeds]
            by_metric = {metric: [report.metrics[metric] for report in reports] for metric in metrics}
            cells = " | ".join(mean_and_deviation(values) for values in by_metric.values())
            print(f"| {name} | {side} | {cells} |", flush=True)
            results.append({"setting": name, "side": side, "seeds": arguments.seeds, **by_metric})
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({"machine": describe_machine(), "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
