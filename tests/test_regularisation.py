"""Layers that drop and keep at random while they train, against literal loops with the masks drawn by hand."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from gatework import autograd, cells, nn
from gatework.compiler import Input, Matrix, State, tanh
from gatework.compiler.text import from_json, to_json

T, B, I, H = 5, 3, 4, 6
DOUBLE = torch.float64

OPTIONS = {
    "zoneout": dict(zoneout=0.3),
    "zoneout of one state": dict(zoneout={"h": 0.6}),
    "recurrent dropout": dict(recurrent_dropout=0.4),
    "variational dropout": dict(variational_dropout=0.3),
    "variational dropout of the input": dict(variational_dropout={"x": 0.5}),
    "variational dropout of the state": dict(variational_dropout={"h": 0.5}),
    "weight dropout": dict(weight_dropout=0.4),
    "all": dict(zoneout=0.2, recurrent_dropout=0.3, variational_dropout=0.25, weight_dropout=0.5),
}
CANDIDATE = {nn.LSTM: "g", nn.GRU: "n"}


def longest_first(lengths: list[int]) -> list[int]:
    return sorted(range(B), key=lambda row: -lengths[row])


class Literal:
    """LSTM and GRU in training: masks drawn in the order that `Regularisation` tells, steps written from the papers."""

    def __init__(self, layer):
        self.layer = layer
        spread = {"zoneout": layer.cell.states, "recurrent_dropout": [CANDIDATE[type(layer)]],
                  "variational_dropout": ["x", "h"]}
        self.rates = {}
        for option, names in spread.items():
            given = getattr(layer, option)
            self.rates[option] = given if isinstance(given, dict) else dict.fromkeys(names, given)

    def mask(self, option: str, name: str, *shape: int) -> torch.Tensor:
        """Not drawn at all for the rate 0. Dropout: 0 or 1 / (1 - rate); zoneout: 1 where the old state stays."""
        rate = self.rates[option].get(name, 0.0)
        keep = 1.0 if option == "zoneout" else 1.0 - rate
        if not rate:
            return torch.full(shape, 1.0 - (option == "zoneout"), dtype=DOUBLE)
        return (torch.rand(shape) < (rate if option == "zoneout" else keep)).to(DOUBLE) / keep

    def per_row(self, name: str, size: int, lengths) -> torch.Tensor:
        drawn = self.mask("variational_dropout", name, B, size)
        return drawn[[longest_first(lengths).index(row) for row in range(B)]] if lengths else drawn

    def per_step(self, option: str, name: str, lengths) -> torch.Tensor:
        if lengths is None:
            return self.mask(option, name, T, B, H)
        drawn = iter(self.mask(option, name, sum(lengths), H))
        mask = torch.zeros(T, B, H, dtype=DOUBLE)
        for t in range(T):
            for row in longest_first(lengths):
                if t < lengths[row]:
                    mask[t, row] = next(drawn)
        return mask

    def __call__(self, x, lengths=None, resets=None):
        """The output [T, B, directions * H] and all last states, one list per direction of each layer."""
        layer, ends = self.layer, []
        directions = 1 + layer.bidirectional
        for k in range(layer.num_layers):
            x = x * self.per_row("x", x.shape[2], lengths)
            made = []
            for direction in range(directions):
                W, U, b, d = layer.all_weights[k * directions + direction]
                candidate = self.per_step("recurrent_dropout", CANDIDATE[type(layer)], lengths)
                unit = self.per_row("h", H, lengths)
                keep = {s: self.per_step("zoneout", s, lengths) for s in layer.cell.states}
                if layer.weight_dropout:
                    stays = 1.0 - layer.weight_dropout
                    U = U * (torch.rand(U.shape) < stays) / stays
                made.append(self.direction(x, (W, U, b, d), candidate, unit, keep, direction == 1, resets, lengths))
                ends.append(made[-1][1])
            x = torch.cat([output for output, _ in made], 2)
        return x, ends

    def direction(self, x, weights, candidate, unit, keep, reverse, resets, lengths):
        zero = {s: torch.zeros(H, dtype=DOUBLE) for s in keep}
        rows, last = [], []
        for row in range(B):
            steps = range(lengths[row] if lengths else T)
            state, output = dict(zero), [torch.zeros(H, dtype=DOUBLE)] * T
            for t in reversed(steps) if reverse else steps:
                if resets is not None and not reverse and resets[t, row]:
                    state = dict(zero)
                new = self.step(x[t, row], state, weights, candidate[t, row], unit[row])
                state = {s: keep[s][t, row] * state[s] + (1.0 - keep[s][t, row]) * new[s] for s in state}
                output[t] = state["h"]
                if resets is not None and reverse and resets[t, row] and t > 0:
                    state = dict(zero)  # the sequence is cut in front of t
            rows.append(torch.stack(output))
            last.append(state)
        return torch.stack(rows, 1), {s: torch.stack([state[s] for state in last]) for s in keep}

    def step(self, x, state, weights, candidate, unit):
        W, U, b, d = weights
        ax, ah = W @ x + b, U @ (unit * state["h"]) + d
        if type(self.layer) is nn.LSTM:
            i, f, g, o = (ax + ah).chunk(4)
            c = torch.sigmoid(f) * state["c"] + torch.sigmoid(i) * candidate * torch.tanh(g)
            return {"h": torch.sigmoid(o) * torch.tanh(c), "c": c}
        (rx, zx, nx), (rh, zh, nh) = ax.chunk(3), ah.chunk(3)
        z = torch.sigmoid(zx + zh)
        n = torch.tanh(nx + torch.sigmoid(rx + rh) * nh)
        return {"h": (1.0 - z) * candidate * n + z * state["h"]}


def results(run, seed: int, leaves):
    """The outputs and, for upstream gradients drawn once and for all, the gradients of all leaves."""
    torch.manual_seed(seed)
    made = run()
    drawn = torch.Generator().manual_seed(9)
    upstream = [torch.randn(m.shape, dtype=m.dtype, generator=drawn) for m in made]
    return [m.detach() for m in made], torch.autograd.grad(made, leaves, upstream, materialize_grads=True)


def as_list(output, last) -> list[torch.Tensor]:
    return [output, *([last] if isinstance(last, torch.Tensor) else last)]


def assert_equal(found, expected) -> None:
    for group, wanted in zip(found, expected, strict=True):
        for a, b in zip(group, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)  # float64: sums of some dozens in another order


@pytest.mark.parametrize("call", [{}, {"lengths": [4, 5, 2]}, {"resets": True}], ids=["dense", "lengths", "resets"])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("make", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_training_equals_a_literal_loop_with_the_same_masks(make, options, backend, call):
    torch.manual_seed(1)
    layer = make(I, H, 2, bidirectional=True, dtype=DOUBLE, backend=backend, **options)
    x = torch.randn(T, B, I, dtype=DOUBLE, requires_grad=True)
    if call.get("resets"):
        call = {"resets": torch.rand(T, B) < 0.4}

    def literal():
        output, ends = Literal(layer)(x, **call)
        return [output, *(torch.stack([end[s] for end in ends]) for s in layer.cell.states)]

    leaves = [x, *layer.parameters()]
    found = results(lambda: as_list(*layer(x, **call)), 7, leaves)
    assert_equal(found, results(literal, 7, leaves))
    again = results(lambda: as_list(*layer(x, **call)), 8, leaves)
    assert not torch.equal(found[0][0], again[0][0])  # another seed, other masks


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_evaluation_takes_the_mean_of_zoneout_and_drops_nothing(backend):
    torch.manual_seed(2)
    options = OPTIONS["all"] | dict(zoneout={"c": 0.25})
    layer = nn.LSTM(I, H, dtype=DOUBLE, backend=backend, **options).eval()
    x, (W, U, b, d) = torch.randn(T, B, I, dtype=DOUBLE), layer.all_weights[0]
    h = c = torch.zeros(B, H, dtype=DOUBLE)
    output = []
    for t in range(T):
        i, f, g, o = (x[t] @ W.T + b + h @ U.T + d).chunk(4, 1)
        new = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h, c = torch.sigmoid(o) * torch.tanh(new), 0.25 * c + 0.75 * new
        output.append(h)
    state = torch.get_rng_state()
    found = layer(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert_equal([as_list(found[0], found[1])], [[torch.stack(output), h[None], c[None]]])
    steps, last = [], None
    for t in range(T):
        y, last = layer.step(x[t], last)
        steps.append(y)
    torch.testing.assert_close(torch.stack(steps), found[0], rtol=1e-12, atol=1e-12)  # the same kernels, float64


def test_the_evaluation_cell_is_what_eval_runs_and_can_be_saved():
    layer = nn.GRU(I, H, zoneout=0.5, recurrent_dropout=0.5).eval()
    x = torch.randn(T, B, I)
    cell = from_json(to_json(layer.evaluation_cell))
    (output,), _ = autograd.scan(cell, [x], [torch.zeros(B, H)], layer.all_weights[0])
    assert torch.equal(output, layer(x)[0])
    assert nn.GRU(I, H, recurrent_dropout=0.5).evaluation_cell is nn.GRU(I, H).cell


@pytest.mark.parametrize("options", [dict(zoneout=0.1), OPTIONS["all"] | dict(recurrent_dropout=0.0)],
                         ids=["zoneout", "more"])
@pytest.mark.parametrize("name", cells.__all__)
def test_every_cell_trains_in_the_kernels_as_on_the_reference(name, options):
    sizes = {"slstm": {"D": 3}, "block_gru": {"D": 3}, "ea_lstm": {"S": 2}}.get(name)
    if name in ("indrnn", "min_gru", "min_lstm"):
        options = options | dict(weight_dropout=0.0)  # no matrix multiplies their state
    layers = [nn.Recurrent(getattr(cells, name), I, H, proj_size=5 if name == "projected_lstm" else 0, sizes=sizes,
                           dtype=DOUBLE, backend=backend, **options) for backend in ("cpu", "reference")]
    layers[1].load_state_dict(layers[0].state_dict())
    torch.manual_seed(3)
    x = torch.randn(T, B, I, dtype=DOUBLE, requires_grad=True)
    further = {"ct_rnn": {"dt": torch.rand(T, B, 1, dtype=DOUBLE)}, "ea_lstm": {"s": torch.randn(B, 2, dtype=DOUBLE)}}

    def trained(layer):
        return results(lambda: as_list(*layer(x, **further.get(name, {}))), 4, [x, *layer.parameters()])

    fused, reference = map(trained, layers)
    assert_equal(fused, reference)
    assert all(bool(g.any()) for g in fused[1][:2])


@pytest.mark.parametrize("layout", ["dense", "lengths", "resets"])
def test_gradients_equal_finite_differences_with_everything_on(layout):
    torch.manual_seed(5)
    layer = nn.PeepholeLSTM(2, 3, 2, bidirectional=True, dtype=DOUBLE, initial_state=True, **OPTIONS["all"])
    call = {"lengths": dict(lengths=[2, 3]), "resets": dict(resets=torch.rand(3, 2) < 0.5)}.get(layout, {})

    def run(x, *weights):
        torch.manual_seed(6)
        return torch.func.functional_call(layer, dict(zip(names, weights)), (x,), call)[0]

    names, weights = zip(*layer.named_parameters())
    assert torch.autograd.gradcheck(run, (torch.randn(3, 2, 2, dtype=DOUBLE, requires_grad=True), *weights),
                                    fast_mode=True)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("call", [{}, {"lengths": [7, 2, 5]}], ids=["dense", "lengths"])
def test_stretches_that_are_computed_again_see_the_same_masks(call, backend):
    torch.manual_seed(7)
    whole = nn.LSTM(I, H, 2, dtype=DOUBLE, backend=backend, **OPTIONS["all"])
    pieces = nn.LSTM(I, H, 2, dtype=DOUBLE, backend=backend, checkpoint_every=2, **OPTIONS["all"])
    pieces.load_state_dict(whole.state_dict())
    x = torch.randn(7, B, I, dtype=DOUBLE, requires_grad=True)
    expected = results(lambda: as_list(*whole(x, **call)), 8, [x, *whole.parameters()])
    assert_equal(results(lambda: as_list(*pieces(x, **call)), 8, [x, *pieces.parameters()]), expected)
    assert_equal(results(lambda: as_list(*checkpoint(lambda: whole(x, **call), use_reentrant=False)), 8,
                         [x, *whole.parameters()]), expected)


def test_one_mask_for_all_steps_of_a_row_and_for_both_directions_drops_the_same_features():
    """Seen from outside: with an identity for W and no recurrence, what is dropped comes out as 0 in all steps."""
    layer = nn.RNN(H, H, bidirectional=True, bias=False, nonlinearity="relu", variational_dropout={"x": 0.5})
    with torch.no_grad():
        for W, U in layer.all_weights:
            W.copy_(torch.eye(H))
            U.zero_()
    for lengths in (None, [3, 9, 6]):
        output, _ = layer(torch.ones(9, B, H), lengths=lengths)
        forward, reverse = output.chunk(2, 2)
        assert torch.equal(forward, reverse)
        assert set(output.unique().tolist()) == {0.0, 2.0}
        for row, steps in enumerate(lengths or [9] * B):
            assert torch.equal(forward[:steps, row], forward[:1, row].expand(steps, H))


def test_graphs_run_by_the_functions_of_torch_draw_what_eager_calls_draw_and_have_no_break():
    torch.compiler.reset()  # a function may be compiled so many times only, and other tests have compiled this one
    layer = nn.LSTM(I, H, 2, **OPTIONS["all"])
    x = torch.randn(T, B, I)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for train in (True, False):
        layer.train(train)
        for call in ({}, {"lengths": torch.tensor([5, 5, 5])}, {"resets": torch.rand(T, B) < 0.3}):
            torch.manual_seed(11)
            expected, _ = layer(x, **call)
            torch.manual_seed(11)
            assert torch.equal(compiled(x, **call)[0], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_small_rate_is_kept_in_any_precision(dtype):
    # Of numbers drawn in bfloat16 one in 256 is 0, and below any rate.
    torch.manual_seed(0)
    layer = nn.GRU(4, 500, zoneout=0.001)
    mask, = layer._random.masks(torch.zeros(100, 20, 4, dtype=dtype), 20, {"H": 500})
    assert mask.dtype == dtype
    # A million draws: five standard deviations of their mean are 1.6e-4.
    assert abs(mask.double().mean() - 0.001) < 1.6e-4


def test_recorded_values_are_the_dropped_ones():
    layer = nn.GRU(I, H, recurrent_dropout=0.5)
    _, _, record = layer(torch.randn(T, B, I), record=True)
    zeros = record["n_l0"] == 0.0
    assert 0 < zeros.sum() < zeros.numel()
    assert not (record["z_l0"] == 0.0).any()


@pytest.mark.parametrize("again", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))],
                         ids=["deepcopy", "pickle"])
def test_copies_and_pickled_layers_go_on_as_the_original(again):
    layer = nn.LSTM(I, H, forget_bias=1.0, **OPTIONS["all"])
    copied, x = again(layer), torch.randn(T, B, I)
    for train in (True, False):
        outputs = []
        for each in (layer.train(train), copied.train(train)):
            torch.manual_seed(12)
            outputs.append(each(x)[0])
        assert torch.equal(*outputs)
    assert repr(copied) == repr(layer)


def test_no_option_adds_to_the_state_dict_and_rates_of_0_run_the_same_cell():
    theirs = torch.nn.LSTM(I, H, 2)
    layer = nn.LSTM(I, H, 2, init="orthogonal", chrono_steps=9, **OPTIONS["all"])
    layer.load_state_dict(theirs.state_dict(), strict=True)
    plain = nn.LSTM(I, H, zoneout={"h": 0.0}, recurrent_dropout=0, variational_dropout=0.0, weight_dropout=0.0)
    state = torch.get_rng_state()
    plain(torch.zeros(T, B, I))
    assert torch.equal(torch.get_rng_state(), state)
    assert plain.evaluation_cell is plain.cell


def test_a_layer_shows_the_options_that_differ_from_the_usual():
    layer = nn.Recurrent(cells.recurrent_highway, I, H, zoneout=0.1, recurrent_dropout={"n2": 0.5}, init="glorot",
                         forget_bias=3)
    assert repr(layer) == ("Recurrent(recurrent_highway, 4, 6, zoneout=0.1, recurrent_dropout={'n2': 0.5}, "
                           "init='glorot', forget_bias=3)")


@pytest.mark.parametrize(("name", "options", "message"), [
    ("lstm", dict(zoneout=1.0), "zoneout is a probability, at least 0 and below 1; 1.0 was given"),
    ("lstm", dict(zoneout={"h": -0.1}), "zoneout of h is a probability, at least 0 and below 1; -0.1 was given"),
    ("lstm", dict(zoneout=True), "zoneout is a probability, .*; True was given"),
    ("lstm", dict(zoneout=float("nan")), "zoneout is a probability, .*; nan was given"),
    ("lstm", dict(zoneout={"i": 0.1}), "zoneout names 'i'; the states of lstm are h, c"),
    ("lstm", dict(recurrent_dropout={"q": 0.1}), "names 'q'; the recorded values of lstm are i, f, g, o"),
    ("slstm", dict(recurrent_dropout=0.1), "slstm records i, f, z, o. Name what is meant: recurrent_dropout={name"),
    ("elman", dict(recurrent_dropout=0.1), "elman records nothing"),
    ("lstm", dict(variational_dropout={"c": 0.1}),
     "variational_dropout names 'c'; the input and states that a matrix multiplies of lstm are x, h"),
    ("lstm", dict(weight_dropout=1.5), "weight_dropout is a probability, at least 0 and below 1; 1.5 was given"),
    ("lstm", dict(weight_dropout="0.5"), "weight_dropout is a probability, .*; '0.5' was given"),
    ("indrnn", dict(weight_dropout=0.1), "matrices that multiply a state; indrnn has none. Leave it at 0"),
])
def test_what_makes_no_sense_is_refused(name, options, message):
    sizes = {"D": 3} if name == "slstm" else None
    with pytest.raises(ValueError, match=message):
        nn.Recurrent(getattr(cells, name), I, H, sizes=sizes, **options)


def test_dropout_of_a_value_that_reaches_no_state_is_refused():
    def watched(x: Input, h: State, W: Matrix):
        return dict(h=tanh(W @ x + h)), dict(g=h * h)

    with pytest.raises(ValueError, match="recurrent_dropout of g would change nothing: no next state of watched"):
        nn.Recurrent(watched, I, H, recurrent_dropout=0.1)
