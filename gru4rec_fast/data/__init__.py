"""Session logs and interaction graphs: reading, preparation, memory-mapped stores, data loaders and samplers."""

from gru4rec_fast.data.graphs.filters import k_core
from gru4rec_fast.data.graphs.graph import InteractionGraph
from gru4rec_fast.data.graphs.split import split_interactions
from gru4rec_fast.data.graphs.triples import TripleSampler
from gru4rec_fast.data.sessions.loader import SessionBlock, SessionParallelLoader
from gru4rec_fast.data.sessions.preparation import open_prepared, prepare
from gru4rec_fast.data.sessions.split import Split
from gru4rec_fast.data.sessions.store import SessionStore
from gru4rec_fast.data.vocabulary import Vocabulary

__all__ = [
    "InteractionGraph",
    "SessionBlock",
    "SessionParallelLoader",
    "SessionStore",
    "Split",
    "TripleSampler",
    "Vocabulary",
    "k_core",
    "open_prepared",
    "prepare",
    "split_interactions",
]
