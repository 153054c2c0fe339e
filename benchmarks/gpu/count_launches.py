"""Count the kernel launches of the captured training step, without a GPU.

    PYTHONPATH=.:benchmarks:tools python -m gpu.count_launches

The captured training step is the training step of `fit` on a GPU, replayed from a CUDA graph. Here it runs on CPU
tensors with emulated kernels. The emulator counts the launches of this package's kernels. A torch operator counts as
one launch, unless it is in NO_LAUNCH (views, allocations) or calls another operator that is counted. On a GPU, a matrix
product may launch more than one kernel, so the real number may be higher.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cuda_emulator
import torch
from naive_pytorch import SETTINGS, Setting

from gru4rec_fast import ops
from gru4rec_fast.data import SessionParallelLoader, SessionStore
from gru4rec_fast.nn import SampledLoss, SessionNetwork
from gru4rec_fast.optim import SparseAdagrad
from gru4rec_fast.training import CapturedTrainingStep

NO_LAUNCH = {  # operators without a kernel: they return a view, allocate, or call another operator
    "_reshape_alias", "_unsafe_view", "alias", "as_strided", "contiguous", "detach", "empty", "empty_like",
    "empty_strided", "expand", "flatten", "linear", "matmul", "narrow", "new_empty", "numpy_T", "permute", "reshape",
    "resize_", "resolve_conj", "select", "slice", "squeeze", "t", "to", "transpose", "unbind", "unsqueeze", "view",
    "zeros",
}  # fmt: skip
N_ITEMS, N_SAMPLE = 500, 64
# Training settings and arguments of SessionNetwork, by the name of the case. L100 B32: 100 hidden units, 32 lanes.
CASES: dict[str, tuple[Setting, dict[str, Any]]] = {
    "L100 B32, cross-entropy": (SETTINGS[0], {}),
    "L100 B32, BPR-max": (replace(SETTINGS[2], width=100, batch_size=32), {}),
    "L100 B32, cross-entropy, two layers": (SETTINGS[0], {"layers": [100, 100]}),
    "L100 B32, cross-entropy, separate embedding": (SETTINGS[0], {"embedding": "separate", "embedding_dim": 100}),
    "L100 B32, cross-entropy, one-hot inputs": (SETTINGS[0], {"embedding": "none"}),
    "L100 B32, cross-entropy, reset_before": (SETTINGS[0], {"gru_form": "reset_before"}),
}
STEPS_PER_GRAPH = 16  # the default of CapturedTrainingStep


def count_launches(work: Callable[[], object]) -> Counter[str]:
    """Return the number of launches in `work` by torch operator. "own kernels" counts the launches of this package."""
    emulator = cuda_emulator.load()
    emulator.set_seed(0)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        work()

    def may_launch(event: torch.autograd.profiler_util.FunctionEvent) -> bool:
        return event.name.startswith("aten::") and event.name.removeprefix("aten::") not in NO_LAUNCH

    events = [e for e in profile.events() if may_launch(e) and not any(map(may_launch, e.cpu_children))]
    counts = Counter(event.name.removeprefix("aten::") for event in events)
    counts["own kernels"] = emulator.launches()
    return counts


def count_step(setting: Setting, **network_arguments: Any) -> tuple[Counter[str], int]:
    """Count the launches of a captured training step.

    network_arguments: arguments of SessionNetwork that differ from the setting.

    Returns:
        Launches of one step by operator.
        Number of launches that a graph needs in addition, whatever its number of steps: they write its inputs, and copy
            the hidden states.
    """
    lengths = torch.randint(2, 9, (12 * setting.batch_size,), generator=torch.Generator().manual_seed(0))
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    items = torch.arange(int(offsets[-1])) % N_ITEMS
    store = SessionStore.from_arrays(items.numpy(), offsets.numpy(), n_items=N_ITEMS)
    support = torch.ones(N_ITEMS, dtype=torch.int64)
    layers = network_arguments.pop("layers", [setting.width])
    network = SessionNetwork(
        N_ITEMS, layers, dropout_p_embed=setting.dropout_p_embed, dropout_p_hidden=setting.dropout_p_hidden,
        impl="emulated", **network_arguments,
    )  # fmt: skip
    criterion = SampledLoss(
        setting.loss, batch_size=setting.batch_size, logq=setting.logq, support=support, elu_param=setting.elu_param,
        impl="emulated",
    )  # fmt: skip
    optimizer = SparseAdagrad(network.parameters(), 0.1, setting.momentum, impl="emulated")
    step = CapturedTrainingStep(network, criterion, optimizer, steps_per_graph=2)
    loader = SessionParallelLoader(store, setting.batch_size, impl="emulated")
    epoch = step.start_epoch(loader, ops.build_alias_table(support, 0.5), N_SAMPLE, seed=0)
    hidden = network.initial_state(loader.n_lanes)

    def run(n: int) -> None:
        captured = epoch.next_updates(n, loader.n_lanes)
        captured.fill(*epoch.draw(steps=n, step=0), first_step=0)
        captured.run(hidden)

    for n in (1, 2):  # some buffers are created at first use
        run(n)
    one, two = (count_launches(lambda n=n: run(n)) for n in (1, 2))
    per_step = two - one
    return per_step, one.total() - per_step.total()


def main() -> None:
    cuda_emulator.register()
    torch.set_num_threads(1)
    for name, (setting, network_arguments) in CASES.items():
        per_step, per_graph = count_step(setting, **network_arguments)
        print(f"{name}: {per_step.total()} launches per step: {dict(per_step)}")
        print(f"  and {per_graph} per graph, {per_graph / STEPS_PER_GRAPH:.1f} per step")


if __name__ == "__main__":
    main()
