"""The fused training step: blocks, negatives, forward, loss, backward and update in C++, without the interpreter.

`csrc/training_step/fused_training_step.cpp` sequences the kernels that the operators run too; what it computes is what
`training/epoch.py` does through autograd. Weights and optimizer state stay the tensors they are, and are updated in
place, so that a training can be saved, resumed, and changed over from one way to the other at any update.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gru4rec_fast import _backend, ops
from gru4rec_fast.data import SessionParallelLoader
from gru4rec_fast.nn import SampledLoss, SessionGRU, SessionNetwork
from gru4rec_fast.nn.session_gru import SessionGRULayer
from gru4rec_fast.nn.session_network import ItemTable, OutputTable
from gru4rec_fast.optim import SparseAdagrad


class NoKernels(str):
    """The reason that no native kernels are there, which the first operator that runs announces."""


NO_KERNELS = NoKernels("there are no native kernels")


def why_not_fused(network: nn.Module, criterion: nn.Module, optimizer: torch.optim.Optimizer) -> str | None:
    """Why the fused step cannot train these parts; None where it can.

    Raises:
        RuntimeError: impl="native" was asked for, and there are no native kernels.
    """
    return why_not_parts(network, criterion, optimizer, "cpu")


def why_not_parts(
    network: nn.Module, criterion: nn.Module, optimizer: torch.optim.Optimizer, device_type: str
) -> str | None:
    """Why no fused step, of any kind of device, can train these parts; errors as `why_not_fused`."""
    for part, kind in ((network, SessionNetwork), (criterion, SampledLoss), (optimizer, SparseAdagrad)):
        if type(part) is not kind:
            return f"it trains a plain {kind.__name__}, not a {type(part).__name__}"
    assert isinstance(network, SessionNetwork)
    modules = [*network.modules(), *criterion.modules()]
    if strange := [type(module).__name__ for module in modules if type(module) not in _KNOWN]:
        return f"it does not know what {strange[0]} computes"
    impls = {module.impl for module in (*modules, optimizer) if hasattr(module, "impl")}
    if "reference" in impls:
        return "impl='reference' was asked for"
    hooked: list[Any] = [*modules, *network.parameters(), optimizer]
    if any(getattr(part, hooks) for part in hooked for hooks in _HOOKS.get(type(part), ())):
        return "there are hooks on a module, a parameter or the optimizer, which would not be called"
    if torch.is_autocast_enabled(device_type):
        return "autocast is on, which it would not follow"
    return _why_not_parameters(network, optimizer, "native" if "native" in impls else "auto", device_type)


_KNOWN = {SessionNetwork, SessionGRU, SessionGRULayer, ItemTable, OutputTable, SampledLoss, nn.ModuleList}
_MODULE_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_HOOKS: dict[type, tuple[str, ...]] = {
    **dict.fromkeys(_KNOWN, _MODULE_HOOKS),
    nn.Parameter: ("_backward_hooks", "_post_accumulate_grad_hooks"),
    SparseAdagrad: ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"),
}


def _why_not_parameters(
    network: SessionNetwork, optimizer: torch.optim.Optimizer, impl: str, device_type: str
) -> str | None:
    named, used = dict(network.named_parameters()), _weights(network)
    plain = all(type(weight) is nn.Parameter for weight in used)
    if not plain or len({*map(id, used)}) < len(used) or {*map(id, used)} != {*map(id, named.values())}:
        return "its weights are not plain parameters, each in one place"
    if len(optimizer.param_groups) != 1 or {*optimizer.param_groups[0]["params"]} != {*named.values()}:
        return "the optimizer must have one parameter group, all of the network's parameters"
    for name, parameter in named.items():
        if parameter.device.type != device_type or parameter.dtype not in (torch.float32, torch.float64):
            where = "the CPU" if device_type == "cpu" else "a GPU"
            return f"it runs on {where} in float32 and float64; {name} is {parameter.dtype} on {parameter.device}"
        if not parameter.requires_grad or not parameter.is_contiguous():
            return f"{name} is frozen or not contiguous"
    if len({parameter.dtype for parameter in named.values()}) > 1:
        return "the parameters are of several dtypes"
    if device_type == "cpu" and _backend.resolve(impl, "gru", "cpu") != "native":
        return NO_KERNELS
    return None


def _layer_weights(layer: Any) -> list[Tensor | None]:
    return [layer.weight_ih, layer.weight_hh, layer.bias_ih, layer.bias_hh]


def _weights(network: SessionNetwork) -> list[Tensor]:
    """Every weight that the step reads and moves."""
    tables = [network.output.weight, network.output.bias]
    if network.embedding_mode != "constrained":
        tables.append(network.embedding.weight)
    weights = [*tables, *(weight for layer in network.gru.layers for weight in _layer_weights(layer))]
    return [weight for weight in weights if weight is not None]


def outside_catalogue(items: Tensor, n_items: int) -> tuple[int, int] | None:
    """Return the lowest and the highest of a log's items where one of them is no index of the catalogue; else None."""
    lowest, highest = (int(item) for item in torch.aminmax(items)) if len(items) else (0, 0)
    return (lowest, highest) if lowest < 0 or highest >= n_items else None


class BlockOutcome(NamedTuple):
    """A block's loss (mean over its steps), its steps, and its targets in live lanes."""

    loss: float
    steps: int
    events: int


class FusedTrainingStep:
    """Training steps of a SessionNetwork under a SampledLoss and a SparseAdagrad, on the CPU.

    Args:
        network, criterion, optimizer: parts for which `why_not_fused` has no objection. The optimizer's state is made
            where it is not there yet. The criterion's options are read once, here.
        steps: T, steps in a block (truncated backpropagation through time).
        accumulate: blocks per update.
        precision: "full", or "bf16": products of float32 numbers rounded to bfloat16, summed in float32; weights,
            optimizer state and everything between the products stay in float32.

    Raises:
        ValueError: the parts cannot be trained by it; the message says why.
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
            raise ValueError(f"precision='bf16' goes with float32, not with {network.output.weight.dtype}")
        self.steps, self.n_items = steps, network.n_items
        self._network, self._criterion, self._optimizer = network, criterion, optimizer
        self._options = {"steps": steps, "accumulate": accumulate, "precision": precision}
        self._native: Any = _backend.native_module()
        self._bind()

    def _bind(self) -> None:
        """Take hold of the tensors as they are now."""
        self._bound: list[Tensor | None] = []
        criterion = self._criterion
        self._step = self._native.FusedTrainingStep(
            **self._network_parts(self._network, self._optimizer),
            loss=criterion.loss,
            batch_size=criterion.batch_size,
            elu_param=criterion.elu_param,
            bpreg=criterion.bpreg,
            label_smoothing=criterion.label_smoothing,
            logq=criterion.logq,
            sample_alpha=criterion.sample_alpha,
            mask_accidental_hits=criterion.mask_accidental_hits,
            log_support=criterion.log_support,
            **self._options,
        )
        self._training = self._network.training

    def _look_again(self) -> None:
        """Take hold anew where state was loaded, momentum switched on, or train and eval mode changed since."""
        momentum = self._optimizer.param_groups[0]["momentum"]
        now = [
            tensor
            for weight in _weights(self._network)
            for tensor in (weight, *self._optimizer.moments(weight, momentum))
        ]
        same = len(now) == len(self._bound) and {*map(id, now)} == {*map(id, self._bound)}
        if not same or self._training != self._network.training:
            self._bind()

    def _network_parts(self, network: SessionNetwork, optimizer: SparseAdagrad) -> dict[str, Any]:
        def with_state(parameter: Any) -> Any:
            if parameter is None:
                return None
            moments = optimizer.moments(parameter, optimizer.param_groups[0]["momentum"])
            self._bound += [parameter, *moments]
            return self._native.Parameter(parameter.detach(), *moments)

        layers = [
            self._native.GruParameters(*map(with_state, _layer_weights(layer)), layer.form)
            for layer in network.gru.layers
        ]
        own_table = network.embedding_mode != "constrained"
        return {
            "embedding": with_state(network.embedding.weight if own_table else None),
            "one_hot": network.embedding_mode == "none",
            "layers": layers,
            "output_weight": with_state(network.output.weight),
            "output_bias": with_state(network.output.bias),
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
        """One update of the weights from a block that is given; for who brings batches and negatives along.

        Args:
            inputs, targets: int64 [T, B], items; -1 in dead lanes.
            reset: bool [T, B].
            negatives: int64 [T, N], each step's own; None: the other lanes' targets only.
            hidden: one state [B, H] per layer, updated in place.
            step: number of the first step in the whole training, which keys the dropout.

        Weights, state and mode are those that network and optimizer have at the time of the call.

        Returns:
            the loss before the update; where it is no finite number, nothing was updated.

        Raises:
            ValueError: an argument that does not fit, named.
        """
        self._look_again()
        try:
            return float(
                self._step.train_block(
                    inputs=inputs,
                    targets=targets,
                    reset=reset,
                    negatives=negatives,
                    first_step=step,
                    hidden=list(hidden),
                    **self._optimizer_numbers(),
                )
            )
        finally:
            self._mark_as_changed(hidden)

    def player(
        self, loader: SessionParallelLoader, sampler: ops.AliasTable | None, n_sample: int, seed: int
    ) -> FusedPlayer:
        """What plays an epoch of `loader` from where it stands, with `n_sample` negatives a step from `sampler`.

        Raises:
            ValueError: the loader plays other blocks than this step was made for.
        """
        if loader.steps != self.steps:
            raise ValueError(f"the loader plays blocks of {loader.steps} steps, this trains blocks of {self.steps}")
        return FusedPlayer(self, loader, sampler, n_sample, seed)

    def _optimizer_numbers(self) -> dict[str, float]:
        group = self._optimizer.param_groups[0]
        return {name: float(group[name]) for name in ("lr", "momentum", "eps")}

    def _mark_as_changed(self, hidden: Sequence[Tensor]) -> None:
        """Let autograd know, as an in-place operation would."""
        changed = [tensor for tensor in self._bound if tensor is not None]
        torch.autograd.graph.increment_version([*changed, *hidden])


class FusedPlayer:
    """Plays one epoch, some updates at a time; see `FusedTrainingStep.player`."""

    def __init__(
        self,
        step: FusedTrainingStep,
        loader: SessionParallelLoader,
        sampler: ops.AliasTable | None,
        n_sample: int,
        seed: int,
    ) -> None:
        native = step._native
        order, self._lanes = loader.start_epoch()
        self._fused, self._loader = step, loader
        self._sessions = native.SessionBatcher(loader.items, loader.offsets, order, *self._lanes)
        self._source, self._finished = None, False
        if n_sample and sampler is not None:
            tables = (sampler.threshold, sampler.alias, sampler.log_prob)
            self._source = native.NegativeSampler(*tables, n=n_sample, seed=seed)

    def run(self, updates: int, hidden: Sequence[Tensor], *, step: int) -> tuple[list[BlockOutcome], bool]:
        """Train on for at most `updates` updates; what each block came to, and whether the epoch is over.

        Stops before the update of a block whose loss is no finite number, which is then the last of those returned. An
        exception, Ctrl-C among them, comes between two updates; how many there were is not known then, and the player
        is of no further use.

        Args:
            updates: at least 1.
            hidden: one state [B, H] per layer, updated in place.
            step: number of the next step in the whole training; with the seeds it fixes negatives and dropout.

        Raises:
            ValueError: an item that is not in the catalogue.
        """
        if self._finished:
            return [], True
        self._fused._look_again()
        try:
            blocks, self._finished = self._fused._step.run(
                player=self._sessions,
                source=self._source,
                min_live=self._loader.min_live,
                first_step=step,
                updates=updates,
                hidden=list(hidden),
                **self._fused._optimizer_numbers(),
            )
        except ValueError as error:
            if outside_catalogue(self._loader.items, self._fused.n_items):
                raise self._loader.damage_error(str(error)) from None
            raise
        finally:
            self._fused._mark_as_changed(hidden)
        self._loader.set_position(self._lanes, self._finished)
        return [BlockOutcome(*block) for block in blocks], self._finished
