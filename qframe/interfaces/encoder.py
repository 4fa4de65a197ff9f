"""The contract of an encoder: prompts, with pictures where the model looks at them, become conditioning."""

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
"""`(prompt, sizes of the pictures shown with it) -> text tokens`, without a network."""


@attrs.frozen(kw_only=True)
class EncoderSpec:
    """What an encoder gives. text_space names what its vectors mean; width is D; pictures: it looks at pictures."""

    text_space: str
    width: int
    pictures: bool


class Encoder(Loadable):
    """Prompts, with pictures where the model looks at them, to conditioning."""

    @abstractmethod
    def encode(
        self, prompts: Sequence[str], pictures: Sequence[Sequence[Image.Image]], *, max_length: int | None = None
    ) -> Conditioning:
        """Conditioning of B prompts, each with its own pictures (RGB, already at the size the recipe chose).

        `pictures` has one entry per prompt, empty where there are none. A sample's result does not depend on
        its neighbours. max_length: tokens kept of a prompt, its pictures not counted; None: the encoder's own limit.
        """

    def check(self, prompts: Sequence[str]) -> None:
        """DataError for a prompt that `encode` refuses, whatever pictures come with it. Runs no network."""

    @classmethod
    def token_counter(cls, model: ModelFolder, options: Any) -> TokenCounter | None:
        """What tells how many text tokens `encode` gives, reading no weights; None if only encoding tells.

        The counter raises DataError for a prompt that `encode` refuses.
        """
        return None
