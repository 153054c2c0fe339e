"""A training's state as named tensors and JSON values, so that it can go on bit for bit."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

MODEL = "model."
OPTIMIZER = "optimizer."
HIDDEN = "hidden."


def model_tensors(network: nn.Module) -> dict[str, Tensor]:
    """The network's parameters and persistent buffers, as "model.<name>"."""
    return {MODEL + name: tensor for name, tensor in network.state_dict().items()}


def hidden_tensors(hidden: list[Tensor] | None) -> dict[str, Tensor]:
    """The lanes' states, one tensor per layer, as "hidden.<layer>"; nothing between epochs, where they are zero."""
    return {f"{HIDDEN}{layer}": state for layer, state in enumerate(hidden or [])}


def _names(network: nn.Module, optimizer: Optimizer) -> list[str]:
    """Names of the optimizer's parameters in the order in which its state_dict numbers them."""
    names = {parameter: name for name, parameter in network.named_parameters()}
    return [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]


def optimizer_state(network: nn.Module, optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state over the network's parameters: tensors by "optimizer.<parameter>.<key>", JSON values."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for index, name in enumerate(_names(network, optimizer)):
        for key, value in state["state"].get(index, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{OPTIMIZER}{name}.{key}"] = value
            else:
                numbers.setdefault(name, {})[key] = value
    groups = [{key: value for key, value in group.items() if key != "params"} for group in state["param_groups"]]
    return tensors, {"groups": groups, "numbers": numbers}


def load_optimizer(
    network: nn.Module, optimizer: Optimizer, tensors: dict[str, Tensor], values: dict[str, Any]
) -> None:
    """Give an optimizer back what `optimizer_state` took; `tensors` without their "optimizer." prefix."""
    names = _names(network, optimizer)
    state: dict[int, dict[str, Any]] = {}
    for index, name in enumerate(names):
        entry = dict(values["numbers"].get(name, {}))
        for full, tensor in tensors.items():
            owner, _, key = full.rpartition(".")
            if owner == name:
                entry[key] = tensor
        if entry:
            state[index] = entry
    now = optimizer.state_dict()["param_groups"]
    groups = [saved | {"params": group["params"]} for saved, group in zip(values["groups"], now, strict=True)]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
