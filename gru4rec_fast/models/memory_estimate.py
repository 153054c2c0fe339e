"""Estimate the memory of a training and of an evaluation from the parameters and the sizes of the data.

Parameters, optimizer state, ids and the buffers of the fused step are computed from the shapes of their tensors. The
activations of graph models are the largest sum of the tensors that exist at the same time in forward or backward.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from gru4rec_fast._untrusted import whole_numbers
from gru4rec_fast.models.parameters import (
    GraphParameters,
    GRU4RecParameters,
    LightGCNParameters,
    NGCFParameters,
    split_adjacency,
)

_INT64 = 8
_QUERIES_PER_CALL = 512  # hidden states per call of the network in evaluate_sessions on the CPU
_SESSIONS_PER_SORT = 1 << 16  # sessions that evaluate_sessions sorts by length at a time
_PADDED_BYTES = 8 << 20  # limit of the padded lists of seen items in evaluate_graph
_REFERENCE_SCORES = 1 << 22  # scores per chunk of the ranking with impl="reference"
_MAX_SEARCHED, _MAX_SELECTED = 0.4, 0.7  # limits of GraphNetwork.neighborhoods
_NORM_COLUMNS = 4  # columns [n, 1] that F.normalize keeps for its backward
_BYTES_PER_USER = 130  # a NumPy array of a user's test items, in evaluate_graph


@dataclass(frozen=True)
class MemoryEstimate:
    """Estimated bytes of a training on the CPU, above the memory of Python, torch and the data.

    Attributes:
        parameters: weights of the network.
        optimizer: accumulators and velocity of Adagrad, or both running means of Adam.
        gradients: dense gradients that exist between two steps (graph models).
        ids: copies of ids, supports and edges during `fit`, and the alias table that draws negatives.
        workspace: buffers of the fused step, which exist during the whole training.
        activations: what forward and backward by autograd need in addition to the above.
        evaluation: what an evaluation needs beyond the parameters.
        evaluation_batch_size: the `batch_size` of that evaluation.
        n_parts: number of parts in which an update computes its loss, for `profiling.oom_guard(n_parts=)`.
    """

    parameters: int
    optimizer: int
    gradients: int
    ids: int
    workspace: int
    activations: int
    evaluation: int
    evaluation_batch_size: int
    n_parts: int = 1

    @property
    def training(self) -> int:
        """Peak of a `fit` without validation."""
        return self._held + self.activations

    @property
    def validating(self) -> int:
        """Peak of a validation within `fit`."""
        return self._held + self.evaluation

    @property
    def evaluating(self) -> int:
        """Peak of the `evaluate` of a loaded model. After `fit`, a graph model also keeps its last gradients."""
        return self.parameters + self.evaluation

    @property
    def peak(self) -> int:
        """Peak of a `fit` with validation."""
        return max(self.training, self.validating)

    @property
    def _held(self) -> int:
        return self.parameters + self.optimizer + self.gradients + self.ids + self.workspace

    def to_dict(self) -> dict[str, int]:
        """Return all attributes and the four sums."""
        sums = ("training", "validating", "evaluating", "peak")
        return asdict(self) | {name: getattr(self, name) for name in sums}

    def rows(self) -> list[tuple[str, str]]:
        """Return the name and the value of each attribute and sum, for a table; bytes are given in MiB."""
        return [
            (name, f"{value:,}" if name in ("evaluation_batch_size", "n_parts") else f"{value / 2**20:,.1f} MiB")
            for name, value in self.to_dict().items()
        ]

    def table(self) -> str:
        """Return one line for each attribute and sum."""
        return "\n".join(f"{name:<21}  {text:>14}" for name, text in self.rows())


def estimate_memory(
    parameters: GRU4RecParameters | GraphParameters,
    n_items: int,
    *,
    n_users: int = 0,
    n_edges: int = 0,
    batch_size: int | None = None,
    cutoff: int = 20,
    memory_budget: int | None = None,
) -> MemoryEstimate:
    """Return the estimated memory of a training and an evaluation on the CPU with native kernels.

        estimate_memory(GRU4RecParameters(layers=[100]), n_items=1_000_000).peak
        chosen = estimate_memory(model, n, memory_budget=2 << 30)
        with oom_guard(n_parts=chosen.n_parts):
            model.fit(train)
        model.evaluate(test, batch_size=chosen.evaluation_batch_size)

    The training data, which may be memory-mapped, and files of `out=` are not counted. With `only_needed`, the nodes
    that a mini-batch needs are estimated as for a random graph.

    Args:
        parameters: the parameters of a model, or a model.
        n_items: number of items.
        n_users, n_edges: numbers of users and of interactions; only for graph models, which need `n_users`.
        batch_size: batch size of the evaluation; None: the default of `evaluate`.
        cutoff: largest cut-off of the evaluation.
        memory_budget: bytes that an `evaluate` and the training of a GRU4Rec may use, parameters included. The batch
            size of the evaluation is halved, and the number of parts of an update is doubled, until both fit.
            Both change results at most by rounding errors. If no number of parts is enough, `training` is above the
            budget. None: no limit.

    Raises:
        ValueError: a size is out of range, or the budget is less than the need at batch size 1. TypeError:
            `parameters` are of another class, or a size is no integer.
    """
    if not isinstance(parameters, GRU4RecParameters | NGCFParameters | LightGCNParameters):
        raise TypeError(
            "parameters must be GRU4RecParameters, NGCFParameters, LightGCNParameters or a model, not "
            f"{type(parameters).__name__}"
        )
    is_graph = isinstance(parameters, GraphParameters)
    batch_size = (1024 if is_graph else 512) if batch_size is None else batch_size
    n_items, batch_size, cutoff = whole_numbers(1, n_items=n_items, batch_size=batch_size, cutoff=cutoff)
    (n_users,) = whole_numbers(1 if is_graph else 0, n_users=n_users)
    (n_edges,) = whole_numbers(0, n_edges=n_edges)
    if not is_graph and (n_users or n_edges):
        raise ValueError("n_users and n_edges are for graph models; GRU4Rec has only n_items")
    if memory_budget is not None:
        (memory_budget,) = whole_numbers(0, memory_budget=memory_budget)
    n_parts = 1
    while True:
        if isinstance(parameters, GRU4RecParameters):
            estimate = _estimate_sessions(parameters, n_items, batch_size, n_parts)
        else:
            estimate = _estimate_graph(parameters, n_users, n_items, n_edges, batch_size, min(cutoff, n_items))
        if memory_budget is None:
            return estimate
        if estimate.evaluating <= memory_budget:
            is_enough = estimate.training <= memory_budget or n_parts >= parameters.batch_size
            if is_graph or is_enough:
                return estimate
            n_parts = min(2 * n_parts, parameters.batch_size)
            continue
        if batch_size == 1:
            raise ValueError(
                f"memory_budget={memory_budget}: an evaluation needs at least {estimate.evaluating} bytes, of which "
                f"{estimate.parameters} are parameters; increase the budget, or use a smaller model"
            )
        batch_size //= 2


def _scalar_bytes(p: Any) -> int:
    return 4 if p.dtype == "float32" else 8


def _estimate_sessions(p: GRU4RecParameters, n_items: int, batch_size: int, n_parts: int) -> MemoryEstimate:
    mode, size, layers = p.embedding_mode, _scalar_bytes(p), p.layers
    input_width = {"constrained": layers[-1], "separate": p.embedding_dim, "none": 3 * layers[0]}[mode]
    input_widths = [input_width, *layers[:-1]]
    tables = n_items * (layers[-1] + 1 + (0 if mode == "constrained" else input_width))
    gru = 0  # numbers of weights
    for layer, (width, hidden) in enumerate(zip(input_widths, layers, strict=True)):
        is_one_hot = mode == "none" and layer == 0  # without weight_ih, and always in the form reset_before
        has_bias_hh = p.gru_form == "reset_after" and not is_one_hot
        gru += 3 * hidden * (hidden + (0 if is_one_hot else width) + (2 if has_bias_hh else 1))
    parameters = size * (tables + gru)
    # The ids and the support are stored for the model's file, and the support again in the model. 20: alias table.
    ids = 3 * _INT64 * n_items + (20 * n_items if p.n_sample else 0) + (size * n_items if p.logq else 0)
    is_fused = p.fused and p.impl != "reference"
    step = size * _step_elements(p, n_items, input_widths, gru, is_fused, n_parts)
    rows = max(_QUERIES_PER_CALL, batch_size)
    evaluation = size * rows * (sum(input_widths) + 9 * sum(layers)) + 4 * _INT64 * _SESSIONS_PER_SORT
    if p.impl == "reference":
        evaluation += 2 * size * max(_REFERENCE_SCORES, n_items)
    return MemoryEstimate(
        parameters=parameters,
        optimizer=parameters * (2 if p.momentum else 1),
        gradients=0,
        ids=ids,
        workspace=step if is_fused else 0,
        activations=0 if is_fused else step,
        evaluation=evaluation,
        evaluation_batch_size=batch_size,
        n_parts=n_parts,
    )


def _step_elements(
    p: GRU4RecParameters, n_items: int, input_widths: Sequence[int], gru: int, is_fused: bool, n_parts: int
) -> int:
    """Return the number of elements of the buffers of one update (csrc/training_step; autograd needs similar ones)."""
    rows, hidden = p.bptt * p.batch_size, p.layers[-1]
    # GruStack: gate inputs, their gradients, gradients of the products with the states (3 H each), saved gates (4 H),
    # outputs (H).
    elements = rows * sum(14 * h + (h if p.dropout_p_hidden else 0) for h in p.layers) + rows * sum(input_widths)
    elements += rows * (input_widths[0] * (2 if p.dropout_p_embed else 1) + hidden)  # inputs, mask, gradient of outputs
    # OutputTable: rows of targets and negatives, scores. The number of distinct negatives is that of a uniform draw.
    columns = p.batch_size + round(n_items * -math.expm1(-p.n_sample / n_items))
    elements += columns * hidden + -(-p.batch_size // n_parts) * columns
    if not is_fused:  # rows, their gradients, and the sums of the gradients of all steps
        return elements + 4 * p.bptt * p.accumulate * columns * hidden + gru
    if p.bptt * p.accumulate * n_parts == 1:
        return elements + (p.batch_size + rows) * hidden  # gradients of targets and inputs
    # Gradients of the GRU, and of the rows of all steps until the update. Their memory doubles when it grows.
    stored = p.accumulate * (p.bptt * columns * hidden + rows * input_widths[0])
    return elements + gru + stored + (columns * hidden if p.bptt * p.accumulate == 1 else 0)


def _estimate_graph(
    p: NGCFParameters | LightGCNParameters, n_users: int, n_items: int, n_edges: int, batch_size: int, cutoff: int
) -> MemoryEstimate:
    n_nodes, size, width = n_users + n_items, _scalar_bytes(p), p.embedding_dim
    widths = [width, *p.layer_sizes] if isinstance(p, NGCFParameters) else [width] * (p.n_layers + 1)
    weights = sum(2 * a * b + 2 * b for a, b in pairwise(widths)) if isinstance(p, NGCFParameters) else 0
    parameters = size * (n_nodes * width + weights)
    neighbor_bytes = 4 if n_nodes < 1 << 31 else 8
    # Copies for the model's file: ids, offsets and neighbors; and the users that can be drawn.
    ids = _INT64 * (2 * n_nodes + 1 + n_users) + neighbor_bytes * 2 * n_edges
    fractions = _needed_fractions(p, n_nodes, n_edges, len(widths) - 1)
    is_complete = min(fractions) == 1
    if isinstance(p, NGCFParameters):
        columns = _ngcf_columns(p, widths, fractions, is_complete, size)
        forward = sum(widths[1:]) + sum(widths) + (widths[-1] if len(widths) > 1 else 0)  # columns in an evaluation
        final_width = sum(widths)
    else:
        forward, final_width = (3 if p.n_layers else 1) * width, width
        # If all nodes are computed: product, old and new sum, and the gradient of the previous step. Else: gradients of
        # the penalty, of the sum and of the first layer's output.
        columns = width * ((4.0 if p.n_layers else 3.0) if is_complete else 2 + fractions[min(1, p.n_layers)])
    # 2 * n_nodes: scales of the rows and columns of the matrix.
    step = size * (round(n_nodes * columns) + 2 * n_nodes)
    # evaluate_graph: users, items and keys of all training interactions, and a list of test items per user.
    lists = 4 * _INT64 * n_edges + _BYTES_PER_USER * n_users
    seen = min(_PADDED_BYTES, 4 * _INT64 * batch_size * (n_edges // n_users + 1))
    batch = 3 * seen + batch_size * (size * final_width + cutoff * 160)
    evaluation = max(size * n_nodes * forward, size * n_nodes * final_width + lists + batch)
    if p.impl == "reference":
        evaluation += 2 * size * max(_REFERENCE_SCORES, n_items)
    return MemoryEstimate(
        parameters=parameters,
        optimizer=2 * parameters,
        gradients=parameters,
        ids=ids,
        workspace=0,
        activations=max(step - parameters, 0),
        evaluation=evaluation,
        evaluation_batch_size=batch_size,
    )


def _needed_fractions(p: GraphParameters, n_nodes: int, n_edges: int, n_layers: int) -> list[float]:
    """Return the fraction of the nodes that the output of each layer needs; element 0 is that of the table."""
    if not p.only_needed:
        return [1.0] * (n_layers + 1)
    fraction = -math.expm1(-3 * p.batch_size / n_nodes)
    fractions = [fraction]
    for _ in range(n_layers):
        reached = -math.expm1(-fraction * (1 + 2 * n_edges / n_nodes))
        fraction = 1.0 if fraction >= _MAX_SEARCHED or reached >= _MAX_SELECTED else reached
        fractions.insert(0, fraction)
    return fractions


def _ngcf_columns(
    p: NGCFParameters, widths: Sequence[int], fractions: Sequence[float], is_complete: bool, size: int
) -> float:
    """Return the elements per node of the tensors that exist at the same time in a step, gradients included."""
    first, second = (name.removesuffix("+I") for name in split_adjacency(p.adjacency))
    n_products = 1 if first == second else 2
    layers = list(zip(pairwise(widths), fractions[1:], strict=True))
    # Until its backward, a layer keeps the products with the matrices, a byte of flags per unit, and its output.
    saved = [
        fraction * (n_products * w_in + w_out * (1 + 1 / size) + (_NORM_COLUMNS if is_complete else 0))
        for (w_in, w_out), fraction in layers
    ]
    if is_complete and p.normalize_messages:
        saved[:-1] = [s + w for s, w in zip(saved[:-1], widths[1:-1], strict=True)]
    final = sum(widths) if is_complete else 0  # final embeddings of all nodes
    # Forward: normalized outputs and their concatenation, in addition to the gradient of the previous step.
    peak = widths[0] + sum(saved) + (sum(widths[1:]) if is_complete else 0) + final
    for layer in range(len(layers), 0, -1):
        (w_in, w_out), fraction = layers[layer - 1]
        held = sum(saved[:layer]) + (final or widths[0])
        if is_complete:  # backward of the normalization, with the gradient that the next layer computed
            peak = max(peak, held + (5 if layer < len(layers) else 4) * w_out)
        # Backward of the layer: gradients of output, products and features; the output itself is not needed.
        grads = fraction * (w_out + (n_products + 1) * w_in) + n_products * fractions[layer - 1] * w_in
        peak = max(peak, held - fraction * w_out + grads)
    return peak
