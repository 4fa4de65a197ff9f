"""The quantiser `quanto`, which implements the interface `Quantiser` with the package optimum-quanto."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import torch
from optimum import quanto
from torch import Tensor, nn

from qframe.interfaces import PackedLayer, Quantiser
from qframe.progress import SILENT, Progress
from qframe_quanto.extension import compiled, prepare_extension
from qframe_quanto.options import QuantoOptions

_TYPES = {"qint8": quanto.qint8, "qfloat8": quanto.qfloat8, "qint4": quanto.qint4}
_LARGEST_GROUP = 128  # from QModuleMixin.__init__ in quanto's nn/qmodule.py


class FrozenLinear(quanto.QLinear):
    """The quantised linear layer of optimum-quanto, made to compute in the dtype of its weights even inside autocast.

    Autocast would convert the quantised weight to another dtype, which quanto refuses.
    """

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            result: Tensor = super().forward(x.to(self.weight.dtype))
        return result


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
        found: Any = FrozenLinear.from_module(layer, weights=_TYPES[self.options.weights])
        found.freeze()
        return _frozen(found)

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

    def pack(self, layer: nn.Module) -> PackedLayer:
        # quanto's own layout for files, which is the same on every device.
        return PackedLayer({name: tensor.detach() for name, tensor in layer.state_dict().items()})

    def unpack(self, layer: nn.Linear, packed: PackedLayer) -> nn.Linear:
        found: Any = FrozenLinear.qcreate(layer, _TYPES[self.options.weights], device="meta")
        found.load_state_dict(dict(packed.tensors), assign=True)
        return _frozen(found)


def _frozen(layer: nn.Linear) -> nn.Linear:
    return layer.eval().requires_grad_(False)


def _group_of(layer: nn.Linear) -> int:
    """How many 4-bit weights of a layer share a scale and a shift.

    quanto's QModuleMixin chooses the largest multiple of 32 up to 128 that divides a row of the weight matrix, or the
    length of the row if no such number divides it or the row has at most 128 numbers.
    """
    fitting = (size for size in range(_LARGEST_GROUP, 0, -32) if layer.in_features % size == 0)
    return next(fitting, layer.in_features) if layer.in_features > _LARGEST_GROUP else layer.in_features
