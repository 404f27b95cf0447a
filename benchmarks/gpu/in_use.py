"""The kernels in what people do with layers on a GPU: `python benchmarks/gpu/in_use.py --out FOLDER`, a minute or two.

Graphs of a training step, streams, threads, autocast, torch.compile, lengths and resets on the GPU, data parallel
training, and the end of memory: each beside the reference backend, with weights in one program and step by step. What
fails is written down with its message, and the rest goes on; results are in FOLDER/in_use.json.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import torch
from measure import Report

from gatework.nn import GRU, LSTM

T, B, I = 40, 6, 24  # noqa: E741
HIDDEN = {"one program": 32, "step by step": 200}


class InUse:
    """A pair of layers with the same weights, ours and the reference backend's in float64."""

    def __init__(self, hidden: int, device: str):
        torch.manual_seed(0)
        self.device, self.hidden = device, hidden
        self.ours = LSTM(I, hidden, backend="gpu").to(device)
        self.exact = LSTM(I, hidden, backend="reference").to(device).double()
        self.exact.load_state_dict(self.ours.state_dict())
        self.x = torch.randn(T, B, I, device=device)

    def compared(self, found: torch.Tensor, expected: torch.Tensor, bound: float = 2e-5) -> dict:
        error = ((found.double() - expected).norm() / expected.norm()).item()
        return {"error": error, "right": error <= bound}

    def gradient(self, layer: torch.nn.Module, x: torch.Tensor, **options) -> torch.Tensor:
        """Of all weights, in one."""
        output = layer(x, **options)[0]
        return torch.cat([g.flatten() for g in torch.autograd.grad(output.float().square().sum(),
                                                                   list(layer.parameters()))])

    def expected(self, **options) -> torch.Tensor:
        return self.gradient(self.exact, self.x.double(), **options)

    def plain(self) -> dict:
        return self.compared(self.gradient(self.ours, self.x), self.expected())

    def lengths_on_the_device(self) -> dict:
        options = dict(lengths=torch.tensor([40, 3, 17, 0, 40, 1], device=self.device))
        return self.compared(self.gradient(self.ours, self.x, **options), self.expected(**options))

    def resets(self) -> dict:
        options = dict(resets=torch.rand(T, B, device=self.device) < 0.1)
        return self.compared(self.gradient(self.ours, self.x, **options), self.expected(**options))

    def autocast(self) -> dict:
        kind = torch.device(self.device).type
        with torch.autocast(kind, torch.float16):
            found = self.gradient(self.ours, self.x)
        return self.compared(found, self.expected(), 1e-2)

    def compiled(self) -> dict:
        layer = torch.compile(self.ours, fullgraph=True)
        return self.compared(self.gradient(layer, self.x), self.expected())

    def compiled_with_graphs(self) -> dict:
        layer = torch.compile(self.ours, fullgraph=True, mode="reduce-overhead")
        for _ in range(4):  # recorded in the third call
            found = self.gradient(layer, self.x).clone()
        return self.compared(found, self.expected())

    def graph_of_a_training_step(self) -> dict:
        """Recorded by the user, replayed on other numbers."""
        x, aside = torch.zeros_like(self.x), torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):
                self.gradient(self.ours, x)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = self.gradient(self.ours, x)
        x.copy_(self.x)
        graph.replay()
        return self.compared(found, self.expected())

    def several_streams(self) -> dict:
        """Calls side by side; each ends with what it would give alone."""
        streams, found = [torch.cuda.Stream() for _ in range(3)], []
        torch.cuda.synchronize()
        for _ in range(5):
            for stream in streams:
                with torch.cuda.stream(stream):
                    found.append(self.gradient(self.ours, self.x))
        torch.cuda.synchronize()
        alike = all(torch.equal(found[0], f) for f in found)
        return {**self.compared(found[0], self.expected()), "alike": alike}

    def several_threads(self) -> dict:
        found: list[torch.Tensor] = []
        threads = [threading.Thread(target=lambda: found.append(self.gradient(self.ours, self.x))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        alike = len(found) == 4 and all(torch.equal(found[0], f) for f in found)
        return {**self.compared(found[0], self.expected()), "alike": alike}

    def data_parallel(self) -> dict:
        """One process, as a launcher would begin it."""
        kind = "nccl" if self.device == "cuda" else "gloo"
        with tempfile.TemporaryDirectory() as folder:
            torch.distributed.init_process_group(kind, init_method=f"file://{folder}/meet", rank=0, world_size=1)
            try:
                layer = torch.nn.parallel.DistributedDataParallel(self.ours)
                layer(self.x)[0].square().sum().backward()
                found = torch.cat([p.grad.flatten() for p in self.ours.parameters()])
                return self.compared(found, self.expected())
            finally:
                torch.distributed.destroy_process_group()
                self.ours.zero_grad()

    def end_of_memory(self) -> dict:
        try:
            self.ours(torch.zeros(1, device=self.device).expand(4096, 1 << 17, I))
        except torch.OutOfMemoryError as error:
            return {"notes": error.__notes__, "right": any("checkpoint_every" in n for n in error.__notes__)}
        return {"right": False, "failed": "that had room"}

    def bidirectional_gru(self) -> dict:
        ours = GRU(I, self.hidden, num_layers=2, bidirectional=True, backend="gpu").to(self.device)
        exact = GRU(I, self.hidden, num_layers=2, bidirectional=True, backend="reference").to(self.device).double()
        exact.load_state_dict(ours.state_dict())
        return self.compared(self.gradient(ours, self.x), self.gradient(exact, self.x.double()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for in_use.json")
    parser.add_argument("--smoke", action="store_true", help="what needs no GPU, on the CPU in the interpreter")
    options = parser.parse_args()
    report = Report(options.out / "in_use.json")
    anywhere = [InUse.plain, InUse.lengths_on_the_device, InUse.resets, InUse.autocast, InUse.bidirectional_gru,
                InUse.data_parallel]
    on_gpu = [InUse.several_streams, InUse.several_threads, InUse.graph_of_a_training_step, InUse.end_of_memory,
              InUse.compiled, InUse.compiled_with_graphs]
    hidden = {"one program": 6} if options.smoke else HIDDEN
    uses: list[Callable[[InUse], dict]] = anywhere if options.smoke else [*anywhere, *on_gpu]
    device = "cpu" if options.smoke else "cuda"
    for form, size in hidden.items():
        for use in uses:
            report.add(form, use.__name__, lambda use=use, size=size: use(InUse(size, device)))


if __name__ == "__main__":
    main()
