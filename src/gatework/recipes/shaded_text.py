"""Receives texts with a weight for each word, hands on a picture in which words are the darker the more they weigh."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap
from typing import Any

COLUMNS = 96  # characters of a line
ADVANCE, LEADING = 0.602, 1.6  # width of a character of DejaVu Sans Mono, and height of a line, in font sizes
POINTS = 9


def shaded_text(blocks: Sequence[tuple[str, Sequence[tuple[str, float]]]]) -> Any:
    """A matplotlib Figure of blocks: a heading, and the words below it with their weights, of any scale, not negative.

    >>> shaded_text([("Where is Mary?", [("Mary", 0.1), ("left", 0.0), ("home", 0.9)])]).axes[0].texts[3].get_text()
    'home'
    """
    from matplotlib.figure import Figure

    placed, line = [], 0  # text, column, line, how it is drawn
    for heading, words in blocks:
        for text in wrap(heading, COLUMNS):
            placed.append((text, 0, line, dict(weight="bold")))
            line += 1
        column, most = 0, max((weight for _, weight in words), default=0.0) or 1.0
        for word, weight in words:
            if column + len(word) > COLUMNS and column:
                column, line = 0, line + 1
            shade = dict(facecolor=(1.0, 0.55, 0.0, weight / most), edgecolor="none", pad=1.5)
            placed.append((word, column, line, dict(bbox=shade)))
            column += len(word) + 1
        line += 2
    figure = Figure(figsize=((COLUMNS + 2) * ADVANCE * POINTS / 72, max(line, 1) * LEADING * POINTS / 72))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(-1, COLUMNS + 1), ylim=(line - 0.5, -1))
    axes.set_axis_off()
    for text, column, line, how in placed:
        axes.text(column, line, text, family="monospace", size=POINTS, va="center", parse_math=False, **how)
    return figure
