"""The public official PyTorch GRU4Rec, called from a checkout: `Official(path)`.

Two mends let it run on today's NumPy and pandas; they are put in place around its calls, and its files stay as they
are: a pandas Series handed to torch.tensor goes as its `.values`, and its NumPy initial weights, float64 under NumPy 2,
are cast to float32.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from gru4rec_fast.data import SessionStore

CPU = torch.device("cpu")
CACHED_NEGATIVES = 3_000_000
NOT_TIMED = 3  # mini-batches at the start of each fit, which pay for a new model's first gradients


class Official:
    """The modules of a checkout, which train and rank on `device`.

    Raises:
        FileNotFoundError: the path holds no gru4rec_pytorch.py.
    """

    def __init__(self, path: str | Path, device: torch.device = CPU) -> None:
        self.device = device
        if not Path(path, "gru4rec_pytorch.py").exists():
            raise FileNotFoundError(f"--peer official={path}: there is no gru4rec_pytorch.py; give a checkout's folder")
        with mock.patch.object(sys, "path", [str(path), *sys.path]):
            self.code = importlib.import_module("gru4rec_pytorch")
            self.evaluation = importlib.import_module("evaluation")
        model, initial = self.code.GRU4RecModel, self.code.GRU4RecModel._init_numpy_weights
        if not hasattr(initial, "mended"):
            mended = lambda self, shape: initial(self, shape).astype(np.float32)  # noqa: E731
            mended.mended = True  # type: ignore[attr-defined]
            model._init_numpy_weights = mended

    def new(self, **parameters: Any) -> Any:
        """Its estimator, with these parameters."""
        estimator = self.code.GRU4Rec(device=self.device)
        with quiet():
            estimator.set_params(**parameters)
        return estimator

    def fit(self, estimator: Any, log: pd.DataFrame, **arguments: Any) -> None:
        """Its own `fit`."""
        tensor = torch.tensor
        mended = types.ModuleType("torch")
        mended.__dict__.update(torch.__dict__)
        mended.tensor = lambda data, **k: tensor(data.values if isinstance(data, pd.Series) else data, **k)  # type: ignore[attr-defined]
        with quiet(), mock.patch.object(self.code, "torch", mended):
            estimator.fit(log, **arguments)

    def training(self, log: pd.DataFrame, **parameters: Any) -> Callable[[int], float]:
        """A function that trains n mini-batches by `fit`'s own loop and returns seconds per mini-batch.

        Each call is a `fit` of its own, over the first n mini-batches of an epoch; only its loop is timed. Its cache of
        negatives is drawn beforehand, once, in its favor; 1464 mini-batches of 2048 fit.
        """
        estimator = self.new(**parameters, n_epochs=1)
        with quiet():
            sampling = (estimator.n_sample, estimator.sample_alpha, CACHED_NEGATIVES)
            iterator = self.code.SessionDataIterator(log, estimator.batch_size, *sampling, device=self.device)

        def run(n: int) -> float:
            stopping = _StoppingIterator(iterator, n)
            with mock.patch.object(self.code, "SessionDataIterator", lambda *a, **k: stopping):
                self.fit(estimator, log)
            if estimator.error_during_train:
                raise ArithmeticError("the official code met a NaN loss")
            return stopping.seconds / n

        return run

    def session_batches(self, log: pd.DataFrame, batch_size: int) -> Callable[[], int]:
        """A function that plays an epoch of its session iterator, without negatives, and returns its events."""
        with quiet():
            iterator = self.code.SessionDataIterator(log, batch_size, device=self.device)
        return lambda: sum(len(inputs) for inputs, _ in iterator(enable_neg_samples=False))

    def with_weights(self, weights: dict[str, Tensor], item_ids: np.ndarray, hidden: int) -> Any:
        """Its estimator holding the weights of a one-layer, constrained `SessionNetwork`, to be evaluated.

        weights: the network's state_dict. item_ids: the vocabulary's ids by index.
        """
        estimator = self.new(layers=[hidden])
        model = self.code.GRU4RecModel(len(item_ids), [hidden])
        layer = "gru.layers.0."
        model.load_state_dict(
            {
                "Wy.weight": weights["output.weight"],
                "By.weight": weights["output.bias"].unsqueeze(1),
                **{f"G.0.{name.removeprefix(layer)}": w for name, w in weights.items() if name.startswith(layer)},
            }
        )
        index = pd.Series(np.arange(len(item_ids), dtype=np.int32), index=item_ids)
        estimator.model, estimator.error_during_train = model.to(self.device).eval(), False
        estimator.data_iterator = types.SimpleNamespace(itemidmap=index)
        return estimator

    def evaluate(self, estimator: Any, test: pd.DataFrame, batch_size: int = 512) -> tuple[float, float]:
        """Recall@20 and MRR@20 by its own `batch_eval`."""
        with quiet():
            recall, mrr = self.evaluation.batch_eval(estimator, test, [20], batch_size, "conservative")
        return float(recall[20]), float(mrr[20])


def frame_of(store: SessionStore) -> pd.DataFrame:
    """A store's log as the data frame that its `fit` takes; sessions and events stand in the order of their times."""
    sessions = np.repeat(np.arange(store.n_sessions), np.diff(store.offsets))
    return pd.DataFrame({"SessionId": sessions, "ItemId": store.items, "Time": np.arange(store.n_events)})


class _StoppingIterator:
    """Its session iterator, which stops after n mini-batches and takes the time of them."""

    def __init__(self, iterator: Any, n: int) -> None:
        self._iterator, self._n, self.seconds = iterator, n, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._iterator, name)

    def __call__(self, *args: Any, **options: Any) -> Iterator[tuple[Tensor, Tensor]]:
        batches = self._iterator(*args, **options)
        for _ in range(NOT_TIMED):
            yield next(batches)
        started = time.perf_counter()
        for _ in range(self._n):
            yield next(batches)
        self.seconds = time.perf_counter() - started


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Its prints go nowhere."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
