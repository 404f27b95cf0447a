"""Plain calls, which go the short way once one like them has gone the whole one: the same bits, and never outdated."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.nn.utils import parametrize

import gatework
from gatework.autograd import dispatch, functions
from gatework.backends.cpu.target import _host, target
from gatework.nn import plain


@pytest.fixture
def short_ways(monkeypatch):
    """Which calls went the short way."""
    taken, call = [], plain.Plain.__call__

    def spy(self, *given):
        made = call(self, *given)
        taken.append(made is not None)
        return made

    monkeypatch.setattr(plain.Plain, "__call__", spy)
    return taken


@pytest.fixture
def whole_way(monkeypatch):
    """Run something without a short way."""
    def run(function, *given):
        with monkeypatch.context() as patch:
            patch.setattr(plain.Plain, "__call__", lambda *_: None)
            return function(*given)
    return run


def as_list(states) -> list[torch.Tensor]:
    return [states] if isinstance(states, torch.Tensor) else list(states)


def results(layer, x, hx=None, record=None, resets=None):
    """The output, last states and recorded values, and the gradients of what is given and of all parameters."""
    x = x.detach().requires_grad_()
    given = [x, *(h for h in as_list(() if hx is None else hx) if h.requires_grad), *layer.parameters()]
    output, last, *records = layer(x, hx, record=record, resets=resets)
    made = [output, *as_list(last), *(y for named in records for y in named.values())]
    return [*made, *torch.autograd.grad(sum((k + y).sin().sum() for k, y in enumerate(made)), given)]


LAYERS = {
    "lstm": lambda **o: gatework.nn.LSTM(5, 33, **o),
    "rnn": lambda **o: gatework.nn.RNN(5, 33, **o),
    "gru": lambda **o: gatework.nn.GRU(5, 33, **o),
    "layer-norm": lambda **o: gatework.nn.LayerNormLSTM(5, 33, **o),
    "projected": lambda **o: gatework.nn.LSTM(5, 33, proj_size=7, **o),
}


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 5), (1, 3, 5), (7, 1, 5), (6, 3, 5)], ids=str)
@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_the_short_way_gives_the_bits_of_the_whole_one(make, shape, dtype, batch_first, short_ways, whole_way):
    layer, x = make(batch_first=batch_first, dtype=dtype), torch.randn(shape, dtype=dtype)
    for values in (x, x.flip(0).contiguous(), x.transpose(0, 1).contiguous().transpose(0, 1)):
        for _ in range(4):  # once walked, once recorded, then by the program
            found = results(layer, values)
        expected = whole_way(results, layer, values)
        assert [y.shape for y in found] == [y.shape for y in expected]
        assert all(map(torch.equal, found, expected))
        with torch.no_grad():
            assert torch.equal(layer(values)[0], whole_way(layer, values)[0])
    assert short_ways[:2] == [False, True]


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("record", [None, (), "h", True], ids=str)
@pytest.mark.parametrize("make", [LAYERS["lstm"], LAYERS["projected"]], ids=["lstm", "projected"])
def test_given_states_and_recorded_values_go_the_short_way(make, record, learned, batch_first, short_ways, whole_way):
    layer = make(batch_first=batch_first)
    x = torch.randn(*((3, 6) if batch_first else (6, 3)), 5)
    layer(x, record=record)
    sizes = [layer.sizes[e.dims[0]] for e in layer.cell.states.values()]
    for _ in range(3):
        hx = tuple(torch.randn(1, 3, n, requires_grad=learned) for n in sizes)
        found = results(layer, x, hx, record)
        expected = whole_way(results, layer, x, hx, record)
        assert all(map(torch.equal, found, expected))
    assert short_ways == [False, True, True, True]
    assert len(layer(x, hx, record=record)) == (2 if record is None else 3)
    if record is True:
        assert list(layer(x, record=True)[2]) == list(whole_way(lambda: layer(x, record=True))[2])


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("record", [None, True], ids=str)
@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_resets_go_the_short_way_with_the_bits_of_the_whole_one(make, record, given, batch_first, short_ways,
                                                                whole_way):
    layer = make(batch_first=batch_first)
    shape = (3, 6) if batch_first else (6, 3)
    sizes = [layer.sizes[e.dims[0]] for e in layer.cell.states.values()]
    for share in (0.4, 0.0, 1.0, 0.4):
        x, resets = torch.randn(*shape, 5), torch.rand(shape) < share
        states = [torch.randn(1, 3, n, requires_grad=True) for n in sizes]
        hx = (states[0] if len(states) == 1 else tuple(states)) if given else None
        found, expected = (way(results, layer, x, hx, record, resets)
                           for way in (lambda function, *given: function(*given), whole_way))
        assert all(map(torch.equal, found, expected))
    assert short_ways == [False, True, True, True]
    plain_result = results(layer, x, hx, record)
    assert short_ways.pop() is False  # without resets a call is of another kind
    assert not torch.equal(plain_result[0], found[0])


def test_resets_that_do_not_fit_are_refused_as_ever(short_ways):
    layer, x = gatework.nn.LSTM(5, 8), torch.randn(4, 3, 5)
    for _ in range(2):
        layer(x, resets=torch.zeros(4, 3, dtype=torch.bool))
    for resets in (torch.zeros(3, 4, dtype=torch.bool), torch.zeros(4, 3), torch.zeros(4, 3, 1, dtype=torch.bool),
                   [[False] * 3] * 4, torch.zeros(4, 3, dtype=torch.bool, device="meta")):
        with pytest.raises(ValueError, match="resets"):
            layer(x, resets=resets)
    assert short_ways == [False, True, *[False] * 5]


def test_calls_that_record_other_values_are_of_another_kind(used, short_ways, whole_way):
    layer, x = used
    for record in (None, "i", ("f", "h"), True, None, "i", True):
        found, expected = results(layer, x, None, record), whole_way(results, layer, x, None, record)
        assert len(found) == len(expected)
        assert all(map(torch.equal, found, expected))
    assert short_ways == [True, False, False, False, True, True, True]


def test_states_that_do_not_fit_are_refused_as_ever(used):
    layer, x = used
    for hx, message in (((torch.zeros(1, 2, 8), torch.zeros(1, 3, 8)), "needed is"), (torch.zeros(1, 3, 8), "tuple"),
                        ((torch.zeros(1, 3, 8).double(), torch.zeros(1, 3, 8)), "float64"),
                        ((torch.zeros(1, 3, 8),), "2 tensors"), ("h", "str")):
        with pytest.raises((TypeError, ValueError), match=message):
            layer(x, hx)


def test_steps_of_a_layer_go_the_short_way(used, short_ways):
    layer, x = used
    expected, state = layer(x)[0], None
    short_ways.clear()
    for t in range(4):
        y, state = layer.step(x[t], state)
        torch.testing.assert_close(y, expected[t])
    assert short_ways == [False, True, True, True]


def test_what_is_not_plain_goes_the_whole_way(short_ways):
    x = torch.randn(4, 3, 5)
    for layer in (gatework.nn.LSTM(5, 8, num_layers=2), gatework.nn.LSTM(5, 8, bidirectional=True),
                  gatework.nn.LSTM(5, 8, initial_state=True), gatework.nn.LSTM(5, 8, zoneout=0.1),
                  gatework.nn.LSTM(5, 8, backend="reference"), gatework.nn.LSTM(5, 8, checkpoint_every=2),
                  gatework.nn.Recurrent(gatework.cells.slstm, 5, 8, sizes={"D": 4})):
        for _ in range(3):
            layer(x)
    layer = gatework.nn.LSTM(5, 8)
    for _ in range(3):
        layer(x[:, 0])  # unbatched: a plain call inside, of one row
    assert not any(short_ways[:-5])
    short_ways.clear()
    for _ in range(3):
        layer(x, lengths=[4, 2, 1], resets=torch.zeros(4, 3, dtype=torch.bool))
    assert not any(short_ways)


@pytest.fixture
def used():
    """A layer that has been called, and its input."""
    layer, x = gatework.nn.LSTM(5, 8), torch.randn(4, 3, 5)
    for _ in range(3):
        layer(x)
    return layer, x


def test_weights_that_have_changed_are_those_of_the_next_call(used, whole_way):
    layer, x = used
    other = gatework.nn.LSTM(5, 8)
    layer.load_state_dict(other.state_dict())
    assert torch.equal(layer(x)[0], whole_way(other, x)[0])
    layer.weight_ih_l0 = torch.nn.Parameter(torch.randn(32, 5))
    assert torch.equal(layer(x)[0], whole_way(layer, x)[0])
    layer.bias_hh_l0.data = torch.randn(32)
    assert torch.equal(layer(x)[0], whole_way(layer, x)[0])


def test_a_layer_of_another_dtype_refuses_the_input_that_it_took_before(used):
    layer, x = used
    layer.double()
    with pytest.raises(ValueError, match="torch.float32"):
        layer(x)
    assert layer(x.double())[0].dtype == torch.float64


def test_a_parameter_of_another_shape_is_refused_and_never_read(used):
    layer, x = used
    layer.weight_hh_l0.data = torch.randn(4, 1)
    with pytest.raises(ValueError, match=r"parameter U of lstm has the shape \[4, 1\].* H = 8"):
        layer(x)


def test_options_that_are_set_later_hold_for_the_next_call(used, short_ways):
    layer, x = used
    expected = layer(x)[0]
    layer.backend = "reference"
    torch.testing.assert_close(layer(x)[0], expected)
    layer.backend, layer.batch_first = "auto", True
    assert layer(x)[1][0].shape == (1, 4, 8)
    layer.batch_first, layer.checkpoint_every = False, 2
    torch.testing.assert_close(layer(x)[0], expected)
    assert short_ways == [True, False, False, False]


def test_a_parametrization_that_comes_later_is_used(used):
    class Twice(torch.nn.Module):
        def forward(self, weight):
            return 2 * weight

    layer, x = used
    doubled = copy.deepcopy(layer)
    with torch.no_grad():
        doubled.weight_hh_l0 *= 2
    parametrize.register_parametrization(layer, "weight_hh_l0", Twice())
    for _ in range(2):
        assert torch.equal(layer(x)[0], doubled(x)[0])


@pytest.mark.skipif(not target().multiplies_bfloat16, reason="this CPU does not multiply bfloat16")
@pytest.mark.parametrize("with_resets", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_autocast_goes_a_short_way_of_its_own_with_the_bits_of_the_whole_one(make, dtype, with_resets, short_ways,
                                                                             whole_way):
    layer, x = make(), torch.randn(8, 3, 5, dtype=dtype)
    sizes = [layer.sizes[e.dims[0]] for e in layer.cell.states.values()]
    hx = tuple(torch.randn(1, 3, n) for n in sizes)
    resets = torch.rand(8, 3) < 0.3 if with_resets else None
    if dtype == torch.float32:
        without = results(layer, x, None, True, resets)
    with torch.autocast("cpu", torch.bfloat16):
        for given in (None, None, None, hx[0] if len(hx) == 1 else hx):
            found = results(layer, x, given, True, resets)
            expected = whole_way(results, layer, x, given, True, resets)
            assert [(y.dtype, y.shape) for y in found] == [(y.dtype, y.shape) for y in expected]
            assert all(map(torch.equal, found, expected))
            assert torch.is_autocast_enabled("cpu")
            assert found[0].dtype == torch.bfloat16
        with torch.inference_mode():
            assert torch.equal(layer(x, resets=resets)[0], whole_way(lambda: layer(x, resets=resets)[0]))
    assert short_ways[-5:] == [False, True, True, True, False]
    if dtype == torch.float32:
        again = results(layer, x, None, True, resets)
        assert all(map(torch.equal, without, again))
        assert again[0].dtype == torch.float32


@pytest.mark.skipif(not target().multiplies_bfloat16, reason="this CPU does not multiply bfloat16")
def test_the_short_way_of_autocast_ends_with_it_and_turns_it_on_again_after_an_error(monkeypatch):
    layer, x = gatework.nn.LSTM(5, 8), torch.randn(8, 3, 5)
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(3):
            layer(x)
        with torch.autocast("cpu", torch.float16):
            assert layer(x)[0].dtype == torch.float16
        with torch.autocast("cpu", enabled=False):
            assert layer(x)[0].dtype == torch.float32
        monkeypatch.setattr(dispatch, "run", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            layer(x)
        assert torch.is_autocast_enabled("cpu")


def test_transforms_go_the_whole_way(used):
    layer, x = used
    expected = layer(x)[0]
    outputs = torch.vmap(lambda x: layer(x)[0])(torch.stack([x, x]))
    torch.testing.assert_close(outputs, expected.expand(2, *expected.shape))
    weights = {name: 0 * p for name, p in layer.named_parameters()}
    assert not torch.func.functional_call(layer, weights, x)[0].any()


def test_an_output_has_a_graph_only_where_somebody_asks(used):
    layer, x = used
    assert layer(x)[0].requires_grad
    layer.requires_grad_(False)
    assert not layer(x)[0].requires_grad
    assert layer(x.requires_grad_())[0].requires_grad
    with torch.inference_mode():
        assert layer(x)[0].is_inference()


def test_a_layer_trains_after_a_call_of_the_same_kind_in_inference_mode(short_ways):
    layer, x = gatework.nn.LSTM(5, 8), torch.randn(4, 3, 5)
    with torch.inference_mode():
        for _ in range(3):
            expected = layer(x)[0]
    layer(x)[0].sum().backward()
    assert short_ways == [False, True, True, True]
    assert torch.equal(layer(x)[0], expected)
    assert all(p.grad is not None for p in layer.parameters())


def test_another_choice_of_vectors_is_compiled_anew(used, short_ways, monkeypatch):
    layer, x = used
    assert len(_host()) > 1
    monkeypatch.setenv("GATEWORK_VECTOR", list(_host())[-1])
    narrow = layer(x)[0]
    assert short_ways == [False]
    monkeypatch.delenv("GATEWORK_VECTOR")
    torch.testing.assert_close(narrow, layer(x)[0])


def test_copies_go_ways_of_their_own(used):
    layer, x = used
    other = copy.deepcopy(layer)
    with torch.no_grad():
        other.weight_hh_l0 += 1
    assert not torch.equal(other(x)[0], layer(x)[0])
    assert other._plain is not layer._plain


def test_kinds_of_calls_do_not_pile_up(used, monkeypatch):
    monkeypatch.setattr(plain, "MOST_KINDS", 4)
    layer, _ = used
    for steps in range(1, 20):
        layer(torch.randn(steps, 2, 5))
        assert len(layer._plain._known) <= 4


def test_first_states_that_calls_share_stay_zero(used):
    layer, x = used
    for _ in range(3):
        output, (h, c) = layer(x)
        h.data.fill_(7.0)
        c.data.fill_(7.0)
        output.data.fill_(7.0)
    assert not any(s.any() for settled in layer._plain._known.values() for s in settled.first)


def test_threads_call_one_layer_at_the_same_time(used):
    layer, x = used
    expected = results(layer, x)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: results(layer, x), range(60)))
    assert all(all(map(torch.equal, made, expected)) for made in found)


def test_the_gradients_of_gradients_are_those_of_the_reference_backend(used):
    layer, x = used
    reference = copy.deepcopy(layer)
    reference.backend = "reference"

    def second(layer):
        z = x.clone().requires_grad_()
        first, = torch.autograd.grad(layer(z)[0].sin().sum(), z, create_graph=True)
        return torch.autograd.grad(first.square().sum(), list(layer.parameters()))

    for a, b in zip(second(layer), second(reference)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)  # of float32


def test_the_short_way_is_the_kernel_that_the_whole_one_takes(used, monkeypatch):
    layer, x = used
    seen, run = [], functions.Call.forward
    monkeypatch.setattr(functions.Call, "forward", lambda call, *a: seen.append(call) or run(call, *a))
    layer(x)
    monkeypatch.setattr(plain.Plain, "__call__", lambda *_: None)
    layer(x)
    assert seen[0] is seen[1]
