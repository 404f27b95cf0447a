"""Receives a cell of your own, hands on a report of whether everything that a layer offers holds for it.

    drawn     numbers for the cell, and the layers that are compared
    by_hand   the same results by cutting sequences into pieces and by single steps
    slopes    derivatives by differences of values
    checks    what is compared, within which bounds
    report    what has been found, as text
"""

from .checks import check_cell
from .drawn import DrawError
from .report import Check, Report

__all__ = ["Check", "DrawError", "Report", "check_cell"]
