"""Draws the arguments of a call at random, among those for which the page of differences promises equal results."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image

from qframe.diffusion.packing import pack_latents
from tests.parity.pipelines import Pair
from tests.qwen import tiny

Arguments = dict[str, Any]
Made = Callable[[], Arguments]

_WORDS = (
    "a",
    "red",
    "circle",
    "make",
    "it",
    "blue",
    "very",
    "large",
    "square",
    "remove",
    "left",
    "é",
    "1,000",
    "(x:1.2)",
)
_SIDES = (32, 48, 64, 80, 96, 128)


def draw_case(draw: Random, pair: Pair) -> tuple[Made, str]:
    """Draw a call.

    Returns:
        A function that makes the arguments anew, as both pipelines use up generators; and what was drawn.
    """
    name, told = pair.name, dict[str, Any]()
    prompts = [_prompt(draw) for _ in range(1 if name == "qwen-edit-plus" else draw.choice((1, 1, 2, 3)))]
    # Of several prompts with several pictures each, diffusers brings pictures and masks into another order.
    each = draw.choice((1, 2)) if len(prompts) == 1 else 1
    results = len(prompts) * each
    told |= {"prompt": prompts, "num_images_per_prompt": each}
    told["num_inference_steps"] = draw.choice((2, 3, 4, 5))
    told["true_cfg_scale"] = draw.choice((1.0, 1.5, 4.0, 7.5))
    if draw.random() < 0.7:
        told["negative_prompt"] = [_prompt(draw, " ") for _ in prompts] if draw.random() < 0.5 else _prompt(draw, " ")
    if draw.random() < 0.3:
        count = draw.choice((2, 3, 4))
        told["sigmas"] = sorted((round(draw.uniform(0.05, 1), 3) for _ in range(count)), reverse=True)
    if draw.random() < 0.2:
        told["max_sequence_length"] = draw.choice((16, 64, 512))
    if draw.random() < 0.2:
        told["guidance_scale"] = draw.choice((None, 3.5))
    if draw.random() < 0.15:
        told["attention_kwargs"] = {}
    told["output_type"] = draw.choice(("pil", "np", "pt", "latent", "latent"))
    told["return_dict"] = draw.random() < 0.8
    if len(prompts) == 1 and draw.random() < 0.5:
        told["prompt"] = prompts[0]
    size = _size(draw, name, told)
    makers: list[Made] = [lambda: dict(told)]
    about = dict(told)
    for part in (_pictures, _embeddings, _randomness, _callback):
        if (added := part(draw, pair, told, size, results)) is not None:
            made, said = added
            makers.append(made)
            about |= said

    def make() -> Arguments:
        arguments: Arguments = {}
        for one in makers:
            arguments |= one()
        return {key: value for key, value in arguments.items() if value is not _LEFT_OUT}

    return make, f"{name} {about}"


_LEFT_OUT: Any = object()
Part = tuple[Made, dict[str, Any]] | None


def _prompt(draw: Random, empty: str = "a") -> str:
    return " ".join(draw.choices(_WORDS, k=draw.choice((0, 1, 4, 9, 30)))) or empty


def _size(draw: Random, name: str, told: Arguments) -> tuple[int, int]:
    """Choose height and width of the results; an edit may leave them to the pipeline."""
    size = draw.choice(_SIDES), draw.choice(_SIDES)
    if name == "qwen-edit-inpaint" or ("edit" in name and draw.random() < 0.5):
        return 96, 96  # pictures of this size are brought to no other size
    told["height"], told["width"] = size
    return size


def _pictures(draw: Random, pair: Pair, told: Arguments, size: tuple[int, int], results: int) -> Part:
    name, seed = pair.name, draw.randrange(1000)
    if name == "qwen-image":
        return None
    prompts = len(told["prompt"]) if isinstance(told["prompt"], list) else 1
    extra: dict[str, Any] = {}
    if name == "qwen-edit-plus":
        count, form = draw.choice((1, 2, 3)), draw.choice(("pil", "any size"))
        sizes = [
            (draw.randrange(40, 140), draw.randrange(40, 140)) if form == "any size" else (96, 96) for _ in range(count)
        ]
        return (lambda: {"image": [tiny.picture(seed + n, *one) for n, one in enumerate(sizes)]}), {"pictures": sizes}
    edit = "edit" in name
    several = prompts > 1 and (edit or draw.random() < 0.6)
    if edit and several and isinstance(told.get("negative_prompt"), str):  # their processor wants one for each picture
        extra["negative_prompt"] = [told["negative_prompt"]] * prompts
    count = prompts if several else 1
    own = (96, 96) if edit else size
    form = draw.choice(("pil", "any size", "np", "pt", "list"))
    if edit:  # diffusers' edits take pictures of PIL alone, and a list of them unresized
        form = "any size" if not several and "inpaint" not in name and draw.random() < 0.6 else "pil"
    shape = (draw.randrange(30, 150), draw.randrange(30, 150)) if form == "any size" else own
    said: dict[str, Any] = {"pictures": (count, form, shape)}
    if name != "qwen-edit":
        extra["strength"] = round(draw.uniform(0.2, 1.0), 2)
    masks: Made = dict
    if "inpaint" in name:
        # With a crop, the encoder of diffusers' edits sees the whole picture.
        cropped = form == "pil" and not several and not edit
        crop = draw.choice((None, None, 0, 8, 32)) if cropped else None
        kind = (
            draw.choice(("pil", "grey", "RGB", "box", "np", "np 3", "pt", "pt 3", "pt 4"))
            if form != "any size"
            else draw.choice(("pil", "grey", "box"))
        )
        if crop is not None:
            extra |= {"padding_mask_crop": crop, "output_type": "pil"}  # diffusers puts back pictures of PIL alone
            kind = draw.choice(("pil", "box"))
        said["mask"] = kind
        masks = lambda: {"mask_image": _in_form([_mask(kind, seed + n, shape) for n in range(count)], kind)}  # noqa: E731
    said |= extra

    def make() -> Arguments:
        images = [tiny.picture(seed + n, shape[1], shape[0]) for n in range(count)]
        return {"image": _in_form(images, form), **extra, **masks()}

    return make, said


def _mask(kind: str, seed: int, shape: tuple[int, int]) -> Image.Image:
    height, width = shape
    if kind in ("grey", "pil", "RGB"):
        found = tiny.picture(seed + 50, width, height).convert("L")
        return (
            found
            if kind == "grey"
            else found.point(lambda value: 255 * (value > 110)).convert("RGB" if kind == "RGB" else "L")
        )
    box = Image.new("L", (width, height), 0)
    box.paste(255, (width // 4, height // 4, width // 2 + 1 + seed % 7, height // 2 + 3))
    return box


def _in_form(images: list[Image.Image], form: str) -> Any:
    """Pictures in a form that diffusers takes: PIL, arrays or tensors, alone or in a list."""
    alone = len(images) == 1
    arrays = np.stack([np.asarray(image, dtype=np.float32) / 255 for image in images])
    grey = arrays.ndim == 3
    if form == "np":
        return arrays[..., None] if grey else arrays
    if form == "np 3":
        return arrays[0] if alone else arrays[..., None]
    tensor = torch.from_numpy(arrays)[:, None] if grey else torch.from_numpy(arrays).permute(0, 3, 1, 2)
    if form in ("pt", "pt 4"):
        return tensor
    if form == "pt 3":
        return tensor[0] if alone else tensor
    return images[0] if alone and form != "list" else images


def _embeddings(draw: Random, pair: Pair, told: Arguments, size: tuple[int, int], results: int) -> Part:
    """Give embeddings in the place of prompts."""
    if "edit" in pair.name or draw.random() < 0.75:
        return None
    prompts = told["prompt"] if isinstance(told["prompt"], list) else [told["prompt"]]
    embeds, mask = pair.ours.encode_prompt(prompts)
    found: Arguments = {"prompt": _LEFT_OUT, "prompt_embeds": embeds, "prompt_embeds_mask": mask}
    if (negative := told.get("negative_prompt")) is not None:
        texts = negative if isinstance(negative, list) else [negative] * len(prompts)
        other, other_mask = pair.ours.encode_prompt(texts)
        found |= {
            "negative_prompt": _LEFT_OUT,
            "negative_prompt_embeds": other,
            "negative_prompt_embeds_mask": other_mask,
        }
    return (lambda: dict(found)), {"embeddings": True}


def _randomness(draw: Random, pair: Pair, told: Arguments, size: tuple[int, int], results: int) -> Part:
    """Give a generator, one for each result, the global one, or the latents themselves."""
    seed = draw.randrange(10_000)
    kind = draw.choice(("one", "one", "list", "latents"))
    if kind == "list" and pair.name in ("image-to-image", "qwen-inpaint", "qwen-edit-inpaint") and results > 1:
        kind = "one"  # each result draws a source of its own
    if kind == "latents" and "inpaint" in pair.name:
        kind = "one"  # diffusers crashes
    if kind == "latents" and "edit" in pair.name and "height" not in told:
        kind = "one"
    if kind == "list":
        return (lambda: {"generator": [torch.Generator().manual_seed(seed + n) for n in range(results)]}), {
            "generators": seed
        }
    if kind == "one":
        return (lambda: {"generator": torch.Generator().manual_seed(seed)}), {"generator": seed}
    height, width = size

    def latents() -> Arguments:
        noise = torch.randn(results, 4, height // 8, width // 8, generator=torch.Generator().manual_seed(seed))
        return {"latents": pack_latents(noise, 2), "generator": torch.Generator().manual_seed(seed)}

    return latents, {"latents": seed}


def _callback(draw: Random, pair: Pair, told: Arguments, size: tuple[int, int], results: int) -> Part:
    """Look at latents after every step; now and then change them, or end the run."""
    kind, at = draw.choice(("look", "scale", "stop", "embeds")), draw.randrange(3)

    def make() -> Arguments:
        def called(pipe: Any, step: int, timestep: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            called.seen.append(tensors["latents"].detach().clone())  # type: ignore[attr-defined]
            called.times.append(float(timestep))  # type: ignore[attr-defined]
            if step == at and kind == "stop":
                pipe._interrupt = True
            if step == at and kind == "scale":
                return {"latents": tensors["latents"] * 0.8}
            if step == at and kind == "embeds":
                return {"prompt_embeds": tensors["prompt_embeds"] * 0.5}
            return {}

        called.seen, called.times = [], []  # type: ignore[attr-defined]
        names = ["latents", "prompt_embeds"] if kind == "embeds" else ["latents"]
        return {"callback_on_step_end": called, "callback_on_step_end_tensor_inputs": names}

    return make, {"callback": (kind, at)}
