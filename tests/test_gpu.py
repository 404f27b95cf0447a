"""The Triton kernels against the reference backend, run by Triton's interpreter, which needs no GPU."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import triton
from examples import CELLS, CORE, Example, assert_close
from triton.runtime.errors import OutOfResources

import gatework
from gatework import autograd, cells
from gatework.backends import gpu
from gatework.compiler import CellError, Input, Matrix, State, trace
from gatework.compiler.text import from_json, to_json
from gatework.nn import GRU, LSTM, Recurrent

# The units that fill up a block hold numbers of no meaning, which numpy warns of where Triton's programs run on it.
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
OTHERS = [trace(getattr(cells, name)) for name in cells.__all__ if name not in CORE]


BOUND = 2e-5  # of the largest value: float32 through exponentials of exponentials (slstm) over three steps


def made(example: Example, reverse: bool, backend: str, dtype=torch.float32) -> dict[str, torch.Tensor]:
    return example._results(dtype, lambda *parts: autograd.scan(example.cell, *parts, reverse, backend))


@pytest.mark.parametrize("cell", [*CELLS, *OTHERS], ids=lambda c: c.name)
def test_values_and_gradients_of_every_cell_are_those_of_the_reference_backend(cell):
    example = Example(cell, 3, 3, 5, 18, torch.float32)
    assert_close(made(example, False, "gpu"), example.expected(), BOUND)


@pytest.mark.parametrize("cell", [cells.lstm, cells.gru_reset_before, cells.layer_norm_gru])
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (2, 17, 3, 33)], ids=str)
def test_odd_sizes_from_the_last_step_to_the_first(cell, sizes):
    example = Example(trace(cell), *sizes, torch.float32)
    assert_close(made(example, True, "gpu"), example.expected(True), BOUND)


def layers(make, *sizes, **options):
    torch.manual_seed(0)
    ours = make(*sizes, **options, backend="gpu")
    reference = make(*sizes, **options, backend="reference").double()
    reference.load_state_dict(ours.state_dict())
    return ours, reference


@pytest.mark.parametrize("reset", [False, True])
def test_ragged_rows_resets_recorded_gates_both_directions_and_layers_go_together(reset):
    ours, reference = layers(LSTM, 3, 5, num_layers=2, bidirectional=True)
    x = torch.randn(4, 5, 3)
    options = dict(lengths=torch.tensor([2, 4, 0, 1, 4]), record=("f", "c"))
    if reset:
        options["resets"] = torch.rand(4, 5) < 0.3
    results = []
    for layer, given in ((ours, x), (reference, x.double())):
        given = given.clone().requires_grad_()
        output, (h, c), gates = layer(given, **options)
        (output.sin().sum() + h.sum() + c.sum() + gates["f_l1_reverse"].sum()).backward()
        results.append([output, h, c, *gates.values(), given.grad, *(p.grad for p in layer.parameters())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=2e-6)  # float32 over four steps


def test_half_precision_stays_as_near_as_its_digits_allow():
    example = Example(trace(cells.lstm), 3, 3, 5, 18, torch.float16)
    # A few roundings to 11 digits each. Triton's interpreter multiplies bfloat16 wrongly: that was never run.
    assert_close(made(example, False, "gpu", torch.float16), example.expected(), 8 * 2.0**-11)


def test_autocast_hands_out_halves_and_states_and_gradients_of_the_parameters_dtype():
    ours, reference = layers(LSTM, 4, 6)
    x = torch.randn(3, 5, 4)
    with torch.autocast("cpu", torch.float16):
        output, (h, c) = ours(x)
    assert (output.dtype, h.dtype, c.dtype) == (torch.float16, torch.float32, torch.float32)
    gradients = torch.autograd.grad(output.float().square().sum(), list(ours.parameters()))
    expected = torch.autograd.grad(reference(x.double())[0].square().sum(), list(reference.parameters()))
    for found, right in zip(gradients, expected):
        assert found.dtype == torch.float32
        # halves have 11 digits, and sums of a few dozen of them are added up here
        torch.testing.assert_close(found.double(), right, rtol=1e-2, atol=1e-2 * float(right.abs().max()))


def test_the_state_of_half_precision_is_carried_in_float32():
    def count(x: Input, h: State, W: Matrix):
        return dict(h=h + W @ x)

    layer = Recurrent(count, 1, 1, backend="gpu").half()
    layer.weight_ih_l0.data.fill_(2.0**-12)
    output, _ = layer(torch.ones(40, 1, 1).half(), torch.ones(1, 1, 1).half())
    assert output[-1].item() == pytest.approx(1 + 40 * 2**-12, rel=2**-11)  # added up in float16 it would stay 1


def test_checkpoints_give_the_same_gradients():
    ours, reference = layers(GRU, 3, 5)
    ours.checkpoint_every = 2
    x = torch.randn(5, 2, 3)
    for layer in (ours, reference):
        layer(x.to(layer.weight_ih_l0.dtype))[0].square().sum().backward()
    for a, b in zip(ours.parameters(), reference.parameters()):
        torch.testing.assert_close(a.grad.double(), b.grad, rtol=1e-5, atol=1e-5)  # float32


def test_nan_in_one_row_stays_in_that_row():
    x = torch.randn(3, 4, 2)
    x[1, 2] = torch.nan
    output, _ = GRU(2, 5, backend="gpu")(x)
    assert output[1:, 2].isnan().all()
    assert output[:, [0, 1, 3]].isfinite().all()


def test_a_gradient_of_a_gradient_comes_from_the_reference_backend():
    ours, reference = layers(GRU, 2, 3)
    found = []
    for layer in (ours, reference):
        x = torch.ones(2, 1, 2, dtype=layer.weight_ih_l0.dtype, requires_grad=True)
        first, = torch.autograd.grad(layer(x)[0].square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), x)[0].double())
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)  # float32, twice


def test_what_it_cannot_serve_is_refused_with_the_way_out():
    x = torch.zeros(2, 1, 4)
    with pytest.raises(ValueError, match="torch.float64 on cpu.*reference"):
        GRU(4, 3, backend="gpu").double()(x.double())
    with pytest.raises(ValueError, match="bfloat16 wrongly"):
        GRU(4, 3, backend="gpu").bfloat16()(x.bfloat16())
    layer = GRU(4, 3, backend="gpu")
    with pytest.raises(ValueError, match="torch.func"):
        torch.func.vmap(lambda step: layer(step[:, None])[0])(x)


@pytest.mark.parametrize(("error", "way_out"), [(torch.OutOfMemoryError("CUDA out of memory"), "checkpoint_every"),
                                                (OutOfResources(300, 200, "shared memory"), "reference")])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_where_memory_ends_the_error_names_the_way_out(error, way_out, direction, monkeypatch):
    layer, x = GRU(2, 3, backend="gpu"), torch.ones(2, 1, 2, requires_grad=True)
    output, _ = layer(x)

    def full(*given, **options):
        raise error

    monkeypatch.setattr(gpu.kernel.Compiled, "launch", full)
    with pytest.raises(type(error), match="memory") as caught:
        layer(x) if direction == "forward" else output.sum().backward()
    assert any(way_out in note for note in caught.value.__notes__)


@pytest.mark.parametrize("name", ["U", "x", "H"])
def test_a_name_that_is_no_name_never_gets_into_the_source(name):
    data = to_json(trace(cells.elman)).replace(f'"{name}"', '"x): print(1)  #"')
    with pytest.raises((ValueError, CellError)):
        gpu.triton_text(from_json(data), 20)


@pytest.mark.parametrize("options", [{}, {"checkpoint_every": 3}, {"bidirectional": True}], ids=str)
def test_in_a_compiled_model_it_is_one_node_forward_and_backward(options):
    torch.compiler.reset()
    layer = GRU(4, 3, backend="gpu", **options)
    graphs = []

    def count(graph, examples):
        graphs.append(sum("gatework.scan" in str(n.target) for n in graph.graph.nodes))
        return graph

    def gradients(layer, x):
        output, h = layer(x, lengths=torch.tensor([4, 2]))
        return [output, h, *torch.autograd.grad((output.sum() + h.square().sum()), [x, *weights])]

    weights = list(layer.parameters())
    for T in (5, 7):
        x = torch.randn(T, 2, 4, requires_grad=True)
        for backend in (count, "aot_eager"):
            found = gradients(torch.compile(layer, backend=backend, fullgraph=True), x)
            assert all(map(torch.equal, found, gradients(layer, x)))
    assert graphs[0] == (2 if "bidirectional" in options else 1)


def test_without_triton_the_line_to_type_is_given(monkeypatch):
    monkeypatch.setitem(sys.modules, "gatework.backends.gpu", None)
    monkeypatch.delattr(gatework.backends, "gpu")
    with pytest.raises(ModuleNotFoundError, match=r'pip install "gatework\[gpu\]"'):
        GRU(4, 3, backend="gpu")(torch.zeros(2, 1, 4))


@pytest.mark.parametrize("version", ["3.3.1", "3.9.0", "3.9.0+rocm"])
def test_a_triton_that_does_not_make_these_kernels_is_refused_by_its_version(version, monkeypatch):
    monkeypatch.setattr(triton, "__version__", version)
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    with pytest.raises(ImportError, match=rf'from 3.5 on.* not 3.9.0.*is {re.escape(version)}.*pip install "gate'):
        GRU(4, 3, backend="gpu")(torch.zeros(2, 1, 4))


def test_the_extra_asks_for_the_versions_of_triton_that_are_taken():
    extras = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text())["project"]
    oldest, fatal = ".".join(map(str, gpu.kernel.OLDEST)), [f"!={version}" for version in gpu.kernel.FATAL]
    asked = ",".join([f"triton>={oldest}", *fatal])
    assert [line for line in extras["optional-dependencies"]["gpu"] if line.partition(";")[0] == asked]


@pytest.mark.parametrize("version", ["3.5.1", "3.10.0+git1a2b"])
def test_other_versions_of_triton_are_taken(version, monkeypatch):
    monkeypatch.setattr(triton, "__version__", version)
    assert GRU(4, 3, backend="gpu")(torch.zeros(2, 1, 4))[0].shape == (2, 1, 3)


@pytest.mark.parametrize("name", ["gru_reset_before", "lstm"])
def test_the_source_is_as_pinned(name, golden):
    golden(f"{name}/triton.txt", gpu.triton_text(trace(getattr(cells, name)), 20))


GPU_SCRIPTS = Path(__file__).parents[1] / "benchmarks" / "gpu"


def test_the_script_for_a_first_look_runs_through(tmp_path):
    subprocess.run([sys.executable, GPU_SCRIPTS / "first_look.py", "--smoke", "--out", tmp_path], check=True,
                   capture_output=True)
    found = json.loads((tmp_path / "first_look.json").read_text())
    forms = ["as chosen", "step by step", "overlapping", "shared"]
    assert set(found) == {"machine", "chip", *(f"checks, {form}" for form in forms)}
    for form, loop in zip(forms, ("Compiled", "Steps", "Steps", "Shared")):
        (checked,) = found[f"checks, {form}"].values()
        assert (checked["right"], checked["same_again"], checked["loops"]) == (True, True, [loop, loop])
    assert not any("failed" in result for part in found.values() for result in part.values())


def test_the_script_for_the_goals_runs_through_and_prints_what_it_measured(tmp_path):
    done = subprocess.run([sys.executable, GPU_SCRIPTS / "goals.py", "--smoke", "--out", tmp_path, "lstm", "gru",
                           "resets", "cells", "programs"], check=True, capture_output=True, text=True)
    found = json.loads((tmp_path / "goals.json").read_text())
    assert set(found) == {"machine", "chip", "lstm", "lstm, ragged", "gru", "gru, ragged", "resets", "cells",
                          "programs"}
    assert not any("failed" in result for part in found.values() for result in part.values())
    (result,) = found["lstm"].values()
    assert f"| {result['ratio']:.2f} | {result['inference_ratio']:.2f} |" in done.stdout


def test_the_script_for_layers_in_use_runs_through(tmp_path):
    subprocess.run([sys.executable, GPU_SCRIPTS / "in_use.py", "--smoke", "--out", tmp_path], check=True,
                   capture_output=True)
    found = json.loads((tmp_path / "in_use.json").read_text())
    assert len(found["one program"]) == 6
    assert all(result.get("right") for result in found["one program"].values())
