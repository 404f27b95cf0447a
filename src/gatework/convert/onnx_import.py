"""Receives the LSTM, GRU and RNN nodes of an ONNX model, hands on a layer of gatework.nn for each.

ONNX stacks gates as i o f c (LSTM, where c is our g) and z r h (GRU, where h is our n), peepholes as i o f, and the two
directions along a first axis. Its biases are those of the input's product and then those of the state's.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

import numpy as np
import torch

from .reversed import Reversed
from .weights import Direction, Weights, layer_of, library, split

GATES = {"LSTM": "iofg", "GRU": "zrn", "RNN": [""]}
PEEPHOLES = "iof"
_INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
_ATTRIBUTES = {"direction", "hidden_size", "layout", "activations"}
_FURTHER = {"LSTM": {"input_forget"}, "GRU": {"linear_before_reset"}, "RNN": set()}
_ACTIVATIONS = {"LSTM": [["sigmoid", "tanh", "tanh"]], "GRU": [["sigmoid", "tanh"]], "RNN": [["tanh"], ["relu"]]}


def from_onnx(model) -> dict[str, torch.nn.Module]:
    """Return a layer for each LSTM, GRU and RNN node of an ONNX model: name of the node -> layer.

    `model` is the path of a file or an `onnx.ModelProto`. A node without a name goes by that of its first output.
    Nodes in the bodies of If, Loop and Scan are found too. Each node becomes

    - `LSTM`, or `PeepholeLSTM` for those peepholes that are not all zero; with input_forget=1 `CoupledLSTM` or the cell
      `coupled_peephole_lstm`, which have no rows for the forget gate;
    - `GRU` with linear_before_reset=1, else the cell `gru_reset_before`, whose one bias is the sum of the two;
    - `RNN` with tanh or relu;

    bidirectional where the node is, `Reversed` for direction="reverse", with batch_first=True for layout=1 (the states
    of gatework.nn stay [directions, B, H]). What a model computes for initial_h, initial_c and sequence_lens is given
    to the layer in each call, as first states and lengths.

    Raises ValueError, naming the node, for what gatework.nn has not: clip and other attributes, other activations,
    weights that the model computes, first states other than zeros and lengths that it holds as constants; and for a
    model without such nodes.

    >>> from gatework.convert import from_onnx, to_onnx
    >>> from gatework.nn import GRU
    >>> from_onnx(to_onnx(GRU(8, 16)))
    {'l0': GRU(gru, 8, 16)}
    """
    onnx = library("onnx")
    if isinstance(model, str | os.PathLike):
        model = onnx.load(model)
    if not isinstance(model, onnx.ModelProto):
        raise TypeError(f"from_onnx takes an onnx.ModelProto or the path of a file; {type(model).__name__} was given. "
                        "For one node there is from_onnx_node(node, initializers)")
    layers: dict[str, torch.nn.Module] = {}
    _read_graph(onnx, model.graph, {}, layers)
    if not layers:
        found = ", ".join(sorted({n.op_type for n in model.graph.node})) or "none"
        functions = ", ".join(f.name for f in model.functions)
        raise ValueError(f"the model has no LSTM, GRU or RNN node; its operators are {found}"
                         + (f" (functions, such as {functions}, are not searched: inline them first)" if functions
                            else ""))
    return layers


def from_onnx_node(node, initializers: Mapping[str, np.ndarray]) -> torch.nn.Module:
    """Return the layer for one `onnx.NodeProto`; `initializers` has the arrays that it names: W, R and, if any, B, P.

    See `from_onnx` for what becomes what and for the errors.

    >>> import numpy as np, onnx
    >>> from gatework.convert import from_onnx_node
    >>> node = onnx.helper.make_node("RNN", ["x", "W", "R"], ["y"], hidden_size=3)
    >>> from_onnx_node(node, {"W": np.ones((1, 3, 2), "float32"), "R": np.ones((1, 3, 3), "float32")})
    RNN(elman, 2, 3, bias=False)
    """
    onnx = library("onnx")
    name = _name(node)
    if node.op_type not in GATES or node.domain not in ("", "ai.onnx"):
        operator = ".".join(filter(None, [node.domain, node.op_type]))
        raise ValueError(f"node {name!r} is a {operator}; LSTM, GRU and RNN of ONNX itself can be converted")
    options = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    unknown = sorted(options.keys() - _ATTRIBUTES - _FURTHER[node.op_type])
    if unknown:
        raise ValueError(f"node {name!r} ({node.op_type}) has {', '.join(f'{k}={options[k]}' for k in unknown)}, for "
                         "which gatework.nn has nothing")
    inputs = dict(zip(_INPUTS, node.input))
    direction, layout = options.get("direction", b"forward").decode(), options.get("layout", 0)
    if direction not in ("forward", "reverse", "bidirectional") or layout not in (0, 1):
        raise ValueError(f"node {name!r} ({node.op_type}) has direction={direction!r} and layout={layout}; ONNX knows "
                         "forward, reverse and bidirectional, and 0 and 1")
    count = 2 if direction == "bidirectional" else 1
    setting = _activations(name, node.op_type, options, count)
    _check_states(name, inputs, initializers)
    arrays = {k: _array(name, k, inputs[k], initializers) for k in ("W", "R", "B", "P") if inputs.get(k)}
    _check_shapes(name, node.op_type, arrays, count, options.get("hidden_size"))
    weights = _weights(node.op_type, options, arrays, setting)
    layer = layer_of([weights], batch_first=layout == 1)
    return Reversed(layer) if direction == "reverse" else layer


def _read_graph(onnx, graph, outer: Mapping[str, np.ndarray], layers: dict) -> None:
    constants = dict(outer) | {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = onnx.numpy_helper.to_array(node.attribute[0].t)
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.type == attribute.GRAPH else attribute.graphs:
                _read_graph(onnx, inner, constants, layers)
        if re.search("LSTM|GRU|RNN", node.op_type):
            name = _name(node)
            if name in layers:
                raise ValueError(f"two nodes of the model are called {name!r}; give each its own name")
            layers[name] = from_onnx_node(node, constants)


def _name(node) -> str:
    return node.name or next(filter(None, node.output), "")


def _activations(name: str, op: str, options: dict, count: int) -> str:
    """Refuse activations that gatework.nn has not; return the nonlinearity of an RNN."""
    known = _ACTIVATIONS[op]
    given = [a.decode().lower() for a in options.get("activations", [])] or known[0] * count
    for names in known:
        if given == names * count:
            return names[0] if op == "RNN" else ""
    given = [a.decode() for a in options["activations"]]
    raise ValueError(f"node {name!r} ({op}) has activations={given}; gatework.nn has "
                     f"{' or '.join(', '.join(names) for names in known)}, the same in both directions")


def _check_states(name: str, inputs: dict, constants: Mapping[str, np.ndarray]) -> None:
    for key in ("initial_h", "initial_c"):
        value = constants.get(inputs.get(key))
        if value is not None and np.any(value):
            raise ValueError(f"node {name!r} starts from a constant {key} that is not zeros; take it from the model, "
                             "remove it there, and give it to the layer in each call")
    if inputs.get("sequence_lens") in constants:
        raise ValueError(f"node {name!r} has constant sequence_lens; remove them from the model, and give lengths to "
                         "the layer in each call")


def _array(name: str, key: str, tensor: str, constants: Mapping[str, np.ndarray]) -> np.ndarray:
    if tensor not in constants:
        raise ValueError(f"{key} of node {name!r} is {tensor!r}, which is no constant of the model; fold constants, "
                         "and dequantise weights, first")
    array = np.asarray(constants[tensor])
    if array.dtype not in (np.float32, np.float64):
        raise ValueError(f"{key} of node {name!r} has dtype {array.dtype}; what can be converted is float32 and "
                         "float64")
    return array


def _check_shapes(name: str, op: str, arrays: dict, count: int, hidden: int | None) -> None:
    H, gates = arrays["R"].shape[-1], len(GATES[op])
    needed = {"W": (count, gates * H, arrays["W"].shape[-1]), "R": (count, gates * H, H), "B": (count, 2 * gates * H),
              "P": (count, len(PEEPHOLES) * H)}
    for key, array in arrays.items():
        if array.shape != needed[key]:
            raise ValueError(f"{key} of node {name!r} ({op}, {count} directions) has shape {array.shape}; needed is "
                             f"{needed[key]}")
    if hidden not in (None, H):
        raise ValueError(f"node {name!r} has hidden_size={hidden}, but R is for {H} units")


def _weights(op: str, options: dict, arrays: dict, setting: str) -> Weights:
    directions = [_direction(op, {k: a[d] for k, a in arrays.items()}) for d in range(len(arrays["W"]))]
    if op == "RNN":
        cell = "elman"
    elif op == "GRU":
        cell = "gru" if options.get("linear_before_reset") else "gru_reset_before"
    else:
        coupled = bool(options.get("input_forget"))
        looks = "".join(g for g in ("io" if coupled else "ifo")
                        if any("p" in d and d["p"][g].any() for d in directions))
        if coupled:
            cell = "coupled_peephole_lstm" if looks else "coupled_lstm"
        else:
            cell, setting = ("peephole_lstm" if looks else "lstm"), looks
    if "B" in arrays and cell not in ("elman", "gru", "lstm"):  # these cells have one bias
        for direction in directions:
            direction["b"] = {g: rows + direction["d"][g] for g, rows in direction["b"].items()}
    return Weights(cell, "B" in arrays, directions, setting)


def _direction(op: str, arrays: dict[str, np.ndarray]) -> Direction:
    gates = GATES[op]
    direction = {"W": split(arrays["W"], gates), "U": split(arrays["R"], gates)}
    if "B" in arrays:
        direction["b"], direction["d"] = (split(half, gates) for half in np.split(arrays["B"], 2))
    if "P" in arrays:
        direction["p"] = split(arrays["P"], PEEPHOLES)
    return direction
