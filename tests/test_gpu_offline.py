"""Triton's compiler takes the kernels, for a GPU that need not be there: the interpreter asks for no types and room."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason='pip install "gatework[gpu]"')

from gatework.backends.gpu.kernel import SHARED  # noqa: E402

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu" / "offline.py"


@pytest.mark.parametrize(("cell", "units"), [("lstm", 64), ("lstm", 128), ("gru", 64)])
def test_loops_compile_for_an_h100_and_fit_its_memory_without_spilling(cell, units, tmp_path):
    run = subprocess.run([sys.executable, SCRIPT, cell, "--units", str(units)], capture_output=True, text=True,
                         env=os.environ | {"TRITON_CACHE_DIR": str(tmp_path)})
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    found = [json.loads(line) for line in run.stdout.splitlines()]
    assert {(f["type"], f["loop"]) for f in found} == {
        (f"torch.{kind}", loop) for kind in ("float32", "bfloat16", "float16") for loop in ("forward", "backward")}
    chosen = [f for f in found if f["chosen"]]
    assert len(chosen) == 6
    assert {f["form"] for f in chosen} == ({"resident", "steps"} if units == 128 else {"resident"})
    assert all(f["shared"] <= SHARED for f in chosen)
    assert not any(f["spilled"] for f in chosen)


def test_a_cell_that_is_not_compiled_is_named_and_ends_with_an_error():
    run = subprocess.run([sys.executable, SCRIPT, "no_such_cell"], capture_output=True, text=True)
    assert run.returncode == 1
    assert json.loads(run.stdout)["cell"] == "no_such_cell"
