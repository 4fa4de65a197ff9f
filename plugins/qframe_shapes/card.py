"""The model card: README.md of the checkpoint, from what the build measured."""

import os
import platform
import textwrap
from collections.abc import Mapping
from typing import Any

import diffusers
import torch
import transformers

_CARD = """\
---
license: apache-2.0
library_name: diffusers
tags: [qwen-image, image-editing, tiny, test-model]
---

# A tiny Qwen-Image-Edit for a small world of shapes

A checkpoint of {megabytes:.1f} MB with the architecture classes of Qwen-Image-Edit (`QwenImageTransformer2DModel`,
`AutoencoderKLQwenImage`, `Qwen2_5_VLForConditionalGeneration`, `FlowMatchEulerDiscreteScheduler`), trained from
nothing by qframe's own code on a procedural data set. It edits and paints in a world of four shapes (circle, square,
triangle, cross), two sizes, eight colours and eight backgrounds on canvases of 48 to 96 pixels. It exists so that
every claim about training and sampling can be checked within minutes, by quality, on a CPU and without a network.
It is of no other use.

It does four edits (recolour, change of shape, background, remove), text to image, and painting into a mask. Two things
are left out on purpose, for LoRAs to learn: the colour *purple*, and putting a *dot* on a shape.

## Figures

Share of samples that meet every criterion of `qframe_shapes.metrics`: the median colours of figure and background
within 40/255, more than 95 % of the background's pixels right, outline IoU of at least 0.75, and shape, size and place
classified right among all. {samples} samples a cell, {steps} steps, no guidance, one seed. *unseen*: the combination
of shape, colour, size, place and background was never in training. *held-out pair*: this shape and this colour were
never together. *other canvases*: unseen combinations on the eight canvases other than 64 x 64.

{table}
Painting is measured through diffusers' `QwenImageInpaintPipeline`, everything else through qframe's pipelines. The last
two lines are what was left unlearned.

- VAE: {psnr} dB on held-out pictures.
- Guidance of scale {scale:g} at the hardest edits (background, held-out pairs): {success_with_guidance:.0%}, without
  guidance {success_without_guidance:.0%}.
- Negative prompts under guidance of scale {scale:g}, on captions that leave the colour of the figure open: the figure's
  colour is {distance_when_named:.0f}/255 away from a colour that the negative prompt names, against
  {distance_without_negative:.0f}/255 without negative prompt and {distance_when_another_is_named:.0f}/255 when it
  names another colour.

## Architecture

| part | |
|---|---|
| transformer | 5 layers, 4 heads of 32, rotary axes (8, 12, 12), text width 64: 3.07 million parameters |
| VAE | base 16, multipliers 1 2 3 3, one residual block, 8 latent channels, 8x; latents whitened |
| text encoder | Qwen2.5-VL of width 64 with 2 layers and a vision tower of 2, random and frozen |
| tokenizer | byte-level BPE with Qwen2's pre-tokenizer and special tokens |
| scheduler | the configuration of Qwen/Qwen-Image |

## How it was built

    python -m qframe_shapes.build --output DIR --seed {seed}

one command, which goes on where it was stopped. Seed {seed} decides weights, data, noise and order.

| stage | what | seconds |
|---|---|---|
{stages}

On a CPU ({machine}), one thread a stage, no accelerator. The seconds are wall-clock time beside other
work on the same cores.
torch {torch}, diffusers {diffusers}, transformers {transformers}.
{note}
## Limits

- It knows the words of its captions and instructions; other words are tokens without meaning to it.
- A mask must cover the whole 32 x 32 cell of the figure to be painted.
- Captions that leave out the place or the size sometimes give two figures or none.
- The VAE knows the colours of its palette: another colour comes back as the nearest of them, or mottled.
- Pictures are copied through an 8-fold compression: expect {psnr} dB, not equality, outside the edited region.

Licence: Apache-2.0. The data set is drawn by the code; no picture or text of others was used.
"""

_STAGES = {
    "vae": "VAE, encoder and decoder together",
    "whiten": "whitening of the latents, folded into two 1 x 1 convolutions",
    "denoiser": "transformer, by qframe's trainer: {steps} steps of 64 on {examples} examples, Muon, moving average",
    "refine": "VAE, decoder alone",
    "evaluate": "the figures above",
}


def model_card(measured: Mapping[str, Mapping[str, Any]], table: str, *, size: int, seed: int, note: str = "") -> str:
    """The card's text. measured: by stage, as ``build.measured`` returns it; table: the evaluation in Markdown."""
    evaluation = measured["evaluate"]
    stages = [
        f"| {name} | {what.format(**measured[name])} | {measured[name]['seconds']} |" for name, what in _STAGES.items()
    ]
    return _CARD.format(
        megabytes=size / 1e6,
        samples=evaluation["samples"],
        steps=evaluation["steps"],
        table=table,
        psnr=evaluation["held_out_psnr_db"],
        stages="\n".join(stages),
        seed=seed,
        machine=f"{os.cpu_count()} cores, {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        torch=torch.__version__.partition("+")[0],
        diffusers=diffusers.__version__,
        transformers=transformers.__version__,
        note=f"\n{textwrap.fill(note, 118)}\n" if note else "",
        **evaluation["effects"],
    )
