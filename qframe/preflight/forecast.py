"""The values of a memory forecast, and their wording for people."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
import torch

from qframe.compose import Composition
from qframe.compose.placement import ORDER, Room, room_on
from qframe.errors import ResourceError, bullet_list
from qframe.preflight.weights import SLOTS

RESERVE = 2**30
"""Bytes that CUDA is assumed to take besides tensors: about half is its context with the libraries' kernels and working
memory, and the rest is what torch's allocator cannot use of the blocks that it holds. This is an allowance; nothing in
it is counted."""

CUDA = "allowance for CUDA"
"""The name of the reserve among the needs of a device."""


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


Place = tuple[torch.device, str]
"""A device, and a stage of the run."""


@attrs.frozen
class Remedy:
    """Settings with which a run needs less memory, as its forecast with them says.

    Attributes:
        settings: The settings, each as `--set` takes it.
        saves: By device and stage, how many bytes less are forecast there; only where it is less.
        weights: The same for weights alone.
    """

    settings: tuple[str, ...]
    saves: Mapping[Place, int]
    weights: Mapping[Place, int] = attrs.field(factory=dict)

    def told(self, place: Place | None = None, *, weights: bool = False) -> str:
        """Return the settings, and what they save at a place, or at all places."""
        saved = self.weights if weights else self.saves
        chosen = saved if place is None else {place: saved.get(place, 0)}
        less = ", ".join(f"{stage} {gib(size)} less" for (_, stage), size in chosen.items())
        return f"{' '.join(f'--set {shlex.quote(setting)}' for setting in self.settings)} ({less})"

    def __str__(self) -> str:
        return self.told()


@attrs.frozen(kw_only=True)
class Forecast:
    """The components that a run will load, the memory that it will need, and settings that would need less.

    Attributes:
        loaded: The components that will be loaded.
        needs: By device, then by stage of the run (such as "training"), then by name (such as "activations"): the bytes
            that are needed.
        host: By name: the bytes of host memory that a run on another device keeps there for that device.
        copied: How many bytes of weights a pass of the denoiser copies to its device.
        copies: How many copies this takes.
        offloaded: How many bytes that blocks keep wait in host memory for the backward pass.
        mapped: The names, in the innermost mapping of `needs`, of weights that are mapped from their files. They may be
            larger than the memory.
        unknown: What could not be counted, with the reason.
        find_remedies: Computes the remedies, which takes a while.
    """

    loaded: tuple[Loaded, ...]
    needs: Mapping[torch.device, Mapping[str, Mapping[str, int]]]
    host: Mapping[str, int] = attrs.field(factory=dict)
    copied: int = 0
    copies: int = 0
    offloaded: int = 0
    mapped: frozenset[str] = frozenset()
    unknown: Mapping[str, str] = attrs.field(factory=dict)
    find_remedies: Callable[[Forecast], Sequence[Remedy]] = attrs.field(default=lambda forecast: (), eq=False)

    def remedies(self) -> tuple[Remedy, ...]:
        """Return settings with which the run would need less, each forecast with the settings in force."""
        return tuple(self.find_remedies(self))

    def advised(self, find_remedies: Callable[[Forecast], Sequence[Remedy]]) -> Forecast:
        """Return this forecast with another way to find its remedies."""
        return attrs.evolve(self, find_remedies=find_remedies)

    def peak(self, device: torch.device) -> int:
        """Return the bytes that a device needs in the stage of the run that needs most, mapped weights among them."""
        return max(sum(parts.values()) for parts in self.needs[device].values())

    def own_peak(self, device: torch.device) -> int:
        """Return the bytes that a device needs in the stage that needs most, without what is mapped from files."""
        return max(self._own(parts) for parts in self.needs[device].values())

    def weights(self, place: Place) -> int:
        """Return the bytes of weights that are not mapped, at a device and a stage."""
        parts = self.needs[place[0]][place[1]]
        return self._own(parts, [name for name in parts if name.removesuffix(SLOTS) in ORDER])

    def places(self) -> Iterator[Place]:
        """Yield every device and stage, the one that needs most first."""
        found = [(device, stage) for device, stages in self.needs.items() for stage in stages]
        yield from sorted(found, key=lambda place: -sum(self.needs[place[0]][place[1]].values()))

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
        if any(self.host.values()):
            listed = ", ".join(f"{name} {gib(size)}" for name, size in self.host.items() if size)
            lines.append(f"in host memory: about {gib(sum(self.host.values()))} ({listed})")
        lines += [f"not counted: {what}: {why}" for what, why in self.unknown.items()]
        remedies = self.remedies()
        if remedies:
            lines += ["would need less, the most effective first", *(f"  {remedy}" for remedy in remedies)]
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
            stage = max(stages, key=lambda stage: self.weights((device, stage)))
            weights = self.weights((device, stage))
            if weights > found.total:
                raise ResourceError(
                    f"{device} has {gib(found.total)} of memory, and weights alone take {gib(weights)} in {stage}",
                    hint(self.remedies(), [(device, stage)], weights=True),
                )
            if self.peak(device) > found.free:
                over = [(device, stage) for stage, parts in stages.items() if sum(parts.values()) > found.free]
                warnings.append(f"{self._verdict(device, found)}\n{hint(self.remedies(), over)}")
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


def hint(remedies: Sequence[Remedy], places: Sequence[Place] = (), *, weights: bool = False) -> str:
    """Return the advice for a warning or an error about memory: the remedies that help, the most effective first.

    Args:
        remedies: The remedies.
        places: The devices and stages that were refused; without any, all remedies are listed in their order.
        weights: Whether they were refused because of their weights, so that nothing else helps.
    """
    lines = [str(remedy) for remedy in remedies]
    if places:
        saved = [
            (remedy, place, (remedy.weights if weights else remedy.saves).get(place, 0))
            for place in places
            for remedy in remedies
        ]
        ordered = sorted((one for one in saved if one[2] > 0), key=lambda one: (places.index(one[1]), -one[2]))
        lines = [remedy.told(place, weights=weights) for remedy, place, _ in ordered]
    if not lines:
        return "Use smaller pictures, or a device with more memory."
    return f"The most effective first:\n{bullet_list(lines)}"


@contextmanager
def explained(forecast: Forecast) -> Iterator[None]:
    """Return a context that turns an out-of-memory error in it into a ResourceError with the forecast's remedies."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        line = next(iter(str(error).splitlines()), type(error).__name__)
        if type(error) is RuntimeError and "allocate memory" not in line:  # the words of the CPU's allocator
            raise
        raise ResourceError(f"out of memory ({line})", hint(forecast.remedies(), list(forecast.places()))) from error


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


def with_reserve(needs: Mapping[torch.device, Mapping[str, Mapping[str, int]]]) -> dict[torch.device, Any]:
    """Return the needs with the allowance for CUDA in every stage of a device of CUDA."""
    return {
        device: {
            stage: {**parts, CUDA: RESERVE} if device.type == "cuda" else dict(parts) for stage, parts in stages.items()
        }
        for device, stages in needs.items()
    }
