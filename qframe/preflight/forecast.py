"""A forecast of memory: its figures, and how they are worded."""

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
"""Assumed size of a picture that is not known yet; the recipe's geometry fits it."""


@attrs.frozen
class Loaded:
    """A component that will be loaded.

    Attributes:
        role: The role of the component.
        name: The registered name of the component.
        parameters: Number of its parameters; None if unknown.
        dtype: Dtype of its weights, and how they are quantised.
        bytes: Bytes of its weights, after quantisation where that is configured; None if unknown.
        device: The device that it computes on.
    """

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
    """A setting that would need less memory.

    Attributes:
        setting: The setting, as `--set` takes it, or in words.
        saves: About how many bytes it would save.
    """

    setting: str
    saves: int

    def __str__(self) -> str:
        return f"{self.setting} (about {gib(self.saves)} less)" if self.saves else self.setting


@attrs.frozen(kw_only=True)
class Forecast:
    """What a run will load, how much memory it will need, and what would need less.

    Attributes:
        loaded: The components that will be loaded.
        needs: For each device and each stage of the run, the bytes that each thing takes, by its name.
        remedies: Settings that would need less, the most effective first.
    """

    loaded: tuple[Loaded, ...]
    needs: Mapping[torch.device, Mapping[str, Mapping[str, int]]]
    remedies: tuple[Remedy, ...]

    def peak(self, device: torch.device) -> int:
        """Bytes that the most demanding stage needs on a device."""
        return max(sum(parts.values()) for parts in self.needs[device].values())

    def table(self, room: Callable[[torch.device], Room] = room_on) -> list[str]:
        """The lines of a table: what will be loaded, what each stage needs of each device, whether it fits, what helps.

        Args:
            room: Tells the memory of a device.
        """
        lines = ["will load", *(f"  {part}" for part in self.loaded)]
        for device, stages in self.needs.items():
            for stage, parts in stages.items():
                listed = ", ".join(f"{name} {gib(size)}" for name, size in parts.items() if size)
                lines.append(f"{stage} on {device}: about {gib(sum(parts.values()))} ({listed})")
            lines.append(self._verdict(device, room(device)))
        if self.remedies:
            lines += ["would need less, the most effective first", *(f"  {remedy}" for remedy in self.remedies)]
        return lines

    def summary(self, room: Callable[[torch.device], Room] = room_on) -> str:
        """One line with the most that each device needs, and the memory it has.

        Args:
            room: Tells the memory of a device.
        """
        peaks = (f"about {gib(self.peak(device))} of {gib(room(device).total)} on {device}" for device in self.needs)
        return f"Memory: {'; '.join(peaks)}."

    def check(self, room: Callable[[torch.device], Room] = room_on) -> list[str]:
        """A warning for each device that has less free memory than the forecast needs.

        Args:
            room: Tells the memory of a device.

        Raises:
            ResourceError: The weights alone take more memory than a device has; their size is exact, not an estimate.
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
    """The advice of a warning or an error: the settings to change, the most effective first."""
    if not remedies:
        return "Use smaller pictures, or a device with more memory."
    return f"The most effective first:\n{bullet_list(str(remedy) for remedy in remedies)}"


@contextmanager
def explained(forecast: Forecast) -> Iterator[None]:
    """A context that turns an out-of-memory error into a ResourceError, which names settings that need less memory."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        line = next(iter(str(error).splitlines()), type(error).__name__)
        if type(error) is RuntimeError and "allocate memory" not in line:  # the words of the CPU's allocator
            raise
        raise ResourceError(f"out of memory ({line})", hint(forecast.remedies)) from error


def gib(size: int) -> str:
    """A number of bytes in words, for example "1.5 GiB"."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.2f} M"


def components(composition: Composition) -> tuple[Loaded, ...]:
    """Encoder, denoiser and codec of a composition as they will be loaded."""

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
    """The remedies that save anything, sorted by how much, the most effective first."""
    return tuple(sorted((one for one in remedies if one.saves > 0), key=lambda one: -one.saves))


def quantise_remedies(composition: Composition, role: str) -> list[Remedy]:
    """The remedy of quantising the weights of a role to 8 bits; empty if they are quantised already or unknown.

    What it saves is exact for a quantiser that stores one byte for each weight.
    """
    outline = composition.outlines.get(role)
    if outline is None or role in composition.quantisers:
        return []
    linears = [part.weight for part in outline.network.modules() if isinstance(part, nn.Linear)]
    return [Remedy(f"{role}.quantise.use=quanto", sum(w.nbytes - w.numel() for w in linears))]
