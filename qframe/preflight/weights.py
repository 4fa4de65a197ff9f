"""Where the weights of a component will be: on its device, in slots there, and in host memory."""

from __future__ import annotations

import attrs

from qframe.compose import Composition
from qframe.compose.placement import network_bytes
from qframe.compose.streaming import StreamedBytes, streamed_bytes

SLOTS = " slots"
"""What is added to the role of a component in the name of its slots."""


@attrs.frozen(kw_only=True)
class PlacedWeights:
    """The weights of a component as they will be placed.

    Attributes:
        parts: The bytes on the device, by name: the role, and the role's slots if its blocks are streamed.
        host: The bytes in host memory, besides.
        copied: How many bytes are copied to the device in each pass of the network.
        copies: How many copies this takes.
    """

    parts: dict[str, int]
    host: int = 0
    copied: int = 0
    copies: int = 0


def placed_weights(composition: Composition, role: str, *, resident: int | None = None) -> PlacedWeights:
    """Return where the weights of a component will be.

    Args:
        composition: The composition.
        role: The role of the component.
        resident: How many of its blocks stay on the device; None means all of them. On a CPU all do.
    """
    streamed = None if resident is None else streamed_weights(composition, role, resident)
    if streamed is None or streamed.copies == 0:
        return PlacedWeights(parts={role: composition.weights(role) or 0})
    return PlacedWeights(
        parts={role: streamed.resident + streamed.rest, f"{role}{SLOTS}": streamed.slots},
        host=streamed.host,
        copied=streamed.copied,
        copies=streamed.copies,
    )


def streamed_weights(composition: Composition, role: str, resident: int) -> StreamedBytes | None:
    """Return the bytes of a component whose blocks are streamed but `resident` ones; None if it cannot be streamed."""
    outline = composition.outlines.get(role)
    if outline is None or not outline.block_lists() or composition.device(role).type == "cpu":
        return None
    return streamed_bytes(outline, resident, composition.quantisers.get(role))


def block_count(composition: Composition, role: str) -> int:
    """Return how many repeated blocks the network of a component has that can be streamed; 0 if there are none."""
    outline = composition.outlines.get(role)
    if outline is None or composition.device(role).type in ("cpu", "mps"):
        return 0
    return sum(len(outline.network.get_submodule(name)) for name in outline.block_lists())


def unpacked_bytes(composition: Composition, role: str) -> int:
    """Return what the largest quantised weight takes while it is unpacked to be computed with; 0 if none is."""
    quantiser, outline = composition.quantisers.get(role), composition.outlines.get(role)
    if quantiser is None or outline is None:
        return 0
    return max(
        (
            2 * part.weight.nbytes
            for name, part in outline.network.named_modules()
            if hasattr(part, "in_features") and quantiser.weight_bytes(name, part) is not None
        ),
        default=0,
    )


def decoder_bytes(composition: Composition) -> int:
    """Return the bytes of the decoding half of the codec; 0 if the codec does not say which part that is."""
    codec = composition.outlines.get("codec")
    return 0 if codec is None or codec.decoder is None else network_bytes(codec.decoder)
