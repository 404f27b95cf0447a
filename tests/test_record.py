"""Recorded calls: a program gives what the walk gave that it was recorded from, wherever the tensors lie."""

import os
import signal
import threading

import numpy as np
import pytest
import torch
from examples import CELLS, Example

import gatework
from gatework import autograd
from gatework.autograd import blas, calls, dispatch
from gatework.autograd.functions import kernel_of, kernel_of_shapes
from gatework.backends.cpu.record import MOST_MULTIPLICATIONS, NotRecorded, Recorder, ShortRecorder
from gatework.backends.cpu.target import target

CLOSE = dict(rtol=2e-6, atol=2e-6)  # sums in another order: some units in the last place


@pytest.fixture(autouse=True)
def nothing_known():
    kernel_of_shapes.cache_clear()
    calls.AT_ONCE = False
    from gatework.backends.cpu.kernel import _kernel
    _kernel.cache_clear()


@pytest.fixture
def taken(monkeypatch):
    """The programs that ran."""
    seen, run = [], calls.Program.run

    def spy(program, addresses, work):
        seen.append(program)
        run(program, addresses, work)

    monkeypatch.setattr(calls.Program, "run", spy)
    return seen


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


needs_unit = pytest.mark.skipif(not target().tiles, reason="this CPU has no matrix unit for bfloat16")
# Not recorded are gradients of constants, and those of inputs that are sums: of bfloat16 there is no step that adds.
WALKS_BACK = {c.name for c in CELLS if "constant" in {e.op for e in c.inputs.values()}} | {"means", "masked", "spans"}


@needs_unit
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cell", CELLS, ids=lambda c: c.name)
def test_under_autocast_the_third_call_gives_what_the_first_gave(cell, dtype, reverse, taken, monkeypatch):
    monkeypatch.setattr(dispatch, "FEW_VALUES", 0)
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


@needs_unit
@pytest.mark.parametrize(("rows", "depth", "columns"), [(1, 5, 3), (4, 1, 3), (4, 5, 1), (3, 0, 2), (7, 33, 65)])
@pytest.mark.parametrize(("left", "right"), [("", ""), ("T", ""), ("", "T"), ("T", "T")])
def test_small_products_of_bfloat16_are_added_up_in_float32(left, right, rows, depth, columns):
    a = torch.randn((depth, rows) if left else (rows, depth)).bfloat16()
    b = torch.randn((columns, depth) if right else (depth, columns)).bfloat16()
    a, b = a.T if left else a, b.T if right else b
    expected = a.double() @ b.double()
    torch.testing.assert_close(blas.product(a, b).double(), expected, rtol=1e-5, atol=1e-5)
    more = torch.randn(rows + 2, columns + 3)
    into = more.clone()
    blas.product(a, b, into[1:-1, 2:-1])
    expected += more[1:-1, 2:-1]
    torch.testing.assert_close(into[1:-1, 2:-1].double(), expected, rtol=1e-5, atol=1e-5)
    into[1:-1, 2:-1] = more[1:-1, 2:-1]
    assert torch.equal(into, more)


@needs_unit
@pytest.mark.parametrize("width", [1, 15, 16, 33])
def test_rounding_is_that_of_torch(width):
    a = torch.randn(5, 40)
    a[0, 0], a[1, 0], a[2, 0] = float("inf"), float("nan"), 1 + 2**-8  # half way between two: to the even one
    xp = ShortRecorder(1, blas.gemm(torch.float32), blas.gemm(torch.bfloat16))
    given = xp.given(a.shape)
    made = xp.output(given[1:4, :width])
    out = torch.zeros(made.shape, dtype=torch.bfloat16)
    program = xp.finish([given], [made])
    work = torch.empty(program.work, dtype=torch.uint8)
    program.run([a.data_ptr(), out.data_ptr()], work.data_ptr())
    torch.testing.assert_close(out, a[1:4, :width].bfloat16(), rtol=0, atol=0, equal_nan=True)


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
    failures = []

    def work(k):
        for _ in range(30):
            try:
                assert_close(gradients(layer, inputs[k]), expected[k])
            except AssertionError as error:
                failures.append(error)

    workers = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert not failures
    assert len(taken) == 240


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_runs_no_program_with_a_team_of_its_parent(monkeypatch):
    from gatework.backends.cpu import kernel
    monkeypatch.setattr(kernel, "WORTH_A_THREAD", 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    layer = gatework.nn.LSTM(5, 32)
    x = torch.randn(6, 4, 5)
    expected = [gradients(layer, x) for _ in range(3)][-1]
    child = os.fork()
    if child == 0:
        torch.set_num_threads(2)
        same = all(torch.allclose(a, b, atol=1e-5) for _ in range(3) for a, b in zip(gradients(layer, x), expected))
        os._exit(0 if same else 1)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))
    signal.alarm(60)
    _, status = os.waitpid(child, 0)
    signal.alarm(0)
    torch.set_num_threads(threads)
    assert status == 0


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


# ---- the steps, one by one


def repeat(write, arrays: list[np.ndarray]) -> np.ndarray:
    """What a program makes of arrays; `write` is given a recorder and their twins, and returns that of the result."""
    dtype = arrays[0].dtype
    xp = Recorder(dtype.itemsize, 1, blas.gemm({4: torch.float32, 8: torch.float64}[dtype.itemsize]))
    given = [xp.given(a.shape) for a in arrays]
    made = write(xp, *given)
    program = xp.finish(given, [made])
    arrays, out = [np.ascontiguousarray(a) for a in arrays], np.full(made.shape, np.nan, dtype)
    work = torch.empty(program.work, dtype=torch.uint8)
    program.run([a.ctypes.data for a in (*arrays, out)], work.data_ptr())
    return out


def drawn(*shape: int, dtype=np.float32) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("rows", "depth", "columns"),
                         [(1, 1, 1), (1, 5, 3), (4, 1, 3), (4, 5, 1), (3, 0, 2), (7, 33, 65)])
@pytest.mark.parametrize(("left", "right"), [("", ""), ("T", ""), ("", "T"), ("T", "T")])
def test_products_of_matrices_lying_either_way_are_numpys(left, right, rows, depth, columns, dtype):
    a = drawn(*((depth, rows) if left else (rows, depth)), dtype=dtype)
    b = drawn(*((columns, depth) if right else (depth, columns)), dtype=dtype)
    c = drawn(rows, columns, dtype=dtype)

    def turned(x, flag):
        return x.T if flag else x

    close = dict(rtol=1e-5, atol=1e-5) if dtype == np.float32 else dict(rtol=1e-13, atol=1e-13)
    expected = turned(a, left) @ turned(b, right)
    np.testing.assert_allclose(
        repeat(lambda xp, a, b: xp.matmul(turned(a, left), turned(b, right)), [a, b]), expected, **close)

    def added(xp, a, b, c):
        out = xp.copy(c)
        xp.add_product(out, turned(a, left), turned(b, right))
        return out

    np.testing.assert_allclose(repeat(added, [a, b, c]), c + expected, **close)


def test_products_read_and_write_parts_of_matrices():
    a, b, c = drawn(6, 10), drawn(8, 12), drawn(9, 11)

    def write(xp, a, b, c):
        out = xp.copy(c)
        xp.matmul(a[1:4, 2:7].T, b[2:5, 4:9], out=out[3:8, 5:10])
        return out

    expected = c.copy()
    expected[3:8, 5:10] = a[1:4, 2:7].T @ b[2:5, 4:9]
    np.testing.assert_allclose(repeat(write, [a, b, c]), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("width", [1, 3, 16, 37])
def test_copies_zeros_and_sums_of_parts_touch_nothing_else(width, dtype):
    a, b = drawn(5, 40, dtype=dtype), drawn(5, 40, dtype=dtype)

    def write(xp, a, b):
        out = xp.copy(a)
        part = out[1:3, 2:2 + width]
        part += b[2:4, 1:1 + width]
        out[3:, :width] = b[:2, :width]
        out[0:1, 3:3 + width] = 0
        return out

    expected = a.copy()
    expected[1:3, 2:2 + width] += b[2:4, 1:1 + width]
    expected[3:, :width] = b[:2, :width]
    expected[0, 3:3 + width] = 0
    np.testing.assert_array_equal(repeat(write, [a, b]), expected)


def test_sums_over_rows_of_some_columns_are_numpys():
    a = drawn(300, 40)
    found = repeat(lambda xp, a: xp.copy(xp.sum_of_rows(a)[5:21]), [a])
    np.testing.assert_allclose(found, a.astype(np.float64).sum(0)[5:21], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("write", [
    lambda xp, a: a, lambda xp, a: xp.copy(a)[1:], lambda xp, a: xp.take(a, np.arange(2)), lambda xp, a: a[0],
    lambda xp, a: a.T.reshape(-1), lambda xp, a: xp.flag(), lambda xp, a: xp.matmul(a, a[:, ::2]),
], ids=["an input", "a part", "rows", "a row", "another order", "a condition", "gaps"])
def test_what_programs_do_not_have_is_refused(write):
    with pytest.raises(NotRecorded):
        repeat(write, [drawn(6, 6)])


def test_large_products_are_left_to_torch():
    side = round(MOST_MULTIPLICATIONS ** (1 / 3)) + 1
    with pytest.raises(NotRecorded, match="large"):
        repeat(lambda xp, a: xp.matmul(a, a), [drawn(side, side)])
