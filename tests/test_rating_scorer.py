"""RatingScorer: predictions against plain torch, unrated items, appended ids, files, resuming, bad input."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gru4rec_fast.evaluation import rating_metrics
from gru4rec_fast.models import RatingScorer

Columns = dict[str, Any]
SMALL: dict[str, Any] = {"user_dim": 8, "group_dim": 6, "item_dim": 4, "layer_sizes": (10,), "seed": 3, "n_epochs": 3}


def make_ratings(seed: int, n: int = 12_000) -> tuple[Columns, Columns, Columns, Columns]:
    """Return ratings for training, validation and test, and ratings of items that the others do not have."""
    rng = np.random.default_rng(seed)
    n_users, n_groups, n_items = 200, 12, 400
    group_of = rng.integers(n_groups, size=n_items)
    bias, quality = rng.normal(0, 0.5, n_users), rng.normal(0, 0.4, n_items)
    taste = rng.normal(0, 0.7, (n_users, n_groups))

    def rows(size: int, first: int, end: int) -> Columns:
        user, item = rng.integers(n_users, size=size), rng.integers(first, end, size=size)
        rating = 3 + bias[user] + taste[user, group_of[item]] + quality[item] + rng.normal(0, 0.4, size)
        return {"UserId": user, "GroupId": group_of[item], "ItemId": item, "Rating": rating}

    return rows(n, 0, 350), rows(2000, 0, 350), rows(2000, 0, 350), rows(2000, 350, n_items)


def mean_by(train: Columns, test: Columns, key: str) -> np.ndarray:
    """Return the mean training rating of each test row's id; the mean of all for an id without ratings."""
    n, mean = max(train[key].max(), test[key].max()) + 1, train["Rating"].mean()
    sums, counts = np.bincount(train[key], train["Rating"], n), np.bincount(train[key], minlength=n)
    return np.where(counts > 0, sums / np.maximum(counts, 1), mean)[test[key]]


def ids_only(columns: Columns) -> Columns:
    return {name: values for name, values in columns.items() if name != "Rating"}


@pytest.fixture(scope="module")
def fitted() -> RatingScorer:
    return RatingScorer(**SMALL).fit(make_ratings(0)[0], progress=False)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_beats_the_means_also_for_items_without_ratings(tmp_path: Path, seed: int) -> None:
    train, valid, test, unrated = make_ratings(seed)
    model = RatingScorer(seed=seed, patience=3, learning_rate=3e-3, n_epochs=100)
    model.fit(train, validation=valid, out=tmp_path, progress=False)
    rmse = [record["validation"]["rmse"] for record in model.history]
    assert model.best_epoch == 1 + int(np.argmin(rmse)) and len(rmse) < model.n_epochs  # smaller is better; stops early
    best = RatingScorer.load(tmp_path / "model.safetensors")
    for data in (test, unrated):
        report = best.evaluate(data)
        means = [np.full(len(data["Rating"]), train["Rating"].mean())]
        means += [mean_by(train, data, "UserId"), mean_by(train, data, "ItemId")]
        assert report.metrics["rmse"] < 0.9 * min(rating_metrics(mean, data["Rating"])["rmse"] for mean in means)
    assert [*report.groups] == ["item"] and report.groups["item"]["n"] == 2000 and "2,000 ratings" in report.summary()


def test_predictions_equal_plain_torch(fitted: RatingScorer) -> None:
    train = make_ratings(0)[0]
    weights = fitted.network.state_dict()
    rows = []
    for kind, key in (("user", "UserId"), ("group", "GroupId"), ("item", "ItemId")):
        position = {id_: row for row, id_ in enumerate(fitted.vocabularies[kind].ids.tolist())}
        rows.append(weights[f"tables.{kind}.weight"][[position[id_] for id_ in train[key][:50].tolist()]])
    hidden = torch.relu(torch.cat(rows, 1) @ weights["layers.0.weight"].T + weights["layers.0.bias"])
    z = (hidden @ weights["layers.1.weight"].T + weights["layers.1.bias"]).squeeze(1).double().numpy()
    expected = train["Rating"].mean() + train["Rating"].std() * z
    predicted = fitted.predict({name: values[:50] for name, values in ids_only(train).items()})
    assert predicted.dtype == np.float32
    np.testing.assert_allclose(predicted, expected, rtol=1e-5, atol=1e-5)


def test_appended_ids_keep_the_bits_of_other_predictions(tmp_path: Path) -> None:
    train = ids_only(make_ratings(0)[0])
    model = RatingScorer(**SMALL).fit(make_ratings(0)[0], progress=False)
    before = model.predict(train)
    new = {"UserId": [900, 0], "GroupId": [0, 90], "ItemId": [0, 990]}
    unknown = model.predict(new, unknown="ignore")
    model.extend_users([900, 0]).extend_groups([90]).extend_items([990])
    assert np.array_equal(model.predict(train), before)
    np.testing.assert_allclose(model.predict(new), unknown, rtol=1e-6)
    loaded = RatingScorer.load(model.save(tmp_path / "model.safetensors"))
    assert np.array_equal(loaded.predict(train), before) and loaded.vocabularies == model.vocabularies
    more = {name: [*values] for name, values in new.items()} | {"UserId": [901, 900], "Rating": [1.0, 5.0]}
    model.partial_fit(more, n_epochs=20, progress=False)
    low, high = model.predict({name: more[name] for name in new})
    assert low < high and 901 in model.vocabularies["user"].ids


def test_a_resumed_training_has_the_same_bits(tmp_path: Path) -> None:
    train, valid, *_ = make_ratings(1, 3000)
    whole = RatingScorer(**SMALL).fit(train, validation=valid, progress=False)
    RatingScorer(**SMALL | {"n_epochs": 1}).fit(train, validation=valid, out=tmp_path, progress=False)
    resumed = RatingScorer(**SMALL).fit(train, validation=valid, out=tmp_path, resume=True, progress=False)
    for name, weight in whole.network.state_dict().items():
        assert torch.equal(weight, resumed.network.state_dict()[name]), name
    assert [r["validation"] for r in whole.history] == [r["validation"] for r in resumed.history]


def test_a_model_without_groups(tmp_path: Path) -> None:
    train = make_ratings(0, 2000)[0]
    del train["GroupId"]
    model = RatingScorer(**SMALL | {"group_dim": 0}).fit(train, progress=False)
    loaded = RatingScorer.load(model.save(tmp_path / "model.safetensors"))
    assert np.array_equal(loaded.predict(ids_only(train)), model.predict(ids_only(train)))
    with pytest.raises(TypeError, match="group_key has no effect with group_dim=0"):
        model.predict(ids_only(train), group_key="GroupId")
    with pytest.raises(ValueError, match="has no groups"):
        model.extend_groups([1])


def test_the_examples_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    pandas = pytest.importorskip("pandas")
    monkeypatch.chdir(tmp_path)
    names = {"UserId": "UserId", "GroupId": "Channel", "ItemId": "PostId", "Rating": "Rating"}
    for name, columns in zip(("ratings", "valid", "test"), make_ratings(0, 2000), strict=False):
        frame = pandas.DataFrame({new: columns[old] for old, new in names.items()})
        frame["Channel"] = frame["Channel"].map(lambda group: "news" if group == 0 else f"channel {group}")
        frame.to_csv(f"{name}.tsv", sep="\t", index=False)
    page = (Path(__file__).parents[1] / "docs" / "ratings.md").read_text()
    examples, namespace = re.findall(r"```python\n(.*?)```", page, re.DOTALL), {}
    assert len(examples) == 2
    for example in examples:
        exec(compile(example, "docs/ratings.md", "exec"), namespace)
    assert "rmse" in capsys.readouterr().out and 400 in namespace["model"].vocabularies["user"].ids


def test_bad_input_is_an_error(fitted: RatingScorer) -> None:
    good = {"UserId": [1, 2], "GroupId": [1, 2], "ItemId": [1, 2], "Rating": [3.0, 4.0]}
    with pytest.raises(ValueError, match=r"column 'Rating', row 2 .*a rating must be a finite number"):
        RatingScorer(**SMALL).fit(good | {"Rating": [3.0, float("nan")]})
    with pytest.raises(ValueError, match=r"no column 'GroupId'.*group_key=\.\.\. \(without groups: group_dim=0\)"):
        RatingScorer(**SMALL).fit({name: good[name] for name in ("UserId", "ItemId", "Rating")})
    with pytest.raises(ValueError, match=r"column 'ItemId', row 2 .*the item 9999 is not in the training data"):
        fitted.predict(ids_only(good) | {"ItemId": [1, 9999]})
    with pytest.raises(ValueError, match="unknown='skip': choose 'error' or 'ignore'"):
        fitted.predict(ids_only(good), unknown="skip")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="ratings are too large"):
        RatingScorer(**SMALL).fit(good | {"Rating": [1e300, -1e300]})
    with pytest.raises(RuntimeError, match="no weights yet"):
        RatingScorer().predict(ids_only(good))
