"""GRU4Rec in transformers.Trainer: a model, and a trainer that makes many updates per step."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

try:
    import accelerate  # noqa: F401 (Trainer needs it)
    from transformers import Trainer, TrainingArguments
    from transformers.trainer_utils import speed_metrics
except ImportError as error:
    raise ImportError(
        "gru4rec_fast.integrations.huggingface needs transformers and accelerate: pip install transformers accelerate"
    ) from error

from gru4rec_fast.data import SessionBlock, SessionStore
from gru4rec_fast.evaluation import evaluate_sessions
from gru4rec_fast.integrations.huggingface_memory import MemoryCallback
from gru4rec_fast.integrations.huggingface_model import (
    GRU4RecConfig,
    GRU4RecForNextItem,
    NextItemOutput,
    SessionCollator,
    SessionDataset,
)
from gru4rec_fast.models.builders import build_session_runner
from gru4rec_fast.optim import clip_grad_norm_
from gru4rec_fast.training import (
    Checkpoint,
    CheckpointError,
    SessionEpochRunner,
    UpdateGroups,
    load_checkpoint,
    save_checkpoint,
)
from gru4rec_fast.training.options import check_at_least
from gru4rec_fast.training.saved_values import damage_as_checkpoint_error

__all__ = [
    "GRU4RecConfig",
    "GRU4RecForNextItem",
    "MemoryCallback",
    "NextItemOutput",
    "SessionCollator",
    "SessionDataset",
    "SessionTrainer",
    "SessionTrainingArguments",
]

POSITION_FILE, POSITION_FORMAT = "session_position.safetensors", "gru4rec_fast.SessionTrainer/1"
# Training arguments without a meaning for SessionTrainer, and the reason or what to do instead.
_REFUSED = {
    "activation_checkpointing": "the memory of a block is small",
    "gradient_checkpointing": "the memory of a block is small",
    "label_smoothing_factor": "set label_smoothing of GRU4RecConfig",
    "neftune_noise_alpha": "set dropout_p_embed of GRU4RecConfig",
    "use_liger_kernel": "the loss is a kernel of this package",
    "auto_find_batch_size": "set per_device_train_batch_size",
    "dataloader_num_workers": "computing a block takes microseconds",
    "dataloader_drop_last": "an epoch ends with its last block",
    "ignore_data_skip": "the position within the epoch is restored, without skipping",
    "include_num_input_tokens_seen": "train_samples_per_second counts events",
    "bf16_full_eval": "the evaluation has the dtype of the weights",
    "fp16_full_eval": "the evaluation has the dtype of the weights",
    "batch_eval_metrics": "metrics are computed by evaluate_sessions",
    "include_for_metrics": "metrics are computed by evaluate_sessions",
    "optim_target_modules": "all parameters are trained alike",
    "deepspeed": "it trains in one process",
    "fsdp": "it trains in one process",
    "parallelism_config": "it trains in one process",
}
# Training arguments that the fused step cannot follow.
_REFUSED_BY_FUSED_STEP = {
    "max_grad_norm": "does not clip gradients",
    "optim": "has no other optimizer than adagrad",
    "weight_decay": "has no weight decay",
    "fp16": "has no fp16; bf16=True rounds the factors of its matrix products to bfloat16",
    "torch_compile": "is compiled already",
}
_NEED_METRIC = {"best", "reduce_lr_on_plateau"}  # save_strategy and lr_scheduler_type that compare a metric


@dataclass
class SessionTrainingArguments(TrainingArguments):
    """Arguments of `SessionTrainer`: those of transformers.TrainingArguments, and those of session-parallel training.

    Defaults are those of `gru4rec_fast.GRU4Rec`. A step of the trainer (`max_steps`, `logging_steps`, `warmup_steps`,
    ...) has `updates_per_step` updates of the weights.
    """

    per_device_train_batch_size: int = field(default=64, metadata={"help": "Sessions processed in parallel (lanes)."})
    per_device_eval_batch_size: int = field(default=512, metadata={"help": "Sessions evaluated in parallel."})
    num_train_epochs: float = field(default=10.0, metadata={"help": "Number of epochs."})
    learning_rate: float = field(default=0.05, metadata={"help": "Learning rate of Adagrad."})
    lr_scheduler_type: str = field(default="constant", metadata={"help": "Learning-rate schedule, stepped every step."})
    optim: str = field(default="adagrad", metadata={"help": "adagrad (optim.SparseAdagrad); others need fused=False."})
    max_grad_norm: float = field(default=0.0, metadata={"help": "Clip gradients to this norm; needs fused=False."})
    train_sampling_strategy: str = field(
        default="sequential", metadata={"help": "Order of the sessions: sequential (by time) or random."}
    )
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Blocks per update of the weights."})
    updates_per_step: int = field(default=32, metadata={"help": "Updates per step of the trainer, by the fused step."})
    fused: bool = field(
        default=True, metadata={"help": "Train by the fused step; False: by autograd, 1 update per step."}
    )
    bptt: int = field(default=1, metadata={"help": "Time steps per block, through which gradients propagate."})
    momentum: float = field(default=0.0, metadata={"help": "Momentum of Adagrad."})
    adagrad_epsilon: float = field(default=1e-6, metadata={"help": "Epsilon under the root of Adagrad."})
    metric_for_best_model: str | None = field(
        default=None,
        metadata={"help": "Metric that selects the best model; by default the recall at the first cut-off."},
    )
    cutoffs: list[int] = field(default_factory=lambda: [20], metadata={"help": "Values of k in eval_recall@k ..."})
    ties: str = field(default="conservative", metadata={"help": "How an evaluation ranks equal scores."})

    def __post_init__(self) -> None:
        names = [getattr(name, "value", name) for name in (self.save_strategy, self.lr_scheduler_type)]
        if self.metric_for_best_model is None and (self.load_best_model_at_end or {*names} & _NEED_METRIC):
            self.metric_for_best_model = f"recall@{self.cutoffs[0]}"
        super().__post_init__()
        check_at_least(1, updates_per_step=self.updates_per_step)
        for name, advice in _REFUSED.items():
            self._refuse(name, f"has no meaning for SessionTrainer: {advice}")
        for name, lack in _REFUSED_BY_FUSED_STEP.items() if self.fused else ():
            self._refuse(name, f"is not possible with fused=True: the fused step {lack}; or set fused=False")
        if self.train_sampling_strategy not in ("sequential", "random"):
            raise ValueError(
                f"train_sampling_strategy={self.train_sampling_strategy!r}: choose 'sequential' or 'random'"
            )
        if self.train_sampling_strategy == "random" and not self.fused:
            raise ValueError(
                "train_sampling_strategy='random' is not possible with fused=False: epochs would differ in length"
            )
        if self.optim == "adagrad" and self.optim_args:
            raise ValueError(f"optim_args={self.optim_args!r}: adagrad has the arguments momentum and adagrad_epsilon")
        if self.optim != "adagrad" and self.momentum:
            raise ValueError(f"momentum={self.momentum} belongs to optim='adagrad'")
        if self.fp16 and self.device.type == "cpu":
            raise ValueError("fp16=True needs a GPU")
        if self.world_size > 1 or self.n_gpu > 1:
            raise ValueError(
                f"SessionTrainer trains in one process on one device, not in {self.world_size} on {self.n_gpu} GPUs "
                "each: set CUDA_VISIBLE_DEVICES to one GPU"
            )

    def _refuse(self, name: str, reason: str) -> None:
        """Raise ValueError if the argument has another value than its default."""
        entry = next((entry for entry in fields(self) if entry.name == name), None)
        value = getattr(self, name, None)
        # An argument that is None, 0, False, [] or "no" is off.
        if entry is not None and value and value != "no" and value != entry.default:
            raise ValueError(f"{name}={getattr(value, 'value', value)!r} {reason}")


class _Steps(IterableDataset[dict[str, int]]):
    """Yields an epoch's step numbers. Trainer prefetches these; SessionTrainer loads a block when its step runs."""

    def __init__(self, n_steps: int) -> None:
        self.n_steps = n_steps

    def __len__(self) -> int:
        return self.n_steps

    def __iter__(self) -> Iterator[dict[str, int]]:
        return ({"step_in_epoch": step} for step in range(self.n_steps))


class SessionTrainer(Trainer):
    """Trains a `GRU4RecForNextItem` with session-parallel mini-batches, many updates per step of the trainer.

    With `fused=True`, a step is one call into C++ that makes `updates_per_step` updates, as `gru4rec_fast.GRU4Rec.fit`
    does; with the same seed and a constant learning rate the weights have the same bits. With `fused=False`, autograd
    makes one update per step, and Trainer's optimizers and clipping are possible.

    `evaluate` ranks the next items of the held-out sessions among all items: eval_recall@20, eval_mrr@20 and so on.
    A training that resumes from a checkpoint, also within an epoch, ends with the same bits on the CPU.

    Args:
        model: the model, whose seed determines negatives, dropout masks and, unless `data_seed` is set, the order of
            the sessions.
        args: the arguments; None: the defaults.
        train_dataset, eval_dataset: a SessionStore (read with the vocabulary of the training store), or a
            `SessionDataset` of one. `eval_dataset` may be a dict of these by name.
        model_init, callbacks, optimizers: as for transformers.Trainer. With `fused=True` the optimizer must be a
            SparseAdagrad of model.network.parameters().

    Raises:
        TypeError: an argument has another type. ValueError: the training arguments, see `SessionTrainingArguments`.
        TrainingDiverged: a loss of the fused step is NaN or infinite.
    """

    args: SessionTrainingArguments
    model: GRU4RecForNextItem
    optimizer: Any
    control: Any

    def __init__(
        self,
        model: GRU4RecForNextItem | None = None,
        args: SessionTrainingArguments | None = None,
        *,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        model_init: Any = None,
        callbacks: Any = None,
        optimizers: Any = (None, None),
    ) -> None:
        args = SessionTrainingArguments("trainer_output") if args is None else args
        if not isinstance(args, SessionTrainingArguments):
            raise TypeError(f"args: SessionTrainer needs SessionTrainingArguments, not {type(args).__name__}")
        if model_init is None and not isinstance(model, GRU4RecForNextItem):
            raise TypeError(f"model: SessionTrainer trains a GRU4RecForNextItem, not a {type(model).__name__}")
        super().__init__(
            model,
            args,
            data_collator=SessionCollator(),
            train_dataset=None if train_dataset is None else _as_dataset(train_dataset, "train_dataset"),
            eval_dataset=None if eval_dataset is None else _as_datasets(eval_dataset),
            model_init=model_init,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self._runner: SessionEpochRunner | None = None
        self._groups: UpdateGroups | None = None  # if the fused step trains
        self._blocks: Iterator[SessionBlock] | None = None  # of the current epoch, if autograd trains

    @property
    def runner(self) -> SessionEpochRunner:
        """The runner of the current training; it has the position, the loader and the hidden states."""
        if self._runner is None:
            raise RuntimeError("there is no training: call train() first")
        return self._runner

    # Trainer calls the next three methods in this order when a training starts.
    def get_train_dataloader(self) -> DataLoader[Any]:
        """Build the runner of a new training; return the loader of the numbers of an epoch's steps."""
        if self.train_dataset is None:
            raise ValueError("train_dataset is missing: give a SessionStore")
        args, model = self.args, self.model
        p = model.config.to_parameters(
            batch_size=args.per_device_train_batch_size,
            learning_rate=args.learning_rate,
            momentum=args.momentum,
            eps=args.adagrad_epsilon,
            bptt=args.bptt,
            accumulate=args.gradient_accumulation_steps,
            shuffle=args.train_sampling_strategy == "random",
            precision="bf16" if args.bf16 and args.fused else "full",
            dtype=str(model.dtype).removeprefix("torch."),
            device=str(args.device),
            impl=model.impl,
        )
        runner = self._runner = build_session_runner(p, model.network, self.train_dataset.store)
        if args.data_seed is not None:
            runner.loader.set_seed(args.data_seed)
        runner.position.step = int(model.step)
        self._groups, self._blocks = None, None
        n_steps = len(runner.loader)
        if args.fused:
            self._groups = UpdateGroups(runner, args.updates_per_step)
            n_steps = len(self._groups) * args.gradient_accumulation_steps
        return DataLoader(_Steps(n_steps), batch_size=None)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Return the optimizer of the training: the given one, SparseAdagrad, or for fused=False that of args.optim."""
        if self.optimizer is None and self.args.optim == "adagrad":
            self.optimizer = self.runner.optimizer
            self.optimizer.param_groups[0]["weight_decay"] = self.args.weight_decay
        optimizer = super().create_optimizer(model)
        self.runner.optimizer = getattr(optimizer, "optimizer", optimizer)  # without Accelerate's wrapper
        if self.args.fused and (reason := self.runner.why_not_fused):
            raise ValueError(f"fused=True is not possible: {reason}; set fused=False")
        return optimizer

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        path = Path(checkpoint) / POSITION_FILE
        if not path.exists():
            raise CheckpointError(f"{checkpoint} has no {POSITION_FILE}: only a model was saved there")
        saved = load_checkpoint(path, POSITION_FORMAT, self.args.device)
        with damage_as_checkpoint_error(saved.path):
            self.runner.load_state_dict({**saved.progress, "hidden": saved.tensors})

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        state = self.runner.state_dict()
        hidden = state.pop("hidden")
        save_checkpoint(Path(output_dir) / POSITION_FILE, Checkpoint(POSITION_FORMAT, {}, state, hidden))

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Make the updates of one step of the trainer; return their mean loss.

        Trainer calls this `gradient_accumulation_steps` times per step. The fused step accumulates by itself, so only
        the last of these calls trains.
        """
        number, n_calls = inputs["step_in_epoch"], self.args.gradient_accumulation_steps
        if self._groups is None:
            return super().training_step(model, inputs, num_items_in_batch)
        outcome = self._groups.run(number // n_calls) if (number + 1) % n_calls == 0 else None
        self.model.step.fill_(self.runner.position.step)
        # In a random order, an epoch may be shorter than the first one, so that its last step has no update.
        loss = 0.0 if outcome is None or outcome.loss is None else outcome.loss
        return torch.tensor(loss, device=self.args.device)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **options: Any) -> Any:
        """Return the loss of the next block of sessions in training, of a padded batch otherwise."""
        if "step_in_epoch" not in inputs:
            return super().compute_loss(model, inputs, *args, **options)
        runner = self.runner
        if inputs["step_in_epoch"] == 0:
            if runner.position.mini_batches:
                runner.start_next_epoch()
            runner.loader.set_epoch(runner.position.epoch - 1)
            self._blocks = iter(runner.loader)
        elif self._blocks is None:
            self._blocks = iter(runner.loader)  # at the position of the checkpoint
        block = next(self._blocks)
        output = model(
            input_ids=block.inputs.t(),
            labels=block.targets.t(),
            state=runner.hidden,
            reset=block.reset.t(),
            num_items_in_batch=self.args.per_device_train_batch_size * len(block.n_live),
        )
        runner.hidden = [state.detach() for state in output.state]
        runner.position.step += len(block.n_live)
        runner.position.mini_batches += len(block.n_live)
        runner.position.events += block.n_events
        return output.loss

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        if not _has_sparse_gradients(model):
            return super()._clip_grad_norm(model)
        self.accelerator.unscale_gradients()
        return clip_grad_norm_(model.parameters(), self.args.max_grad_norm)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        if self.args.fused:
            return None  # the fused step leaves no gradients
        if grad_norm is None and _has_sparse_gradients(model):
            grad_norm = clip_grad_norm_(model.parameters(), math.inf)
        return super()._get_grad_norm(model, grad_norm)

    def num_examples(self, dataloader: DataLoader[Any]) -> int:
        """Return the number of events per epoch of the training loader; for other loaders, the number of sessions."""
        return self.runner.n_events if isinstance(dataloader.dataset, _Steps) else super().num_examples(dataloader)

    def get_total_train_batch_size(self, args: TrainingArguments) -> int:
        """Return the number of events in a step of the trainer, if all lanes have a session."""
        assert isinstance(args, SessionTrainingArguments)
        return super().get_total_train_batch_size(args) * args.bptt * (args.updates_per_step if args.fused else 1)

    def floating_point_ops(self, inputs: Any) -> int:
        """Return 0: the operations are not counted."""
        return 0

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Rank the next items of held-out sessions among all items; return and log the metrics by name.

        Args:
            eval_dataset: see the class; a name selects one of several; None: those given to the constructor.
            ignore_keys: has no effect, since no outputs are gathered.
            metric_key_prefix: prefix of the names: "eval" gives eval_recall@20.

        Raises:
            ValueError: there is no data, or see `gru4rec_fast.evaluation.evaluate_sessions`.
        """
        data = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(data, str):
            data = self.eval_dataset[data]
        if data is None:
            raise ValueError("eval_dataset is missing: give a SessionStore")
        if isinstance(data, Mapping):
            reports = (self.evaluate(data[name], None, f"{metric_key_prefix}_{name}") for name in data)
            return {name: value for report in reports for name, value in report.items()}
        store = _as_dataset(data, "eval_dataset").store
        self._memory_tracker.start()
        started, ties = time.time(), self.args.ties
        report = evaluate_sessions(
            self.model.network,
            store,
            cutoffs=self.args.cutoffs,
            ties=ties,  # type: ignore[arg-type]
            batch_size=self.args.eval_batch_size,
            impl=self.model.impl,
        )
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in report.metrics.items()}
        metrics |= speed_metrics(metric_key_prefix, started, num_samples=report.n_targets)
        self._memory_tracker.stop_and_update_metrics(metrics)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def _has_sparse_gradients(model: nn.Module) -> bool:
    return any(parameter.grad is not None and parameter.grad.is_sparse for parameter in model.parameters())


def _as_dataset(data: Any, name: str) -> SessionDataset:
    """Return the SessionDataset of a store, or `data` itself if it is one."""
    if not isinstance(data, SessionStore | SessionDataset):
        raise TypeError(f"{name} must be a SessionStore, not a {type(data).__name__}")
    return SessionDataset(data) if isinstance(data, SessionStore) else data


def _as_datasets(data: Any) -> SessionDataset | dict[str, SessionDataset]:
    if isinstance(data, Mapping):
        return {name: _as_dataset(value, f"eval_dataset[{name!r}]") for name, value in data.items()}
    return _as_dataset(data, "eval_dataset")
