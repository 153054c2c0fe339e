"""The recorded runs of the published GRU4Rec code, under neutral names and in one convention.

`shared/golden` lies beside the checkout; where it is absent `golden_folder()` is None and tests that need it skip.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

PREFIXES = ("xe_", "bprmax_")


def golden_folder() -> Path | None:
    """The folder of recordings, or None where this machine has none."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "golden"
    return folder if folder.is_dir() else None


def golden_names(prefix: str | tuple[str, ...] = PREFIXES) -> list[str]:
    """Names of the recordings that begin so, by default every GRU4Rec one; empty where this machine has none at all.

    FileNotFoundError where it has others only.
    """
    folder = golden_folder()
    if folder is None:
        return []
    if names := sorted(path.stem for path in folder.glob("*.npz") if path.stem.startswith(prefix)):
        return names
    raise FileNotFoundError(f"{folder} has no recording whose name begins with {prefix}")


def load(name: str) -> "GoldenRun":
    """One recording by name; FileNotFoundError without shared/golden."""
    folder = golden_folder()
    if folder is None:
        raise FileNotFoundError("shared/golden is not beside this checkout")
    with np.load(folder / f"{name}.npz") as arrays:
        return GoldenRun(name, {key: arrays[key] for key in arrays.files})


@dataclass(frozen=True)
class GoldenRun:
    """A recording: `arrays` as stored, and the views on it that tests need."""

    name: str
    arrays: dict[str, np.ndarray]

    @cached_property
    def config(self) -> dict[str, Any]:
        """Hyper-parameters in the official names."""
        return json.loads(str(self.arrays["config"]))

    @property
    def embedding_mode(self) -> str:
        """constrained, separate or none (one-hot)."""
        if self.config["constrained_embedding"]:
            return "constrained"
        return "separate" if self.config["embedding"] else "none"

    @property
    def items(self) -> np.ndarray:
        """int64 [n_events], sessions one after another in play order."""
        return self.arrays["events"][:, 1].astype(np.int64)

    @property
    def offsets(self) -> np.ndarray:
        """int64 [n_sessions + 1], where each session begins in `items`."""
        session = self.arrays["events"][:, 0]
        return np.concatenate([[0], np.flatnonzero(np.diff(session)) + 1, [len(session)]]).astype(np.int64)

    @property
    def evaluated_offsets(self) -> np.ndarray:
        """int64, `offsets` of the sessions that the recorded evaluation ranked.

        Without negatives the published code leaves out the tail in evaluation too, as soon as one lane is alone: here
        exactly the last session (n is 224, not 226). semantics.md ranks every event, and so should everything of ours.
        """
        return self.offsets if self.config["n_sample"] else self.offsets[:-1]

    @property
    def support(self) -> np.ndarray:
        """int64 [n_items]"""
        return self.arrays["support"].astype(np.int64)

    @property
    def inputs(self) -> np.ndarray:
        """int64 [n_steps, B], live lanes first, then -1."""
        return self.arrays["inputs"].astype(np.int64)

    @property
    def targets(self) -> np.ndarray:
        """int64 [n_steps, B], live lanes first, then -1."""
        return self.arrays["targets"].astype(np.int64)

    @property
    def negatives(self) -> np.ndarray:
        """int64 [n_steps, n_sample]"""
        return self.arrays["negatives"].astype(np.int64)

    @property
    def losses(self) -> np.ndarray:
        """float64 [n_steps], each before its step's update."""
        return self.arrays["loss"]

    @property
    def hidden_sq_norms(self) -> np.ndarray:
        """float64 [n_steps]: sum over layers and live lanes of the new state, squared."""
        return self.arrays["hidden_sq_norm"]

    @property
    def evaluation(self) -> dict[str, float]:
        """recall@5, mrr@5 (standard ties, the same log, the final weights) and n, the number of targets ranked."""
        recall, mrr = self.arrays["eval/recall@5,mrr@5"]
        return {"recall@5": float(recall), "mrr@5": float(mrr), "n": int(self.arrays["eval/n"])}

    def weights(self, when: str) -> dict[str, np.ndarray]:
        """float64 weights "before" or "after" the epoch under our names, gates r, z, n, h' = (1 - z) * n + z * h.

        layers.{l}.weight_ih, .weight_hh, .bias_ih, .bias_hh (none in a reset-before layer); output.weight, output.bias
        [n_items]; embedding.weight: [n_items, E], or in one-hot mode [n_items, 3H] (then no layers.0.weight_ih).
        """
        prefix = f"{when}/"
        stored = {key.removeprefix(prefix): value for key, value in self.arrays.items() if key.startswith(prefix)}
        weights = {"output.weight": stored["Wy.weight"], "output.bias": stored["By.weight"][:, 0]}
        if "E.weight" in stored:
            weights["embedding.weight"] = stored["E.weight"]
        if "GE.Wx0.weight" in stored:
            weights |= _one_hot(stored)
        first = 1 if "GE.Wx0.weight" in stored else 0  # G.0 then is the second layer
        for key, value in stored.items():
            if key.startswith("G."):
                _, layer, part = key.split(".")
                weights[f"layers.{int(layer) + first}.{part}"] = value
        return {name: value.copy() for name, value in weights.items()}


def _one_hot(stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The one-hot layer: columns n, r, z and h' = (1 - z) * h + z * n as recorded; sigmoid(-a) = 1 - sigmoid(a)."""

    def ours(n: np.ndarray, r: np.ndarray, z: np.ndarray) -> np.ndarray:
        return np.concatenate([r, -z, n], axis=-1)

    r, z = np.split(stored["GE.Wrz0"], 2, axis=1)
    return {
        "embedding.weight": ours(*np.split(stored["GE.Wx0.weight"], 3, axis=1)),
        "layers.0.weight_hh": ours(stored["GE.Wh0"], r, z).T,
        "layers.0.bias_ih": ours(*np.split(stored["GE.Bh0"], 3)),
    }
