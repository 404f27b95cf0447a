"""How a run goes: a bar with a live curve in the terminal, a line per epoch, its history as a table and a picture."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Sequence
from pathlib import Path

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

from ..runtime.folder import write_whole

CURVE, HISTORY = "learning_curve.png", "history.csv"


def sparkline(values: Sequence[float]) -> str:
    """Numbers as a curve of one line of text.

    >>> sparkline([3.0, 2.0, 1.5, 1.0])
    '█▅▃▁'
    """
    low, high = min(values), max(values)
    return "".join("▁▂▃▄▅▆▇█"[round(7 * (v - low) / (high - low)) if high > low else 0] for v in values)


class ProgressBar(TQDMProgressBar):
    """Lightning's, with epochs counted from 1 and the curve of what is watched so far."""

    def __init__(self, history: History):
        super().__init__(refresh_rate=10)
        self.history = history

    def on_train_epoch_start(self, trainer: Trainer, *_) -> None:
        super().on_train_epoch_start(trainer)
        curve = [row[self.history.monitor] for row in self.history.rows[-24:]]
        epoch = f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}"
        self.train_progress_bar.set_description(f"{epoch} {sparkline(curve)}" if curve else epoch)

    def get_metrics(self, trainer: Trainer, module: LightningModule) -> dict:
        shown = super().get_metrics(trainer, module)
        shown.pop("v_num", None)
        return shown


class History(Callback):
    """The figures of each epoch: printed, kept through interruptions, and written after each as a table and a curve."""

    def __init__(self, folder: Path, monitor: str):
        self.folder, self.monitor, self.rows = folder, monitor, []
        self.total = self.count = 0.0  # of the losses of this epoch; Lightning forgets them where a run is interrupted
        self.began = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs, batch, index: int) -> None:
        total, count = outputs["sums"].tolist()
        self.total, self.count = self.total + total, self.count + count

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        module.log("train_loss", self.total / self.count)
        self.total = self.count = 0.0
        figures = {k: v.item() for k, v in trainer.callback_metrics.items() if not k.endswith(("_step", "_epoch"))}
        self.rows.append({"epoch": trainer.current_epoch + 1, "step": trainer.global_step, **figures})
        if trainer.is_global_zero:
            module.print(f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}: " + ", ".join(
                f"{k} {v:.4g}" for k, v in figures.items()) + f" ({time.monotonic() - self.began:.0f} s)")
            self.write()

    def write(self) -> None:
        """The table and the curve in the folder of the run."""
        text = io.StringIO()
        table = csv.DictWriter(text, list(self.rows[-1]), lineterminator="\n")
        table.writeheader()
        table.writerows(self.rows)
        write_whole(self.folder / HISTORY, text.getvalue().encode())

    def plot(self) -> None:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.add_subplot(xlabel="epoch", ylabel="loss")
        for name, label in (("train_loss", "training"), ("valid_loss", "validation")):
            axes.plot([row["epoch"] for row in self.rows], [row[name] for row in self.rows], marker=".", label=label)
        axes.legend()
        save_figure(figure, self.folder / CURVE)

    def state_dict(self) -> dict:
        return {"rows": self.rows, "total": self.total, "count": self.count}

    def load_state_dict(self, state: dict) -> None:
        self.rows, self.total, self.count = state["rows"], state["total"], state["count"]


def save_figure(figure, path: Path) -> None:
    """Write a matplotlib figure as PNG, whole or not at all."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=120)
    write_whole(path, data.getbuffer())
