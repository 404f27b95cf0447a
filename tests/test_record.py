"""Recorded calls: a program gives what the walk gave that it was recorded from, wherever the tensors lie."""

import gc
import os
import signal
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from examples import CELLS, Example

import gatework
from gatework import autograd
from gatework.autograd import blas, calls
from gatework.autograd.functions import kernel_of
from gatework.backends.batch import Batch
from gatework.backends.cpu.target import target

pytestmark = pytest.mark.usefixtures("no_programs")
CLOSE = dict(rtol=2e-6, atol=2e-6)  # sums in another order: some units in the last place


def results(example: Example, reverse: bool = False, upstream=None, needed=None) -> list[torch.Tensor]:
    """Outputs, last states and gradients of new tensors with the example's values."""
    tensors = [t.clone().requires_grad_(needed is None or k in needed) for k, t in enumerate(example.tensors)]
    (output,), last = autograd.scan(example.cell, *example.parts(tensors), reverse)
    made = [output, *last]
    upstream = example.upstream if upstream is None else upstream
    pairs = [(y, d.to(y)) for y, d in zip(made, upstream) if d is not None]
    wanted = [t for t in tensors if t.requires_grad]
    return [y.detach().clone() for y in made] + list(
        torch.autograd.grad([y for y, _ in pairs], wanted, [d for _, d in pairs]))


def assert_close(found, expected) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        scale = max(1.0, float(b.abs().max()))
        torch.testing.assert_close(a / scale, b / scale, **CLOSE)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 3, 33), (5, 3, 4, 16), (7, 1, 1, 6)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("cell", CELLS, ids=lambda c: c.name)
def test_the_third_call_gives_what_the_first_gave(cell, dtype, shape, reverse, taken):
    example = Example(cell, *shape, dtype)
    first = results(example, reverse)
    assert not taken
    results(example, reverse)
    assert len(taken) == (1 if "constant" in {e.op for e in cell.inputs.values()} else 2)
    assert all(map(torch.equal, results(example, reverse), first))


needs_bfloat16 = pytest.mark.skipif(not target().multiplies_bfloat16, reason="this CPU does not multiply bfloat16")
# Not recorded are gradients of constants, and those of inputs that are sums: of bfloat16 there is no step that adds.
WALKS_BACK = {c.name for c in CELLS if "constant" in {e.op for e in c.inputs.values()}} | {"means", "masked", "spans"}


@needs_bfloat16
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cell", CELLS, ids=lambda c: c.name)
def test_under_autocast_the_third_call_gives_what_the_first_gave(cell, dtype, reverse, taken):
    example = Example(cell, 5, 7, 3, 18, torch.float32)
    tensors = [t.clone().requires_grad_() for t in example.tensors]
    (a, b), found = (len(example.inputs), len(example.inputs) + len(example.states)), []
    for _ in range(3):
        inputs = [x.detach().to(dtype).requires_grad_() for x in tensors[:a]]
        with torch.autocast("cpu", torch.bfloat16):
            (output,), last = autograd.scan(cell, inputs, tensors[a:b], tensors[b:], reverse)
        gradients = torch.autograd.grad(output, [*inputs, *tensors[a:]], example.upstream[0].bfloat16())
        found.append([output, *last, *gradients])
    assert [y.dtype for y in found[0]] == [y.dtype for y in found[2]]
    assert all(map(torch.equal, found[0], found[1]))
    assert all(map(torch.equal, found[0], found[2]))
    assert len(taken) == (2 if cell.name in WALKS_BACK else 4)


@pytest.mark.parametrize("needed", [{0}, {1}, {3}, {0, 4}, {1, 2, 5, 6}], ids=str)
@pytest.mark.parametrize("outside", [(0,), (1,), (2,), (0, 2), (1, 2)], ids=str)
def test_gradients_that_are_asked_for_from_those_that_come(needed, outside, taken):
    example = Example(gatework.compiler.trace(gatework.cells.lstm), 4, 3, 5, 7, torch.float32)
    upstream = [d if k in outside else None for k, d in enumerate(example.upstream)]
    first = results(example, False, upstream, needed)
    results(example, False, upstream, needed)
    assert all(map(torch.equal, results(example, False, upstream, needed), first))
    assert len(taken) == 4


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return gatework.nn.LSTM(5, 33)


def gradients(layer, x, upstream=None):
    x = x.detach().requires_grad_()
    output, (h, c) = layer(x)
    upstream = torch.ones(()).expand(output.shape) if upstream is None else upstream
    return [*(y.detach() for y in (output, h, c)), *torch.autograd.grad(output, [x, *layer.parameters()], upstream)]


def as_torch(layer, x, upstream=None):
    theirs = torch.nn.LSTM(layer.input_size, layer.hidden_size)
    theirs.load_state_dict(layer.state_dict())
    return gradients(theirs, x, upstream)


def test_tensors_with_gaps_and_expanded_ones_are_read_where_they_lie(layer, taken):
    for _ in range(4):
        x = torch.randn(3, 6, 10)[:, :, ::2].transpose(0, 1)  # [6, 3, 5]
        assert_close(gradients(layer, x), as_torch(layer, x))
        upstream = torch.randn(33, 6, 3).permute(1, 2, 0)
        assert_close(gradients(layer, x, upstream), as_torch(layer, x, upstream))
    assert len(taken) == 7 + 7


def test_a_program_sees_weights_that_were_written_to_meanwhile(layer, taken):
    x = torch.randn(4, 2, 5)
    for _ in range(4):
        for p in layer.parameters():
            p.data.uniform_(-0.3, 0.3)
        assert_close(gradients(layer, x), as_torch(layer, x))
    assert len(taken) == 6


def test_without_gradients_too(layer, taken):
    for shape in ((1, 1, 5), (1, 4, 5), (9, 2, 5)):
        for _ in range(3):
            x = torch.randn(shape)
            with torch.no_grad():
                found = layer(x)[0]
            assert_close([found], as_torch(layer, x)[:1])
    assert len(taken) == 6


def test_nan_in_gives_nan_out_of_its_row_only(layer, taken):
    for _ in range(3):
        x = torch.randn(4, 3, 5)
        x[1, 2, 0] = float("nan")
        output = layer(x)[0]
        assert output[1:, 2].isnan().all()
        assert not output[:, :2].isnan().any()
        assert not output[0].isnan().any()
    assert len(taken) == 2


def test_a_second_backward_pass_through_a_recorded_call_finds_what_was_kept(layer, taken):
    x = torch.randn(4, 3, 5)
    for _ in range(3):
        output, _ = layer(x)
        once = torch.autograd.grad(output.sum(), list(layer.parameters()), retain_graph=True)
        again = torch.autograd.grad(output.sum(), list(layer.parameters()))
        assert all(map(torch.equal, once, again))
    assert len(taken) == 2 + 5  # of six backward passes only the first was none


def test_threads_may_run_one_program_at_the_same_time(layer, taken):
    inputs = [torch.randn(20, 3, 5) for _ in range(4)]
    expected = [as_torch(layer, x) for x in inputs]
    gradients(layer, inputs[0])

    def work(k: int) -> None:
        for _ in range(30):
            assert_close(gradients(layer, inputs[k]), expected[k])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert len(taken) == 240


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_runs_no_program_with_a_team_of_its_parent(monkeypatch):
    from gatework.backends.cpu import kernel
    monkeypatch.setattr(kernel, "WORTH_A_THREAD", 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for torch itself and BLAS, whose threads do not survive a fork
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    layer = gatework.nn.LSTM(5, 32)
    x = torch.randn(6, 4, 5)
    expected = [gradients(layer, x) for _ in range(3)][-1]
    child = os.fork()
    if child == 0:
        same = all(torch.allclose(a, b, atol=1e-5) for _ in range(3) for a, b in zip(gradients(layer, x), expected))
        os._exit(0 if same else 1)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))
    signal.alarm(60)
    _, status = os.waitpid(child, 0)
    signal.alarm(0)
    torch.set_num_threads(threads)
    assert status == 0


def test_calls_that_differ_take_turns_and_have_programs_of_their_own(layer, taken):
    weights, kinds = list(layer.parameters()), []
    for rows in (2, 3):
        for wanted in (0, 1, 2):  # of output, h and c
            kinds += [(rows, wanted, weights), (rows, wanted, weights[1:2])]
    x = torch.randn(6, 3, 5)
    theirs = torch.nn.LSTM(5, 33)
    theirs.load_state_dict(layer.state_dict())
    expected = dict(zip(weights, theirs.parameters()))
    for _ in range(3):
        for rows, wanted, some in kinds:
            for w in weights:
                w.requires_grad_(any(w is s for s in some))
            output, (h, c) = layer(x[:, :rows])
            right, (last, cell) = theirs(x[:, :rows])
            found = torch.autograd.grad((output, h, c)[wanted].square().sum(), some)
            assert_close(found, torch.autograd.grad((right, last, cell)[wanted].square().sum(),
                                                    [expected[w] for w in some]))
    assert len(set(taken)) == 2 + 2 * 6  # forward by rows, backward by what comes and what is asked for, too


@needs_bfloat16
def test_inputs_of_two_dtypes_have_programs_of_their_own(taken):
    layer, x = gatework.nn.LSTM(5, 70), torch.randn(4, 9, 5)
    for _ in range(3):
        for dtype in (torch.float32, torch.bfloat16):
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                output, _ = layer(x.to(dtype))
            torch.testing.assert_close(output.float(), layer(x)[0].detach(), rtol=2e-2, atol=2e-2)  # 8 bits
    assert len(set(taken)) == 2 + 1  # and that of float32


def test_what_a_program_points_into_lives_as_long_as_it_does(layer):
    def forget() -> None:
        Batch.dense.cache_clear()
        gc.collect()

    x = torch.randn(6, 3, 5)
    for _ in range(3):
        gradients(layer, x)
    kept = weakref.ref(Batch.dense(6, 3))
    forget()
    assert kept() is not None
    of = kernel_of(layer.evaluation_cell, ("h",), [x], [torch.zeros(3, 33)] * 2, list(layer.parameters()))
    of.programs.clear()
    forget()
    assert kept() is None


def test_another_number_of_threads_has_its_own_program(layer, taken):
    x, threads = torch.randn(4, 3, 5), torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        for _ in range(2):
            layer(x)
    torch.set_num_threads(threads)
    assert len(taken) == 2
    assert taken[0] is not taken[1]


def test_lengths_that_never_come_again_are_not_recorded_and_programs_do_not_pile_up(layer, taken, monkeypatch):
    monkeypatch.setattr(calls, "MOST_PROGRAMS", 8)
    with torch.no_grad():
        for T in range(1, 40):
            layer(torch.randn(T, 2, 5))
        parameters, state = list(layer.parameters()), torch.zeros(2, 33)
        kernel = kernel_of(layer.evaluation_cell, ("h",), [torch.zeros(1, 2, 5)], [state, state], parameters)
        assert not taken
        assert len(kernel.programs) <= 8
        for T in (3, 4, 3, 4, 3, 4):
            x = torch.randn(T, 2, 5)
            assert torch.equal(layer(x)[0], layer(x)[0])
        assert taken


@pytest.mark.parametrize("bound", ["MOST_VALUES", "MOST_WORK"])
def test_large_calls_are_left_to_torch(layer, taken, monkeypatch, bound):
    monkeypatch.setattr(calls, bound, 1000)
    x = torch.randn(9, 3, 5)
    for _ in range(3):
        assert_close(gradients(layer, x), as_torch(layer, x))
    assert not taken


def test_without_the_function_of_blas_torch_does_it_all(layer, taken, monkeypatch):
    monkeypatch.setattr(blas, "gemm", lambda dtype: None)
    x = torch.randn(4, 3, 5)
    for _ in range(3):
        assert_close(gradients(layer, x), as_torch(layer, x))
    assert not taken
