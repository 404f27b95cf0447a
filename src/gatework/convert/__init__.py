"""Layers to and from other systems: torch.nn, Keras 3, Flax NNX and ONNX.

Receives a layer of theirs and hands on one of `gatework.nn` with the same weights, or the other way round. The weights
are copied, never shared, and the result computes the same values as the original, to rounding. What the target cannot
say is refused by name. `docs/convert.md` has the table of what becomes what.
"""

from .flax_nnx import from_flax, to_flax
from .keras_layers import from_keras, to_keras
from .onnx_export import to_onnx
from .onnx_import import from_onnx, from_onnx_node
from .reversed import Reversed
from .torch_nn import from_torch, to_torch

__all__ = ["Reversed", "from_flax", "from_keras", "from_onnx", "from_onnx_node", "from_torch", "to_flax", "to_keras",
           "to_onnx", "to_torch"]
