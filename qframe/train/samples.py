"""The pictures that a training run samples: their plans, made while the encoder is loaded, and how they are run."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from PIL import Image

from qframe.config.schema import SampleConfig
from qframe.interfaces import Parts, Plan, Recipe, Record
from qframe.pictures.pixels import from_pixels
from qframe.progress import Progress
from qframe.sample.plan_batches import group_plans, join_plans
from qframe.sample.running import run_plan
from qframe.sample.settling import plan_request
from qframe.train.distributed import Processes
from qframe.train.streams import derived_seed


def validation_plans(
    records: Sequence[Record], recipe: Recipe, parts: Parts, sample: SampleConfig, progress: Progress
) -> list[Plan]:
    """One plan per record. Every plan draws its noise from a seed of its own, so that it is the same in every run."""
    scale = 1.0 if sample.negative_prompt is None else sample.true_cfg_scale  # guidance needs both
    distilled = recipe.sampling.guidance if sample.guidance_scale is None else sample.guidance_scale
    plans = []
    with torch.inference_mode(), progress.stage("preparing samples", len(records)) as bar:
        for index, record in enumerate(records):
            request = attrs.evolve(
                recipe.request_for(record),
                num_inference_steps=sample.num_inference_steps,
                true_cfg_scale=scale,
                negative_prompt=sample.negative_prompt,
                guidance_scale=distilled if parts.denoiser_spec.guidance else None,
                generator=torch.Generator().manual_seed(derived_seed(sample.seed, "sample", index)),
            )
            plans.append(plan_request(recipe, request, parts))
            bar.advance(1)
    return plans


def run_plans(
    plans: Sequence[Plan],
    parts: Parts,
    sample: SampleConfig,
    *,
    processes: Processes,
    sharded: bool,
    progress: Progress,
    title: str,
) -> list[Image.Image]:
    """One picture per plan, in order; every plan is of one picture.

    Args:
        plans: What to sample. Plans that can share a batch do.
        parts: Holds the denoiser, in evaluation mode, and the sampler.
        sample: The settings of `[sample]`.
        processes: Every process samples its portion of the plans, and gets the pictures of all.
        sharded: The weights are sharded: then every process samples all plans, since all must gather the weights.
        progress: Shows how many pictures are done.
        title: Names the stage.
    """
    groups = group_plans(plans, sample.batch_size)
    if not sharded:
        groups = groups[processes.rank :: processes.world]
    pictures: dict[int, Image.Image] = {}
    # Weights that were gathered in inference mode cannot be trained on any more.
    without_gradients = torch.no_grad() if sharded else torch.inference_mode()
    with without_gradients, progress.stage(title, sum(map(len, groups))) as bar:
        for group in groups:
            made = run_plan(
                join_plans([plans[i] for i in group]),
                parts.denoiser,
                parts.sampler,
                guidance_batching=sample.guidance_batching,
            )
            for index, picture in zip(group, made, strict=True):
                pictures[index] = from_pixels(picture)
            bar.advance(len(group))
    if sharded:
        return [pictures[index] for index in range(len(plans))]
    return processes.exchange(pictures, len(plans))
