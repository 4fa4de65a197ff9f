"""Write the model card, which is the README.md of the model folder, from the measurements of the build."""

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

This model of {megabytes:.1f} MB has the architecture classes of Qwen-Image-Edit (`QwenImageTransformer2DModel`,
`AutoencoderKLQwenImage`, `Qwen2_5_VLForConditionalGeneration`, `FlowMatchEulerDiscreteScheduler`). qframe's own code
trained it from random weights on made-up pictures. It edits and paints in a small world: four shapes (circle, square,
triangle, cross), two sizes, eight colours and eight backgrounds, on canvases with sides from 48 to 96 pixels. With this
model, every claim about training and sampling, including the quality of the pictures, can be checked within minutes,
on a CPU and without a network. It has no other use.

The model does four edits (a new colour, a new shape, a new background, removing the shape), text to image, and
painting into a mask. It was deliberately not trained on two things, so that a LoRA can learn them: the colour *purple*,
and putting a *dot* on a shape.

## Results

The table gives the percentage of sampled pictures that meet every criterion of `qframe_shapes.metrics`. The median
colours of figure and background must be within 40/255 of the wanted ones, more than 95 % of the pixels of the
background must be right, the outline must have an intersection over union of at least 0.75, and of all templates the
one with the right shape, size and place must fit best. Each cell of the table stands for {samples} samples with {steps}
steps, without guidance, from one seed. The columns differ in what training never showed:

- *unseen*: this combination of shape, colour, size, place and background.
- *held-out pair*: this shape together with this colour.
- *other canvases*: unseen combinations, on the eight canvases other than 64 x 64.

{table}
Painting was sampled with diffusers' `QwenImageInpaintPipeline`, everything else with qframe's pipelines. The last two
rows are the two things that the model was not trained on.

- The VAE reaches {psnr} dB on held-out pictures.
- At the hardest edits (a new background behind held-out pairs), {success_with_guidance:.0%} succeed with a guidance
  scale of {scale:g}, and {success_without_guidance:.0%} without guidance.
- Negative prompts were tested with a guidance scale of {scale:g} and captions that do not name the figure's colour. If
  the negative prompt names a colour, the figure's colour is {distance_when_named:.0f}/255 away from it. Without a
  negative prompt the distance is {distance_without_negative:.0f}/255, and if the negative prompt names another colour
  it is {distance_when_another_is_named:.0f}/255.

## Architecture

| part | size |
|---|---|
| transformer | 5 layers, 4 heads of width 32, rotary axes (8, 12, 12), text width 64: 3.07 million parameters |
| VAE | base width 16, multipliers 1 2 3 3, one residual block, 8 whitened latent channels, 8-fold compression |
| text encoder | Qwen2.5-VL of width 64 with 2 layers, and 2 layers for pictures; random weights, never trained |
| tokenizer | byte-level BPE with the pre-tokenizer and special tokens of Qwen2 |
| scheduler | the configuration of Qwen/Qwen-Image |

## How it was built

    python -m qframe_shapes.build --output DIR --seed {seed}

This one command builds the model, and continues where it was stopped. The seed {seed} decides weights, data, noise
and order.

| stage | what it does | seconds |
|---|---|---|
{stages}

The stages ran on a CPU ({machine}) with one thread each and without an accelerator.
The seconds are wall-clock time; other programs ran on the same cores.
The versions were torch {torch}, diffusers {diffusers} and transformers {transformers}.
{note}
## Limits

- The model knows the words of its captions and instructions. Other words are tokens without a meaning to it.
- A mask must cover the whole cell (32 x 32 pixels) of the figure that is to be painted.
- If a caption does not name the place or the size, the picture sometimes shows two figures or none.
- The VAE knows the colours of its palette. Another colour comes back as the nearest colour of the palette, or mottled.
- Outside the edited region, a picture goes through a codec with 8-fold compression. So expect a copy with {psnr} dB,
  not an exact one.

Licence: Apache-2.0. The pictures and texts of the data set are made by the code; none come from other people.
"""

_STAGES = {
    "vae": "trains the encoder and the decoder of the VAE together",
    "whiten": "whitens the latents by changing two 1 x 1 convolutions of the VAE",
    "denoiser": "trains the transformer with qframe: {steps} steps of 64 on {examples} examples, Muon, moving average",
    "refine": "trains the decoder of the VAE alone",
    "evaluate": "measures the results above",
}


def model_card(measured: Mapping[str, Mapping[str, Any]], table: str, *, size: int, seed: int, note: str = "") -> str:
    """Write the text of the model card.

    Args:
        measured: The measurements by stage, as `build.measured` returns them.
        table: The success rates as a Markdown table.
        size: The size of the model folder in bytes.
        seed: The seed of the build.
        note: A remark to add after the versions of packages; "" for none.
    """
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
