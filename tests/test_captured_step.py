"""The captured training step equals training by autograd, on CPU tensors, where the step runs without a CUDA graph.

The tests run the operators of the step by their references and by the emulated CUDA kernels. tests/test_cuda.py
captures the step in a CUDA graph on a GPU. A block is `steps` consecutive mini-batches; `accumulate` blocks make an
update. A lane is a row of the mini-batch, which processes one session after another.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from markov import markov_store
from native import why_not_emulated
from sync_detector import SyncDetector
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gru4rec_fast import ops
from gru4rec_fast.data import SessionParallelLoader
from gru4rec_fast.nn import SampledLoss, SessionNetwork
from gru4rec_fast.optim import SparseAdagrad
from gru4rec_fast.training.captured_step import CapturedEpoch, CapturedTrainingStep, why_not_captured
from gru4rec_fast.training.fused_step import BlockOutcome
from gru4rec_fast.training.graph_capture import CapturedUpdates, GraphCapturer

STORE = markov_store(n_sessions=23, n_items=40)
SUPPORT = torch.from_numpy(STORE.support)
SEED = 5

# Options of each case that differ from the defaults in `TrainingSetup`.
CASES: dict[str, dict[str, Any]] = {
    "cross-entropy, logq": {"logq": 1.0, "momentum": 0.3, "dropout": 0.2},
    "bpr-max": {"loss": "bpr-max", "elu_param": 0.5, "bpreg": 1.5, "dropout": 0.3},
    "two layers, separate, reset before": {"layers": [9, 7], "embedding": "separate", "form": "reset_before"},
    "five layers, separate": {"layers": [9, 7, 8, 6, 5], "embedding": "separate", "momentum": 0.3, "dropout": 0.1},
    "accidental hits": {"loss": "top1-max", "mask_accidental_hits": True, "n_sample": 90},
    "in-batch negatives only": {"n_sample": 0, "loss": "bpr"},
    "one-hot": {"embedding": "none", "layers": [8, 6], "dropout": 0.2, "momentum": 0.3},
    "backpropagation through three steps": {"steps": 3, "dropout": 0.2, "momentum": 0.3, "logq": 1.0},
    "three blocks an update": {"accumulate": 3, "loss": "bpr-max"},
    "two blocks of two steps, separate": {"steps": 2, "accumulate": 2, "embedding": "separate", "dropout": 0.2},
    "four steps, in-batch negatives only": {"steps": 4, "accumulate": 2, "n_sample": 0, "loss": "top1"},
    "one lane": {"lanes": 1},
    "more lanes than sessions": {"lanes": 50},
}


def impl_of(family: str, impl: str) -> str:
    """Return `impl`, or "reference" if `impl` is "emulated" and this family of operators cannot be emulated."""
    return "reference" if impl == "emulated" and why_not_emulated(family) else impl


class TrainingSetup:
    """Network, loss, optimizer, loader and sampler of a case; float64 unless the case has another dtype."""

    def __init__(self, impl: str, case: dict[str, Any]) -> None:
        options = {
            "layers": [8], "embedding": "constrained", "form": "reset_after", "dropout": 0.0, "loss": "cross-entropy",
            "logq": 0.0, "elu_param": 0.0, "bpreg": 1.0, "mask_accidental_hits": False, "momentum": 0.0, "lanes": 6,
            "n_sample": 11, "steps": 1, "accumulate": 1, "dtype": torch.float64,
        } | case  # fmt: skip
        self.n_sample, lanes = options["n_sample"], options["lanes"]
        self.steps, self.accumulate = options["steps"], options["accumulate"]
        self.network = SessionNetwork(
            STORE.n_items, options["layers"], embedding=options["embedding"], embedding_dim=5, seed=3,
            gru_form=options["form"], dropout_p_embed=options["dropout"], dropout_p_hidden=options["dropout"],
            sparse=True, dtype=options["dtype"], impl=impl_of("dropout", impl),
        )  # fmt: skip
        for layer in self.network.gru.layers:
            layer.impl = impl_of("gru", impl)
        loss = {name: options[name] for name in ("loss", "elu_param", "bpreg", "logq", "mask_accidental_hits")}
        self.criterion = SampledLoss(
            **loss, batch_size=lanes, sample_alpha=0.5, support=SUPPORT, sparse=True, dtype=options["dtype"],
            impl=impl_of("sampled_loss", impl),
        )  # fmt: skip
        self.optimizer = SparseAdagrad(
            self.network.parameters(), 0.1, options["momentum"], impl=impl_of("training_step", impl)
        )
        self.loader = SessionParallelLoader(
            STORE, lanes, self.steps, min_live=1 if self.n_sample else 2,
            impl=impl_of("session_batch", impl), seed=0,
        )  # fmt: skip
        self.sampler = ops.build_alias_table(SUPPORT, 0.5, impl="reference") if self.n_sample else None

    def start_epoch(self, **options: Any) -> CapturedEpoch:
        modules = (self.network, self.criterion, self.optimizer)
        step = CapturedTrainingStep(*modules, steps=self.steps, accumulate=self.accumulate, **options)
        return step.start_epoch(self.loader, self.sampler, self.n_sample, SEED)

    def weights(self) -> list[Tensor]:
        return [weight.detach() for weight in self.network.parameters()]


def train_by_autograd(setup: TrainingSetup, rates: Sequence[float] = ()) -> list[BlockOutcome]:
    """Train an epoch by autograd; return the outcome of each block.

    With accumulate=1, update i has the learning rate rates[i % len(rates)].
    """
    network, optimizer, outcomes = setup.network, setup.optimizer, []
    hidden = network.initial_state(setup.loader.n_lanes)
    step, n_accumulated = 0, 0

    def update() -> None:
        if rates:
            optimizer.param_groups[0]["lr"] = rates[(len(outcomes) - 1) % len(rates)]
        for weight in network.parameters():
            if weight.grad is not None:
                weight.grad /= n_accumulated
        optimizer.step()
        optimizer.zero_grad()

    for block in setup.loader:
        negatives, steps = None, len(block.n_live)
        if setup.sampler is not None:
            options = {"seed": SEED, "step": step, "steps": steps, "impl": "reference"}
            negatives, _ = ops.negative_sampling(setup.sampler, setup.n_sample, **options)
        output, hidden = network(block.inputs, hidden, block.reset, step=step)
        table = network.output_weight, network.output_bias
        loss = setup.criterion(output, *table, block.targets, negatives, n_live=block.n_live)
        loss.backward()
        hidden = [state.detach() for state in hidden]
        outcomes.append(BlockOutcome(loss.item(), steps, block.n_events))
        step, n_accumulated = step + steps, n_accumulated + 1
        if n_accumulated == setup.accumulate:
            update()
            n_accumulated = 0
    if n_accumulated:
        update()
    return outcomes


@pytest.mark.parametrize("impl", ["reference", "emulated"])
@pytest.mark.parametrize("case", CASES)
def test_the_captured_step_equals_autograd(case: str, impl: str) -> None:
    """Compare all weights and losses of an epoch. Calls of `run` make 1, 3, 5, ... updates, up to 4 steps per graph."""
    if impl == "emulated" and (reason := why_not_emulated("training_step")):
        pytest.skip(reason)
    autograd_setup, captured_setup = TrainingSetup("reference", CASES[case]), TrainingSetup(impl, CASES[case])
    expected = train_by_autograd(autograd_setup)
    epoch, outcomes, finished, updates = captured_setup.start_epoch(steps_per_graph=4), [], False, 1
    hidden = captured_setup.network.initial_state(captured_setup.loader.n_lanes)
    while not finished:
        blocks, finished = epoch.run(updates, hidden, step=sum(block.steps for block in outcomes))
        outcomes += blocks
        updates += 2
    counts = [[(block.steps, block.events) for block in blocks] for blocks in (outcomes, expected)]
    assert counts[0] == counts[1]
    losses = [[block.loss for block in blocks] for blocks in (outcomes, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    torch.testing.assert_close(captured_setup.weights(), autograd_setup.weights(), rtol=1e-9, atol=1e-9)
    assert epoch.run(5, hidden, step=len(outcomes)) == ([], True)
    assert captured_setup.loader.state_dict() == autograd_setup.loader.state_dict()


@pytest.mark.parametrize("case", CASES)
def test_no_update_is_computed_after_the_end_of_the_epoch(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of `run` ask for many more updates than the epoch has. Also holds for an epoch that is continued."""
    computed: list[int] = []
    original = CapturedUpdates.run

    def run(updates: CapturedUpdates, hidden: Sequence[Tensor]) -> None:
        computed.append(updates.shape.mini_batches)
        original(updates, hidden)

    monkeypatch.setattr(CapturedUpdates, "run", run)
    setup = TrainingSetup("reference", CASES[case])
    hidden, n_steps, finished = setup.network.initial_state(setup.loader.n_lanes), 0, False
    epoch = setup.start_epoch(steps_per_graph=4)
    while not finished:
        blocks, finished = epoch.run(50, hidden, step=n_steps)
        n_steps += sum(block.steps for block in blocks)
        if not finished:
            setup.loader.load_state_dict(setup.loader.state_dict())
            epoch = setup.start_epoch(steps_per_graph=4)
    assert n_steps <= sum(computed) < n_steps + setup.steps * setup.accumulate  # the last update may be incomplete


@pytest.mark.skipif(bool(why_not_emulated("training_step")), reason=why_not_emulated("training_step") or "-")
@pytest.mark.parametrize("case", [case for case in CASES if "lanes" not in CASES[case]])
def test_a_step_does_not_synchronize(case: str) -> None:
    """Drawing and training do not synchronize with the GPU.

    The last lines test that the detector reports operations that do synchronize.
    """
    setup = TrainingSetup("emulated", CASES[case])
    epoch, hidden = setup.start_epoch(steps_per_graph=4), setup.network.initial_state(6)
    epoch.run(1, hidden, step=0)
    with SyncDetector(copies=True) as detector:
        # what epoch.run does, without reading the losses
        epoch._training_step.prepare()
        captured = epoch.next_updates(updates=1, lanes=6)
        captured.fill(*epoch.draw(steps=captured.shape.mini_batches, step=1), first_step=1)
        captured.run(hidden)
    assert detector.seen == []
    with SyncDetector(copies=True) as detector:
        torch.where(captured.n_live > 0, captured.n_live, -1)
        captured.losses[0].item()
    assert detector.seen == ["aten.scalar_tensor.default", "aten._local_scalar_dense.default"]


def losses_by_schedule(setup: TrainingSetup, rates: Sequence[float], n: int) -> list[float]:
    """Return the losses of `n` updates, one per call, with these learning rates in turn.

    Half-way, the optimizer state is reloaded, as when a training resumes.
    """
    epoch, hidden, losses = setup.start_epoch(), setup.network.initial_state(6), []
    for step in range(n):
        if step == n // 2:
            setup.optimizer.load_state_dict(setup.optimizer.state_dict())
        setup.optimizer.param_groups[0]["lr"] = rates[step % len(rates)]
        losses += [block.loss for block in epoch.run(1, hidden, step=step)[0]]
    return losses


def test_the_learning_rate_can_change_between_updates() -> None:
    """The step must copy the learning rate to the device, where a captured graph reads it."""
    case = {"momentum": 0.3}
    expected = train_by_autograd(TrainingSetup("reference", case), rates=[0.3, 0.02, 0.1])
    losses = losses_by_schedule(TrainingSetup("reference", case), [0.3, 0.02, 0.1], len(expected))
    assert losses == pytest.approx([block.loss for block in expected], rel=1e-9)


def test_weight_decay_that_is_set_later_is_an_error() -> None:
    setup = TrainingSetup("reference", {})
    epoch, hidden = setup.start_epoch(), setup.network.initial_state(6)
    setup.optimizer.param_groups[0]["weight_decay"] = 0.1
    with pytest.raises(ValueError, match="neither weight_decay nor maximize"):
        epoch.run(1, hidden, step=0)


@pytest.mark.parametrize("impl", ["reference", "emulated"])
def test_bf16_is_close_to_full_precision_but_not_equal(impl: str) -> None:
    """bf16 rounds the inputs of the scores with a relative error of at most 2**-8."""
    if impl == "emulated" and (reason := why_not_emulated("training_step")):
        pytest.skip(reason)
    case = {"dtype": torch.float32, "logq": 1.0, "dropout": 0.2, "layers": [24]}
    full, captured_setup = (TrainingSetup(each, case) for each in ("reference", impl))
    losses = []
    for setup, precision in ((full, "full"), (captured_setup, "bf16")):
        hidden = setup.network.initial_state(6)
        losses.append([block.loss for block in setup.start_epoch(precision=precision).run(12, hidden, step=0)[0]])
    assert losses[1] == pytest.approx(losses[0], rel=2e-2) and losses[1] != losses[0]
    with pytest.raises(ValueError, match="precision='bf16' needs float32 weights, not"):
        TrainingSetup("reference", {}).start_epoch(precision="bf16")


class CalledOperators(TorchDispatchMode):
    """Records in `names` the operators that run emulated kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "gru4rec_fast_emulated":
            self.names.add(func._schema.name.partition("::")[2])
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(bool(why_not_emulated("training_step")), reason=why_not_emulated("training_step") or "-")
@pytest.mark.parametrize(
    ("module", "operators"),
    [
        ("layer", {"step_gru", "step_gru_backward"}),
        ("criterion", {"step_loss"}),
        ("optimizer", {"step_gather", "step_store_losses_", "step_products_", "step_rows_"}),
    ],
)
def test_each_module_chooses_the_implementation_of_its_operators(module: str, operators: set[str]) -> None:
    setup = TrainingSetup("emulated", {})
    chosen = {"layer": setup.network.gru.layers[0], "criterion": setup.criterion, "optimizer": setup.optimizer}[module]
    epoch, hidden = setup.start_epoch(steps_per_graph=1), setup.network.initial_state(6)
    names = []
    for impl in ("emulated", "reference"):
        chosen.impl = impl
        with CalledOperators() as called:
            captured = epoch.next_updates(updates=1, lanes=6)
            captured.run(hidden)
        names.append(called.names)
    assert len(names[0]) == 7 and names[0] - names[1] == operators


def poison(setup: TrainingSetup, mini_batch: int) -> None:
    """Set to NaN the bias of a target of this mini-batch that is no target earlier.

    Needs n_sample=0, because a sampled negative could be this item.
    """
    targets = [block.targets for block in SessionParallelLoader(STORE, setup.loader.n_lanes)]
    earlier = set(torch.cat(targets[:mini_batch]).flatten().tolist())
    item = next(item for item in targets[mini_batch].flatten().tolist() if item not in earlier)
    with torch.no_grad():
        setup.network.output.bias[item] = torch.nan


def test_a_nan_loss_in_a_later_block_prevents_the_update() -> None:
    """The earlier blocks of the update change the hidden states, as in the fused step on the CPU, but no weight."""
    setup = TrainingSetup("reference", {"n_sample": 0, "loss": "bpr", "steps": 2, "accumulate": 3})
    poison(setup, mini_batch=2)
    block = next(iter(SessionParallelLoader(STORE, 6, steps=2)))
    hidden = setup.network.initial_state(6)
    with torch.no_grad():
        _, expected = setup.network(block.inputs, hidden, block.reset)
    initial = [weight.clone() for weight in setup.weights()]
    blocks, finished = setup.start_epoch().run(1, hidden, step=0)
    assert [block.steps for block in blocks] == [2, 2] and not finished
    assert not math.isnan(blocks[0].loss) and math.isnan(blocks[1].loss)
    torch.testing.assert_close(setup.weights(), initial, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(hidden, expected)


def test_a_nan_loss_updates_nothing() -> None:
    setup = TrainingSetup("reference", {})
    epoch, hidden = setup.start_epoch(steps_per_graph=3), setup.network.initial_state(6)
    assert len(epoch.run(4, hidden, step=0)[0]) == 4
    with torch.no_grad():
        setup.network.output.bias.fill_(torch.nan)
    initial = [tensor.clone() for tensor in (*setup.weights(), *hidden)]
    blocks, finished = epoch.run(7, hidden, step=4)
    assert len(blocks) == 1 and math.isnan(blocks[0].loss) and not finished
    torch.testing.assert_close([*setup.weights(), *hidden], initial, rtol=0, atol=0, equal_nan=True)


def test_start_epoch_continues_from_the_position_of_the_loader() -> None:
    whole, resumed = TrainingSetup("reference", {}), TrainingSetup("reference", {})
    hidden = whole.network.initial_state(6)
    epoch, n, finished = whole.start_epoch(), 0, False
    while not finished:
        blocks, finished = epoch.run(1000, hidden, step=n)
        n += len(blocks)
    hidden, done = resumed.network.initial_state(6), 0
    while done < n:
        # The next iteration resumes here instead of starting a new epoch, as after loading a checkpoint.
        resumed.loader.load_state_dict(resumed.loader.state_dict())
        done += len(resumed.start_epoch().run(5, hidden, step=done)[0])
    assert done == n
    torch.testing.assert_close(resumed.weights(), whole.weights(), rtol=0, atol=0)


@pytest.mark.parametrize("shift", [-1, STORE.n_items])
def test_a_damaged_log_is_found_before_training(shift: int) -> None:
    setup = TrainingSetup("reference", {})
    setup.loader.items = setup.loader.items + shift
    with pytest.raises(ValueError, match=r"is damaged: item indices .*; prepare the store again"):
        setup.start_epoch()


def test_why_not_captured_names_the_reason() -> None:
    setup = TrainingSetup("reference", {})
    modules = (setup.network, setup.criterion, setup.optimizer)
    assert why_not_captured(*modules) == "impl='reference' was requested"
    for module in (*setup.network.modules(), setup.criterion, setup.optimizer):
        module.impl = "auto"
    reason = why_not_captured(*modules)
    assert reason is not None and reason.startswith("the step supports float32 and float64 on a GPU; ")
    with pytest.raises(ValueError, match="the loader has blocks of 2 steps"):
        CapturedTrainingStep(*modules).start_epoch(SessionParallelLoader(STORE, 6, steps=2), None, 0, SEED)


class FakeCuda:
    """Stands in for CUDA below torch.cuda.graph: a "graph" keeps a function instead of kernels, and replay calls it.

    It fails where CUDA and torch do: a capture that was invalidated cannot be ended, and a pool that all graphs have
    released cannot be used again. Streams and memory exist on a GPU only: test_cuda.py captures there.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stream: object = "default"
        self.fails = False  # whether operators invalidate captures, as those that synchronize do
        self.captures: list[tuple[object, object]] = []  # stream and pool of each capture
        self.replays = 0
        self._capturing: FakeCuda.Graph | None = None
        self._n_graphs: Counter[object] = Counter()  # by pool
        original = CapturedUpdates._run_operators

        def run_operators(updates: CapturedUpdates) -> None:
            if self._capturing is None:
                original(updates)
            elif self.fails:
                raise RuntimeError("operation not permitted when stream is capturing")
            else:
                self._capturing.body = lambda: original(updates)

        monkeypatch.setattr(CapturedUpdates, "_run_operators", run_operators)
        for name, fake in {
            "CUDAGraph": lambda: FakeCuda.Graph(self), "stream": lambda stream: FakeCuda.Stream(self, stream),
            "Stream": lambda device: object(), "device": lambda device: nullcontext(), "graph_pool_handle": object,
            "synchronize": lambda: None, "empty_cache": lambda: None,
        }.items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, fake)
        monkeypatch.setattr(torch._C, "_host_emptyCache", lambda: None, raising=False)

    class Stream:
        """The context torch.cuda.stream. Unlike a generator, it does nothing when it is deleted without an exit."""

        def __init__(self, cuda: FakeCuda, stream: object) -> None:
            self.cuda, self.stream = cuda, stream

        def __enter__(self) -> None:
            self.previous, self.cuda.stream = self.cuda.stream, self.stream

        def __exit__(self, *_: object) -> None:
            self.cuda.stream = self.previous

    class Graph:
        def __init__(self, cuda: FakeCuda) -> None:
            self.cuda, self.pool, self.body = cuda, None, None

        def capture_begin(self, pool: object, *, capture_error_mode: str, **_: object) -> None:
            assert capture_error_mode == "thread_local"
            cuda = self.cuda
            released = any(used == pool for _, used in cuda.captures) and not cuda._n_graphs[pool]
            assert not released, "torch: INTERNAL ASSERT FAILED: use_count > 0"
            cuda.captures.append((cuda.stream, pool))
            cuda._capturing, self.pool = self, pool
            cuda._n_graphs[pool] += 1

        def capture_end(self) -> None:
            self.cuda._capturing = None
            if self.body is None:
                raise RuntimeError("operation failed due to a previous error during capture")

        def replay(self) -> None:
            self.cuda.replays += 1
            self.body()

        def __del__(self) -> None:
            self.cuda._n_graphs[self.pool] -= 1


def losses_with_graphs(setup: TrainingSetup, n_calls: int, change: Callable[[int], None] = lambda call: None) -> list:
    """Return the losses of calls of one, two, one, two, ... updates that a (fake) CUDA graph runs.

    change: called before each call with its number.
    """
    modules = (setup.network, setup.criterion, setup.optimizer)
    step = CapturedTrainingStep(*modules, steps_per_graph=2)
    step._capturer = GraphCapturer(torch.device("cuda", 0))
    epoch, hidden = step.start_epoch(setup.loader, setup.sampler, setup.n_sample, SEED), setup.network.initial_state(6)
    losses: list[float] = []
    for call in range(n_calls):
        change(call)
        losses += [block.loss for block in epoch.run(1 + call % 2, hidden, step=len(losses))[0]]
    return losses


def test_training_continues_without_graphs_if_a_capture_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is one warning and no second attempt, and torch's current stream is the one before the capture."""
    cuda = FakeCuda(monkeypatch)
    cuda.fails = True
    setup, reference = TrainingSetup("reference", {}), TrainingSetup("reference", {})
    with pytest.warns(UserWarning, match="cannot be captured in a CUDA graph, so it runs without") as caught:
        losses = losses_with_graphs(setup, 8)
    assert len(caught) == 1 and len(cuda.captures) == 1 and cuda.stream == "default" and cuda.replays == 0
    expected = [block.loss for block in train_by_autograd(reference)][: len(losses)]
    assert losses == pytest.approx(expected, rel=1e-9)


def test_all_graphs_of_a_step_have_one_stream_and_one_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if a graph is captured again, because weights have moved, when no other graph uses the pool."""
    cuda, setup = FakeCuda(monkeypatch), TrainingSetup("reference", {})

    def move_weights(call: int) -> None:
        if call == 4:
            for weight in setup.network.parameters():
                weight.data = weight.data.clone()

    losses = losses_with_graphs(setup, 8, move_weights)
    assert len(cuda.captures) == 4 and len(set(cuda.captures)) == 1 and cuda.replays == 4
    expected = [block.loss for block in train_by_autograd(TrainingSetup("reference", {}))][: len(losses)]
    assert losses == pytest.approx(expected, rel=1e-9)


def test_a_graph_is_captured_again_if_the_precision_of_products_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.get_float32_matmul_precision() would raise an error here."""
    cuda, setup = FakeCuda(monkeypatch), TrainingSetup("reference", {})
    matmul = torch.backends.cuda.matmul
    previous = matmul.fp32_precision

    def set_precision(call: int) -> None:
        matmul.fp32_precision = "ieee" if call < 4 else "tf32"

    try:
        losses_with_graphs(setup, 8, set_precision)
    finally:
        matmul.fp32_precision = previous
    assert len(cuda.captures) == 4


class ExternalTensors(TorchDispatchMode):
    """Records in `addresses` the memory of arguments that no operator within this context has returned."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: dict[int, tuple[int, ...]] = {}  # with shapes, for messages
        self._own: list[Tensor] = []  # kept, so that their memory is not used again

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        own = {tensor.untyped_storage().data_ptr() for tensor in self._own}
        for tensor in tensors_in((args, kwargs or {})):
            address = tensor.untyped_storage().data_ptr()
            if address and address not in own:
                self.addresses[address] = tuple(tensor.shape)
        outputs = func(*args, **(kwargs or {}))
        inputs = {*self.addresses}
        self._own += [t for t in tensors_in(outputs) if t.untyped_storage().data_ptr() not in inputs]
        return outputs


def tensors_in(value: Any) -> list[Tensor]:
    """Return all tensors with memory of their own in nested lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        return [] if value.is_sparse else [value]
    if isinstance(value, dict):
        value = [*value.values()]
    return [tensor for each in value for tensor in tensors_in(each)] if isinstance(value, (list, tuple)) else []


def unwatched_tensors(case: str) -> set[tuple[int, ...]]:
    """Return the shapes of tensors that an update uses, that the step does not own and that the graph's key lacks."""
    setup = TrainingSetup("reference", CASES[case])
    epoch, hidden = setup.start_epoch(steps_per_graph=4), setup.network.initial_state(setup.loader.n_lanes)
    epoch.run(1, hidden, step=0)
    captured = epoch.next_updates(1, setup.loader.n_lanes)
    with torch.no_grad(), ExternalTensors() as external:
        captured._run_operators()
    buffers = {name: value for name, value in vars(captured).items() if name != "_masks"}
    owned = tensors_in([buffers, vars(captured._context)])
    known = {tensor.untyped_storage().data_ptr() for tensor in owned} | {*captured._current_key()[0]}
    assert len(external.addresses) > 10
    return {shape for address, shape in external.addresses.items() if address not in known}


@pytest.mark.parametrize("case", CASES)
def test_a_stale_graph_would_be_noticed(case: str) -> None:
    """Every tensor that an update reads or writes is owned by the step, or its address is in the graph's key."""
    assert not unwatched_tensors(case)


def test_addresses_that_are_missing_in_the_key_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    original = CapturedUpdates._current_key

    def without_pointers(updates: CapturedUpdates) -> tuple[Any, ...]:
        return ((), *original(updates)[1:])

    monkeypatch.setattr(CapturedUpdates, "_current_key", without_pointers)
    assert (STORE.n_items, 8) in unwatched_tensors("cross-entropy, logq")  # the output table


def test_a_graph_is_captured_again_if_a_table_grows_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, setup = FakeCuda(monkeypatch), TrainingSetup("reference", {})
    setup.network.extend_items(1, optimizer=setup.optimizer)  # copies the tables, which then have spare rows
    weight = setup.network.output_weight

    def grow(call: int) -> None:
        if call == 4:
            place = weight.data_ptr()
            setup.network.extend_items(1, optimizer=setup.optimizer)
            assert weight.data_ptr() == place

    losses = losses_with_graphs(setup, 8, grow)
    assert len(cuda.captures) == 4
    expected = [block.loss for block in train_by_autograd(TrainingSetup("reference", {}))][: len(losses)]
    assert losses == pytest.approx(expected, rel=1e-9)
