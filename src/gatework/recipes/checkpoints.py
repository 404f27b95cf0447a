"""Where a run goes on after Ctrl-C, a crash or a power cut: its whole state in one file, `last.ckpt`.

The file is written whole, read without running what is in it, and belongs to one choice of data and settings. Beside it
lie, in `best.ckpt`, the weights after the best epoch so far.
"""

from __future__ import annotations

import io
import math
import pickle
import signal
import threading
import zipfile
from pathlib import Path

import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from . import RecipeError, model_folder

CHECKPOINT, BEST = "last.ckpt", "best.ckpt"
CHECKPOINT_STEPS = 100


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's checkpoints, written whole: its own go by way of the temporary folder, often another file system."""

    def save_checkpoint(self, checkpoint: dict, path, storage_options=None) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        model_folder.write_whole(Path(path), buffer.getbuffer())


class Checkpoints(Checkpoint):
    """Keeps the state of the run in `last.ckpt`, with what the run was started with, so that another is not resumed.

    Comes behind all callbacks whose state at the end of an epoch is to be kept.
    """

    def __init__(self, folder: Path, started_with: dict, batches):
        self.file, self.started_with, self.batches = folder / CHECKPOINT, started_with, batches

    def state_dict(self) -> dict:
        return self.batches.state_dict()

    def load_state_dict(self, state: dict) -> None:
        # Lightning does so itself, but not where the checkpoint is of the end of an epoch.
        self.batches.load_state_dict(state)

    def on_train_start(self, trainer, module) -> None:
        # Lightning's answer to SIGTERM tells the other processes, each of which may be waiting for this one in the
        # middle of a step: all would wait. So each just ends, and the run goes on from the last checkpoint.
        if trainer.world_size > 1 and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def on_train_batch_end(self, trainer, module, outputs, batch, index) -> None:
        # Not after the last batch of an epoch: Lightning would go on with the next one, without the validation.
        if (trainer.received_sigterm or trainer.global_step % CHECKPOINT_STEPS == 0) and not trainer.is_last_batch:
            trainer.save_checkpoint(self.file)

    def on_train_epoch_end(self, trainer, module) -> None:
        # Not where early stopping ends the run: that it did is in no checkpoint. The epoch before is repeated.
        if not trainer.should_stop:
            trainer.save_checkpoint(self.file)

    def on_save_checkpoint(self, trainer, module, checkpoint: dict) -> None:
        checkpoint["started_with"] = self.started_with


class BestWeights(Checkpoint):
    """Keeps the weights after the best epoch in `best.ckpt`.

    Lightning's ModelCheckpoint does too, but forgets what was best if the folder has another name when a run goes on.
    """

    def __init__(self, folder: Path, monitor: str, better: str):
        self.file, self.monitor, self.sign, self.best = folder / BEST, monitor, {"min": 1, "max": -1}[better], math.inf

    def on_train_epoch_end(self, trainer, module) -> None:
        badness = self.sign * trainer.callback_metrics[self.monitor].item()
        # The first epoch counts even if it ends in NaN: what is saved then says that the training diverged.
        if badness < self.best or trainer.current_epoch == 0:
            self.best = math.inf if math.isnan(badness) else badness
            trainer.save_checkpoint(self.file, weights_only=True)

    def state_dict(self) -> dict:
        return {"best": self.best}

    def load_state_dict(self, state: dict) -> None:
        self.best = state["best"]


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
        raise RecipeError(f"{file} is no checkpoint of a recipe ({type(error).__name__}); delete {out} and start "
                          "again without --resume") from error
    for name, value in started_with.items():
        if found.get(name) != value:
            shown = "" if name in ("data", "equations") else f": {found.get(name)!r} then, {value!r} now"
            raise RecipeError(f"the run in {out} was started with another {name.replace('_', ' ')}{shown}. Resume with "
                              "the data and options of the start")
    return file
