"""Training: trainer, callbacks, epoch runners, fused and captured steps, schedules, checkpoints, early stopping."""

from gru4rec_fast.training.callbacks import Callback, StepRecord
from gru4rec_fast.training.captured_step import CapturedTrainingStep
from gru4rec_fast.training.checkpoint import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint
from gru4rec_fast.training.curves import write_curves
from gru4rec_fast.training.early_stopping import EarlyStopping
from gru4rec_fast.training.fingerprint import log_fingerprint
from gru4rec_fast.training.fused_step import FusedTrainingStep
from gru4rec_fast.training.graph_runner import GraphEpochRunner
from gru4rec_fast.training.interrupt import TrainingInterrupted
from gru4rec_fast.training.memory_callback import MemoryCallback
from gru4rec_fast.training.options import TrainerOptions
from gru4rec_fast.training.progress import Progress, make_progress
from gru4rec_fast.training.rating_runner import RatingEpochRunner
from gru4rec_fast.training.schedules import Schedule, scheduler_names
from gru4rec_fast.training.session_runner import SessionEpochRunner, UpdatesOutcome
from gru4rec_fast.training.trainer import EpochRunner, Trainer
from gru4rec_fast.training.training_position import TrainingDiverged, TrainingPosition
from gru4rec_fast.training.update_groups import UpdateGroups

__all__ = [
    "Callback",
    "CapturedTrainingStep",
    "Checkpoint",
    "CheckpointError",
    "EarlyStopping",
    "EpochRunner",
    "FusedTrainingStep",
    "GraphEpochRunner",
    "MemoryCallback",
    "Progress",
    "RatingEpochRunner",
    "Schedule",
    "SessionEpochRunner",
    "StepRecord",
    "Trainer",
    "TrainerOptions",
    "TrainingDiverged",
    "TrainingInterrupted",
    "TrainingPosition",
    "UpdateGroups",
    "UpdatesOutcome",
    "load_checkpoint",
    "log_fingerprint",
    "make_progress",
    "save_checkpoint",
    "scheduler_names",
    "write_curves",
]
