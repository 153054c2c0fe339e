"""Target: folders of interaction graphs with damaged files, opened and used as a user would."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from damage import damages, read_files, write_damaged
from harness import Target
from hypothesis import strategies as st

from gru4rec_fast import InteractionGraph, LightGCN, Vocabulary
from gru4rec_fast.data import TripleSampler, split_interactions
from gru4rec_fast.data.graphs.order import reorder


def _graph(string_ids: bool) -> InteractionGraph:
    users, items = [0, 0, 1, 1, 2, 2, 2], [0, 1, 1, 2, 0, 2, 3]
    ids = (["u0", "ü1", "u2", "u3"], ["a", "b", "c", "d", "e"]) if string_ids else ([3, 1, 2, 9], [10, 11, 12, 13, 14])
    return InteractionGraph.from_arrays(users, items, user_ids=Vocabulary(ids[0]), item_ids=Vocabulary(ids[1]))


FILES, MODELS = [], []
_PARAMETERS = {"embedding_dim": 4, "n_layers": 1, "n_epochs": 1, "batch_size": 4}
for string_ids in (False, True):
    graph = _graph(string_ids)
    with tempfile.TemporaryDirectory() as folder:
        graph.save(Path(folder) / "g")
        FILES.append(read_files(Path(folder) / "g"))
        MODELS.append(LightGCN(**_PARAMETERS).fit(graph, progress=False))


def run(case: Any, folder: Path) -> None:
    """Open a damaged graph, and use all of its arrays."""
    write_damaged(folder, FILES[case["strings"]], case["damages"])
    graph = InteractionGraph.open(folder)
    assert len(graph.summary()) < 2000, "long summary"
    # If a damaged folder opens, its graph must be consistent; this is checked before the case uses it.
    users, items = graph.interactions()
    assert len(users) == len(items) == graph.n_edges, "wrong number of interactions"
    for user in range(graph.n_users):
        items = graph.items_of(user)
        in_range = (items >= 0) & (items < graph.n_items)
        assert in_range.all() and (items[1:] > items[:-1]).all(), "wrong items of a user"
    item_pairs = sorted((int(u), i) for i in range(graph.n_items) for u in _users_of(graph, i))
    assert item_pairs == [*zip(*(a.tolist() for a in graph.interactions()), strict=True)], "the graph is not symmetric"
    if case["use"] == "triples":
        TripleSampler(graph, 8).draw(3)
    elif case["use"] == "orders":
        reorder(graph)
        split_interactions(graph, 0.5)
        graph.extended(graph.users.ids[:1], graph.items.ids[:1])
    elif case["use"] == "train":
        LightGCN(**_PARAMETERS).fit(graph, progress=False)
    else:
        MODELS[case["strings"]].evaluate(graph)


def _users_of(graph: InteractionGraph, item: int) -> list[int]:
    node = graph.n_users + item
    return graph.neighbors[graph.offsets[node] : graph.offsets[node + 1]].tolist()


TARGET = Target(
    cases=st.sampled_from([0, 1]).flatmap(
        lambda strings: st.fixed_dictionaries(
            {
                "strings": st.just(strings),
                "use": st.sampled_from(["triples", "orders", "train", "evaluate"]),
                "damages": damages(FILES[strings]),
            }
        )
    ),
    run=run,
    subjects=lambda case, folder: [str(folder), "training graph", "test item"],
)
