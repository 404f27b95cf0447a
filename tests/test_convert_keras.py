"""Keras layers to gatework.nn and back, with Keras running: outputs, last states, bits; refusals by name."""

import os

os.environ["KERAS_BACKEND"] = "torch"  # before the import; JAX would bring threads into the process of the other tests

import keras
import numpy as np
import pytest
import torch

import gatework
from gatework import convert
from gatework.cells import gru_reset_before

LSTM, GRU, RNN, Bidirectional = keras.layers.LSTM, keras.layers.GRU, keras.layers.SimpleRNN, keras.layers.Bidirectional

# Relative to the largest value: sums of some fifty products, each rounded to 6e-8, carried over a few steps make about
# 1e-6; a wrong gate or a missing bias makes 1e-2 or more. float64 too: on torch, Keras multiplies it as float32.
BOUND = 1e-5

KINDS = {
    "lstm": (LSTM, {}),
    "lstm-no-bias": (LSTM, dict(use_bias=False)),
    "lstm-float64": (LSTM, dict(dtype="float64")),
    "gru": (GRU, {}),
    "gru-no-bias": (GRU, dict(use_bias=False)),
    "gru-reset-before": (GRU, dict(reset_after=False)),
    "gru-reset-before-no-bias": (GRU, dict(reset_after=False, use_bias=False)),
    "rnn": (RNN, {}),
    "rnn-relu": (RNN, dict(activation="relu")),
}


def keras_stack(kind, I, H, layers, both_ways, seed=3, **options):
    """Built Keras layers with every weight drawn at random: Keras itself starts biases at 0 or 1."""
    random, stack = np.random.default_rng(seed), []
    for k in range(layers):
        layer = kind(H, return_sequences=True, return_state=True, **options)
        if both_ways:
            layer = Bidirectional(layer, dtype=options.get("dtype"))
        layer.build((None, None, I if k == 0 else H * (1 + both_ways)))
        layer.set_weights([random.normal(0, 0.4, w.shape) for w in layer.weights])
        stack.append(layer)
    return stack


def run_keras(stack, x, first):
    """The output [B, T, size] and per state the last values of all layers and directions, with the first ones given."""
    lasts, per_layer = [], len(first) // len(stack)
    for k, layer in enumerate(stack):
        x, *last = layer(x, initial_state=first[k * per_layer:(k + 1) * per_layer])
        lasts += last
    return x, lasts


def example(stack, ours, T, B):
    random = np.random.default_rng(4)
    dtype = stack[0].compute_dtype
    both_ways = ours.bidirectional
    states = len(ours.cell.states)
    x = random.normal(size=(B, T, ours.input_size)).astype(dtype)
    # Keras: layer by layer, direction by direction, h before c
    count = ours.num_layers * (1 + both_ways) * states
    first = [random.normal(size=(B, ours.hidden_size)).astype(dtype) for _ in range(count)]
    return x, first


def compare(stack, ours, T, B):
    x, first = example(stack, ours, T, B)
    states = len(ours.cell.states)
    output, lasts = run_keras(stack, x, first)
    hx = [torch.from_numpy(np.stack(first[k::states])) for k in range(states)]
    got, last = ours(torch.from_numpy(x if ours.batch_first else x.swapaxes(0, 1).copy()),
                     tuple(hx) if states > 1 else hx[0])
    got = got if ours.batch_first else got.transpose(0, 1)
    last = last if states > 1 else (last,)
    expected = [v.detach().numpy() for v in lasts]
    pairs = [(got, output.detach().numpy()), *((s, np.stack(expected[k::states]))
                                                          for k, s in enumerate(last))]
    for ours_value, value in pairs:
        assert np.abs(ours_value.detach().numpy() - value).max() <= BOUND * np.abs(value).max()


@pytest.mark.parametrize(("I", "H", "layers", "both_ways", "T", "B"), [
    (5, 33, 1, False, 6, 3), (3, 7, 2, True, 4, 2), (1, 1, 3, False, 3, 1), (4, 6, 1, True, 1, 1)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_layer_made_from_keras_gives_the_results_of_keras(kind, I, H, layers, both_ways, T, B):
    constructor, options = KINDS[kind]
    stack = keras_stack(constructor, I, H, layers, both_ways, **options)
    ours = convert.from_keras(stack)
    assert (ours.num_layers, ours.bidirectional, ours.batch_first) == (layers, both_ways, True)
    compare(stack, ours, T, B)


OURS = {
    "lstm": gatework.nn.LSTM,
    "gru": gatework.nn.GRU,
    "gru-reset-before": lambda *sizes, **options: gatework.nn.Recurrent(gru_reset_before, *sizes, **options),
    "rnn": gatework.nn.RNN,
    "rnn-relu": lambda *sizes, **options: gatework.nn.RNN(*sizes, nonlinearity="relu", **options),
}


@pytest.mark.parametrize("options", [dict(), dict(num_layers=2, bidirectional=True), dict(bias=False, batch_first=True),
                                     dict(dtype=torch.float64)], ids=str)
@pytest.mark.parametrize("kind", OURS)
def test_keras_layers_made_from_ours_give_the_same_results(kind, options):
    torch.manual_seed(5)
    ours = OURS[kind](3, 9, **options)
    stack = convert.to_keras(ours)
    assert len(stack) == ours.num_layers
    compare(stack, ours, 5, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_round_trip_from_keras_keeps_every_bit(kind):
    constructor, options = KINDS[kind]
    stack = keras_stack(constructor, 3, 5, 2, True, **options)
    back = convert.to_keras(convert.from_keras(stack))
    for theirs, again in zip(stack, back, strict=True):
        assert type(again.forward_layer) is constructor
        assert again.dtype == theirs.dtype
        for a, b in zip(theirs.weights, again.weights, strict=True):
            assert torch.equal(a.value, b.value)


@pytest.mark.parametrize("kind", ["gru", "gru-reset-before"])
def test_a_round_trip_from_ours_keeps_every_bit_where_keras_has_all_biases(kind):
    ours = OURS[kind](3, 5, num_layers=2, bidirectional=True, batch_first=True)
    again = convert.from_keras(convert.to_keras(ours)).state_dict()
    assert again.keys() == ours.state_dict().keys()
    assert all(torch.equal(again[k], v) for k, v in ours.state_dict().items())


def test_the_one_bias_of_keras_is_the_sum_of_ours():
    ours = gatework.nn.LSTM(3, 5)
    [layer] = convert.to_keras(ours)
    again = convert.from_keras(layer)
    assert torch.equal(again.bias_ih_l0, ours.bias_ih_l0 + ours.bias_hh_l0)
    assert not again.bias_hh_l0.any()


def built(constructor, *arguments, **options):
    layer = constructor(*arguments, **options)
    layer.build((1, None, 3))
    return layer


class Own(LSTM):
    pass


def two_ways(backward):
    return built(Bidirectional, LSTM(4, return_sequences=True), backward_layer=backward)


def stack_of(*layers):
    return [built(constructor, 3, **options) for constructor, options in layers]


REFUSED = {
    "activation": (lambda: built(LSTM, 4, activation="relu"), "activation='relu'; gatework.nn has tanh"),
    "recurrent activation": (lambda: built(GRU, 4, recurrent_activation="hard_sigmoid"),
                             "recurrent_activation='hard_sigmoid'; gatework.nn has sigmoid"),
    "an activation of an RNN": (lambda: built(RNN, 4, activation="gelu"), "activation='gelu'; .* tanh or relu"),
    "no activation": (lambda: built(RNN, 4, activation=None), "activation='linear'"),
    "dropout": (lambda: built(LSTM, 4, dropout=0.5), "dropout=0.5.*set it to 0"),
    "recurrent dropout": (lambda: built(RNN, 4, recurrent_dropout=0.5), "recurrent_dropout=0.5"),
    "going backwards": (lambda: built(GRU, 4, go_backwards=True), "go_backwards=True.*flip the input"),
    "stateful": (lambda: built(LSTM, 4, stateful=True), "stateful=True.*states in every call"),
    "a regulariser": (lambda: built(LSTM, 4, recurrent_regularizer="l2"), "recurrent_regularizer"),
    "a constraint": (lambda: built(LSTM, 4, kernel_constraint="non_neg"), "kernel_constraint"),
    "an activity regulariser": (lambda: built(LSTM, 4, activity_regularizer="l2"), "activity_regularizer"),
    "mixed precision": (lambda: built(LSTM, 4, dtype="mixed_bfloat16"), "mixed_bfloat16"),
    "half precision": (lambda: built(LSTM, 4, dtype="float16", recurrent_initializer="zeros"),
                       "float16.*float32 and float64"),
    "a layer without weights": (lambda: LSTM(4, name="early"), "early has no weights yet"),
    "another merge mode": (lambda: built(Bidirectional, LSTM(4), merge_mode="sum"), "merge_mode='sum'.*concat"),
    "two kinds": (lambda: two_ways(GRU(4, return_sequences=True, go_backwards=True)), "'lstm'.*'gru'"),
    "two widths": (lambda: two_ways(LSTM(5, return_sequences=True, go_backwards=True)), ", 4.*, 5"),
    "no layers": (lambda: [], "at least one layer"),
    "a stack of two kinds": (lambda: stack_of((LSTM, {}), (GRU, {})), "cell is 'lstm' in the first one and 'gru' in n"),
    "a stack of two forms": (lambda: stack_of((RNN, {}), (RNN, dict(activation="relu"))), "setting is 'tanh'.*'relu'"),
    "layers that do not fit": (lambda: [built(LSTM, 4), built(LSTM, 4)], "reads 3 features.*hands on 4"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_gatework_has_not_is_refused_by_name(what):
    make, message = REFUSED[what]
    layer = make()
    with pytest.raises(ValueError, match=message):
        convert.from_keras(layer)


@pytest.mark.parametrize(("make", "name"), [
    (lambda: built(Own, 4), "Own"), (lambda: built(keras.layers.Dense, 4), "Dense"), (lambda: torch.nn.LSTM(3, 4),
                                                                                      "torch.*LSTM")])
def test_other_layers_and_subclasses_are_refused(make, name):
    with pytest.raises(TypeError, match=f"not subclasses; .*{name} was given"):
        convert.from_keras(make())


@pytest.mark.parametrize(("layer", "message"), [
    (gatework.nn.PeepholeLSTM(3, 4), "Keras has no layer.*peephole_lstm.*lstm, gru, gru_reset_before, elman"),
    (gatework.nn.LSTM(3, 4, proj_size=2), "no layer.*projected_lstm"),
    (gatework.nn.LSTM(3, 4, num_layers=2, dropout=0.5), "dropout=0.5 .*keras.layers.Dropout"),
    (gatework.nn.GRU(3, 4, dtype=torch.bfloat16), r"bfloat16; call layer.float\(\)"),
])
def test_what_keras_has_not_is_refused_by_name(layer, message):
    with pytest.raises(ValueError, match=message):
        convert.to_keras(layer)
