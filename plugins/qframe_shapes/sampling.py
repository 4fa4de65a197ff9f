"""Sample pictures with qframe's pipelines, so that `evaluate` can measure how often the pictures are right."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

import qframe
from qframe.sample.pipeline import Pipeline
from qframe_shapes.diffusers_sampling import diffusers_sampler, shared_arguments
from qframe_shapes.evaluate import Sample, SampleRequest

FAMILIES: Mapping[str, str] = {"text-to-image": "qwen-image", "paint": "qwen-inpaint"}
"""The family that runs an operation; operations that are not listed are edits and run in `qwen-edit`."""


def qframe_sampler(
    model: str | Path,
    *,
    steps: int = 16,
    true_cfg_scale: float = 1.0,
    lora: str | Path | None = None,
    overrides: Sequence[str] = (),
) -> Sample:
    """Make a function that samples with qframe, for `evaluate.evaluate` to measure.

    The function loads a family when the first request needs that family.

    Args:
        model: The model folder.
        steps: Sampling steps per picture.
        true_cfg_scale: The guidance scale for requests that have a negative prompt.
        lora: A LoRA file to load into the denoiser; None for none.
        overrides: Configuration keys with their values, as for `qframe.load`.
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


def card_sampler(model: Path, *, steps: int = 16) -> Sample:
    """Make the function that the numbers of the model card are measured with.

    It samples with diffusers' pipeline for painting, and with qframe's pipelines for all other operations.

    Args:
        model: The model folder.
        steps: Sampling steps per picture.
    """
    own, upstream = qframe_sampler(model, steps=steps), diffusers_sampler(model, steps=steps)

    def sample(requests: Sequence[SampleRequest]) -> Sequence[Image.Image]:
        return (upstream if requests[0].operation == "paint" else own)(requests)

    return sample
