"""ONNX nodes to layers and layers to ONNX models, with ONNX Runtime running; refusals by name."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import gatework
from gatework import cells, convert
from gatework.compiler import Input, Matrix, State, tanh

# float32, relative to the largest value: sums of some fifty products, each rounded to 6e-8, carried over a few steps
# make about 1e-6; a wrong gate or a missing bias makes 1e-2 or more.
BOUND = 1e-5

OUTPUTS = {"LSTM": ["Y", "Y_h", "Y_c"], "GRU": ["Y", "Y_h"], "RNN": ["Y", "Y_h"]}
ROWS = {"LSTM": 4, "GRU": 3, "RNN": 1}


def node_model(op, I=3, H=5, direction="forward", leave_out=(), peepholes="", arrays=None, name="node", **attributes):
    """A model of one node with random weights; every weight and state that is not left out is there."""
    random, D, G = np.random.default_rng(6), 1 + (direction == "bidirectional"), ROWS[op]
    draw = dict(W=(D, G * H, I), R=(D, G * H, H), B=(D, 2 * G * H))
    weights = {k: random.normal(0, 0.5, s).astype("float32") for k, s in draw.items() if k not in leave_out}
    if peepholes:
        rows = [random.normal(0, 0.5, (D, H)) * (g in peepholes) for g in "iof"]
        weights["P"] = np.concatenate(rows, 1).astype("float32")
    weights |= arrays or {}
    states = ["initial_h", "initial_c"][:len(OUTPUTS[op]) - 1]
    inputs = ["X", "W", "R", "B" if "B" in weights else "", "sequence_lens" if "sequence_lens" in weights else "",
              *states]
    if "P" in weights:
        inputs.append("P")
    node = helper.make_node(op, inputs, OUTPUTS[op], name, hidden_size=H, direction=direction, **attributes)
    graph = helper.make_graph(
        [node], "test",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ["X", *states] if n not in weights],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in OUTPUTS[op]],
        [numpy_helper.from_array(a, k) for k, a in weights.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return model


def close(got, expected):
    assert tuple(got.shape) == expected.shape
    got = got.detach().numpy() if isinstance(got, torch.Tensor) else got
    assert np.abs(got - expected).max() <= BOUND * np.abs(expected).max()


def tensors(arrays):
    values = tuple(map(torch.from_numpy, arrays))
    return values if len(values) > 1 else values[0]


def many(last):
    return last if isinstance(last, tuple) else (last,)


def runtime(model):
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


NODES = {
    "LSTM": ("LSTM", {}, "lstm"),
    "LSTM-no-bias": ("LSTM", dict(leave_out=["B"]), "lstm"),
    "LSTM-peepholes": ("LSTM", dict(peepholes="iof"), "peephole_lstm"),
    "LSTM-peephole-o": ("LSTM", dict(peepholes="o", leave_out=["B"]), "peephole_lstm"),
    "LSTM-coupled": ("LSTM", dict(input_forget=1), "coupled_lstm"),
    "LSTM-coupled-no-bias": ("LSTM", dict(input_forget=1, leave_out=["B"]), "coupled_lstm"),
    "LSTM-coupled-peepholes": ("LSTM", dict(input_forget=1, peepholes="iof"), "coupled_peephole_lstm"),
    "GRU": ("GRU", {}, "gru_reset_before"),
    "GRU-no-bias": ("GRU", dict(leave_out=["B"]), "gru_reset_before"),
    "GRU-reset-after": ("GRU", dict(linear_before_reset=1), "gru"),
    "RNN": ("RNN", {}, "elman"),
    "RNN-relu": ("RNN", dict(activations=["Relu"]), "elman"),
    "RNN-no-bias": ("RNN", dict(activations=["Tanh"], leave_out=["B"]), "elman"),
}


@pytest.mark.parametrize(("I", "H", "T", "B"), [(5, 33, 6, 3), (1, 1, 1, 1)])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("case", NODES)
def test_the_layer_of_a_node_gives_the_results_of_onnx_runtime(case, direction, I, H, T, B):
    op, options, cell = NODES[case]
    D = 1 + (direction == "bidirectional")
    if "activations" in options:
        options = options | dict(activations=options["activations"] * D)
    model = node_model(op, I, H, direction, **options)
    layer = convert.from_onnx(model)["node"]
    assert (layer.layer if direction == "reverse" else layer).cell.name == cell
    random = np.random.default_rng(8)
    x = random.normal(size=(T, B, I)).astype("float32")
    states = {k: random.normal(size=(D, B, H)).astype("float32") for k in ["initial_h", "initial_c"][
        :len(OUTPUTS[op]) - 1]}
    Y, *ends = runtime(model).run(None, {"X": x, **states})
    output, last = layer(torch.from_numpy(x), tensors(states.values()))
    close(output, Y.swapaxes(1, 2).reshape(T, B, D * H))
    for got, expected in zip(many(last), ends, strict=True):
        close(got, expected)


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_layout_1_becomes_batch_first(op):
    # ONNX Runtime refuses layout 1; the reference implementation of ONNX has it.
    model = node_model(op, layout=1)
    layer = convert.from_onnx(model)["node"]
    x, h = np.random.default_rng(9).normal(size=(2, 2, 4, 3)).astype("float32"), np.ones((2, 1, 5), "float32")
    names = ["initial_h", "initial_c"][:len(OUTPUTS[op]) - 1]
    Y, *ends = ReferenceEvaluator(model).run(None, {"X": x[0], **dict.fromkeys(names, h)})
    output, last = layer(torch.from_numpy(x[0]), tensors([h.swapaxes(0, 1).copy()] * len(names)))
    close(output, Y[:, :, 0])
    for got, expected in zip(many(last), ends, strict=True):
        close(got, expected.swapaxes(0, 1))


@pytest.mark.parametrize(("given", "found"), [("iof", "ifo"), ("io", "io"), ("f", "f"), ("", "lstm")])
def test_a_peephole_of_zeros_is_none(given, found):
    layer = convert.from_onnx(node_model("LSTM", arrays={} if given else dict(P=np.zeros((1, 15), "float32")),
                                         peepholes=given))["node"]
    assert getattr(layer, "peepholes", layer.cell.name) == found


LAYERS = {
    "lstm": gatework.nn.LSTM, "gru": gatework.nn.GRU, "rnn": gatework.nn.RNN, "coupled": gatework.nn.CoupledLSTM,
    "rnn-relu": lambda *sizes, **options: gatework.nn.RNN(*sizes, nonlinearity="relu", **options),
    "projected": lambda *sizes, **options: gatework.nn.LSTM(*sizes, proj_size=2, **options),
    "gru-reset-before": lambda *sizes, **options: gatework.nn.Recurrent(cells.gru_reset_before, *sizes, **options),
    "coupled-peepholes":
        lambda *sizes, **options: gatework.nn.Recurrent(cells.coupled_peephole_lstm, *sizes, **options),
    **{f"peepholes-{p}": lambda *sizes, p=p, **options: gatework.nn.PeepholeLSTM(*sizes, peepholes=p, **options)
       for p in ("ifo", "if", "io", "fo", "i", "f", "o")},
}
OPTIONS = {
    "one": ((3, 7), {}),
    "both-ways": ((3, 33), dict(bidirectional=True)),
    "all": ((2, 4), dict(num_layers=3, bidirectional=True, batch_first=True)),
    "no-bias": ((1, 3), dict(num_layers=2, bias=False)),
}


def example(layer, T, B, dtype="float32"):
    random = np.random.default_rng(10)
    count = layer.num_layers * (1 + layer.bidirectional)
    names = list(layer.cell.states)
    sizes = [layer.proj_size or layer.hidden_size, layer.hidden_size][:len(names)]
    x = random.normal(size=(B, T, layer.input_size) if layer.batch_first else (T, B, layer.input_size))
    return {"input": x.astype(dtype), **{f"{n}_0": random.normal(size=(count, B, s)).astype(dtype)
                                         for n, s in zip(names, sizes)}}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", LAYERS)
def test_the_model_of_a_layer_gives_its_results_in_onnx_runtime_at_any_length(kind, options):
    torch.manual_seed(11)
    sizes, keywords = OPTIONS[options]
    layer = LAYERS[kind](*sizes, **keywords)
    session = runtime(convert.to_onnx(layer))
    for T, B in [(5, 3), (1, 1)]:
        given = example(layer, T, B)
        output, last = layer(torch.from_numpy(given["input"]), tensors(list(given.values())[1:]))
        results = session.run(["output", *(f"{n}_n" for n in layer.cell.states)], given)
        for got, expected in zip([output, *many(last)], results, strict=True):
            close(got, expected)


@pytest.mark.parametrize("kind", ["coupled", "coupled-peepholes"])
def test_coupled_gates_are_right_where_a_runtime_overlooks_input_forget(kind):
    layer = LAYERS[kind](3, 5, num_layers=2, bidirectional=True)  # the reference implementation of ONNX overlooks it
    given = example(layer, 4, 2)
    output, (h, c) = layer(torch.from_numpy(given["input"]), tensors(list(given.values())[1:]))
    for got, expected in zip([output, h, c], ReferenceEvaluator(convert.to_onnx(layer)).run(None, given), strict=True):
        close(got, expected)


def test_a_float64_layer_becomes_a_float64_model():
    layer = gatework.nn.LSTM(3, 5, bidirectional=True, proj_size=2, dtype=torch.float64)
    given = example(layer, 4, 2, "float64")
    output, (h, c) = layer(torch.from_numpy(given["input"]), tensors(list(given.values())[1:]))
    for got, expected in zip([output, h, c], ReferenceEvaluator(convert.to_onnx(layer)).run(None, given), strict=True):
        # 2e-16 a product, times the condition of a random projection of two rows
        assert np.abs(got.detach().numpy() - expected).max() < 1e-12


def test_a_reversed_layer_becomes_a_reverse_node_and_comes_back():
    layer = convert.Reversed(gatework.nn.GRU(3, 5))
    model = convert.to_onnx(layer)
    given = example(layer.layer, 4, 2)
    output, h = layer(torch.from_numpy(given["input"]), torch.from_numpy(given["h_0"]))
    for got, expected in zip([output, h], runtime(model).run(None, given), strict=True):
        close(got, expected)
    again = convert.from_onnx(model)["l0"]
    assert type(again) is convert.Reversed
    assert all(torch.equal(again.state_dict()[k], v) for k, v in layer.state_dict().items())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [k for k in LAYERS if k != "projected"])
def test_a_round_trip_keeps_every_bit(kind, bias):
    layer = LAYERS[kind](3, 5, num_layers=2, bidirectional=True, bias=bias)
    again = convert.from_onnx(convert.to_onnx(layer))
    assert list(again) == ["l0", "l1"]
    expected = layer.state_dict()
    for k, one in enumerate(again.values()):
        assert one.cell.fingerprint == layer.cell.fingerprint
        for name, value in one.state_dict().items():
            assert torch.equal(value, expected.pop(name.replace("_l0", f"_l{k}")))
    assert not expected


def test_no_random_number_is_drawn():
    model = convert.to_onnx(gatework.nn.GRU(3, 5))
    before = torch.get_rng_state()
    convert.from_onnx(model)
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_acts_in_training_only_and_the_model_has_none():
    layer = gatework.nn.GRU(3, 5, num_layers=2, dropout=0.5).eval()
    given = example(layer, 4, 2)
    output, _ = layer(torch.from_numpy(given["input"]), torch.from_numpy(given["h_0"]))
    close(output, runtime(convert.to_onnx(layer)).run(["output"], given)[0])


def test_nodes_are_found_in_files_and_bodies_with_constants_and_without_names(tmp_path):
    inner = node_model("GRU", name="").graph
    outer = helper.make_graph(
        [helper.make_node("Constant", [], ["R"], value=inner.initializer[1]),
         helper.make_node("If", ["flag"], ["y"], then_branch=helper.make_graph(
             list(inner.node), "then", [], list(inner.output)[:1]), else_branch=helper.make_graph([], "else", [], []))],
        "outer", [], [], [inner.initializer[0], inner.initializer[2]])
    onnx.save(helper.make_model(outer), tmp_path / "model.onnx")
    layers = convert.from_onnx(tmp_path / "model.onnx")
    assert list(layers) == ["Y"]
    assert torch.equal(layers["Y"].weight_hh_l0[:5], torch.from_numpy(numpy_helper.to_array(
        inner.initializer[1])[0, 5:10].copy()))  # r comes second in ONNX


def test_constant_first_states_of_zeros_are_the_default():
    model = node_model("GRU", arrays=dict(initial_h=np.zeros((1, 2, 5), "float32")))
    assert convert.from_onnx(model)["node"].cell.name == "gru_reset_before"


def renamed(**changes):
    model = node_model("GRU")
    for key, value in changes.items():
        setattr(model.graph.node[0], key, value)
    return model


def twice():
    model = node_model("GRU")
    model.graph.node.append(model.graph.node[0])
    return model


def computed():
    model = node_model("LSTM")
    model.graph.node[0].input[1] = "made"
    return model


REFUSED = {
    "clip": (lambda: node_model("LSTM", clip=3.0), r"'node' \(LSTM\) has clip=3.0"),
    "alpha": (lambda: node_model("RNN", activation_alpha=[0.5]), "activation_alpha"),
    "another activation": (lambda: node_model("LSTM", activations=["HardSigmoid", "Tanh", "Tanh"]),
                           "HardSigmoid.*gatework.nn has sigmoid, tanh, tanh"),
    "activations that differ": (
        lambda: node_model("RNN", direction="bidirectional", activations=["Tanh", "Relu"]), "same in both directions"),
    "a first state": (lambda: node_model("GRU", arrays=dict(initial_h=np.ones((1, 2, 5), "float32"))),
                      "constant initial_h that is not zeros"),
    "lengths": (lambda: node_model("GRU", arrays=dict(sequence_lens=np.ones(2, "int32"))), "constant sequence_lens"),
    "computed weights": (computed, "W of node 'node' is 'made', which is no constant"),
    "half precision": (lambda: node_model("RNN", arrays=dict(W=np.ones((1, 5, 3), "float16"))), "dtype float16"),
    "a wrong shape": (lambda: node_model("GRU", arrays=dict(B=np.ones((1, 15), "float32"))),
                      r"B of node 'node' \(GRU, 1 directions\) has shape \(1, 15\); needed is \(1, 30\)"),
    "a wrong size": (lambda: node_model("GRU", H=5, arrays=dict(R=np.ones((1, 18, 6), "float32"),
                                                                W=np.ones((1, 18, 3), "float32"),
                                                                B=np.ones((1, 36), "float32"))), "hidden_size=5.*6"),
    "a direction": (lambda: node_model("GRU", direction="sideways"), "direction='sideways'"),
    "a layout": (lambda: node_model("GRU", layout=2), "layout=2"),
    "another domain": (lambda: renamed(domain="com.microsoft"), "com.microsoft.GRU"),
    "another operator": (lambda: renamed(op_type="DynamicQuantizeLSTM"), "is a DynamicQuantizeLSTM"),
    "one name for two": (twice, "two nodes .* 'node'"),
    "no such node": (lambda: renamed(op_type="Relu"), "no LSTM, GRU or RNN node; its operators are Relu"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_gatework_has_not_is_refused_by_name(what):
    make, message = REFUSED[what]
    with pytest.raises(ValueError, match=message):
        convert.from_onnx(make())


def test_what_is_no_model_is_refused():
    with pytest.raises(TypeError, match="NodeProto was given.*from_onnx_node"):
        convert.from_onnx(node_model("GRU").graph.node[0])


def own(x: Input, h: State, W: Matrix, U: Matrix):
    return dict(h=h + tanh(W @ x + U @ h))


def dependent():
    layer = gatework.nn.LSTM(3, 5, proj_size=2)
    with torch.no_grad():
        layer.weight_hr_l0[1] = layer.weight_hr_l0[0]
    return layer


@pytest.mark.parametrize(("make", "message"), [
    (lambda: gatework.nn.Recurrent(own, 3, 4), "ONNX has no layer .*cell own .*lstm, .*elman"),
    (lambda: gatework.nn.GRU(3, 4, dtype=torch.float16), r"float16; call layer.float\(\)"),
    (dependent, r"weight_hr\) has nearly dependent rows"),
])
def test_what_onnx_has_not_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        convert.to_onnx(make())
