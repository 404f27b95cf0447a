"""The layers of gatework.nn against torch.nn and against literal loops."""

import pytest
import torch
from torch.nn.functional import dropout

import gatework
from gatework.autograd import calls
from gatework.compiler import Bias, Constant, Input, Matrix, State, Vector, sigmoid, tanh

OURS = {"LSTM": gatework.nn.LSTM, "GRU": gatework.nn.GRU, "RNN": gatework.nn.RNN}
THEIRS = {"LSTM": torch.nn.LSTM, "GRU": torch.nn.GRU, "RNN": torch.nn.RNN}

# float64: the bound of the issue; both sides differ in the order of their sums only.
# float32: relative to the largest value. Sums of up to a few hundred products, each rounded to 6e-8, and a sigmoid and
# tanh within 2e-7, carried over a dozen steps: a few 1e-6 are expected, a wrong term would be 1e-2 or more.
BOUND = {torch.float64: 1e-10, torch.float32: 2e-5}


@pytest.fixture(autouse=True, params=[False, True], ids=["walked", "recorded"])
def calls_of_both_kinds(request, monkeypatch):
    """Without it nearly all calls would be the first ones with their shapes, which are not recorded."""
    monkeypatch.setattr(calls, "AT_ONCE", request.param)


CASES = {
    "plain": ("LSTM GRU RNN", (7, 3, 5, 33), {}, {}),
    "relu": ("RNN", (7, 3, 5, 33), dict(nonlinearity="relu"), {}),
    "layers": ("LSTM GRU RNN", (5, 3, 4, 6), dict(num_layers=3), {}),
    "no-bias": ("LSTM GRU RNN", (5, 3, 4, 6), dict(bias=False), {}),
    "batch-first": ("LSTM GRU RNN", (5, 3, 4, 6), dict(batch_first=True), {}),
    "bidirectional": ("LSTM GRU RNN", (5, 3, 4, 6), dict(bidirectional=True), {}),
    "bidirectional-layers": ("LSTM GRU RNN", (5, 3, 4, 6), dict(bidirectional=True, num_layers=2), {}),
    "all-at-once": ("LSTM GRU RNN", (5, 3, 4, 6),
                    dict(bidirectional=True, num_layers=2, batch_first=True, bias=False), {}),
    "projection": ("LSTM", (6, 3, 4, 9), dict(proj_size=5), {}),
    "projection-layers": ("LSTM", (5, 2, 4, 8), dict(proj_size=3, num_layers=2, bidirectional=True), {}),
    "unbatched": ("LSTM GRU RNN", (5, None, 4, 6), dict(num_layers=2), {}),
    "unbatched-batch-first": ("LSTM GRU RNN", (5, None, 4, 6), dict(batch_first=True), {}),
    "default-state": ("LSTM GRU RNN", (5, 3, 4, 6), dict(num_layers=2), dict(state=False)),
    "default-state-unbatched": ("LSTM GRU RNN", (5, None, 4, 6), {}, dict(state=False)),
    "one-step": ("LSTM GRU RNN", (1, 3, 4, 6), {}, {}),
    "one-row": ("LSTM GRU RNN", (7, 1, 4, 33), {}, {}),
    "one-of-all": ("LSTM GRU RNN", (1, 1, 1, 1), {}, {}),
    "strided": ("LSTM GRU RNN", (5, 3, 4, 6), dict(num_layers=2), dict(gaps=True)),
    "strided-batch-first": ("LSTM GRU RNN", (5, 3, 4, 6), dict(batch_first=True), dict(gaps=True)),
}


def grid():
    for case, (names, sizes, options, setting) in CASES.items():
        for name in names.split():
            for dtype in (torch.float64, torch.float32):
                named = zip("TBIH", sizes, strict=True)
                shape = "-".join(f"{letter}{size}" for letter, size in named if size is not None)
                yield pytest.param(name, sizes, options, setting, dtype, id=f"{name}-{case}-{shape}-{str(dtype)[6:]}")


def strided(value):
    """The same values in memory with gaps and the last two dimensions swapped."""
    wide = value.new_full((*value.shape[:-2], value.shape[-1], 2 * value.shape[-2]), float("nan"))
    view = wide[..., ::2].transpose(-1, -2)
    view.copy_(value)
    return view


def example(name, sizes, options, dtype, state=True, gaps=False):
    """Both layers with the same parameters, an input, and first states (or None), all from one seed."""
    T, B, I, H = sizes
    torch.manual_seed(7)
    theirs = THEIRS[name](I, H, **options, dtype=dtype)
    ours = OURS[name](I, H, **options, dtype=dtype)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    rows = () if B is None else (B,)
    x = torch.randn((*rows, T, I) if options.get("batch_first") else (T, *rows, I), dtype=dtype)
    count = options.get("num_layers", 1) * (1 + options.get("bidirectional", False))
    lengths = {"LSTM": [options.get("proj_size") or H, H]}.get(name, [H])
    states = [torch.randn(count, *rows, n, dtype=dtype) for n in lengths]
    if gaps:
        x, states = strided(x), list(map(strided, states))
    return ours, theirs, x, states if state else []


def results(layer, x, states):
    """Output, last states, and the gradients of input, first states and all parameters, by name."""
    x = x.detach().requires_grad_()
    states = [s.detach().requires_grad_() for s in states]
    layer.zero_grad()
    hx = None if not states else states[0] if len(states) == 1 else tuple(states)
    output, last = layer(x, hx)
    last = [last] if isinstance(last, torch.Tensor) else list(last)
    generator = torch.Generator().manual_seed(3)
    loss = sum((y * torch.randn(y.shape, dtype=y.dtype, generator=generator)).sum() for y in [output, *last])
    loss.backward()
    found = {"output": output.detach(), "gradient of input": x.grad}
    found |= {f"last state {k}": s.detach() for k, s in enumerate(last)}
    found |= {f"gradient of first state {k}": s.grad for k, s in enumerate(states)}
    found |= {f"gradient of {k}": p.grad.clone() for k, p in layer.named_parameters()}
    return found


def assert_same(found, expected, bound):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].shape == value.shape, key
        assert found[key].dtype == value.dtype, key
        scale = max(1.0, value.abs().max().item())
        difference = (found[key] - value).abs().max().item()
        assert difference <= bound * scale, f"{key}: differs by {difference:.2e}, largest value {scale:.2e}"


# torch.nn says so itself of projections in float32; it computes the same, only slower.
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
@pytest.mark.parametrize(("name", "sizes", "options", "setting", "dtype"), list(grid()))
def test_layer_equals_torch_nn_in_outputs_states_and_all_gradients(name, sizes, options, setting, dtype):
    ours, theirs, x, states = example(name, sizes, options, dtype, **setting)
    assert_same(results(ours, x, states), results(theirs, x, states), BOUND[dtype])


@pytest.mark.parametrize("name", OURS)
def test_state_dict_loads_strictly_in_both_directions(name):
    options = dict(num_layers=2, bidirectional=True) | (dict(proj_size=3) if name == "LSTM" else {})
    ours, theirs = OURS[name](4, 6, **options), THEIRS[name](4, 6, **options)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values()))
    fresh = OURS[name](4, 6, **options)
    fresh.load_state_dict(theirs.state_dict(), strict=True)
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), ours.parameters()))


@pytest.mark.parametrize("options", [{}, dict(num_layers=2, bidirectional=True), dict(bias=False)], ids=str)
@pytest.mark.parametrize("name", OURS)
def test_same_seed_draws_the_same_parameters_as_torch_nn(name, options):
    torch.manual_seed(11)
    theirs = THEIRS[name](4, 6, **options)
    torch.manual_seed(11)
    ours = OURS[name](4, 6, **options)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_projection_draws_the_same_parameters_as_torch_nn():
    torch.manual_seed(11)
    theirs = torch.nn.LSTM(4, 6, proj_size=3)
    torch.manual_seed(11)
    ours = gatework.nn.LSTM(4, 6, proj_size=3)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize("options", [{}, dict(bidirectional=True), dict(batch_first=True)], ids=str)
@pytest.mark.parametrize("name", OURS)
def test_dropout_drops_the_same_values_as_torch_nn_under_the_same_seed(name, options):
    ours, theirs, x, states = example(name, (5, 3, 4, 6), options | dict(num_layers=3, dropout=0.4), torch.float64)
    torch.manual_seed(5)
    expected = results(theirs, x, states)
    torch.manual_seed(5)
    assert_same(results(ours, x, states), expected, BOUND[torch.float64])


def test_dropout_acts_between_layers_in_training_and_nowhere_in_evaluation():
    torch.manual_seed(0)
    layer = gatework.nn.GRU(4, 6, num_layers=2, dropout=0.5, dtype=torch.float64)
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    single = [gatework.nn.GRU(size, 6, dtype=torch.float64) for size in (4, 6)]
    for k, part in enumerate(single):
        for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(part, f"{kind}_l0").data = getattr(layer, f"{kind}_l{k}").data
    torch.manual_seed(1)
    trained = layer(x)[0]
    torch.manual_seed(1)
    by_hand = single[1](dropout(single[0](x)[0], 0.5, True))[0]
    assert torch.allclose(trained, by_hand, rtol=0, atol=1e-12)  # the same sums in the same order, in float64
    plain = single[1](single[0](x)[0])[0]
    assert torch.allclose(layer.eval()(x)[0], plain, rtol=0, atol=1e-12)
    assert not torch.allclose(trained, plain, rtol=0, atol=1e-3)


def test_dropout_on_a_single_layer_warns_like_torch_nn():
    with pytest.warns(UserWarning, match="num_layers is 1"):
        gatework.nn.LSTM(4, 6, dropout=0.5)


# The open variants, each against a loop that is written out.

def unpack(layer, suffix):
    return {k.removesuffix(suffix): p for k, p in layer.named_parameters() if k.endswith(suffix)}


def peephole_step(p, x, h, c, peepholes):
    H = h.shape[-1]
    z = x @ p["weight_ih"].T + h @ p["weight_hh"].T + p.get("bias_ih", 0.0)
    look = dict(zip([k for k in "ifo" if k in peepholes], p["weight_peephole"].split(H)))
    zi, zf, zg, zo = z.split(H, -1)
    i = torch.sigmoid(zi + look.get("i", 0.0) * c)
    f = torch.sigmoid(zf + look.get("f", 0.0) * c)
    c = f * c + i * torch.tanh(zg)
    o = torch.sigmoid(zo + look.get("o", 0.0) * c)
    return o * torch.tanh(c), c


def coupled_step(p, x, h, c):
    z = x @ p["weight_ih"].T + h @ p["weight_hh"].T + p.get("bias_ih", 0.0)
    i, g, o = z.split(h.shape[-1], -1)
    i = torch.sigmoid(i)
    c = (1 - i) * c + i * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def leaky(x: Input, h: State, m: State, W: Matrix, U: Matrix, q: Vector, b: Bias):
    """A cell of one's own: a memory that leaks at a rate of its own and takes in what the gate admits."""
    a = sigmoid(W.a @ x + U.a @ h + b.a)
    m = sigmoid(q) * m + a * tanh(W.n @ x + U.n @ m + b.n)
    return dict(h=a * tanh(m), m=m)


def leaky_step(p, x, h, m):
    H = h.shape[-1]
    (wa, wn), (ua, un) = p["weight_ih"].split(H), p["weight_hh"].split(H)
    ba, bn = p["bias_ih"].split(H) if "bias_ih" in p else (0.0, 0.0)
    a = torch.sigmoid(x @ wa.T + h @ ua.T + ba)
    m = torch.sigmoid(p["q"]) * m + a * torch.tanh(x @ wn.T + m @ un.T + bn)
    return a * torch.tanh(m), m


def looped(layer, step):
    """A stand-in for `layer` that runs `step` in a plain loop over all its layers and directions."""
    def forward(x, hx):
        ends, directions = [], 1 + layer.bidirectional
        for k in range(layer.num_layers):
            outputs = []
            for d in range(directions):
                p = unpack(layer, f"_l{k}" + ("_reverse" if d else ""))
                h, c = (s[k * directions + d] for s in hx)
                ys = [None] * len(x)
                for t in reversed(range(len(x))) if d else range(len(x)):
                    h, c = step(p, x[t], h, c)
                    ys[t] = h
                outputs.append(torch.stack(ys))
                ends.append((h, c))
            x = torch.cat(outputs, -1)
        return x, tuple(torch.stack(s) for s in zip(*ends))

    forward.zero_grad, forward.named_parameters = layer.zero_grad, layer.named_parameters
    return forward


VARIANTS = {"coupled": (gatework.nn.CoupledLSTM, {}, coupled_step)}
VARIANTS |= {f"peephole-{which}": (gatework.nn.PeepholeLSTM, dict(peepholes=which),
                                   lambda *a, which=which: peephole_step(*a, which))
             for which in ("ifo", "i", "f", "o", "if", "io", "fo")}
VARIANTS["own-cell"] = (lambda *a, **k: gatework.nn.Recurrent(leaky, *a, **k), {}, leaky_step)
SHAPES = [(7, 3, 5, 33), (4, 1, 3, 16), (1, 2, 3, 1)]


@pytest.mark.parametrize(("T", "B", "I", "H"), SHAPES, ids=["T7-B3-I5-H33", "T4-B1-I3-H16", "T1-B2-I3-H1"])
@pytest.mark.parametrize("dtype", BOUND, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("variant", VARIANTS)
def test_variant_equals_a_loop_over_its_equations(variant, dtype, T, B, I, H):
    make, options, step = VARIANTS[variant]
    torch.manual_seed(0)
    layer = make(I, H, dtype=dtype, **options)
    x, states = torch.randn(T, B, I, dtype=dtype), [torch.randn(1, B, H, dtype=dtype) for _ in range(2)]
    assert_same(results(layer, x, states), results(looped(layer, step), x, states), BOUND[dtype])


@pytest.mark.parametrize("options", [dict(num_layers=2), dict(bidirectional=True), dict(bias=False),
                                     dict(num_layers=2, bidirectional=True)], ids=str)
@pytest.mark.parametrize("variant", ["coupled", "peephole-ifo", "own-cell"])
def test_variant_with_layers_and_directions_equals_a_loop_over_its_equations(variant, options):
    make, settings, step = VARIANTS[variant]
    torch.manual_seed(0)
    layer = make(4, 6, dtype=torch.float64, **settings, **options)
    count = layer.num_layers * (1 + layer.bidirectional)
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    states = [torch.randn(count, 3, 6, dtype=torch.float64) for _ in range(2)]
    assert_same(results(layer, x, states), results(looped(layer, step), x, states), BOUND[torch.float64])


def masked(x: Input, m: Input[gatework.compiler.H], k: Constant, h: State, W: Matrix, U: Matrix):
    return dict(h=m * tanh(W @ x + U @ h + k) + (1.0 - m) * h)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("unbatched", [False, True])
def test_further_inputs_are_laid_out_like_the_input(batch_first, unbatched):
    torch.manual_seed(0)
    layer = gatework.nn.Recurrent(masked, 4, 6, dtype=torch.float64, batch_first=batch_first)
    x, m, k = (torch.randn(*shape, dtype=torch.float64) for shape in ((5, 3, 4), (5, 3, 6), (3, 6)))
    h, outputs = torch.zeros(3, 6, dtype=torch.float64), []
    for t in range(5):
        h = m[t] * torch.tanh(x[t] @ layer.weight_ih_l0.T + h @ layer.weight_hh_l0.T + k) + (1 - m[t]) * h
        outputs.append(h)
    expected = torch.stack(outputs)
    if unbatched:
        x, m, k, expected = x[:, 1], m[:, 1], k[1], expected[:, 1]
    elif batch_first:
        x, m, expected = x.transpose(0, 1), m.transpose(0, 1), expected.transpose(0, 1)
    output, _ = layer(x, m=m, k=k)
    assert torch.allclose(output, expected, rtol=0, atol=1e-12)  # float64, the same sums


# Only what is asked for is computed.

@pytest.mark.parametrize("wanted", ["input", "h", "c", "weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"])
def test_a_single_gradient_is_the_same_as_among_all_and_the_others_stay_empty(wanted):
    ours, _, x, (h, c) = example("LSTM", (5, 3, 4, 6), {}, torch.float64)
    everything = results(ours, x, [h, c])
    ours.zero_grad()
    ours.requires_grad_(False)
    leaves = {"input": x, "h": h, "c": c} | dict(ours.named_parameters())
    leaves[wanted].requires_grad_()
    output, last = ours(x, (h, c))
    generator = torch.Generator().manual_seed(3)
    sum((y * torch.randn(y.shape, dtype=y.dtype, generator=generator)).sum() for y in [output, *last]).backward()
    names = {"input": "gradient of input", "h": "gradient of first state 0", "c": "gradient of first state 1"}
    expected = everything[names.get(wanted, f"gradient of {wanted}")]
    assert torch.allclose(leaves[wanted].grad, expected, rtol=0, atol=1e-12)  # float64: BLAS may add in another order
    assert [k for k, v in leaves.items() if v.grad is not None] == [wanted]


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("part", ["output", "last state"])
def test_gradients_from_the_output_alone_or_the_last_state_alone_equal_torch_nn(name, part):
    ours, theirs, x, _ = example(name, (5, 3, 4, 6), dict(num_layers=2), torch.float64)
    for layer in (ours, theirs):
        output, last = layer(x)
        state = last[-1] if isinstance(last, tuple) else last
        ((output if part == "output" else state) ** 2).sum().backward()
    expected = {k: p.grad for k, p in theirs.named_parameters()}
    assert_same({k: p.grad for k, p in ours.named_parameters()}, expected, BOUND[torch.float64])


def test_no_gradient_is_recorded_when_nothing_asks_for_one():
    layer = gatework.nn.LSTM(4, 6).requires_grad_(False)
    output, (h, c) = layer(torch.randn(5, 3, 4))
    assert not any(v.requires_grad for v in (output, h, c))
