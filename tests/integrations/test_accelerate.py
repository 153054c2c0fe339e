"""integrations.accelerate, with the real Accelerate."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("accelerate", reason="accelerate is not installed: pip install accelerate")

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from markov import markov_store

from gru4rec_fast import SessionParallelLoader
from gru4rec_fast.integrations.accelerate import PreparedSessionLoader, prepare_loader
from gru4rec_fast.nn import SampledLoss, SessionNetwork
from gru4rec_fast.optim import SparseAdagrad
from gru4rec_fast.training import SessionEpochRunner

STORE = markov_store()
PAGE = Path(__file__).parents[2] / "docs" / "integrations" / "accelerate.md"


class Training:
    """A training with Accelerate by autograd; `run` trains on the rest of an epoch."""

    def __init__(self, accumulate: int = 1, max_norm: float = 1.0) -> None:
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        self.accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
        network = SessionNetwork(STORE.n_items, [8], dropout_p_hidden=0.2, seed=0)
        adam = torch.optim.Adam(network.parameters(), lr=0.01)
        self.network, self.optimizer = self.accelerator.prepare(network, adam)
        self.blocks = prepare_loader(self.accelerator, SessionParallelLoader(STORE, 8, shuffle=True, seed=0))
        self.criterion, self.max_norm, self.n_updates = SampledLoss(batch_size=8), max_norm, 0

    def run(self, save_after: int | None = None, folder: Path | None = None) -> int:
        """Train to the end of the epoch and return the number of blocks. After `save_after` blocks, save the state."""
        n_blocks, network = 0, self.network
        for block in self.blocks:
            with self.accelerator.accumulate(network):
                output, hidden = network(block.inputs, self.blocks.hidden, block.reset)
                loss = self.criterion(output, network.output_weight, network.output_bias, block.targets)
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(network.parameters(), self.max_norm)
                    self.n_updates += 1
                self.optimizer.step()
                self.optimizer.zero_grad()
            self.blocks.hidden = [state.detach() for state in hidden]
            n_blocks += 1
            if n_blocks == save_after:
                self.accelerator.save_state(folder)
        return n_blocks


def weights(network: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


@pytest.mark.parametrize("n_blocks", [1, 50])
def test_a_training_resumes_within_an_epoch_with_the_same_bits(n_blocks: int, tmp_path: Path) -> None:
    training = Training()
    assert training.run() == len_of_epoch(0)
    length = training.run(save_after=n_blocks, folder=tmp_path)
    resumed = Training()
    resumed.accelerator.load_state(tmp_path)
    assert resumed.run() == length - n_blocks
    assert torch.equal(weights(resumed.network), weights(training.network))


def test_the_last_blocks_of_an_epoch_update_the_weights() -> None:
    training = Training(accumulate=4)
    length = training.run()
    assert length % 4 != 0 and training.n_updates == -(-length // 4)
    assert not any(p.grad is not None and p.grad.any() for p in training.network.parameters())
    first = training.n_updates
    training.run()
    assert training.n_updates - first == -(-len_of_epoch(1) // 4)


def len_of_epoch(epoch: int) -> int:
    loader = SessionParallelLoader(STORE, 8, shuffle=True, seed=0)
    loader.set_epoch(epoch)
    return len(loader)


def test_clipping_changes_the_training() -> None:
    clipped, free = Training(max_norm=0.1), Training(max_norm=1e9)
    clipped.run(), free.run()
    assert not torch.equal(weights(clipped.network), weights(free.network))


def test_wrong_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training()
    loader = SessionParallelLoader(STORE, 8)
    loader.device = torch.device("meta")
    with pytest.raises(ValueError, match="the loader has device=meta; make it with device"):
        prepare_loader(training.accelerator, loader)
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    with pytest.raises(ValueError, match="2 processes would all train on the same sessions"):
        prepare_loader(training.accelerator, SessionParallelLoader(STORE, 8))


def test_the_fused_step_resumes_by_accelerate(native_library: None, tmp_path: Path) -> None:
    def make() -> tuple[Accelerator, SessionEpochRunner]:
        accelerator = Accelerator(cpu=True)
        network = SessionNetwork(STORE.n_items, [8], dropout_p_hidden=0.2, seed=0)
        network, optimizer = accelerator.prepare(network, SparseAdagrad(network.parameters(), momentum=0.1))
        options: dict[str, Any] = {"criterion": SampledLoss(batch_size=8), "optimizer": optimizer.optimizer}
        runner = SessionEpochRunner(network, SessionParallelLoader(STORE, 8, seed=0, min_live=2), n_sample=0, **options)
        assert runner.why_not_fused is None
        accelerator.register_for_checkpointing(runner)
        return accelerator, runner

    accelerator, runner = make()
    runner.run_updates(10)
    accelerator.save_state(tmp_path)
    runner.run_updates(50)
    other_accelerator, other = make()
    other_accelerator.load_state(tmp_path)
    other.run_updates(50)
    assert torch.equal(weights(other.network), weights(runner.network))


def test_a_prepared_loader_is_not_ahead() -> None:
    loader = SessionParallelLoader(STORE, 8, seed=0)
    GradientState()
    prepared, plain = PreparedSessionLoader(loader), SessionParallelLoader(STORE, 8, seed=0)
    for block, expected in zip(prepared, plain, strict=True):
        assert torch.equal(block.inputs, expected.inputs)
        assert prepared.state_dict()["loader"] == plain.state_dict()
    assert prepared.end_of_dataloader


@pytest.mark.parametrize("number", [0, 1])
def test_page(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[number]
    assert len(code.splitlines()) < 40
    monkeypatch.chdir(tmp_path)
    sessions = np.repeat(np.arange(STORE.n_sessions), np.diff(STORE.offsets))
    rows = zip(sessions, STORE.vocabulary.ids[STORE.items], range(STORE.n_events), strict=True)
    lines = ["SessionId\tItemId\tTime", *(f"{session}\t{item}\t{time}" for session, item, time in rows)]
    (tmp_path / "train.tsv").write_text("\n".join(lines) + "\n")
    exec(compile(code, str(PAGE), "exec"), {})
