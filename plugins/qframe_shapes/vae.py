"""Train the VAE of the embedded model: encoder and decoder together, then whiten the latents, then the decoder alone.

The model card (`checkpoint/README.md`) gives the results. The batch of a training step depends only on the seed and the
step, so a run that was killed continues from its last snapshot as if it had not been interrupted.
"""

import copy
import logging
import math
from collections.abc import Callable
from pathlib import Path

import attrs
import numpy as np
import torch
from diffusers import AutoencoderKLQwenImage
from torch import Tensor

from qframe_shapes import world
from qframe_shapes.frame_vae import Z_DIM, decode_frame, encode_frame, new_vae
from qframe_shapes.stages import Pace, Snapshot, optimiser_tensors, restore_optimiser

logger = logging.getLogger(__name__)

_CANVAS_MIX = ((world.Canvas(48, 48), 0.5), (world.MAIN_CANVAS, 0.3))
_HELD_OUT_SEED_OFFSET = 1_000_003


@attrs.frozen
class VaeConfig:
    """The settings of the joint training of encoder and decoder, or of the training of the decoder alone.

    Attributes:
        seed: Decides weights, pictures and noise.
        steps: Number of optimizer steps.
        batch_size: Pictures per step.
        learning_rate: The highest learning rate.
        warmup: Number of steps in which the learning rate rises.
        kl_weight: Factor of the KL divergence in the loss of the joint training; the decoder alone does not use it.
        cell_weight: How much the squared error of a pixel in the cell of a figure counts, compared with other pixels.
        latent_noise: For the decoder alone: standard deviation of the noise that is added to the whitened latents. It
            makes the decoder tolerate small errors of a denoiser.
        ema_decay: Decay of the moving average of the weights.
        clip_norm: The norm that larger gradients are scaled down to.
        snapshot_every: Seconds between two saved states.
    """

    seed: int = 0
    steps: int = 4500
    batch_size: int = 16
    learning_rate: float = 1.5e-3
    warmup: int = 100
    kl_weight: float = 1e-4
    cell_weight: float = 3.0
    latent_noise: float = 0.0
    ema_decay: float = 0.998
    clip_norm: float = 1.0
    snapshot_every: float = 60.0


@attrs.frozen(eq=False)
class Batch:
    """Pictures of one canvas size, and how much each of their pixels counts in the loss.

    Attributes:
        pixels: The pictures, [B, 3, H, W] from -1 to 1.
        weights: The factor of the squared error at each pixel, [B, 1, H, W]; the mean is 1.
    """

    pixels: Tensor  # [B, 3, H, W] in [-1, 1]
    weights: Tensor  # [B, 1, H, W], mean 1


def vae_scene(rng: np.random.Generator, canvas: world.Canvas) -> world.Scene:
    """Draw a scene for the VAE: up to three figures, rarely none, in all colours, some of them with a dot."""
    count = int(rng.choice((0, 1, 2, 3), p=(0.03, 0.37, 0.4, 0.2)))
    scene = world.random_scene(rng, canvas, count, colours=world.COLOURS)
    figures = tuple(attrs.evolve(figure, dotted=bool(rng.random() < 0.15)) for figure in scene.objects)
    background = scene.background
    if rng.random() < 0.05:
        taken = {figure.colour for figure in figures}
        background = world.choose(rng, tuple(world.PALETTE), but=tuple(taken))
    return world.Scene(canvas, background, figures)


def training_batch(config: VaeConfig, step: int, *, held_out: bool = False) -> Batch:
    """Draw the pictures of one training step, which depend only on the arguments.

    Args:
        config: The settings.
        step: Number of the step.
        held_out: Whether to draw pictures that no training step uses, for measurements.
    """
    rng = world.sample_rng(config.seed + (_HELD_OUT_SEED_OFFSET if held_out else 0), step)
    canvas = _choose_canvas(rng)
    scenes = [vae_scene(rng, canvas) for _ in range(config.batch_size)]
    return scenes_batch(scenes, config.cell_weight)


def scenes_batch(scenes: list[world.Scene], cell_weight: float = 1.0) -> Batch:
    """Draw scenes of one canvas size, and convert the pictures to tensors.

    Args:
        scenes: The scenes, all of the same canvas size.
        cell_weight: How much a pixel in the cell of a figure counts, compared with other pixels.
    """
    pixels = torch.from_numpy(np.stack([world.render_array(scene) for scene in scenes]))
    weights = torch.ones(len(scenes), 1, *pixels.shape[1:3])
    for row, scene in enumerate(scenes):
        for figure in scene.objects:
            x, y = scene.canvas.corner(figure.place)
            weights[row, :, y : y + world.CELL, x : x + world.CELL] = cell_weight
    pixels = pixels.permute(0, 3, 1, 2).float().div(127.5).sub(1.0)
    return Batch(pixels.contiguous(memory_format=torch.channels_last), weights / weights.mean())


def _choose_canvas(rng: np.random.Generator) -> world.Canvas:
    draw = rng.random()
    for canvas, fraction in _CANVAS_MIX:
        if draw < fraction:
            return canvas
        draw -= fraction
    return world.CANVASES[int(rng.integers(len(world.CANVASES)))]


def train(config: VaeConfig, snapshot_path: Path) -> AutoencoderKLQwenImage:
    """Train a new encoder and decoder together, and return the VAE with the moving average of the weights.

    Args:
        config: The settings.
        snapshot_path: The file in which the state is saved; if it exists, training continues from it.
    """
    vae = new_vae(torch.Generator().manual_seed(config.seed))

    def loss(batch: Batch, generator: torch.Generator) -> Tensor:
        mean, log_variance = encode_frame(vae, batch.pixels)
        noise = torch.randn(mean.shape, generator=generator)
        decoded = decode_frame(vae, mean + noise * torch.exp(0.5 * log_variance))
        kl = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).mean()
        return weighted_mse(decoded, batch) + config.kl_weight * kl

    return _run(vae, _parameters(vae), loss, config, snapshot_path)


def refine_decoder(vae: AutoencoderKLQwenImage, config: VaeConfig, snapshot_path: Path) -> AutoencoderKLQwenImage:
    """Train the decoder of a copy of the VAE; the encoder does not change, so cached latents stay valid.

    Args:
        vae: The VAE after whitening; it is not changed.
        config: The settings.
        snapshot_path: The file in which the state is saved; if it exists, training continues from it.
    """
    vae = copy.deepcopy(vae)
    decoder = {
        name: parameter
        for name, parameter in _parameters(vae).items()
        if name.startswith(("decoder.", "post_quant_conv."))
    }

    def loss(batch: Batch, generator: torch.Generator) -> Tensor:
        with torch.no_grad():
            mean, _ = encode_frame(vae, batch.pixels)
        noise = torch.randn(mean.shape, generator=generator)
        return weighted_mse(decode_frame(vae, mean + config.latent_noise * noise), batch)

    return _run(vae, decoder, loss, config, snapshot_path)


def _parameters(vae: AutoencoderKLQwenImage) -> dict[str, torch.nn.Parameter]:
    return dict(vae.named_parameters())


def weighted_mse(decoded: Tensor, batch: Batch) -> Tensor:
    """Return the mean of squared error times weight, over all pixels and channels.

    Args:
        decoded: The decoded pictures, [B, 3, H, W], as `batch.pixels` from -1 to 1.
        batch: The right pictures and the weights.
    """
    return (batch.weights * (decoded - batch.pixels).square()).mean()


def _run(
    vae: AutoencoderKLQwenImage,
    parameters: dict[str, torch.nn.Parameter],
    loss_of: Callable[[Batch, torch.Generator], Tensor],
    config: VaeConfig,
    snapshot_path: Path,
) -> AutoencoderKLQwenImage:
    """Train `parameters`, which belong to `vae`; then put their moving average into `vae` and return it."""
    vae.requires_grad_(False)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    optimiser = torch.optim.AdamW(list(parameters.values()), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=0)
    average = {name: p.detach().clone() for name, p in parameters.items()}
    first, seconds = _resume(snapshot_path, parameters, average, optimiser)
    pace = Pace(seconds, config.snapshot_every)
    for step in range(first, config.steps):
        optimiser.param_groups[0]["lr"] = config.learning_rate * schedule(step, config)
        batch = training_batch(config, step)
        loss = loss_of(batch, torch.Generator().manual_seed(config.seed * 1_000_000 + step))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(parameters.values()), config.clip_norm)
        optimiser.step()
        with torch.no_grad():
            decay = min(config.ema_decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(average.values()), list(parameters.values()), 1 - decay)
        if step % 100 == 0:
            logger.info("step %d of %d, loss %.5f, %.0f s", step, config.steps, loss.item(), pace.seconds)
        if pace.snapshot_due():
            _snapshot(parameters, average, optimiser, step + 1, pace.seconds).save(snapshot_path)
    _snapshot(parameters, average, optimiser, config.steps, pace.seconds).save(snapshot_path)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(average[name])
    return vae.requires_grad_(False)


def schedule(step: int, config: VaeConfig) -> float:
    """Return the factor of the learning rate at a step: a linear warm-up, times a cosine that falls from 1 to 0.02."""
    warmup = min(1.0, (step + 1) / config.warmup)
    return warmup * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / config.steps)))


def _snapshot(
    parameters: dict[str, torch.nn.Parameter],
    average: dict[str, Tensor],
    optimiser: torch.optim.Optimizer,
    step: int,
    seconds: float,
) -> Snapshot:
    tensors: dict[str, Tensor] = {f"live.{name}": p for name, p in parameters.items()}
    tensors |= {f"ema.{name}": p for name, p in average.items()}
    return Snapshot(tensors | optimiser_tensors(optimiser), step, seconds)


def _resume(
    path: Path,
    parameters: dict[str, torch.nn.Parameter],
    average: dict[str, Tensor],
    optimiser: torch.optim.Optimizer,
) -> tuple[int, float]:
    """Load a snapshot if there is one, and return the next step and the training time so far in seconds."""
    if not path.exists():
        return 0, 0.0
    snapshot = Snapshot.load(path)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(snapshot.tensors[f"live.{name}"])
            average[name].copy_(snapshot.tensors[f"ema.{name}"])
    restore_optimiser(optimiser, snapshot.tensors)
    logger.info("resumed from %s at step %d", path.name, snapshot.step)
    return snapshot.step, snapshot.seconds


@torch.no_grad()
def whiten(vae: AutoencoderKLQwenImage, config: VaeConfig, batches: int = 40) -> AutoencoderKLQwenImage:
    """Return a copy of the VAE whose latent channels have zero mean and unit covariance.

    The latents are rotated and scaled. The change is folded into the 1 x 1 convolutions `quant_conv` and
    `post_quant_conv`, which undo each other's change, so reconstructions stay the same. The covariance of a rotated
    posterior is no longer diagonal; its log variance is replaced by one constant per channel, the average over
    pictures.

    Args:
        vae: The VAE after joint training; it is not changed.
        config: Decides the pictures that the statistics are measured on.
        batches: Number of batches of these pictures.
    """
    vae = copy.deepcopy(vae)
    mean, covariance, variance = latent_statistics(vae, config, batches)
    eigenvalues, eigenvectors = torch.linalg.eigh(covariance)
    forward = (eigenvectors / eigenvalues.sqrt()).T  # z' = forward (z - mean)
    backward = eigenvectors * eigenvalues.sqrt()  # z = backward z' + mean
    weight = vae.quant_conv.weight[:, :, -1, 0, 0].double()
    bias = vae.quant_conv.bias.double()
    vae.quant_conv.weight[:Z_DIM, :, -1, 0, 0] = (forward @ weight[:Z_DIM]).float()
    vae.quant_conv.bias[:Z_DIM] = (forward @ (bias[:Z_DIM] - mean)).float()
    vae.quant_conv.weight[Z_DIM:] = 0.0
    vae.quant_conv.bias[Z_DIM:] = (forward.square() @ variance).log().float()
    weight = vae.post_quant_conv.weight[:, :, -1, 0, 0].double()
    vae.post_quant_conv.bias += (weight @ mean).float()
    vae.post_quant_conv.weight[:, :, -1, 0, 0] = (weight @ backward).float()
    return vae


def rounded(vae: AutoencoderKLQwenImage, config: VaeConfig, batches: int = 40) -> AutoencoderKLQwenImage:
    """Return a copy of the VAE with weights rounded to bfloat16 and with measured latent statistics in its config.

    The model is shipped in bfloat16. With rounded weights, the denoiser is trained on the latents of exactly the
    encoder that is shipped.
    """
    vae = copy.deepcopy(vae).to(torch.bfloat16).to(torch.float32)
    mean, covariance, _ = latent_statistics(vae, config, batches)
    vae.register_to_config(
        latents_mean=[round(value, 6) for value in mean.tolist()],
        latents_std=[round(value, 6) for value in covariance.diagonal().sqrt().tolist()],
    )
    return vae


@torch.no_grad()
def latent_statistics(vae: AutoencoderKLQwenImage, config: VaeConfig, batches: int) -> tuple[Tensor, Tensor, Tensor]:
    """Measure the latents of pictures that training does not use, in float64.

    Returns:
        The mean of the posterior means [Z], their covariance [Z, Z], and the average posterior variance [Z].
    """
    means, variances = [], []
    for step in range(batches):
        mean, log_variance = encode_frame(vae, training_batch(config, step, held_out=True).pixels)
        means.append(mean.double().permute(0, 2, 3, 1).reshape(-1, Z_DIM))
        variances.append(log_variance.double().exp().mean(dim=(0, 2, 3)))
    latents = torch.cat(means)
    return latents.mean(dim=0), torch.cov(latents.T, correction=0), torch.stack(variances).mean(dim=0)


@torch.no_grad()
def held_out_psnr(vae: AutoencoderKLQwenImage, seed: int = 7, batches: int = 20) -> float:
    """Return the PSNR in dB of the VAE's reconstructions of pictures that training does not use.

    The PSNR is computed from the mean squared error over all pictures, which have all canvas sizes.
    """
    config = VaeConfig(seed=seed)
    errors = []
    for step in range(batches):
        pixels = training_batch(config, step, held_out=True).pixels
        mean, _ = encode_frame(vae, pixels)
        difference = (decode_frame(vae, mean).clamp(-1, 1) - pixels) / 2
        errors.append(difference.square().mean().item())
    return -10.0 * math.log10(sum(errors) / len(errors))
