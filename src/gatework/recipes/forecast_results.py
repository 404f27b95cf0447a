"""Receives the forecasts of windows, hands on what a person wants of them: values in their units, errors, a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torchmetrics.functional.regression import mean_absolute_error, mean_squared_error, r2_score

from .windows import Windows

SHOWN = 300  # steps of a picture: as many as the eye can tell apart


def in_units(values: np.ndarray, facts: dict) -> np.ndarray:
    """Standardised values [n, Y, ...] in the units of the table."""
    mean, deviation = (np.array(facts[name][:values.shape[1]])[:, None] for name in ("mean", "deviation"))
    return values * deviation + mean


def scores(said: list[np.ndarray], windows: Windows, facts: dict) -> dict[str, float]:
    """Errors of forecasts [n, Y, 1 or 3] of all windows, as the mean over the targets.

    mase: the absolute error in units of that of the seasonal naive forecast in training. nse: Nash & Sutcliffe (1970),
    1 minus the squared error in units of the variance, mean over the series. coverage: share within the interval.
    scaled_mse, scaled_mae: errors of the standardised values, as papers on ETT give them.
    """
    truth = [in_units(one.target.double().numpy()[..., None], facts)[..., 0] for one in windows]
    every, came = torch.from_numpy(np.concatenate(said)), torch.from_numpy(np.concatenate(truth))
    middle = every[..., every.shape[-1] // 2].contiguous()
    series = torch.tensor([which for which, _ in windows.places]).repeat_interleave(torch.tensor(list(map(len, truth))))
    scale = torch.tensor(facts["seasonal_difference"]).double()
    deviation = torch.tensor(facts["deviation"][:came.shape[1]]).double()
    absolute = mean_absolute_error(middle, came, num_outputs=came.shape[1])
    squared = mean_squared_error(middle, came, num_outputs=came.shape[1])
    efficiency = torch.stack([r2_score(middle[series == k], came[series == k]) for k in series.unique()])
    found = {"mase": absolute / scale, "mae": absolute, "rmse": squared.sqrt(), "nse": efficiency,
             "scaled_mse": squared / deviation**2, "scaled_mae": absolute / deviation}
    if every.shape[-1] > 1:
        found["coverage"] = ((every[..., 0] <= came) & (came <= every[..., 2])).double()
    return {name: float(value.mean()) for name, value in found.items()}


def rows_of(said: list[np.ndarray], windows: Windows, targets: Sequence[str]) -> Iterator[dict]:
    """A row for each step of each window: the first entry is the others as a line, between tabs."""
    for (which, origin), values in zip(windows.places, said):
        series = windows.series[which]
        for time, step in zip(series.time[origin:], values.tolist()):
            row = {"series": series.name} if series.name else {}
            row["time"] = time
            for name, interval in zip(targets, step):
                ends = {f"{name} low": interval[0], f"{name} high": interval[-1]} if len(interval) > 1 else {}
                row |= {name: interval[len(interval) // 2], **ends}
            yield {"row": "\t".join(format(v, ".6g") if isinstance(v, float) else v for v in row.values()), **row}


def draw(said: list[np.ndarray], windows: Windows, facts: dict, name: str, coverage: float, simulated: bool):
    """A matplotlib Figure of the first target of the first series: what came, and forecasts with intervals."""
    from matplotlib.figure import Figure

    steps, (which, start) = windows.ahead, windows.places[0]
    shown = [k for k, (of, _) in enumerate(windows.places) if of == which]
    shown = shown[:max(1, SHOWN // steps)]
    label = "simulation" if simulated else "forecast"
    begin, end = max(0, start - min(steps, SHOWN // 6)), windows.places[shown[-1]][1] + len(said[shown[-1]])
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    axes = figure.add_subplot(ylabel=name, title=windows.series[which].name)
    truth = in_units(windows.series[which].targets[..., None], facts)[begin:end, 0, 0]
    axes.plot(range(begin, end), truth, color="0.25", lw=1, label="what came")
    for k in shown:
        origin, values = windows.places[k][1], said[k][:, 0]
        x, first = range(origin, origin + len(values)), k == shown[0]
        axes.plot(x, values[:, values.shape[1] // 2], color="C0", lw=1.5, label=label if first else None)
        if values.shape[1] > 1:
            axes.fill_between(x, values[:, 0], values[:, 2], color="C0", alpha=0.25, lw=0,
                              label=f"{coverage:.0%} interval" if first else None)
    ticks = np.linspace(begin, end - 1, 5).astype(int)
    axes.set_xticks(ticks, [windows.series[which].time[t] for t in ticks])
    axes.legend(loc="upper left", ncols=3, frameon=False)
    return figure
