"""How cost grows: `python benchmarks/scaling.py [--quick] [--json FILE] [--out docs/scaling]`.

Seconds of an LSTM, training and inference, against the steps T, the rows B and the size H, with the slope of a line
through the upper half of the sizes on logarithmic axes: 1 is a cost in proportion, 2 a quadratic one. What a second
thread gains. What is held for the backward pass. And two things that should not happen at all: compiling for another B
or T, and work in Python or memory for every step.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from chart import INK, STYLE, save
from groups import OURS
from machine import THREADS, describe, pin
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from report import goal, goal_table, write
from startup import probe
from turns import Worker, interleave

PEER = "torch.nn"
CURVES = {"T": [(n, 1, 64, 64) for n in (100, 316, 1000, 3162, 10_000, 31_623, 100_000)],
          "B": [(100, n, 128, 128) for n in (1, 2, 4, 8, 16, 32, 64, 128, 256)],
          "H": [(100, 16, n, n) for n in (32, 64, 128, 256, 512, 1024)]}
# H is in the weights twice, so a quadratic cost there is what the equations ask for.
STEEPEST = {"T": 1.1, "B": 1.1, "H": 2.2}
TWO_THREADS = [(100, 1, 256, 256), (100, 4, 256, 256), (100, 16, 128, 128), (100, 16, 256, 256), (100, 32, 256, 256),
               (100, 64, 512, 512), (1000, 16, 64, 64)]
ENOUGH_ROWS, GAIN = 16, 1.7
HELD = [(10_000, 1, 64, 64), (1000, 32, 256, 256), (10_000, 8, 128, 128), (100, 64, 512, 512)]
# The first is large enough for two threads, so that what these need is compiled before it counts.
OTHER_SIZES = [(300, 16, 32, 48), (10, 16, 32, 48), (2000, 16, 32, 48), (300, 1, 32, 48), (300, 5, 32, 48),
               (300, 200, 32, 48)]
PER_STEP = (10_000, 4, 64, 64), (100_000, 4, 64, 64)  # too large to be recorded, both


@dataclass(frozen=True)
class Plan:
    curves: dict[str, list[tuple]]
    two_threads: list[tuple]
    held: list[tuple]


FULL = Plan(CURVES, TWO_THREADS, HELD)
QUICK = Plan({"T": [(n, 1, 16, 16) for n in (30, 100, 300)], "B": [(20, n, 16, 16) for n in (1, 8)],
              "H": [(20, 4, n, n) for n in (16, 32)]}, [(100, 16, 64, 64)], [(10_000, 1, 64, 64)])


def seconds(case: str, sizes: list[tuple], threads: int = THREADS) -> dict[str, dict]:
    """By contestant: what `interleave` says of each size, in the order of the sizes."""
    with tempfile.TemporaryDirectory() as folder:
        workers = {name: Worker(case, name, Path(folder)) for name in (OURS, PEER)}
        found = {name: [] for name in workers}
        try:
            for size in sizes:
                print(f"measuring {case} at {size}, {threads} threads", file=sys.stderr, flush=True)
                made = {name: worker.build(size, threads) for name, worker in workers.items()}
                timed = interleave(workers, {name: one["once"] for name, one in made.items()}, 0.3)
                for name in workers:
                    found[name].append(timed[name])
        finally:
            for worker in workers.values():
                worker.end()
    return found


def slope(sizes: list[float], times: list[float]) -> float:
    """Of a line through the upper half, on logarithmic axes."""
    half = len(sizes) // 2 if len(sizes) > 3 else 0
    x, y = ([math.log(v) for v in values[half:]] for values in (sizes, times))
    return statistics.linear_regression(x, y).slope


def curves(wanted: dict[str, list[tuple]]) -> dict:
    found = {}
    for letter, sizes in wanted.items():
        values = [size["TBIH".index(letter)] for size in sizes]
        for case in ("lstm", "inference"):
            for name, timed in seconds(case, sizes).items():
                times = [one["median"] for one in timed]
                found[f"{letter}, {'training' if case == 'lstm' else case}, {name}"] = {
                    "sizes": sizes, "values": values, "seconds": times, "slope": slope(values, times)}
    return found


def second_thread(sizes: list[tuple]) -> list[dict]:
    one, two = (seconds("lstm", sizes, n) for n in (1, 2))
    return [{"size": size} | {name: one[name][k]["median"] / two[name][k]["median"] for name in one}
            for k, size in enumerate(sizes)]


def held(sizes: list[tuple]) -> list[dict]:
    return [{"size": size} | {name: probe("memory", name, *size)["bytes"] for name in (OURS, PEER)} for size in sizes]


def kernels() -> list[int]:
    with tempfile.TemporaryDirectory() as folder:
        return probe("compiled", *(n for size in OTHER_SIZES for n in size), GATEWORK_CACHE=folder)["kernels"]


def goals(found: dict) -> list[dict]:
    reached = [goal(f"Growth with {name.removesuffix(f', {OURS}')}: slope", one["slope"], STEEPEST[name[0]], "at most")
               for name, one in found["curves"].items() if name.endswith(f", {OURS}")]
    gains = [one[OURS] for one in found["second_thread"] if one["size"][1] >= ENOUGH_ROWS]
    most = max(one[OURS] / one[PEER] for one in found["held"])
    few, many = found["per_step"]
    steps = PER_STEP[1][0] - PER_STEP[0][0]
    return [*reached,
            goal(f"Gain by a second thread, B from {ENOUGH_ROWS}", min(gains), GAIN, "at least"),
            goal(f"Memory held for the backward pass, over {PEER}'s", most, 1.0, "at most"),
            goal("Kernels compiled for another T or B", found["kernels"][-1] - found["kernels"][0], 0, "at most"),
            goal("Python calls for each further step", (many["calls"] - few["calls"]) / steps, 0.1, "at most"),
            goal("Operations of torch for each further step", (many["operations"] - few["operations"]) / steps, 0.1,
                 "at most")]


def table(title: str, heads: list[str], lines: list[list]) -> str:
    text = [f"### {title}", "", f"| {' | '.join(heads)} |", f"|---|{'--:|' * (len(heads) - 1)}"]
    return "\n".join([*text, *(f"| {' | '.join(map(str, line))} |" for line in lines)]) + "\n"


def tables(found: dict) -> str:
    def size(one: dict) -> str:
        return ", ".join(map(str, one["size"]))

    return "\n".join([
        table("Slopes", ["against", "slope"], [[name, f"{one['slope']:.2f}"] for name, one in found["curves"].items()]),
        table("Gain by a second thread, LSTM training", ["T, B, I, H", OURS, PEER],
              [[size(one), f"{one[OURS]:.2f}", f"{one[PEER]:.2f}"] for one in found["second_thread"]]),
        table("MB held between forward and backward, LSTM", ["T, B, I, H", OURS, PEER],
              [[size(one), f"{one[OURS] / 1e6:.1f}", f"{one[PEER] / 1e6:.1f}"] for one in found["held"]])])


def plot(found: dict) -> Figure:
    figure = Figure(figsize=(13, 8.5), layout="constrained")
    places = figure.subplots(2, 2).ravel()
    for axes, (letter, what) in zip(places, (("T", "steps T  (B = 1, H = 64)"), ("B", "rows B  (T = 100, H = 128)"),
                                             ("H", "hidden units H = I  (T = 100, B = 16)"))):
        growth(axes, letter, what, found["curves"])
    gain(places[3], found["second_thread"])
    figure.supxlabel(f"LSTM, float32. {found['machine']['cpu']}, {THREADS} threads", fontsize=9, color="#8a8a8a")
    return figure


def growth(axes: Axes, letter: str, what: str, by_name: dict) -> None:
    look = {OURS: "#0072B2", PEER: "#E69F00"}
    for name, one in by_name.items():
        if name.startswith(f"{letter}, "):
            _, case, who = name.split(", ")
            axes.plot(one["values"], [1e3 * s for s in one["seconds"]], color=look[who], marker="o", markersize=4,
                      linestyle="-" if case == "training" else "--", label=f"{who}, {case}: slope {one['slope']:.2f}")
    axes.set(xscale="log", yscale="log", xlabel=what, ylabel="ms")
    axes.grid(color="#eeeeee")
    axes.legend(frameon=False, fontsize=9)


def gain(axes: Axes, lines: list[dict]) -> None:
    for shift, name, colour in ((-0.2, OURS, "#0072B2"), (0.2, PEER, "#E69F00")):
        axes.barh([y + shift for y in range(len(lines))], [one[name] for one in lines], 0.38, color=colour, label=name)
    axes.axvline(GAIN, color=INK, linewidth=1, linestyle=":")
    axes.set_yticks(range(len(lines)), [", ".join(map(str, one["size"])) for one in lines])
    axes.set(xlabel="speed with two threads over one, training (T, B, I, H)")
    axes.invert_yaxis()
    axes.legend(frameon=False, fontsize=9, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))  # above the bars


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see whether it runs")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--out", type=Path, metavar="FILE", help="draw FILE.png and FILE.svg")
    options = parser.parse_args()
    pin(THREADS)

    plan = QUICK if options.quick else FULL
    found = {"machine": describe(), "curves": curves(plan.curves), "second_thread": second_thread(plan.two_threads),
             "held": held(plan.held), "kernels": kernels(), "per_step": [probe("per-step", *s) for s in PER_STEP]}
    found["goals"] = goals(found)
    print(tables(found))
    print(goal_table(found["goals"]))
    if options.json:
        write(options.json, found)
    if options.out:
        with matplotlib.rc_context(STYLE):
            save(plot(found), options.out)


if __name__ == "__main__":
    main()
