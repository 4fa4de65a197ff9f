"""Converts pictures to the form in which a call of a `Pipeline` returns them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any, Literal

import attrs
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from qframe.errors import NumericsError
from qframe.pictures.pixels import from_pixels

OutputType = Literal["pil", "np", "pt", "latent"]
_MOST_INLINE = 8
"""The most pictures that a notebook shows of one call."""
Pictures = list[Image.Image] | list[np.ndarray[Any, Any]] | list[Tensor] | np.ndarray[Any, Any] | Tensor


@attrs.frozen(eq=False, repr=False)
class PipelineOutput:
    """The pictures that a call of a `Pipeline` returns.

    As with the outputs of diffusers, `output.images`, `output[0]`, `output["images"]` and `output.to_tuple()[0]` are
    the same.

    Attributes:
        images: The pictures in the order of the prompts, those of one prompt together. By `output_type`: "pil" is a
            list of PIL pictures, "np" an array [B, H, W, 3] in [0, 1], "pt" a tensor [B, 3, H, W] in [0, 1], "latent"
            the tokens [B, L, C]. If the pictures have several sizes, the last three are lists with one entry per
            picture.
    """

    images: Pictures

    def to_tuple(self) -> tuple[Pictures]:
        """Return the tuple `(images,)`, which a call with `return_dict=False` returns."""
        return (self.images,)

    def keys(self) -> tuple[str]:
        """Return the names by which `output[name]` can be asked for."""
        return ("images",)

    def __getitem__(self, name: int | slice | str) -> Any:
        """Return the field of this name, or what `to_tuple` has at this place."""
        if isinstance(name, str):
            return {"images": self.images}[name]
        return self.to_tuple()[name]

    def __repr__(self) -> str:
        sizes = {(one.size[::-1] if isinstance(one, Image.Image) else tuple(one.shape)) for one in self.images}
        shown = ", ".join("x".join(map(str, size)) for size in sorted(sizes))
        kind = type(self.images[0]).__name__ if len(self.images) else "nothing"
        return f"PipelineOutput({len(self.images)} x {kind}, {shown})"

    def _repr_html_(self) -> str | None:
        """The pictures as HTML, which a notebook shows below its cell; None if they are no PIL pictures."""
        pictures = [one for one in self.images if isinstance(one, Image.Image)]
        if len(pictures) < len(self.images):
            return None
        shown = []
        for picture in pictures[:_MOST_INLINE]:
            stream = io.BytesIO()
            picture.save(stream, "PNG")
            data = base64.b64encode(stream.getvalue()).decode()
            shown.append(f'<img style="max-width: 32em" src="data:image/png;base64,{data}">')
        more = len(pictures) - len(shown)
        return " ".join(shown) + (f"<p>and {more} more</p>" if more else "")


def require_finite(results: Sequence[Tensor]) -> None:
    """Raise NumericsError if a picture or a picture's tokens have values that are not finite."""
    if not all(bool(torch.isfinite(one).all()) for one in results):
        raise NumericsError(
            "the result has values that are not finite",
            "Lower the guidance scale, or compute in float32 or bfloat16 instead of float16.",
        )


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
