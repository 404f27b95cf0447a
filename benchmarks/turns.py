"""Contestants of one case take turns, each in a process of its own; their results are compared before they are timed.

Between two turns the driver waits until the threads of the process before sleep: those of OpenMP and of ONNX Runtime
spin for a while after their work, those of JAX give its memory back, and would take the cores from whoever is next.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from groups import OURS, RUNTIME
from machine import THREADS

HERE = Path(__file__).parent
# What users have, whatever the shell says that the benchmark is started from: threads spin for a while, then sleep.
ENVIRONMENT = {"OMP_NUM_THREADS": str(THREADS), "JAX_PLATFORMS": "cpu"}
UNSET = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_PROC_BIND", "MKL_NUM_THREADS")

# Relative to the norm of each array. float32 sums of up to 100 000 terms, added in another order, differ by some 1e-6
# of it; a wrong term in an equation, or one that is left out, by 1e-2 or more.
TOLERANCE = 2e-5
# bfloat16 rounds each operand by up to 4e-3, and everyone chooses what to round: results of float32 and those of
# torch.nn under autocast differ by some 5e-3.
TOLERANCE_BFLOAT16 = 2e-2
# Contestants that do other work than gatework in the same case, to be set beside it: there is nothing to compare.
OTHER_WORK = {"gatework LSTM", "gatework, none", "gatework, dense, half as long", "gatework, dense, half the rows"}

BUILD_LIMIT = 300  # seconds for making a contestant, compiling included
LEAST_ROUNDS = 5
TURN = 0.02  # seconds
QUIET_LIMIT = 0.5  # seconds that a turn waits for the others to sleep


class WrongResults(Exception):
    """gatework differs from its peers, or cannot run: there is nothing to time."""


class Worker:
    """The process of one contestant; see worker.py. It is started when it is first asked, and anew if it has ended."""

    def __init__(self, case: str, name: str, folder: Path):
        self.case, self.name = case, name
        self.file = folder / f"{case}-{name.replace(' ', '-')}.npz"
        # Nothing that an earlier run has compiled counts as compiled.
        self.environment = {k: v for k, v in os.environ.items() if k not in UNSET} | ENVIRONMENT | {
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}
        self.process: subprocess.Popen | None = None
        self.ready = False

    def start(self) -> None:
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "worker.py"), self.case, self.name], text=True, env=self.environment,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def wait_until_ready(self) -> None:
        """Return when the process has imported what it needs, so that it does not disturb others later."""
        if not self.ready:
            self.ready = bool(self.process.stdout.readline())

    def ask(self, request: dict, limit: float | None = None) -> dict:
        """The answer; {"not_measured": why} if the process ends without one or takes longer than the limit."""
        self.start()
        self.wait_until_ready()
        with contextlib.suppress(BrokenPipeError):  # its process has ended, which the empty answer below tells
            print(json.dumps(request), file=self.process.stdin, flush=True)
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            if not selector.select(limit):
                self.end()
                return {"not_measured": f"not made within {limit:.0f} s"}
        line = self.process.stdout.readline()
        if not line:
            status = self.process.wait()
            self.end()
            return {"not_measured": f"its process ended with status {status}"}
        return json.loads(line)

    def build(self, sizes: tuple, threads: int = THREADS) -> dict:
        return self.ask({"build": sizes, "file": str(self.file), "threads": threads}, BUILD_LIMIT)

    def results(self) -> list[np.ndarray]:
        with np.load(self.file) as stored:
            found = [stored[f"arr_{k}"] for k in range(len(stored.files))]
        self.file.unlink()
        return found

    def run(self, repetitions: int) -> list[float]:
        answer = self.ask({"run": repetitions})
        if "seconds" not in answer:
            raise RuntimeError(f"{self.name}, {self.case}: {answer['not_measured']}, after it was checked")
        return answer["seconds"]

    def worked(self) -> tuple[int, bool]:
        """Nanoseconds that all threads of the process have run on a core so far, and whether one wants to (Linux).

        The first is brought up to date a hundred times a second or so for a thread that runs and runs.
        """
        if self.process is None:
            return 0, False
        total, runs = 0, False
        for task in Path(f"/proc/{self.process.pid}/task").glob("*"):
            try:
                total += int((task / "schedstat").read_text().split()[0])
                runs |= (task / "stat").read_text().rpartition(")")[2].split()[0] in "RD"
            except (FileNotFoundError, ProcessLookupError):  # a thread that has ended
                continue
        return total, runs

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            with contextlib.suppress(BrokenPipeError):  # a request that was never read
                self.process.stdin.close()
            self.process.stdout.close()
            self.process, self.ready = None, False


def wait_for_quiet(workers: list[Worker]) -> None:
    """Return when nobody works; where the system does not tell (Linux does), after as long as threads usually spin."""
    if not os.path.exists("/proc/self/schedstat"):
        time.sleep(QUIET_LIMIT / 2)
        return
    begin = time.monotonic()
    before = sum(w.worked()[0] for w in workers)
    while time.monotonic() - begin < QUIET_LIMIT:
        time.sleep(0.002)
        each = [w.worked() for w in workers]
        now = sum(total for total, _ in each)
        if now - before < 100_000 and not any(runs for _, runs in each):  # ns in 2 ms
            return
        before = now
    print("threads of a contestant did not come to rest between two turns", file=sys.stderr, flush=True)


def differs(case: str, found: list[np.ndarray], expected: list[np.ndarray]) -> str:
    """What is wrong, or nothing."""
    tolerance = TOLERANCE_BFLOAT16 if case.endswith("bfloat16") else TOLERANCE
    if [a.shape for a in found] != [b.shape for b in expected]:
        return f"the shapes are {[a.shape for a in found]}, not {[b.shape for b in expected]}"
    for k, (a, b) in enumerate(zip(found, expected)):
        what = "output" if k == 0 else "gradient of the input" if k == 1 else f"result {k} (a gradient of a parameter)"
        error = np.linalg.norm(a - b) / np.linalg.norm(b)
        if not error <= tolerance:  # nan is wrong, too
            return f"the {what} is {error:.1e} off where {tolerance:.0e} is allowed"
    return ""


def prepare(case: str, sizes: tuple, workers: list[Worker]) -> dict[str, dict]:
    """Make all contestants and compare their results with ours: by name what is known of each, or why it is not timed.

    Raises WrongResults if gatework cannot run or nobody agrees with it.
    """
    made, wrong, ours = {}, {}, None
    for worker in workers:
        wait_for_quiet(workers)
        made[worker.name] = worker.build(sizes)
        if "not_measured" in made[worker.name]:
            if worker.name == OURS:
                raise WrongResults(f"{OURS}, {case} {sizes}: {made[worker.name]['not_measured']}")
            continue
        found = worker.results()
        if worker.name == OURS:
            ours = found
        elif worker.name not in OTHER_WORK:
            wrong[worker.name] = differs(case, found, ours)
    strangers = [what for name, what in wrong.items() if name != RUNTIME]
    if strangers and all(strangers):
        raise WrongResults(f"{case} {sizes}: nobody agrees with {OURS}; not timing it. Beside it " + "; ".join(
            f"of {name} {what}" for name, what in wrong.items()))
    return made | {name: {"not_measured": f"wrong: {what}"} for name, what in wrong.items() if what}


def interleave(workers: dict[str, Worker], once: dict[str, float], seconds: float) -> dict[str, dict]:
    """Run the contestants in turns for about `seconds` each; the statistics of every one's repetitions."""
    turns = {name: max(1, round(TURN / s)) for name, s in once.items()}
    longest = max(once[name] * turns[name] for name in once)
    times: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(max(LEAST_ROUNDS, round(seconds / longest))):
        for name, worker in workers.items():
            wait_for_quiet(list(workers.values()))
            times[name] += worker.run(turns[name])
    return {name: summary(values) for name, values in times.items()}


def summary(seconds: list[float]) -> dict:
    low, median, high = statistics.quantiles(seconds, n=4)
    return {"median": median, "lower_quartile": low, "upper_quartile": high, "repetitions": len(seconds)}


def measure(case: str, names: list[str], sizes: list[tuple], seconds: float, folder: Path) -> dict:
    """{"T,B,I,H": {contestant: statistics, or {"not_measured": why}}}; the processes live as long as the case."""
    workers = [Worker(case, name, folder) for name in names]
    found = {}
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.wait_until_ready()
        for size in sizes:
            print(f"measuring {case} at {size}", file=sys.stderr, flush=True)
            made = prepare(case, size, workers)
            ready = {w.name: w for w in workers if "once" in made[w.name]}
            timed = interleave(ready, {name: made[name]["once"] for name in ready}, seconds)
            found[",".join(map(str, size))] = {
                name: timed[name] | {"first_call": one["seconds"]} if name in timed else one
                for name, one in made.items()}
    finally:
        for worker in workers:
            worker.end()
    return found
