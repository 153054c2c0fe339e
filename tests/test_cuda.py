"""The CUDA kernels on a GPU: the same bits as the reference on the CPU, no GPU synchronization, capture in CUDA graphs.

Without a GPU all tests are skipped. The tests of each kernel family run the same kernels with impl="emulated".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import test_gru as gru
import test_ngcf_layer as ngcf
import test_sampled_loss as loss
import test_sampled_loss_bf16 as loss_bf16
import test_training_step as training_step
import torch
from graph_oracle import random_graph
from native import assert_as_close, assert_equal_bits
from test_captured_step import CASES, Parts, by_autograd, losses_by_schedule, poison
from torch import Tensor, nn

from gru4rec_fast import InteractionGraph, _backend, ops
from gru4rec_fast.data import TripleSampler
from gru4rec_fast.nn import LightGCNNetwork, NGCFNetwork
from gru4rec_fast.ops.gru import FORMS
from gru4rec_fast.ops.ngcf_layer import ACTIVATIONS
from gru4rec_fast.ops.sampled_loss import LOSSES
from gru4rec_fast.training.captured_step import CapturedEpoch

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
    outputs: list[Tensor] = []
    for lanes in (1, 37, 700, 3000):  # the last is too large for shared memory
        state = ops.session_batch_state(lanes, device)
        for steps in (1, 7):
            outputs += ops.session_batch(*log, *state, steps, impl=impl)
        outputs += state
    return tuple(outputs)


def triples(device: str, impl: str) -> Outputs:
    offsets, neighbors = (t.to(device) for t in random_graph(60, 40, 500, seed=1))
    degrees = offsets.diff()[:60].cpu()
    users = torch.arange(60)[(degrees > 0) & (degrees < 40)].to(device)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), degrees[users.cpu()].cumsum(0)]).to(device)
    options = {"n_users": 60, "n_items": 40, "seed": 9, "step": 2, "impl": impl}
    return tuple(
        ops.bpr_triples(offsets, neighbors, users, 1001, starts=given, **options)  # type: ignore[arg-type]
        for given in (None, starts)
    )


def products(device: str, impl: str) -> Outputs:
    """Products with integers, whose sums are exact in any order. One node has so many neighbors that it is split up."""
    spokes = 3000
    offsets = torch.cat([torch.tensor([0]), torch.arange(spokes, 2 * spokes + 1)])
    neighbors = torch.cat([torch.arange(1, spokes + 1), torch.zeros(spokes, dtype=torch.int64)])
    graph = [t.to(device) for t in (offsets, neighbors)]
    whole = torch.randint(-3, 4, (spokes + 1, 70), generator=torch.Generator().manual_seed(0)).to(device)
    rows = torch.arange(0, spokes, 7, device=device)
    return tuple(
        ops.laplacian_propagation(
            whole[:, :width].to(dtype), *graph, "plain", rows=chosen, dropout=0.5, seed=4, impl=impl
        )
        for dtype in (torch.float32, torch.float64)
        for width in (1, 33, 64, 70)
        for chosen in (None, rows)
    )


def updates(device: str, impl: str) -> Outputs:
    """Updates with integers and powers of two, which are exact in any order. Rows repeat; index -1 is ignored.

    The accumulator and the squared gradient of a row sum to 128^2, which has an exact square root.
    """
    draws = torch.Generator().manual_seed(0)
    touched: list[Tensor] = []
    for width in (1, 6, 100):
        table, velocity = (torch.randint(-9, 9, (50, width), generator=draws).float().to(device) for _ in range(2))
        index = torch.randint(-1, 50, (300,), generator=draws)
        grad = torch.randint(-3, 4, (300, width), generator=draws)
        on_device = (index.to(device), grad.float().to(device))
        total = torch.zeros(51, width).index_add_(0, index % 51, grad.float())[:50]  # -1 % 51 is row 50
        accumulator = (128**2 - total.square()).to(device)
        ops.sparse_adagrad_(table, accumulator, velocity, *on_device, lr=0.5, momentum=0.5, eps=0.0, impl=impl)
        touched += [table, accumulator, velocity]
    return tuple(touched)


def rankings(device: str, impl: str, n: int = 40, n_items: int = 701, most: int = 33) -> Outputs:
    """Rank with integers, whose products are exact, and many ties: `n` queries, top `most` of `n_items` items."""
    draws = torch.Generator().manual_seed(0)
    shapes = ((n, 17), (n_items, 17), (n_items,))
    hidden, weight, bias = (torch.randint(-2, 3, shape, generator=draws) for shape in shapes)
    table = [t.to(device, dtype) for dtype in (torch.float32, torch.float64) for t in (hidden, weight, bias)]
    targets, exclude = torch.arange(n).to(device), torch.arange(3 * n).view(n, 3).to(device)
    outputs: list[Tensor] = []
    for part in (table[:3], table[3:]):
        outputs += ops.target_rank(*part, targets, impl=impl)
        for k in (1, 20, most):
            outputs += ops.top_k(*part, k, exclude, impl=impl)
        outputs += ops.top_k(part[0][:1], *part[1:], 20, impl=impl)
    return tuple(outputs)


def layers(device: str, impl: str) -> Outputs:
    """NGCF layers with integers and halves, which are exact in any order."""
    nodes = torch.arange(0, 50, 3, device=device)
    parts: list[dict] = [{}, {"rows": nodes}, {"Q": "plain+I", "P": "plain", "dtype": torch.float64}]
    outputs: list[Tensor] = []
    for widths in ngcf.WHOLE:
        for activation in ACTIVATIONS:
            for part in parts:
                outputs += ngcf.whole_layer(impl, widths, device, activation=activation, **part)
    return tuple(outputs)


def recurrences(device: str, impl: str, dtype: torch.dtype) -> Outputs:
    """GRU with one launch for all steps, and with one launch per step."""
    outputs: list[Tensor] = []
    for form in FORMS:
        for size in ((3, 7, 33), (2, 5, 140)):
            args = gru.as_dtype(gru.problem(form, *size, torch.float32), dtype)
            outputs += gru.output_and_gradients([on(device, argument) for argument in args], impl)
    return tuple(outputs)


def losses(device: str, impl: str, dtype: torch.dtype) -> Outputs:
    """Each loss, with and without in-batch negatives, with every mask, in float32 and bfloat16."""
    outputs: list[Tensor] = []
    for name in LOSSES:
        for in_batch in (True, False):
            options = {"loss": name, "in_batch": in_batch, **loss.PARAMETERS[name][0]}
            for given in (loss.problem(33, 100, 17, torch.float32), loss_bf16.bf16_problem(33, 100, 17)):
                arguments = given if dtype == torch.float32 else loss.as_float64(given)
                there = {key: on(device, argument) for key, argument in arguments.items()}
                outputs += loss_bf16.with_gradients(impl, there, **options)
    return tuple(outputs)


# Small cases of every kernel family by name, which compute-sanitizer runs (benchmarks/gpu/call.py, -m sanitizer).
EXACT = {
    "dropout": masks,
    "negative_sampling": negatives,
    "session_batch": batches,
    "bpr_triples": triples,
    "laplacian_propagation": products,
    "sparse_update": updates,
    "ranking": rankings,
    "ngcf_layer": layers,
}
CLOSE = {"gru": recurrences, "sampled_loss": losses, "training_step": training_step.everything}


@contextmanager
def no_synchronization() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.sanitizer
@pytest.mark.parametrize("family", EXACT)
def test_same_bits_as_the_reference(family: str) -> None:
    assert_family("cuda", "native", family)


@pytest.mark.sanitizer
@pytest.mark.parametrize("family", CLOSE)
def test_small_ones_are_as_close_as_the_reference(family: str) -> None:
    assert_family("cuda", "native", family)


def test_ranking_of_several_tiles() -> None:
    sizes = (700, 9001, 700)
    assert_equal_bits([t.cpu() for t in rankings("cuda", "native", *sizes)], rankings("cpu", "reference", *sizes))


def assert_family(device: str, impl: str, family: str) -> None:
    """Assert that the small cases of a family give the results of the reference on the CPU."""
    if family in CLOSE:
        run = CLOSE[family]
        ours = [t.cpu() for t in run(device, impl, torch.float32)]
        assert_as_close(ours, *(run("cpu", "reference", dtype) for dtype in (torch.float32, torch.float64)))
        return
    for mine, theirs in zip(EXACT[family](device, impl), EXACT[family]("cpu", "reference"), strict=True):
        assert mine.dtype == theirs.dtype and torch.equal(mine.cpu(), theirs)


def captured(run: Callable[[], Outputs]) -> Outputs:
    """Capture `run` in a CUDA graph, replay it, and return its result."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run()
    graph.replay()
    return outputs


def test_masks_and_negatives_in_a_graph_without_synchronization() -> None:
    table = ops.build_alias_table(torch.arange(1, 1000), 0.75, impl="reference")
    on_device = table.to("cuda")

    def draw() -> Outputs:
        mask = ops.dropout_mask(1, 32, 100, 0.1, seed=1, stream=1, step=0, device="cuda", impl="native")
        return mask, *ops.negative_sampling(on_device, 2048, seed=1, step=0, impl="native")

    draw()
    with no_synchronization():
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


@pytest.mark.parametrize("rule", [ops.sparse_adagrad_, ops.sparse_adam_])
def test_updates_are_the_reference_s(rule: Callable[..., None]) -> None:
    draws = torch.Generator().manual_seed(0)
    tensors = [torch.rand(50, 33, generator=draws) for _ in range(3)]
    index, grad = torch.randint(-1, 50, (300,), generator=draws), torch.randn(300, 33, generator=draws)
    options = {"lr": 0.1, **({"step": 3} if rule is ops.sparse_adam_ else {"momentum": 0.3})}
    on_device = [t.cuda() for t in (*tensors, index, grad)]
    with no_synchronization():
        rule(*on_device, **options, impl="native")
    rule(*tensors, index, grad, **options, impl="reference")
    torch.testing.assert_close([t.cpu() for t in on_device[:3]], tensors, rtol=1e-5, atol=1e-6)


def on_the_gpu(case: dict[str, Any]) -> Parts:
    parts = Parts("native", case)
    parts.network.cuda()
    parts.criterion.cuda()
    return parts


def trained_on_the_gpu(case: str, steps_per_graph: int = 4) -> tuple[Parts, CapturedEpoch]:
    parts = on_the_gpu(CASES[case])
    return parts, parts.start_epoch(steps_per_graph=steps_per_graph)


@pytest.mark.parametrize("case", CASES)
def test_steps_in_graphs_train_what_the_reference_trains_on_the_cpu(case: str) -> None:
    theirs = Parts("reference", CASES[case])
    expected = by_autograd(theirs)
    ours, epoch = trained_on_the_gpu(case)
    hidden, outcomes, finished = ours.network.initial_state(ours.loader.n_lanes), [], False
    while not finished:
        blocks, finished = epoch.run(9, hidden, step=sum(block[1] for block in outcomes))
        outcomes += [tuple(block) for block in blocks]
    assert [block[1:] for block in outcomes] == [block[1:] for block in expected]
    assert [block[0] for block in outcomes] == pytest.approx([block[0] for block in expected], rel=1e-9)
    torch.testing.assert_close([w.cpu() for w in ours.weights()], theirs.weights(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_a_whole_step_never_waits_for_the_device(case: str) -> None:
    """Drawing, one step after another, and the replay of their graph."""
    parts, epoch = trained_on_the_gpu(case, steps_per_graph=2)
    hidden = parts.network.initial_state(parts.loader.n_lanes)
    for number in range(4):  # launches of one and of two updates, twice each, of which the second captures
        epoch.run(1 + number // 2, hidden, step=number)
    for updates in (1, 2):
        captured = epoch.next_updates(updates, parts.loader.n_lanes)
        with no_synchronization():
            captured.fill(*epoch.draw(captured.shape.mini_batches, 100), 100)
            captured.run(hidden)


@pytest.mark.parametrize(("precision", "tolerance"), [("full", 1e-4), ("bf16", 2e-2)])
def test_float32_steps_in_graphs_lose_what_those_of_float64_lose(precision: str, tolerance: float) -> None:
    """16 updates, four of which are in each graph."""
    case = CASES["cross-entropy, logq"] | {"layers": [24]}
    expected = by_autograd(Parts("reference", case))[:16]
    ours = on_the_gpu(case | {"dtype": torch.float32})
    epoch, hidden = ours.start_epoch(steps_per_graph=4, precision=precision), ours.network.initial_state(6)
    losses = [block.loss for step in range(0, 16, 4) for block in epoch.run(4, hidden, step=step)[0]]
    assert losses == pytest.approx([block[0] for block in expected], rel=tolerance)


def test_a_captured_graph_follows_the_schedule_and_a_state_that_was_loaded() -> None:
    case = {"momentum": 0.3}
    expected = by_autograd(Parts("reference", case), rates=[0.3, 0.02, 0.1])
    losses = losses_by_schedule(on_the_gpu(case), [0.3, 0.02, 0.1], len(expected))
    assert losses == pytest.approx([block[0] for block in expected], rel=1e-9)


def test_a_captured_graph_stops_at_a_loss_that_is_no_number() -> None:
    """The loss is NaN in the third of four updates: it is the last loss reported; the weights have two updates."""
    case = {"n_sample": 0, "loss": "bpr"}
    ours, theirs = on_the_gpu(case), Parts("reference", case)
    for parts in (ours, theirs):
        poison(parts, 10)
    epoch, hidden = ours.start_epoch(steps_per_graph=4), ours.network.initial_state(6)
    outcomes = [block for step in (0, 4, 8) for block in epoch.run(4, hidden, step=step)[0]]
    assert [block.loss == block.loss for block in outcomes] == [True] * 10 + [False]
    theirs.start_epoch().run(10, theirs.network.initial_state(6), step=0)
    weights = [weight.cpu() for weight in ours.weights()]
    torch.testing.assert_close(weights, theirs.weights(), rtol=1e-9, atol=1e-9, equal_nan=True)


def on(device: str, argument: object) -> object:
    if not isinstance(argument, Tensor):
        return argument
    return argument.detach().to(device).requires_grad_(argument.requires_grad)


def on_gpu(argument: object) -> object:
    return on("cuda", argument)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(
    ("steps", "lanes", "hidden"),
    [(1, 1, 1), (1, 32, 100), (3, 1, 17), (2, 300, 33), (4, 7, 128), (3, 7, 255), (5, 50, 512), (2, 3000, 20)],
)
def test_gru_is_as_close_as_the_reference(form: str, dtype: torch.dtype, steps: int, lanes: int, hidden: int) -> None:
    args = gru.problem(form, steps, lanes, hidden, dtype)
    oracle = gru.output_and_gradients(gru.as_dtype(args, torch.float64), "reference")
    there = [on_gpu(argument) for argument in args]
    ours = gru.output_and_gradients(there, "native")
    assert_as_close([t.cpu() for t in ours], gru.output_and_gradients(args, "reference"), oracle)
    assert_equal_bits(gru.output_and_gradients(there, "native"), ours)


@pytest.mark.parametrize(("name", "parameters"), [(name, p) for name in LOSSES for p in loss.PARAMETERS[name]])
@pytest.mark.parametrize("in_batch", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_losses_are_as_close_as_the_reference(name: str, parameters: dict, in_batch: bool, dtype: torch.dtype) -> None:
    options = {"loss": name, "in_batch": in_batch, **parameters}
    for m, n, h in ((1, 17, 1), (2, 0, 5), (5, 33, 0), (32, 2048, 100), (255, 31, 33), (700, 14_000, 16)):
        for given in (True, False):
            arguments = loss.problem(m, n, h, dtype, given=given)
            oracle = loss.value_and_gradients(loss.as_float64(arguments), "reference", **options)
            reference = loss.value_and_gradients(arguments, "reference", **options)
            there = {key: on_gpu(argument) for key, argument in arguments.items()}
            ours = loss.value_and_gradients(there, "native", **options)
            assert_as_close([t.cpu() for t in ours], reference, oracle)
            assert_equal_bits(loss.value_and_gradients(there, "native", **options), ours)


@loss_bf16.losses
@loss_bf16.forms
def test_losses_of_bfloat16_are_as_close_as_the_reference(loss: str, parameters: dict, in_batch: bool) -> None:
    """On a GPU, torch computes bfloat16 products with float32 sums; no other test runs them."""
    options = {"loss": loss, "in_batch": in_batch, **parameters}
    for m, n, h in (*loss_bf16.SIZES, (0, 6, 3), (32, 2048, 100), (700, 14_000, 16)):
        for given in (True, False):
            arguments = loss_bf16.bf16_problem(m, n, h, given=given)
            oracle = loss_bf16.with_gradients("reference", loss_bf16.as_float64(arguments), **options)
            reference = loss_bf16.with_gradients("reference", arguments, **options)
            there = {key: on_gpu(argument) for key, argument in arguments.items()}
            ours = loss_bf16.with_gradients("native", there, **options)
            assert_as_close([t.cpu() for t in ours], reference, oracle)
            with no_synchronization():
                assert_equal_bits(loss_bf16.with_gradients("native", there, **options), ours)
            replayed = captured(lambda there=there: tuple(loss_bf16.with_gradients("native", there, **options)))
            assert_equal_bits(replayed, ours)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("P", "Q"), [("norm", "norm"), ("symmetric+I", "symmetric"), ("mean", "plain+I")])
def test_ngcf_layers_are_as_close_as_the_reference(dtype: torch.dtype, activation: str, P: str, Q: str) -> None:
    """All nodes and some; widths that allow vectorized loads and others. Repeated calls give the same bits."""
    graph = ngcf.large()
    n_nodes = len(graph[0]) - 1
    rows = torch.arange(3, n_nodes, 2)
    for nodes in ((None, None), (rows, torch.cat([rows, torch.arange(0, n_nodes, 4)]).unique())):
        for widths in ((64, 32), (33, 70)):
            E = ngcf.normal(n_nodes if nodes[1] is None else len(nodes[1]), widths[0], dtype=dtype)
            given = [E, *ngcf.weights_of(*widths, dtype)]
            options = {"P": P, "Q": Q, "activation": activation, "node_dropout": 0.1, "message_dropout": 0.2}

            def run(impl: str, device: str, to: torch.dtype) -> list[Tensor]:
                inputs = [t.detach().to(device, to).requires_grad_() for t in given]  # noqa: B023
                at = [t if t is None else t.to(device) for t in (*graph, *nodes)]  # noqa: B023
                chosen = {"rows": at[2], "columns": at[3], **options}  # noqa: B023
                out = ops.ngcf_layer(inputs[0], at[0], at[1], *inputs[1:], **chosen, seed=7, step=5, impl=impl)
                direction = ngcf.normal(*out.shape, seed=4, dtype=dtype).to(device, to)
                return [out.detach(), *torch.autograd.grad(out, inputs, direction)]

            ours = run("native", "cuda", dtype)
            reference, oracle = run("reference", "cpu", dtype), run("reference", "cpu", torch.float64)
            assert_as_close([t.cpu() for t in ours], reference, oracle)
            assert_equal_bits(run("native", "cuda", dtype), ours)


def test_an_ngcf_layer_in_a_graph_without_synchronization() -> None:
    graph = [t.cuda() for t in ngcf.large()]
    columns = torch.arange(0, len(graph[0]) - 1, 2, device="cuda")
    rows = columns[::3].contiguous()
    E, W1, b1, W2, b2 = (t.float().cuda() for t in (ngcf.normal(len(columns), 20), *ngcf.weights_of(20, 24)))
    options = ("symmetric+I", "mean", True, 0.2, 0.1, 0.1, 3, 4, 1)
    library = torch.ops.gru4rec_fast

    def step() -> Outputs:
        with torch.no_grad():
            out, *kept = library.ngcf_layer(E, *graph, rows, columns, W1, b1, W2, b2, *options)
            return out, *kept, *library.ngcf_layer_backward(out, E, *graph, rows, columns, W1, W2, *kept, *options)

    expected = step()
    with no_synchronization():
        step()
    assert_equal_bits(captured(step), expected)


@pytest.mark.parametrize("network_class", [NGCFNetwork, LightGCNNetwork])
def test_a_graph_model_s_step_for_all_nodes_never_waits(network_class: type[nn.Module]) -> None:
    draws = np.random.default_rng(0)
    graph = InteractionGraph.from_arrays(draws.integers(300, size=5000), draws.integers(400, size=5000))
    network = network_class(graph, 64, node_dropout=0.1, only_needed=False).cuda()
    sampler = TripleSampler(graph, 256, device="cuda")
    optimizer = torch.optim.Adam(network.parameters(), fused=True)

    def train(step: int) -> None:
        bpr, norm = network.loss(*sampler.draw(step), step=step)
        optimizer.zero_grad(set_to_none=True)
        (bpr + 1e-5 * norm).backward()
        optimizer.step()

    train(0)
    with no_synchronization():
        train(1)


@pytest.mark.parametrize("hidden", [100, 300])  # one launch for all steps, and one per step
@pytest.mark.parametrize("in_batch", [True, False])
def test_gru_and_loss_in_a_graph_without_synchronization(hidden: int, in_batch: bool) -> None:
    args = [on_gpu(argument) for argument in gru.problem("reset_after", 4, 20, hidden, torch.float32)]
    rows = torch.randn(80 + 300, hidden, device="cuda")
    live = torch.arange(80, device="cuda") % 9 > 0
    library = torch.ops.gru4rec_fast

    def step() -> Outputs:
        with torch.no_grad():
            output, saved = library.gru(*args)
            options = ("cross-entropy", in_batch, 80.0, 0.0, 1.0, 0.0)
            value, grad, *others = library.sampled_loss(
                output.view(80, hidden), rows, None, live, None, None, None, *options
            )
            return value, *others, *library.gru_backward(grad.view_as(output), output, saved, *args[1:])

    expected = step()
    with no_synchronization():
        step()
    assert_equal_bits(captured(step), expected)


def test_the_library_has_cuda_kernels() -> None:
    info = _backend.build_info()
    assert info["native_cuda"], info["why_not_cuda"]
