"""Train GRU4Rec in plain PyTorch, as a second baseline in addition to the official code.

The model has one layer and a constrained embedding (inputs and outputs share the item table). It uses a Python session
iterator, torch.multinomial for the negatives, F.dropout, nn.GRUCell, an nn.Embedding as the item table, autograd, and
Adagrad. With sparse=True, Adagrad updates only the rows with gradients. Optionally, torch.compile compiles the
computation from the gathered rows to the loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gru4rec_fast.data import SessionStore


@dataclass(frozen=True)
class Setting:
    """The published hyper-parameters of one training. `name` is loss and width; `log` is the name of the data set."""

    name: str
    loss: str
    width: int
    batch_size: int
    sample_alpha: float
    learning_rate: float
    dropout_p_embed: float = 0.0
    dropout_p_hidden: float = 0.0
    momentum: float = 0.0
    logq: float = 0.0
    bpreg: float = 1.0
    elu_param: float = 0.0
    n_sample: int = 2048
    log: str = "rsc15_100k"

    def parameters(self) -> dict[str, Any]:
        """Return the hyper-parameters by their names in the official code, which `GRU4Rec` also accepts."""
        layers = {"layers": [self.width]}
        return layers | {k: v for k, v in asdict(self).items() if k not in ("name", "log", "width")}

    def __str__(self) -> str:
        return self.name


SETTINGS = [
    Setting(
        "xe-100", "cross-entropy", width=100, batch_size=32, sample_alpha=0.75, learning_rate=0.1, dropout_p_embed=0.1,
        logq=1.0,
    ),
    Setting(
        "xe-480", "cross-entropy", width=480, batch_size=48, sample_alpha=0.2, learning_rate=0.07, dropout_p_hidden=0.2,
        logq=1.0,
    ),
    Setting(
        "bprmax-224", "bpr-max", width=224, batch_size=80, sample_alpha=0.4, learning_rate=0.05, dropout_p_embed=0.5,
        dropout_p_hidden=0.05, momentum=0.4, bpreg=1.95, elu_param=0.5,
    ),
    Setting(
        "bprmax-512", "bpr-max", width=512, batch_size=128, sample_alpha=0.3, learning_rate=0.05, dropout_p_embed=0.5,
        dropout_p_hidden=0.3, momentum=0.15, bpreg=0.9, elu_param=1.0, log="diginetica",
    ),
]  # fmt: skip


def session_batches(store: SessionStore, batch_size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield inputs, targets and reset flags [B] of each step, until no session is left for a lane.

    A lane is one of the B sessions processed in parallel. When the session of a lane ends, the lane continues with the
    next session, and its reset flag is True.
    """
    items, offsets = store.items, store.offsets
    position = offsets[:batch_size].copy()
    end = offsets[1 : batch_size + 1].copy()
    reset, next_session = np.ones(batch_size, dtype=bool), batch_size
    while True:
        yield tuple(torch.from_numpy(np.array(a)) for a in (items[position], items[position + 1], reset))  # type: ignore[misc]
        position += 1
        reset = position + 1 >= end
        for lane in np.flatnonzero(reset):
            if next_session >= store.n_sessions:
                return
            position[lane], end[lane] = offsets[next_session], offsets[next_session + 1]
            next_session += 1


class NaiveTraining:
    """A GRU4Rec network with its optimizer state and its batches; `step` trains on the next mini-batch."""

    def __init__(
        self,
        store: SessionStore,
        setting: Setting,
        compiled: bool = False,
        device: torch.device | str = "cpu",
        sparse: bool = True,
    ) -> None:
        self.store, self.setting, self.device = store, setting, device
        self.table = nn.Embedding(store.n_items, setting.width, sparse=sparse, device=device)
        self.bias = nn.Embedding(store.n_items, 1, sparse=sparse, device=device)
        nn.init.uniform_(self.table.weight, -0.05, 0.05)
        nn.init.zeros_(self.bias.weight)
        self.cell = nn.GRUCell(setting.width, setting.width, device=device)
        parameters = [self.table.weight, self.bias.weight, *self.cell.parameters()]
        self.optimizer_state = {p: (torch.zeros_like(p), torch.zeros_like(p)) for p in parameters}
        support = torch.tensor(store.support, dtype=torch.float32, device=device)
        self.sampling_weights, self.log_support = support**setting.sample_alpha, support.log()
        self.hidden = torch.zeros(setting.batch_size, setting.width, device=device)
        self.batches = session_batches(store, setting.batch_size)
        self._loss_and_hidden = torch.compile(self._forward, dynamic=False) if compiled else self._forward

    def step(self) -> float:
        """Train on the next mini-batch and return its loss."""
        loss = self.next_loss()
        loss.backward()
        with torch.no_grad():
            for parameter in self.optimizer_state:
                self._update(parameter)
        return loss.item()

    def next_loss(self) -> Tensor:
        """Return the loss of the next mini-batch, a scalar from which autograd computes the gradients."""
        s = self.setting
        batch = next(self.batches, None)
        if batch is None:
            self.batches = session_batches(self.store, s.batch_size)
            batch = next(self.batches)
        inputs, targets, reset = (t.to(self.device) for t in batch)
        targets = targets.long()
        negatives = torch.multinomial(self.sampling_weights, s.n_sample, replacement=True)
        columns = torch.cat([targets, negatives])
        log_q = None
        if s.logq:
            log_q = self.log_support[columns]
            log_q[s.batch_size :] *= s.sample_alpha
        loss, hidden = self._loss_and_hidden(
            self.table(inputs.long()), self.hidden * ~reset.unsqueeze(1), self.table(columns), self.bias(columns), log_q
        )
        self.hidden = hidden.detach()
        return loss

    def _forward(
        self, x: Tensor, state: Tensor, rows: Tensor, bias: Tensor, log_q: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the loss and the next hidden state, computed from gathered rows of the item table.

        x: embeddings of the inputs. rows, bias: output weights and biases of the targets, followed by those of the
        negatives. log_q: logQ correction of the scores of these items; None for no correction.
        """
        s = self.setting
        hidden = F.dropout(self.cell(F.dropout(x, s.dropout_p_embed), state), s.dropout_p_hidden)
        scores = hidden @ rows.T + bias.T
        if log_q is not None:
            scores = scores - s.logq * log_q
        return self._loss(scores) / s.batch_size, hidden

    def _loss(self, y: Tensor) -> Tensor:
        """Return the summed loss of scores y [B, B + n_sample]; the target of row b is column b."""
        s, m = self.setting, y.shape[0]
        if s.loss == "cross-entropy":
            return F.cross_entropy(y, torch.arange(m, device=y.device), reduction="sum")
        y = F.elu(y, s.elu_param)
        target = y.diagonal().unsqueeze(1)
        is_target = torch.eye(m, y.shape[1], dtype=torch.bool, device=y.device)
        weight = torch.softmax(y.masked_fill(is_target, -torch.inf), 1)
        target_wins = (weight * torch.sigmoid(target - y)).sum(1)  # probability that the target outranks a negative
        return (-torch.log(target_wins + 1e-24) + s.bpreg * (weight * y * y).sum(1)).sum()

    def _update(self, parameter: Tensor) -> None:
        """Update the parameter, or its rows with gradients, by Adagrad with momentum."""
        s, (accumulator, velocity) = self.setting, self.optimizer_state[parameter]
        assert parameter.grad is not None
        rows: slice | Tensor = slice(None)
        grad = parameter.grad
        if grad.is_sparse:
            grad = grad.coalesce()
            rows, grad = grad.indices()[0], grad.values()
        accumulator[rows] += grad * grad
        change = -s.learning_rate * grad / (accumulator[rows] + 1e-6).sqrt()
        if s.momentum:
            change += s.momentum * velocity[rows]
            velocity[rows] = change
        parameter[rows] += change
        parameter.grad = None
