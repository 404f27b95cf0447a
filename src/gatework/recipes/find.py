"""Receives the name of a recipe, hands on its class."""

from __future__ import annotations

import difflib
import importlib

from . import RECIPES, RecipeError


def find_recipe(name: str) -> type:
    """The recipe of that name; its module is imported only now. Raises RecipeError if there is none."""
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        raise RecipeError(f"there is no recipe {name!r}; {f'did you mean {near[0]}? ' if near else ''}There are "
                          f"{', '.join(RECIPES)}")
    module = importlib.import_module(f".{name.replace('-', '_')}", __package__)
    return getattr(module, "".join(word.capitalize() for word in name.split("-")))
