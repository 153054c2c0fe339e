"""GRU4Rec with the API and the programs of the official PyTorch code (github.com/hidasib/GRU4Rec_PyTorch_Official).

The programs are `python -m gru4rec_fast.integrations.gru4rec_official` with the options of run.py, and
`python -m gru4rec_fast.integrations.gru4rec_official.paropt` with those of paropt.py.
"""

from gru4rec_fast.integrations.gru4rec_official.estimator import GRU4Rec, batch_eval, load_official
from gru4rec_fast.integrations.gru4rec_official.parameter_file import read_paramfile

__all__ = ["GRU4Rec", "batch_eval", "load_official", "read_paramfile"]
