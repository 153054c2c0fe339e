"""A callback that measures the memory of a training by transformers.Trainer; huggingface.py exports it."""

from __future__ import annotations

import threading
from typing import Any

from transformers import TrainerCallback, TrainingArguments

from gru4rec_fast.profiling import LeakDetector, MemoryProfiler
from gru4rec_fast.training.memory_callback import TrainingMemory

_recording = threading.local()  # callback: the MemoryCallback of this thread whose training has not ended


class MemoryCallback(TrainingMemory, TrainerCallback):
    """Records the memory of a training by a MemoryProfiler, and watches it with a LeakDetector.

        memory = MemoryCallback()
        Trainer(model, arguments, train_dataset=data, callbacks=[memory]).train()
        print(memory.profiler.report().table(), memory.detector.report().describe())

    Phases: "forward_backward" (transformers has no event between forward and backward), "update" (the optimizer's step)
    and "evaluation" (an evaluation that the training arguments ask for; if there are several evaluation sets, the first
    batch of the second and of later ones is not measured). A `SessionTrainer` with `fused=True` has the
    phases of `GRU4Rec.fit` instead of the first two, and the fused step still trains. The detector makes a step per
    step of the trainer. When a training has ended, nothing is measured any more; the next one is added to the reports.

    transformers has no event for an error. So after a training that has failed, the profiler records until `close()` is
    called, or until the next training with a MemoryCallback begins in the same thread.

    Args:
        profiler: the profiler; None makes one for the CPU.
        detector: the detector; None makes one that warns. Its `warm_up` counts steps of the trainer.

    Raises:
        RuntimeError: in `train`: another profiler records in this thread.
    """

    def __init__(self, profiler: MemoryProfiler | None = None, detector: LeakDetector | None = None) -> None:
        super().__init__(profiler, detector)
        self._state: Any = None  # of the training that is recorded

    def close(self) -> None:
        """Leave both contexts, after a training that failed. What was recorded stays in the reports."""
        super().close()
        if getattr(_recording, "callback", None) is self:
            _recording.callback = None

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **_: Any
    ) -> None:
        failed = getattr(_recording, "callback", None)
        if failed is not None and failed._state is not state:  # otherwise it records this training
            failed.close()
        self.start(model, getattr(optimizer, "optimizer", optimizer))  # without Accelerate's wrapper
        self._state, _recording.callback = state, self
        if args.eval_on_start:
            self.begin_phase("evaluation")

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not _is_fused(args):
            self.begin_phase("forward_backward")

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not _is_fused(args):
            self.begin_phase("forward_backward")  # of the next batch whose gradients are accumulated

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.profiler.note_gradients()
        if not _is_fused(args):
            self.begin_phase("update")

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.end_phase()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.detector.step()
        self._begin_evaluation(control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._begin_evaluation(control)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not self.has_phase:  # the first batch of a further evaluation set was predicted
            self.begin_phase("evaluation")

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.end_phase()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.close()

    def _begin_evaluation(self, control: Any) -> None:
        if control.should_evaluate:  # transformers has no event when an evaluation begins
            self.begin_phase("evaluation")


def _is_fused(args: TrainingArguments) -> bool:
    """Return whether the fused step trains, which records its own phases: only SessionTrainingArguments has `fused`."""
    return bool(getattr(args, "fused", False))
