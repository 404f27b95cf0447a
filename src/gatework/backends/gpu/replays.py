"""Receives launches of kernels, turn by turn, hands on graphs of many of them that are launched at once.

A launch from Python takes longer than a small kernel runs. A graph is recorded once; what it works on is told through
memory, so it is replayed for every tensor and every length.
"""

from __future__ import annotations

import math
from threading import Lock
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

LENGTHS = 64, 8, 1  # turns of a graph: from these any number of them is put together
# Whether a kernel is begun before the one before it ends, where the GPU can do that. Waits for its first run on one.
OVERLAP = False


class Replays:
    """The turns of one loop in one grid of programs."""

    def __init__(self, module: ModuleType, stages: int, words: int, grid: tuple[int, int], options: dict[str, Any],
                 device: torch.device):
        self.stages = [getattr(module, f"told_{k}") for k in range(stages)]
        self.advance, self.grid, self.options, self.device = module.advance, grid, dict(options), device
        if OVERLAP and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (9, 0):
            self.options |= {"OVERLAP": True, "launch_pdl": True}
        self.graphs: dict[tuple[int, int], Any] = {}
        self.lock, self.replayed = Lock(), None
        with torch.inference_mode(False):  # else it could be written in that mode alone
            self.told = torch.zeros(words + 1, dtype=torch.int64, device=device)

    @staticmethod
    def serve(device: torch.device) -> bool:
        """Whether graphs can be replayed: not while somebody records one."""
        return device.type == "cuda" and not torch.cuda.is_current_stream_capturing()

    def run(self, given: list[Tensor | int], turns: int) -> None:
        """Run the first `turns` turns on what the kernels are given."""
        addresses = [a.data_ptr() if isinstance(a, Tensor) else a for a in given]
        values = [w for w, a in zip(addresses, given) if isinstance(a, Tensor) and a.is_floating_point()]
        aligned = math.gcd(16, *values)
        with self.lock:
            self._tell([*addresses, 0])
            if not any(a == aligned for _, a in self.graphs):
                # Nothing can be compiled while a graph is recorded, so the first turn of all is launched.
                self._launch(1, aligned)
                turns -= 1
            for length in LENGTHS:
                for _ in range(turns // length):
                    self._graph(length, aligned).replay()
                turns %= length
            self._told()

    def _tell(self, words: list[int]) -> None:
        stream = torch.cuda.current_stream(self.device)
        if self.replayed is not None:
            stream.wait_event(self.replayed)  # another stream may still read what it was told
        self.told.copy_(torch.tensor(words, dtype=torch.int64, pin_memory=True), non_blocking=True)

    def _told(self) -> None:
        self.replayed = torch.cuda.current_stream(self.device).record_event()

    def _launch(self, turns: int, aligned: int) -> None:
        for ahead in range(turns):
            for stage in self.stages:
                stage[self.grid](self.told, ahead, **self.options, ALIGNED=aligned)
        self.advance[1,](self.told, turns)

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
                self._launch(turns, aligned)
            finally:
                graph.capture_end()
        here.wait_stream(aside)
        return graph
