"""The quantiser `quanto`, which implements the interface `Quantiser` with the package optimum-quanto."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import torch
from optimum import quanto
from torch import nn

from qframe.interfaces import FrozenLinear, PackedLayer, Quantiser
from qframe.interfaces.quantiser import flattened
from qframe.progress import SILENT, Progress
from qframe_quanto.extension import compiled, prepare_extension
from qframe_quanto.options import QuantoOptions

_TYPES = {"qint8": quanto.qint8, "qfloat8": quanto.qfloat8, "qint4": quanto.qint4}
_LARGEST_GROUP = 128  # from QModuleMixin.__init__ in quanto's nn/qmodule.py


class QuantoQuantiser(Quantiser):
    """A quantiser that keeps the weights of linear layers in 8 or 4 bits and computes in the dtype of the model."""

    options: QuantoOptions

    def __init__(self, options: QuantoOptions | None) -> None:
        options = options or QuantoOptions()
        super().__init__(options, exclude=options.exclude)

    def prepare(self, device: torch.device, progress: Progress = SILENT) -> None:
        for name in compiled(self.options.weights, device.type):
            prepare_extension(name, progress)

    def quantised(self, name: str, layer: nn.Linear) -> nn.Linear:
        found: Any = quanto.QLinear.from_module(layer, weights=_TYPES[self.options.weights])
        found.freeze()
        return FrozenLinear(found.weight.detach(), layer.bias)

    def weight_bytes(self, name: str, layer: nn.Linear) -> int | None:
        if self.excludes(name):
            return None
        size = layer.weight.element_size()
        if self.options.weights != "qint4":
            return layer.weight.numel() + layer.out_features * size
        groups = layer.weight.numel() // _group_of(layer)
        return layer.weight.numel() // 2 + 2 * groups * size

    def ingredient(self) -> str:
        version = importlib.metadata.version("optimum-quanto")
        return f"quanto {version} {self.options.weights} {' '.join(self.options.exclude)}"

    @property
    def storable(self) -> bool:
        """Whether layers can be stored: quanto repacks weights in 4 bits for every device, and cannot map them."""
        return self.options.weights != "qint4"

    def pack(self, layer: nn.Module) -> PackedLayer:
        assert isinstance(layer, FrozenLinear)
        bias = {} if layer.bias is None else {"bias": layer.bias.detach()}
        # On the way to the CPU, quanto turns layouts that are made for one device into the one that it has for files.
        return PackedLayer(flattened(layer.weight.detach().cpu()) | bias)

    def unpack(self, layer: nn.Linear, packed: PackedLayer) -> nn.Linear:
        found: Any = quanto.QLinear.qcreate(layer, _TYPES[self.options.weights], device="meta")
        found.load_state_dict(dict(packed.tensors), assign=True, strict=False)
        return FrozenLinear(found.weight.detach(), packed.tensors.get("bias"))


def _group_of(layer: nn.Linear) -> int:
    """How many 4-bit weights of a layer share a scale and a shift.

    quanto's QModuleMixin chooses the largest multiple of 32 up to 128 that divides a row of the weight matrix, or the
    length of the row if no such number divides it or the row has at most 128 numbers.
    """
    fitting = (size for size in range(_LARGEST_GROUP, 0, -32) if layer.in_features % size == 0)
    return next(fitting, layer.in_features) if layer.in_features > _LARGEST_GROUP else layer.in_features
