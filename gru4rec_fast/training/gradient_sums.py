"""Sums of gradients over ranks, for training by autograd."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from gru4rec_fast.distributed import Ranks


def sum_gradients(
    ranks: Ranks, parameters: Sequence[nn.Parameter], rows: Mapping[Tensor, Tensor], losses: Sequence[Tensor]
) -> list[Tensor]:
    """Replace the gradients of the parameters by their sums over all ranks; return the sums of the losses.

    rows: for each parameter with sparse gradients, the sorted rows, int64, that may have a gradient on any rank. They
        are the same on every rank.
    """
    # bfloat16 and float16 gradients are summed in float32.
    dtype = torch.promote_types(parameters[0].dtype, torch.float32)
    pieces = [loss.reshape(1) for loss in losses] + [_pack(parameter, rows.get(parameter)) for parameter in parameters]
    sums = torch.cat([piece.to(dtype) for piece in pieces])
    ranks.sum_(sums)
    summed = sums.split([len(piece) for piece in pieces])
    for parameter, gradient in zip(parameters, summed[len(losses) :], strict=True):
        parameter.grad = _unpack(gradient.to(parameter.dtype), parameter, rows.get(parameter))
    return [loss.squeeze(0) for loss in summed[: len(losses)]]


def _pack(parameter: nn.Parameter, rows: Tensor | None) -> Tensor:
    """Return the gradient of the parameter, or of these rows of it, as one vector."""
    grad = parameter.grad
    if rows is None:
        return parameter.new_zeros(parameter.numel()) if grad is None else grad.reshape(-1)
    packed = parameter.new_zeros(len(rows), *parameter.shape[1:])
    if grad is not None:
        packed.index_add_(0, torch.searchsorted(rows, grad._indices()[0]), grad._values())
    return packed.reshape(-1)


def _unpack(gradient: Tensor, parameter: nn.Parameter, rows: Tensor | None) -> Tensor:
    """Return the gradient of the parameter, given what `_pack` returned."""
    if rows is None:
        return gradient.view_as(parameter)
    values = gradient.view(len(rows), *parameter.shape[1:])
    return torch.sparse_coo_tensor(rows[None], values, parameter.shape, is_coalesced=True, check_invariants=False)
