"""The runs behind docs/results.md, one file per recipe; `python benchmarks/results.py` does them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Run:
    """One row of the results: a recipe on one set of data.

    name: unique within the recipe. data: writes what a user would have into a folder and returns the source to train
    on. test: the same for the file to evaluate on; None: the validation data. settings: besides the defaults of the
    recipe; quick: what is different with --quick. published: a figure and its source. figure: the entry of the figures
    that counts; it is what the published figure is set beside.
    """

    name: str
    recipe: str
    data: Callable[[Path], Path]
    test: Callable[[Path], Path] | None
    settings: dict
    figure: str
    seeds: tuple[int, ...] = (0, 1, 2)
    quick: dict = field(default_factory=dict)
    published: str = ""
