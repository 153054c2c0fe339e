"""Benchmark GRU4Rec training in the loops of other libraries and in a plain loop, compared with `fit`.

    pytest benchmarks/integrations/bench_trainers.py --threads 1

A unit of work is one mini-batch of rsc15_100k with the setting "xe-100". The sides (see interleave.py) are:

    fit                     `GRU4Rec.fit`
    loop K, ignite K, lightning K    the fused step, K updates per iteration of the loop
    huggingface K           SessionTrainer of Hugging Face, K updates per step
    lightning autograd      a LightningModule of operators and autograd, with automatic optimization
    lightning plain         a LightningModule of plain PyTorch (naive_pytorch.py), with torch.optim.Adagrad
    lightning plain sparse  the same with nn.Embedding(sparse=True)

A side whose library is not installed is left out.
"""

from __future__ import annotations

import itertools
import logging
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from interleave import Side
from naive_pytorch import SETTINGS, NaiveTraining
from session_logs import SessionLogs
from trainers import estimator_side, gru_runner

from gru4rec_fast import ops
from gru4rec_fast.data import SessionStore
from gru4rec_fast.training import UpdateGroups

SETTING = SETTINGS[0]
GROUP_SIZES = (1, 32, 256)  # K
SHARE_OF_FIT = 0.8  # goal: events per second with K >= 32, as a share of those of `fit`
TIMES_PLAIN = 1.8  # goal: speed of autograd, as a multiple of the speed of plain PyTorch


def grouped_side(run: Callable[[int], None], k: int) -> Side:
    """Return the side that trains in groups of k mini-batches; `run(n_groups)` trains that many groups."""

    def side(n: int) -> float:
        n_groups = max(1, round(n / k))
        started = time.perf_counter()
        run(n_groups)
        return (time.perf_counter() - started) / n_groups / k

    return side


def loop_side(store: SessionStore, k: int) -> Side:
    groups = UpdateGroups(gru_runner(store, SETTING.parameters()), k)
    indices = itertools.cycle(groups)

    def run(n_groups: int) -> None:
        for _ in range(n_groups):
            groups.run(next(indices))

    return grouped_side(run, k)


def ignite_side(store: SessionStore, k: int) -> Side:
    from gru4rec_fast.integrations.ignite import create_session_trainer

    trainer = create_session_trainer(store, {"seed": 0, **SETTING.parameters()}, updates_per_step=k)
    return grouped_side(lambda n: trainer.run(max_epochs=1, epoch_length=n), k)


def huggingface_side(store: SessionStore, k: int) -> Side:
    """Return the side that trains by SessionTrainer. The time is that from the first to the last step."""
    from transformers import PrinterCallback, TrainerCallback

    from gru4rec_fast.integrations.huggingface import GRU4RecForNextItem, SessionTrainer, SessionTrainingArguments

    parameters = {"seed": 0, **SETTING.parameters()}
    for_trainer = {"batch_size", "learning_rate", "momentum"}
    model = GRU4RecForNextItem.from_store(store, **{n: v for n, v in parameters.items() if n not in for_trainer})

    class Clock(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.started = time.perf_counter()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            self.seconds = time.perf_counter() - self.started

    def side(n: int) -> float:
        clock, n_steps = Clock(), max(1, round(n / k))
        arguments = SessionTrainingArguments(
            tempfile.gettempdir(), max_steps=n_steps, updates_per_step=k, use_cpu=True, disable_tqdm=True,
            save_strategy="no", logging_strategy="no", report_to="none",
            per_device_train_batch_size=parameters["batch_size"], learning_rate=parameters["learning_rate"],
            momentum=parameters.get("momentum", 0.0),
        )  # fmt: skip
        trainer = SessionTrainer(model, arguments, train_dataset=store, callbacks=[clock])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return clock.seconds / n_steps / k

    return side


def lightning_side(module: Any, k: int = 1, data: Any = None) -> Side:
    """Return the side that trains a module. The time is that from the first to the last batch, without the setup."""
    import lightning.pytorch as pl

    class Clock(pl.Callback):
        seconds = 0.0

        def on_train_start(self, *_: Any) -> None:
            self.started = time.perf_counter()

        def on_train_end(self, *_: Any) -> None:
            self.seconds = time.perf_counter() - self.started

    def side(n: int) -> float:
        clock, n_steps = Clock(), max(1, round(n / k))
        trainer = pl.Trainer(
            max_steps=n_steps, max_epochs=-1, accelerator="cpu", callbacks=[clock], logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, data)
        return clock.seconds / n_steps / k

    return side


def lightning_sides(store: SessionStore) -> dict[str, Side]:
    import lightning.pytorch as pl

    from gru4rec_fast.integrations.lightning import GRU4RecModule, SessionDataModule

    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    runner = gru_runner(store, SETTING.parameters())  # its network, loss, sampler and optimizer are used by Autograd

    class Autograd(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network, self.criterion = runner.network, runner.criterion

        def on_train_epoch_start(self) -> None:
            self.hidden = self.network.initial_state(SETTING.batch_size)

        def training_step(self, block: Any, batch_idx: int) -> torch.Tensor:
            negatives, _ = ops.negative_sampling(runner.sampler, SETTING.n_sample, seed=0, step=self.global_step)
            output, hidden = self.network(block.inputs, self.hidden, block.reset)
            self.hidden = [state.detach() for state in hidden]
            table = self.network.output_weight, self.network.output_bias
            return self.criterion(output, *table, block.targets, negatives, n_live=block.n_live)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return runner.optimizer

    class Plain(pl.LightningModule):
        def __init__(self, sparse: bool) -> None:
            super().__init__()
            self.naive_training = NaiveTraining(store, SETTING, sparse=sparse)

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return self.naive_training.next_loss()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            parameters = self.naive_training.optimizer_state  # the keys are the parameters
            return torch.optim.Adagrad(parameters, SETTING.learning_rate, eps=1e-6)

        def train_dataloader(self) -> Any:
            return range(1 << 30)

    sides = {
        f"lightning {k}": lightning_side(
            GRU4RecModule(store, {"seed": 0, **SETTING.parameters()}, updates_per_step=k), k
        )
        for k in GROUP_SIZES
    }
    sides["lightning autograd"] = lightning_side(
        Autograd(), data=SessionDataModule(store, batch_size=SETTING.batch_size)
    )
    return sides | {
        "lightning plain": lightning_side(Plain(sparse=False)),
        "lightning plain sparse": lightning_side(Plain(sparse=True)),
    }


def test_trainers(compare: Any, logs: SessionLogs) -> None:
    store = logs.store(SETTING.log)
    sides = {"fit": estimator_side(store, SETTING.parameters())}
    sides |= {f"loop {k}": loop_side(store, k) for k in GROUP_SIZES}
    if find_spec("ignite"):
        sides |= {f"ignite {k}": ignite_side(store, k) for k in GROUP_SIZES}
    if find_spec("transformers") and find_spec("accelerate"):
        sides |= {f"huggingface {k}": huggingface_side(store, k) for k in GROUP_SIZES}
    if find_spec("lightning"):
        sides |= lightning_sides(store)
    goals: dict[str, dict[str, float]] = {
        name: {"fit": SHARE_OF_FIT} if name.split()[-1] in ("32", "256") else {}
        for name in sides
        if name.split()[-1].isdigit()
    }
    if "lightning autograd" in sides:
        goals["lightning autograd"] = {"lightning plain": TIMES_PLAIN}
    seconds = compare(sides, row=f"trainers, {SETTING.name}, {SETTING.log}", unit="mini-batch", goals=goals)
    events_per_mini_batch = store.n_targets / gru_runner(store, SETTING.parameters()).n_updates
    compare.note(events_per_second={name: events_per_mini_batch / s["median"] for name, s in seconds.items()})
