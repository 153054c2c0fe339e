"""The sampled loss of this package in the transformers of RecTools: SASRec, BERT4Rec and HSTU.

    from gru4rec_fast.integrations.rectools import SampledLossModule

    SASRecModel(lightning_module_type=SampledLossModule, n_negatives=512).fit(dataset)

Data, network, training loop, checkpoints and recommendations are RecTools', see docs/integrations/rectools.md.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gru4rec_fast import ops
from gru4rec_fast.ops._checks import check_choice
from gru4rec_fast.ops._seed import Seeded
from gru4rec_fast.ops.sampled_loss import LOSSES
from gru4rec_fast.optim import SparseAdam

try:
    from rectools import Columns
    from rectools.models.nn.transformers.lightning import TransformerLightningModule
    from rectools.models.nn.transformers.similarity import DistanceSimilarityModule
    from rectools.models.rank import Distance
except ImportError as error:
    raise ImportError(
        f"{error}; gru4rec_fast.integrations.rectools needs RecTools: pip install torch, then 'rectools[torch]'"
    ) from error

# RecTools' names of losses that are the cross-entropy over the target and the sampled negatives here.
_RECTOOLS_LOSSES = {"softmax": "cross-entropy", "sampled_softmax": "cross-entropy"}
_SAVED = "gru4rec_fast_negatives"  # entry of a checkpoint: seed and number of draws
_FIRST_VALIDATION_STEP = 1 << 31  # validation draws other negatives than training, but the same in each epoch


class SampledLossModule(Seeded, TransformerLightningModule):
    """Training of a RecTools transformer by a sampled loss (`gru4rec_fast.ops.sampled_loss`).

    All positions of a mini-batch share `n_negatives` negatives, which are drawn with p ~ support ** sample_alpha, where
    the support of an item is the number of its interactions in the training data. Only the embeddings of the items of
    the mini-batch and of the negatives are computed: no scores of the whole catalogue, and no embeddings of negatives
    for each position. The loss is the mean over the positions with a target, weighted by Columns.Weight; there is one
    call of the operator for each distinct weight in the mini-batch.

    The validation loss has the same formula, with the same negatives in each epoch.

    Arguments of the model (SASRecModel, BERT4RecModel, HSTUModel) that have an effect here:
        lightning_module_type: this class.
        loss: "softmax" (RecTools' default), "sampled_softmax" or "cross-entropy", which are the same; "bpr-max",
            "top1", "top1-max" or "bpr".
        n_negatives: at least 2, for example 512. RecTools' default is 1.

    Args:
        sample_alpha: exponent of the distribution of the negatives, not negative; 0: uniform.
        logq: cross-entropy only; strength of the logQ correction. It subtracts logq * log p(item) from the scores of
            targets and negatives; with 1, the loss estimates the softmax over the whole catalogue (Bengio & Senecal
            2008, Jean et al. 2015).
        mask_accidental_hits: whether to leave out negatives that equal the target of a position.
        elu_param: bpr-max only; alpha of the elu on the scores; 0: no elu.
        bpreg: bpr-max only; weight of the score regularization.
        label_smoothing: cross-entropy only; probability that is moved from the target to the negatives.
        sparse: whether the gradients of the id embeddings are sparse. `SparseAdam` then takes the place of Adam, and
            updates only the rows of a mini-batch; so time and memory of a step do not depend on the catalogue.
        seed: seed of the negatives; None draws one from torch's CPU generator, which `seed_everything` seeds.
        impl: "auto", "native" or "reference".
        rectools: arguments that RecTools passes, and logits_t (temperature) of lightning_module_kwargs.

    Raises:
        TypeError: an entry of lightning_module_kwargs is unknown, or the scores are neither dot products nor cosines.
        ValueError: an argument is out of range; the message names it.
    """

    optimizer: torch.optim.Optimizer | None

    def __init__(
        self,
        *,
        torch_model: Any,
        model_config: dict[str, Any],
        loss: str,
        sample_alpha: float = 0.5,
        logq: float = 0.0,
        mask_accidental_hits: bool = False,
        elu_param: float = 0.5,
        bpreg: float = 1.0,
        label_smoothing: float = 0.0,
        sparse: bool = False,
        seed: int | None = None,
        impl: str = "auto",
        **rectools: Any,
    ) -> None:
        known = inspect.signature(TransformerLightningModule).parameters
        if unknown := rectools.keys() - known.keys():
            raise TypeError(f"lightning_module_kwargs: {unknown.pop()!r} is no argument of SampledLossModule")
        if not isinstance(torch_model.similarity_module, DistanceSimilarityModule):
            name = type(torch_model.similarity_module).__name__
            raise TypeError(f"similarity_module_type={name}: SampledLossModule needs DistanceSimilarityModule")
        row_loss = _RECTOOLS_LOSSES.get(loss, loss)
        check_choice("loss", row_loss, LOSSES)
        self.n_negatives = model_config["n_negatives"]
        if self.n_negatives < 2:
            raise ValueError(
                f"n_negatives={self.n_negatives}: must be at least 2, because all positions of a mini-batch share the "
                "negatives; set it in the model, for example to 512"
            )
        if not 0 <= sample_alpha < math.inf:
            raise ValueError(f"sample_alpha={sample_alpha}: must be finite and not negative (0 draws uniformly)")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing={label_smoothing}: must be in [0, 1)")
        for name, value in (("logq", logq), ("label_smoothing", label_smoothing)):
            if value and row_loss != "cross-entropy":
                raise ValueError(f"{name}={value}: belongs to cross-entropy, not to {loss}")
        super().__init__(torch_model=torch_model, model_config=model_config, loss=loss, **rectools)
        self.sample_alpha = sample_alpha
        self.logq = logq
        self.mask_accidental_hits = mask_accidental_hits
        self.loss_options: dict[str, Any] = {
            "loss": row_loss,
            "elu_param": elu_param,
            "bpreg": bpreg,
            "label_smoothing": label_smoothing,
            "impl": impl,
        }
        self.sparse = sparse
        if sparse:
            for module in torch_model.item_model.modules():
                if isinstance(module, nn.Embedding):
                    module.sparse = True
        self.impl = impl
        self.set_seed(seed)
        self.n_draws = 0  # mini-batches so far; global_step counts updates, which may accumulate several

    @staticmethod
    def requires_negatives(loss: str) -> bool:
        """Return False: RecTools' data loader draws no negatives."""
        return False

    def get_loss_calculator(self) -> None:
        """Return None, so that RecTools calls `_calc_custom_loss` and `_calc_custom_loss_outputs`."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return RecTools' Adam, or with `sparse` a SparseAdam with the same learning rate and betas."""
        if self.sparse and self.optimizer is None:
            self.optimizer = SparseAdam(self.torch_model.parameters(), self.lr, self.adam_betas, impl=self.impl)
        return super().configure_optimizers()

    def on_fit_start(self) -> None:
        """Build the distribution of the negatives from the training data."""
        data = getattr(self.data_preparator, "train_dataset", None)
        if data is None:  # RecTools loads a checkpoint by a `fit` without data
            return
        support = np.bincount(data.interactions.df[Columns.Item], minlength=data.item_id_map.size)
        n_extra = self.data_preparator.n_item_extra_tokens  # padding and mask, the first items
        table = ops.build_alias_table(torch.from_numpy(support[n_extra:]), self.sample_alpha, impl=self.impl)
        self.sampler, self.first_item = table.to(self.device), n_extra

    def _calc_custom_loss(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = self._sampled_loss(batch, self.n_draws)
        self.n_draws += 1
        return loss

    def _calc_custom_loss_outputs(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        return {"loss": self._sampled_loss(batch, _FIRST_VALIDATION_STEP + batch_idx)}

    def _sampled_loss(self, batch: dict[str, Tensor], step: int) -> Tensor:
        """Return the loss of a mini-batch.

        Args:
            batch: x int64 [B, L], the input items; y int64 [B, L] or for validation [B, 1], the targets of the last
                positions; yw, their weights. 0 is padding in x, and no target in y.
            step: number of the draw of negatives.
        """
        inputs, targets, weights = batch["x"], batch["y"], batch["yw"]
        live = (targets != 0) & (weights != 0)
        targets, weights = targets[live], weights[live]
        drawn, _ = ops.negative_sampling(self.sampler, self.n_negatives, seed=self.seed, step=step, impl=self.impl)
        negatives = drawn[0] + self.first_item
        # Embeddings of the distinct items only. Item 0 comes first, because RecTools recognizes padding by the index 0.
        used = torch.cat([inputs.new_zeros(1), inputs.flatten(), targets, negatives])
        items, index = torch.unique(used, return_inverse=True)
        embeddings = self.torch_model.item_model(items)
        _, index_x, index_y, index_n = index.split([1, inputs.numel(), targets.numel(), negatives.numel()])
        hidden = self.torch_model.encode_sessions({**batch, "x": index_x.view_as(inputs)}, embeddings)
        hidden = hidden[:, -live.shape[1] :][live]
        if self.torch_model.similarity_module.distance == Distance.COSINE:
            hidden, embeddings = (F.normalize(x, dim=-1, eps=self.epsilon_cosine_dist) for x in (hidden, embeddings))
        hidden = hidden / self.logits_t

        total = hidden.new_zeros(())
        for weight in weights.unique().tolist() or [0.0]:
            chosen = weights == weight
            ids = torch.cat([index_y[chosen], index_n])
            total = total + weight * ops.sampled_loss(
                hidden[chosen],
                F.embedding(ids, embeddings),
                batch_size=1,
                in_batch=False,
                log_q=self._log_q(items[ids], hidden.dtype),
                ids=ids if self.mask_accidental_hits else None,
                **self.loss_options,
            )
        return total / max(1, targets.numel())

    def _log_q(self, items: Tensor, dtype: torch.dtype) -> Tensor | None:
        """Return the logQ correction of the scores of items."""
        if not self.logq:
            return None
        log_prob = self.sampler.log_prob[items - self.first_item]
        return self.logq * log_prob.to(torch.promote_types(dtype, torch.float32))  # the dtype that the operator takes

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[_SAVED] = {"seed": self.seed, "n_draws": self.n_draws}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if saved := checkpoint.get(_SAVED):  # RecTools' own module does not save this entry
            self.restore_seed(saved["seed"])
            self.n_draws = saved["n_draws"]
