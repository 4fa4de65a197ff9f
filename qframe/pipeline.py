"""The Python face of sampling: `qframe.load(...)` gives a callable with the arguments of the diffusers pipeline."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import attrs
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from qframe.adapters import load_lora
from qframe.compose import Composition, compose
from qframe.config import load_config
from qframe.errors import ConfigError
from qframe.guidance import guided_velocity
from qframe.interfaces import Denoiser, OnStep, Parts, Sampler
from qframe.pictures import from_pixels
from qframe.planning import check_prompts, picture_count
from qframe.progress import SILENT, Progress
from qframe.types import Plan, Request

log = logging.getLogger(__name__)

OutputType = Literal["pil", "np", "pt", "latent"]
Pictures = list[Image.Image] | list[np.ndarray[Any, Any]] | list[Tensor] | np.ndarray[Any, Any] | Tensor


@attrs.frozen(eq=False)
class PipelineOutput:
    """images: in the order of the prompts, the pictures of one prompt together.

    "pil": a list of PIL pictures. "np": [B, H, W, 3] in [0, 1]. "pt": [B, 3, H, W] in [0, 1]. "latent": tokens
    [B, L, C]. Of pictures of several sizes the last three are lists, one entry per picture.
    """

    images: Pictures


def sample_plan(plan: Plan, denoiser: Denoiser, sampler: Sampler, on_step: OnStep | None = None) -> Tensor:
    """The final tokens [N, C] of a plan. `on_step(i)` runs after step i and stops there by returning True."""
    grids = plan.start.grids
    cond = attrs.evolve(plan.forward, cache_context="cond")
    velocity = denoiser.bind(plan.cond, plan.references, grids, forward=cond)
    if plan.guide is not None and plan.uncond is not None:
        uncond = attrs.evolve(plan.forward, cache_context="uncond")
        negative = denoiser.bind(plan.uncond, plan.references, grids, forward=uncond)
        velocity = guided_velocity(velocity, negative, plan.guide)
    sigmas = plan.sigmas.to(plan.start.tokens.device)
    return sampler.sample(velocity, plan.start.tokens, sigmas, after_step=plan.after_step, on_step=on_step)


def run_plan(plan: Plan, denoiser: Denoiser, sampler: Sampler, on_step: OnStep | None = None) -> list[Tensor]:
    """The pictures of a plan, each [C, H, W] in [-1, 1]."""
    return plan.decode(sample_plan(plan, denoiser, sampler, on_step))


class Pipeline:
    """Samples one family with loaded parts.

    pipe = qframe.load("qwen-edit", model="...")
    pipe(prompt="make the circle blue", image="a.png", negative_prompt=" ", seed=0).images[0]
    """

    def __init__(self, composition: Composition, parts: Parts) -> None:
        self.composition = composition
        self.recipe = composition.recipe
        self.parts = parts

    def __call__(
        self,
        *,
        output_type: OutputType = "pil",
        seed: int | None = None,
        progress: Progress = SILENT,
        **request: Any,
    ) -> PipelineOutput:
        """Sample. Further arguments are the fields of the recipe's request, by the names of the diffusers pipeline.

        seed: instead of `generator`; picture i is drawn from seed + i, whatever else is in the batch.
        ConfigError names an unknown argument, or a value that cannot be met, before any model runs.
        """
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ConfigError(f"output_type must be pil, np, pt or latent, got {output_type!r}")
        return PipelineOutput(self.run(self._request(request, seed), output_type=output_type, progress=progress))

    @torch.no_grad()
    def run(self, request: Request, *, output_type: OutputType = "pil", progress: Progress = SILENT) -> Pictures:
        """The pictures of a request."""
        found: dict[int, Tensor] = {}
        for places, part in self.recipe.split(request):
            plan = self.recipe.plan(part, self.parts)
            tokens = self._sample(plan, progress)
            rows = list(tokens.split(plan.start.lengths)) if output_type == "latent" else plan.decode(tokens)
            found.update(zip(places, rows, strict=True))
        return _as_output([found[place] for place in sorted(found)], output_type)

    def _sample(self, plan: Plan, progress: Progress) -> Tensor:
        with progress.stage("sampling", plan.sigmas.shape[0] - 1) as bar:

            def on_step(step: int) -> bool:
                bar.advance(1)
                return False

            return sample_plan(plan, self.parts.denoiser, self.parts.sampler, on_step)

    def _request(self, fields: Mapping[str, Any], seed: int | None) -> Request:
        kind = self.recipe.request_type
        known = {field.name for field in attrs.fields(kind)}
        unknown = sorted(set(fields) - known)
        if unknown:
            raise ConfigError(
                f"family {self.composition.family.name!r} takes no {', '.join(unknown)}",
                f"It takes {', '.join(sorted(known))}, output_type, seed and progress.",
            )
        request = kind(**fields)
        check_prompts(request)
        if seed is None:
            return request
        if seed < 0:
            raise ConfigError(f"seed must be a whole number from 0 on, got {seed}")
        if request.generator is not None:
            raise ConfigError("both seed and generator are given", "Give one of them.")
        generators = [torch.Generator().manual_seed(seed + i) for i in range(picture_count(request))]
        return attrs.evolve(request, generator=generators)


def load(
    family: str | None = None,
    *,
    model: str | Path | None = None,
    device: str | None = None,
    dtype: Literal["auto", "float32", "bfloat16"] | None = None,
    lora: str | Path | Mapping[str | Path, float] | Sequence[str | Path] | None = None,
    components: Mapping[str, str] | None = None,
    config: str | Path | None = None,
    overrides: Sequence[str] = (),
) -> Pipeline:
    """The pipeline of a family, its weights loaded.

    model: a folder in the diffusers layout, a hub id or a bundled name; by default the family's own. lora: files to
    put on the denoiser, with weights if a mapping. components: registered names by role, e.g. {"sampler": "heun"}.
    config: a TOML file under all of these. overrides: "key=value", as with `--set`.
    """
    values: dict[str, Any] = {
        "model": str(model) if model is not None else None,
        "device": device,
        "dtype": dtype,
        **{role: {"use": name} for role, name in (components or {}).items()},
    }
    composition = compose(load_config(config, family=family, values=values, overrides=overrides))
    log.info("weights of %s, licence %s", composition.model_name, composition.licence)
    pipeline = Pipeline(composition, composition.load("encoder", "codec", "denoiser"))
    for place, (file, weight) in enumerate(_loras(lora).items()):
        load_lora(pipeline.parts.denoiser.module, file, weight, adapter=f"lora_{place}")
    return pipeline


def _loras(lora: str | Path | Mapping[str | Path, float] | Sequence[str | Path] | None) -> dict[Path, float]:
    if lora is None:
        return {}
    if isinstance(lora, Mapping):
        return {Path(file): weight for file, weight in lora.items()}
    return {Path(file): 1.0 for file in ([lora] if isinstance(lora, str | Path) else lora)}


def _as_output(pictures: list[Tensor], output_type: OutputType) -> Pictures:
    if output_type == "pil":
        return [from_pixels(picture) for picture in pictures]
    if output_type != "latent":
        pictures = [(picture * 0.5 + 0.5).clamp(0, 1) for picture in pictures]
    uniform = len({tuple(picture.shape) for picture in pictures}) == 1
    if output_type == "np":
        arrays = [picture.permute(1, 2, 0).cpu().float().numpy() for picture in pictures]
        return np.stack(arrays) if uniform else arrays
    return torch.stack(pictures) if uniform else pictures
