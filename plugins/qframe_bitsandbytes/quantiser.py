"""The quantiser `bitsandbytes`, which implements the interface `Quantiser` with the package bitsandbytes."""

from __future__ import annotations

import importlib
import importlib.metadata

import torch
from torch import nn

from qframe.errors import ConfigError, NumericsError
from qframe.interfaces import FrozenLinear, PackedLayer, Quantiser
from qframe.plugins.distribution import install_hint
from qframe.progress import SILENT, Progress
from qframe_bitsandbytes.options import BitsAndBytesOptions
from qframe_bitsandbytes.weight import WEIGHTS, BitsAndBytesWeight, Nf4Weight


class BitsAndBytesQuantiser(Quantiser):
    """A quantiser that keeps the weights of linear layers in nf4 or int8 and computes in the dtype of the model.

    Only weights are quantised, never what is multiplied with them, so that gradients are those of the dequantised
    weights. Creating the quantiser raises ConfigError if the package is not installed.
    """

    options: BitsAndBytesOptions

    def __init__(self, options: BitsAndBytesOptions | None) -> None:
        options = options or BitsAndBytesOptions()
        super().__init__(options, exclude=options.exclude)
        try:
            importlib.import_module("bitsandbytes.functional")
        except ImportError as error:
            raise ConfigError(
                f"quantise.use = 'bitsandbytes' needs the package bitsandbytes, which cannot be imported ({error})",
                f"Install it ({install_hint('bitsandbytes')}), or choose another quantiser.",
            ) from error

    def prepare(self, device: torch.device, progress: Progress = SILENT) -> None:
        try:
            self._weight(torch.ones(8, 64, device=device)).dequantize()
        except (RuntimeError, NotImplementedError, ValueError, AttributeError) as error:
            raise ConfigError(
                f"quantise.use = 'bitsandbytes' cannot compute {self.options.weights} on {device.type}: {error}",
                "Choose another quantiser, for example quanto.",
            ) from error

    def quantised(self, name: str, layer: nn.Linear) -> nn.Linear:
        try:
            weight = self._weight(layer.weight.detach())
        except NumericsError as error:
            raise NumericsError(f"{name}: {error.message}", error.hint) from error
        return FrozenLinear(weight, layer.bias)

    def weight_bytes(self, name: str, layer: nn.Linear) -> int | None:
        if self.excludes(name):
            return None
        elements = layer.weight.numel()
        if self.options.weights == "int8":
            return elements + 4 * layer.out_features
        return Nf4Weight.bytes_of(elements, double=self.options.double)

    def ingredient(self) -> str:
        version = importlib.metadata.version("bitsandbytes")
        options = self.options
        return f"bitsandbytes {version} {options.weights} double={options.double} {' '.join(options.exclude)}"

    def pack(self, layer: nn.Module) -> PackedLayer:
        assert isinstance(layer, FrozenLinear)
        return PackedLayer(layer.tensors())

    def unpack(self, layer: nn.Linear, packed: PackedLayer) -> nn.Linear:
        begin = "weight."
        inner = {name.removeprefix(begin): t for name, t in packed.tensors.items() if name.startswith(begin)}
        weight = WEIGHTS[self.options.weights](inner, layer.weight.shape, layer.weight.dtype)
        return FrozenLinear(weight, packed.tensors.get("bias"))

    def _weight(self, weight: torch.Tensor) -> BitsAndBytesWeight:
        return WEIGHTS[self.options.weights].quantise(weight, double=self.options.double)
