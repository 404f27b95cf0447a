"""`Recurrent`: any cell as a layer with the arguments, shapes and state_dict of torch.nn's recurrent layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

from ..autograd import register, scan, scan_both
from ..autograd.ragged import Ragged
from ..compiler import Cell, trace
from ..compiler.transform import with_resets
from .arguments import (
    check_input,
    check_lengths,
    check_packed,
    check_resets,
    check_states,
    check_step,
    recorded_names,
)
from .initialise import Initialisation
from .options import check_options, lengths_of_sizes
from .plain import Plain
from .regularise import Regularisation
from .resets import after_steps, begin_anew

# Letters of the papers on the left, the names that torch.nn gives the same parameters on the right.
TORCH_NAMES = {"W": "weight_ih", "U": "weight_hh", "b": "bias_ih", "d": "bias_hh", "R": "weight_hr",
               "p": "weight_peephole"}


@dataclass
class _Call:
    """What all layers and directions of one call have in common."""

    rows: int
    recorded: tuple[str, ...]
    ragged: Ragged | None = None
    further: tuple[Tensor, ...] = ()
    resets: list[Tensor] | None = None  # by direction, 1 in a step after which a row begins anew


class Recurrent(torch.nn.Module):
    """One or more layers of a recurrent cell, over whole sequences.

    Args:
        cell: a function of equations (see `gatework.cells`), or a traced `Cell`.
        input_size: features I of the input.
        hidden_size: hidden units H.
        num_layers, bias, batch_first, dropout, bidirectional, device, dtype: as in `torch.nn.LSTM`.
        proj_size: the size P, for a cell that has one (`projected_lstm`).
        sizes: lengths of further sizes that the cell names, such as `{"Q": 32}`.
        initial_state: learn the first states, parameters `initial_h_l0`, ... of size [size], zero at first. They stand
            in wherever a row begins: without `hx`, and after each reset.
        zoneout: states of the step before that stay, instead of the new ones (Krueger et al., 2017). Like the next two
            a rate from 0 to below 1, or rates by name, such as {"h": 0.05, "c": 0.5}. In eval() the mean is taken.
        recurrent_dropout: of the candidate, recorded as g or n, or of recorded values by name; anew in every step
            (Semeniuta et al., 2016). `record` shows these values as they act, dropped.
        variational_dropout: of each layer's input, and of the states where matrices multiply them, all by default; the
            same units in all steps and for all gates (Gal & Ghahramani, 2016).
        weight_dropout: of the weights of the matrices that multiply a state (Merity et al., AWD-LSTM, 2018).
        init: "torch", all from U(-1/sqrt(H), 1/sqrt(H)); "orthogonal", recurrent matrices orthogonal per gate, others
            Glorot, biases 0; "glorot", all Glorot, biases 0. Gains of norms begin at 1.
        forget_bias: what the biases of each gate that keeps a state add up to at first: f of the LSTM, z of the GRU. A
            gate that writes where it is open (f = 1 - i, or z of other papers) gets the opposite sign.
        chrono_steps: chrono initialisation of these biases, for memories of up to so many steps (Tallec & Ollivier,
            2018): log(U(1, chrono_steps - 1)), and the opposite for the input gate.
        checkpoint_every: keep the states of every so many steps only and compute the rest again in the backward pass;
            "auto" chooses. Gradients are the same, memory is that of a few stretches, time grows by a third to a half.
        backend: "auto" (the fused kernels where they serve the device and dtype, else the reference), "cpu",
            or "reference" (a loop in torch, differentiable any number of times).

    Parameters are called `weight_ih_l0`, `weight_hh_l0`, `bias_ih_l0`, `bias_hh_l0`, `weight_hr_l0` for the cell's
    W, U, b, d and R, like in torch.nn, and `p_l0` for any other letter p; `_reverse` marks the second direction.
    They are drawn in the order in which torch.nn draws them. What is dropped, or kept by zoneout, is drawn by torch's
    generator anew for each call, and for each of `step`, while the layer trains; eval() ends it. The order is told at
    `gatework.nn.regularise`.

    Called with `input` [T, B, I] ([B, T, I] with batch_first, [T, I] unbatched, or a PackedSequence) and the first
    states `hx` [layers * directions, B, size]: one tensor for a cell with one state, a tuple in the cell's order for
    more; the initial ones if not given. Further inputs of the cell are given by name. Returns the output
    [T, B, directions * size] and the last states, in the form of the first ones. By name only:

        lengths: [B] whole numbers from 0 to T, in any order: the steps that each row has. Behind them the output is 0
            and nothing has a gradient; the last states are those at each row's own end. Padding costs no work.
        resets: [T, B] boolean ([B, T] with batch_first): the sequence is cut in front of step t, whose first state is
            the initial one again (zero, or learned), in both directions. `hx` is what a row goes on from otherwise.
        record: names of the equations' values and states, or True for all: then a third result maps "i_l0",
            "i_l0_reverse", ... to the values [T, B, size] of each layer and direction, gates activated, differentiable.

    Raises ValueError or TypeError, naming what was given and what is needed, for sizes, dtypes or devices that do not
    fit together.

    >>> import torch, gatework
    >>> layer = gatework.nn.Recurrent(gatework.cells.coupled_lstm, 8, 16)
    >>> output, (h, c) = layer(torch.randn(5, 3, 8))
    >>> output.shape, h.shape, c.shape
    (torch.Size([5, 3, 16]), torch.Size([1, 3, 16]), torch.Size([1, 3, 16]))
    >>> gatework.nn.LSTM(8, 16, zoneout={"h": 0.05, "c": 0.5}, recurrent_dropout=0.1, forget_bias=1.0)
    LSTM(lstm, 8, 16, zoneout={'h': 0.05, 'c': 0.5}, recurrent_dropout=0.1, forget_bias=1.0)
    """

    def __init__(self, cell: Callable | Cell, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True,
                 batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False, proj_size: int = 0,
                 device=None, dtype=None, *, sizes: Mapping[str, int] | None = None, initial_state: bool = False,
                 zoneout: float | Mapping[str, float] = 0.0, recurrent_dropout: float | Mapping[str, float] = 0.0,
                 variational_dropout: float | Mapping[str, float] = 0.0, weight_dropout: float = 0.0,
                 init: str = "torch", forget_bias: float | None = None, chrono_steps: float | None = None,
                 checkpoint_every: int | str | None = None, backend: str = "auto"):
        super().__init__()
        check_options(input_size, hidden_size, num_layers, dropout, proj_size, initial_state, checkpoint_every,
                      backend)
        self.cell = trace(cell, bias)
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.dropout = bias, batch_first, float(dropout)
        self.bidirectional, self.proj_size, self.backend = bidirectional, proj_size, backend
        self.initial_state, self.checkpoint_every = initial_state, checkpoint_every
        self.zoneout, self.recurrent_dropout = zoneout, recurrent_dropout
        self.variational_dropout, self.weight_dropout = variational_dropout, weight_dropout
        self.init, self.forget_bias, self.chrono_steps = init, forget_bias, chrono_steps
        self._initialisation.check(self.cell)
        self._register_cells()
        self.sizes = lengths_of_sizes(self.cell, input_size, hidden_size, proj_size, sizes or {})
        self._names: list[list[str]] = []
        self._initial_names: list[list[str]] = []
        options = dict(device=device, dtype=dtype)
        for layer in range(num_layers):
            for suffix in self._suffixes(layer):
                names = []
                for family in self.cell.families.values():
                    shape = [len(family.gates) * self._length(family.rows, layer)]
                    if family.stored_columns:
                        shape.append(self._length(family.stored_columns, layer))
                    names.append(TORCH_NAMES.get(family.name, family.name) + suffix)
                    self.register_parameter(names[-1], torch.nn.Parameter(torch.empty(shape, **options)))
                self._names.append(names)
                self._initial_names.append([f"initial_{s}{suffix}" for s in self.cell.states] if initial_state else [])
                for name, e in zip(self._initial_names[-1], self.cell.states.values()):
                    first = torch.empty(self.sizes[e.dims[0]], **options)
                    self.register_parameter(name, torch.nn.Parameter(first))
        self.reset_parameters()

    def _register_cells(self) -> None:
        """Make known to compilers whatever a call may run: in training or not, with resets or not."""
        self.cell, self._plain = register(self.cell), Plain()
        random = Regularisation(self.cell, self.zoneout, self.recurrent_dropout, self.variational_dropout,
                                self.weight_dropout)
        self._random = random or None  # None: nothing to look at in any call
        self._cells = {(training, resets): register(with_resets(c, self.initial_state) if resets else c)
                       for training, c in ((True, random.training), (False, random.evaluation))
                       for resets in (False, True)}

    @property
    def evaluation_cell(self) -> Cell:
        """The cell that runs in eval(): without dropout, and with the mean over the masks of zoneout."""
        return self._cells[False, False]

    @property
    def evaluation_cell_with_resets(self) -> Cell:
        """The same for calls with resets."""
        return self._cells[False, True]

    @property
    def _initialisation(self) -> Initialisation:
        return Initialisation(self.init, self.forget_bias, self.chrono_steps)

    @property
    def output_size(self) -> int:
        """Features of the output, those of both directions."""
        return self.sizes[self.cell.states[self.cell.output].dims[0]] * (1 + self.bidirectional)

    def _length(self, size: str, layer: int) -> int:
        return self.output_size if size == "I" and layer > 0 else self.sizes[size]

    def _suffixes(self, layer: int) -> list[str]:
        return [f"_l{layer}"] + ([f"_l{layer}_reverse"] if self.bidirectional else [])

    def __getstate__(self) -> dict:
        return {k: v for k, v in self.__dict__.items() if k not in ("_cells", "_random", "_plain")}

    def __setstate__(self, state) -> None:
        super().__setstate__(state)
        self._register_cells()  # also in the process that a pickled layer arrives in

    def reset_parameters(self) -> None:
        """Draw all weights anew, as `init`, `forget_bias` and `chrono_steps` say; learned first states begin at 0."""
        for weights in self.all_weights:
            self._initialisation.fill(self.cell, weights, self.hidden_size)
        for name in (n for names in self._initial_names for n in names):
            torch.nn.init.zeros_(getattr(self, name))

    def flatten_parameters(self) -> None:
        """Do nothing: parameters are never copied into one buffer here. Kept for code written for torch.nn."""

    @property
    def all_weights(self) -> list[list[torch.nn.Parameter]]:
        """The weights, one list per layer and direction."""
        return [[getattr(self, name) for name in names] for names in self._names]

    @property
    def first_parameter(self) -> torch.nn.Parameter:
        return self._parameter(self._names[0][0])

    def _parameter(self, name: str) -> Tensor:
        """A parameter, or what stands in for it (parametrize); looking for an attribute would take much longer."""
        own = self._parameters.get(name)
        return getattr(self, name) if own is None else own

    def extra_repr(self) -> str:
        options = [f"{self.cell.name}, {self.input_size}, {self.hidden_size}"]
        usual = dict(num_layers=1, bias=True, batch_first=False, dropout=0.0, bidirectional=False, proj_size=0,
                     initial_state=False, zoneout=0.0, recurrent_dropout=0.0, variational_dropout=0.0,
                     weight_dropout=0.0, init="torch", forget_bias=None, chrono_steps=None, checkpoint_every=None,
                     backend="auto")
        return ", ".join(options + [f"{k}={getattr(self, k)!r}" for k, v in usual.items() if getattr(self, k) != v])

    def forward(self, input: Tensor | PackedSequence, hx=None, *, lengths: Sequence[int] | Tensor | None = None,
                resets: Tensor | None = None, record: bool | str | Sequence[str] | None = None, **inputs: Tensor):
        recorded = recorded_names(self.cell, record)
        plain = not inputs and not torch.compiler.is_compiling()
        made = self._plain(self, input, hx, lengths, resets, recorded) if plain else None
        if made is not None:
            return self._results(*made, record)
        if isinstance(input, PackedSequence):
            check_packed(self, input, lengths, resets, inputs)
            call = _Call(int(input.batch_sizes[0]), recorded, Ragged.of_packed(input))
            output, last, records = self._layers(input.data, self._first_states(hx, call, input.data), call)

            def form(y: Tensor):
                return PackedSequence(y, input.batch_sizes, input.sorted_indices, input.unsorted_indices)

            return self._results(form(output), last, {n: form(y) for n, y in records.items()}, record)
        check_input(self, input, inputs)
        if input.dim() == 2:
            return self._unbatched(input, hx, lengths, resets, record, inputs)
        steps, rows = input.shape[1::-1] if self.batch_first else input.shape[:2]
        call = _Call(rows, recorded)
        if lengths is not None:
            lengths = check_lengths(lengths, rows, steps)
            call.ragged = Ragged.of_lengths(lengths, steps, self.batch_first, input.device)
        call.further = tuple(self._lay_out(inputs[k], call) for k in list(self.cell.inputs)[1:])
        states = self._first_states(hx, call, input)
        if resets is not None:
            resets = check_resets(resets, input)
            states = states if hx is None else self._begin_anew(states, resets, lengths, call)
            call.resets = self._after_steps(resets, lengths, call)
        output, last, records = self._layers(self._lay_out(input, call), states, call)
        if plain:
            self._plain.settle(self, input, lengths, resets, recorded)

        def pad(y: Tensor) -> Tensor:
            if call.ragged is not None:
                return call.ragged.pad(y, input.shape[:2])
            return y.transpose(0, 1) if self.batch_first else y

        return self._results(pad(output), last, {n: pad(y) for n, y in records.items()}, record)

    def _unbatched(self, input: Tensor, hx, lengths, resets, record, inputs):
        """[T, I], as a batch of one row."""
        if lengths is not None:
            raise ValueError(f"lengths= says what is padding in a batch; an unbatched input {tuple(input.shape)} has "
                             "just its own length")
        at = 0 if self.batch_first else 1
        if resets is not None:
            resets = check_resets(resets, input).unsqueeze(at)
        if hx is not None:
            hx = [s.unsqueeze(1) for s in check_states(self, hx, self._state_shapes(()))]
        inputs = {k: v.unsqueeze(0 if v.dim() == 1 else at) for k, v in inputs.items()}
        output, last, records = self(input.unsqueeze(at), hx, resets=resets, record=record or (), **inputs)
        last = [last] if isinstance(last, Tensor) else last
        return self._results(output.squeeze(at), [s.squeeze(1) for s in last],
                             {n: y.squeeze(at) for n, y in records.items()}, record)

    def _results(self, output, last: list[Tensor], records: dict, record):
        state = last[0] if len(last) == 1 else tuple(last)
        return (output, state) if record is None or record is False else (output, state, records)

    def step(self, input: Tensor, state=None, **inputs: Tensor):
        """One time step: `input` [B, I] (or [I]) and the state that the step before returned, or None at first.

        Further inputs of the cell are given by name, for this step. Returns the output [B, size] and the next state.
        `gatework.runtime` takes the same steps faster and without torch. Raises ValueError for a bidirectional layer,
        which needs the whole sequence.

        >>> import torch, gatework
        >>> layer = gatework.nn.GRU(8, 16)
        >>> x, state = torch.randn(5, 3, 8), None
        >>> for t in range(5):
        ...     y, state = layer.step(x[t], state)
        >>> torch.allclose(state, layer(x)[1], atol=1e-6)
        True
        """
        if self.bidirectional:
            raise ValueError("a bidirectional layer reads the sequence from both ends, so it cannot go step by step; "
                             "use bidirectional=False")
        check_step(self, input, inputs)
        at = 1 if self.batch_first and input.dim() == 2 else 0
        inputs = {k: v if k in self.cell.inputs and self.cell.inputs[k].op == "constant" else v.unsqueeze(at)
                  for k, v in inputs.items()}
        output, state = self(input.unsqueeze(at), state, **inputs)
        return output.squeeze(at), state

    # ---- the parts of a call

    def _lay_out(self, value: Tensor, call: _Call) -> Tensor:
        """A sequence as [T, B, size], or stored without its padding; a constant with its rows in that order."""
        if call.ragged is not None:
            return call.ragged.sort(value, 0) if value.dim() == 2 else call.ragged.pack(value)
        return value.transpose(0, 1) if self.batch_first and value.dim() == 3 else value

    def _begin_anew(self, states: list[Sequence[Tensor]], resets: Tensor, lengths: Tensor | None, call: _Call
                    ) -> list[Sequence[Tensor]]:
        """Where step 0 is a reset, no forward direction goes on from the state that was given."""
        at_once = resets[:, 0] if self.batch_first else resets[0]
        if lengths is not None:
            at_once = call.ragged.sort(at_once & (lengths > 0).to(resets.device), 0)
        anew, directions = self._initial(call.rows, states[0][0]), 1 + self.bidirectional
        return [given if k % directions else begin_anew(at_once, anew[k], given) for k, given in enumerate(states)]

    def _after_steps(self, resets: Tensor, lengths: Tensor | None, call: _Call) -> list[Tensor]:
        """For each direction: 1 in a step after which the row begins anew, else 0; laid out as the inputs are."""
        resets = resets.transpose(0, 1) if self.batch_first else resets
        found = []
        for reverse in range(1 + self.bidirectional):
            after = after_steps(resets, bool(reverse), self.first_parameter.dtype)
            if lengths is not None and not reverse:
                step = torch.arange(1, resets.shape[0] + 1)[:, None]
                after = after * (step < lengths).to(after)
            after = after.transpose(0, 1) if self.batch_first else after
            found.append(self._lay_out(after.unsqueeze(2), call))
        return found

    def _layers(self, x: Tensor, states: list[Sequence[Tensor]], call: _Call):
        """Run all layers and directions, each with its states; the last ones are [layers * directions, B, size]."""
        directions = 1 + self.bidirectional
        last, records = [], {}
        for layer in range(self.num_layers):
            if self.training and self._random is not None:
                x = self._random.drop_input(x, call.rows, call.ragged)
            made = self._layer(x, states, layer * directions, call)
            for suffix, (handed, end) in zip(self._suffixes(layer), made):
                records.update({n + suffix: handed[n] for n in call.recorded})
                last.append(end)
            outputs = [handed[self.cell.output] for handed, _ in made]
            x = outputs[0] if directions == 1 else torch.cat(outputs, -1)
            if self.dropout and layer < self.num_layers - 1:
                x = functional.dropout(x, self.dropout, self.training)
        ends = [s.unsqueeze(0) for s in last[0]] if len(last) == 1 else [torch.stack(s) for s in zip(*last)]
        return x, ends if call.ragged is None else [call.ragged.unsort(s, 1) for s in ends], records

    def _layer(self, x: Tensor, states: list[Sequence[Tensor]], first: int, call: _Call) -> list[tuple[dict, Sequence]]:
        """For each direction of the layer that begins at `first`: what is handed out, by name, and the last states."""
        cell = self._cells[self.training, call.resets is not None]
        outputs = (self.cell.output, *(n for n in call.recorded if n != self.cell.output))
        options = dict(outputs=outputs, sizes=call.ragged and call.ragged.sizes, checkpoint_every=self.checkpoint_every)
        given = [self._given(x, states, first, reverse, call) for reverse in range(1 + self.bidirectional)]
        made = (scan_both(cell, *given, self.backend, **options) if self.bidirectional else
                [scan(cell, *given[0], False, self.backend, **options)])
        return [(dict(zip(outputs, handed)), last) for handed, last in made]

    def _given(self, x: Tensor, states: list[Sequence[Tensor]], first: int, reverse: int, call: _Call) -> tuple:
        """Inputs, first states and parameters of one direction."""
        inputs, k = [x, *call.further], first + reverse
        parameters = [self._parameter(n) for n in self._names[k]]
        if self.training and self._random is not None:
            inputs += self._random.masks(x, call.rows, self.sizes)
            parameters = self._random.drop_weights(parameters)
        if call.resets is not None:
            inputs += [call.resets[reverse], *(getattr(self, n).expand(call.rows, -1) for n in self._initial_names[k])]
        return inputs, states[k], parameters

    def _state_shapes(self, rows: tuple[int, ...]) -> list[tuple[int, ...]]:
        """[layers * directions, B, size] of each state; `rows` is () for an unbatched input."""
        count = self.num_layers * (1 + self.bidirectional)
        return [(count, *rows, self.sizes[e.dims[0]]) for e in self.cell.states.values()]

    def _first_states(self, hx, call: _Call, like: Tensor) -> list[Sequence[Tensor]]:
        """The states that rows begin with, for every layer and direction, in the order of the rows in this call."""
        if hx is None:
            return self._initial(call.rows, like)  # all rows alike
        states = check_states(self, hx, self._state_shapes((call.rows,)))
        if torch.is_autocast_enabled(like.device.type):
            states = [s.to(self.first_parameter.dtype) for s in states]  # autocast keeps the parameters' precision
        if call.ragged is not None:
            states = [call.ragged.sort(s, 1) for s in states]
        return list(zip(*(s.unbind(0) for s in states)))

    def _initial(self, rows: int, like: Tensor) -> list[Sequence[Tensor]]:
        """The first states where none are given: zeros, or those that are learned."""
        if self.initial_state:
            return [[getattr(self, name).expand(rows, -1) for name in names] for names in self._initial_names]
        sizes = [self.sizes[e.dims[0]] for e in self.cell.states.values()]
        zeros = {n: like.new_zeros((rows, n), dtype=self.first_parameter.dtype) for n in set(sizes)}
        return [[zeros[n] for n in sizes]] * len(self._names)
