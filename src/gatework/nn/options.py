"""Receives what a layer is made with, refuses what makes no sense: what was given, what is needed."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from numbers import Real

from ..autograd import BACKENDS
from ..compiler import Cell


def check_options(input_size, hidden_size, num_layers, dropout, proj_size, initial_state, checkpoint_every,
                  backend) -> None:
    for name, value in dict(input_size=input_size, hidden_size=hidden_size, num_layers=num_layers).items():
        _check_count(name, value)
    if isinstance(proj_size, bool) or not isinstance(proj_size, int) or not 0 <= proj_size < hidden_size:
        raise ValueError(f"proj_size must be a whole number, at least 0 and smaller than hidden_size="
                         f"{hidden_size}; {proj_size!r} was given")
    if isinstance(dropout, bool) or not isinstance(dropout, Real) or not 0 <= dropout <= 1:
        raise ValueError(f"dropout is a probability between 0 and 1; {dropout!r} was given")
    if dropout > 0 and num_layers == 1:
        warnings.warn(f"dropout={dropout} acts on the output of every layer but the last, and num_layers is 1: it "
                      "has no effect", stacklevel=3)
    if not isinstance(initial_state, bool):
        raise ValueError(f"initial_state is True or False: whether first states are learned; {initial_state!r} was "
                         "given. First states of your own go into each call as hx")
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(map(repr, BACKENDS))}; {backend!r} was given")
    every = checkpoint_every
    if every not in (None, "auto") and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
        raise ValueError(f'checkpoint_every is a number of steps, at least 1, "auto" or None; {every!r} was given')


def _check_count(name: str, value) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1; {value!r} was given")


def lengths_of_sizes(cell: Cell, input_size: int, hidden_size: int, proj_size: int,
                     extra: Mapping[str, int]) -> dict[str, int]:
    """How long the vectors of a cell are, by the names of their sizes."""
    known = {"I": input_size, "H": hidden_size}
    if "P" in cell.sizes and "P" not in extra:
        if not 0 < proj_size:
            raise ValueError(f"{cell.name} projects its state; give proj_size, the size of the projection")
        known["P"] = proj_size
    elif proj_size and "P" not in cell.sizes:
        raise ValueError(f"{cell.name} has no projection, so proj_size={proj_size} has no meaning; use "
                         "gatework.cells.projected_lstm, or leave proj_size at 0")
    missing = [s for s in cell.sizes if s not in {**known, **extra}]
    unknown = [s for s in extra if s not in cell.sizes or s in known]
    if missing or unknown:
        raise ValueError(f"{cell.name} has the sizes {', '.join(cell.sizes)}; sizes= must give "
                         f"{', '.join(missing) or 'nothing'} and gives {', '.join(extra) or 'nothing'}")
    for name, length in extra.items():
        _check_count(f"sizes= of {name}", length)
    sizes = known | dict(extra)
    for f in cell.families.values():
        if f.kind == "Blocks" and sizes[f.rows] % sizes[f.stored_columns]:
            raise ValueError(f"{f.name} of {cell.name} has heads of {f.stored_columns} = {sizes[f.stored_columns]} "
                             f"features, of which {f.rows} = {sizes[f.rows]} is no multiple; choose "
                             f"{f.stored_columns} among its divisors")
    return sizes
