"""Sets of the UCR and UEA archives in their official split, and handwritten digits read row by row."""

from functools import partial

from data_classify_series import test_of_ucr, write_digits, write_ucr

from . import Run

QUICK = {"epochs": 20, "hidden": 32}


def of_archive(name: str, settings: dict, published: str) -> Run:
    """All training series are trained on, as those of the published figures are."""
    return Run(name, "classify-series", partial(write_ucr, name=name), partial(test_of_ucr, name=name),
               {"held_out": 0} | settings, "accuracy", quick=QUICK, published=published)


RUNS = [
    of_archive("JapaneseVowels", {}, "nearest by DTW 94.9 %, MLSTM-FCN 97.6 %, ROCKET 96.5 %, MiniRocket 98.9 % "
                                     "(UEA archive)"),
    of_archive("BasicMotions", {}, "nearest by DTW 97.5 %, MLSTM-FCN 95.0 %, ROCKET 99.0 % (UEA archive)"),
    of_archive("ItalyPowerDemand", {}, "nearest by DTW 95.0 % (UCR archive), TS2Vec with a support vector "
                                       "machine 96.0 %"),
    of_archive("ArrowHead", {"frame": 2, "epochs": 300}, "nearest by DTW 70.3 %, by Euclidean distance 80.0 % (UCR "
                                                         "archive), TS2Vec with a support vector machine 81.7 %"),
    Run("MNIST by rows", "classify-series", write_digits, lambda folder: folder / "test.parquet",
        {"frame": 28, "epochs": 5, "batch_size": 64, "hidden": 128, "noise": 0.1}, "accuracy", quick={"epochs": 1},
        published="pixel by pixel, forwards only: LSTM 87.2 %, GRU 96.2 % (Bai et al. 2018); here 28 pixels are read "
                  "one step, which is an easier task"),
]
