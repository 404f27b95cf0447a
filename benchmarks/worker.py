"""A contestant in a process of its own: thread pools of several libraries in one process would fight for the cores.

`python benchmarks/worker.py CASE NAME` writes {} when it is ready, then reads one JSON object a line and answers with
one:

    {"build": [T, B, I, H], "file": F, "threads": n}   make the contestant, write its results to the .npz file F
        -> {"seconds": of the first call, "once": of a repetition when it is warm}
        or {"not_measured": why}
    {"run": n}                                         repeat n times
        -> {"seconds": [of each]}

All have the same environment: threads, cores (inherited), allocator, and nothing else in the process.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
import warnings

import numpy as np
import torch
from contestants import make

BRIEF = 0.05  # seconds; what is shorter is run once before it is timed, as the caches hold what others have worked on
WARM_UP = 0.1  # seconds


def build(case: str, name: str, sizes: tuple, file: str, threads: int):
    torch.set_num_threads(threads)
    contestant = make(case, name, sizes)
    begin = time.perf_counter()
    results = contestant.results()
    first = time.perf_counter() - begin
    np.savez(file, *results)
    del results
    warm, begin = [], time.perf_counter()
    while len(warm) < 2 or time.perf_counter() - begin < WARM_UP and len(warm) < 20:
        warm += contestant.run(1)
    return contestant, {"seconds": first, "once": min(warm)}


def run(contestant, once: float, repetitions: int) -> list[float]:
    if once < BRIEF:
        contestant.run(1)
    return contestant.run(repetitions)


def main() -> None:
    case, name = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")  # what libraries print goes to stderr and cannot get between the answers
    os.dup2(2, 1)
    warnings.simplefilter("ignore")  # of libraries, about each other
    contestant, built = None, {}
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "build" in request:
            contestant = None  # the memory of the size before
            try:
                contestant, built = build(case, name, tuple(request["build"]), request["file"], request["threads"])
                answer = built
            except Exception as error:  # told in the table and in the JSON file; of gatework it ends the run
                traceback.print_exc()
                lines = str(error).strip().splitlines() or [""]
                kind = "" if type(error).__name__ == "NotMeasured" else f"{type(error).__name__}: "
                answer = {"not_measured": kind + lines[0]}
        else:
            answer = {"seconds": run(contestant, built["once"], request["run"])}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
