"""Tables by name through the datasets library, which reads local folders of the form that its hub has."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest
from PIL import Image

from gatework.recipes import RecipeError
from gatework.recipes.reading import Role, read

TEXT, STARS, LABEL = Role("text", str, ("sentence",)), Role("stars", int), Role("label", str)


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_the_datasets_library_reads_by_name(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.csv").write_text("sentence,stars\na,1\nb,2\n")
    (data / "validation.csv").write_text("sentence,stars\nc,3\n")
    splits = read(f"datasets:{data}", [TEXT, STARS])
    assert splits.train.rows() == [("a", 1), ("b", 2)]
    assert splits.valid.rows() == [("c", 3)]
    with pytest.raises(RecipeError, match=r"split train, row 1: the column 'sentence' is 'a', a number"):
        read(f"datasets:{data}", [Role("x", float)], {"x": "sentence"})
    with pytest.raises(RecipeError, match="cannot be loaded"):
        read(f"datasets:{tmp_path / 'nowhere'}", [TEXT])


def test_the_labels_of_a_folder_of_pictures_come_through_the_datasets_library_too(tmp_path):
    for label in "ab":
        folder = tmp_path / "data" / "train" / label
        folder.mkdir(parents=True)
        for n in range(5):
            Image.new("L", (4, 4), 50 * n).save(folder / f"{n}.png")
    splits = read(f"datasets:{tmp_path / 'data'}", [Role("image", Path), LABEL])
    assert set(splits.train["label"]) == {"a", "b"}
    assert Path(splits.train["image"][0]).is_file()
