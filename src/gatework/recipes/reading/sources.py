"""Receives what a user named, a file, a folder or datasets:NAME, hands on where the rows of each split come from."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import RecipeError
from .columns import Role
from .formats import READERS, Batch, batches, table_suffix

SPLITS = {"train": "train", "valid": "valid", "validation": "valid", "dev": "valid", "val": "valid", "test": "test"}
MEDIA = (".wav", ".flac", ".ogg", ".mp3", ".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
FILE_NAME = "file_name"  # the column by which a metadata table names files, as the datasets library has it
ROWS = 2**14  # rows of a batch where they are no lines of a file


@dataclass(frozen=True)
class Source:
    """The rows of one split. `name` and `unit` say a place in errors; `key` changes when the data does.

    columns: which columns roles are read from, beyond what the user said.
    """

    name: str
    batches: Callable[[], Iterator[Batch]]
    folder: Path
    key: Any
    unit: str = "line"
    columns: tuple[tuple[str, str], ...] = ()


def find_sources(source: str | Path, roles: Sequence[Role]) -> dict[str, Source]:
    """The splits that a source has, {"train": ..., "valid": ..., "test": ...}; there is always a "train"."""
    if str(source).startswith("datasets:"):
        return _from_datasets(str(source))
    path = Path(source)
    if path.is_dir():
        return _from_folder(path, roles)
    if not path.exists():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, siblings, n=1)
        raise RecipeError(f"there is no {path}{f', did you mean {path.parent / near[0]}?' if near else '.'} Give a "
                          "file, a folder with train.csv or one folder for each label, or datasets:NAME")
    return {"train": from_file(path)}


def from_file(file: Path, columns: tuple[tuple[str, str], ...] = ()) -> Source:
    stat = file.stat() if file.is_file() else None
    return Source(str(file), lambda: batches(file), file.parent,
                  stat and (str(file.resolve()), stat.st_size, stat.st_mtime_ns),
                  "row" if table_suffix(file) == ".parquet" else "line", columns)


def _from_folder(folder: Path, roles: Sequence[Role]) -> dict[str, Source]:
    entries = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    tables = [p for p in entries if p.is_file() and table_suffix(p) and p.stem.lower() != "readme"]
    splits: dict[str, Source] = {}
    for path in entries:
        split = SPLITS.get(path.name.split(".")[0].lower())
        if split and (path in tables or path.is_dir()):
            if split in splits:
                raise RecipeError(f"{folder} has two of what could be {split}, {splits[split].name} and {path}; take "
                                  "one of them away")
            splits[split] = from_file(path) if path in tables else from_media(path, roles)
    if splits:
        if "train" not in splits:
            raise RecipeError(f"{folder} has {', '.join(s.name for s in splits.values())}, but nothing to train on; "
                              "call that file train, such as train.csv")
        return splits
    if len(tables) == 1 and tables[0].name.split(".")[0] != "metadata":
        return {"train": from_file(tables[0])}
    return {"train": from_media(folder, roles)}


def from_media(folder: Path, roles: Sequence[Role]) -> Source:
    """A folder of sounds or pictures: metadata.csv names their columns, or the folder of each is its label."""
    audio = [role for role in roles if role.kind is Path]
    if len(audio) != 1:
        raise RecipeError(f"{folder} has no train.csv (or {', '.join(list(READERS)[1:])}). A folder holds train, valid "
                          "and test files, the last two if there are any; or give the file itself")
    metadata = [p for p in folder.iterdir() if p.name.split(".")[0] == "metadata" and table_suffix(p)]
    if metadata:
        return from_file(metadata[0], ((audio[0].name, FILE_NAME),))
    labels = [role for role in roles if role.kind is str and not role.optional]
    if len(labels) > 1:
        raise RecipeError(f"{folder} has no metadata.csv. Its column {FILE_NAME} names the files, further ones give "
                          f"{', '.join(role.name for role in labels)} of each")
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    for file in files:
        depth = len(file.relative_to(folder).parts)
        if file.suffix.lower() not in MEDIA or depth != 1 + len(labels):
            raise RecipeError(f"{folder} should hold " + ("one folder for each label, with" if labels else "")
                              + f" files {', '.join(MEDIA)} only; {file} is none, or lies elsewhere. Move it away, or "
                              f"write a metadata.csv with a column {FILE_NAME}")
    if not files:
        raise RecipeError(f"{folder} is empty; it should hold train.csv, or one folder of files for each label")

    def parts() -> Iterator[Batch]:
        for start in range(0, len(files), ROWS):
            part = files[start:start + ROWS]
            columns = {FILE_NAME: [str(file.relative_to(folder)) for file in part]}
            columns |= {role.name: [file.parent.name for file in part] for role in labels}
            yield Batch(range(start + 1, start + 1 + len(part)), columns)

    names = ((audio[0].name, FILE_NAME), *((role.name, role.name) for role in labels))
    return Source(str(folder), parts, folder, [str(file) for file in files], "file", names)


def _from_datasets(source: str) -> dict[str, Source]:
    _, name, *config = source.split(":", 2)
    try:
        import datasets
    except ImportError as error:
        raise RecipeError(f"{source} is read by the library datasets, which is missing here ({error}): pip install "
                          "datasets") from error
    try:
        loaded = datasets.load_dataset(name, *config)
    except Exception as error:  # the library raises whatever network, hub and files raise below it
        cause = error.__cause__ or error  # the error on top says only that there was one
        raise RecipeError(f"{source} cannot be loaded: {type(cause).__name__}: {cause}. The forms are datasets:NAME, "
                          "datasets:NAME:CONFIG and datasets:FOLDER") from error
    found = {SPLITS[split]: _from_split(f"{source}, split {split}", data) for split, data in loaded.items()
             if split in SPLITS}
    if "train" not in found:
        raise RecipeError(f"{source} has the splits {', '.join(loaded)}; one called train is needed")
    return found


def _from_split(name: str, data) -> Source:
    import datasets
    files = {name for name, kind in data.features.items() if isinstance(kind, datasets.Audio | datasets.Image)}
    for column in files:
        data = data.cast_column(column, type(data.features[column])(decode=False))

    def cells(column: str, values: list) -> list:
        feature = data.features[column]
        if isinstance(feature, datasets.ClassLabel):
            return [None if value is None or value < 0 else feature.int2str(value) for value in values]
        return [value and value["path"] for value in values] if column in files else values

    def parts() -> Iterator[Batch]:
        for start in range(0, len(data), ROWS):
            part = data[start:start + ROWS]
            yield Batch(range(start + 1, start + 1 + len(next(iter(part.values())))),
                        {column: cells(column, values) for column, values in part.items()})

    return Source(name, parts, Path(), data._fingerprint, "row")
