"""The catalogue of cells: one file each, equations only. A cell of your own works wherever these do."""

from .block_gru import block_gru
from .coupled_lstm import coupled_lstm
from .coupled_peephole_lstm import coupled_peephole_lstm
from .ct_rnn import ct_rnn
from .ea_lstm import ea_lstm
from .elman import elman
from .gru import gru
from .gru_reset_before import gru_reset_before
from .indrnn import indrnn
from .layer_norm_gru import layer_norm_gru
from .layer_norm_lstm import layer_norm_lstm
from .leaky_rnn import leaky_rnn
from .lstm import lstm
from .lstm_full_gate_recurrence import lstm_full_gate_recurrence
from .lstm_no_forget_gate import lstm_no_forget_gate
from .lstm_no_input_activation import lstm_no_input_activation
from .lstm_no_input_gate import lstm_no_input_gate
from .lstm_no_output_activation import lstm_no_output_activation
from .lstm_no_output_gate import lstm_no_output_gate
from .min_gru import min_gru
from .min_lstm import min_lstm
from .minimal_gated_unit import minimal_gated_unit
from .peephole_lstm import peephole_lstm
from .projected_lstm import projected_lstm
from .recurrent_highway import recurrent_highway
from .slstm import slstm

__all__ = [
    "block_gru", "coupled_lstm", "coupled_peephole_lstm", "ct_rnn", "ea_lstm", "elman", "gru", "gru_reset_before",
    "indrnn", "layer_norm_gru", "layer_norm_lstm", "leaky_rnn", "lstm", "lstm_full_gate_recurrence",
    "lstm_no_forget_gate", "lstm_no_input_activation", "lstm_no_input_gate", "lstm_no_output_activation",
    "lstm_no_output_gate", "min_gru", "min_lstm", "minimal_gated_unit", "peephole_lstm", "projected_lstm",
    "recurrent_highway", "slstm",
]
