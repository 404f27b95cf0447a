"""Trains every recipe on real data, writes docs/results.md: `python benchmarks/make_results.py [--quick] [--only ...]`.

Each run (one data set, one seed) is written to benchmarks/results/measured/ when it is done, and not done again; one
that was interrupted goes on from its last checkpoint. Seeds after the first are left out where a run took more than ten
minutes. With --quick the runs are small, and the page is printed instead of written.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from machine import describe
from results import Run

from gatework.recipes import RECIPES
from gatework.recipes.checkpoints import CHECKPOINT
from gatework.recipes.find import find_recipe
from gatework.recipes.run import figures_of, load, train
from gatework.runtime.folder import write_whole

ROOT = Path(__file__).parents[1]
MEASURED = Path(__file__).parent / "results" / "measured"
PAGE = ROOT / "docs" / "results.md"
LONG = 600  # seconds from which one seed has to do

sys.path.insert(0, str(ROOT / "tests"))  # where the data sets are turned into what a user would have


def measure(run: Run, seed: int, settings: dict, work: Path) -> dict:
    """Train and evaluate once; an interrupted training goes on."""
    recipe, folder = find_recipe(run.recipe), work / f"{run.recipe}-{run.name}-{seed}".replace(" ", "_")
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    source, chosen = run.data(data), recipe.Settings(**settings, seed=seed)
    model_folder, started, seconds = folder / "model", time.process_time(), None
    if not (model_folder / "model.json").exists():
        resume = (model_folder / CHECKPOINT).exists()
        train(recipe, source, chosen, model_folder, resume=resume)
        seconds = None if resume else round(time.process_time() - started)  # not known of all of an interrupted run
    figures = figures_of(model_folder)
    if run.test is not None:
        test = recipe.read_part(run.test(data), chosen)
        figures = {"this model": load(model_folder).figures(test)}
        figures |= recipe.baselines(recipe.read(str(source), chosen).train, test, chosen)
    history = (model_folder / "history.csv").read_text().splitlines()
    return {"recipe": run.recipe, "name": run.name, "seed": seed, "settings": settings, "figures": figures,
            "on": "validation" if run.test is None else "test", "epochs": len(history) - 1, "seconds": seconds,
            "clock": "processor", "machine": describe(), "threads": torch.get_num_threads(),
            "date": datetime.date.today().isoformat()}


def results(runs: list[Run], quick: bool, work: Path, most: int) -> list[tuple[Run, list[dict]]]:
    """The measurements of each run, by seed; those that are there already are read."""
    done = []
    for run in runs:
        settings, found = run.settings | (run.quick if quick else {}), []
        for seed in run.seeds[:1 if quick else most]:
            file = (work if quick else MEASURED) / f"{run.recipe}-{run.name}-{seed}.json".replace(" ", "_")
            if not file.exists():
                if found and (found[0]["seconds"] is None or found[0]["seconds"] > LONG):
                    break
                print(f"== {run.recipe} on {run.name}, seed {seed}", flush=True)
                file.parent.mkdir(parents=True, exist_ok=True)
                write_whole(file, json.dumps(measure(run, seed, settings, work), indent=1).encode())
            found.append(json.loads(file.read_text()))
            if found[-1]["settings"] != json.loads(json.dumps(settings)):
                raise SystemExit(f"{file} was measured with other settings; delete it to measure again")
        done.append((run, found))
    return done


def page(done: list[tuple[Run, list[dict]]]) -> str:
    """The results as Markdown."""
    lines = [HEAD, "", *overview(done)]
    for recipe in RECIPES:
        rows = [(run, found) for run, found in done if run.recipe == recipe]
        if not rows:
            continue
        lines += ["", f"## {recipe}", ""]
        for run, found in rows:
            if not found:
                lines += [f"**{run.name}**: not measured yet.", ""]
                continue
            first, dates = found[0], [f["date"] for f in found]
            lines += [f"**{run.name}** ({first['on']} data; {first['epochs']} epochs, "
                      f"{shown_time(found)}, "
                      f"{first['threads']} thread{'s' * (first['threads'] > 1)}, "
                      f"{' to '.join(sorted({min(dates), max(dates)}))}; "
                      f"seeds {', '.join(str(f['seed']) for f in found)}; settings: "
                      f"{', '.join(f'{k} {v}' for k, v in run.settings.items()) or 'the defaults'})", ""]
            names = list(first["figures"]["this model"])
            lines += [f"| | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
            for method in first["figures"]:
                shown = [spread([f["figures"][method].get(n) for f in found if method in f["figures"]]) for n in names]
                lines.append(f"| {method} | {' | '.join(shown)} |")
            if run.published:
                lines += ["", f"Published ({run.figure}): {run.published}"]
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def overview(done: list[tuple[Run, list[dict]]]) -> list[str]:
    """A line for each run that is measured: its main figure, beside the same one of the simple methods."""
    lines = ["| recipe | data | figure | this model | simple methods |", "|---|---|---|---:|---|"]
    for run, found in sorted(done, key=lambda each: list(RECIPES).index(each[0].recipe)):
        if found:
            shown = {method: spread([f["figures"].get(method, {}).get(run.figure) for f in found])
                     for method in found[0]["figures"]}
            ours = shown.pop("this model")
            lines.append(f"| {run.recipe} | {run.name} | {run.figure} | {ours} | "
                         f"{', '.join(f'{method} {value}' for method, value in shown.items())} |")
    return lines


def shown_time(found: list[dict]) -> str:
    times = [f["seconds"] for f in found if f["seconds"] is not None]
    if not times:
        return "interrupted, so not timed"
    return f"{statistics.median(times):.0f} s" + " passed" * any(f["clock"] == "wall" for f in found)


def spread(values: list[float | None]) -> str:
    """The mean over seeds, and the standard deviation where there are several and they differ."""
    values = [v for v in values if v is not None]
    if not values:
        return ""
    mean = f"{statistics.mean(values):.4g}"
    return f"{mean} ± {statistics.stdev(values):.2g}" if len(set(values)) > 1 else mean


HEAD = """# Results of the recipes

Every recipe on real data, beside simple methods on the same data and published figures: the mean over the seeds, ± the
standard deviation. Written by `make results`, which trains what is not measured yet; each measurement is a file in
`benchmarks/results/measured/`, with the machine. Seconds are those that the processors worked on training
one seed, with the validation and the simple methods, or, where it says so, passed while other work ran: they tell
minutes from hours."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small runs, in minutes; nothing is written")
    parser.add_argument("--only", nargs="+", metavar="RECIPE", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--seeds", type=int, default=3, help="measure so many of the seeds at most [3]")
    parser.add_argument("--work", type=Path, default=ROOT / "results", help="folder for data and models [results]")
    arguments = parser.parse_args()
    runs = [run for name in arguments.only for run in importlib.import_module(f"results.{name.replace('-', '_')}").RUNS]
    work = arguments.work / ("quick" if arguments.quick else "full")
    done = results(runs, arguments.quick, work, arguments.seeds)
    if arguments.quick:
        print(page(done))
    else:
        everything = [run for name in RECIPES
                      for run in importlib.import_module(f"results.{name.replace('-', '_')}").RUNS]
        write_whole(PAGE, page([(run, measured(run)) for run in everything]).encode())
        print(f"written: {PAGE.relative_to(ROOT)}")


def measured(run: Run) -> list[dict]:
    files = [MEASURED / f"{run.recipe}-{run.name}-{seed}.json".replace(" ", "_") for seed in run.seeds]
    return [json.loads(file.read_text()) for file in files if file.exists()]


if __name__ == "__main__":
    main()
