"""Saved layers without torch: their steps against those in torch, states in the caller's hands, what is refused."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from my_cells import masked

import gatework.runtime
from gatework import cells, nn


def layer_of(name: str, dtype=torch.float32, **options) -> nn.Recurrent:
    torch.manual_seed(0)
    sizes = {"S": 2, "D": 4}
    cell = getattr(cells, name)
    sizes = {k: v for k, v in sizes.items() if k in gatework.trace(cell).sizes}
    return nn.Recurrent(cell, 5, 12, proj_size=7 * (name == "projected_lstm"), sizes=sizes, dtype=dtype, **options)


def further(layer, T, B, dtype):
    """Positive further inputs, as tensors [T, B, size] or [B, size]."""
    found = {}
    for name, e in list(layer.cell.inputs.items())[1:]:
        size = layer.sizes[e.dims[0]] if e.dims else 1
        found[name] = torch.rand(*((B,) if e.op == "constant" else (T, B)), size, dtype=dtype)
    return found


def at_step(inputs, cell, t):
    return {n: a if cell.inputs[n].op == "constant" else a[t] for n, a in inputs.items()}


def tuple_of(states):
    return (states,) if isinstance(states, torch.Tensor) else states


def saved_cell(name: str, folder, steps: int) -> tuple:
    """Two layers of a cell, saved; and for three streams x of so many steps and the further inputs."""
    layer = layer_of(name, num_layers=2).eval()
    nn.save(layer, folder)
    inputs = {n: a.numpy() for n, a in further(layer, steps, 3, torch.float32).items()}
    return layer, torch.randn(steps, 3, 5).numpy(), inputs


@pytest.fixture
def saved(tmp_path):
    """An LSTM of two layers, and the model read back."""
    torch.manual_seed(0)
    layer = nn.LSTM(5, 12, num_layers=2)
    nn.save(layer, tmp_path)
    return layer, gatework.runtime.load(tmp_path)


# Sums of some 30 products in another order, carried over a few steps: some units in the last place of values of size 1.
BOUND = {torch.float32: 2e-6, torch.float64: 1e-14}


@pytest.mark.parametrize("hidden", [33, 150, 330])  # blocks one by one, four at once, and some left over
@pytest.mark.parametrize("streams", [1, 2, 9])
def test_steps_that_go_through_the_weights_from_either_end_have_the_same_bits(hidden, streams, tmp_path):
    torch.manual_seed(0)
    layer = nn.LSTM(5, hidden)
    nn.save(layer, tmp_path)
    model, x = gatework.runtime.load(tmp_path), torch.randn(streams, 5)
    state = {n: np.float32(a) for n, a in zip(("h_l0", "c_l0"), torch.randn(2, streams, hidden).tanh().numpy())}
    made = [model.step(x.numpy(), state) for _ in range(3)]  # each goes the other way than the one before
    for y, after in made[1:]:
        assert np.array_equal(y, made[0][0])
        assert np.array_equal(after["c_l0"], made[0][1]["c_l0"])
    expected = layer(x[None], tuple(torch.tensor(s)[None] for s in state.values()))[0][0]
    assert np.abs(made[0][0] - expected.detach().numpy()).max() < BOUND[torch.float32]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", cells.__all__)
def test_runtime_steps_are_the_layers_steps_and_those_of_the_whole_sequence(name, dtype, tmp_path):
    layer = layer_of(name, dtype, num_layers=2).eval()
    nn.save(layer, tmp_path)
    model = gatework.runtime.load(tmp_path)
    T, B = 4, 3
    x, inputs = torch.randn(T, B, 5, dtype=dtype), further(layer, T, B, dtype)
    with torch.no_grad():
        whole, last = layer(x, **inputs)
    state, theirs = model.initial_state(B), None
    for t in range(T):
        now = at_step(inputs, layer.cell, t)
        y, state = model.step(x[t].numpy(), state, **{n: a.numpy() for n, a in now.items()})
        with torch.no_grad():
            wanted, theirs = layer.step(x[t], theirs, **now)
        for other in (wanted, whole[t]):
            np.testing.assert_allclose(y, other.numpy(), rtol=0, atol=BOUND[dtype])
    assert list(state) == [f"{s}_l{k}" for k in range(2) for s in layer.cell.states]
    for s, value in zip(layer.cell.states, tuple_of(last)):
        for k in range(2):
            np.testing.assert_allclose(state[f"{s}_l{k}"], value[k].numpy(), rtol=BOUND[dtype], atol=BOUND[dtype])


def test_chunks_and_steps_and_single_streams_give_the_same_bits(saved):
    model = saved[1]
    x = np.random.default_rng(0).standard_normal((150, 3, 5)).astype(np.float32)  # more than two calls' worth of steps
    whole, last = model.run(x, model.initial_state(3))
    state, pieces = model.initial_state(3), []
    for begin, end in ((0, 1), (1, 70), (70, 150)):
        y, state = model.run(x[begin:end], state)
        pieces.append(y)
    assert np.array_equal(np.concatenate(pieces), whole)
    assert all(np.array_equal(state[n], last[n]) for n in last)
    state = model.initial_state()
    for t in range(150):
        y, state = model.step(x[t, 1], state)
        assert y.shape == (12,)
        assert np.array_equal(y, whole[t, 1])
    assert all(np.array_equal(state[n][0], last[n][1]) for n in last)
    assert np.array_equal(model.run(x[:, 1], model.initial_state())[0], whole[:, 1])


def test_run_takes_further_inputs_of_every_step_and_constants(tmp_path):
    for name in ("ea_lstm", "ct_rnn"):
        layer = layer_of(name)
        nn.save(layer, tmp_path / name)
        model = gatework.runtime.load(tmp_path / name)
        x, inputs = torch.randn(70, 2, 5), further(layer, 70, 2, torch.float32)
        y, _ = model.run(x.numpy(), model.initial_state(2), **{n: a.numpy() for n, a in inputs.items()})
        np.testing.assert_allclose(y, layer(x, **inputs)[0].detach().numpy(), rtol=0, atol=2e-6)  # as above


def test_learned_first_states_begin_a_stream_and_begin_it_anew(tmp_path):
    layer = layer_of("lstm", num_layers=2, initial_state=True)
    for name, p in layer.named_parameters():
        if name.startswith("initial"):
            torch.nn.init.normal_(p)
    nn.save(layer, tmp_path)
    model = gatework.runtime.load(tmp_path)
    x = torch.randn(6, 2, 5)
    y, state = model.run(x.numpy(), model.initial_state(2))
    np.testing.assert_allclose(y, layer(x)[0].detach().numpy(), rtol=0, atol=2e-6)
    begun = model.initial_state(2)
    for chosen in ([1], np.array([False, True]), -1):
        anew = state.reset(chosen)
        for name in state:
            assert np.array_equal(anew[name], np.stack([state[name][0], begun[name][1]]))
    assert all(np.array_equal(state.reset([])[n], state[n]) for n in state)


def test_a_regularised_layer_runs_as_in_evaluation_and_is_read_back_for_training(tmp_path):
    layer = layer_of("lstm", num_layers=2, dropout=0.5, zoneout={"h": 0.25, "c": 0.5}, recurrent_dropout=0.5,
                     weight_dropout=0.5, init="orthogonal", forget_bias=1.0, checkpoint_every="auto")
    nn.save(layer, tmp_path)
    model, again = gatework.runtime.load(tmp_path), nn.load(tmp_path)
    x = torch.randn(6, 2, 5)
    with torch.no_grad():
        wanted = layer.eval()(x)[0]
        assert torch.equal(again(x)[0], wanted)
        assert not torch.equal(again.train()(x)[0], wanted)
    np.testing.assert_allclose(model.run(x.numpy(), model.initial_state(2))[0], wanted.numpy(), rtol=0, atol=2e-6)
    assert repr(again) == repr(layer)
    assert all(p.requires_grad for p in again.parameters())


@pytest.mark.parametrize("make", [
    lambda: nn.LSTM(5, 12, 2, bidirectional=True, batch_first=True, proj_size=4, dtype=torch.float64),
    lambda: nn.RNN(5, 12, nonlinearity="relu", bias=False), lambda: layer_of("slstm", dtype=torch.bfloat16),
    lambda: nn.Recurrent(masked, 5, 12, backend="reference"), lambda: nn.GRU(5, 12, 2, dropout=0.5),
    lambda: nn.LayerNormLSTM(5, 12, initial_state=True, chrono_steps=50)])
def test_a_layer_read_back_has_the_same_weights_and_settings(make, tmp_path):
    layer = make()
    nn.save(layer, tmp_path)
    again = nn.load(tmp_path)
    assert again.extra_repr() == layer.extra_repr()
    assert again.cell.fingerprint == layer.cell.fingerprint
    assert not again.training
    for (name, a), (other, b) in zip(layer.state_dict().items(), again.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(a, b)


def test_a_step_changes_neither_its_input_nor_the_state_it_is_given_and_its_results_are_kept(saved):
    model = saved[1]
    x, state = np.ones(5, np.float32), model.initial_state()
    y, first = model.step(x, state)
    kept = y.copy(), dict(first.copy())
    assert all((state[n] == 0).all() for n in state)
    again, second = model.step(x, first)
    assert np.array_equal(y, kept[0])
    assert all(np.array_equal(first[n], kept[1][n]) for n in first)
    assert not np.array_equal(again, y)
    y[:] = 7
    assert np.array_equal(model.step(x, first)[0], again)


def test_any_mapping_of_arrays_is_a_state_also_one_that_was_edited_or_saved(saved, tmp_path):
    model = saved[1]
    x = np.ones((2, 5), np.float32)
    _, state = model.step(x, model.initial_state(2))
    np.savez(tmp_path / "state.npz", **state)
    wanted = model.step(x, state)[0]
    with np.load(tmp_path / "state.npz") as stored:
        assert np.array_equal(model.step(x, stored)[0], wanted)
    rows = {n: a[::-1] for n, a in state.items()}  # no contiguous arrays
    assert np.array_equal(model.step(x, rows)[0], wanted[::-1])
    state["h_l1"][0] = 5
    assert not np.array_equal(model.step(x, state)[0][0], wanted[0])
    assert np.array_equal(model.step(x, state)[0][1], wanted[1])


@pytest.mark.parametrize("where", ["x", "h_l0", "c_l1"])
def test_what_is_nan_stays_nan_in_its_own_stream_and_layers_above(where, saved):
    model = saved[1]
    x, state = np.ones((19, 5), np.float32), model.initial_state(19)
    clean, _ = model.step(x, state)
    (x if where == "x" else state[where])[7] = np.nan
    y, state = model.step(x, state)
    assert np.isnan(y[7]).all()
    others = np.arange(19) != 7
    assert np.array_equal(y[others], clean[others])
    assert not any(np.isnan(a[others]).any() for a in state.values())
    assert np.isnan(state["c_l1"][7]).all()
    assert np.isnan(model.step(np.ones((19, 5), np.float32), state)[0][7]).all()


def test_threads_may_use_one_model_at_once(saved):
    model = saved[1]
    x = np.random.default_rng(0).standard_normal((4, 300, 5)).astype(np.float32)

    def stream(k):
        state, ys = model.initial_state(), []
        for t in range(300):
            y, state = model.step(x[k, t], state)
            ys.append(y)
        return np.stack(ys)

    with ThreadPoolExecutor(4) as pool:
        at_once = list(pool.map(stream, range(4)))
    assert all(np.array_equal(a, stream(k)) for k, a in enumerate(at_once))


@pytest.mark.parametrize("again", [copy.deepcopy, pickle.dumps])
def test_a_model_that_is_copied_or_pickled_says_to_load_it_there(saved, again):
    with pytest.raises(TypeError, match=r"machine code.*call gatework\.runtime\.load with its folder"):
        again(saved[1])
    state = saved[1].initial_state(2)
    assert pickle.loads(pickle.dumps(state)).keys() == state.keys()  # the state of a stream may travel


def test_any_number_of_streams_may_come_and_go(saved):
    model = saved[1]
    x = np.random.default_rng(0).standard_normal((40, 5)).astype(np.float32)
    wanted, _ = model.step(x, model.initial_state(40))
    for streams in (*range(1, 41), 1, 40):
        assert np.array_equal(model.step(x[:streams], model.initial_state(streams))[0], wanted[:streams])


X, F32 = np.ones((2, 5), np.float32), np.float32
REFUSED = {
    "a list": (lambda m, s: m.step([1.0] * 5, s), TypeError, "x must be a numpy array of float32; list was given"),
    "float64": (lambda m, s: m.step(X.astype(float), s), TypeError, "x has dtype float64, .* x.astype"),
    "features": (lambda m, s: m.step(np.ones((2, 4), F32), s), ValueError, r"\(2, 4\); needed is \(2, 5\)"),
    "streams": (lambda m, s: m.step(np.ones((3, 5), F32), s), ValueError, r"\(3, 5\); .* the state has 2 streams"),
    "one of two": (lambda m, s: m.step(np.ones(5, F32), s), ValueError, "the state has 2 streams"),
    "a sequence": (lambda m, s: m.step(np.ones((4, 2, 5), F32), s), ValueError, r"needed is \(2, 5\)"),
    "further": (lambda m, s: m.step(X, s, dt=X), TypeError, "takes the further inputs none, by name; given were dt"),
    "no state": (lambda m, s: m.step(X, None), TypeError, "initial_state.* NoneType was given"),
    "missing": (lambda m, s: m.step(X, {"h_l0": s["h_l0"]}), ValueError, "missing are c_l0, h_l1, c_l1"),
    "unknown": (lambda m, s: m.step(X, {**s, "z": X}), ValueError, "unknown are z"),
    "state's dtype": (lambda m, s: m.step(X, {**s, "c_l1": np.zeros((2, 12))}), TypeError,
                      "state c_l1 has dtype float64"),
    "state's shape": (lambda m, s: m.step(X, {**s, "c_l1": np.zeros((3, 12), F32)}), ValueError,
                      r"state c_l1 has shape \(3, 12\); needed is \(2, 12\)"),
    "state's axes": (lambda m, s: m.step(X, {n: a[0] for n, a in s.items()}), ValueError, r"needed is \(1, 12\)"),
    "no streams": (lambda m, s: m.initial_state(0), ValueError, "at least 1; 0 was given"),
    "half a stream": (lambda m, s: m.initial_state(1.5), ValueError, "1.5 was given"),
    "no steps": (lambda m, s: m.run(np.ones((0, 2, 5), F32), s), ValueError, r"\(0, 2, 5\)"),
    "one step to run": (lambda m, s: m.run(X, s), ValueError, r"x has shape \(2, 5\)"),
    "reset of none": (lambda m, s: s.reset([2]), IndexError, "2 is out of bounds"),
    "reset by marks": (lambda m, s: s.reset(np.array([True])), ValueError, r"each of the 2 streams; .* \(1,\)"),
}


@pytest.mark.parametrize(("call", "error", "said"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused_by_name(call, error, said, saved):
    with pytest.raises(error, match=said):
        call(saved[1], saved[1].initial_state(2))


def test_further_inputs_are_checked_by_name(tmp_path):
    nn.save(layer_of("ct_rnn"), tmp_path)
    model = gatework.runtime.load(tmp_path)
    x, state = np.ones((2, 5), np.float32), model.initial_state(2)
    with pytest.raises(TypeError, match="takes the further inputs dt, by name; given were none"):
        model.step(x, state)
    with pytest.raises(ValueError, match=r"further input dt has shape \(2,\); needed is \(2, 1\)"):
        model.step(x, state, dt=np.ones(2, np.float32))
    with pytest.raises(ValueError, match=r"further input dt has shape \(1, 2, 1\); needed is \(4, 2, 1\)"):
        model.run(np.ones((4, 2, 5), np.float32), state, dt=np.ones((1, 2, 1), np.float32))


ALONE = """
import sys
for name in ("torch", "lightning", "cyclopts", "jax"):
    sys.modules[name] = None
before = set(sys.modules)
import gatework.runtime
added = set(sys.modules) - before
print(len(added), ",".join({name.partition(".")[0] for name in added} - sys.stdlib_module_names))
import numpy
model = gatework.runtime.load(sys.argv[1])
y, state = model.step(numpy.ones(5, numpy.float32), model.initial_state())
print(",".join(map(repr, y.tolist())))
"""


def test_without_torch_it_imports_little_and_takes_the_same_steps(saved, tmp_path):
    # How long the import takes is measured by benchmarks/startup.py: on a busy machine it says more of the machine.
    done = subprocess.run([sys.executable, "-c", ALONE, tmp_path], capture_output=True, text=True, check=True)
    count, libraries, values = done.stdout.split()
    y, _ = saved[1].step(np.ones(5, np.float32), saved[1].initial_state())
    assert [float(v) for v in values.split(",")] == y.tolist()
    assert set(libraries.split(",")) == {"gatework", "numpy", "llvmlite"}
    assert int(count) < 320  # 294 where it takes 0.11 s
