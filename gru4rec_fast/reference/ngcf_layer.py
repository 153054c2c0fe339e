"""One layer of neural graph collaborative filtering.

Wang et al., "Neural graph collaborative filtering", SIGIR 2019 (arXiv 1905.08108), equation (7), and the variants of
its published code:

    sum       E' = act(P E W1 + b1 + (Q E * E) W2 + b2)
    per_term  E' = act(P E W1 + b1) + act((Q E * E) W2 + b2)

act is LeakyReLU, * element-wise. P and Q are propagation matrices (reference/laplacian.py), with "+I" behind its name
the identity is added; where they differ by that alone the product is computed once. In training, entries of P and Q
(the same ones) are dropped, the identity never, and units of E': unit k of node n is kept where the first Philox word
of counter (STREAM_MESSAGE_DROPOUT + layer, step, n, k) is at least floor(message_dropout * 2**32), and multiplied by
1 / (1 - message_dropout).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from gru4rec_fast.reference.dropout import dropout_mask
from gru4rec_fast.reference.laplacian import MATRICES, laplacian
from gru4rec_fast.reference.philox import STREAM_MESSAGE_DROPOUT

PROPAGATION_MATRICES = (*MATRICES, *(f"{matrix}+I" for matrix in MATRICES))
ACTIVATIONS = ("sum", "per_term")


def ngcf_layer(
    features: Tensor,
    offsets: Tensor,
    neighbours: Tensor,
    weight_1: Tensor,
    bias_1: Tensor,
    weight_2: Tensor,
    bias_2: Tensor,
    rows: Tensor | None = None,
    columns: Tensor | None = None,
    P: str = "symmetric+I",
    Q: str = "symmetric",
    activation: str = "sum",
    negative_slope: float = 0.2,
    node_dropout: float = 0.0,
    message_dropout: float = 0.0,
    seed: int = 0,
    step: int = 0,
    layer: int = 0,
    *,
    propagate: Callable[..., Tensor] = laplacian,
    draw_mask: Callable[..., Tensor] = dropout_mask,
) -> Tensor:
    """Return E' of the nodes `rows`, [n_rows, out], from E of the nodes `columns`, [n_columns, in]; None: all nodes.

    rows, columns: int64, nodes in rising order, rows among columns. weight_1, weight_2: [in, out]; bias_1, bias_2:
    [out]. layer: number of the layer, so that layers of one seed drop different units. propagate, draw_mask: the two
    operators that this one is made of.
    """
    own = pick(features, rows, columns)

    def side(matrix: str) -> Tensor:
        return propagate(
            features,
            offsets,
            neighbours,
            matrix=matrix,
            rows=rows,
            columns=columns,
            dropout=node_dropout,
            seed=seed,
            step=step,
        )

    (p_matrix, p_own), (q_matrix, q_own) = split_matrix("P", P), split_matrix("Q", Q)
    p = q = side(p_matrix)
    if q_matrix != p_matrix:
        q = side(q_matrix)
    p = p + own if p_own else p
    q = q + own if q_own else q
    if activation == "sum":  # one pass over the rows after another, each in the place of the one before
        first = torch.addmm(bias_1 + bias_2, p, weight_1)
        out = F.leaky_relu_(torch.addmm(first, q * own, weight_2), negative_slope)
    else:
        first = torch.addmm(bias_1, p, weight_1)
        second = torch.addmm(bias_2, q * own, weight_2)
        out = F.leaky_relu(first, negative_slope) + F.leaky_relu(second, negative_slope)
    if message_dropout == 0:
        return out
    n_nodes, units = offsets.shape[0] - 1, out.shape[1]
    stream = STREAM_MESSAGE_DROPOUT + layer
    mask = draw_mask(
        1, n_nodes, units, message_dropout, seed=seed, stream=stream, step=step, dtype=out.dtype, device=out.device
    )
    return out * pick(mask[0], rows, None)


def pick(table: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    """The rows of the nodes `rows` from a table that has one for each of the nodes `columns`; None: all nodes."""
    if rows is None:
        return table
    return table.index_select(0, rows if columns is None else torch.searchsorted(columns, rows))


def split_matrix(name: str, matrix: str) -> tuple[str, bool]:
    """ "mean+I" as ("mean", True): a matrix of `laplacian`, and whether the identity is added."""
    if matrix not in PROPAGATION_MATRICES:
        raise ValueError(f"{name}={matrix!r}: choose one of {', '.join(PROPAGATION_MATRICES)}")
    return matrix.removesuffix("+I"), matrix.endswith("+I")
