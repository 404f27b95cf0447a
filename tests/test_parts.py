"""float32 on a matrix unit of bfloat16, in three parts: as exact as float32, and what has no parts."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from examples import CELLS, CORE, Example, assert_close

import gatework
from gatework import cells
from gatework.autograd import arrays, functions
from gatework.backends.batch import Batch
from gatework.backends.cpu import kernel
from gatework.backends.cpu.target import target
from gatework.compiler import trace

needs_unit = pytest.mark.skipif(not target().tiles, reason="this processor has no matrix unit for bfloat16 (AMX)")
WITHOUT_PRODUCTS = {"min_gru", "min_lstm", "indrnn"}
OTHERS = [trace(getattr(cells, name)) for name in cells.__all__ if name not in CORE]
# What float32 itself is off by where some thousand products are added up, over the largest value of the result.
EXACT = 3e-6
SENSITIVE = {"slstm": 2e-5}  # exponentials of exponentials: by vectors it is off by as much


def laid_out(rows: int, columns: int, turned: bool, generator: torch.Generator, wide: int = 0) -> torch.Tensor:
    """Random values of many sizes; the transpose of a matrix in memory if `turned`, and columns of a wider one."""
    shape = (columns, rows + wide) if turned else (rows, columns + wide)
    values = torch.randn(shape, generator=generator) * torch.rand(shape, generator=generator).mul(20).sub(10).exp2()
    return values[:, wide:].T if turned else values[:, wide:]


@needs_unit
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("left", "right"), [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize(("rows", "depth", "columns"), [
    (1, 1, 1), (33, 7, 5), (16, 32, 16), (31, 65, 33), (130, 129, 257), (64, 513, 100), (300, 40, 2080),
    (128, 1100, 96)])
def test_a_product_on_the_matrix_unit_is_as_exact_as_float32(rows, depth, columns, left, right, threads):
    g = torch.Generator().manual_seed(rows + depth)
    a, b = laid_out(rows, depth, left, g, 3), laid_out(depth, columns, right, g)
    around = torch.full((rows, columns + 5), 7.0)
    out = around[:, :columns].fill_(torch.nan)
    torch.set_num_threads(threads)
    try:
        assert arrays._multiplied(a, b, out)
    finally:
        torch.set_num_threads(2)
    wanted = a.double() @ b.double()
    size = a.double().abs() @ b.double().abs()  # of what was added up
    assert ((out - wanted).abs() <= EXACT / 3 * size + 1e-30).all()
    assert (around[:, columns:] == 7.0).all()


@needs_unit
@pytest.mark.parametrize("side", ["left", "right", "out"])
def test_a_large_product_of_values_with_gaps_is_right(side):
    g = torch.Generator().manual_seed(0)
    shapes = dict(left=(700, 650), right=(650, 640), out=(700, 640))
    made = {name: torch.randn(rows, 2 * columns, generator=g)[:, ::2] if name == side
            else torch.randn(rows, columns, generator=g) for name, (rows, columns) in shapes.items()}
    arrays.Parts(made["left"]).matmul(made["left"], made["right"], out=made["out"])
    wanted = made["left"].double() @ made["right"].double()
    assert (made["out"] - wanted).abs().max() <= EXACT * wanted.abs().max()


@needs_unit
def test_large_products_of_several_threads_at_once_are_the_same():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(700, 650, generator=g), torch.randn(650, 640, generator=g)
    wanted = arrays.Parts(a).matmul(a, b)

    def multiply(_) -> bool:
        return all(torch.equal(arrays.Parts(a).matmul(a, b), wanted) for _ in range(20))

    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(multiply, range(3)))


@needs_unit
def test_single_products_are_off_by_some_roundings_of_float32_and_to_neither_side():
    g = torch.Generator().manual_seed(0)
    a, b = 1 + torch.rand(200, 1, generator=g), 1 + torch.rand(1, 200, generator=g)
    out = torch.empty(200, 200)
    assert arrays._multiplied(a, b, out)
    exact = a.double() * b.double()
    error = (out - exact) / exact * 2**24
    # Six sums are rounded by up to 1 each. Parts that are cut off, not rounded, leave out 0.6 in the mean.
    assert error.abs().max() < 5
    assert error.mean().abs() < 0.1


@needs_unit
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_large_product_with_infinite_values_is_that_of_torch(value, side):
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(700, 650, generator=g), torch.randn(650, 640, generator=g)
    (a if side == "left" else b)[17, 33] = value
    out = torch.empty(700, 640)
    assert arrays._is_large(700, 650, 640)
    arrays.Parts(a).matmul(a, b, out=out)
    torch.testing.assert_close(out, a @ b, rtol=0, atol=1e-3, equal_nan=True)  # some 1e2 in size
    assert not out.isfinite().all()


@needs_unit
def test_large_and_small_numbers_have_parts_and_what_they_do_not_hold_is_said():
    a = torch.tensor([[3.389e38, 1.0, 0.0, 1.1754944e-38 * 2**17]]).repeat(16, 1)
    out = torch.empty(16, 4)
    assert arrays._multiplied(a, torch.eye(4), out)
    assert torch.equal(out, a)
    a[3, 3] = 3.4028234e38  # rounds to infinity
    assert not arrays._multiplied(a, torch.eye(4), out)


@pytest.fixture
def all_in_parts(monkeypatch):
    """All loops of float32 on the matrix unit, whatever their sizes; the list says which of them could run."""
    ran = []
    monkeypatch.setattr(kernel.Compiled, "fills_tiles", lambda self, batch, most: True)
    call = kernel.Compiled.call

    def noted(self, *args, **options):
        could = call(self, *args, **options)
        ran.append((self.loop.parts, could))
        return could

    monkeypatch.setattr(kernel.Compiled, "call", noted)
    return ran


@needs_unit
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", [*CELLS, *OTHERS], ids=lambda c: c.name)
def test_loops_on_the_matrix_unit_are_as_exact_as_float32(cell, reverse, all_in_parts):
    example = Example(cell, 3, 7, 7, 18, torch.float32)
    assert_close(example.fused(reverse), example.expected(reverse), SENSITIVE.get(cell.name, EXACT))
    # Loops without a product, of cells that only multiply inputs, run by vectors.
    assert (3, True) in all_in_parts or cell.name in WITHOUT_PRODUCTS
    assert all(could for _, could in all_in_parts)


@needs_unit
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (2, 17, 3, 33), (3, 48, 64, 32), (2, 65, 37, 101)], ids=str)
@pytest.mark.parametrize("cell", [cells.lstm, cells.gru_reset_before, cells.projected_lstm])
def test_odd_sizes_on_the_matrix_unit(cell, sizes, all_in_parts):
    example = Example(trace(cell), *sizes, torch.float32)
    assert_close(example.fused(), example.expected(), EXACT)
    assert (3, True) in all_in_parts


@needs_unit
def test_ragged_rows_with_resets_on_the_matrix_unit(all_in_parts):
    torch.manual_seed(0)
    layer = gatework.nn.LSTM(5, 33, bidirectional=True)
    x, lengths, resets = torch.randn(9, 40, 5), torch.randint(0, 10, (40,)), torch.rand(9, 40) < 0.2
    output, last = layer(x, lengths=lengths, resets=resets)
    exact, exact_last = copy.deepcopy(layer).double()(x.double(), lengths=lengths, resets=resets)
    assert (3, True) in all_in_parts
    for found, wanted in zip((output, *last), (exact, *exact_last)):
        assert (found - wanted).abs().max() < EXACT


@needs_unit
@pytest.mark.parametrize("where", ["input", "first state", "weights"])
def test_an_infinite_value_saturates_a_gate_as_it_does_without_the_matrix_unit(where, all_in_parts):
    torch.manual_seed(0)
    layer = gatework.nn.LSTM(5, 40)
    x, hx = torch.randn(6, 32, 5), [torch.randn(1, 32, 40) for _ in range(2)]
    if where == "weights":
        with torch.no_grad():
            layer.weight_hh_l0[3, 3] = torch.inf
    else:
        (x[2] if where == "input" else hx[0][0])[4, 3] = -torch.inf
    output, _ = layer(x, hx)
    # Products of the input come before the loop: to that only states and weights are infinite.
    assert all_in_parts == ([(3, True)] if where == "input" else [(3, False), (0, True)])
    expected, _ = copy.deepcopy(layer).double()(x.double(), [h.double() for h in hx])
    torch.testing.assert_close(output, expected.float(), rtol=0, atol=EXACT, equal_nan=True)
    assert output[3:, 4].isfinite().any()


@needs_unit
def test_no_number_stays_in_its_row_on_the_matrix_unit(all_in_parts):
    torch.manual_seed(0)
    layer = gatework.nn.GRU(5, 40)
    x = torch.randn(6, 32, 5)
    with torch.no_grad():
        clean, _ = layer(x)
        x[2, 4, 1] = torch.nan
        output, _ = layer(x)
    assert output[2:, 4].isnan().all()
    others = torch.arange(32) != 4
    assert (output[:, others] - clean[:, others]).abs().max() < EXACT
    assert output[:2].isfinite().all()


@needs_unit
def test_the_matrix_unit_is_taken_where_tiles_are_full():
    layer = gatework.nn.LSTM(128, 128)
    weights = layer.all_weights[0]
    made = functions.kernel_of(layer.cell, ("h",), [torch.zeros(4, 1, 128)], [torch.zeros(1, 128)] * 2, weights)
    _, loops = made._training

    def parts(rows: int, threads: int) -> int:
        xp = type("", (), dict(threads=staticmethod(lambda: threads)))
        return loops.suited(xp, Batch.dense(100, rows))[0].loop.parts

    assert [parts(rows, 1) for rows in (1, 8, 20, 32, 40, 64)] == [0, 0, 0, 3, 0, 3]
    assert [parts(rows, 2) for rows in (16, 32, 64)] == [0, 3, 3]
