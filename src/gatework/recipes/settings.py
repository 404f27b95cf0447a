"""What can be chosen for a run, checked the same whether it was typed, read from a TOML file or from a saved model."""

# No `from __future__ import annotations`: the settings of a recipe inherit these fields with their types, and in its
# module the names of these types need not be known.

from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from . import RecipeError


def number(default: float, least: float | None = None, above: float | None = None, below: float | None = None) -> Any:
    """A field of a settings class with a range; a whole number if the default is one."""
    return field(default=default, metadata=dict(least=least, above=above, below=below))


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The choices that every recipe has. A recipe adds its own, and may choose other defaults.

    Raises RecipeError for a value of another type or out of range, naming the option.

    >>> Settings(hidden=64).batch_size
    32
    >>> Settings(hidden=0)
    Traceback (most recent call last):
    gatework.recipes.RecipeError: --hidden must be a whole number of at least 1; 0 was given
    """

    cell: str = "lstm"
    """Name of a cell of the catalogue, or file.py:function for equations of your own."""
    hidden: int = number(128, least=1)
    """Hidden units H of every recurrent layer."""
    layers: int = number(1, least=1)
    """Recurrent layers on top of each other."""
    dropout: float = number(0.0, least=0, below=1)
    """Probability of dropping a value between layers while training."""
    epochs: int = number(10, least=1)
    """Passes over the training data."""
    batch_size: int = number(32, least=1)
    """Examples B that are read side by side, per process."""
    learning_rate: float = number(0.003, above=0)
    """Step size of AdamW at the start; it falls to zero along a cosine."""
    weight_decay: float = number(0.01, least=0)
    """What AdamW takes off the weights, per step and in units of the step size."""
    clip: float = number(1.0, least=0)
    """Largest norm of the gradient; longer ones are shortened to it. 0: never."""
    patience: int = number(0, least=0)
    """Stop after so many epochs in which the validation did not get better. 0: never."""
    seed: int = number(0, least=0)
    """Every random choice follows from it."""
    precision: Literal["32-true", "64-true", "bf16-mixed", "16-mixed"] = "32-true"
    """Number format, as Lightning names them; "mixed" keeps the weights in float32."""
    devices: int = number(1, least=1)
    """Processes on this machine, each with its own rows of a batch (distributed data parallel)."""
    nodes: int = number(1, least=1)
    """Machines with so many processes each; start them with torchrun or SLURM."""
    columns: dict[str, str] = field(default_factory=dict)
    """Names of the columns in your data, where they are not the usual ones: --columns.text review"""

    def __post_init__(self):
        hints = get_type_hints(type(self))
        for each in fields(self):
            check(each, hints[each.name], getattr(self, each.name))


def check(each, kind, value) -> None:
    """Raise RecipeError unless the value of a field is of its kind and in its range."""
    option, range_ = "--" + each.name.replace("_", "-"), each.metadata
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise RecipeError(f"{option} must be one of {', '.join(map(str, get_args(kind)))}; {value!r} was given")
    elif kind is int or kind is float:
        allowed = (int,) if kind is int else (int, float)
        least, above, below = (range_.get(k) for k in ("least", "above", "below"))
        if (type(value) not in allowed or not -2**31 < value < 2**31 or (least is not None and value < least)
                or (above is not None and value <= above) or (below is not None and value >= below)):
            what = "whole number" if kind is int else "number"
            limits = [f"{word} {limit}" for word, limit in (("of at least", least), ("above", above), ("below", below))
                      if limit is not None]
            needed = f"{what} {' and '.join(limits)}".rstrip()
            raise RecipeError(f"{option} must be a {needed}; {value!r} was given")
    elif get_origin(kind) is dict:
        if type(value) is not dict or not all(type(x) is str for pair in value.items() for x in pair):
            raise RecipeError(f"{option} must name columns, such as {option}.text review; {value!r} was given")
    elif get_origin(kind) in (tuple, list):
        inner = get_args(kind)[0]
        if type(value) not in (tuple, list) or not all(type(x) is inner for x in value):
            raise RecipeError(f"{option} must be a list of {inner.__name__}; {value!r} was given")
    elif type(value) is not kind:
        words = {str: "text", bool: "true or false"}
        raise RecipeError(f"{option} must be {words.get(kind, kind)}; {value!r} was given")


def defaults(kind: type[Settings]) -> dict[str, Any]:
    """The value of every setting that nobody chose."""
    return {f.name: f.default if f.default is not MISSING else f.default_factory() for f in fields(kind)}
