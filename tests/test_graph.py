"""InteractionGraph: reading from every source, saving and opening, errors for bad input, reordering."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.sparse as sp
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from gru4rec_fast import InteractionGraph
from gru4rec_fast.data import SessionStore, Vocabulary
from gru4rec_fast.data.graphs.order import align_indices, reorder
from gru4rec_fast.models.builders import open_graph
from gru4rec_fast.ops import laplacian_propagation

GOWALLA = Path(__file__).parents[2] / "shared" / "data" / "gowalla"
# A file of `user item item ...` lines: one user on two lines, one repeated item, one user without items.
TEXT = "7 30 10\n3 20 10 20\n5\n7 20\n"
EDGES = {(3, 10), (3, 20), (7, 10), (7, 20), (7, 30)}  # (user id, item id)


def edges_as_ids(graph: InteractionGraph) -> set[tuple[Any, Any]]:
    """Return the pairs (user id, item id) of all edges."""
    user_index, item_index = graph.interactions()
    return set(zip(graph.users.ids[user_index].tolist(), graph.items.ids[item_index].tolist(), strict=True))


def assert_valid_structure(graph: InteractionGraph) -> None:
    """Assert that neighbors are increasing, that edges connect users with items, and that they are stored both ways."""
    directed_edges = set()
    for node in range(graph.n_nodes):
        neighbors = graph.neighbors[graph.offsets[node] : graph.offsets[node + 1]].tolist()
        assert neighbors == sorted(set(neighbors))
        for neighbor in neighbors:
            assert (node < graph.n_users) != (neighbor < graph.n_users) and 0 <= neighbor < graph.n_nodes
            directed_edges.add((node, neighbor))
    assert directed_edges == {(b, a) for a, b in directed_edges}
    assert len(directed_edges) == 2 * graph.n_edges == len(graph.neighbors)


def assert_same_graph(graph: InteractionGraph, expected: InteractionGraph) -> None:
    np.testing.assert_array_equal(graph.offsets, expected.offsets)
    np.testing.assert_array_equal(graph.neighbors, expected.neighbors)
    assert graph.users == expected.users and graph.items == expected.items
    assert graph.meta.get("dropped") == expected.meta.get("dropped")


@given(
    pairs=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 8)), min_size=1, max_size=60),
    isolated_users=st.integers(0, 3),
    isolated_items=st.integers(0, 3),
)
def test_edges_are_the_distinct_pairs(pairs: list[tuple[int, int]], isolated_users: int, isolated_items: int) -> None:
    users, items = zip(*pairs, strict=True)
    n_users, n_items = max(users) + 1 + isolated_users, max(items) + 1 + isolated_items
    graph = InteractionGraph.from_arrays(users, items, n_users=n_users, n_items=n_items)
    assert_valid_structure(graph)
    assert edges_as_ids(graph) == set(pairs)
    assert (graph.n_users, graph.n_items, graph.n_nodes) == (n_users, n_items, n_users + n_items)
    assert graph.n_edges == len(set(pairs))
    assert graph.meta["dropped"]["duplicate_interactions"] == len(pairs) - len(set(pairs))
    assert graph.neighbors.dtype == np.int32 and graph.offsets.dtype == np.int64
    for user in range(n_users):
        assert graph.items_of(user).tolist() == sorted({item for u, item in pairs if u == user})


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
def test_from_text_reads_plain_and_compressed_files(tmp_path: Path, compression: str) -> None:
    path = tmp_path / f"train.txt{compression}"
    # With an empty line, a tab, and blanks at the start and the end of lines.
    data = TEXT.replace("3 20", "\n  3\t20").replace("5\n", "5 \r\n").encode()
    compress = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[compression]
    path.write_bytes(compress(data))
    graph = InteractionGraph.from_text(path)
    assert_valid_structure(graph)
    assert edges_as_ids(graph) == EDGES
    assert graph.users.ids.tolist() == [3, 5, 7] and graph.items.ids.tolist() == [10, 20, 30]
    assert graph.items_of(1).tolist() == []
    assert repr(graph) == "InteractionGraph(3 users, 3 items, 5 edges)"
    assert graph.summary().splitlines() == [
        "3 users, 3 items, 5 edges",
        "  1 user without edges",
        "  dropped: 1 duplicate interaction",
    ]


def test_text_ids_may_be_words(tmp_path: Path) -> None:
    (tmp_path / "g.txt").write_text("ann 007 7\nBjörk 7\n")
    graph = InteractionGraph.from_text(tmp_path / "g.txt")
    assert edges_as_ids(graph) == {("ann", "007"), ("ann", "7"), ("Björk", "7")}


def test_like_gives_a_test_file_the_training_indices(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text(TEXT)
    (tmp_path / "test.txt").write_text("7 10 99\n8 10 20\n3 30\n9\n")
    train = InteractionGraph.from_text(tmp_path / "train.txt")
    test = InteractionGraph.from_text(tmp_path / "test.txt", like=train)
    assert test.users is train.users and test.items is train.items
    assert edges_as_ids(test) == {(7, 10), (3, 30)}
    assert test.meta["dropped"] == {
        "interactions_of_unknown_users": 2,
        "interactions_with_unknown_items": 1,
        "duplicate_interactions": 0,
    }


@pytest.mark.parametrize("source_format", ["tsv", "parquet", "inter", "pandas", "polars", "dict"])
def test_from_table_reads_every_format(tmp_path: Path, source_format: str) -> None:
    keys = ("user_id", "item_id") if source_format == "inter" else ("UserId", "ItemId")
    users, items = zip(*[(3, 10), (3, 20), (7, 10), (7, 20), (7, 30), (3, 10)], strict=True)
    columns: dict[str, Sequence[Any]] = {"Extra": [0.5] * 6, keys[0]: users, keys[1]: items}
    source: Any = {"pandas": pd.DataFrame, "polars": pl.DataFrame}.get(source_format, dict)(columns)
    if source_format == "tsv":
        pl.DataFrame(columns).write_csv(tmp_path / "log.tsv", separator="\t")
        source = tmp_path / "log.tsv"
    elif source_format == "parquet":
        pl.DataFrame(columns).write_parquet(tmp_path / "log.parquet")
        source = tmp_path / "log.parquet"
    elif source_format == "inter":  # a file of RecBole
        frame = pl.DataFrame(columns).rename({"user_id": "user_id:token", "item_id": "item_id:token"})
        frame.write_csv(tmp_path / "log.inter", separator="\t")
        source = tmp_path / "log.inter"
    graph = InteractionGraph.from_table(source)
    assert_valid_structure(graph)
    assert edges_as_ids(graph) == EDGES and graph.meta["dropped"] == {"duplicate_interactions": 1}


def test_from_table_accepts_string_ids_and_floats_with_integer_values() -> None:
    graph = InteractionGraph.from_table(
        {"who": ["b", "a", "b"], "what": [1.0, 2.0, 2.0]}, user_key="who", item_key="what"
    )
    assert edges_as_ids(graph) == {("b", 1), ("a", 2), ("b", 2)}
    assert graph.users.ids.tolist() == ["a", "b"]
    like_graph = InteractionGraph.from_table(
        {"who": ["b", "zoe"], "what": [2, 2]}, user_key="who", item_key="what", like=graph
    )
    assert edges_as_ids(like_graph) == {("b", 2)}


LOG_WITH_BLANKS = " UserId\t ItemId \n 1 \t10\n1\t 10 \n   \n2\t10 \n"


@pytest.mark.parametrize("name", ["log.tsv", "log.tsv.gz", "log.inter", "log.csv"])
def test_blanks_in_text_files_are_removed_as_in_session_logs(tmp_path: Path, name: str) -> None:
    text = LOG_WITH_BLANKS.replace("\t", ",") if name == "log.csv" else LOG_WITH_BLANKS
    text = text.replace("Id", "Id:token") if name == "log.inter" else text
    data = b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    graph = InteractionGraph.from_table(tmp_path / name)
    assert edges_as_ids(graph) == {(1, 10), (2, 10)} and graph.users.ids.tolist() == [1, 2]
    assert [graph.meta["ids"][role]["stripped"] for role in ("user", "item")] == [1, 2]
    assert "  2 item ids had blanks around them, which were removed" in graph.summary().splitlines()
    # The same rows with a column of times, as a session log.
    rows = text.replace("\t", ",").splitlines()[1:]
    timed_rows = [line + (",1" if line.strip() else "") for line in rows]
    (tmp_path / "timed.csv").write_text("\n".join(["UserId, ItemId ,Time", *timed_rows]))
    store = SessionStore.from_events(tmp_path / "timed.csv", session_key="UserId")
    assert store.session_ids.tolist() == [1, 2] and store.vocabulary.ids.tolist() == [10]


def test_blanks_in_data_frames_are_kept() -> None:
    graph = InteractionGraph.from_table({"UserId": ["a", " a"], "ItemId": [1, 1]})
    assert graph.users.ids.tolist() == [" a", "a"] and "blanks" not in graph.summary()


def test_blank_id_is_an_error_that_names_the_row(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("UserId,ItemId\n1,2\n\n3,  \n")
    with pytest.raises(ValueError, match=r"column 'ItemId', row 3 .*None: an id is missing"):
        InteractionGraph.from_table(tmp_path / "log.csv")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_from_text_accepts_any_line_end_and_a_byte_order_mark(tmp_path: Path, end: str) -> None:
    path = tmp_path / "lists.txt"
    path.write_bytes(b"\xef\xbb\xbf" + TEXT.replace("\n", end).encode())
    graph = InteractionGraph.from_text(path)
    assert edges_as_ids(graph) == EDGES and graph.users.ids.tolist() == [3, 5, 7]


def test_ids_of_a_table_beyond_int64_are_errors() -> None:
    with pytest.raises(ValueError, match=r"column 'UserId', row 1 .*integer ids must fit int64; give them as strings"):
        InteractionGraph.from_table({"UserId": np.array([2**63, 1], np.uint64), "ItemId": [1, 1]})
    for number in (np.inf, 1e20):
        with pytest.raises(ValueError, match=r"column 'ItemId', row 2 .*: ids must be integers or strings"):
            InteractionGraph.from_table({"UserId": [1, 1], "ItemId": [1.0, number]})


def test_from_scipy_reads_rectangular_and_bipartite_matrices() -> None:
    dense = np.array([[1, 0, 2.5], [0, 0, 0], [-1, 1, 0]])
    matrix = sp.csr_array(dense)
    expected = {(0, 0), (0, 2), (2, 0), (2, 1)}
    graph = InteractionGraph.from_scipy(matrix)
    assert_valid_structure(graph)
    assert edges_as_ids(graph) == expected and (graph.n_users, graph.n_items) == (3, 3)
    matrix.data[0] = 0
    assert InteractionGraph.from_scipy(matrix).meta["dropped"]["stored_zeros"] == 1
    # The same graph as the adjacency matrix of all nodes, users first.
    square = sp.block_array([[None, sp.coo_array(dense)], [sp.coo_array(dense).T, None]])
    assert_same_graph(InteractionGraph.from_scipy(square, n_users=3), graph)


def test_from_store_takes_sessions_as_users() -> None:
    log = {"SessionId": ["b", "b", "a", "b"], "ItemId": [7, 9, 7, 7], "Time": [1, 2, 3, 4]}
    store = SessionStore.from_events(log)
    graph = InteractionGraph.from_store(store)
    assert edges_as_ids(graph) == {("b", 7), ("b", 9), ("a", 7)}
    assert graph.items == store.vocabulary and graph.meta["dropped"]["duplicate_interactions"] == 1


def test_extended_keeps_existing_indices() -> None:
    graph = InteractionGraph.from_arrays(
        [0, 1, 1], [0, 0, 1], user_ids=Vocabulary([3, 7]), item_ids=Vocabulary(["x", "y"])
    )
    extended = graph.extended([7, 1, 9, 9], ["x", "a", "y", "b"])
    assert_valid_structure(extended)
    assert extended.users.ids.tolist() == [3, 7, 1, 9] and extended.items.ids.tolist() == ["x", "y", "a", "b"]
    assert edges_as_ids(extended) == edges_as_ids(graph) | {(1, "a"), (9, "y"), (9, "b")}
    assert extended.meta["dropped"] == {"duplicate_interactions": 1} and graph.n_edges == 3
    with pytest.raises(TypeError, match="strings"):
        graph.extended([7], [1])


@pytest.mark.parametrize("string_ids", [False, True])
def test_saved_graph_opens_memory_mapped_and_equal(tmp_path: Path, string_ids: bool) -> None:
    user_ids = Vocabulary(["ü", "a"]) if string_ids else None
    graph = InteractionGraph.from_arrays([0, 1, 1, 1], [2, 0, 1, 1], user_ids=user_ids, n_items=5, meta={"source": "x"})
    graph.save(tmp_path / "graph")
    opened = InteractionGraph.open(str(tmp_path / "graph"))
    assert_same_graph(opened, graph)
    assert opened.meta["source"] == "x" and opened.n_edges == 3
    for array in (opened.offsets, opened.neighbors):
        assert isinstance(array, np.memmap) and not array.flags.writeable
    offsets, neighbors = opened.structure()
    features = torch.randn(7, 3)
    assert torch.equal(
        laplacian_propagation(features, offsets, neighbors), laplacian_propagation(features, *graph.structure())
    )
    opened.save(tmp_path / "graph")  # replaces the files that `opened` maps
    assert_same_graph(InteractionGraph.open(tmp_path / "graph"), graph)


# The arrays of the undamaged graph are neighbors [2, 3, 3, 0, 0, 1], offsets [0, 2, 3, 4, 6] and users.ids [0, 1].
@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        (
            "neighbors",
            [2, 3, 3, 0, 0, -3],
            r"neighbors\.npy is damaged: it holds -3 to 0, not 0 to 1; save the interaction graph",
        ),
        (
            "neighbors",
            [2, 3, 10**6, 0, 0, 1],
            r"neighbors\.npy is damaged: it holds 2 to 1000000, not 2 to 3",
        ),
        (
            "neighbors",
            [1, 3, 3, 0, 0, 1],
            r"neighbors\.npy is damaged: it holds 1 to 3, not 2 to 3",
        ),  # an edge of two users
        (
            "neighbors",
            [2, 3, 3, 0, 2, 1],
            r"neighbors\.npy is damaged: it holds 0 to 2, not 0 to 1",
        ),  # an edge of two items
        (
            "offsets",
            [2**63 - 1, -(2**63), 3, 4, 6],
            r"offsets\.npy is damaged: it ranges from 9223372036854775807",
        ),
        ("offsets", [0, 4, 3, 4, 6], r"offsets\.npy is damaged: it holds decreasing offsets"),
        ("offsets", [0, 2, 4, 4, 6], r"offsets\.npy is damaged: it states 4 edges of users, not 3"),
        ("offsets", [0, 2, 3, 4, 5], r"offsets\.npy is damaged: it ranges from 0 to 5, not from 0 to 6"),
        (
            "neighbors",
            [3, 2, 3, 0, 0, 1],
            r"neighbors\.npy is damaged: it holds neighbors of a node that are not in increasing order",
        ),
        (
            "neighbors",
            [2, 3, 3, 0, 1, 1],
            r"neighbors\.npy is damaged: it holds neighbors of a node that are not in increasing order",
        ),
        ("neighbors", [2, 3, 3, 1, 0, 1], r"neighbors\.npy is damaged: it holds an edge in one direction only"),
        ("users.ids", [4, 4], r"users\S*\.npy is damaged: .*the id 4 occurs more than once"),
    ],
)
def test_open_detects_damaged_arrays(tmp_path: Path, file: str, values: list[int], message: str) -> None:
    InteractionGraph.from_arrays([0, 0, 1], [0, 1, 1]).save(tmp_path / "graph")
    path = tmp_path / "graph" / f"{file}.npy"
    np.save(path, np.array(values, np.load(path).dtype))
    with pytest.raises(ValueError, match=message):
        InteractionGraph.open(tmp_path / "graph")


@pytest.mark.parametrize("chunk_edges", [1, 2, 3, 5])
def test_open_detects_decreasing_neighbors_in_different_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_edges: int
) -> None:
    monkeypatch.setattr("gru4rec_fast.data.graphs.csr._CHUNK_EDGES", chunk_edges)
    graph = InteractionGraph.from_arrays([0, 0, 0, 1, 2, 3], [0, 1, 2, 0, 0, 0])
    graph.save(tmp_path / "graph")
    assert np.array_equal(InteractionGraph.open(tmp_path / "graph").neighbors, graph.neighbors)
    for first in (0, 1, 6, 7, 8):  # this edge and the next are of one node: user 0 or item 0
        neighbors = graph.neighbors.copy()
        neighbors[[first, first + 1]] = neighbors[[first + 1, first]]
        np.save(tmp_path / "graph" / "neighbors.npy", neighbors)
        with pytest.raises(ValueError, match="holds neighbors of a node that are not in increasing order"):
            InteractionGraph.open(tmp_path / "graph")


def test_opening_a_damaged_folder_or_replacing_other_files_is_an_error(tmp_path: Path) -> None:
    graph = InteractionGraph.from_arrays([0, 1], [0, 0])
    folder = tmp_path / "graph"
    with pytest.raises(FileNotFoundError, match="no interaction graph"):
        InteractionGraph.open(folder)
    graph.save(folder)
    meta = json.loads((folder / "meta.json").read_text())
    for change, message in (
        ({"format": "other"}, "is no interaction graph: its meta.json states the format 'other'"),
        ({"version": 9}, "has format version 9, this release of gru4rec_fast reads version 2"),
        ({"n_edges": None}, "lacks n_edges"),
        ({"n_edges": 3}, r"neighbors.npy has shape \(4,\) where \(6,\)"),
    ):
        (folder / "meta.json").write_text(json.dumps({**meta, **change}))
        with pytest.raises(ValueError, match=message):
            InteractionGraph.open(folder)
    (folder / "meta.json").write_text(json.dumps(meta))
    (folder / "neighbors.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(ValueError, match=r"neighbors\.npy is damaged"):
        InteractionGraph.open(folder)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not touch")
    with pytest.raises(FileExistsError, match="holds no data written by"):
        graph.save(tmp_path / "mine")


def test_from_text_of_a_bad_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        InteractionGraph.from_text(tmp_path / "none.txt")
    for text, message in (("", "is empty"), ("\n\n", "is empty|holds no interactions"), ("1\n2\n", "no interactions")):
        (tmp_path / "g.txt").write_text(text)
        with pytest.raises(ValueError, match=message):
            InteractionGraph.from_text(tmp_path / "g.txt")
    (tmp_path / "g.txt.gz").write_bytes(gzip.compress(b"1 2 3\n" * 1000)[:20])
    with pytest.raises(ValueError, match=r"g\.txt\.gz"):
        InteractionGraph.from_text(tmp_path / "g.txt.gz")
    train = InteractionGraph.from_arrays([0], [0])
    (tmp_path / "g.txt").write_text("5 6\n")
    with pytest.raises(ValueError, match=r"no interactions; dropped: 1 interaction of unknown users"):
        InteractionGraph.from_text(tmp_path / "g.txt", like=train)
    (tmp_path / "g.txt").write_text("0 a\n")
    with pytest.raises(ValueError, match="no interactions; dropped: 1 interaction with unknown items"):
        InteractionGraph.from_text(tmp_path / "g.txt", like=train)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"UserId": [1]}, r"no column 'ItemId'; its columns are \['UserId'\]"),
        ({"UserId": [], "ItemId": []}, "holds no"),
        ({"UserId": [1, None], "ItemId": [1, 2]}, "column 'UserId', row 2 .*an id is missing"),
        ({"UserId": [1, 2], "ItemId": [1.0, 2.5]}, "column 'ItemId', row 2 .*value 2.5: ids must be integers"),
        ({"UserId": [1, 2], "ItemId": [True, False]}, "ids must be integers or strings, not Boolean"),
    ],
)
def test_from_table_of_a_bad_table_is_an_error(table: dict[str, list[Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InteractionGraph.from_table(table)
    with pytest.raises(ValueError, match="user, item must be different columns"):
        InteractionGraph.from_table({"a": [1]}, user_key="a", item_key="a")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"users": [], "items": []}, "the graph is empty"),
        ({"users": [0, 1], "items": [0]}, "users has 2 elements, items has 1"),
        ({"users": [0, -1], "items": [0, 0]}, r"users\[1\]=-1 is out of range"),
        ({"users": [0, 3], "items": [0, 0], "n_users": 3}, r"users\[1\]=3 is out of range: there are 3 users"),
        ({"users": [0, 1 << 20], "items": [0, 0]}, "users: the largest index is 1048576, but there are only 2 values"),
        ({"users": [0], "items": [5], "item_ids": Vocabulary([9])}, r"items\[0\]=5 is out of range"),
        ({"users": [0], "items": [0], "item_ids": Vocabulary([9]), "n_items": 2}, "n_items=2, but there are 1 ids"),
        ({"users": [0.5], "items": [0]}, "users must be a one-dimensional integer array, not float64"),
        ({"users": [0], "items": [0], "n_items": 2**32}, "fewer than 2\\*\\*32 nodes"),
    ],
)
def test_from_arrays_of_bad_arrays_is_an_error(arguments: dict[str, Any], message: str) -> None:
    if arguments.get("n_items") == 2**32:
        from gru4rec_fast.data.graphs.csr import build_bipartite_csr

        # from_arrays would create 32 GiB of item ids before it reaches this check.
        with pytest.raises(ValueError, match=message):
            build_bipartite_csr(np.array([0]), np.array([0]), 1, 2**32)
        return
    with pytest.raises(ValueError, match=message):
        InteractionGraph.from_arrays(**arguments)


def test_from_scipy_of_a_bad_matrix_is_an_error() -> None:
    def square(*entries: tuple[int, int]) -> Any:
        """Return a 4 x 4 matrix with ones at these (row, column). With n_users=2, rows 0 and 1 are users."""
        rows, columns = zip(*entries, strict=True)
        return sp.coo_array((np.ones(len(entries)), (rows, columns)), shape=(4, 4))

    for matrix, message in (
        (square((0, 1), (1, 0)), r"not bipartite: entry \(0, 1\) connects two users"),
        (square((0, 2), (2, 0), (3, 3)), r"not bipartite: entry \(3, 3\) connects two items"),
        (square((0, 2), (2, 0), (1, 3)), r"not symmetric: of the entries \(1, 3\) and \(3, 1\)"),
        (sp.coo_array((2, 3)), "the matrix must be square"),
    ):
        with pytest.raises(ValueError, match=message):
            InteractionGraph.from_scipy(matrix, n_users=2)
    with pytest.raises(ValueError, match="NaN at row 1, column 0"):
        InteractionGraph.from_scipy(sp.coo_array([[1, 0], [np.nan, 0]]))
    with pytest.raises(ValueError, match="the graph is empty"):
        InteractionGraph.from_scipy(sp.csr_array((3, 4)))
    with pytest.raises(TypeError, match="a scipy sparse matrix is needed, not ndarray"):
        InteractionGraph.from_scipy(np.eye(2))


def test_a_symmetric_matrix_needs_n_users() -> None:
    block = sp.random_array((3, 4), density=0.5, rng=np.random.default_rng(0))
    adjacency = sp.block_array([[None, block], [block.T, None]]).tocsr()
    degrees = sp.diags_array(1 / np.maximum(adjacency.sum(1), 1))
    expected = InteractionGraph.from_scipy(block)
    for matrix in (adjacency, degrees @ adjacency, adjacency + sp.eye_array(7)):
        with pytest.raises(ValueError, match=r"the matrix of shape \(7, 7\) is symmetric, .*: give n_users="):
            InteractionGraph.from_scipy(matrix)
    assert_same_graph(InteractionGraph.from_scipy(adjacency, n_users=3), expected)
    # Not ambiguous: a diagonal matrix, a square matrix that is not symmetric, a matrix of the size of `like`.
    for square in (sp.eye_array(3), sp.coo_array([[0, 1], [0, 1]])):
        assert InteractionGraph.from_scipy(square).n_users == square.shape[0]
    like = InteractionGraph.from_arrays([0, 1], [0, 1])
    assert InteractionGraph.from_scipy(sp.coo_array([[0, 1], [1, 0]]), like=like).n_edges == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 10 5\n1 11 2\n2 10 3\n", "every line has 3 words, and '1 10 5' seems to be a user, an item and a weight"),
        ("1 10 4.5\n2 11 3.0\n", "every line has 3 words, and '1 10 4.5' seems"),
        ("1 10 5 881250949\n1 12 5 881250950\n", "every line has 4 words"),
        ("user item\n1 10\n1 11\n", "line 1: 'user item' seems to be a header"),
    ],
)
def test_a_table_is_not_read_as_lists_of_items(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "g.txt").write_text(text)
    for read in (InteractionGraph.from_text, open_graph):
        with pytest.raises(ValueError, match=rf"g\.txt.*{message}") as caught:
            read(tmp_path / "g.txt")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("header", "keys"), [("UserId,ItemId", {}), ("u,i", {"user_key": "u", "item_key": "i"})])
def test_a_txt_file_with_a_header_is_read_as_a_table(tmp_path: Path, header: str, keys: dict[str, str]) -> None:
    (tmp_path / "g.txt").write_text(f"{header},Weight\n1,10,5\n1,11,5\n2,10,5\n")
    assert edges_as_ids(open_graph(tmp_path / "g.txt", **keys)) == {(1, 10), (1, 11), (2, 10)}


def test_lists_of_equal_length_and_of_words_are_read(tmp_path: Path) -> None:
    (tmp_path / "g.txt").write_text("1 10 5\n2 11 2\n")
    assert edges_as_ids(open_graph(tmp_path / "g.txt")) == {(1, 10), (1, 5), (2, 11), (2, 2)}
    (tmp_path / "g.txt").write_text("a b c\nd e\n")
    assert edges_as_ids(open_graph(tmp_path / "g.txt")) == {("a", "b"), ("a", "c"), ("d", "e")}


@pytest.mark.parametrize("name", ["test.txt", "test.csv", "frame"])
def test_the_training_graph_decides_whether_ids_are_integers_or_strings(tmp_path: Path, name: str) -> None:
    (tmp_path / "test.txt").write_text("1 3\n2 3\n")
    (tmp_path / "test.csv").write_text("UserId,ItemId\n1,3\n2,3\n")
    source = {"UserId": ["1", "2"], "ItemId": [3, 3]} if name == "frame" else tmp_path / name
    for users, items in (([1, 2], [3, 4]), (["1", "x7"], ["3", "4"]), (["1", "2"], [3, 4])):
        like = InteractionGraph.from_table({"UserId": users, "ItemId": items})
        graph = open_graph(source, like)
        assert (graph.users, graph.items) == (like.users, like.items)
        known_users = [user for user in users if str(user) in ("1", "2")]
        assert edges_as_ids(graph) == {(user, items[0]) for user in known_users}


def test_items_of_names_a_user_out_of_range() -> None:
    with pytest.raises(IndexError, match="user 2 is out of range: the graph has users 0 to 1"):
        InteractionGraph.from_arrays([0, 1], [0, 0]).items_of(2)


@pytest.mark.needs_shared
@pytest.mark.skipif(not GOWALLA.is_dir(), reason="shared/data is missing next to this checkout")
def test_gowalla_has_its_published_sizes(tmp_path: Path) -> None:
    train = InteractionGraph.from_text(GOWALLA / "train.txt.gz")
    test = InteractionGraph.from_text(GOWALLA / "test.txt.gz", like=train)
    assert (train.n_users, train.n_items) == (29_858, 40_981)
    assert (train.n_edges, test.n_edges) == (810_128, 217_242)
    assert set(train.meta["dropped"].values()) == set(test.meta["dropped"].values()) == {0}
    assert train.users == Vocabulary(range(29_858)) and train.items == Vocabulary(range(40_981))
    train.save(tmp_path / "gowalla")
    assert_same_graph(InteractionGraph.open(tmp_path / "gowalla"), train)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=60), st.booleans())
def test_reorder_keeps_the_interactions_and_align_indices_undoes_it(
    pairs: list[tuple[int, int]], string_ids: bool
) -> None:
    make_id = (lambda prefix, k: f"{prefix}{k}") if string_ids else (lambda prefix, k: 10 * k)
    table = {"UserId": [make_id("u", u) for u, _ in pairs], "ItemId": [make_id("i", i) for _, i in pairs]}
    graph = InteractionGraph.from_table(table)
    reordered = reorder(graph)

    assert edges_as_ids(reordered) == edges_as_ids(graph) and reordered.n_edges == graph.n_edges
    aligned = align_indices(reordered, graph)
    np.testing.assert_array_equal(aligned.neighbors, graph.neighbors)
    assert aligned.users == graph.users and align_indices(graph, graph) is graph
    # A graph whose ids differ from those of `like` is returned unchanged.
    one_item, two_items = InteractionGraph.from_arrays([0], [0]), InteractionGraph.from_arrays([0], [1])
    assert align_indices(one_item, like=two_items) is one_item


def test_reorder_gives_close_indices_to_the_items_of_a_user() -> None:
    """Ten disconnected groups of 30 items: after reordering, the items of each user are within 30 indices."""
    rng = np.random.default_rng(0)
    users = rng.integers(200, size=4000)
    items = users % 10 + 10 * rng.integers(30, size=4000)
    graph = InteractionGraph.from_arrays(users, items)
    reordered = reorder(graph)
    # Distance between the lowest and the highest item index of each user.
    spread, reordered_spread = ([np.ptp(g.items_of(u)) for u in range(g.n_users)] for g in (graph, reordered))
    assert min(spread) > 100 and max(reordered_spread) < 30
