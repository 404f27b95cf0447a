"""Products of bfloat16, on a matrix unit or by vectors: under autocast, and in layers of that dtype.

What stays float32 is tested against a literal loop that rounds where the kernels say they do, the rest against the
reference backend in float64, as near as 8 bits allow.
"""

from __future__ import annotations

import copy
import ctypes
import mmap
from dataclasses import replace

import pytest
import torch
from examples import CELLS, CORE, Example, assert_close

import gatework
from gatework import autograd, cells
from gatework.autograd import dispatch, registered
from gatework.autograd.calls import Call
from gatework.backends.cpu import kernel_for
from gatework.backends.cpu.target import target
from gatework.compiler import Input, Matrix, State, trace
from gatework.nn import GRU, LSTM, Recurrent

needs_bfloat16 = pytest.mark.skipif(not target().multiplies_bfloat16, reason="this CPU does not multiply bfloat16")
OTHERS = [trace(getattr(cells, name)) for name in cells.__all__ if name not in CORE]
# Of the largest value: each product rounds both sides to 8 bits, 2e-3 of each, and three steps and their derivatives
# pass that on. A term that is wrong or left out is off by a tenth and more.
BOUND = 3e-2
KINKED = ("deep", "elementary", "indrnn")
ODD = [(1, 1, 1, 1), (2, 17, 3, 33), (3, 40, 64, 32)]


def under_autocast(example: Example, reverse: bool = False) -> dict[str, torch.Tensor]:
    def run(*parts):
        with torch.autocast("cpu", torch.bfloat16):
            return autograd.scan(example.cell, *parts, reverse)

    return example._results(torch.float32, run)


def low(layer, *args, **options):
    with torch.autocast("cpu", torch.bfloat16):
        return layer(*args, **options)


# What `switched` decides turns over where two numbers are nearer to each other than 8 bits tell.
@needs_bfloat16
@pytest.mark.parametrize("cell", [c for c in (*CELLS, *OTHERS) if c.name != "switched"], ids=lambda c: c.name)
def test_values_and_gradients_of_every_cell_are_near_those_of_float64(cell):
    # In the first draw of these three cells a value lies so near to a kink (of relu, of where) that it turns over.
    example = Example(cell, 3, 7, 7, 18, torch.float32, seed=int(cell.name in KINKED))
    assert_close(under_autocast(example), example.expected(), BOUND)


@needs_bfloat16
@pytest.mark.parametrize("cell", [cells.lstm, cells.gru, cells.gru_reset_before, cells.layer_norm_gru])
@pytest.mark.parametrize("sizes", ODD, ids=str)
def test_odd_sizes_from_the_last_step_to_the_first(cell, sizes):
    example = Example(trace(cell), *sizes, torch.float32)
    assert_close(under_autocast(example, True), example.expected(True), BOUND)


def short(t: torch.Tensor) -> torch.Tensor:
    """Rounded as operands are, in float64."""
    return t.float().bfloat16().double()


@needs_bfloat16
@pytest.mark.parametrize("sizes", [(16, 1, 1, 1), (3, 17, 3, 33), (3, 40, 64, 32), (6, 33, 37, 100)], ids=str)
def test_only_operands_of_products_are_rounded(sizes):
    T, B, I, H = sizes  # noqa: E741
    torch.manual_seed(0)
    layer = LSTM(I, H)
    x = torch.randn(T, B, I)
    with torch.no_grad():
        output, (h, c) = low(layer, x)
    W, U, b, d = (p.detach().double() for p in layer.parameters())
    expected = before = torch.zeros(B, H, dtype=torch.float64)
    for step in x:
        i, f, g, o = (short(step) @ short(W).T + b + short(before) @ short(U).T + d).chunk(4, 1)
        expected = f.sigmoid() * expected + i.sigmoid() * g.tanh()
        before = o.sigmoid() * expected.tanh()
    # float32 sums. Where the literal loop and the kernel round h to different neighbours they would differ by 4e-3
    # times a weight; with some hundred values that lie within 1e-7 of each other it does not happen.
    torch.testing.assert_close(c[0], expected.float(), rtol=0, atol=2e-6)
    torch.testing.assert_close(h[0], before.float(), rtol=0, atol=2e-6)
    assert torch.equal(output[-1], h[0].bfloat16())


@needs_bfloat16
def test_fewer_places_than_a_tile_has_rows_are_multiplied_in_float32():
    layer, x = LSTM(3, 20), torch.randn(5, 3, 3)
    assert torch.equal(low(layer, x)[0], layer(x)[0].bfloat16())


@needs_bfloat16
def test_a_state_is_carried_on_in_float32():
    def count(x: Input, h: State, W: Matrix):
        return dict(h=h + W @ x)

    layer = Recurrent(count, 1, 1).bfloat16()
    layer.weight_ih_l0.data.fill_(2.0**-10)
    output, _ = layer(torch.ones(300, 1, 1).bfloat16(), torch.ones(1, 1, 1).bfloat16())
    assert output.dtype == torch.bfloat16
    assert output[-1].item() == pytest.approx(1 + 300 * 2**-10, rel=2**-8)  # added up in bfloat16 it would stay 1


def compared(layer, x, **options):
    """Results and gradients of the layer under autocast, and of one in float64 by the reference backend."""
    exact = copy.deepcopy(layer).double()
    exact.backend = "reference"
    found = []
    for run, given in ((low, x), (lambda layer, *a, **o: layer(*a, **o), x.double())):
        given = given.clone().requires_grad_()
        used = layer if run is low else exact
        output, states, *records = run(used, given, **options)
        states = states if isinstance(states, tuple) else (states,)
        gates = records[0] if records else {}
        sum((v.double() * torch.linspace(-1, 1, v.numel()).view_as(v)).sum()
            for v in (output, *states, *gates.values())).backward()
        found.append([output, *states, *gates.values(), given.grad, *(p.grad for p in used.parameters())])
    return found


def assert_near(found, expected, bound=BOUND):
    for k, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert (a.double() - b).norm() <= bound * b.norm() + 1e-3, k


@needs_bfloat16
@pytest.mark.parametrize("reset", [False, True])
def test_ragged_rows_resets_recorded_gates_both_directions_and_layers_go_together(reset):
    torch.manual_seed(0)
    x = torch.randn(4, 5, 3)
    options = dict(lengths=torch.tensor([2, 4, 0, 1, 4]), record=("f", "c"))
    if reset:
        options["resets"] = torch.rand(4, 5) < 0.3
    assert_near(*compared(LSTM(3, 20, num_layers=2, bidirectional=True), x, **options))


@needs_bfloat16
def test_constants_and_masks_of_ragged_rows_have_gradients():
    torch.manual_seed(0)
    layer, x = Recurrent(cells.ea_lstm, 3, 20, sizes={"S": 2}), torch.randn(6, 5, 3)
    statics = torch.randn(5, 2)
    found = []
    for run, used in ((low, layer), (lambda layer, *a, **o: layer(*a, **o), copy.deepcopy(layer).double())):
        used.backend = "auto" if run is low else "reference"
        given = statics.to(next(used.parameters()).dtype, copy=True).requires_grad_()
        output, _ = run(used, x.to(given.dtype), s=given, lengths=torch.tensor([6, 4, 0, 1, 6]))
        output.double().square().sum().backward()
        found.append([output, given.grad, *(p.grad for p in used.parameters())])
    assert_near(*found)


@needs_bfloat16
@pytest.mark.parametrize("make", [LSTM, torch.nn.LSTM])
def test_writing_over_an_output_that_the_gradient_needs_is_refused_as_by_torch(make):
    layer, x = make(3, 20), torch.randn(6, 5, 3)
    output = low(layer, x)[0].mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.float().sum().backward()


def test_float64_stays_as_it_is_under_autocast():
    layer, x = LSTM(3, 20).double(), torch.randn(6, 5, 3, dtype=torch.float64)
    assert torch.equal(low(layer, x)[0], layer(x)[0])
    assert low(torch.nn.LSTM(3, 20).double(), x)[0].dtype == torch.float64  # as in torch


@needs_bfloat16
@pytest.mark.parametrize("layer", [LSTM, GRU])
def test_checkpoints_give_the_same_gradients(layer):
    torch.manual_seed(0)
    assert_near(*compared(layer(3, 40, checkpoint_every=3), torch.randn(7, 9, 3)))


@needs_bfloat16
@pytest.mark.parametrize("sizes", [(4, 33, 20, 48), (3, 20, 64, 512)], ids=["threads own rows", "threads share units"])
def test_threads_change_no_value(sizes):
    T, B, I, H = sizes  # noqa: E741
    torch.manual_seed(0)
    layer, x = LSTM(I, H), torch.randn(T, B, I, requires_grad=True)
    found = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            output, _ = low(layer, x)
            found.append([output, *torch.autograd.grad(output.float().square().sum(), [x, *layer.parameters()])])
    finally:
        torch.set_num_threads(1)
    for k, (a, b) in enumerate(zip(*found)):
        if k == 0:
            assert torch.equal(a, b)  # nothing is added up in another order
        else:
            # the large products after the loop are shared out too: sums in another order, rounded to 8 bits
            torch.testing.assert_close(a, b, rtol=2**-7, atol=2**-8 * a.abs().max().item())


@needs_bfloat16
def test_nan_in_one_row_stays_in_that_row():
    x = torch.randn(3, 20, 2)
    x[1, 2] = torch.nan
    output, _ = low(GRU(2, 37), x)
    assert output[1:, 2].isnan().all()
    assert output[:1].isfinite().all()
    assert output[:, [k for k in range(20) if k != 2]].isfinite().all()


@needs_bfloat16
def test_a_layer_of_bfloat16_runs_on_the_kernels_and_gives_bfloat16(monkeypatch):
    torch.manual_seed(0)
    layer = LSTM(5, 7).bfloat16()
    x = torch.randn(3, 6, 5).bfloat16().requires_grad_()
    monkeypatch.setattr(dispatch.reference, "run", None)
    output, (h, c) = layer(x)
    made = torch.autograd.grad(output.sum(), [x, *layer.parameters()])
    assert {t.dtype for t in (output, h, c, *made)} == {torch.bfloat16}
    exact = LSTM(5, 7)
    exact.load_state_dict(layer.state_dict())
    torch.testing.assert_close(output.float(), exact(x.float())[0], rtol=0, atol=2e-2)  # 8 bits, three steps


@needs_bfloat16
def test_a_gradient_of_a_gradient_comes_from_the_reference_backend():
    torch.manual_seed(0)
    layer = GRU(2, 3)
    found = []
    for run in (low, lambda layer, x: layer(x)):
        x = torch.ones(2, 8, 2, requires_grad=True)
        first, = torch.autograd.grad(run(layer, x)[0].float().square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), x)[0])
    torch.testing.assert_close(*found, rtol=0.1, atol=1e-4)  # 8 bits, twice


@pytest.mark.parametrize("unit", [pytest.param(True, marks=needs_bfloat16), False], ids=["on such a CPU", "on others"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32 input", "bfloat16 input"])
def test_autocast_gives_outputs_of_its_dtype_and_states_of_the_parameters_on_every_cpu(unit, dtype, monkeypatch):
    if not unit:
        monkeypatch.setattr(dispatch, "target", lambda: replace(target(), pairs=False, tiles=False))
    torch.manual_seed(0)
    layer, x = LSTM(3, 6, num_layers=2), torch.randn(9, 2, 3)
    output, (h, c) = low(layer, x.to(dtype), record="f")[:2]
    output.float().sum().backward()
    assert (output.dtype, h.dtype, c.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in layer.parameters())
    expected, _ = layer(x)
    torch.testing.assert_close(output.float(), expected, rtol=0, atol=2e-2)  # 8 bits


def test_where_nothing_multiplies_bfloat16_autocast_multiplies_float32(monkeypatch):
    monkeypatch.setattr(dispatch, "target", lambda: replace(target(), pairs=False, tiles=False))
    layer, x = GRU(3, 6), torch.randn(4, 2, 3)
    output, h = low(layer, x)
    expected, last = layer(x)
    assert torch.equal(output, expected.bfloat16())
    assert torch.equal(h, last)


def test_a_compiled_layer_has_the_same_dtypes_under_autocast():
    layer, x = LSTM(3, 6), torch.randn(4, 2, 3)
    output, (h, _) = low(torch.compile(layer, backend="aot_eager", fullgraph=True), x)
    assert (output.dtype, h.dtype) == (torch.bfloat16, torch.float32)


@needs_bfloat16
@pytest.mark.parametrize("given", [
    {},
    dict(lengths=torch.tensor([7, 9, 0])),
    dict(resets=torch.tensor([[0, 1, 0]] * 9, dtype=torch.bool)),
    dict(record=("f", "c")),
], ids=["plain", "lengths", "resets", "record"])
@pytest.mark.parametrize("options", [{}, dict(num_layers=2, bidirectional=True), dict(checkpoint_every=4)], ids=str)
def test_a_compiled_layer_multiplies_bfloat16_as_an_eager_one_does(options, given):
    torch.compiler.reset()
    torch.manual_seed(0)
    layer, x = LSTM(4, 6, **options), torch.randn(9, 3, 4, requires_grad=True)
    found = []
    for run in (layer, torch.compile(layer, backend="aot_eager", fullgraph=True)):
        output, (h, c), *records = low(run, x, **given)
        made = [output, h, c, *(y for named in records for y in named.values())]
        loss = sum(y.float().square().sum() for y in made)
        found.append([*made, *torch.autograd.grad(loss, [x, *layer.parameters()])])
    assert [(t.dtype, t.shape) for t in found[0]] == [(t.dtype, t.shape) for t in found[1]]
    for eager, compiled in zip(*found):
        torch.testing.assert_close(compiled, eager, rtol=0, atol=0)
    rounded = [(a.float() - b).abs().max() > 1e-4 for a, b in zip(found[1], layer(x.detach(), **given)[:1])]
    assert all(rounded)  # 8 bits, or float32 would have been multiplied


@needs_bfloat16
@pytest.mark.parametrize("rows", [1, 3])
def test_gradients_of_outputs_and_of_last_states_are_added_up_in_recorded_calls_as_in_others(rows, monkeypatch):
    torch.manual_seed(0)
    layer, x = LSTM(5, 33), torch.randn(40, rows, 5, requires_grad=True)
    found = []
    for number in range(3):  # the second one records, the third one repeats
        output, (h, c) = low(layer, x)
        if number == 2:
            monkeypatch.setattr(Call, "_any_backward", None)
        loss = output.float().sin().sum() + h.square().sum() + c.cos().sum()
        found.append(torch.autograd.grad(loss, [x, *layer.parameters()]))
    for first, *others in zip(*found):
        for again in others:
            torch.testing.assert_close(again, first, rtol=0, atol=0)


@needs_bfloat16
def test_a_compiled_layer_of_bfloat16_is_as_an_eager_one():
    torch.manual_seed(0)
    layer, x = GRU(4, 6).bfloat16(), torch.randn(9, 3, 4).bfloat16()
    for eager, compiled in zip(layer(x), torch.compile(layer, backend="aot_eager", fullgraph=True)(x)):
        torch.testing.assert_close(compiled, eager, rtol=0, atol=0)


@needs_bfloat16
def test_a_program_that_multiplies_bfloat16_says_where_it_cannot_run(monkeypatch):
    layer, x = LSTM(3, 6), torch.randn(9, 2, 3)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    low(compiled, x)
    monkeypatch.setattr(registered, "target", lambda: replace(target(), pairs=False, tiles=False))
    with pytest.raises(RuntimeError, match="this program multiplies bfloat16 in lstm, which this processor does not"):
        low(compiled, x)


@needs_bfloat16
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch 2.15 on its own check
@pytest.mark.parametrize("every", [0, 2])
def test_registered_operator_passes_the_checks_of_torch_with_products_of_bfloat16(every):
    torch.manual_seed(0)
    cell, sizes = autograd.register(trace(cells.lstm)), torch.tensor([9, 8, 6])  # one place less than there are
    x, states = torch.randn(24, 2, requires_grad=True), [torch.randn(9, 4) for _ in range(2)]
    weights = [torch.randn(s, requires_grad=True) for s in ((16, 2), (16, 4), (16,), (16,))]
    torch.library.opcheck(torch.ops.gatework.scan,
                          (cell.fingerprint, "h,i", [x], states, weights, False, sizes, every, False, True, True))


@needs_bfloat16
def test_kernels_of_another_dtype_say_what_they_serve():
    with pytest.raises(ValueError, match="bfloat16 on one that multiplies it.*float16"):
        LSTM(3, 4, backend="cpu").half()(torch.zeros(2, 1, 3).half())
    assert gatework.nn.LSTM(3, 4, backend="cpu").bfloat16()(torch.zeros(2, 1, 3).bfloat16())[0].shape == (2, 1, 4)


@needs_bfloat16
@pytest.mark.parametrize("grows", [False, True], ids=["inference", "training"])
def test_outputs_are_tensors_of_their_own_that_may_be_written_over(grows):
    torch.manual_seed(0)
    layer, x = LSTM(3, 6), torch.randn(40, 2, 3)
    found = []
    for _ in range(3):  # walked through, recorded, repeated
        with torch.set_grad_enabled(grows):
            output, (h, _) = low(layer, x)
            found.append(output.detach().clone())
            assert output._base is None
            output += 1
            torch.nn.functional.relu_(output)
        assert torch.equal(h[0].bfloat16(), found[-1][-1])
        assert not torch.equal(h[0], found[-1][-1].float())  # the state itself is not rounded
    assert all(torch.equal(a, found[0]) for a in found)


@needs_bfloat16
def test_what_only_products_read_is_kept_as_bfloat16_and_nothing_else():
    def kept(cell) -> set[str]:
        sizes = dict.fromkeys(trace(cell).sizes, 32)
        loop = kernel_for(trace(cell), sizes, 4, short=True)._training[0].loop
        return {name for name, b in loop.buffers.items() if b.short and name.startswith("seq_")}

    assert kept(cells.lstm) == {"seq_h"}
    assert kept(cells.gru) == set()    # h goes on, element by element
    assert kept(cells.elman) == set()  # the derivative reads it


@needs_bfloat16
@pytest.mark.parametrize("sizes", [(9, 2, 32, 32), (4, 5, 64, 64)], ids=str)
def test_nothing_is_read_behind_the_end_of_the_input(sizes):
    T, B, I, H = sizes  # noqa: E741
    page, libc = mmap.PAGESIZE, ctypes.CDLL(None)
    memory = mmap.mmap(-1, 4 * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert libc.mprotect(ctypes.c_void_p(start + 3 * page), ctypes.c_size_t(page), 0) == 0  # nobody may read there
    x = torch.frombuffer(memory, dtype=torch.bfloat16, count=T * B * I, offset=3 * page - 2 * T * B * I).view(T, B, I)
    layer = LSTM(I, H).bfloat16()
    expected = layer(x.clone())[0]
    assert all(torch.equal(layer(x)[0], expected) for _ in range(3))  # through torch, and recorded


@needs_bfloat16
def test_a_graph_that_is_kept_gives_the_same_gradients_twice():
    torch.manual_seed(0)
    layer, x = LSTM(32, 64), torch.randn(5, 5, 32)
    loss = low(layer, x)[0].float().square().sum()
    first = torch.autograd.grad(loss, list(layer.parameters()), retain_graph=True)
    for a, b in zip(first, torch.autograd.grad(loss, list(layer.parameters()))):
        assert torch.equal(a, b)
