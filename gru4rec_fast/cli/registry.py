"""Find parameter class and estimator class by model name (gru4rec, item-knn ...), and load models from files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from gru4rec_fast.cli.options import RuntimeOptions, given_options, use_threads
from gru4rec_fast.models.baselines.parameters import (
    AssociationRulesParameters,
    ContentSimilarityParameters,
    HighestRatedParameters,
    ItemKNNParameters,
    MostPopularParameters,
    SequentialRulesParameters,
    SessionKNNParameters,
)
from gru4rec_fast.models.parameter_fields import Parameters
from gru4rec_fast.models.parameters import GRU4RecParameters, LightGCNParameters, NGCFParameters

if TYPE_CHECKING:
    from gru4rec_fast.data import Vocabulary
    from gru4rec_fast.models import Baseline, GraphRecommender, GRU4Rec

    AnyModel: TypeAlias = GRU4Rec | GraphRecommender | Baseline

GRU4REC = "gru4rec"
# The parameter class of each model with a network.
PARAMETERS: dict[str, type[Parameters]] = {
    GRU4REC: GRU4RecParameters,
    "ngcf": NGCFParameters,
    "lightgcn": LightGCNParameters,
}
# The parameter class of each baseline.
BASELINES: dict[str, type[Parameters]] = {
    "most-popular": MostPopularParameters,
    "highest-rated": HighestRatedParameters,
    "association-rules": AssociationRulesParameters,
    "sequential-rules": SequentialRulesParameters,
    "item-knn": ItemKNNParameters,
    "session-knn": SessionKNNParameters,
    "content-similarity": ContentSimilarityParameters,
}


def parameter_class(name: str) -> type[Parameters]:
    """Return the parameter class of a model. For an unknown name, raise a ValueError."""
    models = PARAMETERS | BASELINES
    if name not in models:
        raise ValueError(f"--model {name}: choose one of {', '.join(models)}")
    return models[name]


def class_name(model_name: str) -> str:
    """Return the name of the estimator class of a model, which is in `gru4rec_fast.models`."""
    return parameter_class(model_name).__name__.removesuffix("Parameters")


def estimator_class(name: str) -> type[Any]:
    """Import torch and the estimator class of a model, and return this class."""
    from gru4rec_fast import models

    estimator: type[Any] = getattr(models, class_name(name))
    return estimator


def ranks_users(model: AnyModel) -> bool:
    """Return whether a fitted model ranks items for users, not for sessions."""
    return getattr(model, "graph", None) is not None


def item_ids(model: AnyModel) -> Vocabulary:
    """Return the item ids of a fitted model."""
    graph = getattr(model, "graph", None)
    vocabulary: Vocabulary = model.vocabulary if graph is None else graph.items  # type: ignore[union-attr, assignment]
    return vocabulary


def load_model(path: Path, runtime: RuntimeOptions) -> AnyModel:
    """Load a model of any class from a file, or from a folder that `train --out` wrote.

    Raises the errors of `GRU4Rec.load`, and ValueError for an option that has no effect on the model.
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
    name = next((name for name in PARAMETERS | BASELINES if class_name(name) == saved_class), GRU4REC)
    if name not in BASELINES:
        return estimator_class(name).load(path, runtime.device, impl=runtime.impl)
    if unused := given_options(runtime):
        raise ValueError(f"{unused[0]} has no effect on {name}, which runs on the CPU in one thread: leave it out")
    return estimator_class(name).load(path)
