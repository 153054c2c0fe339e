"""The fused training step: one call into C++ makes many complete updates of the weights, on the CPU.

For each update `csrc/training_step/fused_training_step.cpp` loads blocks, draws negatives, and runs forward, loss,
backward and the optimizer, by calling the kernels of the operators one after another. The results equal those of
autograd in `training/session_runner.py`, within rounding. Weights and optimizer state are updated in place, so that a
training can be saved, resumed, or switched between the fused step and autograd after any update.

A lane is one of the B sessions that are processed in parallel. A lane is dead once no session is left for it. A block
is T consecutive steps (mini-batches) of all lanes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from gru4rec_fast import _backend, ops
from gru4rec_fast.data import SessionParallelLoader
from gru4rec_fast.distributed import Ranks
from gru4rec_fast.nn import GrowableEmbedding, SampledLoss, SessionGRU, SessionNetwork
from gru4rec_fast.nn.session_gru import SessionGRULayer
from gru4rec_fast.nn.session_network import OutputTable
from gru4rec_fast.optim import SparseAdagrad
from gru4rec_fast.profiling import is_out_of_memory
from gru4rec_fast.profiling.allocation_counters import NativeCounter
from gru4rec_fast.profiling.memory_profiler import native_phases


class NoKernels(str):
    """Type of `NO_KERNELS`.

    Callers recognize this reason by its type and do not show it: the first operator that runs reports missing kernels.
    """


NO_KERNELS = NoKernels("there are no native kernels")


def why_not_fused(network: nn.Module, criterion: nn.Module, optimizer: torch.optim.Optimizer) -> str | None:
    """Return the reason why the fused step cannot train this network; None if it can.

    Raises:
        RuntimeError: impl="native" was requested, and there are no native kernels.
    """
    return why_not_trainable_on(network, criterion, optimizer, "cpu")


def why_not_trainable_on(
    network: nn.Module, criterion: nn.Module, optimizer: torch.optim.Optimizer, device_type: str
) -> str | None:
    """Return the reason why the fused step ("cpu") or the captured step ("cuda") cannot train this network, or None.

    Raises:
        RuntimeError: see `why_not_fused`.
    """
    for value, expected in ((network, SessionNetwork), (criterion, SampledLoss), (optimizer, SparseAdagrad)):
        if type(value) is not expected:
            return f"the step supports exactly {expected.__name__}, not {type(value).__name__}"
    assert isinstance(network, SessionNetwork) and isinstance(criterion, SampledLoss)
    modules = [*network.modules(), *criterion.modules()]
    if unknown := [type(module).__name__ for module in modules if type(module) not in _SUPPORTED_MODULES]:
        return f"the step does not support a module of class {unknown[0]}"
    if not criterion.in_batch:
        return "the step does not support in_batch=False"
    impls = {module.impl for module in (*modules, optimizer) if hasattr(module, "impl")}
    if "reference" in impls:
        return "impl='reference' was requested"
    objects: list[Any] = [*modules, *network.parameters(), optimizer]
    if any(getattr(obj, name) for obj in objects for name in _HOOK_ATTRIBUTES.get(type(obj), ())):
        return "there are hooks on a module, a parameter or the optimizer, which would not be called"
    if torch.is_autocast_enabled(device_type):
        return "autocast is on, which the step does not support"
    return _why_not_parameters(network, optimizer, "native" if "native" in impls else "auto", device_type)


_SUPPORTED_MODULES = {
    *(SessionNetwork, SessionGRU, SessionGRULayer, OutputTable, SampledLoss),
    *(GrowableEmbedding, nn.Embedding, nn.ModuleList),
}
_MODULE_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# For each type, the attributes in which torch stores the hooks of an object of this type.
_HOOK_ATTRIBUTES: dict[type, tuple[str, ...]] = {
    **dict.fromkeys(_SUPPORTED_MODULES, _MODULE_HOOKS),
    nn.Parameter: ("_backward_hooks", "_post_accumulate_grad_hooks"),
    SparseAdagrad: ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"),
}


def _why_not_parameters(
    network: SessionNetwork, optimizer: torch.optim.Optimizer, impl: str, device_type: str
) -> str | None:
    """Return the reason why the step cannot train the network's parameters with this optimizer, or None."""
    if not network.gru.bias or network.gru.batch_first:
        return "the step supports neither bias=False nor batch_first=True of a SessionGRU"
    named, weights = dict(network.named_parameters()), _weights(network)
    are_plain = all(type(weight) is nn.Parameter for weight in weights)
    weight_ids = {*map(id, weights)}
    if not are_plain or len(weight_ids) < len(weights) or weight_ids != {*map(id, named.values())}:
        return "a weight is not exactly an nn.Parameter, or is used twice, or the network has other parameters"
    if len(optimizer.param_groups) != 1 or {*optimizer.param_groups[0]["params"]} != {*named.values()}:
        return "the optimizer must have one parameter group with all parameters of the network"
    if reason := why_not_options(optimizer):
        return reason
    for name, weight in named.items():
        if weight.device.type != device_type or weight.dtype not in (torch.float32, torch.float64):
            device = "the CPU" if device_type == "cpu" else "a GPU"
            return f"the step supports float32 and float64 on {device}; {name} is {weight.dtype} on {weight.device}"
        if not weight.requires_grad or not weight.is_contiguous():
            return f"{name} is frozen or not contiguous"
    if len({weight.dtype for weight in named.values()}) > 1:
        return "the parameters have several dtypes"
    if device_type == "cpu" and _backend.resolve(impl, "gru", "cpu") != "native":
        return NO_KERNELS
    return None


def why_not_options(optimizer: torch.optim.Optimizer) -> str | None:
    """Return the reason why neither step can train with the current options of this optimizer, or None."""
    if any(optimizer.param_groups[0][option] for option in ("weight_decay", "maximize")):
        return "the step supports neither weight_decay nor maximize of the optimizer"
    return None


def _layer_weights(layer: Any) -> list[Tensor | None]:
    """Return the weights of a SessionGRULayer, in the order of the C++ class GruParameters."""
    return [layer.weight_ih, layer.weight_hh, layer.bias_ih, layer.bias_hh]


def _weights(network: SessionNetwork) -> list[Tensor]:
    """Return every weight that the step updates."""
    tables = [network.output.weight, network.output.bias]
    if network.embedding_mode != "constrained":
        tables.append(network.embedding.weight)
    weights = [*tables, *(weight for layer in network.gru.layers for weight in _layer_weights(layer))]
    return [weight for weight in weights if weight is not None]


def tensor_identity(tensor: Tensor | None) -> tuple[Any, ...]:
    """Return values that differ after a tensor was replaced, was moved to other memory, or has grown in place."""
    return () if tensor is None else (id(tensor), tensor.data_ptr(), tensor.shape)


def item_range_error(items: Tensor, n_items: int) -> tuple[int, int] | None:
    """Return the lowest and the highest item index of a log if one of them is out of range; None if all are valid."""
    lowest, highest = (int(item) for item in torch.aminmax(items)) if len(items) else (0, 0)
    return (lowest, highest) if lowest < 0 or highest >= n_items else None


class BlockOutcome(NamedTuple):
    """Result of a block: loss (mean over the steps), number of steps, number of events (targets in live lanes)."""

    loss: float
    steps: int
    events: int


class FusedTrainingStep:
    """Trains a SessionNetwork with a SampledLoss and a SparseAdagrad on the CPU, many updates per call.

    Each call uses the weights, optimizer state, hyperparameters and train or eval mode that network and optimizer have
    at the time of the call. Only the constructor reads the options of the criterion.

    If memory runs out in an update, weights, optimizer state, hidden states and the position in the epoch are as before
    the update, and the memory of the step is freed. The update can be repeated with more `n_tiles`. `FusedEpoch.run`
    states the exceptions.

    Attributes:
        n_tiles: 1 by default, and may be changed between calls. The scores of a step (one row per live lane, one column
            per item; the largest part of the memory) are computed for ceil(m / n_tiles) of the m live lanes at a time.
            The results are equal up to rounding errors.

    Args:
        network, criterion, optimizer: the network to train, its loss, and the optimizer of its parameters;
            `why_not_fused` must return None for them. Missing optimizer state is created.
        steps: T, steps in a block (truncated backpropagation through time).
        accumulate: blocks per update.
        precision: "full", or "bf16": the factors of matrix products are rounded to bfloat16, and the products are
            summed in float32. Weights, optimizer state and everything between the products stay in float32.

    Raises:
        ValueError: the fused step cannot train the network; the message says why.
    """

    def __init__(
        self,
        network: SessionNetwork,
        criterion: SampledLoss,
        optimizer: SparseAdagrad,
        *,
        steps: int = 1,
        accumulate: int = 1,
        precision: str = "full",
    ) -> None:
        if reason := why_not_fused(network, criterion, optimizer):
            raise ValueError(f"no fused training step: {reason}")
        if precision == "bf16" and network.output.weight.dtype != torch.float32:
            raise ValueError(f"precision='bf16' needs float32 weights, not {network.output.weight.dtype}")
        self.steps = steps
        self.n_tiles = 1
        self._network, self._optimizer = network, optimizer
        self._options = {
            "loss": criterion.loss,
            "batch_size": criterion.batch_size,
            "elu_param": criterion.elu_param,
            "bpreg": criterion.bpreg,
            "label_smoothing": criterion.label_smoothing,
            "logq": criterion.logq,
            "sample_alpha": criterion.sample_alpha,
            "mask_accidental_hits": criterion.mask_accidental_hits,
            "log_support": criterion.log_support,
            "steps": steps,
            "accumulate": accumulate,
            "precision": precision,
        }
        self._native: Any = _backend.native_module()
        self._bind()

    def _bind(self) -> None:
        """Create the C++ object, which keeps references to the current weights and optimizer state."""
        self._bound_tensors: list[Tensor | None] = []
        self._native_step = self._native.FusedTrainingStep(**self._network_arguments(), **self._options)
        self._bound_identities = {*map(tensor_identity, self._bound_tensors)}
        self._bound_mode = self._network.training, self._network.seed

    def _rebind_if_changed(self) -> None:
        """Bind again if a tensor was replaced or has grown, momentum was switched on or off, or mode or seed differ."""
        momentum = self._optimizer.param_groups[0]["momentum"]
        current = [
            tensor
            for weight in _weights(self._network)
            for tensor in (weight, *self._optimizer.accumulator_and_velocity(weight, momentum))
        ]
        mode = self._network.training, self._network.seed
        if {*map(tensor_identity, current)} != self._bound_identities or self._bound_mode != mode:
            self._bind()

    def _network_arguments(self) -> dict[str, Any]:
        """Return the arguments of the C++ constructor that describe the network, with its weights."""
        network, optimizer = self._network, self._optimizer

        def bind_parameter(parameter: Any) -> Any:
            """Return the C++ object with references to a parameter and its optimizer state; None for None."""
            if parameter is None:
                return None
            state = optimizer.accumulator_and_velocity(parameter, optimizer.param_groups[0]["momentum"])
            self._bound_tensors += [parameter, *state]
            return self._native.Parameter(parameter.detach(), *state)

        layers = [
            self._native.GruParameters(*map(bind_parameter, _layer_weights(layer)), layer.form)
            for layer in network.gru.layers
        ]
        has_input_table = network.embedding_mode != "constrained"
        return {
            "embedding": bind_parameter(network.embedding.weight if has_input_table else None),
            "one_hot": network.embedding_mode == "none",
            "layers": layers,
            "output_weight": bind_parameter(network.output.weight),
            "output_bias": bind_parameter(network.output.bias),
            "dropout_p_embed": network.dropout_p_embed if network.training else 0.0,
            "dropout_p_hidden": network.gru.dropout if network.training else 0.0,
            "dropout_seed": network.seed,
        }

    def train_block(
        self,
        inputs: Tensor,
        targets: Tensor,
        reset: Tensor,
        negatives: Tensor | None,
        hidden: Sequence[Tensor],
        *,
        step: int,
    ) -> float:
        """Update the weights once, from a block that the caller provides.

        Args:
            inputs, targets: item indices, int64 [T, B]; -1 in dead lanes.
            reset: bool [T, B], True where a session begins; the lane's hidden state is set to zero before that step.
            negatives: int64 [T, N], the negatives of each step; None: the other lanes' targets are the only negatives.
            hidden: one hidden state [B, H] per layer, updated in place.
            step: number of mini-batches before this block since the training began; determines the dropout masks.

        Returns:
            The loss before the update. If the loss is not finite, nothing was updated.

        Raises:
            ValueError: an argument has the wrong shape, dtype or range.
            RuntimeError, MemoryError: out of memory, see `FusedEpoch.run`.
        """
        with self._updating(hidden) as counter:
            return float(
                self._native_step.train_block(
                    inputs=inputs,
                    targets=targets,
                    reset=reset,
                    negatives=negatives,
                    first_step=step,
                    hidden=list(hidden),
                    n_tiles=self.n_tiles,
                    counter=counter,
                    **self._hyperparameters(),
                )
            )

    def start_epoch(
        self,
        loader: SessionParallelLoader,
        sampler: ops.AliasTable | None,
        n_sample: int,
        seed: int,
        *,
        ranks: Ranks | None = None,
        independent_lanes: bool = False,
    ) -> FusedEpoch:
        """Start an epoch at the current position of `loader`, with `n_sample` negatives per step from `sampler`.

        Args:
            ranks: the processes that train this network together; None: this process alone.
            independent_lanes: whether the in-batch negatives of a lane are the targets of its own process's lanes only.

        Raises:
            ValueError: the loader's blocks have another number of steps, or the lanes of one process only.
        """
        check_loader(loader, self.steps)
        return FusedEpoch(self, loader, sampler, n_sample, seed, ranks, independent_lanes)

    def _hyperparameters(self) -> dict[str, float]:
        if reason := why_not_options(self._optimizer):
            raise ValueError(reason)
        group = self._optimizer.param_groups[0]
        return {name: float(group[name]) for name in ("lr", "momentum", "eps")}

    @contextmanager
    def _updating(self, hidden: Sequence[Tensor]) -> Iterator[NativeCounter | None]:
        """Yield the counter of the active profiler, in which the native step records its phases.

        On exit, the version counters of all tensors that the step changes are incremented, so that autograd detects the
        change.
        """
        self._rebind_if_changed()
        with repeated_only_before_updates(self._native_step), native_phases() as counter:
            try:
                yield counter
            finally:
                changed = [tensor for tensor in self._bound_tensors if tensor is not None]
                torch.autograd.graph.increment_version([*changed, *hidden])


class _CountsUpdates(Protocol):
    @property
    def n_begun(self) -> int: ...


@contextmanager
def repeated_only_before_updates(step: _CountsUpdates) -> Iterator[None]:
    """Raise another error instead of "out of memory" once an update has begun, so that `oom_guard` does not repeat it.

    Python itself can run out of memory after complete updates, when it makes their results.
    """
    n_begun = step.n_begun
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if step.n_begun > n_begun and is_out_of_memory(error):
            raise RuntimeError(
                "out of memory after an update had begun: it is unknown what was updated; resume from a checkpoint"
            ) from error
        raise


def check_loader(loader: SessionParallelLoader, steps: int) -> None:
    """Raise ValueError unless the loader's blocks have this many steps, and all lanes."""
    if loader.n_lanes != getattr(loader, "n_all_lanes", loader.n_lanes):
        raise ValueError(
            "the loader has the lanes of one process only: leave out its rank and world_size, and call "
            "SessionEpochRunner.join(Ranks())"
        )
    if loader.steps != steps:
        raise ValueError(f"the loader has blocks of {loader.steps} steps, the training step has steps={steps}")


class FusedEpoch:
    """An epoch that `FusedTrainingStep.start_epoch` has started. Each call of `run` makes some of the updates."""

    def __init__(
        self,
        training_step: FusedTrainingStep,
        loader: SessionParallelLoader,
        sampler: ops.AliasTable | None,
        n_sample: int,
        seed: int,
        ranks: Ranks | None,
        independent_lanes: bool,
    ) -> None:
        native = training_step._native
        self._share = None
        if ranks is not None:
            first, end = ranks.part(loader.n_lanes)
            self._share = native.ProcessShare(first, end - first, independent_lanes, ranks.sum_)
        order, self._lane_state = loader.start_epoch()
        self.training_step, self._loader = training_step, loader
        self._batcher = native.SessionBatcher(loader.items, loader.offsets, order, *self._lane_state)
        self._sampler, self._finished = None, False
        if n_sample and sampler is not None:
            alias_table = (sampler.threshold, sampler.alias, sampler.log_prob)
            self._sampler = native.NegativeSampler(*alias_table, n=n_sample, seed=seed)

    def run(self, updates: int, hidden: Sequence[Tensor], *, step: int) -> tuple[list[BlockOutcome], bool]:
        """Make at most `updates` updates; return the outcome of each block, and whether the epoch is over.

        If the loss of a block is not finite, the call ends before the update, and this block is the last one of the
        result. An exception, Ctrl-C included, is raised between two updates. The number of updates is unknown then, and
        this object must not be used again, except after an error that memory ran out (see below).

        If memory runs out, the call ends before the update that needs it, and returns the earlier updates. Only if it
        is the first update of the call, the error is raised. Nothing has changed then. The next call repeats this
        update; before it, increase `n_tiles` of the training step.

        Args:
            updates: at least 1.
            hidden: one hidden state [B, H] per layer, updated in place. With several ranks, B are this rank's lanes.
            step: number of mini-batches since the training began; with the seeds it determines negatives and dropout
                masks.

        Raises:
            ValueError: an item is out of range for the catalogue.
            RuntimeError: "DefaultCPUAllocator: can't allocate memory ...": the first update does not fit into memory.
                Or "out of memory in the middle of an update ..." or "... after an update had begun ...": resume from a
                checkpoint. Only the small memory inside some matrix products, and that of the result, is allocated so
                late.
            MemoryError: as "can't allocate memory", for an allocation outside of torch.
        """
        if self._finished:
            return [], True
        try:
            with self.training_step._updating(hidden) as counter:
                blocks, finished = self.training_step._native_step.run(
                    batcher=self._batcher,
                    sampler=self._sampler,
                    min_live=self._loader.min_live,
                    first_step=step,
                    updates=updates,
                    hidden=list(hidden),
                    n_tiles=self.training_step.n_tiles,
                    counter=counter,
                    share=self._share,
                    **self.training_step._hyperparameters(),
                )
                self._finished = finished
                self._loader.set_position(self._lane_state, finished)
                return [BlockOutcome(*block) for block in blocks], finished
        except ValueError as error:
            if item_range_error(self._loader.items, self.training_step._network.n_items):
                raise self._loader.damage_error(str(error)) from None
            raise
