"""The contract of a quantiser: it stores frozen weights in fewer bits."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatch
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from qframe.errors import ConfigError, NumericsError
from qframe.files.host_memory import give_back_memory
from qframe.progress import SILENT, Progress

_BLOCK = re.compile(r"(?:.*?\.)?\d+(?=\.)")

Keep = Callable[[str, Mapping[str, nn.Module]], Mapping[str, nn.Module]]
"""A function that is called with the name of a block and its quantised layers by full name. It returns the layers that
are put into the network: the same ones, or equal ones in other memory."""


@attrs.frozen(eq=False)
class PackedLayer:
    """A quantised layer as plain tensors and a description, from which `Quantiser.unpack` builds the layer again.

    Attributes:
        tensors: Everything that the layer computes with, its bias included, by name. No tensor subclasses.
        about: What `unpack` needs besides the tensors and the original layer's shape, as values that JSON can hold.
    """

    tensors: Mapping[str, Tensor]
    about: Mapping[str, Any] = attrs.field(factory=dict)


class Quantiser(ABC):
    """A quantiser that stores the frozen weights of a network in fewer bits.

    A plugin registers a subclass as a component of kind "quantiser".

    A quantised layer must still be an instance of torch.nn.Linear, so that a LoRA can be put on it. Gradients flow
    through it to its inputs; its weight gets none. All that it computes with must be among its parameters and buffers,
    or among the tensors that `__tensor_flatten__` names inside a tensor subclass among these: what moves a layer to
    another memory, or splits it over processes, finds its tensors there. `qframe.interfaces.FrozenLinear` is a layer
    that has all of this.

    Attributes:
        options: An instance of the class that the plugin declares for the quantiser's options, or None.
        exclude: Names of linear layers that are not quantised, or patterns of such names, as in `fnmatch`.
    """

    def __init__(self, options: Any, *, exclude: Sequence[str] = ()) -> None:
        self.options = options
        self.exclude = tuple(exclude)

    def prepare(self, device: torch.device, progress: Progress = SILENT) -> None:  # noqa: B027 - most need nothing
        """Make ready what quantised weights need on this machine, before any weights are loaded.

        A quantiser that compiles code does it here, because nobody should find out after an hour of encoding that there
        is no compiler. By default there is nothing to make ready.

        Args:
            device: The device on which the quantised weights will compute.
            progress: Is told what takes long, and what is waited for.

        Raises:
            ConfigError: This machine lacks something; the message names it.
        """

    @abstractmethod
    def quantised(self, name: str, layer: nn.Linear) -> nn.Linear | None:
        """Return a quantised layer that takes the place of a linear layer, on the device that the layer is on.

        The weights are finite: `quantise` has tested them. `layer` may be changed, and is not used afterwards.

        Args:
            name: The layer's full name, which no pattern of `exclude` matches.
            layer: The layer.

        Returns:
            None if the quantiser leaves the layer as it is.
        """

    @abstractmethod
    def weight_bytes(self, name: str, layer: nn.Linear) -> int | None:
        """Return the bytes that the weight of a layer will take when it is quantised.

        Args:
            name: The layer's full name, which a pattern of `exclude` may match.
            layer: The layer; only its shape is read, so that it may lie on the meta device.

        Returns:
            None if the quantiser leaves the layer as it is.
        """

    @abstractmethod
    def ingredient(self) -> str:
        """Return text that names everything the quantised values depend on: the back end, its version and the options.

        The text is added, under the name "quantised", to the ingredients of the component whose weights are quantised.
        """

    def pack(self, layer: nn.Module) -> PackedLayer:
        """Return a layer that `quantised` made as plain tensors and a description, so that it can be stored.

        A quantiser that implements `pack` and `unpack` quantises once: its layers are stored beside the cache, and
        mapped into memory at the next start. One that does not still works, and quantises at every start.
        """
        raise NotImplementedError

    def unpack(self, layer: nn.Linear, packed: PackedLayer) -> nn.Linear:
        """Return the quantised layer that `pack` took apart.

        Args:
            layer: The layer that was quantised, for its shape; it may lie on the meta device.
            packed: What `pack` returned, with tensors that are mapped from a file, on the CPU. The layer must use these
                tensors, not copies, and must not change them.
        """
        raise NotImplementedError

    @property
    def storable(self) -> bool:
        """Whether the quantised layers can be stored: whether the class implements `pack` and `unpack`."""
        kind = type(self)
        return kind.pack is not Quantiser.pack and kind.unpack is not Quantiser.unpack

    def excludes(self, name: str) -> bool:
        """Whether a pattern of `exclude` matches the full name of a layer."""
        return any(fnmatch(name, pattern) for pattern in self.exclude)

    def layers(self, network: nn.Module) -> dict[str, nn.Linear]:
        """Return the linear layers of a network that `exclude` does not match, by full name.

        Raises:
            ConfigError: A pattern of `exclude` matches no linear layer.
        """
        linears = {name: part for name, part in network.named_modules() if name and isinstance(part, nn.Linear)}
        idle = [pattern for pattern in self.exclude if not any(fnmatch(name, pattern) for name in linears)]
        if idle:
            raise ConfigError(
                f"quantise.options.exclude: {', '.join(idle)} matches no linear layer of {type(network).__name__}",
                f"Its first ones: {', '.join(list(linears)[:8])}.",
            )
        return {name: layer for name, layer in linears.items() if not self.excludes(name)}

    def quantise(
        self,
        network: nn.Module,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        keep: Keep | None = None,
    ) -> None:
        """Replace linear layers of `network` by quantised ones, in place, one block after another.

        Each layer is brought to its device, tested and quantised before the next one is read. So nothing is read twice,
        and at most one block of layers that are not quantised lies in memory of its own.

        Args:
            network: The network.
            device: The device on which layers are quantised; by default the one that they are on.
            dtype: The dtype that layers get before they are quantised; by default the one that they have.
            keep: Is called after each block, and may put its layers elsewhere.

        Raises:
            ConfigError: A pattern of `exclude` matches no linear layer.
            NumericsError: Layers have weights that are not finite, which quantising would turn into finite ones.
        """
        broken: list[str] = []
        for block, names in {block: list(layers) for block, layers in blocks(self.layers(network)).items()}.items():
            made: dict[str, nn.Module] = {}
            for name in names:  # nothing but the network may hold a layer, so that it is freed when it is replaced
                layer = network.get_submodule(name).to(device=device, dtype=dtype)
                assert isinstance(layer, nn.Linear)
                if not _finite(layer.weight):
                    broken.append(name)
                elif not broken and (found := self.quantised(name, layer)) is not None:
                    made[name] = found.eval().requires_grad_(False)
                    network.set_submodule(name, made[name])
                del layer
                give_back_memory()
            if keep is not None and not broken:
                for name, kept in keep(block, made).items():
                    network.set_submodule(name, kept)
        if broken:
            raise NumericsError(
                f"{len(broken)} layers of {type(network).__name__} hold weights that are not finite: "
                + ", ".join(broken[:5]),
                "The model folder is damaged, or needs another dtype.",
            )


def blocks(layers: Mapping[str, nn.Linear]) -> dict[str, dict[str, nn.Linear]]:
    """Group layers by the repeated block that they belong to.

    The block is the layer's name up to its first number: "blocks.3" for "blocks.3.attn.to_out.0". Layers outside of
    repeated blocks are one group with the name "".
    """
    found: dict[str, dict[str, nn.Linear]] = {}
    for name, layer in layers.items():
        match = _BLOCK.match(name)
        found.setdefault(match.group() if match else "", {})[name] = layer
    return found


def flattened(tensor: Tensor, name: str = "weight") -> dict[str, Tensor]:
    """Return the plain tensors that a tensor subclass is made of, by names that begin with `name`.

    A plain tensor is returned under `name` itself.
    """
    if not hasattr(tensor, "__tensor_flatten__"):
        return {name: tensor.detach()}
    inner, _ = tensor.__tensor_flatten__()
    found: dict[str, Tensor] = {}
    for part in inner:
        found.update(flattened(getattr(tensor, part), f"{name}.{part}"))
    return found


def _finite(weight: Tensor) -> bool:
    """Whether all weights are finite. The smallest and the largest say it, and no tensor of their size is made."""
    return weight.numel() == 0 or all(bool(torch.isfinite(end)) for end in torch.aminmax(weight))
