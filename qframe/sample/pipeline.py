"""The Python face of sampling: `qframe.load(...)` gives a callable with the arguments of the diffusers pipeline."""

from __future__ import annotations

import inspect
import logging
import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import attrs
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from qframe.adapters import check_files, load_lora
from qframe.compose import Composition, compose
from qframe.compose.placement import ORDER, Offload, Placement, place
from qframe.config import load_config
from qframe.diffusion.guidance import guided_velocity, joined_velocity
from qframe.errors import ConfigError
from qframe.interfaces import (
    Conditioning,
    Denoiser,
    Loadable,
    OnStep,
    PackedSequence,
    Parts,
    Plan,
    Request,
    Sampler,
    Velocity,
)
from qframe.pictures.pixels import from_pixels
from qframe.progress import SILENT, Progress
from qframe.sample.callbacks import TENSORS, Steer, StepCallback, StepState, check_callback, replaced, tensors_of
from qframe.sample.conditioning import encode_padded
from qframe.sample.planning import check_fields, check_kinds, check_prompts, picture_count

log = logging.getLogger(__name__)

OutputType = Literal["pil", "np", "pt", "latent"]
GuidanceBatching = Literal["apart", "joined"]
Pictures = list[Image.Image] | list[np.ndarray[Any, Any]] | list[Tensor] | np.ndarray[Any, Any] | Tensor


@attrs.frozen(eq=False)
class PipelineOutput:
    """images: in the order of the prompts, the pictures of one prompt together.

    "pil": a list of PIL pictures. "np": [B, H, W, 3] in [0, 1]. "pt": [B, 3, H, W] in [0, 1]. "latent": tokens
    [B, L, C]. Of pictures of several sizes the last three are lists, one entry per picture.
    """

    images: Pictures


def sample_plan(
    plan: Plan,
    denoiser: Denoiser,
    sampler: Sampler,
    on_step: OnStep | None = None,
    *,
    steer: Steer | None = None,
    guidance_batching: GuidanceBatching = "apart",
) -> Tensor:
    """The final tokens [N, C] of a plan. `on_step(i)` runs after step i and stops there by returning True.

    steer: between the plan's own `after_step` and `on_step`; it may replace tokens and conditioning for the steps that
    follow. guidance_batching: "joined" runs both sides of guidance in one forward pass.
    """
    velocity, after_step = _velocity(plan, denoiser, guidance_batching), plan.after_step

    def steered(tokens: Tensor, step: int) -> Tensor:
        nonlocal plan, velocity
        tokens = tokens if plan.after_step is None else plan.after_step(tokens, step)
        assert steer is not None
        state = steer(StepState(tokens, plan.start.lengths, plan.cond, plan.uncond), step)
        if state.cond is not plan.cond or state.uncond is not plan.uncond:
            plan = attrs.evolve(plan, cond=state.cond, uncond=state.uncond)
            velocity = _velocity(plan, denoiser, guidance_batching)
        return state.tokens

    def current(tokens: Tensor, sigma: Tensor) -> Tensor:
        return velocity(tokens, sigma)

    sigmas = plan.sigmas.to(plan.start.tokens.device)
    try:
        return sampler.sample(
            current, plan.start.tokens, sigmas, after_step=steered if steer else after_step, on_step=on_step
        )
    finally:
        denoiser.end_run()


def _velocity(plan: Plan, denoiser: Denoiser, batching: GuidanceBatching) -> Velocity:
    """What a sampler integrates: the plan's positive side, or both sides and their guide."""

    def bound(cond: Conditioning, context: str, times: int = 1) -> Velocity:
        references = plan.references
        if references is not None and times > 1:
            references = PackedSequence(references.tokens.repeat(times, 1), references.grids * times)
        forward = attrs.evolve(plan.forward, cache_context=context)
        return denoiser.bind(cond, references, plan.start.grids * times, forward=forward)

    if plan.guide is None or plan.uncond is None:
        return bound(plan.cond, "cond")
    if batching == "joined":
        return joined_velocity(bound(Conditioning.join([plan.cond, plan.uncond]), "joined", 2), plan.guide)
    return guided_velocity(bound(plan.cond, "cond"), bound(plan.uncond, "uncond"), plan.guide)


def run_plan(
    plan: Plan,
    denoiser: Denoiser,
    sampler: Sampler,
    on_step: OnStep | None = None,
    *,
    guidance_batching: GuidanceBatching = "apart",
) -> list[Tensor]:
    """The pictures of a plan, each [C, H, W] in [-1, 1]."""
    return plan.decode(sample_plan(plan, denoiser, sampler, on_step, guidance_batching=guidance_batching))


@attrs.frozen(eq=False, kw_only=True)
class _Watch:
    """Who is told of every step, and with which tensors."""

    progress: Progress = SILENT
    callback: StepCallback | None = None
    tensors: tuple[str, ...] = ("latents",)


class Pipeline:
    """Samples one family with loaded parts.

    pipe = qframe.load("qwen-edit", model="...")
    pipe(prompt="make the circle blue", image="a.png", negative_prompt=" ", seed=0).images[0]

    A run in progress is read by the names that diffusers' pipelines have; setting `_interrupt` to True ends it after
    the step that runs.
    """

    _callback_tensor_inputs = TENSORS

    def __init__(self, composition: Composition, parts: Parts, placement: Placement | None = None) -> None:
        """placement: of parts whose weights rest elsewhere than where they compute."""
        self.composition = composition
        self.recipe = composition.recipe
        self.parts = parts
        self._interrupt = False
        self._guidance_scale: float | None = None
        self._attention_kwargs: Mapping[str, Any] = {}
        self._num_timesteps = 0
        self._current_timestep: Tensor | None = None
        self._current_pictures: tuple[int, ...] = ()
        self.placement = placement or Placement()

    @overload
    def __call__(self, *positional: Any, return_dict: Literal[True] = True, **arguments: Any) -> PipelineOutput: ...

    @overload
    def __call__(self, *positional: Any, return_dict: Literal[False], **arguments: Any) -> tuple[Pictures]: ...

    @overload
    def __call__(self, *positional: Any, return_dict: bool, **arguments: Any) -> PipelineOutput | tuple[Pictures]: ...

    def __call__(
        self,
        *positional: Any,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        seed: int | None = None,
        progress: Progress = SILENT,
        **request: Any,
    ) -> PipelineOutput | tuple[Pictures]:
        """Sample. Further arguments are the fields of the recipe's request, by the names of the diffusers pipeline.

        positional: the first of them, see `Recipe.positional`: `pipe("a circle")`, `pipe(image, "make it red")`.
        return_dict: False returns `(images,)`. callback_on_step_end: `(pipe, step, timestep, tensors)` after every
        step; what it returns by name replaces latents or embeddings (`qframe.sample.callbacks.TENSORS`). Of a request
        whose pictures have several sizes it sees the parts of one size in turn, each from step 0; `current_pictures`
        says which. seed: instead of `generator`; picture i is drawn from seed + i, whatever else is in the batch.
        ConfigError names an unknown argument, or a value that cannot be met, before any model runs.
        """
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ConfigError(
                f"output_type must be pil, np, pt or latent, got {output_type!r}", "Leave it out for pil."
            )
        check_callback(callback_on_step_end, callback_on_step_end_tensor_inputs or ())
        images = self.run(
            self._request(self._by_name(positional, request), seed),
            output_type=output_type,
            progress=progress,
            callback=callback_on_step_end,
            tensors=callback_on_step_end_tensor_inputs or (),
        )
        return PipelineOutput(images) if return_dict else (images,)

    @property
    def guidance_scale(self) -> float | None:
        """Of the call that runs, or the last one; as with the other properties."""
        return self._guidance_scale

    @property
    def attention_kwargs(self) -> Mapping[str, Any]:
        return self._attention_kwargs

    @property
    def num_timesteps(self) -> int:
        """Steps of the part that runs, those that a strength leaves out not counted."""
        return self._num_timesteps

    @property
    def current_timestep(self) -> Tensor | None:
        """Scalar in [0, 1000]; None while nothing is sampled."""
        return self._current_timestep

    @property
    def current_pictures(self) -> tuple[int, ...]:
        """Places in the result of the pictures that are sampled now; empty while nothing is."""
        return self._current_pictures

    @property
    def interrupt(self) -> bool:
        return self._interrupt

    @torch.no_grad()
    def encode_prompt(self, prompt: str | Sequence[str], **request: Any) -> tuple[Tensor, Tensor]:
        """Embeddings [B, T, D] and their mask [B, T]: what a call takes as `prompt_embeds` and `prompt_embeds_mask`.

        request: what else decides them, such as the `image` of an edit. Those of a negative prompt are made alike.
        """
        asked = self._request({"prompt": prompt, **request}, None)
        check_fields(asked)
        with self.placement.freed():
            return encode_padded(self.parts.encoder, asked, self.recipe.shown(asked))

    @torch.no_grad()
    def run(
        self,
        request: Request,
        *,
        output_type: OutputType = "pil",
        progress: Progress = SILENT,
        callback: StepCallback | None = None,
        tensors: Sequence[str] = ("latents",),
    ) -> Pictures:
        """The pictures of a request; the rest as in a call."""
        watch = _Watch(progress=progress, callback=callback, tensors=tuple(tensors))
        self._interrupt = False
        self._guidance_scale, self._attention_kwargs = request.guidance_scale, request.attention_kwargs or {}
        found: dict[int, Tensor] = {}
        with self.placement.freed():
            # All are planned before the first step: so what is wrong with the last one costs no sampling.
            planned = deque((places, self.recipe.plan(part, self.parts)) for places, part in self.recipe.split(request))
            while planned:
                places, plan = planned.popleft()
                tokens = self._sample(plan, places, watch)
                decode, lengths = plan.decode, plan.start.lengths
                del plan  # decoding takes the most memory, and needs nothing of it
                rows = list(tokens.split(lengths)) if output_type == "latent" else decode(tokens)
                found.update(zip(places, rows, strict=True))
        return _as_output([found[place] for place in sorted(found)], output_type)

    def _sample(self, plan: Plan, places: tuple[int, ...], watch: _Watch) -> Tensor:
        """Final tokens of a plan. Of an interrupted call, as far as they came: the start, for parts not yet begun."""
        if self._interrupt:
            return plan.start.tokens
        timesteps, callback = plan.sigmas * 1000, watch.callback
        self._num_timesteps = timesteps.shape[0] - 1
        self._current_timestep, self._current_pictures = timesteps[0], places

        def steer(state: StepState, step: int) -> StepState:
            assert callback is not None
            return replaced(state, callback(self, step, timesteps[step], tensors_of(state, watch.tensors)))

        try:
            with watch.progress.stage("sampling", self._num_timesteps) as bar:

                def on_step(step: int) -> bool:
                    bar.advance(1)
                    self._current_timestep = timesteps[step + 1]
                    return self._interrupt

                return sample_plan(
                    plan,
                    self.parts.denoiser,
                    self.parts.sampler,
                    on_step,
                    steer=None if callback is None else steer,
                    guidance_batching=self.composition.config.sample.guidance_batching,
                )
        finally:
            self._current_timestep, self._current_pictures = None, ()

    def _by_name(self, positional: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call by name. ConfigError if there are too many without one, or one is given twice."""
        names = self.recipe.positional
        if len(positional) > len(names):
            raise ConfigError(
                f"{len(positional)} arguments by position, family {self.composition.family.name!r} takes "
                f"{', '.join(names)}",
                "Name the others.",
            )
        found = dict(zip(names, positional, strict=False))
        twice = sorted(set(found) & set(named))
        if twice:
            raise ConfigError(f"{', '.join(twice)}: given by position and by name", "Give it once.")
        return found | dict(named)

    def _request(self, fields: Mapping[str, Any], seed: int | None) -> Request:
        kind = self.recipe.request_type
        known = {field.name for field in attrs.fields(kind)}
        unknown = sorted(set(fields) - known)
        if unknown:
            raise ConfigError(
                f"family {self.composition.family.name!r} takes no {', '.join(unknown)}",
                f"It takes {', '.join(sorted(known | _own_arguments()))}.",
            )
        request = kind(**fields)
        check_kinds(request)
        check_prompts(request)
        width = self.parts.denoiser_spec.text_width
        for name in ("prompt_embeds", "negative_prompt_embeds"):
            embeds = getattr(request, name)
            if embeds is not None and embeds.shape[-1] != width:
                raise ConfigError(
                    f"{name} are {embeds.shape[-1]} wide, the denoiser wants {width}",
                    "Encode prompts with this model's own encoder.",
                )
        if seed is None:
            return request
        if not isinstance(seed, int | np.integer) or not 0 <= seed < 2**62:
            raise ConfigError(
                f"seed must be a whole number from 0 to 2^62, got {seed!r}", "Leave it out for a random one."
            )
        if request.generator is not None:
            raise ConfigError("both seed and generator are given", "Give one of them.")
        generators = [torch.Generator().manual_seed(int(seed) + i) for i in range(picture_count(request))]
        return attrs.evolve(request, generator=generators)


def _own_arguments() -> set[str]:
    """Arguments of a call that are no fields of a request."""
    parameters = inspect.signature(Pipeline.__call__).parameters.values()
    return {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}


def load(
    family: str | None = None,
    *,
    model: str | Path | None = None,
    device: str | torch.device | None = None,
    devices: str | Sequence[str] | Mapping[str, str] | None = None,
    offload: Offload | None = None,
    dtype: Literal["auto", "float32", "bfloat16"] | torch.dtype | None = None,
    lora: str | Path | Mapping[str | Path, float] | Sequence[str | Path] | None = None,
    components: Mapping[str, str] | None = None,
    config: str | Path | None = None,
    overrides: str | Sequence[str] = (),
) -> Pipeline:
    """The pipeline of a family, its weights loaded.

    model: a folder in the diffusers layout, a hub id or a bundled name; by default the family's own. devices: names to
    spread the components over, or by role, e.g. {"encoder": "cuda:1"}. offload: "model" keeps on the device only the
    network that computes, "group" only a block of it. lora: files to put on the denoiser, with weights if a mapping.
    ConfigError names what cannot be met before a weight is read.
    components: registered names by role, e.g. {"sampler": "heun"}.
    config: a TOML file under all of these. overrides: "key=value", as with `--set`.
    """
    by_role = devices if isinstance(devices, Mapping) else {}
    chosen = components or {}
    loras = _loras(lora)
    for role in by_role:
        if role not in ORDER:
            raise ConfigError(f"devices: no component {role!r}", f"Known: {', '.join(ORDER)}.")
    values: dict[str, Any] = {
        "model": str(model) if model is not None else None,
        "device": None if device is None else str(device),
        "devices": None if devices is None or by_role else [devices] if isinstance(devices, str) else list(devices),
        "offload": offload,
        "dtype": None if dtype is None else str(dtype).removeprefix("torch."),
        **{role: {"use": chosen.get(role), "device": by_role.get(role)} for role in (*chosen, *by_role)},
    }
    overrides = (overrides,) if isinstance(overrides, str) else overrides
    return assemble(compose(load_config(config, family=family, values=values, overrides=overrides)), loras)


def assemble(composition: Composition, loras: Mapping[Path, float]) -> Pipeline:
    """The pipeline of a composition, its weights loaded. loras: files to put on the denoiser, and their weights."""
    if loras:
        check_files(composition, loras)  # a wrong file is told before minutes of loading
    log.info("weights of %s, licence %s", composition.model_name, composition.licence)
    moved = composition.config.offload
    parts = composition.load(*ORDER, offloaded=moved != "none")
    for number, (file, weight) in enumerate(loras.items()):
        load_lora(parts.denoiser.module, file, weight, adapter=f"lora_{number}")
    loaded: dict[str, Loadable] = {"encoder": parts.encoder, "denoiser": parts.denoiser, "codec": parts.codec}
    return Pipeline(composition, parts, place(loaded, {role: composition.device(role) for role in ORDER}, moved))


def _loras(lora: str | Path | Mapping[str | Path, float] | Sequence[str | Path] | None) -> dict[Path, float]:
    """Files and their weights. ConfigError for a weight that is no finite number, or a file that is given twice."""
    if lora is None:
        return {}
    if isinstance(lora, str | Path):
        return {Path(lora): 1.0}
    if not isinstance(lora, Iterable):
        raise ConfigError(f"lora must be a file, a list of files or a mapping, got {lora!r}", "Give a path.")
    given = list(lora.items()) if isinstance(lora, Mapping) else [(file, 1.0) for file in lora]
    for file, weight in given:
        if not isinstance(weight, int | float) or not math.isfinite(weight):
            raise ConfigError(f"lora {file}: the weight must be a finite number, got {weight!r}", "1.0 is usual.")
    found = {Path(file): float(weight) for file, weight in given}
    if len(found) < len(given):
        raise ConfigError("lora: a file is given twice", "Give it once, with the sum of its weights.")
    return found


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
