"""The machine that is measured: pinning it to some cores, and what to write down about it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

THREADS = 2  # of everybody who is measured
FEATURES = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "asimd", "sve")
PACKAGES = ("gatework", "torch", "numpy", "llvmlite", "jax", "onnxruntime", "openvino")


def pin(count: int) -> list[int] | None:
    """Keep this process and its children on `count` cores; None where the system cannot do that."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    cores = sorted(os.sched_getaffinity(0))[:count]
    os.sched_setaffinity(0, cores)
    return cores


def describe() -> dict:
    cpu, flags = platform.processor() or platform.machine(), set()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as info:
            for key, _, value in (line.partition(":") for line in info):
                if key.strip() == "model name":
                    cpu = value.strip()
                elif key.strip() in ("flags", "Features"):
                    flags.update(value.split())
    return {"cpu": cpu, "cores": os.cpu_count(), "features": [f for f in FEATURES if f in flags],
            "load_before": round(os.getloadavg()[0], 2), "system": f"{platform.system()} {platform.machine()}",
            "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES}}


def second_cache() -> int:
    """Bytes of the second cache of a core; 1 MB where the system does not tell (Linux does)."""
    file = Path("/sys/devices/system/cpu/cpu0/cache/index2/size")
    return int(file.read_text().strip().removesuffix("K")) * 1024 if file.exists() else 2 ** 20


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
