"""integrations.gru4rec_official: scripts, model files and parameter files of the official GRU4Rec code work with it.

With GRU4REC_OFFICIAL=PATH, a checkout of the official code, its model files and its `evaluation.py` are tested, too.
"""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from golden import golden_names, load
from markov import markov_store
from official_model_file import GRU4RecModel, write_model_file
from test_estimator import as_table

import gru4rec_fast
from gru4rec_fast.integrations.gru4rec_official import GRU4Rec, batch_eval, load_official, pickle_reader, read_paramfile
from gru4rec_fast.integrations.gru4rec_official.run import main
from gru4rec_fast.training import CheckpointError

STORE = markov_store()
TABLE = as_table(STORE)
TEXT_PARAMETERS = {  # values as text, as in a parameter string of the official code
    "layers": "16",
    "batch_size": "8",
    "n_sample": "32",
    "n_epochs": "1",
    "seed": "0",
    "constrained_embedding": "True",
}
PARAMETER_STRING = ",".join(f"{name}={value}" for name, value in TEXT_PARAMETERS.items())


@pytest.fixture(scope="module")
def fitted() -> GRU4Rec:
    """Return a model fitted to STORE. The tests must not change it."""
    return GRU4Rec.create(TEXT_PARAMETERS).fit(TABLE, progress=False)


def test_official_calls_run_without_changes(tmp_path: Path) -> None:
    model = GRU4Rec(device=torch.device("cpu"))  # type: ignore[arg-type]
    model.set_params(**TEXT_PARAMETERS)
    model.fit(TABLE, sample_cache_max_size=10000000, compatibility_mode=True, item_key="ItemId",
              session_key="SessionId", time_key="Time")  # fmt: skip
    assert model.history[0]["mini_batches"] > 0 and not model.error_during_train
    model.savemodel(tmp_path / "model.safetensors")
    loaded = GRU4Rec.loadmodel(tmp_path / "model.safetensors", device="cpu")
    assert isinstance(loaded, GRU4Rec) and loaded.layers == (16,)
    expected = gru4rec_fast.GRU4Rec.create(TEXT_PARAMETERS).fit(TABLE, progress=False)
    for other in (loaded, gru4rec_fast.GRU4Rec.load(tmp_path / "model.safetensors")):
        np.testing.assert_array_equal(other.recommend([[5]], 3).scores, expected.recommend([[5]], 3).scores)


def test_fit_accepts_positional_columns_and_options_of_gru4rec_fast(tmp_path: Path) -> None:
    table = TABLE.rename(columns={"SessionId": "s", "ItemId": "i", "Time": "t"})
    model = GRU4Rec.create(TEXT_PARAMETERS)
    # data, sample_cache_max_size, compatibility_mode, item_key, session_key, time_key
    model.fit(table, 0, False, "i", "s", "t", validation=table, out=tmp_path, progress=False)
    assert "validation" in model.history[0] and (tmp_path / "best.safetensors").exists()
    # gru, test_data, cutoff, batch_size, mode, item_key, session_key, time_key
    recall, mrr = batch_eval(model, table, [5, 1], 16, "median", "i", "s", "t")
    assert list(recall) == list(mrr) == [5, 1] and recall[1] == mrr[1] < recall[5]


def test_the_main_class_lacks_the_methods_and_arguments_of_the_official_code() -> None:
    assert not hasattr(gru4rec_fast.GRU4Rec, "savemodel") and not hasattr(gru4rec_fast.GRU4Rec, "loadmodel")
    with pytest.raises(TypeError, match="sample_cache_max_size"):
        gru4rec_fast.GRU4Rec.create(TEXT_PARAMETERS).fit(STORE, sample_cache_max_size=1)
    with pytest.raises(TypeError, match="layers='16': must be sizes"):
        gru4rec_fast.GRU4Rec().set_params(**TEXT_PARAMETERS)


def test_logq_has_no_effect_with_bpr_max() -> None:
    with pytest.warns(UserWarning, match=r"logq=1\.0 has no effect with loss='bpr-max'"):
        model = GRU4Rec().set_params(logq="1.0", loss="bpr-max")
    assert model.logq == 0


def test_scores_and_attributes_for_loops_of_users(fitted: GRU4Rec) -> None:
    """An evaluation that is written with the attributes of the official class has the result of batch_eval."""
    index, ranks = fitted.data_iterator.itemidmap, []
    assert fitted.data_iterator.n_items == STORE.n_items and fitted.device == "cpu"
    for _, session in TABLE.groupby("SessionId"):
        items = torch.tensor(index[session.ItemId.values].values)
        H = [torch.zeros(1, size, device=fitted.device) for size in fitted.layers]
        for item, target in pairwise(items):
            with torch.no_grad():
                scores = fitted.model.forward(item[None], H, None, training=False)
            ranks.append(int((scores >= scores[:, target]).sum()))
    recall, mrr = batch_eval(fitted, TABLE, cutoff=[3])
    assert recall[3] == pytest.approx(np.mean(np.array(ranks) <= 3), abs=1e-12)
    assert mrr[3] == pytest.approx(np.mean([(rank <= 3) / rank for rank in ranks]), abs=1e-12)


def test_model_scores_the_items_that_are_asked_for_and_has_dropout_in_training() -> None:
    model = GRU4Rec(layers=[16], dropout_p_hidden=0.5, n_epochs=1, n_sample=8, batch_size=8, seed=0)
    assert model.model is None
    model.fit(TABLE, progress=False)
    X, Y = torch.tensor([1, 2], dtype=torch.int32), torch.tensor([7, 3, 3])

    def scores(Y: torch.Tensor | None, training: bool = False) -> torch.Tensor:
        return model.model(X, [torch.zeros(2, 16)], Y, training)

    torch.testing.assert_close(scores(Y), scores(None)[:, Y])
    assert not torch.equal(scores(None, training=True), scores(None))
    assert torch.equal(scores(None), scores(None)), "without dropout again"
    scores(Y, training=True).sum().backward()
    assert model.network.output.weight.grad is not None


def test_adjust_hidden_resets_ended_sessions_and_removes_lanes() -> None:
    model, H = GRU4Rec(layers=[3, 2]), [torch.ones(4, 3), torch.ones(4, 2)]
    finished, valid = np.array([False, True, True, False]), np.array([True, True, False, True])
    assert model._adjust_hidden(3, finished, valid, H) is False
    assert [layer.tolist() for layer in H] == [[[1.0] * n, [0.0] * n, [1.0] * n] for n in (3, 2)]
    assert model.set_params(n_sample=0)._adjust_hidden(1, finished[:1], valid[:1], H) is True


def test_to_moves_the_model(fitted: GRU4Rec) -> None:
    assert fitted.to(torch.device("cpu")) is fitted and fitted.device == "cpu"
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="no CUDA device"):
            fitted.to("cuda:0")
        assert fitted.device == "cpu"


def test_diverged_training_sets_error_during_train(tmp_path: Path) -> None:
    model = GRU4Rec(layers=[8], n_sample=8, batch_size=8, learning_rate=1e38, seed=0)
    with pytest.warns(UserWarning, match="error_during_train is set"):
        model.fit(TABLE, progress=False)
    assert model.error_during_train
    for call in (lambda: batch_eval(model, TABLE), lambda: model.savemodel(tmp_path / "model")):
        with pytest.raises(RuntimeError, match="error_during_train is True"):
            call()
    assert not model.set_params(learning_rate=0.1, n_epochs=1).fit(TABLE, progress=False).error_during_train


# Model files of the official code

N_ITEMS = 40
INTEGER_IDS = np.arange(N_ITEMS)[::-1] * 3 + 1
STRING_IDS = np.array([f"item é{i}" for i in range(N_ITEMS)], dtype=object)
# pandas 3 infers its own dtype for "strings", and stores it with pyarrow if that is installed; pandas 2 stores objects.
ID_TYPES = {"integers": INTEGER_IDS, "objects": STRING_IDS, "strings": pd.Index(STRING_IDS.tolist())}
MODES = [("constrained", [12, 10]), ("separate", [8, 12]), ("none", [9])]
EVENTS = [0, 1, 1, 5, N_ITEMS - 1]


def write_small_model(path: Path, mode: str = "constrained", layers: tuple[int, ...] = (8,), **attributes: Any) -> Any:
    """Write a model file with integer ids; return the network."""
    return write_model_file(path, GRU4RecModel(N_ITEMS, layers, mode), INTEGER_IDS, EVENTS, **attributes)


def largest_difference(official: Any, converted: GRU4Rec, official_scores: Callable[..., torch.Tensor]) -> float:
    """Return the largest difference of the scores of all items in random sessions of ten events."""
    states = [[torch.zeros(6, size) for size in converted.layers] for _ in range(2)]
    differences = []
    with torch.no_grad():
        for items in torch.randint(converted.data_iterator.n_items, (10, 6)):
            expected, scores = official_scores(items, states[0]), converted.model(items, states[1], None)
            differences.append(float((expected - scores).abs().max()))
    assert max(expected.abs().max(), scores.abs().max()) > 0.01, "scores are not all zero"
    return max(differences)


@pytest.mark.parametrize("ids", ["integers", "objects", "strings"])
@pytest.mark.parametrize(("mode", "layers"), MODES)
def test_converted_model_has_the_scores_of_the_official_one(
    tmp_path: Path, mode: str, layers: list[int], ids: str
) -> None:
    path = tmp_path / "official.pt"
    official = write_model_file(path, GRU4RecModel(N_ITEMS, layers, mode), ID_TYPES[ids], EVENTS)
    converted = load_official(path)
    assert largest_difference(official, converted, official) < 1e-5
    assert converted.layers == tuple(layers) and converted.embedding_mode == mode and converted.momentum == 0.3
    assert converted.vocabulary.ids.tolist() == ID_TYPES[ids].tolist()
    np.testing.assert_array_equal(converted.support, np.bincount(EVENTS, minlength=N_ITEMS))
    for load_file in (GRU4Rec.loadmodel, GRU4Rec.load):  # both recognize the file
        converted = load_file(path)
    converted.savemodel(tmp_path / "model.safetensors")
    saved = gru4rec_fast.GRU4Rec.load(tmp_path / "model.safetensors")
    session = [ID_TYPES[ids].tolist()[:3]]
    np.testing.assert_array_equal(saved.recommend(session).items, converted.recommend(session).items)


def test_bpr_max_model_and_float64_model_are_converted(tmp_path: Path) -> None:
    path = tmp_path / "official.pt"
    official = write_model_file(
        path, GRU4RecModel(N_ITEMS, [8], "constrained").double(), INTEGER_IDS, EVENTS, loss="bpr-max", logq=0.0
    )
    converted = load_official(path)
    assert (converted.loss, converted.dtype) == ("bpr-max", "float64")
    state = [torch.zeros(2, 8, dtype=torch.float64)]
    items = torch.tensor([1, 2])
    torch.testing.assert_close(converted.model(items, [*state], None), official(items, [*state]), atol=1e-12, rtol=0)


@pytest.mark.needs_shared
@pytest.mark.parametrize("name", golden_names() or ["none"])
def test_recorded_model_has_the_recorded_metrics(tmp_path: Path, name: str) -> None:
    if not golden_names():
        pytest.skip("shared/golden is missing next to this checkout")
    run = load(name)
    weights = {key[6:]: torch.from_numpy(w) for key, w in run.arrays.items() if key.startswith("after/")}
    config, n_items = run.config, len(run.support)
    official = GRU4RecModel(n_items, config["layers"], run.embedding_mode).double()
    if "E.weight" in weights:  # of another width than that of the stand-in
        width = weights["E.weight"].shape[1]
        official.E = torch.nn.Embedding(n_items, width)
        official.G[0] = torch.nn.GRUCell(width, config["layers"][0])
        official.double()
    official.load_state_dict(weights)
    parameters = {key: value for key, value in config.items() if key in GRU4Rec.names()}
    write_model_file(tmp_path / "official.pt", official, np.arange(n_items), run.items, **parameters)
    model = load_official(tmp_path / "official.pt")
    sessions = np.repeat(np.arange(len(run.evaluated_offsets) - 1), np.diff(run.evaluated_offsets))
    log = {"SessionId": sessions, "ItemId": run.items[: len(sessions)], "Time": np.arange(len(sessions))}
    recall, mrr = batch_eval(model, log, cutoff=[5], mode="standard")
    assert recall[5] == pytest.approx(run.evaluation["recall@5"], abs=1e-9)
    assert mrr[5] == pytest.approx(run.evaluation["mrr@5"], abs=1e-9)


class Call:
    """Object whose pickle calls a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def archive_with_pickle(path: Path, content: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    """Write a file as of torch.save, with a pickle of our own."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("model/data.pkl", content)
    return path


HOSTILE_CALLS = {
    "open": lambda path: Call(open, str(path), "w"),
    "os.system": lambda path: Call(os.system, f"touch {path}"),
    "os.mkdir": lambda path: Call(os.mkdir, str(path)),
    "eval": lambda path: Call(eval, f"open({str(path)!r}, 'w')"),
    "exec": lambda path: Call(exec, f"open({str(path)!r}, 'w')"),
    "method of an object": lambda path: Call(getattr(path, "touch")),  # noqa: B009
    "subprocess": lambda path: Call(subprocess.call, ["touch", str(path)]),
}


@pytest.mark.parametrize("call", HOSTILE_CALLS)
def test_pickle_that_would_run_code_is_refused(tmp_path: Path, call: str) -> None:
    created, path = tmp_path / "created", tmp_path / "hostile.pt"
    hostile = HOSTILE_CALLS[call](created)
    pickle.loads(pickle.dumps(hostile, protocol=2))
    assert created.exists(), "an ordinary unpickler runs this code"
    created.rmdir() if created.is_dir() else created.unlink()
    # As the whole content, and as an attribute of a model that is complete.
    files = [archive_with_pickle(path, pickle.dumps(hostile, protocol=2)), tmp_path / "model.pt"]
    write_small_model(files[1], extra=hostile)
    for file in files:
        with pytest.raises(CheckpointError, match=r"the pickle refers to .*, which no official model does"):
            load_official(file)
        assert not created.exists()


# An allowed name, whose call would be harmful.
ALLOWED_CALLS = {
    "bytearray of 2**40 bytes": b"\x80\x02c__builtin__\nbytearray\n\x8a\x06\x00\x00\x00\x00\x00\x01\x85R.",
    "attribute of a class": b"\x80\x02c__builtin__\ngetattr\nccollections\nOrderedDict\nX\x03\x00\x00\x00pop\x86R)R.",
    "state of a class": b"\x80\x02c__builtin__\ngetattr\n}X\x07\x00\x00\x00__new__K\x01sb.",
    "memo of 2**31 entries": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "too deep": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
}


@pytest.mark.parametrize("content", ALLOWED_CALLS)
def test_allowed_names_are_not_called(tmp_path: Path, content: str) -> None:
    with pytest.raises(CheckpointError, match=r"hostile\.pt cannot be read: it (is damaged|has no GRU4Rec)"):
        load_official(archive_with_pickle(tmp_path / "hostile.pt", ALLOWED_CALLS[content]))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the address space")
def test_reader_can_neither_write_files_nor_use_much_memory(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(Path(pickle_reader.__file__).parent)!r})\n"
        "import signal, pickle_reader\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "pickle_reader._limit_resources(0)\n"
        "{}"
    )
    for attempt, error in (
        (f"open({str(tmp_path / 'file')!r}, 'w').write('x' * 100000)", "File too large"),
        ("bytes(2 << 30)", "MemoryError"),
    ):
        command = [sys.executable, "-I", "-S", "-c", code.format(attempt)]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ran.returncode and error in ran.stderr


def test_files_that_are_no_official_models(tmp_path: Path) -> None:
    path = tmp_path / "official.pt"
    with pytest.raises(FileNotFoundError):
        load_official(path)
    GRU4Rec.create(TEXT_PARAMETERS).fit(TABLE, progress=False).savemodel(path)
    with pytest.raises(CheckpointError, match=r"official\.pt is no model file of the official code"):
        load_official(path)
    torch.save({"weights": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match=r"(refers to|has no GRU4Rec)"):
        load_official(path)
    archive_with_pickle(path, pickle.dumps([0] * 1000), zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="its content is compressed"):
        load_official(path)
    write_small_model(path, error_during_train=True)
    with pytest.raises(CheckpointError, match="training of this model has failed"):
        load_official(path)
    write_small_model(path, bpreg=torch.ones(1), n_sample=None)
    with pytest.raises(CheckpointError, match="it has no parameter n_sample, bpreg"):
        load_official(path)
    write_small_model(path, batch_size=-1)
    with pytest.raises(CheckpointError, match="batch_size=-1: must be at least 1"):
        load_official(path)
    write_model_file(path, GRU4RecModel(N_ITEMS, [8], "constrained"), INTEGER_IDS, EVENTS, layers=[9])
    with pytest.raises(CheckpointError, match=r"layers=\(9,\), its tensors layers=\(8,\)"):
        load_official(path)
    write_model_file(path, GRU4RecModel(N_ITEMS, [8], "constrained"), INTEGER_IDS, [N_ITEMS])
    with pytest.raises(CheckpointError, match="training events have items 40 to 40, of 40 items"):
        load_official(path)
    write_model_file(path, GRU4RecModel(N_ITEMS, [8], "constrained"), INTEGER_IDS[:-1], [0])
    with pytest.raises(CheckpointError):
        load_official(path)


def test_every_truncation_is_a_checkpoint_error(tmp_path: Path) -> None:
    path = tmp_path / "official.pt"
    write_small_model(path)
    content = path.read_bytes()
    for length in np.linspace(4, len(content) - 1, 8, dtype=int):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"official\.pt"):
            load_official(path)
    path.write_bytes(content)
    load_official(path)


def test_damaged_weights_are_a_checkpoint_error(tmp_path: Path) -> None:
    path = tmp_path / "official.pt"
    model = write_small_model(path)
    content = path.read_bytes()
    weights = model.Wy.weight.detach().numpy().tobytes()
    path.write_bytes(content.replace(weights, bytes(len(weights))))
    with pytest.raises(CheckpointError, match="Bad CRC-32"):
        load_official(path)


@pytest.mark.slow
def test_models_of_the_official_code(tmp_path: Path) -> None:
    if "GRU4REC_OFFICIAL" not in os.environ:
        pytest.skip("set GRU4REC_OFFICIAL to a checkout of the official code")
    from peers.official import OfficialGRU4Rec

    peer = OfficialGRU4Rec(os.environ["GRU4REC_OFFICIAL"])
    # With several layers, compatibility_mode=True fails unless all are as wide as the input.
    for options in ({}, {"embedding": 6, "constrained_embedding": False}, {"constrained_embedding": False}):
        official = peer.new_estimator(layers=[16], batch_size=16, n_sample=32, n_epochs=2, **options)
        peer.fit(official, TABLE.copy(), sample_cache_max_size=1000, compatibility_mode=False)
        official.savemodel(tmp_path / "official.pt")
        converted = load_official(tmp_path / "official.pt")
        difference = largest_difference(official, converted, lambda *a, model=official.model: model.forward(*a, None))
        assert difference < 1e-5
        recall, mrr = peer.evaluate(official, TABLE.copy(), 16)
        # Their evaluation.py runs with the converted model as it does with theirs.
        assert peer.evaluate(converted, TABLE.copy(), 16) == pytest.approx((recall, mrr), abs=1e-6)
        ours = batch_eval(converted, TABLE)
        assert (ours[0][20], ours[1][20]) == pytest.approx((recall, mrr), abs=1e-6)


# Parameter files

EXPECTED_PARAMETERS = {"loss": "bpr-max", "layers": [32, 16], "elu_param": 1, "constrained_embedding": True}
PARAMETER_FILES = {
    "OrderedDict of pairs": "from collections import OrderedDict\n# best\ngru4rec_params = OrderedDict([\n('loss', "
    "'bpr-max'),\n('layers', [32, 16]),\n('elu_param', 1),\n('constrained_embedding', True)\n])\n",
    "module attribute": f"import collections\ngru4rec_params = collections.OrderedDict({EXPECTED_PARAMETERS})",
    "dict": f"gru4rec_params = {EXPECTED_PARAMETERS}",
    "keywords": "gru4rec_params = dict(loss='bpr-max', layers=[32, 16], elu_param=1, constrained_embedding=True)",
}


@pytest.mark.parametrize("form", PARAMETER_FILES)
def test_parameter_file(tmp_path: Path, form: str) -> None:
    path = tmp_path / "params.py"
    path.write_text(PARAMETER_FILES[form])
    parameters = read_paramfile(path)
    assert parameters == EXPECTED_PARAMETERS
    assert GRU4Rec().set_params(**parameters).layers == (32, 16)


def test_parameter_file_is_not_run(tmp_path: Path) -> None:
    path, created = tmp_path / "params.py", tmp_path / "created"
    path.write_text(f"open({str(created)!r}, 'w')\ngru4rec_params = {{'layers': [8]}}\n")
    assert read_paramfile(path) == {"layers": [8]}
    path.write_text(f"gru4rec_params = {{'layers': open({str(created)!r}, 'w')}}\n")
    with pytest.raises(ValueError, match=r"params\.py, line 1: malformed node"):
        read_paramfile(path)
    assert not created.exists()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("layers = [8]", "must assign the parameters to gru4rec_params once, not 0 times"),
        ("gru4rec_params = {}\ngru4rec_params = {}", "once, not 2 times"),
        ("\ngru4rec_params = {'layer': [8]}", r"line 2: GRU4Rec has no parameter 'layer'; did you mean 'layers'"),
        ("gru4rec_params = list([1])", "line 1: gru4rec_params must be a dict or an OrderedDict of literals"),
        ("gru4rec_params = 5", "line 1: 'int' object is not iterable"),
        ("gru4rec_params = {", "is no Python file"),
        ("gru4rec_params = " + "[" * 5000, "is no Python file"),
        ("\0", "is no Python file"),
    ],
)
def test_invalid_parameter_file(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "params.py"
    path.write_text(text)
    with pytest.raises(ValueError, match=problem):
        read_paramfile(path)


# The program with the options of run.py


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write train.tsv and test.tsv to the working folder."""
    monkeypatch.chdir(tmp_path)
    TABLE.to_csv("train.tsv", sep="\t", index=False)
    as_table(markov_store(n_sessions=60, seed=1)).to_csv("test.tsv", sep="\t", index=False)


def metrics_in(output: str) -> list[str]:
    """Return the lines with metrics in the output of a program."""
    return re.findall(r"^Recall@\d+: 0\.\d{6} MRR@\d+: 0\.\d{6}$|^PRIMARY METRIC: 0\.\d+$", output, re.MULTILINE)


def test_program_trains_saves_and_loads(log: None, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["-t", "test.tsv", "-m", "5", "20", "-e", "conservative", "-d", "cpu", "-pm", "mrr", "-lpm"]
    assert main(["train.tsv", "-ps", PARAMETER_STRING, "-s", "model.safetensors", "-ss", "1000", *options]) == 0
    trained = metrics_in(capsys.readouterr().out)
    assert len(trained) == 3 and trained[2].startswith("PRIMARY METRIC: ")
    assert f"MRR@5: {float(trained[2].split()[-1]):.6f}" in trained[0]
    assert main(["model.safetensors", "-l", *options]) == 0
    assert metrics_in(capsys.readouterr().out) == trained
    Path("params.py").write_text(f"gru4rec_params = dict({TEXT_PARAMETERS})")
    assert main(["train.tsv", "-pf", "params.py", *options]) == 0
    assert metrics_in(capsys.readouterr().out) == trained


def test_program_reads_named_columns_and_several_tests(log: None, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("train", "test"):
        table = pd.read_csv(f"{name}.tsv", sep="\t")
        table.rename(columns={"SessionId": "s", "ItemId": "i", "Time": "t"}).to_pickle(f"{name}.pickle")
    command = ["train.pickle", "-ps", PARAMETER_STRING, "-t", "test.pickle", "train.pickle", "-ik", "i", "-sk", "s"]
    assert main([*command, "-tk", "t"]) == 2
    assert "train.pickle is a pickle" in capsys.readouterr().err
    assert main([*command, "-tk", "t", "--allow_pickle"]) == 0
    assert len(metrics_in(capsys.readouterr().out)) == 2


def test_program_converts_an_official_model(tmp_path: Path) -> None:
    write_small_model(tmp_path / "official.pt")
    assert main([str(tmp_path / "official.pt"), "-l", "-s", str(tmp_path / "model.safetensors"), "-d", "cpu"]) == 0
    assert gru4rec_fast.GRU4Rec.load(tmp_path / "model.safetensors").vocabulary.ids.tolist() == INTEGER_IDS.tolist()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["missing.tsv", "-ps", "layers=8"], "error: missing.tsv: there is no such file"),
        (["train.tsv", "-ps", "layer=8"], "error: GRU4Rec has no parameter 'layer'; did you mean 'layers' or 'lanes'?"),
        (["train.tsv", "-ps", PARAMETER_STRING, "-ik", "Item"], "has no column 'Item'"),
        (["train.tsv", "-l"], "train.tsv"),
    ],
)
def test_error_of_the_program_is_one_line(
    log: None, capsys: pytest.CaptureFixture[str], arguments: list[str], problem: str
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert problem in error and error.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["-l", "-ps", "layers=8"]])
def test_program_needs_one_source_of_parameters(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train.tsv", *arguments])
    assert "-l" in capsys.readouterr().err


def test_program_is_a_module() -> None:
    command = [sys.executable, "-m", "gru4rec_fast.integrations.gru4rec_official", "--help"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    for option in ("-ps", "-pf", "-l", "-s", "-t", "-m", "-e", "-ss", "-g", "-d", "-ik", "-sk", "-tk", "-pm", "-lpm"):
        assert re.search(rf"(^|[\s,\[]){option}[\s,\]]", ran.stdout), option


def test_the_example_in_the_docs_runs(log: None) -> None:
    page = (Path(__file__).parents[2] / "docs" / "integrations" / "gru4rec_official.md").read_text()
    examples = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    for example in examples:
        exec(example, {})
    assert examples and Path("model.safetensors").exists()
