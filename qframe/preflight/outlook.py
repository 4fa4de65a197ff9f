"""The memory of a sampling run before it starts: what the key `memory` chooses, what is forecast, what would help."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import torch

from qframe.compose import Composition, compose
from qframe.compose.placement import Room, room_on
from qframe.config.schema import Config
from qframe.preflight.choosing import Choice, chosen_for_sampling
from qframe.preflight.forecast import Forecast
from qframe.preflight.nominal import largest_area
from qframe.preflight.passes import Counts
from qframe.preflight.remedies import find_remedies
from qframe.preflight.sampling import forecast_sampling


@attrs.frozen(kw_only=True)
class SamplingOutlook:
    """The outlook on the memory of a sampling run.

    Attributes:
        composition: The composition, with what was chosen in its configuration.
        choices: What the key `memory` chose, with the reasons.
        forecast: The forecast of the run.
    """

    composition: Composition
    choices: tuple[Choice, ...]
    forecast: Forecast


def sampling_outlook(
    composition: Composition, *, room: Callable[[torch.device], Room] = room_on, counts: Counts | None = None
) -> SamplingOutlook:
    """Choose what the configuration of a sampling run leaves open, and forecast the run.

    Args:
        composition: The composition that will sample.
        room: Called with a device; returns its memory.
        counts: Remembers what was counted before.
    """
    counts = counts or Counts()

    def forecast(one: Composition) -> Forecast:
        return forecast_sampling(one, counts=counts)

    def again(config: Config) -> Forecast:
        other = attrs.evolve(compose(config, given=composition.given), imagined=composition.imagined)
        return forecast(chosen_for_sampling(other.sharing(composition), forecast, room=room)[0])

    area = largest_area(composition)
    chosen, choices = chosen_for_sampling(composition, forecast, room=room)
    found = forecast(chosen).advised(lambda own: find_remedies(composition.config, own, again, trains=False, area=area))
    return SamplingOutlook(composition=chosen, choices=choices, forecast=found)
