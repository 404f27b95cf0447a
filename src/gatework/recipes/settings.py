"""What can be chosen for a run. Imports no torch, so that the command line can print its help at once."""

from __future__ import annotations

from dataclasses import dataclass, fields

from . import RecipeError


@dataclass(frozen=True)
class LanguageModelSettings:
    """The choices of a character-level language model.

    Raises RecipeError for a value that is out of range, naming the option.

    >>> LanguageModelSettings(hidden=64).batch_size
    32
    >>> LanguageModelSettings(hidden=0)
    Traceback (most recent call last):
    gatework.recipes.RecipeError: --hidden must be a whole number of at least 1; 0 was given
    """

    cell: str = "lstm"
    """Name of a cell of the catalogue, or file.py:function for equations of your own."""
    hidden: int = 256
    """Hidden units H of every layer."""
    layers: int = 1
    """Recurrent layers on top of each other."""
    embedding: int = 64
    """Numbers by which a character is described, the input size I of the first layer."""
    projection: int = 0
    """Size P of the projected state; only for a cell that has one, such as projected_lstm."""
    dropout: float = 0.0
    """Probability of dropping an output of a layer while training."""
    epochs: int = 10
    """Passes over the training text."""
    batch_size: int = 32
    """Streams B into which the text is cut; they are read side by side."""
    seq_len: int = 128
    """Characters T per stream and step; gradients reach back that far, the state is carried on."""
    learning_rate: float = 0.003
    """Step size of AdamW at the start; it falls to zero along a cosine."""
    seed: int = 0
    """Every random choice follows from it."""

    def __post_init__(self):
        least = dict(hidden=1, layers=1, embedding=1, projection=0, epochs=1, batch_size=1, seq_len=1, seed=0)
        for field in fields(self):
            value, option = getattr(self, field.name), "--" + field.name.replace("_", "-")
            low = least.get(field.name)
            if low is not None and (type(value) is not int or not low <= value < 2**31):
                raise RecipeError(f"{option} must be a whole number of at least {low}; {value!r} was given")
        if type(self.cell) is not str:
            raise RecipeError(f"--cell must be a name; {self.cell!r} was given")
        if type(self.dropout) not in (int, float) or not 0 <= self.dropout < 1:
            raise RecipeError(f"--dropout must be a probability, at least 0 and below 1; {self.dropout!r} was given")
        if type(self.learning_rate) not in (int, float) or not 0 < self.learning_rate < float("inf"):
            raise RecipeError(f"--learning-rate must be a number above 0; {self.learning_rate!r} was given")
