"""Train in PyTorch-Ignite: engines that train and evaluate GRU4Rec, and a handler that measures memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

try:
    from ignite.engine import Engine, Events
except ModuleNotFoundError as error:
    message = "gru4rec_fast.integrations.ignite needs PyTorch-Ignite: pip install pytorch-ignite"
    raise ModuleNotFoundError(message, name=error.name) from None

from gru4rec_fast.data import SessionStore
from gru4rec_fast.evaluation import NextItemNetwork, evaluate_sessions
from gru4rec_fast.models import GRU4RecParameters, build_session_network, build_session_runner
from gru4rec_fast.profiling import LeakDetector, MemoryProfiler, active_profiler
from gru4rec_fast.training import SessionEpochRunner, UpdateGroups
from gru4rec_fast.training.memory_callback import TrainingMemory


class SessionTrainer(Engine):
    """The engine that `create_session_trainer` returns.

    `state.output` is {"loss": mean loss of the step's mini-batches, "events": number of targets}. With `shuffle`, the
    last step of an epoch may have no events; its loss is the mean of the epoch. `state.metrics` has "loss" and "events"
    of the epoch.

    Attributes:
        network: the `SessionNetwork` that is trained.
        runner: the `SessionEpochRunner` that trains it. `runner.optimizer` may be replaced before `run`.
    """

    def __init__(self, runner: SessionEpochRunner, updates_per_step: int) -> None:
        super().__init__(self._make_updates)
        self.runner, self.network = runner, runner.network
        self._groups = UpdateGroups(runner, updates_per_step)
        self.add_event_handler(Events.STARTED, self._announce)
        self.add_event_handler(Events.EPOCH_COMPLETED, self._finish_epoch)

    def run(self, data: Any = None, *args: Any, **options: Any) -> Any:
        """Train, as `Engine.run`; without `data`, an epoch of the engine is an epoch of the sessions."""
        return super().run(range(len(self._groups)) if data is None else data, *args, **options)

    def _make_updates(self, engine: Engine, batch: Any) -> dict[str, float]:
        outcome = self._groups.run((self.state.iteration - 1) % len(self._groups))
        loss = self.runner.position.mean_loss if outcome.loss is None else outcome.loss
        assert loss is not None  # an epoch has a mini-batch
        return {"loss": loss, "events": outcome.events}

    def _announce(self) -> None:
        """Log whether the fused step or autograd trains."""
        if (reason := self.runner.why_not_fused) is None:
            self.logger.info("the fused step trains")
        else:
            self.logger.warning(f"autograd trains, not the fused step: {reason}")

    def _finish_epoch(self) -> None:
        position, schedule = self.runner.position, self.runner.schedule
        self.state.metrics |= {"loss": position.mean_loss, "events": position.events}
        is_finished = self.state.iteration % len(self._groups) == 0
        if schedule is not None and is_finished:
            schedule.after_epoch(position.mean_loss)


def create_session_trainer(
    store: SessionStore,
    parameters: GRU4RecParameters | Mapping[str, Any] | None = None,
    *,
    updates_per_step: int = 32,
    sparse: bool = True,
) -> SessionTrainer:
    """Return an engine that trains GRU4Rec by the fused step.

        trainer = create_session_trainer(store, GRU4RecParameters(layers=(100,)))
        trainer.run(max_epochs=5)

    An iteration of the engine is `updates_per_step` updates of the weights. Where the fused step cannot train, autograd
    does; a line of the engine's logger says which one trains.

    To resume, also within an epoch, save and load the state dicts of the engine, `trainer.network`,
    `trainer.runner.optimizer` and `trainer.runner`, e.g. with `ignite.handlers.Checkpoint`. On the CPU the resumed
    training ends with the same bits as one that was not interrupted.

    Args:
        store: sessions for training.
        parameters: hyper-parameters, or a mapping of them. `n_epochs` is only the default length of a schedule;
            `monitor`, `evaluate_every`, `patience` and `min_delta` have no effect: add handlers to the engine.
        updates_per_step: K, updates of the weights per iteration. At 1, the engine takes a large part of the time.
        sparse: whether autograd computes sparse gradients of the item tables. False if `trainer.runner.optimizer` is
            replaced by one that takes dense gradients only, such as Adam. The fused step needs no gradients.

    Raises:
        ValueError: a value is out of range.
    """
    p = parameters if isinstance(parameters, GRU4RecParameters) else GRU4RecParameters.create(parameters or {})
    network = build_session_network(p, store.n_items, sparse=sparse)
    return SessionTrainer(build_session_runner(p, network, store), updates_per_step)


def create_session_evaluator(network: NextItemNetwork, **options: Any) -> Engine:
    """Return an engine that evaluates a network on stores: `create_session_evaluator(network).run([store])`.

    After `run`, `state.metrics` has "recall@20" and the other metrics of the last store, and `state.output` its
    `Report`. `options` are those of `evaluate_sessions`, e.g. cutoffs=(5, 20).
    """

    def evaluate(engine: Engine, store: SessionStore) -> Any:
        report = evaluate_sessions(network, store, **options)
        engine.state.metrics.update(report.metrics)
        return report

    return Engine(evaluate)


class MemoryHandler(TrainingMemory):
    """Records the memory of an engine's runs by a MemoryProfiler, and watches it with a LeakDetector.

        memory = MemoryHandler(network=network, optimizer=optimizer)
        memory.attach(trainer, evaluator)
        trainer.run(loader, max_epochs=2)
        print(memory.profiler.report().table(), memory.detector.report().describe())

    Phases: "batch" (the data loader), "iteration" (the process function), and "evaluation" (a run of an evaluator by a
    handler of the trainer). A phase that the process function begins by `gru4rec_fast.profiling.phase` is within
    "iteration". The trainer of `create_session_trainer` has the phases of `GRU4Rec.fit` instead of the first two, and
    the fused step still trains. The detector makes a step per iteration. When a run has ended, also by an error or an
    interrupt, nothing is measured any more; the next run is added to the reports.

    Args:
        profiler: the profiler; None makes one for the CPU.
        detector: the detector; None makes one that warns. Its `warm_up` counts iterations.
        network: the module whose parameters, buffers and gradients are reported; None: those of the trainer of
            `create_session_trainer`, else none.
        optimizer: the optimizer whose state is reported, likewise.

    Raises:
        RuntimeError: in `Engine.run`: another profiler records in this thread.
    """

    def __init__(
        self,
        profiler: MemoryProfiler | None = None,
        detector: LeakDetector | None = None,
        *,
        network: nn.Module | None = None,
        optimizer: Optimizer | None = None,
    ) -> None:
        super().__init__(profiler, detector)
        self._given = network, optimizer

    def attach(self, engine: Engine, *evaluators: Engine) -> None:
        """Measure the runs of an engine, and the runs of evaluators within them."""
        engine.add_event_handler(Events.STARTED, self._start)
        if not isinstance(engine, SessionTrainer):
            engine.add_event_handler(Events.GET_BATCH_STARTED, self._begin, "batch")
            # An epoch of unknown length ends when there is no batch; then GET_BATCH_COMPLETED does not happen.
            engine.add_event_handler(Events.GET_BATCH_COMPLETED | Events.EPOCH_COMPLETED, self._end)
        engine.add_event_handler(Events.ITERATION_STARTED, self._begin, "iteration")
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._finish_iteration)
        engine.add_event_handler(Events.COMPLETED | Events.TERMINATE | Events.INTERRUPT, self._close)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._close_after_error)
        for evaluator in evaluators:
            evaluator.add_event_handler(Events.STARTED, self._begin_evaluation)
            evaluator.add_event_handler(Events.COMPLETED | Events.TERMINATE, self._end)

    def _start(self, engine: Engine) -> None:
        network, optimizer = self._given
        if isinstance(engine, SessionTrainer):
            network, optimizer = network or engine.network, optimizer or engine.runner.optimizer
        self.start(network, *([] if optimizer is None else [optimizer]))

    def _begin(self, engine: Engine, name: str) -> None:
        if active_profiler() is not self.profiler:  # the run continues after an interrupt, or after an ignored error
            self._start(engine)
        if not isinstance(engine, SessionTrainer):
            self.begin_phase(name)

    def _finish_iteration(self, engine: Engine) -> None:
        self.end_phase()
        self.profiler.note_gradients()
        self.detector.step()

    def _begin_evaluation(self, engine: Engine) -> None:
        self.begin_phase("evaluation")

    def _end(self, engine: Engine) -> None:
        self.end_phase()

    def _close(self, engine: Engine) -> None:
        self.close()

    def _close_after_error(self, engine: Engine, error: BaseException) -> None:
        """Close; raise the error unless it has other handlers, because Ignite raises no error that has a handler."""
        self.close()
        handlers = [entry[0] for entry in engine._event_handlers[Events.EXCEPTION_RAISED]]
        if all(isinstance(getattr(handler, "__self__", None), MemoryHandler) for handler in handlers):
            raise error
