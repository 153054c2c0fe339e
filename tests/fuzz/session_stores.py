"""Target: folders of session stores with damaged files, opened and used as a user would."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from damage import damages, read_files, write_damaged
from harness import Target
from hypothesis import strategies as st

from gru4rec_fast import GRU4Rec, InteractionGraph, SessionParallelLoader, SessionStore, Vocabulary
from gru4rec_fast.training.fingerprint import log_fingerprint


def _store(string_ids: bool) -> SessionStore:
    ids = [f"item{i}" for i in range(6)] if string_ids else [10 * i for i in range(6)]
    session_ids = ["a", "b", "ö", "d"] if string_ids else [5, 6, 7, 8]
    items, offsets = [0, 1, 2, 3, 4, 5, 0, 1, 1, 2], [0, 3, 4, 7, 10]
    return SessionStore.from_arrays(items, offsets, vocabulary=Vocabulary(ids), session_ids=session_ids)


FILES, MODELS = [], []
for string_ids in (False, True):
    store = _store(string_ids)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        store.save(Path(folder) / "s")
        FILES.append(read_files(Path(folder) / "s"))
        MODELS.append(GRU4Rec(layers=[4], n_sample=4, batch_size=2, n_epochs=1).fit(store, progress=False))


def run(case: Any, folder: Path) -> None:
    """Open a damaged store, and use it as `case["use"]` says."""
    warnings.simplefilter("ignore")
    write_damaged(folder, FILES[case["strings"]], case["damages"])
    store = SessionStore.open(folder)
    assert len(store.summary()) < 2000, "long summary"
    if case["use"] == "ids":
        assert len(store.session_ids) == store.n_sessions
    elif case["use"] == "loader":
        n_targets = 0
        for block in SessionParallelLoader(store, 2, steps=2):
            assert block.inputs.min() >= -1 and block.inputs.max() < store.n_items, "input out of range"
            assert block.targets.min() >= -1 and block.targets.max() < store.n_items, "target out of range"
            n_targets += block.n_events
        assert n_targets == store.n_targets, "n_targets is wrong"
    elif case["use"] == "graph":
        neighbors = InteractionGraph.from_store(store).neighbors
        assert neighbors.min() >= 0
    elif case["use"] == "fingerprint":
        log_fingerprint(store)
    elif case["use"] == "save":
        store.save(folder / "copy")
        copy = SessionStore.open(folder / "copy")
        assert np.array_equal(copy.items, store.items), "the copy has other items"
    elif case["use"] == "train":
        GRU4Rec(layers=[4], n_sample=4, batch_size=2, n_epochs=1).fit(store, progress=False)
    else:
        model = MODELS[case["strings"]]
        if case["use"] == "evaluate":
            model.evaluate(store, baselines=True)
        else:
            result = model.recommend(store, k=2, unknown="skip")
            assert all(0 <= item < 6 for session in _sessions(store) for item in session), "item out of range"
            assert np.isfinite(result.scores[result.counts > 0]).any() or not result.counts.any()


def _sessions(store: SessionStore) -> list[np.ndarray]:
    return np.split(store.items, store.offsets[1:-1])


_USES = ["ids", "loader", "graph", "fingerprint", "save", "train", "evaluate", "recommend"]
TARGET = Target(
    cases=st.sampled_from([0, 1]).flatmap(
        lambda strings: st.fixed_dictionaries(
            {"strings": st.just(strings), "use": st.sampled_from(_USES), "damages": damages(FILES[strings])}
        )
    ),
    run=run,
    subjects=lambda case, folder: [str(folder), "vocabulary", "session"],
)
