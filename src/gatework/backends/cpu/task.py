"""Runs prepared calls of a few microseconds on several threads, without torch and its OpenMP.

A helper is a thread that waits awake for a while after each call, so that the next one has it at once, and then sleeps.
Nobody waits for a helper that sleeps or is at another call: then the caller does all the work, with the same bits.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import time
from collections.abc import Sequence
from functools import cache
from threading import Event, Lock, Thread

from . import jit
from .ir import Function, Module
from .target import target
from .threads import FOREVER, LOOKS_AT_ONCE, SIGNATURE, point_of, waiting

# Words of a task: rows, layers, helpers, where the addresses of their boxes lie, where they meet, whether they were
# missed, scratch of the first member and bytes from there to that of the next; then per layer: kernel, arguments,
# scratch of all.
_HEAD, _LAYER = 8, 3
_MISSED = 5
# A box: the state of a helper, and on a cache line of its own the task that it is given.
ASLEEP, AWAKE, CLAIMED, GIVEN = range(4)
_LINE = 64
# How often a helper looks into its box before it sleeps: most of a millisecond goes into making room for others.
_LOOKS = LOOKS_AT_ONCE + 2000
# A call that begins within so many nanoseconds after another that missed its helpers wakes them.
_SOON = 1_000_000
_WAIT = 300_000  # nanoseconds for a thread to wake up; it takes some fifty thousand

_HELP = f"""define void @help(ptr %box, i64 %me) nounwind {{
entry:
  %woken = cmpxchg ptr %box, i64 {ASLEEP}, i64 {AWAKE} acq_rel monotonic
  %given = getelementptr i8, ptr %box, i64 {_LINE}
  br label %idle
idle:
  %state = call i64 @look(ptr %box, i64 {AWAKE}, i64 {_LOOKS})
  switch i64 %state, label %idle [i64 {GIVEN}, label %work i64 {AWAKE}, label %sleep]
work:
  %task = load ptr, ptr %given
  %h = getelementptr i64, ptr %task, i64 2
  %helpers = load i64, ptr %h
  %all = add i64 %helpers, 1
  call void @member(ptr %task, i64 %me, i64 %all)
  store atomic i64 {AWAKE}, ptr %box release, align 8
  br label %idle
sleep:
  %pair = cmpxchg ptr %box, i64 {AWAKE}, i64 {ASLEEP} acq_rel monotonic
  %asleep = extractvalue {{ i64, i1 }} %pair, 1
  br i1 %asleep, label %done, label %idle
done:
  ret void
}}"""


def text() -> str:
    """The LLVM IR of `stack`, which runs a task, and of `help`, in which a helper waits for some."""
    module = Module(target(), 4)
    module.functions += [waiting(module.target), _HELP]
    _write_member(module)
    _write_stack(module)
    return module.text()


def _write_member(module: Module) -> None:
    """The layers of a task, each over all steps before the next one: this member's share of the units.

    A loop ends with a meeting, so the next layer finds all that it reads.
    """
    f = Function(module, "member", ["ptr %task", "i64 %me", "i64 %all"])
    rows, layers = f.load_word("%task", 0), f.load_word("%task", 1)
    point = f.load_word("%task", 4, "ptr")
    tile = f.at(f.load_word("%task", 6, "ptr"), f.integer("mul", "%me", f.load_word("%task", 7)))
    with f.loop("0", layers) as k:
        layer = f.at("%task", f.integer("add", f.integer("mul", k, 8 * _LAYER), 8 * _HEAD))
        kernel, arguments, shared = (f.load_word(layer, n, "ptr") for n in range(3))
        given = (arguments, "0", rows, tile, shared, "%me", "%all", point)
        f.line(f"call void {kernel}({', '.join(f'{a.split()[0]} {v}' for a, v in zip(SIGNATURE, given))})")
    f.finish()


def _write_stack(module: Module) -> None:
    """A task: with all its helpers if they can be had at once, else without."""
    f = Function(module, "stack", ["ptr %task"], internal=False)
    count, boxes = f.load_word("%task", 2), f.load_word("%task", 3, "ptr")
    claimed = f.variable("i64", "0")

    def box(k: str) -> str:
        return f.load_word(f.at(boxes, f.integer("mul", k, 8)), 0, "ptr")

    with f.loop("0", count) as k:
        so_far = f.value(f"load i64, ptr {claimed}")
        with f.when(f.value(f"icmp eq i64 {so_far}, {k}")):
            pair = f.value(f"cmpxchg ptr {box(k)}, i64 {AWAKE}, i64 {CLAIMED} acq_rel monotonic")
            got = f.value(f"zext i1 {f.value(f'extractvalue {{ i64, i1 }} {pair}, 1')} to i64")
            f.line(f"store i64 {f.integer('add', so_far, got)}, ptr {claimed}")
    had = f.value(f"load i64, ptr {claimed}")
    whole = f.value(f"icmp eq i64 {had}, {count}")
    state = f.value(f"select i1 {whole}, i64 {GIVEN}, i64 {AWAKE}")
    with f.loop("0", had) as k:
        here = box(k)
        f.line(f"store ptr %task, ptr {f.at(here, _LINE)}")
        f.line(f"store atomic i64 {state}, ptr {here} release, align 8")
    missed = f.value(f"zext i1 {f.value(f'xor i1 {whole}, true')} to i64")
    f.line(f"store i64 {missed}, ptr {f.at('%task', 8 * _MISSED)}")
    members = f.value(f"select i1 {whole}, i64 {f.integer('add', count, 1)}, i64 1")
    f.line(f"call void @member(ptr %task, i64 0, i64 {members})")
    with f.when(whole):  # a helper that is still on its way out reads what may be gone after this call
        with f.loop("0", count) as k:
            f.value(f"call i64 @look(ptr {box(k)}, i64 {GIVEN}, i64 {FOREVER})")
    f.finish()


@cache
def _functions() -> tuple:
    code = jit.load("task", text, target())
    return code.function("stack", ctypes.c_void_p), code.function("help", ctypes.c_void_p, ctypes.c_int64)


class Helper:
    """One thread; it starts when it is first wanted."""

    def __init__(self, number: int):
        self._number, self._help = number, _functions()[1]
        self._memory = ctypes.create_string_buffer(4 * _LINE)
        self.box = ctypes.addressof(self._memory) + -ctypes.addressof(self._memory) % _LINE
        self._state = ctypes.c_int64.from_address(self.box)
        self.begin()

    def begin(self) -> None:
        """As nobody has wanted it yet: also in a forked process, which has the memory of a thread that it has not."""
        self._state.value = ASLEEP
        self._wanted, self._thread, self._missed = Event(), None, 0

    def missed(self, begun: int, ended: int) -> None:
        """A call between these times (nanoseconds) did without this helper; the next one soon shall have it."""
        soon = begun - self._missed < _SOON
        self._missed = ended
        if soon:
            self.call()

    @property
    def sleeps(self) -> bool:
        return self._state.value == ASLEEP

    def call(self) -> None:
        """Wake it, if it sleeps."""
        if not self.sleeps:
            return
        with _lock:
            if self._thread is None and not _ending.is_set():
                self._thread = Thread(target=self._serve, name=f"gatework helper {self._number}", daemon=True)
                self._thread.start()
        self._wanted.set()

    def _serve(self) -> None:
        while not _ending.is_set():
            self._help(self.box, self._number)
            self._wanted.wait()
            self._wanted.clear()

    def end(self) -> None:
        if self._thread is not None:
            self._wanted.set()
            self._thread.join(1)  # no longer: another thread may go on to give it work


_helpers: list[Helper] = []
_lock, _ending = Lock(), Event()


def helpers(count: int) -> Sequence[Helper]:
    """The first so many helpers of this process; all calls share them."""
    with _lock:
        while len(_helpers) < count:
            _helpers.append(Helper(len(_helpers) + 1))
        return _helpers[:count]


def _after_fork() -> None:
    global _lock
    _lock = Lock()  # another thread may have held it
    for helper in _helpers:
        helper.begin()


@atexit.register
def _end() -> None:
    """No thread is to run machine code while the interpreter takes its memory away."""
    _ending.set()
    for helper in _helpers:
        helper.end()


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_after_fork)


class Task:
    """A stack of layers over arrays whose addresses are settled; `run()` makes it.

    layers: for each its kernel, the address of its arguments, and scratch of all. tile: scratch of the first of all
    threads, `tile_bytes` apart from that of the next; more than one thread is for loops that can share their units.
    A call that is `long` waits a moment for helpers that sleep: awake when it has ended, they would be asleep again
    before the next one has.
    """

    def __init__(self, rows: int, layers: Sequence[tuple[int, int, int]], tile: int, tile_bytes: int,
                 threads: int, long: bool):
        self._helpers, self._long = helpers(threads - 1), long
        self._boxes = (ctypes.c_int64 * len(self._helpers))(*(h.box for h in self._helpers))
        point = point_of(threads)
        self._point = (ctypes.c_int64 * len(point))(*point)
        words = [rows, len(layers), len(self._helpers), ctypes.addressof(self._boxes), ctypes.addressof(self._point), 0,
                 tile, tile_bytes]
        words += (word for layer in layers for word in layer)
        self._words = (ctypes.c_int64 * len(words))(*words)
        self._stack, self._address = _functions()[0], ctypes.addressof(self._words)

    def run(self) -> None:
        begun = time.perf_counter_ns()
        if self._long:
            for helper in self._helpers:
                helper.call()
            while any(helper.sleeps for helper in self._helpers) and time.perf_counter_ns() - begun < _WAIT:
                time.sleep(0)  # so that they have Python's lock
        self._stack(self._address)
        if self._words[_MISSED]:
            ended = time.perf_counter_ns()
            for helper in self._helpers:
                helper.missed(begun, ended)
