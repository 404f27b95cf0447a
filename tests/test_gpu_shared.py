"""The same with units shared by programs that hand vectors over and meet, each a thread in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from examples import CELLS, CORE, Example, assert_close
from test_cpu import EDGES
from test_gpu_steps import all_options_at_once, forget_kernels, read_out, text_of_lstm, two_sizes

from gatework import autograd, cells
from gatework.backends.gpu import device, kernel, shared, together
from gatework.compiler import split, trace
from gatework.nn import GRU, LSTM

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
OTHERS = [trace(getattr(cells, name)) for name in cells.__all__ if name not in CORE]
BOUND = 2e-5  # of the largest value, as in test_gpu.py


@pytest.fixture(autouse=True)
def units_are_shared(monkeypatch):
    monkeypatch.setattr(kernel, "FORMS", (kernel.Shared,))
    monkeypatch.setattr(kernel, "_members", lambda loop, dtype: 2)
    monkeypatch.setattr(kernel, "PIECE", 16)
    monkeypatch.setattr(kernel.Shared, "fits", lambda loop, dtype: True)
    monkeypatch.setattr(together, "LONGEST_WAIT", 60)
    forget_kernels()
    yield
    forget_kernels()


def made(example: Example, reverse: bool) -> dict[str, torch.Tensor]:
    return example._results(torch.float32, lambda *parts: autograd.scan(example.cell, *parts, reverse, "gpu"))


@pytest.mark.parametrize("cell", [*CELLS, *OTHERS], ids=lambda c: c.name)
def test_values_and_gradients_of_every_cell_are_those_of_the_reference_backend(cell):
    example = Example(cell, 3, 3, 5, 18, torch.float32)
    assert_close(made(example, False), example.expected(), BOUND)


@pytest.mark.parametrize("equations", [*EDGES, read_out, two_sizes])
def test_cells_at_the_edge_of_the_notation(equations):
    example = Example(trace(equations), 4, 3, 5, 19, torch.float32)
    assert_close(made(example, True), example.expected(True), BOUND)


@pytest.mark.parametrize("cell", [cells.lstm, cells.gru_reset_before, cells.layer_norm_gru])
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (2, 35, 3, 70)], ids=str)
@pytest.mark.parametrize("members", [2, 4])
def test_odd_sizes_in_one_launch_or_in_several(cell, sizes, members, monkeypatch):
    monkeypatch.setattr(kernel, "_members", lambda loop, dtype: members)
    monkeypatch.setattr(device, "processors", lambda: 8)
    example = Example(trace(cell), *sizes, torch.float32)
    assert_close(made(example, True), example.expected(True), BOUND)


@pytest.mark.parametrize("make", [LSTM, GRU])
def test_ragged_rows_resets_recorded_values_both_directions_and_layers_go_together(make):
    for a, b in all_options_at_once(make, 18):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=5e-6)  # float32 over four steps, both directions


def test_half_precision_stays_as_near_as_its_digits_allow():
    example = Example(trace(cells.lstm), 3, 3, 5, 18, torch.float16)
    found = example._results(torch.float16, lambda *parts: autograd.scan(example.cell, *parts, False, "gpu"))
    assert_close(found, example.expected(), 8 * 2.0**-11)  # a few roundings to 11 digits each


def test_nan_in_one_row_stays_in_that_row():
    x = torch.randn(3, 4, 2)
    x[1, 2] = torch.nan
    output, _ = GRU(2, 18, backend="gpu")(x)
    assert output[1:, 2].isnan().all()
    assert output[:, [0, 1, 3]].isfinite().all()


def test_a_member_that_is_never_met_ends_in_an_error(monkeypatch):
    monkeypatch.setattr(together, "LONGEST_WAIT", 0.5)
    meet, met = together._Programs._meet, []

    def once(self, counter, arrived):
        met.append(arrived)
        if len(met) != 2:
            meet(self, counter, arrived)

    monkeypatch.setattr(together._Programs, "_meet", once)
    with pytest.raises(Exception, match="Broken"):
        made(Example(trace(cells.lstm), 3, 3, 5, 18, torch.float32), False)


@pytest.mark.parametrize(("hidden", "members"), [(256, 4), (512, 16), (1024, None)])
def test_members_are_as_few_as_the_weights_need_and_none_where_an_operand_has_no_room(hidden, members, monkeypatch):
    monkeypatch.undo()
    cell = trace(cells.lstm)
    made_of = kernel.Kernel(split(cell), dict.fromkeys(cell.sizes, hidden), torch.float16)
    loop = made_of._backward_plan.loop
    assert kernel.Shared.fits(loop, torch.float16) == (members is not None)
    assert not kernel.Shared.fits(loop, torch.float32)
    if members is not None:
        assert kernel.Shared(loop, cell, torch.float16).members == members


def test_the_source_of_a_member_is_as_pinned(golden):
    golden("lstm/triton_shared.txt", text_of_lstm(lambda loop, cell: shared.write(loop, cell, 2, 32)))
