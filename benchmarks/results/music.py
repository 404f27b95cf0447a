"""Polyphonic music in the official splits: chorales, folk tunes."""

from data_music import write_jsb, write_nottingham

from . import Run


def test_part(folder):
    return next(folder.glob("*.json"))  # the file that was trained on holds it


RUNS = [
    Run("JSB chorales", "music", write_jsb, test_part, {}, "nll", quick={"epochs": 2},
        published="LSTM 8.45, GRU 8.43, RNN 8.91 (Bai et al. 2018); GRU 8.54, LSTM 8.67 (Chung et al. 2014)"),
    Run("Nottingham", "music", write_nottingham, test_part, {"epochs": 20, "batch_size": 4}, "nll",
        quick={"epochs": 1, "hidden": 64},
        published="LSTM 3.29, GRU 3.46, RNN 4.05 (Bai et al. 2018)"),
]
