"""Checks that the library makes for every operator, by its schema: devices, shared memory, version counters.

They are in csrc/common/every_operator.cpp and, for the references, in gru4rec_fast/ops/_checks.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from native import compile_backend, implementations
from torch import Tensor

from gru4rec_fast import _backend, ops
from gru4rec_fast.ops.training_step import OPERATORS as STEP_OPERATORS
from gru4rec_fast.ops.training_step import step_operator

if _backend.resolve("auto", "gru", "cpu") != "native":
    pytest.skip("the operators are not built natively", allow_module_level=True)

GRAPH = {
    "offsets": torch.tensor([0, 2, 3, 4, 6]),  # users 0 and 1, then items 0 and 1
    "neighbors": torch.tensor([2, 3, 3, 0, 0, 1]),
    "rows": torch.arange(4),
    "columns": torch.arange(4),
}
COUNTERS = {"seed": 0, "step": 0}


def arguments(op: str) -> dict[str, Any]:
    """Return valid arguments of an operator by name, without optional tensors that are None."""

    def real(*shape: int) -> Tensor:
        return torch.rand(shape, generator=torch.Generator().manual_seed(len(shape)))

    layer = {
        "features": real(4, 3), **GRAPH, "weight_1": real(3, 2), "weight_2": real(3, 2),
        "P": "symmetric+I", "Q": "mean", "per_term": False, "negative_slope": 0.2,
        "node_dropout": 0.0, "message_dropout": 0.0, **COUNTERS, "layer": 0,
    }  # fmt: skip
    gru = {
        "state": real(2, 3), "weight_hh": real(9, 3), "bias_hh": real(9), "reset": torch.zeros(4, 2, dtype=torch.bool),
        "output_mask": real(4, 2, 3), "form": "reset_after",
    }  # fmt: skip
    rows = {"index": torch.tensor([1, 0]), "grad": real(2, 3)}
    enabled = {"enabled": torch.tensor(True), "hyperparameters": torch.tensor([0.1, 0.5, 1e-6], dtype=torch.float64)}
    valid = {
        "session_batch": lambda: {
            "items": torch.arange(6), "offsets": torch.tensor([0, 3, 6]), "order": torch.tensor([1, 0]),
            "lane_session": torch.tensor([-1, -1]), "lane_position": torch.tensor([0, 0]), "cursor": torch.tensor([0]),
            "steps": 2,
        },
        "build_alias_table": lambda: {"mass": torch.tensor([2**31, 2**31])},
        "negative_sampling": lambda: {
            "threshold": torch.tensor([2**31, 2**31]), "alias": torch.tensor([0, 1]), "log_prob": real(2),
            "n": 3, **COUNTERS, "steps": 1,
        },
        "dropout_mask": lambda: {
            "steps": 1, "lanes": 2, "units": 3, "p": 0.5, **COUNTERS, "stream": 1, "dtype": torch.float32,
            "device": torch.device("cpu"),
        },
        "gru": lambda: {"gate_inputs": real(4, 2, 9), **gru},
        "gru_backward": lambda: {"grad_output": real(4, 2, 3), "output": real(4, 2, 3), "saved": real(4, 2, 12), **gru},
        "sampled_loss": lambda: {
            "hidden": real(2, 3), "rows": real(4, 3), "bias": real(4), "live": torch.ones(2, dtype=torch.bool),
            "log_q": real(4), "ids": torch.arange(4), "count": torch.ones(2), "loss": "top1", "in_batch": True,
            "batch_size": 2.0, "elu_param": 0.0, "bpreg": 0.0, "label_smoothing": 0.0,
        },
        "sparse_adam_": lambda: {
            "table": real(4, 3), "exp_avg": real(4, 3), "exp_avg_sq": real(4, 3), **rows,
            "step": 1, "lr": 0.1, "beta1": 0.9, "beta2": 0.9, "eps": 1e-6,
        },
        "sparse_adagrad_": lambda: {
            "table": real(4, 3), "accumulator": real(4, 3), "velocity": real(4, 3), **rows,
            "lr": 0.1, "momentum": 0.5, "eps": 1e-6,
        },
        "step_gather": lambda: {
            "embedding": real(4, 3), "inputs": torch.zeros(1, 2, dtype=torch.int64), "mask": real(1, 2, 3),
            "weight": real(4, 2), "bias": real(4), "log_support": real(4),
            "items": torch.zeros(1, 3, dtype=torch.int64),
            "lanes": 2, "logq": 1.0, "sample_alpha": 0.5, "bf16": False,
        },
        "step_store_losses_": lambda: {
            "losses": real(2, 3), "active": torch.tensor([True, True]), "stopped": torch.tensor(False),
            "step_losses": real(2), "enabled": torch.tensor(False),
        },
        "step_apply_": lambda: {
            "weights": [real(3), real(2)], "accumulators": [real(3), real(2)], "velocities": [real(3), real(2)],
            "grads": [real(3), real(2)], "states": [real(2)], "outputs": [real(2)], **enabled,
        },
        "step_gru": lambda: {
            "x": real(2, 4), "weight_ih": real(9, 4), "bias_ih": real(9), "state": real(2, 3), "weight_hh": real(9, 3),
            "bias_hh": real(9), "reset": torch.tensor([True, False]), "output_mask": real(2, 3), "scored_width": 8,
            "bf16": False,
        },
        "step_gru_backward": lambda: {
            "grad_output": real(2, 3), "saved": real(2, 12), "state": real(2, 3), "reset": torch.tensor([True, False]),
            "output_mask": real(2, 3),
        },
        "step_loss": lambda: {
            "hidden": real(2, 8), "rows": real(4, 3), "offsets": real(4), "live": torch.ones(2, dtype=torch.bool),
            "ids": torch.arange(4), "loss": "top1", "batch_size": 2.0, "elu_param": 0.0, "bpreg": 0.0,
            "label_smoothing": 0.0,
        },
        "step_products_": lambda: {
            "weights": [real(3, 2), real(3)], "accumulators": [real(3, 2), real(3)],
            "velocities": [real(3, 2), real(3)], "lefts": [real(4, 3), real(4, 3)], "rights": [real(4, 2)],
            "states": [real(2, 2)], "outputs": [real(2, 2)], **enabled,
        },
        "step_rows_": lambda: {
            "weight": real(4, 3), "accumulator": real(4, 3), "velocity": real(4, 3), "bias": real(4),
            "bias_accumulator": real(4), "bias_velocity": real(4), "rows": torch.tensor([0, 1]),
            "positions": torch.tensor([0, 1]), "grad_inputs": real(1, 3), "mask": real(1, 3),
            "grad_items": real(1, 4), **enabled,
        },
        "target_rank": lambda: {
            "hidden": real(2, 3), "weight": real(4, 3), "bias": real(4), "targets": torch.tensor([0, 3]),
        },
        "top_k": lambda: {
            "hidden": real(2, 3), "weight": real(4, 3), "bias": real(4), "k": 2,
            "exclude": torch.tensor([[0], [-1]]),
        },
        "laplacian_propagation": lambda: {
            "features": real(4, 3), **GRAPH, "matrix": "mean", "dropout": 0.0, **COUNTERS, "transposed": False,
        },
        "ngcf_layer": lambda: {**layer, "bias_1": real(2), "bias_2": real(2)},
        "ngcf_layer_backward": lambda: {
            "grad_out": real(4, 2), **layer, "propagated_p": real(4, 3), "propagated_q": real(4, 3),
            "flags": torch.zeros(4, 2, dtype=torch.uint8),
        },
        "bpr_triples": lambda: {
            "offsets": GRAPH["offsets"], "neighbors": GRAPH["neighbors"], "users": torch.tensor([1]),
            "starts": torch.tensor([0, 1]), "n_users": 2, "n_items": 2, "n": 3, **COUNTERS,
        },
    }  # fmt: skip
    assert op in valid, f"operator {op} has no valid arguments: add them to arguments() in tests/test_every_operator.py"
    return valid[op]()


OPS = sorted(_backend.kernels())
schemas = {op: getattr(torch.ops.gru4rec_fast, op).default._schema for op in OPS}
WRITTEN = {
    op: [a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    for op, schema in schemas.items()
}
MUTABLE = [op for op in OPS if WRITTEN[op]]


def n_tensors(op: str) -> int:
    """Return the number of arguments of an operator that are tensors or lists of tensors."""
    return sum("Tensor" in str(argument.type) for argument in schemas[op].arguments)


def call(op: str, named: dict[str, Any], impl: str = "native") -> Any:
    """Call a native operator. With impl="reference", call its reference; the operator must update an argument."""
    ordered = [named.get(a.name) for a in schemas[op].arguments if not a.kwarg_only]
    if impl == "native":
        kwargs = {a.name: named[a.name] for a in schemas[op].arguments if a.kwarg_only}
        return getattr(torch.ops.gru4rec_fast, op)(*ordered, **kwargs)
    if op in STEP_OPERATORS:
        return step_operator(op, impl, torch.device("cpu"))(*ordered)
    return getattr(ops, op)(**named, impl=impl)


def tensors_of(named: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Yield (name of the argument, tensor) for all tensors, those in lists too."""
    for name, value in named.items():
        for tensor in value if isinstance(value, list) else [value]:
            if isinstance(tensor, Tensor):
                yield name, tensor


def replaced(named: dict[str, Any], old: Tensor, new: Tensor) -> dict[str, Any]:
    def replace(value: Any) -> Any:
        return [replace(v) for v in value] if isinstance(value, list) else new if value is old else value

    return {name: replace(value) for name, value in named.items()}


def test_the_examples_are_valid() -> None:
    for op in OPS:
        call(op, arguments(op))


@pytest.mark.parametrize("op", [op for op in OPS if n_tensors(op) > 1])
def test_tensors_on_different_devices_are_an_error(op: str) -> None:
    named = arguments(op)
    for _, tensor in tensors_of(named):
        with pytest.raises(ValueError, match=rf"gru4rec_fast::{op}: \w+ is on \w+, but \w+ is on"):
            call(op, replaced(named, tensor, tensor.to("meta")))


@pytest.mark.parametrize("impl", ["reference", "native"])
@pytest.mark.parametrize("op", MUTABLE)
def test_an_updated_tensor_that_shares_memory_is_an_error_and_nothing_changes(op: str, impl: str) -> None:
    named = arguments(op)
    before = [(tensor.clone(), tensor._version) for _, tensor in tensors_of(named)]
    n_cases = 0
    for name, tensor in tensors_of(named):
        if name not in WRITTEN[op]:
            continue
        for other_name, other in tensors_of(named):
            if other is not tensor and (other.shape, other.dtype) == (tensor.shape, tensor.dtype):
                n_cases += 1
                with pytest.raises(ValueError, match=rf"{name}.*{other_name}|{other_name}.*{name}"):
                    call(op, replaced(named, other, tensor), impl)
        if tensor.numel() > 1:
            n_cases += 1
            expanded = tensor[:1].expand(tensor.shape) if tensor.dim() else tensor
            with pytest.raises(ValueError, match=rf"{name}.*is updated, but several of its elements share memory"):
                call(op, replaced(named, tensor, expanded), impl)
    assert n_cases > 1
    for (values, version), (_, tensor) in zip(before, tensors_of(named), strict=True):
        assert torch.equal(values, tensor)
        assert tensor._version == version


@implementations("sparse_adagrad_", "sparse_update")
def test_interleaved_tensors_do_not_share_memory(impl: str) -> None:
    """Columns of one matrix do not share memory; overlapping ranges of columns do."""
    packed = torch.rand(5, 4)
    index, grad = torch.tensor([1, 3]), torch.rand(2, 1)
    expected = packed.clone()
    columns, copies = ([m[:, i : i + 1] for i in range(3)] for m in (packed, expected))
    ops.sparse_adagrad_(*columns, index, grad, lr=0.1, momentum=0.5, impl=impl)
    separate = [copy.clone() for copy in copies]
    ops.sparse_adagrad_(*separate, index, grad, lr=0.1, momentum=0.5, impl=impl)
    expected[:, :3] = torch.cat(separate, 1)
    assert torch.equal(packed, expected)
    with pytest.raises(ValueError, match=r"table.*accumulator|accumulator.*table"):
        ops.sparse_adagrad_(packed[:, :2], packed[:, 1:3], None, index, torch.rand(2, 2), lr=0.1, impl=impl)


@pytest.mark.parametrize("impl", ["reference", "native"])
@pytest.mark.parametrize("op", MUTABLE)
def test_updates_increment_the_version_counters(op: str, impl: str) -> None:
    named = arguments(op)
    versions = {id(tensor): tensor._version for _, tensor in tensors_of(named)}
    with torch.no_grad():
        call(op, named, impl)
    for name, tensor in tensors_of(named):
        assert (tensor._version > versions[id(tensor)]) == (name in WRITTEN[op]), name


@implementations("sparse_adagrad_", "sparse_update")
@pytest.mark.parametrize("compiled", [False, True])
def test_a_saved_tensor_that_is_updated_is_an_error_in_backward(impl: str, compiled: bool) -> None:
    def update(w: Tensor, accumulator: Tensor, index: Tensor, grad: Tensor) -> None:
        ops.sparse_adagrad_(w, accumulator, None, index, grad, lr=0.1, impl=impl)

    if compiled:
        update = torch.compile(update, backend=compile_backend(False))
    x, w, accumulator = torch.rand(4, 3, requires_grad=True), torch.rand(4, 3), torch.zeros(4, 3)
    loss = (w * x).sum()
    with torch.no_grad():
        update(w, accumulator, torch.tensor([1]), torch.rand(1, 3))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("impl", ["reference", "native"])
def test_inference_tensors_are_updated_in_inference_mode_only(impl: str) -> None:
    with torch.inference_mode():
        named = arguments("sparse_adagrad_")
        before = named["table"].clone()
        call("sparse_adagrad_", named, impl)
        assert not torch.equal(named["table"], before)
        before = [named[name].clone() for name in ("table", "accumulator")]
    with pytest.raises(RuntimeError, match="inference tensor"):
        call("sparse_adagrad_", named, impl)
    if impl == "native":  # the reference raises the error after it has updated the accumulator
        assert all(map(torch.equal, [named["table"], named["accumulator"]], before))
