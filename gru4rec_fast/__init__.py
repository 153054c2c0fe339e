"""Train session-based recommenders (GRU4Rec) and graph recommenders (NGCF, LightGCN) in PyTorch.

There are three ways to use this package:
- the estimators `GRU4Rec`, `NGCF` and `LightGCN`, which fit, evaluate, recommend, save and load;
- the operators in `gru4rec_fast.ops` and the modules in `gru4rec_fast.nn`, in your own training loop;
- the command `gru4rec-fast`.

Native C++ and CUDA kernels are used where they can be compiled, else pure PyTorch.

Every name is imported when it is first used, so that `import gru4rec_fast` is fast.
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

_SUBPACKAGE_OF = {
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
_SUBPACKAGES = ("data", "evaluation", "integrations", "models", "nn", "ops", "optim", "profiling", "training")

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
    """Import and return a public name or a subpackage, at its first use (PEP 562)."""
    if name in _SUBPACKAGE_OF:
        value = getattr(import_module(f"{__name__}.{_SUBPACKAGE_OF[name]}"), name)
        globals()[name] = value
        return value
    if name in _SUBPACKAGES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBPACKAGES})
