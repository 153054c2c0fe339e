"""partial_fit, extend_items and extend_users of the estimators."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from markov import markov_store
from small_trainer import no_pictures

from gru4rec_fast import NGCF, GRU4Rec, InteractionGraph, LightGCN
from gru4rec_fast.data import SessionStore
from gru4rec_fast.nn import SessionNetwork
from gru4rec_fast.training import Callback, CheckpointError, load_checkpoint, save_checkpoint

pytestmark = pytest.mark.usefixtures(no_pictures.__name__)

N_OLD, N_ITEMS = 20, 30  # items of the first log, and of both logs
SMALL: dict[str, Any] = {
    "layers": [12],
    "batch_size": 8,
    "n_sample": 16,
    "n_epochs": 3,
    "learning_rate": 0.2,
    "seed": 1,
}
both_graph_models = pytest.mark.parametrize("estimator", [NGCF, LightGCN])


def as_table(store: SessionStore, make_id: Callable[[int], Any] = int) -> pd.DataFrame:
    """Return a log whose item ids are `make_id(index)`."""
    sessions = np.repeat(np.arange(store.n_sessions), np.diff(store.offsets))
    ids = [make_id(index) for index in store.items.tolist()]
    return pd.DataFrame({"SessionId": sessions, "ItemId": ids, "Time": np.arange(len(sessions))})


OLD = as_table(markov_store(150, N_OLD))
NEW = as_table(markov_store(200, N_ITEMS, seed=1))
NEW_ITEMS = np.arange(N_OLD, N_ITEMS)


def fitted_model(**parameters: Any) -> GRU4Rec:
    return GRU4Rec(**{**SMALL, **parameters}).fit(OLD, progress=False)


def state_of(model: Any) -> dict[str, Any]:
    """Return what a training changes, by name; arrays as lists."""
    state = {name: tensor.tolist() for name, tensor in model.network.state_dict().items()}
    for name, array in model._training_id_arrays().items():
        state[name] = array.tolist()
    return state | {"history": [*model.history], "parameters": model.get_params(), "training": model.network.training}


class Recorder(Callback):
    """Stores the weights and the accumulators before the first update, and the record of each call of on_step_end."""

    def __init__(self) -> None:
        self.records: list[Any] = []

    def on_fit_start(self, trainer: Any) -> None:
        self.weights = {name: weight.detach().clone() for name, weight in trainer.network.named_parameters()}
        states = {name: trainer.optimizer.state[p] for name, p in trainer.network.named_parameters()}
        self.accumulators = {name: state["accumulator"].clone() for name, state in states.items() if state}

    def on_step_end(self, trainer: Any, record: Any) -> None:
        self.records.append(record)


class Stop(Callback):
    """Raises an error after the first updates."""

    def on_step_end(self, trainer: Any, record: Any) -> None:
        raise KeyboardInterrupt


def recall_of_new_items(model: GRU4Rec) -> float:
    """Return the share of the new items that are among the three best after their predecessor."""
    best = model.recommend([[item - 1] for item in NEW_ITEMS], k=3).items
    return float((best == NEW_ITEMS[:, None]).any(1).mean())


def test_partial_fit_learns_new_items_and_keeps_old_ones() -> None:
    model, recorder = fitted_model(), Recorder()
    network, support, old_ids = model.network, model.support, model.vocabulary.ids
    model.partial_fit(NEW, callbacks=[recorder], progress=False)
    assert model.vocabulary.ids.tolist() == [*old_ids, *NEW_ITEMS] and model.network.n_items == N_ITEMS
    assert model.network is not network and network.n_items == N_OLD
    assert model.support.sum() == len(OLD) + len(NEW)
    assert model.support[:N_OLD].tolist() == (support + np.bincount(NEW.ItemId)[old_ids]).tolist()
    assert [record["epoch"] for record in model.history] == [1, 2, 3, 4, 5, 6] and model.n_epochs == 3
    first, earlier = recorder.records[0], sum(record["mini_batches"] for record in model.history[:3])
    assert first.epoch == 4 and first.step - first.mini_batches == earlier  # so negatives differ from those of `fit`
    assert recall_of_new_items(model) > 0.8
    assert model.evaluate(OLD, cutoffs=3).metrics["recall@3"] > 0.7
    assert not model.network.training


def test_n_epochs_is_the_number_of_passes() -> None:
    model = fitted_model(lr_scheduler="cosine").partial_fit(NEW, n_epochs=1, progress=False)
    assert len(model.history) == 4 and model.n_epochs == 3
    with pytest.raises(ValueError, match="n_epochs=0: must be at least 1"):
        model.partial_fit(NEW, n_epochs=0)


def test_shrink_multiplies_the_weights_before_the_training() -> None:
    model, recorder = fitted_model(), Recorder()
    before = {name: weight.detach().clone() for name, weight in model.network.named_parameters()}
    model.partial_fit(NEW, n_epochs=1, shrink=0.5, callbacks=[recorder], progress=False)
    for name, weight in before.items():
        assert recorder.weights[name][: len(weight)].equal(weight / 2)
    for shrink in (0, 1.1, math.nan):
        with pytest.raises(ValueError, match=rf"shrink={shrink}: must be in \(0, 1\]"):
            model.partial_fit(NEW, shrink=shrink)


@pytest.mark.parametrize("mode", ["constrained", "separate", "one-hot"])
@pytest.mark.parametrize("file", ["save", "model", "last", "best"])
def test_a_loaded_model_continues_as_the_fitted_one(tmp_path: Path, file: str, mode: str) -> None:
    options = {"constrained": {}, "separate": {"embedding": 5}, "one-hot": {}}[mode]
    model = GRU4Rec(**SMALL, constrained_embedding=mode == "constrained", monitor="loss", **options)
    model.fit(OLD, out=tmp_path / "run", progress=False)
    model.save(tmp_path / "save.safetensors")
    path = tmp_path / "save.safetensors" if file == "save" else tmp_path / "run" / f"{file}.safetensors"
    loaded, recorder = GRU4Rec.load(path), Recorder()
    assert model.best_epoch == 3  # so that all files have the same weights
    loaded.partial_fit(NEW, n_epochs=1, callbacks=[recorder], progress=False)
    model.partial_fit(NEW, n_epochs=1, progress=False)
    for name, tensor in model.network.state_dict().items():
        assert torch.equal(loaded.network.state_dict()[name], tensor), name
    accumulator = recorder.accumulators["output.weight"]
    assert torch.equal(accumulator, accumulator[:, :1].expand_as(accumulator))  # the maximum of each row
    assert (accumulator[:N_OLD] > 0).all() and (accumulator[N_OLD:] == 0).all()
    again = GRU4Rec.load(loaded.save(tmp_path / "again.safetensors"))
    assert again.network.n_items == N_ITEMS and len(again.history) == 4
    assert np.array_equal(again.recommend([[3]]).items, loaded.recommend([[3]]).items)


def test_a_model_without_maxima_of_the_accumulators_starts_with_zeros() -> None:
    network, recorder = SessionNetwork(N_OLD, [6], sparse=True, seed=0), Recorder()
    model = GRU4Rec.from_network(network, range(N_OLD), batch_size=8, n_sample=4, n_epochs=1)
    model.partial_fit(NEW, callbacks=[recorder], progress=False)
    assert not recorder.accumulators and model.network.n_items == N_ITEMS
    assert network.n_items == N_OLD and model.support is None


def test_a_damaged_maximum_of_an_accumulator_is_an_error(tmp_path: Path) -> None:
    path = fitted_model(n_epochs=1).save(tmp_path / "model.safetensors")
    checkpoint = load_checkpoint(path, GRU4Rec.file_format)
    maximum = checkpoint.tensors["accumulator_max.output.bias"]
    assert maximum.shape == (N_OLD,)
    for damaged in (-maximum, maximum.double(), torch.zeros(N_OLD + 1), maximum.view(1, -1), maximum * torch.nan):
        checkpoint.tensors["accumulator_max.output.bias"] = damaged
        save_checkpoint(path, checkpoint)
        with pytest.raises(CheckpointError, match=r"is damaged: accumulator_max.output.bias is torch.float"):
            GRU4Rec.load(path)


def test_new_data_may_be_a_store_with_other_indices_or_a_file_with_ids_of_another_kind(tmp_path: Path) -> None:
    reference = fitted_model().partial_fit(NEW, n_epochs=1, progress=False)
    store = SessionStore.from_events(NEW.assign(ItemId=NEW.ItemId))
    store.save(tmp_path / "store")
    shuffled = SessionStore.from_arrays(
        N_ITEMS - 1 - store.items, store.offsets, vocabulary=type(store.vocabulary)(store.vocabulary.ids[::-1])
    )
    for data in (store, tmp_path / "store", shuffled):
        model = fitted_model().partial_fit(data, n_epochs=1, progress=False)
        assert model.vocabulary == reference.vocabulary
        assert torch.equal(model.network.output_weight, reference.network.output_weight)
    model = GRU4Rec(**SMALL).fit(as_table(markov_store(150, N_OLD), str), progress=False)
    model.partial_fit(NEW, n_epochs=1, progress=False)  # integers, which are strings in the vocabulary
    assert model.vocabulary.holds_strings and len(model.vocabulary) == N_ITEMS
    with pytest.raises(TypeError, match=r"the vocabulary holds integers as ids, but 'x\d+' is given"):
        fitted_model().partial_fit(as_table(markov_store(9, N_ITEMS), "x{}".format))


@pytest.mark.parametrize("cause", ["column", "callback", "diverged", "patience", "ids"])
def test_an_error_leaves_the_model_unchanged(cause: str) -> None:
    model = fitted_model(n_epochs=1)
    if cause == "patience":
        model.set_params(patience=2)
    if cause == "diverged":
        model.set_params(learning_rate=1e38)
    before, network = state_of(model), model.network
    arguments: dict[str, Any] = {
        "column": {"item_key": "Item"},
        "callback": {"callbacks": [Stop()]},
        "ids": {"data": as_table(markov_store(9, N_ITEMS), "x{}".format)},
    }.get(cause, {})
    with pytest.raises((ValueError, TypeError, KeyboardInterrupt, ArithmeticError)):
        model.partial_fit(**{"data": NEW, "progress": False, **arguments})
    assert state_of(model) == before and model.network is network


def test_validation_selects_an_epoch_and_stops_early() -> None:
    model = fitted_model(n_epochs=1).set_params(patience=1, min_delta=2.0)
    model.partial_fit(NEW, validation=NEW, n_epochs=9, progress=False)
    assert [*model.history[-1]["validation"]] == ["recall@20", "mrr@20"]
    assert len(model.history) == 3 and model.best_epoch == 2  # no later epoch can be better by min_delta


def test_an_unfitted_or_fitting_model_is_an_error() -> None:
    for method in (GRU4Rec().partial_fit, GRU4Rec().extend_items, LightGCN().extend_users, NGCF().partial_fit):
        with pytest.raises(RuntimeError, match="has no weights yet: call fit"):
            method(NEW)

    class Extend(Callback):
        def on_step_end(self, trainer: Any, record: Any) -> None:
            with pytest.raises(RuntimeError, match="is being fitted"):
                model.extend_items([99])

    model = GRU4Rec(**SMALL)
    model.fit(OLD, callbacks=[Extend()], progress=False)
    model.partial_fit(NEW, callbacks=[Extend()], progress=False)  # what a callback changed would be lost
    model.extend_items([99])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_epochs": 1.5}, "n_epochs=1.5: must be an integer"),
        ({"n_epochs": "2"}, "n_epochs='2': must be an integer"),
        ({"shrink": "1"}, "shrink='1': must be a number"),
    ],
)
def test_arguments_of_other_types_are_errors(arguments: dict, message: str) -> None:
    model = GRU4Rec(**SMALL).fit(OLD, progress=False)
    with pytest.raises(TypeError, match=message):
        model.partial_fit(NEW, **arguments)
    with pytest.raises(TypeError, match="ids must be a sequence, not a set, which has no order"):
        model.extend_items({1})


@pytest.mark.parametrize("mode", ["constrained", "separate", "one-hot"])
def test_extend_items(tmp_path: Path, mode: str) -> None:
    model = fitted_model(constrained_embedding=mode == "constrained", embedding=5 if mode == "separate" else 0)
    before, weight, old_ids = model.recommend([[3], [4, 5]], k=N_OLD), model.network.output_weight, model.vocabulary.ids
    assert model.extend_items([107, 3, 105, 105]) is model
    assert model.vocabulary.ids[N_OLD:].tolist() == [105, 107] and model.network.n_items == N_OLD + 2
    assert model.network.output_weight is weight and model.support[N_OLD:].tolist() == [0, 0]
    after = model.recommend([[3], [4, 5]], k=N_OLD, exclude=[105, 107])
    assert np.array_equal(after.items, before.items)
    np.testing.assert_allclose(after.scores, before.scores, rtol=1e-5)
    assert {105, 107} <= {*model.recommend([[105, 107]], k=N_OLD + 2).items[0].tolist()}
    loaded = GRU4Rec.load(model.save(tmp_path / "model.safetensors"))
    assert np.array_equal(loaded.recommend([[105]]).items, model.recommend([[105]]).items)
    loaded.partial_fit(NEW.replace({"ItemId": {20: 107}}), n_epochs=1, progress=False)
    assert loaded.vocabulary.ids.tolist() == [*old_ids, 105, 107, *range(21, N_ITEMS)]
    with pytest.raises(TypeError, match="the vocabulary holds integers as ids, but strings were given"):
        model.extend_items(["x"])
    assert model.network.n_items == N_OLD + 2


GRAPH_SMALL: dict[str, Any] = {
    "embedding_dim": 8, "batch_size": 64, "n_epochs": 8, "learning_rate": 0.03, "node_dropout": 0.1, "seed": 0,
    "evaluate_every": 4,
}  # fmt: skip


def interactions(n_users: int, n_items: int, seed: int) -> pd.DataFrame:
    """Return interactions of users with items of the same remainder modulo 3. Ids of users start at 100."""
    users, items = np.random.default_rng(seed).integers((n_users, n_items), size=(1200, 2)).T
    own = users % 3 == items % 3
    return pd.DataFrame({"UserId": users[own] + 100, "ItemId": items[own]})


OLD_EDGES, NEW_EDGES = interactions(30, 21, 0), interactions(40, 27, 1)


def fitted_graph_model(estimator: Any, **parameters: Any) -> Any:
    if estimator is NGCF:
        parameters = {"layer_sizes": [8], "message_dropout": 0.1, **parameters}
    return estimator(**{**GRAPH_SMALL, **parameters}).fit(OLD_EDGES, progress=False)


@both_graph_models
@pytest.mark.parametrize("seed", [0, None])
def test_extending_a_graph_does_not_change_other_nodes(tmp_path: Path, estimator: Any, seed: int | None) -> None:
    model = fitted_graph_model(estimator, n_epochs=1, seed=seed)
    users, items = model.embeddings()
    graph, network, network_seed = model.graph, model.network, model.network.seed
    model.extend_users([500, 101, 400]).extend_items([77])
    new_users, new_items = model.embeddings()
    torch.testing.assert_close(new_users[: len(users)], users, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(new_items[: len(items)], items, rtol=1e-6, atol=1e-7)
    assert model.graph.users.ids[-2:].tolist() == [400, 500] and model.graph.items.ids[-1] == 77
    assert model.graph.n_edges == graph.n_edges and model.network.seed == network_seed
    assert network.n_users == graph.n_users == 30  # a network in use elsewhere is as before
    initial = model.network.embedding
    assert not torch.isclose(initial[30:32, None], initial[None, 32:]).all(2).any()  # no copies of items' embeddings
    assert model.recommend([400, 500], k=5).counts.tolist() == [5, 5]
    loaded = estimator.load(model.save(tmp_path / "model.safetensors"))
    assert np.array_equal(loaded.recommend([400]).items, model.recommend([400]).items)
    with pytest.raises(TypeError, match="the vocabulary holds integers"):
        model.extend_users(["x"])


@both_graph_models
def test_partial_fit_of_a_graph_model_learns_new_users_and_items(tmp_path: Path, estimator: Any) -> None:
    model = estimator.load(fitted_graph_model(estimator).save(tmp_path / "model.safetensors"))
    model.partial_fit(NEW_EDGES, validation=interactions(40, 27, 2), progress=False)
    graph = model.graph
    assert graph.users.ids.tolist() == [*range(100, 140)] and graph.items.ids.tolist() == [*range(27)]
    both = pd.concat([OLD_EDGES, NEW_EDGES]).drop_duplicates()
    assert graph.n_edges == len(both)
    assert [record["epoch"] for record in model.history] == [*range(1, 17)] and "validation" in model.history[-1]
    best = model.recommend(np.arange(130, 140), k=3, exclude_seen=False).items
    assert (best % 3 == (np.arange(30, 40) % 3)[:, None]).mean() > 0.9
    best = model.similar_items(np.arange(21, 27), k=3).items
    assert (best % 3 == (np.arange(21, 27) % 3)[:, None]).mean() > 0.9


@both_graph_models
def test_an_error_leaves_a_graph_model_unchanged(estimator: Any) -> None:
    model = fitted_graph_model(estimator, n_epochs=1)
    before, network, graph = state_of(model), model.network, model.graph
    for arguments in ({"callbacks": [Stop()]}, {"item_key": "Item"}, {"data": {"UserId": ["x"], "ItemId": [1]}}):
        with pytest.raises((ValueError, TypeError, KeyboardInterrupt)):
            model.partial_fit(**{"data": NEW_EDGES, "progress": False, **arguments})
    assert state_of(model) == before and model.network is network and model.graph is graph


def test_a_graph_with_additional_nodes() -> None:
    graph = InteractionGraph.from_arrays([0, 1, 1], [0, 0, 1])
    larger = graph.with_nodes([9, 0, 5], [7])
    assert larger.users.ids.tolist() == [0, 1, 5, 9] and larger.items.ids.tolist() == [0, 1, 7]
    assert [array.tolist() for array in larger.interactions()] == [array.tolist() for array in graph.interactions()]
    assert graph.with_nodes().n_nodes == graph.n_nodes
