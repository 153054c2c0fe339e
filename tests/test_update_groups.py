"""SessionEpochRunner.run_updates and UpdateGroups: training loops that are not a Trainer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from small_trainer import STORE, make_trainer

from gru4rec_fast.models import GRU4RecParameters, build_session_network, build_session_runner
from gru4rec_fast.training import TrainingDiverged, UpdateGroups


def weights(trainer: Any) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.network.parameters()])


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("changed", [{}, {"accumulate": 3, "bptt": 2, "shuffle": True}, {"n_sample": 0}], ids=str)
def test_run_updates_trains_as_the_trainer(changed: dict[str, Any], fused: bool) -> None:
    expected, trainer = make_trainer(fused=fused, **changed), make_trainer(fused=fused, **changed)
    history, runner = expected.run(), trainer.runner
    for record in history:
        outcomes, losses = [], 0.0
        while not outcomes or not outcomes[-1].finished:
            outcomes.append(runner.run_updates(7))
            losses += outcomes[-1].mini_batches * (outcomes[-1].loss or 0.0)
        per_call = 7 * changed.get("accumulate", 1) * changed.get("bptt", 1)
        assert all(outcome.mini_batches == per_call for outcome in outcomes[:-1])
        n_mini_batches = sum(outcome.mini_batches for outcome in outcomes)
        assert n_mini_batches == record["mini_batches"] == runner.position.mini_batches
        assert sum(outcome.events for outcome in outcomes) == record["events"]
        assert losses / n_mini_batches == pytest.approx(record["loss"])
        assert runner.run_updates(7) == (None, 0, 0, True)
        runner.start_next_epoch()
    assert torch.equal(weights(trainer), weights(expected))


@pytest.mark.parametrize("shuffle", [False, True])
def test_update_groups_train_as_the_trainer_with_equally_many_groups_per_epoch(shuffle: bool) -> None:
    expected, trainer = make_trainer(shuffle=shuffle), make_trainer(shuffle=shuffle)
    expected.run()
    groups = UpdateGroups(trainer.runner, 10)
    assert len(groups) == -(-trainer.runner.n_updates // 10)
    for _ in range(2):
        assert [groups.run(index).finished for index in groups][-1]
    assert trainer.runner.position.epoch == 2
    assert torch.equal(weights(trainer), weights(expected))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("calls", [1, 3])
def test_a_loaded_state_continues_within_the_epoch(fused: bool, calls: int) -> None:
    first, second = make_trainer(fused=fused, shuffle=True), make_trainer(fused=fused, shuffle=True)
    for _ in range(calls):
        first.runner.run_updates(4)
    state = first.runner.state_dict()
    for name in ("network", "optimizer"):
        getattr(second, name).load_state_dict(copy.deepcopy(getattr(first, name).state_dict()))
    first.runner.run_updates()
    second.runner.load_state_dict(state)
    assert second.runner.run_updates().finished
    assert second.runner.position.step == first.runner.position.step
    assert torch.equal(weights(second), weights(first))


@pytest.mark.parametrize("fused", [True, False])
def test_run_updates_runs_the_rest_of_an_epoch_with_one_event_per_update(fused: bool) -> None:
    runner = make_trainer(lanes=1, fused=fused).runner
    assert runner.run_updates().finished
    assert runner.position.events == runner.position.mini_batches == runner.n_events


def test_a_drawn_seed_is_taken_from_the_state() -> None:
    p = GRU4RecParameters(layers=(8,), batch_size=4, n_sample=8, shuffle=True)
    runners = [build_session_runner(p, build_session_network(p, STORE.n_items), STORE) for _ in range(2)]
    assert runners[0].seed != runners[1].seed
    runners[1].load_state_dict(runners[0].state_dict())
    assert runners[1].seed == runners[0].seed == runners[1].loader.seed


def test_a_state_of_another_training_is_refused() -> None:
    state = make_trainer().runner.state_dict()
    for changed, name in (({"data": {}}, "data"), ({"seed": 7}, "seed")):
        runner = make_trainer().runner
        runner.loader.seed_was_drawn = False
        with pytest.raises(ValueError, match=f"the state was saved with {name}="):
            runner.load_state_dict(state | changed)


def test_a_validation_between_two_calls_does_not_switch_dropout_off() -> None:
    trainer, expected = make_trainer(dropout=0.5), make_trainer(dropout=0.5)
    for n in (4, 4):
        trainer.runner.run_updates(n)
        trainer.network.eval()
    expected.runner.run_updates(8)
    assert torch.equal(weights(trainer), weights(expected))


def test_a_loss_that_is_nan_raises_an_error() -> None:
    trainer = make_trainer()
    with torch.no_grad():
        trainer.network.output.bias[0] = float("nan")
    with pytest.raises(TrainingDiverged, match="the loss is nan in epoch 1"):
        trainer.runner.run_updates()


@pytest.mark.parametrize("updates", [0, -1])
def test_numbers_below_one_are_refused(updates: int) -> None:
    runner = make_trainer().runner
    with pytest.raises(ValueError, match=f"updates={updates}: must be at least 1"):
        runner.run_updates(updates)
    with pytest.raises(ValueError, match=f"updates_per_group={updates}: must be at least 1"):
        UpdateGroups(runner, updates)
