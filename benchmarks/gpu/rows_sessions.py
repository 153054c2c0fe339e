"""Build the GPU benchmarks of GRU4Rec training and of its smaller operators.

The operators are session batches, negative sampling, dropout masks and row updates. A row of the results table compares
several implementations, called sides, at one workload; the class Row is such a row. side(n) runs n units of work and
returns the seconds per unit. `turn_seconds` is the duration of one measurement of a side. `device.side` times by CUDA
events, `device.host_side` by the host's clock. `device.size(full=..., tiny=...)` returns `tiny` in tests of the
benchmarks. A row of an item table is called a table row.

The "fused" training step is the package's step without autograd. On a GPU it is replayed from captured CUDA graphs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from bench_training import count_distinct_rows, count_step_bytes, list_products
from interleave import Side
from machine import flops
from naive_pytorch import SETTINGS, NaiveTraining, Setting
from torch import Tensor
from trainers import gru_runner, runner_side

from gpu.device import Device
from gpu.prepared_folder import PreparedFolder
from gpu.rows import Builder, Row, built_at_first_use
from gpu.workloads import OURS, OURS_STEADY, RowName
from gru4rec_fast import ops
from gru4rec_fast.data import SessionStore
from gru4rec_fast.training import SessionEpochRunner


def training_row(name: RowName, device: Device, folder: PreparedFolder) -> Row:
    """Build the row of a training step: `GRU4Rec.fit`, the loop of the official `fit`, and plain PyTorch.

    The side OURS_STEADY measures replays of full CUDA graphs; only turns (timed calls) in which an epoch ends include
    anything else. In the precision bf16, only this package uses bf16 matrix products; the others use TF32.
    """
    (setting,) = [setting for setting in SETTINGS if setting.name == name.workload]
    store = folder.sessions(setting.log)
    notes: list[str] = []

    def ours() -> Side:
        runner = runner_on(device, store, setting, bf16=name.precision == "bf16")
        if runner.why_not_fused:
            notes.append(f"ours is not the fused step: {runner.why_not_fused}")
        side = runner_side(runner, device.wait)
        for _ in range(2 if device.is_gpu else 0):  # capture the CUDA graphs before the measurement
            side(200)
        return side

    def ours_steady() -> Side:
        runner = runner_on(device, store, setting, bf16=name.precision == "bf16")
        return updates_side(make_updates_function(runner), device)

    sides = {
        OURS: built_at_first_use(ours),
        OURS_STEADY: built_at_first_use(ours_steady),
        "official": built_at_first_use(lambda: official_side(folder, store, setting, device)),
        "plain PyTorch": built_at_first_use(
            lambda: device.host_side(NaiveTraining(store, setting, device=device.torch_device).step)
        ),
    }
    _, n_table_rows = count_distinct_rows(store, setting)
    n_columns = setting.batch_size + setting.n_sample  # on a GPU, a negative drawn twice is also computed twice
    return Row(
        sides,
        unit="mini-batch",
        n_bytes=count_step_bytes(setting, n_table_rows),
        flops=flops(list_products(setting, n_columns)),
        rounds=7,
        turn_seconds=0.25,
        notes=notes,
    )


def runner_on(device: Device, store: SessionStore, setting: Setting, bf16: bool = False) -> SessionEpochRunner:
    """Return the object that runs the epochs of `GRU4Rec.fit`, for a training setting on the device."""
    impl = "auto" if device.impl == "native" else "reference"  # GRU4Rec has no impl="emulated"
    options = {"impl": impl} | ({"precision": "bf16"} if bf16 else {})
    return gru_runner(store, setting.parameters() | options, device.torch_device)


def make_updates_function(runner: SessionEpochRunner) -> Callable[[int], None]:
    """Return a function that makes n updates with the fused step, and starts new epochs as needed.

    Raises:
        RuntimeError: the runner has no fused step; the message gives the reason.
    """
    if runner.why_not_fused:
        raise RuntimeError(f"no fused step: {runner.why_not_fused}")
    runner.network.train()
    hidden = runner.network.initial_state(runner.loader.n_lanes)
    epoch, n_epochs, step = None, 0, 0

    def run(updates: int) -> None:
        nonlocal epoch, n_epochs, step
        while updates > 0:
            if epoch is None:
                runner.loader.set_epoch(n_epochs)
                epoch, n_epochs = runner.start_fused_epoch(), n_epochs + 1
            # one block per update
            blocks, finished = epoch.run(updates, hidden, step=step)
            step, updates = step + len(blocks), updates - len(blocks)
            epoch = None if finished else epoch

    return run


def updates_side(run: Callable[[int], None], device: Device) -> Side:
    """Return the side that calls `run`, which makes updates. n is rounded to whole CUDA graphs of 16 updates."""
    updates_per_graph = device.size(full=16, tiny=1)

    def side(n: int) -> float:
        n_updates = updates_per_graph * max(1, n // updates_per_graph)
        device.wait()
        started = time.perf_counter()
        run(n_updates)
        device.wait()
        return (time.perf_counter() - started) / n_updates

    return side


def official_side(folder: PreparedFolder, store: SessionStore, setting: Setting, device: Device) -> Side:
    """Return the side of the official code, with the same sessions in the same order on the same device."""
    path = folder.peer("official")
    from peers.official import OfficialGRU4Rec, to_data_frame

    return OfficialGRU4Rec(path, device.torch_device).training(to_data_frame(store), **setting.parameters())


def dropout_mask_row(name: RowName, device: Device, folder: PreparedFolder) -> Row:
    """Build the row of dropout masks; the case gives the shape."""
    shape = tuple(int(size) for size in name.case.split(" x "))
    mask = torch.empty(shape, device=device.torch_device)
    return Row(
        {
            OURS: device.side(
                lambda: ops.dropout_mask(
                    *shape, 0.3, seed=1, stream=1, step=0, device=device.torch_device.type, impl=device.impl
                )
            ),
            "bernoulli_": device.side(lambda: mask.bernoulli_(0.7).div_(0.7)),
        },
        n_bytes=mask.nbytes,
    )


def negative_sampling_row(name: RowName, device: Device, folder: PreparedFolder) -> Row:
    """Build the row of negative sampling: items sampled by popularity, with their log-probabilities."""
    # Number of occurrences of each item, by Zipf's law.
    support = (1e7 / torch.arange(1, device.size(full=100_001, tiny=101))).long() + 1
    table = ops.build_alias_table(support, 0.75).to(device.torch_device)
    probability = torch.softmax(table.log_prob, 0)
    return Row(
        {
            OURS: device.side(lambda: ops.negative_sampling(table, 2048, seed=1, step=0, impl=device.impl)),
            "torch.multinomial": device.side(lambda: torch.multinomial(probability, 2048, replacement=True)),
        },
        # Each draw reads threshold, alias and log-probability (20 bytes), and writes item and log-probability (12).
        n_bytes=2048 * (20 + 12),
    )


def session_batch_row(name: RowName, device: Device, folder: PreparedFolder) -> Row:
    """Build the row of session batches of 16 steps x 128 lanes (sessions processed in parallel), on the device."""
    lengths = torch.randint(2, 9, (device.size(full=200_000, tiny=500),), generator=torch.Generator().manual_seed(1))
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    log = torch.arange(int(offsets[-1]), dtype=torch.int32)
    device_log = log.to(device.torch_device), offsets.to(device.torch_device)

    def batch_on_device(state: list[Tensor]) -> object:
        return ops.session_batch(*device_log, None, *state, 16, impl=device.impl)

    def batch_on_cpu(state: list[Tensor]) -> object:
        return [t.to(device.torch_device) for t in ops.session_batch(log, offsets, None, *state, 16)]

    def with_restarts(
        batch: Callable[[list[Tensor]], object], state_device: torch.device | str
    ) -> Callable[[], object]:
        """Return a function that calls `batch`, and resets the state to the start of the log every 256 calls.

        Without resets the log would end, and a batch without sessions takes less time.
        """
        initial = ops.session_batch_state(128, state_device)
        state, n_calls = [t.clone() for t in initial], 0

        def run() -> object:
            nonlocal n_calls
            if n_calls % 256 == 0:
                for tensor, initial_tensor in zip(state, initial, strict=True):
                    tensor.copy_(initial_tensor)
            n_calls += 1
            return batch(state)

        return run

    return Row(
        {
            OURS: device.side(with_restarts(batch_on_device, device.torch_device)),
            "the CPU kernel and a copy": device.side(with_restarts(batch_on_cpu, "cpu")),
        },
        # Each lane reads two int32 items (8 bytes) per step, and writes an input, a target and a reset flag (17).
        n_bytes=16 * 128 * (8 + 17),
    )


def sparse_update_row(name: RowName, device: Device, folder: PreparedFolder) -> Row:
    """Build the row of a sparse Adagrad step on 2144 gradients; some table rows have many gradients."""
    n_items, width = device.size(full=43_000, tiny=300), device.size(full=480, tiny=12)
    table, accumulator = (torch.ones(n_items, width, device=device.torch_device) for _ in range(2))
    index = (torch.rand(2144, device=device.torch_device) ** 3 * n_items).long()
    grad, n_rows = torch.randn(2144, width, device=device.torch_device), int(index.unique().numel())
    sides = {
        name: device.side(partial(ops.sparse_adagrad_, table, accumulator, None, index, grad, lr=1e-6, impl=impl))
        for name, impl in ((OURS, device.impl), ("coalesce, gather, scatter", "reference"))
    }
    # The update reads each gradient (float32) and, from a list sorted by table row, the index of its table row and its
    # position among the gradients (16 bytes). The update reads and writes each table row that has gradients, and the
    # accumulator of the row: four times the bytes of a row.
    return Row(sides, n_bytes=2144 * (width * 4 + 16) + 4 * n_rows * width * 4)


BUILDERS: dict[str, Builder] = {
    **dict.fromkeys([setting.name for setting in SETTINGS], training_row),
    "masks": dropout_mask_row,
    "negatives": negative_sampling_row,
    "batches": session_batch_row,
    "update": sparse_update_row,
}
