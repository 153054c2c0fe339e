"""Hyper-parameters: defaults, checks and help; reading them from parameter strings and files."""

import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from gru4rec_fast import GRU4Rec, LightGCN
from gru4rec_fast.data import Vocabulary
from gru4rec_fast.data.graphs.triples import SAMPLE_BY
from gru4rec_fast.evaluation import GRAPH_METRICS, METRICS
from gru4rec_fast.models import (
    GraphParameters,
    GRU4RecParameters,
    LightGCNParameters,
    NGCFParameters,
    parameters,
    parse_parameter_string,
    read_parameter_file,
)
from gru4rec_fast.models.id_encoder import IdEncoder
from gru4rec_fast.ops.gru import FORMS
from gru4rec_fast.ops.ngcf_layer import ACTIVATIONS, PROPAGATION_MATRICES
from gru4rec_fast.ops.sampled_loss import LOSSES
from gru4rec_fast.training.options import TRAINING_LOSS

CLASSES = (GRU4RecParameters, GraphParameters, NGCFParameters, LightGCNParameters)


def test_defaults_are_those_of_the_official_code():
    assert GRU4RecParameters().to_dict().items() >= {
        "layers": [100], "loss": "cross-entropy", "batch_size": 64, "dropout_p_embed": 0.0, "dropout_p_hidden": 0.0,
        "learning_rate": 0.05, "momentum": 0.0, "sample_alpha": 0.5, "n_sample": 2048, "embedding": 0,
        "constrained_embedding": True, "n_epochs": 10, "bpreg": 1.0, "elu_param": 0.5, "logq": 0.0,
    }.items()  # fmt: skip
    assert list(inspect.signature(GRU4Rec).parameters) == GRU4RecParameters.names()


BAD_PARAMETERS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"loss": "bpr-min"}, ValueError, "loss='bpr-min': choose one of cross-entropy, bpr-max, top1, top1-max, bpr"),
    ({"batch_size": 0}, ValueError, "batch_size=0: must be at least 1"),
    ({"batch_size": 1.5}, TypeError, "batch_size=1.5: must be a whole number"),
    ({"batch_size": True}, TypeError, "batch_size=True: must be a whole number"),
    ({"batch_size": "many"}, TypeError, "batch_size='many': must be a whole number"),
    ({"layers": []}, ValueError, "layers=[]: give at least one layer"),
    ({"layers": 0}, ValueError, "layers=[0]: give at least one layer, each of at least 1 unit"),
    ({"layers": [8, 0]}, ValueError, "layers=[8, 0]"),
    ({"layers": "8/4"}, TypeError, "layers='8/4': must be sizes, as [512, 256], or 512/256 as text"),
    ({"layers": ["8"]}, TypeError, "layers=['8']: must be sizes"),
    ({"learning_rate": "0.1"}, TypeError, "learning_rate='0.1': must be a finite number"),
    ({"n_sample": "8"}, TypeError, "n_sample='8': must be a whole number"),
    ({"embedding": "8"}, TypeError, "embedding='8': must be a whole number or 'layersize'"),
    ({"shuffle": "True"}, TypeError, "shuffle='True': must be True or False"),
    ({"lr_scheduler_options": "{}"}, TypeError, "lr_scheduler_options='{}': must be a mapping"),
    ({"n_sample": -1}, ValueError, "n_sample=-1: must be at least 0"),
    ({"n_sample": 0, "batch_size": 1}, ValueError, "gives mini-batches without negatives; increase one of them"),
    ({"n_epochs": 0}, ValueError, "n_epochs=0: must be at least 1"),
    ({"dropout_p_embed": 1.0}, ValueError, "dropout_p_embed=1.0: must lie in [0, 1)"),
    ({"dropout_p_hidden": -0.1}, ValueError, "dropout_p_hidden=-0.1: must lie in [0, 1)"),
    ({"learning_rate": 0}, ValueError, "learning_rate=0.0: must be positive"),
    ({"learning_rate": float("nan")}, TypeError, "learning_rate=nan: must be a finite number"),
    ({"momentum": 1}, ValueError, "momentum=1.0: must lie in [0, 1)"),
    ({"sample_alpha": -0.5}, ValueError, "sample_alpha=-0.5: must be at least 0"),
    ({"embedding": "large"}, TypeError, "embedding='large': must be a whole number or 'layersize'"),
    ({"embedding": -1}, ValueError, "embedding=-1: must be a width, 0 or 'layersize'"),
    ({"constrained_embedding": "maybe"}, TypeError, "constrained_embedding='maybe': must be True or False"),
    ({"logq": 1.0, "loss": "bpr-max"}, ValueError, "logq=1 belongs to loss='cross-entropy'; set it to 0 for bpr-max"),
    ({"gru_form": "lstm"}, ValueError, "gru_form='lstm': choose one of reset_after, reset_before"),
    ({"bptt": 0}, ValueError, "bptt=0: must be at least 1"),
    ({"patience": 0}, ValueError, "patience=0: must be at least 1"),
    ({"lr_scheduler": "warp"}, ValueError, "lr_scheduler='warp': choose one of step, cosine, plateau"),
    ({"lr_scheduler_options": {"gamma": 0.5}}, ValueError, "give the lr_scheduler they belong to"),
    (
        {"monitor": "recal@20"},
        ValueError,
        "monitor='recal@20': choose 'loss', or recall, mrr, ndcg, map, precision, hitrate",
    ),
    ({"monitor": "recall@0"}, ValueError, "monitor='recall@0'"),
    ({"monitor": "recall"}, ValueError, "monitor='recall'"),
    ({"monitor": "loss@20"}, ValueError, "monitor='loss@20'"),
    ({"dtype": "float8"}, ValueError, "dtype='float8': choose one of float32, float64"),
    ({"device": "tpu9"}, ValueError, "device='tpu9'"),
    ({"impl": "fast"}, ValueError, "impl='fast': choose one of auto, native, reference"),
    ({"seed": 2**63}, ValueError, f"seed={2**63}: must be in [0, 2**63)"),
    ({"evaluate_every": 0}, ValueError, "evaluate_every=0: must be at least 1"),
    ({"n_sample": float("inf")}, TypeError, "n_sample=inf: must be a whole number"),
]


@pytest.mark.parametrize(("parameters", "error", "message"), BAD_PARAMETERS, ids=str)
def test_bad_parameters_are_errors(parameters: dict[str, Any], error: type[Exception], message: str):
    with pytest.raises(error) as caught:
        GRU4Rec(**parameters)
    assert message in str(caught.value)


def test_unknown_parameters_are_errors():
    for make in (GRU4RecParameters, GRU4Rec):
        with pytest.raises(TypeError) as caught:
            make(learning_rat=0.1)
        assert str(caught.value) == "GRU4Rec has no parameter 'learning_rat'; did you mean 'learning_rate'?"
    with pytest.raises(TypeError, match="LightGCN has no parameter 'layers'; did you mean 'n_layers'"):
        LightGCN(layers=3)
    with pytest.raises(TypeError, match=r"GRU4Rec has no parameter 'depth'; help\(GRU4Rec\) lists them"):
        GRU4RecParameters.create({"depth": 3})
    expected = r"has no parameters 'layer', 'los'; did you mean 'layers' or 'lanes' or 'loss'\?"
    with pytest.raises(TypeError, match=expected):
        GRU4RecParameters.create({"layer": [100], "los": "bpr", "n_epochs": 1})


def test_all_classes_have_the_common_parameters():
    common = {"lr_scheduler", "lr_scheduler_options", "evaluate_every", "monitor", "patience", "min_delta", "seed"}
    common |= {"dtype", "device", "impl", "n_epochs", "batch_size", "learning_rate"}
    for cls in CLASSES:
        assert common <= set(cls.names())
        for values, message in (
            ({"lr_scheduler": "warp"}, "lr_scheduler='warp': choose one of step, cosine, plateau"),
            ({"lr_scheduler_options": {"gamma": 0.5}}, "give the lr_scheduler they belong to"),
            ({"device": "cuda:x"}, "device='cuda:x': choose 'cpu', 'cuda', 'cuda:1'"),
        ):
            with pytest.raises(ValueError) as caught:
                cls(**values)
            assert message in str(caught.value)
        assert cls(lr_scheduler="step", device="cuda:1").device == "cuda:1"


def test_a_value_of_the_right_type_is_stored_as_the_same_object():
    """scikit-learn's clone requires this."""
    values = {"layers": (8, 4), "learning_rate": 0.25, "lr_scheduler": "step", "lr_scheduler_options": {"gamma": 0.5}}
    values |= {"loss": "bpr-max", "batch_size": 1000, "embedding": "layersize", "shuffle": True}
    hyperparameters = GRU4RecParameters(**values)
    assert all(getattr(hyperparameters, name) is value for name, value in values.items())
    copied = GRU4RecParameters(**vars(hyperparameters))
    assert all(vars(copied)[name] is value for name, value in vars(hyperparameters).items())
    sizes = (8, 4)
    assert NGCFParameters(layer_sizes=sizes).layer_sizes is sizes


def test_set_params_with_an_error_changes_no_parameter():
    hyperparameters = GRU4RecParameters(layers=[8], batch_size=16)
    original = dict(vars(hyperparameters))
    for values in (
        {"batch_size": 4, "layers": 0},
        {"n_epochs": 3, "loss": "hinge"},
        {"loss": "bpr", "logq": 1},
        {"seed": "x"},
        {"seed": 4, "sead": 3},
    ):
        with pytest.raises((TypeError, ValueError)):
            hyperparameters.set_params(**values)
        assert vars(hyperparameters) == original
    assert hyperparameters.set_params(layers=[4, 2], seed=3) is hyperparameters
    assert (hyperparameters.layers, hyperparameters.seed, hyperparameters.batch_size) == ((4, 2), 3, 16)


@pytest.mark.parametrize(
    ("copies", "originals"),
    [
        (parameters.LOSSES, LOSSES),
        (parameters.GRU_FORMS, FORMS),
        (parameters.MATRICES, PROPAGATION_MATRICES),
        (parameters.ACTIVATIONS, ACTIVATIONS),
        (parameters.SAMPLING_UNITS, SAMPLE_BY),
        (parameters.SESSION_METRICS, METRICS),
        (parameters.GRAPH_METRICS, GRAPH_METRICS),
        ((parameters.TRAINING_LOSS,), (TRAINING_LOSS,)),
    ],
    ids=["losses", "forms", "matrices", "activations", "units", "metrics", "graph metrics", "loss"],
)
def test_allowed_values_equal_the_constants_of_other_modules(copies: Sequence[str], originals: Sequence[str]):
    assert tuple(copies) == tuple(originals)


@pytest.mark.parametrize("cls", CLASSES)
def test_every_parameter_has_a_help_text(cls: type[Any]):
    """Help texts are part of the docstring. They have no square brackets, which rich would read as markup."""
    for field in fields(cls):
        text = field.metadata["help"]
        assert text.endswith(".") and "[" not in text, field.name
        assert field.metadata["panel"] and field.metadata["metavar"]
        assert f"\n    {field.name}: {text[:40]}" in cls.__doc__


def test_parameter_strings_are_read():
    model = GRU4Rec.from_parameter_string(
        "layers=512/256,loss=bpr-max, embedding=layersize,constrained_embedding=False,momentum=0.4,n_sample=64,"
        "lr_scheduler=None,shuffle=1,",
        seed=7,
    )
    assert (model.layers, model.loss) == ((512, 256), "bpr-max")
    assert (model.embedding, model.constrained_embedding) == ("layersize", False)
    assert (model.momentum, model.n_sample, model.lr_scheduler, model.shuffle, model.seed) == (0.4, 64, None, True, 7)
    theano_options = parse_parameter_string("loss=bpr-max,final_act=elu-0.5,hidden_act=tanh,adapt=adagrad,layers=100")
    assert theano_options == {"loss": "bpr-max", "layers": "100", "elu_param": 0.5}
    assert parse_parameter_string("final_act=linear") == {"elu_param": 0.0}


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("layers", ValueError, "parameter string: 'layers' is not name=value"),
        ("layers=", ValueError, "'layers=' is not name=value"),
        ("seed=1,seed=2", ValueError, "'seed' is given twice"),
        ("adapt=rmsprop", ValueError, "adapt can only be adagrad here"),
        ("final_act=relu", ValueError, "final_act='relu': choose linear, softmax, softmax_logit or elu-X"),
        ("layerz=100", TypeError, "GRU4Rec has no parameter 'layerz'; did you mean 'layers'?"),
    ],
)
def test_bad_parameter_strings_are_errors(text: str, error: type[Exception], message: str):
    with pytest.raises(error) as caught:
        parse_parameter_string(text)
    assert message in str(caught.value)


LONG_TEXT = "x\n" * 2_500_000


@pytest.mark.parametrize(
    "make",
    [
        lambda: GRU4Rec(loss=LONG_TEXT),
        lambda: GRU4Rec(layers=LONG_TEXT),
        lambda: GRU4Rec().set_params(**{LONG_TEXT: 1}),
        lambda: GRU4Rec(lr_scheduler_options={LONG_TEXT: 1}),
        lambda: parse_parameter_string(LONG_TEXT),
        lambda: Vocabulary([LONG_TEXT, LONG_TEXT]),
        lambda: IdEncoder(Vocabulary(["a"])).encode([LONG_TEXT]),
        lambda: IdEncoder(Vocabulary(["a"])).encode_sessions(LONG_TEXT),
    ],
)
def test_a_long_value_is_shortened_to_one_line_in_errors(make: Callable[[], Any]):
    with pytest.raises((ValueError, TypeError)) as caught:
        make()
    assert len(str(caught.value)) < 500 and "\n" not in str(caught.value)


def test_parameter_files_are_read_and_bad_files_are_errors(tmp_path: Path):
    (tmp_path / "p.toml").write_text('layers = [8, 4]\nloss = "top1"\n[lr_scheduler_options]\ngamma = 0.5\n')
    (tmp_path / "p.json").write_text(json.dumps({"parameters": {"layers": [8, 4], "logq": 1}}))
    model = GRU4Rec.from_parameter_file(tmp_path / "p.toml", lr_scheduler="step")
    assert (model.layers, model.loss) == ((8, 4), "top1")
    assert (model.lr_scheduler, model.lr_scheduler_options) == ("step", {"gamma": 0.5})
    assert GRU4Rec.from_parameter_file(tmp_path / "p.json").logq == 1.0
    (tmp_path / "bad.toml").write_text("layers = [8,")
    (tmp_path / "unknown.toml").write_text("layerz = 8")
    (tmp_path / "list.json").write_text("[1]")
    for name, message in (("bad", "bad.toml: "), ("unknown", "unknown.toml: GRU4Rec has no parameter 'layerz'")):
        with pytest.raises(ValueError) as caught:
            read_parameter_file(tmp_path / f"{name}.toml")
        assert message in str(caught.value)
    (tmp_path / "deep.toml").write_text("layers = " + "[" * 99_999)
    (tmp_path / "deep.json").write_text("[" * 99_999)
    for name in ("deep.toml", "deep.json"):
        with pytest.raises(ValueError, match=rf"{name}: "):
            read_parameter_file(tmp_path / name)
    (tmp_path / "nested.json").write_text('{"parameters": [1]}')
    with pytest.raises(ValueError, match=r'nested\.json: its "parameters" are \[1\], not parameters by name'):
        read_parameter_file(tmp_path / "nested.json")
    (tmp_path / "text.toml").write_text('layers = "8/4"\nlogq = "0.5"\n')
    model = GRU4Rec.from_parameter_file(tmp_path / "text.toml")
    assert (model.layers, model.logq) == ((8, 4), 0.5)
    with pytest.raises(ValueError, match="holds a list"):
        read_parameter_file(tmp_path / "list.json")
    with pytest.raises(FileNotFoundError):
        read_parameter_file(tmp_path / "missing.toml")


def test_parameters_can_be_stored_as_json_and_shown_by_repr():
    saved = GRU4RecParameters.create({"layers": [8, 4], "lr_scheduler": "step", "lr_scheduler_options": {"gamma": 0.5}})
    assert GRU4RecParameters.create(json.loads(json.dumps(saved.to_dict()))) == saved
    model = GRU4Rec(layers=[8, 4], logq=1)
    assert repr(model) == "GRU4Rec(layers=[8, 4], logq=1.0)"
    assert model.set_params(seed=3).get_params()["seed"] == 3
    with pytest.raises(TypeError, match="GRU4Rec has no parameter 'sead'; did you mean 'seed'"):
        model.set_params(sead=3)
