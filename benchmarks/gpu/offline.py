"""What Triton's compiler makes of the kernels, on a machine without a GPU.

    python benchmarks/gpu/offline.py                          every cell of the catalogue, as JSON lines
    python benchmarks/gpu/offline.py lstm gru --units 128     some cells, for another size
    python benchmarks/gpu/offline.py --arch gfx942            for a GPU of AMD

For each loop, type and form: registers of a thread, bytes that are spilled, bytes of shared memory. It shows that the
code is valid for such a GPU, and nothing of its results and speed. Each cell has a process of its own, since a compiler
that fails an assertion ends it. Ends with 1 if anything was not compiled.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)

import torch  # noqa: E402
import triton  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from gatework import cells  # noqa: E402
from gatework.backends import gpu  # noqa: E402
from gatework.backends.gpu import device  # noqa: E402
from gatework.backends.gpu.kernel import ALONE, SERVED, Compiled, Shared  # noqa: E402
from gatework.backends.gpu.source import LEAST  # noqa: E402
from gatework.backends.gpu.steps import Steps  # noqa: E402
from gatework.compiler import split, trace  # noqa: E402

POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
FORMS = ["resident", "shared", "steps"]
PTXAS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"


def kernels(loop: Compiled | Steps, dtype: torch.dtype, from_end: bool, rows: int, arch: str
            ) -> list[tuple[object, list[str], dict, dict]]:
    """The functions of a loop, with the types and the constants that they are given, and options of the compiler."""
    constants = {"FROM_END": from_end, "PRECISION": "ieee", "MEMBERS": getattr(loop, "members", 1), "ROWS": LEAST}
    if isinstance(loop, Steps):
        constants |= {**loop.grid(rows)[1], "ALIGNED": LEAST, "OVERLAP": not of_amd(arch) and int(arch) >= 90}
        options = {"num_warps": constants.pop("num_warps")}
        stages = [getattr(loop.module, f"told_{k}") for k in range(len(loop.loop.passes))]
        return [(stage, ["*i64", "i32"], constants, options) for stage in stages]
    given, buffers, options = POINTERS[dtype], loop.loop.buffers, {"num_warps": loop.warps}
    strides = ["i32"] * len(loop.sequences)
    types = ["*i64", "*i64", "i32", "i32", "i32", *[given] * len(buffers), *strides,
             *[given] * (len(loop.edges) + len(loop.matrices))]
    if isinstance(loop, Shared):
        types += [given, "*fp32", "*i64", "i32"]
        options |= ALONE
    return [(loop.runs[0], types, constants, options)]


def compiled(function, types: list[str], constants: dict, options: dict, arch: str, units: int) -> dict:
    names = function.arg_names
    constants = {name: value for name, value in constants.items() if name in names}
    signature = dict(zip(names, types + ["constexpr"] * len(constants), strict=True))
    # As for a call: addresses are multiples of 16, and the widths of sequences that units of such a number make.
    aligned = {(k,): [["tt.divisibility", 16]] for k, (kind, name) in enumerate(zip(types, names))
               if kind.startswith("*") or (name.endswith("_stride") and units % 16 == 0)}
    target = GPUTarget("hip", arch, 64) if of_amd(arch) else GPUTarget("cuda", int(arch), 32)
    made = triton.compile(ASTSource(function, signature, constants, aligned), target=target, options=options)
    if of_amd(arch):
        found = {name: int(re.search(rf"\.{key}: +(\d+)", made.asm["amdgcn"])[1])
                 for name, key in (("registers", "vgpr_count"), ("spilled", "vgpr_spill_count"))}
        return found | {"shared": made.metadata.shared}
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "kernel.ptx"
        text.write_text(made.asm["ptx"])
        machine = re.search(r"\.target (\w+)", made.asm["ptx"])[1]
        said = subprocess.run([PTXAS, "-v", f"--gpu-name={machine}", text, "-o", os.devnull], text=True, check=True,
                              capture_output=True).stderr
    return {"registers": int(re.search(r"Used (\d+) registers", said)[1]),
            "spilled": int(re.search(r"(\d+) bytes spill stores", said)[1]), "shared": made.metadata.shared}


def of_amd(arch: str) -> bool:
    return arch.startswith("gfx")


def compile_cell(name: str, units: int, rows: int, arch: str, forms: list[str]) -> None:
    """Print a JSON object for every kernel of a cell."""
    cell = trace(getattr(cells, name))
    for dtype in POINTERS:
        kernel = gpu.Kernel(split(cell), dict.fromkeys(cell.sizes, units), dtype)
        for direction, plan in (("forward", kernel._training_plan), ("backward", kernel._backward_plan)):
            for form, loop in (("resident", Compiled(plan.loop, cell, dtype)),
                               ("shared", Shared(plan.loop, cell, dtype)),
                               ("steps", Steps(plan.loop, cell, dtype, SERVED[dtype]))):
                chosen = type(kernel.compile(plan.loop)) is type(loop)
                asked = form in forms or (chosen and "chosen" in forms)
                if not asked or (form == "shared" and not Shared.fits(plan.loop, dtype)):
                    continue
                for number, (function, *how) in enumerate(kernels(loop, dtype, direction == "backward", rows,
                                                                      arch)):
                    found = {"cell": name, "type": str(dtype), "loop": direction, "form": form, "chosen": chosen,
                             "stage": number}
                    found |= compiled(function, *how, arch, units)
                    if form == "shared":
                        found["members"] = loop.members
                    print(json.dumps(found), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cells", nargs="*", help="all of the catalogue, if none is named")
    parser.add_argument("--units", type=int, default=64, help="the length of every size of a cell")
    parser.add_argument("--rows", type=int, default=16, help="rows of a batch: where loops run step by step it matters")
    parser.add_argument("--arch", default="90", help="90 is an H100, 80 an A100, gfx942 an MI300")
    parser.add_argument("--forms", nargs="+", default=FORMS, choices=[*FORMS, "chosen"],
                        help="the forms of a loop: all if not said, or the one that is chosen")
    parser.add_argument("--here", action="store_true", help="compile in this process")
    options = parser.parse_args()
    names = options.cells or cells.__all__
    if of_amd(options.arch):
        device.shared_bytes, device.multiplies_from_memory = lambda: device.SHARED_OF_AMD, lambda: False
    if options.here:
        for name in names:
            compile_cell(name, options.units, options.rows, options.arch, options.forms)
        return
    failed = []
    for name in names:
        done = subprocess.run([sys.executable, __file__, "--here", name, f"--units={options.units}",
                               f"--rows={options.rows}", f"--arch={options.arch}", "--forms", *options.forms],
                              stderr=subprocess.PIPE, text=True)
        if done.returncode:
            failed.append(name)
            print(json.dumps({"cell": name, "failed": done.stderr[-2000:]}), flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
