"""Receives a described stack of layers and its weights, hands on a model whose state is explicit and named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NoReturn

import numpy as np

from ..backends.cpu.step import Call, Stack
from .description import Description
from .state import Layout, State

AT_ONCE = 64  # steps of a chunk that run in one call: what a call costs is little beside them, and so is their memory
MOST_IDLE = 16  # numbers of steps and streams for which calls are kept ready


class Model:
    """Layers that run step by step, as `gatework.runtime.load` reads them; in evaluation mode.

    The bits of a result do not depend on how a sequence is cut into steps and chunks, nor on the streams beside one.
    One model may be used by several threads at once. Attributes:

        input_size, output_size, num_layers; dtype: of all arrays, float32 or float64;
        inputs: names and sizes of further inputs; states: names and sizes of the states.
    """

    def __init__(self, description: Description, tensors: Mapping[str, np.ndarray], threads: int = 1,
                 rounded: str = ""):
        cell = self.cell = description.evaluation_cell
        self.num_layers, self.input_size = description.num_layers, description.sizes["I"]
        suffixes = description.suffixes()
        self._stack = Stack(cell, [description.layer_sizes(k) for k in range(self.num_layers)],
                            [[tensors[name + suffix] for name in description.parameters.values()]
                             for suffix in suffixes], threads, rounded)
        self.dtype = self._stack.dtype
        main, *further = cell.inputs
        self.inputs = {name: self._stack.inputs[name] for name in further}
        self.states = {f"{s}_l{k}": size for k, s, size in self._stack.states}
        self.output_size = self.states[f"{cell.output}_l{self.num_layers - 1}"]
        columns, at = {}, 0
        for name, size in self.states.items():
            columns[name] = (at, at := at + size)
        initial = np.zeros(at, self.dtype)
        if description.initial_state:
            initial = np.concatenate([tensors[f"initial_{name}"] for name in self.states])
        self._main, self._layout = main, Layout(columns, initial)
        # Calls that nobody uses now: of single steps by their streams, of sequences by their steps and streams. The
        # latter read inputs from where they lie.
        self._idle: dict[int | tuple[int, int], list[Call]] = {}

    def __repr__(self) -> str:
        return (f"Model({self.cell.name}, input_size={self.input_size}, output_size={self.output_size}, "
                f"num_layers={self.num_layers}, dtype={self.dtype})")

    def __reduce__(self) -> NoReturn:
        raise TypeError("a model of the runtime holds machine code, so it can be neither copied nor sent to another "
                        "process; call gatework.runtime.load with its folder there. Threads may share one")

    def initial_state(self, streams: int = 1) -> State:
        """What streams begin with: zeros, or the first states that were learned."""
        if isinstance(streams, bool) or not isinstance(streams, int | np.integer) or streams < 1:
            raise ValueError(f"streams must be a whole number of at least 1; {streams!r} was given")
        state = State(self._layout, int(streams), np.empty(streams * len(self._layout.initial), self.dtype))
        for name, (begin, end) in self._layout.columns.items():
            state[name][:] = self._layout.initial[begin:end]
        return state

    def step(self, x: np.ndarray, state: Mapping[str, np.ndarray],
             **inputs: np.ndarray) -> tuple[np.ndarray, State]:
        """Take one step of every stream.

        x: [streams, I], or [I] for a single stream; state: of `initial_state` or of an earlier step, or any mapping of
        the same names to arrays [streams, size]; further inputs by name, [streams, size] or [size] as x. Returns the
        output [streams, H] or [H], an array of the caller's own, and the next state; the old one stays as it is.
        Raises TypeError or ValueError, naming what was given and what is needed, for arrays that do not fit.
        """
        if type(state) is not State or state.layout is not self._layout:
            state = self._adopted(state)
        streams = state.streams
        if (not isinstance(x, np.ndarray) or x.dtype != self.dtype
                or (x.shape != (streams, self.input_size) and (streams != 1 or x.shape != (self.input_size,)))):
            self._refuse("x", x, (streams, self.input_size))
        if inputs or self.inputs:
            self._check_further(inputs, (), (streams,) if x.ndim == 2 else ())
        idle = self._idle.get(streams)
        call = idle.pop() if idle else self._prepared(1, streams)
        np.copyto(call.inputs[self._main], x)
        for name in inputs:
            np.copyto(call.inputs[name], inputs[name])
        np.copyto(call.first, state.memory)
        call.run()
        output = call.output[0] if x.ndim == 2 else call.output[0, 0]
        result = output.copy(), State(self._layout, streams, call.states[0].copy())
        self._idle.setdefault(streams, []).append(call)
        return result

    def run(self, x: np.ndarray, state: Mapping[str, np.ndarray],
            **inputs: np.ndarray) -> tuple[np.ndarray, State]:
        """Take all steps of a chunk: the same bits as `step` after `step`.

        x: [T, streams, I], or [T, I] for a single stream; further inputs by name, laid out as x ([streams, size] or
        [size] for a Constant). Returns the outputs [T, streams, H] or [T, H] and the state after the last step.
        """
        if type(state) is not State or state.layout is not self._layout:
            state = self._adopted(state)
        streams = state.streams
        steps = len(x) if isinstance(x, np.ndarray) and x.ndim else 0
        if (not isinstance(x, np.ndarray) or x.dtype != self.dtype or steps == 0 or
                (x.shape[1:] != (streams, self.input_size) and (streams != 1 or x.shape[1:] != (self.input_size,)))):
            self._refuse("x", x, (max(1, steps), streams, self.input_size))
        self._check_further(inputs, (steps,), (streams,) if x.ndim == 3 else ())
        state, given = State(self._layout, streams, state.memory.copy()), {self._main: x} | inputs
        output = np.empty((steps, streams, self.output_size), self.dtype)
        for begin in range(0, steps, AT_ONCE):
            count = min(AT_ONCE, steps - begin)
            idle = self._idle.get((count, streams))
            call = idle.pop() if idle else self._prepared(count, streams)
            read = [np.require(a if self.cell.inputs[name].op == "constant" else a[begin:begin + count],
                               requirements=("C_CONTIGUOUS", "ALIGNED")) for name, a in given.items()]
            for name, a in zip(given, read):
                call.read(name, a)
            np.copyto(call.first, state.memory)
            call.run()
            output[begin:begin + count] = call.output
            np.copyto(state.memory, call.states[-1])
            self._idle.setdefault((count, streams), []).append(call)
        return output.reshape(*x.shape[:-1], self.output_size), state

    def _prepared(self, steps: int, streams: int) -> Call:
        """A call of so many steps. What was prepared for other numbers is kept while these are few."""
        if len(self._idle) >= MOST_IDLE:
            self._idle = {}
        return self._stack.prepare(steps, streams)

    # ---- what does not fit

    def _check_further(self, inputs: Mapping[str, np.ndarray], steps: tuple[int, ...], rows: tuple[int, ...]) -> None:
        """Check the further inputs, which have the axes `rows`, behind `steps` where they are no constant."""
        if inputs.keys() != self.inputs.keys():
            raise TypeError(f"{self.cell.name} takes the further inputs {', '.join(self.inputs) or 'none'}, by name; "
                            f"given were {', '.join(inputs) or 'none'}")
        for name, size in self.inputs.items():
            a = inputs[name]
            needed = (*rows, size) if self.cell.inputs[name].op == "constant" else (*steps, *rows, size)
            if not isinstance(a, np.ndarray) or a.dtype != self.dtype or a.shape != needed:
                self._refuse(f"further input {name}", a, needed)

    def _refuse(self, what: str, given, needed: Sequence[int]) -> NoReturn:
        if not isinstance(given, np.ndarray):
            raise TypeError(f"{what} must be a numpy array of {self.dtype}; {type(given).__name__} was given")
        if given.dtype != self.dtype:
            raise TypeError(f"{what} has dtype {given.dtype}, the model's weights have {self.dtype}; convert it: "
                            f"{what.split()[-1]}.astype(numpy.{self.dtype})")
        raise ValueError(f"{what} has shape {given.shape}; needed is {tuple(needed)}: the state has "
                         f"{needed[-2] if len(needed) > 1 else 1} streams")

    def _adopted(self, state: Mapping[str, np.ndarray]) -> State:
        """A state of our own with the values of any mapping."""
        if not isinstance(state, Mapping):
            raise TypeError(f"the state must be that of model.initial_state(streams) or of an earlier step, or a "
                            f"mapping of {', '.join(self.states)} to arrays; {type(state).__name__} was given")
        missing = [n for n in self.states if n not in state]
        unknown = [str(n) for n in state if n not in self.states]
        if missing or unknown:
            raise ValueError(f"the state must have {', '.join(self.states)}; missing are {', '.join(missing) or 'none'}"
                             f", unknown are {', '.join(unknown) or 'none'}")
        first = state[next(iter(self.states))]
        streams = len(first) if isinstance(first, np.ndarray) and first.ndim == 2 else 1
        own = self.initial_state(max(1, streams))
        for name, size in self.states.items():
            if not isinstance(state[name], np.ndarray) or state[name].dtype != self.dtype or (
                    state[name].shape != (streams, size)):
                self._refuse(f"state {name}", state[name], (streams, size))
            own[name][:] = state[name]
        return own
