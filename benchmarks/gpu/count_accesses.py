"""Count the sectors and bank conflicts of every CUDA kernel, without a GPU.

    PYTHONPATH=.:benchmarks:tools python -m gpu.count_accesses

Prints a table. Each kernel runs in the emulator, in float32, at a small version of its benchmark. A request is one load
or store of a warp; tools/cuda_emulator/access_counter.h defines how its sectors and its cycles in shared memory are
counted. Every access of a kernel's source is counted, but the compiler of the emulator is not nvcc: it may keep a value
in a register that nvcc loads again, or the reverse. The arguments of kernels are left out: they are constants.
"""

from __future__ import annotations

from dataclasses import dataclass

import cuda_emulator
import torch
from torch import Tensor

from gpu.count_launches import CASES, count_step
from gru4rec_fast import ops

SHARED_BYTES = {"small": 48 << 10, "H200": 227 << 10}  # limits of shared memory; with the small one, gru runs stepwise


@dataclass(frozen=True)
class Accesses:
    """Sums over all requests of a kernel. See AccessCounts in tools/cuda_emulator/access_counter.h."""

    requests: int
    sectors: int
    least_sectors: int
    shared_requests: int
    cycles: int
    least_cycles: int

    @property
    def sectors_per_request(self) -> float:
        """Sectors of 32 bytes in global memory that a request touches."""
        return self.sectors / max(self.requests, 1)

    @property
    def least_sectors_per_request(self) -> float:
        """Sectors per request if the bytes of each request were neighbors."""
        return self.least_sectors / max(self.requests, 1)

    @property
    def excess_sectors(self) -> float:
        """Sectors, relative to the least possible number."""
        return self.sectors / self.least_sectors if self.least_sectors else 1.0

    @property
    def conflicts(self) -> float:
        """Cycles of shared memory, relative to those without bank conflicts."""
        return self.cycles / self.least_cycles if self.least_cycles else 1.0


def count_accesses() -> dict[str, Accesses]:
    """Run every kernel. Return the sums over its launches, by the kernel's name."""
    emulator = cuda_emulator.load()
    torch.manual_seed(0)
    emulator.set_seed(0)
    emulator.count_accesses(True)
    try:
        for name in ("L100 B32, cross-entropy", "L100 B32, BPR-max", "L100 B32, cross-entropy, reset_before"):
            setting, arguments = CASES[name]
            count_step(setting, **arguments)
        for limit in SHARED_BYTES.values():
            emulator.set_shared_limit(limit)
            for form in ("reset_after", "reset_before"):
                _run_gru(form)
        emulator.set_shared_limit(SHARED_BYTES["small"])
        _run_loss()
        _run_ranking()
        _run_graph()
        _run_update()
        counts = emulator.access_counts()
    finally:
        emulator.set_shared_limit(SHARED_BYTES["small"])
        emulator.count_accesses(False)
    return {kernel: Accesses(**sums) for kernel, sums in sorted(counts.items())}


def _run_gru(form: str) -> None:
    steps, lanes, hidden = 3, 32, 100
    shapes = ((steps, lanes, 3 * hidden), (lanes, hidden), (3 * hidden, hidden))
    arguments = [torch.randn(shape).requires_grad_() for shape in shapes]
    reset = torch.rand(steps, lanes) < 0.2
    ops.gru(*arguments, None, reset, None, form, impl="emulated").sum().backward()


def _run_loss() -> None:
    m, n, width = 32, 96, 100
    hidden, rows = (torch.randn(shape).requires_grad_() for shape in ((m, width), (m + n, width)))
    bias = torch.zeros(m + n).requires_grad_()
    ops.sampled_loss(hidden, rows, bias, log_q=torch.zeros(m + n), impl="emulated").backward()


def _run_ranking() -> None:
    queries, items, width = 8, 2000, 64
    hidden, weight, bias = torch.randn(queries, width), torch.randn(items, width), torch.randn(items)
    ops.target_rank(hidden, weight, bias, torch.arange(queries) * 7, impl="emulated")
    ops.top_k(hidden, weight, bias, 20, impl="emulated")


def _random_graph(n_users: int, n_items: int, edges: int) -> tuple[Tensor, Tensor]:
    """Return offsets and neighbors of a graph of users and items. The popularity of items follows a power law."""
    adjacency = torch.zeros(n_users + n_items, n_users + n_items, dtype=torch.bool)
    items = n_users + (torch.rand(edges) ** 3 * n_items).long()
    adjacency[torch.arange(edges) % n_users, items] = True
    adjacency |= adjacency.T.clone()
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), adjacency.sum(1).cumsum(0)])
    return offsets, adjacency.nonzero()[:, 1].contiguous()


def _run_graph() -> None:
    n_users, n_items, width = 1200, 200, 64
    graph = _random_graph(n_users, n_items, 20_000)  # the most popular item has more neighbors than a segment
    features = torch.randn(n_users + n_items, width).requires_grad_()
    ops.laplacian_propagation(features, *graph, impl="emulated").sum().backward()
    weights = [torch.randn(shape).requires_grad_() for shape in ((width, width), (width,)) * 2]
    rows, columns = torch.arange(0, n_users, 2), torch.arange(n_users + n_items)
    ops.ngcf_layer(
        features, *graph, *weights, rows=rows, columns=columns, message_dropout=0.1, seed=1, impl="emulated"
    ).sum().backward()  # fmt: skip
    ops.bpr_triples(
        *graph, torch.arange(n_users), 512, n_users=n_users, n_items=n_items, seed=1, step=0, impl="emulated"
    )  # fmt: skip


def _run_update() -> None:
    rows, width, n = 500, 100, 512
    table, accumulator, velocity = (torch.rand(rows, width) for _ in range(3))
    gradients = torch.randn(n, width)
    index = torch.randint(rows, (n,))
    ops.sparse_adagrad_(table, accumulator, velocity, index, gradients, lr=0.1, momentum=0.1, impl="emulated")
    mask_shape = (2, 32, 100)
    ops.dropout_mask(*mask_shape, 0.5, seed=0, stream=0, step=0, impl="emulated")


def main() -> None:
    cuda_emulator.register()
    torch.set_num_threads(1)
    print("| kernel | requests | sectors per request | least possible | requests in shared memory | conflicts |")
    print("|---|---|---|---|---|---|")
    for kernel, counts in count_accesses().items():
        print(
            f"| `{kernel}` | {counts.requests} | {counts.sectors_per_request:.2f} "
            f"| {counts.least_sectors_per_request:.2f} | {counts.shared_requests} | {counts.conflicts:.2f} |"
        )


if __name__ == "__main__":
    main()
