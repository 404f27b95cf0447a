"""The tests of the Flax converter, in a process without those of the rest."""

import os
import subprocess
import sys
from pathlib import Path


def test_flax_cases_hold():
    # JAX warns in every process that forks after it has started, as other tests do: see flax_cases.py.
    cases = Path(__file__).with_name("flax_cases.py")
    # Most of the time goes into JAX's compiler, which need not try hard for five steps.
    settings = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider", str(cases)],
                          env=os.environ | settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
