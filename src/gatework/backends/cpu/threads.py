"""Runs a kernel on several threads: each owns some rows for the whole sequence, so nobody waits inside.

Where an OpenMP runtime is loaded (torch brings one), its team runs the parts: the threads that torch's products have
just left are still awake, and a second pool would fight them for the cores. Else, and in a forked child, where such a
team is dead, a pool of Python threads does; they sleep between calls.
"""

from __future__ import annotations

import ctypes
import os
import sys
from array import array
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import chain

from . import jit
from .ir import Function
from .target import Target, target

# What a kernel is called with: its arguments; rows; scratch of its own and of all; its number in a team that shares the
# work on the same rows, the size of that team (1: nobody shares), and the point where it meets.
SIGNATURE = ["ptr %arguments", "i64 %first", "i64 %rows", "ptr %tile", "ptr %shared", "i64 %me", "i64 %all",
             "ptr %point"]
KINDS = [ctypes.c_void_p if a.startswith("ptr") else ctypes.c_int64 for a in SIGNATURE]

# How often a thread looks for what it waits for without making room for others: for some ten microseconds.
LOOKS_AT_ONCE = 300
FOREVER = (1 << 63) - 1
_APART = 128  # bytes from the word of one member to the next one's: processors fetch lines of 64 in pairs


def waiting(machine: Target) -> str:
    """The LLVM IR of `look` and `meet`.

    look(word, known, looks) returns what a word holds: once that is no longer what is known, or after so many looks.
    meet(point, me, all) returns when all members of a team have come. The point: for each member how many times it has
    come, on cache lines of its own, which all others look at: one counter for all would go from core to core twice as
    often. Nobody can come twice before everybody has come once.
    """
    # Another thread may have the other half of this core.
    declared = f"declare void @{machine.pause}()" if machine.pause else ""
    pause = f"call void @{machine.pause}()" if machine.pause else ""
    return f"""declare i32 @sched_yield()
{declared}

define internal i64 @look(ptr %word, i64 %known, i64 %looks) nounwind noinline {{
entry:
  br label %again
again:
  %turn = phi i64 [0, %entry], [%next, %wait], [%next, %yield]
  %seen = load atomic i64, ptr %word acquire, align 8
  %other = icmp ne i64 %seen, %known
  %next = add i64 %turn, 1
  %tired = icmp sge i64 %next, %looks
  %ends = or i1 %other, %tired
  br i1 %ends, label %done, label %wait
wait:
  {pause}
  %late = icmp sgt i64 %next, {LOOKS_AT_ONCE}
  br i1 %late, label %yield, label %again
yield:
  %ignored = call i32 @sched_yield()
  br label %again
done:
  ret i64 %seen
}}

define internal void @meet(ptr %point, i64 %me, i64 %all) nounwind noinline {{
entry:
  %first = getelementptr i8, ptr %point, i64 {_APART // 2}
  %along = mul i64 %me, {_APART}
  %mine = getelementptr i8, ptr %first, i64 %along
  %before = load atomic i64, ptr %mine monotonic, align 8
  %now = add i64 %before, 1
  store atomic i64 %now, ptr %mine release, align 8
  br label %each
each:
  %k = phi i64 [0, %entry], [%next, %each]
  %away = mul i64 %k, {_APART}
  %other = getelementptr i8, ptr %first, i64 %away
  %seen = call i64 @look(ptr %other, i64 %before, i64 {FOREVER})
  %next = add i64 %k, 1
  %more = icmp slt i64 %next, %all
  br i1 %more, label %each, label %done
done:
  ret void
}}"""


def share_of(f: Function, total: str, unit: int = 1) -> tuple[str, str]:
    """Write what this member of a team has of so many, in whole units: first, end."""
    units = total if unit == 1 else f.integer("sdiv", f.integer("add", total, unit - 1), unit)
    first, until = (f.integer("sdiv", f.integer("mul", k, units), "%all") for k in ("%me", f.integer("add", "%me", 1)))
    if unit == 1:
        return first, until
    return f.integer("mul", first, unit), f.smaller(f.integer("mul", until, unit), total)


def meet(f: Function) -> None:
    """Write that the members of a team wait for each other, if there are several."""
    with f.when(f.value("icmp sgt i64 %all, 1")):
        f.line("call void @meet(ptr %point, i64 %me, i64 %all)")


# Words of a task: kernel, arguments, omp_get_thread_num, omp_get_num_threads, parts, meeting point, then per part:
# first row, rows, scratch of its own, scratch of all. With a meeting point every member takes the rows of part 0 and
# the scratch of the part of its number; else each takes every n-th part.
_MEMBER = """
define void @member(ptr %task) nounwind {
entry:
  %kernel = load ptr, ptr %task
  %p1 = getelementptr i64, ptr %task, i64 1
  %arguments = load ptr, ptr %p1
  %p2 = getelementptr i64, ptr %task, i64 2
  %number = load ptr, ptr %p2
  %p3 = getelementptr i64, ptr %task, i64 3
  %size = load ptr, ptr %p3
  %p4 = getelementptr i64, ptr %task, i64 4
  %parts = load i64, ptr %p4
  %p5 = getelementptr i64, ptr %task, i64 5
  %point = load ptr, ptr %p5
  %me32 = call i32 %number()
  %all32 = call i32 %size()
  %me = sext i32 %me32 to i64
  %all = sext i32 %all32 to i64
  %apart = icmp eq ptr %point, null
  %shares = select i1 %apart, i64 1, i64 %all
  %share = select i1 %apart, i64 0, i64 %me
  br label %head
head:
  %k = phi i64 [%me, %entry], [%next, %body]
  %more = icmp slt i64 %k, %parts
  br i1 %more, label %body, label %done
body:
  %four = mul i64 %k, 4
  %at = add i64 %four, 6
  %a = getelementptr i64, ptr %task, i64 %at
  %row = load i64, ptr %a
  %b = getelementptr i64, ptr %a, i64 1
  %rows = load i64, ptr %b
  %c = getelementptr i64, ptr %a, i64 2
  %tile = load ptr, ptr %c
  %d = getelementptr i64, ptr %a, i64 3
  %shared = load ptr, ptr %d
  call void %kernel(ptr %arguments, i64 %row, i64 %rows, ptr %tile, ptr %shared, i64 %share, i64 %shares, ptr %point)
  %jump = select i1 %apart, i64 %all, i64 %parts
  %next = add i64 %k, %jump
  br label %head
done:
  ret void
}
"""
def address_of(words: array) -> int:
    """Where an array of words lies; machine code takes several words as such an address."""
    return words.buffer_info()[0]


def point_of(members: int) -> list[int]:
    """Where so many meet, before they have."""
    return [0] * (members * _APART // 8)


_pool: ThreadPoolExecutor | None = None
_pool_size = 0
_forked = False


def _after_fork() -> None:
    global _pool, _pool_size, _forked
    _pool, _pool_size, _forked = None, 0, True


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_after_fork)


@dataclass(frozen=True)
class Team:
    """Of the loaded OpenMP runtime: what starts a team, at which address, our function for its members, what a member
    asks."""

    library: ctypes.CDLL
    code: jit.Code
    start: Callable[[int, int, int, int], None]
    starter: int
    member: int
    number: int
    size: int

    def task(self, kernel, arguments, parts: Iterable[Sequence], point) -> list:
        """The words of a task."""
        parts = list(parts)
        return [kernel.address, arguments, self.number, self.size, len(parts), point, *chain.from_iterable(parts)]


class _Library(ctypes.Structure):
    _fields_ = (("address", ctypes.c_void_p), ("path", ctypes.c_char_p))  # what `dl_phdr_info` begins with


def _loaded_libraries() -> list[str]:
    """The paths of the shared libraries of this process, where the system tells (the list in /proc takes long)."""
    found: list[str] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_Library), ctypes.c_size_t, ctypes.c_void_p)
    def see(library, size: int, data) -> int:
        found.append(os.fsdecode(library.contents.path))
        return 0

    if sys.platform == "linux":
        ctypes.CDLL(None).dl_iterate_phdr(see, None)
    return found


@cache
def _loaded_team() -> Team | None:
    for path in sorted(path for path in _loaded_libraries() if "omp" in path.rpartition("/")[2]):
        try:
            library = ctypes.CDLL(path)
            start, number, size = library.GOMP_parallel, library.omp_get_thread_num, library.omp_get_num_threads
        except (OSError, AttributeError):  # not an OpenMP runtime, or one without the entry of GNU's
            continue
        start.argtypes, start.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
        code = jit.load("member", lambda: _MEMBER, target())
        return Team(library, code, start, _address(start), code.address("member"), _address(number), _address(size))
    return None


def _address(function) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value


def team() -> Team | None:
    """The threads of one call that can be trusted to run at the same time, so that they may wait for each other."""
    return None if _forked else _loaded_team()


def launch(kernel, words: list[int], parts: list[tuple[int, int, int, int]], together: bool = False) -> None:
    """`run` with arguments that are yet to be written into memory."""
    arguments = array("q", words)
    run(kernel, address_of(arguments), parts, together)


def run(kernel, arguments: int, parts: list[tuple[int, int, int, int]], together: bool = False) -> None:
    """Call a kernel for every part (first row, rows, scratch of its own, scratch of all), each on a thread of its own.

    `together`: the parts have the same rows and share the units; needs a `team`.
    """
    global _pool, _pool_size
    if len(parts) == 1:
        kernel(arguments, *parts[0], 0, 1, 0)
        return
    members = team()
    if members is not None:
        point = array("q", point_of(len(parts)) if together else ())
        task = array("q", members.task(kernel, arguments, parts, address_of(point) if together else 0))
        members.start(members.member, address_of(task), len(parts), 0)
        return
    if _pool_size < len(parts) - 1:
        # An older, smaller pool ends by itself once its last call is done.
        _pool = ThreadPoolExecutor(len(parts) - 1, thread_name_prefix="gatework")
        _pool_size = len(parts) - 1
    pending = [_pool.submit(kernel, arguments, *part, 0, 1, 0) for part in parts[:-1]]
    kernel(arguments, *parts[-1], 0, 1, 0)
    for p in pending:
        p.result()
