"""A model as a folder: `model.safetensors` holds its tensors, `model.json` says what they mean.

The description is written last and names the digest of the tensors, so a folder that was written half is no model.
Reading one runs nobody's code: it hands on checked JSON, the cell rebuilt from its graph, and the bytes of the tensors.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ..compiler import Cell, CellError
from ..compiler.text import from_json, to_json

FORMAT = 1
DESCRIPTION, TENSORS = "model.json", "model.safetensors"
LARGEST_DESCRIPTION = 64 * 2**20  # bytes; far above any vocabulary and cell, far below what fills a memory


class FolderError(ValueError):
    """A folder is no model that can be used; the message names the file and what to do."""


@dataclass(frozen=True)
class Kind:
    """What a kind of model says in its description, and how it speaks of itself where a folder is none.

    entries: names and types of what is in the description beside "format" and "tensors_sha256". writer: who writes such
    folders; unfinished: what to do where a file is missing; again: where one is broken.
    """

    entries: Mapping[str, type]
    writer: str
    unfinished: str
    again: str
    error: type[ValueError] = FolderError

    def write(self, folder: Path, content: Mapping, tensors: bytes) -> None:
        """Write a model into a folder, which is made if it does not exist."""
        folder.mkdir(parents=True, exist_ok=True)
        content = {"format": FORMAT, **content, "tensors_sha256": hashlib.sha256(tensors).hexdigest()}
        data = json.dumps(content, indent=1, allow_nan=False).encode()
        write_whole(folder / TENSORS, tensors)
        write_whole(folder / DESCRIPTION, data)

    def describe(self, folder: Path) -> dict:
        """Read the description. Raises `error`, naming the file and the remedy, if it is missing or does not fit."""
        if not folder.is_dir():
            raise self.error(f"there is no folder {folder}; give the folder that {self.writer} wrote")
        path = folder / DESCRIPTION
        data = self._read(path, LARGEST_DESCRIPTION)
        try:
            content = json.loads(data.decode())
        except (ValueError, RecursionError) as error:
            raise self.broken(path, f"it is not JSON ({error})") from error
        if not isinstance(content, dict) or type(content.get("format")) is not int:
            raise self.broken(path, "it has no format version")
        if content["format"] != FORMAT:
            raise self.error(f"{path} has format version {content['format']}; this version of gatework reads version "
                             f"{FORMAT}. Use the version of gatework that wrote it, or {self.again}")
        kinds = {"format": int, **self.entries, "tensors_sha256": str}
        for key, kind in kinds.items():
            if type(content.get(key)) is not kind:
                raise self.broken(path, f"its entry {key!r} must be of type {kind.__name__}; {self.writer} writes one")
        unknown = sorted(content.keys() - kinds.keys())
        if unknown:
            raise self.broken(path, f"it has unknown entries ({', '.join(map(repr, unknown))})")
        return content

    def cell(self, folder: Path, content: Mapping, entry: str = "cell") -> Cell:
        """The cell that an entry of the description holds as data."""
        try:
            return from_json(json.dumps(content[entry]))
        except (CellError, RecursionError) as error:
            raise self.broken(folder / DESCRIPTION, f"its {entry} cannot be used ({error})") from error

    def tensors(self, folder: Path, digest: str, library: str) -> dict[str, Any]:
        """The tensors that the description was written for, by their digest, as arrays of "numpy" or "torch"."""
        path, module = folder / TENSORS, safetensors(library)
        from safetensors import SafetensorError
        data = self._read(path)
        if hashlib.sha256(data).hexdigest() != digest:
            raise self.broken(path, f"it is cut off, changed, or not the file that {DESCRIPTION} was written for")
        try:
            return module.load(data)
        except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
            raise self.broken(path, f"it is not a safetensors file that {library} can hold ({error!r})") from error

    def broken(self, path: Path, what: str) -> ValueError:
        return self.error(f"{path} is no usable part of a model: {what}. Copy the folder again from where it was made, "
                          f"or {self.again}")

    def _read(self, path: Path, limit: float = float("inf")) -> bytes:
        if not path.is_file():
            raise self.error(f"there is no file {path}; a model is a folder with {DESCRIPTION} and {TENSORS}. "
                             f"{self.unfinished}")
        if path.stat().st_size > limit:
            raise self.broken(path, f"it has {path.stat().st_size} bytes, which no description needs")
        return path.read_bytes()


def safetensors(library: str) -> ModuleType:
    """The module of safetensors for "numpy" or "torch". Raises ImportError with what to type where it is missing."""
    try:
        return importlib.import_module(f"safetensors.{library}")
    except ImportError as error:
        raise ImportError("the tensors of a model are read and written by the library safetensors, which is missing "
                          f"here ({error}): pip install 'gatework[runtime]'") from error


def write_whole(path: Path, data: bytes | memoryview) -> None:
    """Write a file so that, whatever happens meanwhile, `path` holds its old content or all of the new one."""
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def cell_as_data(cell: Cell) -> dict:
    """The cell as an entry of a description."""
    return json.loads(to_json(cell))
