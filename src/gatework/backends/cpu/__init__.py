"""The CPU backend: time loops as LLVM IR, compiled for the machine at hand. Needs numpy and llvmlite, not torch.

    Scan --schedule--> stages --plan--> places in memory --emit--> LLVM IR --jit--> machine code --kernel--> callables
"""

from ...compiler import Cell, split
from .kernel import Kernel, kernel_for
from .target import target

__all__ = ["Kernel", "kernel_for", "llvm_text"]


def llvm_text(cell: Cell, size: int = 64, bytes_per_value: int = 4) -> str:
    """The LLVM IR of a cell's training loops, forward and backward, with every size set to `size`; to look at."""
    made = Kernel(split(cell), dict.fromkeys(cell.sizes, size), bytes_per_value, target())
    return "\n".join(f"; ---- {name}\n{text}" for name, text in made.ir().items())
