"""NGCF and LightGCN the estimators: learning, resuming, evaluating, recommending, saving, bad input."""

from __future__ import annotations

import inspect
import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from graph_oracle import dense_matrix

from gru4rec_fast import NGCF, InteractionGraph, LightGCN
from gru4rec_fast.data import SessionStore, TripleSampler
from gru4rec_fast.models import LightGCNParameters, NGCFParameters, graph_models
from gru4rec_fast.models.builders import open_graph
from gru4rec_fast.profiling import MemoryRecord
from gru4rec_fast.training import (
    CheckpointError,
    GraphEpochRunner,
    Schedule,
    Trainer,
    TrainerOptions,
    TrainingDiverged,
    TrainingInterrupted,
    load_checkpoint,
)
from gru4rec_fast.training.progress import Silent

SMALL: dict[str, Any] = {
    "embedding_dim": 8,
    "batch_size": 64,
    "n_epochs": 3,
    "evaluate_every": 1,
    "learning_rate": 0.02,
    "node_dropout": 0.1,
}
both = pytest.mark.parametrize("estimator", [NGCF, LightGCN])


def taste_graphs() -> tuple[InteractionGraph, InteractionGraph]:
    """60 users of 4 tastes and 40 items: four interactions in five are with the taste's ten items; one in four is held
    out."""
    draws = np.random.default_rng(0)
    users = draws.integers(60, size=1400)
    of_taste = (users % 4) * 10 + draws.integers(10, size=1400)
    items = np.where(draws.random(1400) < 0.8, of_taste, draws.integers(40, size=1400))
    held_out = draws.random(1400) < 0.25
    user_ids, item_ids = users * 10 + 5, items + 1000
    train = InteractionGraph.from_table({"UserId": user_ids[~held_out], "ItemId": item_ids[~held_out]})
    test = InteractionGraph.from_table({"UserId": user_ids[held_out], "ItemId": item_ids[held_out]}, like=train)
    return train, test


TRAIN, TEST = taste_graphs()


def small(estimator: Any, **parameters: Any) -> Any:
    if estimator is NGCF:
        parameters = {"layer_sizes": [8, 8], **parameters}
    return estimator(**{**SMALL, **parameters})


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.network.state_dict().items()}


def assert_same_weights(ours: Any, theirs: Any) -> None:
    mine, other = weights_of(ours), weights_of(theirs)
    assert mine.keys() == other.keys()
    for name in mine:
        assert torch.equal(mine[name], other[name]), name


@both
def test_it_learns_the_tastes(estimator: Any) -> None:
    model = small(estimator, n_epochs=30).fit(TRAIN, validation=TEST, progress=False)
    losses = [record["loss"] for record in model.history]
    assert losses[-1] < 0.75 * losses[0]
    untrained = small(estimator, n_epochs=1, learning_rate=1e-12).fit(TRAIN, progress=False)
    before = untrained.evaluate(TEST, cutoffs=(5,)).metrics["recall@5"]
    assert model.evaluate(TEST, cutoffs=(5,)).metrics["recall@5"] > 2 * before
    items, _, _ = model.similar_items([1003, 1027], k=5)
    assert [(item - 1000) // 10 for item in items[0]].count(0) >= 4
    assert [(item - 1000) // 10 for item in items[1]].count(2) >= 4


@pytest.mark.parametrize(("draw", "adjacency"), [("users", "paper"), ("interactions", "paper"), ("users", "norm")])
def test_training_is_that_of_plain_pytorch(draw: str, adjacency: str) -> None:
    """Dense matrices, autograd and Adam on the same triples: the same weights after two epochs."""
    chosen = {"reg_weight": 0.01, "seed": 3, "sample_by": draw, "adjacency": adjacency}
    model = small(NGCF, n_epochs=2, dtype="float64", node_dropout=0.0, message_dropout=0.0, **chosen)
    start = {k: v.double().requires_grad_() for k, v in weights_of_new(model).items()}
    model.fit(TRAIN, progress=False)
    Q = dense_matrix(*TRAIN.structure(), "symmetric" if adjacency == "paper" else "norm")
    P = Q + torch.eye(len(Q)) if adjacency == "paper" else Q
    optimizer = torch.optim.Adam(start.values(), lr=0.02)
    sampler = TripleSampler(TRAIN, 64, sample_by=draw, seed=3)
    losses = []
    for step in range(2 * sampler.n_batches):
        E = start["embedding"]
        parts = [E]
        for layer in range(2):
            W1, b1, W2, b2 = (start[f"layers.{layer}.{name}"] for name in ("weight_1", "bias_1", "weight_2", "bias_2"))
            E = F.leaky_relu(P @ E @ W1 + b1 + (Q @ E * E) @ W2 + b2, 0.2)
            parts.append(E / E.norm(dim=1, keepdim=True))
        users, items = torch.cat(parts, 1).split([TRAIN.n_users, TRAIN.n_items])
        u, i, j = sampler.draw(step)
        difference = (users[u] * items[i]).sum(1) - (users[u] * items[j]).sum(1)
        norm = sum((x**2).sum() for x in (users[u], items[i], items[j])) / (2 * 64)
        loss = -F.logsigmoid(difference).mean() + 0.01 * norm
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    means = np.array(losses).reshape(2, -1).mean(1)
    assert [record["loss"] for record in model.history] == pytest.approx(means.tolist(), rel=1e-9)
    for name, value in weights_of(model).items():
        torch.testing.assert_close(value, start[name].detach(), rtol=1e-7, atol=1e-9)


def weights_of_new(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.build_network(TRAIN).state_dict().items()}


@both
def test_a_seed_decides_everything(estimator: Any) -> None:
    once, again, other = (small(estimator, seed=seed).fit(TRAIN, progress=False) for seed in (1, 1, 2))
    assert_same_weights(once, again)
    assert not torch.equal(once.network.embedding, other.network.embedding)


@both
def test_native_and_reference_train_alike(estimator: Any, native_library: None) -> None:
    ours, theirs = (
        small(estimator, impl=impl, dtype="float64").fit(TRAIN, progress=False) for impl in ("native", "reference")
    )
    for name, value in weights_of(ours).items():
        torch.testing.assert_close(value, weights_of(theirs)[name], rtol=1e-7, atol=1e-9)


@both
def test_training_on_what_is_needed_is_the_same_training(estimator: Any) -> None:
    ours, theirs = (
        small(estimator, only_needed=only, dtype="float64", batch_size=2, n_epochs=1).fit(TRAIN, progress=False)
        for only in (True, False)
    )
    for name, value in weights_of(ours).items():
        torch.testing.assert_close(value, weights_of(theirs)[name], rtol=1e-6, atol=1e-8)


@both
def test_resuming_changes_nothing(estimator: Any, tmp_path: Path) -> None:
    whole = small(estimator, n_epochs=4).fit(TRAIN, validation=TEST, progress=False)
    small(estimator, n_epochs=2).fit(TRAIN, validation=TEST, out=tmp_path, progress=False)
    rest = small(estimator, n_epochs=4).fit(TRAIN, validation=TEST, out=tmp_path, resume=True, progress=False)
    assert_same_weights(rest, whole)
    timeless = [[{k: v for k, v in r.items() if k != "seconds"} for r in m.history] for m in (rest, whole)]
    assert timeless[0] == timeless[1] and len(timeless[0]) == 4
    assert {path.name for path in tmp_path.iterdir()} >= {"last.safetensors", "best.safetensors", "curves.csv"}


class PressCtrlC(Silent):
    """Presses it at the `at`-th batch."""

    def __init__(self, at: int) -> None:
        self.left = at

    def advance(self, events: int, loss: float) -> None:
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGINT)


@both
def test_interrupted_inside_an_epoch_and_resumed(
    estimator: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = small(estimator).fit(TRAIN, progress=False)
    monkeypatch.setattr("gru4rec_fast.models.estimator.make_progress", lambda show: PressCtrlC(19))
    with pytest.raises(TrainingInterrupted, match=r"in epoch 2 after mini-batch \d+ of it .*; to go on from .*last"):
        small(estimator).fit(TRAIN, out=tmp_path)
    monkeypatch.undo()
    rest = small(estimator).fit(TRAIN, out=tmp_path, resume=True, progress=False)
    assert_same_weights(rest, whole)
    assert [r["loss"] for r in rest.history] == [r["loss"] for r in whole.history]


def test_a_checkpoint_inside_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed without warning, a training goes on from where `checkpoint_every` last wrote."""

    class PowerCut(Silent):
        def __init__(self) -> None:
            self.left = 9

        def advance(self, events: int, loss: float | None) -> None:
            self.left -= 1
            if self.left == 0:
                raise ConnectionError

    whole = small(LightGCN).fit(TRAIN, progress=False)
    monkeypatch.setattr("gru4rec_fast.models.estimator.make_progress", lambda show: PowerCut())
    with pytest.raises(ConnectionError):
        small(LightGCN).fit(TRAIN, out=tmp_path, checkpoint_every=4)
    monkeypatch.undo()
    checkpoint = load_checkpoint(tmp_path / "last.safetensors", LightGCN.file_format)
    assert checkpoint.progress["position"]["mini_batches"] == 8
    rest = small(LightGCN).fit(TRAIN, out=tmp_path, resume=True, progress=False)
    assert_same_weights(rest, whole)


@both
def test_reordered_nodes_are_invisible(estimator: Any, tmp_path: Path) -> None:
    model = small(estimator, reorder=True, n_epochs=2).fit(TRAIN, validation=TEST, out=tmp_path, progress=False)
    assert model.graph.users != TRAIN.users and model.graph.items != TRAIN.items
    again = estimator.load(model.save(tmp_path / "model.safetensors"))
    TEST.save(tmp_path / "test")
    users, items = TEST.interactions()
    table = {"UserId": TEST.users.ids[users], "ItemId": TEST.items.ids[items]}
    measured = [played.evaluate(data).metrics for played in (model, again) for data in (TEST, table, tmp_path / "test")]
    assert all(metrics == measured[0] for metrics in measured)
    seen = {user: set(TRAIN.items.ids[TRAIN.items_of(index)]) for index, user in enumerate(TRAIN.users.ids.tolist())}
    asked = TRAIN.users.ids.tolist()
    for user, best in zip(asked, model.recommend(asked, k=5).items.tolist(), strict=True):
        assert not seen[user] & set(best)
    whole = small(estimator, reorder=True).fit(TRAIN, validation=TEST, progress=False)
    rest = small(estimator, reorder=True).fit(TRAIN, validation=TEST, out=tmp_path, resume=True, progress=False)
    assert_same_weights(rest, whole)


def test_a_failed_fit_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = small(LightGCN).fit(TRAIN, validation=TEST, out=tmp_path, progress=False)
    before = weights_of(model)
    assert model.best_epoch == 1 + int(np.argmax([r["validation"]["recall@20"] for r in model.history]))
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        model.fit(TRAIN, out=tmp_path / "nowhere", resume=True)
    with pytest.raises(CheckpointError, match="was trained on another graph"):
        model.fit(TEST, out=tmp_path, resume=True)
    assert all(torch.equal(value, before[name]) for name, value in weights_of(model).items())
    assert model.graph is TRAIN and len(model.history) == SMALL["n_epochs"]


@both
def test_save_and_load(estimator: Any, tmp_path: Path) -> None:
    model = small(estimator).fit(TRAIN, progress=False)
    model.save(tmp_path / "model.safetensors")
    loaded = estimator.load(tmp_path / "model.safetensors")
    assert_same_weights(loaded, model)
    assert loaded.get_params() == model.get_params() and loaded.history == model.history
    assert loaded.evaluate(TEST, cutoffs=(5, 10)) == model.evaluate(TEST, cutoffs=(5, 10))
    for ours, theirs in zip(loaded.recommend([5, 25], k=3), model.recommend([5, 25], k=3), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    other = LightGCN if estimator is NGCF else NGCF
    with pytest.raises(CheckpointError, match=f"is a checkpoint of gru4rec_fast.{estimator.__name__}"):
        other.load(tmp_path / "model.safetensors")


def test_string_ids_survive_saving(tmp_path: Path) -> None:
    table = {"UserId": ["ann", "bob", "bob", "cy"], "ItemId": ["x", "x", "y", "z"]}
    model = small(LightGCN).fit(table, progress=False).save(tmp_path / "m.safetensors")
    items, _, _ = LightGCN.load(model).recommend(["bob"], k=1)
    assert items.tolist() == [["z"]]


@both
def test_recommendations_are_the_best_unseen_items(estimator: Any) -> None:
    model = small(estimator).fit(TRAIN, progress=False)
    users, items = (table.numpy() for table in model.embeddings())
    for user in (0, 17, 59):
        seen = TRAIN.items_of(user)
        scores = items @ users[user]
        for exclude_seen in (True, False):
            kept = np.setdiff1d(np.arange(40), seen) if exclude_seen else np.arange(40)
            best = kept[np.argsort(-scores[kept], kind="stable")][:7]
            found, found_scores, _ = model.recommend(TRAIN.users.ids[[user]], k=7, exclude_seen=exclude_seen)
            assert found[0].tolist() == TRAIN.items.ids[best].tolist()
            np.testing.assert_allclose(found_scores[0], scores[best], rtol=1e-5)
    many = model.recommend(TRAIN.users.ids, k=5, batch_size=7)
    np.testing.assert_array_equal(many.items, model.recommend(TRAIN.users.ids, k=5).items)
    similar, cosines, _ = model.similar_items(TRAIN.items.ids, k=3)
    unit = items / np.linalg.norm(items, axis=1, keepdims=True)
    cosine = unit @ unit.T - 9 * np.eye(40)
    np.testing.assert_allclose(cosines, -np.sort(-cosine, axis=1)[:, :3], atol=1e-5)
    assert not (similar == TRAIN.items.ids[:, None]).any()


def test_short_rows_unknown_ids_and_excluded_items() -> None:
    model = small(LightGCN).fit(TRAIN, progress=False)
    n_seen = len(TRAIN.items_of(int(TRAIN.users.index_of([5])[0])))
    items, scores, counts = model.recommend([5, 6, 5], k=40, unknown="skip")
    assert counts.dtype == np.int64 and counts.tolist() == [40 - n_seen, 0, 40 - n_seen]
    valid = np.arange(40) < counts[:, None]
    assert (items[~valid] == -1).all() and np.array_equal(scores == -np.inf, ~valid)
    np.testing.assert_array_equal(items[0], items[2])
    similar = model.similar_items([1000, 999], k=40, unknown="skip")
    assert similar.counts.tolist() == [39, 0] and (similar.items[1] == -1).all()
    banned = items[0, :3].tolist()
    rest = model.recommend([5], k=37, exclude=banned)
    assert rest.items[0, : rest.counts[0]].tolist() == items[0, 3 : counts[0]].tolist()
    with pytest.raises(ValueError, match="argument 'exclude': item 999 is not in the vocabulary"):
        model.recommend([5], exclude=[999])
    assert model.recommend([5], k=3, exclude=[999], unknown="skip").items.tolist() == [items[0, :3].tolist()]
    assert model.recommend([6], k=3, unknown="skip").counts.tolist() == [0]


@both
def test_impl_of_one_call(estimator: Any, native_library: None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small(estimator, impl="native").fit(TRAIN, progress=False)
    expected = model.recommend([5, 25], k=3)
    called: list[str] = []
    search, forward = graph_models.search_top_k, type(model.network).forward

    def implementations() -> list[str]:
        return sorted({module.impl for module in model.network.modules() if hasattr(module, "impl")})

    def noted_search(*arguments: Any, impl: str, **options: Any) -> Any:
        called.append(impl)
        return search(*arguments, impl=impl, **options)

    def noted_forward(network: Any, **options: Any) -> Any:
        called.extend(implementations())
        return forward(network, **options)

    monkeypatch.setattr(graph_models, "search_top_k", noted_search)
    monkeypatch.setattr(type(model.network), "forward", noted_forward)
    found = model.recommend([5, 25], k=3, impl="reference")
    model.similar_items([1003], impl="reference")
    assert called == ["reference"] * 3 and implementations() == ["native"]
    np.testing.assert_array_equal(found.items, expected.items)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5)
    assert model.evaluate(TEST, impl="reference").metrics == pytest.approx(model.evaluate(TEST).metrics)


@both
def test_a_memory_record_and_a_schedule(estimator: Any) -> None:
    memory = MemoryRecord()
    schedule = {"lr_scheduler": "step", "lr_scheduler_options": {"step_size": 1, "gamma": 0.5}}
    model = small(estimator, **schedule).fit(TRAIN, memory=memory, progress=False)
    assert [record["learning_rate"] for record in model.history] == pytest.approx([0.02, 0.01, 0.005])
    assert {"batch", "forward", "backward", "update"} <= set(memory.summary())


def test_early_stopping_and_best(tmp_path: Path) -> None:
    model = small(LightGCN, n_epochs=200, learning_rate=0.1, patience=3)
    model.fit(TRAIN, validation=TEST, out=tmp_path, progress=False)
    measured = [record["validation"]["recall@20"] for record in model.history]
    assert len(measured) < 200 and int(np.argmax(measured)) == len(measured) - 4
    best = LightGCN.load(tmp_path / "best.safetensors")
    assert best.evaluate(TEST).metrics["recall@20"] == max(measured)


def test_validation_every_few_epochs() -> None:
    model = small(LightGCN, n_epochs=5, evaluate_every=2, monitor="map@7").fit(TRAIN, validation=TEST, progress=False)
    measured = [record["epoch"] for record in model.history if "validation" in record]
    assert measured == [2, 4, 5]
    assert list(model.history[-1]["validation"]) == ["recall@7", "ndcg@7", "map@7"]
    report = model.report()
    assert report["metrics"] == model.history[-1]["validation"] and json.dumps(report)


def test_every_form_of_data(tmp_path: Path) -> None:
    users, items = TRAIN.interactions()
    user_ids, item_ids = TRAIN.users.ids[users], TRAIN.items.ids[items]
    table = pd.DataFrame({"UserId": user_ids, "ItemId": item_ids})
    table.to_csv(tmp_path / "train.tsv", sep="\t", index=False)
    lines = [" ".join(map(str, [user, *group])) for user, group in table.groupby("UserId")["ItemId"]]
    (tmp_path / "train.txt").write_text("\n".join(lines))
    TRAIN.save(tmp_path / "graph")
    for data in (TRAIN, table, tmp_path / "train.tsv", str(tmp_path / "train.txt"), tmp_path / "graph"):
        graph = open_graph(data)
        np.testing.assert_array_equal(graph.neighbors, TRAIN.neighbors)
        assert graph.users == TRAIN.users and graph.items == TRAIN.items
    matrix = sp.coo_array((np.ones(len(users)), (users, items)), shape=(TRAIN.n_users, TRAIN.n_items))
    np.testing.assert_array_equal(open_graph(matrix).neighbors, TRAIN.neighbors)
    assert open_graph(matrix, like=TRAIN).users is TRAIN.users
    store = SessionStore.from_events({"SessionId": [1, 1, 2], "ItemId": [5, 6, 5], "Time": [1, 2, 3]})
    assert open_graph(store).n_edges == 3
    with pytest.raises(ValueError, match=r"2 users and 2 items, but the training graph \(like=\) has 60 and 40"):
        open_graph(sp.coo_array(np.eye(2)), like=TRAIN)


def test_unseen_users_and_items_of_a_test_log_are_counted() -> None:
    model = small(LightGCN).fit(TRAIN, progress=False)
    users, items = TEST.interactions()
    table = {
        "UserId": [*TRAIN.users.ids[users], 77_777, 5],
        "ItemId": [*TRAIN.items.ids[items], 1000, 99_999],
    }
    report = model.evaluate(table)
    assert report.dropped["interactions_of_unknown_users"] == 1
    assert report.dropped["interactions_with_unknown_items"] == 1
    assert report.metrics == model.evaluate(TEST).metrics


def test_parameters() -> None:
    published = {"embedding_dim": 64, "layer_sizes": [64, 64, 64], "batch_size": 1024, "reg_weight": 1e-5}
    published |= {"learning_rate": 1e-4, "node_dropout": 0.1, "message_dropout": 0.1, "adjacency": "paper"}
    assert NGCF().to_dict().items() >= published.items()
    published = {"embedding_dim": 64, "n_layers": 3, "batch_size": 2048, "reg_weight": 1e-4, "learning_rate": 1e-3}
    assert LightGCN().to_dict().items() >= published.items()
    assert repr(NGCF(layer_sizes="32/16", seed=4)) == "NGCF(seed=4, layer_sizes=[32, 16])"
    assert list(inspect.signature(NGCF).parameters) == list(NGCFParameters().to_dict())
    assert list(inspect.signature(LightGCN).parameters) == list(LightGCNParameters().to_dict())
    assert NGCF().set_params(n_epochs=2).get_params()["n_epochs"] == 2
    layer = NGCF(adjacency="mean+I/norm").build_network(TRAIN).layers[0]
    assert (layer.P, layer.Q) == ("mean+I", "norm")
    layer = NGCF(adjacency="mean").build_network(TRAIN).layers[0]
    assert (layer.P, layer.Q) == ("mean", "mean")


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"layers": 3}, TypeError, "unexpected keyword argument 'layers'"),
        ({"layer_sizes": []}, ValueError, "give at least one layer"),
        ({"layer_sizes": "a/b"}, TypeError, "layer_sizes='a/b': must be sizes"),
        ({"adjacency": "laplace"}, ValueError, "adjacency='laplace': choose 'paper', one of symmetric"),
        ({"activation": "relu"}, ValueError, "activation='relu'"),
        ({"message_dropout": 1.0}, ValueError, r"message_dropout=1.0: must lie in \[0, 1\)"),
        ({"reg_weight": -1}, ValueError, "reg_weight=-1"),
        ({"learning_rate": 0}, ValueError, "learning_rate=0.0: must be positive"),
        ({"sample_by": "items"}, ValueError, "sample_by='items': choose one of users, interactions"),
        (
            {"monitor": "mrr@20"},
            ValueError,
            "monitor='mrr@20': choose 'loss', or recall, ndcg",
        ),
        ({"monitor": "recall@0"}, ValueError, "monitor='recall@0': choose 'loss'"),
        ({"device": "abacus"}, ValueError, "device='abacus'"),
        ({"n_epochs": "x"}, TypeError, "n_epochs='x': must be a whole number"),
    ],
)
def test_bad_parameters_are_named(parameters: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        NGCF(**parameters)


def test_bad_calls_are_named(tmp_path: Path) -> None:
    model = small(LightGCN)
    with pytest.raises(RuntimeError, match="this LightGCN has no weights yet: call fit"):
        model.recommend([5])
    with pytest.raises(
        ValueError, match="patience=2 monitors recall@20, which needs validation data: give validation="
    ):
        small(LightGCN, patience=2).fit(TRAIN)
    with pytest.raises(ValueError, match="resume=True needs out="):
        model.fit(TRAIN, resume=True)
    model.fit(TRAIN, out=tmp_path, progress=False)
    with pytest.raises(CheckpointError, match="other parameters: batch_size=64 in the checkpoint, 32 now"):
        small(LightGCN, batch_size=32).fit(TRAIN, out=tmp_path, resume=True)
    with pytest.raises(CheckpointError, match="was trained on another graph"):
        small(LightGCN).fit(TEST, out=tmp_path, resume=True)
    with pytest.raises(ValueError, match="user 6 is not in the vocabulary of the training data"):
        model.recommend([5, 6])
    with pytest.raises(ValueError, match="item 999 is not in the vocabulary of the training data"):
        model.similar_items([999])
    with pytest.raises(ValueError, match="k=41: choose 1 to 40"):
        model.recommend([5], k=41)
    with pytest.raises(ValueError, match="read it with like=train"):
        model.evaluate(InteractionGraph.from_arrays([0], [0]))
    with pytest.raises(ValueError, match="all items, or none"):
        small(LightGCN).fit({"UserId": [1, 2], "ItemId": [3, 3]})


@both
def test_divergence_is_an_error(estimator: Any, tmp_path: Path) -> None:
    with pytest.raises(TrainingDiverged, match=r"training stopped; .*try a smaller learning_rate"):
        small(estimator, learning_rate=1e30, n_epochs=20).fit(TRAIN, out=tmp_path, progress=False)


@pytest.mark.parametrize("interval", ["epoch", "update"])
def test_a_schedule_and_memory_phases_in_graph_training(tmp_path: Path, interval: str) -> None:
    """A resumed training has the learning rates and the weights of one that was not interrupted."""

    def trainer(n_epochs: int, out: Path | None = None) -> Trainer:
        network = LightGCN(embedding_dim=8).build_network(TRAIN)
        optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
        schedule = Schedule(optimizer, "ExponentialLR", {"gamma": 0.9, "interval": interval}, n_epochs=n_epochs)
        memory = MemoryRecord("cpu")
        sampler = TripleSampler(TRAIN, 64)
        runner = GraphEpochRunner(network, sampler, optimizer=optimizer, schedule=schedule, memory=memory)
        return Trainer(runner, TrainerOptions(n_epochs=n_epochs), out=out)

    whole = trainer(4)
    rates = [record["learning_rate"] for record in whole.run()]
    n = whole.runner.sampler.n_batches
    # With interval="update" the history's rate is that at the end of the epoch, after its updates.
    exponents = range(4) if interval == "epoch" else range(n, 5 * n, n)
    assert rates == pytest.approx([0.1 * 0.9**exponent for exponent in exponents])
    assert {name: phase["calls"] for name, phase in whole.runner.memory.summary().items()} == dict.fromkeys(
        ("batch", "forward", "backward", "update"), 4 * n
    )
    trainer(2, tmp_path).run()
    resumed = trainer(4, tmp_path)
    resumed.run(load_checkpoint(tmp_path / "last.safetensors", "gru4rec_fast.LightGCNNetwork/2"))
    assert [record["learning_rate"] for record in resumed.history] == rates
    assert torch.equal(resumed.network.embedding, whole.network.embedding)


def test_the_trainer_checks_its_parts() -> None:
    for options, message in (
        ({"n_epochs": 0}, "n_epochs=0"),
        ({"evaluate_every": 0}, "evaluate_every=0"),
        ({"patience": 0}, "patience"),
    ):
        with pytest.raises(ValueError, match=message):
            TrainerOptions(**options)
    network = LightGCN().build_network(TRAIN)
    optimizer = torch.optim.Adam(network.parameters())
    with pytest.raises(ValueError, match="reg_weight=-1"):
        GraphEpochRunner(network, TripleSampler(TRAIN, 8), optimizer=optimizer, reg_weight=-1.0)
    runner = GraphEpochRunner(network, TripleSampler(TRAIN, 8), optimizer=optimizer)
    with pytest.raises(ValueError, match="patience=2 monitors recall@20, which needs validation data"):
        Trainer(runner, TrainerOptions(patience=2))
