"""Recurrent layers: `Recurrent` for any cell, and layers with the names and behaviour of torch.nn."""

from .layers import GRU, LSTM, RNN, CoupledLSTM, PeepholeLSTM
from .recurrent import Recurrent

__all__ = ["CoupledLSTM", "GRU", "LSTM", "PeepholeLSTM", "RNN", "Recurrent"]
