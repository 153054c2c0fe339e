"""GPU rows of training on session logs, and of what feeds it: session batches, negatives, masks, the row update."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from bench_training import distinct_rows, products, step_bytes
from machine import flops
from naive_pytorch import SETTINGS, NaiveTraining, Setting
from playing import player_of, player_side
from turns import Side

from gpu.clock import PRECISIONS, Place
from gpu.folder import Folder, Missing
from gpu.rows import OURS, Plan, Row
from gru4rec_fast import ops
from gru4rec_fast.data import SessionStore


def plans(place: Place, folder: Folder) -> Iterator[Plan]:
    """Training in float32 and in TF32, on both sides alike, and in bf16, which ours alone has; then the parts."""
    for precision in PRECISIONS:
        for setting in SETTINGS:
            yield Plan(setting.name, partial(training, place, folder, precision, setting), precision=precision)
    for shape in ((1, 32, 100), (16, 128, 512)):
        yield Plan("masks", partial(masks, place, shape), " x ".join(map(str, shape)))
    yield Plan("negatives", partial(negatives, place))
    yield Plan("batches", partial(batches, place))
    yield Plan("update", partial(update, place))


def training(place: Place, folder: Folder, precision: str, setting: Setting) -> Row:
    """Mini-batches of what `GRU4Rec.fit` plays, of the official code's own loop, and of plain PyTorch's.

    In bf16 the others' products are TF32.
    """
    store = folder.sessions(setting.log)
    notes: list[str] = []
    how = {"impl": _of_the_estimator(place)} | ({"precision": "bf16"} if precision == "bf16" else {})
    player = player_of(store, setting.parameters() | how, place.device)
    if player.why_not_fused:
        notes.append(f"ours is not the fused step: {player.why_not_fused}")
    sides = {OURS: player_side(player, place.wait)}
    try:
        sides["official"] = official(folder, store, setting, place)
    except Missing as missing:
        notes.append(f"official left out: {missing}")
    sides["plain PyTorch"] = place.host_side(NaiveTraining(store, setting, device=place.device).step)
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


def official(folder: Folder, store: SessionStore, setting: Setting, place: Place) -> Side:
    """The official code on the same sessions, in the same order, on the same device."""
    path = folder.peer("official")
    from peers.official import Official, frame_of

    return Official(path, place.device).training(frame_of(store), **setting.parameters())


def _of_the_estimator(place: Place) -> str:
    """The estimator knows no emulation."""
    return "auto" if place.impl == "native" else "reference"


def masks(place: Place, shape: tuple[int, int, int]) -> Row:
    """Counter-based masks, written once."""
    mask = torch.empty(shape, device=place.device)
    return Row(
        {
            OURS: place.side(
                lambda: ops.dropout_mask(
                    *shape, 0.3, seed=1, stream=1, step=0, device=place.device.type, impl=place.impl
                )
            ),
            "bernoulli_": place.side(lambda: mask.bernoulli_(0.7).div_(0.7)),
        },
        n_bytes=mask.nbytes,
    )


def negatives(place: Place) -> Row:
    """Draws by popularity, and their log-probabilities."""
    support = (1e7 / torch.arange(1, place.size(100_001, 101))).long() + 1
    table = ops.build_alias_table(support, 0.75).to(place.device)
    probability = torch.softmax(table.log_prob, 0)
    return Row(
        {
            OURS: place.side(lambda: ops.negative_sampling(table, 2048, seed=1, step=0, impl=place.impl)),
            "torch.multinomial": place.side(lambda: torch.multinomial(probability, 2048, replacement=True)),
        },
        n_bytes=2048 * (20 + 12),
    )


def batches(place: Place) -> Row:
    """Sessions into 16 x 128 blocks, from a log on the device."""
    lengths = torch.randint(2, 9, (place.size(200_000, 500),), generator=torch.Generator().manual_seed(1))
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    log = torch.arange(int(offsets[-1]), dtype=torch.int32)
    there, state = (log.to(place.device), offsets.to(place.device)), ops.session_batch_state(128, place.device)
    own_state = ops.session_batch_state(128)

    def by_the_processor() -> object:
        return [t.to(place.device) for t in ops.session_batch(log, offsets, None, *own_state, 16)]

    return Row(
        {
            OURS: place.side(lambda: ops.session_batch(*there, None, *state, 16, impl=place.impl)),
            "the CPU kernel and a copy": place.side(by_the_processor),
        },
        n_bytes=16 * 128 * (8 + 17),
    )


def update(place: Place) -> Row:
    """Adagrad on the touched rows of a table; a few of them take most of the gradients."""
    n_items, width = place.size(43_000, 300), place.size(480, 12)
    table, accumulator = (torch.ones(n_items, width, device=place.device) for _ in range(2))
    index = (torch.rand(2144, device=place.device) ** 3 * n_items).long()
    grad, touched = torch.randn(2144, width, device=place.device), int(index.unique().numel())
    sides = {
        name: place.side(partial(ops.sparse_adagrad, table, accumulator, None, index, grad, lr=1e-6, impl=impl))
        for name, impl in ((OURS, place.impl), ("coalesce, gather, scatter", "reference"))
    }
    return Row(sides, n_bytes=2144 * (width * 4 + 16) + 4 * touched * width * 4)
