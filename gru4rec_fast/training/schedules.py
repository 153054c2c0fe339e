"""Learning-rate schedules: the schedulers of torch.optim.lr_scheduler, selected by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer, lr_scheduler

from gru4rec_fast.training.saved_values import check_like_current

ALIASES = {"step": "StepLR", "cosine": "CosineAnnealingLR", "plateau": "ReduceLROnPlateau"}

# The base class, and classes that take functions or other schedulers, which cannot be written to a parameter file or a
# checkpoint.
_NOT_BY_NAME = {"LRScheduler", "LambdaLR", "MultiplicativeLR", "ChainedScheduler", "SequentialLR"}


def scheduler_names() -> list[str]:
    """Return every name that `Schedule` accepts."""
    classes = [
        name
        for name, value in vars(lr_scheduler).items()
        if inspect.isclass(value) and issubclass(value, lr_scheduler.LRScheduler) and not name.startswith("_")
    ]
    return [*ALIASES, *sorted(set(classes) - _NOT_BY_NAME)]


class Schedule:
    """A torch learning-rate scheduler that is stepped after each epoch, or after each update of the weights.

    Attributes:
        scheduler: the torch scheduler.
        per_update: whether it is stepped after each update.
        monitors_metric: whether it monitors a metric or the loss.

    Args:
        optimizer: the optimizer whose learning rate is scheduled.
        name: "step", "cosine", "plateau", or the name of a class in torch.optim.lr_scheduler.
        options: the arguments of that class. One further key, `interval`, says whether the scheduler is stepped after
            each "epoch" (default) or each "update". Defaults: for "step", step_size is a third of
            the epochs. For "cosine" with interval="epoch", T_max is n_epochs. For "plateau", mode is "max" if
            `maximize`, else "min".
        n_epochs: length of the training; only used for these defaults.
        maximize: whether a larger monitored value is better; only used for "plateau".

    Raises:
        ValueError: an unknown name, interval or option, or options that the class rejects.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        name: str,
        options: Mapping[str, Any] | None = None,
        *,
        n_epochs: int,
        maximize: bool = False,
    ):
        if name not in scheduler_names():
            raise ValueError(f"lr_scheduler={name!r}: choose one of {', '.join(scheduler_names())}")
        class_name = ALIASES.get(name, name)
        arguments = dict(options or {})
        interval = arguments.pop("interval", "epoch")
        if interval not in ("epoch", "update"):
            raise ValueError(f"lr_scheduler_options: interval={interval!r} is neither 'epoch' nor 'update'")
        self.monitors_metric = class_name == "ReduceLROnPlateau"
        self.per_update = interval == "update"
        if self.monitors_metric and self.per_update:
            raise ValueError(
                "lr_scheduler='plateau' monitors a value that is only computed once per epoch: choose interval='epoch'"
            )
        is_cosine = class_name == "CosineAnnealingLR"
        self._ends_with_training = is_cosine and not self.per_update and "T_max" not in arguments
        if class_name == "StepLR":
            arguments.setdefault("step_size", max(1, n_epochs // 3))
        elif self._ends_with_training:
            arguments["T_max"] = n_epochs
        elif self.monitors_metric:
            arguments.setdefault("mode", "max" if maximize else "min")
        scheduler_class = getattr(lr_scheduler, class_name)
        known = list(inspect.signature(scheduler_class).parameters)[1:]  # without the optimizer
        unknown = sorted(set(arguments) - set(known))
        if unknown:
            raise ValueError(
                f"lr_scheduler_options: {class_name} has no {', '.join(unknown)}; choose from {', '.join(known)}"
            )
        try:
            self.scheduler = scheduler_class(optimizer, **arguments)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"lr_scheduler={name!r} with lr_scheduler_options={dict(options or {})}: {error}"
            ) from error

    def after_update(self) -> None:
        """Step the scheduler if interval="update". Call this after each update of the weights."""
        if self.per_update:
            self._step()

    def after_epoch(self, monitored: float | None) -> None:
        """Step the scheduler if interval="epoch". Call this after each epoch.

        monitored: the metric or loss that "plateau" monitors. If the epoch was not validated, it is None, and "plateau"
            is not stepped.
        """
        if self.monitors_metric:
            if monitored is not None:
                self._step(monitored)
        elif not self.per_update:
            self._step()

    def _step(self, *monitored: float) -> None:
        # Prevents the warning that the scheduler is stepped before the optimizer. torch does not count updates by the
        # fused step, nor updates before a resume.
        self.scheduler.optimizer._opt_called = True
        self.scheduler.step(*monitored)

    def state_dict(self) -> dict[str, Any]:
        """Return the entries of the scheduler's state that are JSON values."""
        return {key: value for key, value in self.scheduler.state_dict().items() if _is_json(value)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state. Load the optimizer's state afterwards, since that state has the learning rate.

        Raises:
            ValueError: a cosine schedule was as long as the saved training, and this training has another length. After
                the end of the cosine the learning rate would increase again.
        """
        if self._ends_with_training and state["T_max"] != self.scheduler.state_dict()["T_max"]:
            raise ValueError(
                "T_max was not given, so the cosine ended with the saved training, but n_epochs has changed since: "
                f"resume with n_epochs={state['T_max']}, or train anew with lr_scheduler_options={{'T_max': ...}}"
            )
        current = self.state_dict()
        # Private values may be newer than the checkpoint.
        if missing := {name for name in current if not name.startswith("_")} - {*state}:
            raise KeyError(f"schedule.{min(missing)}")
        check_like_current(state, current, "schedule")
        self.scheduler.load_state_dict(state)


def _is_json(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_json, value))
    return value is None or isinstance(value, bool | int | float | str)
