"""Products and sums of rows by kernels of our own, beside float64: every way that matrices lie, odd sizes, threads."""

import numpy as np
import pytest
import torch

from gatework.autograd import arrays, blas
from gatework.autograd.arrays import Cpu
from gatework.backends.cpu import record, vector_gemm
from gatework.backends.cpu.target import Target, target
from gatework.backends.cpu.vector_gemm import Side
from gatework.nn import LSTM

needs_pairs = pytest.mark.skipif(not target().pairs, reason="this CPU's vectors do not multiply bfloat16")
KINDS = [torch.float32, torch.float64, pytest.param(torch.bfloat16, marks=needs_pairs)]
# One value of everything; blocks of rows, strips and depths that are full, and that are one too long; several of each;
# the most columns that are few, and one more.
SIZES = [(1, 1, 1), (12, 256, 32), (13, 257, 33), (5, 600, 70), (100, 258, 1030), (33, 2, 40), (64, 64, 64),
         (37, 514, 128), (37, 514, 129)]


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def drawn(rows: int, columns: int, dtype: torch.dtype, turned: bool) -> torch.Tensor:
    torch.manual_seed(rows + 10 * columns)
    return torch.randn(columns, rows).to(dtype).T if turned else torch.randn(rows, columns).to(dtype)


def close(dtype: torch.dtype) -> dict[str, float]:
    """What sums of some hundred products of numbers around 1 lose to rounding, in the dtype of the sums."""
    return dict(rtol=0, atol=1e-12 if dtype == torch.float64 else 2e-4)


def multiply(a, b, out, more=False) -> bool:
    sides = [Side(t.data_ptr(), *t.stride()) for t in (a, b, out)]
    return vector_gemm.multiply(Cpu(out), target(), a.element_size(), (*a.shape, b.shape[1]), *sides, more)


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("left", ["as it is", "turned"])
@pytest.mark.parametrize("right", ["as it is", "turned"])
@pytest.mark.parametrize(("rows", "depth", "columns"), SIZES)
def test_wide_products_are_those_of_float64_and_leave_what_lies_beside_them(rows, depth, columns, left, right, dtype,
                                                                           threads):
    a, b = drawn(rows, depth, dtype, left == "turned"), drawn(depth, columns, dtype, right == "turned")
    around = torch.full((rows + 1, columns + 3), 7.0, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    out, expected = around[:rows, :columns], a.double() @ b.double()
    if not multiply(a, b, out):  # pairs are read as they lie, so they must be whole
        assert dtype == torch.bfloat16
        assert depth % 2 == 1
        assert 1 in (a.stride(1), b.stride(0))
        return
    torch.testing.assert_close(out.double(), expected, **close(dtype))
    assert multiply(a, b, out, more=True)
    torch.testing.assert_close(out.double(), 2 * expected, **close(dtype))
    assert (around[rows:] == 7).all()
    assert (around[:, columns:] == 7).all()


@pytest.mark.parametrize("dtype", KINDS)
def test_wide_products_read_parts_of_matrices(dtype):
    a, b = drawn(40, 90, dtype, False)[3:25, 6:70], drawn(80, 50, dtype, False)[7:71, 5:42]
    out = torch.empty(22, 37, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    assert multiply(a, b, out)
    torch.testing.assert_close(out.double(), a.double() @ b.double(), **close(dtype))


@pytest.mark.parametrize("columns", [60, 1100])
@pytest.mark.parametrize("dtype", KINDS)
def test_wide_products_and_sums_have_the_same_bits_on_any_number_of_threads(dtype, columns):
    a, b, found, before = drawn(700, 600, dtype, True), drawn(600, columns, dtype, False), [], torch.get_num_threads()
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        out = torch.empty(700, columns, dtype=wide)
        assert multiply(a, b, out)
        found.append((out, Cpu(out).sum_of_rows(b)))
    torch.set_num_threads(before)
    assert all(map(torch.equal, found[0], found[1]))
    assert all(map(torch.equal, found[0], found[2]))


def test_wide_products_refuse_matrices_whose_values_do_not_lie_side_by_side():
    a, b = torch.randn(20, 40)[:, ::2], torch.randn(20, 16)
    assert not multiply(a, b, torch.empty(20, 16))
    assert not multiply(b.T.contiguous().T, a.T, torch.empty(16, 20).T[:, :20])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("left", ["as it is", "turned"])
@pytest.mark.parametrize("columns", [40, 140])
def test_wide_products_and_sums_hand_on_what_is_no_number_or_infinite(columns, left, dtype, value):
    a, b = drawn(20, 64, dtype, left == "turned").abs() + 1, drawn(64, columns, dtype, False).abs() + 1
    a[7, 30] = value
    out = torch.empty(20, columns, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    assert multiply(a, b, out)
    np.testing.assert_array_equal(out[7].numpy(), value)
    assert out[[k for k in range(20) if k != 7]].isfinite().all()
    total = Cpu(out).sum_of_rows(a.contiguous())
    np.testing.assert_array_equal(total[30].item(), value)
    assert total[[k for k in range(64) if k != 30]].isfinite().all()


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (15, 3), (16, 16), (17, 33), (5000, 70), (3, 0), (0, 5)])
def test_the_sum_of_rows_is_that_of_float64(rows, columns, dtype, threads):
    a = drawn(rows, columns + 2, dtype, False)[:, 1:columns + 1]
    xp = Cpu(torch.empty(0, dtype=torch.float64 if dtype == torch.float64 else torch.float32))
    torch.testing.assert_close(xp.sum_of_rows(a).double(), a.double().sum(0), **close(dtype))


@pytest.fixture
def wide(monkeypatch):
    """A machine that multiplies faster than its BLAS; counts the products that kernels of our own make."""
    made, multiply = [], vector_gemm.multiply

    def counted(xp, machine, size, shape, *rest):
        could = multiply(xp, machine, size, shape, *rest)
        made.append((type(xp).__name__, size, could))
        return could

    def sizes(machine: Target) -> frozenset[int]:
        return frozenset({4, 8})

    for module in (arrays, record):
        monkeypatch.setattr(module.vector_gemm, "multiply", counted)
    monkeypatch.setattr(arrays, "wide_products", sizes)
    monkeypatch.setattr("gatework.autograd.calls.wide_products", sizes)
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_layer_whose_products_are_ours_is_torchs_lstm_walked_and_recorded(wide, dtype):
    ours = LSTM(20, 33, dtype=dtype)
    theirs = torch.nn.LSTM(20, 33, dtype=dtype)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(30, 11, 20, dtype=dtype)
    for _ in range(3):  # the first call is walked through, the second recorded, the third a program
        grads = []
        for layer in (ours, theirs):
            given = x.clone().requires_grad_()
            layer.zero_grad()
            y = layer(given)[0]
            y.sin().sum().backward()
            grads.append([y, given.grad, *(p.grad for p in layer.parameters())])
        for a, b in zip(*grads):
            torch.testing.assert_close(a, b, **(dict(rtol=1e-4, atol=1e-4) if dtype == torch.float32 else
                                                dict(rtol=1e-10, atol=1e-10)))
    size = dtype.itemsize
    assert wide.count(("Cpu", size, True)) == wide.count(("Recorder", size, True)) == 4  # forward, dx, dW, dU


def test_an_odd_depth_that_is_told_later_is_not_read_in_pairs():
    known = record.Known(64, "total")
    sides = [Side(0, known, 1), Side(0, 1, known), Side(0, 16, 1)]
    assert not vector_gemm.multiply(None, target(), 2, (16, known, 16), *sides, False)


@needs_pairs
def test_recorded_products_of_bfloat16_are_ours(wide, monkeypatch):
    xp = record.ShortRecorder(1, blas.gemm(torch.float32), blas.gemm(torch.bfloat16), {2})
    a, b = (xp.given((64, 64), short=True) for _ in range(2))
    xp.matmul(a, b)
    assert wide == [("ShortRecorder", 2, True)]
