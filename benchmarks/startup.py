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
from pathlib import Path

from probes import FIRST_CALL_CELLS, FIRST_CALL_SIZES, LONG_SIZES, MEMORY_SIZES

HERE = Path(__file__).parent


def probe(*arguments: str, **environment: str) -> dict:
    finished = subprocess.run([sys.executable, str(HERE / "probes.py"), *arguments], text=True, check=True,
                              stdout=subprocess.PIPE, env=os.environ | environment)
    return json.loads(finished.stdout)


def first_call() -> tuple[dict, str, list[tuple]]:
    values = {}
    for cell in FIRST_CALL_CELLS:
        with tempfile.TemporaryDirectory() as folder:
            values[cell] = {kind: probe("first-call", cell, GATEWORK_CACHE=folder) for kind in ("cold", "cached")}
    text = [f"### First training call of a layer, beyond the following ones, at {FIRST_CALL_SIZES}", "",
            "| cell | nothing cached (s) | from the disk cache (s) |", "|---|--:|--:|"]
    text += [f"| {c} | {v['cold']['seconds']:.3f} | {v['cached']['seconds']:.3f} |" for c, v in values.items()]
    bounds = [(f"First call, {what} (s)", max(v[kind]["seconds"] for v in values.values()), bound, "at most")
              for kind, what, bound in (("cold", "nothing cached", 0.5), ("cached", "from the disk cache", 0.05))]
    return values, "\n".join(text) + "\n", bounds


def memory() -> tuple[dict, str, list[tuple]]:
    values = {who: probe("memory", who) for who in ("gatework", "torch.nn")}
    text = [f"### Memory held between forward and backward, LSTM at {MEMORY_SIZES}", "", "| | MB |", "|---|--:|"]
    text += [f"| {who} | {v['bytes'] / 1e6:.0f} |" for who, v in values.items()]
    ratio = values["gatework"]["bytes"] / values["torch.nn"]["bytes"]
    return values, "\n".join(text) + "\n", [("Memory held, over torch.nn.LSTM's", ratio, 1.0, "at most")]


def long_memory() -> tuple[dict, str, list[tuple]]:
    values = {who: probe("memory", who) for who in ("long", "long-checkpoints")}
    text = [f"### Memory held between forward and backward, LSTM at {LONG_SIZES}, with its output", "", "| | MB |",
            "|---|--:|"]
    text += [f"| {who} | {values[key]['bytes'] / 1e6:.0f} |" for who, key in
             (("all kept", "long"), ('checkpoint_every="auto"', "long-checkpoints"))]
    ratio = values["long-checkpoints"]["bytes"] / values["long"]["bytes"]
    return values, "\n".join(text) + "\n", [("Memory held with checkpoints, over all", ratio, 0.2, "at most")]


def import_time() -> tuple[dict, str, list[tuple]]:
    values, text, bounds = {}, ["### Imports without torch", "", "| | s, the fastest of 5 |", "|---|--:|"], []
    for module, bound in (("gatework", 0.3), ("gatework.runtime", 0.2)):
        values[module] = [probe("import", module)["seconds"] for _ in range(5)]
        best = min(values[module])  # the disk may be cold in the first
        text.append(f"| `import {module}` | {best:.3f} |")
        bounds.append((f"Import of {module} without torch (s)", best, bound, "at most"))
    return values, "\n".join(text) + "\n", bounds


CHECKS = {"first-call": first_call, "memory": memory, "long-memory": long_memory, "import": import_time}
