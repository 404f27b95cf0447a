"""Receives a layer that runs forward, hands on one that runs from the last step to the first."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from ..nn import Recurrent


class Reversed(torch.nn.Module):
    """A layer that reads its input backward; its output stands in the order of the input.

    ONNX (direction="reverse") and Flax (reverse=True, keep_order=True) have layers of this one direction, `gatework.nn`
    has them as the second half of a bidirectional one. Called with `input` and first states in the shapes of
    `gatework.nn.Recurrent`; the last states are those after the first step of the input. Raises TypeError for what is
    not a `Recurrent` or not a tensor, ValueError for a bidirectional layer.

    >>> import torch
    >>> from gatework.convert import Reversed
    >>> from gatework.nn import GRU
    >>> output, h = Reversed(GRU(8, 16))(torch.randn(5, 3, 8))
    >>> torch.equal(output[0], h[0])
    True
    """

    def __init__(self, layer: Recurrent):
        super().__init__()
        if not isinstance(layer, Recurrent):
            raise TypeError(f"Reversed takes a layer of gatework.nn; {type(layer).__name__} was given")
        if layer.bidirectional:
            raise ValueError("Reversed takes a layer of one direction; the one given is bidirectional, which has the "
                             "reverse direction already")
        self.layer = layer

    def forward(self, input: Tensor, hx=None):
        if isinstance(input, PackedSequence) or not isinstance(input, Tensor):
            raise TypeError(f"Reversed takes a tensor, {type(input).__name__} was given; for sequences of many lengths "
                            "use a bidirectional layer and take the second half of its output")
        time = 1 if self.layer.batch_first and input.dim() == 3 else 0
        output, last = self.layer(input.flip(time), hx)
        return output.flip(time), last
