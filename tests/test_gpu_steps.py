"""The same with weights of any size: a kernel for every stage of every step, in Triton's interpreter."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from examples import CELLS, CORE, Example, assert_close
from test_cpu import EDGES

from gatework import autograd, cells
from gatework.autograd import functions
from gatework.backends.gpu import device, kernel, replays, stages, steps
from gatework.backends.gpu.replays import Turns
from gatework.backends.gpu.steps import Steps
from gatework.compiler import Input, Matrix, P, Scalar, State, mean, sigmoid, split, tanh, trace
from gatework.nn import GRU, LSTM, Recurrent

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
OTHERS = [trace(getattr(cells, name)) for name in cells.__all__ if name not in CORE]
BOUND = 2e-5  # of the largest value, as in test_gpu.py


def forget_kernels() -> None:
    kernel._kernel.cache_clear()
    functions.kernel_of_shapes.cache_clear()


@pytest.fixture(autouse=True)
def no_weights_are_small(monkeypatch):
    monkeypatch.setattr(kernel, "MOST_RESIDENT", -1)
    forget_kernels()
    yield
    forget_kernels()


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", [*CELLS, *OTHERS], ids=lambda c: c.name)
def test_values_and_gradients_of_every_cell_are_those_of_the_reference_backend(cell, reverse):
    example = Example(cell, 3, 3, 5, 18, torch.float32)
    given = [t.clone() for t in example.tensors]
    found = example._results(torch.float32, lambda *parts: autograd.scan(cell, *parts, reverse, "gpu"))
    assert_close(found, example.expected(reverse), BOUND)
    assert all(map(torch.equal, example.tensors, given))


def read_out(x: Input, h: State, c: State, W: Matrix, U: Matrix, V: Matrix):
    """The gradient from outside is multiplied in its own step."""
    c = tanh(W @ x + V @ c)
    return dict(h=U @ c, c=c)


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("equations", [*EDGES, read_out])
def test_cells_at_the_edge_of_the_notation(equations, resident, monkeypatch):
    if resident:
        monkeypatch.setattr(kernel, "MOST_RESIDENT", 1 << 17)
    example = Example(trace(equations), 4, 3, 5, 19, torch.float32)
    found = example._results(torch.float32, lambda *parts: autograd.scan(example.cell, *parts, True, "gpu"))
    assert_close(found, example.expected(True), BOUND)


@pytest.mark.parametrize("cell", [*CELLS, *OTHERS, *map(trace, EDGES), trace(read_out)], ids=lambda c: c.name)
def test_no_product_reads_what_something_stands_in_for_at_an_edge(cell):
    sizes = Example(cell, 1, 1, 5, 18).sizes
    made = kernel.Kernel(split(cell), sizes, torch.float32)
    for loop in (made._training_plan.loop, made._backward_plan.loop):
        places = [loop.reads[v] for step in loop.passes for v, _ in step.stage.by_operand() if v in loop.reads]
        assert all(p.turn == -1 or (p.turn == 0 and not p.edge) for p in places)


def with_a_number(x: Input, gap: Scalar, h: State, W: Matrix, U: Matrix):
    """A number of each row is kept, and has a gradient that may lie in its place."""
    pace = sigmoid(gap * mean(U @ h))
    return dict(h=pace * h + (1.0 - pace) * tanh(W @ x))


def two_sizes(x: Input, h: State, p: State[P], W: Matrix[P], U: Matrix, R: Matrix[P]):
    """A product of an input is multiplied by a matrix, and read unit by unit, by states of two sizes."""
    a = W @ x
    gate = sigmoid(p + R @ h)
    return dict(h=tanh(U @ a + 0.5 * h), p=gate * a + (1.0 - gate) * p)


@pytest.mark.parametrize("cell", [cells.lstm, cells.gru_reset_before, cells.layer_norm_gru, two_sizes, with_a_number])
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (2, 35, 3, 70)], ids=str)
@pytest.mark.parametrize("processors", [1, 132])
def test_odd_sizes_with_few_units_or_many_in_a_program(cell, sizes, processors, monkeypatch):
    monkeypatch.setattr(device, "processors", lambda: processors)
    example = Example(trace(cell), *sizes, torch.float32)
    found = example._results(torch.float32, lambda *parts: autograd.scan(example.cell, *parts, True, "gpu"))
    assert_close(found, example.expected(True), BOUND)


def all_options_at_once(make, hidden: int) -> zip:
    """Pairs of results, ours and the reference backend's, of two layers in both directions."""
    torch.manual_seed(0)
    ours = make(3, hidden, num_layers=2, bidirectional=True, initial_state=True, backend="gpu")
    reference = make(3, hidden, num_layers=2, bidirectional=True, initial_state=True, backend="reference").double()
    reference.load_state_dict(ours.state_dict())
    x, resets = torch.randn(4, 5, 3), torch.rand(4, 5) < 0.3
    results = []
    for layer, given in ((ours, x), (reference, x.double())):
        given = given.clone().requires_grad_()
        output, last, values = layer(given, lengths=[2, 4, 0, 1, 4], resets=resets, record=True)
        last = last if isinstance(last, tuple) else (last,)
        (output.sin().sum() + sum(s.sum() for s in last) + sum(v.square().sum() for v in values.values())).backward()
        results.append([output, *last, *values.values(), given.grad, *(p.grad for p in layer.parameters())])
    return zip(*results, strict=True)


@pytest.mark.parametrize("make", [LSTM, GRU])
def test_ragged_rows_resets_recorded_values_both_directions_and_layers_go_together(make):
    for a, b in all_options_at_once(make, 5):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=5e-6)  # float32 over four steps, both directions


@pytest.mark.parametrize("cell", [cells.lstm, cells.layer_norm_gru])
def test_half_precision_stays_as_near_as_its_digits_allow(cell):
    example = Example(trace(cell), 3, 3, 5, 70, torch.float16)
    found = example._results(torch.float16, lambda *parts: autograd.scan(example.cell, *parts, False, "gpu"))
    assert_close(found, example.expected(), 8 * 2.0**-11)  # a few roundings to 11 digits each


class InterpretedTurns(Turns):
    """Graphs that launch their kernels one by one, since there is no GPU; what they are told is the same."""

    recorded: list[int] = []

    def _can_replay(self):
        return True

    def _wait(self):
        pass

    def _event(self):
        pass

    def _recorded(self, turns, aligned):
        def replay():
            self._launch(self.told, turns, aligned)
            self.advance[1,](self.told, turns)

        self.recorded.append(turns)
        return SimpleNamespace(replay=replay)


@pytest.mark.parametrize("cell", [cells.lstm, cells.projected_lstm, cells.layer_norm_gru])
def test_replayed_turns_give_what_launched_ones_give_for_every_length_and_batch(cell, monkeypatch):
    cell = trace(cell)
    example = [Example(cell, T, B, 5, 20, torch.float32) for T, B in ((6, 3), (10, 5))]

    def made(e):
        return e._results(torch.float32, lambda *parts: autograd.scan(e.cell, *parts, False, "gpu"))

    launched = [made(e) for e in example]
    forget_kernels()
    monkeypatch.setattr(replays, "FEWEST", 6)
    monkeypatch.setattr(replays, "LENGTHS", (4, 1))
    monkeypatch.setattr(steps, "Turns", InterpretedTurns)
    monkeypatch.setattr(InterpretedTurns, "recorded", [])
    for e, expected in zip(example, launched):
        for name, value in made(e).items():
            assert torch.equal(value, expected[name]), name
    # One recording of each, forward and backward: the first turn of all is launched, then come 4 + 1, 4 + 4 + 1 + 1.
    assert sorted(InterpretedTurns.recorded) == [1, 1, 4, 4]


def test_no_number_of_a_row_is_written_over_one_that_other_programs_still_read():
    cell = trace(with_a_number)
    made = kernel.Kernel(split(cell), Example(cell, 1, 1, 5, 20).sizes, torch.float32)
    for loop in (stages.joined(made._training_plan.loop), stages.joined(made._backward_plan.loop)):
        for step in loop.passes:
            written = {(p.buffer, p.offset) for e, p in step.stores if not e.dims}
            used = {a for e in step.stage.nodes for a in e.args if a in loop.reads}
            assert not written & {(loop.reads[a].buffer, loop.reads[a].offset) for a in used}


def test_replayed_turns_read_tensors_that_begin_anywhere(monkeypatch):
    monkeypatch.setattr(steps, "Turns", InterpretedTurns)
    monkeypatch.setattr(InterpretedTurns, "recorded", [])
    layer, x = Recurrent(cells.elman, 1, 18, backend="gpu"), torch.randn(10, 1, 1)
    with torch.no_grad():
        expected, _ = layer(x)
        layer.bias_hh_l0.data = torch.cat([torch.zeros(1), layer.bias_hh_l0])[1:]
        assert layer.bias_hh_l0.data_ptr() % 16 == 4
        assert torch.equal(layer(x)[0], expected)
    assert sorted(InterpretedTurns.recorded) == [1, 1, 8, 8]  # for addresses that are multiples of 4, and of 16


def test_the_state_of_half_precision_is_carried_in_float32():
    def count(x: Input, h: State, W: Matrix, U: Matrix):
        return dict(h=h + W @ x + U @ h)

    layer = Recurrent(count, 1, 1, backend="gpu").half()
    layer.weight_ih_l0.data.fill_(2.0**-12)
    layer.weight_hh_l0.data.zero_()
    output, _ = layer(torch.ones(40, 1, 1).half(), torch.ones(1, 1, 1).half())
    assert output[-1].item() == pytest.approx(1 + 40 * 2**-12, rel=2**-11)  # added up in float16 it would stay 1


def text_of_lstm(write) -> str:
    """What `write` makes of the loops of an LSTM of 40 units."""
    cell = trace(cells.lstm)
    made = kernel.Kernel(split(cell), dict.fromkeys(cell.sizes, 40), torch.float16)
    plans = {"forward": made._training_plan, "backward": made._backward_plan}
    return "\n".join(f"# ---- {name}\n{write(plan.loop, cell)}" for name, plan in plans.items())


def test_the_source_is_as_pinned(golden):
    golden("lstm/triton_steps.txt", text_of_lstm(lambda loop, cell: stages.write(loop, cell, "bfloat16")))


@pytest.mark.parametrize("held", [True, False])
def test_where_no_row_has_a_step_first_states_are_the_last_ones_and_have_their_gradient(held, monkeypatch):
    if held:
        monkeypatch.setattr(kernel, "MOST_RESIDENT", 1 << 17)
    layer, first = LSTM(3, 18, backend="gpu"), torch.randn(2, 1, 2, 18, requires_grad=True)
    output, (h, c) = layer(torch.ones(4, 2, 3), tuple(first), lengths=[0, 0])
    assert torch.equal(output, torch.zeros(4, 2, 18))
    assert torch.equal(torch.stack([h, c]), first)
    gradients = torch.autograd.grad((h + 2.0 * c).sum(), [first, *layer.parameters()])
    assert torch.equal(gradients[0], torch.stack([torch.ones_like(h), 2.0 * torch.ones_like(c)]))
    assert not any(g.any() for g in gradients[1:])


@pytest.mark.parametrize("held", [True, False])
def test_no_steps_leave_the_first_state(held, monkeypatch):
    if held:
        monkeypatch.setattr(kernel, "MOST_RESIDENT", 1 << 17)
    example = Example(trace(cells.elman), 1, 3, 5, 18, torch.float32)
    first = torch.randn(3, 18)
    parameters = [torch.ones(18, 5), torch.ones(18, 18), torch.ones(18), torch.ones(18)]
    handed, last = autograd.scan(example.cell, [torch.zeros(0, 3, 5)], [first], parameters, True, "gpu")
    assert handed[0].shape == (0, 3, 18)
    assert torch.equal(last[0], first)


@pytest.mark.parametrize("make", [LSTM, GRU])
def test_nan_in_one_row_stays_in_that_row_and_in_its_gradient(make):
    x = torch.randn(3, 4, 2)
    x[1, 2] = torch.nan
    x.requires_grad_()
    output, _ = make(2, 18, backend="gpu")(x)
    assert output[1:, 2].isnan().all()
    assert output[:, [0, 1, 3]].isfinite().all()
    gradient, = torch.autograd.grad(output.sum(), x)
    assert gradient[:, 2].isnan().any()
    assert gradient[:, [0, 1, 3]].isfinite().all()


def test_programs_have_the_units_of_the_loop_and_few_grids_serve_all_batches():
    cell = trace(cells.lstm)
    made = kernel.Kernel(split(cell), {"I": 3000, "H": 40}, torch.float32)
    loop = made.compile(made._training_plan.loop)
    assert loop.grid(5)[0] == (1, 3)
    grids = {loop.grid(rows)[0] for rows in range(1, 2000)}
    assert len(grids) < 30
    assert all(tiles * how["ROWS"] >= rows for rows in range(1, 2000) for (tiles, _), how in [loop.grid(rows)])


def test_memory_of_another_type_than_a_kernel_reads_is_refused(monkeypatch):
    pack = Steps.pack
    monkeypatch.setattr(Steps, "pack", lambda *given: pack(*given).double())
    with pytest.raises(TypeError, match="weights must be torch.float32; given was torch.float64"):
        LSTM(3, 18, backend="gpu")(torch.zeros(2, 1, 3))


@pytest.mark.parametrize("states", [torch.float32, torch.float16])
def test_under_autocast_ragged_rows_with_resets_and_first_states_are_as_near_as_halves_allow(states):
    torch.manual_seed(0)
    ours, reference = LSTM(3, 18, backend="gpu"), LSTM(3, 18, backend="reference").double()
    reference.load_state_dict(ours.state_dict())
    x, first = torch.randn(4, 5, 3), tuple(torch.randn(2, 1, 5, 18).to(states))
    options = dict(lengths=[2, 4, 0, 1, 4], resets=torch.rand(4, 5) < 0.3)
    with torch.autocast("cpu", torch.float16):
        output, last = ours(x, first, **options)
    expected, exact = reference(x.double(), tuple(s.double() for s in first), **options)
    (output.float().sin().sum() + sum(s.float().sum() for s in last)).backward()
    (expected.sin().sum() + sum(s.sum() for s in exact)).backward()
    for a, b in zip((output, *last), (expected, *exact)):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=8 * 2.0**-11)  # a few roundings to 11 digits each
    for p, q in zip(ours.parameters(), reference.parameters()):
        torch.testing.assert_close(p.grad.double(), q.grad, rtol=0, atol=8 * 2.0**-11 * float(q.grad.abs().max()))


@pytest.mark.parametrize(("cell", "units", "form"), [(cells.lstm, 128, kernel.Compiled), (cells.lstm, 160, Steps),
                                                     (cells.layer_norm_lstm, 64, kernel.Compiled),
                                                     (cells.layer_norm_lstm, 128, Steps)])
def test_a_normalising_loop_holds_a_quarter_of_the_weights(cell, units, form, monkeypatch):
    monkeypatch.undo()
    cell = trace(cell)
    made = kernel.Kernel(split(cell), dict.fromkeys(cell.sizes, units), torch.bfloat16)
    assert {type(made.compile(plan.loop)) for plan in (made._training_plan, made._backward_plan)} == {form}


def test_on_a_gpu_of_amd_all_loops_run_step_by_step_in_what_memory_it_has(monkeypatch):
    monkeypatch.undo()
    one = SimpleNamespace(multi_processor_count=304, shared_memory_per_block=64 << 10)
    other = SimpleNamespace(**vars(one) | {"multi_processor_count": 4})
    monkeypatch.setattr(device, "_properties", lambda: [one, other])
    assert (device.processors.__wrapped__(), device.shared_bytes.__wrapped__()) == (4, 64 << 10)
    cell = trace(cells.lstm)
    made = kernel.Kernel(split(cell), dict.fromkeys(cell.sizes, 20), torch.float32)
    assert type(made.compile(made._training_plan.loop)) is kernel.Compiled
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert type(made.compile(made._training_plan.loop)) is Steps


def test_large_weights_are_served_and_small_ones_stay_in_one_program(monkeypatch):
    monkeypatch.undo()
    x = torch.randn(2, 3, 4)
    for hidden, form in ((160, Steps), (20, kernel.Compiled)):
        layer = LSTM(4, hidden, backend="gpu")
        exact = LSTM(4, hidden).double()
        exact.load_state_dict(layer.state_dict())
        with torch.no_grad():
            assert (layer(x)[0] - exact(x.double())[0]).abs().max() < BOUND
        made = kernel.kernel_for(layer.cell, layer.sizes, torch.float32)
        assert type(made._inference[1]) is form
