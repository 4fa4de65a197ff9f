"""What is told of memory, in figures and in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import attrs
import torch
from torch import nn

from qframe.compose import Composition
from qframe.compose.placement import ORDER, Room, room_on
from qframe.errors import ResourceError, bullet_list

PICTURE = (1024, 1024)
"""What a geometry is asked to fit; one that has a size of its own gives that."""


@attrs.frozen
class Loaded:
    """A component that will be loaded. bytes: of its weights, quantised where they will be; None: unknown."""

    role: str
    name: str
    parameters: int | None
    dtype: str
    bytes: int | None
    device: torch.device

    def __str__(self) -> str:
        if self.bytes is None or self.parameters is None:
            return f"{self.role:<9} {self.name}, size unknown, on {self.device}"
        return (
            f"{self.role:<9} {self.name}, {_count(self.parameters)} parameters, {self.dtype}, {gib(self.bytes)} "
            f"on {self.device}"
        )


@attrs.frozen
class Remedy:
    """A setting that needs less memory, and about how many bytes less."""

    setting: str
    saves: int

    def __str__(self) -> str:
        return f"{self.setting} (about {gib(self.saves)} less)" if self.saves else self.setting


@attrs.frozen(kw_only=True)
class Forecast:
    """loaded: the components. needs: by device and stage, what fills it, in bytes. remedies: the best first."""

    loaded: tuple[Loaded, ...]
    needs: Mapping[torch.device, Mapping[str, Mapping[str, int]]]
    remedies: tuple[Remedy, ...]

    def peak(self, device: torch.device) -> int:
        """Bytes of the stage that needs most of this device."""
        return max(sum(parts.values()) for parts in self.needs[device].values())

    def table(self, room: Callable[[torch.device], Room] = room_on) -> list[str]:
        """What will be loaded, what each stage needs of each device, whether it fits, and what would help."""
        lines = ["will load", *(f"  {part}" for part in self.loaded)]
        for device, stages in self.needs.items():
            for stage, parts in stages.items():
                shares = ", ".join(f"{name} {gib(size)}" for name, size in parts.items() if size)
                lines.append(f"{stage} on {device}: about {gib(sum(parts.values()))} ({shares})")
            lines.append(self._verdict(device, room(device)))
        if self.remedies:
            lines += ["would need less, the most effective first", *(f"  {remedy}" for remedy in self.remedies)]
        return lines

    def summary(self, room: Callable[[torch.device], Room] = room_on) -> str:
        """One line: the peak of each device and what it has."""
        peaks = (f"about {gib(self.peak(device))} of {gib(room(device).total)} on {device}" for device in self.needs)
        return f"Memory: {'; '.join(peaks)}."

    def check(self, room: Callable[[torch.device], Room] = room_on) -> list[str]:
        """A warning for each device whose free memory is less than the estimate.

        ResourceError if weights alone are more than a device has in all: that is no estimate.
        """
        warnings = []
        for device, stages in self.needs.items():
            found = room(device)
            weights = max(sum(size for name, size in parts.items() if name in ORDER) for parts in stages.values())
            if weights > found.total:
                raise ResourceError(
                    f"{device} has {gib(found.total)} of memory, and weights alone take {gib(weights)}",
                    hint(self.remedies),
                )
            if self.peak(device) > found.free:
                warnings.append(f"{self._verdict(device, found)}\n{hint(self.remedies)}")
        return warnings

    def _verdict(self, device: torch.device, room: Room) -> str:
        fits = "fits" if self.peak(device) <= room.free else "may not fit"
        return f"{device}: about {gib(self.peak(device))} needed, {gib(room.free)} of {gib(room.total)} free: {fits}"


def hint(remedies: Sequence[Remedy]) -> str:
    """What to change, the most effective first."""
    if not remedies:
        return "Use smaller pictures, or a device with more memory."
    return f"The most effective first:\n{bullet_list(str(remedy) for remedy in remedies)}"


@contextmanager
def explained(forecast: Forecast) -> Iterator[None]:
    """Inside, running out of memory is a ResourceError that names what would have needed less."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        line = next(iter(str(error).splitlines()), type(error).__name__)
        if type(error) is RuntimeError and "allocate memory" not in line:  # what the allocator of the CPU says
            raise
        raise ResourceError(f"out of memory ({line})", hint(forecast.remedies)) from error


def gib(size: int) -> str:
    """Bytes in words."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.2f} M"


def components(composition: Composition) -> tuple[Loaded, ...]:
    """Encoder, denoiser and codec as they will be loaded."""

    def describe(role: str) -> Loaded:
        outline, quantiser = composition.outlines.get(role), composition.quantisers.get(role)
        dtype = str(composition.dtype(role)).removeprefix("torch.")
        return Loaded(
            role=role,
            name=getattr(composition.config, role).use,
            parameters=None if outline is None else sum(p.numel() for p in outline.network.parameters()),
            dtype=dtype
            if quantiser is None
            else f"{dtype}, quantised ({getattr(composition.config, role).quantise.use})",
            bytes=composition.weights(role),
            device=composition.device(role),
        )

    return tuple(describe(role) for role in ORDER)


def ranked(remedies: Sequence[Remedy]) -> tuple[Remedy, ...]:
    """Those that save anything, the most effective first."""
    return tuple(sorted((one for one in remedies if one.saves > 0), key=lambda one: -one.saves))


def quantise_remedies(composition: Composition, role: str) -> list[Remedy]:
    """Quantising a role's weights in 8 bits, where they are not: exact for layers of any quantiser with a byte each."""
    outline = composition.outlines.get(role)
    if outline is None or role in composition.quantisers:
        return []
    linears = [part.weight for part in outline.network.modules() if isinstance(part, nn.Linear)]
    return [Remedy(f"{role}.quantise.use=quanto", sum(w.nbytes - w.numel() for w in linears))]
