"""GRU4Rec for PyTorch, with C++ kernels where they exist and a pure-PyTorch reference for everything.

Three doors, each complete in itself: `gru4rec_fast.ops` and `gru4rec_fast.nn` for somebody else's training loop, the
estimators (`GRU4Rec`, `NGCF`, `LightGCN`) with fit / evaluate / recommend / save / load, and `gru4rec-fast` on the
command line.

Every name below is imported when it is first used, so that `import gru4rec_fast` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gru4rec_fast._version import __version__

if TYPE_CHECKING:
    from gru4rec_fast._backend import build_info as build_info
    from gru4rec_fast.data import InteractionGraph as InteractionGraph
    from gru4rec_fast.data import SessionBlock as SessionBlock
    from gru4rec_fast.data import SessionParallelLoader as SessionParallelLoader
    from gru4rec_fast.data import SessionStore as SessionStore
    from gru4rec_fast.data import Vocabulary as Vocabulary
    from gru4rec_fast.models import NGCF as NGCF
    from gru4rec_fast.models import GRU4Rec as GRU4Rec
    from gru4rec_fast.models import LightGCN as LightGCN

_HOME_OF = {
    "GRU4Rec": "models",
    "InteractionGraph": "data",
    "LightGCN": "models",
    "NGCF": "models",
    "SessionBlock": "data",
    "SessionParallelLoader": "data",
    "SessionStore": "data",
    "Vocabulary": "data",
    "build_info": "_backend",
}
_ROOMS = ("data", "evaluation", "integrations", "models", "nn", "ops", "optim", "profiling", "training")

__all__ = [
    "NGCF",
    "GRU4Rec",
    "InteractionGraph",
    "LightGCN",
    "SessionBlock",
    "SessionParallelLoader",
    "SessionStore",
    "Vocabulary",
    "__version__",
    "build_info",
]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
        globals()[name] = value
        return value
    if name in _ROOMS:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})
