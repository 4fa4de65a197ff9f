"""The contract of an encoder: it encodes prompts, and pictures where the model looks at them, into conditioning."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import attrs
from PIL import Image

from qframe.files.model_folder import ModelFolder
from qframe.interfaces.loadable import Loadable
from qframe.interfaces.sequences import Conditioning
from qframe.pictures.geometry import Size

TokenCounter = Callable[[str, Sequence[Size]], int]
"""`(prompt, sizes of the pictures that the encoder sees with it) -> number of text tokens`; it runs no network."""


@attrs.frozen(kw_only=True)
class EncoderSpec:
    """The properties of an encoder that are known before its weights are loaded.

    Attributes:
        text_space: The name of the space of its vectors. Encoder and denoiser fit if they have the same name here.
        width: D, the length of the vector for each text token.
        pictures: Whether the encoder looks at pictures.
        extras: The names of `Conditioning.extras` that the encoder gives with every prompt. A request cannot give
            these, and so cannot give embeddings in place of prompts.
    """

    text_space: str
    width: int
    pictures: bool
    extras: tuple[str, ...] = ()


class Encoder(Loadable):
    """An encoder that turns prompts, and pictures where the model looks at them, into conditioning.

    A plugin registers a subclass as a component of kind "encoder".
    """

    @abstractmethod
    def encode(
        self, prompts: Sequence[str], pictures: Sequence[Sequence[Image.Image]], *, max_length: int | None = None
    ) -> Conditioning:
        """Encode B prompts, each with its own pictures. The result for a prompt must not depend on the other prompts.

        Args:
            prompts: The prompts.
            pictures: For each prompt its pictures, in RGB and already at the size that the recipe chose; an empty
                sequence for a prompt without pictures.
            max_length: The most tokens that are kept of a prompt, its pictures not counted. None means the encoder's
                own limit.
        """

    def check(self, prompts: Sequence[str]) -> None:
        """Raise DataError if `encode` would refuse one of the prompts, whatever its pictures are. Runs no network."""

    @classmethod
    def token_counter(cls, model: ModelFolder, options: Any, *, cut: bool = True) -> TokenCounter | None:
        """Return a function that counts the text tokens that `encode` will give. No weights are read.

        The function raises DataError for a prompt that `encode` would refuse. The default returns None: then the
        number of tokens is known only after encoding.

        Args:
            model: The model folder.
            options: The settings of the encoder.
            cut: False counts the tokens that `encode` would give if it cut no prompt off. So a caller finds out which
                prompts are too long.
        """
        return None
