"""One training step at a time: gradients of a block of steps, and Adagrad with momentum on what it touched."""

from dataclasses import dataclass, field

import numpy as np

from .losses import sampled_loss
from .network import Block, Dropout, State, Weights, input_table, run_backward, run_forward, zero_state
from .sessions import Step


@dataclass(frozen=True)
class Options:
    """What a training run is told, in the words of semantics.md; defaults are the published ones."""

    batch_size: int = 64
    loss: str = "cross-entropy"
    learning_rate: float = 0.05
    momentum: float = 0.0
    sample_alpha: float = 0.5
    logq: float = 0.0
    elu_param: float = 0.5
    bpreg: float = 1.0
    label_smoothing: float = 0.0
    mask_accidental_hits: bool = False
    in_batch: bool = True
    dropout: Dropout = field(default_factory=Dropout)
    detach_steps: bool = False  # gradient accumulation: a block without gradient between its steps


def log_q(
    targets: np.ndarray, negatives: np.ndarray, support: np.ndarray | None, options: Options
) -> np.ndarray | None:
    """float64 [M + N]: what logQ takes off each column; in-batch columns occur as often as the item itself."""
    if options.logq == 0.0:
        return None
    if support is None:
        raise ValueError("logq needs the items' support")
    log_support = np.log(support.astype(np.float64))
    return options.logq * np.concatenate([log_support[targets], options.sample_alpha * log_support[negatives]])


def block_gradients(
    weights: Weights,
    steps: list[Step],
    negatives: list[np.ndarray],
    state: State,
    options: Options,
    *,
    support: np.ndarray | None = None,
    first_step: int = 0,
) -> tuple[float, Weights, dict[str, np.ndarray], Block]:
    """Loss averaged over the steps, dense gradients of all weights, the touched rows of each table, and the forward.

    A row that occurs several times has its gradients summed; tables in the second dictionary are updated there only.
    """
    if not all(step.live.any() for step in steps):
        raise ValueError("a step in which no lane lives is no step: cut it off the block")
    block = run_forward(weights, steps, state, options.dropout, first_step)
    grads = {name: np.zeros_like(value) for name, value in weights.items()}
    touched: dict[str, list[np.ndarray]] = {name: [] for name in weights if not name.startswith("layers.")}
    total, grad_outputs = 0.0, []
    for step, drawn, output in zip(steps, negatives, block.outputs, strict=True):
        live = step.live
        columns = np.concatenate([step.targets[live], drawn])
        loss, by_hidden, by_rows, by_bias = sampled_loss(
            output[live],
            weights["output.weight"][columns],
            weights["output.bias"][columns],
            loss=options.loss,
            batch_size=options.batch_size,
            in_batch=options.in_batch,
            log_q=log_q(step.targets[live], drawn, support, options),
            ids=columns if options.mask_accidental_hits else None,
            elu_param=options.elu_param,
            bpreg=options.bpreg,
            label_smoothing=options.label_smoothing,
        )
        total += loss / len(steps)
        np.add.at(grads["output.weight"], columns, by_rows / len(steps))
        np.add.at(grads["output.bias"], columns, by_bias / len(steps))
        touched["output.weight"].append(columns)
        touched["output.bias"].append(columns)
        grad_outputs.append(np.zeros_like(output))
        grad_outputs[-1][live] = by_hidden / len(steps)

    layer_grads, by_inputs = run_backward(weights, block, grad_outputs, options.detach_steps)
    grads.update(layer_grads)
    for step, by_input in zip(steps, by_inputs, strict=True):
        np.add.at(grads[input_table(weights)], step.inputs[step.live], by_input)
        touched[input_table(weights)].append(step.inputs[step.live])
    return total, grads, {name: np.unique(np.concatenate(rows)) for name, rows in touched.items()}, block


@dataclass
class Adagrad:
    """acc += g^2; v <- momentum v - lr g / sqrt(acc + 1e-6); w += v. Updates arrays in place."""

    lr: float
    momentum: float = 0.0
    accumulator: Weights = field(default_factory=dict)
    velocity: Weights = field(default_factory=dict)

    def update(self, name: str, weight: np.ndarray, grad: np.ndarray, rows: np.ndarray | None = None) -> None:
        """rows None: every element moves. Else only those distinct rows, each even if its gradient is zero."""
        accumulator = self.accumulator.setdefault(name, np.zeros_like(weight))
        velocity = self.velocity.setdefault(name, np.zeros_like(weight))
        at = slice(None) if rows is None else rows
        accumulator[at] += grad[at] ** 2
        velocity[at] = self.momentum * velocity[at] - self.lr * grad[at] / np.sqrt(accumulator[at] + 1e-6)
        weight[at] += velocity[at]


class Trainer:
    """Weights, hidden state and optimizer of a run in progress; the weights given are copied."""

    def __init__(self, weights: Weights, options: Options, *, support: np.ndarray | None = None) -> None:
        self.weights = {name: np.array(value, dtype=np.float64) for name, value in weights.items()}
        self.options = options
        self.support = support
        self.optimizer = Adagrad(options.learning_rate, options.momentum)
        self.n_steps = 0
        self.begin_epoch(options.batch_size)

    def begin_epoch(self, lanes: int) -> None:
        self.state = zero_state(self.weights, lanes)

    def train_block(self, steps: list[Step], negatives: list[np.ndarray]) -> tuple[float, Block]:
        """One update from a block of one step (bptt=1) or several; its loss before the update, and the forward."""
        loss, grads, touched, block = block_gradients(
            self.weights,
            steps,
            negatives,
            self.state,
            self.options,
            support=self.support,
            first_step=self.n_steps,
        )
        for name, weight in self.weights.items():
            self.optimizer.update(name, weight, grads[name], touched.get(name))
        self.state = block.states[-1]
        self.n_steps += len(steps)
        return loss, block
