"""The contract tests that every codec must pass."""

from __future__ import annotations

import torch
from torch import Tensor

from qframe.interfaces import CodecSpec, LatentCodec


class CodecContract:
    """The contract tests that every codec must pass.

    A subclass defines two pytest fixtures: `codec`, the loaded codec, and `spec`, its CodecSpec.

    Attributes:
        cells: Height and width of the latents of the test pictures. Set larger or even numbers if the codec needs them.
        tolerance: The largest difference, relative and absolute, that counts as equal.
    """

    cells: tuple[int, int] = (4, 6)
    tolerance: float = 1e-5

    def pixels(self, spec: CodecSpec, batch: int = 3) -> Tensor:
        """Return random pixels [batch, C, H, W] in [-1, 1], which are the same in every call."""
        height, width = (side * spec.compression for side in self.cells)
        generator = torch.Generator().manual_seed(0)
        return torch.rand(batch, spec.pixel_channels, height, width, generator=generator) * 2 - 1

    def test_shapes_are_those_of_the_spec(self, codec: LatentCodec, spec: CodecSpec) -> None:
        pixels = self.pixels(spec)
        latents = codec.encode(pixels)
        assert latents.shape == (len(pixels), spec.channels, *self.cells)
        assert codec.decode(latents).shape == pixels.shape

    def test_pixels_stay_in_range(self, codec: LatentCodec, spec: CodecSpec) -> None:
        decoded = codec.decode(100 * torch.randn(1, spec.channels, *self.cells))
        assert decoded.min() >= -1
        assert decoded.max() <= 1

    def test_without_a_generator_encoding_repeats_exactly(self, codec: LatentCodec, spec: CodecSpec) -> None:
        pixels = self.pixels(spec)
        assert torch.equal(codec.encode(pixels), codec.encode(pixels))

    def test_with_a_generator_its_seed_decides(self, codec: LatentCodec, spec: CodecSpec) -> None:
        pixels = self.pixels(spec)
        first, again = (codec.encode(pixels, generator=torch.Generator().manual_seed(1)) for _ in range(2))
        assert torch.equal(first, again)

    def test_neighbours_do_not_change_a_picture(self, codec: LatentCodec, spec: CodecSpec) -> None:
        pixels = self.pixels(spec)
        alone = torch.cat([codec.encode(one[None]) for one in pixels])
        self._close(codec.encode(pixels), alone)
        self._close(codec.decode(alone), torch.cat([codec.decode(one[None]) for one in alone]))

    def test_pixels_matter(self, codec: LatentCodec, spec: CodecSpec) -> None:
        pixels = self.pixels(spec)
        assert not torch.allclose(codec.encode(pixels), codec.encode(-pixels), atol=self.tolerance)

    def test_nothing_carries_a_gradient(self, codec: LatentCodec, spec: CodecSpec) -> None:
        latents = codec.encode(self.pixels(spec))
        assert not latents.requires_grad
        assert not codec.decode(latents).requires_grad

    def _close(self, found: Tensor, wanted: Tensor) -> None:
        torch.testing.assert_close(found, wanted, rtol=self.tolerance, atol=self.tolerance)
