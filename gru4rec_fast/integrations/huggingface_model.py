"""GRU4Rec as a model of the library transformers, with the data set and collator of padded sessions for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from gru4rec_fast import ops
from gru4rec_fast.data import SessionStore
from gru4rec_fast.models.builders import build_criterion, build_session_network
from gru4rec_fast.models.parameters import GRU4RecParameters
from gru4rec_fast.nn import SampledLoss

IGNORED_LABEL = -100  # label of a position without a target, as everywhere in transformers
# Parameters of GRU4Rec that belong to the model. The others belong to SessionTrainingArguments.
_MODEL_PARAMETERS = (
    "layers",
    "loss",
    "embedding",
    "constrained_embedding",
    "gru_form",
    "dropout_p_embed",
    "dropout_p_hidden",
    "n_sample",
    "sample_alpha",
    "bpreg",
    "elu_param",
    "logq",
    "label_smoothing",
    "mask_accidental_hits",
    "seed",
)


class GRU4RecConfig(PreTrainedConfig):
    """Configuration of `GRU4RecForNextItem`: the number of items, and the parameters of network and loss.

    Names, defaults and meanings are those of `gru4rec_fast.GRU4Rec`. The negatives that `n_sample` asks for are sampled
    in addition to the targets of the other sessions.

    Raises:
        ValueError, TypeError: a value is out of range or of the wrong type, or a parameter belongs to the trainer.
    """

    model_type = "gru4rec"
    keys_to_ignore_at_inference = ["last_hidden_state", "state"]  # noqa: RUF012 (transformers declares it as a list)

    n_items: int = 1
    layers: list[int] | tuple[int, ...] = (100,)
    loss: str = "cross-entropy"
    embedding: int | str = 0
    constrained_embedding: bool = True
    gru_form: str = "reset_after"
    dropout_p_embed: float = 0.0
    dropout_p_hidden: float = 0.0
    n_sample: int = 2048
    sample_alpha: float = 0.5
    bpreg: float = 1.0
    elu_param: float = 0.5
    logq: float = 0.0
    label_smoothing: float = 0.0
    mask_accidental_hits: bool = False
    seed: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if misplaced := sorted({*kwargs} & {*GRU4RecParameters.names()}):
            raise ValueError(f"{', '.join(misplaced)}: not of the model; options of training are training arguments")
        super().__post_init__(**kwargs)
        if self.n_items < 1:
            raise ValueError(f"n_items={self.n_items}: must be at least 1")
        self.to_parameters()  # checks the values

    def to_parameters(self, **training: Any) -> GRU4RecParameters:
        """Return the parameters of the estimator GRU4Rec; `training` are those that do not belong to the model."""
        return GRU4RecParameters(**{name: getattr(self, name) for name in _MODEL_PARAMETERS}, **training)


@dataclass
class NextItemOutput(ModelOutput):
    """Output of `GRU4RecForNextItem`.

    loss: scalar, if labels were given.
    logits: scores of all items after the last item of each session, [batch, n_items], if they were requested.
    last_hidden_state: hidden states of the last layer, [batch, time, H].
    state: hidden state of each layer after the last position, [batch, H] each; meaningless if that is padding.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    last_hidden_state: Tensor | None = None
    state: tuple[Tensor, ...] | None = None


class GRU4RecForNextItem(PreTrainedModel):
    """GRU4Rec for transformers.Trainer and other loops that train on padded batches of sessions.

    Items are indices from 0 to n_items - 1 (`SessionStore.vocabulary` has their ids). `network` is the
    `nn.SessionNetwork` inside, for `evaluate_sessions` and `models.recommend`.

    Args:
        config: a seed of None is replaced by the seed that is drawn.
        support: integer [n_items], number of occurrences of each item in the training log, from which negatives are
            sampled; None: all are equal. It is saved with the weights.
        sparse: whether the gradients of the tables are sparse. Their cost does not grow with the number of items, but
            few optimizers accept them, and transformers.Trainer does not. The fused step has no gradients. Not saved.
        impl: "auto", "native" or "reference"; not saved.

    Raises:
        ValueError: `support` has another shape, or is negative.
    """

    config_class = GRU4RecConfig
    base_model_prefix = ""
    accepts_loss_kwargs = True  # tells Trainer to pass num_items_in_batch
    support: Tensor
    step: Tensor

    def __init__(
        self, config: GRU4RecConfig, support: ArrayLike | None = None, *, sparse: bool = False, impl: str = "auto"
    ) -> None:
        super().__init__(config)
        counts = np.ones(config.n_items, np.int64) if support is None else np.array(support)
        if counts.shape != (config.n_items,) or counts.dtype.kind not in "iu" or counts.min() < 0:
            raise ValueError(f"support must be {config.n_items} integers that are not negative, one for each item")
        self.sparse, self.impl = sparse, impl
        # from_pretrained makes models on the device "meta", where the initial weights cannot be drawn.
        with torch.device("cpu"):
            network = build_session_network(config.to_parameters(impl=impl), config.n_items)
            self.network = network.to(torch.get_default_dtype())
            for module in network.modules():
                if isinstance(module, torch.nn.Embedding):
                    module.sparse = sparse
            self.register_buffer("support", torch.from_numpy(counts.astype(np.int64)))
            # Number of mini-batches since the training began; with the seed it determines negatives and dropout masks.
            self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        _store_seed(self)
        self.register_load_state_dict_post_hook(_store_seed)
        # `support` and its version, and what `_criterion_and_sampler` made from them.
        self._loss: tuple[Tensor, int, SampledLoss, ops.AliasTable] | None = None
        self.post_init()

    @classmethod
    def from_store(cls, store: SessionStore, *, sparse: bool = False, impl: str = "auto", **parameters: Any) -> Self:
        """Return a new model for the items of a store; `parameters` are those of `GRU4RecConfig`."""
        return cls(GRU4RecConfig(n_items=store.n_items, **parameters), store.support, sparse=sparse, impl=impl)

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Do nothing: the network has drawn its initial weights."""

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        state: Sequence[Tensor] | None = None,
        reset: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        return_logits: bool | None = None,
    ) -> NextItemOutput:
        """Compute the sampled loss, or the scores of all items; see `NextItemOutput`.

        In training mode each call draws new negatives and dropout masks. In eval mode the negatives do not change.

        Args:
            input_ids: int64 [batch, time], items; negative where a position is padding, on either side.
            labels: int64 [batch, time], the item that follows each input; negative (-100) where there is none.
            attention_mask: [batch, time], 0 where a position is padding, in addition to negative input_ids.
            state: hidden state of each layer before the first position; None: zeros.
            reset: bool [batch, time], True where the hidden state is set to zero before a position; None: where a
                session begins, that is after padding.
            num_items_in_batch: number by which the sum of the losses is divided; None: the number of labels.
            return_logits: None returns logits if there are no labels.

        Raises:
            ValueError: a position has a label and is padding.
        """
        inputs = input_ids if attention_mask is None else input_ids.masked_fill(attention_mask == 0, -1)
        inputs = inputs.clamp(min=-1).t()  # [T, B], as in the networks of this package
        live = inputs >= 0
        if reset is not None:
            reset = reset.t()
        elif state is None:
            reset = live.clone()
            reset[1:] &= ~live[:-1]
        if state is None:
            state = self.network.initial_state(inputs.shape[1])
        step = self._next_step(inputs.shape[0])
        hidden, new_state = self.network(inputs, list(state), reset, step=step)
        if return_logits is None:
            return_logits = labels is None
        return NextItemOutput(
            loss=None if labels is None else self._compute_loss(hidden, labels.t(), live, step, num_items_in_batch),
            logits=self._score_last(hidden, live) if return_logits else None,
            last_hidden_state=hidden.transpose(0, 1),
            state=tuple(new_state),
        )

    def _next_step(self, steps: int) -> int | Tensor:
        """Return the number of the first step of a call; in training mode, count its steps."""
        if not self.training:
            return 0
        first = self.step.clone()
        self.step += steps
        return first

    def _compute_loss(
        self, hidden: Tensor, labels: Tensor, live: Tensor, step: int | Tensor, denominator: Tensor | int | None
    ) -> Tensor:
        """Return the sum of the losses of all labels [T, B], divided by `denominator` or by their number."""
        if ((labels >= 0) & ~live).any():
            raise ValueError("labels: a position that is padding has a label; use a negative label there")
        targets = labels.clamp(min=-1)
        n_live = (targets >= 0).sum(1).tolist()
        criterion, sampler = self._criterion_and_sampler()
        negatives = None
        if self.config.n_sample:
            negatives, _ = ops.negative_sampling(
                sampler, self.config.n_sample, seed=self.network.seed, step=step, steps=len(n_live), impl=self.impl
            )
        table = self.network.output_weight, self.network.output_bias
        # The mean over steps of the sum over sessions.
        mean = criterion(hidden, *table, targets, negatives, n_live=n_live)
        return mean * (len(n_live) / (max(sum(n_live), 1) if denominator is None else denominator))

    def _criterion_and_sampler(self) -> tuple[SampledLoss, ops.AliasTable]:
        """Return the loss and the table of negatives of the current support."""
        support = self.support
        if self._loss is None or self._loss[0] is not support or self._loss[1] != support._version:
            p = self.config.to_parameters(impl=self.impl)
            criterion = build_criterion(p, support)
            criterion.batch_size, criterion.sparse = 1, self.sparse  # not B: `_compute_loss` divides
            sampler = ops.build_alias_table(support, p.sample_alpha, impl=self.impl).to(support.device)
            self._loss = support, support._version, criterion.to(support.device), sampler
        return self._loss[2:]

    def _score_last(self, hidden: Tensor, live: Tensor) -> Tensor:
        """Return the scores [B, n_items] after the last position of each session that is not padding."""
        positions = torch.arange(live.shape[0], device=live.device).unsqueeze(1)
        last = (positions * live).amax(0)
        queries = hidden[last, torch.arange(live.shape[1], device=live.device)]
        return torch.nn.functional.linear(queries, self.network.output_weight, self.network.output_bias)


def _store_seed(model: GRU4RecForNextItem, incompatible_keys: Any = None) -> None:
    """Store the network's seed in the configuration; it may have been drawn, or taken from a checkpoint."""
    model.config.seed = model.network.seed


class SessionDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """The sessions of a store, one {"input_ids": int64 [n]} for each session of at least `min_length` events."""

    def __init__(self, store: SessionStore, min_length: int = 2) -> None:
        self.store = store
        self._sessions = np.flatnonzero(np.diff(store.offsets) >= min_length)

    def __len__(self) -> int:
        return len(self._sessions)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        session = self._sessions[index]
        start, end = self.store.offsets[session : session + 2]
        return {"input_ids": np.array(self.store.items[start:end], np.int64)}


@dataclass(frozen=True)
class SessionCollator:
    """Pads sessions of items to a batch of `GRU4RecForNextItem`, on the right.

    labels: True: the inputs are all items but the last, the labels all but the first. False: the inputs are all items,
        for the scores of the next one.
    max_length: number of inputs; of a longer session, the last events are kept. None: no limit.
    """

    labels: bool = True
    max_length: int | None = None

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return {"input_ids", "attention_mask", "labels"}, int64 [batch, time]; labels only if they are wanted."""
        n_labels = int(self.labels)
        sessions = [torch.as_tensor(feature["input_ids"]) for feature in features]
        if self.max_length is not None:
            sessions = [session[-(self.max_length + n_labels) :] for session in sessions]
        if (shortest := min(map(len, sessions))) <= n_labels:
            raise ValueError(f"a session has {shortest} events; it needs at least {n_labels + 1}")

        def pad(parts: list[Tensor], value: int) -> Tensor:
            return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=value)

        inputs = pad([session[: len(session) - n_labels] for session in sessions], -1)
        batch = {"input_ids": inputs, "attention_mask": (inputs >= 0).long()}
        if self.labels:
            batch["labels"] = pad([session[1:] for session in sessions], IGNORED_LABEL)
        return batch
