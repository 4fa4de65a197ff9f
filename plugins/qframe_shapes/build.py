"""Build the embedded checkpoint from a seed: ``python -m qframe_shapes.build --output DIR``.

Stages run in order. A finished stage is a published folder ``DIR/<stage>`` and is skipped; a stage that was killed
goes on from its last snapshot. Every stage writes what it measured to ``measured.json`` beside its result.
"""

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import attrs
import click
import torch
from diffusers import AutoencoderKLQwenImage
from safetensors.torch import load_file

from qframe import storage
from qframe_shapes import vae as vae_training
from qframe_shapes.assemble import assemble, new_transformer
from qframe_shapes.stages import Snapshot, read_json, write_json
from qframe_shapes.vae import VaeConfig

logger = logging.getLogger(__name__)

MEASURED = "measured.json"
_WEIGHTS = "weights"


@attrs.frozen(kw_only=True)
class BuildConfig:
    """What to build, and where. scale: multiplies every number of steps; tests use a small one."""

    output: Path
    seed: int = 0
    scale: float = 1.0
    vae_steps: int = 4000
    refine_steps: int = 4000

    def steps(self, full: int) -> int:
        """Steps of a stage at this scale, at least 2."""
        return max(2, round(full * self.scale))

    def folder(self, stage: str) -> Path:
        """Where a stage's result is published."""
        return self.output / stage

    def snapshot(self, stage: str) -> Path:
        """Where a stage in progress keeps its state."""
        return self.output / f"{stage}.snapshot.safetensors"


def vae_stage(config: BuildConfig) -> None:
    """Joint training of the VAE."""
    settings = VaeConfig(seed=config.seed, steps=config.steps(config.vae_steps))
    _publish_vae(config, "vae", vae_training.train(settings, config.snapshot("vae")))


def whiten_stage(config: BuildConfig) -> None:
    """Whitening of the latents, folded into the 1 x 1 convolutions; then rounding to what ships."""
    settings = VaeConfig(seed=config.seed)
    batches = config.steps(40)
    white = vae_training.whiten(_load_vae(config, "vae"), settings, batches)
    _publish_vae(config, "whiten", vae_training.rounded(white, settings, batches))


def refine_stage(config: BuildConfig) -> None:
    """Refinement of the decoder; the encoder, and with it every cached latent, stays as it is."""
    settings = VaeConfig(
        seed=config.seed + 1,
        steps=config.steps(config.refine_steps),
        learning_rate=1e-3,
        cell_weight=4.0,
        latent_noise=0.03,
    )
    _publish_vae(
        config,
        "refine",
        vae_training.refine_decoder(_load_vae(config, "whiten"), settings, config.snapshot("refine")),
    )


def start_stage(config: BuildConfig) -> None:
    """A checkpoint whose denoiser knows nothing yet: what the denoiser's training starts from."""
    size = assemble(
        config.folder("start"),
        vae=_load_vae(config, "whiten"),
        transformer=new_transformer(config.seed),
        text_seed=config.seed,
    )
    logger.info("start: %.1f MB", size / 1e6)


def _publish_vae(config: BuildConfig, stage: str, vae: AutoencoderKLQwenImage) -> None:
    snapshot = config.snapshot(stage)
    seconds = Snapshot.load(snapshot).seconds if snapshot.exists() else 0.0
    measured = {"seconds": round(seconds), "held_out_psnr_db": round(vae_training.held_out_psnr(vae), 2)}

    def write(folder: Path) -> None:
        vae.save_pretrained(folder / _WEIGHTS)
        write_json(folder / MEASURED, measured)

    storage.publish_folder(config.folder(stage), write)
    snapshot.unlink(missing_ok=True)
    logger.info("%s: %s", stage, measured)


def _load_vae(config: BuildConfig, stage: str) -> AutoencoderKLQwenImage:
    if not storage.is_published(config.folder(stage)):
        raise click.ClickException(f"stage {stage!r} has no result in {config.folder(stage)}: run it first")
    folder = config.folder(stage) / _WEIGHTS
    vae: AutoencoderKLQwenImage = AutoencoderKLQwenImage.from_config(AutoencoderKLQwenImage.load_config(folder))
    vae.load_state_dict(load_file(folder / "diffusion_pytorch_model.safetensors"))
    return vae


STAGES: Mapping[str, Callable[[BuildConfig], None]] = {
    "vae": vae_stage,
    "whiten": whiten_stage,
    "start": start_stage,
    "refine": refine_stage,
}
"""In order; each needs those before it."""


def build(config: BuildConfig, stages: tuple[str, ...] = tuple(STAGES)) -> None:
    """Run the stages that have no result yet."""
    config.output.mkdir(parents=True, exist_ok=True)
    for name in stages:
        if storage.is_published(config.folder(name)):
            logger.info("%s: done already", name)
            continue
        started = time.monotonic()
        STAGES[name](config)
        logger.info("%s: finished after %.0f s", name, time.monotonic() - started)


def measured(config: BuildConfig) -> dict[str, object]:
    """What the finished stages measured, by stage."""
    files = {name: config.folder(name) / MEASURED for name in STAGES}
    return {name: read_json(file) for name, file in files.items() if file.exists()}


@click.command(help=__doc__)
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), required=True, help="folder of the build")
@click.option("--stages", default=",".join(STAGES), show_default=True, help="stages to run, separated by commas")
@click.option("--scale", type=click.FloatRange(min=0, min_open=True), default=1.0, help="multiplies all steps")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="seed of everything")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="CPU threads")
def main(output: Path, stages: str, scale: float, seed: int, threads: int) -> None:
    """Command line of the builder."""
    names = tuple(stages.split(","))
    unknown = [name for name in names if name not in STAGES]
    if unknown:
        known = ", ".join(STAGES)
        raise click.BadParameter(f"unknown stages {', '.join(unknown)}; there are {known}", param_hint="--stages")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(threads)
    build(BuildConfig(output=output, seed=seed, scale=scale), names)


if __name__ == "__main__":
    main()
