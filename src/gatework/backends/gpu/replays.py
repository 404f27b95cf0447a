"""Receives kernels of the stages of a turn, runs them turn by turn, or as graphs of many launches that are replayed.

A launch from Python takes longer than a small kernel runs. A graph is recorded once; what its kernels work on they are
told through memory, so it is replayed for every tensor and every length.
"""

from __future__ import annotations

import math
from threading import Lock
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

LENGTHS = 64, 8, 1  # turns of a graph: from these any number of them is put together
FEWEST = 8  # turns of a call that are replayed
# Whether a kernel is begun before the one before it ends, where the GPU can do that. Waits for its first run on one.
OVERLAP = False


class Turns:
    """The turns of one loop in one grid of programs."""

    def __init__(self, module: ModuleType, words: int, grid: tuple[int, int], options: dict[str, Any],
                 device: torch.device):
        self.tell, self.advance = module.tell, module.advance
        self.stages = [run for name, run in vars(module).items() if name.startswith("told_")]
        self.grid, self.options, self.device = grid, options, device
        nvidia = device.type == "cuda" and torch.version.hip is None
        if OVERLAP and nvidia and torch.cuda.get_device_capability(device) >= (9, 0):
            self.options = options | {"OVERLAP": True, "launch_pdl": True}
        self.graphs: dict[tuple[int, int], Any] = {}
        self.lock, self.replayed = Lock(), None
        with torch.inference_mode(False):  # else it could be written in that mode alone
            self.told = torch.zeros(words + 1, dtype=torch.int64, device=device)

    def run(self, given: list[Tensor | int], turns: int) -> None:
        """Run the first `turns` turns on what the kernels are given."""
        words = [a.data_ptr() if isinstance(a, Tensor) else a for a in given]
        values = [w for w, a in zip(words, given) if isinstance(a, Tensor) and a.is_floating_point()]
        aligned = math.gcd(16, *values)
        if turns < FEWEST or not self._can_replay():
            told = torch.empty_like(self.told)
            self._tell(told, words)
            self._launch(told, turns, aligned)
            return
        with self.lock:
            self._wait()
            self._tell(self.told, words)
            if not any(a == aligned for _, a in self.graphs):
                # Nothing can be compiled while a graph is recorded, so the first turn of all is launched.
                self._launch(self.told, 1, aligned)
                self.advance[1,](self.told, 1)
                turns -= 1
            for length in LENGTHS:
                for _ in range(turns // length):
                    self._graph(length, aligned).replay()
                turns %= length
            self.replayed = self._event()

    def _can_replay(self) -> bool:
        """Not while somebody else records a graph."""
        return self.device.type == "cuda" and not torch.cuda.is_current_stream_capturing()

    def _wait(self) -> None:
        """Another stream may still read what it was told."""
        if self.replayed is not None:
            torch.cuda.current_stream(self.device).wait_event(self.replayed)

    def _event(self) -> torch.cuda.Event:
        return torch.cuda.current_stream(self.device).record_event()

    def _tell(self, told: Tensor, words: list[int]) -> None:
        self.tell[1,](told, *words)
        if self.options["OVERLAP"]:
            self.advance[1,](told, 0)  # which waits for it: the kernel after this one may begin before this one ends

    def _launch(self, told: Tensor, turns: int, aligned: int) -> None:
        for ahead in range(turns):
            for stage in self.stages:
                stage[self.grid](told, ahead, **self.options, ALIGNED=aligned)

    def _graph(self, turns: int, aligned: int) -> Any:
        if (turns, aligned) not in self.graphs:
            self.graphs[turns, aligned] = self._recorded(turns, aligned)
        return self.graphs[turns, aligned]

    def _recorded(self, turns: int, aligned: int) -> Any:
        graph, here = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self.device)
        aside = torch.cuda.Stream(self.device)
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            # Other threads may allocate meanwhile.
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                self._launch(self.told, turns, aligned)
                self.advance[1,](self.told, turns)
            finally:
                graph.capture_end()
        here.wait_stream(aside)
        return graph
