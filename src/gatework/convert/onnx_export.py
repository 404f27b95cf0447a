"""Receives a layer of gatework.nn, hands on an ONNX model of LSTM, GRU or RNN nodes that computes the same.

A general export, of any cell from its graph, this is not: what ONNX has no node for is refused by name.
"""

from __future__ import annotations

import numpy as np

from .. import nn
from .onnx_import import GATES, PEEPHOLES
from .reversed import Reversed
from .weights import Direction, Weights, library, stack, weights_of, zeros_like

_OPSET, _IR = 17, 8  # old enough for every runtime of the last years
_OPERATORS = {"lstm": "LSTM", "projected_lstm": "LSTM", "peephole_lstm": "LSTM", "coupled_lstm": "LSTM",
              "coupled_peephole_lstm": "LSTM", "gru": "GRU", "gru_reset_before": "GRU", "elman": "RNN"}


def to_onnx(layer: nn.Recurrent | Reversed):
    """Return an `onnx.ModelProto` that computes what this layer does in evaluation.

    Inputs are `input` [T, B, I] ([B, T, I] with batch_first) and the first states `h_0` and, for an LSTM, `c_0`,
    [layers * directions, B, size]: always all of them, as whoever streams needs them, and zeros are easily given.
    Outputs are `output`, `h_n` and `c_n` in the shapes of torch. T and B are free. Nodes are called l0, l1, ... Dropout
    between layers acts in training only, so the model has none.

    Coupled gates are written twice: input_forget=1, and the forget rows as the negated input rows (f = 1 - sigmoid(a) =
    sigmoid(-a)), so that a runtime that overlooks the attribute is right too. A projection R is folded into the
    recurrent weights, U' = U R, and a MatMul makes h = R m of the node's state m. The first h becomes m = R^+ h, with
    the pseudo-inverse, which is exact as R has more columns than rows.

    Raises TypeError for what is not a layer of gatework.nn; ValueError, by name, for a cell that ONNX has no node for,
    for dtypes other than float32 and float64, and for a projection whose rows are (nearly) dependent.

    >>> from gatework.convert import to_onnx
    >>> from gatework.nn import PeepholeLSTM
    >>> model = to_onnx(PeepholeLSTM(8, 16, num_layers=2, peepholes="io"))
    >>> [node.name for node in model.graph.node if node.op_type == "LSTM"]
    ['l0', 'l1']
    """
    inner = layer.layer if isinstance(layer, Reversed) else layer
    weights = weights_of(inner, "ONNX", list(_OPERATORS))
    onnx = library("onnx")
    graph = _Graph(onnx)
    x, states, count = "input", ["h_0", "c_0"][:len(inner.cell.states)], len(weights[0].directions)
    if inner.batch_first:
        x = graph.node("Transpose", [x], perm=[1, 0, 2])
    parts = [[state] for state in states]
    if len(weights) > 1:
        sizes = graph.constant("sizes", np.full(len(weights), count, np.int64))
        parts = [graph.nodes("Split", [state, sizes], len(weights), axis=0) for state in states]
    last = []
    for k, one in enumerate(weights):
        x, ends = _layer(graph, f"l{k}", one, x, [p[k] for p in parts], isinstance(layer, Reversed))
        last.append(ends)
    graph.node("Transpose" if inner.batch_first else "Identity", [x], "output",
               **(dict(perm=[1, 0, 2]) if inner.batch_first else {}))
    ends = ["h_n", "c_n"][:len(states)]
    for name, values in zip(ends, zip(*last)):
        graph.node("Concat", values, name, axis=0)
    return graph.model(inner, weights, states, ends)


class _Graph:
    """Nodes and constants of the model as they are made."""

    def __init__(self, onnx):
        self.onnx, self.made, self.constants = onnx, [], []

    def nodes(self, op: str, inputs, outputs: int, name: str = "", **attributes) -> list[str]:
        values = [f"{name or op.lower()}_{len(self.made)}_{j}" for j in range(outputs)]
        self.made.append(self.onnx.helper.make_node(op, inputs, values, name, **attributes))
        return values

    def node(self, op: str, inputs, output: str = "", **attributes) -> str:
        output = output or f"{op.lower()}_{len(self.made)}"
        self.made.append(self.onnx.helper.make_node(op, inputs, [output], **attributes))
        return output

    def constant(self, name: str, array: np.ndarray) -> str:
        self.constants.append(self.onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def model(self, layer: nn.Recurrent, weights: list[Weights], states: list[str], ends: list[str]):
        helper = self.onnx.helper
        kind = helper.np_dtype_to_tensor_dtype(weights[0].dtype)
        count = len(weights[0].directions)
        order = ["B", "T"] if layer.batch_first else ["T", "B"]
        lengths = [_output_size(weights[0]), weights[0].hidden]

        def values(names):
            return [helper.make_tensor_value_info(n, kind, [len(weights) * count, "B", size])
                    for n, size in zip(names, lengths)]

        graph = helper.make_graph(
            self.made, "gatework",
            [helper.make_tensor_value_info("input", kind, [*order, weights[0].inputs]), *values(states)],
            [helper.make_tensor_value_info("output", kind, [*order, count * lengths[0]]), *values(ends)],
            self.constants)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], producer_name="gatework")
        made.ir_version = _IR
        self.onnx.checker.check_model(made, full_check=True)
        return made


def _output_size(weights: Weights) -> int:
    R = weights.directions[0].get("R")
    return len(R[""]) if R else weights.hidden


def _layer(graph: _Graph, name: str, weights: Weights, x: str, states: list[str], reverse: bool):
    """One node with what it needs around it; its output [T, B, directions * size] and last states."""
    directions = [_as_onnx(weights.cell, d) for d in weights.directions]
    R = np.stack([d["R"][""] for d in directions]) if "R" in directions[0] else None  # [directions, P, H]
    if R is not None:
        inverse = graph.constant(f"{name}.R_inverse", _inverse(R).swapaxes(1, 2))
        states = [graph.node("MatMul", [states[0], inverse]), *states[1:]]
        projection = graph.constant(f"{name}.R_transposed", R.swapaxes(1, 2))
    op = _OPERATORS[weights.cell]
    arrays = {k: np.stack([v[k] for v in (_stacked(op, d) for d in directions)]) for k in _stacked(op, directions[0])}
    held = {k: graph.constant(f"{name}.{k}", a) for k, a in arrays.items()}
    inputs = [x, held["W"], held["R"], held.get("B", ""), "", *states]
    if "P" in held:
        inputs.append(held["P"])
    way = "bidirectional" if len(directions) == 2 else "reverse" if reverse else "forward"
    output, *ends = graph.nodes(op, inputs, 1 + len(states), name, direction=way, hidden_size=weights.hidden,
                                **_attributes(weights, len(directions)))
    if R is not None:
        output = graph.node("MatMul", [output, projection])
        ends = [graph.node("MatMul", [ends[0], projection]), *ends[1:]]
    output = graph.node("Transpose", [output], perm=[0, 2, 1, 3])  # [T, D, B, size] -> [T, B, D, size]
    return graph.node("Reshape", [output, graph.constant(f"{name}.shape", np.array([0, 0, -1], np.int64))]), ends


def _attributes(weights: Weights, directions: int) -> dict:
    if weights.cell == "gru":
        return dict(linear_before_reset=1)
    if weights.cell in ("coupled_lstm", "coupled_peephole_lstm"):
        return dict(input_forget=1)
    return dict(activations=[weights.setting.title()] * directions) if weights.cell == "elman" else {}


def _as_onnx(cell: str, direction: Direction) -> Direction:
    """The direction with every row that the node asks for: coupled, missing and projected ones written out."""
    direction = {k: dict(rows) for k, rows in direction.items()}
    if cell in ("coupled_lstm", "coupled_peephole_lstm"):
        for rows in direction.values():
            rows["f"] = -rows["i"]
    if "p" in direction:
        some = next(iter(direction["p"].values()))
        direction["p"] = {g: direction["p"].get(g, np.zeros_like(some)) for g in PEEPHOLES}
    if "b" in direction and "d" not in direction:
        direction["d"] = zeros_like(direction["b"])
    if "R" in direction:
        R = direction["R"][""].astype(np.float64)
        direction["U"] = {g: (rows.astype(np.float64) @ R).astype(rows.dtype) for g, rows in direction["U"].items()}
    return direction


def _stacked(op: str, direction: Direction) -> dict[str, np.ndarray]:
    gates = GATES[op]
    arrays = {"W": stack(direction["W"], gates), "R": stack(direction["U"], gates)}
    if "b" in direction:
        arrays["B"] = np.concatenate([stack(direction["b"], gates), stack(direction["d"], gates)])
    if "p" in direction:
        arrays["P"] = stack(direction["p"], PEEPHOLES)
    return arrays


def _inverse(R: np.ndarray) -> np.ndarray:
    """The pseudo-inverse [directions, H, P]; refused where it would spoil the first state."""
    wide = R.astype(np.float64)
    worst = np.linalg.cond(wide).max()
    if not worst * np.finfo(R.dtype).eps < 1e-3:
        raise ValueError(f"the projection (weight_hr) has nearly dependent rows (condition number {worst:.1e}), so the "
                         "first state of the projected LSTM cannot be given to an ONNX LSTM exactly")
    return np.linalg.pinv(wide).astype(R.dtype)
