"""Recipes copied into another project: each file works there under another name, and a change of the copy counts."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from data_classify_text import write_mr
from data_tag import write_french

from gatework import cli
from gatework.recipes import RECIPES, run
from gatework.recipes.find import find_recipe
from gatework.recipes.model_folder import ModelFolderError
from gatework.recipes.settings import defaults

PACKAGE = Path(run.__file__).parent


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """Copy the file of a recipe into a project of one's own, change it, and import it from there."""
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.syspath_prepend(project)

    def copy(name: str, changes: Mapping[str, str] = {}):  # noqa: B006
        module = name.replace("-", "_")
        source = (PACKAGE / f"{module}.py").read_text(encoding="utf-8")
        for old, new in changes.items():
            assert source.count(old) == 1, old
            source = source.replace(old, new)
        (project / f"my_{module}.py").write_text(source, encoding="utf-8")
        importlib.invalidate_caches()
        monkeypatch.delitem(sys.modules, f"my_{module}", raising=False)
        found = importlib.import_module(f"my_{module}")
        return getattr(found, find_recipe(name).__name__), found.Settings

    return copy


def folder_in(path: Path) -> Path:
    (path / "data").mkdir()
    return path / "data"


@pytest.mark.parametrize("name", RECIPES)
def test_the_copy_of_each_recipe_is_a_recipe_of_its_own_with_the_same_settings(name, copied):
    recipe, settings = copied(name)
    original = find_recipe(name)
    assert recipe.__module__ == recipe.Settings.__module__ == f"my_{name.replace('-', '_')}"
    assert not issubclass(recipe, original)
    assert defaults(settings) == defaults(original.Settings)
    assert settings(hidden=3).hidden == 3  # the types of its fields are found in its module


@pytest.mark.parametrize("name", RECIPES)
def test_no_recipe_goes_round_a_copy_of_its_file(name):
    module = name.replace("-", "_")
    tree = ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
    imports = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    assert [n.module for n in imports if n.level] == [], "a relative import leads nowhere in another project"
    assert f"gatework.recipes.{module}" not in {n.module for n in imports}
    assert module not in {a.name for n in imports if n.module == "gatework.recipes" for a in n.names}


def test_a_changed_copy_trains_goes_on_after_an_interruption_and_is_loaded_with_its_class(copied, tmp_path,
                                                                                          monkeypatch):
    recipe, settings = copied("classify-text", {
        'name = "classify-text"': 'name = "my-texts"',
        "torch.nn.Linear(features, len(facts": "torch.nn.Linear(2 * features, len(facts",
        "output.masked_fill(beyond, -torch.inf).amax(0)":
            "torch.cat([output.masked_fill(beyond, -torch.inf).amax(0), output.sum(0) / lengths[:, None]], -1)",
        'lowercase: bool = True': 'mean_too: bool = True\n    """One of ours."""\n    lowercase: bool = True'})
    data = write_mr(folder_in(tmp_path), 80)
    chosen = settings(cell="gru", hidden=4, embedding=4, epochs=2, dropout=0.0)
    with monkeypatch.context() as patch:
        patch.setattr(run, "save", lambda *_: (_ for _ in ()).throw(InterruptedError()))
        with pytest.raises(InterruptedError):
            run.train(recipe, data, chosen, tmp_path / "m")
    model = run.train(recipe, data, chosen, tmp_path / "m", resume=True)
    assert model.classes.in_features == 2 * 2 * 4
    again = run.load(tmp_path / "m", recipe)
    assert again.settings.mean_too
    table = recipe.read_line("a good film", again.settings)
    assert list(again.predict(table)) == list(model.predict(table))
    assert set(again.figures(recipe.read_part(data / "test.parquet", again.settings))) == {"accuracy", "f1"}
    with pytest.raises(ModelFolderError, match=r"gatework has no recipe 'my-texts'.*load\(folder, Your"):
        run.load(tmp_path / "m")


def test_the_model_of_a_copy_is_described_and_else_refused_by_the_command_line(copied, tmp_path, monkeypatch, capsys):
    recipe, settings = copied("tag", {'name = "tag"': 'name = "my-tags"'})
    run.train(recipe, write_french(folder_in(tmp_path), 60),
              settings(task="accents", cell="elman", hidden=4, embedding=4, epochs=1), tmp_path / "m")
    capsys.readouterr()
    for command, status in (("describe", 0), ("predict", "use the model from Python")):
        monkeypatch.setattr(sys, "argv", ["gatework", command, str(tmp_path / "m")])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert str(status) in str(stopped.value.code or 0)
    assert ": my-tags, elman" in capsys.readouterr().out


def test_the_model_of_a_changed_copy_that_kept_its_name_is_not_taken_for_one_of_gatework(copied, tmp_path):
    recipe, settings = copied("classify-text", {
        "torch.nn.Dropout(settings.dropout)": "torch.nn.Dropout(settings.dropout)\n"
                                              "        self.more = torch.nn.Linear(2, 2)"})
    run.train(recipe, write_mr(folder_in(tmp_path), 80), settings(cell="elman", hidden=4, embedding=4, epochs=1),
              tmp_path / "m")
    assert run.load(tmp_path / "m", recipe).more.in_features == 2
    with pytest.raises(ModelFolderError, match="tensor 'more.bias'"):
        run.load(tmp_path / "m")
