"""`Recurrent`: any cell as a layer with the arguments, shapes and state_dict of torch.nn's recurrent layers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

from ..autograd import BACKENDS, register, scan
from ..compiler import Cell, trace

# Letters of the papers on the left, the names that torch.nn gives the same parameters on the right.
TORCH_NAMES = {"W": "weight_ih", "U": "weight_hh", "b": "bias_ih", "d": "bias_hh", "R": "weight_hr",
               "p": "weight_peephole"}


class Recurrent(torch.nn.Module):
    """One or more layers of a recurrent cell, over whole sequences.

    Args:
        cell: a function of equations (see `gatework.cells`), or a traced `Cell`.
        input_size: features I of the input.
        hidden_size: hidden units H.
        num_layers, bias, batch_first, dropout, bidirectional, device, dtype: as in `torch.nn.LSTM`.
        proj_size: the size P, for a cell that has one (`projected_lstm`).
        sizes: lengths of further sizes that the cell names, such as `{"Q": 32}`.
        backend: "auto" (the fused kernels where they serve the device and dtype, else the reference), "cpu",
            or "reference" (a loop in torch, differentiable any number of times).

    Parameters are called `weight_ih_l0`, `weight_hh_l0`, `bias_ih_l0`, `bias_hh_l0`, `weight_hr_l0` for the cell's
    W, U, b, d and R, like in torch.nn, and `p_l0` for any other letter p; `_reverse` marks the second direction.
    All are drawn from U(-1/sqrt(H), 1/sqrt(H)), in the order in which torch.nn draws them.

    Called with `input` [T, B, I] ([B, T, I] with batch_first, [T, I] unbatched, or a PackedSequence) and the first
    states [layers * directions, B, size]: one tensor for a cell with one state, a tuple in the cell's order for more;
    zeros if not given. Further inputs of the cell are given by name. Returns the output [T, B, directions * size] and
    the last states, in the form of the first ones.

    Raises ValueError or TypeError, naming what was given and what is needed, for sizes, dtypes or devices that do not
    fit together.

    >>> import torch, gatework
    >>> layer = gatework.nn.Recurrent(gatework.cells.coupled_lstm, 8, 16)
    >>> output, (h, c) = layer(torch.randn(5, 3, 8))
    >>> output.shape, h.shape, c.shape
    (torch.Size([5, 3, 16]), torch.Size([1, 3, 16]), torch.Size([1, 3, 16]))
    """

    def __init__(self, cell: Callable | Cell, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True,
                 batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False, proj_size: int = 0,
                 device=None, dtype=None, *, sizes: Mapping[str, int] | None = None, backend: str = "auto"):
        super().__init__()
        for name, value in dict(input_size=input_size, hidden_size=hidden_size, num_layers=num_layers).items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1; {value!r} was given")
        if isinstance(proj_size, bool) or not isinstance(proj_size, int) or not 0 <= proj_size < hidden_size:
            raise ValueError(f"proj_size must be a whole number, at least 0 and smaller than hidden_size="
                             f"{hidden_size}; {proj_size!r} was given")
        if isinstance(dropout, bool) or not 0 <= dropout <= 1:
            raise ValueError(f"dropout is a probability between 0 and 1; {dropout!r} was given")
        if dropout > 0 and num_layers == 1:
            warnings.warn(f"dropout={dropout} acts on the output of every layer but the last, and num_layers is 1: it "
                          "has no effect", stacklevel=2)
        if backend not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(map(repr, BACKENDS))}; {backend!r} was given")
        self.cell = register(trace(cell, bias))
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.dropout = bias, batch_first, float(dropout)
        self.bidirectional, self.proj_size, self.backend = bidirectional, proj_size, backend
        self.sizes = self._sizes(sizes or {})
        self._further = list(self.cell.inputs)[1:]
        self._names: list[list[str]] = []
        options = dict(device=device, dtype=dtype)
        for layer in range(num_layers):
            for suffix in self._suffixes(layer):
                names = []
                for family in self.cell.families.values():
                    shape = [len(family.gates) * self._length(family.rows, layer)]
                    if family.columns:
                        shape.append(self._length(family.columns, layer))
                    names.append(TORCH_NAMES.get(family.name, family.name) + suffix)
                    self.register_parameter(names[-1], torch.nn.Parameter(torch.empty(shape, **options)))
                self._names.append(names)
        self.reset_parameters()

    def _sizes(self, extra: Mapping[str, int]) -> dict[str, int]:
        known = {"I": self.input_size, "H": self.hidden_size}
        if "P" in self.cell.sizes and "P" not in extra:
            if not 0 < self.proj_size:
                raise ValueError(f"{self.cell.name} projects its state; give proj_size, the size of the projection")
            known["P"] = self.proj_size
        elif self.proj_size and "P" not in self.cell.sizes:
            raise ValueError(f"{self.cell.name} has no projection, so proj_size={self.proj_size} has no meaning; use "
                             "gatework.cells.projected_lstm, or leave proj_size at 0")
        missing = [s for s in self.cell.sizes if s not in {**known, **extra}]
        unknown = [s for s in extra if s not in self.cell.sizes or s in known]
        if missing or unknown:
            raise ValueError(f"{self.cell.name} has the sizes {', '.join(self.cell.sizes)}; sizes= must give "
                             f"{', '.join(missing) or 'nothing'} and gives {', '.join(extra) or 'nothing'}")
        return known | dict(extra)

    @property
    def _output_size(self) -> int:
        return self.sizes[self.cell.states[self.cell.output].dims[0]]

    def _length(self, size: str, layer: int) -> int:
        if size == "I" and layer > 0:
            return self._output_size * (1 + self.bidirectional)
        return self.sizes[size]

    def _suffixes(self, layer: int) -> list[str]:
        return [f"_l{layer}"] + ([f"_l{layer}_reverse"] if self.bidirectional else [])

    def __setstate__(self, state) -> None:
        super().__setstate__(state)
        self.cell = register(self.cell)  # also in the process that a pickled layer arrives in

    def reset_parameters(self) -> None:
        """Draw all parameters anew from U(-1/sqrt(H), 1/sqrt(H))."""
        bound = 1.0 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            torch.nn.init.uniform_(parameter, -bound, bound)

    def flatten_parameters(self) -> None:
        """Do nothing: parameters are never copied into one buffer here. Kept for code written for torch.nn."""

    @property
    def all_weights(self) -> list[list[torch.nn.Parameter]]:
        """The parameters, one list per layer and direction."""
        return [[getattr(self, name) for name in names] for names in self._names]

    def extra_repr(self) -> str:
        options = [f"{self.cell.name}, {self.input_size}, {self.hidden_size}"]
        usual = dict(num_layers=1, bias=True, batch_first=False, dropout=0.0, bidirectional=False, proj_size=0,
                     backend="auto")
        return ", ".join(options + [f"{k}={getattr(self, k)}" for k, v in usual.items() if getattr(self, k) != v])

    def forward(self, input: Tensor | PackedSequence, hx=None, **inputs: Tensor):
        if isinstance(input, PackedSequence):
            return self._forward_packed(input, hx, inputs)
        self._check_input(input, inputs)
        unbatched = input.dim() == 2
        if unbatched:
            input = input.unsqueeze(1)
            inputs = {k: v.unsqueeze(-2) for k, v in inputs.items()}
        elif self.batch_first:
            input = input.transpose(0, 1)
            inputs = {k: v.transpose(0, 1) if v.dim() == 3 else v for k, v in inputs.items()}
        if input.shape[0] == 0 or input.shape[1] == 0:
            raise ValueError(f"input has {input.shape[0]} time steps and {input.shape[1]} rows; both must be at least "
                             "1. Leave out the call for an empty batch")
        states = self._first_states(None if unbatched else input.shape[1], hx, input)
        output, last = self._layers(input, states, lambda x, first, names, reverse: self._scan(
            [x, *(inputs[k] for k in self._further)], first, names, reverse))
        if unbatched:
            output, last = output.squeeze(1), [s.squeeze(1) for s in last]
        elif self.batch_first:
            output = output.transpose(0, 1)
        return output, self._form(last)

    def _forward_packed(self, packed: PackedSequence, hx, inputs):
        if inputs or self._further:
            raise ValueError(f"a PackedSequence carries one input; give padded tensors for a cell with the further "
                             f"inputs {', '.join(self._further) or 'none'}")
        data, batch_sizes = packed.data, packed.batch_sizes.tolist()
        self._check_features(data)
        self._check_kind("input", data)
        # Runs of steps with the same rows are dense sequences: [first step, end, rows, where they lie in the data].
        segments, begin, offset = [], 0, 0
        for t in range(1, len(batch_sizes) + 1):
            if t == len(batch_sizes) or batch_sizes[t] != batch_sizes[begin]:
                count = (t - begin) * batch_sizes[begin]
                segments.append((t - begin, batch_sizes[begin], slice(offset, offset + count)))
                begin, offset = t, offset + count
        states = self._first_states(batch_sizes[0], hx, data)
        if hx is not None and packed.sorted_indices is not None:
            states = [s.index_select(1, packed.sorted_indices) for s in states]

        def run(x, first, names, reverse):
            # Rows are sorted by length. Forward they leave at the end of a segment; in reverse they join at its start.
            outputs, live, ended = [None] * len(segments), first, []
            if reverse:
                live = [s[:0] for s in first]
            for k in reversed(range(len(segments))) if reverse else range(len(segments)):
                steps, rows, where = segments[k]
                if reverse:
                    live = [torch.cat([s, f[s.shape[0]:rows]]) for s, f in zip(live, first)]
                elif live[0].shape[0] > rows:
                    ended.append([s[rows:] for s in live])
                    live = [s[:rows] for s in live]
                y, live = self._scan([x[where].reshape(steps, rows, -1)], live, names, reverse)
                outputs[k] = y.reshape(steps * rows, -1)
            last = [torch.cat([s, *(e[j] for e in reversed(ended))]) for j, s in enumerate(live)]
            return torch.cat(outputs), last

        output, last = self._layers(data, states, run)
        if packed.unsorted_indices is not None:
            last = [s.index_select(1, packed.unsorted_indices) for s in last]
        output = PackedSequence(output, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)
        return output, self._form(last)

    def _layers(self, x: Tensor, states: list[Tensor], run) -> tuple[Tensor, list[Tensor]]:
        """Run all layers and directions; `states` and the result are [layers * directions, B, size] per state."""
        directions = 1 + self.bidirectional
        last: list[list[Tensor]] = []
        for layer in range(self.num_layers):
            outputs = []
            for direction in range(directions):
                k = layer * directions + direction
                y, end = run(x, [s[k] for s in states], self._names[k], direction == 1)
                outputs.append(y)
                last.append(end)
            x = outputs[0] if directions == 1 else torch.cat(outputs, -1)
            if self.dropout and layer < self.num_layers - 1:
                x = functional.dropout(x, self.dropout, self.training)
        if len(last) == 1:
            return x, [s.unsqueeze(0) for s in last[0]]
        return x, [torch.stack(s) for s in zip(*last)]

    def _scan(self, inputs: list[Tensor], states: list[Tensor], names: list[str], reverse: bool):
        return scan(self.cell, inputs, states, [getattr(self, n) for n in names], reverse, self.backend)

    def _form(self, states: list[Tensor]):
        return states[0] if len(states) == 1 else tuple(states)

    def _first_states(self, batch: int | None, hx, like: Tensor) -> list[Tensor]:
        """The first states, [layers * directions, B, size] each; `batch` is None for an unbatched input."""
        names = list(self.cell.states)
        count = self.num_layers * (1 + self.bidirectional)
        rows = () if batch is None else (batch,)
        shapes = [(count, *rows, self.sizes[e.dims[0]]) for e in self.cell.states.values()]
        if hx is None:
            states = [like.new_zeros(shape, dtype=self._dtype(like)) for shape in shapes]
        else:
            states = self._check_states(names, hx, shapes)
            if torch.is_autocast_enabled(like.device.type):
                states = [s.to(self._dtype(like)) for s in states]
        return [s.unsqueeze(1) for s in states] if batch is None else states

    def _check_states(self, names: list[str], hx, shapes: list[tuple[int, ...]]) -> list[Tensor]:
        needed = "one tensor" if len(names) == 1 else f"a tuple of {len(names)} tensors"
        states = [hx] if isinstance(hx, Tensor) else hx
        if not isinstance(states, (tuple, list)) or not all(isinstance(s, Tensor) for s in states):
            given = [type(s).__name__ for s in hx] if isinstance(hx, (tuple, list)) else type(hx).__name__
            raise TypeError(f"the first states ({', '.join(names)}) of {self.cell.name} must be {needed}, "
                            f"not {given}")
        if len(states) != len(names):
            raise ValueError(f"{self.cell.name} has the states ({', '.join(names)}); the first states must be "
                             f"{needed}, {len(states)} were given")
        for name, value, shape in zip(names, states, shapes):
            if tuple(value.shape) != shape:
                form = "layers * directions, B, size" if len(shape) == 3 else "layers * directions, size"
                raise ValueError(f"first state {name} has shape {tuple(value.shape)}; needed is [{form}] = {shape}"
                                 + (" (batch_first does not apply to states)" if self.batch_first else ""))
            self._check_kind(f"first state {name}", value)
        return list(states)

    def _dtype(self, like: Tensor) -> torch.dtype:
        """The dtype of the states: autocast keeps the parameters' precision."""
        return getattr(self, self._names[0][0]).dtype if torch.is_autocast_enabled(like.device.type) else like.dtype

    def _check_features(self, x: Tensor) -> None:
        if x.shape[-1] != self.input_size:
            raise ValueError(f"input has {x.shape[-1]} features, the layer was made for input_size={self.input_size}; "
                             f"the input's shape is {tuple(x.shape)}")

    def _check_input(self, x: Tensor, inputs: Mapping[str, Tensor]) -> None:
        if not isinstance(x, Tensor):
            raise TypeError(f"input must be a tensor or a PackedSequence; {type(x).__name__} was given")
        if x.dim() not in (2, 3):
            order = "[B, T, I]" if self.batch_first else "[T, B, I]"
            raise ValueError(f"input must be {order}, or [T, I] unbatched; its shape is {tuple(x.shape)}")
        self._check_features(x)
        self._check_kind("input", x)
        needed = self._further
        if sorted(inputs) != sorted(needed):
            raise TypeError(f"{self.cell.name} takes the further inputs {', '.join(needed) or 'none'}, by name; given "
                            f"were {', '.join(inputs) or 'none'}")
        for name in needed:
            self._check_further(name, inputs[name], x)

    def _check_further(self, name: str, value: Tensor, x: Tensor) -> None:
        """Check a further input, laid out as the input `x` is: every step for an Input, [B, size] for a Constant."""
        e = self.cell.inputs[name]
        size = self.sizes[e.dims[0]]
        if e.op == "constant":
            shape = (size,) if x.dim() == 2 else (x.shape[0 if self.batch_first else 1], size)
        else:
            shape = (*x.shape[:-1], size)
        if not isinstance(value, Tensor) or tuple(value.shape) != shape:
            given = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"type {type(value).__name__}"
            raise ValueError(f"further input {name} has {given}; needed is a tensor of shape {shape}")
        self._check_kind(f"further input {name}", value)

    def _check_kind(self, name: str, value: Tensor) -> None:
        """Refuse a dtype or device other than the parameters'; under autocast any floating-point dtype will do."""
        weight = getattr(self, self._names[0][0])
        if value.device != weight.device:
            raise ValueError(f"{name} is on the device {value.device}, the layer's parameters are on "
                             f"{weight.device}; move one of them: layer.to({str(value.device)!r}) or the "
                             f"tensor.to({str(weight.device)!r})")
        cast = value.is_floating_point() and torch.is_autocast_enabled(value.device.type)
        if value.dtype != weight.dtype and not cast:
            raise ValueError(f"{name} has dtype {value.dtype}, the layer's parameters have {weight.dtype}; convert "
                             f"one of them: layer.to({value.dtype}) or the tensor.to({weight.dtype})"
                             + ("" if value.is_floating_point() else " (a layer needs floating-point values)"))
