"""Fixtures: golden files, which stages of the compiler are compared with, and a small trained language model."""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import sys
from pathlib import Path

# Read when Triton is first imported: its programs run in Python, without a GPU.
os.environ["TRITON_INTERPRET"] = "1"

import pytest
import torch


class WithoutJax(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Once JAX has started, a process warns whenever it forks, and tests fork: what would import it fails here.

    Tests that need it have a process of their own (`test_convert_flax.py`).
    """

    def find_spec(self, name, path, target=None):
        return importlib.util.spec_from_loader(name, self) if name == "jax" else None

    def exec_module(self, module):
        raise ImportError("JAX would start in a process of the tests that may fork; see tests/conftest.py")


sys.meta_path.insert(0, WithoutJax())

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser):
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden from what the code gives now")


@pytest.fixture
def golden(request):
    """Compare a text with the file of that name under tests/golden; with --update-golden, write the file."""
    def compare(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh = path.with_suffix(".new")
            fresh.write_text(text + "\n", encoding="utf-8")
            os.replace(fresh, path)
        assert path.exists(), f"{name} is missing; write it with: pytest tests/test_text.py --update-golden"
        assert text + "\n" == path.read_text(encoding="utf-8"), f"if {name} should change: pytest --update-golden"
    return compare


@pytest.fixture
def float64():
    threads = torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_num_threads(threads)


@pytest.fixture
def text(tmp_path):
    from language_models import REFERENCE
    file = tmp_path / "text.txt"
    file.write_text(REFERENCE[:600], encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder with a model of 30000 characters of real text, and that text."""
    from language_models import REFERENCE, Settings, train
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text(REFERENCE[:30000], encoding="utf-8")
    settings = Settings(cell="peephole_lstm", hidden=48, embedding=16, epochs=4, batch_size=16, seq_len=32,
                        learning_rate=0.02)
    train(folder / "text.txt", settings, folder / "model")
    return folder / "model", folder / "text.txt"


@pytest.fixture
def no_programs():
    """Kernels anew, so that nothing is recorded yet."""
    from gatework.autograd import calls
    from gatework.autograd.functions import kernel_of_shapes
    from gatework.backends.cpu.kernel import _kernel
    kernel_of_shapes.cache_clear()
    _kernel.cache_clear()
    calls.AT_ONCE = False


@pytest.fixture
def taken(no_programs, monkeypatch):
    """The programs that ran."""
    from gatework.autograd import calls
    from gatework.backends.cpu.replay import NOTHING
    seen, run = [], calls.Program.run

    def spy(program, addresses, work, told=NOTHING):
        seen.append(program)
        run(program, addresses, work, told)

    monkeypatch.setattr(calls.Program, "run", spy)
    return seen
