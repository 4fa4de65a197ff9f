"""qframe's own pipelines as the model that ``evaluate`` measures."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

import qframe
from qframe.sample.pipeline import Pipeline
from qframe_shapes.diffusers_sampling import diffusers_sampler, shared_arguments
from qframe_shapes.evaluate import Sample, SampleRequest

FAMILIES: Mapping[str, str] = {"text-to-image": "qwen-image", "paint": "qwen-inpaint"}
"""The family that runs an operation; every other operation is an edit."""


def qframe_sampler(
    model: str | Path,
    *,
    steps: int = 16,
    true_cfg_scale: float = 1.0,
    lora: str | Path | None = None,
    overrides: Sequence[str] = (),
) -> Sample:
    """A callable for ``evaluate.evaluate``: loads each family when its first request comes.

    true_cfg_scale: guidance of requests that have a negative prompt. overrides: as of `qframe.load`.
    """

    @functools.cache
    def pipeline(family: str) -> Pipeline:
        return qframe.load(family, model=model, lora=lora, overrides=overrides)

    def sample(requests: Sequence[SampleRequest]) -> list[Image.Image]:
        first = requests[0]
        arguments = shared_arguments(requests, steps)
        negatives = [request.negative_prompt for request in requests]
        if None not in negatives:
            arguments |= {"negative_prompt": negatives, "true_cfg_scale": true_cfg_scale}
        if first.image is not None:
            arguments["image"] = [request.image for request in requests]
        if first.mask is not None:
            arguments |= {"mask_image": [request.mask for request in requests], "strength": first.strength}
        output = pipeline(FAMILIES.get(first.operation, "qwen-edit"))(**arguments)
        return list(output.images)

    return sample


def checkpoint_sampler(model: Path, *, steps: int = 16) -> Sample:
    """The sampler of the model card: qframe's pipelines, and diffusers' own for painting into a mask."""
    own, upstream = qframe_sampler(model, steps=steps), diffusers_sampler(model, steps=steps)

    def sample(requests: Sequence[SampleRequest]) -> Sequence[Image.Image]:
        return (upstream if requests[0].operation == "paint" else own)(requests)

    return sample
