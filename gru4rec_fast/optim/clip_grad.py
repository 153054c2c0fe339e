"""Clipping of sparse and dense gradients by their norm."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


@torch.no_grad()
def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor], max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False
) -> Tensor:
    """Clip the norm of the gradients of all parameters together; return the norm before clipping, a 0-dim tensor.

    Like torch.nn.utils.clip_grad_norm_, which refuses sparse gradients. Rows that occur several times in a sparse
    gradient are added first, because the norm is that of their sum.

    Args:
        parameters: a tensor or several; those without a gradient are ignored.
        max_norm: the gradients are multiplied by max_norm / (norm + 1e-6) if that is below 1.
        norm_type: order of the norm; may be infinity.
        error_if_nonfinite: raise an error if the norm is NaN or infinite.

    Raises:
        RuntimeError: the norm is not finite, and `error_if_nonfinite` is True.
    """
    values = []
    for parameter in [parameters] if isinstance(parameters, Tensor) else parameters:
        if parameter.grad is None:
            continue
        if parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
            values.append(parameter.grad._values())
        else:
            values.append(parameter.grad)
    values = [tensor for tensor in values if tensor.numel()]  # torch has no infinity norm of an empty tensor
    norm = torch.nn.utils.get_total_norm(values, norm_type, error_if_nonfinite)
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)  # without a branch, which would wait for a GPU
    for tensor in values:
        tensor.mul_(factor.to(tensor.device))
    return norm
