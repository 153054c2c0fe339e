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

_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.05}
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
    support = mass % 7 + (mass == mass.max())  # at least one is not 0
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
    """Compare the results of both implementations. Tolerances are relative to the largest value of a result."""
    op = case["op"]
    outcomes: list[Any] = []
    for impl in ("native", "reference"):
        values = {name: to_value(value, case["seed"] + i) for i, (name, value) in enumerate(case["arguments"].items())}
        try:
            outcomes.append(_FUNCTIONS[op](impl, **values))
        except (ValueError, TypeError) as error:
            outcomes.append(error)
    if any(isinstance(outcome, Exception) for outcome in outcomes):
        errors = [type(outcome).__name__ if isinstance(outcome, Exception) else "" for outcome in outcomes]
        assert errors[0] == errors[1], f"{op}: only one implementation raises an error"
        raise outcomes[0]
    for i, (native, reference) in enumerate(zip(*outcomes, strict=True)):
        assert (native is None) == (reference is None), f"{op}: result {i} is None in one implementation"
        if native is not None:
            assert native.shape == reference.shape and native.dtype == reference.dtype, f"{op}: result {i} has another type"
            assert _is_close(native, reference), f"{op}: result {i} differs"


def _is_close(native: Tensor, reference: Tensor) -> bool:
    if native.dtype not in _TOLERANCE:
        return torch.equal(native, reference)
    finite = reference.isfinite()
    scale = reference[finite].abs().max().item() if finite.any() else 0.0
    tolerance = _TOLERANCE[native.dtype]
    return torch.allclose(native.double(), reference.double(), rtol=tolerance, atol=tolerance * scale, equal_nan=True)


def _make(op: str, seed: int) -> Any:
    return {"op": op, "seed": seed, "arguments": valid_call(op, random.Random(seed))}


TARGET = Target(
    cases=st.builds(_make, st.sampled_from([op for op in OPERATORS if op in _FUNCTIONS]), st.integers(0, 1 << 30)),
    run=run,
    subjects=lambda case, folder: [case["op"], *case["arguments"]],
    label=lambda case: case["op"],
)
