"""Triton's compiler takes the kernels, for a GPU that need not be there: the interpreter asks for no types and room."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason='pip install "gatework[gpu]"')

from gatework.backends.gpu.device import SHARED, SHARED_OF_AMD  # noqa: E402

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu" / "offline.py"


def compiled(tmp_path: Path, *arguments: str) -> list[dict]:
    """What the compiler says of kernels, with nothing cached."""
    run = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True,
                         env=os.environ | {"TRITON_CACHE_DIR": str(tmp_path)})
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    found = [json.loads(line) for line in run.stdout.splitlines()]
    room = SHARED_OF_AMD if any("gfx" in a for a in arguments) else SHARED
    assert all(f["shared"] <= room for f in found)
    assert not any(f["spilled"] for f in found)
    return found


@pytest.mark.parametrize(("cell", "units"), [("lstm", 64), ("lstm", 128), ("gru", 64)])
def test_loops_compile_for_an_h100_and_fit_its_memory_without_spilling(cell, units, tmp_path):
    found = compiled(tmp_path, cell, "--units", str(units), "--forms", "chosen")
    assert [(f["type"], f["loop"]) for f in found] == [
        (f"torch.{kind}", loop) for kind in ("float32", "bfloat16", "float16") for loop in ("forward", "backward")]
    assert {f["form"] for f in found} == ({"resident", "steps"} if units == 128 else {"resident"})


def test_units_shared_by_programs_compile_for_an_h100_too(tmp_path):
    found = compiled(tmp_path, "lstm", "--units", "256", "--forms", "shared")
    assert [(f["type"], f["loop"], f["members"]) for f in found] == [
        (f"torch.{kind}", loop, 4) for kind in ("bfloat16", "float16") for loop in ("forward", "backward")]


@pytest.mark.parametrize(("units", "rows"), [(650, 20), (1024, 128)])
def test_steps_of_any_size_compile_and_read_ahead_of_their_products(units, rows, tmp_path):
    found = compiled(tmp_path, "lstm", "--units", str(units), "--forms", "steps", "--rows", str(rows))
    assert len(found) == 6
    # Products whose operands are loaded one after the other, when they are needed, get by with an eighth of that.
    assert all(f["shared"] >= 32 << 10 for f in found)


@pytest.mark.parametrize("cell", ["lstm", "gru_reset_before"])
def test_loops_compile_for_a_gpu_of_amd_without_spilling(cell, tmp_path):
    found = compiled(tmp_path, cell, "--units", "200", "--forms", "chosen", "--arch", "gfx942")
    assert {f["form"] for f in found} == {"steps"}
    assert {f["type"] for f in found} == {"torch.float32", "torch.bfloat16", "torch.float16"}


def test_a_cell_that_is_not_compiled_is_named_and_ends_with_an_error():
    run = subprocess.run([sys.executable, SCRIPT, "no_such_cell"], capture_output=True, text=True)
    assert run.returncode == 1
    assert json.loads(run.stdout)["cell"] == "no_such_cell"
