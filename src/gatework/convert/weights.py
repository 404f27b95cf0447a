"""The form in which weights travel: receives layers of gatework.nn or arrays, hands on the other of the two.

Every converter takes the arrays of its system apart into the row blocks that the equations of a cell name, or puts them
together again. Gate orders and transpositions are known to the converters, and nothing else.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from .. import cells, nn
from ..compiler import trace
from ..nn.recurrent import TORCH_NAMES

Direction = dict[str, dict[str, np.ndarray]]  # parameter -> gate -> rows: {"W": {"i": [H, I], ...}, "b": {"i": [H]}}
# Options of a layer that converters carry over, or that change nothing in its results: all others are refused.
_CARRIED = {"cell", "input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional",
            "proj_size", "device", "dtype", "sizes", "checkpoint_every", "backend", "init", "forget_bias",
            "chrono_steps"}
DTYPES = {torch.float32: np.dtype("float32"), torch.float64: np.dtype("float64")}


@dataclass(frozen=True)
class Weights:
    """One layer: the cell of the catalogue, its setting, and the rows of each direction, forward first."""

    cell: str
    bias: bool
    directions: list[Direction]
    setting: str = ""  # the nonlinearity of "elman", the peepholes of "peephole_lstm"

    @property
    def inputs(self) -> int:
        return next(iter(self.directions[0]["W"].values())).shape[1]

    @property
    def hidden(self) -> int:
        return next(iter(self.directions[0]["W"].values())).shape[0]

    @property
    def dtype(self) -> np.dtype:
        return next(iter(self.directions[0]["W"].values())).dtype


def library(name: str):
    """Import a library that only its own converter needs; a missing one is answered with the line to type."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        top = name.partition(".")[0]
        if error.name != top:
            raise  # the library is there and lacks something itself
        raise ModuleNotFoundError(f"this converter needs {top}, which is not installed: pip install {top}",
                                  name=top) from error


def split(stacked: np.ndarray, gates: Sequence[str]) -> dict[str, np.ndarray]:
    """Row blocks of a stacked array [gates * rows, ...], in the order in which it was stacked."""
    return dict(zip(gates, np.split(stacked, len(gates)), strict=True))


def stack(blocks: dict[str, np.ndarray], gates: Sequence[str]) -> np.ndarray:
    """The blocks of these gates as one array, in this order."""
    return np.concatenate([blocks[g] for g in gates])


def zeros_like(blocks: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {gate: np.zeros_like(rows) for gate, rows in blocks.items()}


def one_bias(direction: Direction, gates: Sequence[str]) -> np.ndarray:
    """The sum of a cell's biases, for a system that has one; zeros where the layer has none."""
    rows = stack(direction["W"], gates)[:, 0]
    return sum((stack(direction[name], gates) for name in ("b", "d") if name in direction), np.zeros_like(rows))


def function_of(cell: str, setting: str):
    """The equations of a cell of the catalogue, with its setting."""
    if cell == "elman":
        return partial(cells.elman, nonlinearity=setting)
    return partial(cells.peephole_lstm, peepholes=setting) if cell == "peephole_lstm" else getattr(cells, cell)


def constructor(cell: str, setting: str):
    """What makes a layer of the cell; called with sizes and options."""
    named = {"lstm": nn.LSTM, "projected_lstm": nn.LSTM, "gru": nn.GRU, "coupled_lstm": nn.CoupledLSTM,
             "elman": partial(nn.RNN, nonlinearity=setting),
             "peephole_lstm": partial(nn.PeepholeLSTM, peepholes=setting)}
    return named.get(cell) or partial(nn.Recurrent, function_of(cell, setting))


def layer_of(weights: Sequence[Weights], batch_first: bool = False) -> nn.Recurrent:
    """Make one layer of gatework.nn of these, from the first to the last, on the CPU.

    Raises ValueError where they cannot be layers of one stack, or a block has not the shape that the cell needs.
    """
    first = weights[0]
    directions = len(first.directions)
    for k, other in enumerate(weights[1:], 1):
        for what in ("cell", "setting", "bias", "hidden", "dtype"):
            if getattr(first, what) != getattr(other, what):
                raise ValueError(f"the layers given are no stack of one kind: {what} is {getattr(first, what)!r} in "
                                 f"the first one and {getattr(other, what)!r} in number {k + 1}; convert each by "
                                 "itself")
        if len(other.directions) != directions or other.inputs != directions * first.hidden:
            raise ValueError(f"the layers given are no stack: number {k + 1} has {len(other.directions)} directions "
                             f"and reads {other.inputs} features, the first has {directions} and hands on "
                             f"{directions * first.hidden}; convert each by itself")
    # Made without memory, so that no random numbers are drawn for values that are overwritten.
    layer = constructor(first.cell, first.setting)(
        first.inputs, first.hidden, num_layers=len(weights), bias=first.bias, batch_first=batch_first,
        bidirectional=directions == 2, device="meta", dtype=torch.from_numpy(np.empty(0, first.dtype)).dtype)
    layer.to_empty(device="cpu")
    parameters = dict(layer.named_parameters())
    with torch.no_grad():
        for k, one in enumerate(weights):
            for direction, suffix in zip(one.directions, suffixes(k, directions)):
                for name, family in layer.cell.families.items():
                    value = stack(direction[name], family.gates)
                    target = parameters[TORCH_NAMES.get(name, name) + suffix]
                    if value.shape != tuple(target.shape):
                        raise ValueError(f"the rows of {name} for a layer of {first.cell} with {first.hidden} hidden "
                                         f"units have shape {value.shape}; needed is {tuple(target.shape)}")
                    target.copy_(torch.from_numpy(np.ascontiguousarray(value)))
    return layer


def suffixes(layer: int, directions: int) -> list[str]:
    return [f"_l{layer}", f"_l{layer}_reverse"][:directions]


def weights_of(layer: nn.Recurrent, target: str, known: Sequence[str]) -> list[Weights]:
    """Take a layer of gatework.nn apart, one `Weights` per layer of its stack, as copies.

    Raises what `cell_of` does, and ValueError for further parameters and for dtypes other than float32 and float64.
    """
    cell, setting = cell_of(layer, target, known)
    parameters = dict(layer.named_parameters())
    count = 1 + layer.bidirectional
    names = {TORCH_NAMES.get(f, f) + s for f in layer.cell.families for k in range(layer.num_layers)
             for s in suffixes(k, count)}
    if parameters.keys() != names:
        further = ", ".join(sorted(parameters.keys() ^ names))
        raise ValueError(f"the layer has parameters that {target} has no place for: {further}")
    dtype = next(iter(parameters.values())).dtype
    if dtype not in DTYPES:
        raise ValueError(f"layers of float32 and float64 can be converted, this one is {dtype}; call layer.float() "
                         "first")
    arrays = {name: p.detach().cpu().numpy().copy() for name, p in parameters.items()}
    return [Weights(cell, "b" in layer.cell.families, [
        {name: split(arrays[TORCH_NAMES.get(name, name) + suffix], family.gates)
         for name, family in layer.cell.families.items()}
        for suffix in suffixes(k, count)], setting) for k in range(layer.num_layers)]


def cell_of(layer: nn.Recurrent, target: str, known: Sequence[str]) -> tuple[str, str]:
    """The name and the setting of the layer's cell, one of the known ones.

    `target` is the system in error messages, `known` the cells that it can say. What counts are the equations: a cell
    of a user's own may have any name. Raises TypeError for what is not a layer of gatework.nn, ValueError for another
    cell and for an option of the layer that says more than the target can.
    """
    if not isinstance(layer, nn.Recurrent):
        raise TypeError(f"a layer of gatework.nn is needed; {type(layer).__name__} was given")
    for option, parameter in inspect.signature(nn.Recurrent).parameters.items():
        value = getattr(layer, option, parameter.default)
        if option not in _CARRIED and value != parameter.default:
            raise ValueError(f"the layer has {option}={value!r}, for which {target} has nothing")
    settings = {"elman": ("tanh", "relu"), "peephole_lstm": ("ifo", "if", "io", "fo", "i", "f", "o")}
    for name in known:
        for setting in settings.get(name, ("",)):
            cell = trace(function_of(name, setting), "b" in layer.cell.families)
            if cell.fingerprint == layer.cell.fingerprint:
                return name, setting
    raise ValueError(f"{target} has no layer that computes the equations of the cell {layer.cell.name} of this layer; "
                     f"it has those for {', '.join(known)} of gatework.cells")


def without_dropout(layer: nn.Recurrent, target: str, instead: str) -> None:
    if layer.dropout:
        raise ValueError(f"dropout={layer.dropout} between layers has no place in what {target} is given; set "
                         f"layer.dropout = 0.0, and {instead}")
