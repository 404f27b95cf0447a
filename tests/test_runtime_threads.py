"""Models of the runtime on several threads and with rounded weights: the same bits, nobody waits, nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from test_runtime import at_step, further, layer_of, saved_cell

import gatework.runtime
from gatework import cells, nn
from gatework.backends.cpu import step, task
from gatework.backends.cpu.panels import shortened
from gatework.backends.cpu.target import target

needs_bfloat16 = pytest.mark.skipif(not target().multiplies_bfloat16, reason="this CPU does not multiply bfloat16")


@pytest.fixture(autouse=True)
def small_calls_have_helpers(monkeypatch):
    monkeypatch.setattr(step, "WORTH_A_HELPER", 0)
    monkeypatch.setattr(step, "WORTH_A_MEETING", 1)


@pytest.fixture
def saved(tmp_path):
    """The folder of an LSTM of two layers, and steps to take."""
    torch.manual_seed(0)
    nn.save(nn.LSTM(5, 70, num_layers=2), tmp_path)
    return tmp_path, np.random.default_rng(0).standard_normal((50, 3, 5)).astype(np.float32)


@pytest.fixture
def helped(monkeypatch):
    """How many calls had their helpers."""
    found, run = [], task.Task.run

    def counted(call):
        run(call)
        found.append(len(call._helpers) > 0 and not call._words[task._MISSED])

    monkeypatch.setattr(task.Task, "run", counted)
    return found


def until_helped(model, x, helped) -> np.ndarray:
    """The output of a call that had helpers."""
    for _ in range(10_000):
        y = model.run(x, model.initial_state(x.shape[1]))[0]
        if helped[-1]:
            return y
    raise AssertionError("no call of ten thousand had its helpers")


def until_asleep(helper: task.Helper) -> None:
    deadline = time.monotonic() + 30
    while helper._state.value != task.ASLEEP:
        assert time.monotonic() < deadline, "the helper stays awake"
        time.sleep(0.01)


@pytest.mark.parametrize("products", [None, pytest.param("bfloat16", marks=needs_bfloat16)])
@pytest.mark.parametrize("rows", [1, 3, 19])
@pytest.mark.parametrize("threads", [2, 3])
def test_calls_on_several_threads_give_the_bits_of_one(threads, rows, products, saved, helped):
    x = np.random.default_rng(0).standard_normal((50, rows, 5)).astype(np.float32)
    alone = gatework.runtime.load(saved[0], products=products)
    expected, end = alone.run(x, alone.initial_state(rows))
    model = gatework.runtime.load(saved[0], threads=threads, products=products)
    assert np.array_equal(until_helped(model, x, helped), expected)
    last = model.run(x, model.initial_state(rows))[1]
    assert all(np.array_equal(last[name], end[name]) for name in end)


@pytest.mark.parametrize("name", cells.__all__)
def test_steps_of_every_cell_on_two_threads_and_with_rounded_weights_are_those_of_rounded_layers(name, tmp_path,
                                                                                                 helped):
    layer = layer_of(name, num_layers=2).eval()
    nn.save(layer, tmp_path / "as it is")
    for p in layer.parameters():
        if p.dim() == 2:
            p.data = p.data.bfloat16().float()
    nn.save(layer, tmp_path / "rounded")
    x, inputs = torch.randn(4, 3, 5).numpy(), {n: a.numpy() for n, a in further(layer, 4, 3, torch.float32).items()}
    expected = gatework.runtime.load(tmp_path / "rounded")
    given = expected.initial_state(3)
    for threads in (1, 2):
        model = gatework.runtime.load(tmp_path / "as it is", threads=threads, weights="bfloat16")
        for _ in range(20):
            state, wanted = model.initial_state(3), given
            for t in range(4):
                now = at_step(inputs, layer.cell, t)
                y, state = model.step(x[t], state, **now)
                right, wanted = expected.step(x[t], wanted, **now)
                assert np.array_equal(y, right)


@needs_bfloat16
@pytest.mark.parametrize("name", cells.__all__)
def test_every_cell_with_products_of_bfloat16_has_the_same_bits_on_two_threads(name, tmp_path):
    _, x, inputs = saved_cell(name, tmp_path, 40)
    alone, pair = (gatework.runtime.load(tmp_path, threads=n, products="bfloat16") for n in (1, 2))
    expected = alone.run(x, alone.initial_state(3), **inputs)[0]
    for _ in range(20):
        assert np.array_equal(pair.run(x, pair.initial_state(3), **inputs)[0], expected)


@pytest.mark.parametrize("hidden", [1, 33, 64, 130])
def test_rounded_weights_of_odd_sizes_are_those_of_a_rounded_layer(hidden, tmp_path):
    for make in (nn.RNN, nn.GRU, nn.LSTM):
        layer = make(7, hidden)
        nn.save(layer, tmp_path)
        rough = gatework.runtime.load(tmp_path, weights="bfloat16")
        for p in layer.parameters():
            p.data = p.data.bfloat16().float() if p.dim() == 2 else p.data
        nn.save(layer, tmp_path)
        fine = gatework.runtime.load(tmp_path)
        x = np.random.default_rng(0).standard_normal((6, 2, 7)).astype(np.float32)
        assert np.array_equal(rough.run(x, rough.initial_state(2))[0], fine.run(x, fine.initial_state(2))[0])


def test_weights_are_rounded_as_torch_rounds_them():
    drawn = np.random.default_rng(0).standard_normal(4000) * 10.0 ** np.arange(-43, 37).repeat(50)
    edges = [0.0, -0.0, np.inf, -np.inf, np.nan, 3.4e38, 1.0 + 2**-8, 1.0 + 3 * 2**-8]
    values = np.concatenate([drawn, edges]).astype(np.float32)
    odd = np.array([0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001], np.uint32).view(np.float32)  # no numbers, all or few bits set
    values = np.concatenate([values, odd, np.zeros(-(len(values) + 3) % 16, np.float32)])
    found = shortened(values, 1, 16).astype(np.uint32) << 16
    expected = torch.from_numpy(values).bfloat16().float().numpy()
    np.testing.assert_array_equal(found.view(np.float32), expected)


def test_a_weight_that_is_no_number_makes_the_output_none(tmp_path):
    layer = nn.LSTM(5, 20)
    layer.weight_hh_l0.data[3, 4] = torch.nan
    nn.save(layer, tmp_path)
    model = gatework.runtime.load(tmp_path, weights="bfloat16", threads=2)
    y, _ = model.run(np.ones((3, 1, 5), np.float32), model.initial_state())
    assert np.isnan(y[1:, 0, 3]).all()


def test_several_threads_may_use_one_model_with_one_helper(saved, helped):
    folder, x = saved
    model, alone = gatework.runtime.load(folder, threads=2), gatework.runtime.load(folder)
    expected = alone.run(x, alone.initial_state(3))[0]
    until_helped(model, x, helped)

    def work(_) -> bool:
        return all(np.array_equal(model.run(x, model.initial_state(3))[0], expected) for _ in range(100))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


def test_a_call_that_cannot_have_all_its_helpers_leaves_those_that_it_could_have(saved, helped):
    folder, x = saved
    two, three = (gatework.runtime.load(folder, threads=n) for n in (2, 3))
    expected = until_helped(two, x, helped)
    one, other = task.helpers(2)
    until_asleep(other)
    assert np.array_equal(until_helped(two, x, helped), expected)
    while one._state.value != task.AWAKE:
        until_helped(two, x, helped)
    assert np.array_equal(three.run(x, three.initial_state(3))[0], expected)
    assert not helped[-1]
    until_asleep(one)
    until_helped(two, x, helped)


def test_a_helper_sleeps_soon_and_calls_far_apart_do_not_wake_it(saved, helped, monkeypatch):
    folder, x = saved
    model = gatework.runtime.load(folder, threads=2)
    until_helped(model, x, helped)
    [helper] = task.helpers(1)
    until_asleep(helper)
    woken = []
    monkeypatch.setattr(task.Helper, "call", woken.append)
    for _ in range(5):
        time.sleep(0.02)
        model.run(x, model.initial_state(3))
    assert not any(helped[-5:])
    assert not woken


def test_a_long_call_waits_for_a_helper_that_sleeps(saved, helped, monkeypatch):
    monkeypatch.setattr(step, "WORTH_A_WAIT", 1)
    monkeypatch.setattr(task, "_WAIT", 30 * 10**9)  # long enough for a busy machine
    folder, x = saved
    model = gatework.runtime.load(folder, threads=2)
    for _ in range(3):
        time.sleep(0.02)
        model.run(x, model.initial_state(3))
    assert helped == [True] * 3


def test_a_sequence_is_read_from_where_it_lies_in_any_layout(saved):
    folder, x = saved
    model = gatework.runtime.load(folder)
    expected = [model.run(x[begin:begin + 5].copy(), model.initial_state(3))[0] for begin in (0, 5)]
    apart = np.repeat(np.repeat(x, 2, axis=2), 3, axis=0)[::3, :, ::2]
    odd = np.frombuffer(b"." + x.tobytes(), np.float32, offset=1).reshape(x.shape)  # no value at a multiple of 4
    for a in (x, apart, np.asfortranarray(x), x[::-1][::-1], odd):
        for begin, right in zip((0, 5), expected):
            assert np.array_equal(model.run(a[begin:begin + 5], model.initial_state(3))[0], right)
    assert np.array_equal(model.step(x[0], model.initial_state(3))[0], expected[0][0])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks on this system")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_has_helpers_of_its_own(saved, helped):
    folder, x = saved
    model = gatework.runtime.load(folder, threads=2)
    expected = until_helped(model, x, helped)
    [helper] = task.helpers(1)
    until_asleep(helper)
    helper._state.value = task.AWAKE  # as the child may find it
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # ends a child that waits for a helper of its parent
        os._exit(0 if np.array_equal(until_helped(model, x, helped), expected) else 1)
    helper._state.value = task.ASLEEP
    assert os.waitpid(child, 0)[1] == 0


def test_a_process_ends_while_its_helpers_are_awake(saved):
    code = ("import sys, numpy, gatework.runtime; from gatework.backends.cpu import step; step.WORTH_A_HELPER = 0; "
            "step.WORTH_A_MEETING = 1; model = gatework.runtime.load(sys.argv[1], threads=3); "
            "x = numpy.ones((50, 1, 5), numpy.float32); "
            "[model.run(x, model.initial_state()) for _ in range(300)]; print('torch' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code, saved[0]], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "False\n", "")


@pytest.mark.parametrize("hidden", [37, 70])
def test_units_that_are_summed_up_are_shared_too_with_the_same_bits(hidden, tmp_path, helped):
    torch.manual_seed(0)
    nn.save(nn.LayerNormLSTM(5, hidden), tmp_path)
    x = np.random.default_rng(0).standard_normal((50, 3, 5)).astype(np.float32)
    alone = gatework.runtime.load(tmp_path)
    expected = alone.run(x, alone.initial_state(3))[0]
    np.testing.assert_array_equal(until_helped(gatework.runtime.load(tmp_path, threads=2), x, helped), expected)


def test_small_calls_stay_on_one_thread(saved, monkeypatch):
    monkeypatch.undo()
    model = gatework.runtime.load(saved[0], threads=2)
    assert model._stack.prepare(1, 1)._task._helpers == []
    assert len(model._stack.prepare(50, 3)._task._helpers) == 1


@pytest.mark.parametrize(("options", "said"), [
    (dict(threads=0), "threads must be a whole number from 1 to 256; 0 was given"),
    (dict(threads=True), "threads must be a whole number from 1 to 256; True was given"),
    (dict(threads=257), "threads must be a whole number from 1 to 256; 257 was given"),
    (dict(weights="int8"), "weights must be None, as the weights were saved, or \"bfloat16\"; 'int8' was given"),
    (dict(products="int8"), "products must be None, as the weights were saved, or \"bfloat16\"; 'int8' was given"),
])
def test_options_that_there_are_not_are_refused(options, said, saved):
    with pytest.raises(ValueError, match=said):
        gatework.runtime.load(saved[0], **options)


def test_weights_of_float64_are_not_rounded_to_bfloat16(tmp_path):
    nn.save(nn.LSTM(5, 6).double(), tmp_path)
    with pytest.raises(ValueError, match=r"needs a layer of float32, .* holds one of float64; leave out weights="):
        gatework.runtime.load(tmp_path, weights="bfloat16")
