"""Forecasts without a network, of the windows that the network gets; each a list of arrays [n, Y], standardised."""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.linear_model import Ridge

HISTORY = 1000  # steps before an origin that exponential smoothing looks at
STEPS = 60  # steps back that a linear simulation looks at


def without_network(training, windows, horizon: int, season: int) -> dict[str, list[np.ndarray]]:
    """All that fits the task, by name: of a simulation a linear one and the mean."""
    linear = ridge(training, windows, horizon)
    if horizon == 0:
        return {"linear": linear, "mean": [np.zeros(one.target.shape) for one in windows]}
    return {"seasonal naive": seasonal_naive(windows, season), "linear": linear,
            "ETS": exponential_smoothing(windows, season)}


def seasonal_naive(windows, season: int) -> list[np.ndarray]:
    """The values of the last season, again and again; the last value where the season is 1."""
    found = []
    for which, origin in windows.places:
        last = windows.series[which].targets[origin - season:origin]
        found.append(last[np.arange(windows.ahead) % season])
    return found


def ridge(training, windows, horizon: int) -> list[np.ndarray]:
    """Each step ahead as a sum of all numbers of the window and of what is known ahead; of the static ones too.

    With horizon 0 each step as a sum of what is known of it and of the steps before.
    """
    if horizon:
        def inputs(one):
            return np.concatenate([one.past.flatten(), one.future.flatten(), one.static])

        kept = range(0, len(training), max(1, len(training) // 20_000))
        few = [training[k] for k in kept]
        model = Ridge(alpha=10.0).fit(np.stack([inputs(one) for one in few]),
                                      np.stack([(one.target - one.base).flatten() for one in few]))
        said = model.predict(np.stack([inputs(one) for one in windows]))
        return [one.base.numpy() + said[k].reshape(one.base.shape) for k, one in enumerate(windows)]
    back = min(STEPS, windows.window)
    rows = [_lagged(one.known, one.static, back) for one in training.series]
    model = Ridge(alpha=10.0).fit(np.concatenate(rows), np.concatenate([s.targets[back:] for s in training.series]))
    said = [model.predict(_lagged(one.known, one.static, back)).reshape(-1, one.targets.shape[1])
            for one in windows.series]
    return [said[which][origin - back:][:len(windows[k].base)] for k, (which, origin) in enumerate(windows.places)]


def _lagged(known: np.ndarray, static: np.ndarray, back: int) -> np.ndarray:
    """Each row of what is known and those `back` before it, with the static numbers: [T - back, ...]."""
    lags = np.lib.stride_tricks.sliding_window_view(known, back + 1, axis=0).reshape(len(known) - back, -1)
    return np.concatenate([lags, np.broadcast_to(static, (len(lags), len(static)))], 1)


def exponential_smoothing(windows, season: int) -> list[np.ndarray]:
    """Additive exponential smoothing with a damped trend, and a season if it has one (ETS; Hyndman et al., 2002).

    Its parameters are fitted by statsmodels once for each series and target, to what lies before the first forecast,
    and once more when that is enough for a season.
    """
    from statsmodels.tsa.exponential_smoothing.ets import ETSModel

    def model(values: np.ndarray):
        options = dict(seasonal="add", seasonal_periods=season) if season > 1 and len(values) > 2 * season + 1 else {}
        return ETSModel(values.astype(np.float64), error="add", trend="add", damped_trend=True,
                        initialization_method="heuristic", **options)

    found, fitted = [], {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fit that did not converge is a poor one, and shown as such
        for which, origin in windows.places:
            columns = []
            for k, values in enumerate(windows.series[which].targets[max(0, origin - HISTORY):origin].T):
                of = model(values)
                kind = which, k, of.seasonal
                if kind not in fitted:
                    fitted[kind] = of.fit(disp=False, maxiter=100).params
                columns.append(of.smooth(fitted[kind]).forecast(windows.ahead))
            found.append(np.stack(columns, 1))
    return found
