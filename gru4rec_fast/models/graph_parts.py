"""What the estimators of graph models are made of: their data, their checkpoints, and the search for best items."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from gru4rec_fast import _version, ops
from gru4rec_fast.data import InteractionGraph, SessionStore, Vocabulary
from gru4rec_fast.data.graphs.order import align_indices
from gru4rec_fast.data.vocabulary import as_ids
from gru4rec_fast.models.catalogue import pad
from gru4rec_fast.models.estimator import FREE_ON_RESUME, NOT_STORED, check_same_parameters
from gru4rec_fast.models.graph_parameters import GraphParameters
from gru4rec_fast.models.recommending import Recommendations
from gru4rec_fast.training.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from gru4rec_fast.training.graph_loop import GraphTrainingOptions

_FREE_ON_RESUME = (*FREE_ON_RESUME, "evaluate_every")


def as_graph(data: Any, keys: tuple[str, str], like: InteractionGraph | None = None) -> InteractionGraph:
    """Interactions in any accepted form as a graph; with `like`, indexed as that one is."""
    if isinstance(data, InteractionGraph):
        return data if like is None else align_indices(data, like)
    if isinstance(data, SessionStore):
        return InteractionGraph.from_store(data)
    if hasattr(data, "tocoo"):
        return InteractionGraph.from_scipy(data, like=like)
    if isinstance(data, str | os.PathLike):
        path = Path(data)
        if path.is_dir():
            graph = InteractionGraph.open(path)
            return graph if like is None else align_indices(graph, like)
        kinds = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in (".gz", ".zst")]
        if kinds[-1:] == [".txt"]:
            return InteractionGraph.from_text(path, like=like)
    return InteractionGraph.from_table(data, user_key=keys[0], item_key=keys[1], like=like)


def graph_of(checkpoint: Checkpoint) -> InteractionGraph:
    """The training graph that a checkpoint holds."""
    offsets, neighbors = (checkpoint.tensors[f"graph.{name}"].cpu().numpy() for name in ("offsets", "neighbors"))
    users, items = (Vocabulary.from_arrays(checkpoint.group(side)) for side in ("users.", "items."))
    return InteractionGraph(offsets, neighbors, users, items, {})


def known(vocabulary: Vocabulary, ids: ArrayLike | Iterable[int] | Iterable[str], what: str) -> np.ndarray:
    """Indices int64 [n]; ValueError names the first id that training did not see."""
    wanted = as_ids(ids, f"{what}s")
    index = vocabulary.index_of(wanted)
    if (index < 0).any():
        at = int((index < 0).argmax())
        raise ValueError(f"{what} {wanted[at : at + 1].tolist()[0]!r} was not in the training data")
    return index


def identity(form: str, parameters: GraphParameters, graph: InteractionGraph) -> Checkpoint:
    """What every checkpoint of a model holds besides weights: parameters, graph, ids."""
    stored = {name: value for name, value in parameters.to_dict().items() if name not in NOT_STORED}
    config = {"parameters": stored, "gru4rec_fast": _version.__version__}
    arrays = {"graph.offsets": graph.offsets, "graph.neighbors": graph.neighbors}
    for side, ids in (("users.", graph.users), ("items.", graph.items)):
        arrays |= {side + name: array for name, array in ids.to_arrays().items()}
    return Checkpoint(form, config, tensors={name: torch.from_numpy(np.array(array)) for name, array in arrays.items()})


def checkpoint_for(form: str, parameters: GraphParameters, graph: InteractionGraph, path: Path) -> Checkpoint:
    """The checkpoint in a file, for a training with these parameters on this graph to go on from.

    Raises:
        FileNotFoundError: there is no such file. CheckpointError: it is none, or one of other parameters or data.
    """
    checkpoint = load_checkpoint(path, form)
    check_same_parameters(path, checkpoint.config["parameters"], parameters.to_dict(), _FREE_ON_RESUME)
    before = graph_of(checkpoint)
    same = np.array_equal(before.offsets, graph.offsets) and np.array_equal(before.neighbors, graph.neighbors)
    if not same or before.users != graph.users or before.items != graph.items:
        raise CheckpointError(f"{path} was trained on another graph; resume with the same data")
    return checkpoint


def training_options(p: GraphParameters, checkpoint_every: int | None) -> GraphTrainingOptions:
    """What the training loop is told."""
    return GraphTrainingOptions(
        n_epochs=p.n_epochs,
        reg_weight=p.reg_weight,
        evaluate_every=p.evaluate_every,
        monitor=p.monitor,
        patience=p.patience,
        min_delta=p.min_delta,
        checkpoint_every=checkpoint_every,
    )


def best_items(
    queries: Tensor, table: Tensor, hidden: Sequence[np.ndarray], k: int, batch_size: int, impl: str
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and indices [n, k] of the k rows of `table` that fit each query best, its `hidden` ones left out.

    Where fewer than k are left, the rest of the row is -1, at scores of -infinity. Raises ValueError: k or batch_size
    out of range.
    """
    if not 1 <= k <= len(table):
        raise ValueError(f"k={k}: choose 1 to {len(table)}, the number of items")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be at least 1")
    table = table.contiguous()
    best = np.empty((len(queries), k), np.int64)
    scores = np.empty((len(queries), k), np.float64 if table.dtype == torch.float64 else np.float32)
    for begin in range(0, len(queries), batch_size):
        part = slice(begin, begin + batch_size)
        seen = pad(hidden[part]).to(table.device)
        found, items = ops.top_k(queries[part], table, None, k, seen, impl=impl)
        scores[part], best[part] = found.cpu().numpy(), items.cpu().numpy()
    return scores, best


def best_rows(
    queries: Tensor,
    table: Tensor,
    hidden: Sequence[np.ndarray],
    k: int,
    batch_size: int,
    names: Sequence[str],
    graph: InteractionGraph,
    impl: str,
) -> Recommendations:
    """The k items whose rows of `table` fit each query best, its hidden ones left out.

    Raises ValueError, with the query's name, where k is more than there are items left.
    """
    scores, best = best_items(queries, table, hidden, k, batch_size, impl)
    short = (best < 0).any(1)
    if short.any():
        at = int(short.argmax())
        left = graph.n_items - len(hidden[at])
        raise ValueError(f"{names[at]}: k={k}, but only {left} items are left to choose from")
    return Recommendations(graph.items.ids[best], scores)
