"""The command `qframe verify`, which compares a family with diffusers' pipeline."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from qframe.cli.shared import (
    CONFIG,
    FAMILY,
    MODEL,
    SET,
    RequestCommand,
    announce,
    examples,
    opened,
    options,
    registry,
    resolve,
)


@click.command(
    cls=RequestCommand,
    epilog=examples(
        "qframe verify --family qwen-edit",
        "qframe verify --family qwen-image --examples                 image to image, from a picture made up",
        "qframe verify --family qwen-edit --model DIR --device cuda --dtype bfloat16 --image in.png --prompt ...",
    ),
)
@options(FAMILY, MODEL)
@click.option("--prompt", help="What to make [default: a sentence that the embedded model knows].")
@click.option("--negative-prompt", default=" ", help="What to steer away from [default: a space].")
@click.option("--steps", type=click.IntRange(min=1), default=4, show_default=True, help="Sampling steps.")
@click.option(
    "--guidance",
    type=click.FloatRange(min=0.0),
    default=4.0,
    show_default=True,
    help="Guidance scale; up to 1: no guidance.",
)
@click.option("--size", metavar="WxH", help="Width and height in pixels [default: the family's].")
@click.option("--seed", type=click.IntRange(min=0, max=2**62), default=0, show_default=True, help="Seed of the noise.")
@click.option(
    "--batch", type=click.IntRange(min=1), default=3, show_default=True, help="Samples that are computed together."
)
@click.option("--examples", "with_examples", is_flag=True, help="Make up the optional pictures of the family too.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True)
@click.option("--device", help="cpu, cuda, cuda:1, ... [default: the best one of this machine].")
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
@options(CONFIG, SET)
def verify(
    family: str | None,
    model: str | None,
    prompt: str | None,
    negative_prompt: str,
    steps: int,
    guidance: float,
    size: str | None,
    seed: int,
    batch: int,
    with_examples: bool,
    dtype: str,
    device: str | None,
    as_json: bool,
    config_file: str | None,
    overrides: tuple[str, ...],
    **request: Any,
) -> None:
    """Compare with diffusers' pipeline, stage by stage: sigmas, pictures, prompts, every step, the result.

    Both sides use the same networks, seed and inputs. Pictures that are not given are made up. The exit code is 1 if a
    stage is outside its tolerance.
    """
    plugins = registry()
    from qframe.compose import recipe_class
    from qframe.config import chosen_family
    from qframe.sample.jobs.asked import size_of
    from qframe_verify.run import oracle_of
    from qframe_verify.run import verify as compare

    chosen = chosen_family(config_file, family=family, overrides=overrides, registry=plugins)
    oracle = oracle_of(chosen.family, plugins)
    placed = [f"dtype={dtype}", *([] if device is None else [f"device={device}"])]
    config = resolve(family, config_file, (*oracle.overrides, *placed, *overrides), model=model).config
    if not as_json:
        announce(config, data=False)
    asked = opened(recipe_class(chosen).request_type, request) | size_of(size)
    asked |= {"num_inference_steps": steps, "true_cfg_scale": guidance}
    asked |= {} if prompt is None else {"prompt": prompt}
    asked |= {"negative_prompt": negative_prompt} if guidance > 1 else {}

    from qframe.compose import compose

    report = compare(compose(config, plugins), oracle, asked, seed=seed, batch=batch, examples=with_examples)
    click.echo(json.dumps(report.as_json(), indent=2) if as_json else report.as_text())
    if report.misses:
        sys.exit(1)
