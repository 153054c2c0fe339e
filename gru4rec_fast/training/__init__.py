"""Training: loop, schedules, checkpoints, early stopping, curves."""

from gru4rec_fast.training.checkpoint import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint
from gru4rec_fast.training.curves import write_curves
from gru4rec_fast.training.early_stopping import EarlyStopping
from gru4rec_fast.training.fingerprint import log_fingerprint
from gru4rec_fast.training.graph_loop import GraphTrainer, GraphTrainingOptions
from gru4rec_fast.training.interrupt import TrainingInterrupted
from gru4rec_fast.training.loop import Trainer
from gru4rec_fast.training.options import TrainingOptions
from gru4rec_fast.training.place import Place, TrainingDiverged
from gru4rec_fast.training.progress import Progress, make_progress
from gru4rec_fast.training.schedules import Schedule, scheduler_names

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "EarlyStopping",
    "GraphTrainer",
    "GraphTrainingOptions",
    "Place",
    "Progress",
    "Schedule",
    "Trainer",
    "TrainingDiverged",
    "TrainingInterrupted",
    "TrainingOptions",
    "load_checkpoint",
    "log_fingerprint",
    "make_progress",
    "save_checkpoint",
    "scheduler_names",
    "write_curves",
]
