"""The catalogue of cells: one file each, equations only. A cell of your own works wherever these do."""

from .coupled_lstm import coupled_lstm
from .elman import elman
from .gru import gru
from .gru_reset_before import gru_reset_before
from .lstm import lstm
from .peephole_lstm import peephole_lstm
from .projected_lstm import projected_lstm

__all__ = ["coupled_lstm", "elman", "gru", "gru_reset_before", "lstm", "peephole_lstm", "projected_lstm"]
