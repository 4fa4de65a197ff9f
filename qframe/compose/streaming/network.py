"""Streams the weights of a network's repeated blocks from host memory to the device that computes, block by block."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from qframe.compose.streaming.ring import Ring
from qframe.compose.streaming.weights import Place, Weights, host_room
from qframe.errors import ConfigError
from qframe.interfaces import Loadable, Streamed


def blocks_of(network: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    """Return the repeated blocks of a network in the order in which they compute.

    Args:
        network: The network, which may lie on the meta device.
        names: The names of the lists of blocks; see `Loadable.block_lists`.

    Raises:
        ConfigError: The network has no such list.
    """
    found: list[nn.Module] = []
    for name in names:
        try:
            listed = network.get_submodule(name)
        except AttributeError:
            listed = nn.Identity()
        if not isinstance(listed, nn.ModuleList):
            raise ConfigError(
                f"streaming: {type(network).__name__} has no list of blocks {name!r}",
                "Set resident_blocks to nothing, or offload to 'none' or 'model'.",
            )
        found += listed
    return found


def resident_places(count: int, resident: int) -> set[int]:
    """Return which of `count` blocks stay on the device, so that those that are streamed lie evenly between them."""
    kept = min(resident, count)
    return {(2 * place + 1) * count // (2 * kept) for place in range(kept)}


def frozen_places(network: nn.Module, blocks: Sequence[nn.Module]) -> list[list[Place]]:
    """Return the places of the frozen parameters of each block.

    A parameter that is in the network twice, by itself or with its module, is left out.
    """
    uses = Counter(id(p) for part in network.modules() for p in part._parameters.values() if p is not None)
    mentions = Counter(id(part) for _, part in network.named_modules(remove_duplicate=False))
    return [
        [
            Place(part, name)
            for part in block.modules()
            for name, p in part._parameters.items()
            if p is not None and not p.requires_grad and uses[id(p)] == mentions[id(part)] == 1
        ]
        for block in blocks
    ]


class StreamedNetwork(Streamed):
    """A network some of whose blocks have their weights in host memory, from where they visit the device.

    Only a hook before a block's forward pass is used. Recomputation in a backward pass calls it, too; a hook after the
    forward pass would be left out there, because recomputation stops by an exception.

    Attributes:
        ring: Copies the weights of the streamed blocks.
        rest_of: All other weights, if they visit the device, too, while the network is in use; else None, and they stay
            on the device.
        here: Whether these other weights are on the device now.
        about: What is streamed, in words for the user.
    """

    def __init__(
        self,
        network: nn.Module,
        names: Sequence[str],
        device: torch.device,
        resident: int,
        *,
        visiting: bool = False,
        room: int | None = None,
    ) -> None:
        """Let weights rest in host memory, pinned as far as there is room, and move everything else to the device.

        Args:
            network: The network, whose weights lie in host memory.
            names: The names of its lists of blocks, in the order in which they compute.
            device: The device that computes.
            resident: How many blocks keep their weights on the device.
            visiting: Whether the weights of everything that is not streamed visit the device only while the network is
                in use: between `arrive` and `free`.
            room: The most bytes that may be pinned; by default what the machine can spare.

        Raises:
            ConfigError: The network has no such list of blocks, or all of its blocks would be resident.
        """
        blocks = blocks_of(network, names)
        kept = resident_places(len(blocks), resident)
        streamed = [block for number, block in enumerate(blocks) if number not in kept]
        if not streamed:
            raise ConfigError(f"{type(network).__name__}: all {len(blocks)} blocks are resident, none is streamed")
        self._network, self._device = network, device
        self.here = not visiting
        with torch.inference_mode(False), torch.no_grad():
            budget = host_room() if room is None else room
            weights: list[Weights] = []
            for places in frozen_places(network, streamed):
                _check(network, places)
                one = Weights(places, device)
                budget -= one.size if one.size <= budget and one.pin(device) else 0
                weights.append(one)
            self.ring = Ring(weights, device)
            self._moving = {place.key for one in weights for place in one.places}
            self.rest_of = self._rest() if visiting else None
            self._moving.update(place.key for place in (self.rest_of.places if self.rest_of else ()))
            for number, block in enumerate(streamed):
                _before_forward(block, partial(self.ring.enter, number))
            self.settle()
        size, pinned = (sum(one.size for one in weights if one.master is not None or every) for every in (True, False))
        self.about = (
            f"{type(network).__name__}: {len(streamed)} of {len(blocks)} blocks are streamed from the memory of the "
            f"machine ({size / 2**30:.1f} GiB, {pinned / 2**30:.1f} GiB of it pinned)"
        )

    def settle(self) -> None:
        """See `Streamed.settle`."""
        with torch.inference_mode(False), torch.no_grad():
            for part in self._network.modules():
                own = [Place(part, name) for name, p in part._parameters.items() if p is not None]
                if not any(place.key in self._moving for place in own):
                    part._apply(self._to_device, recurse=False)
                    continue
                for place in own:
                    if place.key not in self._moving:
                        place.parameter.data = self._to_device(place.parameter.data)
                for name, buffer in part._buffers.items():
                    part._buffers[name] = None if buffer is None else self._to_device(buffer)

    def arrive(self) -> None:
        """Bring the weights that are not streamed to the device, if they visit it and are not there."""
        if self.rest_of is None or self.here:
            return
        with torch.inference_mode(False), torch.no_grad():
            memory = torch.empty(self.rest_of.size, dtype=torch.uint8, device=self._device)
            self.rest_of.fill(memory)
            self.rest_of.show(self.rest_of.copies(memory))
        self.here = True

    def rest(self) -> None:
        """See `Streamed.rest`."""
        self.ring.rest()

    def free(self) -> None:
        """See `Streamed.free`."""
        self.ring.free()
        if self.rest_of is not None and self.here:
            self.rest_of.rest()
            self.here = False

    def _rest(self) -> Weights:
        """Take all frozen weights that are not streamed as weights that visit the device together."""
        (places,) = frozen_places(self._network, [self._network])
        return Weights([place for place in places if place.key not in self._moving], self._device)

    def _to_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device)


def _check(network: nn.Module, places: Sequence[Place]) -> None:
    """Raise ConfigError for a weight that has more to it than torch can tell, so that a copy would lack something."""
    for place in places:
        kind = type(place.parameter)
        if nn.Parameter in kind.__mro__[1:] and not hasattr(kind, "__tensor_flatten__"):
            raise ConfigError(
                f"streaming: {type(network).__name__} has weights of the class {kind.__name__}, which are quantised "
                "in a way that cannot be copied",
                "Leave resident_blocks out, or use a model that is not quantised, with `quantise`.",
            )


def _before_forward(block: nn.Module, enter: Callable[[], None]) -> None:
    """Have `enter` called before each forward pass of a block, outside of what is compiled."""
    compiled: Any = getattr(block, "_compiled_call_impl", None)
    if compiled is None:
        block.register_forward_pre_hook(torch.compiler.disable(lambda module, args: enter()))
        return

    def entered(*args: Any, **kwargs: Any) -> Any:
        enter()
        return compiled(*args, **kwargs)

    block._compiled_call_impl = entered


def stream(part: Loadable, device: torch.device, resident: int, *, visiting: bool = False) -> StreamedNetwork | None:
    """Stream the blocks of a loaded component, whose weights lie in host memory, to the device that it computes on.

    Args:
        part: The component. Its `streamed` and `placed_on` are set.
        device: The device.
        resident: How many blocks keep their weights on the device.
        visiting: See `StreamedNetwork`.

    Returns:
        None if there is no block left to stream. The component's weights are then not moved.
    """
    network = part.network
    if network is None or resident >= len(blocks_of(network, part.block_lists())) or not part.block_lists():
        return None
    found = StreamedNetwork(network, part.block_lists(), device, resident, visiting=visiting)
    part.streamed, part.placed_on = found, device
    return found
