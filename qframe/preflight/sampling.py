"""Forecasts the memory that a sampling run needs."""

from __future__ import annotations

import attrs
import torch

from qframe.compose import Composition
from qframe.compose.placement import CPU, ORDER, network_bytes
from qframe.config.schema import QUANTISABLE
from qframe.preflight.forecast import Forecast, components, mapped_roles, with_reserve
from qframe.preflight.nominal import nominal_example
from qframe.preflight.passes import Counts
from qframe.preflight.weights import PlacedWeights, placed_weights, unpacked_bytes


def forecast_sampling(
    composition: Composition,
    *,
    counts: Counts | None = None,
) -> Forecast:
    """Forecast the memory for sampling one picture, in the size that the recipe gives a picture of one megapixel.

    The prompt is assumed to have the family's default number of tokens (`SamplingDefaults.prompt_tokens`). With
    guidance one forward pass runs after the other, unless `sample.guidance_batching` joins them.

    Args:
        composition: The composition that will sample.
        counts: Remembers what was counted for earlier forecasts.
    """
    counts = counts or Counts()
    config = composition.config
    placed = {role: _placed(composition, role) for role in ORDER}
    working = _working(composition, counts)
    needs: dict[torch.device, dict[str, dict[str, int]]] = {}
    for role in ORDER:
        here = needs.setdefault(composition.device(role), {})
        if config.offload in (None, "none"):
            parts = here.setdefault("sampling", {})
            parts |= placed[role].parts
            parts["working"] = max(parts.get("working", 0), working[role])
        else:
            here[f"{role} in turn"] = {**placed[role].parts, "working": working[role]}
    host = {f"streamed {role}": placed[role].host for role in QUANTISABLE}
    if config.offload in ("model", "stream") and composition.device("denoiser") != CPU:
        outlines, quantisers = composition.outlines, composition.quantisers
        host = {role: network_bytes(part.network, quantisers.get(role)) for role, part in outlines.items()}
    return Forecast(
        loaded=components(composition),
        needs=with_reserve(needs),
        host=host,
        copied=placed["denoiser"].copied,
        copies=placed["denoiser"].copies,
        mapped=mapped_roles(composition),
        unknown=counts.unknown,
    )


def _placed(composition: Composition, role: str) -> PlacedWeights:
    resident = getattr(getattr(composition.config, role), "resident_blocks", None)
    if resident is None and composition.config.offload == "stream":
        resident = 0
    return placed_weights(composition, role, resident=resident)


def _working(composition: Composition, counts: Counts) -> dict[str, int]:
    """Return the bytes that each role takes for one picture, besides its weights."""
    example = nominal_example(composition)
    if example is None:
        return dict.fromkeys(ORDER, 0)
    target, references = example.batch.shape
    several = 2 if composition.config.sample.guidance_batching == "joined" else 1
    decoded = counts.decode(composition, target)
    encoded = counts.encode(composition, example.pixels, 1) if references else 0
    found = {
        "encoder": counts.prompts(composition, example.prompt, example.seen, 1),
        "denoiser": counts.forward(composition, attrs.evolve(example.batch, count=several)),
        "codec": max(decoded, encoded),
    }
    return {role: size + unpacked_bytes(composition, role) for role, size in found.items()}
