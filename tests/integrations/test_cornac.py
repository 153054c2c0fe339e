"""gru4rec_fast.integrations.cornac: Cornac's experiments train and evaluate the models, and ids are mapped rightly."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from markov import markov_store

pytest.importorskip("cornac", reason="Cornac is not installed; .ci/integrations makes an environment for it")

import cornac
from cornac.data import Dataset, SequentialDataset
from cornac.eval_methods import NextItemEvaluation, RatioSplit
from cornac.exception import ScoreException
from cornac.metrics import MRR, Recall
from cornac.models import BPR
from cornac.models.seq_utils.losses import get_loss_function

import gru4rec_fast
from gru4rec_fast.data import InteractionGraph, TripleSampler
from gru4rec_fast.evaluation import evaluate_sessions
from gru4rec_fast.integrations.cornac import NGCF, GRU4Rec, LightGCN, graph_from, store_from
from gru4rec_fast.nn import SampledLoss
from gru4rec_fast.training import GraphEpochRunner, Trainer, TrainerOptions

pytestmark = pytest.mark.filterwarnings("ignore:Model is already fitted", "ignore:.*not in chronological order")
PAGE = Path(__file__).parents[2] / "docs" / "integrations" / "cornac.md"
SMALL = {"layers": [24], "batch_size": 16, "n_sample": 32, "learning_rate": 0.1, "seed": 1}
SMALL_GRAPH = {"emb_size": 8, "batch_size": 128, "learning_rate": 0.02, "num_epochs": 30, "seed": 1}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in an empty folder, because Cornac's experiments write a log to the current one."""
    monkeypatch.chdir(tmp_path)


def session_rows(seed: int, n_sessions: int, first_session: int) -> list[tuple[str, str, int]]:
    """Return rows (session, item, time) of random sessions. Rows of different sessions alternate, times increase."""
    store = markov_store(n_sessions, seed=seed)
    sessions = [store.items[a:b] for a, b in zip(store.offsets[:-1], store.offsets[1:], strict=True)]
    rows = [
        (f"s{first_session + number}", f"i{item}", 100 * (number // 5) + 10 * position + number % 5)
        for number, session in enumerate(sessions)
        for position, item in enumerate(session)
    ]
    return sorted(rows, key=lambda row: row[2])


@pytest.fixture(scope="module")
def sessions() -> NextItemEvaluation:
    train, test, validation = session_rows(0, 300, 0), session_rows(1, 60, 300), session_rows(2, 40, 360)
    return NextItemEvaluation.from_splits(train, test, validation, fmt="SIT", mode="next")


@pytest.fixture(scope="module")
def fitted(sessions: NextItemEvaluation) -> GRU4Rec:
    return GRU4Rec(n_epochs=5, **SMALL).fit(sessions.train_set)


def make_ratings(n_users: int = 60, n_items: int = 40) -> list[tuple[int, str, float]]:
    """Return 10 items for each user, nine of them from the user's half of the catalogue."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(n_users):
        half = np.arange(n_items) % 2 == user % 2
        items = [*rng.choice(np.flatnonzero(half), 9, replace=False), rng.choice(np.flatnonzero(~half))]
        rows += [(100 + user, f"i{item}", 1.0) for item in rng.permutation(items)]
    return rows


@pytest.fixture(scope="module")
def ratings() -> RatioSplit:
    return RatioSplit(make_ratings(), test_size=0.2, val_size=0.1, seed=3, exclude_unknowns=True)


@pytest.mark.parametrize("name", ["GRU4Rec", "LightGCN", "NGCF"])
def test_arguments_and_defaults_are_those_of_cornac(name: str) -> None:
    ours, theirs = {"GRU4Rec": GRU4Rec, "LightGCN": LightGCN, "NGCF": NGCF}[name], getattr(cornac.models, name)
    assert issubclass(ours, theirs)
    assert inspect.signature(ours) == inspect.signature(theirs)
    assert ours(seed=5).clone({"name": "copy"}).seed == 5


def test_experiment_measures_what_evaluate_sessions_measures(sessions: NextItemEvaluation) -> None:
    model = GRU4Rec(n_epochs=5, **SMALL)
    experiment = cornac.Experiment(sessions, [model], [Recall(k=1), Recall(k=5), MRR()], verbose=False)
    experiment.run()
    measured = experiment.result[0].metric_avg_results
    network, test = model.estimator.network, store_from(sessions.test_set)
    expected = evaluate_sessions(network, test, cutoffs=(1, 5, test.n_items)).metrics
    # Of 30 items, the most frequent successor follows 80 % of the time.
    assert measured["Recall@1"] > 0.6
    for name, ours in (("Recall@1", "recall@1"), ("Recall@5", "recall@5"), ("MRR", f"mrr@{test.n_items}")):
        assert measured[name] == pytest.approx(expected[ours], abs=1e-9)


def test_seed_determines_the_model(sessions: NextItemEvaluation, fitted: GRU4Rec) -> None:
    again, other = (GRU4Rec(n_epochs=5, **SMALL | {"seed": seed}).fit(sessions.train_set) for seed in (1, 2))
    assert np.array_equal(again.score(0, [3]), fitted.score(0, [3]))
    assert not np.array_equal(other.score(0, [3]), fitted.score(0, [3]))


def test_training_is_that_of_the_estimator(sessions: NextItemEvaluation, fitted: GRU4Rec) -> None:
    alone = gru4rec_fast.GRU4Rec(n_epochs=5, shuffle=True, **SMALL).fit(store_from(sessions.train_set), progress=False)
    assert torch.equal(alone.network.output_weight, fitted.estimator.network.output_weight)


@pytest.mark.parametrize("length", [1, 2, 7])
def test_scores_are_those_that_the_estimator_recommends(fitted: GRU4Rec, length: int) -> None:
    history = list(range(3, 3 + length))
    scores = fitted.score(0, history)
    assert scores.shape == (fitted.num_items,)
    (items,), (best,), _ = fitted.estimator.recommend([[fitted.item_ids[i] for i in history]], k=fitted.num_items)
    np.testing.assert_allclose(scores[[fitted.iid_map[item] for item in items]], best, rtol=1e-5, atol=1e-5)
    ranked, _ = fitted.rank(0, history_items=history, k=3)
    assert [fitted.item_ids[i] for i in ranked[:3]] == items[:3].tolist()


def test_unknown_items_and_empty_histories(sessions: NextItemEvaluation) -> None:
    rows = session_rows(0, 50, 0)
    test = [("t", "i3", 9000), ("t", "unknown", 9001), ("t", "i4", 9002), ("t", "unknown", 9003)]
    split = NextItemEvaluation.from_splits(rows, test, fmt="SIT", mode="next", exclude_unknowns=False)
    model = GRU4Rec(n_epochs=1, **SMALL)
    result, _ = split.evaluate(model, [Recall(k=29)], user_based=False)
    # Cornac gives an unknown item the lowest score of the 30 known items, so its rank is 30 or 31.
    assert result.metric_avg_results["Recall@29"] == pytest.approx(1 / 3)
    known, unknown = split.global_iid_map["i3"], split.global_iid_map["unknown"]
    assert model.num_items == unknown == 30
    assert np.array_equal(model.score(0, [unknown, known, unknown]), model.score(0, [known]))
    for history in ([], [unknown]):
        assert np.array_equal(model.score(0, history), np.ones(31))


def test_best_epoch_is_restored(sessions: NextItemEvaluation) -> None:
    """Train so long and fast that the last epoch is not the best one."""
    settings = SMALL | {"learning_rate": 3.0, "n_epochs": 6}
    best = GRU4Rec(model_selection="best", val_eval_every=1, val_k=1, **settings)
    best.fit(sessions.train_set, sessions.val_set)
    scores = []
    for n_epochs in range(1, 7):
        model = GRU4Rec(**settings | {"n_epochs": n_epochs}).fit(sessions.train_set, sessions.val_set)
        scores.append((validation_recall(model, sessions), model))
    top, expected = max(scores, key=lambda pair: pair[0])
    assert top > scores[-1][0]
    assert validation_recall(best, sessions) == top
    assert np.array_equal(best.score(0, [1, 2]), expected.score(0, [1, 2]))


def validation_recall(model: GRU4Rec, sessions: NextItemEvaluation) -> float:
    return cornac.models.seq_utils.val_score(model, sessions.train_set, sessions.val_set, "recall", 1)


def test_saved_gru4rec_scores_the_same(fitted: GRU4Rec, sessions: NextItemEvaluation, tmp_path: Path) -> None:
    loaded = GRU4Rec.load(fitted.save(str(tmp_path)))
    assert np.array_equal(loaded.score(0, [3, 4]), fitted.score(0, [3, 4]))
    loaded.fit(sessions.train_set)
    assert not loaded.trainable
    assert np.array_equal(loaded.score(0, [3, 4]), fitted.score(0, [3, 4]))


def test_assigned_estimator_is_matched_by_item_ids(sessions: NextItemEvaluation, fitted: GRU4Rec) -> None:
    backwards = NextItemEvaluation.from_splits(
        session_rows(0, 300, 0)[::-1], session_rows(1, 5, 300), fmt="SIT", verbose=False
    ).train_set
    model = GRU4Rec(trainable=False)
    model.estimator = fitted.estimator
    model.fit(backwards)
    ids = ["i7", "i8"]
    ours, theirs = (m.score(0, [m.iid_map[item] for item in ids]) for m in (model, fitted))
    assert list(backwards.iid_map) != list(sessions.train_set.iid_map)
    for item, index in backwards.iid_map.items():
        assert ours[index] == theirs[fitted.iid_map[item]]


def test_store_has_the_rows_of_each_session_in_order() -> None:
    rows = [("b", 7, 50), ("a", 9, 20), ("b", 8, 40), ("c", 7, 30), ("a", 7, 60), ("b", 9, 90)]
    with pytest.warns(UserWarning, match="chronological"):  # Cornac takes the order of the rows, not of the times
        store = store_from(SequentialDataset.from_sit(rows))
    assert store.session_ids.tolist() == ["a", "c", "b"]
    assert store.start_times.tolist() == [20, 30, 50]
    assert store.vocabulary.ids.tolist() == [7, 9, 8]
    assert store.offsets.tolist() == [0, 2, 3, 6]
    assert store.vocabulary.ids[store.items].tolist() == [9, 7, 7, 7, 8, 9]


def test_store_of_training_data_does_not_know_the_items_of_test_data() -> None:
    split = NextItemEvaluation.from_splits(
        [("a", "x", 1), ("a", "y", 2)], [("b", "z", 3), ("b", "x", 4)], fmt="SIT", exclude_unknowns=False
    )
    assert store_from(split.train_set).vocabulary.ids.tolist() == ["x", "y"]
    assert store_from(split.test_set).vocabulary.ids.tolist() == ["x", "y", "z"]


def test_graph_has_the_interactions_and_ids(ratings: RatioSplit) -> None:
    for dataset in (ratings.train_set, ratings.test_set):
        graph = graph_from(dataset)
        users, items = graph.interactions()
        pairs = set(zip(graph.users.ids[users].tolist(), graph.items.ids[items].tolist(), strict=True))
        user_of, item_of = ({index: raw for raw, index in ids.items()} for ids in (dataset.uid_map, dataset.iid_map))
        assert pairs == {(user_of[u], item_of[i]) for u, i, _ in zip(*dataset.uir_tuple, strict=True)}
        assert len(pairs) == dataset.num_ratings
    assert graph_from(ratings.train_set).users.ids.tolist() == ratings.train_set.user_ids
    assert graph_from(ratings.train_set).items.ids.tolist() == ratings.train_set.item_ids


@pytest.mark.parametrize(("cls", "settings"), [(LightGCN, {}), (NGCF, {"layer_sizes": [8], "dropout_rates": [0.1]})])
def test_graph_models_in_an_experiment(ratings: RatioSplit, cls: Any, settings: dict[str, Any], tmp_path: Path) -> None:
    model = cls(**SMALL_GRAPH, **settings)
    experiment = cornac.Experiment(ratings, [model], [Recall(k=10)], verbose=False)
    experiment.run()
    # A random order of the 31 items that a user does not have in training would give 10 / 31.
    assert experiment.result[0].metric_avg_results["Recall@10"] > 0.5
    user = ratings.train_set.uid_map[117]
    np.testing.assert_allclose(model.score(user), model.V @ model.U[user], rtol=1e-6)
    assert model.score(user, 5) == pytest.approx(model.score(user)[5], rel=1e-6)
    assert model.get_item_vectors() is model.V
    with pytest.raises(ScoreException):
        model.score(model.num_users)
    loaded = cls.load(model.save(str(tmp_path)))
    assert np.array_equal(loaded.score(user), model.score(user))
    assert loaded.recommend(117, k=4) == model.recommend(117, k=4)
    again = cls(**SMALL_GRAPH, **settings).fit(ratings.train_set)
    assert np.array_equal(again.V, model.V)


def test_metrics_of_lightgcn_are_those_of_evaluate_graph() -> None:
    # Without a validation set, whose items Cornac leaves out, too.
    model = LightGCN(**SMALL_GRAPH)
    split = RatioSplit(make_ratings(), test_size=0.2, seed=3, exclude_unknowns=True)
    result, _ = split.evaluate(model, [Recall(k=5)], user_based=True)
    graph, test = graph_from(split.train_set), graph_from(split.test_set)
    estimator = gru4rec_fast.LightGCN(n_epochs=1, embedding_dim=8, n_layers=0).fit(graph, progress=False)
    with torch.no_grad():
        estimator.network.embedding.copy_(torch.from_numpy(np.concatenate([model.U, model.V])))
    assert result.metric_avg_results["Recall@5"] == pytest.approx(
        estimator.evaluate(test, cutoffs=5).metrics["recall@5"]
    )


def graph_of(data: Dataset) -> InteractionGraph:
    """Return the graph by Cornac's indices."""
    return InteractionGraph.from_arrays(*data.uir_tuple[:2], n_users=data.num_users, n_items=data.num_items)


def test_training_is_that_of_the_graph_runner(ratings: RatioSplit) -> None:
    """A mini-batch samples interactions, as Cornac's does, and the penalty has the weight lambda_reg."""
    model = LightGCN(**SMALL_GRAPH | {"num_epochs": 2}, lambda_reg=0.3)
    graph = graph_of(ratings.train_set)
    network = model.build_network(graph)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02, fused=True)
    sampler = TripleSampler(graph, 128, sample_by="interactions", seed=1)
    Trainer(GraphEpochRunner(network, sampler, optimizer=optimizer, reg_weight=0.3), TrainerOptions(2)).run()
    model.fit(ratings.train_set)
    with torch.no_grad():
        expected = network.eval()().numpy()
    assert np.array_equal(np.concatenate([model.U, model.V]), expected)


def test_each_layer_of_ngcf_has_its_dropout_rate(ratings: RatioSplit) -> None:
    network = NGCF(layer_sizes=[8, 6], dropout_rates=[0.1, 0.4]).build_network(graph_of(ratings.train_set))
    output = network.train().layers[1](torch.rand(network.graph.n_nodes, 8), step=0)
    assert (output == 0).float().mean().item() == pytest.approx(0.4, abs=0.1)


def test_early_stopping_is_that_of_cornac(ratings: RatioSplit) -> None:
    values = iter([0.1, 0.3, 0.2, 0.25, 0.9])

    class Watched(LightGCN):
        def monitor_value(self, train_set: Any, val_set: Any) -> float:
            assert val_set is ratings.val_set
            assert super().monitor_value(train_set, val_set) > 0
            return next(values)

    model = Watched(**SMALL_GRAPH, early_stopping={"min_delta": 0.0, "patience": 2})
    model.fit(ratings.train_set, ratings.val_set)
    assert (model.best_epoch, model.stopped_epoch) == (2, 4)
    shorter = LightGCN(**SMALL_GRAPH | {"num_epochs": 4}).fit(ratings.train_set)
    assert np.array_equal(model.V, shorter.V)


def test_untrained_graph_model_has_the_assigned_embeddings(ratings: RatioSplit) -> None:
    data = ratings.train_set
    model = LightGCN(trainable=False)
    model.U, model.V = np.ones((data.num_users, 2)), np.arange(2.0 * data.num_items).reshape(-1, 2)
    model.fit(data)
    assert model.score(0, 3) == 13
    model.V = model.V[1:]
    with pytest.raises(ValueError, match=f"V must have {data.num_items} rows .* not {data.num_items - 1}"):
        model.fit(data)


def test_lightgcn_has_the_initial_weights_loss_and_gradients_of_cornac(ratings: RatioSplit) -> None:
    pytest.importorskip("dgl", reason="dgl is not installed, which Cornac's LightGCN needs")
    from cornac.models.lightgcn.lightgcn import Model, construct_graph

    data = ratings.train_set
    graph = graph_of(data)
    ours = LightGCN(emb_size=8, num_layers=3, seed=7).build_network(graph)
    torch.manual_seed(7)
    dgl_graph = construct_graph(data, data.num_users, data.num_items)
    theirs = Model(dgl_graph, 8, 3, 0.5)
    users, items = ours.embedding.detach().split([data.num_users, data.num_items])
    assert torch.equal(users, theirs.feature_dict["user"])
    assert torch.equal(items, theirs.feature_dict["item"])

    triples = TripleSampler(graph, 50, seed=0).draw(0)
    bpr, penalty = ours.loss(*triples)
    loss = bpr + 0.5 * penalty
    expected = theirs.loss_fn(*theirs(dgl_graph, *triples))[0]
    loss.backward(), expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    grad = torch.cat([theirs.feature_dict[name].grad for name in ("user", "item")])
    torch.testing.assert_close(ours.embedding.grad, grad, rtol=1e-4, atol=1e-6 * float(grad.abs().max()))


@pytest.mark.parametrize(
    ("cls", "arguments", "error", "message"),
    [
        (GRU4Rec, {"loss": "bce"}, ValueError, "loss='bce' is not supported"),
        (GRU4Rec, {"loss": "bpr-max", "logq": 1.0}, ValueError, "logq=1 belongs to loss='cross-entropy'"),
        (GRU4Rec, {"n_epochs": 0}, ValueError, "n_epochs=0"),
        (GRU4Rec, {"device": "tpu"}, ValueError, "device='tpu'"),
        (GRU4Rec, {"trainable": False}, ValueError, "trainable=False: this GRU4Rec has no weights"),
        (LightGCN, {"num_epochs": 0}, ValueError, "num_epochs=0: must be at least 1"),
        (LightGCN, {"emb_size": 0}, ValueError, "emb_size=0"),
        (LightGCN, {"num_layers": -1}, ValueError, "num_layers=-1"),
        (LightGCN, {"lambda_reg": -1.0}, ValueError, "lambda_reg=-1.0"),
        (LightGCN, {"trainable": False}, ValueError, "trainable=False: U must have 60 rows"),
        (NGCF, {"dropout_rates": [0.1]}, ValueError, "dropout_rates=.* one rate for each of the 3 layers"),
        (NGCF, {"dropout_rates": [0.1, 0.1, 1.5]}, ValueError, "dropout_rates"),
    ],
)
def test_bad_arguments(
    sessions: NextItemEvaluation, ratings: RatioSplit, cls: Any, arguments: Any, error: Any, message: str
) -> None:
    data = sessions.train_set if cls is GRU4Rec else ratings.train_set
    with pytest.raises(error, match=message) as caught:
        cls(**arguments).fit(data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("loss", "logq"), [("cross-entropy", 0.0), ("cross-entropy", 0.7), ("bpr-max", 0.0), ("top1", 0.0), ("bpr", 0.0)]
)
def test_losses_are_those_of_cornac(loss: str, logq: float) -> None:
    n_lanes, n_sample, n_items, width = 6, 9, 40, 5
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((n_lanes, width), (n_items, width), (n_items,))
    )
    targets, negatives = torch.randint(n_items, (n_lanes + n_sample,), generator=generator).split([n_lanes, n_sample])
    support = torch.arange(1, n_items + 1)
    criterion = SampledLoss(loss, batch_size=n_lanes, logq=logq, sample_alpha=0.4, support=support, dtype=torch.float64)
    ours = criterion(hidden[None], weight, bias, targets[None], negatives[None])
    items = torch.cat([targets, negatives])
    theirs = get_loss_function(loss)(
        hidden @ weight[items].T + bias[items],
        P0=support.double(),
        out_iids=items,
        logq=logq,
        sample_alpha=0.4,
        batch_size=n_lanes,
        n_sample=n_sample,
    )
    if loss == "bpr":  # Cornac takes the mean over the other columns; ours has the target's own column, -log sigmoid(0)
        theirs = theirs * (n_lanes + n_sample - 1) + np.log(2)
    elif loss == "top1":  # Cornac adds up the losses of the lanes n_lanes times, by broadcasting
        theirs = theirs / n_lanes
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-10)


def test_names_of_losses(sessions: NextItemEvaluation) -> None:
    """All names of the cross-entropy train the same model; "ce" has no logQ correction."""
    scores = {
        loss: GRU4Rec(loss=loss, n_epochs=1, logq=logq, **SMALL).fit(sessions.train_set).score(0, [3])
        for loss, logq in [("cross-entropy", 0.5), ("xe_softmax", 0.5), ("softmax", 0.5), ("ce", 0.5), ("bpr", 0.0)]
    }
    assert np.array_equal(scores["cross-entropy"], scores["xe_softmax"])
    assert np.array_equal(scores["cross-entropy"], scores["softmax"])
    uncorrected = GRU4Rec(n_epochs=1, **SMALL).fit(sessions.train_set).score(0, [3])
    assert np.array_equal(scores["ce"], uncorrected)
    assert not np.array_equal(scores["cross-entropy"], uncorrected)
    assert not np.array_equal(scores["bpr"], uncorrected)


def test_other_data_is_refused(fitted: GRU4Rec, ratings: RatioSplit) -> None:
    with pytest.raises(TypeError, match=r"dataset must be a cornac\.data\.SequentialDataset, not a Dataset"):
        store_from(ratings.train_set)
    with pytest.raises(TypeError, match=r"dataset must be a cornac\.data\.Dataset, not a list"):
        graph_from([])
    with pytest.raises(TypeError, match="session_ids: ids must be all integers or all strings"):
        store_from(SequentialDataset.from_sit([(1.5, 1, 1), (1.5, 2, 2)]))
    with pytest.raises(TypeError, match="ids must be all integers or all strings"):
        graph_from(Dataset.from_uir([(1, "a", 1.0), ("b", "c", 1.0)]))
    model = GRU4Rec(trainable=False)
    model.estimator = fitted.estimator
    with pytest.raises(ValueError, match=r"estimator was trained without 2 of the 3 items .* 'p'"):
        model.fit(SequentialDataset.from_sit([("s", "i1", 1), ("s", "p", 2), ("s", "q", 3)]))


def test_models_run_beside_those_of_cornac(ratings: RatioSplit) -> None:
    models = [LightGCN(**SMALL_GRAPH), BPR(k=8, max_iter=5, seed=1)]
    experiment = cornac.Experiment(ratings, models, [Recall(k=10)], verbose=False)
    experiment.run()
    assert [result.model_name for result in experiment.result] == ["LightGCN", "BPR"]


@pytest.mark.parametrize("verbose", [False, True])
def test_verbose_shows_the_progress(
    sessions: NextItemEvaluation, ratings: RatioSplit, capsys: pytest.CaptureFixture[str], verbose: bool
) -> None:
    GRU4Rec(n_epochs=1, verbose=verbose, **SMALL).fit(sessions.train_set)
    LightGCN(verbose=verbose, **SMALL_GRAPH | {"num_epochs": 1}).fit(ratings.train_set)
    assert capsys.readouterr().err.count("epoch 1/1") == 2 * verbose


def test_page_runs() -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(block.splitlines()) < 40
    namespace: dict[str, Any] = {}
    exec(compile(block, str(PAGE), "exec"), namespace)
    assert namespace["model"].estimator.evaluate(namespace["store"], cutoffs=(5,)).metrics["recall@5"] > 0.9
    assert namespace["graph"].n_edges == namespace["ratio"].train_set.num_ratings
    assert len(namespace["loaded"].recommend(0, k=3)) == 3
