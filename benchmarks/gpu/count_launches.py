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
    "empty_strided", "expand", "flatten", "linear", "matmul", "narrow", "numpy_T", "permute", "reshape", "resize_",
    "resolve_conj", "select", "slice", "squeeze", "t", "to", "transpose", "unbind", "unsqueeze", "view", "zeros",
}  # fmt: skip
N_ITEMS, N_SAMPLE = 500, 64
STEPS_PER_GRAPH = 2  # fewer than the default (16), because emulated kernels are slow


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


def count_step(setting: Setting) -> tuple[float, Counter[str]]:
    """Count the launches of a captured training step.

    Returns:
        Launches that write the inputs of a captured graph, divided by 16: a graph has 16 steps by default, and its
            inputs need the same number of launches for any number of steps.
        Launches of one step by operator, without those for the inputs.
    """
    lengths = torch.randint(2, 9, (12 * setting.batch_size,), generator=torch.Generator().manual_seed(0))
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    items = torch.arange(int(offsets[-1])) % N_ITEMS
    store = SessionStore.from_arrays(items.numpy(), offsets.numpy(), n_items=N_ITEMS)
    support = torch.ones(N_ITEMS, dtype=torch.int64)
    network = SessionNetwork(
        N_ITEMS, [setting.width], dropout_p_embed=setting.dropout_p_embed, dropout_p_hidden=setting.dropout_p_hidden,
        impl="emulated",
    )  # fmt: skip
    criterion = SampledLoss(
        setting.loss, batch_size=setting.batch_size, logq=setting.logq, support=support, elu_param=setting.elu_param,
        impl="emulated",
    )  # fmt: skip
    optimizer = SparseAdagrad(network.parameters(), 0.1, setting.momentum, impl="emulated")
    step = CapturedTrainingStep(network, criterion, optimizer, steps_per_graph=STEPS_PER_GRAPH)
    loader = SessionParallelLoader(store, setting.batch_size, impl="emulated")
    epoch = step.start_epoch(loader, ops.build_alias_table(support, 0.5), N_SAMPLE, seed=0)
    hidden = network.initial_state(loader.n_lanes)
    epoch.run(STEPS_PER_GRAPH, hidden, step=0)  # warm-up: some buffers are created at first use
    captured = epoch.next_updates(STEPS_PER_GRAPH, loader.n_lanes)
    first_step = STEPS_PER_GRAPH  # the first step after the warm-up

    def write_inputs() -> None:
        block, negatives = epoch.draw(steps=STEPS_PER_GRAPH, step=first_step)
        captured.fill(block, negatives, first_step)

    input_launches = count_launches(write_inputs)
    graph_launches = count_launches(lambda: captured.run(hidden))
    # Operators with fewer launches than steps run once per graph; they are left out.
    return input_launches.total() / 16, Counter(
        {name: n // STEPS_PER_GRAPH for name, n in graph_launches.items() if n >= STEPS_PER_GRAPH}
    )


def main() -> None:
    cuda_emulator.register()
    torch.set_num_threads(1)
    for setting in SETTINGS:
        per_step_for_inputs, by_operator = count_step(setting)
        print(f"{setting}: {by_operator.total()} launches per step: {dict(by_operator)}")
        print(f"  in addition, in graphs of 16 steps: {per_step_for_inputs:.1f} launches per step for the inputs")


if __name__ == "__main__":
    main()
