"""gru4rec_fast.integrations.recbole: RecBole finds the models by name, and they compute what RecBole's models compute.

The data is ml-100k, which RecBole contains.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("recbole", reason="RecBole is not installed; .ci/integrations makes an environment for it")

from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.data.interaction import Interaction
from recbole.quick_start import run_recbole
from recbole.utils import get_model, get_trainer, init_seed

from gru4rec_fast.data import SessionParallelLoader, SessionStore
from gru4rec_fast.integrations.recbole import (
    FastLightGCN,
    FastNGCF,
    SessionGRU4Rec,
    SessionGRU4RecTrainer,
    graph_from,
    store_from,
)

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
PAGE = Path(__file__).parents[2] / "docs" / "integrations" / "recbole.md"
BASES = {"FastLightGCN": "LightGCN", "FastNGCF": "NGCF", "SessionGRU4Rec": "GRU4Rec"}
SMALL = {"embedding_size": 8, "hidden_size": 8, "hidden_size_list": [8, 8], "show_progress": False, "state": "ERROR"}
HISTORY = 20  # MAX_ITEM_LIST_LENGTH; most users of ml-100k have more events


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run in an empty folder, because RecBole writes to the current one, and hide pytest's options from RecBole."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["pytest"])
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # RecBole's checkpoints are pickles
    return tmp_path


def make_config(model: str, **settings: Any) -> Config:
    sequential = {"train_neg_sample_args": None} if model.endswith("GRU4Rec") else {}
    return Config(model=model, dataset="ml-100k", config_dict={**SMALL, **sequential, **settings})


@pytest.fixture(scope="module")
def prepared() -> dict[str, tuple[Any, Any]]:
    """Return the dataset and the training data loader of graph models and of sequential models."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["pytest"])
        result = {}
        for kind, model in (("graph", "LightGCN"), ("sequential", "GRU4Rec")):
            config = make_config(model, MAX_ITEM_LIST_LENGTH=HISTORY)
            init_seed(0, True)
            dataset = create_dataset(config)
            # data_preparation changes the dataset of sequential models.
            result[kind] = create_dataset(config), data_preparation(config, dataset)[0]
    return result


def make_model(name: str, dataset: Any, **settings: Any) -> Any:
    config = make_config(name, MAX_ITEM_LIST_LENGTH=HISTORY, **settings)
    init_seed(0, True)
    return get_model(name)(config, dataset)


def loss_and_gradients(model: Any, batch: Interaction) -> list[torch.Tensor]:
    model.zero_grad()
    loss = model.calculate_loss(batch)
    loss.backward()
    return [loss.detach(), *(parameter.grad for parameter in model.parameters())]


def train_epochs(model: Any, config: Config, train_data: Any, n: int) -> list[float]:
    """Return the losses of n epochs of RecBole's trainer. Every call has the same order of rows and negatives."""
    init_seed(1, True)
    train_data.generator.manual_seed(1)
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    return [trainer._train_epoch(train_data, epoch) for epoch in range(n)]


@pytest.mark.parametrize("name", BASES)
def test_recbole_finds_the_model_and_the_defaults_of_its_own_model(name: str) -> None:
    assert get_model(name) is {cls.__name__: cls for cls in (FastLightGCN, FastNGCF, SessionGRU4Rec)}[name]
    settings = {"train_neg_sample_args": None} if name == "SessionGRU4Rec" else {}
    ours, theirs = (
        Config(model=m, dataset="ml-100k", config_dict=settings).final_config_dict for m in (name, BASES[name])
    )
    assert ours == theirs | {"model": name}
    trainer = get_trainer(ours["MODEL_TYPE"], name)
    assert (trainer is SessionGRU4RecTrainer) == (name == "SessionGRU4Rec")


@pytest.mark.parametrize("name", BASES)
def test_run_by_name(name: str) -> None:
    sequential = {"train_neg_sample_args": None} if name == "SessionGRU4Rec" else {}
    settings = {**SMALL, **sequential, "epochs": 2, "learning_rate": 0.01, "MAX_ITEM_LIST_LENGTH": HISTORY}
    result = run_recbole(model=name, dataset="ml-100k", config_dict=settings)
    # Random recommendations have a hit rate of 0.006 for one target, and of 0.06 for the ten targets of a user.
    assert result["test_result"]["hit@10"] > (0.02 if sequential else 0.2)


@pytest.mark.parametrize("require_pow", [False, True])
def test_lightgcn_has_the_initial_weights_loss_and_gradients_of_recbole(prepared: Any, require_pow: bool) -> None:
    _, train_data = prepared["graph"]
    settings = {"n_layers": 3, "reg_weight": 0.1, "require_pow": require_pow}
    ours, theirs = (make_model(name, train_data.dataset, **settings) for name in ("FastLightGCN", "LightGCN"))
    compare(ours, theirs, next(iter(train_data)))


def test_ngcf_has_the_initial_weights_loss_and_gradients_of_recbole(prepared: Any) -> None:
    _, train_data = prepared["graph"]
    settings = {"message_dropout": 0.0, "reg_weight": 0.1, "hidden_size_list": [12, 5]}
    ours, theirs = (make_model(name, train_data.dataset, **settings) for name in ("FastNGCF", "NGCF"))
    compare(ours, theirs, next(iter(train_data)))


def compare(ours: Any, theirs: Any, batch: Interaction) -> None:
    """Check that two models with the same seed have equal weights, losses, gradients and scores."""
    assert all(torch.equal(value, ours.state_dict()[name]) for name, value in theirs.state_dict().items())
    for rows in (batch, batch[:3]):  # they need the last layer of nearly all nodes, or of at most nine
        for a, b in zip(loss_and_gradients(ours, rows), loss_and_gradients(theirs, rows), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6 * float(b.abs().max()))
    users = Interaction({"user_id": torch.tensor([1, 7, 942])})
    with torch.no_grad():
        ours.eval(), theirs.eval()
        torch.testing.assert_close(ours.full_sort_predict(users), theirs.full_sort_predict(users), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(ours.predict(batch), theirs.predict(batch), rtol=1e-4, atol=1e-6)


def test_training_of_lightgcn_has_the_losses_of_recbole(prepared: Any) -> None:
    _, train_data = prepared["graph"]
    losses = []
    for name in ("FastLightGCN", "LightGCN"):
        model = make_model(name, train_data.dataset)
        losses.append(train_epochs(model, make_config(name), train_data, 2))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_state_dicts_of_recbole_load(prepared: Any) -> None:
    _, train_data = prepared["graph"]
    for ours, theirs in (("FastLightGCN", "LightGCN"), ("FastNGCF", "NGCF")):
        state = make_model(theirs, train_data.dataset).state_dict()
        make_model(ours, train_data.dataset).load_state_dict({name: 2 * value for name, value in state.items()})


@pytest.mark.parametrize("key", ["node_dropout", "message_dropout"])
def test_ngcf_draws_new_dropout_masks_from_the_seed(prepared: Any, key: str) -> None:
    _, train_data = prepared["graph"]
    batch = next(iter(train_data))
    settings = {"node_dropout": 0.0, "message_dropout": 0.0, key: 0.3}

    def losses() -> list[float]:
        model = make_model("FastNGCF", train_data.dataset, **settings)
        return [model.calculate_loss(batch).item() for _ in range(2)]

    first, second = losses()
    assert first != second
    assert losses() == [first, second]


def short_users(dataset: Any, max_targets: int) -> np.ndarray:
    """Return the users that have between one and `max_targets` rows; a row is a target."""
    return np.flatnonzero((n := np.bincount(dataset.inter_feat["user_id"].numpy())) * (n <= max_targets))


@pytest.mark.parametrize("num_layers", [1, 2])
def test_loss_of_sessions_is_the_loss_of_recbole_on_all_prefixes(prepared: Any, num_layers: int) -> None:
    """Compare the sessions of users whose histories RecBole does not cut, in blocks that end within sessions."""
    _, train_data = prepared["sequential"]
    users = short_users(train_data.dataset, HISTORY)
    assert len(users) > 20
    rows = train_data.dataset.inter_feat
    rows = rows[np.flatnonzero(np.isin(rows["user_id"].numpy(), users))]
    settings = {"dropout_prob": 0.0, "num_layers": num_layers}
    ours, theirs = (make_model(name, train_data.dataset, **settings) for name in ("SessionGRU4Rec", "GRU4Rec"))
    assert all(torch.equal(value, ours.state_dict()[name]) for name, value in theirs.state_dict().items())

    store = store_from(train_data.dataset)
    chosen = np.isin(store.session_ids, train_data.dataset.field2id_token["user_id"][users])
    sessions = [store.items[a:b] for a, b in zip(store.offsets[:-1][chosen], store.offsets[1:][chosen], strict=True)]
    part = SessionStore.from_arrays(
        np.concatenate(sessions), np.cumsum([0, *map(len, sessions)]), vocabulary=store.vocabulary
    )
    loader = SessionParallelLoader(part, batch_size=10, steps=7, shuffle=True)
    state, total = ours.initial_state(loader.n_lanes), 0.0
    with torch.no_grad():
        for block in loader:
            loss, state = ours.session_loss(block._asdict(), state)
            total += float(loss) * block.targets.numel()
        assert part.n_targets == len(rows)
        assert total / part.n_targets == pytest.approx(float(theirs.calculate_loss(rows)), rel=1e-5)


def test_trainer_uses_blocks_of_the_size_of_recboles_batches(prepared: Any) -> None:
    _, train_data = prepared["sequential"]
    config = make_config("SessionGRU4Rec", MAX_ITEM_LIST_LENGTH=HISTORY, train_batch_size=1000)
    model = make_model("SessionGRU4Rec", train_data.dataset)
    trainer = get_trainer(config["MODEL_TYPE"], "SessionGRU4Rec")(config, model)
    blocks, session_loss = [], model.session_loss
    model.session_loss = lambda block, state: blocks.append(block) or session_loss(block, state)
    first = trainer._train_epoch(train_data, 0)
    n_blocks = len(blocks)
    second = trainer._train_epoch(train_data, 1)
    assert second / (len(blocks) - n_blocks) < first / n_blocks
    assert blocks[0]["targets"].shape == (HISTORY, 1000 // HISTORY)
    # Each event is a target once, except the first of each user; the order of the users changes.
    n_rows = len(train_data.dataset.inter_feat)
    assert sum(int((block["targets"] >= 0).sum()) for block in blocks[:n_blocks]) == n_rows
    assert not torch.equal(blocks[0]["inputs"], blocks[n_blocks]["inputs"])


def test_several_processes_are_refused(prepared: Any) -> None:
    _, train_data = prepared["sequential"]
    config = make_config("SessionGRU4Rec", MAX_ITEM_LIST_LENGTH=HISTORY)
    trainer = SessionGRU4RecTrainer(config, make_model("SessionGRU4Rec", train_data.dataset))
    trainer.config = {"loss_type": "CE", "single_spec": False}
    with pytest.raises(ValueError, match="nproc=1"):
        trainer._train_epoch(train_data, 0)


def test_bpr_trains_as_recbole_does() -> None:
    losses = []
    for name in ("SessionGRU4Rec", "GRU4Rec"):
        sampled = {"distribution": "uniform", "sample_num": 1}
        settings = {"loss_type": "BPR", "train_neg_sample_args": sampled, "MAX_ITEM_LIST_LENGTH": 5}
        config = make_config(name, user_inter_num_interval="[0,40]", **settings)
        train_data, _, _ = data_preparation(config, create_dataset(config))
        init_seed(0, True)
        model = get_model(name)(config, train_data.dataset)
        losses.append(train_epochs(model, config, train_data, 1))
    assert losses[0] == losses[1]


def events_by_user(dataset: Any) -> Iterator[tuple[str, list[str]]]:
    """Yield each user's token and the tokens of the user's items by time, from what create_dataset returns."""
    frame = dataset.inter_feat.sort_values(["user_id", "timestamp"], kind="stable")
    for user, rows in frame.groupby("user_id"):
        yield dataset.id2token("user_id", user), list(dataset.id2token("item_id", rows["item_id"].to_numpy()))


def sessions_of(store: SessionStore) -> dict[str, list[str]]:
    ids = store.vocabulary.ids
    bounds = zip(store.offsets[:-1], store.offsets[1:], strict=True)
    return {str(user): ids[store.items[a:b]].tolist() for user, (a, b) in zip(store.session_ids, bounds, strict=True)}


def test_store_of_a_dataset_has_a_session_for_each_user(prepared: Any) -> None:
    dataset, _ = prepared["sequential"]
    store = store_from(dataset)
    assert (store.n_sessions, store.n_events, store.n_items) == (943, 100_000, 1682)
    assert sessions_of(store) == dict(events_by_user(dataset))
    first_event = dataset.inter_feat.groupby("user_id")["timestamp"].min().sort_values()
    assert store.start_times.tolist() == first_event.tolist()


def test_store_of_training_data_has_all_but_the_held_out_events(prepared: Any) -> None:
    """RecBole holds out the last two events of each user, and cuts the histories to the last events."""
    dataset, train_data = prepared["sequential"]
    everything, trained = dict(events_by_user(dataset)), sessions_of(store_from(train_data.dataset))
    assert {user: len(items) for user, items in trained.items()} == {
        u: len(items) - 2 for u, items in everything.items()
    }
    assert max(map(len, trained.values())) > 10 * HISTORY
    columns = (dataset.id2token(name, dataset.inter_feat[name].to_numpy()) for name in ("user_id", "item_id"))
    time_of = dict(zip(zip(*columns, strict=True), dataset.inter_feat["timestamp"], strict=True))
    for user, items in trained.items():
        assert set(items) < set(everything[user])
        times = [np.float32(time_of[user, item]) for item in items]  # RecBole sorts by the times in float32
        assert times == sorted(times)  # RecBole's order of events at the same time may differ from that of the file


def test_store_of_held_out_data_begins_with_the_histories() -> None:
    config = make_config("GRU4Rec", MAX_ITEM_LIST_LENGTH=HISTORY)
    validation = data_preparation(config, create_dataset(config))[1].dataset
    store = store_from(validation)
    rows = validation.inter_feat
    assert store.n_sessions == len(rows) == 943
    assert np.diff(store.offsets).sum() == int(rows["item_length"].sum()) + len(rows)
    sessions = sessions_of(store)
    for row in range(0, 943, 100):
        length = int(rows["item_length"][row])
        expected = [*rows["item_id_list"][row, :length].tolist(), int(rows["item_id"][row])]
        user = validation.id2token("user_id", int(rows["user_id"][row]))
        assert sessions[user] == validation.id2token("item_id", np.array(expected)).tolist()


def test_graph_of_training_data_has_its_interactions(prepared: Any) -> None:
    for kind in ("graph", "sequential"):
        _, train_data = prepared[kind]
        graph = graph_from(train_data.dataset)
        matrix = train_data.dataset.inter_matrix()
        users, items = graph.interactions()
        assert set(zip(users + 1, items + 1, strict=True)) == set(zip(matrix.row, matrix.col, strict=True))
        assert (graph.n_users, graph.n_items) == (943, 1682)
        assert graph.users.ids.tolist() == train_data.dataset.field2id_token["user_id"][1:].tolist()


def test_dataset_without_times_is_refused(prepared: Any) -> None:
    dataset, _ = prepared["graph"]
    without_times = dataset.copy(dataset.inter_feat.drop(columns="timestamp"))
    with pytest.raises(ValueError, match="no field 'timestamp'"):
        store_from(without_times)


def test_page_runs_and_its_checkpoint_loads(folder: Path) -> None:
    """Run the code of the page, then load the checkpoint in a process that has not imported the integration."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert blocks and all(len(block.splitlines()) < 40 for block in blocks)
    namespace: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), namespace)
    assert namespace["result"]["test_result"]["hit@10"] > 0.2
    (checkpoint,) = (folder / "saved").glob("FastLightGCN*.pth")
    code = (
        f"import sys; sys.path[:] = {sys.path!r}\n"
        "from recbole.quick_start import load_data_and_model\n"
        f"print(type(load_data_and_model({str(checkpoint)!r})[1]).__name__)"
    )
    completed = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False
    )
    assert completed.stdout.split()[-1:] == ["FastLightGCN"], completed.stderr
