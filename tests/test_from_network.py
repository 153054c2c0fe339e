"""GRU4Rec.from_network: a network that was trained elsewhere becomes a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from markov import markov_store
from small_trainer import make_trainer
from torch import nn

from gru4rec_fast import LightGCN
from gru4rec_fast.data import Vocabulary
from gru4rec_fast.evaluation import evaluate_sessions
from gru4rec_fast.models import GRU4Rec, recommend
from gru4rec_fast.nn import SessionNetwork

STORE = markov_store(n_sessions=60)
VOCABULARY = STORE.vocabulary
SESSIONS = [VOCABULARY.ids[[3]].tolist(), VOCABULARY.ids[[7, 8, 2]].tolist()]


def make_network(**options: Any) -> SessionNetwork:
    """Return a network with random weights, as another training loop could have left it."""
    network = SessionNetwork(STORE.n_items, **{"layers": [8], "seed": 5, **options})
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return network


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"layers": [8, 6], "gru_form": "reset_before"},
        {"embedding": "separate", "embedding_dim": 5, "dropout_p_embed": 0.2, "dropout_p_hidden": 0.1},
        {"embedding": "none"},
        {"embedding": "none", "layers": [8, 6]},
        {"dtype": torch.float64, "impl": "reference"},
    ],
    ids=str,
)
def test_model_evaluates_recommends_saves_and_loads(tmp_path: Path, options: dict[str, Any]) -> None:
    network = make_network(**options)
    model = GRU4Rec.from_network(network, VOCABULARY)
    assert model.network is network
    held_out, impl = markov_store(n_sessions=40, seed=1), model.impl
    expected = recommend(network, VOCABULARY, SESSIONS, 5, impl=impl)
    metrics = evaluate_sessions(network, held_out, impl=impl).metrics
    model.save(tmp_path / "model.safetensors")
    loaded = GRU4Rec.load(tmp_path / "model.safetensors", impl=impl)
    for each in (model, loaded):
        assert each.evaluate(held_out).metrics == metrics
        for array, expected_array in zip(each.recommend(SESSIONS, 5), expected, strict=True):
            np.testing.assert_array_equal(array, expected_array)
    assert loaded.get_params() == model.get_params()
    assert loaded.network.seed == network.seed == 5 and model.seed is None
    for name, tensor in network.state_dict().items():
        assert torch.equal(loaded.network.state_dict()[name], tensor), name


def test_parameters_are_those_of_the_network_and_the_given_ones() -> None:
    network = make_network(layers=[8, 6], embedding="separate", embedding_dim=5, dropout_p_hidden=0.1)
    model = GRU4Rec.from_network(network, VOCABULARY, loss="bpr-max", n_epochs=2)
    defaults = GRU4Rec().get_params()
    assert {name: value for name, value in model.get_params().items() if value != defaults[name]} == {
        "layers": (8, 6),
        "constrained_embedding": False,
        "embedding": 5,
        "dropout_p_hidden": 0.1,
        "loss": "bpr-max",
        "n_epochs": 2,
    }


def test_fit_trains_a_new_network() -> None:
    network = make_network()
    before = network.output.weight.detach().clone()
    parameters = {"batch_size": 8, "n_sample": 16, "n_epochs": 1}
    model = GRU4Rec.from_network(network, Vocabulary(VOCABULARY.ids[::-1].copy()), seed=0, **parameters)
    model.fit(STORE, progress=False)
    assert model.network is not network and torch.equal(network.output.weight, before)
    assert model.vocabulary == VOCABULARY
    expected = GRU4Rec(layers=[8], seed=0, **parameters).fit(STORE, progress=False)
    assert torch.equal(model.network.output.weight, expected.network.output.weight)


def test_further_training_of_the_network_changes_the_model() -> None:
    network = make_network()
    model = GRU4Rec.from_network(network, VOCABULARY)
    network.train()
    with torch.no_grad():
        network.output.bias[11] = 100.0
    assert model.recommend(SESSIONS, 1).items.tolist() == [[VOCABULARY.ids[11]]] * 2
    assert network.training


def test_support_is_optional_and_stored(tmp_path: Path) -> None:
    model = GRU4Rec.from_network(make_network(), VOCABULARY.ids.tolist(), support=STORE.support)
    model.save(tmp_path / "model.safetensors")
    loaded = GRU4Rec.load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(loaded.support, STORE.support)
    assert loaded.evaluate(STORE, baselines=True).baselines.keys() == {"popularity", "random"}

    GRU4Rec.from_network(make_network(), VOCABULARY).save(tmp_path / "model.safetensors")
    loaded = GRU4Rec.load(tmp_path / "model.safetensors")
    assert loaded.support is None
    with pytest.raises(ValueError, match="baselines=True needs the support of the items: give support= to"):
        loaded.evaluate(STORE, baselines=True)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"network": nn.DataParallel(make_network())}, TypeError, "must be a .*SessionNetwork, not a DataParallel"),
        ({"vocabulary": [1, 2]}, ValueError, "the network has 30 items, the vocabulary 2"),
        ({"support": [1, 2]}, ValueError, "support must be int64, one number for each of the 30 items"),
        ({"support": [-1] * 30}, ValueError, "support must be int64"),
        ({"support": [0.5] * 30}, ValueError, "support must be a one-dimensional integer array"),
        ({"layers": [8]}, ValueError, "layers: read from the network; leave it out"),
        ({"n_epoch": 3}, TypeError, "did you mean 'n_epochs'"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        GRU4Rec.from_network(**{"network": make_network(), "vocabulary": VOCABULARY, **arguments})


def test_an_assigned_network_is_a_clear_error(tmp_path: Path) -> None:
    for model in (GRU4Rec(), LightGCN()):
        model.network = make_network()  # type: ignore[assignment]
        for call in (lambda model=model: model.save(tmp_path / "x"), lambda model=model: model.recommend([[5]], 1)):
            with pytest.raises(
                RuntimeError, match=r"was assigned, so the ids of its items are unknown: .*from_network"
            ):
                call()


def test_a_network_trained_by_the_fused_step_of_a_foreign_loop(native_library: None) -> None:
    trainer = make_trainer(store=STORE, n_epochs=2)
    trainer.run()
    model = GRU4Rec.from_network(trainer.network, VOCABULARY)
    assert model.evaluate(markov_store(seed=1)).metrics["recall@20"] > 0.8
