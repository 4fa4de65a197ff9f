"""Training of the embedded VAE: joint training, whitening of its latents, refinement of its decoder.

Recipe and figures: docs of the embedded model. Each training step's batch is a pure function of (seed, step), so
a run that was killed goes on from its last snapshot as if nothing had happened.
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
    """Settings of joint training and, with ``kl_weight`` unused, of decoder refinement."""

    seed: int = 0
    steps: int = 4500
    batch_size: int = 16
    learning_rate: float = 1.5e-3
    warmup: int = 100
    kl_weight: float = 1e-4
    cell_weight: float = 3.0
    """Weight of a squared error inside a figure's cell; 1 elsewhere."""
    latent_noise: float = 0.0
    """Refinement: standard deviation of noise on the (whitened) latents, so that the decoder forgives a denoiser."""
    ema_decay: float = 0.998
    clip_norm: float = 1.0
    snapshot_every: float = 60.0


@attrs.frozen(eq=False)
class Batch:
    """Pictures of one canvas and how much each pixel counts."""

    pixels: Tensor  # [B, 3, H, W] in [-1, 1]
    weights: Tensor  # [B, 1, H, W], mean 1


def vae_scene(rng: np.random.Generator, canvas: world.Canvas) -> world.Scene:
    """A scene with anything the world can show: all colours, one to three figures, dots, rarely none."""
    count = int(rng.choice((0, 1, 2, 3), p=(0.03, 0.37, 0.4, 0.2)))
    scene = world.random_scene(rng, canvas, count, colours=world.COLOURS)
    figures = tuple(attrs.evolve(figure, dotted=bool(rng.random() < 0.15)) for figure in scene.objects)
    background = scene.background
    if rng.random() < 0.05:
        taken = {figure.colour for figure in figures}
        background = world.choose(rng, tuple(world.PALETTE), but=tuple(taken))
    return world.Scene(canvas, background, figures)


def training_batch(config: VaeConfig, step: int, *, held_out: bool = False) -> Batch:
    """The batch of one step: a pure function of the seed and the step."""
    rng = world.sample_rng(config.seed + (_HELD_OUT_SEED_OFFSET if held_out else 0), step)
    canvas = _choose_canvas(rng)
    scenes = [vae_scene(rng, canvas) for _ in range(config.batch_size)]
    return scenes_batch(scenes, config.cell_weight)


def scenes_batch(scenes: list[world.Scene], cell_weight: float = 1.0) -> Batch:
    """Scenes of one canvas as tensors."""
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
    for canvas, share in _CANVAS_MIX:
        if draw < share:
            return canvas
        draw -= share
    return world.CANVASES[int(rng.integers(len(world.CANVASES)))]


def train(config: VaeConfig, snapshot_path: Path) -> AutoencoderKLQwenImage:
    """Joint training of encoder and decoder from nothing; returns the EMA weights."""
    vae = new_vae(torch.Generator().manual_seed(config.seed))

    def loss(batch: Batch, generator: torch.Generator) -> Tensor:
        mean, log_variance = encode_frame(vae, batch.pixels)
        noise = torch.randn(mean.shape, generator=generator)
        decoded = decode_frame(vae, mean + noise * torch.exp(0.5 * log_variance))
        kl = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).mean()
        return weighted_mse(decoded, batch) + config.kl_weight * kl

    return _run(vae, _parameters(vae), loss, config, snapshot_path)


def refine_decoder(vae: AutoencoderKLQwenImage, config: VaeConfig, snapshot_path: Path) -> AutoencoderKLQwenImage:
    """Train only what comes after the latents; the encoder is left as it is, so cached latents stay valid."""
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
    """Mean squared error in [-1, 1] units under the batch's weights."""
    return (batch.weights * (decoded - batch.pixels).square()).mean()


def _run(
    vae: AutoencoderKLQwenImage,
    parameters: dict[str, torch.nn.Parameter],
    loss_of: Callable[[Batch, torch.Generator], Tensor],
    config: VaeConfig,
    snapshot_path: Path,
) -> AutoencoderKLQwenImage:
    """Optimise ``parameters`` in place, leave their moving average in ``vae`` and return it."""
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
    """Linear warm-up, then cosine to 2 % of the learning rate."""
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
    """Restore everything from a snapshot if there is one; returns (next step, seconds spent)."""
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
    """Rotate and scale the latent channels to zero mean and unit covariance.

    The change is folded into ``quant_conv`` and ``post_quant_conv``, both 1 x 1, so reconstructions do not change.
    A rotated diagonal posterior is not diagonal any more: its log variance becomes a constant per channel, the
    average over pictures.
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
    """The VAE with weights that bfloat16 holds exactly, and the latents' statistics as measured in its config.

    What ships is then, weight for weight, the encoder whose latents the denoiser learns.
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
    """Mean [Z], covariance [Z, Z] of the posterior means and average posterior variance [Z], in float64."""
    means, variances = [], []
    for step in range(batches):
        mean, log_variance = encode_frame(vae, training_batch(config, step, held_out=True).pixels)
        means.append(mean.double().permute(0, 2, 3, 1).reshape(-1, Z_DIM))
        variances.append(log_variance.double().exp().mean(dim=(0, 2, 3)))
    latents = torch.cat(means)
    return latents.mean(dim=0), torch.cov(latents.T, correction=0), torch.stack(variances).mean(dim=0)


@torch.no_grad()
def held_out_psnr(vae: AutoencoderKLQwenImage, seed: int = 7, batches: int = 20) -> float:
    """PSNR in dB of the mean squared error over held-out pictures of all canvases, one to three figures each."""
    config = VaeConfig(seed=seed)
    errors = []
    for step in range(batches):
        pixels = training_batch(config, step, held_out=True).pixels
        mean, _ = encode_frame(vae, pixels)
        difference = (decode_frame(vae, mean).clamp(-1, 1) - pixels) / 2
        errors.append(difference.square().mean().item())
    return -10.0 * math.log10(sum(errors) / len(errors))
