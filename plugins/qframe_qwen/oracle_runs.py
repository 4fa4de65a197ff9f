"""Builds diffusers' Qwen-Image pipelines around loaded networks, runs them, and records what they compute.

A pipeline returns pictures only. All other values are recorded by hooks on the networks and methods that the pipeline
calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import attrs
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, QwenImageEditPipeline, QwenImageTransformer2DModel
from torch import Tensor
from transformers import Qwen2VLProcessor

from qframe.diffusion.packing import unpad
from qframe.errors import ConfigError
from qframe.interfaces import Conditioning, Encoded, Parts, Step, Trace
from qframe.testing.listening import Norms, Steps, listening, replaced, rows
from qframe_qwen.codec import QwenCodec
from qframe_qwen.denoiser import StockDenoiser
from qframe_qwen.encoder import QwenVLEncoder
from qframe_qwen.schedule import FlowMatchSchedule


class PictureProcessor(Qwen2VLProcessor):
    """The processor Qwen2VLProcessor of transformers without its part for videos, which would need torchvision."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None) -> None:
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        super(Qwen2VLProcessor, self).__init__(image_processor, tokenizer, chat_template=chat_template)


def build(kind: Any, parts: Parts, processor: Any | None = None) -> Any:
    """Build a pipeline of diffusers around the networks of `parts`.

    Args:
        kind: The pipeline's class.
        parts: The loaded components.
        processor: For edit pipelines, what `picture_processor` returns; None for pipelines whose encoder sees no
            pictures.

    Raises:
        ConfigError: The encoder, codec or schedule is not the one of this plugin.
    """
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
    """Return the processor with which diffusers' edit pipelines prepare prompts and pictures for the encoder.

    Raises:
        ConfigError: The encoder cannot look at pictures.
    """
    encoder = parts.encoder
    if not isinstance(encoder, QwenVLEncoder) or encoder.image_processor is None:
        raise ConfigError("the encoder looks at no pictures", "Use a model with a folder 'processor'.")
    return PictureProcessor(encoder.image_processor, encoder.tokenizer)


def is_stock(parts: Parts) -> bool:
    """Return whether the network of the denoiser is diffusers' own class of transformer."""
    return isinstance(parts.denoiser.module, QwenImageTransformer2DModel)


def _transformer(parts: Parts) -> Any:
    module = parts.denoiser.module
    if is_stock(parts):
        return module
    weight = next(module.parameters())
    return StockDenoiser.load(parts.model, None, device=weight.device, dtype=weight.dtype).module


class ReferenceMode:
    """Makes a pipeline of diffusers use the mode of the codec's posterior as its reference, as qframe does.

    The pipeline itself would use a sample of the posterior, which differs from the mode. `hear` must be called after
    each encoding, and the pipeline must run inside `shown`.

    Attributes:
        encoded: The pictures of the pipeline's first encoding, each with the mode of its latents.
    """

    def __init__(self, pipeline: Any) -> None:
        self.encoded: list[Encoded] = []
        self._pipeline = pipeline
        self._tokens: Tensor | None = None

    def hear(self, result: Tensor, image: Tensor, generator: Any = None) -> None:
        """Compute the mode of the pictures that the pipeline has just encoded; all calls but the first do nothing.

        Args:
            result: Not used; the latents that the pipeline got.
            image: The pictures that were encoded.
            generator: The generator that the pipeline encoded with.
        """
        if self._tokens is not None:
            return
        mode = QwenImageEditPipeline._encode_vae_image(self._pipeline, image=image, generator=generator)
        self.encoded += map(Encoded, image[:, :, 0], mode[:, :, 0])
        batch, channels, _, height, width = mode.shape
        self._tokens = self._pipeline._pack_latents(mode, batch, channels, height, width)

    def shown(self) -> Any:
        """Return a context in which the second half of the transformer's tokens, the reference, is the mode."""

        def show(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            assert self._tokens is not None
            target = kwargs["hidden_states"].chunk(2, dim=1)[0]
            reference = self._tokens.to(target).repeat(len(target) // len(self._tokens), 1, 1)  # one for each result
            return args, kwargs | {"hidden_states": torch.cat([target, reference], dim=1)}

        return self._pipeline.transformer.register_forward_pre_hook(show, with_kwargs=True)


class _Calls:
    """Records what the transformer is given.

    Attributes:
        start: The tokens of the target in the first call.
        prompts: The conditioning of the first two calls: the prompt, and with guidance the negative prompt.
    """

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
def run_traced(
    parts: Parts,
    pipeline: Any,
    arguments: dict[str, Any],
    *,
    masked: bool = False,
    references: Sequence[Encoded] = (),
) -> Trace:
    """Run a pipeline of diffusers, and return the values that it computes at each stage.

    Args:
        parts: The components that the pipeline was built around.
        pipeline: The pipeline.
        arguments: The keyword arguments that the pipeline is called with.
        masked: Whether the pipeline also encodes the masked pictures, whose latents it never uses; the trace leaves
            them out.
        references: Further encoded pictures, which come after those of the pipeline in the trace.
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
    """A context in which pictures are contiguous in memory, as in qframe: otherwise bfloat16 is rounded differently."""
    if not _encodes(pipeline):
        return nullcontext()
    real = pipeline._encode_vae_image

    def encode(image: Tensor, generator: Any) -> Tensor:
        latents: Tensor = real(image=image.contiguous(), generator=generator)
        return latents

    return replaced(pipeline, "_encode_vae_image", encode)


def one_by_one(arguments: dict[str, Any]) -> list[dict[str, Any]]:
    """Split the arguments of a call with several prompts into those of one call for each prompt."""
    each = ("prompt", "negative_prompt", "generator")
    return [
        arguments | {name: arguments[name][i : i + 1] for name in each if isinstance(arguments[name], list)}
        for i in range(len(arguments["prompt"]))
    ]


def joined(traces: Sequence[Trace]) -> Trace:
    """Join the traces of several runs with one prompt each into the trace that one run with all prompts would have."""
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
