"""The command `qframe demo`: train a LoRA on the embedded model, and sample with it and without it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from qframe.cli.shared import PROGRESS, announce, fit, options, resolve
from qframe.errors import ConfigError

if TYPE_CHECKING:
    from PIL import Image

    from qframe.config.schema import Config
    from qframe.interfaces import Record
    from qframe.train.results import FitResult

FAMILY_NAME = "qwen-edit"


@click.command()
@click.option("--output", metavar="DIR", help="The run's folder [default: runs/qwen-edit, numbered].")
@click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="As for `qframe train`. Repeatable.")
@options(PROGRESS)
def demo(output: str | None, overrides: tuple[str, ...]) -> None:
    """Train a LoRA on the embedded model and sample with and without it, in a few minutes.

    This does the same as `qframe train --family qwen-edit`, followed by `qframe sample` twice with the same seed. It
    ends by naming the pictures to open.
    """
    resolved = resolve(FAMILY_NAME, None, overrides, output=output)
    config = resolved.config
    if config.train.mode != "lora":
        raise ConfigError(
            f"train.mode is {config.train.mode!r}, and the demo samples with a LoRA and without it",
            f"Use `qframe train --family {FAMILY_NAME}` for anything else.",
        )
    announce(config, data=True)
    result = fit(resolved)
    pictures = with_and_without(config, result)
    click.echo("\nOpen these pictures:")
    for meaning, file in [*pictures, ("before and after training, many at once", result.sheet)]:
        if file is not None:
            click.echo(f"  {file}  {meaning}")
    click.echo(f"The LoRA: {result.weights}")
    click.echo(f"A page about the run: qframe report {shlex.quote(str(result.folder))}")


def with_and_without(config: Config, result: FitResult) -> list[tuple[str, Path]]:
    """Sample one validation record without the LoRA and with it, and write the pictures into the run's folder.

    The record is of the group whose rate of success rose most. If the data set has no validation records, its first
    record is used.

    Args:
        config: The configuration of the run.
        result: What training returned.

    Returns:
        For each picture what it shows, and its file: the input, the sample without the LoRA, the sample with it.
    """
    import attrs
    import torch

    from qframe.adapters import load_lora
    from qframe.compose import compose
    from qframe.data.choose import open_source
    from qframe.pictures.pixels import open_picture
    from qframe.plugins.registry import load_registry
    from qframe.sample.jobs.picture_files import write_picture
    from qframe.sample.pipeline import Pipeline

    composition = compose(config)
    pipe = Pipeline(composition, composition.load("encoder", "codec", "denoiser"))
    source = open_source(config, load_registry())
    record = _most_improved(source.validation() or source.records()[:1], result)
    request = attrs.evolve(
        composition.recipe.request_for(record),
        num_inference_steps=config.sample.num_inference_steps,
        true_cfg_scale=1.0 if config.sample.negative_prompt is None else config.sample.true_cfg_scale,
        negative_prompt=config.sample.negative_prompt,
    )
    folder = result.folder / "demo"
    asked = f"what is asked for: {record.prompt!r}"
    shown = [(asked, folder / "input.png", open_picture(reference)) for reference in record.references[:1]]
    for meaning, name in (("without the LoRA", "without.png"), ("with the LoRA", "with.png")):
        if name == "with.png":
            load_lora(pipe.parts.denoiser.module, result.weights)
        seeded = attrs.evolve(request, generator=torch.Generator().manual_seed(config.sample.seed))
        shown.append((meaning, folder / name, cast("list[Image.Image]", pipe.run(seeded))[0]))
    for _, file, picture in shown:
        write_picture(file, picture)
    return [(meaning, file) for meaning, file, _ in shown]


def _most_improved(records: Sequence[Record], result: FitResult) -> Record:
    """Return the first record of the group whose rate of success rose most during training."""
    before = {group.group: group.rate or 0.0 for group in result.before}
    gains = {group.group: (group.rate or 0.0) - before.get(group.group, 0.0) for group in result.after}
    return max(records, key=lambda record: gains.get(record.group, 0.0))
