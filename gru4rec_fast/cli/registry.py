"""Find parameter class and estimator class by model name (gru4rec, ngcf, lightgcn), and load models from files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gru4rec_fast.cli.options import RuntimeOptions, use_threads
from gru4rec_fast.models.parameter_fields import Parameters
from gru4rec_fast.models.parameters import GRU4RecParameters, LightGCNParameters, NGCFParameters

if TYPE_CHECKING:
    from gru4rec_fast.models import GraphRecommender, GRU4Rec

GRU4REC = "gru4rec"
# The parameter class of each model.
PARAMETERS: dict[str, type[Parameters]] = {
    GRU4REC: GRU4RecParameters,
    "ngcf": NGCFParameters,
    "lightgcn": LightGCNParameters,
}
# The name of the estimator class of each model, in `gru4rec_fast.models`.
_ESTIMATORS = {GRU4REC: "GRU4Rec", "ngcf": "NGCF", "lightgcn": "LightGCN"}


def parameter_class(name: str, option: str = "--model") -> type[Parameters]:
    """Return the parameter class of a model. For an unknown name, raise a ValueError that names `option`."""
    if name not in PARAMETERS:
        raise ValueError(f"{option} {name}: choose one of {', '.join(PARAMETERS)}")
    return PARAMETERS[name]


def estimator_class(name: str) -> type[GRU4Rec | GraphRecommender]:
    """Import torch and the estimator class of a model, and return this class."""
    from gru4rec_fast import models

    estimator: type[GRU4Rec | GraphRecommender] = getattr(models, _ESTIMATORS[name])
    return estimator


def load_model(path: Path, runtime: RuntimeOptions) -> GRU4Rec | GraphRecommender:
    """Load a model of any class from a file, or from a folder that `train --out` wrote.

    Raises the errors of `GRU4Rec.load`.
    """
    from gru4rec_fast.training.checkpoint import checkpoint_format
    from gru4rec_fast.training.earlier_training import LAST_FILE, MODEL_FILE, recover_run_folder

    use_threads(runtime.threads)
    recover_run_folder(path)
    if path.is_dir():
        folder, path = path, path / MODEL_FILE
        if not path.exists() and (folder / LAST_FILE).exists():
            raise FileNotFoundError(
                f"no {MODEL_FILE} in {folder}, which a training writes when it has ended: continue it (train ... "
                f"--resume), or give {folder / LAST_FILE}, the latest state of the model"
            )
    # The format is, for example, "gru4rec_fast.NGCF/2". For an unknown format GRU4Rec.load raises the error.
    saved_class = checkpoint_format(path).partition("/")[0].removeprefix("gru4rec_fast.")
    name = next((name for name, class_name in _ESTIMATORS.items() if class_name == saved_class), GRU4REC)
    return estimator_class(name).load(path, runtime.device, impl=runtime.impl)
