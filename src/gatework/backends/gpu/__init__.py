"""The GPU backend: whole sequences as Triton kernels, from the same plans of loops as the CPU. Needs torch and Triton.

    Scan --plan--> places in memory --source--> Triton --kernel--> callables

The module is imported when the first kernel is asked for. With TRITON_INTERPRET=1 in the environment the kernels run
step by step in Python, on tensors of the CPU: slowly, and for tests alone.
"""

from .kernel import Kernel, check, kernel_for, triton_text

__all__ = ["Kernel", "check", "kernel_for", "triton_text"]
