"""Programs of one launch that wait for each other: all at once on a GPU, in threads in Triton's interpreter.

The interpreter runs one program after the other, so the first would wait forever. Here each has a thread, one of them
works at a time, and others go on while it waits.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable

import triton
from triton.runtime.interpreter import GridExecutor, interpreter_builder

LONGEST_WAIT = 600  # seconds: somebody was never met


def run_together(function, grid: tuple[int, int], *given, **options) -> None:
    """Launch groups x members of a kernel whose module has a function `meet(counter, arrived)`."""
    if triton.knobs.runtime.interpret:
        GridExecutor(_Programs(function.rewrite(), grid), function.arg_names, grid)(*given, **options)
    else:
        function[grid](*given, **options, launch_cooperative_grid=True)


class _Programs:
    """A kernel as the interpreter calls it, once for each program: they begin when the last one has been called."""

    def __init__(self, run: Callable, grid: tuple[int, int]):
        self.run, self.grid, self.places = run, grid, []
        self.working, self.failed = threading.Lock(), []
        self.groups = [threading.Barrier(grid[1]) for _ in range(grid[0])]
        functools.update_wrapper(self, run)
        self.__globals__, self.__signature__ = run.__globals__, inspect.signature(run)

    def __call__(self, **given) -> None:
        self.places.append(interpreter_builder.grid_idx)
        if len(self.places) == self.grid[0] * self.grid[1]:
            self.run.__globals__["meet"] = self._meet
            threads = [threading.Thread(target=self._program, args=(place, given)) for place in self.places]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            if self.failed:
                raise self.failed[0]

    def _program(self, place: tuple[int, int, int], given: dict) -> None:
        with self.working:
            interpreter_builder.set_grid_idx(*place)
            try:
                self.run(**given)
            except Exception as error:
                self.failed.append(error)
                self.groups[place[0]].abort()

    def _meet(self, counter, arrived) -> None:
        place = interpreter_builder.grid_idx
        self.working.release()
        try:
            self.groups[place[0]].wait(LONGEST_WAIT)
        finally:
            self.working.acquire()
        interpreter_builder.set_grid_idx(*place)
