"""What is not speed: the first call, the memory held for the backward pass, the time of the import.

Every number comes from a process of its own (probes.py). A check returns its values, its table, and its goals as
(title, value, bound, kind).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from operator import itemgetter
from pathlib import Path

from probes import FIRST_CALL_CELLS, FIRST_CALL_SIZES

HERE = Path(__file__).parent
MEMORY_SIZES = (1000, 32, 256, 256)
LONG_SIZES, QUICK_LONG_SIZES = (100_000, 1, 256, 256), (10_000, 1, 256, 256)


def probe(*arguments, **environment: str) -> dict:
    finished = subprocess.run([sys.executable, str(HERE / "probes.py"), *map(str, arguments)], text=True, check=True,
                              stdout=subprocess.PIPE, env=os.environ | environment)
    return json.loads(finished.stdout)


def first_call(quick: bool) -> tuple[dict, str, list[tuple]]:
    times = 1 if quick else 3
    values = {}
    for cell in FIRST_CALL_CELLS[:2] if quick else FIRST_CALL_CELLS:
        found: dict[str, list[dict]] = {"cold": [], "cached": []}
        for _ in range(times):
            with tempfile.TemporaryDirectory() as folder:
                for kind in found:
                    found[kind].append(probe("first-call", cell, GATEWORK_CACHE=folder))
        # The run of the median as a whole, so that its parts belong together.
        values[cell] = {kind: sorted(runs, key=itemgetter("seconds"))[times // 2] for kind, runs in found.items()}
    text = [f"### First training call of a layer, beyond the following ones, at {FIRST_CALL_SIZES}"
            f"{'' if quick else ', medians of three processes'}", "",
            "| cell | nothing cached (s) | from the disk cache (s) |", "|---|--:|--:|"]
    text += [f"| {c} | {v['cold']['seconds']:.3f} | {v['cached']['seconds']:.3f} |" for c, v in values.items()]
    bounds = [(f"First call, {what} (s)", max(v[kind]["seconds"] for v in values.values()), bound, "at most")
              for kind, what, bound in (("cold", "nothing cached", 0.5), ("cold", "nothing cached, as wished", 0.3),
                                        ("cached", "from the disk cache", 0.02))]
    return values, "\n".join(text) + "\n", bounds


def memory(quick: bool) -> tuple[dict, str, list[tuple]]:
    values = {who: probe("memory", who, *MEMORY_SIZES) for who in ("gatework", "torch.nn")}
    text = [f"### Memory held between forward and backward, LSTM at {MEMORY_SIZES}", "", "| | MB |", "|---|--:|"]
    text += [f"| {who} | {v['bytes'] / 1e6:.0f} |" for who, v in values.items()]
    ratio = values["gatework"]["bytes"] / values["torch.nn"]["bytes"]
    return values, "\n".join(text) + "\n", [("Memory held, over torch.nn.LSTM's", ratio, 1.0, "at most")]


def long_memory(quick: bool) -> tuple[dict, str, list[tuple]]:
    sizes = QUICK_LONG_SIZES if quick else LONG_SIZES
    values = {who: probe("memory", who, *sizes) for who in ("gatework", "checkpoints")}
    text = [f"### Memory held between forward and backward, LSTM at {sizes}, with its output", "", "| | MB |",
            "|---|--:|"]
    text += [f"| {who} | {values[key]['bytes'] / 1e6:.0f} |" for who, key in
             (("all kept", "gatework"), ('checkpoint_every="auto"', "checkpoints"))]
    ratio = values["checkpoints"]["bytes"] / values["gatework"]["bytes"]
    return values, "\n".join(text) + "\n", [("Memory held with checkpoints, over all", ratio, 0.2, "at most")]


def import_time(quick: bool) -> tuple[dict, str, list[tuple]]:
    values, text, bounds = {}, ["### Imports", "", "| | s, the fastest of 5 |", "|---|--:|"], []
    for what, module, bound in (("without torch", "gatework", 0.3), ("without torch", "gatework.runtime", 0.2),
                                ("after torch", "gatework.nn", 0.2)):
        values[module] = [probe("import", what, module)["seconds"] for _ in range(5)]
        best = min(values[module])  # the disk may be cold in the first
        text.append(f"| `import {module}` {what} | {best:.3f} |")
        bounds.append((f"Import of {module} {what} (s)", best, bound, "at most"))
    return values, "\n".join(text) + "\n", bounds


CHECKS = {"first-call": first_call, "memory": memory, "long-memory": long_memory, "import": import_time}
