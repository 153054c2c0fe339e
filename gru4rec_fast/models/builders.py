"""Build what training needs from the parameters of a model: data, network, loss, optimizer, runner and trainer.

The runner trains for one epoch. The trainer calls it for every epoch, validates and saves checkpoints. In all
functions, `p` are the parameters of the model.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from gru4rec_fast import ops
from gru4rec_fast.data import InteractionGraph, SessionParallelLoader, SessionStore, TripleSampler, Vocabulary
from gru4rec_fast.data.graphs.order import align_indices
from gru4rec_fast.data.part_files import is_prepared
from gru4rec_fast.models.parameter_fields import Parameters
from gru4rec_fast.models.parameters import (
    GraphParameters,
    GRU4RecParameters,
    LightGCNParameters,
    NGCFParameters,
    split_adjacency,
)
from gru4rec_fast.nn import GraphNetwork, LightGCNNetwork, NGCFNetwork, SampledLoss, SessionNetwork
from gru4rec_fast.optim import SparseAdagrad
from gru4rec_fast.training import (
    EpochRunner,
    GraphEpochRunner,
    Schedule,
    SessionEpochRunner,
    Trainer,
    TrainerOptions,
    log_fingerprint,
)
from gru4rec_fast.training.options import MINIMIZED


def find_device(name: str) -> torch.device:
    """Return the device; ValueError unless it is a CPU or CUDA device, RuntimeError if this machine lacks it."""
    device = torch.device(name)
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device={name!r}: choose 'cpu', 'cuda', 'cuda:1' ...")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(f"device={name!r}: PyTorch sees no CUDA device here; use device='cpu'")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RuntimeError(f"device={name!r}: PyTorch sees {torch.cuda.device_count()} CUDA devices here")
    return device


def open_sessions(
    data: Any,
    vocabulary: Vocabulary | None = None,
    *,
    session_key: str = "SessionId",
    item_key: str = "ItemId",
    time_key: str = "Time",
) -> SessionStore:
    """Convert data, in any form that `GRU4Rec.fit` accepts, to a store. Items get the indices of `vocabulary` if given.

    Raises:
        ValueError: a prepared store has another vocabulary. For a log see `SessionStore.from_events`.
    """
    if is_prepared(data):
        data = SessionStore.open(Path(data))
    if not isinstance(data, SessionStore):
        return SessionStore.from_events(
            data, session_key=session_key, item_key=item_key, time_key=time_key, vocabulary=vocabulary
        )
    if vocabulary is not None and data.vocabulary != vocabulary:
        raise ValueError(
            "the prepared sessions have another vocabulary than the training data: prepare them with vocabulary= of "
            "the training store, or give the log file instead"
        )
    return data


def open_more_sessions(data: Any, vocabulary: Vocabulary, **columns: Any) -> SessionStore:
    """Convert data, in any form that `GRU4Rec.fit` accepts, to a store whose vocabulary begins with `vocabulary`.

    Items that `vocabulary` does not hold get the next indices, in the sorted order of their ids.

    Raises:
        TypeError: `vocabulary` has integers as ids, and an id in the data is no integer. For a log see
            `SessionStore.from_events`.
    """
    store = open_sessions(data, **columns)
    if store.vocabulary == vocabulary:
        return store
    ids = vocabulary.as_own_kind(store.vocabulary.ids)
    extended = vocabulary.extended(ids)
    new_index = extended.index_of(ids).astype(np.int32)
    support = np.zeros(len(extended), np.int64)
    support[new_index] = store.support
    return SessionStore(
        items=new_index[store.items],
        offsets=store.offsets,
        start_times=store.start_times,
        end_times=store.end_times,
        support=support,
        vocabulary=extended,
        session_ids=lambda: store.session_ids,
        meta=store.meta,
    )


def open_graph(
    data: Any, like: InteractionGraph | None = None, *, user_key: str = "UserId", item_key: str = "ItemId"
) -> InteractionGraph:
    """Convert data, in any form that `NGCF.fit` accepts, to a graph.

    If the graph `like` is given, users and items get the indices that they have in `like`. `like` has no effect for a
    `SessionStore`, or for a graph whose ids differ from those of `like`.
    """
    if is_prepared(data):
        data = InteractionGraph.open(Path(data))
    if isinstance(data, InteractionGraph):
        return data if like is None else align_indices(data, like)
    if isinstance(data, SessionStore):
        return InteractionGraph.from_store(data)
    if hasattr(data, "tocoo"):
        return InteractionGraph.from_scipy(data, like=like)
    if isinstance(data, str | os.PathLike):
        from gru4rec_fast.data.adjacency_lists import holds_adjacency_lists  # loads polars

        data = Path(data)
        if holds_adjacency_lists(data, {"user": user_key, "item": item_key}):
            return InteractionGraph.from_text(data, like=like)
    return InteractionGraph.from_table(data, user_key=user_key, item_key=item_key, like=like)


def build_session_network(p: GRU4RecParameters, n_items: int, *, sparse: bool = True) -> SessionNetwork:
    """Return the network of GRU4Rec with its initial weights, on the device of the parameters.

    sparse: whether autograd computes sparse gradients of the tables.
    """
    return SessionNetwork(
        n_items,
        list(p.layers),
        embedding=p.embedding_mode,
        embedding_dim=p.embedding_dim,
        gru_form=p.gru_form,
        dropout_p_embed=p.dropout_p_embed,
        dropout_p_hidden=p.dropout_p_hidden,
        sparse=sparse,
        seed=p.seed,
        impl=p.impl,
        dtype=getattr(torch, p.dtype),
        device=find_device(p.device),
    )


def parameters_of_network(network: SessionNetwork) -> dict[str, Any]:
    """Return the parameters from which `build_session_network` builds such a network, without the seed."""
    layers, weight = network.gru.layers, network.output.weight
    return {
        "layers": tuple(layer.hidden_size for layer in layers),
        "constrained_embedding": network.embedding_mode == "constrained",
        "embedding": network.embedding.weight.shape[1] if network.embedding_mode == "separate" else 0,
        "gru_form": layers[-1].form,  # with one-hot inputs the first layer always has the form reset_before
        "dropout_p_embed": network.dropout_p_embed,
        "dropout_p_hidden": network.gru.dropout,
        "dtype": str(weight.dtype).removeprefix("torch."),
        "device": str(weight.device),
        "impl": network.impl,
    }


def build_criterion(p: GRU4RecParameters, support: Tensor, *, sparse: bool = True) -> SampledLoss:
    """Return the loss of GRU4Rec; `support` int64 [n_items] is the number of occurrences of each item in training."""
    return SampledLoss(
        p.loss,
        batch_size=p.batch_size,
        elu_param=p.elu_param,
        bpreg=p.bpreg,
        label_smoothing=p.label_smoothing,
        logq=p.logq,
        support=support.clamp(min=1),  # otherwise log q = -inf for an item without occurrences
        sample_alpha=p.sample_alpha,
        mask_accidental_hits=p.mask_accidental_hits,
        sparse=sparse,
        impl=p.impl,
        dtype=getattr(torch, p.dtype),
    )


def build_session_optimizer(p: GRU4RecParameters, network: SessionNetwork) -> SparseAdagrad:
    """Return the optimizer of GRU4Rec for the parameters of the network."""
    return SparseAdagrad(network.parameters(), p.learning_rate, p.momentum, p.eps, impl=p.impl)


def build_session_runner(
    p: GRU4RecParameters,
    network: SessionNetwork,
    store: SessionStore,
    *,
    optimizer: Optimizer | None = None,
    has_validation: bool = False,
) -> SessionEpochRunner:
    """Return the runner that trains `network` on `store`; `has_validation`: whether there is validation data.

    A mini-batch has `batch_size` lanes; a lane is one of the sessions that are processed in parallel. If `optimizer` is
    None, it is that of the parameters.
    """
    device, seed = find_device(p.device), network.seed if p.seed is None else p.seed
    support = torch.from_numpy(np.array(store.support))
    optimizer = optimizer or build_session_optimizer(p, network)
    # The negatives of a lane are the sampled items and the targets of the other lanes. There must be at least one.
    min_live = 1 if p.n_sample else 2
    loader = SessionParallelLoader(store, p.batch_size, p.bptt, device, p.shuffle, seed, min_live=min_live, impl=p.impl)
    loader.seed_was_drawn = p.seed is None  # the network drew it; a resumed training takes the saved seed
    return SessionEpochRunner(
        network,
        loader,
        criterion=build_criterion(p, support, sparse=network.output.sparse).to(device),
        optimizer=optimizer,
        sampler=ops.build_alias_table(support, p.sample_alpha, impl=p.impl).to(device) if p.n_sample else None,
        n_sample=p.n_sample,
        accumulate=p.accumulate,
        seed=seed,
        schedule=build_schedule(p, optimizer, has_validation),
        fused=p.fused,
        precision=p.precision,
        independent_lanes=p.lanes == "independent",
        fingerprint=lambda: log_fingerprint(store),
        impl=p.impl,
    )


def _shared_options(p: GraphParameters) -> dict[str, Any]:
    """Return the keyword arguments that both graph networks have."""
    return {"node_dropout": p.node_dropout, "only_needed": p.only_needed, "seed": p.seed, "impl": p.impl}


def build_ngcf_network(p: NGCFParameters, graph: InteractionGraph) -> NGCFNetwork:
    """Return the network of NGCF with its initial weights, on the device of the parameters."""
    P, Q = split_adjacency(p.adjacency)  # matrices of the two terms of a layer
    network = NGCFNetwork(
        graph,
        p.embedding_dim,
        p.layer_sizes,
        P=P,
        Q=Q,
        activation=p.activation,
        message_dropout=p.message_dropout,
        normalize_messages=p.normalize_messages,
        **_shared_options(p),
    )
    return network.to(find_device(p.device), getattr(torch, p.dtype))


def build_lightgcn_network(p: LightGCNParameters, graph: InteractionGraph) -> LightGCNNetwork:
    """Return the network of LightGCN with its initial weights, on the device of the parameters."""
    network = LightGCNNetwork(graph, p.embedding_dim, p.n_layers, matrix=p.adjacency, **_shared_options(p))
    return network.to(find_device(p.device), getattr(torch, p.dtype))


def build_graph_runner(
    p: GraphParameters,
    network: GraphNetwork,
    graph: InteractionGraph,
    *,
    has_validation: bool = False,
) -> GraphEpochRunner:
    """Return the runner that trains `network` on `graph`; `has_validation`: whether there is validation data."""
    seed = network.seed if p.seed is None else p.seed
    device = find_device(p.device)
    sampler = TripleSampler(graph, p.batch_size, sample_by=p.sample_by, seed=seed, device=device, impl=p.impl)
    sampler.seed_was_drawn = p.seed is None  # the network drew it; other ranks take that of rank 0
    optimizer = torch.optim.Adam(network.parameters(), lr=p.learning_rate, fused=True)
    return GraphEpochRunner(
        network,
        sampler,
        optimizer=optimizer,
        reg_weight=p.reg_weight,
        schedule=build_schedule(p, optimizer, has_validation),
    )


def build_schedule(p: Parameters, optimizer: Optimizer, has_validation: bool) -> Schedule | None:
    """Return the learning-rate schedule; None for a constant learning rate."""
    if not p.lr_scheduler:
        return None
    return Schedule(
        optimizer,
        p.lr_scheduler,
        p.lr_scheduler_options or {},
        n_epochs=p.n_epochs,
        maximize=has_validation and p.monitor not in MINIMIZED,
    )


def build_trainer(
    p: Parameters,
    runner: EpochRunner,
    checkpoint_every: int | None = None,
    n_epochs: int | None = None,
    **options: Any,
) -> Trainer:
    """Return the trainer of a runner; `options` are further keyword arguments of `Trainer`.

    n_epochs: number of the last epoch; None is that of the parameters.
    """
    return Trainer(
        runner,
        TrainerOptions(
            n_epochs=p.n_epochs if n_epochs is None else n_epochs,
            evaluate_every=p.evaluate_every,
            monitor=p.monitor,
            patience=p.patience,
            min_delta=p.min_delta,
            checkpoint_every=checkpoint_every,
        ),
        **options,
    )
