"""Keras 3: receives its LSTM, GRU, SimpleRNN or Bidirectional and hands on the layer of gatework.nn, and back.

Keras stores transposed matrices and one bias, gates in the order i f c o (LSTM) and z r h (GRU). A GRU with reset_after
has two biases, as in torch. Any backend of Keras will do: weights pass through numpy.
"""

from __future__ import annotations

import numpy as np
import torch

from .. import nn
from .weights import Weights, layer_of, library, one_bias, split, stack, weights_of, without_dropout, zeros_like

_GATES = {"lstm": "ifgo", "gru": "zrn", "gru_reset_before": "zrn", "elman": [""]}
_CELL_ONLY = ("kernel_regularizer", "recurrent_regularizer", "bias_regularizer", "kernel_constraint",
              "recurrent_constraint", "bias_constraint")
_INSTEAD = {
    "go_backwards": "set it to False, convert, and flip the input in time yourself",
    "stateful": "set it to False; a layer of gatework.nn takes and returns its states in every call",
    "dropout": "set it to 0 and put a dropout layer before the one converted",
    "recurrent_dropout": "set it to 0",
}


def from_keras(layers) -> nn.Recurrent:
    """Return the layer of gatework.nn that computes what these Keras layers do, with batch_first=True.

    `layers` is a built `keras.layers.LSTM`, `GRU` (both forms: `reset_after=False` becomes `gru_reset_before`),
    `SimpleRNN` with tanh or relu, or a `Bidirectional` of one of these with merge_mode="concat"; a list of such layers
    becomes one layer with that many `num_layers`. What Keras returns is chosen there by return_sequences and
    return_state; layers of gatework.nn return both. Where Keras has one bias and torch two, the second one is zeros.

    Raises TypeError for other layers and ValueError, by name, for settings that gatework.nn has not: other
    activations, dropout, recurrent dropout, go_backwards, stateful, other merge modes, regularisers and constraints
    (set those to None first), mixed precision.

    >>> import os
    >>> os.environ["KERAS_BACKEND"] = "torch"
    >>> import keras
    >>> from gatework.convert import from_keras
    >>> layer = keras.layers.LSTM(16, return_sequences=True)
    >>> layer.build((None, None, 8))
    >>> from_keras(layer)
    LSTM(lstm, 8, 16, batch_first=True)
    """
    keras = library("keras")
    given = list(layers) if isinstance(layers, list | tuple) else [layers]
    if not given:
        raise ValueError("from_keras needs at least one layer; an empty list was given")
    return layer_of([_read(keras, layer) for layer in given], batch_first=True)


def to_keras(layer: nn.Recurrent) -> list:
    """Return the built Keras layers that compute what this layer does: a list, one for each of `num_layers`.

    They are called one after the other. Each has return_sequences and return_state set, so it returns its output
    [B, T, H] (Keras is always batch first) and then its last states, h before c, forward before backward. Keras has
    one bias where torch has two (but for the GRU with reset after): it gets their sum.

    Raises TypeError for what is not a layer of gatework.nn; ValueError, by name, for cells that Keras has not, for
    dropout between layers, and for dtypes other than float32 and float64.

    >>> import os
    >>> os.environ["KERAS_BACKEND"] = "torch"
    >>> from gatework.convert import to_keras
    >>> from gatework.nn import GRU
    >>> [layer.name.partition("_")[0] for layer in to_keras(GRU(8, 16, num_layers=2, bidirectional=True))]
    ['bidirectional', 'bidirectional']
    """
    weights = weights_of(layer, "Keras", list(_GATES))
    without_dropout(layer, "Keras", "put keras.layers.Dropout between the layers of the list")
    keras = library("keras")
    return [_write(keras, one) for one in weights]


def _read(keras, layer) -> Weights:
    if type(layer) is keras.layers.Bidirectional:
        if layer.merge_mode != "concat":
            raise ValueError(f'{layer.name} has merge_mode={layer.merge_mode!r}; gatework.nn concatenates the '
                             'directions: merge_mode="concat"')
        halves = [_read_one(keras, layer.forward_layer), _read_one(keras, layer.backward_layer, backward=True)]
        kinds = [(w.cell, w.setting, w.bias, w.hidden) for w in halves]
        if kinds[0] != kinds[1]:
            raise ValueError(f"the two directions of {layer.name} differ (cell, nonlinearity, bias, units): {kinds[0]} "
                             f"and {kinds[1]}; convert each by itself")
        forward, backward = halves
        return Weights(forward.cell, forward.bias, forward.directions + backward.directions, forward.setting)
    return _read_one(keras, layer)


def _read_one(keras, layer, backward: bool = False) -> Weights:
    kinds = {keras.layers.LSTM: "lstm", keras.layers.GRU: "gru", keras.layers.SimpleRNN: "elman"}
    cell = kinds.get(type(layer))
    if cell is None:
        raise TypeError(f"from_keras takes keras.layers.LSTM, GRU, SimpleRNN and Bidirectional, not subclasses; "
                        f"{type(layer).__module__}.{type(layer).__qualname__} was given")
    if not layer.built:
        raise ValueError(f"{layer.name} has no weights yet; call it once, or layer.build((None, None, input_size))")
    setting = _check(keras, layer, cell, backward)
    if cell == "gru" and not layer.cell.reset_after:
        cell = "gru_reset_before"
    gates = _GATES[cell]

    def rows(tensor):
        return split(_numpy(tensor).T, gates)

    inner = layer.cell
    direction = {"W": rows(inner.kernel.value), "U": rows(inner.recurrent_kernel.value)}
    if inner.use_bias:
        if cell == "gru":
            direction["b"], direction["d"] = (rows(inner.bias.value[k]) for k in (0, 1))
        else:
            direction["b"] = rows(inner.bias.value)
            direction["d"] = zeros_like(direction["b"])
    return Weights(cell, inner.use_bias, [direction], setting)


def _numpy(value) -> np.ndarray:
    """The tensor of a Keras backend as an array. Keras's own way makes numpy warn of tensors of torch."""
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def _check(keras, layer, cell: str, backward: bool) -> str:
    """Refuse, by name, what the layer of gatework.nn does not have; return the nonlinearity of a SimpleRNN."""
    inner, name = layer.cell, layer.name
    allowed = {"activation": ["tanh", "relu"] if cell == "elman" else ["tanh"]}
    if cell != "elman":
        allowed["recurrent_activation"] = ["sigmoid"]
    for option, values in allowed.items():
        if not any(getattr(inner, option) is getattr(keras.activations, v) for v in values):
            given = getattr(getattr(inner, option), "__name__", getattr(inner, option))
            raise ValueError(f"{name} has {option}={given!r}; gatework.nn has {' or '.join(values)}")
    wanted = {"go_backwards": backward, "stateful": False}
    for option in ("go_backwards", "stateful", "dropout", "recurrent_dropout"):
        value = getattr(inner if "dropout" in option else layer, option)
        if value != wanted.get(option, 0):
            instead = "" if backward and option == "go_backwards" else f"; {_INSTEAD[option]}"
            raise ValueError(f"{name} has {option}={value}, which layers of gatework.nn made from Keras have "
                             f"not{instead}")
    for option in _CELL_ONLY:
        if getattr(inner, option) is not None:
            raise ValueError(f"{name} has a {option}, which belongs to training in Keras and has no place in "
                             f"gatework.nn; set layer.cell.{option} = None, and do the same in your loss")
    if layer.activity_regularizer is not None:
        raise ValueError(f"{name} has an activity_regularizer, which belongs to training in Keras and has no place in "
                         "gatework.nn; set layer.activity_regularizer = None, and do the same in your loss")
    if layer.compute_dtype != layer.variable_dtype or layer.variable_dtype not in ("float32", "float64"):
        raise ValueError(f"{name} has the dtype policy {layer.dtype_policy.name}; what can be converted is float32 and "
                         "float64, without mixed precision")
    return inner.activation.__name__ if cell == "elman" else ""


def _write(keras, weights: Weights):
    options = dict(use_bias=weights.bias, return_sequences=True, return_state=True, dtype=weights.dtype.name)
    if weights.cell == "lstm":
        layer = keras.layers.LSTM(weights.hidden, **options)
    elif weights.cell == "elman":
        layer = keras.layers.SimpleRNN(weights.hidden, activation=weights.setting, **options)
    else:
        layer = keras.layers.GRU(weights.hidden, reset_after=weights.cell == "gru", **options)
    if len(weights.directions) == 2:
        layer = keras.layers.Bidirectional(layer, dtype=weights.dtype.name)
    layer.build((None, None, weights.inputs))
    for variable in layer.weights:
        if np.dtype(keras.backend.standardize_dtype(variable.value.dtype)) != weights.dtype:
            raise ValueError(f"Keras makes {variable.value.dtype} of {weights.dtype} on its {keras.backend.backend()} "
                             "backend; with JAX, call jax.config.update('jax_enable_x64', True) first, or convert "
                             "layer.float()")
    layer.set_weights([array for direction in weights.directions for array in _arrays(weights, direction)])
    return layer


def _arrays(weights: Weights, direction) -> list[np.ndarray]:
    """Kernel, recurrent kernel and bias of one direction, as Keras stores them."""
    gates = _GATES[weights.cell]
    arrays = [stack(direction["W"], gates).T, stack(direction["U"], gates).T]
    if weights.bias and weights.cell == "gru":
        arrays.append(np.stack([stack(direction[name], gates) for name in "bd"]))
    elif weights.bias:
        arrays.append(one_bias(direction, gates))
    return arrays
