"""Target: valid calls of the public operators; the native kernels and the reference must agree, gradients included."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import Target
from hypothesis import strategies as st
from operators import to_value
from torch import Tensor
from valid_calls import OPERATORS, valid_call

from gru4rec_fast import ops

_DIFFERENTIABLE = {"gate_inputs", "state", "weight_hh", "bias_hh", "hidden", "rows", "bias", "features", "weight_1",
                   "weight_2", "bias_1", "bias_2"}  # fmt: skip


def _differentiated(function: Callable[..., Tensor]) -> Callable[..., list[Tensor | None]]:
    """Return a function that computes the result of a function and the gradients of its differentiable arguments."""

    def run(impl: str, **arguments: Any) -> list[Tensor | None]:
        inputs = [
            value.requires_grad_()
            for name, value in arguments.items()
            if name in _DIFFERENTIABLE and isinstance(value, Tensor) and value.is_floating_point()
        ]
        result = function(**arguments, impl=impl)
        weights = torch.rand(result.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        gradients = torch.autograd.grad((result.double() * weights).sum(), inputs, allow_unused=True)
        return [result.detach(), *gradients]

    return run


def _in_place(function: Callable[..., None]) -> Callable[..., list[Tensor | None]]:
    def run(impl: str, **arguments: Any) -> list[Tensor | None]:
        function(**arguments, impl=impl)
        return [value for value in arguments.values() if isinstance(value, Tensor)]

    return run


def _alias_table(impl: str, mass: Tensor) -> list[Tensor | None]:
    # A valid call has masses, the operator's argument. Any integers can be a support, if at least one is not 0.
    support = mass % 7 + (mass == mass.max())
    table = ops.build_alias_table(support, 0.5, impl=impl)
    return [table.threshold, table.alias, table.log_prob]


def _negatives(impl: str, threshold: Tensor, alias: Tensor, log_prob: Tensor, n: int, **rest: int) -> tuple[Any, ...]:
    table = ops.AliasTable(threshold, alias, log_prob, 1.0)
    return ops.negative_sampling(table, n, **rest, impl=impl)


def _session_batch(impl: str, **arguments: Any) -> list[Tensor | None]:
    return [*ops.session_batch(**arguments, impl=impl), *(arguments[name] for name in ("lane_session", "cursor"))]


def _ngcf(per_term: bool, **arguments: Any) -> Tensor:
    return ops.ngcf_layer(**arguments, activation="per_term" if per_term else "sum")


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "session_batch": _session_batch,
    "build_alias_table": _alias_table,
    "negative_sampling": _negatives,
    "dropout_mask": lambda impl, **arguments: [ops.dropout_mask(**arguments, impl=impl)],
    "gru": _differentiated(ops.gru),
    "sampled_loss": _differentiated(ops.sampled_loss),
    "sparse_adam_": _in_place(ops.sparse_adam_),
    "sparse_adagrad_": _in_place(ops.sparse_adagrad_),
    "target_rank": lambda impl, **arguments: ops.target_rank(**arguments, impl=impl),
    "top_k": lambda impl, **arguments: ops.top_k(**arguments, impl=impl),
    "laplacian_propagation": _differentiated(ops.laplacian_propagation),
    "ngcf_layer": _differentiated(_ngcf),
    "bpr_triples": lambda impl, **arguments: [ops.bpr_triples(**arguments, impl=impl)],
}


def run(case: Any, folder: Path) -> None:
    """Compare the results of both implementations, and of the reference in float64.

    If both raise an error of the same type, raise it again: the harness checks its message.
    """
    op = case["op"]
    native, reference = (_outcome(case, impl) for impl in ("native", "reference"))
    if isinstance(native, Exception) or isinstance(reference, Exception):
        assert type(native) is type(reference), f"{op}: only one implementation raises an error"
        raise native
    oracle = _outcome(case, "reference", torch.float64) if op != "dropout_mask" else reference
    for i, results in enumerate(zip(native, reference, oracle, strict=True)):
        if any(result is None for result in results):
            assert results[0] is results[1] is None, f"{op}: result {i} is None in one implementation"
            continue
        same_type = results[0].shape == results[1].shape and results[0].dtype == results[1].dtype
        assert same_type, f"{op}: result {i} has another type"
        assert _is_close(*results), f"{op}: result {i} differs"


def _outcome(case: Any, impl: str, dtype: torch.dtype | None = None) -> Any:
    """Return the results or the error of a call. With a dtype, floating tensors are converted to it."""
    values = {name: to_value(value, case["seed"] + i) for i, (name, value) in enumerate(case["arguments"].items())}
    if dtype is not None:
        values = {name: _converted(value, dtype) for name, value in values.items()}
    try:
        return _FUNCTIONS[case["op"]](impl, **values)
    except (ValueError, TypeError) as error:
        return error


def _converted(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _is_close(native: Tensor, reference: Tensor, oracle: Tensor) -> bool:
    """Return whether the native result is nearly as close to the oracle as the reference is."""
    if not native.is_floating_point():
        return torch.equal(native, reference)
    finite = oracle.isfinite() & reference.isfinite()
    # Elsewhere, the native result must equal the reference or be NaN everywhere. (NaN does not equal NaN.)
    if not torch.equal(native[~finite], reference[~finite].to(native.dtype)) and not native[~finite].isnan().all():
        return False
    exact = oracle[finite].double()
    error, reference_error = ((result[finite].double() - exact).norm().item() for result in (native, reference))
    eps = 2e-12 if native.dtype == torch.float64 else 16 * torch.finfo(native.dtype).eps
    # Sums of inputs of about 1 may cancel, so the error may exceed eps times the result.
    return error <= 4 * reference_error + eps * max(exact.norm().item(), exact.numel() ** 0.5)


def _make(op: str, seed: int) -> Any:
    return {"op": op, "seed": seed, "arguments": valid_call(op, random.Random(seed))}


def _rounds_gradients(case: Any) -> bool:
    """Return whether the native kernel rounds gradients to bfloat16, unlike autograd (docs/ops/sampled_loss.md)."""
    return case["op"] == "sampled_loss" and case["arguments"]["hidden"]["dtype"] == "bfloat16"


TARGET = Target(
    cases=st.builds(
        _make, st.sampled_from([op for op in OPERATORS if op in _FUNCTIONS]), st.integers(0, 1 << 30)
    ).filter(lambda case: not _rounds_gradients(case)),
    run=run,
    subjects=lambda case, folder: [case["op"], *case["arguments"]],
    label=lambda case: case["op"],
)
