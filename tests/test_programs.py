"""The steps of programs, one by one: products, copies, sums, roundings of parts of arrays."""

import numpy as np
import pytest
import torch

from gatework.autograd import blas
from gatework.backends.cpu.record import MOST_MULTIPLICATIONS, NotRecorded, Recorder, ShortRecorder
from gatework.backends.cpu.target import target

needs_bfloat16 = pytest.mark.skipif(not target().multiplies_bfloat16, reason="this CPU does not multiply bfloat16")


def repeat(write, arrays: list[np.ndarray], wide: tuple[int, ...] = ()) -> np.ndarray:
    """What a program makes of arrays; `write` is given a recorder and their twins, and returns that of the result."""
    dtype = arrays[0].dtype
    xp = Recorder(dtype.itemsize, 1, blas.gemm({4: torch.float32, 8: torch.float64}[dtype.itemsize]), wide)
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


def test_large_products_of_blas_are_left_to_torch_and_those_of_our_own_are_repeated():
    side = round(MOST_MULTIPLICATIONS ** (1 / 3)) + 1
    a = drawn(side, side)
    with pytest.raises(NotRecorded, match="large"):
        repeat(lambda xp, a: xp.matmul(a, a), [a])
    found = repeat(lambda xp, a: xp.matmul(a, a), [a], wide=(4,))
    # float32 sums of 407 products of values around 1, beside those of float64
    np.testing.assert_allclose(found, a.astype(float) @ a.astype(float), rtol=0, atol=1e-4)


@needs_bfloat16
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


@needs_bfloat16
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
