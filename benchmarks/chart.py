"""Draws the speed-ups of a run: `python benchmarks/chart.py [RESULTS.json] [--out docs/bench]`, as PNG and SVG."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter
from report import mean

ROOT = Path(__file__).parents[1]
ROWS = {"lstm": "LSTM, training", "inference": "LSTM, inference", "lstm-bfloat16": "LSTM, training, bfloat16",
        "inference-bfloat16": "LSTM, inference, bfloat16", "two-layers": "two layers, training",
        "bidirectional": "bidirectional, training", "gru": "GRU, training", "rnn": "RNN, training",
        "peephole": "peephole LSTM, training", "coupled": "coupled LSTM, training",
        "layer-norm": "layer-norm LSTM, training", "projected": "projected LSTM, training",
        "reset-before": "reset-before GRU, training", "own": "a user's own cell, training"}
# By size: name, marker and colour, which eyes of all kinds tell apart (Okabe and Ito).
KINDS = {"one": ("one sequence", "o", "#0072B2"), "small": ("batch, H up to 256", "s", "#E69F00"),
         "large": ("batch, H over 256", "^", "#CC79A7")}
INK, FAINT = "#222222", "#8a8a8a"
STYLE = {"font.family": "DejaVu Sans", "font.size": 11, "svg.fonttype": "none", "svg.hashsalt": "gatework",
         "text.color": INK, "axes.edgecolor": FAINT, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
         "axes.spines.top": False, "axes.spines.right": False}


def kind(size: str) -> str:
    _, B, _, H = map(int, size.split(","))
    return "one" if B == 1 else "small" if H <= 256 else "large"


def over_torch(row: dict) -> float | None:
    """Over what torch users have: torch.nn as it comes, or the loop that they write where it has no such layer."""
    return row["ratios"].get("torch.nn", row["ratios"].get("eager loop"))


def points(results: dict) -> dict[str, list[dict]]:
    """By case, in the order of the chart, the rows that have a ratio."""
    found: dict[str, list[dict]] = {case: [] for case in ROWS}
    for group in results["groups"]:
        for row in group["rows"] if group["ratio"] == "speed" else []:
            if row["cell"] in found and row["best"] is not None:
                found[row["cell"]].append(row)
    return {case: lines for case, lines in found.items() if lines}


def panel(axes: Axes, title: str, by_case: dict[str, list[dict]], value) -> None:
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", pad=12)
    axes.set_xscale("log")
    axes.axvline(1.0, color=INK, linewidth=1.2, zorder=1)
    everything = [1.0]
    for y, rows in enumerate(by_case.values()):
        values = [(value(row), kind(row["size"])) for row in rows if value(row) is not None]
        if not values:
            continue
        everything += [v for v, _ in values]
        axes.plot([min(v for v, _ in values), max(v for v, _ in values)], [y, y], color="#dddddd", linewidth=5,
                  solid_capstyle="round", zorder=0)
        for name, (_, marker, colour) in KINDS.items():
            axes.scatter([v for v, k in values if k == name], [y for _, k in values if k == name], s=34, marker=marker,
                         color=colour, alpha=0.85, linewidth=0, zorder=2)
        middle = mean([v for v, _ in values])
        axes.scatter([middle], [y], s=95, marker="D", color=INK, edgecolor="white", linewidth=1.2, zorder=3)
        axes.annotate(f"{middle:.1f}×", (1.0, y), xycoords=("axes fraction", "data"), xytext=(8, 0),
                      textcoords="offset points", va="center", fontweight="bold")
    low, high = min(everything) / 1.15, max(everything) * 1.15
    axes.set_xlim(low, high)
    ticks = [t for t in (0.25, 0.5, 1, 2, 5, 10, 20, 50, 100) if low <= t <= high]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda t, _: f"{t:g}×"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", which="minor", length=0)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#eeeeee", zorder=0)
    axes.set_axisbelow(True)
    axes.spines["left"].set_visible(False)
    axes.axvspan(low, 1.0, color="#f6f3ee", zorder=-1)


def chart(results: dict) -> Figure:
    by_case = points(results)
    if not by_case:
        raise SystemExit("the file has no case that the chart shows")
    figure = Figure(figsize=(13, 1.9 + 0.4 * len(by_case)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    panel(left, "Speed-up over torch (its layer, or else a loop)", by_case, over_torch)
    panel(right, "Speed-up over the best of all peers", by_case, lambda row: row["best"])
    left.set_yticks(range(len(by_case)), [ROWS[case] for case in by_case])
    left.invert_yaxis()
    for name, marker, colour in KINDS.values():
        left.scatter([], [], s=34, marker=marker, color=colour, label=name, linewidth=0)
    left.scatter([], [], s=80, marker="D", color=INK, label="geometric mean")
    machine = results["machine"]
    figure.legend(loc="outside upper left", ncols=4, frameon=False)
    figure.supxlabel(f"Each mark is one size; left of the line the peer is faster. {machine['cpu']}, "
                     f"{machine['threads']} threads, {machine['date'][:10]}", fontsize=9, color=FAINT)
    return figure


def save(figure: Figure, out: Path) -> None:
    for form in ("png", "svg"):
        figure.savefig(out.with_suffix(f".{form}"), dpi=160, metadata={"Date": None} if form == "svg" else None)
        print(f"written: {out.with_suffix(f'.{form}')}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, nargs="?", default=ROOT / "benchmarks" / "results.json")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "bench", help="without an ending")
    options = parser.parse_args()
    with matplotlib.rc_context(STYLE):
        save(chart(json.loads(options.results.read_text())), options.out)


if __name__ == "__main__":
    main()
