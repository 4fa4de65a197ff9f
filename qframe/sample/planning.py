"""Makes the plan of a settled request in the way that serves most families."""

from __future__ import annotations

from collections.abc import Callable

from qframe.interfaces import Guide, Parts, Plan, Settled
from qframe.sample.conditioning import encode_prompts
from qframe.sample.latents import decoder, initial_noise, reference_tokens


def plan_settled(settled: Settled, parts: Parts, *, guidance: Callable[[float], Guide]) -> Plan:
    """Make a plan that starts from noise: encode the prompts and the references, and draw the noise.

    Args:
        settled: What the recipe settled.
        parts: The components, encoder and codec loaded.
        guidance: The family's kind of guidance, of `qframe.diffusion.guidance`; it is called with the scale.
    """
    guided = encode_prompts(parts.encoder, settled, guidance=guidance)
    start = initial_noise(settled, parts, like=guided.cond.embeds)
    return Plan(
        start=start,
        references=reference_tokens(settled, parts),
        cond=guided.cond,
        uncond=guided.uncond,
        guide=guided.guide,
        forward=settled.forward,
        sigmas=settled.sigmas,
        decode=decoder(parts.codec, start, parts.denoiser_spec.patch),
    )
