"""The quantiser `quanto`, which implements the interface `Quantiser` with the package optimum-quanto."""

from __future__ import annotations

import importlib.metadata
from fnmatch import fnmatch
from typing import Any

import torch
from optimum import quanto
from torch import Tensor, nn

from qframe.errors import ConfigError, NumericsError
from qframe.interfaces import Quantiser
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
        super().__init__(options or QuantoOptions())

    def prepare(self, device: torch.device, progress: Progress = SILENT) -> None:
        for name in compiled(self.options.weights, device.type):
            prepare_extension(name, progress)

    def quantise(self, network: nn.Module) -> None:
        """Replace all linear layers of `network` in place, except those that match `exclude`, by quantised ones.

        Raises:
            ConfigError: A pattern of `exclude` matches no linear layer.
            NumericsError: A layer has weights that are not finite, which quantisation would hide.
        """
        layers = {name: part for name, part in network.named_modules() if isinstance(part, nn.Linear)}
        idle = [pattern for pattern in self.options.exclude if not any(fnmatch(name, pattern) for name in layers)]
        if idle:
            raise ConfigError(
                f"quantise.options.exclude: {', '.join(idle)} matches no linear layer of {type(network).__name__}",
                f"Its first ones: {', '.join(list(layers)[:8])}.",
            )
        chosen = {name: layer for name, layer in layers.items() if not self._left(name)}
        broken = [name for name, layer in chosen.items() if not torch.isfinite(layer.weight).all()]
        if broken:
            raise NumericsError(
                f"{len(broken)} layers of {type(network).__name__} hold weights that are not finite: "
                + ", ".join(broken[:5]),
                "The model folder is damaged, or needs another dtype.",
            )
        for name, layer in chosen.items():
            network.set_submodule(name, self._quantised(layer))

    def weight_bytes(self, name: str, layer: nn.Linear) -> int | None:
        if self._left(name):
            return None
        size = layer.weight.element_size()
        if self.options.weights != "qint4":
            return layer.weight.numel() + layer.out_features * size
        groups = layer.weight.numel() // _group_of(layer)
        return layer.weight.numel() // 2 + 2 * groups * size

    def ingredient(self) -> str:
        version = importlib.metadata.version("optimum-quanto")
        return f"quanto {version} {self.options.weights} {' '.join(self.options.exclude)}"

    def _left(self, name: str) -> bool:
        return any(fnmatch(name, pattern) for pattern in self.options.exclude)

    def _quantised(self, layer: nn.Linear) -> nn.Module:
        found: Any = FrozenLinear.from_module(layer, weights=_TYPES[self.options.weights])
        found.freeze()
        frozen: nn.Module = found.eval().requires_grad_(False)
        return frozen


def _group_of(layer: nn.Linear) -> int:
    """How many 4-bit weights of a layer share a scale and a shift.

    quanto's QModuleMixin chooses the largest multiple of 32 up to 128 that divides a row of the weight matrix, or the
    length of the row if no such number divides it or the row has at most 128 numbers.
    """
    fitting = (size for size in range(_LARGEST_GROUP, 0, -32) if layer.in_features % size == 0)
    return next(fitting, layer.in_features) if layer.in_features > _LARGEST_GROUP else layer.in_features
