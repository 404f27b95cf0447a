"""Receives checked batches, hands on tables: in memory, or above LIMIT as an Arrow file in the cache folder.

An Arrow file is mapped, not loaded: rows come from disk when they are used, and what a table takes of the memory that
others need does not grow with it. The file is kept, so that the same data is converted once.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import polars as pl

from ...backends.cpu.jit import SETTING, cache_folder
from .. import RecipeError

LIMIT = 2**30  # bytes that the tables of one source may take in memory
FORMAT = 1  # goes up when the same source would give another table


def gather(batches: Iterable[Mapping[str, pl.DataFrame]], source: str, key: Any) -> dict[str, pl.DataFrame]:
    """Tables from batches of their rows, {name: table}. What repr(key) says decides if a kept file is the same data."""
    digest = hashlib.sha256(repr((FORMAT, key)).encode()).hexdigest()
    kept = _kept(digest)
    if kept:
        return kept
    held: dict[str, list[pl.DataFrame]] = {}
    size = 0
    batches = iter(batches)
    for batch in batches:
        for name, frame in batch.items():
            held.setdefault(name, []).append(frame)
            size += frame.estimated_size()
        if size > LIMIT:
            _write(held, batches, source, digest)
            return _kept(digest)
    return {name: pl.concat(frames) for name, frames in held.items()}


def _folder() -> Path | None:
    folder = cache_folder()
    return folder and folder / "tables"


def _kept(digest: str) -> dict[str, pl.DataFrame]:
    folder = _folder()
    return {file.stem: _mapped(file) for file in sorted((folder / digest).glob("*.arrow"))} if folder else {}


def _mapped(file: Path) -> pl.DataFrame:
    import pyarrow
    try:
        with pyarrow.memory_map(str(file)) as mapped:  # polars maps no files of its own accord
            return pl.from_arrow(pyarrow.ipc.open_file(mapped).read_all(), rechunk=False)
    except pyarrow.ArrowInvalid as error:
        raise RecipeError(f"{file}, a table that was converted before, is damaged ({error}); delete it") from error


def _write(held: dict[str, list[pl.DataFrame]], batches: Iterable[Mapping[str, pl.DataFrame]], source: str,
           digest: str) -> None:
    """Write what is held and what comes, and empty what is held on the way. A reader sees all files or none."""
    import pyarrow
    folder = _folder()
    if folder is None:
        raise RecipeError(f"{source} takes more than {LIMIT / 2**30:.2g} GiB, so it is converted into a file in the "
                          f"cache folder, but {SETTING} is off. Set {SETTING} to a folder with room for it")
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".part-") as part, ExitStack() as files:
            writers = {}

            def write(name: str, frame: pl.DataFrame) -> None:
                table = frame.to_arrow(compat_level=pl.CompatLevel.newest())  # string views: mapped as they are
                if name not in writers:
                    file = files.enter_context(pyarrow.OSFile(f"{part}/{name}.arrow", "wb"))
                    writers[name] = files.enter_context(pyarrow.ipc.new_file(file, table.schema))
                writers[name].write_table(table)

            for name, frames in held.items():
                while frames:
                    write(name, frames.pop(0))
            for batch in batches:
                for name, frame in batch.items():
                    write(name, frame)
            files.close()
            _publish(Path(part), folder / digest)
    except OSError as error:
        raise RecipeError(f"{source} takes more than {LIMIT / 2**30:.2g} GiB, so it is converted into a file in "
                          f"{folder}, which fails ({error}). Make room there, or set {SETTING} to another folder"
                          ) from error


def _publish(part: Path, target: Path) -> None:
    whole = part / "whole"
    whole.mkdir()
    for file in part.glob("*.arrow"):
        os.replace(file, whole / file.name)
    try:
        os.replace(whole, target)
    except OSError:
        if not target.is_dir():  # else another process has just written the same
            raise
