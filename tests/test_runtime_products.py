"""Steps without torch whose products are of bfloat16: the values of a loop that rounds as they do, and the same bits
however a sequence is cut and whoever is beside it. (On several threads: `test_runtime_threads`.)"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_runtime import at_step, saved_cell

from gatework import cells, nn, runtime
from gatework.backends.cpu.target import target

needs_bfloat16 = pytest.mark.skipif(not target().multiplies_bfloat16, reason="this CPU does not multiply bfloat16")


def short(a: np.ndarray) -> np.ndarray:
    """Rounded as operands are, in float64."""
    return torch.from_numpy(np.asarray(a, np.float32)).bfloat16().double().numpy()


def sigmoid(a: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-a))


@needs_bfloat16
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (3, 17, 3, 33), (3, 40, 64, 32), (6, 33, 37, 100), (4, 1, 250, 260)],
                         ids=str)
def test_only_operands_of_products_are_rounded(sizes, tmp_path):
    T, B, I, H = sizes  # noqa: E741
    torch.manual_seed(0)
    layer, x = nn.LSTM(I, H), torch.randn(T, B, I).numpy()
    nn.save(layer, tmp_path)
    model = runtime.load(tmp_path, products="bfloat16")
    output, state = model.run(x, model.initial_state(B))
    W, U, b, d = (p.detach().double().numpy() for p in layer.parameters())
    h = c = np.zeros((B, H))
    for step in x:
        i, f, g, o = np.split(short(step) @ short(W).T + b + short(h) @ short(U).T + d, 4, 1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
    # float32 sums. Where the literal loop and the kernel round h to different neighbours they differ by 4e-3 times a
    # weight: at the last size, the one with enough values for that to happen, 4e-3 / sqrt(260).
    bound = 3e-4 if H == 260 else 2e-6
    np.testing.assert_allclose(state["c_l0"], c, rtol=0, atol=bound)
    np.testing.assert_allclose(state["h_l0"], h, rtol=0, atol=bound)
    assert output.dtype == np.float32
    assert np.array_equal(output[-1], state["h_l0"])


@needs_bfloat16
@pytest.mark.parametrize("name", cells.__all__)
def test_every_cell_comes_near_its_float32_values(name, tmp_path):
    layer, x, inputs = saved_cell(name, tmp_path, 4)
    fine, rough = runtime.load(tmp_path), runtime.load(tmp_path, products="bfloat16")
    right, found = [], []
    for model, outputs in ((fine, right), (rough, found)):
        state = model.initial_state(3)
        for t in range(4):
            y, state = model.step(x[t], state, **at_step(inputs, layer.cell, t))
            outputs.append(y)
    right, found = np.stack(right), np.stack(found)
    # Each product rounds both sides to 8 bits, 2e-3 of each, and two layers and four steps pass that on.
    assert np.abs(found - right).max() < 3e-2 * np.abs(right).max()
    assert not np.array_equal(found, right)


@needs_bfloat16
def test_chunks_steps_and_single_streams_give_the_same_bits(tmp_path):
    nn.save(nn.LSTM(37, 70, num_layers=2), tmp_path)
    x = np.random.default_rng(0).standard_normal((150, 19, 37)).astype(np.float32)
    model = runtime.load(tmp_path, products="bfloat16")
    whole, last = model.run(x, model.initial_state(19))
    halves = model.run(x[:70], model.initial_state(19))
    rest, end = model.run(x[70:], halves[1])
    assert np.array_equal(np.concatenate([halves[0], rest]), whole)
    assert all(np.array_equal(end[n], last[n]) for n in last)
    state = model.initial_state()
    for t in range(150):
        y, state = model.step(x[t, 18], state)
        assert np.array_equal(y, whole[t, 18])


@needs_bfloat16
@pytest.mark.parametrize("what", [np.nan, np.inf])
def test_what_is_no_number_or_infinite_in_one_stream_stays_there(what, tmp_path):
    nn.save(nn.RNN(5, 20), tmp_path)
    model = runtime.load(tmp_path, products="bfloat16")
    x = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)
    expected = model.run(x, model.initial_state(4))[0]
    x[1, 2, 3] = what
    y = model.run(x, model.initial_state(4))[0]
    others = [0, 1, 3]
    assert np.array_equal(y[:, others], expected[:, others])
    assert np.array_equal(y[0], expected[0])
    assert np.isnan(y[1:, 2]).all() if np.isnan(what) else (np.abs(y[1, 2]) == 1).all()


def test_a_processor_that_does_not_multiply_bfloat16_refuses_and_names_what_it_can(tmp_path, monkeypatch):
    nn.save(nn.LSTM(5, 6), tmp_path)
    monkeypatch.setattr(runtime, "target", lambda: replace(target(), pairs=False, tiles=False))
    with pytest.raises(ValueError, match=r'this one does not. weights="bfloat16" rounds the weights alone'):
        runtime.load(tmp_path, products="bfloat16")


@needs_bfloat16
def test_products_of_float64_are_not_rounded(tmp_path):
    nn.save(nn.LSTM(5, 6).double(), tmp_path)
    with pytest.raises(ValueError, match=r"needs a layer of float32, .* holds one of float64; leave out products="):
        runtime.load(tmp_path, products="bfloat16")
