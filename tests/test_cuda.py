"""The CUDA kernels on a GPU: results equal the reference on the CPU, no GPU synchronization, capture in CUDA graphs.

Without a GPU all tests are skipped. Other test files, one per kernel family, run the same kernels emulated on the CPU.
"""

from __future__ import annotations

import gc
import json
import warnings
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
from markov import markov_store
from native import assert_as_close, assert_equal_bits
from test_captured_step import CASES, TrainingSetup, losses_by_schedule, poison, train_by_autograd
from test_distributed import PROGRAM, torchrun
from torch import Tensor, nn

from gru4rec_fast import GRU4Rec, InteractionGraph, _backend, ops
from gru4rec_fast.data import TripleSampler
from gru4rec_fast.nn import LightGCNNetwork, NGCFNetwork
from gru4rec_fast.ops.gru import FORMS
from gru4rec_fast.ops.ngcf_layer import ACTIVATIONS
from gru4rec_fast.ops.sampled_loss import LOSSES
from gru4rec_fast.profiling import OutOfMemoryWarning, oom_guard
from gru4rec_fast.training.captured_step import CapturedEpoch, CapturedTrainingStep
from gru4rec_fast.training.graph_capture import CapturedUpdates

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

Outputs = tuple[Tensor, ...]
N_LANES = 6  # default of TrainingSetup


# Each of these functions runs small cases of one kernel family on a device, and returns the outputs of all cases.
def run_dropout(device: str, impl: str) -> Outputs:
    options = {"seed": 2**40 + 5, "stream": 2, "step": 7, "device": device, "impl": impl}
    return tuple(
        ops.dropout_mask(3, 5, 77, 0.3, dtype=dtype, **options)  # type: ignore[arg-type]
        for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16)
    )


def run_negative_sampling(device: str, impl: str) -> Outputs:
    table = ops.build_alias_table(torch.arange(1, 1000), 0.75, impl="reference").to(device)
    return ops.negative_sampling(table, 333, seed=3, step=5, steps=4, impl=impl)


def run_session_batch(device: str, impl: str) -> Outputs:
    lengths = torch.randint(0, 9, (300,), generator=torch.Generator().manual_seed(1))
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    order = torch.randperm(300, generator=torch.Generator().manual_seed(2))
    log = [t.to(device) for t in (torch.arange(int(offsets[-1]), dtype=torch.int32), offsets, order)]
    outputs: list[Tensor] = []
    for lanes in (1, 37, 700, 3000):  # 3000 lanes do not fit in shared memory
        state = ops.session_batch_state(lanes, device)
        for steps in (1, 7):
            outputs += ops.session_batch(*log, *state, steps, impl=impl)
        outputs += state
    return tuple(outputs)


def run_bpr_triples(device: str, impl: str) -> Outputs:
    offsets, neighbors = (t.to(device) for t in random_graph(60, 40, 500, seed=1))
    degrees = offsets.diff()[:60].cpu()
    users = torch.arange(60)[(degrees > 0) & (degrees < 40)].to(device)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), degrees[users.cpu()].cumsum(0)]).to(device)
    options = {"n_users": 60, "n_items": 40, "seed": 9, "step": 2, "impl": impl}
    return tuple(
        ops.bpr_triples(offsets, neighbors, users, 1001, starts=optional_starts, **options)  # type: ignore[arg-type]
        for optional_starts in (None, starts)
    )


def run_laplacian_propagation(device: str, impl: str) -> Outputs:
    """Propagate integers, whose sums are exact in any order.

    Node 0 is a neighbor of all others. It has so many neighbors that several thread blocks sum them.
    """
    n_others = 3000
    offsets = torch.cat([torch.tensor([0]), torch.arange(n_others, 2 * n_others + 1)])
    neighbors = torch.cat([torch.arange(1, n_others + 1), torch.zeros(n_others, dtype=torch.int64)])
    graph = [t.to(device) for t in (offsets, neighbors)]
    features = torch.randint(-3, 4, (n_others + 1, 70), generator=torch.Generator().manual_seed(0)).to(device)
    some_rows = torch.arange(0, n_others, 7, device=device)
    return tuple(
        ops.laplacian_propagation(
            features[:, :width].to(dtype), *graph, "plain", rows=rows, dropout=0.5, seed=4, impl=impl
        )
        for dtype in (torch.float32, torch.float64)
        for width in (1, 33, 64, 70)
        for rows in (None, some_rows)
    )


def run_sparse_update(device: str, impl: str) -> Outputs:
    """Update tables with integers and powers of two, which are exact in any order. Some indices repeat, some are -1.

    Accumulator plus squared gradient of a row is 128^2, whose square root is exact.
    """
    generator = torch.Generator().manual_seed(0)
    outputs: list[Tensor] = []
    for width in (1, 6, 100):
        table, velocity = (torch.randint(-9, 9, (50, width), generator=generator).float().to(device) for _ in range(2))
        index = torch.randint(-1, 50, (300,), generator=generator)
        grad = torch.randint(-3, 4, (300, width), generator=generator)
        on_device = (index.to(device), grad.float().to(device))
        # Sum of the gradients of each row. Index -1, which the update ignores, goes to row -1 % 51 = 50.
        row_grad = torch.zeros(51, width).index_add_(0, index % 51, grad.float())[:50]
        accumulator = (128**2 - row_grad.square()).to(device)
        ops.sparse_adagrad_(table, accumulator, velocity, *on_device, lr=0.5, momentum=0.5, eps=0.0, impl=impl)
        outputs += [table, accumulator, velocity]
    return tuple(outputs)


def run_ranking(device: str, impl: str, n_queries: int = 40, n_items: int = 701, largest_k: int = 33) -> Outputs:
    """Rank with small integers, whose products are exact. There are many ties."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((n_queries, 17), (n_items, 17), (n_items,))
    hidden, weight, bias = (torch.randint(-2, 3, shape, generator=generator) for shape in shapes)
    targets = torch.arange(n_queries).to(device)
    exclude = torch.arange(3 * n_queries).view(n_queries, 3).to(device)
    outputs: list[Tensor] = []
    for dtype in (torch.float32, torch.float64):
        queries, *table = (t.to(device, dtype) for t in (hidden, weight, bias))
        outputs += ops.target_rank(queries, *table, targets, impl=impl)
        for k in (1, 20, largest_k):
            outputs += ops.top_k(queries, *table, k, exclude, impl=impl)
        outputs += ops.top_k(queries[:1], *table, 20, impl=impl)
    return tuple(outputs)


def run_ngcf_layer(device: str, impl: str) -> Outputs:
    """Run NGCF layers with integers and halves, whose sums are exact in any order."""
    nodes = torch.arange(0, 50, 3, device=device)
    variants: list[dict] = [{}, {"rows": nodes}, {"Q": "plain+I", "P": "plain", "dtype": torch.float64}]
    outputs: list[Tensor] = []
    for widths in ngcf.LAYER_WIDTHS:
        for activation in ACTIVATIONS:
            for variant in variants:
                outputs += ngcf.whole_number_layer(impl, widths, device, activation=activation, **variant)
    return tuple(outputs)


def run_gru(device: str, impl: str, dtype: torch.dtype) -> Outputs:
    """Run a GRU that needs one launch for all steps, and a wider one that needs one launch per step."""
    outputs: list[Tensor] = []
    for form in FORMS:
        for size in ((3, 7, 33), (2, 5, 140)):
            args = gru.as_dtype(gru.make_args(form, *size, torch.float32), dtype)
            outputs += gru.output_and_gradients([to_device(device, argument) for argument in args], impl)
    return tuple(outputs)


def run_sampled_loss(device: str, impl: str, dtype: torch.dtype) -> Outputs:
    """Run each loss, with and without in-batch negatives, with every mask, in float32 and bfloat16."""
    outputs: list[Tensor] = []
    for name in LOSSES:
        for in_batch in (True, False):
            options = {"loss": name, "in_batch": in_batch, **loss.PARAMETERS[name][0]}
            for arguments in (loss.problem(33, 100, 17, torch.float32), loss_bf16.bf16_problem(33, 100, 17)):
                converted = arguments if dtype == torch.float32 else loss.as_float64(arguments)
                on_device = {key: to_device(device, argument) for key, argument in converted.items()}
                outputs += loss_bf16.loss_and_gradients(impl, on_device, **options)
    return tuple(outputs)


# EXACT: kernel families whose results must be equal to the reference. CLOSE: families whose error, compared with
# float64, may be about the error of the reference. compute-sanitizer runs these cases too (benchmarks/gpu/call.py).
EXACT = {
    "dropout": run_dropout,
    "negative_sampling": run_negative_sampling,
    "session_batch": run_session_batch,
    "bpr_triples": run_bpr_triples,
    "laplacian_propagation": run_laplacian_propagation,
    "sparse_update": run_sparse_update,
    "ranking": run_ranking,
    "ngcf_layer": run_ngcf_layer,
}
CLOSE = {"gru": run_gru, "sampled_loss": run_sampled_loss, "training_step": training_step.results_of_all_operators}


@contextmanager
def no_synchronization() -> Iterator[None]:
    """Raise an error if the CPU waits for the GPU within this context."""
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
def test_small_cases_are_as_close_as_the_reference(family: str) -> None:
    assert_family("cuda", "native", family)


def test_ranking_of_several_tiles() -> None:
    sizes = {"n_queries": 700, "n_items": 9001, "largest_k": 700}
    outputs = [t.cpu() for t in run_ranking("cuda", "native", **sizes)]
    assert_equal_bits(outputs, run_ranking("cpu", "reference", **sizes))


def assert_family(device: str, impl: str, family: str) -> None:
    """Assert that the small cases of a family equal the reference on the CPU, or are as close to float64."""
    if family in CLOSE:
        run = CLOSE[family]
        outputs = [t.cpu() for t in run(device, impl, torch.float32)]
        assert_as_close(outputs, *(run("cpu", "reference", dtype) for dtype in (torch.float32, torch.float64)))
        return
    for output, expected in zip(EXACT[family](device, impl), EXACT[family]("cpu", "reference"), strict=True):
        assert output.dtype == expected.dtype and torch.equal(output.cpu(), expected)


def capture_and_replay(run: Callable[[], Outputs]) -> Outputs:
    """Capture `run` in a CUDA graph, replay the graph, and return the outputs."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run()
    graph.replay()
    return outputs


def test_dropout_and_negatives_in_a_cuda_graph_without_synchronization() -> None:
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
    assert all(torch.equal(a.cpu(), b) for a, b in zip(capture_and_replay(draw), expected, strict=True))


def test_session_batch_in_a_cuda_graph_advances_at_every_replay() -> None:
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
def test_sparse_updates_are_close_to_the_reference(rule: Callable[..., None]) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.rand(50, 33, generator=generator) for _ in range(3)]
    index, grad = torch.randint(-1, 50, (300,), generator=generator), torch.randn(300, 33, generator=generator)
    options = {"lr": 0.1, **({"step": 3} if rule is ops.sparse_adam_ else {"momentum": 0.3})}
    on_device = [t.cuda() for t in (*tensors, index, grad)]
    with no_synchronization():
        rule(*on_device, **options, impl="native")
    rule(*tensors, index, grad, **options, impl="reference")
    torch.testing.assert_close([t.cpu() for t in on_device[:3]], tensors, rtol=1e-5, atol=1e-6)


def setup_on_gpu(case: dict[str, Any]) -> TrainingSetup:
    """Return the training setup of a case, with native kernels on the GPU."""
    setup = TrainingSetup("native", case)
    setup.network.cuda()
    setup.criterion.cuda()
    return setup


def start_epoch_on_gpu(case: str, steps_per_graph: int = 4) -> tuple[TrainingSetup, CapturedEpoch]:
    """Return the training setup of a case and a started epoch."""
    setup = setup_on_gpu(CASES[case])
    return setup, setup.start_epoch(steps_per_graph=steps_per_graph)


@pytest.mark.parametrize("case", CASES)
def test_captured_steps_train_as_the_reference_on_the_cpu(case: str) -> None:
    reference = TrainingSetup("reference", CASES[case])
    expected = train_by_autograd(reference)
    setup, epoch = start_epoch_on_gpu(case)
    hidden, outcomes, finished = setup.network.initial_state(setup.loader.n_lanes), [], False
    while not finished:
        blocks, finished = epoch.run(9, hidden, step=sum(block.steps for block in outcomes))
        outcomes += blocks
    assert [(block.steps, block.events) for block in outcomes] == [(block.steps, block.events) for block in expected]
    assert [block.loss for block in outcomes] == pytest.approx([block.loss for block in expected], rel=1e-9)
    torch.testing.assert_close([w.cpu() for w in setup.weights()], reference.weights(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_captured_step_causes_no_synchronization(case: str) -> None:
    """Neither drawing mini-batches nor replaying the CUDA graph of one or two updates waits for the GPU."""
    setup, epoch = start_epoch_on_gpu(case, steps_per_graph=2)
    hidden = setup.network.initial_state(setup.loader.n_lanes)
    for step, n_updates in enumerate((1, 1, 2, 2)):  # a graph is captured in the second run of each size
        epoch.run(n_updates, hidden, step=step)
    for n_updates in (1, 2):
        captured = epoch.next_updates(n_updates, setup.loader.n_lanes)
        with no_synchronization():
            captured.fill(*epoch.draw(captured.shape.mini_batches, step=100), first_step=100)
            captured.run(hidden)


@pytest.mark.parametrize(("precision", "tolerance"), [("full", 1e-4), ("bf16", 2e-2)])
def test_losses_of_captured_float32_steps_are_close_to_float64(precision: str, tolerance: float) -> None:
    """Runs 16 updates, four in each CUDA graph."""
    case = CASES["cross-entropy, logq"] | {"layers": [24]}
    expected = train_by_autograd(TrainingSetup("reference", case))[:16]
    setup = setup_on_gpu(case | {"dtype": torch.float32})
    epoch, hidden = setup.start_epoch(steps_per_graph=4, precision=precision), setup.network.initial_state(N_LANES)
    losses = [block.loss for step in range(0, 16, 4) for block in epoch.run(4, hidden, step=step)[0]]
    assert losses == pytest.approx([block.loss for block in expected], rel=tolerance)


def test_captured_graph_uses_new_learning_rates_and_loaded_state() -> None:
    """`losses_by_schedule` reloads the optimizer state half-way."""
    case = {"momentum": 0.3}
    expected = train_by_autograd(TrainingSetup("reference", case), rates=[0.3, 0.02, 0.1])
    losses = losses_by_schedule(setup_on_gpu(case), [0.3, 0.02, 0.1], len(expected))
    assert losses == pytest.approx([block.loss for block in expected], rel=1e-9)


def test_captured_graph_stops_at_a_nan_loss() -> None:
    """The third of four losses in the last graph is NaN. That loss is the last loss returned, and causes no update."""
    case = {"n_sample": 0, "loss": "bpr"}
    gpu_setup, reference = setup_on_gpu(case), TrainingSetup("reference", case)
    for setup in (gpu_setup, reference):
        poison(setup, mini_batch=10)
    epoch, hidden = gpu_setup.start_epoch(steps_per_graph=4), gpu_setup.network.initial_state(N_LANES)
    outcomes = [block for step in (0, 4, 8) for block in epoch.run(4, hidden, step=step)[0]]
    assert [block.loss == block.loss for block in outcomes] == [True] * 10 + [False]
    reference.start_epoch().run(10, reference.network.initial_state(N_LANES), step=0)
    weights = [weight.cpu() for weight in gpu_setup.weights()]
    torch.testing.assert_close(weights, reference.weights(), rtol=1e-9, atol=1e-9, equal_nan=True)


def test_training_continues_on_the_gpu_if_a_capture_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator that synchronizes invalidates the capture. Other steps can capture afterwards."""
    case = {"momentum": 0.3}
    expected = [block.loss for block in train_by_autograd(TrainingSetup("reference", case))]
    original, n_captured = CapturedUpdates._run_operators, 0

    def run_operators(updates: CapturedUpdates) -> None:
        nonlocal n_captured
        original(updates)
        if torch.cuda.is_current_stream_capturing():
            n_captured += 1
            torch.cuda.synchronize()

    def losses() -> list[float]:
        setup = setup_on_gpu(case)
        epoch, hidden = setup.start_epoch(steps_per_graph=2), setup.network.initial_state(N_LANES)
        return [block.loss for step in (0, 2, 4, 6) for block in epoch.run(2, hidden, step=step)[0]]

    stream = torch.cuda.current_stream()
    with monkeypatch.context() as patch, pytest.warns(UserWarning, match="cannot be captured in a CUDA graph"):
        patch.setattr(CapturedUpdates, "_run_operators", run_operators)
        assert losses() == pytest.approx(expected[:8], rel=1e-9)
    assert n_captured == 1 and torch.cuda.current_stream() == stream
    torch.rand(3, device="cuda").sum().item()  # neither the allocator nor the generator is left in a capture
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the training step cannot be captured")
        assert losses() == pytest.approx(expected[:8], rel=1e-9)


def test_training_goes_on_when_gpu_memory_runs_out() -> None:
    """The limit is 60 % of the memory that the training uses, most of it for scores. Parts of an update have fewer."""
    store = markov_store(n_sessions=2000, n_items=100_000)

    def train() -> GRU4Rec:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        model = GRU4Rec(layers=[32], batch_size=512, n_sample=1 << 16, n_epochs=1, seed=0, device="cuda")
        return model.fit(store, progress=False)

    expected = train().network
    total = torch.cuda.get_device_properties(0).total_memory
    fraction = 0.6 * torch.cuda.max_memory_reserved() / total
    try:
        with oom_guard() as guard, pytest.warns(OutOfMemoryWarning, match="in the update .* parts"):
            torch.cuda.set_per_process_memory_fraction(fraction)
            found = train().network
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert guard.n_parts["the update"] > 1
    torch.testing.assert_close(found.state_dict(), expected.state_dict(), rtol=1e-3, atol=1e-5)


def test_captured_graphs_remain_correct_when_others_are_released() -> None:
    """Capture 40 steps, more than torch has streams, release every second one, and replay the others."""
    expected = [block.loss for block in train_by_autograd(TrainingSetup("reference", {}))]
    trainings = []
    for _ in range(40):
        setup = setup_on_gpu({})
        epoch, hidden = setup.start_epoch(steps_per_graph=2), setup.network.initial_state(N_LANES)
        losses = [block.loss for step in (0, 2) for block in epoch.run(2, hidden, step=step)[0]]
        trainings.append((epoch, hidden, losses))
    del trainings[::2], setup, epoch, hidden, losses
    gc.collect()
    torch.cuda.empty_cache()
    occupied = torch.full((1 << 26,), float("nan"), device="cuda")  # overwrites memory that was released
    for epoch, hidden, losses in trainings:
        losses += [block.loss for step in (4, 6) for block in epoch.run(2, hidden, step=step)[0]]
        assert losses == pytest.approx(expected[:8], rel=1e-9)
    assert occupied.isnan().all()


def test_a_changed_fp32_precision_is_captured_again() -> None:
    matmul = torch.backends.cuda.matmul
    setup = setup_on_gpu({"dtype": torch.float32, "layers": [64]})
    epoch, hidden = setup.start_epoch(steps_per_graph=2), setup.network.initial_state(N_LANES)
    previous = matmul.fp32_precision
    try:
        for step, precision in zip((0, 2, 4, 6, 8), ("ieee", "ieee", "tf32", "tf32", "tf32"), strict=True):
            matmul.fp32_precision = precision
            captured = epoch.next_updates(2, N_LANES)
            epoch.run(2, hidden, step=step)
            # The first run with a precision uses no graph; the second captures one.
            assert (captured._graph is not None) == (step not in (0, 4))
    finally:
        matmul.fp32_precision = previous


def test_a_captured_step_learns_items_that_are_appended() -> None:
    """Append one item at a time: sometimes the tables are copied, sometimes they grow in place after a capture."""
    losses: dict[str, list[float]] = {}
    for device in ("cpu", "cuda"):
        setup = TrainingSetup("reference", {}) if device == "cpu" else setup_on_gpu({})
        network, hidden = setup.network, [state.to(device) for state in setup.network.initial_state(N_LANES)]
        step = CapturedTrainingStep(network, setup.criterion, setup.optimizer)
        generator, losses[device] = torch.Generator().manual_seed(0), []
        for number in range(18):
            if number % 3 == 2:
                network.extend_items(1, optimizer=setup.optimizer)
            block = torch.randint(network.n_items, (3, 1, N_LANES), generator=generator)
            block[1] = network.n_items - 1
            inputs, targets, negatives = block.to(device)
            reset = torch.zeros(1, N_LANES, dtype=torch.bool, device=device)
            losses[device].append(step.train_block(inputs, targets, reset, negatives, hidden, step=number))
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=1e-9)


def test_ranking_of_a_view_that_is_not_aligned() -> None:
    """Ranks from an unaligned view equal those of an aligned copy.

    A second copy of the target's row ties with the target: a score has the same bits wherever its row is in the matrix.
    """
    generator = torch.Generator().manual_seed(0)
    for n_queries in (3, 500, 511):
        memory = torch.randn(9001 * 33 + 1, generator=generator).cuda()
        weight, hidden = memory[1:].view(9001, 33), torch.randn(n_queries, 33, generator=generator).cuda()
        targets = torch.randint(9001, (n_queries,), generator=generator).cuda()
        equal = ops.target_rank(hidden, torch.cat([weight, weight]), None, targets, impl="native")[1]
        assert (equal >= 1).all()
        aligned = ops.target_rank(hidden, weight.clone(), None, targets, impl="native")
        assert_equal_bits(ops.target_rank(hidden, weight, None, targets, impl="native"), aligned)


def to_device(device: str, argument: object) -> object:
    """Return a tensor as a leaf on a device; other arguments unchanged."""
    if not isinstance(argument, Tensor):
        return argument
    return argument.detach().to(device).requires_grad_(argument.requires_grad)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(
    ("steps", "lanes", "hidden"),
    [(1, 1, 1), (1, 32, 100), (3, 1, 17), (2, 300, 33), (4, 7, 128), (3, 7, 255), (5, 50, 512), (2, 3000, 20)],
)
def test_gru_is_as_close_as_the_reference(form: str, dtype: torch.dtype, steps: int, lanes: int, hidden: int) -> None:
    args = gru.make_args(form, steps, lanes, hidden, dtype)
    oracle = gru.output_and_gradients(gru.as_dtype(args, torch.float64), "reference")
    on_device = [to_device("cuda", argument) for argument in args]
    outputs = gru.output_and_gradients(on_device, "native")
    assert_as_close([t.cpu() for t in outputs], gru.output_and_gradients(args, "reference"), oracle)
    assert_equal_bits(gru.output_and_gradients(on_device, "native"), outputs)


@pytest.mark.parametrize(("name", "parameters"), [(name, p) for name in LOSSES for p in loss.PARAMETERS[name]])
@pytest.mark.parametrize("in_batch", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_losses_are_as_close_as_the_reference(name: str, parameters: dict, in_batch: bool, dtype: torch.dtype) -> None:
    options = {"loss": name, "in_batch": in_batch, **parameters}
    # m lanes, n negatives, h hidden units
    for m, n, h in ((1, 17, 1), (2, 0, 5), (5, 33, 0), (32, 2048, 100), (255, 31, 33), (700, 14_000, 16)):
        for with_masks in (True, False):
            arguments = loss.problem(m, n, h, dtype, with_masks=with_masks)
            oracle = loss.value_and_gradients(loss.as_float64(arguments), "reference", **options)
            reference = loss.value_and_gradients(arguments, "reference", **options)
            on_device = {key: to_device("cuda", argument) for key, argument in arguments.items()}
            outputs = loss.value_and_gradients(on_device, "native", **options)
            assert_as_close([t.cpu() for t in outputs], reference, oracle)
            assert_equal_bits(loss.value_and_gradients(on_device, "native", **options), outputs)


@loss_bf16.losses
@loss_bf16.in_batch_modes
def test_losses_of_bfloat16_are_as_close_as_the_reference(loss: str, parameters: dict, in_batch: bool) -> None:
    """Tests torch's bfloat16 products with float32 sums, which only a GPU computes."""
    options = {"loss": loss, "in_batch": in_batch, **parameters}
    for m, n, h in (*loss_bf16.SIZES, (0, 6, 3), (32, 2048, 100), (700, 14_000, 16)):
        for with_masks in (True, False):
            arguments = loss_bf16.bf16_problem(m, n, h, with_masks=with_masks)
            oracle = loss_bf16.loss_and_gradients("reference", loss_bf16.as_float64(arguments), **options)
            reference = loss_bf16.loss_and_gradients("reference", arguments, **options)
            on_device = {key: to_device("cuda", argument) for key, argument in arguments.items()}
            outputs = loss_bf16.loss_and_gradients("native", on_device, **options)
            assert_as_close([t.cpu() for t in outputs], reference, oracle)
            with no_synchronization():
                assert_equal_bits(loss_bf16.loss_and_gradients("native", on_device, **options), outputs)
            replayed = capture_and_replay(
                lambda on_device=on_device: tuple(loss_bf16.loss_and_gradients("native", on_device, **options))
            )
            assert_equal_bits(replayed, outputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("P", "Q"), [("norm", "norm"), ("symmetric+I", "symmetric"), ("mean", "plain+I")])
def test_ngcf_layers_are_as_close_as_the_reference(dtype: torch.dtype, activation: str, P: str, Q: str) -> None:
    """Compares layers for all or some nodes, with widths that do or do not allow vectorized loads.

    Repeated calls must give the same bits.
    """
    graph = ngcf.large_graph()
    n_nodes = len(graph[0]) - 1
    rows = torch.arange(3, n_nodes, 2)
    for nodes in ((None, None), (rows, torch.cat([rows, torch.arange(0, n_nodes, 4)]).unique())):
        for widths in ((64, 32), (33, 70)):
            E = ngcf.normal(n_nodes if nodes[1] is None else len(nodes[1]), widths[0], dtype=dtype)
            arguments = [E, *ngcf.weights_of(*widths, dtype)]
            options = {"P": P, "Q": Q, "activation": activation, "node_dropout": 0.1, "message_dropout": 0.2}

            def run(impl: str, device: str, run_dtype: torch.dtype) -> list[Tensor]:
                """Return the output and the gradients of the inputs."""
                features, *weights = inputs = [
                    t.detach().to(device, run_dtype).requires_grad_()
                    for t in arguments  # noqa: B023
                ]
                offsets, neighbors, rows, columns = (
                    t if t is None else t.to(device)
                    for t in (*graph, *nodes)  # noqa: B023
                )
                out = ops.ngcf_layer(
                    features, offsets, neighbors, *weights, rows=rows, columns=columns,
                    **options, seed=7, step=5, impl=impl,  # noqa: B023
                )  # fmt: skip
                grad_out = ngcf.normal(*out.shape, seed=4, dtype=dtype).to(device, run_dtype)
                return [out.detach(), *torch.autograd.grad(out, inputs, grad_out)]

            outputs = run("native", "cuda", dtype)
            reference, oracle = run("reference", "cpu", dtype), run("reference", "cpu", torch.float64)
            assert_as_close([t.cpu() for t in outputs], reference, oracle)
            assert_equal_bits(run("native", "cuda", dtype), outputs)


def test_ngcf_layer_in_a_cuda_graph_without_synchronization() -> None:
    graph = [t.cuda() for t in ngcf.large_graph()]
    columns = torch.arange(0, len(graph[0]) - 1, 2, device="cuda")
    rows = columns[::3].contiguous()
    E, W1, b1, W2, b2 = (t.float().cuda() for t in (ngcf.normal(len(columns), 20), *ngcf.weights_of(20, 24)))
    # P, Q, per_term, negative_slope, node_dropout, message_dropout, seed, step, counter, layer
    options = ("symmetric+I", "mean", True, 0.2, 0.1, 0.1, 3, 4, None, 1)
    library = torch.ops.gru4rec_fast

    def step() -> Outputs:
        with torch.no_grad():
            out, *saved = library.ngcf_layer(E, *graph, rows, columns, W1, b1, W2, b2, *options)
            # `out` also serves as the gradient of the output.
            return out, *saved, *library.ngcf_layer_backward(out, E, *graph, rows, columns, W1, W2, *saved, *options)

    expected = step()
    with no_synchronization():
        step()
    assert_equal_bits(capture_and_replay(step), expected)


@pytest.mark.parametrize("network_class", [NGCFNetwork, LightGCNNetwork])
def test_graph_model_step_causes_no_synchronization(network_class: type[nn.Module]) -> None:
    rng = np.random.default_rng(0)
    graph = InteractionGraph.from_arrays(rng.integers(300, size=5000), rng.integers(400, size=5000))
    network = network_class(graph, 64, node_dropout=0.1, only_needed=False).cuda()
    sampler = TripleSampler(graph, 256, device="cuda")
    optimizer = torch.optim.Adam(network.parameters(), fused=True)

    def train(step: int) -> None:
        bpr, squared_norm = network.loss(*sampler.draw(step), step=step)
        optimizer.zero_grad(set_to_none=True)
        (bpr + 1e-5 * squared_norm).backward()
        optimizer.step()

    train(0)
    with no_synchronization():
        train(1)


@pytest.mark.parametrize("hidden", [100, 300])  # one launch for all steps, and one per step
@pytest.mark.parametrize("in_batch", [True, False])
def test_gru_and_loss_in_a_cuda_graph_without_synchronization(hidden: int, in_batch: bool) -> None:
    args = gru.make_args("reset_after", steps=4, lanes=20, hidden=hidden, dtype=torch.float32)
    args = [to_device("cuda", argument) for argument in args]
    rows = torch.randn(80 + 300, hidden, device="cuda")
    live = torch.arange(80, device="cuda") % 9 > 0
    library = torch.ops.gru4rec_fast

    def step() -> Outputs:
        with torch.no_grad():
            output, saved = library.gru(*args)
            # loss, in_batch, batch_size, elu_param, bpreg, label_smoothing
            options = ("cross-entropy", in_batch, 80.0, 0.0, 1.0, 0.0)
            value, grad, *others = library.sampled_loss(
                output.view(80, hidden), rows, None, live, None, None, None, *options
            )
            return value, *others, *library.gru_backward(grad.view_as(output), output, saved, *args[1:])

    expected = step()
    with no_synchronization():
        step()
    assert_equal_bits(capture_and_replay(step), expected)


def test_library_has_cuda_kernels() -> None:
    info = _backend.build_info()
    assert info["native_cuda"], info["why_not_cuda"]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_train_as_one_does() -> None:
    process = torchrun(2, PROGRAM, "cuda")
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    for impl in ("autograd", "dense"):
        for name, result in json.loads(out.splitlines()[-1])[impl].items():
            # On a GPU, kernels add up gradients in an order that varies.
            assert result["loss"] < 1e-4 and result["identical"], (impl, name, result)
