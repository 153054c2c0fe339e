"""Session logs: ingest, preparation, the memory-mapped store and the loader that plays it."""

from gru4rec_fast.data.graph import InteractionGraph
from gru4rec_fast.data.loader import SessionBlock, SessionParallelLoader
from gru4rec_fast.data.preparation import open_prepared, prepare
from gru4rec_fast.data.split import Split
from gru4rec_fast.data.store import SessionStore
from gru4rec_fast.data.triples import TripleSampler
from gru4rec_fast.data.vocabulary import Vocabulary

__all__ = [
    "InteractionGraph",
    "SessionBlock",
    "SessionParallelLoader",
    "SessionStore",
    "Split",
    "TripleSampler",
    "Vocabulary",
    "open_prepared",
    "prepare",
]
