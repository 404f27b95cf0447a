"""Where a run goes on after Ctrl-C, a crash or a power cut: its whole state in one file, `last.ckpt`.

The file is written whole, read without running what is in it, and belongs to one text and one choice of settings.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from dataclasses import asdict
from pathlib import Path

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from . import RecipeError, model_folder
from .settings import LanguageModelSettings

CHECKPOINT = "last.ckpt"
CHECKPOINT_STEPS = 100


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's checkpoints, written whole: its own go by way of the temporary folder, often another file system."""

    def save_checkpoint(self, checkpoint: dict, path, storage_options=None) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        model_folder.write_whole(Path(path), buffer.getbuffer())


class Checkpoints(ModelCheckpoint):
    """Keeps the state of the run in `last.ckpt`, with what the run was started with, so that another is not resumed."""

    def __init__(self, folder: Path, started_with: dict):
        super().__init__(folder, "last", every_n_train_steps=CHECKPOINT_STEPS, enable_version_counter=False)
        self.started_with = started_with

    def on_save_checkpoint(self, trainer, module, checkpoint: dict) -> None:
        checkpoint["started_with"] = self.started_with


def checkpoint_to_resume(out: Path, started_with: dict, resume: bool) -> Path | None:
    """Where the run goes on, or None for a new run. Raises RecipeError rather than mix up or overwrite two runs."""
    file, model = out / CHECKPOINT, out / model_folder.DESCRIPTION
    if not resume:
        for taken, what in ((model, "a finished model"), (file, "an unfinished run")):
            if taken.exists():
                raise RecipeError(f"{out} holds {what}; choose another --out, delete {out}"
                                  + (", or go on with --resume" if taken is file else ""))
        return None
    if not file.is_file():
        why = (f"the run in {out} is finished" if model.exists() else "it was stopped before its first checkpoint, "
               "or --out is not its folder. Leave out --resume")
        raise RecipeError(f"there is no {file} to go on from: {why}")
    try:
        if not zipfile.is_zipfile(file):
            raise zipfile.BadZipFile
        found = dict(torch.load(file, weights_only=True)["started_with"])
    except (RuntimeError, KeyError, ValueError, TypeError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise RecipeError(f"{file} is no checkpoint of this recipe ({type(error).__name__}); delete {out} and start "
                          "again without --resume") from error
    for name, value in started_with.items():
        if found.get(name) != value:
            shown = f": {found.get(name)!r} then, {value!r} now" if name in asdict(LanguageModelSettings()) else ""
            raise RecipeError(f"the run in {out} was started with another {name.replace('_', ' ')}{shown}. Resume with "
                              "the text and options of the start")
    return file
