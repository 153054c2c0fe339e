"""Converts the state of a training to named tensors and JSON values, and back to the same bits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gru4rec_fast._untrusted import brief
from gru4rec_fast.optim import SparseAdagrad
from gru4rec_fast.optim.row_optimizer import RowOptimizer
from gru4rec_fast.training.checkpoint import Checkpoint, CheckpointError
from gru4rec_fast.training.saved_values import check_like_current

# Prefixes of the names of tensors in a checkpoint.
MODEL = "model."
OPTIMIZER = "optimizer."
ACCUMULATOR_MAX = "accumulator_max."
HIDDEN = "hidden."

_ADAM_STATE = {"step", "exp_avg", "exp_avg_sq"}  # of each parameter that torch.optim.Adam has updated


def model_tensors(network: nn.Module, maxima: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Return the network's parameters and persistent buffers, named "model.<name>".

    maxima: what `accumulator_maxima` returned, to add as "accumulator_max.<name>".
    """
    tensors = {MODEL + name: tensor for name, tensor in network.state_dict().items()}
    return tensors | {ACCUMULATOR_MAX + name: maximum for name, maximum in (maxima or {}).items()}


def load_weights(network: nn.Module, checkpoint: Checkpoint) -> None:
    """Copy the weights of a checkpoint into a network.

    Raises CheckpointError if a name, shape or dtype differs. Without this check, torch would convert the dtype.
    """
    stored = checkpoint.group(MODEL)
    for name, own in network.state_dict().items():
        if name in stored and (stored[name].shape, stored[name].dtype) != (own.shape, own.dtype):
            found = f"{stored[name].dtype} {list(stored[name].shape)}"
            raise CheckpointError(
                f"{checkpoint.path} is damaged: {name} is {found}, and its parameters require {own.dtype} "
                f"{list(own.shape)}; use an earlier checkpoint"
            )
    try:
        network.load_state_dict(stored)
    except RuntimeError as error:  # a missing name, or one too many
        raise CheckpointError(
            f"{checkpoint.path} is damaged: {brief(error, 200)}; use an earlier checkpoint"
        ) from error


def hidden_tensors(hidden: list[Tensor] | None) -> dict[str, Tensor]:
    """Return the hidden states of the layers, named "hidden.<layer>"; an empty dict for None (between epochs)."""
    return {f"{HIDDEN}{layer}": state for layer, state in enumerate(hidden or [])}


def _parameter_names(network: nn.Module, optimizer: Optimizer) -> list[str]:
    """Return the names of the optimizer's parameters, in the order of the indices in its state_dict."""
    names = {parameter: name for name, parameter in network.named_parameters()}
    return [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]


def optimizer_state(network: nn.Module, optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return an optimizer's state: tensors named "optimizer.<parameter>.<key>", and JSON values.

    The JSON values are `groups` (options of the parameter groups) and `scalars` (by parameter, then key).
    """
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, dict[str, Any]] = {}
    for index, name in enumerate(_parameter_names(network, optimizer)):
        for key, value in state["state"].get(index, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{OPTIMIZER}{name}.{key}"] = value
            else:
                scalars.setdefault(name, {})[key] = value
    groups = [{key: value for key, value in group.items() if key != "params"} for group in state["param_groups"]]
    return tensors, {"groups": groups, "scalars": scalars}


def accumulator_maxima(network: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Return the maximum of Adagrad's accumulator in each row of each parameter, [rows], by the parameter's name.

    A model's file stores these maxima, which are few, instead of the accumulator. In a training that continues with
    them, no weight moves by larger steps than with the accumulator. There are none for other optimizers.
    """
    if not isinstance(optimizer, SparseAdagrad):
        return {}
    return {
        name: optimizer.state[parameter]["accumulator"].reshape(len(parameter), -1).amax(1)
        for name, parameter in network.named_parameters()
        if "accumulator" in optimizer.state.get(parameter, {})
    }


def restore_accumulators(network: nn.Module, optimizer: SparseAdagrad, maxima: dict[str, Tensor]) -> None:
    """Fill the rows of Adagrad's accumulators with their maxima. New rows, which have none, keep zeros."""
    for name, parameter in network.named_parameters():
        if name in maxima:
            accumulator, _ = optimizer.accumulator_and_velocity(parameter, momentum=0)
            maximum = maxima[name].to(accumulator)
            accumulator[: len(maximum)] = maximum.view(-1, *[1] * (accumulator.dim() - 1))


def saved_accumulator_maxima(network: nn.Module, checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Return the maxima of `accumulator_maxima` in a checkpoint, if it has them. Raises CheckpointError for damage.

    last.safetensors has the accumulators instead.
    """
    maxima, own = checkpoint.group(ACCUMULATOR_MAX), dict(network.named_parameters())
    for name, state in checkpoint.group(OPTIMIZER).items():
        if name.endswith(".accumulator") and state.dim() > 0 and state.is_floating_point():
            maxima[name.removesuffix(".accumulator")] = state.flatten(1).amax(1) if state.dim() > 1 else state
    for name, maximum in maxima.items():
        fits = (
            name in own and maximum.dim() == 1 and len(maximum) <= len(own[name]) and maximum.dtype == own[name].dtype
        )
        if not fits or not bool((maximum >= 0).all() & maximum.isfinite().all()):
            raise CheckpointError(
                f"{checkpoint.path} is damaged: {ACCUMULATOR_MAX}{name} is {maximum.dtype} {[*maximum.shape]}, or a "
                "value is negative or not finite; use an earlier checkpoint"
            )
    return maxima


def load_optimizer(
    network: nn.Module, optimizer: Optimizer, tensors: dict[str, Tensor], values: dict[str, Any]
) -> None:
    """Restore the state that `optimizer_state` returned; the names of `tensors` have no prefix "optimizer."."""
    names, parameters = _parameter_names(network, optimizer), dict(network.named_parameters())
    # Torch does not compare shapes, and kernels would read out of bounds. Other optimizers may have other shapes.
    has_known_state = isinstance(optimizer, RowOptimizer | torch.optim.Adam)
    state: dict[int, dict[str, Any]] = {}
    for index, name in enumerate(names):
        parameter_state = dict(values["scalars"].get(name, {}))
        for tensor_name, tensor in tensors.items():
            parameter, _, key = tensor_name.rpartition(".")
            if parameter == name:
                own = parameters[name]
                if has_known_state and tensor.dim() and (tensor.shape, tensor.dtype) != (own.shape, own.dtype):
                    raise TypeError(f"optimizer.{tensor_name} is {tensor.dtype} {list(tensor.shape)}")
                parameter_state[key] = tensor
        if parameter_state:
            if isinstance(optimizer, torch.optim.Adam) and (missing := _ADAM_STATE - {*parameter_state}):
                raise KeyError(f"optimizer.{name}.{min(missing)}")
            state[index] = parameter_state
    current = optimizer.state_dict()["param_groups"]
    if len(values["groups"]) != len(current):
        raise TypeError(f"optimizer has {len(values['groups'])} groups, not {len(current)}")
    for saved, group in zip(values["groups"], current, strict=True):
        check_like_current(saved, group, "optimizer")
    groups = [saved | {"params": group["params"]} for saved, group in zip(values["groups"], current, strict=True)]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    for group, loaded in zip(current, optimizer.param_groups, strict=True):
        if missing := {*group} - {*loaded}:  # options that are newer than the checkpoint have their defaults now
            raise KeyError(f"optimizer.{min(missing)}")
