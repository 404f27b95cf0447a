"""`Recipe`: what a task consists of. Each recipe fills it in; `run` trains, saves, evaluates and uses it.

In the order in which the parts are called: data are read (`read`), what the model must know of them is gathered
(`facts_of`), rows become examples (`encode`) and batches (`collate`), a batch has a loss (`loss`), held-out rows have
figures (`figures`, beside them those of `baselines`), and rows without answers get one (`answers`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import polars as pl
import torch
from lightning import LightningModule
from torch import Tensor, distributed

from ..compiler import Cell
from . import RecipeError
from .batches import Batches, Examples
from .reading import Role, Splits, read, read_lines, read_table
from .settings import Settings


class Recipe(LightningModule):
    """A task: its data, its model, its loss, and what it says about new data.

    Args:
        cell: the traced cell of the recurrent layers.
        settings: an instance of the recipe's `Settings`.
        facts: what `facts_of` gathered from the training data, as JSON has it: vocabularies, labels, scales.

    What raises NotImplementedError is for each recipe to say, as far as it uses it: those that read no rows (forecast)
    or share a module (text_to_text) leave some of it out, so Python cannot ask for all of them beforehand.
    """

    name: ClassVar[str]  # as it is typed: "classify-text"; the module is classify_text, the class ClassifyText
    Settings: ClassVar[type[Settings]] = Settings
    roles: ClassVar[tuple[Role, ...]] = ()  # what each row of the data must have
    unit: ClassVar[str] = "rows"  # what the length of a table counts
    monitor: ClassVar[str] = "valid_loss"  # what is logged in validation and tells the best epoch
    better: ClassVar[str] = "min"  # or "max"
    use: ClassVar[str] = "predict"  # the command that uses a model: predict, generate or transcribe

    def __init__(self, cell: Cell, settings: Settings, facts: dict):
        super().__init__()
        self.cell, self.settings, self.facts = cell, settings, facts
        self.learning_rate = settings.learning_rate  # under this name Lightning's finder looks for it
        self.total_steps = 0

    # Data -------------------------------------------------------------------------------------------------------------

    @classmethod
    def read(cls, source: str, settings: Settings) -> Splits:
        """Training, validation and test data of what was named on the command line."""
        return read(source, cls.roles, settings.columns, seed=settings.seed)

    @classmethod
    def read_part(cls, file: Path, settings: Settings) -> Any:
        """Data with answers, to evaluate on: one file."""
        return read_table(file, cls.roles, settings.columns)

    @classmethod
    def read_inputs(cls, file: Path, settings: Settings) -> Any:
        """Data without answers, to predict: here texts, one per line; the first role gets them."""
        return pl.DataFrame({cls.roles[0].name: read_lines(file)})

    @classmethod
    def read_line(cls, line: str, settings: Settings) -> Any:
        """A line of standard input as data without answers."""
        return pl.DataFrame({cls.roles[0].name: [line]})

    @classmethod
    def facts_of(cls, train: Any, settings: Settings) -> dict:
        """What the model must know of the training data; kept with it as JSON."""
        return {}

    def encode(self, row: dict) -> Any:
        """An example of a row of the table; answers may be missing where it is for `predict`."""
        raise NotImplementedError

    def collate(self, examples: list) -> Any:
        """A batch of examples."""
        raise NotImplementedError

    def length(self, example: Any) -> int:
        """What examples that are read side by side should have in common."""
        return len(example[0])

    def examples(self, table: Any) -> Sequence:
        return Examples(table, self.encode)

    def training_batches(self, table: Any):
        """Batches in a new order each epoch. What it hands on has len, state_dict and load_state_dict."""
        return Batches(self.examples(table), self.collate, self.settings.batch_size, length=self.length,
                       seed=self.settings.seed, world=self.settings.devices * self.settings.nodes)

    def validation_batches(self, table: Any):
        return Batches(self.examples(table), self.collate, self.settings.batch_size,
                       world=self.settings.devices * self.settings.nodes)

    # Training ---------------------------------------------------------------------------------------------------------

    def loss(self, batch: Any) -> tuple[Tensor, int]:
        """The loss of a batch, summed, and of how many items (rows, words, steps) it is the sum."""
        raise NotImplementedError

    def training_step(self, batch: Any, index: int) -> dict[str, Tensor]:
        # A seed for each step: a run that goes on in the middle draws the dropout masks of one that never stopped.
        torch.manual_seed(self.settings.seed * 2**32 + self.global_step * 2**10 + self.global_rank)
        total, count = self.loss(batch)
        sums = torch.tensor([total.item(), count], dtype=torch.float64)
        if self.trainer.world_size > 1:
            distributed.all_reduce(sums)
        self.log("train_loss_step", (sums[0] / sums[1]).float(), prog_bar=True)
        # Gradients are averaged over processes; so that all items weigh the same, divide by the mean of the counts.
        return {"loss": total / (sums[1].item() / self.trainer.world_size), "sums": sums}

    def log(self, name: str, value: Any, *, batch_size: int | None = None, **how: Any) -> None:
        # Of whole numbers Lightning's mean over processes is a whole number too, and a count must not be rounded.
        super().log(name, value, batch_size=None if batch_size is None else float(batch_size), **how)

    def validation_step(self, batch: Any, index: int) -> None:
        total, count = self.loss(batch)
        self.log("valid_loss", total / max(count, 1), prog_bar=True, on_epoch=True, batch_size=count, sync_dist=True)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), self.learning_rate, weight_decay=self.settings.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # Use --------------------------------------------------------------------------------------------------------------

    def answers(self, batch: Any) -> list[dict]:
        """What the model says, a dict for each row of a batch; its first entry is what is printed."""
        raise NotImplementedError

    @torch.no_grad()
    def predict(self, table: Any) -> Iterator[dict]:
        """What the model says of each row, in their order."""
        self.eval()
        for batch in Batches(self.examples(table), self.collate, self.settings.batch_size) if len(table) else ():
            yield from self.answers(batch)

    def figures(self, table: Any) -> dict[str, float]:
        """How well the model does on rows with answers."""
        raise NotImplementedError

    @classmethod
    def baselines(cls, train: Any, held_out: Any, settings: Settings) -> dict[str, dict[str, float]]:
        """The same figures of simple methods without a network, by their names."""
        return {}

    def picture(self, table: Any):
        """A matplotlib Figure that shows what the model does with rows with answers, or None."""
        return None


def one_input(cell: Cell, task: str) -> Cell:
    """The cell, if it reads a sequence and nothing else. Raises RecipeError otherwise."""
    if len(cell.inputs) != 1:
        raise RecipeError(f"{cell.name} has the inputs {', '.join(cell.inputs)}; {task} feeds one")
    return cell
