"""Samples pictures in a training run: plans are made while the encoder is loaded, and run later with the denoiser."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import attrs
import torch
from PIL import Image

from qframe.config.schema import SampleConfig
from qframe.diffusion.gradients import without_gradients
from qframe.interfaces import Parts, Plan, Recipe, Record
from qframe.pictures.pixels import from_pixels
from qframe.progress import Progress
from qframe.sample.plan_batches import group_plans, join_plans
from qframe.sample.running import Computing, run_plan
from qframe.sample.settling import plan_request
from qframe.train.distributed import Processes
from qframe.train.lockstep import in_lockstep
from qframe.train.sharding import entrances
from qframe.train.streams import derived_seed


def validation_plans(
    records: Sequence[Record], recipe: Recipe, parts: Parts, sample: SampleConfig, progress: Progress
) -> list[Plan]:
    """Return one sampling plan for each record, made with the settings of `[sample]`.

    The noise of each plan is drawn from a seed of its own, which depends only on `sample.seed` and the place of the
    plan's record. Pictures of the same record therefore begin from the same noise in every run, and can be compared.

    Args:
        records: The records whose prompts and references are sampled.
        recipe: Makes a request of each record.
        parts: The components of the model; encoder and codec must be loaded.
        sample: The settings of `[sample]`.
        progress: Is told how many plans are made.
    """
    scale = 1.0 if sample.negative_prompt is None else sample.true_cfg_scale  # guidance needs both
    distilled = recipe.sampling.guidance if sample.guidance_scale is None else sample.guidance_scale
    plans = []
    with without_gradients(), progress.stage("preparing samples", len(records)) as bar:
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
    computing: Computing,
    processes: Processes,
    sharded: bool,
    progress: Progress,
    title: str,
) -> list[Image.Image]:
    """Sample one picture for each plan, and return the pictures in the order of the plans.

    Args:
        plans: The plans, each for one picture. Plans that fit together are sampled as one batch, of at most
            `sample.batch_size`.
        parts: The components of the model; the denoiser must be loaded and in evaluation mode.
        sample: The settings of `[sample]`.
        computing: Makes the context in which each forward pass of the denoiser computes.
        processes: The processes of the run. Each samples a portion of the plans, and all get all pictures.
        sharded: Whether the denoiser is sharded. If it is, all processes must gather the weights together, and one that
            has fewer forward passes to make repeats some. If the denoiser does not say by which methods it enters its
            network, every process samples all plans.
        progress: Is told how many pictures are done.
        title: The name under which `progress` shows this stage.
    """
    groups = group_plans(plans, sample.batch_size)
    methods = entrances(type(parts.denoiser)) if sharded else ()
    split = bool(methods) or not sharded
    own = groups[processes.rank :: processes.world] if split else groups
    filler = groups[:1] if sharded else []  # of a process that has none, as all must gather; the result is thrown away
    together = in_lockstep(parts.denoiser.module, methods, processes) if methods and groups else nullcontext()
    pictures: dict[int, Image.Image] = {}
    with without_gradients(), together, progress.stage(title, sum(map(len, own))) as bar:
        for group in own or filler:
            made = run_plan(
                join_plans([plans[i] for i in group]),
                parts.denoiser,
                parts.sampler,
                guidance_batching=sample.guidance_batching,
                computing=computing,
            )
            if own:
                pictures.update(zip(group, map(from_pixels, made), strict=True))
                bar.advance(len(group))
    if not split:
        return [pictures[index] for index in range(len(plans))]
    return processes.exchange(pictures, len(plans))
