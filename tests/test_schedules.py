"""Learning-rate schedules by name: compared with those of torch, and resumed from a state in JSON."""

import json
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from gru4rec_fast.training.schedules import Schedule, scheduler_names

# Options of each scheduler, by name.
EXAMPLES: dict[str, dict[str, Any]] = {
    "step": {"step_size": 2, "gamma": 0.5},
    "cosine": {},
    "plateau": {"patience": 1, "factor": 0.5},
    "ConstantLR": {"total_iters": 3},
    "CosineAnnealingLR": {"T_max": 4},
    "CosineAnnealingWarmRestarts": {"T_0": 3, "T_mult": 2},
    "CyclicLR": {"base_lr": 0.01, "max_lr": 0.2, "step_size_up": 3},
    "ExponentialLR": {"gamma": 0.9},
    "LinearLR": {"total_iters": 4},
    "MultiStepLR": {"milestones": [2, 5]},
    "OneCycleLR": {"max_lr": 0.3, "total_steps": 9},
    "PolynomialLR": {"total_iters": 6},
    "ReduceLROnPlateau": {"patience": 0},
    "StepLR": {"step_size": 3},
}
# Values of the monitored loss after each epoch.
MONITORED = [3.0, 2.0, 2.5, 2.6, 2.7, 1.0, 1.5, 1.6]


def make_optimizer() -> torch.optim.Optimizer:
    """Return an optimizer with learning rate 0.1 and a gradient of zero."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    return torch.optim.SGD([parameter], lr=0.1, momentum=0.5)


def rates_after_epochs(schedule: Schedule, optimizer: torch.optim.Optimizer, monitored: list[float]) -> list[float]:
    """Step the schedule after each monitored value; return the learning rate after each epoch."""
    rates = []
    for value in monitored:
        optimizer.step()
        schedule.after_epoch(value)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def test_every_scheduler_has_an_example():
    assert set(scheduler_names()) == set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_resuming_through_json_continues_the_schedule(name: str):
    optimizer = make_optimizer()
    expected = rates_after_epochs(Schedule(optimizer, name, EXAMPLES[name], n_epochs=8), optimizer, MONITORED)
    assert len(set(expected)) > 1, "the example does not change the learning rate, so this test would prove nothing"

    optimizer = make_optimizer()
    schedule = Schedule(optimizer, name, EXAMPLES[name], n_epochs=8)
    first = rates_after_epochs(schedule, optimizer, MONITORED[:3])
    saved = json.loads(json.dumps(schedule.state_dict()))
    optimizer_state = optimizer.state_dict()

    optimizer = make_optimizer()
    schedule = Schedule(optimizer, name, EXAMPLES[name], n_epochs=8)
    schedule.load_state_dict(saved)
    optimizer.load_state_dict(optimizer_state)
    assert first + rates_after_epochs(schedule, optimizer, MONITORED[3:]) == expected


def test_cosine_equals_the_torch_class_with_n_epochs_as_t_max():
    ours, theirs = make_optimizer(), make_optimizer()
    their_schedule = lr_scheduler.CosineAnnealingLR(theirs, T_max=8)
    rates = rates_after_epochs(Schedule(ours, "cosine", n_epochs=8), ours, MONITORED)
    for rate in rates:
        theirs.step()
        their_schedule.step()
        assert rate == theirs.param_groups[0]["lr"]
    assert rates[-1] == pytest.approx(0)


def test_plateau_reduces_the_rate_if_the_monitored_value_gets_worse():
    for maximize, improving in ((False, [3.0, 2.0, 1.0]), (True, [0.1, 0.2, 0.3])):
        for monitored, is_reduced in ((improving, False), (improving[::-1], True)):
            optimizer = make_optimizer()
            schedule = Schedule(optimizer, "plateau", {"patience": 0}, n_epochs=3, maximize=maximize)
            assert (rates_after_epochs(schedule, optimizer, monitored)[-1] < 0.1) == is_reduced


def test_a_schedule_with_interval_update_is_stepped_by_updates_only():
    optimizer = make_optimizer()
    schedule = Schedule(optimizer, "ExponentialLR", {"gamma": 0.5, "interval": "update"}, n_epochs=1)
    optimizer.step()
    schedule.after_epoch(0.0)
    assert optimizer.param_groups[0]["lr"] == 0.1
    schedule.after_update()
    assert optimizer.param_groups[0]["lr"] == 0.05


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Cosine", {}, r"lr_scheduler='Cosine': choose one of step, cosine, plateau, ConstantLR"),
        ("LambdaLR", {}, "choose one of"),
        ("step", {"stepsize": 2}, "StepLR has no stepsize; choose from step_size, gamma"),
        ("step", {"interval": "day"}, "interval='day' is neither"),
        ("plateau", {"interval": "update"}, "once per epoch"),
        ("ExponentialLR", {}, "'ExponentialLR' with lr_scheduler_options={}: .*gamma"),
        ("OneCycleLR", {"max_lr": 1.0}, "total_steps"),
    ],
)
def test_wrong_names_and_options_are_errors(name: str, options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        Schedule(make_optimizer(), name, options, n_epochs=3)
