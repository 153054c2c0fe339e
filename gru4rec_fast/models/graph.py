"""NGCF and LightGCN as estimators: fit, evaluate, recommend, similar items, save, load."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from gru4rec_fast.data import InteractionGraph, TripleSampler
from gru4rec_fast.data.graphs.order import reorder
from gru4rec_fast.evaluation import GraphReport, evaluate_graph
from gru4rec_fast.models.estimator import Estimator, resumed_file
from gru4rec_fast.models.graph_parameters import GraphParameters, LightGCNParameters, NGCFParameters, split_adjacency
from gru4rec_fast.models.graph_parts import (
    as_graph,
    best_rows,
    checkpoint_for,
    graph_of,
    identity,
    known,
    training_options,
)
from gru4rec_fast.models.parameters import DTYPES
from gru4rec_fast.models.parts import find_device
from gru4rec_fast.models.recommending import Recommendations
from gru4rec_fast.nn import GraphNetwork, LightGCNNetwork, NGCFNetwork
from gru4rec_fast.profiling import PeakMemory, process_baseline
from gru4rec_fast.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from gru4rec_fast.training.folder_lock import exclusive
from gru4rec_fast.training.graph_loop import GraphTrainer
from gru4rec_fast.training.progress import make_progress
from gru4rec_fast.training.state import MODEL, model_tensors


class GraphRecommender(Estimator):
    """What NGCF and LightGCN share; use one of these.

    Attributes:
        parameters: the hyper-parameters.
        graph, network: the training graph and the network; None before `fit` or `load`.
        history, best_epoch, peak_memory_bytes: see `Estimator`.
    """

    parameter_class: ClassVar[type[GraphParameters]]
    parameters: GraphParameters

    def __init__(self, **parameters: Any) -> None:
        super().__init__(**parameters)
        self.graph: InteractionGraph | None = None
        self.network: GraphNetwork | None = None
        self._final: Tensor | None = None

    def build_network(self, graph: InteractionGraph) -> GraphNetwork:
        """The network that the parameters describe, with its initial weights, float32 on the CPU."""
        raise NotImplementedError

    @classmethod
    def format(cls) -> str:
        """What the class's checkpoints are called."""
        return f"gru4rec_fast.{cls.__name__}/1"

    def fit(
        self,
        data: Any,
        validation: Any = None,
        *,
        out: str | os.PathLike[str] | None = None,
        resume: bool | str | os.PathLike[str] = False,
        checkpoint_every: int | None = None,
        progress: bool | None = None,
        user_key: str = "UserId",
        item_key: str = "ItemId",
    ) -> Self:
        """Train from scratch, or go on with a training.

        Args:
            data: an InteractionGraph or the folder of one; a .txt file of `user item item ...` lines (or .gz, .zst of
                one); a log file or table with columns of users and items; a scipy sparse matrix; a SessionStore.
            validation: interactions of the same users, in the same forms, to rank after every `evaluate_every` epochs;
                `monitor` picks the best epoch by them.
            out: folder for last.safetensors, best.safetensors (with validation), curves.csv and curves.png.
            resume: True: go on from `out`/last.safetensors; or the path of such a file. On the CPU a resumed training
                ends with the same bits as one that was never interrupted.
            checkpoint_every: write last.safetensors every so many mini-batches too, not only after each epoch.
            progress: False shows nothing; by default a bar on a terminal, lines in a pipe, on stderr.
            user_key, item_key: column names, where `data` is a table.

        Raises:
            ValueError: bad input, named. CheckpointError: nothing to resume that fits.
            TrainingInterrupted, TrainingDiverged, OSError: see `gru4rec_fast.training.GraphTrainer.run`.
            After an error that comes before the first mini-batch the model is what it was.
        """
        peak = process_baseline() or PeakMemory()
        p, keys = self.parameters, (user_key, item_key)
        self._check_patience(validation)
        device = find_device(p.device)
        resumed = resumed_file(resume, out)
        graph = as_graph(data, keys)
        graph = reorder(graph) if p.reorder else graph
        held_out = None if validation is None else as_graph(validation, keys, like=graph)
        with exclusive(out):
            network = self._build(graph, device)
            trainer = GraphTrainer(
                network,
                TripleSampler(graph, p.batch_size, sample_by=p.sample_by, seed=p.seed, device=device, impl=p.impl),
                training_options(p, checkpoint_every),
                optimizer=torch.optim.Adam(network.parameters(), lr=p.learning_rate, fused=True),
                validate=None if held_out is None else self._validator(network, graph, held_out),
                out=out,
                identity=identity(self.format(), p, graph),
                progress=make_progress(progress),
                peak=peak,
            )
            if resumed is not None:
                trainer.restore(checkpoint_for(self.format(), p, graph, resumed))
            # What can go wrong before the training has: the earlier model, if there was one, gives way as a whole.
            self.graph, self.network, self._final = graph, network, None
            self.history, self.best_epoch = trainer.history, None
            try:
                trainer.run()
            finally:
                network.eval()
                self.history, self.best_epoch = trainer.history, trainer.best_epoch
                self.peak_memory_bytes = trainer.peak_memory_bytes
        return self

    def evaluate(
        self,
        data: Any,
        *,
        cutoffs: Iterable[int] = (20,),
        batch_size: int = 1024,
        user_key: str = "UserId",
        item_key: str = "ItemId",
    ) -> GraphReport:
        """Rank all items that a user does not have in training, for every user with test items.

        Args:
            data: as `validation` in `fit`; interactions of users and items unseen in training are left out, and counted
                in the report.
            cutoffs, batch_size: see `gru4rec_fast.evaluation.evaluate_graph`.
        """
        graph, final = self._fitted()
        test = as_graph(data, (user_key, item_key), like=graph)
        impl = self.parameters.impl
        return evaluate_graph(final, graph, test, cutoffs=cutoffs, batch_size=batch_size, impl=impl)

    def recommend(
        self,
        users: ArrayLike | Iterable[int] | Iterable[str],
        k: int = 20,
        *,
        exclude_seen: bool = True,
        batch_size: int = 1024,
    ) -> Recommendations:
        """The k best items of each user, best first: item ids and scores (dot products), [n, k] each.

        Args:
            users: user ids. A user without training items is ranked for by its initial embedding, which says nothing.
            k: how many items.
            exclude_seen: leave out the user's training items.
            batch_size: users ranked at a time.

        Raises:
            ValueError: an unknown user; k out of range, or more than a user has items left; named.
        """
        graph, final = self._fitted()
        index = known(graph.users, users, "user")
        hidden = [graph.items_of(user) if exclude_seen else np.empty(0, np.int64) for user in index.tolist()]
        queries = final[torch.from_numpy(index).to(final.device)]
        names = [f"user {name!r}" for name in graph.users.ids[index].tolist()]
        return best_rows(queries, final[graph.n_users :], hidden, k, batch_size, names, graph, self.parameters.impl)

    def similar_items(
        self, items: ArrayLike | Iterable[int] | Iterable[str], k: int = 10, *, batch_size: int = 1024
    ) -> Recommendations:
        """The k items most like each item, itself left out: item ids and cosines of final embeddings, [n, k] each.

        Raises:
            ValueError: an unknown item; k out of range; named.
        """
        graph, final = self._fitted()
        index = known(graph.items, items, "item")
        table = torch.nn.functional.normalize(final[graph.n_users :], dim=1)
        queries = table[torch.from_numpy(index).to(table.device)]
        names = [f"item {name!r}" for name in graph.items.ids[index].tolist()]
        return best_rows(queries, table, list(index[:, None]), k, batch_size, names, graph, self.parameters.impl)

    def embeddings(self) -> tuple[Tensor, Tensor]:
        """Final embeddings of users [n_users, D] and of items [n_items, D]."""
        graph, final = self._fitted()
        return final[: graph.n_users], final[graph.n_users :]

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the model to one safetensors file, graph and ids included; `load` needs nothing else.

        Raises:
            RuntimeError: not fitted yet. OSError: the file cannot be written; an earlier one is unchanged.
        """
        graph, _ = self._fitted()
        assert self.network is not None
        model = identity(self.format(), self.parameters, graph)
        tensors = model.tensors | model_tensors(self.network)
        return save_checkpoint(path, replace(model, tensors=tensors, progress={"history": self.history}))

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: torch.device | str = "cpu", *, impl: str = "auto") -> Self:
        """Read a model from `save`, or from the last or best checkpoint of a training, onto `device`.

        Args:
            impl: "auto", "native" or "reference", for every operator, whatever it was trained with.

        Raises:
            FileNotFoundError: there is no such file.
            CheckpointError: the file is truncated, or no checkpoint of this class.
        """
        checkpoint = load_checkpoint(path, cls.format())
        try:
            model = cls(**checkpoint.config["parameters"] | {"device": str(device), "impl": impl})
            model.graph = graph_of(checkpoint)
            model.network = model._build(model.graph, find_device(str(device)))
            model.network.load_state_dict(checkpoint.group(MODEL))
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{path} lacks a part of a {cls.__name__} checkpoint: {error}") from error
        model.network.eval()
        model.history = checkpoint.progress["history"]
        return model

    def _build(self, graph: InteractionGraph, device: torch.device) -> GraphNetwork:
        return self.build_network(graph).to(device=device, dtype=DTYPES[self.parameters.dtype])

    def _fitted(self) -> tuple[InteractionGraph, Tensor]:
        """The training graph and the final embeddings of its nodes."""
        if self.graph is None or self.network is None:
            raise RuntimeError(
                f"this {type(self).__name__} has no weights yet: call fit, or {type(self).__name__}.load"
            )
        if self._final is None:
            with torch.no_grad():
                self._final = self.network()
        return self.graph, self._final

    def _validator(
        self, network: GraphNetwork, graph: InteractionGraph, held_out: InteractionGraph
    ) -> Callable[[], Mapping[str, float]]:
        """Recall and NDCG, and the monitored metric, at its cut-off."""
        monitor, impl = self.parameters.monitor, self.parameters.impl
        _, _, cutoff = monitor.partition("@")
        at = int(cutoff) if cutoff.isdigit() else 20

        @torch.no_grad()
        def validate() -> Mapping[str, float]:
            metrics = evaluate_graph(network(), graph, held_out, cutoffs=(at,), impl=impl).metrics
            wanted = dict.fromkeys([f"recall@{at}", f"ndcg@{at}", monitor])
            return {name: metrics[name] for name in wanted if name in metrics}

        return validate


class NGCF(GraphRecommender):
    """Neural graph collaborative filtering (Wang et al., SIGIR 2019, arXiv 1905.08108).

        model = NGCF(layer_sizes=[64, 64, 64], n_epochs=100)
        model.fit("train.txt", "test.txt", out="run")
        print(model.evaluate("test.txt", cutoffs=(20, 50)).table())
        model.recommend([17, 4], k=10)
        model.save("model.safetensors")

    Args:
        parameters: by name, see `NGCFParameters`.

    Raises:
        TypeError: an unknown parameter or a value of the wrong type; ValueError: a value out of range.
    """

    parameter_class = NGCFParameters
    parameters: NGCFParameters

    def build_network(self, graph: InteractionGraph) -> NGCFNetwork:
        p = self.parameters
        P, Q = split_adjacency(p.adjacency)
        return NGCFNetwork(
            graph,
            p.embedding_dim,
            p.layer_sizes,
            P=P,
            Q=Q,
            activation=p.activation,
            node_dropout=p.node_dropout,
            message_dropout=p.message_dropout,
            normalize_messages=p.normalize_messages,
            only_needed=p.only_needed,
            seed=p.seed,
            impl=p.impl,
        )


class LightGCN(GraphRecommender):
    """LightGCN (He et al., SIGIR 2020, arXiv 2002.02126); used as `NGCF` is.

    Args:
        parameters: by name, see `LightGCNParameters`.

    Raises:
        TypeError: an unknown parameter or a value of the wrong type; ValueError: a value out of range.
    """

    parameter_class = LightGCNParameters
    parameters: LightGCNParameters

    def build_network(self, graph: InteractionGraph) -> LightGCNNetwork:
        p = self.parameters
        return LightGCNNetwork(
            graph,
            p.embedding_dim,
            p.n_layers,
            matrix=p.adjacency,
            node_dropout=p.node_dropout,
            only_needed=p.only_needed,
            seed=p.seed,
            impl=p.impl,
        )


NGCF.__signature__ = inspect.signature(NGCFParameters)  # type: ignore[attr-defined]  # for help()
LightGCN.__signature__ = inspect.signature(LightGCNParameters)  # type: ignore[attr-defined]
