"""Flax NNX modules to gatework.nn and back, with Flax running: outputs, last states, bits; refusals by name.

`test_convert_flax.py` runs this file in a process of its own: JAX brings threads, and warns where a process forks.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import gatework
from gatework import convert

# Relative to the largest value: sums of some fifty products, each rounded to 6e-8, carried over a few steps make about
# 1e-6; a wrong gate or a missing bias makes 1e-2 or more.
BOUND = 1e-5

KINDS = {
    "lstm": (nnx.LSTMCell, {}),
    "lstm-optimized": (nnx.OptimizedLSTMCell, {}),
    "gru": (nnx.GRUCell, {}),
    "rnn": (nnx.SimpleCell, {}),
    "rnn-relu": (nnx.SimpleCell, dict(activation_fn=nnx.relu)),
}
SIZES = [(5, 33, 1, False, 6, 3, False), (3, 7, 2, True, 4, 2, True), (1, 1, 1, False, 1, 1, False)]


def cell_of(kind, I, H, random):
    """A Flax cell with every weight drawn at random: Flax itself starts biases at 0."""
    constructor, options = KINDS[kind]
    zeros = nnx.initializers.zeros_init()
    cell = constructor(I, H, kernel_init=zeros, recurrent_kernel_init=zeros, rngs=nnx.Rngs(0), **options)
    nnx.update(cell, jax.tree.map(lambda a: jnp.asarray(random.normal(0, 0.4, a.shape), a.dtype),
                                  nnx.state(cell, nnx.Param)))
    return cell


def flax_stack(kind, I, H, layers, both_ways, seed=3, **options):
    random, stack = np.random.default_rng(seed), []
    for k in range(layers):
        width = I if k == 0 else H * (1 + both_ways)
        rnns = [nnx.RNN(cell_of(kind, width, H, random), **options) for _ in range(1 + both_ways)]
        stack.append(nnx.Bidirectional(*rnns, **options) if both_ways else rnns[0])
    return stack


def compare(stack, ours, T, B):
    random = np.random.default_rng(4)
    inner = getattr(ours, "layer", ours)
    x = random.normal(size=(B, T, inner.input_size) if inner.batch_first else (T, B, inner.input_size))
    names, directions = list(inner.cell.states), 1 + inner.bidirectional
    x, first = x.astype("float32"), {n: random.normal(size=(len(stack) * directions, B, inner.hidden_size)).astype(
        "float32") for n in names}
    # Flax: one carry per layer and direction, (c, h) for an LSTM
    y, ends = jnp.asarray(x), []
    for k, module in enumerate(stack):
        carries = []
        for d in range(directions):
            carry = tuple(jnp.asarray(first[n][k * directions + d]) for n in reversed(names))
            carries.append(carry if len(names) == 2 else carry[0])
        last, y = module(y, initial_carry=tuple(carries) if directions == 2 else carries[0], return_carry=True)
        ends += last if directions == 2 else [last]
    hx = tuple(torch.from_numpy(first[n]) for n in names)
    output, last = ours(torch.from_numpy(x), hx if len(hx) == 2 else hx[0])
    ends = [tuple(reversed(e)) if isinstance(e, tuple) else (e,) for e in ends]
    pairs = [(output, y), *((got, np.stack([e[j] for e in ends]))
                            for j, got in enumerate(last if isinstance(last, tuple) else [last]))]
    for got, expected in pairs:
        assert tuple(got.shape) == expected.shape
        assert np.abs(got.detach().numpy() - expected).max() <= BOUND * np.abs(expected).max()


@pytest.mark.parametrize(("I", "H", "layers", "both_ways", "T", "B", "time_major"), SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_layer_made_from_flax_gives_the_results_of_flax(kind, I, H, layers, both_ways, T, B, time_major):
    stack = flax_stack(kind, I, H, layers, both_ways, time_major=time_major)
    ours = convert.from_flax(stack)
    assert (ours.num_layers, ours.bidirectional, ours.batch_first) == (layers, both_ways, not time_major)
    compare(stack, ours, T, B)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bare_cell_gives_the_layer_of_its_rnn(kind):
    cell = cell_of(kind, 3, 5, np.random.default_rng(3))
    compare([nnx.RNN(cell, time_major=True)], convert.from_flax(cell), 4, 2)


def test_a_reversed_rnn_becomes_a_reversed_layer_and_comes_back():
    stack = flax_stack("gru", 3, 5, 2, False, reverse=True, keep_order=True)
    ours = convert.from_flax(stack)
    assert type(ours) is convert.Reversed
    compare(stack, ours, 4, 2)
    compare(convert.to_flax(ours), ours, 4, 2)


OURS = {
    "lstm": gatework.nn.LSTM, "gru": gatework.nn.GRU, "rnn": gatework.nn.RNN,
    "rnn-relu": lambda *sizes, **options: gatework.nn.RNN(*sizes, nonlinearity="relu", **options),
}


@pytest.mark.parametrize("options", [dict(), dict(num_layers=2, bidirectional=True, bias=False, batch_first=True)],
                         ids=str)
@pytest.mark.parametrize("kind", OURS)
def test_flax_modules_made_from_ours_give_the_same_results(kind, options):
    torch.manual_seed(5)
    ours = OURS[kind](3, 9, **options)
    stack = convert.to_flax(ours)
    assert len(stack) == ours.num_layers
    compare(stack, ours, 5, 2)


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "lstm"])  # which comes back as OptimizedLSTMCell
def test_a_round_trip_from_flax_keeps_every_bit(kind):
    stack = flax_stack(kind, 3, 5, 2, True)
    again = convert.to_flax(convert.from_flax(stack))
    for theirs, other in zip(stack, again, strict=True):
        for rnn in ("forward_rnn", "backward_rnn"):
            a, b = (getattr(m, rnn).cell for m in (theirs, other))
            assert type(a) is type(b)
            a, b = (jax.tree.leaves_with_path(nnx.state(c, nnx.Param)) for c in (a, b))
            assert [path for path, _ in a] == [path for path, _ in b]
            assert all(np.array_equal(u, v) for (_, u), (_, v) in zip(a, b))


def test_a_round_trip_of_our_gru_keeps_every_bit_the_bias_within_the_reset_too():
    ours = gatework.nn.GRU(3, 5, num_layers=2, bidirectional=True)
    again = convert.from_flax(convert.to_flax(ours)).state_dict()
    assert again.keys() == ours.state_dict().keys()
    assert all(torch.equal(again[k], v) for k, v in ours.state_dict().items())


def test_the_one_bias_of_a_flax_lstm_is_the_sum_of_ours():
    ours = gatework.nn.LSTM(3, 5)
    again = convert.from_flax(convert.to_flax(ours))
    assert torch.equal(again.bias_hh_l0, ours.bias_ih_l0 + ours.bias_hh_l0)
    assert not again.bias_ih_l0.any()


class Own(nnx.GRUCell):
    pass


def make(kind, H=4, **options):
    return kind(3, H, rngs=nnx.Rngs(0), **options)


def both(forward, backward, **options):
    return nnx.Bidirectional(nnx.RNN(forward), nnx.RNN(backward), **options)


REFUSED = {
    "gate": (lambda: make(nnx.LSTMCell, gate_fn=nnx.hard_sigmoid), "LSTMCell has gate_fn=hard_sigmoid; .* sigmoid"),
    "activation": (lambda: make(nnx.GRUCell, activation_fn=nnx.relu), "GRUCell has activation_fn=relu; .* tanh"),
    "an activation of a SimpleCell": (lambda: make(nnx.SimpleCell, activation_fn=nnx.gelu), "gelu.* tanh or relu"),
    "residual": (lambda: make(nnx.SimpleCell, residual=True), "residual=True"),
    "mixed precision": (lambda: make(nnx.OptimizedLSTMCell, dtype=jnp.bfloat16), "param_dtype=float32 and dtype="),
    "half precision": (lambda: make(nnx.LSTMCell, param_dtype=jnp.float16), "param_dtype=float16"),
    "reversed time": (lambda: nnx.RNN(make(nnx.GRUCell), reverse=True), "keep_order=False"),
    "another merge": (lambda: both(make(nnx.GRUCell), make(nnx.GRUCell), merge_fn=jnp.add), "merge_fn=add"),
    "two kinds": (lambda: both(make(nnx.GRUCell), make(nnx.LSTMCell)), "'gru'.*'lstm'"),
    "two widths": (lambda: both(make(nnx.GRUCell), make(nnx.GRUCell, H=5)), ", 4.*, 5"),
    "no modules": (lambda: [], "at least one module"),
    "two orders": (lambda: [nnx.RNN(make(nnx.GRUCell)), nnx.RNN(make(nnx.GRUCell), time_major=True)], "time_major"),
    "layers that do not fit": (lambda: [make(nnx.GRUCell), make(nnx.GRUCell)], "reads 3 features.*hands on 4"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_gatework_has_not_is_refused_by_name(what):
    build, message = REFUSED[what]
    module = build()
    with pytest.raises(ValueError, match=message):
        convert.from_flax(module)


@pytest.mark.parametrize(("build", "name"), [
    (lambda: make(Own), "Own"), (lambda: nnx.RNN(make(Own)), "Own"), (lambda: nnx.Linear(3, 4, rngs=nnx.Rngs(0)),
                                                                      "Linear")])
def test_other_modules_and_subclasses_are_refused(build, name):
    with pytest.raises(TypeError, match=f"not subclasses; .*{name} was given"):
        convert.from_flax(build())


@pytest.mark.parametrize(("layer", "message"), [
    (gatework.nn.CoupledLSTM(3, 4), "Flax has no layer.*coupled_lstm.*lstm, gru, elman"),
    (gatework.nn.LSTM(3, 4, num_layers=2, dropout=0.5), "dropout=0.5 .*nnx.Dropout"),
    (gatework.nn.LSTM(3, 4, dtype=torch.float64), "float32 of this layer's float64.*jax_enable_x64"),
])
def test_what_flax_has_not_is_refused_by_name(layer, message):
    with pytest.raises(ValueError, match=message):
        convert.to_flax(layer)


def test_float64_is_converted_where_jax_has_it():
    with jax.enable_x64(True):
        stack = convert.to_flax(gatework.nn.GRU(3, 4, dtype=torch.float64))
        assert convert.from_flax(stack).weight_ih_l0.dtype == torch.float64
