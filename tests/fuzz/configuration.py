"""Target: hyper-parameters as keywords, as a parameter string, in files and on the command line."""

from __future__ import annotations

import importlib.util
import io
import json
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from damage import INTEGERS, JSON_VALUES, TEXTS
from harness import MESSAGE_LENGTH, Target
from hypothesis import strategies as st

from gru4rec_fast import NGCF, GRU4Rec, InteractionGraph, LightGCN, SessionStore
from gru4rec_fast.cli import main
from gru4rec_fast.models import read_parameter_file
from gru4rec_fast.training import TrainingDiverged
from gru4rec_fast.training.schedules import scheduler_names

if importlib.util.find_spec("matplotlib"):
    import matplotlib.figure  # noqa: F401  # `fit` imports it; the first import ever takes longer than a case may take

MODELS = {"gru4rec": GRU4Rec, "ngcf": NGCF, "lightgcn": LightGCN}
STORE = SessionStore.from_arrays([0, 1, 2, 3, 4, 5, 0, 1, 1, 2], [0, 3, 5, 8, 10])
GRAPH = InteractionGraph.from_arrays([0, 0, 1, 1, 2, 2, 2], [0, 1, 1, 2, 0, 2, 3])
_NAMES = sorted({name for model in MODELS.values() for name in model.names()})
_WORDS = ["cross-entropy", "bpr-max", "top1", "reset_before", "layersize", "paper", "mean+I/norm", "per_term", "cuda",
          "meta", "loss", "recall@5", "ndcg@0", "recall@99999999999999999999", "bf16", "reference", "None", "true",
          "1e-3", "4/4", "interactions", "float64", *scheduler_names()]  # fmt: skip
_SCHEDULES = st.dictionaries(
    st.sampled_from(["step_size", "gamma", "T_max", "interval", "milestones", "max_lr", "total_steps", "mode"]),
    st.integers(-1, 3) | st.floats() | st.sampled_from(["update", "epoch", "min", [1, 2]]),
    max_size=3,
)
_VALUES = st.one_of(
    st.integers(0, 4), st.floats(0, 2), st.sampled_from(_WORDS), INTEGERS, st.floats(), TEXTS, JSON_VALUES, _SCHEDULES
)
_PARAMETERS = st.dictionaries(st.sampled_from(_NAMES) | st.sampled_from(_NAMES) | TEXTS, _VALUES, max_size=4)
_FILE_TEXTS = ["layers = [", "a = 1\na = 2", "[parameters]\nlayers = [4]", "[" * 2000, '{"a":' * 2000]
# What a training must not exceed, so that it takes neither long nor much memory.
_LIMITS = {"n_epochs": 3, "batch_size": 1000, "n_sample": 5000, "bptt": 100, "accumulate": 100, "embedding_dim": 64,
           "n_layers": 4, "embedding": 64}  # fmt: skip


def run(case: Any, folder: Path) -> None:
    """Build a model from parameters, and train it if it is small."""
    warnings.simplefilter("ignore")
    cls, parameters, how = MODELS[case["model"]], case["parameters"], case["how"]
    if how == "command":
        _run_command(case, folder)
        return
    if how == "file":
        path = folder / f"p.{case['suffix']}"
        path.write_text(case["text"] if case["text"] is not None else json.dumps(parameters), encoding="utf-8")
        model = cls.create(read_parameter_file(path, cls))
    elif how == "string":
        text = ",".join(f"{name}={value}" for name, value in parameters.items())
        model = GRU4Rec.from_parameter_string(text)
    elif how == "set_params":
        model = cls()
        before = model.get_params()
        try:
            model.set_params(**parameters)
        except (ValueError, TypeError):
            assert model.get_params() == before, "an error has changed parameters"
            raise
    else:  # Python's own error for an unknown keyword shows the whole name
        model = cls(**{name: value for name, value in parameters.items() if name in _NAMES})
    again = type(model)(**json.loads(json.dumps(model.to_dict())))
    assert again.to_dict() == model.to_dict() and repr(again) == repr(model), "parameters change by JSON"
    for name, limit in _LIMITS.items():
        value = getattr(model, name, 0)
        if isinstance(value, int) and value > limit:
            model.set_params(**{name: 2})
    if max(getattr(model, "layers", getattr(model, "layer_sizes", (1,)))) <= 64 and "cuda" not in model.device:
        try:
            model.set_params(n_epochs=2)
            model.fit(STORE if isinstance(model, GRU4Rec) else GRAPH, progress=False, out=folder)
        except TrainingDiverged:
            return
        type(model).load(folder / "last.safetensors")


def _run_command(case: Any, folder: Path) -> None:
    """Run a command that trains on a missing file, so that it ends with an error, whatever the options are."""
    arguments = ["train", str(folder / "missing.tsv"), "--model", case["model"]]
    for name, value in case["parameters"].items():
        arguments += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as err:
        code = main(arguments)
    lines = err.getvalue().splitlines()
    assert code in (0, 2), "wrong exit code"
    if code:
        assert lines[-1].startswith("error: "), "the last line is no error"
        assert len(lines[-1]) < MESSAGE_LENGTH or "has no parameter" in lines[-1], "long error"


TARGET = Target(
    cases=st.fixed_dictionaries(
        {
            "model": st.sampled_from([*MODELS]),
            "how": st.sampled_from(["keywords", "keywords", "set_params", "string", "file", "command"]),
            "parameters": _PARAMETERS,
            "suffix": st.sampled_from(["toml", "json", "JSON", ""]),
            "text": st.none() | TEXTS | st.sampled_from(_FILE_TEXTS),
        }
    ),
    run=run,
    subjects=lambda case, folder: [str(folder), "parameter", *_NAMES, *case["parameters"]],
)
