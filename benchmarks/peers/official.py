"""Train and evaluate the official code (GRU4Rec_PyTorch_Official, by GRU4Rec's author), imported from a checkout.

Two patches at run time make the code work with current versions of NumPy and pandas. The files of the checkout are not
changed. One patch passes the `.values` of a pandas Series to torch.tensor, instead of the Series. The other patch casts
the initial weights to float32, since they are float64 with NumPy 2.
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
CACHED_NEGATIVES = 3_000_000  # negatives that the official code samples in advance
WARMUP_BATCHES = 3  # mini-batches that are not timed, because they allocate the gradients of a new model


class OfficialGRU4Rec:
    """Trains and evaluates the official GRU4Rec of a checkout on `device`.

    Raises:
        FileNotFoundError: the path has no gru4rec_pytorch.py.
    """

    def __init__(self, path: str | Path, device: torch.device = CPU) -> None:
        self.device = device
        if not Path(path, "gru4rec_pytorch.py").exists():
            raise FileNotFoundError(
                f"--peer official={path}: there is no gru4rec_pytorch.py; give the folder of a checkout"
            )
        with mock.patch.object(sys, "path", [str(path), *sys.path]):
            self.code = importlib.import_module("gru4rec_pytorch")
            self.evaluation = importlib.import_module("evaluation")
        model, original = self.code.GRU4RecModel, self.code.GRU4RecModel._init_numpy_weights
        if not hasattr(original, "is_patched"):
            patched = lambda self, shape: original(self, shape).astype(np.float32)  # noqa: E731
            patched.is_patched = True  # type: ignore[attr-defined]
            model._init_numpy_weights = patched

    def new_estimator(self, **parameters: Any) -> Any:
        """Return a new estimator of the official code with these parameters."""
        estimator = self.code.GRU4Rec(device=self.device)
        with quiet():
            estimator.set_params(**parameters)
        return estimator

    def fit(self, estimator: Any, log: pd.DataFrame, **arguments: Any) -> None:
        """Call the official `fit` with the patched torch.tensor."""
        with quiet(), self.patched_torch():
            estimator.fit(log, **arguments)

    @contextlib.contextmanager
    def patched_torch(self) -> Iterator[None]:
        """Give the official code a torch.tensor that accepts a pandas Series."""
        patched_torch = types.ModuleType("torch")
        patched_torch.__dict__.update(torch.__dict__)
        patched_torch.tensor = lambda data, **k: torch.tensor(data.values if isinstance(data, pd.Series) else data, **k)  # type: ignore[attr-defined]
        with mock.patch.object(self.code, "torch", patched_torch):
            yield

    def training(self, log: pd.DataFrame, **parameters: Any) -> Callable[[int], float]:
        """Return a function that trains n mini-batches in the official `fit` and returns the seconds per mini-batch.

        Each call runs `fit` on the first mini-batches of an epoch: a few untimed ones (WARMUP_BATCHES), then n that are
        timed. The official code samples a cache of negatives in advance, enough for 1464 mini-batches of 2048
        negatives. Filling the cache is not timed, which favors the official code.
        """
        estimator = self.new_estimator(**parameters, n_epochs=1)
        with quiet():
            sampling_options = (estimator.n_sample, estimator.sample_alpha, CACHED_NEGATIVES)
            iterator = self.code.SessionDataIterator(log, estimator.batch_size, *sampling_options, device=self.device)

        def run(n: int) -> float:
            limited = _LimitedIterator(iterator, n)
            with mock.patch.object(self.code, "SessionDataIterator", lambda *a, **k: limited):
                self.fit(estimator, log)
            if estimator.error_during_train:
                raise ArithmeticError("the loss of the official code is NaN")
            return limited.seconds / n

        return run

    def session_batches(self, log: pd.DataFrame, batch_size: int) -> Callable[[], int]:
        """Return a function that iterates over the session batches of an epoch and returns the number of events."""
        with quiet():
            iterator = self.code.SessionDataIterator(log, batch_size, device=self.device)
        return lambda: sum(len(inputs) for inputs, _ in iterator(enable_neg_samples=False))

    def with_weights(self, weights: dict[str, Tensor], item_ids: np.ndarray, hidden: int) -> Any:
        """Return an official estimator for evaluation, with the weights of a one-layer `SessionNetwork`.

        weights: the state_dict of the network, which has a constrained embedding. item_ids: the item ids in the order
        of their indices. hidden: hidden size.
        """
        estimator = self.new_estimator(layers=[hidden])
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
        """Return Recall@20 and MRR@20, computed by the official `batch_eval`."""
        with quiet():
            recall, mrr = self.evaluation.batch_eval(estimator, test, [20], batch_size, "conservative")
        return float(recall[20]), float(mrr[20])


def to_data_frame(store: SessionStore) -> pd.DataFrame:
    """Return a store's log as a data frame for the official `fit`. Items are indices, and times are event numbers."""
    sessions = np.repeat(np.arange(store.n_sessions), np.diff(store.offsets))
    return pd.DataFrame({"SessionId": sessions, "ItemId": store.items, "Time": np.arange(store.n_events)})


class _LimitedIterator:
    """Wraps the official session iterator: yields warm-up mini-batches, then n mini-batches.

    Measures in `seconds` the time until the consumer has used all n.
    """

    def __init__(self, iterator: Any, n: int) -> None:
        self._iterator, self._n, self.seconds = iterator, n, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._iterator, name)

    def __call__(self, *args: Any, **options: Any) -> Iterator[tuple[Tensor, Tensor]]:
        batches = self._iterator(*args, **options)
        for _ in range(WARMUP_BATCHES):
            yield next(batches)
        started = time.perf_counter()
        for _ in range(self._n):
            yield next(batches)
        self.seconds = time.perf_counter() - started


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Discard what the official code prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
