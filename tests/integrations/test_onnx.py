"""integrations.onnx: files give the same scores and states in onnxruntime as the models in this package."""

from __future__ import annotations

import json
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from markov import markov_store
from torch import Tensor

from gru4rec_fast import NGCF, GRU4Rec, LightGCN
from gru4rec_fast.data import InteractionGraph, Vocabulary
from gru4rec_fast.nn import SessionNetwork

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
from gru4rec_fast.integrations.onnx import export  # noqa: E402

N_ITEMS = 30
INT_IDS = Vocabulary(np.arange(N_ITEMS) * 10 + 5)
STRING_IDS = Vocabulary([f"item {i} é" for i in range(N_ITEMS)])


def runtime_of(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # failing calls are tested; their messages are in the exceptions
    return onnxruntime.InferenceSession(str(path), options)


def ids_in(runtime: Any, name: str = "item_ids") -> np.ndarray:
    """Return ids in the metadata of a file, as an array that can be indexed."""
    return np.array(json.loads(runtime.get_modelmeta().custom_metadata_map[name]))


def session_inputs(items: Tensor, reset: Tensor, states: list[Tensor]) -> dict[str, np.ndarray]:
    named_states = {f"state_{layer}": state.numpy() for layer, state in enumerate(states)}
    return {"items": items.numpy(), "reset": reset.numpy(), **named_states}


def expected_step(
    network: SessionNetwork, items: Tensor, reset: Tensor, states: list[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Return scores and states after steps [T, B]; sessions without an item keep their state, or lose it by a reset."""
    for item, is_reset in zip(items, reset, strict=True):
        kept = [state.masked_fill(is_reset[:, None], 0) for state in states]
        _, new = network(item.clamp(min=0)[None], kept)
        states = [torch.where(item[:, None] >= 0, n, s) for n, s in zip(new, kept, strict=True)]
    return states[-1] @ network.output_weight.T + network.output_bias, states


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layers", [[6], [7, 5, 6]], ids=str)
@pytest.mark.parametrize("form", ["reset_after", "reset_before"])
@pytest.mark.parametrize("embedding", ["constrained", "separate", "none"])
@torch.no_grad()
def test_scores_and_states(tmp_path: Path, embedding: str, form: str, layers: list[int], dtype: torch.dtype) -> None:
    """Make two calls with different numbers of steps, resets, and steps without an item; the second goes on."""
    network = SessionNetwork(
        N_ITEMS, layers, embedding=embedding, embedding_dim=4, gru_form=form, dropout_p_hidden=0.5, dtype=dtype
    )
    for parameter in network.parameters():  # with biases, and gates that saturate
        parameter.normal_()
    export(network, tmp_path / "network.onnx")
    assert network.training
    network.eval()
    runtime = runtime_of(tmp_path / "network.onnx")
    states = [torch.randn_like(state) for state in network.initial_state(8)]
    runtime_states = states
    for steps in (5, 1):
        items, reset = torch.randint(-1, N_ITEMS, (steps, 8)), torch.rand(steps, 8) < 0.3
        items[:, 0] = -1  # a session without any item
        outputs = runtime.run(None, session_inputs(items, reset, runtime_states))
        scores, states = expected_step(network, items, reset, states)
        tolerance = 1e-5 if dtype == torch.float32 else 1e-13
        for output, expected in zip(outputs, [scores, *states], strict=True):
            np.testing.assert_allclose(output, expected.numpy(), rtol=tolerance, atol=tolerance)
        runtime_states = [torch.from_numpy(state) for state in outputs[1:]]


@torch.no_grad()
def test_steps_equal_one_call_of_the_network(tmp_path: Path) -> None:
    """Without padding, a call gives the same results as a call of the network, also with resets."""
    network = SessionNetwork(N_ITEMS, [6, 5], embedding="separate", embedding_dim=4).eval()
    export(network, tmp_path / "network.onnx")
    items, reset = torch.randint(0, N_ITEMS, (9, 4)), torch.rand(9, 4) < 0.3
    hidden, states = network(items, network.initial_state(4), reset)
    scores = hidden[-1] @ network.output_weight.T + network.output_bias
    outputs = runtime_of(tmp_path / "network.onnx").run(None, session_inputs(items, reset, network.initial_state(4)))
    for output, expected in zip(outputs, [scores, *states], strict=True):
        np.testing.assert_allclose(output, expected.numpy(), rtol=1e-5, atol=1e-5)


def test_sizes_that_vary(tmp_path: Path) -> None:
    network = SessionNetwork(N_ITEMS, [6])
    export(network, tmp_path / "network.onnx", k=3)
    runtime = runtime_of(tmp_path / "network.onnx")
    for steps, sessions in ((1, 1), (4, 2), (2, 5)):
        items = torch.zeros(steps, sessions, dtype=torch.int64)
        inputs = session_inputs(items, items > 0, network.initial_state(sessions))
        assert [output.shape for output in runtime.run(None, inputs)] == [(sessions, 3), (sessions, 3), (sessions, 6)]


@torch.no_grad()
def test_bfloat16_becomes_float32(tmp_path: Path) -> None:
    network = SessionNetwork(N_ITEMS, [6], dtype=torch.bfloat16)
    export(network, tmp_path / "network.onnx")
    items = torch.randint(0, N_ITEMS, (3, 4))
    widened = network.eval().float()
    states = widened.initial_state(4)
    scores, *_ = runtime_of(tmp_path / "network.onnx").run(None, session_inputs(items, items < 0, states))
    expected, _ = expected_step(widened, items, items < 0, states)
    np.testing.assert_allclose(scores, expected.numpy(), rtol=1e-5, atol=1e-6)


@pytest.fixture(params=["int", "string"])
def model(request: pytest.FixtureRequest) -> GRU4Rec:
    vocabulary = INT_IDS if request.param == "int" else STRING_IDS
    return small_model().fit(markov_store(n_items=N_ITEMS, vocabulary=vocabulary), progress=False)


def small_model(**parameters: Any) -> GRU4Rec:
    parameters = {"layers": [16, 12], "batch_size": 16, "n_sample": 32, "n_epochs": 2, "seed": 0, **parameters}
    return GRU4Rec(**parameters)


@pytest.mark.parametrize("padding_first", [False, True])
def test_recommendations_for_whole_sessions(tmp_path: Path, model: GRU4Rec, padding_first: bool) -> None:
    export(model, tmp_path / "model.onnx", k=5)
    runtime = runtime_of(tmp_path / "model.onnx")
    assert model.vocabulary is not None and model.network is not None
    item_ids = ids_in(runtime)
    assert item_ids.tolist() == model.vocabulary.ids.tolist()
    index_of = {item_id: index for index, item_id in enumerate(item_ids.tolist())}
    sessions = [item_ids[indices].tolist() for indices in ([3], [7, 8, 9, 10], [0, 29, 5], [4, 4])]
    items = torch.full((4, 4), -1)
    for column, session in enumerate(sessions):
        first = 4 - len(session) if padding_first else 0
        for step, item_id in enumerate(session):
            items[first + step, column] = index_of[item_id]
    states = model.network.initial_state(4)
    top_scores, top_items, *_ = runtime.run(None, session_inputs(items, torch.zeros_like(items).bool(), states))
    expected = model.recommend(sessions, 5)
    np.testing.assert_allclose(top_scores, expected.scores, rtol=1e-5, atol=1e-6)
    assert item_ids[top_items].tolist() == np.asarray(expected.items).tolist()


def test_recommendations_for_one_event_at_a_time(tmp_path: Path, model: GRU4Rec) -> None:
    """The states in onnxruntime are those of a SessionRecommender; one session begins again by a reset."""
    model.save(tmp_path / "model.safetensors")
    export(GRU4Rec.load(tmp_path / "model.safetensors"), tmp_path / "model.onnx", k=N_ITEMS)
    runtime, recommender = runtime_of(tmp_path / "model.onnx"), model.recommender()
    item_ids = ids_in(runtime)
    states = [np.zeros((2, 16), np.float32), np.zeros((2, 12), np.float32)]
    for events, resets in (([3, 12], [False, False]), ([4, 13], [False, False]), ([20, 14], [True, False])):
        inputs = {"items": np.array([events]), "reset": np.array([resets])}
        inputs |= {f"state_{layer}": state for layer, state in enumerate(states)}
        top_scores, top_items, *states = runtime.run(None, inputs)
        for lane, reset in enumerate(resets):
            if reset:
                recommender.end(lane)
        recommender.observe_many([0, 1], item_ids[events].tolist())
        expected = recommender.recommend([0, 1], N_ITEMS)
        np.testing.assert_allclose(top_scores, expected.scores, rtol=1e-5, atol=1e-6)
        assert item_ids[top_items].tolist() == np.asarray(expected.items).tolist()


@pytest.mark.parametrize("loss", ["cross-entropy", "bpr-max"])
@pytest.mark.parametrize("embedding", [{"constrained_embedding": True}, {"embedding": 8}, {}], ids=str)
def test_models_of_each_loss_and_embedding(tmp_path: Path, loss: str, embedding: dict[str, Any]) -> None:
    embedding = {"constrained_embedding": False, **embedding}
    model = small_model(loss=loss, n_epochs=1, **embedding)
    model.fit(markov_store(n_items=N_ITEMS, vocabulary=INT_IDS), progress=False)
    export(model, tmp_path / "model.onnx")
    inputs = {"items": np.array([[4, 7], [5, 8]]), "reset": np.zeros((2, 2), bool)}
    inputs |= {f"state_{layer}": np.zeros((2, size), np.float32) for layer, size in enumerate(model.layers)}
    scores, *_ = runtime_of(tmp_path / "model.onnx").run(["scores"], inputs)
    best = model.recommend([[45, 55], [75, 85]], N_ITEMS)
    np.testing.assert_allclose(np.sort(scores)[:, ::-1], best.scores, rtol=1e-5, atol=1e-6)
    indices = np.stack([INT_IDS.index_of(row) for row in best.items])
    np.testing.assert_allclose(np.take_along_axis(scores, indices, 1), best.scores, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def graph() -> InteractionGraph:
    rng = np.random.default_rng(0)
    users, items = rng.integers(15, size=120), rng.integers(20, size=120)
    return InteractionGraph.from_arrays(
        users, items, user_ids=Vocabulary([f"u{i}" for i in range(15)]), item_ids=Vocabulary(np.arange(20) * 3)
    )


@pytest.mark.parametrize("k", [None, 4, 20])
@pytest.mark.parametrize("cls", [NGCF, LightGCN])
def test_graph_models(tmp_path: Path, graph: InteractionGraph, cls: Any, k: int | None) -> None:
    """With k=20, the number of items, fewer than k are left, because seen items are excluded."""
    model = cls(embedding_dim=8, n_epochs=1, batch_size=32, seed=0, reorder=False).fit(graph, progress=False)
    export(model, tmp_path / "model.onnx", k)
    runtime = runtime_of(tmp_path / "model.onnx")
    user_ids, item_ids = ids_in(runtime, "user_ids"), ids_in(runtime)
    assert user_ids.tolist() == graph.users.ids.tolist() and item_ids.tolist() == graph.items.ids.tolist()
    users = [7, 0, 11]
    seen = [graph.items_of(user) for user in users]
    exclude = np.full((3, max(map(len, seen)) + 2), -1)
    for row, items in enumerate(seen):
        exclude[row, : len(items)] = items
    outputs = runtime.run(None, {"users": np.array(users), "exclude": exclude})
    expected = model.recommend(user_ids[users].tolist(), k or 20)
    if k is None:
        (scores,) = outputs
        assert np.isneginf(scores).sum(axis=1).tolist() == [len(items) for items in seen]
        top_scores, indices = -np.sort(-scores), np.argsort(-scores, kind="stable")
    else:
        top_scores, indices = outputs
        assert (indices >= 0).sum(axis=1).tolist() == expected.counts.tolist()
    np.testing.assert_allclose(top_scores, expected.scores, rtol=1e-5, atol=1e-7)
    for row, count in enumerate(expected.counts):
        assert item_ids[indices[row, :count]].tolist() == expected.items[row, :count].tolist()
    (all_scores, *_) = runtime.run(None, {"users": np.array(users), "exclude": np.empty((3, 0), np.int64)})
    best = model.recommend(user_ids[users].tolist(), k or 20, exclude_seen=False).scores
    np.testing.assert_allclose(-np.sort(-all_scores), best, rtol=1e-5, atol=1e-7)


def test_indices_out_of_range_fail(tmp_path: Path, graph: InteractionGraph) -> None:
    network = SessionNetwork(N_ITEMS, [6])
    export(network, tmp_path / "network.onnx")
    items = torch.tensor([[N_ITEMS]])
    with pytest.raises(Exception, match="out of data bounds"):
        runtime_of(tmp_path / "network.onnx").run(None, session_inputs(items, items < 0, network.initial_state(1)))
    export(LightGCN(n_epochs=1).fit(graph, progress=False), tmp_path / "graph.onnx")
    for user in (-1, 15):
        inputs = {"users": np.array([user]), "exclude": np.empty((1, 0), np.int64)}
        with pytest.raises(Exception, match="out of data bounds"):
            runtime_of(tmp_path / "graph.onnx").run(None, inputs)


def test_ties_are_in_the_order_of_the_indices(tmp_path: Path) -> None:
    network = SessionNetwork(N_ITEMS, [6])
    torch.nn.init.zeros_(network.output.weight)
    export(network, tmp_path / "network.onnx", k=4)
    items = torch.tensor([[2]])
    inputs = session_inputs(items, items < 0, network.initial_state(1))
    assert runtime_of(tmp_path / "network.onnx").run(["top_items"], inputs)[0].tolist() == [[0, 1, 2, 3]]


def test_a_constrained_embedding_is_stored_once(tmp_path: Path) -> None:
    export(SessionNetwork(1000, [6]), tmp_path / "network.onnx")
    shapes = [list(array.dims) for array in onnx.load(tmp_path / "network.onnx").graph.initializer]
    assert shapes.count([1000, 6]) == 1 and shapes.count([6, 1000]) == 0


def test_large_weights_are_in_a_second_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace an earlier model, and move both files together: the model still loads its weights."""
    monkeypatch.setattr(import_module("gru4rec_fast.integrations.onnx"), "_MAX_FILE_BYTES", 1000)
    items = torch.tensor([[2]])
    path = tmp_path / "a" / "network.onnx"
    for size in (6, 9):
        network = SessionNetwork(1000, [size])
        export(network, path)
        assert {file.name for file in path.parent.iterdir()} == {"network.onnx", "network.onnx.data"}
        assert (
            path.stat().st_size < 5000
            and 4000 * size < path.with_name("network.onnx.data").stat().st_size < 5000 * size
        )
        with torch.no_grad():
            expected, _ = expected_step(network.eval(), items, items < 0, network.initial_state(1))
        inputs = session_inputs(items, items < 0, network.initial_state(1))
        np.testing.assert_allclose(runtime_of(path).run(["scores"], inputs)[0], expected.numpy(), rtol=1e-5, atol=1e-7)
    path.parent.rename(tmp_path / "b")
    runtime_of(tmp_path / "b" / "network.onnx").run(["scores"], inputs)


def test_errors(tmp_path: Path) -> None:
    network = SessionNetwork(N_ITEMS, [6])
    for k in (0, N_ITEMS + 1):
        with pytest.raises(ValueError, match=f"k={k}: choose 1 to 30"):
            export(network, tmp_path / "x.onnx", k)
    with pytest.raises(TypeError, match=r"^model: a GRU4Rec, .* not Linear"):
        export(torch.nn.Linear(2, 2), tmp_path / "x.onnx")  # type: ignore[arg-type]
    for unfitted in (GRU4Rec(), NGCF()):
        with pytest.raises(RuntimeError, match="no weights yet"):
            export(unfitted, tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


def test_a_missing_onnx_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.delitem(sys.modules, "gru4rec_fast.integrations.onnx")
    with pytest.raises(ImportError, match="pip install onnx"):
        import_module("gru4rec_fast.integrations.onnx")


def test_the_example_in_the_docs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "integrations" / "onnx.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert example.count("\n") <= 40
    monkeypatch.chdir(tmp_path)
    store = markov_store(n_items=N_ITEMS)
    sessions = np.repeat(np.arange(store.n_sessions), np.diff(store.offsets))
    events = zip(sessions, store.vocabulary.ids[store.items], strict=True)
    lines = ["SessionId\tItemId\tTime", *(f"{session}\t{item}\t{time}" for time, (session, item) in enumerate(events))]
    Path("train.tsv").write_text("\n".join(lines) + "\n")
    namespace: dict[str, Any] = {}
    exec(example, namespace)
    ids = namespace["item_ids"]
    expected = namespace["model"].recommend([[ids[0], ids[2]], [ids[1], ids[3]]], 10)
    assert namespace["recommended"] == expected.items.tolist()
