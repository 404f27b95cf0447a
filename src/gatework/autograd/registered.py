"""Receives calls of `gatework.autograd.scan`, hands compilers and exporters the registered operator `gatework::scan`.

They see one node of known shapes and never look into it. An operator takes tensors, numbers and strings only: a cell
goes in as its fingerprint, the names of its outputs as one string.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..backends.cpu.target import target
from ..compiler import Cell
from . import checkpoints
from .arrays import arrays_of
from .calls import Call, flat, parts_of
from .functions import batch_of, kernel_of, kernel_of_shapes, narrowed, shapes_of

_cells: dict[str, Cell] = {}
_library = torch.library.Library("gatework", "DEF")
_library.define("scan(str cell, str outputs, Tensor[] inputs, Tensor[] states, Tensor[] parameters, bool reverse,"
                " Tensor? sizes, SymInt every, bool on_gpu, bool short, bool train) -> Tensor[]")
_library.define("scan_backward(str cell, str outputs, Tensor?[] gradients, Tensor[] tensors, Tensor[] kept,"
                " bool reverse, Tensor? sizes, SymInt every, bool on_gpu, bool short, bool[] needs) -> Tensor[]")


_multiplies_bfloat16 = False  # of the machine; what compilers trace cannot ask LLVM for it


def multiplies_bfloat16() -> bool:
    """Whether there are kernels for products of bfloat16, as of the last cell that was made known."""
    return _multiplies_bfloat16


def register(cell: Cell) -> Cell:
    """Make a cell known to the operator.

    Returns the one that stands for all cells of these equations: layers that are alike share their kernels.
    """
    global _multiplies_bfloat16
    _multiplies_bfloat16 = target().multiplies_bfloat16
    return _cells.setdefault(cell.fingerprint, cell)


def _known(fingerprint: str) -> Cell:
    if fingerprint not in _cells:
        raise RuntimeError(f"this program runs a cell of the fingerprint {fingerprint}, which this process does not "
                           "know: make a layer of the same cell and options (or gatework.nn.load a saved one) before "
                           "running it")
    return _cells[fingerprint]


def registered_scan(cell: Cell, outputs: tuple[str, ...], inputs: Sequence[Tensor], states: Sequence[Tensor],
                    parameters: Sequence[Tensor], reverse: bool, sizes: Tensor | None,
                    checkpoint_every: int | str | None, on_gpu: bool = False, short: bool = False):
    """`scan` as one node; the cell has been registered when its layer was made. `short`: products of bfloat16."""
    every = 0  # steps between two checkpoints, 0 for none
    if checkpoint_every is not None:
        steps = len(inputs[0] if sizes is None else sizes)
        every = checkpoints.distance(int(steps), int(len(states[0])), checkpoint_every)
        every = 0 if every >= steps else every
    made = torch.ops.gatework.scan(cell.fingerprint, ",".join(outputs), inputs, states, parameters, reverse, sizes,
                                   every, on_gpu, short, torch.is_grad_enabled())
    a, b = len(outputs), len(outputs) + len(states)
    return made[:a], made[a:b]


@torch.library.impl("gatework::scan", "CompositeExplicitAutograd", lib=_library)
def _scan(name, outputs, inputs, states, parameters, reverse, sizes, every, on_gpu, short, train):
    cell, names = _known(name), tuple(outputs.split(","))
    if short and not target().multiplies_bfloat16:
        raise RuntimeError(f"this program multiplies bfloat16 in {cell.name}, which this processor does not; compile "
                           "or export it here, or without autocast")
    kept: list[Tensor] = []
    places = inputs[0].shape[:-1].numel()

    def run(xs, counts):
        k = kernel_of(cell, names, xs, states, parameters, on_gpu, short)
        batch = batch_of(xs[0], len(states[0]), counts)
        if train and every:
            handed, last, starts = checkpoints.forward(k, batch, every, list(map(flat, xs)), states, parameters,
                                                       reverse)
            kept.extend(starts)
        else:
            shape = xs[0].shape[:-1]
            call = Call.of(k, batch, shape, reverse)
            handed, last, more = call.forward([*xs, *states, *parameters], train)
            # Shapes must not depend on the sizes: as long as the sequences, if not all of it is in use.
            kept.extend(m if len(m) == places else torch.cat([m, m.new_zeros(places - len(m), m.shape[1])])
                        for m in more)
        return handed, last

    handed, last = narrowed(cell, inputs, sizes, run)
    return [*(y.view(*inputs[0].shape[:-1], y.shape[-1]) for y in handed), *last, *kept]


@torch.library.register_fake("gatework::scan", lib=_library)
def _scan_shapes(name, outputs, inputs, states, parameters, reverse, sizes, every, on_gpu, short, train):
    cell, names, x = _cells[name], tuple(outputs.split(",")), inputs[0]
    # The compiler may leave any size open: those of features are fixed here.
    shapes = tuple(map(int, shapes_of(inputs, states, parameters)))
    k = kernel_of_shapes(cell, names, shapes, parameters[0].dtype, None if on_gpu else target(), short)
    places = x.shape[0] * x.shape[1] if sizes is None else x.shape[0]  # numel() would fix both
    kept = []
    if train and every:
        stretches = -(-len(x if sizes is None else sizes) // every)
        kept = [s.new_empty(stretches, *s.shape) for s in states]
    elif train:
        kept = [x.new_empty(places, k.kept_width(n), dtype=_dtype(parameters, k.is_short(n))) for n in k.kept]
    handed = [x.new_empty(*x.shape[:-1], k.width(n), dtype=_dtype(parameters, short)) for n in names]
    return [*handed, *(s.new_empty(s.shape) for s in states), *kept]


def _dtype(parameters: Sequence[Tensor], short: bool) -> torch.dtype:
    return torch.bfloat16 if short else parameters[0].dtype


def _context(ctx, inputs, output):
    name, outputs, xs, states, parameters, reverse, sizes, every, on_gpu, short, _ = inputs
    handed = outputs.count(",") + 1
    ctx.of, ctx.reverse, ctx.counts = (name, outputs), reverse, (len(xs), len(states), len(parameters), handed)
    ctx.needs = [t.requires_grad for t in (*xs, *states, *parameters)]
    ctx.set_materialize_grads(False)
    ctx.sizes, ctx.every, ctx.on_gpu, ctx.short = sizes, every, on_gpu, short
    ctx.save_for_backward(*xs, *states, *parameters, *output[:handed], *output[handed + len(states):])


def _gradient(ctx, gradients):
    a, b, c, handed = ctx.counts
    count, saved = a + b + c, ctx.saved_tensors
    made = iter(torch.ops.gatework.scan_backward(*ctx.of, list(gradients[:handed + b]), list(saved[:count]),
                                                 list(saved[count:]), ctx.reverse, ctx.sizes, ctx.every, ctx.on_gpu,
                                                 ctx.short, ctx.needs))
    given = [next(made) if need else None for need in ctx.needs]
    return None, None, given[:a], given[a:a + b], given[a + b:], *[None] * 6


torch.library.register_autograd("gatework::scan", _gradient, setup_context=_context, lib=_library)


@torch.library.impl("gatework::scan_backward", "CompositeExplicitAutograd", lib=_library)
def _scan_backward(name, outputs, gradients, tensors, kept, reverse, sizes, every, on_gpu, short, needs):
    cell, names = _cells[name], tuple(outputs.split(","))
    inputs, states, parameters = parts_of(cell, tensors)
    counts = None if sizes is None else sizes.tolist()
    batch = batch_of(inputs[0], len(states[0]), counts)

    def used(ts):
        return [None if t is None else t.reshape(-1, t.shape[-1])[:batch.total] for t in ts]

    upstream, last = used(gradients[:len(names)]), gradients[len(names):]
    xs = [x if e.op == "constant" else used([x])[0] for e, x in zip(cell.inputs.values(), inputs)]
    kernel = kernel_of(cell, names, xs, states, parameters, on_gpu, short)
    if every:
        made = checkpoints.backward(kernel, batch, every, upstream, last, xs, states, parameters,
                                    kept[len(names):], reverse, needs)
    else:
        # It writes over what was kept, and compilers make one node of two forward passes that are alike.
        xp = arrays_of(kernel, xs[0])
        made = Call.of(kernel, batch, (batch.total,), reverse).backward(
            upstream, last, [*xs, *states, *parameters], used(kept[:len(names)]),
            [xp.copy(k) for k in used(kept[len(names):])], tuple(needs))
    whole = []
    for t, d in zip(tensors, made):
        if d is not None and d.numel() < t.numel():
            d = torch.cat([d, d.new_zeros(len(t) - len(d), d.shape[1])])
        whole.append(d)
    return [d.view(t.shape).to(t.dtype) for t, d in zip(tensors, whole) if d is not None]


@torch.library.register_fake("gatework::scan_backward", lib=_library)
def _scan_backward_shapes(name, outputs, gradients, tensors, kept, reverse, sizes, every, on_gpu, short, needs):
    return [t.new_empty(t.shape) for t, need in zip(tensors, needs) if need]
