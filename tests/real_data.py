"""Where the real data sets are: the folder that the environment variable GATEWORK_DATA names, else ../shared/data."""

from __future__ import annotations

import os
from pathlib import Path


def folder() -> Path:
    return Path(os.environ.get("GATEWORK_DATA") or Path(__file__).parents[2] / "shared" / "data")


def needed(name: str) -> Path:
    """The folder of a data set; a test that needs it is skipped, saying so, where it is not."""
    found = folder() / name
    if not found.is_dir():
        import pytest  # not where `make results` runs

        pytest.skip(f"there is no data set {name} in {folder()}; GATEWORK_DATA names the folder of the data sets")
    return found
