"""The parts of a training or an evaluation that GRU4Rec's parameters describe."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gru4rec_fast import _version, ops
from gru4rec_fast.data import SessionParallelLoader, SessionStore, Vocabulary
from gru4rec_fast.evaluation import evaluate_sessions
from gru4rec_fast.models.estimator import FREE_ON_RESUME, NOT_STORED, check_same_parameters
from gru4rec_fast.models.parameters import GRU4RecParameters
from gru4rec_fast.nn import SampledLoss, SessionNetwork
from gru4rec_fast.optim import SparseAdagrad
from gru4rec_fast.training.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from gru4rec_fast.training.fingerprint import log_fingerprint
from gru4rec_fast.training.loop import Trainer
from gru4rec_fast.training.options import TrainingOptions

FORMAT = "gru4rec_fast.GRU4Rec/1"
VOCABULARY = "vocabulary."


def find_device(name: str) -> torch.device:
    """The device of that name; ValueError for another kind than CPU and CUDA, RuntimeError where it is not there."""
    device = torch.device(name)
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device={name!r}: choose 'cpu', 'cuda', 'cuda:1' ...")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(f"device={name!r}: PyTorch sees no CUDA device here; use device='cpu'")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RuntimeError(f"device={name!r}: PyTorch sees {torch.cuda.device_count()} CUDA devices here")
    return device


def as_store(data: Any, keys: tuple[str, str, str], vocabulary: Vocabulary | None = None) -> SessionStore:
    """Data in any accepted form as a store; with a vocabulary, as a store indexed by it."""
    if isinstance(data, str | os.PathLike) and Path(data).is_dir():
        data = SessionStore.open(Path(data))
    if not isinstance(data, SessionStore):
        session_key, item_key, time_key = keys
        return SessionStore.from_events(
            data, session_key=session_key, item_key=item_key, time_key=time_key, vocabulary=vocabulary
        )
    if vocabulary is not None and data.vocabulary != vocabulary:
        raise ValueError(
            "the prepared sessions have another catalogue than the training data; prepare them with vocabulary= of the "
            "training store, or give the log itself"
        )
    return data


def build_network(p: GRU4RecParameters, n_items: int, device: torch.device) -> SessionNetwork:
    """The network these parameters describe, with its initial weights."""
    return SessionNetwork(
        n_items,
        list(p.layers),
        embedding=p.embedding_mode,
        embedding_dim=p.embedding_dim,
        gru_form=p.gru_form,
        dropout_p_embed=p.dropout_p_embed,
        dropout_p_hidden=p.dropout_p_hidden,
        seed=p.seed,
        impl=p.impl,
        dtype=getattr(torch, p.dtype),
        device=device,
    )


def build_criterion(p: GRU4RecParameters, support: Tensor) -> SampledLoss:
    """The loss these parameters describe; `support` int64 [n_items]."""
    return SampledLoss(
        p.loss,
        batch_size=p.batch_size,
        elu_param=p.elu_param,
        bpreg=p.bpreg,
        label_smoothing=p.label_smoothing,
        logq=p.logq,
        sample_alpha=p.sample_alpha,
        support=support.clamp(min=1),  # an item of the vocabulary that the log lacks must not become -inf
        mask_accidental_hits=p.mask_accidental_hits,
        impl=p.impl,
        dtype=getattr(torch, p.dtype),
    )


def build_trainer(
    p: GRU4RecParameters, store: SessionStore, validation: SessionStore | None, device: torch.device, **loop: Any
) -> Trainer:
    """A trainer of a new network on `store`; `loop`: further keyword arguments of `Trainer`, and `checkpoint_every`."""
    loader = SessionParallelLoader(
        store, p.batch_size, p.bptt, device, p.shuffle, p.seed, min_live=1 if p.n_sample else 2, impl=p.impl
    )
    network = build_network(p, len(store.vocabulary), device)
    support = torch.from_numpy(np.array(store.support))
    return Trainer(
        network,
        loader,
        training_options(p, loop.pop("checkpoint_every")),
        criterion=build_criterion(p, support).to(device),
        optimizer=SparseAdagrad(network.parameters(), p.learning_rate, p.momentum, p.eps, impl=p.impl),
        sampler=ops.build_alias_table(support, p.sample_alpha, impl=p.impl).to(device) if p.n_sample else None,
        validate=None if validation is None else lambda: validation_metrics(network, validation, p),
        identity=identity(p, store.vocabulary, store.support),
        fingerprint=lambda: log_fingerprint(store),
        **loop,
    )


def training_options(p: GRU4RecParameters, checkpoint_every: int | None) -> TrainingOptions:
    """What the training loop is told."""
    return TrainingOptions(
        n_epochs=p.n_epochs,
        n_sample=p.n_sample,
        accumulate=p.accumulate,
        seed=p.seed,
        lr_scheduler=p.lr_scheduler,
        lr_scheduler_options=p.lr_scheduler_options or {},
        monitor=p.monitor,
        patience=p.patience,
        min_delta=p.min_delta,
        checkpoint_every=checkpoint_every,
        fused=p.fused,
        precision=p.precision,
        impl=p.impl,
    )


def identity(p: GRU4RecParameters, vocabulary: Vocabulary, support: np.ndarray) -> Checkpoint:
    """What every checkpoint of this model holds besides weights: parameters, catalogue, support."""
    parameters = {name: value for name, value in p.to_dict().items() if name not in NOT_STORED}
    config = {"parameters": parameters, "gru4rec_fast": _version.__version__}
    arrays = {VOCABULARY + name: array for name, array in vocabulary.to_arrays().items()} | {"support": support}
    return Checkpoint(FORMAT, config, tensors={name: torch.from_numpy(np.array(a)) for name, a in arrays.items()})


def checkpoint_for(p: GRU4RecParameters, vocabulary: Vocabulary, path: Path) -> Checkpoint:
    """The checkpoint in a file, for a training with these parameters and this catalogue to go on from.

    Raises:
        FileNotFoundError: there is no such file. CheckpointError: it is none, or one of other parameters or items.
    """
    checkpoint = load_checkpoint(path, FORMAT)
    check_same_parameters(path, checkpoint.config["parameters"], p.to_dict(), FREE_ON_RESUME)
    if Vocabulary.from_arrays(checkpoint.group(VOCABULARY)) != vocabulary:
        raise CheckpointError(f"{path} was trained on another catalogue of items; resume with the same data")
    return checkpoint


@contextmanager
def running_by(network: SessionNetwork, impl: str) -> Iterator[None]:
    """Every operator of the network by this implementation, inside the block."""
    before = {module: module.impl for module in network.modules() if hasattr(module, "impl")}
    try:
        for module in before:
            module.impl = impl  # type: ignore[assignment]
        yield
    finally:
        for module, own in before.items():
            module.impl = own


def validation_metrics(network: SessionNetwork, store: SessionStore, p: GRU4RecParameters) -> Mapping[str, float]:
    """Recall and MRR, and the monitored metric, at its cut-off."""
    _, _, cutoff = p.monitor.partition("@")
    at = int(cutoff) if cutoff.isdigit() else 20
    metrics = evaluate_sessions(network, store, cutoffs=(at,), impl=p.impl).metrics
    wanted = dict.fromkeys([f"recall@{at}", f"mrr@{at}", p.monitor])
    return {name: metrics[name] for name in wanted if name in metrics}
