"""The loss of a session-parallel block."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gru4rec_fast import ops
from gru4rec_fast.nn.session_network import SessionNetwork
from gru4rec_fast.ops.sampled_loss import LOSSES, widened


class SampledLoss(nn.Module):
    """Loss of T steps of session-parallel lanes against in-batch and sampled negatives
    (`gru4rec_fast.ops.sampled_loss`).

    Args:
        loss: "cross-entropy", "bpr-max", "top1", "top1-max" or "bpr".
        batch_size: B; each step's sum over live lanes is divided by it, also where fewer lanes live.
        elu_param, bpreg: of bpr-max.
        label_smoothing, logq: of cross-entropy; logq is the strength of the logQ correction, which subtracts
            logq * log support(item) from in-batch columns and logq * sample_alpha * log support(item) from sampled
            ones.
        sample_alpha: exponent of the sampler that draws the negatives.
        support: int64 [n_items], occurrences in the training log; needed where logq is not 0.
        mask_accidental_hits: mask negatives that equal the row's target.
        impl: "auto", "native" or "reference".

    Raises:
        ValueError: an argument that does not fit, named.
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
        impl: str = "auto",
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if loss not in LOSSES:
            raise ValueError(f"loss={loss!r}: choose one of {', '.join(LOSSES)}")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: must be at least 1")
        if logq and loss != "cross-entropy":
            raise ValueError(f"logq={logq}: the logQ correction belongs to cross-entropy, not to {loss}")
        if label_smoothing and loss != "cross-entropy":
            raise ValueError(f"label_smoothing={label_smoothing}: belongs to cross-entropy, not to {loss}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing={label_smoothing}: must lie in [0, 1)")
        if logq and support is None:
            raise ValueError(f"logq={logq}: give support, the items' occurrences in the training log")
        self.loss = loss
        self.batch_size = batch_size
        self.elu_param = elu_param
        self.bpreg = bpreg
        self.label_smoothing = label_smoothing
        self.logq = logq
        self.sample_alpha = sample_alpha
        self.mask_accidental_hits = mask_accidental_hits
        self.impl = impl
        log_support = None
        if logq and support is not None:
            log_support = torch.log(support.to(torch.float64)).to(dtype or torch.get_default_dtype())
        self.register_buffer("log_support", log_support, persistent=False)

    def forward(
        self,
        network: SessionNetwork,
        hidden: Tensor,
        targets: Tensor,
        negatives: Tensor | None,
        n_live: Sequence[int] | None = None,
    ) -> Tensor:
        """Mean over the block's T steps of (sum over live lanes) / batch_size, a scalar.

        Args:
            network: whose output table is scored.
            hidden: [T, B, H].
            targets: int64 [T, B], -1 in dead lanes.
            negatives: int64 [T, N], each step's own; None: in-batch negatives only.
            n_live: live lanes of each step, if the caller knows; None: counted (a host sync on a GPU).
        """
        steps, lanes = targets.shape
        if n_live is None:
            n_live = (targets >= 0).sum(1).tolist()
        losses = [
            self._step(network, hidden[t], targets[t], None if negatives is None else negatives[t], n_live[t] == lanes)
            for t in range(steps)
        ]
        return losses[0] if steps == 1 else torch.stack(losses).mean()

    def _step(
        self, network: SessionNetwork, hidden: Tensor, targets: Tensor, negatives: Tensor | None, all_live: bool
    ) -> Tensor:
        if not all_live:
            live = targets >= 0
            hidden, targets = hidden[live], targets[live]
        items = targets if negatives is None else torch.cat([targets, negatives])
        rows, bias = network.output_rows(items)
        log_q = None
        if self.log_support is not None:
            log_q = self.logq * self.log_support[items]
            log_q[targets.shape[0] :] *= self.sample_alpha
        return ops.sampled_loss(
            hidden,
            rows,
            widened(bias),
            loss=self.loss,
            batch_size=self.batch_size,
            log_q=None if log_q is None else widened(log_q),
            ids=items if self.mask_accidental_hits else None,
            elu_param=self.elu_param,
            bpreg=self.bpreg,
            label_smoothing=self.label_smoothing,
            impl=self.impl,
        )
