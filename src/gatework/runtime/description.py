"""Receives the folder of a saved layer, hands on what its tensors mean: the cells, sizes, layers and names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..compiler import Cell
from ..compiler.data import as_data
from .folder import DESCRIPTION, TENSORS, Kind, cell_as_data

LARGEST_SIZE = 2**20  # of a vector; bounds the memory that a file can ask for without holding tensors of that size
KIND = Kind({"cell": dict, "evaluation_cell": dict, "sizes": dict, "parameters": dict, "dtype": str,
             "num_layers": int, "bidirectional": bool, "initial_state": bool, "options": dict}, "`gatework.nn.save`",
            "Save the layer once more", "save the layer once more")


@dataclass(frozen=True)
class Description:
    """One or more layers of a cell.

    cell: as it is trained; evaluation_cell: as it computes in evaluation, the same unless it is regularised by noise.
    sizes: of the first layer. parameters: what each family of the cell is called, without the layer's suffix. dtype: of
    all tensors, such as "float32". options: what else the layer was made with; the runtime needs none of it.
    """

    cell: Cell
    evaluation_cell: Cell
    sizes: dict[str, int]
    parameters: dict[str, str]
    dtype: str
    num_layers: int
    bidirectional: bool
    initial_state: bool
    options: dict

    def write(self, folder: Path, tensors: bytes) -> None:
        KIND.write(folder, {**vars(self), "cell": cell_as_data(self.cell),
                            "evaluation_cell": cell_as_data(self.evaluation_cell)}, tensors)

    @classmethod
    def read(cls, folder: Path) -> tuple[Description, str]:
        """The description, and the digest of its tensors. Raises FolderError, naming the file and what to do."""
        content = KIND.describe(folder)
        cells = {entry: KIND.cell(folder, content, entry) for entry in ("cell", "evaluation_cell")}
        description = cls(**{k: content[k] for k in KIND.entries} | cells)
        description._check(folder / DESCRIPTION)
        return description, content["tensors_sha256"]

    def tensors(self, folder: Path, digest: str, library: str) -> dict[str, Any]:
        """The tensors, as arrays of "numpy" or "torch"; those described, or FolderError is raised."""
        tensors = KIND.tensors(folder, digest, library)
        self._check_tensors(folder, tensors)
        return tensors

    def _check(self, path: Path) -> None:
        for name, size in self.sizes.items():
            if type(size) is not int or not 1 <= size <= LARGEST_SIZE:
                raise KIND.broken(path, f"its size {name} must be a whole number from 1 to {LARGEST_SIZE}; {size!r} "
                                        "was given")
        if sorted(self.sizes) != sorted(self.cell.sizes):
            raise KIND.broken(path, f"its cell has the sizes {', '.join(self.cell.sizes)}; given are "
                                    f"{', '.join(self.sizes)}")
        if list(self.parameters) != list(self.cell.families) or not all(
                isinstance(n, str) for n in self.parameters.values()):
            raise KIND.broken(path, f"its parameters must name those of the cell, {', '.join(self.cell.families)}; "
                                    f"given are {', '.join(self.parameters)}")
        trained, evaluated = as_data(self.cell), as_data(self.evaluation_cell)
        for what in ("inputs", "states", "parameters"):
            if trained[what] != evaluated[what]:
                raise KIND.broken(path, f"its evaluation_cell has other {what} than its cell")
        if self.num_layers < 1:
            raise KIND.broken(path, f"its num_layers must be at least 1; {self.num_layers} was given")
        above = self.layer_sizes(1)["I"] if self.num_layers > 1 else self.sizes["I"]
        for name, e in [*list(self.cell.inputs.items())[1:], *self.cell.states.items()]:
            if "I" in e.dims and above != self.sizes["I"]:
                raise KIND.broken(path, f"its layers have inputs of {self.sizes['I']} and {above} features, but {name} "
                                        "must have the size I in all of them")

    def layer_sizes(self, layer: int) -> dict[str, int]:
        """The sizes of one layer's cell; the input of every layer but the first is the output of the one below."""
        output = self.sizes[self.cell.states[self.cell.output].dims[0]] * (1 + self.bidirectional)
        return self.sizes | ({"I": output} if layer else {})

    def suffixes(self) -> list[str]:
        """What is behind the names of each layer and direction."""
        directions = ("", "_reverse")[:1 + self.bidirectional]
        return [f"_l{layer}{direction}" for layer in range(self.num_layers) for direction in directions]

    def shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        """The names and shapes of all tensors."""
        found: list[tuple[str, tuple[int, ...]]] = []
        for k, suffix in enumerate(self.suffixes()):
            sizes = self.layer_sizes(k // (1 + self.bidirectional))
            for family in self.cell.families.values():
                rows = (len(family.gates) * sizes[family.rows],)
                columns = (sizes[family.stored_columns],) if family.stored_columns else ()
                found.append((self.parameters[family.name] + suffix, rows + columns))
            if self.initial_state:
                found += [(f"initial_{s}{suffix}", (sizes[e.dims[0]],)) for s, e in self.cell.states.items()]
        return found

    def _check_tensors(self, folder: Path, tensors: Mapping) -> None:
        """Refuse tensors that are not those described: names, shapes, dtype."""
        path = folder / TENSORS
        # Before anything is made for each layer: a number alone must not fill a memory.
        if self.num_layers > len(tensors):
            raise KIND.broken(path, f"it has {len(tensors)} tensors, too few for the {self.num_layers} layers of "
                                    f"{DESCRIPTION}")
        for family in self.cell.families.values():
            if family.kind == "Blocks" and self.sizes[family.rows] % self.sizes[family.stored_columns]:
                raise KIND.broken(path.with_name(DESCRIPTION), f"its size {family.rows} is no multiple of the size "
                                                               f"{family.stored_columns} of a head")
        shapes = dict(self.shapes())
        if len(shapes) < len(self.shapes()):
            raise KIND.broken(path.with_name(DESCRIPTION), "it gives two parameters one name")
        for name in sorted({*tensors, *shapes}):
            given, needed = tuple(tensors[name].shape) if name in tensors else None, shapes.get(name)
            if given != needed:
                raise KIND.broken(path, f"tensor {name!r} {_say(given)}, {DESCRIPTION} asks that it {_say(needed)}")
        for name, a in tensors.items():
            if str(a.dtype).removeprefix("torch.") != self.dtype:
                raise KIND.broken(path, f"tensor {name!r} has dtype {a.dtype}, {DESCRIPTION} asks for {self.dtype}")


def _say(shape: tuple | None) -> str:
    return "is missing" if shape is None else f"has shape {shape}"
