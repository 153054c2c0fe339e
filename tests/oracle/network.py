"""Forward and backward pass of a stack of GRU layers over a block of T steps, in all three embedding modes.

B is the number of lanes; see sessions.py.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .philox import EMBEDDING_DROPOUT, FIRST_LAYER_DROPOUT, bernoulli_keep
from .sessions import Step

Weights = dict[str, np.ndarray]
State = list[np.ndarray]  # the hidden state of each layer, [B, H]


class Dropout(NamedTuple):
    """Dropout probabilities and the seed of the masks."""

    embed: float = 0.0
    hidden: float = 0.0
    seed: int = 0


@dataclass
class Block:
    """Results of the forward pass over T steps. Each list has one element per step.

    Attributes:
        steps: the inputs, targets and resets.
        outputs: output of the top layer, [B, H]; rows of dead lanes are arbitrary.
        states: the new state of every layer.
        caches: for each layer, what the backward pass needs.
        embedding_masks: dropout factors of the embedding.
    """

    steps: list[Step]
    outputs: list[np.ndarray]
    states: list[State]
    caches: list[list[dict[str, Any]]]
    embedding_masks: list[np.ndarray | float]


def embedding_mode(weights: Weights) -> str:
    """Return "constrained", "separate" or "none" (one-hot inputs)."""
    if "embedding.weight" not in weights:
        return "constrained"
    return "separate" if "layers.0.weight_ih" in weights else "none"


def input_table(weights: Weights) -> str:
    """Return the name of the table whose rows are the inputs of the network."""
    return "output.weight" if embedding_mode(weights) == "constrained" else "embedding.weight"


def layer_sizes(weights: Weights) -> list[int]:
    """Return the number of units of each GRU layer."""
    n_layers = sum(name.startswith("layers.") and name.endswith(".weight_hh") for name in weights)
    return [weights[f"layers.{layer}.weight_hh"].shape[1] for layer in range(n_layers)]


def input_width(weights: Weights) -> int:
    """Return the number of columns of the input table."""
    return weights[input_table(weights)].shape[1]


def zero_state(weights: Weights, lanes: int) -> State:
    return [np.zeros((lanes, size)) for size in layer_sizes(weights)]


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0.0, -x))


def cell_forward(x: np.ndarray, h: np.ndarray, w: Weights) -> tuple[np.ndarray, dict[str, Any]]:
    """Run one GRU step. Returns the new state and what `cell_backward` needs.

    w holds the weights of the layer. Without weight_ih, x is already the input of the three gates, [B, 3H]. With
    bias_hh the GRU is "reset_after", else "reset_before" (gru4rec_fast/ops/gru.py).
    """
    size = h.shape[1]
    gates = (x @ w["weight_ih"].T if "weight_ih" in w else x) + w["bias_ih"]
    recurrent = h @ w["weight_hh"].T + w.get("bias_hh", 0.0)
    r = _sigmoid(gates[:, :size] + recurrent[:, :size])
    z = _sigmoid(gates[:, size : 2 * size] + recurrent[:, size : 2 * size])
    reset_after = "bias_hh" in w
    inner = r * recurrent[:, 2 * size :] if reset_after else (r * h) @ w["weight_hh"][2 * size :].T
    n = np.tanh(gates[:, 2 * size :] + inner)
    return (1 - z) * n + z * h, {"x": x, "h": h, "r": r, "z": z, "n": n, "recurrent": recurrent}


def cell_backward(grad: np.ndarray, cache: dict[str, Any], w: Weights) -> tuple[np.ndarray, np.ndarray, Weights]:
    """Return the gradients of x, of the old h and of the weights, from the gradient of the new h."""
    x, h, r, z, n = (cache[name] for name in "xhrzn")
    size = h.shape[1]
    grad_pre_n = grad * (1 - z) * (1 - n**2)
    grad_pre_z = grad * (h - n) * z * (1 - z)
    grad_h = grad * z
    if "bias_hh" in w:
        grad_pre_r = grad_pre_n * cache["recurrent"][:, 2 * size :] * r * (1 - r)
        grad_recurrent = np.hstack([grad_pre_r, grad_pre_z, grad_pre_n * r])
        grad_h = grad_h + grad_recurrent @ w["weight_hh"]
        grads = {"weight_hh": grad_recurrent.T @ h, "bias_hh": grad_recurrent.sum(axis=0)}
    else:
        grad_rh = grad_pre_n @ w["weight_hh"][2 * size :]
        grad_pre_r = grad_rh * h * r * (1 - r)
        grad_h = grad_h + grad_rh * r + np.hstack([grad_pre_r, grad_pre_z]) @ w["weight_hh"][: 2 * size]
        grads = {"weight_hh": np.vstack([grad_pre_r.T @ h, grad_pre_z.T @ h, grad_pre_n.T @ (r * h)])}
    grad_gates = np.hstack([grad_pre_r, grad_pre_z, grad_pre_n])
    grads["bias_ih"] = grad_gates.sum(axis=0)
    if "weight_ih" not in w:
        return grad_gates, grad_h, grads
    grads["weight_ih"] = grad_gates.T @ x
    return grad_gates @ w["weight_ih"], grad_h, grads


def layer_weights(weights: Weights, layer: int) -> Weights:
    prefix = f"layers.{layer}."
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def _dropout_factors(p: float, seed: int, stream: int, step: int, live: np.ndarray, units: int) -> np.ndarray | float:
    """Return the dropout factors of the live lanes, each 0 or 1 / (1 - p); the number 1 without dropout."""
    if p == 0.0:
        return 1.0
    keep = bernoulli_keep(p, seed=seed, stream=stream, step=step, lanes=len(live), units=units)
    return keep[live] / (1.0 - p)


def run_forward(
    weights: Weights, steps: list[Step], state: State, dropout: Dropout | None = None, first_step: int = 0
) -> Block:
    """Run a block of steps from `state`, which is not changed. Step t has the dropout masks of step first_step + t."""
    dropout = dropout or Dropout()
    layers = [layer_weights(weights, layer) for layer in range(len(state))]
    p_embed = 0.0 if embedding_mode(weights) == "none" else dropout.embed  # one-hot inputs have no embedding
    block = Block(steps, outputs=[], states=[], caches=[], embedding_masks=[])
    for t, step in enumerate(steps):
        live = step.live
        mask = _dropout_factors(p_embed, dropout.seed, EMBEDDING_DROPOUT, first_step + t, live, input_width(weights))
        block.embedding_masks.append(mask)
        x = weights[input_table(weights)][step.inputs[live]] * mask
        new_state, caches = [], []
        for layer, w in enumerate(layers):
            h = np.where(step.reset[:, None], 0.0, state[layer])
            out, cache = cell_forward(x, h[live], w)
            cache["mask"] = _dropout_factors(
                dropout.hidden, dropout.seed, FIRST_LAYER_DROPOUT + layer, first_step + t, live, out.shape[1]
            )
            x = out * cache["mask"]  # the output after dropout is the state of the next step
            h[live] = x
            new_state.append(h)
            caches.append(cache)
        state = new_state
        block.states.append(state)
        block.caches.append(caches)
        block.outputs.append(state[-1])
    return block


def run_backward(
    weights: Weights, block: Block, grad_outputs: list[np.ndarray], detach_steps: bool = False
) -> tuple[Weights, list[np.ndarray]]:
    """Return the gradients of the layers' weights and, for each step, of the inputs of its M live lanes, [M, width].

    `grad_outputs` holds one array [B, H] per step. Gradients flow back through the steps of the block until a reset;
    with `detach_steps` they do not flow from a step to the previous one.
    """
    sizes = layer_sizes(weights)
    layers = [layer_weights(weights, layer) for layer in range(len(sizes))]
    grads = {name: np.zeros_like(value) for name, value in weights.items() if name.startswith("layers.")}
    grad_inputs: list[np.ndarray] = []
    grad_state = [np.zeros((len(block.steps[0].inputs), size)) for size in sizes]
    for t in reversed(range(len(block.steps))):
        step, live = block.steps[t], block.steps[t].live
        grad_output = grad_outputs[t][live]
        for layer in reversed(range(len(sizes))):
            cache = block.caches[t][layer]
            grad_output, grad_h, grad_weights = cell_backward(
                (grad_output + grad_state[layer][live]) * cache["mask"], cache, layers[layer]
            )
            for name, value in grad_weights.items():
                grads[f"layers.{layer}.{name}"] += value
            grad_state[layer] = np.zeros_like(grad_state[layer])
            if not detach_steps:
                grad_state[layer][live] = grad_h * ~step.reset[live, None]
        grad_inputs.insert(0, grad_output * block.embedding_masks[t])
    return grads, grad_inputs
