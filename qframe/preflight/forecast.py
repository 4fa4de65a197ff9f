"""The values of a memory forecast, and their wording for people."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

import attrs
import torch
from torch import nn

from qframe.compose import Composition
from qframe.compose.placement import ORDER, Room, room_on
from qframe.errors import ResourceError, bullet_list

PICTURE = (1024, 1024)
"""Height and width in pixels that are assumed for a picture whose size is not known before the recipe resizes it."""


@attrs.frozen
class Loaded:
    """A component that a run will load, and the size of its weights.

    Attributes:
        role: The role of the component.
        name: The registered name of the component.
        parameters: The number of its parameters; None if it is known only from the weights.
        dtype: The dtype of its weights, and the name of the quantiser if they are quantised.
        bytes: The bytes of its weights, after quantisation if that is configured; None if unknown.
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
    """A change of the configuration with which a run would need less memory.

    Attributes:
        setting: The setting, as `--set` takes it, or described in words.
        saves: About how many bytes it would save.
    """

    setting: str
    saves: int

    def __str__(self) -> str:
        return f"{self.setting} (about {gib(self.saves)} less)" if self.saves else self.setting


@attrs.frozen(kw_only=True)
class Forecast:
    """The components that a run will load, the memory that it will need, and settings that would need less.

    Attributes:
        loaded: The components that will be loaded.
        needs: By device, then by stage of the run (such as "training"), then by name (such as "activations"): the bytes
            that are needed.
        remedies: Settings with which the run would need less memory, the most effective first.
        mapped: The names, in the innermost mapping of `needs`, of weights that are mapped from their files. They may be
            larger than the memory.
    """

    loaded: tuple[Loaded, ...]
    needs: Mapping[torch.device, Mapping[str, Mapping[str, int]]]
    remedies: tuple[Remedy, ...]
    mapped: frozenset[str] = frozenset()

    def peak(self, device: torch.device) -> int:
        """Return the bytes that a device needs in the stage of the run that needs most, mapped weights among them."""
        return max(sum(parts.values()) for parts in self.needs[device].values())

    def own_peak(self, device: torch.device) -> int:
        """Return the bytes that a device needs in the stage that needs most, without what is mapped from files."""
        return max(self._own(parts) for parts in self.needs[device].values())

    def _own(self, parts: Mapping[str, int], names: Collection[str] | None = None) -> int:
        return sum(size for name, size in parts.items() if name not in self.mapped and (names is None or name in names))

    def table(self, room: Callable[[torch.device], Room] = room_on) -> list[str]:
        """Return the forecast as lines of text: components, memory per stage and device, whether it fits, remedies.

        Args:
            room: Called with a device; returns its memory.
        """
        lines = ["will load", *(f"  {part}" for part in self.loaded)]
        for device, stages in self.needs.items():
            for stage, parts in stages.items():
                listed = ", ".join(
                    f"{name} {gib(size)}" + (" mapped" if name in self.mapped else "")
                    for name, size in parts.items()
                    if size
                )
                lines.append(f"{stage} on {device}: about {gib(sum(parts.values()))} ({listed})")
            lines.append(self._verdict(device, room(device)))
        if self.remedies:
            lines += ["would need less, the most effective first", *(f"  {remedy}" for remedy in self.remedies)]
        return lines

    def summary(self, room: Callable[[torch.device], Room] = room_on) -> str:
        """Return one line with the most memory that each device needs, and the memory that it has.

        Args:
            room: Called with a device; returns its memory.
        """
        peaks = (f"about {gib(self.peak(device))} of {gib(room(device).total)} on {device}" for device in self.needs)
        return f"Memory: {'; '.join(peaks)}."

    def check(self, room: Callable[[torch.device], Room] = room_on) -> list[str]:
        """Return a warning for each device that has less free memory than the run is forecast to need there.

        Args:
            room: Called with a device; returns its memory.

        Raises:
            ResourceError: The weights alone take more memory than a device has; their size is exact, not an estimate.
        """
        warnings = []
        for device, stages in self.needs.items():
            found = room(device)
            weights = max(self._own(parts, ORDER) for parts in stages.values())
            if weights > found.total:
                raise ResourceError(
                    f"{device} has {gib(found.total)} of memory, and weights alone take {gib(weights)}",
                    hint(self.remedies),
                )
            if self.peak(device) > found.free:
                warnings.append(f"{self._verdict(device, found)}\n{hint(self.remedies)}")
        return warnings

    def _verdict(self, device: torch.device, room: Room) -> str:
        fits = "may not fit"
        if self.peak(device) <= room.free:
            fits = "fits"
        elif self.own_peak(device) <= room.free:
            fits = (
                f"all but mapped weights fits ({gib(self.own_peak(device))}), and the weights are read from their "
                "files again and again, which takes time"
            )
        return f"{device}: about {gib(self.peak(device))} needed, {gib(room.free)} of {gib(room.total)} free: {fits}"


def hint(remedies: Sequence[Remedy]) -> str:
    """Return the advice for a warning or an error about memory: the remedies, in their order."""
    if not remedies:
        return "Use smaller pictures, or a device with more memory."
    return f"The most effective first:\n{bullet_list(str(remedy) for remedy in remedies)}"


@contextmanager
def explained(forecast: Forecast) -> Iterator[None]:
    """Return a context that turns an out-of-memory error in it into a ResourceError with the forecast's remedies."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        line = next(iter(str(error).splitlines()), type(error).__name__)
        if type(error) is RuntimeError and "allocate memory" not in line:  # the words of the CPU's allocator
            raise
        raise ResourceError(f"out of memory ({line})", hint(forecast.remedies)) from error


def gib(size: int) -> str:
    """Write a number of bytes for people in GiB or MiB, for example "1.5 GiB"."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.2f} M"


def components(composition: Composition) -> tuple[Loaded, ...]:
    """Describe encoder, denoiser and codec of a composition as they will be loaded."""

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


def mapped_roles(composition: Composition) -> frozenset[str]:
    """Return the roles whose weights are mapped from their files when they are loaded."""
    return frozenset(role for role in ORDER if composition.maps_weights(role))


def ranked(remedies: Sequence[Remedy]) -> tuple[Remedy, ...]:
    """Return the remedies that save any memory, sorted so that the one that saves most is first."""
    return tuple(sorted((one for one in remedies if one.saves > 0), key=lambda one: -one.saves))


def quantise_remedies(composition: Composition, role: str) -> list[Remedy]:
    """Return the remedy of quantising a role's weights to 8 bits, as a list of one.

    The list is empty if the weights are quantised already, or if their shapes are unknown. The bytes saved are exact
    for a quantiser that stores one byte for each weight.
    """
    outline = composition.outlines.get(role)
    if outline is None or role in composition.quantisers:
        return []
    linears = [part.weight for part in outline.network.modules() if isinstance(part, nn.Linear)]
    return [Remedy(f"{role}.quantise.use=quanto", sum(w.nbytes - w.numel() for w in linears))]
