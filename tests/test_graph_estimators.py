"""The estimators NGCF and LightGCN: training, resuming, evaluating, recommending, saving, bad input."""

from __future__ import annotations

import inspect
import json
import signal
from dataclasses import replace
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
from gru4rec_fast.profiling import MemoryProfiler
from gru4rec_fast.training import (
    CheckpointError,
    GraphEpochRunner,
    Schedule,
    Trainer,
    TrainerOptions,
    TrainingDiverged,
    TrainingInterrupted,
    load_checkpoint,
    save_checkpoint,
)
from gru4rec_fast.training.progress import SilentProgress

SMALL: dict[str, Any] = {
    "embedding_dim": 8,
    "batch_size": 64,
    "n_epochs": 3,
    "evaluate_every": 1,
    "learning_rate": 0.02,
    "node_dropout": 0.1,
    "seed": 0,
}
both_estimators = pytest.mark.parametrize("estimator", [NGCF, LightGCN])


def make_graphs() -> tuple[InteractionGraph, InteractionGraph]:
    """Return a training and a test graph of 60 users and 40 items, with 25 % of the interactions in the test graph.

    User u belongs to group u % 4. 80 % of the interactions are with the ten items 10 g ... 10 g + 9 of the user's
    group g, the other interactions with any item. The id of user u is 10 u + 5, the id of item i is 1000 + i.
    """
    rng = np.random.default_rng(0)
    users = rng.integers(60, size=1400)
    items_of_group = (users % 4) * 10 + rng.integers(10, size=1400)
    items = np.where(rng.random(1400) < 0.8, items_of_group, rng.integers(40, size=1400))
    held_out = rng.random(1400) < 0.25
    user_ids, item_ids = users * 10 + 5, items + 1000
    train = InteractionGraph.from_table({"UserId": user_ids[~held_out], "ItemId": item_ids[~held_out]})
    test = InteractionGraph.from_table({"UserId": user_ids[held_out], "ItemId": item_ids[held_out]}, like=train)
    return train, test


TRAIN, TEST = make_graphs()


def small_model(estimator: Any, **parameters: Any) -> Any:
    """Return an unfitted model with the parameters SMALL, which train quickly, and with `parameters`."""
    if estimator is NGCF:
        parameters = {"layer_sizes": [8, 8], **parameters}
    return estimator(**{**SMALL, **parameters})


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.network.named_parameters()}


def assert_same_weights(model: Any, expected_model: Any) -> None:
    weights, expected = weights_of(model), weights_of(expected_model)
    assert weights.keys() == expected.keys()
    for name in weights:
        assert torch.equal(weights[name], expected[name]), name


@both_estimators
def test_training_learns_the_groups(estimator: Any) -> None:
    model = small_model(estimator, n_epochs=30).fit(TRAIN, validation=TEST, progress=False)
    losses = [record["loss"] for record in model.history]
    assert losses[-1] < 0.75 * losses[0]
    untrained = small_model(estimator, n_epochs=1, learning_rate=1e-12).fit(TRAIN, progress=False)
    untrained_recall = untrained.evaluate(TEST, cutoffs=(5,)).metrics["recall@5"]
    assert model.evaluate(TEST, cutoffs=(5,)).metrics["recall@5"] > 2 * untrained_recall
    similar = model.similar_items([1003, 1027], k=5).items  # items of groups 0 and 2
    groups = (similar - 1000) // 10
    assert (groups[0] == 0).sum() >= 4 and (groups[1] == 2).sum() >= 4


@pytest.mark.parametrize(("sample_by", "adjacency"), [("users", "paper"), ("interactions", "paper"), ("users", "norm")])
def test_training_equals_training_in_plain_pytorch(sample_by: str, adjacency: str) -> None:
    """Dense matrices, autograd and Adam give the same weights after two epochs on the same triples.

    As in the paper, E are the embeddings and P and Q the propagation matrices. A triple is (user u, positive item i,
    negative item j).
    """
    parameters = {"reg_weight": 0.01, "seed": 3, "sample_by": sample_by, "adjacency": adjacency}
    model = small_model(NGCF, n_epochs=2, dtype="float64", node_dropout=0.0, message_dropout=0.0, **parameters)
    weights = {k: v.double().requires_grad_() for k, v in initial_weights(model).items()}
    model.fit(TRAIN, progress=False)
    Q = dense_matrix(*TRAIN.structure(), "symmetric" if adjacency == "paper" else "norm")
    P = Q + torch.eye(len(Q)) if adjacency == "paper" else Q
    optimizer = torch.optim.Adam(weights.values(), lr=0.02)
    sampler = TripleSampler(TRAIN, 64, sample_by=sample_by, seed=3)
    losses = []
    for step in range(2 * sampler.n_batches):
        E = weights["embedding"]
        final = [E]
        for layer in range(2):
            W1, b1, W2, b2 = (
                weights[f"layers.{layer}.{name}"] for name in ("weight_1", "bias_1", "weight_2", "bias_2")
            )
            E = F.leaky_relu(P @ E @ W1 + b1 + (Q @ E * E) @ W2 + b2, 0.2)
            final.append(E / E.norm(dim=1, keepdim=True))
        users, items = torch.cat(final, 1).split([TRAIN.n_users, TRAIN.n_items])
        u, i, j = sampler.draw(step)
        difference = (users[u] * items[i]).sum(1) - (users[u] * items[j]).sum(1)
        penalty = sum((x**2).sum() for x in (users[u], items[i], items[j])) / (2 * 64)
        loss = -F.logsigmoid(difference).mean() + 0.01 * penalty
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    epoch_losses = np.array(losses).reshape(2, -1).mean(1)
    assert [record["loss"] for record in model.history] == pytest.approx(epoch_losses.tolist(), rel=1e-9)
    for name, value in weights_of(model).items():
        torch.testing.assert_close(value, weights[name].detach(), rtol=1e-7, atol=1e-9)


def initial_weights(model: Any) -> dict[str, torch.Tensor]:
    """Return the weights of the model before training."""
    return {name: value.detach().clone() for name, value in model.build_network(TRAIN).named_parameters()}


@both_estimators
def test_the_seed_determines_the_weights(estimator: Any) -> None:
    model, same_seed, other = (small_model(estimator, seed=seed).fit(TRAIN, progress=False) for seed in (1, 1, 2))
    assert_same_weights(same_seed, model)
    assert not torch.equal(model.network.embedding, other.network.embedding)


@both_estimators
def test_native_and_reference_give_the_same_weights(estimator: Any, native_library: None) -> None:
    models = [small_model(estimator, impl=impl, dtype="float64") for impl in ("native", "reference")]
    native, reference = (model.fit(TRAIN, progress=False) for model in models)
    for name, value in weights_of(native).items():
        torch.testing.assert_close(value, weights_of(reference)[name], rtol=1e-7, atol=1e-9)


@both_estimators
def test_only_needed_does_not_change_the_training(estimator: Any) -> None:
    """With `only_needed`, layers are computed only for the nodes that the triples of a mini-batch (here two) need."""
    options = {"dtype": "float64", "batch_size": 2, "n_epochs": 1}
    models = [small_model(estimator, only_needed=only_needed, **options) for only_needed in (True, False)]
    of_needed_nodes, of_all_nodes = (model.fit(TRAIN, progress=False) for model in models)
    for name, value in weights_of(of_needed_nodes).items():
        torch.testing.assert_close(value, weights_of(of_all_nodes)[name], rtol=1e-6, atol=1e-8)


@both_estimators
def test_progress_counts_triples(estimator: Any, capsys: pytest.CaptureFixture[str]) -> None:
    small_model(estimator, n_epochs=1).fit(TRAIN)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("epoch 1/1")]
    assert " triples in " in line and " triples/s" in line and "events" not in line


@both_estimators
def test_a_cutoff_may_be_a_single_number(estimator: Any) -> None:
    report = small_model(estimator, n_epochs=1).fit(TRAIN, progress=False).evaluate(TEST, cutoffs=5)
    assert {name.partition("@")[2] for name in report.metrics} == {"5"}


@both_estimators
def test_a_resumed_training_equals_an_uninterrupted_one(estimator: Any, tmp_path: Path) -> None:
    uninterrupted = small_model(estimator, n_epochs=4).fit(TRAIN, validation=TEST, progress=False)
    small_model(estimator, n_epochs=2).fit(TRAIN, validation=TEST, out=tmp_path, progress=False)
    resumed = small_model(estimator, n_epochs=4).fit(TRAIN, validation=TEST, out=tmp_path, resume=True, progress=False)
    assert_same_weights(resumed, uninterrupted)
    assert len(resumed.history) == len(uninterrupted.history) == 4
    for record, expected in zip(resumed.history, uninterrupted.history, strict=True):
        assert {**record, "seconds": 0} == {**expected, "seconds": 0}  # only the times differ
    names = {"last.safetensors", "best.safetensors", "model.safetensors", "curves.csv"}
    assert {path.name for path in tmp_path.iterdir()} >= names


class CtrlCProgress(SilentProgress):
    """Progress that sends the signal of Ctrl-C after `n_batches` mini-batches."""

    def __init__(self, n_batches: int) -> None:
        self.n_remaining = n_batches

    def advance(self, events: int, loss: float) -> None:
        self.n_remaining -= 1
        if self.n_remaining == 0:
            signal.raise_signal(signal.SIGINT)


@both_estimators
def test_a_training_interrupted_within_an_epoch_can_be_resumed(
    estimator: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uninterrupted = small_model(estimator).fit(TRAIN, progress=False)
    monkeypatch.setattr("gru4rec_fast.models.estimator.make_progress", lambda *_: CtrlCProgress(19))
    with pytest.raises(TrainingInterrupted, match=r"in epoch 2, after mini-batch \d+ \(.*; to continue from .*last"):
        small_model(estimator).fit(TRAIN, out=tmp_path)
    monkeypatch.undo()
    resumed = small_model(estimator).fit(TRAIN, out=tmp_path, resume=True, progress=False)
    assert_same_weights(resumed, uninterrupted)
    assert [r["loss"] for r in resumed.history] == [r["loss"] for r in uninterrupted.history]


def test_a_training_that_crashed_resumes_from_a_checkpoint_within_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With checkpoint_every=4, a crash in mini-batch 9 is resumed from the checkpoint after mini-batch 8."""

    class Crash(Exception):
        pass

    class CrashingProgress(SilentProgress):
        def __init__(self) -> None:
            self.n_remaining = 9

        def advance(self, events: int, loss: float | None) -> None:
            self.n_remaining -= 1
            if self.n_remaining == 0:
                raise Crash

    uninterrupted = small_model(LightGCN).fit(TRAIN, progress=False)
    monkeypatch.setattr("gru4rec_fast.models.estimator.make_progress", lambda *_: CrashingProgress())
    with pytest.raises(Crash):
        small_model(LightGCN).fit(TRAIN, out=tmp_path, checkpoint_every=4)
    monkeypatch.undo()
    checkpoint = load_checkpoint(tmp_path / "last.safetensors", LightGCN.file_format)
    assert checkpoint.progress["position"]["mini_batches"] == 8
    resumed = small_model(LightGCN).fit(TRAIN, out=tmp_path, resume=True, progress=False)
    assert_same_weights(resumed, uninterrupted)


@both_estimators
def test_reorder_does_not_change_ids_or_results(estimator: Any, tmp_path: Path) -> None:
    model = small_model(estimator, reorder=True, n_epochs=2).fit(TRAIN, validation=TEST, out=tmp_path, progress=False)
    assert model.graph.users != TRAIN.users and model.graph.items != TRAIN.items
    loaded = estimator.load(model.save(tmp_path / "model.safetensors"))
    TEST.save(tmp_path / "test")
    users, items = TEST.interactions()
    table = {"UserId": TEST.users.ids[users], "ItemId": TEST.items.ids[items]}
    expected = model.evaluate(TEST).metrics
    for evaluated in (model, loaded):
        for data in (TEST, table, tmp_path / "test"):
            assert evaluated.evaluate(data).metrics == expected
    seen = {user: set(TRAIN.items.ids[TRAIN.items_of(index)]) for index, user in enumerate(TRAIN.users.ids.tolist())}
    user_ids = TRAIN.users.ids.tolist()
    for user, best in zip(user_ids, model.recommend(user_ids, k=5).items.tolist(), strict=True):
        assert not seen[user] & set(best)
    uninterrupted = small_model(estimator, reorder=True).fit(TRAIN, validation=TEST, progress=False)
    resumed = small_model(estimator, reorder=True)
    resumed.fit(TRAIN, validation=TEST, out=tmp_path, resume=True, progress=False)
    assert_same_weights(resumed, uninterrupted)


def test_a_failed_fit_does_not_change_the_model(tmp_path: Path) -> None:
    model = small_model(LightGCN).fit(TRAIN, validation=TEST, out=tmp_path, progress=False)
    weights = weights_of(model)
    assert model.best_epoch == 1 + int(np.argmax([r["validation"]["recall@20"] for r in model.history]))
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        model.fit(TRAIN, out=tmp_path / "nowhere", resume=True)
    with pytest.raises(CheckpointError, match="was trained on another graph"):
        model.fit(TEST, out=tmp_path, resume=True)
    assert all(torch.equal(value, weights[name]) for name, value in weights_of(model).items())
    assert model.graph is TRAIN and len(model.history) == SMALL["n_epochs"]


@both_estimators
def test_a_loaded_model_equals_the_saved_model(estimator: Any, tmp_path: Path) -> None:
    model = small_model(estimator).fit(TRAIN, progress=False)
    model.save(tmp_path / "model.safetensors")
    loaded = estimator.load(tmp_path / "model.safetensors")
    assert_same_weights(loaded, model)
    assert loaded.get_params() == model.get_params() and loaded.history == model.history
    assert loaded.evaluate(TEST, cutoffs=(5, 10)) == model.evaluate(TEST, cutoffs=(5, 10))
    for array, expected in zip(loaded.recommend([5, 25], k=3), model.recommend([5, 25], k=3), strict=True):
        np.testing.assert_array_equal(array, expected)
    other_estimator = LightGCN if estimator is NGCF else NGCF
    with pytest.raises(CheckpointError, match=f"is a checkpoint of gru4rec_fast.{estimator.__name__}"):
        other_estimator.load(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("graph.neighbors", -1, r"graph\.neighbors holds -1 to"),
        ("graph.offsets", 10**12, r"graph\.offsets ranges from 1000000000000 to"),
        ("users.offsets", 5, "offsets of string ids must be int64, non-decreasing, from 0"),
        ("items.utf8", 255, "invalid start byte"),
    ],
)
def test_damaged_edges_and_ids_of_a_model_are_an_error(tmp_path: Path, name: str, value: int, message: str) -> None:
    table = {"UserId": ["ann", "bob", "bob", "cy"], "ItemId": ["x", "x", "y", "z"]}
    path = small_model(LightGCN).fit(table, progress=False).save(tmp_path / "m.safetensors")
    checkpoint = load_checkpoint(path, LightGCN.file_format)
    checkpoint.tensors[name][0] = value
    save_checkpoint(path, checkpoint)
    with pytest.raises(CheckpointError, match=rf"m\.safetensors is damaged: .*{message}"):
        LightGCN.load(path)


@both_estimators
def test_a_header_or_weights_that_do_not_fit_are_an_error(
    estimator: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong size is an error before a network allocates memory; weights of another dtype are not converted."""
    path = small_model(estimator).fit(TRAIN, progress=False).save(tmp_path / "m.safetensors")
    checkpoint = load_checkpoint(path, estimator.file_format)
    embedding = checkpoint.tensors["model.embedding"]
    save_checkpoint(path, replace(checkpoint, tensors=checkpoint.tensors | {"model.embedding": embedding.int()}))
    with pytest.raises(CheckpointError, match=r"embedding is torch\.int32 .* require torch\.float32"):
        estimator.load(path)
    parameters = checkpoint.config["parameters"] | {"embedding_dim": 10**9}
    save_checkpoint(path, replace(checkpoint, config=checkpoint.config | {"parameters": parameters}))
    monkeypatch.setattr(estimator, "_build_network", lambda model: pytest.fail(f"built {model.embedding_dim}"))
    with pytest.raises(CheckpointError, match=r"its header has embedding_dim=1000000000, its tensors embedding_dim="):
        estimator.load(path)


def test_string_ids_are_saved_and_loaded(tmp_path: Path) -> None:
    table = {"UserId": ["ann", "bob", "bob", "cy"], "ItemId": ["x", "x", "y", "z"]}
    model = small_model(LightGCN).fit(table, progress=False).save(tmp_path / "m.safetensors")
    items, _, _ = LightGCN.load(model).recommend(["bob"], k=1)
    assert items.tolist() == [["z"]]


@both_estimators
def test_recommendations_are_the_best_unseen_items(estimator: Any) -> None:
    model = small_model(estimator).fit(TRAIN, progress=False)
    users, items = (table.numpy() for table in model.embeddings())
    for user in (0, 17, 59):
        seen = TRAIN.items_of(user)
        scores = items @ users[user]
        for exclude_seen in (True, False):
            candidates = np.setdiff1d(np.arange(40), seen) if exclude_seen else np.arange(40)
            best = candidates[np.argsort(-scores[candidates], kind="stable")][:7]
            result = model.recommend(TRAIN.users.ids[[user]], k=7, exclude_seen=exclude_seen)
            assert result.items[0].tolist() == TRAIN.items.ids[best].tolist()
            np.testing.assert_allclose(result.scores[0], scores[best], rtol=1e-5)
    in_small_batches = model.recommend(TRAIN.users.ids, k=5, batch_size=7)
    np.testing.assert_array_equal(in_small_batches.items, model.recommend(TRAIN.users.ids, k=5).items)
    similar, cosines, _ = model.similar_items(TRAIN.items.ids, k=3)
    unit_rows = items / np.linalg.norm(items, axis=1, keepdims=True)
    expected = unit_rows @ unit_rows.T
    np.fill_diagonal(expected, -np.inf)  # an item is not recommended for itself
    np.testing.assert_allclose(cosines, -np.sort(-expected, axis=1)[:, :3], atol=1e-5)
    assert not (similar == TRAIN.items.ids[:, None]).any()


def test_unknown_ids_give_empty_rows_and_excluded_items_are_left_out() -> None:
    """User 6 and item 999 are unknown. The count of a row says how many of its items are valid."""
    model = small_model(LightGCN).fit(TRAIN, progress=False)
    n_seen = len(TRAIN.items_of(int(TRAIN.users.index_of([5])[0])))
    items, scores, counts = model.recommend([5, 6, 5], k=40, unknown="skip")
    assert counts.dtype == np.int64 and counts.tolist() == [40 - n_seen, 0, 40 - n_seen]
    valid = np.arange(40) < counts[:, None]
    assert (items[~valid] == -1).all() and np.array_equal(scores == -np.inf, ~valid)
    np.testing.assert_array_equal(items[0], items[2])
    similar = model.similar_items([1000, 999], k=40, unknown="skip")
    assert similar.counts.tolist() == [39, 0] and (similar.items[1] == -1).all()
    best_items = items[0, :3].tolist()
    others = model.recommend([5], k=37, exclude=best_items)
    assert others.items[0, : others.counts[0]].tolist() == items[0, 3 : counts[0]].tolist()
    with pytest.raises(ValueError, match="argument 'exclude': item 999 is not in the vocabulary"):
        model.recommend([5], exclude=[999])
    assert model.recommend([5], k=3, exclude=[999], unknown="skip").items.tolist() == [best_items]
    assert model.recommend([6], k=3, unknown="skip").counts.tolist() == [0]


def test_embeddings_computed_in_inference_mode_are_usable_outside_of_it() -> None:
    model = small_model(LightGCN).fit(TRAIN, progress=False)
    with torch.inference_mode():
        expected = model.recommend([5, 25], k=3)
    weight = torch.ones(1, requires_grad=True)
    (weight * model.embeddings()[0]).sum().backward()  # raised "Inference tensors cannot be saved for backward"
    np.testing.assert_array_equal(model.recommend([5, 25], k=3).items, expected.items)


@both_estimators
def test_users_with_few_items_left_get_short_rows(estimator: Any) -> None:
    """One user has all items but two, another has all; the rows of the other users are full."""
    n_items = 9
    users, items = (
        np.repeat([0, 1], [n_items - 2, n_items]),
        np.concatenate([np.arange(2, n_items), np.arange(n_items)]),
    )
    graph = InteractionGraph.from_arrays([*users, 2, 3], [*items, 0, 1], n_items=n_items)
    model = small_model(estimator).fit(graph, progress=False)
    best_items, scores, counts = model.recommend(graph.users.ids, k=4)
    assert counts.tolist() == [2, 0, 4, 4]
    assert sorted(best_items[0].tolist()) == [-1, -1, 0, 1] and best_items[1].tolist() == [-1] * 4
    assert np.array_equal(scores == -np.inf, np.arange(4) >= counts[:, None])


def test_errors_of_wrong_kinds_of_ids_name_users_or_items() -> None:
    model = small_model(LightGCN).fit(TRAIN, progress=False)
    for call, message in (
        (lambda: model.recommend(["0"]), "^user ids: .* integers .*strings were given"),
        (lambda: model.similar_items(["0"]), "^item ids: .* integers .*strings were given"),
        (lambda: model.recommend([5], exclude=["0"]), "^exclude: item ids: .* integers .*strings were given"),
        (lambda: model.recommend([1.5]), "^user ids"),
    ):
        with pytest.raises(TypeError, match=message):
            call()
    for single in (5, "5", np.int64(5)):
        with pytest.raises(ValueError, match=r"^users=.*5.*: give a list \(or array\) of user ids"):
            model.recommend(single)
        with pytest.raises(ValueError, match=r"^items=.*5.*: give a list \(or array\) of item ids"):
            model.similar_items(single)


@both_estimators
def test_without_a_seed_every_fit_draws_one_and_a_resume_takes_it(estimator: Any, tmp_path: Path) -> None:
    torch.manual_seed(5)
    first = small_model(estimator, seed=None, n_epochs=1).fit(TRAIN, out=tmp_path, progress=False)
    other = small_model(estimator, seed=None, n_epochs=1).fit(TRAIN, progress=False)
    drawn = first.report()["parameters"]["seed"]
    assert first.seed is None and drawn != other.report()["parameters"]["seed"]
    torch.manual_seed(5)
    assert_same_weights(small_model(estimator, seed=None, n_epochs=1).fit(TRAIN, progress=False), first)
    resumed = small_model(estimator, seed=None, n_epochs=3).fit(TRAIN, out=tmp_path, resume=True, progress=False)
    assert_same_weights(resumed, small_model(estimator, seed=drawn, n_epochs=3).fit(TRAIN, progress=False))


@both_estimators
def test_recommending_during_a_fit_uses_no_dropout_and_is_not_remembered(
    estimator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class ScoringProgress(SilentProgress):
        def advance(self, events: int, loss: float | None) -> None:
            assert model.network.training
            with monkeypatch.context() as patch:
                patch.setattr(torch.nn.Module, "train", lambda *_: pytest.fail("the mode of the network was changed"))
                first, second = (model.recommend([5, 25], k=3).scores for _ in range(2))
            np.testing.assert_array_equal(first, second)

    undisturbed = small_model(estimator).fit(TRAIN, progress=False)
    monkeypatch.setattr("gru4rec_fast.models.estimator.make_progress", lambda *_: ScoringProgress())
    model = small_model(estimator)
    model.fit(TRAIN)
    assert_same_weights(model, undisturbed)
    np.testing.assert_array_equal(model.recommend([5, 25], k=3).scores, undisturbed.recommend([5, 25], k=3).scores)


@both_estimators
def test_impl_can_be_chosen_for_one_call(estimator: Any, native_library: None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(estimator, impl="native").fit(TRAIN, progress=False)
    expected = model.recommend([5, 25], k=3)
    calls: list[tuple[str, str]] = []  # (function, implementation that it used)
    search, forward = graph_models.search_top_k, type(model.network).forward

    def impl_of(network: Any) -> str:
        (impl,) = {module.impl for module in network.modules() if hasattr(module, "impl")}
        return str(impl)

    def recording_search(*arguments: Any, impl: str, **options: Any) -> Any:
        calls.append(("search", impl))
        return search(*arguments, impl=impl, **options)

    def recording_forward(network: Any, **options: Any) -> Any:
        calls.append(("forward", impl_of(network)))
        return forward(network, **options)

    monkeypatch.setattr(graph_models, "search_top_k", recording_search)
    monkeypatch.setattr(type(model.network), "forward", recording_forward)
    result = model.recommend([5, 25], k=3, impl="reference")
    model.similar_items([1003], impl="reference")  # uses the final embeddings that `recommend` computed
    assert calls == [("forward", "reference"), ("search", "reference"), ("search", "reference")]
    assert impl_of(model.network) == "native"
    np.testing.assert_array_equal(result.items, expected.items)
    np.testing.assert_allclose(result.scores, expected.scores, rtol=1e-5)
    assert model.evaluate(TEST, impl="reference").metrics == pytest.approx(model.evaluate(TEST).metrics)


@both_estimators
def test_fit_uses_the_schedule_and_reports_its_phases_to_a_memory_profiler(estimator: Any) -> None:
    schedule = {"lr_scheduler": "step", "lr_scheduler_options": {"step_size": 1, "gamma": 0.5}}
    with MemoryProfiler() as profiler:
        model = small_model(estimator, evaluate_every=2, **schedule).fit(TRAIN, validation=TEST, progress=False)
    assert [record["learning_rate"] for record in model.history] == pytest.approx([0.02, 0.01, 0.005])
    n_batches = model.history[0]["mini_batches"]
    calls = {"/".join(phase.path): phase.calls for phase in profiler.report().phases[1:]}
    assert calls == dict.fromkeys(("batch", "forward", "backward", "update"), 3 * n_batches) | {"evaluation": 2}


def test_early_stopping_keeps_the_best_checkpoint(tmp_path: Path) -> None:
    model = small_model(LightGCN, n_epochs=200, learning_rate=0.1, patience=3)
    model.fit(TRAIN, validation=TEST, out=tmp_path, progress=False)
    measured = [record["validation"]["recall@20"] for record in model.history]
    # Training stopped 3 epochs (the patience) after the best epoch.
    assert len(measured) < 200 and int(np.argmax(measured)) == len(measured) - 4
    best = LightGCN.load(tmp_path / "best.safetensors")
    assert best.evaluate(TEST).metrics["recall@20"] == max(measured)


def test_evaluate_every_selects_epochs_and_monitor_selects_metrics() -> None:
    model = small_model(LightGCN, n_epochs=5, evaluate_every=2, monitor="map@7")
    model.fit(TRAIN, validation=TEST, progress=False)
    validated_epochs = [record["epoch"] for record in model.history if "validation" in record]
    assert validated_epochs == [2, 4, 5]
    assert list(model.history[-1]["validation"]) == ["recall@7", "ndcg@7", "map@7"]
    report = model.report()
    assert report["metrics"] == model.history[-1]["validation"] and json.dumps(report)


def test_open_graph_reads_every_form_of_data(tmp_path: Path) -> None:
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
    model = small_model(LightGCN).fit(TRAIN, progress=False)
    users, items = TEST.interactions()
    table = {
        "UserId": [*TRAIN.users.ids[users], 77_777, 5],
        "ItemId": [*TRAIN.items.ids[items], 1000, 99_999],
    }
    report = model.evaluate(table)
    assert report.dropped["interactions_of_unknown_users"] == 1
    assert report.dropped["interactions_with_unknown_items"] == 1
    assert report.metrics == model.evaluate(TEST).metrics


def test_defaults_are_those_of_the_papers_and_parameters_are_arguments() -> None:
    # The hyper-parameters that the papers publish for Gowalla.
    published = {"embedding_dim": 64, "layer_sizes": [64, 64, 64], "batch_size": 1024, "reg_weight": 1e-5}
    published |= {"learning_rate": 1e-4, "node_dropout": 0.1, "message_dropout": 0.1, "adjacency": "paper"}
    assert NGCF().to_dict().items() >= published.items()
    published = {"embedding_dim": 64, "n_layers": 3, "batch_size": 2048, "reg_weight": 1e-4, "learning_rate": 1e-3}
    assert LightGCN().to_dict().items() >= published.items()
    assert repr(NGCF(layer_sizes=[32, 16], seed=4)) == "NGCF(seed=4, layer_sizes=[32, 16])"
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
        ({"layers": 3}, TypeError, "NGCF has no parameter 'layers'; did you mean 'layer_sizes'"),
        ({"layer_sizes": []}, ValueError, "give at least one layer"),
        ({"layer_sizes": "a/b"}, TypeError, "layer_sizes='a/b': must be sizes"),
        ({"adjacency": "laplace"}, ValueError, "adjacency='laplace': choose 'paper', one of symmetric"),
        ({"activation": "relu"}, ValueError, "activation='relu'"),
        ({"message_dropout": 1.0}, ValueError, r"message_dropout=1.0: must lie in \[0, 1\)"),
        ({"reg_weight": -1}, ValueError, "reg_weight=-1"),
        ({"learning_rate": 0}, ValueError, "learning_rate=0.0: must be positive"),
        ({"sample_by": "items"}, ValueError, "sample_by='items': choose one of users, interactions"),
        ({"monitor": "auc@20"}, ValueError, "monitor='auc@20': choose 'loss', or recall, mrr"),
        ({"monitor": "recall@0"}, ValueError, "monitor='recall@0': choose 'loss'"),
        ({"device": "abacus"}, ValueError, "device='abacus'"),
        ({"n_epochs": "x"}, TypeError, "n_epochs='x': must be a whole number"),
    ],
)
def test_errors_name_bad_parameters(parameters: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        NGCF(**parameters)


def test_the_number_of_propagations_is_limited() -> None:
    for n_layers in (-1, 101, 2**62):
        with pytest.raises(ValueError, match=f"n_layers={n_layers}: must be 0 to 100"):
            LightGCN(n_layers=n_layers)


def test_errors_of_bad_calls_say_what_to_do(tmp_path: Path) -> None:
    model = small_model(LightGCN)
    with pytest.raises(RuntimeError, match="this LightGCN has no weights yet: call fit"):
        model.recommend([5])
    with pytest.raises(ValueError, match="patience=2 monitors recall@20: give validation="):
        small_model(LightGCN, patience=2).fit(TRAIN)
    with pytest.raises(ValueError, match="resume=True needs out="):
        model.fit(TRAIN, resume=True)
    model.fit(TRAIN, out=tmp_path, progress=False)
    with pytest.raises(CheckpointError, match="other parameters: batch_size=64 in the checkpoint, 32 now"):
        small_model(LightGCN, batch_size=32).fit(TRAIN, out=tmp_path, resume=True)
    with pytest.raises(CheckpointError, match="was trained on another graph"):
        small_model(LightGCN).fit(TEST, out=tmp_path, resume=True)
    with pytest.raises(ValueError, match="user 6 is not in the vocabulary of the training data"):
        model.recommend([5, 6])
    with pytest.raises(ValueError, match="item 999 is not in the vocabulary of the training data"):
        model.similar_items([999])
    with pytest.raises(ValueError, match="k=41: choose 1 to 40"):
        model.recommend([5], k=41)
    with pytest.raises(ValueError, match="read it with like=train"):
        model.evaluate(InteractionGraph.from_arrays([0], [0]))
    with pytest.raises(ValueError, match="all items, or none"):
        small_model(LightGCN).fit({"UserId": [1, 2], "ItemId": [3, 3]})


@both_estimators
def test_divergence_is_an_error(estimator: Any, tmp_path: Path) -> None:
    with pytest.raises(TrainingDiverged, match=r"training stopped; .*try a smaller learning_rate"):
        small_model(estimator, learning_rate=1e30, n_epochs=20).fit(TRAIN, out=tmp_path, progress=False)


@pytest.mark.parametrize("interval", ["epoch", "update"])
def test_a_resumed_trainer_continues_schedule_and_weights(tmp_path: Path, interval: str) -> None:
    """A resumed training has the learning rates and weights of an uninterrupted training."""

    def make_trainer(n_epochs: int, out: Path | None = None) -> Trainer:
        network = LightGCN(embedding_dim=8, seed=1).build_network(TRAIN)
        optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
        schedule = Schedule(optimizer, "ExponentialLR", {"gamma": 0.9, "interval": interval}, n_epochs=n_epochs)
        sampler = TripleSampler(TRAIN, 64, seed=1)
        runner = GraphEpochRunner(network, sampler, optimizer=optimizer, schedule=schedule)
        return Trainer(runner, TrainerOptions(n_epochs=n_epochs), out=out)

    uninterrupted = make_trainer(4)
    rates = [record["learning_rate"] for record in uninterrupted.run()]
    n_batches = uninterrupted.runner.sampler.n_batches
    # The number of decays before the history records the rate of an epoch: with "update", that after the last update.
    n_decays = range(4) if interval == "epoch" else range(n_batches, 5 * n_batches, n_batches)
    assert rates == pytest.approx([0.1 * 0.9**n for n in n_decays])
    make_trainer(2, tmp_path).run()
    resumed = make_trainer(4, tmp_path)
    resumed.run(load_checkpoint(tmp_path / "last.safetensors", "gru4rec_fast.LightGCNNetwork/2"))
    assert [record["learning_rate"] for record in resumed.history] == rates
    assert torch.equal(resumed.network.embedding, uninterrupted.network.embedding)


def test_trainer_and_runner_check_their_arguments() -> None:
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
