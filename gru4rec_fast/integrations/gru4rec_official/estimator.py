"""GRU4Rec with the methods, attributes and arguments of the official PyTorch code, and its evaluation."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor, nn

import gru4rec_fast
from gru4rec_fast.evaluation import Ties
from gru4rec_fast.integrations.gru4rec_official.official_checkpoint import is_zip, read_official_checkpoint
from gru4rec_fast.models.builders import find_device
from gru4rec_fast.nn import SessionNetwork
from gru4rec_fast.training import Checkpoint, CheckpointError, TrainingDiverged

if TYPE_CHECKING:
    import pandas as pd


class GRU4Rec(gru4rec_fast.GRU4Rec):
    """`gru4rec_fast.GRU4Rec` for scripts that were written for the official PyTorch code.

        from gru4rec_fast.integrations.gru4rec_official import GRU4Rec, batch_eval

        model = GRU4Rec(loss="cross-entropy", layers=[100], n_epochs=10)
        model.fit(data)
        recall, mrr = batch_eval(model, test_data, cutoff=[5, 20])
        model.savemodel("model.safetensors")

    Parameters and their defaults are those of the official code, except for `device`, which is "cpu" by default. As in
    the official code, `logq` has no effect with other losses than cross-entropy. All methods of `gru4rec_fast.GRU4Rec`
    are inherited; `load` also reads model files of the official code.

    Attributes:
        error_during_train: True if the loss of the last `fit` was NaN or infinite.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.error_during_train = False

    def _convert_and_check(self) -> None:
        if self.loss != "cross-entropy" and self.logq:
            warnings.warn(f"logq={self.logq} has no effect with loss={self.loss!r}, and is set to 0", stacklevel=2)
            self.logq = 0.0
        super()._convert_and_check()

    def set_params(self, **parameters: Any) -> Self:
        """Set parameters by name and return self. A value may be text, as in a parameter string: "512/256"."""
        return super().set_params(**self.parse_texts(parameters))

    def fit(  # type: ignore[override]  # in the official code these arguments may be positional
        self,
        data: Any,
        sample_cache_max_size: int = 10_000_000,
        compatibility_mode: bool = True,
        item_key: str = "ItemId",
        session_key: str = "SessionId",
        time_key: str = "Time",
        **options: Any,
    ) -> Self:
        """Train on a log with the arguments of the official `fit`.

        A loss that is NaN or infinite ends the training with a warning, and sets `error_during_train`.

        Args:
            data: see `gru4rec_fast.GRU4Rec.fit`.
            sample_cache_max_size, compatibility_mode: have no effect, since no samples are cached here.
            item_key, session_key, time_key: names of the columns of item ids, session ids and times.
            options: further arguments of `gru4rec_fast.GRU4Rec.fit`.
        """
        try:
            super().fit(data, item_key=item_key, session_key=session_key, time_key=time_key, **options)
        except TrainingDiverged as error:
            self.error_during_train = True
            warnings.warn(f"{error}; error_during_train is set", stacklevel=2)
        return self

    def to(self, device: torch.device | str) -> Self:
        """Move the network to a device, on which `fit` will also train, and return self."""
        target = find_device(str(device))
        if self.network is not None:
            self.network.to(target)
        return self.set_params(device=str(device))

    def savemodel(self, path: str | os.PathLike[str]) -> None:
        """Write the model to a safetensors file (not a pickle), see `save`.

        Raises RuntimeError: the model is not fitted yet, or `error_during_train` is True.
        """
        require_trained(self)
        self.save(path)

    @classmethod
    def loadmodel(cls, path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Self:
        """Return the model in a file that `savemodel`, `save`, or the `savemodel` of the official code wrote."""
        return cls.load(path, device)

    @property
    def model(self) -> ScoringModel | None:
        """The network with the `forward` of the official network; None before `fit` or `load`."""
        return None if self.network is None else ScoringModel(self.network)

    @property
    def data_iterator(self) -> ItemMap:
        """The item ids by index, as `data_iterator.itemidmap` and `data_iterator.n_items`. Needs pandas."""
        import pandas as pd

        self._fitted_network()
        assert self.vocabulary is not None
        n_items = len(self.vocabulary)
        return ItemMap(pd.Series(np.arange(n_items, dtype=np.int32), self.vocabulary.ids.tolist(), name="ItemIdx"))

    def _adjust_hidden(self, n_valid: int, finished_mask: np.ndarray, valid_mask: np.ndarray, H: list[Tensor]) -> bool:
        """Start new sessions in the hidden states H; return True if the epoch ends here.

        The evaluation.py of the official code calls this method.

        Args:
            n_valid: number of lanes that have a session.
            finished_mask: bool [lanes], lanes whose session has ended. Their hidden states are set to zero.
            valid_mask: bool [lanes], lanes that have a session now. The others are removed from H, in place.
            H: hidden states [lanes, H_l] of the layers.
        """
        if self.n_sample == 0 and n_valid < 2:  # a single lane has no negatives
            return True
        finished, valid = (torch.as_tensor(mask, device=H[0].device) for mask in (finished_mask, valid_mask))
        H[:] = [layer.masked_fill(finished[:, None], 0)[valid] for layer in H]
        return False

    @classmethod
    def _read_checkpoint(cls, path: str | os.PathLike[str]) -> Checkpoint:
        return read_official_checkpoint(path) if is_zip(path) else super()._read_checkpoint(path)


class ScoringModel(nn.Module):
    """A network with the `forward` of the official network.

    Attributes:
        network: the `gru4rec_fast.nn.SessionNetwork`, with which parameters are shared.
    """

    def __init__(self, network: SessionNetwork) -> None:
        super().__init__()
        self.network = network
        self.train(network.training)

    def forward(self, X: Tensor, H: list[Tensor], Y: Tensor | None, training: bool = False) -> Tensor:
        """Return the scores of items after one more event in each session, [B, n], and update H in place.

        Args:
            X: integers [B], the item of the event in each session.
            H: hidden states [B, H_l] of the layers.
            Y: integers [n], the items to score; None: all items.
            training: True applies dropout.
        """
        self.train(training)
        hidden, state = self.network(X.long()[None], H)
        H[:] = [layer.clone() for layer in state]  # callers detach H in place, which torch refuses for views
        weight, bias = self.network.output_weight, self.network.output_bias
        if Y is not None:
            weight, bias = weight[Y.long()], bias[Y.long()]
        return hidden[0] @ weight.T + bias


@dataclass(frozen=True)
class ItemMap:
    """The items of the training data: `itemidmap` maps ids (its index) to the indices 0, 1, 2 ... (its values)."""

    itemidmap: pd.Series

    @property
    def n_items(self) -> int:
        """Number of items."""
        return len(self.itemidmap)


def batch_eval(
    gru: GRU4Rec,
    test_data: Any,
    cutoff: Sequence[int] = (20,),
    batch_size: int = 512,
    mode: Ties = "conservative",
    item_key: str = "ItemId",
    session_key: str = "SessionId",
    time_key: str = "Time",
) -> tuple[dict[int, float], dict[int, float]]:
    """Return recall and MRR at each cut-off, {k: value} and {k: value}, as the official `evaluation.batch_eval`.

    Args:
        gru: the model.
        test_data: test sessions, in the forms that `GRU4Rec.evaluate` accepts.
        cutoff: the values of k.
        batch_size: sessions processed in parallel; does not change the result.
        mode: rank of the target among items with equal scores: "standard", "conservative" or "median".
        item_key, session_key, time_key: names of the columns of item ids, session ids and times.

    Raises:
        RuntimeError: the model is not fitted yet, or `error_during_train` is True.
        ValueError: see `GRU4Rec.evaluate`.
    """
    require_trained(gru)
    columns: dict[str, Any] = {"item_key": item_key, "session_key": session_key, "time_key": time_key}
    metrics = gru.evaluate(test_data, cutoffs=cutoff, ties=mode, batch_size=batch_size, **columns).metrics
    return {k: metrics[f"recall@{k}"] for k in cutoff}, {k: metrics[f"mrr@{k}"] for k in cutoff}


def load_official(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> GRU4Rec:
    """Return the model in a .pt file that the official code wrote, converted to this package.

    The file is a pickle. It is read without running any code in it, in a process that can neither write files nor use
    much memory. The code of the official repository is not needed.

    Args:
        path: the file, which `torch.save` wrote (torch 1.6 or later).
        device: where the model runs.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is no official model, is damaged, or the training of the model has failed.
        ValueError, RuntimeError: there is no such device.
    """
    if not is_zip(path):
        raise CheckpointError(f"{path} is no model file of the official code, written with torch 1.6 or later")
    return GRU4Rec.load(path, device)


def require_trained(model: GRU4Rec) -> None:
    if model.error_during_train:
        raise RuntimeError("the training of this model has failed (error_during_train is True): call fit again")
