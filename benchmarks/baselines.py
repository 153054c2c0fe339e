"""Print a table of the metrics of all baselines on rsc15_100k, Diginetica and Gowalla, for docs/baselines.md.

    python benchmarks/baselines.py --data ../shared/data

The folder has a subfolder for each log: rsc15_100k and diginetica with train.tsv.gz and test.tsv.gz (sessions), gowalla
with train.txt.gz and test.txt.gz (interactions). HighestRated and ContentSimilarity are left out: the logs have no
ratings and no texts.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gru4rec_fast.data import InteractionGraph, SessionStore
from gru4rec_fast.models import AssociationRules, Baseline, ItemKNN, MostPopular, SequentialRules, SessionKNN

OF_SESSIONS: list[Baseline] = [
    MostPopular(),
    MostPopular(in_session=True),
    AssociationRules(measure="lift"),
    AssociationRules(),
    ItemKNN(),
    SequentialRules(),
    SessionKNN(),
]
OF_USERS: list[Baseline] = [MostPopular(), AssociationRules(measure="lift"), AssociationRules(), ItemKNN()]
METRICS = ("recall@20", "mrr@20", "ndcg@20", "recall@5")


def print_rows(log: str, models: list[Baseline], train: SessionStore | InteractionGraph, test: object) -> None:
    """Print a row of the table for each model."""
    for model in models:
        metrics = model.fit(train).evaluate(test, cutoffs=(5, 20)).metrics
        values = (f"{metrics[name]:.4f}".removeprefix("0") for name in METRICS)
        print(f"| {log} | `{model!r}` | {' | '.join(values)} |", flush=True)


def main() -> None:
    """Fit and evaluate each baseline on each log."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data", metavar="FOLDER")
    data = parser.parse_args().data
    print(f"| log | model | {' | '.join(METRICS)} |\n|---|---|{'---|' * len(METRICS)}")
    for log in ("rsc15_100k", "diginetica"):
        train = SessionStore.from_events(data / log / "train.tsv.gz")
        test = SessionStore.from_events(data / log / "test.tsv.gz", vocabulary=train.vocabulary)
        print_rows(log, OF_SESSIONS, train, test)
    graph = InteractionGraph.from_text(data / "gowalla" / "train.txt.gz")
    held_out = InteractionGraph.from_text(data / "gowalla" / "test.txt.gz", like=graph)
    print_rows("gowalla", OF_USERS, graph, held_out)


if __name__ == "__main__":
    main()
