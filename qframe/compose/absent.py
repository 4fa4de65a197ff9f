"""Stands in for the encoder of a model folder that has none, so that requests with embeddings still run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, Self

import torch
from PIL import Image

from qframe.errors import WeightsError
from qframe.files.model_folder import ModelFolder
from qframe.interfaces import Conditioning, DenoiserSpec, Encoder, EncoderSpec


def absent_encoder(reason: str, denoiser: DenoiserSpec) -> type[Encoder]:
    """Return the class of an encoder that has the Spec which the denoiser wants, and refuses every prompt.

    Args:
        reason: What the model folder lacks, for the error.
        denoiser: The Spec of the denoiser.
    """

    class AbsentEncoder(Encoder):
        """The encoder of a model folder that has none: embeddings are used as they are given, and prompts refused."""

        @classmethod
        def describe(cls, model: ModelFolder, options: Any) -> EncoderSpec:
            return EncoderSpec(text_space=denoiser.text_space, width=denoiser.text_width, pictures=True)

        @classmethod
        def load(cls, model: ModelFolder, options: Any, *, device: torch.device, dtype: torch.dtype) -> Self:
            return cls()

        @classmethod
        def ingredients(cls, model: ModelFolder, options: Any) -> Mapping[str, str]:
            _refuse(reason)

        def encode(
            self, prompts: Sequence[str], pictures: Sequence[Sequence[Image.Image]], *, max_length: int | None = None
        ) -> Conditioning:
            _refuse(reason)

        def check(self, prompts: Sequence[str]) -> None:
            if prompts:
                _refuse(reason)

    return AbsentEncoder


def _refuse(reason: str) -> NoReturn:
    raise WeightsError(
        f"{reason}, so no prompt can be encoded",
        "Give prompt_embeds and prompt_embeds_mask in place of a prompt, or a model folder with an encoder "
        "(encoder.model).",
    )
