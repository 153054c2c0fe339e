"""The CUDA kernels on a GPU: the same bits as the reference on the CPU, no synchronisation, capturable in a graph.

Without a GPU all of it is skipped; the kernels' own source then runs under impl="emulated", in the families' tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from graph_oracle import random_graph
from torch import Tensor

from gru4rec_fast import _backend, ops

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here"),
]

Outputs = tuple[Tensor, ...]


def masks(device: str, impl: str) -> Outputs:
    options = {"seed": 2**40 + 5, "stream": 2, "step": 7, "device": device, "impl": impl}
    return tuple(
        ops.dropout_mask(3, 5, 77, 0.3, dtype=dtype, **options)  # type: ignore[arg-type]
        for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16)
    )


def negatives(device: str, impl: str) -> Outputs:
    table = ops.build_alias_table(torch.arange(1, 1000), 0.75, impl="reference").to(device)
    return ops.negative_sampling(table, 333, seed=3, step=5, steps=4, impl=impl)


def batches(device: str, impl: str) -> Outputs:
    lengths = torch.randint(0, 9, (300,), generator=torch.Generator().manual_seed(1))
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    order = torch.randperm(300, generator=torch.Generator().manual_seed(2))
    log = [t.to(device) for t in (torch.arange(int(offsets[-1]), dtype=torch.int32), offsets, order)]
    played: list[Tensor] = []
    for lanes in (1, 37, 700, 3000):  # the last beyond what shared memory holds
        state = ops.session_batch_state(lanes, device)
        for steps in (1, 7):
            played += ops.session_batch(*log, *state, steps, impl=impl)
        played += state
    return tuple(played)


def triples(device: str, impl: str) -> Outputs:
    offsets, neighbours = (t.to(device) for t in random_graph(60, 40, 500, seed=1))
    degrees = offsets.diff()[:60].cpu()
    users = torch.arange(60)[(degrees > 0) & (degrees < 40)].to(device)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), degrees[users.cpu()].cumsum(0)]).to(device)
    options = {"n_users": 60, "n_items": 40, "seed": 9, "step": 2, "impl": impl}
    return tuple(
        ops.bpr_triples(offsets, neighbours, users, 1001, starts=given, **options)  # type: ignore[arg-type]
        for given in (None, starts)
    )


def products(device: str, impl: str) -> Outputs:
    """Whole numbers, summed without rounding in whatever order, with a hub that is cut into segments."""
    spokes = 3000
    offsets = torch.cat([torch.tensor([0]), torch.arange(spokes, 2 * spokes + 1)])
    neighbours = torch.cat([torch.arange(1, spokes + 1), torch.zeros(spokes, dtype=torch.int64)])
    graph = [t.to(device) for t in (offsets, neighbours)]
    whole = torch.randint(-3, 4, (spokes + 1, 70), generator=torch.Generator().manual_seed(0)).to(device)
    rows = torch.arange(0, spokes, 7, device=device)
    return tuple(
        ops.laplacian(whole[:, :width].to(dtype), *graph, "plain", rows=chosen, dropout=0.5, seed=4, impl=impl)
        for dtype in (torch.float32, torch.float64)
        for width in (1, 33, 64, 70)
        for chosen in (None, rows)
    )


cases = pytest.mark.parametrize("case", [masks, negatives, batches, triples, products])
Case = Callable[[str, str], Outputs]


@contextmanager
def no_synchronisation() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@cases
def test_same_bits_as_the_reference(case: Case) -> None:
    for ours, theirs in zip(case("cuda", "native"), case("cpu", "reference"), strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours.cpu(), theirs)


def captured(run: Callable[[], Outputs]) -> Outputs:
    """What `run` gives when it is captured in a graph and replayed."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run()
    graph.replay()
    return outputs


def test_masks_and_negatives_in_a_graph_without_synchronisation() -> None:
    table = ops.build_alias_table(torch.arange(1, 1000), 0.75, impl="reference")
    on_device = table.to("cuda")

    def draw() -> Outputs:
        mask = ops.dropout_mask(1, 32, 100, 0.1, seed=1, stream=1, step=0, device="cuda", impl="native")
        return mask, *ops.negative_sampling(on_device, 2048, seed=1, step=0, impl="native")

    draw()
    with no_synchronisation():
        draw()
    expected = (
        ops.dropout_mask(1, 32, 100, 0.1, seed=1, stream=1, step=0, impl="reference"),
        *ops.negative_sampling(table, 2048, seed=1, step=0, impl="reference"),
    )
    assert all(torch.equal(a.cpu(), b) for a, b in zip(captured(draw), expected, strict=True))


def test_batches_in_a_graph_go_on_at_every_replay() -> None:
    offsets = torch.arange(0, 1001, 4)
    log = (torch.arange(1000, dtype=torch.int32), offsets)
    on_device, state = [t.cuda() for t in log], ops.session_batch_state(8, "cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        block = ops.session_batch(*on_device, None, *state, 3, impl="native")
    expected_state = ops.session_batch_state(8)
    for _ in range(5):
        graph.replay()
        expected = ops.session_batch(*log, None, *expected_state, 3, impl="reference")
        assert all(torch.equal(a.cpu(), b) for a, b in zip(block, expected, strict=True))


def test_the_library_has_cuda_kernels() -> None:
    info = _backend.build_info()
    assert info["native_cuda"], info["why_not_cuda"]
