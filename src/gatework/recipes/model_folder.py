"""A trained model as a folder of two files, `gatework.runtime.folder`; what the description of a recipe's model says.

The cell is in the description as data, its graph. Reading a folder runs nobody's code: JSON, safetensors, and checks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
from torch import Tensor

from ..compiler import Cell
from ..runtime.folder import DESCRIPTION, TENSORS, FolderError, Kind, cell_as_data, write_whole
from . import RecipeError

__all__ = ["DESCRIPTION", "TENSORS", "Description", "ModelFolderError", "broken", "check_shapes", "load", "save",
           "write_whole"]


class ModelFolderError(RecipeError, FolderError):
    """A folder is no model that can be used; the message names the file and what to do."""


KIND = Kind({"recipe": str, "settings": dict, "vocabulary": str, "cell": dict}, "`gatework train`",
            "If training was interrupted, finish it with --resume", "train again", ModelFolderError)


@dataclass(frozen=True)
class Description:
    """What the tensors mean: the recipe that made them, its settings, the characters in order, the cell."""

    recipe: str
    settings: dict
    vocabulary: str
    cell: Cell


def save(folder: Path, description: Description, tensors: Mapping[str, Tensor]) -> None:
    """Write a model into a folder, which is made if it does not exist."""
    data = safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
    KIND.write(folder, {"recipe": description.recipe, "settings": description.settings,
                        "vocabulary": description.vocabulary, "cell": cell_as_data(description.cell)}, data)


def load(folder: Path, recipe: str) -> tuple[Description, dict[str, Tensor]]:
    """Read what `save` wrote.

    Raises ModelFolderError, naming the file and the remedy, if a file is missing, cut off, of another format or
    recipe, or if its content does not hold together. Whether the tensors have the shapes that the settings ask for is
    for the recipe to check, with `check_shapes`.
    """
    content = KIND.describe(folder)
    if content["recipe"] != recipe:
        raise ModelFolderError(f"{folder / DESCRIPTION} describes a model of the recipe {content['recipe']!r}; one of "
                               f"{recipe!r} is needed")
    cell = KIND.cell(folder, content)
    tensors = KIND.tensors(folder, content["tensors_sha256"], "torch")
    return Description(recipe, content["settings"], content["vocabulary"], cell), tensors


def check_shapes(folder: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise ModelFolderError unless `tensors` are those that the description asks for: names, shapes and dtypes."""
    for name in sorted({*tensors, *expected}):
        given, needed = ((list(t[name].shape), t[name].dtype) if name in t else None for t in (tensors, expected))
        if given != needed:
            raise broken(folder / TENSORS, f"tensor {name!r} is {_say(given)}, {DESCRIPTION} asks for {_say(needed)}")
        if not tensors[name].isfinite().all():
            raise broken(folder / TENSORS, f"tensor {name!r} holds values that are not finite")


def _say(tensor: tuple | None) -> str:
    return "missing" if tensor is None else f"{tensor[1]} of shape {tensor[0]}"


def broken(path: Path, what: str) -> ModelFolderError:
    return KIND.broken(path, what)
