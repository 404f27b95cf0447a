"""The folder of compiled kernels: whole files or none, whatever happens to the folder and to other processes."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import time
import warnings
from array import array
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from examples import Example, assert_close

import gatework
from gatework import autograd, cells
from gatework.backends.batch import Batch
from gatework.backends.cpu import jit, kernel
from gatework.backends.cpu.target import target
from gatework.compiler import split, trace

CHILD = """
import sys
import numpy as np
from gatework import cells, trace
from gatework.backends.cpu import jit, kernel_for
from gatework.backends.cpu.arrays import Numpy
from gatework.backends.batch import Batch
optimise, compiled = jit.optimise, []
jit.optimise = lambda *a: compiled.append(1) or optimise(*a)
x, h = np.full((6, 4), 0.5), np.zeros((2, 9))
w = [np.full(s, 0.1) for s in ((36, 4), (36, 9), (36,), (36,))]
k = kernel_for(trace(cells.lstm), dict(I=4, H=9), 8)
(output,), _, _ = k.forward(Numpy(x), Batch.dense(3, 2), [x], [h, h], w, False, False)
print(len(compiled), repr(float(output.sum())))
"""


def start(folder, home=None) -> subprocess.Popen:
    """A process that computes with a kernel, and prints how many modules it compiled and a result."""
    environment = {k: v for k, v in os.environ.items() if k not in (jit.SETTING, "XDG_CACHE_HOME")}
    environment |= {jit.SETTING: str(folder)} if folder else {}
    environment |= {"HOME": str(home)} if home else {}
    return subprocess.Popen([sys.executable, "-W", "error", "-c", CHILD], env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen) -> tuple[int, float]:
    """(modules compiled, result)"""
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    compiled, result = out.split()
    return int(compiled), float(result)


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()}


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """An empty folder, in a process that has compiled nothing yet; call the result to forget again."""
    folder = tmp_path / "cache"
    monkeypatch.setenv(jit.SETTING, str(folder))

    def forget() -> Path:
        monkeypatch.setattr(jit, "_loaded", {})
        jit._engine.cache_clear()
        return folder

    return forget


def right_result(T: int = 3, B: int = 2, H: int = 9, dtype=torch.float64) -> None:
    """Compute with a kernel that no earlier call has kept, and compare."""
    example = Example(trace(cells.gru), T, B, 4, H, dtype)
    k = kernel.Kernel(split(example.cell, ("h",)), example.sizes, example.inputs[0].element_size(), target())
    (output,), _, _ = k.forward(autograd.Torch(example.inputs[0]), Batch.dense(T, B), *example.flat(), False, False)
    # sums of a few terms of size 1
    assert_close(dict(output=output.view(T, B, H)), dict(output=example.expected()["output"]),
                 100 * torch.finfo(dtype).eps)


def test_second_process_compiles_nothing_and_leaves_the_files_as_they_are(tmp_path):
    first = finish(start(tmp_path))
    assert first[0] >= 1
    before = state(tmp_path)
    assert all(name.endswith(".o") for name in before)
    assert finish(start(tmp_path)) == (0, first[1])
    assert state(tmp_path) == before


def test_two_processes_at_once_both_compute_and_leave_whole_files(tmp_path):
    results = [finish(p) for p in [start(tmp_path), start(tmp_path)]]
    assert results[0][1] == results[1][1]
    assert finish(start(tmp_path)) == (0, results[0][1])
    assert all(name.endswith(".o") for name in state(tmp_path))


def truncate(content: bytes) -> bytes:
    return content[:len(content) // 2]


def flip_a_bit(content: bytes) -> bytes:
    middle = len(content) * 3 // 4
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1:]


def empty(content: bytes) -> bytes:
    return b""


def of_another_kind(content: bytes) -> bytes:
    return b"not an object file at all, " * 100


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, empty, of_another_kind])
def test_damaged_file_is_named_compiled_again_and_replaced(damage, fresh):
    folder = fresh()
    right_result()
    whole = {name: content for name, (content, _) in state(folder).items()}
    for name, content in whole.items():
        (folder / name).write_bytes(damage(content))
    fresh()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        right_result()
    messages = [str(w.message) for w in caught]
    for name in whole:
        assert any(str(folder / name) in m and "compiled again" in m and "empty the folder" in m for m in messages)
    assert {name: content for name, (content, _) in state(folder).items()} == whole


def test_file_that_a_killed_process_left_unfinished_is_never_read(fresh):
    folder = fresh()
    folder.mkdir()
    (folder / ".part-abcd1234").write_bytes(b"gatework object 1\n half of it")
    right_result()
    fresh()
    right_result()
    assert (folder / ".part-abcd1234").read_bytes() == b"gatework object 1\n half of it"


def test_process_killed_in_the_middle_of_a_write_leaves_no_file_that_is_taken_for_whole(fresh, monkeypatch):
    folder, replace = fresh(), os.replace

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        right_result()
    assert [p.name for p in folder.glob("*.o")] == []
    monkeypatch.setattr(os, "replace", replace)
    fresh()
    right_result()
    assert list(folder.glob("*.o"))


def test_full_disk_is_no_error_and_leaves_nothing(fresh, monkeypatch):
    folder = fresh()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    right_result()
    assert list(folder.iterdir()) == []


def test_folder_that_is_a_file_is_left_alone_and_the_kernels_stay_in_memory(fresh):
    folder = fresh()
    folder.write_text("mine")
    right_result()
    assert folder.read_text() == "mine"


def test_folder_that_cannot_be_made_keeps_the_kernels_in_memory(fresh, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(jit.SETTING, str(tmp_path / "file" / "below"))
    right_result()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


@pytest.mark.skipif(os.geteuid() == 0 if hasattr(os, "geteuid") else True, reason="nothing is read-only for root")
def test_read_only_folder_keeps_the_kernels_in_memory(fresh):
    folder = fresh()
    folder.mkdir(mode=0o500)
    right_result()
    assert list(folder.iterdir()) == []


def test_folder_that_refuses_new_files_keeps_the_kernels_in_memory(fresh, monkeypatch):
    folder = fresh()

    def refused(*args, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(jit.tempfile, "mkstemp", refused)
    right_result()
    assert list(folder.iterdir()) == []


def test_unreadable_file_is_compiled_again(fresh, monkeypatch):
    folder = fresh()
    right_result()
    before = state(folder)
    fresh()

    def refused(path):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as m:
        m.setattr(Path, "read_bytes", refused)
        right_result()
    assert state(folder).keys() == before.keys()


def test_setting_off_writes_nothing(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    assert finish(start("off", home))[0] >= 1
    assert list(home.rglob("*.o")) == []
    assert finish(start("off", home))[0] >= 1


def test_without_a_setting_the_files_lie_in_the_cache_folder_of_the_user(tmp_path):
    first = finish(start(None, tmp_path))
    assert {p.parent.name for p in tmp_path.rglob("*.o")} == {"gatework"}
    assert finish(start(None, tmp_path)) == (0, first[1])


def test_home_that_cannot_be_written_is_no_error(tmp_path):
    home = tmp_path / "home"
    home.write_text("no folder")
    assert finish(start(None, home))[0] >= 1


@dataclass
class Words:
    """Code that writes two numbers of its own, one of them by a function that nobody else may call."""

    numbers: tuple[int, int]
    inner: str = "inner"

    def text(self) -> str:
        return f"""
define internal i64 @{self.inner}() noinline optnone {{
  ret i64 {self.numbers[0]}
}}
define void @run(ptr %out) {{
  %first = call i64 @{self.inner}()
  store i64 %first, ptr %out
  %second = getelementptr i64, ptr %out, i64 1
  store i64 {self.numbers[1]}, ptr %second
  ret void
}}"""

    def results(self) -> tuple[int, int]:
        """What they are, by code that is loaded now."""
        out = array("q", [0, 0])
        jit.load(f"words {self}", self.text, target()).function("run", ctypes.c_void_p)(out.buffer_info()[0])
        return tuple(out)


def test_functions_of_one_name_in_several_kernels_are_told_apart(fresh):
    # A function may also be called like what a later kernel takes from the C library.
    all_words = [Words((1, 2)), Words((3, 4)), Words((5, 6), "sched_yield"), Words((7, 8), "run_1")]
    fresh()
    for _ in range(2):
        assert [w.results() for w in all_words] == [w.numbers for w in all_words]
        assert [w.results() for w in all_words[::-1]] == [w.numbers for w in all_words[::-1]]
        fresh()  # and once more, from the files


@pytest.mark.parametrize("change", [dict(dtype=torch.float32), dict(H=10)], ids=["float32", "H10"])
def test_other_dtype_or_size_takes_other_files(change, fresh):
    folder = fresh()
    right_result()
    before = state(folder)
    fresh()
    right_result(**change)
    after = state(folder)
    assert after.keys() > before.keys()
    assert {k: after[k] for k in before} == before


def test_other_lengths_and_batches_take_the_same_files(fresh):
    folder = fresh()
    right_result()
    before = state(folder)
    fresh()
    right_result(T=7, B=11)
    assert state(folder) == before


def test_a_process_whose_files_are_replaced_keeps_nothing_under_the_name_of_the_new_ones(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(Path(gatework.__file__).parent, source / "gatework", ignore=shutil.ignore_patterns("__pycache__"))
    upgrade = f"\nwith open({str(source / 'gatework/backends/cpu/emit.py')!r}, 'a') as file: file.write('# newer')\n"
    first_import = CHILD.index("x, h = ")
    counts = []
    for child in (CHILD[:first_import] + upgrade + CHILD[first_import:], CHILD, CHILD):
        done = subprocess.run([sys.executable, "-W", "error", "-c", child], text=True, capture_output=True, check=True,
                              env=os.environ | {"PYTHONPATH": str(source), jit.SETTING: str(tmp_path / "cache")})
        counts.append(int(done.stdout.split()[0]))
    assert counts[0] == counts[1] > 0  # the newer files write the same, but nobody can know that
    assert counts[2] == 0


def aged(path: Path, days: float) -> float:
    """Make a file so old; returns its time."""
    then = time.time() - days * 86400.0
    os.utime(path, (then, then))
    return then


def test_files_of_no_use_for_ninety_days_go_when_something_else_is_compiled(fresh, monkeypatch):
    monkeypatch.setattr(jit, "_forget_unused", cache(jit._forget_unused.__wrapped__))
    folder = fresh()
    folder.mkdir()
    ages = {"old.o": 91, ".part-old": 91, "younger.o": 89, ".part-younger": 89, "somebody else's": 1000}
    for name, days in ages.items():
        (folder / name).write_bytes(b"something")
        aged(folder / name, days)
    right_result()
    assert {p.name for p in folder.iterdir()} & set(ages) == {"younger.o", ".part-younger", "somebody else's"}


def test_loading_a_file_keeps_it(fresh, monkeypatch):
    folder = fresh()
    right_result()
    for path in folder.iterdir():
        aged(path, 80)
    fresh()
    right_result()
    assert all(path.stat().st_mtime > time.time() - 3600 for path in folder.iterdir())
