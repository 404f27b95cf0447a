"""From IR text to callable machine code, kept in memory and as object files in the user's cache folder.

What is kept is known by what the text was to be written for, and by the code that writes it: to write it just to look
it up would take as long as all the rest.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib import resources
from pathlib import Path

import llvmlite
import llvmlite.binding as llvm

from .target import Target

SETTING = "GATEWORK_CACHE"
_MAGIC = b"gatework object 1\n"
# The kernels are written as vectors and unrolled where it pays. Of LLVM's passes these three do what is left to do, in
# a fifth of the time of all: variables into registers, cheaper arithmetic, fewer jumps.
PASSES = ("sroa", "instruction_combine", "simplify_cfg")
# Days after which a file goes that nobody has loaded: another version of the code leaves all of them behind.
UNUSED_DAYS = 90
_DAY = 86400.0
_lock = threading.Lock()
_loaded: dict[str, Code] = {}


class Code:
    """Loaded machine code, whose functions have names that end in its key: all that is loaded lies side by side."""

    def __init__(self, engine: llvm.ExecutionEngine, key: str):
        self._engine, self._key = engine, key

    def address(self, name: str) -> int:
        return self._engine.get_function_address(f"{name}_{self._key}")

    def function(self, name: str, *argument_types):
        """A callable, which knows its `address`."""
        made = ctypes.CFUNCTYPE(None, *argument_types)(self.address(name))
        made.address = self.address(name)
        return made


def cache_folder() -> Path | None:
    """Where object files are kept: GATEWORK_CACHE, or `gatework` in the user's cache folder; None if set to "off"."""
    wanted = os.environ.get(SETTING)
    if wanted == "off":
        return None
    if wanted:
        return Path(wanted)
    try:
        home = Path.home()
    except RuntimeError:  # a user without a home keeps nothing
        return None
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "gatework"
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "gatework"


def _machine(target: Target) -> llvm.TargetMachine:
    return llvm.Target.from_default_triple().create_target_machine(cpu=target.cpu, features=target.features, opt=2,
                                                                   jit=True)


@cache
def _engine(target: Target) -> tuple[llvm.TargetMachine, llvm.ExecutionEngine]:
    """What compiles for a target, and what holds all that is loaded for it: to make either takes as long as loading
    some ten kernels."""
    machine = _machine(target)
    nothing = llvm.parse_assembly("")  # an engine wants a module, for which it would start all of LLVM's passes
    engine = llvm.create_mcjit_compiler(nothing, machine)
    engine.remove_module(nothing)
    return machine, engine


def _hash_of_writers() -> str:
    """Of the code that writes IR, so that nobody takes what another version of it has compiled."""
    found = hashlib.sha256()
    for package in ("compiler", "backends", "backends.cpu"):
        files = resources.files(f"gatework.{package}").iterdir()
        for file in sorted((f for f in files if f.name.endswith((".py", ".pyc"))), key=lambda f: f.name):
            found.update(file.read_bytes())
    return found.hexdigest()


# Taken while the code is imported: later the files may be those of another version, which this process does not run.
WRITERS = _hash_of_writers()


def load(what: str, write: Callable[[], str], target: Target) -> Code:
    """Compile for a target what `write` says in IR, or take what an earlier call or process has compiled.

    what: all that the text depends on beside the target and the code that writes it.
    """
    key = hashlib.sha256("\n".join([what, WRITERS, repr(target), llvmlite.__version__,
                                    str(llvm.llvm_version_info)]).encode()).hexdigest()
    with _lock:
        if key not in _loaded:
            machine, engine = _engine(target)
            code = _read(key)
            if code is None:
                code = machine.emit_object(_named(optimise(write(), machine), key))
                _write(key, code)
            engine.add_object_file(llvm.ObjectFileRef.from_data(code))
            engine.finalize_object()
            _loaded[key] = Code(engine, key)
        return _loaded[key]


def _named(module: llvm.ModuleRef, key: str) -> llvm.ModuleRef:
    """The same with names that no other module has: an engine knows also the functions that nobody else may call."""
    for function in module.functions:
        if not function.is_declaration:
            function.name = f"{function.name}_{key}"
    return module


def optimise(text: str, machine: llvm.TargetMachine) -> llvm.ModuleRef:
    module = llvm.parse_assembly(text)
    module.verify()
    passes = llvm.create_new_module_pass_manager()
    for name in PASSES:
        getattr(passes, f"add_{name}_pass")()
    passes.run(module, llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options()))
    return module


def assembly(text: str, target: Target) -> str:
    """The machine's own words for what IR text becomes; to look at."""
    machine = _machine(target)
    return machine.emit_assembly(optimise(text, machine))


def _read(key: str) -> bytes | None:
    folder = cache_folder()
    path = folder / f"{key}.o" if folder else None
    if path is None or not path.exists():
        return None
    try:
        content = path.read_bytes()
        if path.stat().st_mtime < time.time() - _DAY:
            with suppress(OSError):  # a folder that cannot be written
                os.utime(path)  # the time says when a file was last of use
    except OSError:
        return None
    head, code = content[:len(_MAGIC) + 32], content[len(_MAGIC) + 32:]
    if head != _MAGIC + hashlib.sha256(code).digest():
        warnings.warn(f"{path} is damaged; the kernel is compiled again and the file replaced. If this comes back, "
                      f"empty the folder or set {SETTING} to another one", stacklevel=2)
        return None
    return code


def _write(key: str, code: bytes) -> None:
    """Keep an object file; a reader sees the whole file or none. A folder that cannot be written is no error."""
    folder = cache_folder()
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=".part-")
    except OSError:
        return
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(_MAGIC + hashlib.sha256(code).digest() + code)
        os.replace(temporary, folder / f"{key}.o")
        _forget_unused(folder)
    except OSError:
        Path(temporary).unlink(missing_ok=True)


@cache
def _forget_unused(folder: Path) -> None:
    """Once in a process that compiles: remove what was of no use for so long, and what killed processes left."""
    with os.scandir(folder) as found:
        for entry in found:
            if entry.name.endswith(".o") or entry.name.startswith(".part-"):
                with suppress(OSError):  # somebody else removes it as well
                    if entry.stat().st_mtime < time.time() - UNUSED_DAYS * _DAY:
                        os.unlink(entry.path)
