"""Layers of torch.nn to gatework.nn and back: the same results, the same bits, the same options; refusals by name."""

import subprocess
import sys

import pytest
import torch
from torch.nn.utils import parametrizations, prune

import gatework
from gatework import convert
from gatework.cells import gru_reset_before, lstm, projected_lstm
from gatework.compiler import Input, Matrix, State, tanh

# torch says once in a process that it runs projections without oneDNN; its results are the same.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")

# float32, relative to the largest value: sums of some fifty products, each rounded to 6e-8, carried over a few steps
# make about 1e-6; a wrong gate or a missing bias makes 1e-2 or more. float64 has 2e-16 instead of 6e-8.
BOUND = {torch.float32: 1e-5, torch.float64: 1e-13}

CASES = {
    "lstm": (torch.nn.LSTM, (5, 33), {}),
    "lstm-of-one-unit": (torch.nn.LSTM, (1, 1), {}),
    "lstm-layers-both-ways": (torch.nn.LSTM, (3, 7), dict(num_layers=2, bidirectional=True, batch_first=True)),
    "lstm-projected": (torch.nn.LSTM, (4, 9), dict(proj_size=3, num_layers=2, bidirectional=True)),
    "lstm-no-bias": (torch.nn.LSTM, (4, 6), dict(bias=False, proj_size=2)),
    "lstm-float64": (torch.nn.LSTM, (4, 6), dict(dtype=torch.float64)),
    "gru": (torch.nn.GRU, (5, 33), {}),
    "gru-layers-both-ways": (torch.nn.GRU, (3, 7), dict(num_layers=3, bidirectional=True, bias=False)),
    "rnn": (torch.nn.RNN, (5, 33), dict(batch_first=True)),
    "rnn-relu-both-ways": (torch.nn.RNN, (3, 7), dict(nonlinearity="relu", num_layers=2, bidirectional=True)),
}


def flat(result):
    output, last = result
    return [output, *(last if isinstance(last, tuple) else [last])]


@pytest.mark.parametrize(("T", "B"), [(6, 3), (1, 1)])
@pytest.mark.parametrize("case", CASES)
def test_the_layer_made_from_torch_gives_the_results_of_torch(case, T, B):
    kind, (I, H), options = CASES[case]
    torch.manual_seed(1)
    theirs = kind(I, H, **options)
    dtype = theirs.weight_ih_l0.dtype
    shape = (B, T, I) if theirs.batch_first else (T, B, I)
    x = torch.randn(shape, dtype=dtype)
    count = theirs.num_layers * (1 + theirs.bidirectional)
    first = [torch.randn(count, B, n, dtype=dtype) for n in ([theirs.proj_size or H, H] if kind is torch.nn.LSTM
                                                             else [H])]
    first = tuple(first) if len(first) == 2 else first[0]
    ours = convert.from_torch(theirs)
    for got, expected in zip(flat(ours(x, first)), flat(theirs(x, first)), strict=True):
        assert (got - expected).abs().max() <= BOUND[dtype] * expected.abs().max()


@pytest.mark.parametrize("case", CASES)
def test_a_round_trip_keeps_every_bit_and_every_option(case):
    kind, (I, H), options = CASES[case]
    theirs = kind(I, H, **options)
    back = convert.to_torch(convert.from_torch(theirs))
    assert type(back) is kind
    assert repr(back) == repr(theirs)
    assert back.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(v, theirs.state_dict()[k]) for k, v in back.state_dict().items())
    for name in ("batch_first", "bias", "dropout", "bidirectional", "proj_size", "mode"):
        assert getattr(back, name) == getattr(theirs, name)


def test_dropout_mode_and_frozen_parameters_are_carried_over():
    theirs = torch.nn.GRU(3, 4, num_layers=2, dropout=0.25).eval()
    theirs.weight_hh_l1.requires_grad_(False)
    for twin in (convert.from_torch(theirs), convert.to_torch(convert.from_torch(theirs))):
        assert twin.dropout == 0.25
        assert not twin.training
        assert [n for n, p in twin.named_parameters() if not p.requires_grad] == ["weight_hh_l1"]


def test_weights_are_copied_and_no_random_number_is_drawn():
    theirs = torch.nn.LSTM(3, 4)
    before = torch.get_rng_state()
    ours = convert.from_torch(theirs)
    convert.to_torch(ours)
    assert torch.equal(torch.get_rng_state(), before)
    kept = theirs.weight_ih_l0.detach().clone()
    with torch.no_grad():
        ours.weight_ih_l0.zero_()
    assert torch.equal(theirs.weight_ih_l0, kept)


def test_a_recurrent_layer_with_a_cell_of_torch_is_converted_whatever_class_made_it():
    ours = gatework.nn.Recurrent(lstm, 3, 4)
    assert type(convert.to_torch(ours)) is torch.nn.LSTM
    assert convert.to_torch(gatework.nn.Recurrent(projected_lstm, 3, 4, sizes={"P": 2})).proj_size == 2


def named_like_the_lstm(x: Input, h: State, W: Matrix, U: Matrix):
    return dict(h=tanh(W @ x + U @ h))


named_like_the_lstm.__name__ = "lstm"


class Own(torch.nn.LSTM):
    pass


def normed():
    return parametrizations.weight_norm(torch.nn.LSTM(3, 4), "weight_hh_l0")


def pruned():
    layer = torch.nn.GRU(3, 4)
    prune.random_unstructured(layer, "weight_hh_l0", 0.5)
    return layer


def with_parameter():
    layer = gatework.nn.GRU(3, 4)
    layer.extra = torch.nn.Parameter(torch.zeros(2))
    return layer


REFUSED = {
    "a subclass": (lambda: convert.from_torch(Own(3, 4)), TypeError, "not a subclass; .*Own was given"),
    "another module": (lambda: convert.from_torch(torch.nn.Linear(3, 4)), TypeError, "Linear was given"),
    "weight norm": (lambda: convert.from_torch(normed()), TypeError, "ParametrizedLSTM"),
    "pruned weights": (lambda: convert.from_torch(pruned()), ValueError, "further .*weight_hh_l0_mask.*lacks weight_h"),
    "no layer": (lambda: convert.to_torch(torch.nn.LSTM(3, 4)), TypeError, "gatework.nn is needed; LSTM was given"),
    "a cell that torch lacks": (lambda: convert.to_torch(gatework.nn.PeepholeLSTM(3, 4)), ValueError,
                                "torch.nn has no layer.*peephole_lstm.*lstm, projected_lstm, gru, elman"),
    "another GRU": (lambda: convert.to_torch(gatework.nn.Recurrent(gru_reset_before, 3, 4)), ValueError,
                    "no layer.*gru_reset_before"),
    "a cell that only has the name": (lambda: convert.to_torch(gatework.nn.Recurrent(named_like_the_lstm, 3, 4)),
                                      ValueError, "no layer that computes the equations of the cell lstm"),
    "a learned first state": (lambda: convert.to_torch(gatework.nn.Recurrent(lstm, 3, 4, initial_state=True)),
                              ValueError, "initial_state=True, for which torch.nn has nothing"),
    "a further parameter": (lambda: convert.to_torch(with_parameter()), ValueError, "further .*extra"),
    "a reversed network of both directions": (
        lambda: convert.Reversed(gatework.nn.GRU(3, 4, bidirectional=True)), ValueError, "one direction"),
    "a reversed torch layer": (lambda: convert.Reversed(torch.nn.GRU(3, 4)), TypeError, "gatework.nn; GRU was given"),
    "a list for a reversed layer": (lambda: convert.Reversed(gatework.nn.GRU(3, 4))([[1.0]]), TypeError, "list was"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_converted_is_refused_by_name(what):
    attempt, kind, message = REFUSED[what]
    with pytest.raises(kind, match=message):
        attempt()


@pytest.mark.parametrize("batch_first", [False, True])
def test_a_reversed_layer_is_the_second_direction_of_a_bidirectional_one(batch_first):
    torch.manual_seed(2)
    both = torch.nn.GRU(3, 7, bidirectional=True, batch_first=batch_first)
    one = gatework.nn.GRU(3, 7, batch_first=batch_first)
    one.load_state_dict({k.removesuffix("_reverse"): v for k, v in both.state_dict().items() if "reverse" in k})
    x, h = torch.randn(4, 5, 3), torch.randn(2, 4 if batch_first else 5, 7)
    output, last = convert.Reversed(one)(x, h[1:])
    expected, ends = both(x, h)
    assert (output - expected[..., 7:]).abs().max() < 1e-5  # outputs are below 1: BOUND for float32
    assert (last - ends[1:]).abs().max() < 1e-5
    unbatched, _ = convert.Reversed(one)(x[0])
    assert (unbatched - both(x[0])[0][:, 7:]).abs().max() < 1e-5


LIGHT = """
import sys
import gatework.convert
assert not {"keras", "jax", "flax", "onnx", "tensorflow"} & sys.modules.keys(), sorted(sys.modules)
"""


def test_other_systems_are_imported_only_by_their_own_converters():
    subprocess.run([sys.executable, "-c", LIGHT], check=True)


@pytest.mark.parametrize(("name", "attempt"), [
    ("keras", lambda: convert.to_keras(gatework.nn.GRU(3, 4))),
    ("keras", lambda: convert.from_keras(None)),
    ("flax", lambda: convert.to_flax(gatework.nn.GRU(3, 4))),
    ("flax", lambda: convert.from_flax(None)),
    ("onnx", lambda: convert.to_onnx(gatework.nn.GRU(3, 4))),
    ("onnx", lambda: convert.from_onnx("model.onnx")),
])
def test_a_missing_library_is_answered_with_the_line_to_type(monkeypatch, name, attempt):
    class Absent:
        def find_spec(self, fullname, path=None, target=None):
            if fullname.partition(".")[0] == name:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    for module in [m for m in sys.modules if m.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])
    with pytest.raises(ModuleNotFoundError, match=f"pip install {name}$"):
        attempt()


def test_how_a_layer_was_initialised_does_not_hinder_its_conversion():
    ours = gatework.nn.LSTM(3, 4, init="orthogonal", forget_bias=1.0, chrono_steps=None)
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(convert.to_torch(ours)(x)[0], ours(x)[0])
