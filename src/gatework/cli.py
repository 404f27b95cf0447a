"""The command `gatework`: each verb hands its arguments to a recipe or to the compiler."""

from __future__ import annotations

import importlib
import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

try:
    from cyclopts import App, Parameter
except ModuleNotFoundError:
    sys.exit('the command line needs cyclopts; type:  pip install "gatework[cli]"')

from . import __version__
from .compiler import CellError, trace
from .compiler.text import show as show_stage
from .recipes import RecipeError
from .recipes.find_cell import find_cell
from .recipes.settings import LanguageModelSettings

app = App(name="gatework", version=__version__, help="Recurrent networks from their equations.",
          suppress_keyboard_interrupt=False)
train = App(name="train", help="Train a model on your data and save it as a folder.")
app.command(train)


def recipe(name: str):
    return part(f"recipes.{name}", "recipes")


def part(module: str, extra: str):
    """Import a part of the package; if a package is missing that it needs, say what to type."""
    try:
        return importlib.import_module(f".{module}", __package__)
    except ModuleNotFoundError as error:
        if error.name.startswith(__package__):
            raise
        needed = error.name.partition(".")[0]
        raise RecipeError(f'this needs {needed}; type:  pip install "gatework[{extra}]"') from error


@train.command(name="language-model")
def train_language_model(text: Path, /, *,
                         settings: Annotated[LanguageModelSettings | None, Parameter(name="*")] = None,
                         out: Path | None = None, resume: bool = False):
    """Train a character-level language model on a text file.

    Args:
        text: A text in UTF-8; its last tenth is used to validate.
        out: Folder for the model [default: the name of the text file with "-model"].
        resume: Go on with a run that was interrupted, with the text and options it was started with.
    """
    out = out or Path(f"{text.stem}-model")
    recipe("language_model").train(text, settings or LanguageModelSettings(), out, resume)
    print(f"Saved in {out}. Next:  gatework generate {shlex.quote(str(out))} --prompt \"...\"")


@app.command
def generate(model: Path, /, *, prompt: str = "\n", length: int = 400, temperature: float = 0.8, seed: int = 0):
    """Continue a prompt with a trained language model.

    Args:
        model: Folder of the model.
        prompt: What the text begins with.
        length: Characters to generate.
        temperature: Below 1 more likely characters, above 1 more daring ones, 0 always the likeliest.
        seed: Another seed, another text.
    """
    print(recipe("language_model").generate(model, prompt, length, temperature, seed))


@app.command
def evaluate(model: Path, text: Path, /):
    """Print the bits per character of a trained language model on another text.

    Args:
        model: Folder of the model; it also holds the counts for the unigram and bigram model of its training text.
        text: A text in UTF-8.
    """
    language_model = recipe("language_model")
    language_model.report(language_model.evaluate(model, text))


@app.command
def show(cell: str, /, *, stage: Literal["equations", "graph", "derivative", "loop", "llvm", "latex"] = "equations"):
    """Print a cell at one stage of its way from equations to machine code.

    Args:
        cell: Name of a cell of the catalogue, or file.py:function for equations of your own.
        stage: What to print.
    """
    traced = trace(find_cell(cell))
    if stage == "llvm":
        from .backends.cpu import llvm_text

        print(llvm_text(traced))
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
        app(arguments)
    except (RecipeError, CellError, OSError) as error:
        sys.exit(f"gatework: {error}")
    except KeyboardInterrupt:
        again = [*arguments, *([] if "--resume" in arguments else ["--resume"])]
        hint = f" Go on with:  gatework {shlex.join(again)}" if arguments[:1] == ["train"] else ""
        print(f"\ngatework: interrupted.{hint}", file=sys.stderr)
        sys.exit(130)
