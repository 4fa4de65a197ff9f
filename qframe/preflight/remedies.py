"""Finds settings with which a run would need less memory, by forecasting the run with each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from qframe.config import load_config
from qframe.config.schema import QUANTISABLE, Config
from qframe.config.strict import unstructure
from qframe.errors import QframeError
from qframe.preflight.forecast import Forecast, Place, Remedy

Settings = tuple[str, ...]

_SMALLER = (
    ("use=quanto",),
    ("use=bitsandbytes", "options.weights=int8"),
    ("use=quanto", "options.weights=qint4"),
    ("use=bitsandbytes", "options.weights=nf4"),
)
"""Ways to quantise, the more exact ones first. A way that cannot be used on this machine is left out."""


def with_overrides(config: Config, settings: Sequence[str]) -> Config:
    """Return a configuration with these settings, as `--set` would make it. Raises ConfigError if it is none."""
    return load_config(values=unstructure(config), overrides=settings)


def find_remedies(
    config: Config, forecast: Forecast, again: Callable[[Config], Forecast], *, trains: bool, area: int | None
) -> list[Remedy]:
    """Return the settings that need less memory, the one that saves most in the fullest stage first.

    Args:
        config: The configuration as the user gave it.
        forecast: The forecast of the run.
        again: Checks another configuration, and returns its forecast. An error of qframe leaves the settings out.
        trains: Whether the run trains.
        area: The pixels of the largest picture that the recipe makes; None if it does not say.
    """
    found = []
    for settings in (*(_training(config) if trains else _sampling(config)), *_smaller_pictures(area)):
        try:
            other = again(with_overrides(config, settings))
        except QframeError:  # it contradicts another setting, or lacks a package: no remedy here
            continue
        saves = _saved(forecast, other, lambda one, place: sum(one.needs[place[0]][place[1]].values()))
        if saves:
            found.append(Remedy(settings, saves, _saved(forecast, other, Forecast.weights)))
    found = [one for one in found if not any(_does_as_much(other, one) for other in found)]
    order = list(forecast.places())
    return sorted(found, key=lambda one: [-one.saves.get(place, 0) for place in order])


def _does_as_much(other: Remedy, one: Remedy) -> bool:
    """Whether another remedy with fewer of the same settings saves as much."""
    fewer = set(other.settings) < set(one.settings)
    return fewer and all(other.saves.get(place, 0) >= size for place, size in one.saves.items())


def _saved(before: Forecast, after: Forecast, size: Callable[[Forecast, Place], int]) -> dict[Place, int]:
    """By place, what is less afterwards. In place of a stage that is no longer there the fullest one counts."""
    found = {}
    for place in before.places():
        here = after.needs.get(place[0], {})
        left = max((size(after, (place[0], stage)) for stage in ([place[1]] if place[1] in here else here)), default=0)
        if left < size(before, place):
            found[place] = size(before, place) - left
    return found


def _quantised(config: Config) -> Iterator[Settings]:
    for role in QUANTISABLE:
        for way in _SMALLER:
            yield tuple(f"{role}.quantise.{setting}" for setting in way)


def _streamed(config: Config) -> Iterator[Settings]:
    for role in QUANTISABLE:
        kept = getattr(config, role).resident_blocks
        if kept is None or kept > 0:
            yield (f"{role}.resident_blocks=0",)


def _common(config: Config) -> Iterator[Settings]:
    yield from _quantised(config)
    yield ("dtype=bfloat16",)
    for role in QUANTISABLE:
        yield (f"{role}.dtype=bfloat16",)
    yield ("codec.options.tiling=true",)
    yield ("codec.options.slicing=true",)


def _smaller_pictures(area: int | None) -> Iterator[Settings]:
    if area is not None:
        yield (f"recipe.min_area={area // 2}", f"recipe.max_area={area // 2}")  # not one alone: they must not cross


def _training(config: Config) -> Iterator[Settings]:
    train = config.train
    yield from _common(config)
    yield ("train.gradient_checkpointing=true",)
    for settings in _streamed(config):
        needs = settings[0].startswith("denoiser") and not train.gradient_checkpointing
        yield (*settings, *(("train.gradient_checkpointing=true",) if needs else ()))
    yield (
        "train.offload_inputs=true",
        *(() if train.gradient_checkpointing else ("train.gradient_checkpointing=true",)),
    )
    if train.batching == "packed" and train.tokens_per_batch is not None:
        yield (f"train.tokens_per_batch={max(train.tokens_per_batch // 2, 1)}",)
    elif train.batch_size > 1:
        yield ("train.batch_size=1", f"train.gradient_accumulation={train.batch_size * train.gradient_accumulation}")
    if train.mode == "full":
        yield ("train.mode=lora",)
        yield ("train.shard=full",)
    elif config.lora.rank is not None and config.lora.rank > 1:
        yield (f"lora.rank={config.lora.rank // 2}",)
    if train.shard == "none":
        yield ("train.shard=full",)
    if train.ema_decay:
        yield ("train.ema_decay=0",)
    if config.cache.enabled:
        yield ("cache.batch_size=1",)
    else:
        yield ("cache.enabled=true",)
    if config.sample.batch_size > 1:
        yield ("sample.batch_size=1",)
    if config.sample.guidance_batching == "joined":
        yield ("sample.guidance_batching=apart",)


def _sampling(config: Config) -> Iterator[Settings]:
    yield from _common(config)
    yield ("offload=model",)
    yield ("offload=stream",)
    yield from _streamed(config)
    if config.sample.guidance_batching == "joined":
        yield ("sample.guidance_batching=apart",)
