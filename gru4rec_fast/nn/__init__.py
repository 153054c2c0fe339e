"""Modules for anybody's training loop."""

from gru4rec_fast.nn.sampled_loss import SampledLoss
from gru4rec_fast.nn.session_gru import SessionGRU
from gru4rec_fast.nn.session_network import ItemTable, OutputTable, SessionNetwork
from gru4rec_fast.nn.tables import gather_live_rows, gather_rows

__all__ = ["ItemTable", "OutputTable", "SampledLoss", "SessionGRU", "SessionNetwork", "gather_live_rows", "gather_rows"]
