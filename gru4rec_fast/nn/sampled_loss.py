"""The loss of a session-parallel mini-batch, as a module."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gru4rec_fast import ops
from gru4rec_fast.nn.embedding_rows import can_read_values, gather_rows
from gru4rec_fast.ops._checks import check_choice
from gru4rec_fast.ops.sampled_loss import LOSSES


class SampledLoss(nn.Module):
    """Ranking loss over in-batch and sampled negatives, for T steps of B lanes (`gru4rec_fast.ops.sampled_loss`).

    A lane is one of the B sessions that are processed in parallel. It is live at a step if it has a target there. The
    loss of bfloat16 and float16 tensors is computed in float32 and has this dtype.

    Args:
        loss: "cross-entropy", "bpr-max", "top1", "top1-max" or "bpr".
        batch_size: B; the sum over the live lanes of a step is divided by B, even if fewer lanes are live.
        elu_param: bpr-max only; alpha of the elu on the scores; 0: no elu.
        bpreg: bpr-max only; weight of the score regularization.
        label_smoothing: cross-entropy only; probability that is moved from the target to the other items.
        logq: cross-entropy only; strength of the logQ correction. It subtracts logq * log support(item) from the scores
            of targets, and logq * sample_alpha * log support(item) from the scores of sampled negatives.
        sample_alpha: exponent of the distribution from which the negatives are sampled.
        support: int64 [n_items], number of occurrences of each item in the training log; needed where logq is not 0.
        mask_accidental_hits: whether to leave out negatives that equal the target of the lane.
        in_batch: True: the targets of the other lanes are negatives, too. False: only the sampled negatives are.
        sparse: whether the gradients of weight and bias are sparse (COO), with the rows of targets and negatives only.
            If weight is a table of a SessionNetwork, use the same value there.
        dtype: dtype of the logQ correction; None: torch's default.
        impl: "auto", "native" or "reference".

    Raises:
        ValueError: an argument is out of range; the message names it.
    """

    log_support: Tensor | None

    def __init__(
        self,
        loss: str = "cross-entropy",
        *,
        batch_size: int,
        elu_param: float = 0.5,
        bpreg: float = 1.0,
        label_smoothing: float = 0.0,
        logq: float = 0.0,
        sample_alpha: float = 0.5,
        support: Tensor | None = None,
        mask_accidental_hits: bool = False,
        in_batch: bool = True,
        sparse: bool = False,
        dtype: torch.dtype | None = None,
        impl: str = "auto",
    ) -> None:
        super().__init__()
        check_choice("loss", loss, LOSSES)
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: must be at least 1")
        if logq and loss != "cross-entropy":
            raise ValueError(f"logq={logq}: the logQ correction belongs to cross-entropy, not to {loss}")
        if label_smoothing and loss != "cross-entropy":
            raise ValueError(f"label_smoothing={label_smoothing}: belongs to cross-entropy, not to {loss}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing={label_smoothing}: must be in [0, 1)")
        if logq and support is None:
            raise ValueError(f"logq={logq}: give support, the number of occurrences of each item in the training log")
        self.loss = loss
        self.batch_size = batch_size
        self.elu_param, self.bpreg = elu_param, bpreg
        self.label_smoothing = label_smoothing
        self.logq, self.sample_alpha = logq, sample_alpha
        self.mask_accidental_hits = mask_accidental_hits
        self.in_batch = in_batch
        self.sparse = sparse
        self.impl = impl
        log_support = None
        if logq and support is not None:
            log_support = torch.log(support.to(torch.float64)).to(dtype or torch.get_default_dtype())
        self.register_buffer("log_support", log_support, persistent=False)

    def forward(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        negatives: Tensor | None = None,
        *,
        n_live: Sequence[int] | None = None,
        lanes: tuple[int, int] | None = None,
    ) -> Tensor:
        """Return the mean over T steps of (sum of the losses of live lanes) / batch_size, a scalar.

        Args:
            hidden: hidden states, [T, B, H]; with `lanes`, those of these lanes are enough.
            weight: output table [n_items, H]: a parameter, the weight of an nn.Embedding, or a tied input embedding.
            bias: output bias [n_items], or None.
            targets: int64 [T, B]; -1 where a position is padding.
            negatives: int64 [T, N], the sampled negatives of each step; None: in-batch negatives only.
            n_live: for each step, the number of targets that are not padding, if it is known. It saves time where there
                is padding.
            lanes: (first, end): sum over these lanes only. The targets of all other lanes remain negatives, so that the
                losses of parts of the lanes add up to the loss of all, with less memory at a time.

        Raises:
            ValueError: the shapes do not fit each other. TypeError: `weight` is a module.
        """
        _check_shapes(hidden, weight, bias, targets, negatives, lanes)
        if self.log_support is not None and len(self.log_support) < len(weight):
            raise ValueError(
                f"support has {len(self.log_support)} items, weight {len(weight)}: make a new SampledLoss with the "
                "support of all items"
            )
        if negatives is None and not self.in_batch:
            raise ValueError("in_batch=False needs negatives: without them, a target is compared with nothing")
        steps, n_lanes = targets.shape
        own = slice(None) if lanes is None else slice(*lanes)
        if hidden.shape[1] == n_lanes:
            hidden = hidden[:, own]
        if n_live is None and can_read_values(targets):
            n_live = (targets >= 0).sum(1).tolist()
        losses = []
        for t, (step_hidden, step_targets) in enumerate(zip(hidden.unbind(0), targets.unbind(0), strict=True)):
            live = step_targets >= 0 if n_live is None or n_live[t] != n_lanes else None
            part = lanes
            if live is not None and (n_live is not None or lanes is not None):
                # Leave padding out; on a GPU, this synchronizes.
                if lanes is not None:
                    part = int(live[: lanes[0]].sum()), int(live[: lanes[1]].sum())
                step_hidden, step_targets, live = step_hidden[live[own]], step_targets[live], None
            step_negatives = None if negatives is None else negatives[t]
            losses.append(self._step(step_hidden, weight, bias, step_targets, step_negatives, live, part))
        return losses[0] if steps == 1 else torch.stack(losses).mean()

    def _step(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        negatives: Tensor | None,
        live: Tensor | None,
        part: tuple[int, int] | None,
    ) -> Tensor:
        """Return the loss of one step: hidden [M, H], targets [M], negatives [N]; live [M] is None without padding.

        With a part (first, end) of the targets, hidden has these rows only, and live must be None.
        """
        count = None
        if part is not None:  # the first columns are the targets of the part
            others = [targets[: part[0]], targets[part[1] :]] if self.in_batch else []
            targets = torch.cat([targets[slice(*part)], *others])
        if negatives is not None and can_read_values(negatives):
            # Popular items are drawn many times. Counting equal negatives gives the same loss in less time.
            negatives, count = torch.unique(negatives, return_counts=True)
        items = targets if negatives is None else torch.cat([targets, negatives])
        padding = live is not None
        log_q = None
        if self.log_support is not None:
            log_q = self.logq * gather_rows(self.log_support, items, padding=padding)
            log_q[targets.shape[0] :] *= self.sample_alpha
        if count is not None:  # the targets of other lanes than those of the part count once
            count = torch.cat([count.new_ones(targets.shape[0] - hidden.shape[0]), count])
        rows = gather_rows(weight, items, sparse=self.sparse, padding=padding)
        biases = None if bias is None else gather_rows(bias, items, sparse=self.sparse, padding=padding)
        if hidden.dtype == rows.dtype == torch.float16:  # the operator has no float16
            hidden, rows = hidden.float(), rows.float()
        return ops.sampled_loss(
            hidden,
            rows,
            None if biases is None else _at_least_float32(biases),
            loss=self.loss,
            batch_size=self.batch_size,
            in_batch=self.in_batch,
            live=live,
            log_q=None if log_q is None else _at_least_float32(log_q),
            ids=items if self.mask_accidental_hits else None,
            count=None if count is None else count.to(torch.promote_types(rows.dtype, torch.float32)),
            elu_param=self.elu_param,
            bpreg=self.bpreg,
            label_smoothing=self.label_smoothing,
            impl=self.impl,
        )


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _check_shapes(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    negatives: Tensor | None,
    lanes: tuple[int, int] | None,
) -> None:
    n_lanes = targets.shape[1] if targets.dim() == 2 else 0
    if lanes is not None and not 0 <= lanes[0] <= lanes[1] <= n_lanes:
        raise ValueError(f"lanes={lanes}: must be (first, end) with 0 <= first <= end <= {n_lanes}")
    widths = {n_lanes} if lanes is None else {n_lanes, lanes[1] - lanes[0]}
    if hidden.dim() != 3 or targets.shape[:1] != hidden.shape[:1] or hidden.shape[1] not in widths:
        raise ValueError(f"hidden must be [T, B, H] and targets [T, B], not {[*hidden.shape]} and {[*targets.shape]}")
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight must be a tensor, such as embedding.weight, not {type(weight).__name__}")
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[2]:
        raise ValueError(f"weight must be [n_items, H] with H = {hidden.shape[2]}, not {[*weight.shape]}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be [n_items] with n_items = {weight.shape[0]}, not {[*bias.shape]}")
    if negatives is not None and (negatives.dim() != 2 or negatives.shape[0] != targets.shape[0]):
        raise ValueError(f"negatives must be [T, N] with T = {targets.shape[0]}, not {[*negatives.shape]}")
