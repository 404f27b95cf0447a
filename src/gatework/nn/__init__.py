"""Recurrent layers: `Recurrent` for any cell, layers with the names and behaviour of torch.nn, and attention."""

from .attention import (
    AdditiveAttention,
    AttentionPooling,
    LocationAwareAttention,
    MultiHeadAttention,
    MultiplicativeAttention,
)
from .layers import GRU, LSTM, RNN, CoupledLSTM, LayerNormGRU, LayerNormLSTM, PeepholeLSTM
from .recurrent import Recurrent
from .saving import load, save

__all__ = ["AdditiveAttention", "AttentionPooling", "CoupledLSTM", "GRU", "LSTM", "LayerNormGRU", "LayerNormLSTM",
           "LocationAwareAttention", "MultiHeadAttention", "MultiplicativeAttention", "PeepholeLSTM", "RNN",
           "Recurrent", "load", "save"]
