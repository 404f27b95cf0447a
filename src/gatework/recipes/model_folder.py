"""A trained model as a folder: `model.safetensors` holds its tensors, `model.json` says what they mean.

The cell is in the description as data, its graph. Reading a folder runs nobody's code: JSON, safetensors, and checks.
The description is written last and names the digest of the tensors, so a folder that was written half is no model.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from ..compiler import Cell, CellError
from ..compiler.text import from_json, to_json
from . import RecipeError

FORMAT = 1
DESCRIPTION, TENSORS = "model.json", "model.safetensors"
LARGEST_DESCRIPTION = 64 * 2**20  # bytes; far above any vocabulary and cell, far below what fills a memory
KEYS = {"format": int, "recipe": str, "settings": dict, "vocabulary": str, "cell": dict, "tensors_sha256": str}


class ModelFolderError(RecipeError):
    """A folder is no model that can be used; the message names the file and what to do."""


@dataclass(frozen=True)
class Description:
    """What the tensors mean: the recipe that made them, its settings, the characters in order, the cell."""

    recipe: str
    settings: dict
    vocabulary: str
    cell: Cell


def write_whole(path: Path, data: bytes | memoryview) -> None:
    """Write a file so that, whatever happens meanwhile, `path` holds its old content or all of the new one."""
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def save(folder: Path, description: Description, tensors: Mapping[str, Tensor]) -> None:
    """Write a model into a folder, which is made if it does not exist."""
    folder.mkdir(parents=True, exist_ok=True)
    data = safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
    content = {"format": FORMAT, "recipe": description.recipe, "settings": description.settings,
               "vocabulary": description.vocabulary, "cell": json.loads(to_json(description.cell)),
               "tensors_sha256": hashlib.sha256(data).hexdigest()}
    write_whole(folder / TENSORS, data)
    write_whole(folder / DESCRIPTION, json.dumps(content, indent=1, allow_nan=False).encode())


def load(folder: Path, recipe: str) -> tuple[Description, dict[str, Tensor]]:
    """Read what `save` wrote.

    Raises ModelFolderError, naming the file and the remedy, if a file is missing, cut off, of another format or
    recipe, or if its content does not hold together. Whether the tensors have the shapes that the settings ask for is
    for the recipe to check, with `check_shapes`.
    """
    if not folder.is_dir():
        raise ModelFolderError(f"there is no folder {folder}; give the folder that `gatework train` wrote")
    content = _description(folder / DESCRIPTION)
    if content["recipe"] != recipe:
        raise ModelFolderError(f"{folder / DESCRIPTION} describes a model of the recipe {content['recipe']!r}; one of "
                               f"{recipe!r} is needed")
    try:
        cell = from_json(json.dumps(content["cell"]))
    except CellError as error:
        raise broken(folder / DESCRIPTION, f"its cell cannot be used ({error})") from error
    tensors = _tensors(folder / TENSORS, content["tensors_sha256"])
    return Description(recipe, content["settings"], content["vocabulary"], cell), tensors


def check_shapes(folder: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise ModelFolderError unless `tensors` are those that the description asks for: names, shapes and dtypes."""
    for name in sorted({*tensors, *expected}):
        given, needed = ((list(t[name].shape), t[name].dtype) if name in t else None for t in (tensors, expected))
        if given != needed:
            raise broken(folder / TENSORS, f"tensor {name!r} is {_say(given)}, {DESCRIPTION} asks for {_say(needed)}")
        if not tensors[name].isfinite().all():
            raise broken(folder / TENSORS, f"tensor {name!r} holds values that are not finite")


def _description(path: Path) -> dict:
    data = _read(path, LARGEST_DESCRIPTION)
    try:
        content = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise broken(path, f"it is not JSON ({error})") from error
    if not isinstance(content, dict) or type(content.get("format")) is not int:
        raise broken(path, "it has no format version")
    if content["format"] != FORMAT:
        raise ModelFolderError(f"{path} has format version {content['format']}; this version of gatework reads version "
                               f"{FORMAT}. Use the version of gatework that wrote it, or train again")
    for key, kind in KEYS.items():
        if type(content.get(key)) is not kind:
            raise broken(path, f"its entry {key!r} must be of type {kind.__name__}")
    if sorted(content) != sorted(KEYS):
        raise broken(path, f"it has unknown entries ({', '.join(map(repr, sorted(set(content) - set(KEYS))))})")
    return content


def _tensors(path: Path, digest: str) -> dict[str, Tensor]:
    data = _read(path)
    if hashlib.sha256(data).hexdigest() != digest:
        raise broken(path, f"it is cut off, changed, or not the file that {DESCRIPTION} was written for")
    try:
        return safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise broken(path, f"it is not a safetensors file ({error})") from error


def _read(path: Path, limit: float = float("inf")) -> bytes:
    if not path.is_file():
        raise ModelFolderError(f"there is no file {path}; a model is a folder with {DESCRIPTION} and {TENSORS}. If "
                               "training was interrupted, finish it with --resume")
    if path.stat().st_size > limit:
        raise broken(path, f"it has {path.stat().st_size} bytes, which no description needs")
    return path.read_bytes()


def _say(tensor: tuple | None) -> str:
    return "missing" if tensor is None else f"{tensor[1]} of shape {tensor[0]}"


def broken(path: Path, what: str) -> ModelFolderError:
    return ModelFolderError(f"{path} is no usable part of a model: {what}. Copy the folder again from where it was "
                            "made, or train again")
