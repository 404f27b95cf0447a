"""Receives loops, hands on Triton kernels that run them on tensors of torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import triton
from triton.runtime.errors import OutOfResources

from ...compiler import Cell, Scan, split
from .. import kernel
from ..batch import Batch
from ..plan import Loop
from . import device, resident, shared
from .load import load, words
from .memory import sums
from .resident import longest_operand, resident_values, signature
from .source import LEAST
from .steps import Steps
from .together import run_together

# Bytes of weights that a program keeps at hand, in shared memory, beside room for its operands; and the longest operand
# of float32, whose products are unrolled: beyond it registers are spilled by kilobytes. From what the compiler says
# (`benchmarks/gpu/offline.py`), not measured.
MOST_RESIDENT, ROOM = 1 << 17, 20 << 10
LONGEST = {torch.float32: 64}
PIECE = 128  # values of an operand that are multiplied at once where programs share units: more would be spilled
ALONE = {"maxnreg": 255}  # for a program that has a processor for itself: registers saved would be nobody's
# The types of the tensors, with the type that a kernel computes in.
SERVED = {torch.float32: "float32", torch.bfloat16: "float32", torch.float16: "float32"}


class Compiled:
    """One loop as a Triton kernel that holds the weights, in one program for all units."""

    def __init__(self, loop: Loop, cell: Cell, dtype: torch.dtype):
        self.loop, self.dtype = loop, dtype
        self.source = self.source_of(loop, cell, dtype)
        self.runs = [load(self.source).run]
        self.buffers, self.edges, self.matrices = signature(loop)
        self.sequences = [n for n in self.buffers if loop.buffers[n].kind == "sequence"]
        self.warps = 8 if resident_values(loop) > 1 << 13 else 4

    @staticmethod
    def fits(loop: Loop, dtype: torch.dtype) -> bool:
        """Whether the weights of a loop have room."""
        # Normalising takes registers: beside more weights they would be spilled by kilobytes.
        most = _most_resident() // (4 if sums(loop) else 1)
        return (resident_values(loop) * dtype.itemsize <= most
                and longest_operand(loop) <= LONGEST.get(dtype, math.inf))

    @staticmethod
    def source_of(loop: Loop, cell: Cell, dtype: torch.dtype) -> str:
        return resident.write(loop, cell, SERVED[dtype], ahead=dtype.itemsize < 4)

    def suited(self, xp, batch: Batch) -> list[Compiled]:
        return [self]

    def pack(self, xp, parameters: dict[str, Any]) -> list[torch.Tensor]:
        return [parameters[n] for n in self.matrices]

    def release(self, xp, weights: list[torch.Tensor]) -> None:
        """They are the parameters themselves."""

    def call(self, xp, batch: Batch, span: tuple[int, int], from_end: bool, arrays, edges, weights, passing=frozenset(),
             still=frozenset()) -> bool:
        if span != (0, batch.steps):
            raise ValueError(f"all steps run in one launch; asked for were {span} of {batch.steps}")
        if batch.steps == 0:  # a kernel of halves would read what the first turn needs
            return True
        strides = [0 if n in still else self.loop.buffers[n].width for n in self.sequences]
        given = [*words(batch, xp.device), batch.steps, batch.steps - 1 if from_end else 0, batch.rows,
                 *(arrays[n] for n in self.buffers), *strides, *(edges[n] for n in self.edges), *weights]
        options = dict(FROM_END=from_end, ROWS=LEAST, num_warps=self.warps,
                       PRECISION=device.precision())
        with torch.cuda.device_of(arrays[self.buffers[0]]):  # Triton launches on the current one
            self.launch(-(-batch.rows // LEAST), given, options, xp.device)
        return True

    def launch(self, tiles: int, given: list, options: dict[str, Any], where: torch.device) -> None:
        self.runs[0][tiles,](*given, **options)


class Shared(Compiled):
    """The same in several programs, which share the units and meet."""

    def __init__(self, loop: Loop, cell: Cell, dtype: torch.dtype):
        self.members = _members(loop, dtype)
        super().__init__(loop, cell, dtype)
        self.warps = 8

    @staticmethod
    def fits(loop: Loop, dtype: torch.dtype) -> bool:
        members = _members(loop, dtype)
        values = resident_values(loop) // members + LEAST * shared.handed_width(loop)
        return (dtype not in LONGEST and members <= min(shared.most_members(loop), device.processors())
                and values * dtype.itemsize <= device.shared_bytes())

    @staticmethod
    def source_of(loop: Loop, cell: Cell, dtype: torch.dtype) -> str:
        return shared.write(loop, cell, _members(loop, dtype), PIECE, SERVED[dtype])

    def launch(self, tiles: int, given: list, options: dict[str, Any], where: torch.device) -> None:
        at_once = min(tiles, device.processors() // self.members)
        sides = 2 * at_once * LEAST
        handed = torch.empty(sides, shared.handed_width(self.loop), dtype=self.dtype, device=where)
        totals = torch.empty(sides, len(sums(self.loop)), self.members, device=where)
        for first in range(0, tiles, at_once):
            groups = min(at_once, tiles - first)
            counters = torch.zeros(groups, shared.COUNTER, dtype=torch.int64, device=where)
            run_together(self.runs[0], (groups, self.members), *given, handed, totals, counters, first * LEAST,
                         **options, **ALONE, MEMBERS=self.members)


class Kernel(kernel.Kernel):
    """The loops of one cell as Triton kernels."""

    def __init__(self, scan: Scan, sizes: dict[str, int], dtype: torch.dtype):
        super().__init__(scan, sizes)
        self.dtype, self.on_cpu = dtype, False

    def compile(self, loop: Loop) -> Compiled | Steps:
        for form in FORMS:
            if device.multiplies_from_memory() and form.fits(loop, self.dtype):
                return form(loop, self.cell, self.dtype)
        return Steps(loop, self.cell, self.dtype, SERVED[self.dtype])

    def forward(self, *given) -> Any:
        with _with_ways_out():
            return super().forward(*given)

    def backward(self, *given) -> Any:
        with _with_ways_out():
            return super().backward(*given)

    def sources(self) -> dict[str, str]:
        """The source of the loops that training runs."""
        return {"forward": self._training[1].source, "backward": self._backward[1].source}


# Of Triton: the first that compiles these kernels, and what fails an assertion of LLVM at an LSTM's; the extra `gpu`
# of pyproject.toml asks for the same.
OLDEST, FATAL = (3, 5), ("3.9.0",)
# What is tried in turn; beyond that loops run step by step. `Shared` waits here for its first run on a GPU.
FORMS: tuple[type[Compiled], ...] = (Compiled,)


def _most_resident() -> int:
    return min(MOST_RESIDENT, device.shared_bytes() - ROOM)


def _members(loop: Loop, dtype: torch.dtype) -> int:
    """Programs that share the units of a loop: no more than its weights need."""
    members = 2
    while resident_values(loop) * dtype.itemsize > members * _most_resident():
        members *= 2
    return members


@contextmanager
def _with_ways_out() -> Iterator[None]:
    """Add to an error that says what is missing what can be done about it."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        error.add_note("gatework: fewer rows or steps at a time need less memory, and so do layers with "
                       "checkpoint_every=N, which keep every Nth state and compute the rest again")
        raise
    except OutOfResources as error:
        error.add_note('gatework: this GPU has no room for the kernel; backend="reference" runs without it')
        raise


def check(like: torch.Tensor) -> None:
    """Raise ImportError for a Triton that does not make the kernels, ValueError for tensors that they do not serve."""
    version = triton.__version__
    old = tuple(map(int, version.split(".")[:2])) < OLDEST
    interpreted = not old and triton.knobs.runtime.interpret
    if old or (version.partition("+")[0] in FATAL and not interpreted):
        raise ImportError(f'backend="gpu" needs Triton from {".".join(map(str, OLDEST))} on, and not '
                          f'{", ".join(FATAL)}, whose compiler ends the process; installed is {version}. Type:  pip '
                          'install "gatework[gpu]"  or use backend="reference"')
    if not (like.is_cuda or interpreted) or like.dtype not in SERVED:
        raise ValueError(f'backend="gpu" serves {", ".join(map(str, SERVED))} on a GPU; given was {like.dtype} on '
                         f'{like.device}. Use backend="auto" or "reference"')
    if interpreted and like.dtype == torch.bfloat16:
        raise ValueError("Triton's interpreter multiplies bfloat16 wrongly; use float16 or float32 with "
                         "TRITON_INTERPRET=1")


@cache
def _kernel(cell: Cell, outputs: tuple[str, ...], sizes: tuple[tuple[str, int], ...], dtype: torch.dtype) -> Kernel:
    return Kernel(split(cell, outputs), dict(sizes), dtype)


def kernel_for(cell: Cell, sizes: dict[str, int], dtype: torch.dtype, outputs: tuple[str, ...] = ()) -> Kernel:
    """The kernel of a cell for sizes (names as in the cell) and tensors of a type; `outputs` as on the CPU."""
    return _kernel(cell, outputs or (cell.output,), tuple(sorted(sizes.items())), dtype)


def triton_text(cell: Cell, size: int = 64) -> str:
    """The Triton source of a cell's training loops, forward and backward, with every size set to `size`; to look at."""
    made = Kernel(split(cell), dict.fromkeys(cell.sizes, size), torch.float32)
    return "\n".join(f"# ---- {name}\n{text}" for name, text in made.sources().items())
