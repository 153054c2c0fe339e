"""The kinds of models the commands know, by the name `--model` gives them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gru4rec_fast.cli.options import Running

if TYPE_CHECKING:
    from gru4rec_fast.models import GraphRecommender, GRU4Rec

GRU4REC, NGCF, LIGHTGCN = "gru4rec", "ngcf", "lightgcn"
KINDS = (GRU4REC, NGCF, LIGHTGCN)


def estimator_class(kind: str) -> type[GRU4Rec | GraphRecommender]:
    """The estimator behind a name; ValueError where there is none."""
    from gru4rec_fast import models

    classes: dict[str, type[GRU4Rec | GraphRecommender]] = {
        GRU4REC: models.GRU4Rec,
        NGCF: models.NGCF,
        LIGHTGCN: models.LightGCN,
    }
    if kind not in classes:
        raise ValueError(f"--model {kind}: choose one of {', '.join(KINDS)}")
    return classes[kind]


def load_model(path: Path, running: Running) -> GRU4Rec | GraphRecommender:
    """The model in a file, or in the folder of a training run, of whatever kind it is. Raises as `GRU4Rec.load`."""
    from gru4rec_fast.models import GraphRecommender
    from gru4rec_fast.training.checkpoint import checkpoint_format
    from gru4rec_fast.training.run_folder import LAST, MODEL_FILE

    if path.is_dir():
        folder, path = path, path / MODEL_FILE
        if not path.exists() and (folder / LAST).exists():
            raise FileNotFoundError(
                f"no {MODEL_FILE} in {folder}: its training was not finished; go on with it (train ... --resume), or "
                f"give {folder / LAST}, the model as it was left"
            )
    name = checkpoint_format(path).rpartition("/")[0]
    for kind in (NGCF, LIGHTGCN):
        found = estimator_class(kind)
        assert issubclass(found, GraphRecommender)
        if name == found.format().rpartition("/")[0]:
            return found.load(path, running.device, impl=running.impl)
    return estimator_class(GRU4REC).load(path, running.device, impl=running.impl)
