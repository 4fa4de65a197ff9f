"""Run diffusers' AutoencoderKLQwenImage on single pictures, faster than the class itself does.

The VAE is a causal video model. A single frame has only zeros before it, so only the last temporal tap of each 3-D
convolution contributes. `conv2d` with `weight[:, :, -1]` therefore gives the same numbers (to 3e-6, tested) in a
fraction of the time, and it keeps no feature cache on the module. The temporal convolutions of the resampling layers do
not run on a first frame at all. Tensors here have four dimensions: pixels `[B, 3, H, W]` in [-1, 1], latents `[B, Z,
H/8, W/8]`.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLQwenImage
from torch import Tensor, nn

Z_DIM = 8
_INITIAL_LOG_VARIANCE = -5.0


def new_vae(generator: torch.Generator) -> AutoencoderKLQwenImage:
    """Make an untrained VAE of the embedded model's size.

    The weights of its 3-D convolutions that do not affect a single picture are zero.

    Args:
        generator: Draws the other weights.
    """
    vae = AutoencoderKLQwenImage(
        base_dim=16, z_dim=Z_DIM, dim_mult=[1, 2, 3, 3], num_res_blocks=1,
        latents_mean=[0.0] * Z_DIM, latents_std=[1.0] * Z_DIM,
    )  # fmt: skip
    with torch.no_grad():
        for module in vae.modules():
            if isinstance(module, nn.Conv3d):
                _kaiming(module.weight[:, :, -1], generator)
                module.weight[:, :, :-1].zero_()
            elif isinstance(module, nn.Conv2d):
                _kaiming(module.weight, generator)
            if isinstance(module, nn.Conv2d | nn.Conv3d) and module.bias is not None:
                module.bias.zero_()
        for name, module in vae.named_modules():
            if name.endswith("time_conv"):
                module.weight.zero_()
        for block in [vae.encoder.mid_block.attentions[0], vae.decoder.mid_block.attentions[0]]:
            block.proj.weight.zero_()
        vae.quant_conv.weight.mul_(0.5)
        vae.quant_conv.bias[Z_DIM:] = _INITIAL_LOG_VARIANCE
    return vae


def _kaiming(weight: Tensor, generator: torch.Generator) -> None:
    fan_in = weight[0].numel()
    weight.normal_(0.0, math.sqrt(1.5 / fan_in), generator=generator)


def encode_frame(vae: AutoencoderKLQwenImage, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Encode pixels [B, 3, H, W] to the mean and the log variance of the posterior, each [B, Z, H/8, W/8]."""
    x = _conv(vae.encoder.conv_in, pixels)
    for layer in vae.encoder.down_blocks:
        x = layer.resample(x) if hasattr(layer, "resample") else _residual(layer, x)
    x = _middle(vae.encoder.mid_block, x)
    x = _conv(vae.encoder.conv_out, F.silu(_norm(vae.encoder.norm_out, x)))
    mean, log_variance = _conv(vae.quant_conv, x).float().chunk(2, dim=1)
    return mean, log_variance.clamp(-30.0, 20.0)


def decode_frame(vae: AutoencoderKLQwenImage, latents: Tensor) -> Tensor:
    """Decode latents [B, Z, H/8, W/8] to pixels [B, 3, H, W].

    The pixels are not clamped, whereas `AutoencoderKLQwenImage.decode` clamps them to [-1, 1].
    """
    x = _conv(vae.decoder.conv_in, _conv(vae.post_quant_conv, latents))
    x = _middle(vae.decoder.mid_block, x)
    for block in vae.decoder.up_blocks:
        for resnet in block.resnets:
            x = _residual(resnet, x)
        for upsampler in block.upsamplers or ():
            x = upsampler.resample(x)
    return _conv(vae.decoder.conv_out, F.silu(_norm(vae.decoder.norm_out, x))).float()


def _conv(layer: nn.Conv3d, x: Tensor) -> Tensor:
    return F.conv2d(x, layer.weight[:, :, -1], layer.bias, padding=layer.weight.shape[-1] // 2)


def _norm(layer: Any, x: Tensor) -> Tensor:
    normalised: Tensor = F.normalize(x, dim=1) * layer.scale * layer.gamma.view(1, -1, 1, 1)
    return normalised


def _residual(block: Any, x: Tensor) -> Tensor:
    shortcut = x if isinstance(block.conv_shortcut, nn.Identity) else _conv(block.conv_shortcut, x)
    x = _conv(block.conv1, F.silu(_norm(block.norm1, x)))
    x = _conv(block.conv2, F.silu(_norm(block.norm2, x)))
    return x + shortcut


def _middle(block: Any, x: Tensor) -> Tensor:
    x = _residual(block.resnets[0], x)
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        x = _residual(resnet, attention(x[:, :, None])[:, :, 0])
    return x
