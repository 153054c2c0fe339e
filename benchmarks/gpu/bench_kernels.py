"""Times the CUDA kernels beside what torch offers for the same work: medians of events, the two sides alternating.

    python benchmarks/gpu/bench_kernels.py --out kernels.json [--folder FOLDER]

Each row: ours and the other's microseconds (median and quartiles), their ratio (median of the rounds' ratios), what
each allocates at most beyond its inputs (MiB), counted bytes and the share of the copy bandwidth measured in the same
run. FOLDER is taken for rows that need data or peers.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
import torch.nn.functional as F

from gru4rec_fast import ops
from gru4rec_fast.data import SessionStore

sys.path.append(str(Path(__file__).resolve().parents[1]))
from naive_pytorch import SETTINGS
from playing import player_of, player_side

Work = Callable[[], object]
# Name, ours, the other's name, the other, counted bytes (0: those of a whole training, which are not counted).
Row = tuple[str, Work, str, Work, int]


def microseconds(work: Work, calls: int) -> float:
    """Of one of `calls` calls, on the GPU's own clock."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / calls * 1e3


def peak_mib(work: Work) -> float:
    """The most memory of a call beyond what was there before it."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def compare(ours: Work, other: Work, rounds: int = 15) -> dict[str, Any]:
    """Both sides in turn, after warm-up, a round long enough for the clock."""
    calls = {}
    for side in (ours, other):
        for _ in range(3):
            side()
        calls[side] = max(1, int(2000 / max(microseconds(side, 3), 1.0)))
    times = [(microseconds(ours, calls[ours]), microseconds(other, calls[other])) for _ in range(rounds)]
    ratios = [theirs / mine for mine, theirs in times]

    def spread(values: list[float]) -> list[float]:
        low, _, high = quantiles(values, n=4)
        return [median(values), low, high]

    return {
        "ours_us": spread([mine for mine, _ in times]),
        "other_us": spread([theirs for _, theirs in times]),
        "ratio": spread(ratios),
        "ours_mib": peak_mib(ours),
        "other_mib": peak_mib(other),
    }


def copy_bandwidth() -> float:
    """GB/s read and written by a copy of 1 GiB."""
    source = torch.empty(1 << 28, device="cuda")
    target = torch.empty_like(source)
    times = [microseconds(lambda: target.copy_(source), 10) for _ in range(9)]
    return 2 * source.numel() * 4 / median(times) / 1e3


def power_law_graph(n_nodes: int, n_edges: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Offsets and neighbours of a symmetric graph whose degrees fall off as a power law."""
    draws = torch.Generator().manual_seed(0)
    ends = (torch.rand(2, n_edges, generator=draws) ** 2.5 * n_nodes).long()
    pairs = torch.unique(torch.cat([ends, ends.flip(0)], dim=1), dim=1)
    pairs = pairs[:, pairs[0] != pairs[1]]
    counts = torch.bincount(pairs[0], minlength=n_nodes)
    return torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]), pairs[1].int()


def gru_row(steps: int, lanes: int, hidden: int, device: str = "cuda") -> Row:
    """Forward and backward from the inputs x, against torch.nn.GRU (cuDNN), whose weights ours shares."""
    layer = torch.nn.GRU(hidden, hidden, device=device)
    weight_ih, weight_hh, bias_ih, bias_hh = layer.parameters()
    x = torch.randn(steps, lanes, hidden, device=device, requires_grad=True)
    state = torch.zeros(lanes, hidden, device=device)
    grad = torch.randn(steps, lanes, hidden, device=device)
    inputs = (x, *layer.parameters())
    impl = "native" if device == "cuda" else "emulated"

    def ours() -> object:
        output = ops.gru(F.linear(x, weight_ih, bias_ih), state, weight_hh, bias_hh, impl=impl)
        return torch.autograd.grad(output, inputs, grad)

    def cudnn() -> object:
        return torch.autograd.grad(layer(x)[0], inputs, grad)

    units = steps * lanes * hidden
    counted = 4 * (units * (13 + 16 + 2 * 4) + steps * 2 * weight_hh.numel())  # units, x and its products, weights
    return f"GRU, T={steps} B={lanes} H={hidden}, forward and backward", ours, "torch.nn.GRU", cudnn, counted


def plain_loss(hidden: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of a row's own target against the negatives that all rows share."""
    m = len(hidden)
    scores = torch.cat([(hidden * rows[:m]).sum(1, keepdim=True), hidden @ rows[m:].T], dim=1)
    return F.cross_entropy(scores, torch.zeros(m, dtype=torch.int64, device=hidden.device))


def loss_row(m: int, n: int, width: int, *, in_batch: bool = False, device: str = "cuda") -> Row:
    """Loss and its gradients, against the same in PyTorch under torch.compile."""
    hidden = torch.randn(m, width, device=device, requires_grad=True)
    rows = (torch.randn(m + n, width, device=device) / width**0.5).requires_grad_()
    impl = "native" if device == "cuda" else "emulated"

    def in_batch_loss(hidden: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(hidden @ rows.T, torch.arange(len(hidden), device=hidden.device))

    compiled = torch.compile(in_batch_loss if in_batch else plain_loss)

    def ours() -> object:
        value = ops.sampled_loss(hidden, rows, in_batch=in_batch, impl=impl)
        return torch.autograd.grad(value, (hidden, rows))

    def other() -> object:
        return torch.autograd.grad(compiled(hidden, rows), (hidden, rows))

    columns = m + n if in_batch else n
    counted = 4 * (
        5 * m * columns + 6 * m * width + 3 * (m + n) * width
    )  # scores: written, read, and thrice the gradient
    return f"loss, {m} rows, {n} negatives, H={width}", ours, "torch.compile", other, counted


def rows() -> Iterator[Row]:
    for steps, lanes, hidden in ((1, 32, 100), (50, 128, 100), (50, 512, 512)):
        yield gru_row(steps, lanes, hidden)
    yield loss_row(32, 2048, 100, in_batch=True)
    yield loss_row(6400, 8192, 512)
    table = ops.build_alias_table((1e7 / torch.arange(1, 100_001)).long() + 1, 0.75).to("cuda")
    probability = torch.softmax(table.log_prob, 0)
    yield (
        "negatives, 2048 of 100k items",
        lambda: ops.negative_sampling(table, 2048, seed=1, step=0, impl="native"),
        "torch.multinomial",
        lambda: torch.multinomial(probability, 2048, replacement=True),
        2048 * (20 + 12),
    )
    for shape in ((1, 32, 100), (16, 128, 512)):
        mask = torch.empty(shape, device="cuda")
        yield (
            f"dropout mask {shape}",
            lambda shape=shape: ops.dropout_mask(*shape, 0.3, seed=1, stream=1, step=0, device="cuda", impl="native"),
            "bernoulli_",
            lambda mask=mask: mask.bernoulli_(0.7).div_(0.7),
            mask.numel() * 4,
        )
    lengths = torch.randint(2, 9, (200_000,), generator=torch.Generator().manual_seed(1))
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    log = torch.arange(int(offsets[-1]), dtype=torch.int32)
    on_gpu, state = (log.cuda(), offsets.cuda()), ops.session_batch_state(128, "cuda")
    cpu_state = ops.session_batch_state(128)
    yield (
        "session batch, 128 lanes, 16 steps",
        lambda: ops.session_batch(*on_gpu, None, *state, 16, impl="native"),
        "the CPU kernel and a copy",
        lambda: [t.cuda() for t in ops.session_batch(log, offsets, None, *cpu_state, 16, impl="native")],
        16 * 128 * (8 + 17),
    )
    graph = [t.cuda() for t in power_law_graph(500_000, 5_000_000)]
    n_nodes, entries = graph[0].numel() - 1, graph[1].numel()
    features = torch.randn(n_nodes, 64, device="cuda")
    inverse = graph[0].diff().double().pow(-0.5).nan_to_num(posinf=0).float()
    sources = torch.repeat_interleave(torch.arange(n_nodes, device="cuda"), graph[0].diff())
    values = inverse[sources] * inverse[graph[1].long()]
    sparse = torch.sparse_csr_tensor(graph[0], graph[1].long(), values, (n_nodes, n_nodes))
    yield (
        f"L @ E, {entries} entries, d = 64",
        lambda: ops.laplacian(features, *graph, impl="native"),
        "torch CSR",
        lambda: sparse @ features,
        entries * (64 * 4 + 8) + n_nodes * 64 * 4,
    )


def update_and_rank() -> Iterator[Row]:
    table, accumulator = torch.randn(43_000, 480, device="cuda"), torch.ones(43_000, 480, device="cuda")
    index = (torch.rand(2144, device="cuda") ** 3 * 43_000).long()
    grad, touched, row_bytes = torch.randn(2144, 480, device="cuda"), int(index.unique().numel()), 480 * 4

    def update(impl: str) -> Work:
        return lambda: ops.sparse_adagrad(table, accumulator, None, index, grad, lr=1e-6, impl=impl)

    yield (
        f"sparse_adagrad, 2144 gradients of {touched} rows, 480 wide",
        update("native"),
        "coalesce, gather, scatter",
        update("reference"),
        2144 * (row_bytes + 16) + 4 * touched * row_bytes,
    )
    hidden, weight = torch.randn(512, 256, device="cuda"), torch.randn(1_000_000, 256, device="cuda")
    targets = torch.randint(1_000_000, (512,), device="cuda")

    def compared() -> torch.Tensor:
        scores = hidden @ weight.T
        return (scores > scores.gather(1, targets[:, None])).sum(1)

    yield (
        "target_rank, 512 x 1M items, 256 wide",
        lambda: ops.target_rank(hidden, weight, None, targets, impl="native"),
        "matmul and compare",
        compared,
        weight.numel() * 4,
    )
    yield (
        "top_k of 20, 512 x 1M items, 256 wide",
        lambda: ops.top_k(hidden, weight, None, 20, impl="native"),
        "matmul and topk",
        lambda: (hidden @ weight.T).topk(20),
        weight.numel() * 4,
    )


def training_steps() -> Iterator[Row]:
    """What `GRU4Rec.fit` plays on a log of made-up sessions: by graphs, and by autograd with the reference."""
    lengths = torch.randint(2, 9, (100_000,), generator=torch.Generator().manual_seed(1))
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    items = (torch.rand(int(offsets[-1]), generator=torch.Generator().manual_seed(2)) ** 2 * 30_000).long()
    store = SessionStore.from_arrays(items.numpy(), offsets.numpy(), n_items=30_000)
    device = torch.device("cuda")
    for setting in SETTINGS:
        sides = [
            player_side(player_of(store, setting.parameters() | way, device))
            for way in ({}, {"fused": False, "impl": "reference"})
        ]
        ours, reference = (lambda side=side: side(256) for side in sides)
        yield f"256 mini-batches, {setting}", ours, "autograd, reference", reference, 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--folder", type=Path, help="holds peers/ and data/")
    arguments = parser.parse_args()
    bandwidth = copy_bandwidth()
    found = []
    for name, ours, other_name, other, counted in chain(rows(), update_and_rank(), training_steps()):
        times = compare(ours, other, rounds=15 if counted else 7)
        row = {"row": name, "other": other_name, **times, "bytes": counted}
        row["copy_share"] = counted / row["ours_us"][0] / 1e3 / bandwidth
        found.append(row)
        print(json.dumps(row), flush=True)
    answer = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "copy_gbytes": bandwidth,
        "rows": found,
    }
    arguments.out.write_text(json.dumps(answer, indent=2) + "\n")


if __name__ == "__main__":
    main()
