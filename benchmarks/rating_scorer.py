"""Compare RatingScorer with mean ratings on generated ratings, three seeds.

    python benchmarks/rating_scorer.py

A rating is 3 + user's bias + user's taste for the item's group + item's quality + noise. Of 500 items, 100 have no
rating in training, and of 400 users, 50. The scorer predicts these by the other ids of the row. The table has the root
mean squared error (mean and standard deviation over the seeds) for items and users with ratings, and for those
without. "best possible" knows all terms but the noise and, where an id has no rating, the terms of this id.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from gru4rec_fast.evaluation import rating_metrics
from gru4rec_fast.models import RatingScorer

N_USERS, N_RATED_USERS, N_GROUPS, N_ITEMS, N_RATED_ITEMS = 400, 350, 12, 500, 400
BIAS, TASTE, QUALITY, NOISE = 0.5, 0.7, 0.4, 0.4  # standard deviations

Columns = dict[str, np.ndarray]


class Ratings:
    """Generates tables of ratings of the same users, groups and items."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.group = self.rng.integers(N_GROUPS, size=N_ITEMS)
        self.bias = self.rng.normal(0, BIAS, N_USERS)
        self.taste = self.rng.normal(0, TASTE, (N_USERS, N_GROUPS))
        self.quality = self.rng.normal(0, QUALITY, N_ITEMS)

    def draw(self, n: int, *, new_users: bool = False, unrated: bool = False) -> Columns:
        """Draw n ratings: of users with or without training ratings, of items with or without."""
        users = (N_RATED_USERS, N_USERS) if new_users else (0, N_RATED_USERS)
        items = (N_RATED_ITEMS, N_ITEMS) if unrated else (0, N_RATED_ITEMS)
        user, item = self.rng.integers(*users, size=n), self.rng.integers(*items, size=n)
        group = self.group[item]
        rating = 3 + self.bias[user] + self.taste[user, group] + self.quality[item] + self.rng.normal(0, NOISE, n)
        return {"UserId": user, "GroupId": group, "ItemId": item, "Rating": rating}


def mean_by(train: Columns, key: str, ids: np.ndarray) -> np.ndarray:
    """Return the mean training rating of each id, and that of all ratings for an id without ratings."""
    n = max(N_USERS, N_ITEMS)
    sums, counts = np.bincount(train[key], train["Rating"], n), np.bincount(train[key], minlength=n)
    return np.where(counts > 0, sums / np.maximum(counts, 1), train["Rating"].mean())[ids]


def main() -> None:
    """Train with each seed and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratings", type=int, default=20_000, help="number of ratings in training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--id-dropout", type=float, default=0.0)
    arguments = parser.parse_args()
    rmse: dict[str, dict[str, list[float]]] = {}
    seconds: list[float] = []
    for seed in range(arguments.seeds):
        ratings = Ratings(seed)
        train, valid = ratings.draw(arguments.ratings), ratings.draw(4_000)
        tests = {
            "rated items": ratings.draw(10_000),
            "items without ratings": ratings.draw(10_000, unrated=True),
            "users without ratings": ratings.draw(10_000, new_users=True),
        }
        with tempfile.TemporaryDirectory() as folder:
            model = RatingScorer(n_epochs=100, patience=5, seed=seed, id_dropout=arguments.id_dropout)
            started = time.perf_counter()
            model.fit(train, validation=valid, out=folder, progress=False)
            seconds.append(time.perf_counter() - started)
            best = RatingScorer.load(Path(folder) / "model.safetensors")
        for name, test in tests.items():
            ids = {key: values for key, values in test.items() if key != "Rating"}
            predictions = {
                "global mean": np.full(len(test["Rating"]), train["Rating"].mean()),
                "user mean": mean_by(train, "UserId", test["UserId"]),
                "item mean": mean_by(train, "ItemId", test["ItemId"]),
                "group mean": mean_by(train, "GroupId", test["GroupId"]),
                "RatingScorer": best.predict(ids, unknown="ignore"),
            }
            for side, values in predictions.items():
                error = rating_metrics(values, test["Rating"])["rmse"]
                rmse.setdefault(side, {}).setdefault(name, []).append(error)
    unknown = {"rated items": 0.0, "items without ratings": QUALITY**2, "users without ratings": BIAS**2 + TASTE**2}
    print(f"| RMSE | {' | '.join(unknown)} |\n|---|{'---|' * len(unknown)}")
    for side, errors in rmse.items():
        cells = [f"{np.mean(errors[name]):.3f} ({np.std(errors[name], ddof=1):.3f})" for name in unknown]
        print(f"| {side} | {' | '.join(cells)} |")
    print(f"| best possible | {' | '.join(f'{(NOISE**2 + variance) ** 0.5:.3f}' for variance in unknown.values())} |")
    print(f"seconds per training: {', '.join(f'{value:.1f}' for value in seconds)}")


if __name__ == "__main__":
    main()
