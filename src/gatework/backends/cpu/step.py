"""Receives a stack of cells and their weights, hands on prepared calls of few time steps. Needs no torch.

The loops are those of whole sequences, except that nothing leaves them: the products of the inputs are part of the
step, so a sequence gives the same bits however it is cut into calls. Weights are packed once; a call writes into memory
of its own, whose addresses were settled when it was prepared.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np

from ...compiler import Cell, Family, split
from ...compiler.scan import with_before
from ..batch import Batch
from ..plan import Forward, plan_forward
from .arrays import Numpy
from .kernel import Compiled
from .target import Target, target
from .task import Task

LINE = 64  # bytes: vectors of a kernel never straddle two cache lines where memory begins at one

# Multiplications of a call from which on handing a share of them to another thread pays, and of each of its steps,
# after which they meet; and of a call that takes so long that it waits for threads that sleep.
WORTH_A_HELPER, WORTH_A_MEETING, WORTH_A_WAIT = 1 << 18, 1 << 14, 1 << 24


class _Aligned(Numpy):
    """Arrays that begin at a cache line."""

    def empty(self, *shape: int) -> np.ndarray:
        size = int(np.prod(shape)) * self.dtype.itemsize
        memory = np.empty(size + LINE, np.uint8)
        begin = -memory.ctypes.data % LINE
        return memory[begin:begin + size].view(self.dtype).reshape(shape)


def dense(family: Family, stacked: np.ndarray) -> np.ndarray:
    """A stacked parameter as the loops read it: blocks [gates * H, D] with the zeros around them, [gates * H, H].

    >>> from gatework.cells import slstm
    >>> from gatework.compiler import trace
    >>> dense(trace(slstm).families["R"], np.ones((4 * 6, 2), np.float32))[0]
    array([1., 1., 0., 0., 0., 0.], dtype=float32)
    """
    if family.kind != "Blocks":
        return np.ascontiguousarray(stacked)
    gates, features = len(family.gates), stacked.shape[1]
    units = stacked.shape[0] // gates
    heads = units // features
    out = np.zeros((gates, heads, features, heads, features), stacked.dtype)
    for head in range(heads):
        out[:, head, :, head] = stacked.reshape(gates, heads, features, features)[:, head]
    return out.reshape(gates * units, units)


@cache
def _compiled(cell: Cell, sizes: tuple[tuple[str, int], ...], bytes_per_value: int, machine: Target,
              rounded: str) -> tuple[Forward, Compiled]:
    """The loop of a cell that hands out all its states, with its input products inside."""
    scan = split(cell, tuple(cell.states))
    plan = plan_forward(with_before(scan), dict(sizes), False, machine.lanes(bytes_per_value))
    return plan, Compiled(plan.loop, machine, bytes_per_value, cell, parts=int(rounded == "products"),
                          short_weights=rounded == "weights")


class _Layer:
    """One layer as machine code, with its packed weights."""

    def __init__(self, cell: Cell, sizes: Mapping[str, int], parameters: Sequence[np.ndarray], rounded: str):
        xp = _Aligned(parameters[0])
        self.cell, self.sizes = cell, sizes
        self.plan, self.compiled = _compiled(cell, tuple(sorted(sizes.items())), xp.dtype.itemsize, target(),
                                             rounded)
        self.given = {f.name: dense(f, p) for f, p in zip(cell.families.values(), parameters, strict=True)}
        self.packed, self.panels, _ = self.compiled.pack(xp, self.given)
        if rounded == "weights":
            short = _Aligned(np.empty(0, np.uint16)).empty(len(self.packed))
            short[:] = self.compiled.shortened(self.packed)
            begin = self.packed.ctypes.data
            self.packed, self.panels = short, [short.ctypes.data + (at - begin) // 2 for at in self.panels]
        self.widths = {s: sizes[e.dims[0]] for s, e in cell.states.items()}

    def arguments(self, batch: Batch, places: Mapping[str, tuple[int, int, int]]) -> ctypes.Array:
        """The words that the machine code reads; `places` maps buffers to (address, bytes per row, first address)."""
        words = list(batch.turns(False, 0, batch.steps))
        for name in self.plan.loop.buffers:
            vector = self.given.get(name.removeprefix("param_"))
            words += places[name] if vector is None else (vector.ctypes.data, 0, 0)
        words += *self.panels, 0  # nobody asks what was infinite
        return (ctypes.c_int64 * len(words))(*words)


class Stack:
    """Layers of one cell, each reading the output of the one below; weights are those of the moment it was made.

    sizes: for every layer the sizes of its cell; parameters: for every layer one stacked array per family, all of one
    dtype, float32 or float64. `inputs` maps every input to its size, `states` lists (layer, state, size): in this order
    they follow each other in memory, [rows, size] each. `threads`: how many may work on one call, with the same bits.
    `rounded` (of float32): "weights" rounds matrices to bfloat16, for half the memory, and all else is as precise as
    before; "products" rounds what they multiply, too. That needs a `target()` that `multiplies_bfloat16`.
    """

    def __init__(self, cell: Cell, sizes: Sequence[Mapping[str, int]], parameters: Sequence[Sequence[np.ndarray]],
                 threads: int = 1, rounded: str = ""):
        self.cell, self.dtype, self.threads = cell, parameters[0][0].dtype, threads
        self.layers = [_Layer(cell, *layer, rounded) for layer in zip(sizes, parameters, strict=True)]
        self.inputs = {n: sizes[0][e.dims[0]] if e.dims else 1 for n, e in cell.inputs.items()}
        self.states = [(k, s, n) for k, layer in enumerate(self.layers) for s, n in layer.widths.items()]
        self.width = sum(n for _, _, n in self.states)  # values of all states of one row

    def prepare(self, steps: int, rows: int) -> Call:
        return Call(self, steps, rows)


class Call:
    """The memory of a call for so many steps of so many rows; `run()` computes `states` from the other arrays.

    Inputs may be read from where they lie instead: `read`.

    inputs: [T, B, size] each ([B, size] for a Constant); first: [B * width], all states before the first step;
    states: [T, B * width], after every step, as `Stack.states` says; output: [T, B, H], a view of those.
    """

    def __init__(self, stack: Stack, steps: int, rows: int):
        xp = _Aligned(np.empty(0, stack.dtype))
        self.inputs = {n: xp.empty(rows, size) if stack.cell.inputs[n].op == "constant" else xp.empty(steps, rows, size)
                       for n, size in stack.inputs.items()}
        self.first, self.states = xp.empty(rows * stack.width), xp.empty(steps, rows * stack.width)
        self._batch = Batch.dense(steps, rows)
        self._arguments = [layer.arguments(self._batch, places)
                           for layer, places in zip(stack.layers, self._places(stack, rows))]
        shared = max(layer.plan.loop.scratch_row * rows for layer in stack.layers)
        tile = max(layer.compiled.own_values(rows) for layer in stack.layers)
        tile += -tile % (LINE // stack.dtype.itemsize)
        self._at = {n: [(arguments, 5 + 3 * list(layer.plan.loop.buffers).index(f"in_{n}"))
                        for layer, arguments in list(zip(stack.layers, self._arguments))[:1 if number == 0 else None]]
                    for number, n in enumerate(stack.inputs)}
        work = max(layer.compiled.multiplications for layer in stack.layers) * rows
        work *= all(layer.compiled.shareable for layer in stack.layers)
        meetings = max(layer.compiled.meetings for layer in stack.layers)
        pays = work >= meetings * WORTH_A_MEETING and work * steps >= WORTH_A_HELPER
        threads = stack.threads if pays else 1
        self._shared, self._tiles = xp.empty(shared), xp.empty(threads, tile)
        self._task = Task(rows, [(layer.compiled.code.address("run"), ctypes.addressof(arguments),
                                  self._shared.ctypes.data)
                                 for layer, arguments in zip(stack.layers, self._arguments)],
                          self._tiles.ctypes.data, tile * stack.dtype.itemsize, threads, work * steps >= WORTH_A_WAIT)
        self.run = self._task.run

    def read(self, name: str, values: np.ndarray) -> None:
        """Read an input from an array of its shape whose values follow each other, in this call and those to come."""
        for arguments, word in self._at[name]:
            arguments[word] = values.ctypes.data

    def _places(self, stack: Stack, rows: int) -> list[dict[str, tuple[int, int, int]]]:
        """For every layer: where the loop finds its sequences."""
        size, found = stack.dtype.itemsize, []
        given = {f"in_{n}": (a.ctypes.data, a.shape[-1] * size, 0) for n, a in self.inputs.items()}
        below = given[f"in_{next(iter(stack.inputs))}"]
        at = 0
        for layer in stack.layers:
            places = given | {f"in_{next(iter(stack.inputs))}": below}
            for state, width in layer.widths.items():
                # The rows of a step follow each other; those of the next step follow after all states of this one.
                places[f"seq_{state}"] = (self.states.ctypes.data + at * size, stack.width * size,
                                          self.first.ctypes.data + at * size)
                if state == stack.cell.output:
                    below = (*places[f"seq_{state}"][:2], 0)
                    columns = slice(at, at + rows * width)
                    self.output = self.states[:, columns].reshape(len(self.states), rows, width)
                at += rows * width
            found.append(places)
        return found
