"""Oil temperature and loads of a transformer, sunspots, rivers from the weather: one alone, and four together."""

from functools import partial
from pathlib import Path

from data_forecast import ATTRIBUTES, WEATHER, write_ett, write_river, write_rivers, write_sunspots

from . import Run


def write_test(folder: Path) -> Path:
    """The test file, which the functions above wrote beside the training data."""
    return folder / "test.csv"


OIL = {"season": 24, "batch_size": 64, "epochs": 8, "dropout": 0.2, "learning_rate": 0.002}
RIVER = {"targets": ["runoff"], "horizon": 0, "output": "mean", "forget_bias": 3.0, "batch_size": 8,
         "learning_rate": 0.005, "epochs": 15}
LOADS = ["HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT"]

RUNS = [
    Run("monthly sunspots", "forecast", write_sunspots, write_test,
        {"targets": ["Sunspots"], "window": 132, "horizon": 12, "hidden": 32, "dropout": 0.2}, "mase",
        quick={"epochs": 1}, published="there is no agreed split of the monthly numbers"),
    Run("runoff of the Piscataquis (CAMELS 01031500)", "forecast", write_river, write_test,
        RIVER | {"known": WEATHER, "window": 365}, "nse", quick={"epochs": 1},
        published="0.742 by SAC-SMA with Snow-17, a model of hydrology, calibrated with a part of the test years; "
                  "computed from its column in these files; 0.758 over the whole record (README of the data). Mean of "
                  "241 basins, each with its own LSTM: 0.63 (Kratzert et al. 2018, as quoted there from memory)"),
    Run("runoff of the Minam (CAMELS 13331500)", "forecast", partial(write_river, gauge="13331500"), write_test,
        RIVER | {"known": ["rain", "warmth", "evaporation"], "window": 365}, "nse", quick={"epochs": 1},
        published="0.726 by SAC-SMA with Snow-17, calibrated with a part of the test years; computed from its column "
                  "in these files; 0.766 over the whole record (README of the data)"),
    Run("runoff of four basins with attributes", "forecast", write_rivers, None,
        RIVER | {"cell": "ea_lstm", "known": WEATHER, "static": sum(ATTRIBUTES.values(), []), "window": 180,
                 "columns": {"series": "gauge"}}, "nse", quick={"epochs": 1},
        published="none for two years of four basins. With nine years of 531 basins 0.74 (median; EA-LSTM, Kratzert et "
                  "al. 2019, as the README of the data quotes from memory), SAC-SMA 0.64"),
    Run("ETTh1, oil temperature", "forecast", write_ett, write_test, OIL | {"targets": ["OT"]}, "scaled_mse",
        quick={"epochs": 1}),
    Run("ETTh1, all seven columns", "forecast", write_ett, write_test,
        OIL | {"targets": LOADS, "output": "mean", "dropout": 0.3, "epochs": 6, "stride": 7}, "scaled_mse",
        quick={"epochs": 1, "stride": 240},
        published="LSTMa 0.650, LSTnet 1.293, Informer 0.577, S4 0.525, from every hour on (Zhou et al. 2021, "
                  "Table 2); the same hour of the day before has 0.421 (README of the data). Here from every seventh "
                  "hour on"),
]
