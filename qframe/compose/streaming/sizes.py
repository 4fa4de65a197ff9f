"""Computes from shapes alone how many bytes a streamed network has on the device and in host memory."""

from __future__ import annotations

import attrs
from torch import nn

from qframe.compose.streaming.network import blocks_of, frozen_places, resident_places
from qframe.compose.streaming.pieces import aligned, take_apart
from qframe.compose.streaming.ring import SLOTS
from qframe.interfaces import Loadable, Quantiser


@attrs.frozen(kw_only=True)
class StreamedBytes:
    """The bytes of the weights of a network whose blocks are streamed.

    Attributes:
        slots: On the device: the slots that the streamed blocks take turns in.
        resident: On the device: the blocks that stay there.
        rest: On the device: everything else, such as embeddings, and the buffers of all blocks.
        host: In host memory: the weights of the streamed blocks, whether pinned or mapped from their file.
        copied: How many bytes a pass copies, forward or backward.
        copies: How many copies this takes, one for each streamed block.
    """

    slots: int
    resident: int
    rest: int
    host: int
    copied: int
    copies: int

    @property
    def device(self) -> int:
        """All bytes on the device."""
        return self.slots + self.resident + self.rest


def streamed_bytes(part: Loadable, resident: int, quantiser: Quantiser | None = None) -> StreamedBytes:
    """Return the bytes of a component's weights if all but `resident` of its blocks are streamed.

    Args:
        part: The component. Only shapes are read: its network may lie on the meta device.
        resident: How many blocks keep their weights on the device. If the network has no more, nothing is streamed.
        quantiser: The quantiser that will quantise the network; the bytes are those after quantisation, to within the
            256 bytes at whose multiples tensors begin in a slot. None counts the network as it is.
    """
    network = part.network
    assert network is not None
    blocks = blocks_of(network, part.block_lists())
    names = {id(module): name for name, module in network.named_modules()}

    def sizes_of(module: nn.Module, name: str) -> list[int]:
        smaller = None
        if quantiser is not None and isinstance(module, nn.Linear) and name == "weight":
            smaller = quantiser.weight_bytes(names[id(module)], module)
        parts, _ = take_apart(module.get_parameter(name))
        return [part.nbytes for part in parts] if smaller is None else [smaller]

    total = sum(sum(sizes_of(module, name)) for module in network.modules() for name in _own(module))
    total += sum(buffer.nbytes for buffer in network.buffers())
    kept = resident_places(len(blocks), resident)
    exact, flat, staying = [], [], 0
    for number, places in enumerate(frozen_places(network, blocks)):
        sizes = [size for place in places for size in sizes_of(place.module, place.name)]
        if number in kept:
            staying += sum(sizes)
        else:
            exact.append(sum(sizes))
            flat.append(sum(map(aligned, sizes)))
    slots = min(SLOTS, len(flat)) * max(flat, default=0)
    return StreamedBytes(
        slots=slots,
        resident=staying,
        rest=total - staying - sum(exact),
        host=sum(flat),
        copied=sum(flat),
        copies=len(flat),
    )


def _own(module: nn.Module) -> list[str]:
    return [name for name, parameter in module._parameters.items() if parameter is not None]
