"""The fused training step: blocks, negatives, forward, loss, backward and update in C++, without the interpreter.

`csrc/cpu/fused_training_step.cpp` sequences the kernels that the operators run too; what it computes is what
`training/epoch.py` does through autograd. Weights and optimizer state stay the tensors they are, and are updated in
place, so that a training can be saved, resumed, and changed over from one way to the other at any update.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gru4rec_fast import _backend, ops
from gru4rec_fast.data.loader import SessionParallelLoader
from gru4rec_fast.nn import SampledLoss, SessionNetwork
from gru4rec_fast.optim import SparseAdagrad


def why_not_fused(network: nn.Module, criterion: nn.Module, optimizer: torch.optim.Optimizer) -> str | None:
    """Why the fused step cannot train these parts; None where it can.

    Raises:
        RuntimeError: impl="native" was asked for, and there are no native kernels.
    """
    for part, kind in ((network, SessionNetwork), (criterion, SampledLoss), (optimizer, SparseAdagrad)):
        if type(part) is not kind:
            return f"it trains a plain {kind.__name__}, not a {type(part).__name__}"
    modules = [*network.modules(), *criterion.modules()]
    impls = {module.impl for module in (*modules, optimizer) if hasattr(module, "impl")}
    if "reference" in impls:
        return "impl='reference' was asked for"
    if any(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks for module in modules):
        return "a module has hooks, which would not be called"
    return _why_not_parameters(network, optimizer, "native" if "native" in impls else "auto")


def _why_not_parameters(network: nn.Module, optimizer: torch.optim.Optimizer, impl: str) -> str | None:
    named = dict(network.named_parameters())
    if len(optimizer.param_groups) != 1 or {*optimizer.param_groups[0]["params"]} != {*named.values()}:
        return "the optimizer must have one parameter group, all of the network's parameters"
    for name, parameter in named.items():
        if parameter.device.type != "cpu" or parameter.dtype not in (torch.float32, torch.float64):
            return f"it runs on the CPU in float32 and float64; {name} is {parameter.dtype} on {parameter.device}"
        if not parameter.requires_grad or not parameter.is_contiguous():
            return f"{name} is frozen or not contiguous"
    if len({parameter.dtype for parameter in named.values()}) > 1:
        return "the parameters are of several dtypes"
    if _backend.resolve(impl, "gru", "cpu") != "native":
        return "there are no native kernels"
    return None


class BlockOutcome(NamedTuple):
    """A block's loss (mean over its steps), its steps, and its targets in live lanes."""

    loss: float
    steps: int
    events: int


class FusedTrainingStep:
    """Training steps of a SessionNetwork under a SampledLoss and a SparseAdagrad, on the CPU.

    Args:
        network, criterion, optimizer: parts for which `why_not_fused` has no objection. Their tensors must not be
            replaced as long as this is used; the optimizer's are made where they are not there yet.
        steps: T, steps in a block (truncated backpropagation through time).
        accumulate: blocks per update.
        precision: "full", or "bf16": products of float32 numbers rounded to bfloat16, summed in float32; weights,
            optimizer state and everything between the products stay in float32. No effect on float64.

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
        self._network, self._group = network, optimizer.param_groups[0]
        self._native: Any = _backend.native_module()
        self._touched: list[Tensor] = []
        self._step = self._native.FusedTrainingStep(
            **self._network_parts(network, optimizer),
            loss=criterion.loss,
            batch_size=criterion.batch_size,
            elu_param=criterion.elu_param,
            bpreg=criterion.bpreg,
            label_smoothing=criterion.label_smoothing,
            logq=criterion.logq,
            sample_alpha=criterion.sample_alpha,
            mask_accidental_hits=criterion.mask_accidental_hits,
            precision=precision,
            log_support=criterion.log_support,
            steps=steps,
            accumulate=accumulate,
        )

    def _network_parts(self, network: SessionNetwork, optimizer: SparseAdagrad) -> dict[str, Any]:
        def with_state(parameter: Any) -> Any:
            if parameter is None:
                return None
            moments = optimizer.moments(parameter, self._group["momentum"])
            self._touched += [parameter, *(moment for moment in moments if moment is not None)]
            return self._native.Parameter(parameter.detach(), *moments)

        layers = [
            self._native.GruParameters(
                *map(with_state, (layer.weight_ih, layer.weight_hh, layer.bias_ih, layer.bias_hh)), layer.form
            )
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

        Returns:
            the loss before the update; where it is no finite number, nothing was updated.

        Raises:
            ValueError: an argument that does not fit, named.
        """
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
        """What plays an epoch of `loader` from where it stands, with `n_sample` negatives a step from `sampler`."""
        return FusedPlayer(self, loader, sampler, n_sample, seed)

    def _optimizer_numbers(self) -> dict[str, float]:
        return {name: float(self._group[name]) for name in ("lr", "momentum", "eps")}

    def _mark_as_changed(self, hidden: Sequence[Tensor]) -> None:
        """Let autograd know, as an in-place operation would."""
        torch.autograd.graph.increment_version([*self._touched, *hidden])


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
        order, self._lanes = loader.begin()
        self._fused, self._loader = step, loader
        self._sessions = native.SessionPlayer(loader.items, loader.offsets, order, *self._lanes)
        self._source = None
        if n_sample and sampler is not None:
            tables = (sampler.threshold, sampler.alias, sampler.log_prob)
            self._source = native.NegativeSource(*tables, n=n_sample, seed=seed)

    def run(self, updates: int, hidden: Sequence[Tensor], *, step: int) -> tuple[list[BlockOutcome], bool]:
        """Train on for at most `updates` updates; what each block came to, and whether the epoch is over.

        Stops before the update of a block whose loss is no finite number, which is then the last of those returned.

        Args:
            updates: at least 1.
            hidden: one state [B, H] per layer, updated in place.
            step: number of the next step in the whole training; with the seeds it fixes negatives and dropout.

        Raises:
            ValueError: an item that is not in the catalogue.
        """
        try:
            blocks, finished = self._fused._step.run(
                player=self._sessions,
                source=self._source,
                min_live=self._loader.min_live,
                first_step=step,
                updates=updates,
                hidden=list(hidden),
                **self._fused._optimizer_numbers(),
            )
        except ValueError as error:
            if "items are no indices" in str(error):
                raise self._loader.damage(str(error)) from None
            raise
        finally:
            self._fused._mark_as_changed(hidden)
        self._loader.moved_to(self._lanes, finished)
        return [BlockOutcome(*block) for block in blocks], finished
