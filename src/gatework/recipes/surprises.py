"""Receives tokens and how many bits each cost a model, hands on a picture of the text, the darker the more bits."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .shaded_text import ADVANCE, LEADING, POINTS

COLUMNS, ROWS = 96, 16  # characters of a line, and lines
ABOVE, BESIDE, MARGIN = 0.3, 0.8, 0.1  # inches for the title, the scale, and around


def surprises(tokens: Sequence[tuple[str, float]]) -> Any:
    """A matplotlib Figure of the first lines of a text, given as its tokens with their bits.

    >>> [sign.get_text() for sign in surprises([("a", 0.5), (" cat", 7.0), ("!", 2.0)]).axes[0].texts]
    ['a', 'c', 'a', 't', '!']
    """
    from matplotlib.figure import Figure

    signs = [(sign, bits) for token, bits in tokens for sign in token]
    grid, written = np.full((ROWS, COLUMNS), math.nan), []
    for at, row, column in places("".join(sign for sign, _ in signs)):
        if row >= ROWS:
            break
        sign, grid[row, column] = signs[at]
        written += [] if sign.isspace() else [(column, row, sign)]
    rows = max((row for _, row, _ in written), default=0) + 1
    width, height = COLUMNS * ADVANCE * POINTS / 72, rows * LEADING * POINTS / 72
    wide, high = width + BESIDE + 2 * MARGIN, height + ABOVE + 2 * MARGIN
    figure = Figure(figsize=(wide, high))
    axes = figure.add_axes((MARGIN / wide, MARGIN / high, width / wide, height / high), xticks=[], yticks=[])
    axes.set_title("how much each token surprised the model", size=POINTS + 1)
    axes.spines[:].set_visible(False)
    for column, row, sign in written:
        axes.text(column, row, sign, ha="center", va="center", family="monospace", size=POINTS, parse_math=False)
    most = max(1, math.ceil(np.quantile([0, *grid[np.isfinite(grid)]], 0.95)))
    shown = axes.imshow(grid[:rows], cmap="OrRd", vmin=0, vmax=most, alpha=0.7, aspect="auto")
    scale = figure.add_axes(((2 * MARGIN + width) / wide, MARGIN / high, 0.15 / wide, height / high))
    figure.colorbar(shown, scale, label="bits", extend="max")
    return figure


def places(text: str) -> Iterator[tuple[int, int, int]]:
    """Where each character is written, as its number, row and column: a word that does not fit begins a line, and a
    line does not begin with a space.

    >>> list(places("a\\n bc"))
    [(0, 0, 0), (3, 1, 0), (4, 1, 1)]
    """
    row = column = 0
    for word in re.finditer(r"\n|[^\S\n]?\S+|[^\S\n]", text):
        if word[0] == "\n" or column and column + len(word[0]) > COLUMNS:
            row, column = row + 1, 0
        for at in range(*word.span()):
            if column == COLUMNS:
                row, column = row + 1, 0
            if column or not text[at].isspace():
                yield at, row, column
                column += 1
