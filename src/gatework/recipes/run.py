"""Receives a recipe and what a user chose, hands on a trained model in a folder; reads such a folder and uses it."""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path

import tomli_w
import torch
from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.tuner import Tuner
from torch import distributed

from ..compiler import trace
from ..compiler.text import to_json
from . import RECIPES, RecipeError, model_folder
from .checkpoints import BEST, CHECKPOINT, BestWeights, Checkpoints, WholeCheckpoints, checkpoint_to_resume
from .find import find_recipe
from .find_cell import find_cell
from .progress import History, ProgressBar, save_figure
from .recipe import Recipe
from .settings import Settings

PICTURE, SETTINGS = "picture.png", "settings.toml"


def train(recipe: type[Recipe], source: str | Path, settings: Settings, out: Path, *, resume: bool = False,
          tensorboard: bool = False) -> Recipe:
    """Train a recipe on data, show how it goes, and save the model of the best epoch in the folder `out`.

    Every hundred steps the state of the run is written to `out/last.ckpt`; with `resume`, a run that was interrupted
    goes on from there and ends with the same weights as one that was not. All settings, chosen or not, are in
    `out/settings.toml`, from where --config reads them.

    Args:
        recipe: the class, such as `gatework.recipes.classify_text.ClassifyText`, or a changed copy of it.
        source: file, folder, or "datasets:NAME"; see docs/data.md.
        settings: an instance of `recipe.Settings`.
        out: folder for the model, its learning curve and its picture.
        resume: go on with a run that was interrupted, with the data and settings of its start.
        tensorboard: also write the curves for TensorBoard, into `out/tensorboard`.

    Returns the model in eval mode. Raises RecipeError for data, a cell or a setting that cannot be used and for a run
    whose weights are not finite any more, and KeyboardInterrupt on Ctrl-C.
    """
    quieten()
    check_processes(settings)
    splits = recipe.read(str(source), settings)
    started_with = chosen(settings) | {"recipe": recipe.name, "equations": to_json(trace(find_cell(settings.cell))),
                                       "data": digest(source)}
    checkpoint = checkpoint_to_resume(out, started_with, resume)
    model, batches = new_model(recipe, splits.train, settings)
    out.mkdir(parents=True, exist_ok=True)
    history = History(out, recipe.monitor)
    callbacks = [history, BestWeights(out, recipe.monitor, recipe.better), Checkpoints(out, started_with, batches)]
    if settings.patience:
        callbacks.append(EarlyStopping(recipe.monitor, mode=recipe.better, patience=settings.patience))
    if sys.stderr.isatty():
        callbacks.append(ProgressBar(history))
    trainer = new_trainer(settings, max_epochs=settings.epochs, plugins=[WholeCheckpoints()], callbacks=callbacks,
                          enable_progress_bar=sys.stderr.isatty(),
                          logger=tensorboard_logger(out) if tensorboard else False)
    if trainer.is_global_zero:
        print(f"{source}: {len(splits.train):,} {recipe.unit} to train on, {len(splits.valid):,} to validate\n"
              f"{model.cell.name}: {settings.layers} x {settings.hidden} hidden units, "
              f"{sum(p.numel() for p in model.parameters()):,} parameters; checkpoints in {out / CHECKPOINT}",
              flush=True)
    try:
        trainer.fit(model, batches, model.validation_batches(splits.valid), ckpt_path=checkpoint, weights_only=True)
    except SystemExit:
        # Lightning's answer to Ctrl-C
        raise KeyboardInterrupt from None
    # The folder may be on the disk of the first machine only.
    best = torch.load(out / BEST, weights_only=True)["state_dict"] if trainer.is_global_zero else None
    model.load_state_dict(trainer.strategy.broadcast(best))
    model.eval()
    if not all(p.isfinite().all() for p in model.state_dict().values()):
        raise RecipeError("the training diverged: the weights are not finite. Lower --learning-rate and start again")
    if trainer.is_global_zero:
        figures = {"this model": model.figures(splits.valid), **recipe.baselines(splits.train, splits.valid, settings)}
        history.plot()
        picture(model, splits.valid, out / PICTURE)
        model_folder.write_whole(out / SETTINGS, tomli_w.dumps(asdict(settings)).encode())
        save(model, out, figures)
        for file in (CHECKPOINT, BEST):
            (out / file).unlink(missing_ok=True)
        print(report(figures))
    return model


def find_learning_rate(recipe: type[Recipe], source: str | Path, settings: Settings, picture: Path) -> float:
    """Try rising step sizes on the training data, and suggest a tenth of the one with the lowest loss (Smith, 2017).

    Lightning's finder tries them; the curve is written to `picture`. Its own suggestion, where the loss falls fastest,
    is often one of the tiny steps at the start, whose loss is noise.
    """
    quieten()
    model, batches = new_model(recipe, recipe.read(str(source), settings).train, settings)
    trainer = new_trainer(settings, max_epochs=-1, enable_progress_bar=sys.stderr.isatty(), logger=False,
                          enable_checkpointing=False)
    finder = Tuner(trainer).lr_find(model, batches, min_lr=1e-6, update_attr=False)
    rates, losses = finder.results["lr"], finder.results["loss"]
    best = losses.index(min(losses))
    if rates[best] < 1e-5:
        raise RecipeError(f"no learning rate stands out: in {len(rates)} steps with rising rates the loss did not "
                          "fall. Give more data or a larger model")
    save_figure(finder.plot(), picture)
    return rates[best] / 10


def new_model(recipe: type[Recipe], train: object, settings: Settings) -> tuple[Recipe, object]:
    """A model with fresh weights, and the batches of its training data."""
    cell, facts = trace(find_cell(settings.cell)), recipe.facts_of(train, settings)
    seed_everything(settings.seed, verbose=False)
    try:
        model = recipe(cell, settings, facts)
    except ValueError as error:
        raise error if isinstance(error, RecipeError) else RecipeError(
            f"{error} (the cell is {settings.cell}; see --hidden, --layers and --cell)") from error
    batches = model.training_batches(train)
    # Not trainer.estimated_stepping_batches: asking for it makes Lightning start the data before it reads a checkpoint.
    model.total_steps = settings.epochs * len(batches)
    return model, batches


def new_trainer(settings: Settings, **options) -> Trainer:
    # The fused kernels are those of the CPU.
    parallel = settings.devices * settings.nodes > 1
    return Trainer(accelerator="cpu", devices=settings.devices, num_nodes=settings.nodes,
                   strategy="ddp" if parallel else "auto", precision=settings.precision, use_distributed_sampler=False,
                   gradient_clip_val=settings.clip or None, enable_model_summary=False, num_sanity_val_steps=0,
                   **options)


def check_processes(settings: Settings) -> None:
    """Raise RecipeError if other processes were started than the settings say: each would train a model of its own."""
    asked = settings.devices * settings.nodes
    by = "torchrun" if distributed.is_torchelastic_launched() else "srun"
    started = int(os.environ.get("WORLD_SIZE" if by == "torchrun" else "SLURM_STEP_NUM_TASKS", asked))
    if started != asked:
        raise RecipeError(f"{by} started {started} processes, --devices {settings.devices} on --nodes {settings.nodes} "
                          f"are {asked}. Give the same numbers to both")


def quieten() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module=r"lightning\.")  # what it says of its own use of torch is no one's concern


def tensorboard_logger(out: Path):
    from lightning.pytorch.loggers import TensorBoardLogger

    try:
        return TensorBoardLogger(out, name="tensorboard", version="")
    except ModuleNotFoundError as error:
        raise RecipeError("curves for TensorBoard need tensorboard; type:  pip install tensorboard") from error


def chosen(settings: Settings) -> dict:
    """What must be the same for a run to go on. Which machines its processes are on may change, not their number: with
    another one, batches would have another size, and the place in the epoch would be another."""
    same = {k: v for k, v in asdict(settings).items() if k not in ("devices", "nodes")}
    return same | {"number_of_processes": settings.devices * settings.nodes}


def digest(source: str | Path) -> str:
    """What tells data from other data: of files their content, of anything else its name."""
    found = hashlib.sha256(b"")
    path = Path(source)
    for file in sorted(p for p in (path.rglob("*") if path.is_dir() else [path]) if p.is_file()):
        found.update(str(file.relative_to(path)).encode())
        with open(file, "rb") as opened:
            found.update(hashlib.file_digest(opened, "sha256").digest())
    return found.hexdigest() if path.exists() else str(source)


def save(model: Recipe, folder: Path, figures: dict) -> None:
    """Write the model into a folder: `model.safetensors` and `model.json`."""
    settings = asdict(replace(model.settings, cell=model.cell.name))
    model_folder.save(folder, model_folder.Description(model.name, settings, model.facts, figures, model.cell),
                      model.state_dict())


def load(folder: Path, recipe: type[Recipe] | None = None) -> Recipe:
    """Read a model that `train` wrote, in eval mode.

    Args:
        folder: the folder of the model.
        recipe: the class it was trained with; needed only for one that is not of `gatework.recipes`.

    Raises ModelFolderError, naming the file, for anything that is not a model of the recipe.
    """
    description, tensors = model_folder.describe(folder), model_folder.tensors(folder)
    if recipe is None and description.recipe not in RECIPES:
        raise model_folder.ModelFolderError(
            f"{folder} cannot be used like this: gatework has no recipe {description.recipe!r}. If the class is yours, "
            "use the model from Python: gatework.recipes.run.load(folder, YourRecipe)")
    try:
        recipe = recipe or find_recipe(description.recipe)
        given = {f.name: description.settings[f.name] for f in fields(recipe.Settings)}
        if given.keys() != description.settings.keys():
            raise RecipeError(f"its settings {', '.join(description.settings.keys() - given.keys())} are unknown")
        settings = recipe.Settings(**given)
        # Sizes cost nothing on the device meta, but a number of layers does.
        if settings.layers > len(tensors):
            raise RecipeError("its settings ask for more layers than its tensors hold")
        with torch.device("meta"):
            model = recipe(description.cell, settings, description.facts)
            model.to(next((t.dtype for t in tensors.values() if t.is_floating_point()), torch.float32))
    except Exception as error:  # whatever a description that was made by hand leads to, it is the description's fault
        raise model_folder.broken(folder / model_folder.DESCRIPTION, f"{type(error).__name__}: {error}") from error
    model_folder.check_shapes(folder, tensors, model.state_dict())
    model.load_state_dict(tensors, assign=True)
    return model.eval()


def evaluate(folder: Path, file: Path, picture_file: Path | None = None) -> dict[str, float]:
    """The figures of a saved model on a file with answers; a picture too, where one is wanted."""
    model = load(folder)
    table = model.read_part(file, model.settings)
    if picture_file is not None and not picture(model, table, picture_file):
        raise RecipeError(f"the recipe {model.name} draws no picture; leave out --picture")
    return model.figures(table)


def predict(folder: Path, files: Iterable[Path]) -> Iterator[dict]:
    """What a saved model says of the rows of files, one after the other."""
    model = load(folder)
    for file in files:
        yield from model.predict(model.read_inputs(file, model.settings))


def predict_lines(folder: Path, lines: Iterable[str]) -> Iterator[dict]:
    """What a saved model says of each line, as soon as it is there."""
    model = load(folder)
    for number, line in enumerate(lines, start=1):
        if any("\udc80" <= character <= "\udcff" for character in line):  # so Python reads bytes that are not UTF-8
            raise RecipeError(f"line {number} of standard input is not UTF-8; if it is Latin-1, convert it with: iconv "
                              "-f latin1 -t utf-8")
        yield from model.predict(model.read_line(line.rstrip("\r\n"), model.settings))


def generate(folder: Path, prompt: str, length: int, temperature: float, seed: int) -> str:
    """Continue a prompt with a saved model of a recipe that can."""
    model = load(folder)
    if not hasattr(model, "generate"):
        raise RecipeError(f"{folder} is a model of the recipe {model.name}, which generates nothing; use it with:  "
                          f"gatework {model.use} {folder}")
    return model.generate(prompt, length, temperature, seed)


def figures_of(folder: Path) -> dict[str, dict[str, float]]:
    """How well a model and simple methods did on held-out data when it was trained."""
    return model_folder.describe(folder).figures


def picture(model: Recipe, table: object, path: Path) -> bool:
    """Draw what the model does with rows with answers, as PNG; False where the recipe has no picture."""
    figure = model.picture(table)
    if figure is not None:
        save_figure(figure, path)
    return figure is not None


def report(figures: dict[str, dict[str, float]]) -> str:
    """Figures by method as a table of text.

    >>> print(report({"this model": {"accuracy": 0.75}, "bag of words": {"accuracy": 0.5}}))
                      accuracy
    this model            0.75
    bag of words           0.5
    """
    names = list(dict.fromkeys(name for row in figures.values() for name in row))
    width = max(map(len, figures)) + 4
    head = " " * width + "".join(f"{n:>{max(8, len(n)) + 2}}" for n in names)
    rows = [f"{method:<{width}}" + "".join(
        f"{format(row[n], '.4g') if n in row else '':>{max(8, len(n)) + 2}}" for n in names)
        for method, row in figures.items()]
    return "\n".join([head, *rows])
