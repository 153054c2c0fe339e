"""The estimator GRU4Rec: fitting in every mode, evaluating, saving, loading, resuming, bad input."""

import inspect
import json
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch
from markov import markov_store
from safetensors.torch import load_file
from training_memory import in_new_process, peak_of_a_training

from gru4rec_fast import NGCF, GRU4Rec, LightGCN, _backend
from gru4rec_fast.data import SessionStore, Vocabulary
from gru4rec_fast.models import gru4rec
from gru4rec_fast.training import Checkpoint, CheckpointError, TrainingDiverged, load_checkpoint, save_checkpoint
from gru4rec_fast.training.folder_lock import lock_folder
from gru4rec_fast.training.progress import SilentProgress

SMALL = {"layers": [16], "batch_size": 8, "n_sample": 32, "n_epochs": 1, "learning_rate": 0.1, "seed": 0}

STORE = markov_store()  # other seeds give held-out sessions of the same kind


def small_model(**parameters: Any) -> GRU4Rec:
    """Return an unfitted model with the parameters SMALL, which train quickly, and with `parameters`."""
    return GRU4Rec(**{**SMALL, **parameters})


def as_table(store: SessionStore) -> pd.DataFrame:
    """Return the events of a store as a table with the default column names."""
    sessions = np.repeat(store.session_ids, np.diff(store.offsets))
    ids = store.vocabulary.ids[store.items]
    return pd.DataFrame({"SessionId": sessions, "ItemId": np.asarray(ids), "Time": np.arange(store.n_events)})


@pytest.fixture(scope="module")
def fitted() -> GRU4Rec:
    """Return a model fitted to STORE. The tests must not change it."""
    return small_model(n_epochs=8, logq=1.0).fit(STORE, progress=False)


def test_a_trained_model_beats_popularity(fitted: GRU4Rec):
    report = fitted.evaluate(markov_store(seed=1), cutoffs=(1, 5), baselines=True)
    assert report.metrics["recall@1"] > 0.6  # the best possible value is 0.8: the share of the most likely next item
    assert report.metrics["recall@5"] > 2 * report.baselines["popularity"]["recall@5"]
    losses = [record["loss"] for record in fitted.history]
    assert len(losses) == 8 and losses[-1] < 0.75 * losses[0]


@pytest.mark.parametrize("loss", ["cross-entropy", "bpr-max", "top1", "top1-max", "bpr"])
def test_every_loss_learns(loss: str):
    model = small_model(loss=loss, elu_param=1.0, n_epochs=6).fit(STORE, progress=False)
    report = model.evaluate(markov_store(seed=1), cutoffs=(5,), baselines=True)
    assert report.metrics["recall@5"] > 1.5 * report.baselines["popularity"]["recall@5"]


@pytest.mark.parametrize(
    "parameters",
    [
        {"constrained_embedding": False, "embedding": 5},
        {"constrained_embedding": False, "embedding": "layersize"},
        {"constrained_embedding": False, "embedding": 0},
        {"layers": [20, 12]},
        {"layers": [20, 12], "constrained_embedding": False, "embedding": 0, "dropout_p_hidden": 0.1},
        {"gru_form": "reset_before"},
        {"bptt": 5},
        {"accumulate": 2},
        {"dtype": "float64"},
        {"n_sample": 0},
        {"mask_accidental_hits": True, "label_smoothing": 0.1},
        {"dropout_p_embed": 0.2, "momentum": 0.1, "shuffle": True, "lr_scheduler": "cosine"},
        {"impl": "reference"},
    ],
    ids=str,
)
def test_every_mode_learns_and_can_be_saved_and_loaded(tmp_path: Path, parameters: dict[str, Any]):
    model = small_model(n_epochs=4, **parameters).fit(STORE, progress=False)
    report = model.evaluate(markov_store(seed=1), cutoffs=(5,), baselines=True)
    assert report.metrics["recall@5"] > 1.5 * report.baselines["popularity"]["recall@5"]
    loaded = GRU4Rec.load(model.save(tmp_path / "model.safetensors"), impl=model.impl)
    assert loaded.get_params() == model.get_params()
    assert loaded.evaluate(markov_store(seed=1), cutoffs=(5,)).metrics == report.metrics


def test_the_first_layer_of_one_hot_input_has_the_form_reset_before():
    model = small_model(layers=[6, 4], constrained_embedding=False).fit(STORE, progress=False)
    assert model.network is not None
    assert [layer.form for layer in model.network.gru.layers] == ["reset_before", "reset_after"]


def test_embedding_layersize_is_as_wide_as_the_first_layer():
    model = small_model(layers=[9, 4], constrained_embedding=False, embedding="layersize").fit(STORE, progress=False)
    assert model.network is not None and model.network.embedding.weight.shape == (STORE.n_items, 9)


@pytest.mark.parametrize("id_type", ["integer", "string"])
def test_a_loaded_model_needs_no_training_data(tmp_path: Path, id_type: str):
    ids = np.arange(30) * 10 + 5 if id_type == "integer" else [f"item {i} é\t" for i in range(30)]
    model = small_model().fit(markov_store(vocabulary=Vocabulary(ids)), progress=False)
    loaded = GRU4Rec.load(model.save(tmp_path / "model.safetensors"))
    assert loaded.vocabulary == model.vocabulary and loaded.history == model.history
    sessions = [[ids[3], ids[4]], [ids[7]]]
    expected, recommended = (m.recommend(sessions, k=5, exclude_seen=True) for m in (model, loaded))
    assert expected.items.tolist() == recommended.items.tolist() and np.array_equal(expected.scores, recommended.scores)
    recommender = loaded.recommender(capacity=2)
    for item in sessions[0]:
        recommender.observe("a", item)
    assert recommender.recommend(["a"], 5, exclude_seen=True).items.tolist() == expected.items[:1].tolist()
    reloaded = GRU4Rec.load(loaded.save(tmp_path / "again.safetensors"))
    assert reloaded.get_params() == model.get_params()


def test_tables_files_and_stores_give_the_same_model(tmp_path: Path):
    table = as_table(STORE)
    table.to_csv(tmp_path / "log.tsv", sep="\t", index=False)
    from_table = small_model().fit(table, progress=False)
    SessionStore.from_events(table).save(tmp_path / "store")
    renamed = table.rename(columns={"SessionId": "s", "ItemId": "i", "Time": "t"})
    others = [
        small_model().fit(tmp_path / "log.tsv", progress=False),
        small_model().fit(str(tmp_path / "store"), progress=False),
        small_model().fit(renamed, progress=False, session_key="s", item_key="i", time_key="t"),
    ]
    for other in others:
        assert other.history[0]["loss"] == from_table.history[0]["loss"]
        assert other.vocabulary == from_table.vocabulary


def clone(model: Any) -> Any:
    """Copy a model as sklearn.base.clone does, with its check that the constructor stores the same objects."""
    parameters = {name: deepcopy(value) for name, value in model.get_params(deep=False).items()}
    copied = type(model)(**parameters)
    for name, value in copied.get_params(deep=False).items():
        assert value is parameters[name], name
    return copied


@pytest.mark.parametrize(
    "model",
    [
        small_model(lr_scheduler="step", lr_scheduler_options={"step_size": 2}, embedding="layersize", patience=3),
        NGCF(layer_sizes=[32, 16], learning_rate=1, adjacency="mean"),
        LightGCN(n_layers=2, monitor="loss"),
    ],
    ids=lambda model: type(model).__name__,
)
def test_a_clone_has_the_same_parameters(model: Any):
    assert clone(model).get_params() == model.get_params() and clone(model).network is None
    assert clone(model).set_params(n_epochs=77).get_params() != model.get_params()
    assert clone(model) != model and len({model, clone(model)}) == 2
    assert repr(clone(model)) == repr(model)
    assert inspect.signature(type(model)).parameters.keys() == model.get_params().keys()


@pytest.mark.parametrize("model", [GRU4Rec(), GRU4Rec(layers=[5, 3]), NGCF(), LightGCN()], ids=repr)
def test_a_clone_of_scikit_learn_has_the_same_parameters(model: Any):
    base = pytest.importorskip("sklearn.base", reason="scikit-learn is not installed")
    assert type(base.clone(model)) is type(model)
    assert base.clone(model).get_params() == model.get_params()


def test_parameters_are_attributes_and_keyword_arguments():
    model = GRU4Rec(layers=[20, 10], n_sample=5.0)
    assert (model.layers, model.n_sample, model.loss) == ((20, 10), 5, "cross-entropy")
    with pytest.raises(TypeError, match="'layer'"):
        GRU4Rec(layer=5)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="takes 1 positional argument"):
        GRU4Rec([5])  # type: ignore[misc]


@pytest.mark.parametrize("change", [{"n_epochs": 0}, {"batch_size": "x"}, {"logq": 1}, {"layer": 5}], ids=str)
def test_set_params_with_an_error_changes_no_parameter(change: dict[str, Any]):
    model = small_model(loss="bpr-max")
    parameters = model.get_params()
    with pytest.raises((TypeError, ValueError), match=next(iter(change))):
        model.set_params(layers=[5], **change)
    assert all(value is parameters[name] for name, value in model.get_params().items())


def test_a_grid_search_finds_the_better_learning_rate():
    """Clone, set_params, fit and score for every point of a grid, as scikit-learn does."""
    base, scores = small_model(n_epochs=2), {}
    for learning_rate in (1e-6, 0.1):
        model = clone(base).set_params(learning_rate=learning_rate)
        model.fit(STORE, progress=False)
        scores[learning_rate] = model.evaluate(markov_store(seed=1), cutoffs=(5,)).metrics["recall@5"]
    assert base.get_params() == small_model(n_epochs=2).get_params() and base.network is None
    assert scores[0.1] > scores[1e-6]


def test_parameters_set_after_a_fit_are_not_saved(tmp_path: Path):
    model = small_model().fit(STORE, progress=False)
    sessions = [[5, 15]]
    expected = model.recommend(sessions, 3)
    model.set_params(layers=[99])
    loaded = GRU4Rec.load(model.save(tmp_path / "model.safetensors"))
    assert loaded.layers == (16,)
    np.testing.assert_array_equal(loaded.recommend(sessions, 3).scores, expected.scores)


def test_an_unknown_column_argument_is_an_error(fitted: GRU4Rec):
    for call in (small_model().fit, fitted.partial_fit, fitted.evaluate):
        with pytest.raises(TypeError, match="unknown argument 'user_key'; the arguments that name columns"):
            call(STORE, user_key="UserId")  # type: ignore[operator]


def test_items_unseen_in_training_are_dropped_and_counted(fitted: GRU4Rec):
    log = pd.DataFrame({"SessionId": [1, 1, 1, 2, 2], "ItemId": [5, 99999, 15, 25, 88888], "Time": range(5)})
    report = fitted.evaluate(log)
    assert (report.n_targets, report.n_sessions) == (1, 1)
    assert sum(report.dropped.values()) >= 3


def test_the_seed_determines_the_model():
    models = [small_model(seed=seed, dropout_p_embed=0.2).fit(STORE, progress=False) for seed in (1, 1, 2)]
    loss, loss_of_same_seed, loss_of_other_seed = (model.history[0]["loss"] for model in models)
    assert loss == loss_of_same_seed != loss_of_other_seed


def test_without_a_seed_every_fit_draws_one_from_torchs_generator():
    torch.manual_seed(5)
    model = small_model(seed=None, dropout_p_embed=0.2)
    losses, seeds = [], []
    for _ in range(2):
        model.fit(STORE, progress=False)
        losses.append(model.history[0]["loss"])
        seeds.append(model.report()["parameters"]["seed"])
        assert model.seed is None and model.get_params()["seed"] is None
    assert losses[0] != losses[1] and seeds[0] != seeds[1]
    torch.manual_seed(5)
    assert small_model(seed=None, dropout_p_embed=0.2).fit(STORE, progress=False).history[0]["loss"] == losses[0]
    assert small_model(seed=seeds[1], dropout_p_embed=0.2).fit(STORE, progress=False).history[0]["loss"] == losses[1]


@pytest.mark.parametrize("seed_now", [None, "drawn"])
def test_a_resumed_training_takes_the_seed_that_was_drawn(tmp_path: Path, seed_now: str | None):
    arguments = {"dropout_p_hidden": 0.2, "shuffle": True}
    first = small_model(seed=None, n_epochs=1, **arguments).fit(STORE, out=tmp_path, progress=False)
    drawn = first.report()["parameters"]["seed"]
    assert GRU4Rec.load(tmp_path / "last.safetensors").report()["parameters"]["seed"] == drawn
    now = drawn if seed_now == "drawn" else None
    resumed = small_model(seed=now, n_epochs=3, **arguments).fit(STORE, out=tmp_path, resume=True, progress=False)
    uninterrupted = small_model(seed=drawn, n_epochs=3, **arguments).fit(STORE, progress=False)
    assert [record["loss"] for record in resumed.history] == [record["loss"] for record in uninterrupted.history]
    assert resumed.seed == now and resumed.report()["parameters"]["seed"] == drawn
    with pytest.raises(CheckpointError, match=rf"seed={drawn} in the checkpoint, 3 now"):
        small_model(seed=3, n_epochs=3, **arguments).fit(STORE, out=tmp_path, resume=True)


def test_a_model_without_a_seed_resumes_a_training_with_an_integer_seed(tmp_path: Path):
    small_model(seed=7, n_epochs=1, dropout_p_hidden=0.2).fit(STORE, out=tmp_path, progress=False)
    path = tmp_path / "last.safetensors"
    checkpoint = GRU4Rec._read_checkpoint(path)
    # As in a file of version 0.1, which had no buffers.
    tensors = {name: t for name, t in checkpoint.tensors.items() if name not in ("model.step", "model.dropout_seed")}
    save_checkpoint(path, replace(checkpoint, tensors=tensors))
    resumed = small_model(seed=None, n_epochs=2, dropout_p_hidden=0.2).fit(STORE, resume=path, progress=False)
    uninterrupted = small_model(seed=7, n_epochs=2, dropout_p_hidden=0.2).fit(STORE, progress=False)
    assert [record["loss"] for record in resumed.history] == [record["loss"] for record in uninterrupted.history]


def test_scoring_during_a_fit_does_not_switch_dropout_off(monkeypatch: pytest.MonkeyPatch):
    """Calls in another thread could come at any time, so the network of the training must stay in training mode."""

    class ScoringProgress(SilentProgress):
        def advance(self, events: int, loss: float | None) -> None:
            assert model.network is not None and model.network.training
            with monkeypatch.context() as patch:
                patch.setattr(torch.nn.Module, "train", lambda *_: pytest.fail("the mode of the network was changed"))
                scores = model.recommend([[5]], 3).scores
                model.evaluate(STORE)
                recommender = model.recommender(10)
                recommender.observe("session", 5)
                np.testing.assert_allclose(recommender.recommend(["session"], 3).scores, scores, rtol=1e-6)
                np.testing.assert_array_equal(model.recommend([[5]], 3).scores, scores)

    undisturbed = small_model(dropout_p_embed=0.3, dropout_p_hidden=0.3).fit(STORE, progress=False)
    monkeypatch.setattr("gru4rec_fast.models.estimator.make_progress", lambda *_: ScoringProgress())
    model = small_model(dropout_p_embed=0.3, dropout_p_hidden=0.3)
    model.fit(STORE)
    assert model.network is not None and undisturbed.network is not None
    for name, tensor in undisturbed.network.state_dict().items():
        assert torch.equal(tensor, model.network.state_dict()[name])


def test_batch_size_may_exceed_the_number_of_sessions():
    store = markov_store(n_sessions=5)
    model = small_model(batch_size=64).fit(store, progress=False)
    assert model.history[0]["events"] == store.n_targets
    # All sessions are processed in parallel: one mini-batch for each target of the longest session.
    assert model.history[0]["mini_batches"] == int(np.diff(store.offsets).max()) - 1


def test_n_sample_may_exceed_the_number_of_items():
    model = small_model(n_sample=500).fit(STORE, progress=False)
    assert model.history[0]["events"] == STORE.n_targets


def test_items_without_occurrences_in_the_log_are_allowed():
    store = markov_store(n_items=20, vocabulary=Vocabulary(np.arange(40)))
    assert (store.support == 0).sum() == 20
    model = small_model(logq=1.0, sample_alpha=0.0).fit(store, progress=False)
    assert np.isfinite(model.history[0]["loss"])


def test_a_log_with_only_one_event_per_session_is_an_error():
    log = pd.DataFrame({"SessionId": range(20), "ItemId": range(20), "Time": range(20)})
    with pytest.raises(ValueError, match="two events"):
        small_model().fit(log, progress=False)


def test_the_best_epoch_is_saved_and_reports_hold_the_metrics(tmp_path: Path):
    model = small_model(n_epochs=2, monitor="ndcg@5").fit(
        STORE, validation=markov_store(seed=1), out=tmp_path, progress=False
    )
    assert [list(record["validation"]) for record in model.history] == [["recall@5", "mrr@5", "ndcg@5"]] * 2
    best = GRU4Rec.load(tmp_path / "best.safetensors")
    best_record = max(model.history, key=lambda record: record["validation"]["ndcg@5"])
    assert best.history[-1] == best_record
    assert best.evaluate(markov_store(seed=1), cutoffs=(5,)).metrics["ndcg@5"] == best_record["validation"]["ndcg@5"]
    report = json.loads(json.dumps(model.report()))
    assert report["peak_memory_bytes"] == model.peak_memory_bytes
    assert report["metrics"] == model.history[-1]["validation"]
    assert report["epochs"][0].keys() >= {"loss", "seconds", "mini_batches", "events"}
    assert "native_cpu" in report["build"]
    evaluation = model.evaluate(markov_store(seed=2))
    assert model.report(evaluation)["metrics"] == evaluation.metrics


def test_a_resumed_training_gives_the_same_bits_and_checks_the_checkpoint(tmp_path: Path):
    arguments = {"momentum": 0.1, "dropout_p_hidden": 0.2, "shuffle": True}
    uninterrupted = small_model(n_epochs=3, **arguments).fit(STORE, progress=False)
    small_model(n_epochs=1, **arguments).fit(STORE, out=tmp_path, progress=False)
    resumed = small_model(n_epochs=3, **arguments).fit(STORE, out=tmp_path, resume=True, progress=False)
    assert uninterrupted.network is not None and resumed.network is not None
    for name, tensor in uninterrupted.network.state_dict().items():
        assert torch.equal(tensor, resumed.network.state_dict()[name])
    assert [record["loss"] for record in uninterrupted.history] == [record["loss"] for record in resumed.history]

    changed = arguments | {"learning_rate": 0.2, "momentum": 0.0}
    with pytest.raises(CheckpointError, match=r"learning_rate=0\.1 in the checkpoint, 0\.2 now, momentum=0\.1 in the"):
        small_model(**changed).fit(STORE, resume=tmp_path / "last.safetensors")
    with pytest.raises(CheckpointError, match="another catalogue of items"):
        small_model(**arguments).fit(markov_store(n_items=31), out=tmp_path, resume=True)
    reversed_store = SessionStore.from_arrays(
        STORE.items[::-1], STORE.offsets[-1] - STORE.offsets[::-1], vocabulary=STORE.vocabulary
    )
    assert (reversed_store.n_targets, reversed_store.support.tolist()) == (STORE.n_targets, STORE.support.tolist())
    for other in (markov_store(n_sessions=201), reversed_store):
        with pytest.raises(CheckpointError, match="trained on other data"):
            small_model(**arguments).fit(other, out=tmp_path, resume=True)
    with pytest.raises(ValueError, match="resume=True needs out="):
        small_model().fit(STORE, resume=True)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*last\.safetensors"):
        small_model().fit(STORE, out=tmp_path / "elsewhere", resume=True)


def test_peak_memory_counts_the_arrays_of_the_training():
    recurrent_weights, peak = in_new_process(peak_of_a_training)
    assert 2 * recurrent_weights < peak < 2**30  # the weights and their accumulator in Adagrad


@pytest.mark.parametrize(
    "cause",
    [
        "checkpoint missing",
        "other parameters",
        "other data",
        "bad schedule",
        "folder in use",
        "folder not writable",
        "log missing",
    ],
)
def test_a_fit_that_fails_before_training_does_not_change_the_model(tmp_path: Path, cause: str):
    model = small_model().fit(STORE, out=tmp_path / "run", progress=False)
    expected = model.recommend([[5, 15]], k=3)
    attributes = ("network", "vocabulary", "support", "history")
    original_values = [getattr(model, name) for name in attributes]
    # These arguments give the error "other data". The other causes replace some of them.
    data: Any = markov_store(n_items=40)
    arguments: dict[str, Any] = {"out": tmp_path / "run", "resume": True}
    error: type[Exception] = CheckpointError
    with ExitStack() as stack:
        if cause == "checkpoint missing":
            arguments, error = {"resume": tmp_path / "none.safetensors"}, FileNotFoundError
        elif cause == "other parameters":
            data = STORE
            model.set_params(momentum=0.5)
        elif cause == "bad schedule":
            arguments, error = {}, ValueError
            model.set_params(lr_scheduler="step", lr_scheduler_options={"color": "red"})
        elif cause == "folder in use":  # another thread has locked the folder
            thread = stack.enter_context(ThreadPoolExecutor(1))
            lock = lock_folder(tmp_path / "run")
            thread.submit(lock.__enter__).result()
            stack.callback(lambda: thread.submit(lock.__exit__, None, None, None).result())
            error = OSError
        elif cause == "folder not writable":  # when the files of a killed training are removed
            data, error = STORE, PermissionError
            stack.enter_context(pytest.MonkeyPatch.context()).setattr(
                "gru4rec_fast.training.run_folder.prepare_run_folder", Mock(side_effect=error)
            )
        elif cause == "log missing":
            data, error = tmp_path / "none.tsv", FileNotFoundError
        with pytest.raises(error):
            model.fit(data, progress=False, **arguments)
    for name, value in zip(attributes, original_values, strict=True):
        assert getattr(model, name) is value, name
    recommended = model.recommend([[5, 15]], k=3)
    assert recommended.items.tolist() == expected.items.tolist()
    assert np.array_equal(recommended.scores, expected.scores)
    assert GRU4Rec.load(model.save(tmp_path / "m.safetensors")).vocabulary == STORE.vocabulary


def test_fit_writes_the_model_to_the_run_folder_when_the_training_has_ended(tmp_path: Path):
    """A resumed training writes it, too, if a process was killed after its last checkpoint."""
    model = small_model(n_epochs=2).fit(STORE, out=tmp_path, progress=False)
    path = tmp_path / "model.safetensors"
    assert GRU4Rec.load(path).history == model.history
    weights = load_file(path)
    path.unlink()
    small_model(n_epochs=2).fit(STORE, out=tmp_path, resume=True, progress=False)
    resumed = load_file(path)
    assert resumed.keys() == weights.keys() and all(torch.equal(resumed[name], weights[name]) for name in weights)
    model = small_model(n_epochs=3).fit(STORE, validation=markov_store(seed=1), out=tmp_path, progress=False)
    assert path.read_bytes() == (tmp_path / "best.safetensors").read_bytes()
    assert len(GRU4Rec.load(path).history) == model.best_epoch
    written = path.read_bytes()
    small_model(n_epochs=3).fit(STORE, out=tmp_path, resume=True, progress=False)  # no epoch is left to train
    assert path.read_bytes() == written
    with pytest.raises(FileNotFoundError, match=r"best\.safetensors, model\.safetensors"):
        GRU4Rec.load(tmp_path)


def test_best_epoch_is_set_if_the_training_selects_one(tmp_path: Path):
    model = small_model(n_epochs=2).fit(STORE, validation=markov_store(seed=1), out=tmp_path, progress=False)
    assert model.best_epoch in (1, 2)
    assert small_model(n_epochs=3).fit(STORE, out=tmp_path, resume=True, progress=False).best_epoch is None
    assert small_model(monitor="loss").fit(STORE, progress=False).best_epoch == 1


def test_device_and_impl_are_not_in_the_file_and_impl_can_be_chosen_per_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = small_model(impl="reference").fit(STORE, progress=False)
    path = model.save(tmp_path / "model.safetensors")
    assert GRU4Rec.load(path).impl == "auto"
    loaded = GRU4Rec.load(path, impl="reference")
    assert loaded.network is not None and loaded.network.impl == "reference"
    with pytest.raises(ValueError, match="impl='fast'"):
        GRU4Rec.load(path, impl="fast")

    impls_of_calls: list[set[str]] = []  # for each call, `impl` of the function and of the modules

    def record_impls(name: str) -> None:
        original = getattr(gru4rec, name)

        def recording(network: Any, *arguments: Any, impl: str, **options: Any) -> Any:
            impls_of_calls.append({impl} | {module.impl for module in network.modules() if hasattr(module, "impl")})
            return original(network, *arguments, impl=impl, **options)

        monkeypatch.setattr(gru4rec, name, recording)

    record_impls("evaluate_sessions")
    record_impls("recommend")
    model = GRU4Rec.load(path)
    for arguments in ({}, {"impl": "reference"}, {}):
        model.evaluate(STORE, **arguments)
        model.recommend([[5]], 2, **arguments)
    assert impls_of_calls == [{"auto"}] * 2 + [{"reference"}] * 2 + [{"auto"}] * 2


def test_a_parameter_without_effect_gives_a_warning(recwarn: pytest.WarningsRecorder):
    small_model().fit(STORE, progress=False)
    small_model(constrained_embedding=False).fit(STORE, progress=False)
    small_model(constrained_embedding=False, embedding="layersize", dropout_p_embed=0.1).fit(STORE, progress=False)
    assert not recwarn.list
    with pytest.warns(UserWarning, match="dropout_p_embed=0.1 has no effect: one-hot input has no embedding"):
        small_model(constrained_embedding=False, dropout_p_embed=0.1).fit(STORE, progress=False)
    with pytest.warns(UserWarning, match="embedding='layersize' has no effect: constrained_embedding=True") as caught:
        small_model(embedding="layersize").fit(STORE, progress=False)
    assert len(caught) == 1


def test_the_error_of_a_diverging_fit_names_epoch_and_step(tmp_path: Path):
    with pytest.raises(TrainingDiverged, match=r"in epoch 1, mini-batch \d+ \(step \d+ of the training\)"):
        small_model(learning_rate=1e38).fit(STORE, out=tmp_path, progress=False)


@pytest.mark.parametrize("kind", ["another model", "truncated", "text", "missing", "without tensors"])
def test_loading_a_file_that_is_no_model_is_an_error(tmp_path: Path, fitted: GRU4Rec, kind: str):
    path = tmp_path / "model.safetensors"
    error, message = CheckpointError, "truncated or not a checkpoint"
    if kind == "another model":
        save_checkpoint(path, Checkpoint("gru4rec_fast.LightGCN/1"))
        message = r"a checkpoint of gru4rec_fast\.LightGCN, not of gru4rec_fast\.GRU4Rec"
    elif kind == "truncated":
        fitted.save(path)
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "text":
        path.write_text("not a model")
    elif kind == "missing":
        error, message = FileNotFoundError, "no checkpoint at"
    else:
        save_checkpoint(path, Checkpoint("gru4rec_fast.GRU4Rec/2", {"parameters": {}}))
        message = "lacks a part of a GRU4Rec checkpoint"
    with pytest.raises(error, match=message):
        GRU4Rec.load(path)


@pytest.mark.parametrize("support", [[-1] * STORE.n_items, [1], [1.0] * STORE.n_items])
def test_loading_a_model_with_a_damaged_support_is_an_error(tmp_path: Path, fitted: GRU4Rec, support: list[float]):
    path = fitted.save(tmp_path / "model.safetensors")
    checkpoint = load_checkpoint(path, GRU4Rec.file_format)
    checkpoint.tensors["support"] = torch.tensor(support)
    save_checkpoint(path, checkpoint)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged: support must be int64, one"):
        GRU4Rec.load(path)


def test_a_header_that_does_not_fit_the_tensors_is_an_error_before_a_network_is_built(
    tmp_path: Path, fitted: GRU4Rec, monkeypatch: pytest.MonkeyPatch
):
    """A network of 40,000 units would allocate 19 GB."""
    path = fitted.save(tmp_path / "model.safetensors")
    checkpoint = load_checkpoint(path, GRU4Rec.file_format)
    checkpoint.config["parameters"]["layers"] = [40_000]
    save_checkpoint(path, checkpoint)
    monkeypatch.setattr(GRU4Rec, "_build_network", lambda model: pytest.fail(f"built {model.layers}"))
    with pytest.raises(CheckpointError, match=r"its header has layers=\(40000,\), its tensors layers=\(16,\)"):
        GRU4Rec.load(path)


def test_loading_weights_of_another_dtype_is_an_error(tmp_path: Path, fitted: GRU4Rec):
    path = fitted.save(tmp_path / "model.safetensors")
    checkpoint = load_checkpoint(path, GRU4Rec.file_format)
    checkpoint.tensors["model.output.weight"] = checkpoint.tensors["model.output.weight"].int()
    save_checkpoint(path, checkpoint)
    with pytest.raises(CheckpointError, match=r"output\.weight is torch\.int32 .* require torch\.float32"):
        GRU4Rec.load(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("position.epoch", "1"),
        ("position.step", -1),
        ("position.step", 2**32),
        ("position", []),
        ("history", 5),
        ("history", [5]),
        ("loader", []),
        ("early_stopping", 5),
        ("optimizer.groups", 5),
        ("optimizer.groups", [{"lr": "0.1"}]),
        ("optimizer.groups", [{}]),
        ("schedule", 5),
        ("schedule", {}),
        ("history", [{"epoch": 1, "loss": 1.0, "9econds": 1.0}]),
    ],
)
def test_resuming_from_damaged_progress_is_an_error_that_names_the_file(tmp_path: Path, name: str, value: Any):
    model = small_model(lr_scheduler="step")
    model.fit(STORE, out=tmp_path, progress=False)
    path = tmp_path / "last.safetensors"
    checkpoint = load_checkpoint(path, GRU4Rec.file_format)
    *outer, key = name.split(".")
    values = checkpoint.progress[outer[0]] if outer else checkpoint.progress
    assert key in values
    values[key] = value
    save_checkpoint(path, checkpoint)
    with pytest.raises(CheckpointError, match=r"last\.safetensors is damaged"):
        small_model(lr_scheduler="step", n_epochs=2).fit(STORE, resume=path, progress=False)


def test_methods_of_an_unfitted_model_are_errors():
    for call in (
        lambda m: m.save("x"),
        lambda m: m.evaluate(STORE),
        lambda m: m.recommend([[5]]),
        lambda m: m.recommender(),
    ):
        with pytest.raises(RuntimeError, match=r"no weights yet: call fit, or GRU4Rec\.load"):
            call(small_model())


def test_a_prepared_test_log_with_another_catalogue_is_an_error(fitted: GRU4Rec):
    with pytest.raises(ValueError, match="another vocabulary than the training data"):
        fitted.evaluate(markov_store(n_items=31))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_missing_device_is_an_error(tmp_path: Path, fitted: GRU4Rec):
    with pytest.raises(RuntimeError, match="device='cuda': PyTorch sees no CUDA device here"):
        small_model(device="cuda").fit(STORE)
    with pytest.raises(RuntimeError, match="device='cuda:0': PyTorch sees no CUDA device here"):
        GRU4Rec.load(fitted.save(tmp_path / "model.safetensors"), device="cuda:0")


def test_an_unsupported_device_type_is_an_error_before_the_log_is_read():
    with pytest.raises(ValueError, match="device='meta': choose 'cpu', 'cuda', 'cuda:1'"):
        small_model(device="meta").fit("no such log.tsv")


def test_patience_needs_validation():
    with pytest.raises(ValueError, match="patience=2 monitors recall@20: give validation=, or set monitor='loss'"):
        small_model(patience=2).fit(STORE)


def test_checkpoint_every_needs_a_run_folder():
    with pytest.raises(ValueError, match="checkpoint_every=5: give out=, the folder of the checkpoints"):
        small_model().fit(STORE, checkpoint_every=5)


def test_the_examples_of_the_training_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    page = (Path(__file__).parents[1] / "docs" / "training.md").read_text()
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("train", "valid", "test", "today")):
        as_table(markov_store(n_sessions=60, seed=seed)).to_csv(f"{name}.tsv", sep="\t", index=False)
    Path("parameters.toml").write_text("layers = [8]")
    namespace: dict[str, Any] = {}
    examples = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(examples) == 9
    has_kernels = _backend.resolve("auto", "gru", "cpu") == "native"
    for example in examples:
        if has_kernels or "FusedTrainingStep" not in example:
            exec(example, namespace)
    assert len(namespace["history"]) == 3
    assert {path.name for path in Path("run").iterdir()} >= {"last.safetensors", "curves.csv", "curves.png"}
