"""The command `gatework`: each verb hands its arguments to a recipe or to the compiler."""

from __future__ import annotations

import contextlib
import importlib
import json as json_library
import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

try:
    from cyclopts import App, Parameter
    from cyclopts.config import Toml
except ModuleNotFoundError:
    sys.exit('the command line needs cyclopts; type:  pip install "gatework[cli]"')

from . import __version__
from .compiler import CellError, trace
from .compiler.text import show as show_stage
from .recipes import RECIPES, RecipeError
from .recipes.find_cell import find_cell


def values_of_file(app: App, commands: tuple, arguments) -> None:
    """Fill in what was not typed from the TOML file that --config names."""
    for argument in arguments:
        if argument.name == "--config" and argument.tokens:
            Toml(argument.tokens[0].value, must_exist=True, use_commands_as_keys=False)(app, commands, arguments)


def whole_numbers(app: App, commands: tuple, arguments) -> None:
    """Refuse 1.5 where a whole number is needed; cyclopts would round it."""
    for argument in arguments:
        for token in argument.tokens:
            if argument.hint is int and "." in str(token.value):
                raise RecipeError(f"{argument.name} must be a whole number; {token.value} was given")


app = App(name="gatework", version=__version__, help="Recurrent networks from their equations.",
          config=(values_of_file, whole_numbers), suppress_keyboard_interrupt=False)
train = App(name="train", help="Train a recipe on your data and save the model as a folder. Its "
            " options:  gatework train RECIPE --help")
app.command(train)
for _name, _line in RECIPES.items():
    train.command(App(name=_name, help=_line))


def part(module: str, extra: str):
    """Import a part of the package; if a package is missing that it needs, say what to type."""
    try:
        return importlib.import_module(f".{module}", __package__)
    except ModuleNotFoundError as error:
        if error.name.startswith(__package__):
            raise
        needed = error.name.partition(".")[0]
        raise RecipeError(f'this needs {needed}; type:  pip install "gatework[{extra}]"') from error


def offer(name: str) -> None:
    """Let `train` train a recipe, with the options of its settings."""
    part(f"recipes.{name.replace('-', '_')}", "recipes")
    recipe = part("recipes.find", "recipes").find_recipe(name)

    def command(data, /, *, settings=None, config=None, out=None, resume=False, find_learning_rate=False,
                tensorboard=False, json=False):
        run, settings = part("recipes.run", "recipes"), settings or recipe.Settings()
        folder = out or Path(f"{Path(data).name.partition('.')[0]}-{name}")
        with contextlib.redirect_stdout(sys.stderr) if json else contextlib.nullcontext():
            if find_learning_rate:
                picture = folder.with_name(folder.name + "-learning-rates.png")
                rate = run.find_learning_rate(recipe, data, settings, picture)
                print(f"The curve is in {picture}. Next:  --learning-rate {rate:.2g}")
                answer = {"learning_rate": rate, "picture": str(picture)}
            else:
                model = run.train(recipe, data, settings, folder, resume=resume, tensorboard=tensorboard)
                if model.global_rank != 0:  # of several processes, one speaks
                    return
                answer = {"model": str(folder), "figures": run.figures_of(folder)}
                print(f"Saved in {folder}. Next:  gatework {recipe.use} {shlex.quote(str(folder))} ...")
        if json:
            print_json(answer)

    command.__annotations__ = dict(
        data=Annotated[str, Parameter(help='File, folder, or "datasets:NAME"; docs/data.md says what is read.')],
        settings=Annotated[recipe.Settings | None, Parameter(name="*", consume_multiple=True, negative_iterable="")],
        config=Annotated[Path | None, Parameter(help="TOML file with values for these options; typed ones win.")],
        out=Annotated[Path | None, Parameter(help="Folder for the model [default: name of the data and the recipe].")],
        resume=Annotated[bool, Parameter(negative="", help="Go on with a run that was interrupted, with the data and "
                                         "options it was started with.")],
        find_learning_rate=Annotated[bool, Parameter(negative="", help="Train nothing; try rising learning rates and "
                                                     "suggest one.")],
        tensorboard=Annotated[bool, Parameter(negative="", help="Also write curves for TensorBoard, beside the "
                                              "model.")],
        json=Annotated[bool, Parameter(negative="", help="Print the result as one line of JSON, all else as errors "
                                       "are printed.")])
    del train[name]
    train.command(command, name=name, help=RECIPES[name])


def print_json(value) -> None:
    print(json_library.dumps(short(value), ensure_ascii=False), flush=True)


def short(value):
    """Numbers that float32 holds with the digits that tell them from its other numbers: 0.1, not 0.10000000149011612.

    >>> short({"low": [0.10000000149011612, 0.1], "text": "a", "count": 3})
    {'low': [0.1, 0.1], 'text': 'a', 'count': 3}
    """
    from numpy import float32

    if isinstance(value, dict):
        return {k: short(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [short(v) for v in value]
    if isinstance(value, float) and abs(value) < 1e38 and float(float32(value)) == value:
        return float(str(float32(value)))
    return value


@app.command
def evaluate(model: Path, data: Path, /, *, picture: Path | None = None, json: bool = False):
    """Print the figures of a trained model on a file with answers.

    Args:
        model: Folder of the model.
        data: A file like those it was trained on.
        picture: PNG file for a picture of what the model does with these data.
        json: Print one line of JSON.
    """
    run = part("recipes.run", "recipes")
    figures = run.evaluate(model, data, picture)
    print_json(figures) if json else print(run.report({str(model): figures}))


@app.command
def predict(model: Path, /, *files: Path, json: bool = False):
    """Print what a trained model says of new data, a line for each row.

    Args:
        model: Folder of the model.
        files: Files without answers. None: lines of standard input, each answered at once.
        json: A line of JSON for each row, with all that the model says.
    """
    run = part("recipes.run", "recipes")
    for answer in run.predict(model, files) if files else run.predict_lines(model, sys.stdin):
        print_json(answer) if json else print(short(next(iter(answer.values()))), flush=True)


@app.command
def transcribe(model: Path, /, *files: Path, json: bool = False):
    """Print what is said in sound files.

    Args:
        model: Folder of a model of the recipe transcribe.
        files: WAV or FLAC files.
        json: A line of JSON for each file.
    """
    if not files:
        raise RecipeError(f"give one or more sound files:  gatework transcribe {shlex.quote(str(model))} speech.wav")
    predict(model, *files, json=json)


@app.command
def generate(model: Path, /, *, prompt: str = "\n", length: int = 400, temperature: float = 0.8, seed: int = 0,
             json: bool = False):
    """Continue a prompt with a trained language model or music model.

    Args:
        model: Folder of the model.
        prompt: What the text begins with; for music a JSON file whose beginning is continued.
        length: Characters, words, pieces or steps to generate.
        temperature: Below 1 more likely ones, above 1 more daring ones, 0 always the likeliest.
        seed: Another seed, another text.
        json: Print one line of JSON.
    """
    text = part("recipes.run", "recipes").generate(model, prompt, length, temperature, seed)
    print_json({"text": text}) if json else print(text)


@app.command
def describe(model: Path, /, *, json: bool = False):
    """Print what a trained model is: its recipe, cell, settings, size, and how well it did on held-out data.

    Args:
        model: Folder of the model.
        json: Print one line of JSON, with all that the model knows of its data.
    """
    run, folder = part("recipes.run", "recipes"), part("recipes.model_folder", "recipes")
    found = folder.describe(model)
    if json:
        print_json({"recipe": found.recipe, "cell": found.cell.name, "settings": found.settings, "facts": found.facts,
                    "figures": found.figures})
        return
    sizes = [f"{k:<48} {list(v.shape)}" for k, v in folder.tensors(model).items()]
    settings = [f"{k:<20} {v!r}" for k, v in found.settings.items()]
    print("\n".join([f"{model}: {found.recipe}, {found.cell.name}", "", show_stage(found.cell, "equations"), "",
                     *settings, "", *sizes, "", run.report(found.figures)]))


@app.command
def show(cell: str, /, *,
         stage: Literal["equations", "graph", "derivative", "loop", "llvm", "gpu", "latex"] = "equations"):
    """Print a cell at one stage of its way from equations to machine code.

    Args:
        cell: Name of a cell of the catalogue, or file.py:function for equations of your own.
        stage: What to print.
    """
    traced = trace(find_cell(cell))
    if stage == "llvm":
        from .backends.cpu import llvm_text

        print(llvm_text(traced))
    elif stage == "gpu":
        print(part("backends.gpu", "gpu").triton_text(traced))
    else:
        print(show_stage(traced, stage))


@app.command
def check(cell: str, /, *, positive: Annotated[tuple[str, ...], Parameter(negative="")] = (),
          scale: float = 1.0, seed: int = 0):
    """Check that everything a layer offers holds for a cell, and print a report; the exit status is 1 if it fails.

    Args:
        cell: Name of a cell of the catalogue, or file.py:function for equations of your own.
        positive: Name of an input or parameter that is drawn above 0; may be given again.
        scale: What all drawn numbers are multiplied by.
        seed: Another seed, other numbers.
    """
    function, testing = find_cell(cell), part("testing", "torch")
    try:
        report = testing.check_cell(function, scale=scale, seed=seed, positive=positive)
    except testing.DrawError as error:
        raise RecipeError(str(error)) from error
    print(report)
    sys.exit(not report.passed)


def main() -> None:
    """Run the command line; what a user can put right is told in one line, without a traceback."""
    arguments = sys.argv[1:]
    try:
        # A recipe is imported only when it is asked for: torch and Lightning take seconds.
        if arguments[:1] == ["train"] and arguments[1:2] and arguments[1] in RECIPES:
            offer(arguments[1])
        app(arguments)
    except (RecipeError, CellError, OSError) as error:
        sys.exit(f"gatework: {error}")
    except KeyboardInterrupt:
        again = [*arguments, *([] if "--resume" in arguments else ["--resume"])]
        hint = f" Go on with:  gatework {shlex.join(again)}" if arguments[:1] == ["train"] else ""
        print(f"\ngatework: interrupted.{hint}", file=sys.stderr)
        sys.exit(130)
