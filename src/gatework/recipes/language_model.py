"""A character-level language model: embedding, recurrent layers of any cell, softmax over the next character.

The text is cut into B streams that are read side by side, T characters per step. The state at the end of a step is
where the next one starts, without a gradient (truncated backpropagation through time), so what is remembered may reach
further back than T. Every character but the first is predicted once per epoch.

The vocabulary is the set of characters of the training text, and one more, number 0, that stands for all others.
"""

from __future__ import annotations

import logging
import math
import sys
import warnings
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path

import torch
from lightning import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import TQDMProgressBar
from torch import Tensor
from torch.nn import functional

from ..compiler import Cell, trace
from ..compiler.text import to_json
from ..nn import Recurrent
from . import RecipeError, model_folder
from .characters import (
    PADDING,
    UNKNOWN,
    Chunks,
    baselines,
    count_pairs,
    encode,
    read_text,
    split_text,
    validation_chunks,
)
from .checkpoints import CHECKPOINT, Checkpoints, WholeCheckpoints, checkpoint_to_resume
from .find_cell import find_cell
from .settings import LanguageModelSettings

RECIPE = "language-model"
SAMPLE_PROMPT, SAMPLE_LENGTH = 40, 400


class LanguageModel(LightningModule):
    """The model, its loss, and the state that it carries from step to step.

    Called with characters [T, B] and the state before them (None: zeros); returns the logits [T, B, vocabulary] of
    each next character, and the state after them.
    """

    def __init__(self, cell: Cell, vocabulary: str, settings: LanguageModelSettings, pairs: Tensor, counts: Tensor):
        super().__init__()
        if len(cell.inputs) != 1:
            raise RecipeError(f"{cell.name} has the inputs {', '.join(cell.inputs)}; a language model feeds one")
        self.settings, self.vocabulary = settings, vocabulary
        size = len(vocabulary) + 1
        self.embedding = torch.nn.Embedding(size, settings.embedding)
        try:
            self.recurrent = Recurrent(cell, settings.embedding, settings.hidden, settings.layers,
                                       dropout=settings.dropout if settings.layers > 1 else 0.0,
                                       proj_size=settings.projection)
        except ValueError as error:
            raise RecipeError(f"{error} (the options are --hidden and --projection)") from error
        self.dropout = torch.nn.Dropout(settings.dropout)
        self.decoder = torch.nn.Linear(self.recurrent.sizes[cell.states[cell.output].dims[0]], size)
        # The counts of the training text, so that a saved model can be set beside a unigram and a bigram anywhere.
        self.register_buffer("pairs", pairs)
        self.register_buffer("counts", counts)
        self.carried = self.carried_in_validation = None
        self.total_steps = 0

    def forward(self, ids: Tensor, state=None):
        output, state = self.recurrent(self.embedding(ids), state)
        return self.decoder(self.dropout(output)), state

    def _loss(self, step: tuple, state):
        k, inputs, targets = step
        logits, state = self(inputs, None if k == 0 else state)
        loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=PADDING)
        return loss, state.detach() if isinstance(state, Tensor) else tuple(s.detach() for s in state)

    def training_step(self, step: tuple, index: int) -> Tensor:
        # A seed for each step: a run that goes on in the middle draws the dropout masks of one that never stopped.
        torch.manual_seed(self.settings.seed * 2**32 + self.global_step)
        loss, self.carried = self._loss(step, self.carried)
        self.log("bits", loss / math.log(2), prog_bar=True, logger=False, batch_size=1)
        return loss

    def validation_step(self, step: tuple, index: int) -> None:
        loss, self.carried_in_validation = self._loss(step, self.carried_in_validation)
        characters = int((step[2] != PADDING).sum())
        self.log("valid_bits", loss / math.log(2), prog_bar=True, logger=False, on_epoch=True, batch_size=characters)

    def on_train_epoch_end(self) -> None:
        self.print(f"epoch {self.current_epoch + 1} of {self.settings.epochs}: validation "
                   f"{self.trainer.callback_metrics['valid_bits']:.3f} bits per character")

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.settings.learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["carried"] = self.carried

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.carried = checkpoint["carried"]


class ProgressBar(TQDMProgressBar):
    """Lightning's, with epochs counted from 1."""

    def on_train_epoch_start(self, trainer: Trainer, *_) -> None:
        super().on_train_epoch_start(trainer)
        self.train_progress_bar.set_description(f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}")


def new_trainer(**options) -> Trainer:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module=r"lightning\.")  # what it says of its own use of torch is no one's concern
    # The fused kernels are those of the CPU.
    return Trainer(accelerator="cpu", devices=1, logger=False, enable_model_summary=False, num_sanity_val_steps=0,
                   **options)


def train(file: Path, settings: LanguageModelSettings, out: Path, resume: bool = False) -> LanguageModel:
    """Train on a text file, show how it goes, print a sample, and save the model in the folder `out`.

    Every hundred steps the state of the run is written to `out/last.ckpt`; with `resume`, a run that was interrupted
    goes on from there and ends with the same weights as one that was not. Raises RecipeError for a text, cell or
    setting that cannot be used, and KeyboardInterrupt on Ctrl-C.
    """
    text, cell = read_text(file), trace(find_cell(settings.cell))
    training_text, validation_text = split_text(file, text, settings)
    vocabulary = "".join(sorted(set(training_text)))
    ids, validation_ids = encode(training_text, vocabulary), encode(validation_text, vocabulary)
    started_with = asdict(settings) | {"equations": to_json(cell), "text": sha256(text.encode()).hexdigest()}
    checkpoint = checkpoint_to_resume(out, started_with, resume)
    seed_everything(settings.seed, verbose=False)
    model = LanguageModel(cell, vocabulary, settings, *count_pairs(ids, len(vocabulary) + 1))
    print(f"{file}: {len(text):,} characters, {len(vocabulary)} different; the last {len(validation_ids):,} validate\n"
          f"{cell.name}: {settings.layers} x {settings.hidden} hidden units, "
          f"{sum(p.numel() for p in model.parameters()):,} parameters; checkpoints in {out / CHECKPOINT}", flush=True)
    chunks = Chunks(ids, settings.batch_size, settings.seq_len)
    # Not trainer.estimated_stepping_batches: asking for it makes Lightning start the data before it reads a checkpoint.
    model.total_steps = settings.epochs * len(chunks)
    out.mkdir(parents=True, exist_ok=True)
    on_terminal = sys.stderr.isatty()
    trainer = new_trainer(max_epochs=settings.epochs, gradient_clip_val=1.0, plugins=[WholeCheckpoints()],
                          enable_progress_bar=on_terminal, callbacks=[
                              Checkpoints(out, started_with), *([ProgressBar(refresh_rate=10)] if on_terminal else [])])
    try:
        trainer.fit(model, chunks, validation_chunks(validation_ids), ckpt_path=checkpoint, weights_only=True)
    except SystemExit:
        # Lightning's answer to Ctrl-C
        raise KeyboardInterrupt from None
    bits = evaluate_ids(model, validation_ids)
    if not math.isfinite(bits["this model"]):
        raise RecipeError("the training diverged: the weights are not finite. Lower --learning-rate and start again")
    save(model, out)
    (out / CHECKPOINT).unlink(missing_ok=True)
    report(bits)
    print(f"\nA sample:\n{sample(model, training_text[:SAMPLE_PROMPT], SAMPLE_LENGTH, 0.8, settings.seed)}\n")
    return model


def evaluate_ids(model: LanguageModel, ids: Tensor) -> dict[str, float]:
    """Bits per character of the unigram and bigram models of the training text, and of this model."""
    trainer = new_trainer(enable_checkpointing=False, enable_progress_bar=False)
    trainer.validate(model, validation_chunks(ids), verbose=False)
    bits = baselines(model.pairs, model.counts, len(model.vocabulary) + 1, ids)
    return bits | {"this model": trainer.callback_metrics["valid_bits"].item()}


def report(bits: dict[str, float]) -> None:
    print("\nBits per character (smaller is better):")
    for name, value in bits.items():
        print(f"    {name:<12}{value:6.3f}")


def evaluate(folder: Path, file: Path) -> dict[str, float]:
    """Bits per character of a saved model on a text, beside those of the unigram and bigram models of its own text."""
    model, text = load(folder), read_text(file)
    if len(text) < 2:
        raise RecipeError(f"{file} has one character; there is nothing to predict in fewer than two")
    ids = encode(text, model.vocabulary)
    unknown = int((ids == UNKNOWN).sum())
    print(f"{file}: {len(ids):,} characters" + (f", {unknown:,} of them not in the training text: they count as one "
                                               "more character, 'unknown'" if unknown else ""))
    return evaluate_ids(model, ids)


@torch.no_grad()
def sample(model: LanguageModel, prompt: str, length: int, temperature: float, seed: int) -> str:
    """The prompt, continued by `length` characters: drawn from the model's distribution with its logits divided by
    the temperature, or the likeliest ones at temperature 0. Never the unknown character."""
    if not prompt or length < 1 or not 0 <= temperature < math.inf:
        raise RecipeError(f"generating needs a prompt of at least one character, a length of at least 1 and a "
                          f"temperature of at least 0; given were {prompt!r}, {length} and {temperature}")
    model.eval()
    generator, characters, state = torch.Generator().manual_seed(seed), [], None
    ids = encode(prompt, model.vocabulary)
    for _ in range(length):
        logits, state = model(ids[:, None], state)
        logits = logits[-1, 0, 1:].double()
        best = logits.argmax() if temperature == 0 else torch.multinomial(
            ((logits - logits.max()) / temperature).softmax(0), 1, generator=generator)[0]
        characters.append(model.vocabulary[best])
        ids = best[None] + 1
    return prompt + "".join(characters)


def generate(folder: Path, prompt: str, length: int = 400, temperature: float = 0.8, seed: int = 0) -> str:
    """Continue a prompt with a saved model; see `sample`."""
    return sample(load(folder), prompt, length, temperature, seed)


def save(model: LanguageModel, folder: Path) -> None:
    """Write the model into a folder: `model.safetensors` and `model.json`."""
    cell = model.recurrent.cell
    settings = asdict(replace(model.settings, cell=cell.name))
    model_folder.save(folder, model_folder.Description(RECIPE, settings, model.vocabulary, cell), model.state_dict())


def load(folder: Path) -> LanguageModel:
    """Read a model that `save` wrote. Raises ModelFolderError, naming the file, for anything that is not one."""
    description, tensors = model_folder.load(folder, RECIPE)
    try:
        settings = LanguageModelSettings(**description.settings)
        # Nothing is larger than the tensors that are there; this bounds the work done before shapes are compared.
        largest = max((t.numel() for t in tensors.values()), default=0)
        if max(settings.hidden, settings.embedding, settings.projection) > largest or settings.layers > len(tensors):
            raise RecipeError("its settings ask for more than its tensors hold")
        with torch.device("meta"):
            empty = torch.empty(tensors["pairs"].shape, dtype=torch.int64)
            model = LanguageModel(description.cell, description.vocabulary, settings, empty, empty)
            model.to(tensors["decoder.weight"].dtype)
    except (RecipeError, TypeError, KeyError, RuntimeError) as error:
        raise model_folder.broken(folder / model_folder.DESCRIPTION, str(error)) from error
    model_folder.check_shapes(folder, tensors, model.state_dict())
    check_counts(folder, tensors["pairs"], tensors["counts"], len(model.vocabulary) + 1)
    model.load_state_dict(tensors, assign=True)
    return model.eval()


def check_counts(folder: Path, pairs: Tensor, counts: Tensor, vocabulary_size: int) -> None:
    """Raise ModelFolderError unless the pairs rise within the vocabulary and their counts are positive."""
    if not (pairs.dim() == 1 and len(pairs) and pairs[0] >= 0 and pairs[-1] < vocabulary_size**2
            and (pairs.diff() > 0).all() and (counts > 0).all()):
        raise model_folder.broken(folder / model_folder.TENSORS, "its counts of pairs are not those of a text")
