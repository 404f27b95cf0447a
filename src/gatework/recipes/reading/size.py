"""What a machine can hold: receives a number of bytes, raises where they are more than its memory."""

from __future__ import annotations

import os

from .. import RecipeError


def memory() -> int:
    """Bytes of memory that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_fits(needed: int, what: str, remedy: str) -> None:
    """Raise RecipeError if `what` needs more bytes than there is memory, with both sizes and the remedy.

    >>> check_fits(2**50, "book.txt", "Give a part of it")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    gatework.recipes.RecipeError: book.txt needs 1048576.0 GiB of memory, this machine has ... GiB. Give a part of it
    """
    if needed > memory():
        raise RecipeError(f"{what} needs {needed / 2**30:.1f} GiB of memory, this machine has "
                          f"{memory() / 2**30:.1f} GiB. {remedy}")
