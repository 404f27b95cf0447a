"""Receives a file or a folder, hands on the file of each split, for formats that are no tables."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from .. import RecipeError
from .sources import SPLITS


def files_of_splits(source: str | Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """The files of a source, {"train": ..., "valid": ..., "test": ...}; there is always a "train".

    A file is all there is. In a folder the name tells, before its first point: train, or what ends with it, as in
    ArrowHead_TRAIN.ts.gz or fr_gsd-ud-train.conllu; valid, validation, val, dev and test likewise. Packed files (.gz)
    are found too.

    Raises RecipeError if there is no such file, none to train on, or two of one split.
    """
    path, kinds = Path(source), ", ".join(suffixes)
    if path.is_file():
        return {"train": path}
    if not path.is_dir():
        raise RecipeError(f"there is no {path}; give a file ({kinds}), or a folder with train{suffixes[0]}")
    found: dict[str, Path] = {}
    for file in sorted(p for p in path.iterdir() if p.name.lower().removesuffix(".gz").endswith(tuple(suffixes))):
        split = SPLITS.get(re.split(r"[_-]", file.name.split(".")[0].lower())[-1])
        if split in found:
            raise RecipeError(f"{path} has two of what could be {split}, {found[split].name} and {file.name}; take one "
                              "of them away")
        if split:
            found[split] = file
    if "train" not in found:
        raise RecipeError(f"{path} holds no train{suffixes[0]}; one of the files {kinds} in it is to be called train, "
                          f"or to end so, as in NAME_train{suffixes[0]}")
    return found
