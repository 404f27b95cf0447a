"""Receives what a layer is called with, and refuses what does not fit: what was given, what is needed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from ..compiler import Cell


def check_kind(layer, name: str, value: Tensor) -> None:
    """Refuse a dtype or device other than the parameters'; under autocast any floating-point dtype will do."""
    weight = layer.first_parameter
    if value.device != weight.device:
        raise ValueError(f"{name} is on the device {value.device}, the layer's parameters are on "
                         f"{weight.device}; move one of them: layer.to({str(value.device)!r}) or the "
                         f"tensor.to({str(weight.device)!r})")
    cast = value.is_floating_point() and torch.is_autocast_enabled(value.device.type)
    if value.dtype != weight.dtype and not cast:
        raise ValueError(f"{name} has dtype {value.dtype}, the layer's parameters have {weight.dtype}; convert "
                         f"one of them: layer.to({value.dtype}) or the tensor.to({weight.dtype})"
                         + ("" if value.is_floating_point() else " (a layer needs floating-point values)"))


def check_features(layer, x: Tensor) -> None:
    if x.shape[-1] != layer.input_size:
        raise ValueError(f"input has {x.shape[-1]} features, the layer was made for input_size={layer.input_size}; "
                         f"the input's shape is {tuple(x.shape)}")
    check_kind(layer, "input", x)


def check_packed(layer, packed: PackedSequence, lengths, resets, inputs: Mapping[str, Tensor]) -> None:
    if lengths is not None or resets is not None:
        raise ValueError("a PackedSequence brings its own lengths, and has no room for resets=; give the padded "
                         "tensor with lengths= instead")
    further = list(layer.cell.inputs)[1:]
    if inputs or further:
        raise ValueError(f"a PackedSequence carries one input; give padded tensors, with lengths=, for a cell with the "
                         f"further inputs {', '.join(further) or 'none'}")
    check_features(layer, packed.data)


def check_input(layer, x: Tensor, inputs: Mapping[str, Tensor]) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"input must be a tensor or a PackedSequence; {type(x).__name__} was given")
    if x.dim() not in (2, 3):
        order = "[B, T, I]" if layer.batch_first else "[T, B, I]"
        raise ValueError(f"input must be {order}, or [T, I] unbatched; its shape is {tuple(x.shape)}")
    check_features(layer, x)
    needed = list(layer.cell.inputs)[1:]
    if inputs.keys() != set(needed):
        raise TypeError(f"{layer.cell.name} takes the further inputs {', '.join(needed) or 'none'}, by name; given "
                        f"were {', '.join(inputs) or 'none'}")
    for name in needed:
        _check_further(layer, name, inputs[name], x)
    if 0 in x.shape[:-1]:
        steps, rows = (*x.shape[:1], 1) if x.dim() == 2 else x.shape[1::-1] if layer.batch_first else x.shape[:2]
        raise ValueError(f"input has {steps} time steps and {rows} rows; both must be at least 1. Leave out the call "
                         "for an empty batch; rows without steps are said by lengths=")


def check_step(layer, x: Tensor, inputs: Mapping[str, Tensor]) -> None:
    """Check what `step` lays out anew; the call of the layer checks the rest."""
    for name, value in {"input": x, **inputs}.items():
        if name in ("lengths", "resets", "record"):
            raise TypeError(f"step takes no {name}=, which is about whole sequences; give them to the layer itself")
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} of a step must be a tensor; {type(value).__name__} was given")
    if x.dim() not in (1, 2):
        raise ValueError(f"one step of input is [B, I], or [I] unbatched; its shape is {tuple(x.shape)}. Give "
                         "whole sequences to the layer itself")


def _check_further(layer, name: str, value: Tensor, x: Tensor) -> None:
    """Check a further input, laid out as the input `x` is: every step for an Input, [B, size] for a Constant."""
    e = layer.cell.inputs[name]
    size = layer.sizes[e.dims[0]] if e.dims else 1
    if e.op == "constant":
        shape = (size,) if x.dim() == 2 else (x.shape[0 if layer.batch_first else 1], size)
    else:
        shape = (*x.shape[:-1], size)
    if not isinstance(value, Tensor) or tuple(value.shape) != shape:
        given = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"type {type(value).__name__}"
        raise ValueError(f"further input {name} has {given}; needed is a tensor of shape {shape}")
    check_kind(layer, f"further input {name}", value)


def check_states(layer, hx, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """The first states as a list, one for each state of the cell."""
    names = list(layer.cell.states)
    needed = "one tensor" if len(names) == 1 else f"a tuple of {len(names)} tensors"
    states = [hx] if isinstance(hx, Tensor) else hx
    if not isinstance(states, (tuple, list)) or not all(isinstance(s, Tensor) for s in states):
        given = [type(s).__name__ for s in hx] if isinstance(hx, (tuple, list)) else type(hx).__name__
        raise TypeError(f"the first states ({', '.join(names)}) of {layer.cell.name} must be {needed}, "
                        f"not {given}")
    if len(states) != len(names):
        raise ValueError(f"{layer.cell.name} has the states ({', '.join(names)}); the first states must be "
                         f"{needed}, {len(states)} were given")
    for name, value, shape in zip(names, states, shapes):
        if tuple(value.shape) != shape:
            form = "layers * directions, B, size" if len(shape) == 3 else "layers * directions, size"
            raise ValueError(f"first state {name} has shape {tuple(value.shape)}; needed is [{form}] = {shape}"
                             + (" (batch_first does not apply to states)" if layer.batch_first else ""))
        check_kind(layer, f"first state {name}", value)
    return list(states)


def check_lengths(lengths, rows: int, steps: int) -> Tensor:
    """[B] whole numbers, as a tensor on the CPU; their range is checked where they are used (`Ragged`)."""
    def wrong(error: type[Exception], given: str) -> Exception:
        return error(f"lengths must be {rows} whole numbers, one for each row of the batch, from 0 to the {steps} "
                     f"steps; {given}")

    compiling = torch.compiler.is_compiling()  # which cannot be asked about vmap up to torch 2.7
    if isinstance(lengths, Tensor) and not compiling and torch._C._functorch.is_batchedtensor(lengths):
        raise wrong(ValueError, "lengths that vmap or per-sample gradients map over have no numbers. Map over the "
                                "other tensors with the same lengths, or pass all rows in one call")
    try:
        lengths = torch.as_tensor(lengths).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise wrong(TypeError, f"{type(lengths).__name__} was given") from error
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise wrong(TypeError, f"their dtype is {lengths.dtype}")
    if tuple(lengths.shape) != (rows,):
        raise wrong(ValueError, f"their shape is {tuple(lengths.shape)}")
    return lengths.long()


def check_resets(resets, x: Tensor) -> Tensor:
    """True or false for every step of every row, laid out as the input."""
    if not isinstance(resets, Tensor) or resets.dtype != torch.bool or resets.shape != x.shape[:-1]:
        given = (f"shape {tuple(resets.shape)} and dtype {resets.dtype}" if isinstance(resets, Tensor)
                 else f"type {type(resets).__name__}")
        raise ValueError(f"resets must be a boolean tensor of shape {tuple(x.shape[:-1])}, true where a row begins "
                         f"anew before the step; given was {given}")
    if resets.device != x.device:
        raise ValueError(f"resets are on the device {resets.device}, the input is on {x.device}; move one of them")
    return resets


def recorded_names(cell: Cell, record: bool | str | Sequence[str] | None) -> tuple[str, ...]:
    """The states and values of the equations that `record` asks for."""
    if record is None or record is False:
        return ()
    known = list(dict.fromkeys([*cell.record, *cell.next]))
    if record is True:
        return tuple(known)
    if not isinstance(record, (str, Iterable)):  # torch.compile reads no union up to torch 2.6
        raise TypeError(f"record is True, a name or several names; {record!r} was given. {cell.name} has "
                        f"{', '.join(known)}")
    names = (record,) if isinstance(record, str) else tuple(record)
    unknown = [n for n in names if n not in known]
    if unknown:
        raise ValueError(f"{cell.name} has no value {', '.join(map(repr, unknown))} to record; it has "
                         f"{', '.join(known)}. record=True takes them all")
    return tuple(dict.fromkeys(names))
