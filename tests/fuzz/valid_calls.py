"""Valid calls of every operator, as JSON values: each argument is a tensor's description or a value.

A description is {"dtype", "shape", "fill"}, and optionally "whole". A fill is {"values": [...]}, or [low, high] for
uniform values: integers, or floats, which are whole numbers if "whole" is given.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import accumulate, chain
from typing import Any

import torch
from torch import Tensor

Call = dict[str, Any]


def tensor(dtype: str, *shape: int, fill: Any = (-1, 1), **more: Any) -> dict[str, Any]:
    """Return the description of a tensor."""
    return {"dtype": dtype, "shape": [*shape], "fill": fill, **more}


def values(dtype: str, numbers: Sequence[int]) -> dict[str, Any]:
    """Return the description of a one-dimensional tensor with given values."""
    return tensor(dtype, len(numbers), fill={"values": [*numbers]})


def build(description: dict[str, Any], seed: int) -> Tensor:
    """Return the tensor that a description stands for."""
    generator = torch.Generator().manual_seed(seed)
    dtype, shape, fill = getattr(torch, description["dtype"]), description["shape"], description["fill"]
    n = 1
    for size in shape:
        n *= size
    if isinstance(fill, dict):
        return torch.tensor((fill["values"] + [0] * n)[:n], dtype=dtype).reshape(shape)
    low, high = fill
    values = torch.rand(n, generator=generator, dtype=torch.float64) * (high - low) + low
    if not dtype.is_floating_point or description.get("whole"):
        values = values.floor().clamp(low, max(high - 1, low))
    return values.reshape(shape).to(dtype)


def valid_call(op: str, rng: random.Random) -> Call:
    """Return the arguments of a valid call of an operator of csrc/schema.cpp, by name."""
    return _CALLS[op](rng)


def _size(rng: random.Random, *, least: int = 1) -> int:
    """Return a random size, which may be 0 only if `least` is 0."""
    return rng.choice([1, 1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 33]) if least or rng.random() < 0.9 else 0


def _float(rng: random.Random) -> str:
    return rng.choice(["float32", "float64"])


def _session_batch(rng: random.Random) -> Call:
    events, sessions, lanes = _size(rng, least=0), _size(rng), _size(rng)
    order = rng.choice([None, tensor("int64", _size(rng), fill=[0, sessions])])
    return {
        "items": tensor(rng.choice(["int32", "int64"]), events, fill=[0, 9]),
        "offsets": values("int64", [0, *sorted(rng.randint(0, events) for _ in range(sessions - 1)), events]),
        "order": order,
        "lane_session": tensor("int64", lanes, fill=[-1, 0]),
        "lane_position": tensor("int64", lanes, fill=[0, 1]),
        "cursor": tensor("int64", 1, fill=[0, 1]),
        "steps": _size(rng, least=0),
    }


def _alias(rng: random.Random) -> Call:
    return {"mass": values("int64", _masses(rng, _size(rng)))}


def _masses(rng: random.Random, n: int) -> list[int]:
    """Return n probabilities with sum 1, in the unit of `build_alias_table`, 1 / (n * 2**31)."""
    cuts = sorted(rng.randrange(n << 31) for _ in range(n - 1))
    return [end - start for start, end in zip([0, *cuts], [*cuts, n << 31], strict=True)]


def _negatives(rng: random.Random) -> Call:
    n = _size(rng)
    return {
        "threshold": tensor("int64", n, fill=[0, 2**31]),
        "alias": tensor("int64", n, fill=[0, n]),
        "log_prob": tensor("float32", n, fill=[-5, 0]),
        "n": _size(rng, least=0),
        "seed": rng.randrange(1 << 40),
        "step": rng.randrange(100),
        "steps": _size(rng, least=0),
    }


def _dropout(rng: random.Random) -> Call:
    return {
        "steps": _size(rng, least=0), "lanes": _size(rng, least=0), "units": _size(rng, least=0),
        "p": rng.choice([0.0, 0.3, 0.999]), "seed": rng.randrange(1 << 40), "stream": rng.randrange(4),
        "step": rng.randrange(100), "dtype": {"scalar_type": rng.choice(["float32", "float64", "bfloat16"])},
        "device": {"device": "cpu"},
    }  # fmt: skip


def _gru(rng: random.Random) -> Call:
    t, b, h, dtype, form = _size(rng), _size(rng), _size(rng), _float(rng), rng.choice(["reset_after", "reset_before"])
    return {
        "gate_inputs": tensor(dtype, t, b, 3 * h),
        "state": tensor(dtype, b, h),
        "weight_hh": tensor(dtype, 3 * h, h, fill=[-0.3, 0.3]),
        "bias_hh": tensor(dtype, 3 * h) if form == "reset_after" and rng.random() < 0.7 else None,
        "reset": rng.choice([None, tensor("bool", t, b, fill=[0, 2])]),
        "output_mask": rng.choice([None, tensor(dtype, t, b, h, fill=[0, 2])]),
        "form": form,
    }


def _gru_backward(rng: random.Random) -> Call:
    call = _gru(rng)
    (t, b, h3), dtype = call["gate_inputs"]["shape"], call["state"]["dtype"]
    h = h3 // 3
    del call["gate_inputs"]
    saved = tensor(dtype, t, b, 4 * h)
    outputs = {"grad_output": tensor(dtype, t, b, h), "output": tensor(dtype, t, b, h), "saved": saved}
    return {**outputs, **call, "state_grad": rng.random() < 0.5}


def _sampled_loss(rng: random.Random) -> Call:
    m, n, h, dtype = _size(rng), _size(rng, least=0), _size(rng), rng.choice(["float32", "float64", "bfloat16"])
    wide = "float32" if dtype == "bfloat16" else dtype
    return {
        "hidden": tensor(dtype, m, h), "rows": tensor(dtype, m + n, h),
        "bias": rng.choice([None, tensor(wide, m + n)]), "live": rng.choice([None, tensor("bool", m, fill=[0, 2])]),
        "log_q": rng.choice([None, tensor(wide, m + n)]),
        "ids": rng.choice([None, tensor("int64", m + n, fill=[0, 5])]),
        "count": rng.choice([None, tensor(wide, n, fill=[1, 3])]),
        "loss": rng.choice(["cross-entropy", "bpr-max", "top1", "top1-max", "bpr"]), "in_batch": rng.random() < 0.7,
        "batch_size": float(m), "elu_param": rng.choice([0.0, 0.5]), "bpreg": 1.0,
        "label_smoothing": rng.choice([0.0, 0.1]),
    }  # fmt: skip


def _table(rng: random.Random, dtype: str) -> tuple[list[int], Call]:
    """Return the shape of a table, and the arguments index and grad of its update."""
    rows, width, k = _size(rng), _size(rng), _size(rng, least=0)
    shape = [rows, width] if rng.random() < 0.8 else [rows]
    gradient = {"index": tensor("int64", k, fill=[-1, rows]), "grad": tensor(dtype, k, *shape[1:])}
    return shape, gradient


def _adam(rng: random.Random) -> Call:
    dtype = _float(rng)
    shape, gradient = _table(rng, dtype)
    state = {"table": tensor(dtype, *shape), "exp_avg": tensor(dtype, *shape),
             "exp_avg_sq": tensor(dtype, *shape, fill=[0, 1])}  # fmt: skip
    return {**state, **gradient, "step": 1 + rng.randrange(9), "lr": 0.1, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}


def _adagrad(rng: random.Random) -> Call:
    dtype, momentum = _float(rng), rng.choice([0.0, 0.5])
    shape, gradient = _table(rng, dtype)
    velocity = tensor(dtype, *shape) if momentum or rng.random() < 0.5 else None
    state = {"table": tensor(dtype, *shape), "accumulator": tensor(dtype, *shape, fill=[0, 1]), "velocity": velocity}
    return {**state, **gradient, "lr": 0.1, "momentum": momentum, "eps": 1e-6}


def _step_gather(rng: random.Random) -> Call:
    t, b, n, r, i, h, dtype = _size(rng), _size(rng), _size(rng), _size(rng), _size(rng), _size(rng), _float(rng)
    return {
        "embedding": tensor(dtype, r, i), "inputs": tensor("int64", t, b, fill=[-1, r]),
        "mask": rng.choice([None, tensor(dtype, t, b, i)]), "weight": tensor(dtype, r, h), "bias": tensor(dtype, r),
        "log_support": rng.choice([None, tensor(dtype, r)]), "items": tensor("int64", t, b + n, fill=[-1, r]),
        "lanes": b, "logq": 1.0, "sample_alpha": 0.5, "bf16": rng.random() < 0.3,
    }  # fmt: skip


def _step_store_losses(rng: random.Random) -> Call:
    t, dtype = _size(rng), _float(rng)
    flags = {"active": tensor("bool", t, fill=[0, 2]), "stopped": tensor("bool", fill=[0, 1])}
    outputs = {"step_losses": tensor(dtype, t), "enabled": tensor("bool", fill=[0, 2])}
    return {"losses": tensor(dtype, t, _size(rng)), **flags, **outputs}


def _step_apply(rng: random.Random) -> Call:
    dtype, shapes = _float(rng), [[_size(rng), _size(rng)] for _ in range(rng.randrange(4))]
    lists = {name: [tensor(dtype, *shape, fill=[0, 1]) for shape in shapes]
             for name in ("weights", "accumulators", "velocities", "grads", "states", "outputs")}  # fmt: skip
    return {**lists, "enabled": tensor("bool", fill=[0, 2]), "hyperparameters": tensor("float64", 3, fill=[0, 1])}


def _step_gru(rng: random.Random) -> Call:
    b, i, h, dtype = _size(rng), _size(rng), _size(rng), _float(rng)
    return {
        "x": tensor(dtype, b, i), "weight_ih": tensor(dtype, 3 * h, i), "bias_ih": tensor(dtype, 3 * h),
        "state": tensor(dtype, b, h), "weight_hh": tensor(dtype, 3 * h, h), "bias_hh": tensor(dtype, 3 * h),
        "reset": tensor("bool", b, fill=[0, 2]),
        "output_mask": rng.choice([None, tensor(dtype, b, h)]), "scored_width": rng.choice([0, h + 1, h + 5]),
        "bf16": rng.random() < 0.3,
    }  # fmt: skip


def _step_gru_backward(rng: random.Random) -> Call:
    b, h, dtype = _size(rng), _size(rng), _float(rng)
    return {
        "grad_output": tensor(dtype, b, h), "saved": tensor(dtype, b, 4 * h, fill=[0, 1]), "state": tensor(dtype, b, h),
        "reset": tensor("bool", b, fill=[0, 2]),
        "output_mask": rng.choice([None, tensor(dtype, b, h)]),
    }  # fmt: skip


def _step_loss(rng: random.Random) -> Call:
    b, n, h, dtype = _size(rng), _size(rng), _size(rng), _float(rng)
    return {
        "hidden": tensor(dtype, b, h + 1), "rows": tensor(dtype, b + n, h), "offsets": tensor(dtype, b + n),
        "live": tensor("bool", b, fill=[0, 2]), "ids": rng.choice([None, tensor("int64", b + n, fill=[0, 9])]),
        "loss": rng.choice(["cross-entropy", "bpr-max", "top1", "top1-max", "bpr"]), "batch_size": 2.0,
        "elu_param": 0.0, "bpreg": 0.5, "label_smoothing": 0.0,
    }  # fmt: skip


def _step_products(rng: random.Random) -> Call:
    k, r, c, b, dtype = _size(rng), _size(rng), _size(rng), _size(rng), _float(rng)
    state = {name: [tensor(dtype, r, c, fill=[0, 1]), tensor(dtype, r, fill=[0, 1])]
             for name in ("weights", "accumulators", "velocities")}  # fmt: skip
    return {**state, "lefts": [tensor(dtype, k, r)] * 2, "rights": [tensor(dtype, k, c)],
            "states": [tensor(dtype, b, c)], "outputs": [tensor(dtype, b, c)],
            "enabled": tensor("bool", fill=[0, 2]), "hyperparameters": tensor("float64", 3, fill=[0, 1])}  # fmt: skip


def _step_rows(rng: random.Random) -> Call:
    r, h, k, dtype = _size(rng), _size(rng), _size(rng), _float(rng)
    has_bias = rng.random() < 0.5
    bias = {name: tensor(dtype, r, fill=[0, 1]) if has_bias else None
            for name in ("bias", "bias_accumulator", "bias_velocity")}  # fmt: skip
    weights = {name: tensor(dtype, r, h, fill=[0, 1]) for name in ("weight", "accumulator", "velocity")}
    return {**weights, **bias, "rows": tensor("int64", k, fill=[-1, r]), "positions": tensor("int64", k, fill=[0, k]),
            "grad_inputs": tensor(dtype, 0, h), "mask": rng.choice([None, tensor(dtype, 0, h)]),
            "grad_items": tensor(dtype, k, h + has_bias),
            "enabled": tensor("bool", fill=[0, 2]), "hyperparameters": tensor("float64", 3, fill=[0, 1])}  # fmt: skip


def _ranking(rng: random.Random) -> Call:
    q, h, n, dtype = _size(rng, least=0), _size(rng), _size(rng), _float(rng)
    # Small integers, so that scores are exact and ties occur.
    small = {"fill": [-2, 3], "whole": True}
    tables = {"hidden": tensor(dtype, q, h, **small), "weight": tensor(dtype, n, h, **small)}
    return {**tables, "bias": rng.choice([None, tensor(dtype, n, **small)])}


def _target_rank(rng: random.Random) -> Call:
    call = _ranking(rng)
    return {**call, "targets": tensor("int64", call["hidden"]["shape"][0], fill=[0, call["weight"]["shape"][0]])}


def _top_k(rng: random.Random) -> Call:
    call = _ranking(rng)
    n = call["weight"]["shape"][0]
    exclude = tensor("int64", call["hidden"]["shape"][0], _size(rng, least=0), fill=[-1, n])
    return {**call, "k": rng.randint(1, n), "exclude": rng.choice([None, exclude])}


def _csr(neighbors: list[list[int]], dtype: str) -> Call:
    """Return offsets and neighbors for the list of neighbors of each node."""
    offsets = [0, *accumulate(map(len, neighbors))]
    return {"offsets": values("int64", offsets), "neighbors": values(dtype, [*chain.from_iterable(neighbors)])}


def _graph(rng: random.Random, dtype: str) -> tuple[int, Call]:
    """Return the width of the features, and features, graph, rows and columns."""
    n, d = _size(rng), _size(rng)
    edges = {(rng.randrange(n), rng.randrange(n)) for _ in range(_size(rng, least=0))}
    neighbors = [sorted({b for a, b in edges if a == i} | {a for a, b in edges if b == i}) for i in range(n)]
    columns = rng.choice([None, values("int64", sorted(rng.sample(range(n), rng.randint(1, n))))])
    # With `columns`, ngcf_layer needs rows that are among them.
    rows = columns or rng.choice([None, values("int64", sorted(rng.sample(range(n), rng.randint(0, n))))])
    features = tensor(dtype, columns["shape"][0] if columns else n, d)
    graph = _csr(neighbors, rng.choice(["int32", "int64"]))
    return d, {"features": features, **graph, "rows": rows, "columns": columns}


_MATRICES = ["symmetric", "mean", "norm", "plain"]


def _propagation(rng: random.Random) -> Call:
    _, call = _graph(rng, rng.choice(["float32", "float64", "bfloat16"]))
    return {**call, "matrix": rng.choice(_MATRICES), "dropout": rng.choice([0.0, 0.3]), "seed": rng.randrange(1 << 40),
            "step": rng.randrange(99), "transposed": rng.random() < 0.5}  # fmt: skip


def _ngcf(rng: random.Random) -> Call:
    dtype, out = _float(rng), _size(rng)
    d, call = _graph(rng, dtype)
    weights = {"weight_1": tensor(dtype, d, out), "bias_1": tensor(dtype, out), "weight_2": tensor(dtype, d, out),
               "bias_2": tensor(dtype, out)}  # fmt: skip
    p = rng.choice(_MATRICES)
    return {**call, **weights, "P": p + rng.choice(["", "+I"]), "Q": rng.choice([p, *_MATRICES]),
            "per_term": rng.random() < 0.5, "negative_slope": 0.2, "node_dropout": rng.choice([0.0, 0.3]),
            "message_dropout": rng.choice([0.0, 0.3]), "seed": rng.randrange(1 << 40), "step": rng.randrange(99),
            "layer": rng.randrange(3)}  # fmt: skip


def _ngcf_backward(rng: random.Random) -> Call:
    call = _ngcf(rng)
    (_, d), (_, out), dtype = call["features"]["shape"], call["weight_1"]["shape"], call["features"]["dtype"]
    n_rows = call["rows"]["shape"][0] if call["rows"] else call["offsets"]["shape"][0] - 1
    del call["bias_1"], call["bias_2"]
    same = call["P"].removesuffix("+I") == call["Q"].removesuffix("+I")
    saved = {"propagated_p": tensor(dtype, n_rows, d), "propagated_q": tensor(dtype, *([0] if same else [n_rows, d])),
             "flags": tensor("uint8", n_rows, out, fill=[0, 8])}  # fmt: skip
    return {"grad_out": tensor(dtype, n_rows, out), **call, **saved}


def _bpr(rng: random.Random) -> Call:
    users, items = _size(rng), 1 + _size(rng)
    items_of = [sorted(rng.sample(range(items), rng.randint(1, items - 1))) for _ in range(users)]
    users_of = [[user for user in range(users) if item in items_of[user]] for item in range(items)]
    candidates = [rng.randrange(users) for _ in range(_size(rng))]
    starts = [0, *accumulate(len(items_of[user]) for user in candidates)]
    return {
        **_csr([[users + item for item in row] for row in items_of] + users_of, rng.choice(["int32", "int64"])),
        "users": values("int64", candidates), "starts": rng.choice([None, values("int64", starts)]),
        "n_users": users, "n_items": items, "n": _size(rng, least=0), "seed": rng.randrange(1 << 40),
        "step": rng.randrange(99),
    }  # fmt: skip


_CALLS = {
    "session_batch": _session_batch, "build_alias_table": _alias, "negative_sampling": _negatives,
    "dropout_mask": _dropout, "gru": _gru, "gru_backward": _gru_backward, "sampled_loss": _sampled_loss,
    "sparse_adam_": _adam, "sparse_adagrad_": _adagrad, "step_gather": _step_gather,
    "step_store_losses_": _step_store_losses, "step_apply_": _step_apply, "step_rows_": _step_rows,
    "step_gru": _step_gru, "step_gru_backward": _step_gru_backward, "step_loss": _step_loss,
    "step_products_": _step_products,
    "target_rank": _target_rank, "top_k": _top_k, "laplacian_propagation": _propagation, "ngcf_layer": _ngcf,
    "ngcf_layer_backward": _ngcf_backward, "bpr_triples": _bpr,
}  # fmt: skip
OPERATORS = tuple(_CALLS)
