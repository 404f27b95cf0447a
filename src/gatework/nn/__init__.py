"""Recurrent layers: `Recurrent` for any cell, and layers with the names and behaviour of torch.nn."""

from .layers import GRU, LSTM, RNN, CoupledLSTM, LayerNormGRU, LayerNormLSTM, PeepholeLSTM
from .recurrent import Recurrent
from .saving import load, save

__all__ = ["CoupledLSTM", "GRU", "LSTM", "LayerNormGRU", "LayerNormLSTM", "PeepholeLSTM", "RNN", "Recurrent", "load",
           "save"]
