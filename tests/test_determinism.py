"""Training twice with the same seed and the same number of threads gives the same bits.

In PyTorch's deterministic mode, the bits do not depend on the number of threads either.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from markov import markov_store
from native import threads

from gru4rec_fast import GRU4Rec
from gru4rec_fast.ops.sampled_loss import LOSSES
from gru4rec_fast.training import SessionEpochRunner

# The sizes are large enough for every kernel to use three threads. An epoch has about ten steps.
STORE = markov_store(n_sessions=260, n_items=3000, longest=5)
PARAMETERS: dict[str, Any] = {"layers": [112], "batch_size": 120, "n_sample": 512, "n_epochs": 1, "seed": 5}

EMBEDDING_MODES: dict[str, dict[str, Any]] = {
    "constrained": {},
    "separate": {"constrained_embedding": False, "embedding": 96},
    "one-hot": {"constrained_embedding": False},
}
CASES: dict[str, dict[str, Any]] = {  # parameters that are set in addition to PARAMETERS
    **{f"loss={loss}": {"loss": loss} for loss in LOSSES},
    **{f"{mode}-{form}": {**options, "gru_form": form} for mode, options in EMBEDDING_MODES.items()
       for form in ("reset_after", "reset_before")},
    "two-layers-dropout-momentum": {
        "layers": [96, 112], "momentum": 0.4, "dropout_p_embed": 0.3, "dropout_p_hidden": 0.2, "loss": "bpr-max"
    },
    "bptt-accumulate-logq": {"bptt": 3, "accumulate": 2, "logq": 1.0},
    "float64-shuffle": {"dtype": "float64", "shuffle": True, "n_epochs": 2},
}  # fmt: skip
ONLY_FUSED: dict[str, dict[str, Any]] = {"bf16": {"precision": "bf16"}}  # autograd does not support this
every_case = pytest.mark.parametrize(
    "changed",
    [pytest.param({**options, "fused": fused}, id=f"{'fused' if fused else 'autograd'}-{name}")
     for fused in (True, False)
     for name, options in {**CASES, **(ONLY_FUSED if fused else {})}.items()],
)  # fmt: skip


@contextmanager
def deterministic() -> Iterator[None]:
    """Enable PyTorch's deterministic mode, which also fills uninitialized memory with NaN."""
    previous = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(previous)


def train(n_threads: int, *, fused: bool, **changed: Any) -> dict[str, torch.Tensor]:
    """Return the weights of a newly trained model by name, and as "losses" its loss in each epoch.

    Fails if the model is not trained by the fused step or by autograd, as requested.
    """
    unused_method = "_run_autograd" if fused else "_run_fused"
    with threads(n_threads), pytest.MonkeyPatch.context() as patch:
        patch.setattr(SessionEpochRunner, unused_method, lambda *_: pytest.fail(f"trained by {unused_method}"))
        model = GRU4Rec(**{**PARAMETERS, **changed, "fused": fused}).fit(STORE, progress=False)
    assert model.network is not None
    losses = torch.tensor([record["loss"] for record in model.history], dtype=torch.float64)
    return {**{name: p.detach().clone() for name, p in model.network.named_parameters()}, "losses": losses}


def names_of_differing(tensors: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> list[str]:
    """Return the names of the tensors whose bits differ."""
    assert tensors.keys() == others.keys()
    return [name for name in tensors if not torch.equal(tensors[name], others[name])]


@every_case
def test_repeated_training_gives_the_same_bits(native_library: None, changed: dict[str, Any]) -> None:
    for n_threads in (1, 2, 3):
        assert names_of_differing(train(n_threads, **changed), train(n_threads, **changed)) == []


@every_case
def test_with_deterministic_algorithms_threads_do_not_change_a_bit(
    native_library: None, changed: dict[str, Any]
) -> None:
    with deterministic():
        single_threaded = train(1, **changed)
        assert all(tensor.isfinite().all() for tensor in single_threaded.values())
        for n_threads in (2, 3):
            assert names_of_differing(train(n_threads, **changed), single_threaded) == []


@pytest.mark.parametrize("fused", [True, False])
def test_other_seed_gives_other_weights(native_library: None, fused: bool) -> None:
    """If all seeds gave the same weights, the tests above could not fail."""
    seed_5, seed_6 = train(1, fused=fused), train(1, fused=fused, seed=6)
    assert "output.weight" in names_of_differing(seed_5, seed_6) and "losses" in names_of_differing(seed_5, seed_6)
