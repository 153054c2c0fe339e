"""Training: gradients of a block of steps, and Adagrad with momentum for the table rows that occur in the block."""

from dataclasses import dataclass, field

import numpy as np

from .losses import sampled_loss
from .network import Block, Dropout, State, Weights, input_table, run_backward, run_forward, zero_state
from .sessions import Step


@dataclass(frozen=True)
class Options:
    """Hyper-parameters, with the names of shared/semantics.md and the defaults of the published code."""

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
    detach_steps: bool = False  # gradient accumulation in place of backpropagation through time


def log_q(
    targets: np.ndarray, negatives: np.ndarray, support: np.ndarray | None, options: Options
) -> np.ndarray | None:
    """Return the logQ correction of each column (M targets, then N negatives), float64 [M + N]; None if logq is 0.

    An item is a target in proportion to its support, and a negative in proportion to support^sample_alpha.
    """
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
    """Return (mean loss of the steps, dense gradients, indices of the touched rows by table name, forward pass).

    A row of a table is touched if the block reads it; only touched rows are updated. The gradients of a row that occurs
    several times are summed.
    """
    if not all(step.live.any() for step in steps):
        raise ValueError("a step without live lanes is not allowed: remove it from the block")
    block = run_forward(weights, steps, state, options.dropout, first_step)
    grads = {name: np.zeros_like(value) for name, value in weights.items()}
    touched: dict[str, list[np.ndarray]] = {name: [] for name in weights if not name.startswith("layers.")}
    total, grad_outputs = 0.0, []
    for step, step_negatives, output in zip(steps, negatives, block.outputs, strict=True):
        live = step.live
        columns = np.concatenate([step.targets[live], step_negatives])
        loss, grad_hidden, grad_rows, grad_bias = sampled_loss(
            output[live],
            weights["output.weight"][columns],
            weights["output.bias"][columns],
            loss=options.loss,
            batch_size=options.batch_size,
            in_batch=options.in_batch,
            log_q=log_q(step.targets[live], step_negatives, support, options),
            ids=columns if options.mask_accidental_hits else None,
            elu_param=options.elu_param,
            bpreg=options.bpreg,
            label_smoothing=options.label_smoothing,
        )
        total += loss / len(steps)
        np.add.at(grads["output.weight"], columns, grad_rows / len(steps))
        np.add.at(grads["output.bias"], columns, grad_bias / len(steps))
        touched["output.weight"].append(columns)
        touched["output.bias"].append(columns)
        grad_outputs.append(np.zeros_like(output))
        grad_outputs[-1][live] = grad_hidden / len(steps)

    layer_grads, grad_inputs = run_backward(weights, block, grad_outputs, options.detach_steps)
    grads.update(layer_grads)
    for step, grad_input in zip(steps, grad_inputs, strict=True):
        np.add.at(grads[input_table(weights)], step.inputs[step.live], grad_input)
        touched[input_table(weights)].append(step.inputs[step.live])
    return total, grads, {name: np.unique(np.concatenate(rows)) for name, rows in touched.items()}, block


@dataclass
class Adagrad:
    """Adagrad with momentum: acc += g^2; v <- momentum * v - lr * g / sqrt(acc + 1e-6); w += v."""

    lr: float
    momentum: float = 0.0
    accumulator: Weights = field(default_factory=dict)
    velocity: Weights = field(default_factory=dict)

    def update(self, name: str, weight: np.ndarray, grad: np.ndarray, rows: np.ndarray | None = None) -> None:
        """Update `weight` in place, in distinct rows (None: all rows). Rows with zero gradients are updated as well."""
        accumulator = self.accumulator.setdefault(name, np.zeros_like(weight))
        velocity = self.velocity.setdefault(name, np.zeros_like(weight))
        index = slice(None) if rows is None else rows
        accumulator[index] += grad[index] ** 2
        step = self.lr * grad[index] / np.sqrt(accumulator[index] + 1e-6)
        velocity[index] = self.momentum * velocity[index] - step
        weight[index] += velocity[index]


class Trainer:
    """Trains a model block by block. Holds a copy of the weights, the hidden state and the optimizer."""

    def __init__(self, weights: Weights, options: Options, *, support: np.ndarray | None = None) -> None:
        self.weights = {name: np.array(value, dtype=np.float64) for name, value in weights.items()}
        self.options = options
        self.support = support
        self.optimizer = Adagrad(options.learning_rate, options.momentum)
        self.n_steps = 0
        self.begin_epoch(options.batch_size)

    def begin_epoch(self, lanes: int) -> None:
        """Set the hidden state of each lane to zero."""
        self.state = zero_state(self.weights, lanes)

    def train_block(self, steps: list[Step], negatives: list[np.ndarray]) -> tuple[float, Block]:
        """Make one update from a block of steps. Returns the loss before the update, and the forward pass."""
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
