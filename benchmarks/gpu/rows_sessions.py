"""GPU rows of training on session logs, and of what feeds it: session batches, negatives, masks, the row update."""

from __future__ import annotations

from functools import partial

import torch
from bench_training import distinct_rows, products, step_bytes
from machine import flops
from naive_pytorch import SETTINGS, NaiveTraining, Setting
from playing import player_of, player_side
from turns import Side

from gpu.device import Device
from gpu.folder import Folder
from gpu.rows import Builder, Row, built_at_first_use
from gpu.targets import OURS, RowName
from gru4rec_fast import ops
from gru4rec_fast.data import SessionStore
from gru4rec_fast.training.epoch import EpochPlayer


def training(name: RowName, device: Device, folder: Folder) -> Row:
    """Mini-batches of what `GRU4Rec.fit` trains, of the official code's own loop, and of plain PyTorch.

    In bf16 the products of the others are TF32.
    """
    (setting,) = [setting for setting in SETTINGS if setting.name == name.target]
    store = folder.sessions(setting.log)
    notes: list[str] = []

    def ours() -> Side:
        trainer = trainer_on(device, store, setting, bf16=name.precision == "bf16")
        if trainer.why_not_fused:
            notes.append(f"ours is not the fused step: {trainer.why_not_fused}")
        return player_side(trainer, device.wait)

    sides = {
        OURS: built_at_first_use(ours),
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


def trainer_on(device: Device, store: SessionStore, setting: Setting, bf16: bool = False) -> EpochPlayer:
    """Return what `GRU4Rec.fit` trains a setting with on the device."""
    impl = "auto" if device.impl == "native" else "reference"  # the estimator has no emulation
    how = {"impl": impl} | ({"precision": "bf16"} if bf16 else {})
    return player_of(store, setting.parameters() | how, device.torch)


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
    there, state = (log.to(device.torch), offsets.to(device.torch)), ops.session_batch_state(128, device.torch)
    own_state = ops.session_batch_state(128)

    def by_the_processor() -> object:
        return [t.to(device.torch) for t in ops.session_batch(log, offsets, None, *own_state, 16)]

    return Row(
        {
            OURS: device.side(lambda: ops.session_batch(*there, None, *state, 16, impl=device.impl)),
            "the CPU kernel and a copy": device.side(by_the_processor),
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
        name: device.side(partial(ops.sparse_adagrad, table, accumulator, None, index, grad, lr=1e-6, impl=impl))
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
