"""The fused kernels of the CPU backend against the reference backend: every cell, odd shapes, all gradients."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from examples import CELLS, Example, assert_close, assert_same_bits

from gatework import autograd, cells
from gatework.backends.batch import Batch
from gatework.backends.cpu import kernel
from gatework.backends.cpu.target import SETTING, _host
from gatework.compiler import Bias, Constant, H, Input, Matrix, State, Vector, sigmoid, sum, tanh, trace

# Relative to the largest value, against the reference in float64. float64: sums of up to 256 terms, each rounded to
# 1.1e-16; the largest difference measured over all cells and shapes here is 2.2e-15. float32: the same with 6e-8;
# measured 2.4e-6. BLAS libraries add up in other orders, so the bounds leave room.
BOUND = {torch.float64: 2e-14, torch.float32: 6e-6}

# T B I H: sizes below, at and above multiples of all vectors (2 to 16 lanes), of tiles (8 rows) and of both at once.
SHAPES = {torch.float64: [(1, 1, 1, 1), (5, 3, 5, 33), (2, 20, 1, 33), (4, 64, 5, 64)],
          torch.float32: [(1, 1, 5, 17), (2, 20, 1, 17), (3, 7, 5, 40), (4, 64, 1, 64)]}


def shape_id(shape) -> str:
    return "-".join(f"{letter}{size}" for letter, size in zip("TBIH", shape))


def name_of(cell) -> str:
    return cell.name


def grid():
    for cell in CELLS:
        for dtype, shapes in SHAPES.items():
            for number, shape in enumerate(shapes):
                # both directions of every cell and dtype, at alternating shapes
                reverse = number % 2 == 1
                yield pytest.param(cell, dtype, shape, reverse, id="-".join(
                    [cell.name, str(dtype)[6:], shape_id(shape), *(["reverse"] if reverse else [])]))


@pytest.mark.parametrize(("cell", "dtype", "shape", "reverse"), list(grid()))
def test_outputs_states_and_all_gradients_equal_the_reference(cell, dtype, shape, reverse):
    example = Example(cell, *shape, dtype)
    assert_close(example.fused(reverse), example.expected(reverse), BOUND[dtype])


# Cells at the edge of what the equations allow: values that are copied, kept or added up where others are computed.

def copied_state(x: Input, h: State, c: State, W: Matrix, U: Matrix):
    return dict(h=tanh(W @ x + U @ h + c), c=h)


def kept_state(x: Input, h: State, c: State, W: Matrix):
    return dict(h=tanh(W @ x + c) * h, c=c)


def delayed_input(x: Input[H], h: State, c: State, v: Vector):
    return dict(h=v * c + 0.5 * h, c=x)


def linear(x: Input, h: State, W: Matrix, U: Matrix):
    return dict(h=W @ x + U @ h)


def crossed_products(x: Input, h: State, c: State, W: Matrix, U: Matrix):
    return dict(h=U @ c + W @ x, c=U @ h)


def product_of_an_input_product(x: Input, h: State, W: Matrix, U: Matrix):
    return dict(h=U @ (W @ x) + 0.5 * h)


def product_of_a_constant_product(x: Input, k: Constant, h: State, W: Matrix, U: Matrix, V: Matrix):
    return dict(h=tanh(U @ (V @ k) + W @ x + 0.5 * h))


def constant_at_work(x: Input[H], k: Constant[H], h: State, v: Vector):
    return dict(h=k * h * v + x)


def scaled_by_a_sum(x: Input, h: State, W: Matrix, U: Matrix, v: Vector):
    return dict(h=sum(v * h) * tanh(W @ x + U @ h))


def sum_of_an_input_product(x: Input, h: State, W: Matrix, v: Vector):
    return dict(h=sum(v * (W @ x)) + sigmoid(h))


def sums_of_sums(x: Input[H], h: State, v: Vector):
    a = sum(v * h)
    return dict(h=tanh(x + sum(a * v * x) * h + a))


def no_state_read(x: Input, h: State, W: Matrix, b: Bias):
    return dict(h=tanh(W @ x + b))


def input_product(x: Input, h: State, c: State, W: Matrix, U: Matrix):
    return dict(h=W.a @ x, c=tanh(U @ h + c + W.b @ x))


EDGES = [copied_state, kept_state, delayed_input, linear, crossed_products, product_of_an_input_product,
         product_of_a_constant_product, constant_at_work, scaled_by_a_sum, sum_of_an_input_product, sums_of_sums,
         no_state_read, input_product]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("equations", EDGES)
def test_cell_at_the_edge_of_the_notation_equals_the_reference(equations, reverse):
    example = Example(trace(equations), 4, 3, 5, 19)
    assert_close(example.fused(reverse), example.expected(reverse), BOUND[torch.float64])


# The vectors of the machine.

@pytest.mark.parametrize("vector", _host())
@pytest.mark.parametrize("cell", CELLS, ids=name_of)
def test_every_vector_of_this_machine_gives_the_result_of_the_reference(cell, vector, monkeypatch):
    monkeypatch.setenv(SETTING, vector)
    for dtype in BOUND:
        example = Example(cell, 3, 5, 2, 19, dtype)
        k = kernel.kernel_for(cell, example.sizes, 4 if dtype == torch.float32 else 8)
        assert k.machine.name == vector
        assert_close(example.fused(), example.expected(), BOUND[dtype])


def test_unknown_vector_is_refused_with_the_ones_that_this_machine_can_run(monkeypatch):
    monkeypatch.setenv(SETTING, "avx1024")
    with pytest.raises(ValueError, match=f"avx1024: this machine can run {', '.join(_host())}"):
        Example(trace(cells.lstm), 1, 1, 1, 1).fused()


# Memory: what is not written is NaN, and NaN stays where it belongs.

@pytest.mark.parametrize("cell", [*CELLS, *map(trace, EDGES)], ids=name_of)
def test_every_value_of_a_result_is_written(cell, monkeypatch):
    shape = (4, 3, 5, 19)  # of the test above, whose kernels are compiled already for some cells
    example = Example(cell, *shape)
    expected = example.fused()
    monkeypatch.setattr(autograd.Torch, "empty",
                        lambda self, *shape, short=False: torch.full(shape, float("nan"), dtype=self.dtype))
    assert_same_bits(example.fused(), expected)


@pytest.mark.parametrize("cell", CELLS, ids=name_of)
@pytest.mark.parametrize("reverse", [False, True])
def test_a_single_step_of_inference_is_that_of_the_reference_backend(cell, reverse, monkeypatch):
    example = Example(cell, 1, 4, 5, 19)
    inputs, states, parameters = example.inputs, example.states, example.parameters
    dense = [autograd.dispatch.reference.dense(f, p) for f, p in zip(cell.families.values(), parameters)]
    monkeypatch.setattr(autograd.functions.kernel_of(cell, (cell.output,), inputs, states, dense), "packs", True)
    ragged = [x if e.op == "constant" else x[0, :3] for e, x in zip(cell.inputs.values(), inputs)]
    with torch.no_grad():
        for given, sizes in ((inputs, None), (ragged, torch.tensor([3]))):  # of four rows one has no step
            found, expected = (autograd.scan(cell, given, states, parameters, reverse, backend, sizes=sizes)
                               for backend in ("cpu", "reference"))
            for a, b in zip((*found[0], *found[1]), (*expected[0], *expected[1]), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)  # float64


@pytest.mark.parametrize("cell", [c for c in CELLS if c.name != "switched"], ids=name_of)
def test_nan_in_the_input_spoils_its_row_from_its_step_on_and_no_other(cell):
    example = Example(cell, 4, 3, 5, 19)
    expected = example.fused()["output"]
    example.inputs[0][2, 1, 3] = float("nan")
    found = example.fused()["output"]
    assert found[2:, 1].isnan().all()
    assert torch.equal(found[:2], expected[:2])
    assert torch.equal(found[:, [0, 2]], expected[:, [0, 2]])


@pytest.mark.parametrize("dtype", BOUND, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("name", ["elman", "lstm", "peephole_lstm", "coupled_lstm", "gru", "gru_reset_before"])
def test_infinite_pre_activations_saturate_the_gates(name, dtype):
    example = Example(trace(getattr(cells, name)), 3, 2, 1, 19, dtype)
    example.inputs[0][:] = float("inf")
    output = example.fused()["output"]
    expected = example.expected()["output"]
    assert output.isfinite().all()
    assert_close(dict(output=output), dict(output=expected), BOUND[dtype])


# Only what is asked for.

class Counting(autograd.Torch):
    """Torch, with a count of its products."""

    products = 0

    @classmethod
    def matmul(cls, *args, **options):
        cls.products += 1
        return torch.matmul(*args, **options)


@pytest.mark.parametrize("cell", CELLS, ids=name_of)
def test_a_gradient_that_nobody_needs_costs_no_product(cell):
    example = Example(cell, 3, 2, 5, 19)
    k = kernel.kernel_for(cell, example.sizes, 8)
    batch, parts = Batch.dense(3, 2), example.flat()
    upstream, *last = example.upstream

    def backward(needs) -> tuple[list, int]:
        handed, _, kept = k.forward(autograd.Torch(upstream), batch, *parts, False, True)
        Counting.products = 0
        made = k.backward(Counting(upstream), batch, [upstream.flatten(0, 1)], last, *parts, handed, kept, False, needs)
        return made, Counting.products

    everything, most = backward([True] * len(example.tensors))
    nothing, least = backward([False] * len(example.tensors))
    assert nothing == [None] * len(example.tensors)
    assert least == (cell.name == "conditioned") < most  # V @ context is made again for the loop
    for number, value in enumerate(everything):
        made, products = backward([k == number for k in range(len(everything))])
        assert [m is not None for m in made] == [k == number for k in range(len(everything))]
        assert torch.equal(made[number], value)
        assert products < most


# Without torch.

WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
import numpy as np
from gatework.backends.cpu import kernel_for
from gatework.backends.cpu.arrays import Numpy
from gatework.backends.batch import Batch
from gatework import cells, trace
given = np.load(sys.argv[1])
parts = [[given[f"{kind}{k}"] for k in range(int(given[kind]))] for kind in ("inputs", "states", "parameters")]
k = kernel_for(trace(cells.peephole_lstm), dict(I=5, H=19), 8)
xp, batch, shape = Numpy(parts[0][0]), Batch.dense(4, 3), parts[0][0].shape
parts[0] = [x.reshape(12, -1) for x in parts[0]]
(output,), last, kept = k.forward(xp, batch, *parts, False, True)
ones = [np.ones_like(a) for a in (output, *last)]
made = k.backward(xp, batch, ones[:1], ones[1:], *parts, [output.copy()], kept, False, [True] * sum(map(len, parts)))
np.savez(sys.argv[2], *[output.reshape(4, 3, -1), *last, made[0].reshape(shape), *made[1:]])
"""


def test_numpy_arrays_without_torch_give_what_torch_tensors_give(tmp_path):
    example = Example(trace(cells.peephole_lstm), 4, 3, 5, 19)
    example.upstream = [torch.ones_like(u) for u in example.upstream]
    groups = dict(inputs=example.inputs, states=example.states, parameters=example.parameters)
    np.savez(tmp_path / "given.npz", **{k: len(v) for k, v in groups.items()},
             **{f"{k}{n}": a.numpy() for k, v in groups.items() for n, a in enumerate(v)})
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH, tmp_path / "given.npz", tmp_path / "made.npz"], check=True)
    made = np.load(tmp_path / "made.npz")
    found = {name: torch.from_numpy(made[f"arr_{k}"]) for k, name in enumerate(example.names)}
    # numpy and torch bring different BLAS libraries: sums round differently
    assert_close(found, example.fused(), BOUND[torch.float64])
