"""Measures gatework beside its peers: `python benchmarks/bench.py [--quick] [--only NAME ...] [--json FILE]`.

Two threads for everybody, pinned to two cores where the system can do that, every contestant in a process of its own.
What is to be timed is first compared with gatework; a peer that differs is not timed, and if all differ the run ends.
Contestants take turns of at least 20 ms each; tables show medians, half the distance of the quartiles, ratios and
geometric means, and in the end the goals that the project has set itself. docs/performance.md tells more.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import tempfile
from pathlib import Path

from groups import CASES, GROUPS, NOT_QUICK, sizes_of
from machine import THREADS, describe, pin
from report import as_data, goal, goal_table, goals, rows, table, write
from startup import CHECKS, probe
from turns import WrongResults, measure


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few sizes, short measurements: some minutes, not hours")
    parser.add_argument("--only", action="append", choices=[*CASES, *CHECKS], metavar="NAME",
                        help=f"measure only this; can be repeated. One of {', '.join([*CASES, *CHECKS])}")
    parser.add_argument("--without", action="append", default=[], metavar="PEER",
                        help="leave out a peer, such as torch.compile, which takes most of the time; can be repeated")
    parser.add_argument("--size", action="append", type=size, metavar="T,B,I,H",
                        help="measure at this size instead of all; can be repeated")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every measurement to this file")
    return parser.parse_args()


def size(text: str) -> tuple[int, ...]:
    given = tuple(map(int, text.split(",")))
    if len(given) != 4 or min(given) < 1:
        raise ValueError
    return given


class Report:
    """What was measured so far, in the form of the JSON file, which is written anew after every case."""

    def __init__(self, machine: dict, file: Path | None):
        self.file = file
        self.data = {"machine": machine, "rates": None, "seconds": {}, "groups": [], "startup": {}, "goals": []}

    def write(self) -> None:
        if self.file:
            write(self.file, self.data)

    def measure_rates(self) -> None:
        rates = self.data["rates"] = probe("limits")
        bfloat16 = rates["bfloat16_products"]
        bfloat16 = "none" if bfloat16 is None else f"{bfloat16 / 1e9:.0f}"
        print(f"Products {rates['float32_products'] / 1e9:.0f} GFLOP/s in float32, "
              f"{bfloat16} in bfloat16; {rates['near_bytes'] / 1e9:.0f} GB/s from the "
              f"second caches, {rates['far_bytes'] / 1e9:.1f} from beyond them.\n", flush=True)

    def measure_groups(self, wanted: list[str], quick: bool, without: set[str], sizes: list[tuple] | None) -> None:
        """Measure and print group by group."""
        from contestants import CASES as PLAIN
        from sequences import SEQUENCES
        contestants, measured = PLAIN | SEQUENCES, self.data["seconds"]
        for group in GROUPS:
            for case in (c for c in group.cases if c in wanted and c not in measured):
                names = [name for name in contestants[case] if name not in without]
                # What a contestant that was ended had started, a compiler, may still write there for a moment.
                with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                    measured[case] = measure(case, names, sizes or sizes_of(case, quick), 0.15 if quick else 0.6,
                                             Path(folder))
                self.write()
            if lines := rows(group, measured, self.data["rates"]):
                print(table(group, lines), flush=True)
                self.data["groups"].append(as_data(group, lines))
                self.data["goals"] += goals(group, lines)

    def measure_startup(self, wanted: list[str], quick: bool) -> None:
        for name, check in CHECKS.items():
            if name in wanted:
                print(f"measuring {name}", file=sys.stderr, flush=True)
                self.data["startup"][name], text, bounds = check(quick)
                print(text, flush=True)
                self.data["goals"] += [goal(*bound) for bound in bounds]
                self.write()


def main() -> None:
    options = arguments()
    wanted = options.only or [*CASES, *CHECKS]
    without = {*options.without, *(NOT_QUICK if options.quick else ())}
    pinned = pin(THREADS)
    machine = describe() | {"threads": THREADS, "pinned_to_cores": pinned,
                            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
    versions = machine["versions"]
    print(f"{machine['cpu']}, {machine['cores']} cores, {THREADS} threads, "
          f"pinned to {'nothing' if pinned is None else f'cores {pinned}'}; torch {versions['torch']}, "
          f"JAX {versions['jax']}, ONNX Runtime {versions['onnxruntime']}, OpenVINO {versions['openvino']}\n")
    if machine["load_before"] > 0.5:
        print(f"The machine is busy (load {machine['load_before']}): these numbers will tell little.\n")
    if without:
        print(f"Left out: {', '.join(sorted(without))}\n", flush=True)
    report = Report(machine, options.json)
    try:
        report.measure_rates()
        report.measure_groups(wanted, options.quick, without, options.size)
        report.measure_startup(wanted, options.quick)
    except WrongResults as wrong:
        sys.exit(str(wrong))
    finally:
        report.write()
    print(goal_table(report.data["goals"]))


if __name__ == "__main__":
    main()
