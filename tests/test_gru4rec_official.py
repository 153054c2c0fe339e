"""integrations.gru4rec_official: a script that was written for the official GRU4Rec code runs with it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from markov import markov_store
from test_estimator import as_table

import gru4rec_fast
from gru4rec_fast.integrations.gru4rec_official import GRU4Rec

STORE = markov_store()
TEXT_PARAMETERS = {  # values as text, as in a parameter string of the official code
    "layers": "16",
    "batch_size": "8",
    "n_sample": "32",
    "n_epochs": "1",
    "seed": "0",
    "constrained_embedding": "True",
}


def test_official_calls_run_without_changes(tmp_path: Path) -> None:
    model = GRU4Rec(device=torch.device("cpu"))  # type: ignore[arg-type]
    model.set_params(**TEXT_PARAMETERS)
    model.fit(as_table(STORE), sample_cache_max_size=10000000, compatibility_mode=True, item_key="ItemId",
              session_key="SessionId", time_key="Time")  # fmt: skip
    assert model.history[0]["mini_batches"] > 0
    model.savemodel(tmp_path / "model.safetensors")
    loaded = GRU4Rec.loadmodel(tmp_path / "model.safetensors", device="cpu")
    assert isinstance(loaded, GRU4Rec) and loaded.layers == (16,)
    expected = gru4rec_fast.GRU4Rec.create(TEXT_PARAMETERS).fit(as_table(STORE), progress=False)
    for other in (loaded, gru4rec_fast.GRU4Rec.load(tmp_path / "model.safetensors")):
        np.testing.assert_array_equal(other.recommend([[5]], 3).scores, expected.recommend([[5]], 3).scores)


def test_fit_accepts_positional_columns_and_options_of_gru4rec_fast(tmp_path: Path) -> None:
    table = as_table(STORE).rename(columns={"SessionId": "s", "ItemId": "i", "Time": "t"})
    model = GRU4Rec.create(TEXT_PARAMETERS)
    # data, sample_cache_max_size, compatibility_mode, item_key, session_key, time_key
    model.fit(table, 0, False, "i", "s", "t", validation=table, out=tmp_path, progress=False)
    assert "validation" in model.history[0] and (tmp_path / "best.safetensors").exists()


def test_the_main_class_lacks_the_methods_and_arguments_of_the_official_code() -> None:
    assert not hasattr(gru4rec_fast.GRU4Rec, "savemodel") and not hasattr(gru4rec_fast.GRU4Rec, "loadmodel")
    with pytest.raises(TypeError, match="sample_cache_max_size"):
        gru4rec_fast.GRU4Rec.create(TEXT_PARAMETERS).fit(STORE, sample_cache_max_size=1)
    with pytest.raises(TypeError, match="layers='16': must be sizes"):
        gru4rec_fast.GRU4Rec().set_params(**TEXT_PARAMETERS)


def test_the_example_in_the_docs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[1] / "docs" / "integrations" / "gru4rec_official.md").read_text()
    monkeypatch.chdir(tmp_path)
    as_table(markov_store(n_sessions=60)).to_csv("train.tsv", sep="\t", index=False)
    for example in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(example, {})
    assert Path("model.safetensors").exists()
