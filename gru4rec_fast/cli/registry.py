"""The models by the names that `--model` takes: parameter classes, estimators, and models in files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gru4rec_fast.cli.options import Running
from gru4rec_fast.models.parameter_fields import Parameters
from gru4rec_fast.models.parameters import GRU4RecParameters, LightGCNParameters, NGCFParameters

if TYPE_CHECKING:
    from gru4rec_fast.models import GraphRecommender, GRU4Rec

GRU4REC = "gru4rec"
PARAMETERS: dict[str, type[Parameters]] = {
    GRU4REC: GRU4RecParameters,
    "ngcf": NGCFParameters,
    "lightgcn": LightGCNParameters,
}
_ESTIMATORS = {GRU4REC: "GRU4Rec", "ngcf": "NGCF", "lightgcn": "LightGCN"}


def parameter_class(name: str) -> type[Parameters]:
    """Return the parameter class of a model; ValueError for an unknown name."""
    if name not in PARAMETERS:
        raise ValueError(f"--model {name}: choose one of {', '.join(PARAMETERS)}")
    return PARAMETERS[name]


def estimator_class(name: str) -> type[GRU4Rec | GraphRecommender]:
    """Return the estimator class of a model."""
    from gru4rec_fast import models

    estimator: type[GRU4Rec | GraphRecommender] = getattr(models, _ESTIMATORS[name])
    return estimator


def load_model(path: Path, running: Running) -> GRU4Rec | GraphRecommender:
    """Return the model, of any class, in a file or in the folder of a training. Raises as `GRU4Rec.load`."""
    from gru4rec_fast.training.checkpoint import checkpoint_format
    from gru4rec_fast.training.run_folder import LAST, MODEL_FILE

    if path.is_dir():
        folder, path = path, path / MODEL_FILE
        if not path.exists() and (folder / LAST).exists():
            raise FileNotFoundError(
                f"no {MODEL_FILE} in {folder}: the training was not finished; continue it (train ... --resume), or "
                f"give {folder / LAST}, the latest state of the model"
            )
    saved = checkpoint_format(path).partition("/")[0].removeprefix("gru4rec_fast.")  # the estimator's name
    name = next((name for name, estimator in _ESTIMATORS.items() if estimator == saved), GRU4REC)
    return estimator_class(name).load(path, running.device, impl=running.impl)
