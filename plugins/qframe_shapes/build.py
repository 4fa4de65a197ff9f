"""Train the embedded model from a seed: `python -m qframe_shapes.build --output DIR`.

The build runs its stages in order. A finished stage leaves the folder `DIR/<stage>`, and the next build skips it. A
stage that was killed continues from its last saved state. Every stage writes its measurements to the file
`measured.json` in its folder. The folder of the last stage, `DIR/checkpoint`, is the model folder that is shipped with
qframe.

The stage `refine` does not use the result of the stage `denoiser`. On a machine with two cores, both can run at the
same time: start the command a second time with `--stages refine` while the denoiser trains.
"""

import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import click
import torch
from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
from safetensors.torch import load_file

from qframe.files import storage
from qframe_shapes import denoiser as denoiser_training
from qframe_shapes import vae as vae_training
from qframe_shapes.assemble import assemble, folder_bytes, new_transformer
from qframe_shapes.card import model_card
from qframe_shapes.effects import measure_effects
from qframe_shapes.evaluate import UNLEARNED_GROUPS, evaluate, standard_groups
from qframe_shapes.sampling import card_sampler
from qframe_shapes.stages import LogProgress, Snapshot, read_json, write_json
from qframe_shapes.vae import VaeConfig

logger = logging.getLogger(__name__)

MEASURED = "measured.json"
_WEIGHTS = "weights"


@attrs.frozen(kw_only=True)
class BuildConfig:
    """The settings of a build of the embedded model.

    Attributes:
        output: The folder of the build; every stage has a folder in it.
        seed: Decides the weights, the data, the noise and the order of the examples.
        scale: Multiplies every number of steps, examples and samples; tests use a small one.
        note: A remark that is added to the model card; "" for none.
        vae_steps: Steps of the joint training of the VAE.
        refine_steps: Steps of the training of the decoder alone.
        denoiser_steps: Steps of the training of the denoiser.
        examples: Number of different training examples of the denoiser.
        samples: Pictures that the evaluation samples for each of its groups.
        sampling_steps: Sampling steps for each of these pictures.
    """

    output: Path
    seed: int = 0
    scale: float = 1.0
    note: str = ""
    vae_steps: int = 4000
    refine_steps: int = 4000
    denoiser_steps: int = 5000
    examples: int = denoiser_training.EXAMPLES
    samples: int = 100
    sampling_steps: int = 12

    def steps(self, full: int) -> int:
        """Multiply a number of steps, examples or samples by `scale`; the result is at least 2."""
        return max(2, round(full * self.scale))

    def folder(self, stage: str) -> Path:
        """Return the folder that holds the result of a stage."""
        return self.output / stage

    def snapshot(self, stage: str) -> Path:
        """Return the file in which an unfinished stage saves its state."""
        return self.output / f"{stage}.snapshot.safetensors"


def vae_stage(config: BuildConfig) -> None:
    """Train the encoder and the decoder of the VAE together."""
    settings = VaeConfig(seed=config.seed, steps=config.steps(config.vae_steps))
    _publish_vae(config, "vae", vae_training.train(settings, config.snapshot("vae")))


def whiten_stage(config: BuildConfig) -> None:
    """Change the VAE so that its latent channels have mean 0 and unit covariance, and round its weights to bfloat16.

    Whitening changes only two 1 x 1 convolutions. The weights are rounded because the model is shipped in bfloat16.
    """
    settings = VaeConfig(seed=config.seed)
    batches = config.steps(40)
    white = vae_training.whiten(_load_vae(config, "vae"), settings, batches)
    _publish_vae(config, "whiten", vae_training.rounded(white, settings, batches))


def refine_stage(config: BuildConfig) -> None:
    """Train the VAE's decoder alone; its encoder does not change, so latents that are already cached stay valid."""
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
    """Write a model folder with an untrained denoiser, from which the training of the denoiser starts."""
    size = assemble(
        config.folder("start"),
        vae=_load_vae(config, "whiten"),
        transformer=new_transformer(config.seed),
        text_seed=config.seed,
    )
    logger.info("start: %.1f MB", size / 1e6)


def denoiser_stage(config: BuildConfig) -> None:
    """Train all weights of the transformer with qframe's trainer; the result is the moving average of the weights."""
    run = config.output / "denoiser.run"
    resume = any(storage.is_published(folder) for folder in run.glob("checkpoints/step-*"))
    if run.exists() and not resume:  # killed before its first checkpoint, so it cannot be resumed
        shutil.rmtree(run)
    settings = denoiser_training.training_config(
        config.folder("start"),
        run,
        seed=config.seed,
        steps=config.steps(config.denoiser_steps),
        examples=config.steps(config.examples),
    )
    publish_denoiser(config, denoiser_training.train(settings, resume=resume, progress=LogProgress()))


def publish_denoiser(config: BuildConfig, weights: Path) -> None:
    """Copy the weights of the finished training run `DIR/denoiser.run` into the stage's folder, with its measurements.

    Args:
        config: The build that the run belongs to.
        weights: The folder into which the run wrote the trained denoiser.
    """
    log = (config.output / "denoiser.run" / "metrics.jsonl").read_text(encoding="utf-8")
    steps = [json.loads(line) for line in log.splitlines()]
    last = steps[-100:]
    measured = {
        "seconds": round(sum(step["seconds"] for step in steps)),
        "steps": len(steps),
        "examples": config.steps(config.examples),
        "loss_of_the_last_100_steps": round(sum(step["loss"] for step in last) / len(last), 4),
    }

    def write(folder: Path) -> None:
        shutil.copytree(weights, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(storage.MANIFEST))
        write_json(folder / MEASURED, measured)

    storage.publish_folder(config.folder("denoiser"), write)
    logger.info("denoiser: %s", measured)


def assemble_stage(config: BuildConfig) -> None:
    """Put the trained networks together into one model folder in bfloat16."""
    folder = _result(config, "denoiser") / "transformer"
    transformer = QwenImageTransformer2DModel.from_config(QwenImageTransformer2DModel.load_config(folder))
    transformer.load_state_dict(load_file(folder / "diffusion_pytorch_model.safetensors"))
    size = assemble(
        config.folder("assemble"),
        vae=_load_vae(config, "refine"),
        transformer=transformer,
        text_seed=config.seed,
    )
    logger.info("assemble: %.1f MB", size / 1e6)


def evaluate_stage(config: BuildConfig) -> None:
    """Measure the success rates of the assembled model and the effects of guidance, and draw contact sheets."""
    model = _result(config, "assemble")
    steps, count = config.steps(config.sampling_steps), config.steps(config.samples)
    started = time.monotonic()
    groups = (*standard_groups(), *UNLEARNED_GROUPS)
    report = evaluate(card_sampler(model, steps=steps), count=count, seed=config.seed, groups=groups)
    effects = measure_effects(model, steps=steps, count=count, seed=config.seed)
    vae = AutoencoderKLQwenImage.from_pretrained(model / "vae", torch_dtype=torch.float32)
    measured = {
        "seconds": round(time.monotonic() - started),
        "samples": count,
        "steps": steps,
        "held_out_psnr_db": round(vae_training.held_out_psnr(vae), 2),
        "effects": attrs.asdict(effects),
    }

    def write(folder: Path) -> None:
        report.save(folder)
        write_json(folder / MEASURED, measured)

    storage.publish_folder(config.folder("evaluate"), write)
    logger.info("evaluate: %s\n%s", measured, report.table())


def checkpoint_stage(config: BuildConfig) -> None:
    """Copy the assembled model folder into `DIR/checkpoint`, together with its model card."""
    model = _result(config, "assemble")
    table = (_result(config, "evaluate") / "table.md").read_text(encoding="utf-8")
    card = model_card(measured(config), table, size=folder_bytes(model), seed=config.seed, note=config.note)

    def write(folder: Path) -> None:
        shutil.copytree(model, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(storage.MANIFEST))
        (folder / "README.md").write_text(card, encoding="utf-8")

    storage.publish_folder(config.folder("checkpoint"), write)


def _result(config: BuildConfig, stage: str) -> Path:
    folder = config.folder(stage)
    if not storage.is_published(folder):
        raise click.ClickException(f"stage {stage!r} has no result in {folder}: run it first")
    return folder


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
    folder = _result(config, stage) / _WEIGHTS
    vae: AutoencoderKLQwenImage = AutoencoderKLQwenImage.from_config(AutoencoderKLQwenImage.load_config(folder))
    vae.load_state_dict(load_file(folder / "diffusion_pytorch_model.safetensors"))
    return vae


STAGES: Mapping[str, Callable[[BuildConfig], None]] = {
    "vae": vae_stage,
    "whiten": whiten_stage,
    "start": start_stage,
    "denoiser": denoiser_stage,
    "refine": refine_stage,
    "assemble": assemble_stage,
    "evaluate": evaluate_stage,
    "checkpoint": checkpoint_stage,
}
"""The stages by name, in the order in which they run; a stage uses the results of stages before it."""


def build(config: BuildConfig, stages: tuple[str, ...] = tuple(STAGES)) -> None:
    """Run the given stages in the given order, except those that have a result already."""
    config.output.mkdir(parents=True, exist_ok=True)
    for name in stages:
        if storage.is_published(config.folder(name)):
            logger.info("%s: done already", name)
            continue
        started = time.monotonic()
        STAGES[name](config)
        logger.info("%s: finished after %.0f s", name, time.monotonic() - started)


def measured(config: BuildConfig) -> dict[str, dict[str, Any]]:
    """Return the measurements of the finished stages, by the name of the stage."""
    files = {name: config.folder(name) / MEASURED for name in STAGES}
    return {name: read_json(file) for name, file in files.items() if file.exists()}


@click.command(help=__doc__)
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), required=True, help="folder of the build")
@click.option("--stages", default=",".join(STAGES), show_default=True, help="stages to run, separated by commas")
@click.option(
    "--scale",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    help="multiplies every number of steps, examples and samples",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="decides weights, data, noise and order"
)
@click.option("--note", default="", help="a remark for the model card")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="number of CPU threads")
def main(output: Path, stages: str, scale: float, seed: int, note: str, threads: int) -> None:
    """Run the build from the command line."""
    names = tuple(stages.split(","))
    unknown = [name for name in names if name not in STAGES]
    if unknown:
        known = ", ".join(STAGES)
        raise click.BadParameter(f"unknown stages {', '.join(unknown)}; there are {known}", param_hint="--stages")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(threads)
    build(BuildConfig(output=output.resolve(), seed=seed, scale=scale, note=note), names)


if __name__ == "__main__":
    main()
