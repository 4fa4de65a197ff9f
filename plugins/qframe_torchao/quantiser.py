"""The quantiser `torchao`, which implements the interface `Quantiser` with the package torchao."""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import Any

import torch
from torch import Tensor, nn

from qframe.errors import ConfigError
from qframe.interfaces import FrozenLinear, PackedLayer, Quantiser
from qframe.plugins.distribution import install_hint
from qframe.progress import SILENT, Progress
from qframe_torchao.options import TorchaoOptions

_CONFIGS = {"int8": "Int8WeightOnlyConfig", "float8": "Float8WeightOnlyConfig"}


class TorchaoQuantiser(Quantiser):
    """A quantiser that keeps the weights of linear layers in 8 bits and computes in the dtype of the model.

    Only weights are quantised, never what is multiplied with them. Creating the quantiser raises ConfigError if the
    package is not installed.
    """

    options: TorchaoOptions

    def __init__(self, options: TorchaoOptions | None) -> None:
        options = options or TorchaoOptions()
        super().__init__(options, exclude=options.exclude)
        try:
            self._package: Any = importlib.import_module("torchao.quantization")
            self._config: Any = getattr(self._package, _CONFIGS[options.weights])
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"quantise.use = 'torchao' needs the package torchao, which cannot be imported ({error})",
                f"Install it ({install_hint('torchao')}), or choose another quantiser.",
            ) from error

    def prepare(self, device: torch.device, progress: Progress = SILENT) -> None:
        try:
            with torch.no_grad():
                FrozenLinear(self._weight(_ones(8, 64, torch.float32, device)))(torch.ones(2, 64, device=device))
        except (RuntimeError, NotImplementedError, ValueError, AttributeError, AssertionError) as error:
            raise ConfigError(
                f"quantise.use = 'torchao' cannot compute {self.options.weights} on {device.type}: {error}",
                "Choose another quantiser, for example quanto.",
            ) from error

    def quantised(self, name: str, layer: nn.Linear) -> nn.Linear | None:
        return FrozenLinear(self._weight(layer), layer.bias) if layer.in_features > 1 else None

    def weight_bytes(self, name: str, layer: nn.Linear) -> int | None:
        if self.excludes(name) or layer.in_features == 1:  # torchao takes such rows for one block
            return None
        # A float32 scale for each row, and for whole numbers a zero point, which is a byte.
        row = 5 if self.options.weights == "int8" else 4
        return layer.weight.numel() + row * layer.out_features

    def ingredient(self) -> str:
        version = importlib.metadata.version("torchao")
        return f"torchao {version} {self.options.weights} {' '.join(self.options.exclude)}"

    def pack(self, layer: nn.Module) -> PackedLayer:
        assert isinstance(layer, FrozenLinear)
        return PackedLayer(layer.tensors())

    def unpack(self, layer: nn.Linear, packed: PackedLayer) -> nn.Linear:
        # A layer with one row has the same description as the original one: it names a row's length and the dtype.
        sample: Any = self._weight(_ones(1, layer.in_features, layer.weight.dtype, torch.device("cpu")))
        _, about = sample.__tensor_flatten__()
        begin = "weight."
        inner = {name.removeprefix(begin): t for name, t in packed.tensors.items() if name.startswith(begin)}
        weight = type(sample).__tensor_unflatten__(inner, about, layer.weight.shape, layer.weight.stride())
        return FrozenLinear(weight, packed.tensors.get("bias"))

    def _weight(self, layer: nn.Linear) -> Tensor:
        """Let torchao replace the weight of a layer, and return the new one."""
        # torchao would also change the settings of torch's compiler for the whole program.
        self._package.quantize_(layer, self._config(set_inductor_config=False))
        weight = layer.weight.detach()
        # torchao lets the layer refer to itself, so that its memory would be freed late.
        layer.register_parameter("weight", None)
        return weight


def _ones(rows: int, length: int, dtype: torch.dtype, device: torch.device) -> nn.Linear:
    """Return a small layer for trying something out; torch's own first values would take random numbers of the run."""
    layer = nn.Linear(length, rows, bias=False, device="meta")
    layer.weight = nn.Parameter(torch.ones(rows, length, dtype=dtype, device=device), requires_grad=False)
    return layer
