"""diffusers' Qwen-Image pipelines as oracles: built around the loaded networks, and heard at every stage.

Each is `Oracle` of one family. A pipeline keeps everything but its result to itself, so the methods and networks
that it calls are listened to.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import attrs
import torch
from diffusers import (
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    QwenImageEditInpaintPipeline,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    QwenImageImg2ImgPipeline,
    QwenImageInpaintPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from PIL import Image
from torch import Tensor
from transformers import Qwen2VLProcessor

from qframe.diffusion.packing import pack_latents, unpad
from qframe.errors import ConfigError
from qframe.interfaces import Conditioning, Parts, Recipe, Request
from qframe.pictures.geometry import Geometry
from qframe.pictures.pixels import fit
from qframe.sample.per_prompt import broadcast
from qframe.sample.request_pictures import load_grey, load_picture
from qframe.verify import Encoded, Norms, Oracle, Step, Steps, Trace, listening, replaced, rows
from qframe_qwen.codec import QwenCodec
from qframe_qwen.denoiser import StockDenoiser
from qframe_qwen.encoder import QwenVLEncoder
from qframe_qwen.schedule import FlowMatchSchedule

_PATCH = 2  # of every Qwen-Image pipeline
# CONDITION_IMAGE_SIZE and VAE_IMAGE_SIZE of diffusers' pipeline_qwenimage_edit_plus.py; the other edit pipelines have
# the second alone.
_SMALL, _AREA = 384 * 384, 1024 * 1024
_UPSTREAM_POSITIONS = "encoder.options.positions=upstream"


class PictureProcessor(Qwen2VLProcessor):
    """Qwen2VLProcessor without its video processor, which needs torchvision."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None) -> None:
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        super(Qwen2VLProcessor, self).__init__(image_processor, tokenizer, chat_template=chat_template)


class _Pipelines(Oracle):
    """What is common to diffusers' Qwen-Image pipelines."""

    def mu(self, parts: Parts, tokens: int) -> float | None:
        schedule = parts.schedule
        return schedule.mu(tokens) if isinstance(schedule, FlowMatchSchedule) else None

    def notes(self, parts: Parts, recipe: Recipe) -> tuple[str, ...]:
        version = f"diffusers {importlib.metadata.version('diffusers')}, torch {torch.__version__}"
        if _stock(parts):
            return (version,)
        return (version, f"diffusers runs its own transformer on the weights of {parts.model.name!r}")


class TextToImage(_Pipelines):
    """QwenImagePipeline; with a picture to start from QwenImageImg2ImgPipeline."""

    def trace(self, request: Request, parts: Parts, recipe: Recipe) -> Trace:
        image = getattr(request, "image", None)
        if image is None:
            side = recipe.settings.side
            size = {"height": request.height or side, "width": request.width or side}
            return _run(parts, build(QwenImagePipeline, parts), _arguments(request) | size)
        strength = getattr(request, "strength", None)
        more = {} if strength is None else {"strength": strength}
        return _run(
            parts, build(QwenImageImg2ImgPipeline, parts), _arguments(request) | _started(request, recipe) | more
        )


class Inpaint(_Pipelines):
    """QwenImageInpaintPipeline."""

    needs: ClassVar[tuple[str, ...]] = ("image", "mask_image")

    def trace(self, request: Request, parts: Parts, recipe: Recipe) -> Trace:
        arguments = _arguments(request) | _started(request, recipe) | _masked(request)
        return _run(parts, build(QwenImageInpaintPipeline, parts), arguments, masked=True)


class Edit(_Pipelines):
    """QwenImageEditPipeline."""

    overrides: ClassVar[tuple[str, ...]] = (_UPSTREAM_POSITIONS,)
    needs: ClassVar[tuple[str, ...]] = ("image",)

    def trace(self, request: Request, parts: Parts, recipe: Recipe) -> Trace:
        images = _images(request)
        arguments = _arguments(request) | {"height": request.height, "width": request.width}
        pipeline = build(QwenImageEditPipeline, parts, picture_processor(parts))
        with _sizes(QwenImageEditPipeline, images[:1], {_AREA: recipe.geometry}):
            return _run(parts, pipeline, arguments | {"image": _given(images, recipe.geometry)})

    def notes(self, parts: Parts, recipe: Recipe) -> tuple[str, ...]:
        return (*super().notes(parts, recipe), *_edit_notes(parts, recipe))


class EditPlus(_Pipelines):
    """QwenImageEditPlusPipeline, which takes one prompt at a time."""

    overrides: ClassVar[tuple[str, ...]] = (_UPSTREAM_POSITIONS,)
    needs: ClassVar[tuple[str, ...]] = ("image",)

    def trace(self, request: Request, parts: Parts, recipe: Recipe) -> Trace:
        pipeline = build(QwenImageEditPlusPipeline, parts, picture_processor(parts))
        geometries = {_AREA: recipe.geometry, _SMALL: _encoder_geometry(recipe)}
        sets = [[load_picture(picture) for picture in one] for one in getattr(request, "image", None) or ()]
        found = []
        for place, arguments in enumerate(_one_by_one(_arguments(request))):
            images = sets[place % len(sets)]
            with _sizes(QwenImageEditPlusPipeline, images, geometries):
                size = {"height": request.height, "width": request.width}
                found.append(_run(parts, pipeline, arguments | {"image": images} | size))
        return _joined(found)

    def notes(self, parts: Parts, recipe: Recipe) -> tuple[str, ...]:
        return (
            *super().notes(parts, recipe),
            *_edit_notes(parts, recipe),
            "diffusers takes one prompt at a time: a batch is held against single runs",
        )


class EditInpaint(_Pipelines):
    """QwenImageEditInpaintPipeline, its reference replaced by the mode that `qwen-edit` takes."""

    overrides: ClassVar[tuple[str, ...]] = (_UPSTREAM_POSITIONS,)
    needs: ClassVar[tuple[str, ...]] = ("image", "mask_image")

    def trace(self, request: Request, parts: Parts, recipe: Recipe) -> Trace:
        if request.height or request.width:
            raise ConfigError("diffusers' QwenImageEditInpaintPipeline takes no size of its own", "Leave the size out.")
        images = _images(request)
        arguments = _arguments(request) | {"image": _given(images, recipe.geometry)} | _masked(request)
        pipeline = build(QwenImageEditInpaintPipeline, parts, picture_processor(parts))
        reference = _Mode(pipeline)
        with (
            _sizes(QwenImageEditInpaintPipeline, images[:1], {_AREA: recipe.geometry}),
            listening(pipeline, "_encode_vae_image", reference.hear),
            reference.shown(),
        ):
            return _run(parts, pipeline, arguments, masked=True, references=reference.encoded)

    def notes(self, parts: Parts, recipe: Recipe) -> tuple[str, ...]:
        return (
            *super().notes(parts, recipe),
            *_edit_notes(parts, recipe),
            "diffusers' reference is a sample of the codec's posterior, ours as in every edit the mode: both get it",
        )


# -- building ---------------------------------------------------------------------------------------------------------


def build(kind: Any, parts: Parts, processor: Any | None = None) -> Any:
    """A pipeline of diffusers' class `kind` around the networks of `parts`. ConfigError if they are of another make."""
    encoder, codec, schedule = parts.encoder, parts.codec, parts.schedule
    if not (
        isinstance(encoder, QwenVLEncoder) and isinstance(codec, QwenCodec) and isinstance(schedule, FlowMatchSchedule)
    ):
        raise ConfigError(
            f"{kind.__name__} needs encoder 'qwen2.5-vl', codec 'qwen-vae' and schedule 'flow-match'",
            "Only denoisers and samplers can be verified in another composition.",
        )
    pipeline = kind(
        scheduler=FlowMatchEulerDiscreteScheduler.from_config(schedule.scheduler.config),
        vae=codec.vae,
        text_encoder=encoder.model,
        tokenizer=encoder.tokenizer,
        transformer=_transformer(parts),
        **({} if processor is None else {"processor": processor}),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def picture_processor(parts: Parts) -> Any:
    """What diffusers' edit pipelines prepare prompt and picture with. ConfigError if the encoder sees no pictures."""
    encoder = parts.encoder
    if not isinstance(encoder, QwenVLEncoder) or encoder.image_processor is None:
        raise ConfigError("the encoder looks at no pictures", "Use a checkpoint with a folder 'processor'.")
    return PictureProcessor(encoder.image_processor, encoder.tokenizer)


def _stock(parts: Parts) -> bool:
    return isinstance(parts.denoiser.module, QwenImageTransformer2DModel)


def _transformer(parts: Parts) -> Any:
    module = parts.denoiser.module
    if _stock(parts):
        return module
    weight = next(module.parameters())
    return StockDenoiser.load(parts.model, None, device=weight.device, dtype=weight.dtype).module


# -- arguments --------------------------------------------------------------------------------------------------------


def _arguments(request: Request) -> dict[str, Any]:
    """What every pipeline takes by the name and in the form that requests have it."""
    prompts, negative, latents = list(request.prompt or ()), request.negative_prompt, request.latents
    if latents is not None and latents.ndim == 4:
        latents = pack_latents(latents, _PATCH)
    return {
        "prompt": prompts,
        "negative_prompt": None if negative is None else list(broadcast(negative, len(prompts), "negative_prompt")),
        "true_cfg_scale": request.true_cfg_scale,
        "num_inference_steps": request.num_inference_steps,
        "sigmas": None if request.sigmas is None else list(request.sigmas),
        "generator": request.generator,
        "latents": latents,
    }


def _images(request: Request) -> list[Image.Image]:
    return [load_picture(value) for value in getattr(request, "image", None) or ()]


def _given(images: list[Image.Image], geometry: Geometry) -> Any:
    """A picture as an edit pipeline takes it. Those of a list it shows the encoder as they are: fitted beforehand."""
    return images[0] if len(images) == 1 else [fit(image, geometry) for image in images]


def _started(request: Request, recipe: Recipe) -> dict[str, Any]:
    """The pictures that a run starts from, and the size, which diffusers would not take from them."""
    images = _images(request)
    height, width = recipe.geometry.fit(images[0].height, images[0].width)
    return {"image": images, "height": request.height or height, "width": request.width or width}


def _masked(request: Request) -> dict[str, Any]:
    """The mask and the strength. ConfigError for what diffusers does not do with several pictures, or at all."""
    if getattr(request, "padding_mask_crop", None) is not None:
        raise ConfigError("padding_mask_crop is not compared: diffusers crops one picture alone", "Leave it out.")
    if getattr(request, "mask_edges", "hard") != "hard":
        raise ConfigError("soft mask_edges are not compared: diffusers has hard ones alone", "Leave mask_edges out.")
    masks = [load_grey(value) for value in getattr(request, "mask_image", None) or ()]
    return {"mask_image": masks, "strength": getattr(request, "strength", 0.6)}


def _encoder_geometry(recipe: Recipe) -> Geometry:
    found: Geometry = getattr(recipe, "encoder_geometry", recipe.geometry)
    return found


def _published(geometries: Mapping[int, Geometry]) -> bool:
    return all(geometry == Geometry(area, area, 32) for area, geometry in geometries.items())


def _sizes(
    kind: type[DiffusionPipeline], images: Sequence[Image.Image], geometries: Mapping[int, Geometry]
) -> AbstractContextManager[None]:
    """Inside, a pipeline brings these pictures into `geometries`, where those are not the areas it insists on."""
    if _published(geometries):
        return nullcontext()
    fitted = [fit(image, geometries[_AREA]) for image in images]  # `_given` may have fitted them already
    by_ratio = {one.width / one.height: image for one, image in zip([*fitted, *images], [*images] * 2, strict=True)}

    def calculate_dimensions(area: int, ratio: float) -> tuple[Any, ...]:
        height, width = geometries[area].fit(by_ratio[ratio].height, by_ratio[ratio].width)
        return (width, height) if kind is QwenImageEditPlusPipeline else (width, height, None)

    return replaced(sys.modules[kind.__module__], "calculate_dimensions", calculate_dimensions)


def _edit_notes(parts: Parts, recipe: Recipe) -> tuple[str, ...]:
    positions = getattr(getattr(parts.encoder, "options", None), "positions", "")
    said = (f"positions of the encoder's image tokens: {positions}; diffusers' are 'upstream'",)
    if _published({_AREA: recipe.geometry}):
        return said
    return (*said, "diffusers' areas, 1024 x 1024 and the like, are set to this checkpoint's")


def _one_by_one(arguments: dict[str, Any]) -> list[dict[str, Any]]:
    """The same for each prompt alone."""
    each = ("prompt", "negative_prompt", "generator")
    return [
        arguments | {name: arguments[name][i : i + 1] for name in each if isinstance(arguments[name], list)}
        for i in range(len(arguments["prompt"]))
    ]


def _joined(traces: Sequence[Trace]) -> Trace:
    """What runs of one prompt each had, as if they had been one."""
    unconds = [trace.uncond for trace in traces if trace.uncond is not None]
    joined: Trace = attrs.evolve(
        traces[0],
        reordered=len(traces) > 1 or traces[0].reordered,
        encoded=tuple(one for trace in traces for one in trace.encoded),
        cond=Conditioning.join([trace.cond for trace in traces]),
        uncond=Conditioning.join(unconds) if unconds else None,
        start=torch.cat([trace.start for trace in traces]),
        steps=tuple(map(_joined_step, zip(*(trace.steps for trace in traces), strict=True))),
        decoded=tuple(one for trace in traces for one in trace.decoded),
        pictures=tuple(one for trace in traces for one in trace.pictures),
    )
    return joined


def _joined_step(steps: Sequence[Step]) -> Step:
    combined = [step.combined for step in steps if step.combined is not None]
    norms = [step.norms for step in steps if step.norms is not None]
    return Step(
        timestep=steps[0].timestep,
        guided=torch.cat([step.guided for step in steps]),
        tokens=torch.cat([step.tokens for step in steps]),
        combined=torch.cat(combined) if combined else None,
        norms=(torch.cat([one for one, _ in norms]), torch.cat([other for _, other in norms])) if norms else None,
    )


# -- listening --------------------------------------------------------------------------------------------------------


class _Mode:
    """The codec's mode of the pictures that a pipeline encodes first, and the tokens that show it to the network."""

    def __init__(self, pipeline: Any) -> None:
        self.encoded: list[Encoded] = []
        self._pipeline = pipeline
        self._tokens: Tensor | None = None

    def hear(self, result: Tensor, image: Tensor, generator: Any = None) -> None:
        if self._tokens is not None:
            return
        mode = QwenImageEditPipeline._encode_vae_image(self._pipeline, image=image, generator=generator)
        self.encoded += map(Encoded, image[:, :, 0], mode[:, :, 0])
        batch, channels, _, height, width = mode.shape
        self._tokens = self._pipeline._pack_latents(mode, batch, channels, height, width)

    def shown(self) -> Any:
        """Inside, the second half of the sequence, which is the reference, is the mode."""

        def show(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            assert self._tokens is not None
            target = kwargs["hidden_states"].chunk(2, dim=1)[0]
            return args, kwargs | {"hidden_states": torch.cat([target, self._tokens.to(target)], dim=1)}

        return self._pipeline.transformer.register_forward_pre_hook(show, with_kwargs=True)


class _Calls:
    """What the transformer was given and gave: the start and both prompts from the first step, else the last step."""

    def __init__(self, norms: Norms) -> None:
        self.start: Tensor | None = None
        self.prompts: list[Conditioning] = []
        self._norms = norms

    def __call__(self, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        self._norms.heard.clear()
        target = kwargs["img_shapes"][0][0]
        if self.start is None:
            length = target[0] * target[1] * target[2]
            self.start = rows(kwargs["hidden_states"][:, :length])
        if len(self.prompts) < 2:
            embeds, mask = kwargs["encoder_hidden_states"], kwargs["encoder_hidden_states_mask"]
            lengths = [embeds.shape[1]] * len(embeds) if mask is None else [int(n) for n in mask.sum(dim=1)]
            self.prompts.append(Conditioning(unpad(embeds, lengths).clone(), tuple(lengths)))


@torch.no_grad()
def _run(
    parts: Parts,
    pipeline: Any,
    arguments: dict[str, Any],
    *,
    masked: bool = False,
    references: Sequence[Encoded] = (),
) -> Trace:
    """Run a pipeline and hear it. masked: it encodes the masked pictures too, and never uses what comes of them.

    references: what the codec makes beside, after what is heard.
    """
    norms, steps = Norms(), Steps()
    encoded: list[Encoded] = []
    decoded: list[Tensor] = []
    mus: list[float | None] = []
    calls = _Calls(norms)

    def encoding(latents: Tensor, image: Tensor, generator: Any = None) -> None:
        encoded.extend(map(Encoded, image[:, :, 0], latents[:, :, 0]))

    def stepping(result: Any, velocity: Tensor, timestep: Tensor, *_: Any, **__: Any) -> None:
        steps.predicted(velocity, float(timestep), norms.heard)

    def stepped(pipeline: Any, step: int, timestep: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
        steps.stepped(state["latents"])
        return {}

    with (
        pipeline.transformer.register_forward_hook(calls, with_kwargs=True),
        norms,
        _laid_out(pipeline),
        listening(pipeline, "_encode_vae_image", encoding) if _encodes(pipeline) else nullcontext(),
        listening(pipeline.scheduler, "set_timesteps", lambda _, *a, mu=None, **k: mus.append(mu)),
        listening(pipeline.scheduler, "step", stepping),
        listening(pipeline.vae, "decode", lambda found, *a, **k: decoded.extend(found[0][:, :, 0].clamp(-1, 1))),
    ):
        pictures = pipeline(**arguments, callback_on_step_end=stepped).images
    guided = arguments["true_cfg_scale"] > 1 and arguments["negative_prompt"] is not None
    used = len(encoded) // 2 if masked else len(encoded)
    assert calls.start is not None
    return Trace(
        sigmas=pipeline.scheduler.sigmas[pipeline.scheduler.begin_index or 0 :].cpu(),
        mu=mus[-1],
        encoded=(*encoded[:used], *references),
        cond=calls.prompts[0],
        uncond=calls.prompts[1] if guided else None,
        start=calls.start,
        steps=tuple(steps.done),
        decoded=tuple(decoded),
        pictures=tuple(pictures),
        reordered=pipeline.transformer is not parts.denoiser.module,
    )


def _encodes(pipeline: Any) -> bool:
    return hasattr(pipeline, "_encode_vae_image")


def _laid_out(pipeline: Any) -> AbstractContextManager[None]:
    """Inside, pictures lie in memory by channels, as ours do: in bfloat16 other layouts lead to other roundings."""
    if not _encodes(pipeline):
        return nullcontext()
    real = pipeline._encode_vae_image

    def encode(image: Tensor, generator: Any) -> Tensor:
        latents: Tensor = real(image=image.contiguous(), generator=generator)
        return latents

    return replaced(pipeline, "_encode_vae_image", encode)
