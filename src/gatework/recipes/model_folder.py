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

__all__ = ["DESCRIPTION", "TENSORS", "Description", "ModelFolderError", "broken", "check_shapes", "describe", "save",
           "tensors", "write_whole"]


class ModelFolderError(RecipeError, FolderError):
    """A folder is no model that can be used; the message names the file and what to do."""


KIND = Kind({"recipe": str, "settings": dict, "facts": dict, "figures": dict, "cell": dict}, "`gatework train`",
            "If training was interrupted, finish it with --resume", "train again", ModelFolderError)


@dataclass(frozen=True)
class Description:
    """What the tensors mean: the recipe that made them, its settings, what it knows of its data, how well it did on
    held-out data when it was trained (figures by name of the method), the cell."""

    recipe: str
    settings: dict
    facts: dict
    figures: dict
    cell: Cell


def save(folder: Path, description: Description, state: Mapping[str, Tensor]) -> None:
    """Write a model into a folder, which is made if it does not exist."""
    data = safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in state.items()})
    KIND.write(folder, {"recipe": description.recipe, "settings": description.settings, "facts": description.facts,
                        "figures": description.figures, "cell": cell_as_data(description.cell)}, data)


def describe(folder: Path) -> Description:
    """Read the description that `save` wrote.

    Raises ModelFolderError, naming the file and the remedy, if it is missing, of another format, or does not hold
    together.
    """
    content = KIND.describe(folder)
    return Description(content["recipe"], content["settings"], content["facts"], content["figures"],
                       KIND.cell(folder, content))


def tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors that the description was written for. Whether they have the shapes that the settings ask for is to be
    checked with `check_shapes`."""
    return KIND.tensors(folder, KIND.describe(folder)["tensors_sha256"], "torch")


def check_shapes(folder: Path, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise ModelFolderError unless `found` are those that the description asks for: names, shapes and dtypes."""
    for name in sorted({*found, *expected}):
        given, needed = ((list(t[name].shape), t[name].dtype) if name in t else None for t in (found, expected))
        if given != needed:
            raise broken(folder / TENSORS, f"tensor {name!r} is {_say(given)}, {DESCRIPTION} asks for {_say(needed)}")
        if not found[name].isfinite().all():
            raise broken(folder / TENSORS, f"tensor {name!r} holds values that are not finite")


def _say(tensor: tuple | None) -> str:
    return "missing" if tensor is None else f"{tensor[1]} of shape {tensor[0]}"


def broken(path: Path, what: str) -> ModelFolderError:
    return KIND.broken(path, what)
