"""Receives what a user typed for a cell, hands on the function with its equations."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Callable
from pathlib import Path

from .. import cells
from . import RecipeError


def find_cell(text: str) -> Callable:
    """The cell that is meant by a name of the catalogue or by "file.py:function".

    The file is imported, so it should be one of your own. Raises RecipeError if there is no such cell, naming those
    that there are.

    >>> find_cell("gru").__name__
    'gru'
    >>> find_cell("gruh")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    gatework.recipes.RecipeError: there is no cell 'gruh'; did you mean gru? The catalogue has block_gru, ...
    """
    file, colon, name = text.rpartition(":")
    if colon and file.endswith(".py"):
        return _from_file(Path(file), name)
    if text in cells.__all__:
        return getattr(cells, text)
    near = difflib.get_close_matches(text, cells.__all__, n=1)
    raise RecipeError(f"there is no cell {text!r}; {f'did you mean {near[0]}? ' if near else ''}The catalogue has "
                      f"{', '.join(cells.__all__)}. A cell of your own is given as my_cells.py:my_cell")


def _from_file(file: Path, name: str) -> Callable:
    if not file.is_file():
        raise RecipeError(f"there is no file {file}; a cell of your own is given as my_cells.py:my_cell, the path seen "
                          "from the current folder")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's file does wrong belongs to the user, in one line
        raise RecipeError(f"{file} cannot be imported: {type(error).__name__}: {error}") from error
    found = getattr(module, name, None)
    if not callable(found):
        own = [k for k, v in vars(module).items() if getattr(v, "__module__", None) == file.stem and callable(v)]
        raise RecipeError(f"{file} has no function {name!r}; its functions are {', '.join(own) or 'none'}")
    return found
