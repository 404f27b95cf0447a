"""Measures gatework beside torch.nn, an eager loop and JAX: `python benchmarks/bench.py [--quick] [--only NAME ...]`.

Two threads for everybody: torch is told so, and the process, with the JAX worker that it starts, is pinned to two
cores where the system can do that. What is to be timed is first checked against its peer; one that gives wrong results
ends the run. Peers take turns (ours, theirs, ours, theirs, ...) of at least 20 ms each; a table shows medians, and the
JSON file the quartiles as well. How training is measured: see contestants.py.

Prints one Markdown table per group and, at the end, the goals that the project has set itself.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import math
import os
import statistics
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from machine import describe, pin
from startup import CHECKS as STARTUP

THREADS = 2
SIZES = [(100, 1, 64, 64), (100, 1, 256, 256), (100, 16, 64, 64), (100, 32, 256, 256), (1000, 8, 128, 128),
         (35, 20, 650, 650), (100, 64, 512, 512), (100, 32, 1024, 1024)]
QUICK_SIZES = SIZES[:3]
# Sizes of cases that have others: a batch of one row has no padding, and a long or a single sequence is one by itself.
BATCHES = [(100, 16, 64, 64), (1000, 8, 128, 128), (100, 32, 256, 256), (35, 20, 650, 650), (100, 64, 512, 512)]
OWN_SIZES = {"ragged": BATCHES, "checkpoints": [(100_000, 1, 256, 256)],
             "streaming": [(200, 1, 64, 64), (200, 1, 256, 256), (200, 8, 64, 64)]}
QUICK_OWN_SIZES = {"ragged": BATCHES[:1], "checkpoints": [(5_000, 1, 64, 64)], "streaming": [(200, 1, 64, 64)]}
LEAST_ROUNDS = 5
TURN = 0.02  # seconds


@dataclass(frozen=True)
class Group:
    """One row of the goals: gatework against a peer in some cases; `ratio` is "speed" or "time"."""

    title: str
    cases: tuple[str, ...]
    peer: str
    each: float | None
    mean: float | None
    ratio: str = "speed"
    unit: str = "ms"

    def value(self, measured: dict) -> float:
        ours, theirs = (measured[k]["median"] for k in ("gatework", self.peer))
        return theirs / ours if self.ratio == "speed" else ours / theirs


GROUPS = [
    Group("LSTM training over torch.nn.LSTM", ("lstm",), "torch.nn", 1.0, 1.4),
    Group("LSTM inference over torch.nn.LSTM", ("inference",), "torch.nn", 0.9, 1.2),
    Group("GRU and RNN (tanh) training over torch.nn", ("gru", "rnn"), "torch.nn", 1.1, 3.0),
    Group("Peephole LSTM and a user's own cell, training, over an eager torch loop", ("peephole", "own"), "eager loop",
          1.3, 6.0),
    Group("Peephole LSTM and a user's own cell, training, over a jitted JAX scan", ("peephole", "own"), "JAX scan",
          1.5, 2.5),
    Group("Peephole LSTM training time over our own LSTM's", ("peephole",), "gatework LSTM", 1.15, None, "time"),
    Group("Ragged batch, training time over a dense one of as many valid steps, half as long", ("ragged",),
          "gatework, dense, half as long", 1.1, None, "time"),
    Group("Ragged batch, training time over a dense one of as many valid steps, half the rows", ("ragged",),
          "gatework, dense, half the rows", 1.1, None, "time"),
    Group("Ragged batch, training, over torch.nn.LSTM with packing", ("ragged",), "torch.nn, packed", None, None),
    Group("Resets in one step of fifty, training time over none", ("resets",), "gatework, none", 1.05, None, "time"),
    Group("Resets, training, over torch.nn.LSTM called step by step", ("resets",), "torch.nn, step by step", None,
          None),
    Group("Recording i, f and c, training time over recording nothing", ("record",), "gatework, none", 1.1, None,
          "time"),
    Group("Recording i, f and c, training, over an eager torch loop", ("record",), "eager loop", None, None),
    Group("Checkpoints, training time over keeping all", ("checkpoints",), "gatework, all kept", 1.5, None, "time"),
    Group("One step through Python, over ONNX Runtime", ("streaming",), "ONNX Runtime", None, None, unit="us"),
    Group("One step through Python, over torch.nn.LSTMCell", ("streaming",), "torch.nn.LSTMCell", None, None,
          unit="us"),
]
CASES = tuple(dict.fromkeys(case for group in GROUPS for case in group.cases))
OPTIONS = ("ragged", "resets", "record", "checkpoints", "streaming")
SCALE = {"ms": 1e3, "us": 1e6}


def builders(folder: Path) -> dict:
    import sequences
    from contestants import inference, loops, twins
    return {"lstm": partial(twins, "LSTM"), "inference": inference, "gru": partial(twins, "GRU"),
            "rnn": partial(twins, "RNN"), "peephole": partial(loops, "peephole", folder=folder),
            "own": partial(loops, "own", folder=folder), **{name: getattr(sequences, name) for name in OPTIONS}}


def interleave(contestants: dict, seconds: float) -> dict:
    """Run the contestants in turns for about `seconds` each; the statistics of every one's repetitions."""
    once = {name: c.run(1)[0] for name, c in contestants.items()}  # also the last warm-up
    turns = {name: max(1, round(TURN / s)) for name, s in once.items()}
    longest = max(once[name] * turns[name] for name in once)
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(max(LEAST_ROUNDS, round(seconds / longest))):
        for name, c in contestants.items():
            times[name] += c.run(turns[name])
    return {name: summary(values) for name, values in times.items()}


def summary(seconds: list[float]) -> dict:
    low, median, high = statistics.quantiles(seconds, n=4)
    return {"median": median, "lower_quartile": low, "upper_quartile": high, "repetitions": len(seconds)}


def measure(make, case: str, sizes: list[tuple], seconds: float) -> dict:
    """{"T,B,I,H": {contestant: statistics}}"""
    found = {}
    for size in sizes:
        print(f"measuring {case} at {size}", file=sys.stderr, flush=True)
        found[",".join(map(str, size))] = interleave(make(size), seconds)
    return found


def rows(group: Group, measured: dict) -> list[tuple[str, str, dict, float]]:
    return [(case, size, values, group.value(values)) for case in group.cases if case in measured
            for size, values in measured[case].items()]


def mean(values: list[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, values)))


def table(group: Group, lines: list[tuple]) -> str:
    name = "time" if group.ratio == "time" else "speed-up"
    unit = group.unit
    text = [f"### {group.title}", "", f"| cell | T, B, I, H | gatework ({unit}) | {group.peer} ({unit}) | {name} |",
            "|---|---|--:|--:|--:|"]
    for case, size, values, ratio in lines:
        ours, theirs = (values[k]["median"] * SCALE[unit] for k in ("gatework", group.peer))
        text.append(f"| {case} | {size.replace(',', ', ')} | {ours:.3g} | {theirs:.3g} | {ratio:.2f} |")
    text.append(f"| | geometric mean | | | **{mean([line[3] for line in lines]):.2f}** |")
    return "\n".join(text) + "\n"


def goals(group: Group, lines: list[tuple]) -> list[dict]:
    values = [line[3] for line in lines]
    found = []
    if group.each is not None:
        worst, kind = (max, "at most") if group.ratio == "time" else (min, "at least")
        found.append(goal(f"{group.title}: at each size", worst(values), group.each, kind))
    if group.mean is not None:
        found.append(goal(f"{group.title}: geometric mean", mean(values), group.mean, "at least"))
    return found


def goal(title: str, value: float, bound: float, kind: str) -> dict:
    reached = value <= bound if kind == "at most" else value >= bound
    return {"goal": title, "kind": kind, "bound": bound, "value": value, "reached": reached}


def goal_table(found: list[dict]) -> str:
    text = ["### Goals", "", "| goal | needed | worst measured | reached |", "|---|---|--:|---|"]
    text += [f"| {g['goal']} | {g['kind']} {g['bound']:g} | {g['value']:.3g} | {'yes' if g['reached'] else '**no**'} |"
             for g in found]
    return "\n".join(text) + "\n"


def write(file: Path, report: dict) -> None:
    temporary = file.with_name(file.name + ".part")
    temporary.write_text(json.dumps(report, indent=1) + "\n")
    os.replace(temporary, file)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="three small sizes, short measurements")
    parser.add_argument("--only", action="append", choices=[*CASES, *STARTUP], metavar="NAME",
                        help=f"measure only this; can be repeated. One of {', '.join([*CASES, *STARTUP])}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every measurement to this file")
    return parser.parse_args()


def measure_groups(wanted: list[str], sizes: list[tuple], own: dict,
                   seconds: float) -> tuple[dict, list[dict], list[dict]]:
    """Measure and print group by group: all statistics by case, the ratios of the groups, the goals."""
    from contestants import JaxScan
    measured, groups, reached = {}, [], []
    with tempfile.TemporaryDirectory() as folder:
        make = builders(Path(folder))
        try:
            for group in GROUPS:
                for case in group.cases:
                    if case in wanted and case not in measured:
                        measured[case] = measure(make[case], case, own.get(case, sizes), seconds)
                if lines := rows(group, measured):
                    print(table(group, lines), flush=True)
                    ratios = [{"cell": case, "size": size, "ratio": ratio} for case, size, _, ratio in lines]
                    groups.append({"title": group.title, "peer": group.peer, "kind": group.ratio, "ratios": ratios,
                                   "geometric_mean": mean([line[3] for line in lines])})
                    reached += goals(group, lines)
        finally:
            JaxScan.close()
    return measured, groups, reached


def measure_startup(wanted: list[str]) -> tuple[dict, list[dict]]:
    startup, reached = {}, []
    for name, check in STARTUP.items():
        if name in wanted:
            print(f"measuring {name}", file=sys.stderr, flush=True)
            startup[name], text, bounds = check()
            print(text, flush=True)
            reached += [goal(*bound) for bound in bounds]
    return startup, reached


def main() -> None:
    options = arguments()
    wanted = options.only or [*CASES, *STARTUP]
    if {"peephole", "own"} & set(wanted) and importlib.util.find_spec("jax") is None:
        sys.exit("the cases peephole and own are measured beside JAX: pip install jax, or choose others with --only")
    pinned = pin(THREADS)
    import torch
    from contestants import WrongResults
    torch.set_num_threads(THREADS)
    machine = describe() | {"threads": THREADS, "pinned_to_cores": pinned,
                            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
    print(f"{machine['cpu']}, {machine['cores']} cores, {THREADS} threads, torch {machine['versions']['torch']}\n")
    if machine["load_before"] > 0.5:
        print(f"The machine is busy (load {machine['load_before']}): these numbers will tell little.\n")
    sizes, own, seconds = (QUICK_SIZES, QUICK_OWN_SIZES, 0.15) if options.quick else (SIZES, OWN_SIZES, 0.4)
    try:
        measured, groups, reached = measure_groups(wanted, sizes, own, seconds)
    except WrongResults as wrong:
        sys.exit(str(wrong))
    startup, further = measure_startup(wanted)
    print(goal_table(reached + further))
    if options.json:
        write(options.json, {"machine": machine, "seconds": measured, "groups": groups, "startup": startup,
                             "goals": reached + further})


if __name__ == "__main__":
    main()
