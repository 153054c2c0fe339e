"""Recorded runs of the published GRU4Rec code ("golden" runs), converted to the names and conventions of this package.

They are in the folder `shared/golden` next to the checkout. Without this folder, `golden_folder()` returns None and
tests are skipped.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

PREFIXES = ("xe_", "bprmax_")  # recordings with cross-entropy and with BPR-max


def golden_folder() -> Path | None:
    """Return the folder of recordings, or None if there is none."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "golden"
    return folder if folder.is_dir() else None


def golden_names(prefix: str | tuple[str, ...] = PREFIXES) -> list[str]:
    """Return the names of the recordings that begin with `prefix`, by default of all GRU4Rec recordings.

    Returns [] without `shared/golden`. Raises FileNotFoundError if the folder has only recordings with other names.
    """
    folder = golden_folder()
    if folder is None:
        return []
    if names := sorted(path.stem for path in folder.glob("*.npz") if path.stem.startswith(prefix)):
        return names
    raise FileNotFoundError(f"{folder} has no recording whose name begins with {prefix}")


def load(name: str) -> "GoldenRun":
    """Load a recording by name. Raises FileNotFoundError without shared/golden."""
    folder = golden_folder()
    if folder is None:
        raise FileNotFoundError("shared/golden is missing next to this checkout")
    with np.load(folder / f"{name}.npz") as arrays:
        return GoldenRun(name, {key: arrays[key] for key in arrays.files})


@dataclass(frozen=True)
class GoldenRun:
    """A recording: the stored `arrays`, and properties that convert them."""

    name: str
    arrays: dict[str, np.ndarray]

    @cached_property
    def config(self) -> dict[str, Any]:
        """Hyper-parameters, with the names of the published code."""
        return json.loads(str(self.arrays["config"]))

    @property
    def embedding_mode(self) -> str:
        """Embedding mode: "constrained", "separate" or "none" (one-hot)."""
        if self.config["constrained_embedding"]:
            return "constrained"
        return "separate" if self.config["embedding"] else "none"

    @property
    def items(self) -> np.ndarray:
        """Item indices of all sessions in training order, int64 [n_events]."""
        return self.arrays["events"][:, 1].astype(np.int64)

    @property
    def offsets(self) -> np.ndarray:
        """Bounds of the sessions, int64 [n_sessions + 1]: session s is `items[offsets[s]:offsets[s + 1]]`."""
        session = self.arrays["events"][:, 0]
        return np.concatenate([[0], np.flatnonzero(np.diff(session)) + 1, [len(session)]]).astype(np.int64)

    @property
    def evaluated_offsets(self) -> np.ndarray:
        """`offsets` of the sessions that the recorded evaluation ranked.

        Without sampled negatives, the published code ends an epoch when only one lane (session of the mini-batch) is
        left, also in evaluation. In these recordings this leaves out the last session: 224 targets are ranked, not 226.
        This package ranks every target, as shared/semantics.md says.
        """
        return self.offsets if self.config["n_sample"] else self.offsets[:-1]

    @property
    def support(self) -> np.ndarray:
        """Number of occurrences of each item, int64 [n_items]."""
        return self.arrays["support"].astype(np.int64)

    @property
    def inputs(self) -> np.ndarray:
        """Input items, int64 [n_steps, B]. A row has the items of the live lanes (those with a session), then -1."""
        return self.arrays["inputs"].astype(np.int64)

    @property
    def targets(self) -> np.ndarray:
        """Target items, int64 [n_steps, B], in the same order as `inputs`."""
        return self.arrays["targets"].astype(np.int64)

    @property
    def negatives(self) -> np.ndarray:
        """Sampled negatives, int64 [n_steps, n_sample]."""
        return self.arrays["negatives"].astype(np.int64)

    @property
    def losses(self) -> np.ndarray:
        """Loss of each step before its update, float64 [n_steps]."""
        return self.arrays["loss"]

    @property
    def hidden_sq_norms(self) -> np.ndarray:
        """Sum of the squares of the new hidden state, over all layers and live lanes, float64 [n_steps]."""
        return self.arrays["hidden_sq_norm"]

    @property
    def evaluation(self) -> dict[str, float]:
        """recall@5 and mrr@5 of the final weights on the training log, and n, the number of targets.

        A rank is 1 + the number of items with a higher score than the target ("standard" ties).
        """
        recall, mrr = self.arrays["eval/recall@5,mrr@5"]
        return {"recall@5": float(recall), "mrr@5": float(mrr), "n": int(self.arrays["eval/n"])}

    def weights(self, when: str) -> dict[str, np.ndarray]:
        """Return the weights "before" or "after" the epoch, float64.

        The names and shapes are those that tests/oracle/__init__.py lists.
        """
        prefix = f"{when}/"
        stored = {key.removeprefix(prefix): value for key, value in self.arrays.items() if key.startswith(prefix)}
        weights = {"output.weight": stored["Wy.weight"], "output.bias": stored["By.weight"][:, 0]}
        if "E.weight" in stored:
            weights["embedding.weight"] = stored["E.weight"]
        if "GE.Wx0.weight" in stored:
            weights |= _convert_one_hot_layer(stored)
        first_layer = 1 if "GE.Wx0.weight" in stored else 0  # in one-hot mode, G.0 is the second layer
        for key, value in stored.items():
            if key.startswith("G."):
                _, layer, name = key.split(".")
                weights[f"layers.{int(layer) + first_layer}.{name}"] = value
        return {name: value.copy() for name, value in weights.items()}


def _convert_one_hot_layer(stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Convert the weights of the GRU layer with one-hot inputs.

    The published code has the gate order n, r, z and h' = (1 - z) * h + z * n. In this package z and 1 - z are
    exchanged, so the weights of the update gate are negated: sigmoid(-a) = 1 - sigmoid(a).
    """

    def convert_gates(n: np.ndarray, r: np.ndarray, z: np.ndarray) -> np.ndarray:
        return np.concatenate([r, -z, n], axis=-1)

    r, z = np.split(stored["GE.Wrz0"], 2, axis=1)
    return {
        "embedding.weight": convert_gates(*np.split(stored["GE.Wx0.weight"], 3, axis=1)),
        "layers.0.weight_hh": convert_gates(stored["GE.Wh0"], r, z).T,
        "layers.0.bias_ih": convert_gates(*np.split(stored["GE.Bh0"], 3)),
    }
