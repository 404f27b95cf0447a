"""The tests and the examples of the Flax converter, in a process without those of the rest."""

import os
import subprocess
import sys
from pathlib import Path

from gatework.convert import flax_nnx


def test_flax_cases_and_examples_hold():
    # JAX warns in every process that forks after it has started, as other tests do: see flax_cases.py.
    files = [str(Path(__file__).with_name("flax_cases.py")), flax_nnx.__file__]
    # Most of the time goes into JAX's compiler, which need not try hard for five steps.
    settings = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    done = subprocess.run([sys.executable, "-m", "pytest", "-v", "--noconftest", "-p", "no:cacheprovider",
                           "--override-ini", "addopts=--doctest-modules", *files],
                          env=os.environ | settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for example in "from_flax", "to_flax":
        assert f"flax_nnx.{example} PASSED" in done.stdout
