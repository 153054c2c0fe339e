"""Write trained models as ONNX files, which run without PyTorch and without this package (needs `pip install onnx`)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

try:
    import onnx
    from onnx import numpy_helper, parser
except ImportError as error:
    raise ImportError("gru4rec_fast.integrations.onnx needs the package onnx: pip install onnx") from error

from gru4rec_fast import _version
from gru4rec_fast._atomic_writes import explain_disk_full, replace_file
from gru4rec_fast.models import GraphRecommender, GRU4Rec
from gru4rec_fast.nn import SessionNetwork

_OPSET, _IR_VERSION = 17, 8  # of ONNX 1.12 (2022), so that older runtimes read the files
_MAX_FILE_BYTES = 1 << 30  # protobuf allows 2 GiB in a file; larger weights are written to a second file

_Constants = dict[str, np.ndarray]  # the constants of an ONNX graph by name


def export(
    model: GRU4Rec | SessionNetwork | GraphRecommender, path: str | os.PathLike[str], k: int | None = None
) -> None:
    """Write a trained model to an ONNX file that computes the scores of all items, or the k best items.

    GRU4Rec and SessionNetwork; T and B, at least 1, vary from call to call:
        inputs: `items` int64 [T, B], item indices of B sessions, one step per row, -1 where a session has no item;
            `reset` bool [T, B], True sets the state of a session to zero before a step; `state_0`, `state_1` ...
            [B, H], the hidden state of each layer, zeros for a new session.
        outputs: `scores` [B, n_items] after the last item of each session; or with k `top_scores` and `top_items`
            (int64) [B, k], best first, of equal scores the smaller index first; `new_state_0` ... [B, H], the states
            for the next call. A step without an item leaves the state as it is.

    NGCF and LightGCN; B and M vary from call to call, and M may be 0:
        inputs: `users` int64 [B], user indices; `exclude` int64 [B, M], item indices that get the score -inf, such as
            those the user already has; -1 fills shorter rows.
        outputs: as above, without states. If fewer than k items are left, the rest of `top_items` is -1.

    The index of an id is its position in the lists `item_ids` and `user_ids`, which an estimator's file contains as
    JSON text in its metadata. Scores have the dtype of the model (float32 for bfloat16). There is no dropout. If the
    weights exceed 1 GiB, they are in a second file `<path>.data`, which must stay next to the first.

    Args:
        model: a fitted or loaded GRU4Rec, NGCF or LightGCN, or a SessionNetwork.
        path: file to write; an earlier one is replaced.
        k: number of items, from 1 to n_items; None: all scores.

    Raises:
        TypeError: another kind of model. ValueError: k out of range. RuntimeError: the model is not fitted.
    """
    ids: dict[str, Any] = {}
    if isinstance(model, GraphRecommender):
        text, constants = _graph_model(*model.embeddings(), k)
        assert model.graph is not None
        ids = {"user_ids": model.graph.users, "item_ids": model.graph.items}
    elif isinstance(model, GRU4Rec):
        text, constants = _session_model(model._fitted_network(), k)
        ids = {"item_ids": model.vocabulary}
    elif isinstance(model, SessionNetwork):
        text, constants = _session_model(model, k)
    else:
        raise TypeError(f"model: a GRU4Rec, NGCF, LightGCN or SessionNetwork is needed, not {type(model).__name__}")
    proto = parser.parse_model(f'<ir_version: {_IR_VERSION}, opset_import: ["": {_OPSET}]>\n{text}')
    proto.producer_name, proto.producer_version = "gru4rec_fast", _version.__version__
    onnx.helper.set_model_props(proto, {name: json.dumps(vocabulary.ids.tolist()) for name, vocabulary in ids.items()})
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    _save(proto, Path(path))


def _session_model(network: SessionNetwork, k: int | None) -> tuple[str, _Constants]:
    """Return the ONNX graph of a network as text, and its constants. The input is [T, B], T steps of B sessions."""
    layers: list[Any] = list(network.gru.layers)
    dtype = _type(network.output_weight)
    states = [f"{dtype}[B, {layer.hidden_size}]" for layer in layers]
    constants = {
        "table": _array(network.output_weight),
        "bias": _array(network.output_bias),
        "zero": _array(network.output_bias.new_zeros(())),
        "first_item": np.array(0),
        "last_axis": np.array([2]),
    }
    input_table = "table" if network.embedding_mode == "constrained" else "embedding"
    if input_table == "embedding":
        constants["embedding"] = _array(network.embedding.weight)
    body = ""
    for i, layer in enumerate(layers):
        bias = f"bias_ih_{i}"
        constants[bias] = _array(layer.bias_ih)
        if layer.weight_ih is None:  # the rows of the table are the gate inputs
            body += f"gates_{i} = Add (x_{i}, {bias})\n"
        else:
            constants[f"weight_ih_{i}"] = _array(layer.weight_ih.T)
            body += f"x_w_{i} = MatMul (x_{i}, weight_ih_{i})\ngates_{i} = Add (x_w_{i}, {bias})\n"
        step, step_constants = _gru_step(i, layer.form, layer.weight_hh, layer.bias_hh)
        constants |= step_constants
        body += f"""
            new_state_{i}, x_{i + 1} = Scan <num_scan_inputs = 3, body = step_{i}
                ({states[i]} state, {dtype}[B, {3 * layer.hidden_size}] a, bool[B, 1] reset_t, bool[B, 1] live_t)
                => ({states[i]} new_state, {states[i]} output) {{
                    s = Where (reset_t, zero, state)
                    {step}
                    s_n = Sub (s, n)
                    z_s_n = Mul (z, s_n)
                    h = Add (n, z_s_n)
                    new_state = Where (live_t, h, s)
                    output = Identity (new_state)
                }}> (state_{i}, gates_{i}, reset_column, live)
            """
    result, outputs = _outputs(dtype, network.n_items, k, constants)
    state_inputs = ", ".join(f"{state} state_{i}" for i, state in enumerate(states))
    state_outputs = ", ".join(f"{state} new_state_{i}" for i, state in enumerate(states))
    text = f"""
        gru4rec (int64[T, B] items, bool[T, B] reset, {state_inputs}) => ({outputs}, {state_outputs}) {{
            has_item = GreaterOrEqual (items, first_item)
            live = Unsqueeze (has_item, last_axis)
            reset_column = Unsqueeze (reset, last_axis)
            rows = Max (items, first_item)
            x_0 = Gather ({input_table}, rows)
            {body}
            scores = Gemm <transB = 1> (new_state_{len(layers) - 1}, table, bias)
            {result}
        }}"""
    return text, constants


def _gru_step(i: int, form: str, weight_hh: Tensor, bias_hh: Tensor | None) -> tuple[str, _Constants]:
    """Return ONNX nodes that compute the gates z and n from the state s and the gate inputs a (`ops.gru`)."""
    r_z = """
        a_r, a_z, a_n = Split <axis = 1> (a)
        sum_r = Add (a_r, w_r)
        sum_z = Add (a_z, w_z)
        r = Sigmoid (sum_r)
        z = Sigmoid (sum_z)
        """
    if form == "reset_after":
        bias = weight_hh.new_zeros(len(weight_hh)) if bias_hh is None else bias_hh
        constants = {f"weight_hh_{i}": _array(weight_hh.T), f"bias_hh_{i}": _array(bias)}
        text = f"""
            s_w = MatMul (s, weight_hh_{i})
            s_w_b = Add (s_w, bias_hh_{i})
            w_r, w_z, w_n = Split <axis = 1> (s_w_b)
            {r_z}
            gated = Mul (r, w_n)
            """
    else:
        hidden = weight_hh.shape[1]
        weight_rz, weight_n = weight_hh.split([2 * hidden, hidden])
        constants = {f"weight_rz_{i}": _array(weight_rz.T), f"weight_n_{i}": _array(weight_n.T)}
        text = f"""
            s_w = MatMul (s, weight_rz_{i})
            w_r, w_z = Split <axis = 1> (s_w)
            {r_z}
            r_s = Mul (r, s)
            gated = MatMul (r_s, weight_n_{i})
            """
    return f"{text}\nsum_n = Add (a_n, gated)\nn = Tanh (sum_n)", constants


def _graph_model(users: Tensor, items: Tensor, k: int | None) -> tuple[str, _Constants]:
    """Return the ONNX graph of a model with scores users @ items.T as text, and its constants."""
    constants = {
        "user_table": _array(users),
        "item_table": _array(items),
        "zero": np.array(0),
        # Replaces negative users, so that Gather fails. It would take -1 for the last user.
        "out_of_range": np.array(len(users)),
        "minus_infinity": _array(items.new_full((), -torch.inf)),
        # ScatterElements takes -1 for the last column, so it gets an additional column.
        "one_column": np.array([0, 0, 0, 1]),
        "first": np.array([0]),
        "end": np.array([len(items)]),
        "item_axis": np.array([1]),
    }
    result, outputs = _outputs(_type(items), len(items), k, constants)
    text = f"""
        graph_recommender (int64[B] users, int64[B, M] exclude) => ({outputs}) {{
            is_negative = Less (users, zero)
            rows = Where (is_negative, out_of_range, users)
            queries = Gather (user_table, rows)
            products = Gemm <transB = 1> (queries, item_table)
            widened = Pad (products, one_column, minus_infinity)
            exclude_shape = Shape (exclude)
            replacements = Expand (minus_infinity, exclude_shape)
            masked = ScatterElements <axis = 1> (widened, exclude, replacements)
            scores = Slice (masked, first, end, item_axis)
            {result}
        }}"""
    return text, constants


def _outputs(dtype: str, n_items: int, k: int | None, constants: _Constants) -> tuple[str, str]:
    """Return ONNX nodes that follow `scores` [B, n_items], and the declarations of the outputs; add constants."""
    if k is None:
        return "", f"{dtype}[B, {n_items}] scores"
    if not 1 <= k <= n_items:
        raise ValueError(f"k={k}: choose 1 to {n_items}, the number of items")
    constants |= {"k": np.array([k]), "no_item": np.array(-1)}
    nodes = """
        top_scores, best = TopK <axis = 1> (scores, k)
        is_excluded = IsInf <detect_positive = 0> (top_scores)
        top_items = Where (is_excluded, no_item, best)
        """
    return nodes, f"{dtype}[B, {k}] top_scores, int64[B, {k}] top_items"


def _type(tensor: Tensor) -> str:
    """Return the ONNX type of `_array(tensor)`."""
    return "double" if tensor.dtype == torch.float64 else "float"


def _array(tensor: Tensor) -> np.ndarray:
    """Return a tensor as a contiguous NumPy array of float64 if it has this dtype, else of float32."""
    tensor = tensor.detach().cpu()
    return np.ascontiguousarray((tensor if tensor.dtype == torch.float64 else tensor.float()).numpy())


def _save(proto: onnx.ModelProto, path: Path) -> None:
    """Write a model to `path`, and its weights to `<path>.data` if they are too large for a protobuf file."""
    n_bytes = sum(len(constant.raw_data) for constant in proto.graph.initializer)
    data = path.name + ".data"
    with explain_disk_full(path), replace_file(path) as temporary:
        onnx.save_model(proto, temporary, save_as_external_data=n_bytes > _MAX_FILE_BYTES, location=data)
        onnx.checker.check_model(temporary, full_check=True)
        if n_bytes > _MAX_FILE_BYTES:
            os.replace(temporary.with_name(data), path.with_name(data))
