"""Flax NNX: receives its recurrent cells, RNN and Bidirectional and hands on the layer of gatework.nn, and back.

Flax stores transposed matrices, gates in torch's order (i f g o, and r z n), and carries (c, h) where torch has (h, c).
Its cells have one bias: the LSTM at the product of the state, GRU and simple cell at that of the input.
"""

from __future__ import annotations

import numpy as np
import torch

from .. import nn
from .reversed import Reversed
from .weights import Weights, layer_of, library, one_bias, split, stack, weights_of, without_dropout, zeros_like

_KNOWN = ("lstm", "gru", "elman")
_GATES = {"lstm": "ifgo", "gru": "rzn", "elman": [""]}


def from_flax(layers) -> torch.nn.Module:
    """Return the layer of gatework.nn that computes what these Flax NNX modules do.

    `layers` is an `nnx.LSTMCell`, `OptimizedLSTMCell`, `GRUCell` or `SimpleCell` (tanh or relu), an `nnx.RNN` of one,
    or an `nnx.Bidirectional` of two; a list of such modules becomes one layer with that many `num_layers`. The layer
    has batch_first=True where Flax has time_major=False, the default; a bare cell gives one with batch_first=False. An
    RNN with reverse=True and keep_order=True becomes a `Reversed` layer.

    The states of gatework.nn are (h, c), Flax carries (c, h). Where Flax has one bias and torch two, the other one is
    zeros.

    Raises TypeError for other modules and ValueError, by name, for settings that gatework.nn has not: other activations
    or merge functions, residual=True, reverse without keep_order, a dtype that differs from param_dtype.

    >>> from flax import nnx
    >>> from gatework.convert import from_flax
    >>> from_flax(nnx.RNN(nnx.OptimizedLSTMCell(8, 16, rngs=nnx.Rngs(0))))
    LSTM(lstm, 8, 16, batch_first=True)
    """
    nnx = library("flax.nnx")
    given = list(layers) if isinstance(layers, list | tuple) else [layers]
    if not given:
        raise ValueError("from_flax needs at least one module; an empty list was given")
    orders = {(_batch_first(nnx, m), _reverse(nnx, m)) for m in given}
    if len(orders) > 1:
        raise ValueError("the modules given are no stack: time_major or reverse differ between them; convert each by "
                         "itself")
    [(batch_first, reverse)] = orders
    layer = layer_of([_read(nnx, m) for m in given], batch_first)
    return Reversed(layer) if reverse else layer


def to_flax(layer: nn.Recurrent | Reversed) -> list:
    """Return the Flax NNX modules that compute what this layer does: a list, one for each of `num_layers`.

    Each is an `nnx.RNN`, or an `nnx.Bidirectional` of two, with return_carry=True, so it returns its carry, (c, h) for
    an LSTM, and then its output; time_major is the opposite of the layer's batch_first. Their cells are
    `OptimizedLSTMCell`, `GRUCell` and `SimpleCell`. Flax has one bias where torch has two: it gets their sum. The one
    that torch's GRU has inside the reset gate's product has no place in a `GRUCell`; where it is not zero, the cell's
    `dense_h` is a Linear with a bias.

    Raises TypeError for what is not a layer of gatework.nn; ValueError, by name, for cells that Flax has not, for
    dropout between layers, and for float64 while JAX has it turned off.

    >>> from gatework.convert import to_flax
    >>> from gatework.nn import LSTM
    >>> [rnn] = to_flax(LSTM(8, 16))
    >>> type(rnn.cell).__name__
    'OptimizedLSTMCell'
    """
    reverse = isinstance(layer, Reversed)
    inner = layer.layer if reverse else layer
    weights = weights_of(inner, "Flax", _KNOWN)
    without_dropout(inner, "Flax", "put nnx.Dropout between the modules of the list")
    nnx, jax = library("flax.nnx"), library("jax")
    if weights[0].dtype == np.float64 and not jax.config.jax_enable_x64:
        raise ValueError("JAX makes float32 of this layer's float64; call jax.config.update('jax_enable_x64', True) "
                         "first, or convert layer.float()")
    options = dict(time_major=not inner.batch_first, return_carry=True)
    result = []
    for one in weights:
        cells = [_write(nnx, one, direction) for direction in one.directions]
        if len(cells) == 2:
            result.append(nnx.Bidirectional(*(nnx.RNN(c, **options) for c in cells), **options))
        else:
            result.append(nnx.RNN(cells[0], reverse=reverse, keep_order=reverse, **options))
    return result


def _batch_first(nnx, module) -> bool:
    return isinstance(module, nnx.RNN | nnx.Bidirectional) and not module.time_major


def _reverse(nnx, module) -> bool:
    if type(module) is not nnx.RNN or not module.reverse:
        return False
    if not module.keep_order:
        raise ValueError("the RNN has reverse=True and keep_order=False: its output is in reversed time; set "
                         "keep_order=True, and flip the output yourself")
    return True


def _read(nnx, module) -> Weights:
    if type(module) is nnx.Bidirectional:
        merge = module.merge_fn
        if merge is not nnx.Bidirectional.merge_fn:
            raise ValueError(f"the Bidirectional has merge_fn={getattr(merge, '__name__', merge)}; gatework.nn "
                             "concatenates the directions, as Flax does by default")
        halves = [_read_cell(nnx, rnn.cell if type(rnn) is nnx.RNN else rnn)
                  for rnn in (module.forward_rnn, module.backward_rnn)]
        kinds = [(w.cell, w.setting, w.hidden) for w in halves]
        if kinds[0] != kinds[1]:
            raise ValueError(f"the two directions of the Bidirectional differ (cell, nonlinearity, features): "
                             f"{kinds[0]} and {kinds[1]}; convert each by itself")
        return Weights(halves[0].cell, True, [d for w in halves for d in w.directions], halves[0].setting)
    return _read_cell(nnx, module.cell if type(module) is nnx.RNN else module)


def _read_cell(nnx, cell) -> Weights:
    kinds = {nnx.LSTMCell: "lstm", nnx.OptimizedLSTMCell: "lstm", nnx.GRUCell: "gru", nnx.SimpleCell: "elman"}
    kind = kinds.get(type(cell))
    if kind is None:
        raise TypeError(f"from_flax takes LSTMCell, OptimizedLSTMCell, GRUCell and SimpleCell of flax.nnx, RNN and "
                        f"Bidirectional of these, not subclasses; {type(cell).__module__}.{type(cell).__qualname__} "
                        "was given")
    setting = _check(nnx, cell, kind)
    if type(cell) is nnx.LSTMCell:
        direction = {"W": {g: _array(getattr(cell, n).kernel).T for g, n in zip("ifgo", ("ii", "if_", "ig", "io"))},
                     "U": {g: _array(getattr(cell, "h" + g).kernel).T for g in "ifgo"},
                     "d": {g: _array(getattr(cell, "h" + g).bias) for g in "ifgo"}}
        direction["b"] = zeros_like(direction["d"])
        return Weights(kind, True, [direction])
    gates, direction = _GATES[kind], {}
    for product, matrix, bias in ((cell.dense_i, "W", "b"), (cell.dense_h, "U", "d")):
        direction[matrix] = split(_array(product.kernel).T, gates)
        width = product.kernel.shape[-1]
        direction[bias] = split(np.zeros(width, product.kernel.dtype) if product.bias is None else _array(product.bias),
                                gates)
    return Weights(kind, True, [direction], setting)


def _check(nnx, cell, kind: str) -> str:
    """Refuse, by name, what the layer of gatework.nn does not have; return the nonlinearity of a SimpleCell."""
    allowed = {"activation_fn": ["tanh", "relu"] if kind == "elman" else ["tanh"]}
    if kind != "elman":
        allowed["gate_fn"] = ["sigmoid"]
    found = ""
    for option, names in allowed.items():
        function = getattr(cell, option)
        found = next((n for n in names if function is getattr(nnx, n)), None)
        if found is None:
            raise ValueError(f"the {type(cell).__name__} has {option}={getattr(function, '__name__', function)}; "
                             f"gatework.nn has {' or '.join(names)}")
    if kind == "elman" and cell.residual:
        raise ValueError("the SimpleCell has residual=True, which the RNN of gatework.nn has not")
    dtype = np.dtype(cell.param_dtype)
    if dtype not in (np.float32, np.float64) or (cell.dtype is not None and np.dtype(cell.dtype) != dtype):
        raise ValueError(f"the {type(cell).__name__} has param_dtype={dtype} and dtype={cell.dtype}; what can be "
                         "converted is float32 and float64, the same for both")
    return found if kind == "elman" else ""


def _array(parameter) -> np.ndarray:
    return np.asarray(parameter[...])


def _write(nnx, weights: Weights, direction):
    gates = _GATES[weights.cell]
    zeros = nnx.initializers.zeros_init()  # all are overwritten; Flax would draw and orthogonalise
    options = dict(param_dtype=weights.dtype, dtype=weights.dtype, kernel_init=zeros, recurrent_kernel_init=zeros,
                   rngs=nnx.Rngs(0))
    if weights.cell == "elman":
        options["activation_fn"] = getattr(nnx, weights.setting)
    kind = {"lstm": nnx.OptimizedLSTMCell, "gru": nnx.GRUCell, "elman": nnx.SimpleCell}[weights.cell]
    cell = kind(weights.inputs, weights.hidden, **options)
    (cell.dense_h if weights.cell == "lstm" else cell.dense_i).bias[...] = _input_bias(nnx, cell, weights, direction)
    cell.dense_i.kernel[...] = stack(direction["W"], gates).T
    cell.dense_h.kernel[...] = stack(direction["U"], gates).T
    return cell


def _input_bias(nnx, cell, weights: Weights, direction) -> np.ndarray:
    """The one bias of the cell. A GRU may need a second one, within the reset gate's product: see `to_flax`."""
    if weights.cell == "gru" and weights.bias and direction["d"]["n"].any():
        cell.dense_h = nnx.Linear(weights.hidden, 3 * weights.hidden, dtype=weights.dtype, param_dtype=weights.dtype,
                                  rngs=nnx.Rngs(0))
        cell.dense_h.bias[...] = stack(direction["d"], _GATES["gru"])
        return stack(direction["b"], _GATES["gru"])
    return one_bias(direction, _GATES[weights.cell])
