"""The way into torch: `scan` runs any cell over a whole sequence, with its derivative.

    dispatch     what is asked for, and who serves it: the kernels or the reference backend
    arrays       what kernels ask of torch
    functions    the kernels as autograd functions
    calls        one kernel over one batch, walked through or repeated by a program
    ragged       rows of different lengths, with padding and without
    padded       calls that take them with padding
    checkpoints  long sequences, stretch by stretch
    registered   the same work as an operator that compilers and exporters know
"""

from .arrays import Torch
from .dispatch import BACKENDS, Plan, planned, scan, scan_both
from .registered import register

__all__ = ["BACKENDS", "Plan", "Torch", "planned", "register", "scan", "scan_both"]
