"""torch.nn: receives its LSTM, GRU or RNN and hands on the layer of gatework.nn, and back."""

from __future__ import annotations

import torch

from .. import nn
from .weights import cell_of

_OPTIONS = ("num_layers", "bias", "batch_first", "dropout", "bidirectional")
_TWINS = {torch.nn.LSTM: nn.LSTM, torch.nn.GRU: nn.GRU, torch.nn.RNN: nn.RNN}
_BACK = {"lstm": torch.nn.LSTM, "projected_lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "elman": torch.nn.RNN}


def from_torch(module: torch.nn.RNNBase) -> nn.Recurrent:
    """Return the layer of gatework.nn that computes what this `torch.nn.LSTM`, `GRU` or `RNN` does.

    All arguments are carried over (projection, layers, directions, dropout, batch_first, dtype, device), and so are
    the mode (training or not) and which parameters are frozen. The weights are copied bit for bit. Raises TypeError
    for any other module, a subclass included, which may compute something else; ValueError for one with further
    parameters or buffers, such as those of `weight_norm` or `prune`.

    >>> import torch
    >>> from gatework.convert import from_torch
    >>> theirs = torch.nn.LSTM(8, 16, num_layers=2, bidirectional=True)
    >>> ours, x = from_torch(theirs), torch.randn(5, 3, 8)
    >>> torch.allclose(ours(x)[0], theirs(x)[0], atol=1e-6)
    True
    """
    if type(module) not in _TWINS:
        raise TypeError(f"from_torch takes a torch.nn.LSTM, torch.nn.GRU or torch.nn.RNN, not a subclass; "
                        f"{type(module).__module__}.{type(module).__qualname__} was given")
    options = _options(module)
    if isinstance(module, torch.nn.RNN):
        options["nonlinearity"] = module.nonlinearity
    if module.proj_size:
        options["proj_size"] = module.proj_size
    return _twin(_TWINS[type(module)], module, options)


def to_torch(layer: nn.Recurrent) -> torch.nn.RNNBase:
    """Return the `torch.nn.LSTM`, `GRU` or `RNN` that computes what this layer does.

    The inverse of `from_torch`. Raises TypeError for what is not a layer of gatework.nn; ValueError, by name, for a
    cell that torch.nn does not have and for a layer with further parameters.

    >>> from gatework.convert import to_torch
    >>> from gatework.nn import GRU
    >>> to_torch(GRU(8, 16, bidirectional=True))
    GRU(8, 16, bidirectional=True)
    """
    cell, setting = cell_of(layer, "torch.nn", list(_BACK))
    options = _options(layer) | dict(bias="b" in layer.cell.families)
    if setting:
        options["nonlinearity"] = setting
    if cell == "projected_lstm":
        options["proj_size"] = layer.sizes["P"]
    return _twin(_BACK[cell], layer, options)


def _options(module) -> dict:
    return {name: getattr(module, name) for name in _OPTIONS}


def _twin(kind, module, options):
    """A layer of the other kind with the module's options and copies of its parameters."""
    like = next(module.parameters())
    # Made without memory, so that no random numbers are drawn for values that are overwritten.
    twin = kind(module.input_size, module.hidden_size, **options, device="meta", dtype=like.dtype)
    values, needed = module.state_dict(), twin.state_dict()
    if values.keys() != needed.keys():
        further, missing = sorted(values.keys() - needed.keys()), sorted(needed.keys() - values.keys())
        raise ValueError(f"{type(module).__name__} has the further parameters or buffers "
                         f"{', '.join(further) or 'none'} and lacks {', '.join(missing) or 'none'}; take off what "
                         "changes its weights (remove_weight_norm, prune.remove, ...) first")
    twin.to_empty(device=like.device)
    twin.load_state_dict(values)
    for theirs, ours in zip(module.parameters(), twin.parameters(), strict=True):
        ours.requires_grad_(theirs.requires_grad)
    return twin.train(module.training)
