"""The forms in which a call returns its pictures."""

from __future__ import annotations

from typing import Any, Literal

import attrs
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from qframe.pictures.pixels import from_pixels

OutputType = Literal["pil", "np", "pt", "latent"]
Pictures = list[Image.Image] | list[np.ndarray[Any, Any]] | list[Tensor] | np.ndarray[Any, Any] | Tensor


@attrs.frozen(eq=False)
class PipelineOutput:
    """What a call returns.

    Attributes:
        images: The pictures in the order of the prompts, those of one prompt together. By `output_type`: "pil" is a
            list of PIL pictures, "np" an array [B, H, W, 3] in [0, 1], "pt" a tensor [B, 3, H, W] in [0, 1], "latent"
            the tokens [B, L, C]. If the pictures have several sizes, the last three are lists with one entry per
            picture.
    """

    images: Pictures


def as_output(pictures: list[Tensor], output_type: OutputType) -> Pictures:
    """Convert pictures [3, H, W] in [-1, 1], or tokens [L, C] for "latent", to the form that a caller asks for."""
    if output_type == "pil":
        return [from_pixels(picture) for picture in pictures]
    if output_type != "latent":
        pictures = [(picture * 0.5 + 0.5).clamp(0, 1) for picture in pictures]
    uniform = len({tuple(picture.shape) for picture in pictures}) == 1
    if output_type == "np":
        arrays = [picture.permute(1, 2, 0).cpu().float().numpy() for picture in pictures]
        return np.stack(arrays) if uniform else arrays
    return torch.stack(pictures) if uniform else pictures
