"""Layers with names of their own: drop-in replacements of torch.nn's, and their open variants.

`options` are what `Recurrent` takes by name only: regularisation, initialisation, checkpointing, backend.
"""

from __future__ import annotations

from functools import partial

from .. import cells
from .recurrent import Recurrent


class RNN(Recurrent):
    """Plain recurrent network: torch.nn.RNN with the same arguments, results and state_dict.

    `nonlinearity` is "tanh" or "relu". Shapes, options and errors: see `Recurrent`.

    >>> import torch, gatework
    >>> theirs = torch.nn.RNN(8, 16, nonlinearity="relu")
    >>> ours = gatework.nn.RNN(8, 16, nonlinearity="relu")
    >>> ours.load_state_dict(theirs.state_dict(), strict=True)
    <All keys matched successfully>
    """

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, nonlinearity: str = "tanh",
                 bias: bool = True, batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False,
                 device=None, dtype=None, **options):
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f'nonlinearity is "tanh" or "relu"; {nonlinearity!r} was given')
        super().__init__(partial(cells.elman, nonlinearity=nonlinearity), input_size, hidden_size, num_layers, bias,
                         batch_first, dropout, bidirectional, 0, device, dtype, **options)
        self.nonlinearity = nonlinearity


class LSTM(Recurrent):
    """Long short-term memory: torch.nn.LSTM with the same arguments, results and state_dict, `proj_size` included.

    Shapes, options and errors: see `Recurrent`.

    >>> import torch, gatework
    >>> layer = gatework.nn.LSTM(8, 16, num_layers=2, bidirectional=True)
    >>> output, (h, c) = layer(torch.randn(5, 3, 8))
    >>> output.shape, h.shape
    (torch.Size([5, 3, 32]), torch.Size([4, 3, 16]))
    """

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True,
                 batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False, proj_size: int = 0,
                 device=None, dtype=None, **options):
        super().__init__(cells.projected_lstm if proj_size else cells.lstm, input_size, hidden_size, num_layers, bias,
                         batch_first, dropout, bidirectional, proj_size, device, dtype, **options)


class GRU(Recurrent):
    """Gated recurrent unit: torch.nn.GRU with the same arguments, results and state_dict.

    Shapes, options and errors: see `Recurrent`.

    >>> import torch, gatework
    >>> output, h = gatework.nn.GRU(8, 16, batch_first=True)(torch.randn(3, 5, 8))
    >>> output.shape, h.shape
    (torch.Size([3, 5, 16]), torch.Size([1, 3, 16]))
    """

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True,
                 batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False, device=None, dtype=None,
                 **options):
        super().__init__(cells.gru, input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, 0,
                         device, dtype, **options)


class PeepholeLSTM(Recurrent):
    """LSTM whose gates see the cell state (Gers & Schmidhuber, 2000); arguments and shapes as `LSTM`.

    `peepholes` names the gates that look, any of "ifo". The peephole weights are `weight_peephole_l0`, one row of H
    for each such gate.

    >>> import torch, gatework
    >>> layer = gatework.nn.PeepholeLSTM(8, 16, peepholes="io")
    >>> layer.weight_peephole_l0.shape
    torch.Size([32])
    """

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True,
                 batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False, device=None, dtype=None,
                 *, peepholes: str = "ifo", **options):
        super().__init__(partial(cells.peephole_lstm, peepholes=peepholes), input_size, hidden_size, num_layers, bias,
                         batch_first, dropout, bidirectional, 0, device, dtype, **options)
        self.peepholes = peepholes


class CoupledLSTM(Recurrent):
    """LSTM that forgets as much as it writes, f = 1 - i (Greff et al., 2017); arguments and shapes as `LSTM`.

    >>> import torch, gatework
    >>> gatework.nn.CoupledLSTM(8, 16).weight_ih_l0.shape
    torch.Size([48, 8])
    """

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True,
                 batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False, device=None, dtype=None,
                 **options):
        super().__init__(cells.coupled_lstm, input_size, hidden_size, num_layers, bias, batch_first, dropout,
                         bidirectional, 0, device, dtype, **options)


class LayerNormLSTM(Recurrent):
    """LSTM with layer normalisation (Ba et al., 2016), see `gatework.cells.layer_norm_lstm`; arguments and shapes as
    `LSTM`.

    The gains `gx_l0`, `gh_l0` (of all four gates) and `gc_l0` begin at 1. `eps` is what keeps a norm from a division by
    0.

    >>> import torch, gatework
    >>> layer = gatework.nn.LayerNormLSTM(8, 16, recurrent_dropout=0.1)
    >>> layer(torch.randn(5, 3, 8))[0].shape, layer.gx_l0.shape
    (torch.Size([5, 3, 16]), torch.Size([64]))
    """

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True,
                 batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False, device=None, dtype=None,
                 *, eps: float = 1e-5, **options):
        super().__init__(partial(cells.layer_norm_lstm, eps=eps), input_size, hidden_size, num_layers, bias,
                         batch_first, dropout, bidirectional, 0, device, dtype, **options)


class LayerNormGRU(Recurrent):
    """GRU with layer normalisation (Ba et al., 2016), see `gatework.cells.layer_norm_gru`; arguments and shapes as
    `GRU`.

    The gains `gx_l0` and `gh_l0` (of both gates and the candidate) begin at 1. `eps` is what keeps a norm from a
    division by 0. The update gate writes where it is 1, as in the paper; that of `GRU` keeps.

    >>> import torch, gatework
    >>> gatework.nn.LayerNormGRU(8, 16)(torch.randn(5, 3, 8))[0].shape
    torch.Size([5, 3, 16])
    """

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True,
                 batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False, device=None, dtype=None,
                 *, eps: float = 1e-5, **options):
        super().__init__(partial(cells.layer_norm_gru, eps=eps), input_size, hidden_size, num_layers, bias, batch_first,
                         dropout, bidirectional, 0, device, dtype, **options)
