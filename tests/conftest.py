"""Golden files: the texts that stages of the compiler are compared with."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

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
