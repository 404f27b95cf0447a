"""The machine that kernels are made for: its vectors, its registers, and what LLVM calls it."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from dataclasses import dataclass
from functools import cache

import llvmlite.binding as llvm

SETTING = "GATEWORK_VECTOR"
_PAUSE = "llvm.x86.sse2.pause"


@dataclass(frozen=True)
class Target:
    """`bits` wide vectors in `registers` registers; `cpu` and `features` in LLVM's words."""

    name: str
    bits: int
    registers: int
    cpu: str
    features: str
    flag_flushes: bool = False   # the thread has a flag that turns denormal results into 0
    fast_division: bool = False  # a reciprocal estimate of 14 bits, one Newton step from float32
    wider_than_blas: bool = False  # MKL, torch's BLAS, multiplies with vectors that are half as wide
    pairs: bool = False          # vectors multiply pairs of bfloat16 (AVX512-BF16)
    pause: str = ""              # LLVM's intrinsic for a thread that looks for what another one makes
    tiles: bool = False          # a matrix unit for bfloat16, whose tiles are 16 rows of 64 bytes (AMX)

    def __hash__(self) -> int:  # of all features, for every call, would take long
        return hash(self.name)

    @property
    def multiplies_bfloat16(self) -> bool:
        return self.pairs or self.tiles

    def lanes(self, bytes_per_value: int) -> int:
        return self.bits // (8 * bytes_per_value)


def _known(cpu: str, features: dict[str, bool]) -> dict[str, Target]:
    """The targets that this machine can run, widest first."""
    flat = ",".join(("+" if on else "-") + name for name, on in sorted(features.items()))
    found = {}
    if platform.machine().lower() in ("x86_64", "amd64"):
        if features.get("avx512f") and features.get("avx512vl") and features.get("avx512dq"):
            pairs = bool(features.get("avx512bf16") and features.get("avx512bw"))
            tiles = pairs and all(map(features.get, ("amx-tile", "amx-bf16"))) and _may_use_tiles()
            found["avx512"] = Target("avx512", 512, 32, cpu, flat + ",-prefer-256-bit", True, fast_division=True,
                                     wider_than_blas=_is_of_amd(cpu), pairs=pairs, tiles=tiles, pause=_PAUSE)
        if features.get("avx2") and features.get("fma"):
            found["avx2"] = Target("avx2", 256, 16, "haswell", "", flag_flushes=True, pause=_PAUSE)
        found["sse2"] = Target("sse2", 128, 16, "x86-64", "", flag_flushes=True, pause=_PAUSE)
    elif platform.machine().lower() in ("aarch64", "arm64"):
        found["neon"] = Target("neon", 128, 32, cpu, flat)
    else:
        found["generic"] = Target("generic", 128, 16, cpu, flat)
    return found


def _is_of_amd(cpu: str) -> bool:
    """Whether MKL runs its code for AVX2 here, though there is AVX-512."""
    return cpu.startswith("znver")


def _may_use_tiles() -> bool:
    """Ask Linux for the tile registers, which it gives to processes that want them, for all their threads."""
    if sys.platform != "linux":
        return False
    arch_prctl, request, tile_data = 158, 0x1023, 18
    return ctypes.CDLL(None).syscall(arch_prctl, request, tile_data) == 0


@cache
def _host() -> dict[str, Target]:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return _known(llvm.get_host_cpu_name(), dict(llvm.get_host_cpu_features()))


def target() -> Target:
    """The widest target of this machine, or the one that the environment variable GATEWORK_VECTOR names.

    Raises ValueError if that is not one this machine can run.
    """
    host = _host()
    wanted = os.environ.get(SETTING)
    if not wanted:
        return next(iter(host.values()))
    if wanted not in host:
        raise ValueError(f"{SETTING}={wanted}: this machine can run {', '.join(host)}; set one of them or unset it")
    return host[wanted]
