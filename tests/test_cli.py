"""The command line as a user meets it: what is printed, the exit code, never a traceback."""

import os
import re
import signal
import subprocess
import sys
import time
from pydoc_data.topics import topics

import pytest

from gatework import cells, cli
from gatework.compiler import trace
from gatework.compiler.text import show
from gatework.recipes.find_cell import find_cell

TRAIN = ["train", "language-model", "text.txt", "--hidden", "8", "--embedding", "4", "--batch-size", "4",
         "--seq-len", "30"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Every test works in an empty folder with a short text and a cell of one's own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("\n\n".join(topics.values())[:30000], encoding="utf-8")
    (tmp_path / "own.py").write_text("from gatework.compiler import Input, Matrix, State, tanh\n"
                                     "def mine(x: Input, h: State, W: Matrix, U: Matrix):\n"
                                     "    return dict(h=tanh(W @ x + U @ h))\n"
                                     "def wrong(x: Input, h: State, W: Matrix):\n"
                                     "    return dict(h=tanh(W @ x) if h > 0 else h)\n")
    return tmp_path


@pytest.fixture
def gatework(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["gatework", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capsys.readouterr()
        code = stopped.value.code
        return (1, out, err + code) if isinstance(code, str) else (code or 0, out, err)

    return run


def process(*arguments, before="", **options):
    """The command in a process of its own, after some Python lines."""
    code = f"import sys\n{before}\nsys.argv[0] = 'gatework'\nfrom gatework.cli import main\nmain()"
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True, **options)


@pytest.mark.parametrize(("arguments", "said"), [
    ([], "check describe evaluate generate predict show train transcribe"), (["train"], "language-model"),
    (["generate"], "--prompt --temperature --seed"),
    (["evaluate"], "MODEL DATA --picture --json"),
    (["show"], "CELL --stage latex"), (["check"], "CELL --positive --scale --seed"),
    (["train", "language-model"], "DATA --cell --hidden --layers --dropout --epochs --batch-size --seq-len --tokens "
                                  "--learning-rate --seed --out --resume peephole")])
def test_help_names_every_argument(arguments, said, gatework):
    code, out, err = gatework(*arguments, "--help")
    assert (code, err) == (0, "")
    assert [word for word in said.replace("peephole", "equations").split() if word not in out] == []


def test_help_starts_without_torch_lightning_and_safetensors():
    block = "for name in ('torch', 'lightning', 'safetensors'): sys.modules[name] = None"
    run = process("train", "--help", before=block)
    out, err = run.communicate()
    assert (run.returncode, err) == (0, "")
    assert "language-model" in out


@pytest.mark.parametrize(("missing", "arguments", "extra"), [
    ("cyclopts", ["--help"], "cli"), ("lightning", TRAIN, "recipes"), ("torch", TRAIN, "recipes"),
    ("safetensors", ["generate", "model"], "recipes"), ("torch", ["check", "lstm"], "torch")])
def test_a_missing_package_gives_the_line_to_type(missing, arguments, extra):
    run = process(*arguments, before=f"sys.modules[{missing!r}] = None")
    out, err = run.communicate()
    assert run.returncode == 1
    assert re.fullmatch(rf'[^\n]*needs {missing}; type:  pip install "gatework\[{extra}\]"\n', err)


@pytest.mark.parametrize("cell", [*cells.__all__, "own.py:mine"])
@pytest.mark.parametrize("stage", ["equations", "graph", "derivative", "loop", "llvm", "latex"])
def test_show_prints_every_stage(cell, stage, gatework):
    code, out, err = gatework("show", cell, "--stage", stage)
    assert (code, err) == (0, "")
    assert out.rstrip() == show(trace(find_cell(cell)), stage) if stage != "llvm" else "define" in out


@pytest.mark.parametrize("cell", ["elman", "own.py:mine"])
def test_check_prints_the_report_and_ends_with_0_where_all_holds(cell, gatework):
    code, out, err = gatework("check", cell, "--seed", "3", "--scale", "0.5")
    assert (code, err) == (0, "")
    assert "seed 3, scale 0.5" in out
    assert out.endswith(f"{cell.removeprefix('own.py:')}: 10 passed\n")


def test_check_ends_with_1_where_a_check_fails_and_positive_may_be_given_again(gatework, here):
    (here / "rooted.py").write_text("from gatework.compiler import Input, Matrix, State, Vector, sqrt, tanh\n"
                                    "def rooted(x: Input, h: State, W: Matrix, v: Vector, u: Vector):\n"
                                    "    return dict(h=tanh(W @ x + sqrt(v) * h + sqrt(u)))\n")
    code, out, err = gatework("check", "rooted.py:rooted", "--positive", "v")
    assert (code, err) == (1, "")
    assert re.search(r"failed  finite.*\n +in step 0 sqrt gives what is no number, at rooted.py:3: return", out)
    assert gatework("check", "rooted.py:rooted", "--positive", "v", "--positive", "u")[0] == 0


def left_in(folder) -> list[str]:
    """The files there; Python's own, of a cell's file that was imported, do not count."""
    return sorted(name for name in os.listdir(folder) if name != "__pycache__")


@pytest.mark.parametrize(("arguments", "said"), [
    (["show", "gruh"], "there is no cell 'gruh'; did you mean gru"),
    (["show", "none.py:mine"], "there is no file none.py"),
    (["show", "own.py:yours"], "own.py has no function 'yours'; its functions are mine, wrong"),
    (["show", "own.py:wrong"], "own.py:5: .*where"),
    (["show", "text.txt:mine"], "there is no cell"),
    (["show", "lstm", "--stage", "assembly"], "assembly"),
    (["check", "gruh"], "there is no cell 'gruh'; did you mean gru"),
    (["check", "own.py:wrong"], "own.py:5: .*where"),
    (["check", "own.py:mine", "--positive", "h"], "positive= names h; mine has x, W, U"),
    (["train", "language-model", "none.txt"], "there is no none.txt, did you mean text.txt"),
    (["train", "language-model", "text.txt", "--hidden", "0"], "--hidden must be a whole number of at least 1"),
    (["train", "language-model", "text.txt", "--hidden", "many"], "hidden"),
    (["train", "language-model", "text.txt", "--seq-len", "99999"], "Lower --batch-size or --seq-len"),
    (["train", "language-model", "text.txt", "--resume"], "Leave out --resume"),
    (["train", "language-model", "text.txt", "--cell", "own.py:wrong"], "own.py:5"),
    (["train", "language-model", "text.txt", "--out", "text.txt"], "text.txt"),
    (["generate", "nowhere"], "there is no folder nowhere"),
    (["evaluate", ".", "text.txt"], "there is no file model.json"),
    (["generates", "x"], "generates")], ids=lambda p: " ".join(p) if isinstance(p, list) else "")
def test_what_a_user_can_put_right_is_said_without_a_traceback(arguments, said, gatework, here):
    before = left_in(here)
    code, out, err = gatework(*arguments)
    assert code in (1, 2)
    assert re.search(said, out + err)
    assert "Traceback" not in out + err
    assert left_in(here) == before


def test_train_then_generate_then_evaluate_with_a_cell_of_ones_own(gatework):
    code, out, err = gatework(*TRAIN, "--cell", "own.py:mine", "--epochs", "2", "--out", "model")
    assert (code, err) == (0, "")
    assert re.search(r"epoch 2 of 2: valid_loss \d\.\d+, train_loss \d\.\d+ \(\d+ s\)\n", out)
    assert re.search(r"bits_per_character .*\nthis model +\d\.\d+ .*\nunigram +\d\.\d+ .*\nbigram +\d\.\d+ ", out)
    assert "Saved in model. Next:  gatework generate model" in out
    code, out, err = gatework("generate", "model", "--prompt", "The ", "--length", "20")
    assert (code, err, len(out)) == (0, "", len("The ") + 20 + 1)
    code, out, err = gatework("evaluate", "model", "text.txt")
    assert (code, err) == (0, "")
    assert re.search(r"bits_per_character .*\nmodel +\d\.\d+ ", out)


def test_the_model_is_saved_beside_the_text_by_its_name_unless_told_otherwise(gatework, here):
    assert gatework(*TRAIN, "--epochs", "1")[0] == 0
    assert {"model.json", "model.safetensors"} <= {*os.listdir(here / "text-language-model")}


def test_ctrl_c_says_how_to_go_on_and_that_command_finishes_the_run(here):
    # Python leaves Ctrl-C ignored where the shell started the tests in the background.
    listening = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    run = process(*TRAIN, "--epochs", "400", "--out", "my model", before=listening)
    until = time.monotonic() + 60
    while not (here / "my model" / "last.ckpt").exists() and time.monotonic() < until:
        time.sleep(0.01)
    run.send_signal(signal.SIGINT)
    out, err = run.communicate()
    assert run.returncode == 130
    assert err.endswith("gatework: interrupted. Go on with:  gatework " + " ".join(TRAIN)
                        + " --epochs 400 --out 'my model' --resume\n")
    assert "Traceback" not in out + err
