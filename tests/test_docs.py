"""What README and docs say is so: their code runs, their commands and links exist."""

from __future__ import annotations

import contextlib
import inspect
import io
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import torch

from gatework import cells
from gatework.cli import app, offer
from gatework.nn import Recurrent

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"(<!-- no-test -->\n)?^```(\w+)\n(.*?)^```$", re.M | re.S)


def blocks(page: Path) -> list[tuple[int, str, str]]:
    """(line, language, content) of the code blocks of a page, without those marked no-test."""
    text = page.read_text(encoding="utf-8")
    return [(text.count("\n", 0, m.start(3)) + 1, m[2], m[3]) for m in BLOCK.finditer(text) if not m[1]]


def commands(page: Path) -> list[str]:
    return [line for _, language, content in blocks(page) if language == "sh" for line in content.splitlines()]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [p for p in PAGES if any(b[1] == "python" for b in blocks(p))], ids=name_of)
def test_every_python_block_runs_and_prints_what_the_text_block_after_it_says(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # as the folder in which a reader types python
    torch.manual_seed(0)
    namespace: dict = {}
    printed = None
    for line, language, content in blocks(page):
        print(f"at {name_of(page)}:{line}")  # pytest shows it where a block fails
        if language == "python":
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(compile(content, "my_cells.py", "exec"), namespace)
            printed = output.getvalue()
        elif language == "text":
            assert printed == content
        if language != "python":
            printed = None


TEACHING = ["README.md", *(f"docs/{name}.md" for name in ("write_a_cell", "sequences", "streaming", "convert"))]


@pytest.mark.parametrize("page", [ROOT / name for name in TEACHING], ids=name_of)
def test_the_pages_that_teach_show_code(page):
    assert [language for _, language, _ in blocks(page)].count("python") >= 2


@pytest.mark.parametrize(("page", "command"), [(p, c) for p in PAGES for c in commands(p)],
                         ids=lambda v: name_of(v) if isinstance(v, Path) else v)
def test_every_shell_command_names_what_exists(page, command):
    program, *arguments = shlex.split(command.rpartition(" | ")[2])
    if program == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert arguments
        for argument in arguments:
            variable, given, _ = argument.partition("=")
            assert f"$({variable})" in makefile if given else re.search(rf"^{argument}:", makefile, re.M)
    elif program == "gatework" or "gatework" in arguments:  # torchrun ... -m gatework ...
        arguments = arguments[arguments.index("gatework") + 1 if program != "gatework" else 0:]
        if arguments[0] == "train":
            offer(arguments[1])
        if "--config" in arguments:  # the file is the reader's
            at = arguments.index("--config")
            del arguments[at:at + 2]
        app.parse_args(arguments, exit_on_error=False, print_error=False)  # raises for an unknown verb or option
    elif program in ("python", "sbatch"):
        assert (ROOT / arguments[0]).is_file()
    else:
        assert [program, *arguments[:2]] == ["pip", "install", "-e"]
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert set(re.search(r"\[(.*)\]", arguments[2])[1].split(",")) <= extras.keys()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_relative_links_lead_to_files_of_the_project(page):
    links = re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_guide_to_sequences_tells_every_option_of_a_layer_and_of_a_call():
    text = (ROOT / "docs" / "sequences.md").read_text(encoding="utf-8")
    options = {p.name for f in (Recurrent.__init__, Recurrent.forward) for p in inspect.signature(f).parameters.values()
               if p.kind is p.KEYWORD_ONLY} - {"sizes"}  # sizes belong to a cell: docs/write_a_cell.md
    assert {o for o in options if not re.search(rf"`{o}\b|[(, ]{o}=", text)} == set()


def test_the_readme_names_every_extra_and_every_cell():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    names = {*extras, *(re.sub("^lstm_no_.*", "lstm_no_...", name) for name in cells.__all__)}
    assert {name for name in names if f"`{name}`" not in text} == set()
