"""Forecasts a training run on a card that this machine need not have, with several ways to store the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch

from qframe.compose import Composition, compose
from qframe.compose.placement import Room
from qframe.config import load_config
from qframe.config.memory import memory_bytes
from qframe.config.schema import Config
from qframe.config.strict import unstructure
from qframe.errors import QframeError
from qframe.interfaces import Grid
from qframe.preflight import Counts, Forecast, forecast_training
from qframe.preflight.choosing import Choice, chosen_for_training
from qframe.preflight.nominal import largest_example, nominal_inputs, nominal_size
from qframe.train.arithmetic import step_flops

CARD = torch.device("cuda", 0)

WEIGHTS: Mapping[str, tuple[str, ...]] = {
    "bfloat16": (),
    "int8": ("denoiser.quantise.use=quanto",),
    "int8, encoder too": ("denoiser.quantise.use=quanto", "encoder.quantise.use=quanto"),
    "int4": ("denoiser.quantise.use=quanto", "denoiser.quantise.options.weights=qint4"),
}
"""The ways to store weights, the most exact first, with the settings of each."""


@attrs.frozen(kw_only=True)
class Card:
    """What the time of a step depends on.

    Attributes:
        rate: How many floating point operations the card does in a second; None if it is not known.
        bandwidth: How many bytes it is sent in a second; None if it is not known.
    """

    rate: float | None = None
    bandwidth: float | None = None

    def seconds(self, flops: int | None, copied: int) -> float | None:
        """Return the time of a step in which copies run beside the computing: that of the longer of the two.

        None if it is not known.
        """
        if self.rate is None or flops is None or (copied and self.bandwidth is None):
            return None
        return max(flops / self.rate, copied / self.bandwidth if self.bandwidth else 0.0)


CARDS: Mapping[str, Card] = {
    "RTX 4090": Card(rate=150e12, bandwidth=25e9),
    "RTX 3090": Card(rate=60e12, bandwidth=25e9),
    "H200": Card(rate=800e12, bandwidth=50e9),
}
"""Rates of bfloat16 products that large matrices reach, and the speeds of PCIe 4.0 and 5.0 with 16 lanes. They are
assumptions, not measurements: a training step reaches less."""


@attrs.frozen(kw_only=True)
class Setting:
    """A way to train, and what it needs.

    Attributes:
        weights: How the weights are stored, in words.
        settings: The settings of that way, as `--set` takes them.
        choices: What the key `memory` chose.
        peak: The bytes of the card that the fullest stage needs, the allowance for CUDA among them.
        stage: That stage.
        training: The bytes of the card that a step needs, likewise.
        host: The bytes of host memory that are kept for the card.
        copies: How many copies of blocks a step makes.
        copied: How many bytes a step copies to the card.
        flops: The floating point operations of a forward and backward pass; None if the denoiser does not say.
        fits: Whether the peak is at most the memory of the card.
        forecast: The whole forecast.
    """

    weights: str
    settings: tuple[str, ...]
    choices: tuple[Choice, ...]
    peak: int
    stage: str
    training: int
    host: int
    copies: int
    copied: int
    flops: int | None
    fits: bool
    forecast: Forecast = attrs.field(repr=False)


def plans(config: Config, memory: str, ways: Mapping[str, Sequence[str]] = WEIGHTS) -> Iterator[Setting]:
    """Yield what each way to store the weights needs on a card with this much memory.

    A way that contradicts the configuration, or whose quantiser is not installed, is left out.

    Args:
        config: The configuration of the training run. Its pictures are assumed to have a megapixel.
        memory: The memory of the card, as the key `memory` has it.
        ways: The settings of each way.
    """
    counts = Counts()
    for name, settings in ways.items():
        try:
            yield planned(_with(config, settings), memory, counts, weights=name, settings=tuple(settings))
        except QframeError:
            if not settings:
                raise


def planned(
    config: Config, memory: str, counts: Counts | None = None, *, weights: str = "", settings: tuple[str, ...] = ()
) -> Setting:
    """Return what a configuration needs on a card with this much memory; arguments as in `Setting`."""
    counts = counts or Counts()
    composition = imagined(compose(attrs.evolve(config, memory=memory)))
    size = memory_bytes(memory)
    inputs = [nominal_inputs(composition)]

    def forecast(one: Composition) -> Forecast:
        return forecast_training(one, inputs, counts=counts, samples=config.sample.count > 0)

    chosen, choices = chosen_for_training(composition, forecast, room=lambda device: Room(size, size))
    found = forecast(chosen)
    stages = {stage: sum(parts.values()) for stage, parts in found.needs[CARD].items()}
    fullest = max(stages, key=lambda stage: stages[stage])
    return Setting(
        weights=weights,
        settings=settings,
        choices=choices,
        peak=stages[fullest],
        stage=fullest,
        training=stages["training"],
        host=sum(found.host.values()),
        copies=2 * found.copies,
        copied=2 * found.copied + found.offloaded,
        flops=_flops(chosen, inputs),
        fits=stages[fullest] <= size,
        forecast=found,
    )


def imagined(composition: Composition) -> Composition:
    """Return a composition all of whose components compute on a card that this machine need not have."""
    return attrs.evolve(composition, imagined=CARD)


def _with(config: Config, settings: Sequence[str]) -> Config:
    return load_config(values=unstructure(config), overrides=settings) if settings else config


def _flops(composition: Composition, inputs: Sequence[Any]) -> int | None:
    outline = composition.outlines.get("denoiser")
    batch = largest_example(composition, inputs, nominal_size).batch
    patch = composition.specs["denoiser"].patch
    grids: tuple[Grid, ...] = tuple((1, h // patch, w // patch) for h, w in (batch.shape[0], *batch.shape[1]))
    count = composition.config.train.batch_size
    forward = None if outline is None else outline.flops([grids] * count, [batch.text] * count)
    return None if forward is None else step_flops(forward, composition.config.train)
