"""Bad input to the layers: every message says what was given and what is needed."""

import copy

import pytest
import torch

import gatework
from gatework.compiler import Constant, H, Input, Matrix, State, tanh


def masked(x: Input, m: Input[H], k: Constant, h: State, W: Matrix, U: Matrix):
    return dict(h=m * tanh(W @ x + U @ h + k) + (1.0 - m) * h)


def lstm(**options):
    return gatework.nn.LSTM(4, 6, **options)


X, HC = torch.zeros(5, 3, 4), (torch.zeros(1, 3, 6), torch.zeros(1, 3, 6))
BAD_CALLS = {
    "wrong feature size": (lambda: lstm()(torch.zeros(5, 3, 7)), ValueError, "7 features.*input_size=4"),
    "one-dimensional input": (lambda: lstm()(torch.zeros(4)), ValueError, r"\[T, B, I\].*\(4,\)"),
    "four-dimensional input": (lambda: lstm(batch_first=True)(torch.zeros(2, 5, 3, 4)), ValueError, r"\[B, T, I\]"),
    "no tensor": (lambda: lstm()([[1.0]]), TypeError, "tensor or a PackedSequence; list"),
    "no time steps": (lambda: lstm()(torch.zeros(0, 3, 4)), ValueError, "0 time steps and 3 rows"),
    "no rows": (lambda: lstm()(torch.zeros(5, 0, 4)), ValueError, "5 time steps and 0 rows"),
    "no rows, batch first": (lambda: lstm(batch_first=True)(torch.zeros(0, 5, 4)), ValueError,
                             "5 time steps and 0 rows"),
    "no steps, unbatched": (lambda: lstm()(torch.zeros(0, 4)), ValueError, "0 time steps and 1 rows"),
    "input of another dtype": (lambda: lstm()(X.double()), ValueError,
                               r"float64.*float32.*layer\.to\(torch\.float64\)"),
    "input of whole numbers": (lambda: lstm()(X.long()), ValueError, "int64.*floating-point"),
    "input on another device": (lambda: lstm()(X.to("meta")), ValueError,
                                r"input is on the device meta.*cpu.*\.to\('cpu'\)"),
    "layer on another device": (lambda: lstm(device="meta")(X), ValueError, "device cpu.*on meta"),
    "state of another dtype": (lambda: lstm()(X, (HC[0], HC[1].double())), ValueError,
                               "first state c has dtype.*float64"),
    "state on another device": (lambda: lstm()(X, (HC[0].to("meta"), HC[1])), ValueError, "first state h is on.*meta"),
    "state with other rows": (lambda: lstm()(X, (torch.zeros(1, 2, 6), HC[1])), ValueError,
                              r"h.*\(1, 2, 6\).*\(1, 3, 6\)"),
    "state with other units": (lambda: lstm()(X, (HC[0], torch.zeros(1, 3, 5))), ValueError,
                               r"c.*\(1, 3, 5\).*\(1, 3, 6\)"),
    "state with other layers": (lambda: lstm(num_layers=2)(X, HC), ValueError, r"\(1, 3, 6\).*\(2, 3, 6\)"),
    "state in batch_first order": (
        lambda: lstm(batch_first=True)(X.transpose(0, 1), (torch.zeros(3, 1, 6),) * 2), ValueError,
        "batch_first does not apply to states"),
    "one state for two": (lambda: lstm()(X, HC[0]), ValueError, r"\(h, c\).*tuple of 2 tensors, 1 were given"),
    "two states for one": (lambda: gatework.nn.GRU(4, 6)(X, HC), ValueError, r"one tensor, 2 were given"),
    "states that are no tensors": (lambda: lstm()(X, (None, None)), TypeError, "tuple of 2 tensors.*NoneType"),
    "states of no form at all": (lambda: lstm()(X, 0), TypeError, "tuple of 2 tensors.*int"),
    "batched state, unbatched input": (lambda: lstm()(X[:, 0], HC), ValueError, r"\(1, 3, 6\).*\(1, 6\)"),
    "unbatched state, batched input": (lambda: lstm()(X, (HC[0][:, 0], HC[1][:, 0])), ValueError,
                                       r"\(1, 6\).*\(1, 3, 6\)"),
    "an input that the cell lacks": (lambda: lstm()(X, mask=X), TypeError, "further inputs none.*mask"),
    "an input that is missing": (lambda: gatework.nn.Recurrent(masked, 4, 6)(X), TypeError, "m, k.*none"),
    "a further input of another shape": (
        lambda: gatework.nn.Recurrent(masked, 4, 6)(X, m=torch.zeros(5, 2, 6), k=torch.zeros(3, 6)), ValueError,
        r"input m has shape \(5, 2, 6\).*\(5, 3, 6\)"),
    "a constant of another shape": (
        lambda: gatework.nn.Recurrent(masked, 4, 6)(X, m=torch.zeros(5, 3, 6), k=torch.zeros(5, 3, 6)), ValueError,
        r"input k has shape \(5, 3, 6\).*\(3, 6\)"),
    "a further input of another dtype": (
        lambda: gatework.nn.Recurrent(masked, 4, 6)(X, m=torch.zeros(5, 3, 6).double(), k=torch.zeros(3, 6)),
        ValueError, "input m has dtype torch.float64"),
    "a number to record": (lambda: lstm()(X, record=3), TypeError, "a name or several names; 3.*i, f, g, o, h, c"),
    "lengths that vmap maps over": (
        lambda: torch.func.vmap(lambda n, layer: layer(X, lengths=n)[0], (0, None))(torch.ones(2, 3).long(), lstm()),
        ValueError, "3 whole numbers.*vmap.*same lengths"),
    "a step of no tensor": (lambda: lstm().step([[1.0]]), TypeError, "input of a step must be a tensor; list"),
    "a whole sequence as a step": (lambda: lstm().step(X), ValueError, "whole sequences to the layer itself"),
    "lengths of a step": (lambda: lstm().step(X[0], lengths=[1, 1, 1]), TypeError, "step takes no lengths="),
}
BAD_LAYERS = {
    "input_size of zero": (lambda: gatework.nn.LSTM(0, 6), ValueError, "input_size.*at least 1; 0"),
    "hidden_size of zero": (lambda: gatework.nn.GRU(4, 0), ValueError, "hidden_size.*at least 1; 0"),
    "hidden_size of a fraction": (lambda: gatework.nn.GRU(4, 6.5), ValueError, "hidden_size.*whole number.*6.5"),
    "no layers": (lambda: lstm(num_layers=0), ValueError, "num_layers.*at least 1; 0"),
    "dropout over 1": (lambda: lstm(dropout=1.5, num_layers=2), ValueError, "probability between 0 and 1; 1.5"),
    "dropout of True": (lambda: lstm(dropout=True, num_layers=2), ValueError, "probability.*True"),
    "proj_size over hidden_size": (lambda: lstm(proj_size=6), ValueError, "proj_size.*smaller than hidden_size=6; 6"),
    "proj_size below zero": (lambda: lstm(proj_size=-1), ValueError, "at least 0.*-1"),
    "proj_size of a fraction": (lambda: lstm(proj_size=2.5), ValueError, "proj_size must be a whole number.*2.5"),
    "proj_size for a cell without": (lambda: gatework.nn.Recurrent(gatework.cells.gru, 4, 6, proj_size=3), ValueError,
                                     "gru has no projection"),
    "no proj_size for a cell with": (lambda: gatework.nn.Recurrent(gatework.cells.projected_lstm, 4, 6), ValueError,
                                     "give proj_size"),
    "an unknown nonlinearity": (lambda: gatework.nn.RNN(4, 6, nonlinearity="gelu"), ValueError,
                                '"tanh" or "relu".*gelu'),
    "an unknown peephole": (lambda: gatework.nn.PeepholeLSTM(4, 6, peepholes="ig"), ValueError,
                            'of "ifo".*ig'),
    "no peephole": (lambda: gatework.nn.PeepholeLSTM(4, 6, peepholes=""), ValueError, 'any of "ifo"; .. was given'),
    "an unknown backend": (lambda: lstm(backend="gpu9"), ValueError, "'auto'.*'gpu9'"),
    "a size that the cell lacks": (lambda: gatework.nn.Recurrent(gatework.cells.gru, 4, 6, sizes={"Q": 3}), ValueError,
                                   "sizes= must give nothing and gives Q"),
    "a size of zero": (lambda: gatework.nn.Recurrent(gatework.cells.ea_lstm, 4, 6, sizes={"S": 0}), ValueError,
                       "sizes= of S must be a whole number of at least 1; 0"),
    "heads that do not divide the units": (
        lambda: gatework.nn.Recurrent(gatework.cells.slstm, 4, 6, sizes={"D": 4}), ValueError,
        "heads of D = 4 features, of which H = 6 is no multiple"),
    "first states as an option": (lambda: lstm(initial_state="zeros"), ValueError, "True or False.*zeros.*as hx"),
    "dropout of a word": (lambda: lstm(dropout="some", num_layers=2), ValueError, "probability.*some"),
}


@pytest.mark.parametrize("what", [*BAD_CALLS, *BAD_LAYERS])
def test_error_says_what_was_given_and_what_is_needed(what):
    attempt, kind, message = (BAD_CALLS | BAD_LAYERS)[what]
    with pytest.raises(kind, match=message):
        attempt()


def test_a_layer_works_after_a_refused_call():
    layer = lstm()
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(ValueError, match="7 features"):
        layer(torch.zeros(5, 3, 7))
    output, _ = layer(X)
    assert output.shape == (5, 3, 6)
    assert all(torch.equal(before[k], v) for k, v in layer.state_dict().items())
