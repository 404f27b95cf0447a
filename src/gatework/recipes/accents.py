"""Receives a text, hands on its characters without their accents and the accents of each; puts them together again."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence


def without_marks(text: str) -> tuple[str, list[str]]:
    """Characters without what stands above and below them, and of each its marks, as Unicode's decomposition (NFD) has
    them: accents, cedillas, points of any alphabet. Letters that it does not decompose, such as ø, stay.

    >>> bases, marks = without_marks("né à Çà")
    >>> bases, [unicodedata.name(m) for m in marks if m][:2]
    ('ne a Ca', ['COMBINING ACUTE ACCENT', 'COMBINING GRAVE ACCENT'])
    >>> with_marks(bases, marks)
    'né à Çà'
    """
    bases: list[str] = []
    marks: list[str] = []
    for character in unicodedata.normalize("NFD", text):
        if unicodedata.category(character) == "Mn" and bases:
            marks[-1] += character
        else:
            bases.append(character)
            marks.append("")
    return "".join(bases), marks


def with_marks(bases: Sequence[str], marks: Sequence[str]) -> str:
    """The text that `without_marks` took apart, in Unicode's composed form (NFC)."""
    return unicodedata.normalize("NFC", "".join(base + mark for base, mark in zip(bases, marks, strict=True)))


def name_of(marks: str) -> str:
    """Marks as Unicode calls them.

    >>> name_of("\N{COMBINING ACUTE ACCENT}"), name_of("")
    ('acute', 'none')
    """
    names = [unicodedata.name(mark).removeprefix("COMBINING ").removesuffix(" ACCENT").lower() for mark in marks]
    return ", ".join(names) or "none"
