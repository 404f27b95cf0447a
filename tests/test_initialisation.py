"""First values of layers: what each scheme promises, and what the biases of gates do to a state."""

from __future__ import annotations

import math

import pytest
import torch

from gatework import cells, nn

SCHEMES = ["torch", "orthogonal", "glorot"]


def layer_of(name: str, hidden: int = 12, **options) -> nn.Recurrent:
    cell = getattr(cells, name)
    sizes = {"slstm": {"D": 4}, "block_gru": {"D": 4}, "ea_lstm": {"S": 2}}.get(name)
    return nn.Recurrent(cell, 5, hidden, proj_size=3 if name == "projected_lstm" else 0, sizes=sizes, **options)


def rows(layer, parameter: str, gate: str) -> torch.Tensor:
    """One row block of a parameter `weight_ih_l0`, ..., by the letter that the cell gives it."""
    family = layer.cell.families[parameter]
    stacked = layer.all_weights[0][list(layer.cell.families).index(parameter)].detach()
    return stacked.chunk(len(family.gates))[family.gates.index(gate)]


# ---- schemes


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_a_plain_layer_draws_what_torch_draws(name):
    torch.manual_seed(1)
    ours = getattr(nn, name)(5, 7, 2, bidirectional=True).state_dict()
    torch.manual_seed(1)
    theirs = getattr(torch.nn, name)(5, 7, 2, bidirectional=True).state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ["lstm", "gru", "lstm_full_gate_recurrence"])
def test_orthogonal_makes_the_recurrent_matrix_of_every_gate_orthogonal(name, dtype):
    layer = layer_of(name, init="orthogonal", num_layers=2, dtype=dtype)
    # rounding to float64, or each of the 12 products of a sum to the 8 bits of bfloat16
    bound = 1e-12 if dtype == torch.float64 else 0.02
    for weights in layer.all_weights:
        for family, p in zip(layer.cell.families.values(), weights):
            if family.name in "UR":
                for matrix in p.detach().double().chunk(len(family.gates)):
                    assert (matrix @ matrix.T - torch.eye(12)).abs().max() < bound


def test_orthogonal_makes_every_head_orthogonal_and_a_projected_state_keep_its_length():
    stored = layer_of("slstm", init="orthogonal", dtype=torch.float64).all_weights[0][1].detach()
    assert stored.shape == (4 * 12, 4)
    for head in stored.split(4):
        assert (head.T @ head - torch.eye(4)).abs().max() < 1e-12  # float64
    for gate in "ifgo":
        tall = rows(layer_of("projected_lstm", init="orthogonal", dtype=torch.float64), "U", gate)
        assert (tall.T @ tall - torch.eye(3)).abs().max() < 1e-12


@pytest.mark.parametrize("init", ["orthogonal", "glorot"])
def test_glorot_bounds_every_gate_by_its_own_rows_and_columns(init):
    layer = layer_of("lstm", hidden=60, init=init)
    bound = math.sqrt(6 / (5 + 60))
    for gate in "ifgo":
        drawn = rows(layer, "W", gate).abs()
        # 300 draws: all stay below 0.9 of the bound with a probability of 0.9^300 = 2e-14
        assert 0.9 * bound < drawn.max() <= bound
    if init == "glorot":
        assert 0.9 * math.sqrt(6 / 120) < rows(layer, "U", "f").abs().max() <= math.sqrt(6 / 120)
    heads = layer_of("block_gru", hidden=60, init="glorot").all_weights[0][1].abs()
    assert 0.9 * math.sqrt(6 / 8) < heads.max() <= math.sqrt(6 / 8)


@pytest.mark.parametrize("init", SCHEMES)
def test_biases_are_0_unless_torch_draws_them_and_other_vectors_are_drawn(init):
    layer = layer_of("peephole_lstm", init=init)
    assert bool(rows(layer, "b", "g").any()) == (init == "torch")
    assert 0.0 < rows(layer, "p", "f").abs().max() <= 1.0 / math.sqrt(12)


@pytest.mark.parametrize("init", SCHEMES)
@pytest.mark.parametrize("make", [nn.LayerNormLSTM, nn.LayerNormGRU])
def test_gains_begin_at_1(make, init):
    layer = make(5, 12, num_layers=2, init=init)
    gains = [p for n, p in layer.named_parameters() if n.startswith("g")]
    assert len(gains) == 2 * (3 if make is nn.LayerNormLSTM else 2)
    assert all(bool((g == 1.0).all()) for g in gains)


def test_reset_parameters_draws_anew_by_the_same_scheme():
    layer = nn.LSTM(5, 12, init="orthogonal", forget_bias=1.0)
    before = rows(layer, "U", "i").clone()
    layer.reset_parameters()
    after = rows(layer, "U", "i")
    assert not torch.equal(before, after)
    assert (after @ after.T - torch.eye(12)).abs().max() < 1e-5  # float32
    assert bool((layer.bias_ih_l0[12:24] == 1.0).all())


# ---- biases of gates


def test_forget_bias_is_the_sum_of_both_biases_and_changes_nothing_else():
    torch.manual_seed(2)
    plain = nn.LSTM(5, 12, 2, bidirectional=True)
    torch.manual_seed(2)
    layer = nn.LSTM(5, 12, 2, bidirectional=True, forget_bias=1.5)
    for (name, a), b in zip(plain.named_parameters(), layer.parameters()):
        f = torch.zeros(len(a), dtype=torch.bool)
        if name.startswith("bias"):
            f[12:24] = True
            assert bool((b[f] == (1.5 if "ih" in name else 0.0)).all())
        assert torch.equal(a[~f], b[~f])


def test_the_update_gate_of_a_gru_is_what_forget_bias_sets():
    layer = nn.GRU(5, 12, forget_bias=2.0)
    assert bool((rows(layer, "b", "z") + rows(layer, "d", "z") == 2.0).all())


WITHOUT = ["ct_rnn", "elman", "indrnn", "leaky_rnn", "lstm_no_forget_gate"]


@pytest.mark.parametrize("name", [n for n in cells.__all__ if n not in WITHOUT])
def test_a_large_forget_bias_keeps_a_state_of_every_gated_cell_and_a_small_one_forgets_it(name):
    found = {}
    for bias in (20.0, -20.0):
        layer = layer_of(name, init="glorot", forget_bias=bias, dtype=torch.float64)
        with torch.no_grad():
            for family, p in zip(layer.cell.families.values(), layer.all_weights[0]):
                if family.kind != "Bias":
                    p.zero_()  # so that gates are what their bias makes them, and candidates are 0
        first = [torch.full((1, 1, layer.sizes[e.dims[0]]), 0.5, dtype=torch.float64)
                 for e in layer.cell.states.values()]
        further = {"s": torch.zeros(1, 2, dtype=torch.float64)} if name == "ea_lstm" else {}
        _, last = layer(torch.zeros(1, 1, 5, dtype=torch.float64), first, **further)
        last = [last] if isinstance(last, torch.Tensor) else last
        at = list(layer.cell.states).index("c" if "c" in layer.cell.states else "h")
        found[bias] = last[at].abs().max().item()
    # sigmoid(20) is 1 - 2e-9; the gate of a block GRU has a further -1. The gates of a minLSTM are divided by their
    # sum, where the input gate is 1/2.
    assert found[20.0] == pytest.approx(0.5 * (2 / 3 if name == "min_lstm" else 1.0), abs=1e-7)
    assert found[-20.0] < 1e-7


@pytest.mark.parametrize("make", [nn.LSTM, nn.PeepholeLSTM, nn.LayerNormLSTM])
def test_chrono_spreads_the_memory_evenly_up_to_its_steps_and_opposes_the_input_gate(make):
    T, H = 50, 2000
    layer = make(1, H, chrono_steps=T)
    f = rows(layer, "b", "f")
    memory = f.double().exp()
    assert memory.min() >= 1.0 - 1e-6  # float32
    assert memory.max() <= (T - 1) * (1 + 1e-5)
    # U(1, 49): its mean is 25, the mean of 2000 has a standard deviation of 0.31; five of them
    assert abs(memory.mean() - T / 2) < 1.6
    assert torch.equal(rows(layer, "b", "i"), -f)
    if make is nn.LSTM:
        assert not rows(layer, "d", "f").any()
        assert not rows(layer, "d", "i").any()


@pytest.mark.parametrize(("make", "sign"), [(nn.GRU, 1.0), (nn.LayerNormGRU, -1.0)])
def test_chrono_of_a_gru_is_the_update_gate_in_the_direction_that_keeps(make, sign):
    torch.manual_seed(4)
    z = rows(make(5, 200, chrono_steps=10, init="orthogonal"), "b", "z")
    assert bool((sign * z >= 0.0).all())
    assert (sign * z).max() <= math.log(9) + 1e-6
    assert (sign * z).max() > math.log(8)  # of 200 draws; none of them with a probability of (7/8)^200 = 3e-12


@pytest.mark.parametrize(("name", "options", "message"), [
    ("lstm", dict(init="chrono"), "init must be one of 'torch', 'orthogonal', 'glorot'; for chrono initialisation give "
                                  "chrono_steps=; 'chrono' was given"),
    ("lstm", dict(init="he"), "init must be one of .*; 'he' was given"),
    ("lstm", dict(chrono_steps=2), "more than 2, or None; 2 was given"),
    ("lstm", dict(chrono_steps=math.inf), "more than 2, or None; inf was given"),
    ("lstm", dict(chrono_steps="9"), "more than 2, or None; '9' was given"),
    ("lstm", dict(forget_bias=math.nan), "forget_bias is a finite number, or None; nan was given"),
    ("lstm", dict(forget_bias=True), "forget_bias is a finite number, or None; True was given"),
    ("lstm", dict(forget_bias=1, chrono_steps=9), "both set the bias of what keeps a state; give one"),
    ("lstm", dict(forget_bias=1, bias=False), "lstm has the biases none"),
    ("lstm_no_forget_gate", dict(forget_bias=1), "forget_bias needs a gate .* has the biases i, g, o, none of which"),
    ("slstm", dict(chrono_steps=9), r"chrono_steps needs gates that are sigmoid\(... \+ bias\); f of slstm is none"),
    ("min_lstm", dict(chrono_steps=9), "f of min_lstm is none"),
    *((name, dict(chrono_steps=9), f"chrono_steps needs a gate that keeps a state.*{name}") for name in WITHOUT),
])
def test_what_makes_no_sense_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        layer_of(name, **options)
