"""The contract tests that every encoder must pass."""

from __future__ import annotations

import torch
from PIL import Image

from qframe.interfaces import Conditioning, Encoder, EncoderSpec


class EncoderContract:
    """The contract tests that every encoder must pass.

    A subclass defines two pytest fixtures: `encoder`, the loaded encoder, and `spec`, its EncoderSpec.

    Attributes:
        prompts: Three prompts of different lengths, the empty prompt among them.
        size: Width and height of the test pictures, in pixels.
        pictures: How many pictures come with each prompt, if the encoder looks at pictures.
        tolerance: The largest difference, relative and absolute, that counts as equal.
    """

    prompts: tuple[str, ...] = ("make the circle blue", "", "a very large red square at the top left of the picture")
    size: tuple[int, int] = (64, 48)
    pictures: int = 1
    tolerance: float = 1e-5

    def shown(self, spec: EncoderSpec, colours: tuple[str, ...] = ("red", "navy", "olive")) -> list[list[Image.Image]]:
        """Return one list of single-coloured pictures for each colour, to go with one prompt each.

        The lists are empty if the encoder looks at no pictures.
        """
        count = self.pictures if spec.pictures else 0
        return [[Image.new("RGB", self.size, colour)] * count for colour in colours]

    def test_width_and_lengths_add_up(self, encoder: Encoder, spec: EncoderSpec) -> None:
        found = encoder.encode(self.prompts, self.shown(spec))
        assert found.batch_size == len(self.prompts)
        assert found.embeds.shape == (sum(found.lengths), spec.width)
        assert found.embeds.isfinite().all()
        assert not found.embeds.requires_grad

    def test_a_prompt_is_the_same_alone_and_in_a_batch(self, encoder: Encoder, spec: EncoderSpec) -> None:
        shown = self.shown(spec)
        together = encoder.encode(self.prompts, shown).split()
        for prompt, pictures, found in zip(self.prompts, shown, together, strict=True):
            self._close(found, encoder.encode([prompt], [pictures]))

    def test_order_does_not_matter(self, encoder: Encoder, spec: EncoderSpec) -> None:
        shown = self.shown(spec)
        forward = encoder.encode(self.prompts, shown).split()
        backward = encoder.encode(self.prompts[::-1], shown[::-1]).split()
        for one, other in zip(forward, backward[::-1], strict=True):
            self._close(one, other)

    def test_a_limit_keeps_the_first_tokens(self, encoder: Encoder, spec: EncoderSpec) -> None:
        shown = self.shown(spec)
        uncut = encoder.encode(self.prompts, shown).split()
        for limit in (1, 10_000):
            for found, wanted in zip(encoder.encode(self.prompts, shown, max_length=limit).split(), uncut, strict=True):
                kept = found.lengths[0]
                assert kept <= wanted.lengths[0]
                torch.testing.assert_close(found.embeds, wanted.embeds[:kept], rtol=self.tolerance, atol=self.tolerance)
        assert sum(encoder.encode(self.prompts, shown, max_length=1).lengths) < sum(one.lengths[0] for one in uncut)

    def test_prompts_matter(self, encoder: Encoder, spec: EncoderSpec) -> None:
        shown = self.shown(spec)[:1]
        one, other = (encoder.encode([prompt], shown) for prompt in ("a red square", "a blue square"))
        assert one.lengths != other.lengths or not torch.allclose(one.embeds, other.embeds, atol=self.tolerance)

    def test_pictures_matter(self, encoder: Encoder, spec: EncoderSpec) -> None:
        if not spec.pictures:
            return
        one, other = (encoder.encode(["a"], self.shown(spec, (colour,))) for colour in ("red", "navy"))
        assert not torch.allclose(one.embeds, other.embeds, atol=self.tolerance)

    def _close(self, found: Conditioning, wanted: Conditioning) -> None:
        assert found.lengths == wanted.lengths
        torch.testing.assert_close(found.embeds, wanted.embeds, rtol=self.tolerance, atol=self.tolerance)
