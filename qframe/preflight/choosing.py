"""Chooses, by the key `memory`, the settings that decide where things lie and when they are computed, never results.

Only keys that are not set are chosen. Each choice is a key that a user can set instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch

from qframe.compose import Composition
from qframe.compose.placement import Room, room_on
from qframe.config.memory import AUTO, memory_bytes
from qframe.config.schema import QUANTISABLE, Config
from qframe.preflight.forecast import Forecast, gib
from qframe.preflight.training import MOST_ENCODED
from qframe.preflight.weights import block_count

ENCODING = ("encoding pictures", "encoding prompts", "preparing samples")
"""The stages before the denoiser is loaded."""

Forecaster = Callable[[Composition], Forecast]


@attrs.frozen
class Choice:
    """A setting that was chosen.

    Attributes:
        key: The dotted key of the configuration.
        value: The value.
        reason: Why.
    """

    key: str
    value: Any
    reason: str

    def __str__(self) -> str:
        value = str(self.value).lower() if isinstance(self.value, bool) else self.value
        return f"{self.key} = {value}: {self.reason}"


def chosen_for_training(
    composition: Composition,
    forecast: Forecaster,
    *,
    processes: int = 1,
    room: Callable[[torch.device], Room] = room_on,
) -> tuple[Composition, tuple[Choice, ...]]:
    """Choose what the configuration of a training run leaves open.

    Args:
        composition: The composition that will be trained.
        forecast: Forecasts the run with another composition.
        processes: How many processes train together.
        room: Called with a device; returns its memory.

    Returns:
        The composition with the choices in its configuration, and the choices.
    """
    search = _Search(composition, forecast, room)
    if search.budgets:
        search.choose_encoding()
        search.choose_step(streams=not (composition.config.train.shard == "full" and processes > 1))
    return search.composition, tuple(search.choices)


def chosen_for_sampling(
    composition: Composition, forecast: Forecaster, *, room: Callable[[torch.device], Room] = room_on
) -> tuple[Composition, tuple[Choice, ...]]:
    """Choose what the configuration of a sampling run leaves open; arguments and result as for a training run."""
    search = _Search(composition, forecast, room)
    unset = all(getattr(composition.config, role).resident_blocks is None for role in QUANTISABLE)
    if search.budgets and composition.config.offload is None and unset:
        search.choose_offload()
    elif search.budgets and composition.config.offload == "stream":
        search.choose_resident()
    return search.composition, tuple(search.choices)


def with_settings(composition: Composition, settings: Mapping[str, Any]) -> Composition:
    """Return the composition with other values of these dotted keys, on which no component depends."""
    return composition.with_config(_evolved(composition.config, settings))


def _evolved(config: Any, settings: Mapping[str, Any]) -> Config:
    for key, value in settings.items():
        name, _, rest = key.partition(".")
        config = attrs.evolve(config, **{name: _evolved(getattr(config, name), {rest: value}) if rest else value})
    found: Config = config
    return found


class _Search:
    """Tries settings in the order of their price, and keeps the first that fit.

    Attributes:
        composition: The composition with what was chosen so far.
        choices: What was chosen so far.
        budgets: The bytes that may be used, by device; empty where there is nothing to choose.
    """

    def __init__(self, composition: Composition, forecast: Forecaster, room: Callable[[torch.device], Room]) -> None:
        self.composition = composition
        self.choices: list[Choice] = []
        self._forecast = forecast
        self.budgets: dict[torch.device, int] = {}
        memory = composition.config.memory
        for device in {composition.device(role) for role in ("encoder", "denoiser", "codec")}:
            if memory is not None and device.type not in ("cpu", "mps"):
                self.budgets[device] = room(device).free if memory == AUTO else memory_bytes(memory)

    def choose_encoding(self) -> None:
        """Choose the size of encoding batches, and how much of the encoder stays on its device."""
        config = self.composition.config
        sizes = [8, 4, 2, 1] if config.cache.batch_size is None and config.cache.enabled else [config.cache.batch_size]
        blocks = block_count(self.composition, "encoder") if config.encoder.resident_blocks is None else 0
        residents = [config.encoder.resident_blocks, *([0] if blocks else [])]
        tried = [{"cache.batch_size": size, "encoder.resident_blocks": kept} for kept in residents for size in sizes]
        settings = next((one for one in tried if self._fits(one, ENCODING)), tried[-1])
        if settings["encoder.resident_blocks"] == 0 and blocks:
            settings["encoder.resident_blocks"] = self._most_resident("encoder", settings, blocks, ENCODING)
        if settings["cache.batch_size"] == MOST_ENCODED and config.cache.batch_size is None:
            del settings["cache.batch_size"]  # as it is without a choice
        self._choose(settings, ENCODING)

    def choose_step(self, *, streams: bool) -> None:
        """Choose checkpointing, how much of the denoiser stays on its device, and where the inputs of blocks wait."""
        train, role = self.composition.config.train, self.composition.config.denoiser
        blocks = block_count(self.composition, "denoiser") if streams and train.mode == "lora" else 0
        stages = [stage for stage in self._stages() if stage not in ENCODING]
        tried = list(self._steps(blocks))
        settings = next((one for one in tried if self._fits(one, stages)), tried[-1])
        if settings.get("denoiser.resident_blocks") == 0 and role.resident_blocks is None:
            settings["denoiser.resident_blocks"] = self._most_resident("denoiser", settings, blocks, stages)
        self._choose(settings, stages)

    def _steps(self, blocks: int) -> Iterator[dict[str, Any]]:
        """Yield settings of a step, the cheapest first."""
        train, resident = self.composition.config.train, self.composition.config.denoiser.resident_blocks
        again = {"train.gradient_checkpointing": True} if self._can_recompute() else {}
        if resident is None or train.gradient_checkpointing is not None:
            yield {}
        if again and resident is None:
            yield dict(again)
        if not (again or train.gradient_checkpointing) or not blocks:
            yield dict(again)
            return
        streamed = {} if resident is not None else {"denoiser.resident_blocks": 0}
        yield {**again, **streamed}
        if train.offload_inputs is None:
            yield {**again, **streamed, "train.offload_inputs": True}

    def _can_recompute(self) -> bool:
        outline = self.composition.outlines.get("denoiser")
        unset = self.composition.config.train.gradient_checkpointing is None
        return unset and outline is not None and hasattr(outline.module, "enable_gradient_checkpointing")

    def choose_offload(self) -> None:
        """Choose whether the networks of a sampling run are on the device together, one by one, or streamed."""
        stages = self._stages
        if self._fits({}, stages()):
            return
        moved = {"offload": "model"}
        if self._fits(moved, None):
            self._choose(moved, None)
            return
        self._choose({"offload": "stream"}, None)
        self.choose_resident()

    def choose_resident(self) -> None:
        """Choose how many blocks of each network stay on the device while the network is there."""
        for role in QUANTISABLE:
            blocks = block_count(self.composition, role)
            if blocks and getattr(self.composition.config, role).resident_blocks is None:
                stages = [f"{role} in turn"]
                kept = self._most_resident(role, {}, blocks, stages)
                if kept:
                    self._choose({f"{role}.resident_blocks": kept}, stages)

    def _most_resident(self, role: str, settings: Mapping[str, Any], blocks: int, stages: Sequence[str]) -> int:
        """Return the largest number of resident blocks that fits; 0 if none does."""
        low, high = 0, blocks - 1
        while low < high:
            middle = (low + high + 1) // 2
            if self._fits({**settings, f"{role}.resident_blocks": middle}, stages):
                low = middle
            else:
                high = middle - 1
        return low

    def _stages(self) -> list[str]:
        needs = self._forecast(self.composition).needs
        return list(dict.fromkeys(stage for stages in needs.values() for stage in stages))

    def _needed(self, settings: Mapping[str, Any], stages: Sequence[str] | None) -> dict[torch.device, tuple[int, str]]:
        """The most bytes that each device needs in these stages (by default in all), and the stage that needs them."""
        needs = self._forecast(with_settings(self.composition, settings)).needs
        return {
            device: max(
                (sum(parts.values()), stage) for stage, parts in here.items() if stages is None or stage in stages
            )
            for device, here in needs.items()
            if device in self.budgets and any(stages is None or stage in stages for stage in here)
        }

    def _fits(self, settings: Mapping[str, Any], stages: Sequence[str] | None) -> bool:
        return all(size <= self.budgets[device] for device, (size, _) in self._needed(settings, stages).items())

    def _choose(self, settings: Mapping[str, Any], stages: Sequence[str] | None) -> None:
        """Keep settings that change something, with the reason: what would be needed without them."""
        changed = {key: value for key, value in settings.items() if value is not None and value != self._value(key)}
        if not changed:
            return
        over = [
            f"{stage} would need {gib(size)} of {gib(self.budgets[device])} on {device}"
            for device, (size, stage) in self._needed({}, stages).items()
            if size > self.budgets[device]
        ]
        why = "; ".join(over) or "streamed weights need it"
        self.choices += [Choice(key, value, why) for key, value in changed.items()]
        self.composition = with_settings(self.composition, changed)

    def _value(self, key: str) -> Any:
        found: Any = self.composition.config
        for name in key.split("."):
            found = getattr(found, name)
        return found
