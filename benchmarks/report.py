"""Receives the statistics of all cases, hands on ratios, tables and goals."""

from __future__ import annotations

import json
import math
import os
import statistics
from dataclasses import dataclass
from pathlib import Path

from groups import OURS, Group
from limits import Limit, limit

SCALE = {"ms": 1e3, "us": 1e6}


@dataclass(frozen=True)
class Row:
    """One case at one size. `best` is the ratio over the best peer, `share` that of the machine's limit."""

    case: str
    size: str
    measured: dict[str, dict]
    ratios: dict[str, float]
    best: float | None
    limit: Limit | None
    ways: tuple[str, ...] = ()

    @property
    def ours(self) -> dict:
        """Our fastest way."""
        return min((self.measured[name] for name in (OURS, *self.ways) if "median" in self.measured.get(name, {})),
                   key=lambda one: one["median"])

    @property
    def share(self) -> float | None:
        return None if self.limit is None else self.limit.seconds / self.ours["median"]


def rows(group: Group, measured: dict[str, dict], rates: dict | None) -> list[Row]:
    found = []
    for case in (c for c in group.cases if c in measured):
        for size, values in measured[case].items():
            ratios = group.ratios(values)
            shortest = limit(case, tuple(map(int, size.split(","))), rates) if rates else None
            found.append(Row(case, size, values, ratios, group.worst(ratios), shortest, group.ways))
    return found


def mean(values: list[float]) -> float | None:
    return math.exp(statistics.fmean(map(math.log, values))) if values else None


def means(group: Group, lines: list[Row]) -> dict[str, float]:
    """The geometric mean by peer, over the sizes at which it was measured."""
    found = {name: mean([line.ratios[name] for line in lines if name in line.ratios])
             for name in (*group.peers, *group.beside)}
    return {name: value for name, value in found.items() if value is not None}


def table(group: Group, lines: list[Row]) -> str:
    by_peer = means(group, lines)
    shown = [*by_peer, *(f"{name} is made in (s)" for name in by_peer if name == "torch.compile")]
    what = "speed over" if group.ratio == "speed" else "time over"
    titles = ["cell", "T, B, I, H", *(f"{name} ({group.unit})" for name in (OURS, *group.ways)),
              "share of the limit", f"{what} the best",
              *(f"(beside: {name})" if name in group.beside else name for name in shown)]
    text = [f"### {group.title}", "", f"| {' | '.join(titles)} |", f"|---|---|{'--:|' * (len(titles) - 2)}"]
    for line in lines:
        times = [with_spread(line.measured.get(name, {}), SCALE[group.unit]) for name in (OURS, *group.ways)]
        cells = [line.case, line.size.replace(",", ", "), *times,
                 "" if line.share is None else f"{line.share:.0%}", number(line.best),
                 *(number(line.ratios.get(name)) for name in by_peer)]
        if "torch.compile" in by_peer:
            seconds = line.measured.get("torch.compile", {}).get("first_call")
            cells.append("" if seconds is None else f"{seconds:.0f}")
        text.append(f"| {' | '.join(cells)} |")
    shares = mean([line.share for line in lines if line.share is not None])
    over_the_best = mean(counted(lines))
    last = ["", "geometric mean", *[""] * (1 + len(group.ways)), "" if shares is None else f"{shares:.0%}",
            "" if over_the_best is None else f"**{number(over_the_best)}**",
            *(number(by_peer.get(name)) for name in shown)]
    text.append(f"| {' | '.join(last)} |")
    return "\n".join([*text, *not_measured(group, lines)]) + "\n"


def with_spread(one: dict, scale: float) -> str:
    """Three digits of the median, and half the distance of the quartiles to the same place."""
    if "median" not in one:
        return ""
    value, spread = one["median"] * scale, (one["upper_quartile"] - one["lower_quartile"]) / 2 * scale
    places = max(0, 2 - math.floor(math.log10(value)))
    return f"{value:.{places}f} ± {spread:.{places}f}"


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def counted(lines: list[Row]) -> list[float]:
    return [line.best for line in lines if line.best is not None]


def not_measured(group: Group, lines: list[Row]) -> list[str]:
    """One line for every peer and reason, with the cells and sizes."""
    found: dict[tuple[str, str], list[str]] = {}
    for line in lines:
        for name in (*group.ways, *group.peers, *group.beside):
            if why := line.measured.get(name, {}).get("not_measured"):
                found.setdefault((name, why), []).append(f"{line.case} ({line.size.replace(',', ', ')})")
    text = [f"- {name}: not measured: {why}: " + (
        "everywhere" if len(places) == len(lines) else ", ".join(places)) for (name, why), places in found.items()]
    return ["", *text] if text else []


def as_data(group: Group, lines: list[Row]) -> dict:
    return {"title": group.title, "ratio": group.ratio, "peers": group.peers, "beside": group.beside,
            "ways": group.ways,
            "rows": [{"cell": line.case, "size": line.size, "ratios": line.ratios, "best": line.best,
                      "share": line.share, "limit": line.limit.name if line.limit else None} for line in lines],
            "geometric_means": means(group, lines), "geometric_mean": mean(counted(lines))}


def goals(group: Group, lines: list[Row]) -> list[dict]:
    found, kept = [], [line for line in lines if line.best is not None]
    if not kept:
        return found
    if group.mean is not None:
        found.append(goal(f"{group.title}: geometric mean", mean(counted(kept)), group.mean, "at least",
                          mean([line.share for line in kept if line.share is not None])))
    if group.each is not None:
        worst, kind = (max, "at most") if group.ratio == "time" else (min, "at least")
        line = worst(kept, key=lambda line: line.best)
        found.append(goal(f"{group.title}: at each size", line.best, group.each, kind, line.share,
                          f"{line.case} ({line.size.replace(',', ', ')})", line.limit))
    return found


def goal(title: str, value: float, bound: float, kind: str, share: float | None = None, where: str = "",
         shortest: Limit | None = None) -> dict:
    reached = value <= bound if kind == "at most" else value >= bound
    return {"goal": title, "kind": kind, "bound": bound, "value": value, "reached": reached, "where": where,
            "share": share, "limit": shortest.name if shortest else None}


def goal_table(found: list[dict]) -> str:
    """All goals; where one is missed, how near to the machine's limit that is."""
    text = ["### Goals", "", "| goal | needed | measured | where it is worst | reached |", "|---|---|--:|---|---|"]
    for one in found:
        reached = "yes"
        if not one["reached"]:
            reached = "**no**"
            if one["share"] is not None:
                reached += f", at {one['share']:.0%} of the limit" + (f" ({one['limit']})" if one["limit"] else "")
        text.append(f"| {one['goal']} | {one['kind']} {one['bound']:g} | {one['value']:.3g} | {one['where']} "
                    f"| {reached} |")
    return "\n".join(text) + "\n"


def write(file: Path, report: dict) -> None:
    temporary = file.with_name(file.name + ".part")
    temporary.write_text(json.dumps(report, indent=1) + "\n")
    os.replace(temporary, file)
