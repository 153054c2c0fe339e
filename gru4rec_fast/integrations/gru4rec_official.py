"""GRU4Rec with the methods and arguments of the official PyTorch code (github.com/hidasib/GRU4Rec_PyTorch_Official)."""

from __future__ import annotations

import os
from typing import Any, Self

import torch

import gru4rec_fast


class GRU4Rec(gru4rec_fast.GRU4Rec):
    """`gru4rec_fast.GRU4Rec` for scripts that were written for the official PyTorch code.

        from gru4rec_fast.integrations.gru4rec_official import GRU4Rec

        model = GRU4Rec(loss="cross-entropy", layers=[100], n_epochs=10)
        model.fit(data)
        model.savemodel("model.safetensors")

    Parameters and their defaults are those of the official code. All methods of `gru4rec_fast.GRU4Rec` are inherited.
    """

    def set_params(self, **parameters: Any) -> Self:
        """Set parameters by name, whose values may be text as in a parameter string, and return self."""
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

        Args:
            data: see `gru4rec_fast.GRU4Rec.fit`.
            sample_cache_max_size, compatibility_mode: have no effect, since no samples are cached here.
            item_key, session_key, time_key: names of the columns of item ids, session ids and times.
            options: further arguments of `gru4rec_fast.GRU4Rec.fit`.
        """
        return super().fit(data, item_key=item_key, session_key=session_key, time_key=time_key, **options)

    def savemodel(self, path: str | os.PathLike[str]) -> None:
        """Write the model to a safetensors file (not a pickle), see `save`."""
        self.save(path)

    @classmethod
    def loadmodel(cls, path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Self:
        """Return the model in a file that `savemodel` or `save` wrote."""
        return cls.load(path, device)
