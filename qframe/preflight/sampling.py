"""Forecasts the memory that a sampling run needs."""

from __future__ import annotations

import torch

from qframe.cache.lengths import Shape
from qframe.compose import Composition
from qframe.compose.placement import ORDER
from qframe.compose.streaming import streamed_bytes
from qframe.config.schema import QUANTISABLE
from qframe.preflight.forecast import PICTURE, Forecast, Remedy, components, mapped_roles, quantise_remedies, ranked
from qframe.preflight.shapes import META, Made, forward_bytes


def forecast_sampling(composition: Composition) -> Forecast:
    """Forecast the memory for sampling one picture, in the size that the recipe gives a picture of one megapixel.

    The prompt is assumed to have the family's default number of tokens (`SamplingDefaults.prompt_tokens`). The
    forecast is the same with guidance, which runs one forward pass after the other; the larger forward pass of
    `sample.guidance_batching = "joined"` is not counted.

    Args:
        composition: The composition that will sample.
    """
    config = composition.config
    weights = {role: composition.weights(role) or 0 for role in ORDER}
    working = _working(composition)
    needs: dict[torch.device, dict[str, dict[str, int]]] = {}
    for role in ORDER:
        here = needs.setdefault(composition.device(role), {})
        if config.offload == "none":
            parts = here.setdefault("sampling", {})
            parts[role] = weights[role]
            parts["working"] = max(parts.get("working", 0), working[role])
        elif config.offload == "stream" and (streamed := _streamed(composition, role)) is not None:
            here[f"{role} in turn"] = {"streamed": streamed, "working": working[role]}
        else:
            here[f"{role} in turn"] = {role: weights[role], "working": working[role]}
    remedies = [remedy for role in QUANTISABLE for remedy in quantise_remedies(composition, role)]
    if config.offload == "none":
        remedies.append(Remedy("offload=model", sum(weights.values()) - max(weights.values())))
    if config.offload != "stream" and composition.device("denoiser").type != "cpu":
        left = max(_streamed(composition, role) or weights[role] for role in QUANTISABLE)
        held = sum(weights.values()) if config.offload == "none" else max(weights.values())
        remedies.append(Remedy("offload=stream", held - max(left, weights["codec"])))
    return Forecast(
        loaded=components(composition),
        needs=needs,
        remedies=ranked(remedies),
        mapped=mapped_roles(composition),
    )


def _working(composition: Composition) -> dict[str, int]:
    """Return the bytes of the activations of each role for one picture. The encoder's are not counted, and are 0."""
    found = dict.fromkeys(ORDER, 0)
    recipe, compression = composition.recipe, composition.specs["codec"].compression
    geometry = getattr(recipe, "geometry", None)
    if geometry is None:
        return found
    height, width = (side // compression for side in geometry.fit(*PICTURE))
    shape: Shape = ((height, width), ((height, width),) if recipe.references else ())
    outlines = composition.outlines
    with torch.no_grad():
        if "denoiser" in outlines:
            found["denoiser"] = forward_bytes(
                outlines["denoiser"], composition.specs["denoiser"], shape, recipe.sampling.prompt_tokens, 1
            )[1]
        if "codec" in outlines:
            latents = torch.empty(1, composition.specs["codec"].channels, height, width, device=META)
            made = Made()
            with made:
                outlines["codec"].decode(latents)
            found["codec"] = made.peak
    return found


def _streamed(composition: Composition, role: str) -> int | None:
    """Return the bytes of a role's weights on its device if its blocks are streamed; None if they are not."""
    outline = composition.outlines.get(role)
    if outline is None or not outline.block_lists() or composition.device(role).type == "cpu":
        return None
    resident = composition.resident_blocks(role) or 0
    return streamed_bytes(outline, resident, composition.quantisers.get(role)).device
