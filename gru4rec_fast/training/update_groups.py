"""Divides an epoch of session training into groups of updates, for trainers that count batches."""

from __future__ import annotations

from collections.abc import Iterator

from gru4rec_fast.training.options import check_at_least
from gru4rec_fast.training.session_runner import SessionEpochRunner, UpdatesOutcome


class UpdateGroups:
    """The epochs of a runner in groups of K updates. For a trainer of another library, one group is one batch.

        groups = UpdateGroups(runner, 32)
        for epoch in range(3):
            for index in groups:
                outcome = groups.run(index)

    The fused step makes the updates of a group in one call. Iterating yields the numbers 0, 1, ... of the groups.

    Args:
        runner: trains the network.
        updates_per_group: K. With K of at least 32, the cost of the other trainer's loop is small.

    Raises:
        ValueError: updates_per_group is below 1.
    """

    def __init__(self, runner: SessionEpochRunner, updates_per_group: int = 32) -> None:
        check_at_least(1, updates_per_group=updates_per_group)
        self.runner, self.updates_per_group = runner, updates_per_group
        # The same in every epoch, because trainers read the number of batches once. With a shuffle, the number of
        # updates varies: the last group makes those that remain, which may be none.
        self._n_groups = -(-runner.n_updates // updates_per_group)

    def __len__(self) -> int:
        """Return the number of groups of an epoch."""
        return self._n_groups

    def __iter__(self) -> Iterator[int]:
        return iter(range(self._n_groups))

    def run(self, index: int) -> UpdatesOutcome:
        """Make the updates of a group. Group 0 starts the next epoch; the last group runs the epoch to its end.

        Raises:
            ValueError, TrainingDiverged: see `SessionEpochRunner.run_updates`.
        """
        if index == 0 and self.runner.position.mini_batches:
            self.runner.start_next_epoch()
        is_last = index == self._n_groups - 1
        return self.runner.run_updates(None if is_last else self.updates_per_group)
