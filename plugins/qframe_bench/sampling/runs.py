"""Compares a sampling run with its forward passes alone, and with diffusers' pipeline on the same networks.

Encoder, codec and schedule are those of the embedded model. The transformer is random and so wide that it takes most
of the time, as a published one does. The contestants run in turns in one process; see `qframe_bench.measuring`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import torch
from diffusers import QwenImageTransformer2DModel
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit
from PIL import Image
from torch import Tensor, nn

from qframe.compose import compose
from qframe.config import load_config
from qframe.interfaces import Parts
from qframe.plugins.registry import load_registry
from qframe.sample.pipeline import Pipeline
from qframe.sample.running import GuidanceBatching, sample_plan
from qframe.sample.settling import plan_request
from qframe.testing.listening import replaced
from qframe_bench.measuring import Contestant, Measured, Ratio, measure, table
from qframe_bench.sampling.settings import HEAD, Settings

_ROTARY = (16, 24, 24)
"""Channels of a head that are rotated by frame, row and column; together they are `HEAD`."""


@attrs.frozen(kw_only=True)
class Found:
    """What one run of the benchmark has measured.

    Attributes:
        measured: Time and memory of each contestant.
        ratios: The comparisons, with what is promised about them.
    """

    measured: Mapping[str, Measured]
    ratios: tuple[Ratio, ...]

    def __str__(self) -> str:
        rows = [(name, f"{one.seconds:.3f}", f"{one.peak_bytes / 2**20:.1f}") for name, one in self.measured.items()]
        return table(("", "seconds", "peak MiB"), rows) + "\n\n" + "\n".join(map(str, self.ratios))


def compare(settings: Settings) -> Found:
    """Measure all contestants, and compare them."""
    measured = measure(contestants(settings), repeats=settings.repeats, device=torch.device(settings.device))
    loop, call, theirs = measured["loop"], measured["call"], measured["diffusers"]
    ratios = [
        Ratio(name="loop / its forward passes alone: time", value=loop.times(measured["passes"]), most=1.03),
        Ratio(name="call / diffusers' pipeline: time", value=call.times(theirs), most=1.0),
        Ratio(name="call / diffusers' pipeline: memory", value=call.peak_bytes / theirs.peak_bytes, most=1.0),
    ]
    if "joined" in measured:
        joined = measured["joined"]
        ratios += [
            Ratio(name="guidance joined / apart: time", value=joined.times(loop)),
            Ratio(name="guidance joined / apart: memory", value=joined.peak_bytes / loop.peak_bytes),
        ]
    return Found(measured=measured, ratios=tuple(ratios))


def contestants(settings: Settings) -> dict[str, Contestant]:
    """The functions that are measured, by name.

    Returns:
        passes: The forward passes of a run alone, with the inputs that they have in the run.
        loop: The sampling steps of a run whose plan is already made.
        joined: The same steps with both prompts in one forward pass. Left out without guidance.
        call: A call of qframe's pipeline, from prompt to pixels.
        diffusers: A call of diffusers' pipeline for the same request.
    """
    pipe = pipeline(settings)
    module, arguments = pipe.parts.denoiser.module, request(settings)
    plan = plan_request(pipe.recipe, pipe.recipe.request_type(**arguments, generator=_seeded()), pipe.parts)

    @torch.no_grad()
    def loop(batching: GuidanceBatching = "apart") -> Tensor:
        return sample_plan(plan, pipe.parts.denoiser, pipe.parts.sampler, guidance_batching=batching)

    inputs = _inputs(module, loop)

    @torch.no_grad()
    def passes() -> None:
        for given in inputs:
            module(**given)

    upstream = _upstream(settings, pipe.parts)
    size = (settings.size, settings.size, None)

    def theirs() -> Any:
        with replaced(pipeline_qwenimage_edit, "calculate_dimensions", lambda area, ratio: size):
            return upstream(**arguments, generator=_seeded(), output_type="pt").images

    found: dict[str, Contestant] = {
        "passes": passes,
        "loop": loop,
        "call": lambda: pipe(**arguments, generator=_seeded(), output_type="pt").images,
        "diffusers": theirs,
    }
    return found | ({"joined": lambda: loop("joined")} if plan.guide is not None else {})


def pipeline(settings: Settings) -> Pipeline:
    """The pipeline of a family on the embedded model, with a random transformer in place of the embedded one."""
    area = settings.size**2
    overrides = [
        f"device={settings.device}",
        f"dtype={settings.dtype}",
        f"recipe.min_area={area}",
        f"recipe.max_area={area}",
    ]
    if settings.family == "qwen-edit":
        overrides.append("encoder.options.positions=upstream")
    composition = compose(load_config(None, family=settings.family, overrides=overrides))
    parts = composition.load("encoder", "codec")
    module = transformer(settings, parts).to(torch.device(settings.device), getattr(torch, settings.dtype))
    of_family: Any = composition.classes["denoiser"]
    denoiser = of_family(module)
    return Pipeline(composition, attrs.evolve(parts, loaded_denoiser=denoiser))


def transformer(settings: Settings, parts: Parts) -> nn.Module:
    """Diffusers' transformer with random weights of seed 0, whose inputs and outputs fit the embedded model."""
    torch.manual_seed(0)
    spec = parts.denoiser_spec
    network: nn.Module = QwenImageTransformer2DModel(
        in_channels=spec.token_channels,
        out_channels=parts.codec_spec.channels,
        num_layers=settings.layers,
        attention_head_dim=HEAD,
        num_attention_heads=settings.width // HEAD,
        joint_attention_dim=spec.text_width,
        axes_dims_rope=_ROTARY,
    )
    return network.eval().requires_grad_(False)


def request(settings: Settings) -> dict[str, Any]:
    """The arguments that both pipelines are called with, without the generator."""
    asked: dict[str, Any] = {
        "prompt": "a large red circle at the left of a small blue square",
        "negative_prompt": "blurry" if settings.guidance else None,
        "true_cfg_scale": 4.0 if settings.guidance else 1.0,
        "num_inference_steps": settings.steps,
        "height": settings.size,
        "width": settings.size,
    }
    return asked | (
        {"image": Image.effect_noise((settings.size,) * 2, 64).convert("RGB")} if settings.family == "qwen-edit" else {}
    )


def _upstream(settings: Settings, parts: Parts) -> Any:
    """Diffusers' pipeline for the family, around the same networks; the family's oracle knows how to build it."""
    registry = load_registry()
    oracle = registry.family(settings.family).oracle
    assert oracle is not None
    return registry.resolve(registry.component("oracle", oracle))().pipeline(parts)


def _inputs(module: nn.Module, loop: Contestant) -> list[dict[str, Any]]:
    """Run `loop` once, and return the arguments of each of its forward passes."""
    found: list[dict[str, Any]] = []
    with module.register_forward_pre_hook(lambda module, args, kwargs: found.append(kwargs), with_kwargs=True):
        loop()
    return found


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)
