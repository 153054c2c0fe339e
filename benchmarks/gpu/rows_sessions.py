"""GPU rows of training on session logs, and of what feeds it: session batches, negatives, masks, the row update."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from bench_training import distinct_rows, products, step_bytes
from interleave import Side
from machine import flops
from naive_pytorch import SETTINGS, NaiveTraining, Setting
from torch import Tensor
from trainers import runner_of, runner_side

from gpu.device import Device
from gpu.folder import Folder
from gpu.rows import Builder, Row, built_at_first_use
from gpu.targets import OURS, OURS_STEADY, RowName
from gru4rec_fast import ops
from gru4rec_fast.data import SessionStore
from gru4rec_fast.training import SessionEpochRunner


def training(name: RowName, device: Device, folder: Folder) -> Row:
    """Mini-batches of what `GRU4Rec.fit` trains, of the official code's own loop, and of plain PyTorch.

    In bf16 the products of the others are TF32.
    """
    (setting,) = [setting for setting in SETTINGS if setting.name == name.target]
    store = folder.sessions(setting.log)
    notes: list[str] = []

    def ours() -> Side:
        runner = runner_on(device, store, setting, bf16=name.precision == "bf16")
        if runner.why_not_fused:
            notes.append(f"ours is not the fused step: {runner.why_not_fused}")
        side = runner_side(runner, device.wait)
        for _ in range(2 if device.is_gpu else 0):  # the graphs are captured on the way
            side(200)
        return side

    def whole_launches() -> Side:
        return updates_side(updates_of(runner_on(device, store, setting, bf16=name.precision == "bf16")), device)

    sides = {
        OURS: built_at_first_use(ours),
        OURS_STEADY: built_at_first_use(whole_launches),
        "official": built_at_first_use(lambda: official(folder, store, setting, device)),
        "plain PyTorch": built_at_first_use(
            lambda: device.host_side(NaiveTraining(store, setting, device=device.torch).step)
        ),
    }
    n_columns = setting.batch_size + setting.n_sample  # on a GPU repeated negatives are not merged
    return Row(
        sides,
        unit="mini-batch",
        n_bytes=step_bytes(setting, distinct_rows(store, setting)[1]),
        flops=flops(products(setting, n_columns)),
        rounds=7,
        turn_seconds=0.25,
        notes=notes,
    )


def runner_on(device: Device, store: SessionStore, setting: Setting, bf16: bool = False) -> SessionEpochRunner:
    """Return the epoch runner of `GRU4Rec.fit` for a setting on the device."""
    impl = "auto" if device.impl == "native" else "reference"  # the estimator has no emulation
    how = {"impl": impl} | ({"precision": "bf16"} if bf16 else {})
    return runner_of(store, setting.parameters() | how, device.torch)


def updates_of(runner: SessionEpochRunner) -> Callable[[int], None]:
    """Return a function that makes n updates by the fused step, in as few calls as possible, over epochs as needed.

    Raises:
        RuntimeError: there is no fused step, with the reason.
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
            blocks, finished = epoch.run(updates, hidden, step=step)
            step, updates = step + len(blocks), updates - len(blocks)
            epoch = None if finished else epoch

    return run


def updates_side(run: Callable[[int], None], device: Device) -> Side:
    """Time updates by the host's clock, in whole launches."""
    of_a_launch = device.size(16, 1)

    def side(n: int) -> float:
        units = of_a_launch * max(1, n // of_a_launch)
        device.wait()
        started = time.perf_counter()
        run(units)
        device.wait()
        return (time.perf_counter() - started) / units

    return side


def official(folder: Folder, store: SessionStore, setting: Setting, device: Device) -> Side:
    """The official code on the same sessions, in the same order, on the same device."""
    path = folder.peer("official")
    from peers.official import Official, frame_of

    return Official(path, device.torch).training(frame_of(store), **setting.parameters())


def masks(name: RowName, device: Device, folder: Folder) -> Row:
    """Counter-based masks, written once."""
    shape = tuple(int(size) for size in name.case.split(" x "))
    mask = torch.empty(shape, device=device.torch)
    return Row(
        {
            OURS: device.side(
                lambda: ops.dropout_mask(
                    *shape, 0.3, seed=1, stream=1, step=0, device=device.torch.type, impl=device.impl
                )
            ),
            "bernoulli_": device.side(lambda: mask.bernoulli_(0.7).div_(0.7)),
        },
        n_bytes=mask.nbytes,
    )


def negatives(name: RowName, device: Device, folder: Folder) -> Row:
    """Draws by popularity, and their log-probabilities."""
    support = (1e7 / torch.arange(1, device.size(100_001, 101))).long() + 1
    table = ops.build_alias_table(support, 0.75).to(device.torch)
    probability = torch.softmax(table.log_prob, 0)
    return Row(
        {
            OURS: device.side(lambda: ops.negative_sampling(table, 2048, seed=1, step=0, impl=device.impl)),
            "torch.multinomial": device.side(lambda: torch.multinomial(probability, 2048, replacement=True)),
        },
        n_bytes=2048 * (20 + 12),
    )


def batches(name: RowName, device: Device, folder: Folder) -> Row:
    """Sessions into 16 x 128 blocks, from a log on the device."""
    lengths = torch.randint(2, 9, (device.size(200_000, 500),), generator=torch.Generator().manual_seed(1))
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    log = torch.arange(int(offsets[-1]), dtype=torch.int32)
    there = log.to(device.torch), offsets.to(device.torch)

    def on_the_device(state: list[Tensor]) -> object:
        return ops.session_batch(*there, None, *state, 16, impl=device.impl)

    def by_the_processor(state: list[Tensor]) -> object:
        return [t.to(device.torch) for t in ops.session_batch(log, offsets, None, *state, 16)]

    def again_and_again(play: Callable[[list[Tensor]], object], where: torch.device | str) -> Callable[[], object]:
        """Begin the log anew before it ends: after its end, lanes would be dead and cost nothing."""
        start = ops.session_batch_state(128, where)
        state, calls = [t.clone() for t in start], 0

        def run() -> object:
            nonlocal calls
            if calls % 256 == 0:
                for now, first in zip(state, start, strict=True):
                    now.copy_(first)
            calls += 1
            return play(state)

        return run

    return Row(
        {
            OURS: device.side(again_and_again(on_the_device, device.torch)),
            "the CPU kernel and a copy": device.side(again_and_again(by_the_processor, "cpu")),
        },
        n_bytes=16 * 128 * (8 + 17),
    )


def update(name: RowName, device: Device, folder: Folder) -> Row:
    """Adagrad on the touched rows of a table; a few of them take most of the gradients."""
    n_items, width = device.size(43_000, 300), device.size(480, 12)
    table, accumulator = (torch.ones(n_items, width, device=device.torch) for _ in range(2))
    index = (torch.rand(2144, device=device.torch) ** 3 * n_items).long()
    grad, touched = torch.randn(2144, width, device=device.torch), int(index.unique().numel())
    sides = {
        name: device.side(partial(ops.sparse_adagrad_, table, accumulator, None, index, grad, lr=1e-6, impl=impl))
        for name, impl in ((OURS, device.impl), ("coalesce, gather, scatter", "reference"))
    }
    return Row(sides, n_bytes=2144 * (width * 4 + 16) + 4 * touched * width * 4)


BUILDERS: dict[str, Builder] = {
    **dict.fromkeys([setting.name for setting in SETTINGS], training),
    "masks": masks,
    "negatives": negatives,
    "batches": batches,
    "update": update,
}
