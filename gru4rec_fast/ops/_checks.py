"""Checks of arguments, for all operators; every error names the argument."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from gru4rec_fast.ops.philox import WORD_RANGE


def check_tensor(
    name: str,
    tensor: Tensor | None,
    dtypes: torch.dtype | Sequence[torch.dtype],
    shape: Sequence[int | str],
    device: torch.device,
) -> None:
    """Raise ValueError unless a tensor has one of the dtypes, the shape and the device; None is accepted.

    shape: sizes; a string is the name of a dimension of any size.
    """
    if tensor is None:
        return
    allowed = (dtypes,) if isinstance(dtypes, torch.dtype) else dtypes
    # Operators check some forty tensors in each step of a training, so the usual case is decided without a loop.
    fits = tensor.shape == shape or (
        tensor.dim() == len(shape)
        and all(isinstance(size, str) or size == actual for size, actual in zip(shape, tensor.shape, strict=True))
    )
    if not fits or tensor.dtype not in allowed or tensor.device != device:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        raise ValueError(
            f"{name} must be {names} [{', '.join(map(str, shape))}] on {device}, "
            f"not {str(tensor.dtype).removeprefix('torch.')} {[*tensor.shape]} on {tensor.device}"
        )


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raise ValueError unless `value` is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name}={value!r}: choose one of {', '.join(choices)}")


def check_probability(name: str, p: float) -> None:
    """Raise ValueError unless `p`, a probability of dropping, is in [0, 1)."""
    if not 0 <= p < 1:
        raise ValueError(f"{name}={p}: the probability of dropping must be in [0, 1)")


def check_counters(seed: int, step: int, steps: int) -> None:
    """Raise ValueError unless `seed` fits the Philox key and the steps `step` to `step + steps - 1` fit 32 bits."""
    if not 0 <= seed < 1 << 63:
        raise ValueError(f"seed={seed}: must be in [0, 2**63)")
    if steps < 0:
        raise ValueError(f"steps={steps}: must not be negative")
    if not 0 <= step <= WORD_RANGE - steps:
        raise ValueError(f"step={step} with steps={steps}: step must be at least 0 and step + steps at most 2**32")


def check_constant(**tensors: Tensor | None) -> None:
    """Raise ValueError if autograd is to compute the gradient of one of the tensors; the operator has none for them."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{name} requires a gradient, but the operator is not differentiable in it: detach it")


def check_n_elements(**sizes: int) -> None:
    """Raise ValueError unless the product of the sizes, the number of elements of a result, is less than 2**63."""
    if math.prod([*sizes.values()]) >= 1 << 63:
        raise ValueError(f"{' * '.join(sizes)}: the product of {[*sizes.values()]} must be less than 2**63")


def check_memory(written: Mapping[str, Tensor | None], read: Mapping[str, Tensor | None]) -> None:
    """Raise ValueError if an updated tensor shares memory with itself (expanded strides) or with another argument.

    The native library checks its operators itself (csrc/common/every_operator.cpp). Nothing is checked while compiling,
    since tensors have no memory then.
    """
    if torch.compiler.is_compiling():
        return
    arguments = {name: t for name, t in {**written, **read}.items() if t is not None and t.numel() and not t.is_meta}
    for name in [name for name in arguments if name in written]:
        if _memory_layout(arguments[name])[-1]:
            raise ValueError(f"{name} is updated, but several of its elements share memory; pass a clone")
        for other in arguments:
            if other != name and _may_overlap(arguments[name], arguments[other]):
                raise ValueError(f"{name} is updated, but {other} shares memory with it; pass a clone")


def _memory_layout(tensor: Tensor) -> tuple[int, int, int, int, bool]:
    """Return a tensor's address, its span, the stride and size of its blocks, and whether it overlaps itself.

    A block has the elements with one index in the dimension of the largest stride. All numbers are in bytes.
    """
    element = tensor.element_size()
    span, stride, block, overlaps_itself = element, 0, element, False
    for dimension_stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            stride, block = dimension_stride * element, span
            overlaps_itself |= stride < span
            span += (size - 1) * stride
    return tensor.data_ptr(), span, stride, block, overlaps_itself


def _may_overlap(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors may share memory. The blocks of one may lie between those of the other."""
    a_begin, a_span, stride, a_block, _ = _memory_layout(a)
    b_begin, b_span, b_stride, b_block, _ = _memory_layout(b)
    if a_begin + a_span <= b_begin or b_begin + b_span <= a_begin:
        return False
    if stride != b_stride or stride == 0:
        return True
    distance = (b_begin - a_begin) % stride
    return distance < a_block or distance + b_block > stride


def split_step(
    seed: int, step: int | Tensor, steps: int, device: torch.device, *, reads_value: bool
) -> tuple[int, Tensor | None]:
    """Check `seed` and `step` (see `check_counters`); return the operators' arguments `step` and `counter`.

    The number of the first step is step + counter. A `step` that is a tensor is the counter; it must be a 0-dim int64
    tensor on `device`.

    reads_value: whether to check the value of a counter on the CPU, too: True for references, since native kernels
        check it themselves.
    """
    if not isinstance(step, Tensor):
        check_counters(seed, step, steps)
        return step, None
    is_current_gpu = device == torch.device(device.type) and step.device.type == device.type  # "cuda" has no index
    check_tensor("step", step, torch.int64, (), step.device if is_current_gpu else device)
    is_readable = reads_value and step.device.type == "cpu" and not torch.compiler.is_compiling()
    check_counters(seed, int(step) if is_readable else 0, steps)
    return 0, step
