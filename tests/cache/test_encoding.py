"""Encoding: order kept, equal shapes together, weights reduced, what is wrong is named."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qframe.cache import DeclaredInputs
from qframe.cache.encoding import encode_loss_map, encode_pixels, encode_text, windows
from qframe.cache.live import LiveExamples
from qframe.errors import DataError, NumericsError, PluginError
from qframe.interfaces import Conditioning, TextInput, TokenCounter
from qframe.pictures.geometry import Geometry
from qframe.pictures.picture import Picture, PixelInput
from tests.cache.world import GEOMETRY, SIZES, Loader, TinyCodec, TinyEncoder, TinyRecipe, grey, png, record


def pixels(number: int) -> PixelInput:
    return PixelInput(Picture(f"picture {number}", png(number)), GEOMETRY)


def prompts(count: int) -> list[TextInput]:
    random_ = random.Random(0)
    return [TextInput(f"{n} " + "x" * random_.randrange(20), tuple(map(pixels, range(n % 3)))) for n in range(count)]


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_latents_come_in_the_order_of_their_pictures(batch_size: int) -> None:
    inputs = [pixels(number) for number in range(30)]
    alone = [encode_pixels(TinyCodec(), [one], batch_size=1)[0] for one in inputs]
    together = encode_pixels(TinyCodec(), inputs, batch_size=batch_size)
    assert [tuple(latent.shape[-2:]) for latent in together] == [(h // 8, w // 8) for h, w in SIZES * 7 + SIZES[:2]]
    assert all(torch.allclose(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_conditioning_comes_in_the_order_of_its_prompts(batch_size: int) -> None:
    inputs = prompts(30)
    alone = [encode_text(TinyEncoder(), [one], batch_size=1)[0] for one in inputs]
    together = encode_text(TinyEncoder(), inputs, batch_size=batch_size)
    for one, other in zip(alone, together, strict=True):
        assert one.lengths == other.lengths
        assert torch.equal(one.embeds, other.embeds)
        assert torch.equal(one.extras["slots"], other.extras["slots"])


class CountingEncoder(TinyEncoder):
    """An encoder that counts the characters that it would compute if it padded every batch to its longest prompt."""

    def __init__(self) -> None:
        super().__init__()
        self.padded: list[int] = []

    def encode(self, prompts: Any, pictures: Any) -> Conditioning:
        self.padded.append(max(map(len, prompts)) * len(prompts))
        return super().encode(prompts, pictures)


def test_short_prompts_are_never_padded_to_a_long_one() -> None:
    """One caption of 50 kB beside 31 short ones costs itself, and not 8 times itself."""
    texts = [TextInput("x" * 60 + str(number)) for number in range(31)] + [TextInput("word " * 10_000)]
    encoder = CountingEncoder()
    encoded = encode_text(encoder, texts, batch_size=8)
    assert max(encoder.padded) == 50_000
    assert sum(encoder.padded) < 1.1 * sum(len(text.prompt) for text in texts)
    assert [one.lengths for one in encoded] == [(1 + len(text.prompt),) for text in texts]


@given(st.lists(st.integers(0, 600), min_size=1, max_size=32))
def test_captions_of_ordinary_lengths_fill_their_batches(lengths: list[int]) -> None:
    encoder = CountingEncoder()
    encode_text(encoder, [TextInput("x" * length) for length in lengths], batch_size=8)
    assert len(encoder.padded) == -(-len(lengths) // 8)


def test_a_batch_has_one_shape_and_never_more_than_its_size() -> None:
    codec = TinyCodec()
    encode_pixels(codec, [pixels(number) for number in range(64)], batch_size=4)
    assert codec.batches == [4] * 16


@given(st.integers(0, 100), st.integers(1, 9))
def test_windows_cover_everything_once_and_hold_at_most_four_batches(count: int, batch_size: int) -> None:
    found = windows(count, batch_size)
    assert [index for window in found for index in window] == list(range(count))
    assert all(0 < len(window) <= 4 * batch_size for window in found)


def test_few_pictures_are_open_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of one window, and of the next one, which is opened meanwhile."""
    import qframe.pictures.pool as pool

    opened: list[int] = []
    real = pool.open_fitted
    monkeypatch.setattr(pool, "open_fitted", lambda one, **kw: (opened.append(1), real(one, **kw))[1])
    codec = TinyCodec()
    encode, encoded, waiting = codec.encode, [0], []

    def counted(pixels: torch.Tensor, *, generator: torch.Generator | None = None) -> torch.Tensor:
        waiting.append(len(opened) - encoded[0])
        encoded[0] += len(pixels)
        return encode(pixels)

    codec.encode = counted  # type: ignore[method-assign]
    encode_pixels(codec, [pixels(number) for number in range(60)], batch_size=2)
    assert encoded == [60]
    assert 2 <= max(waiting) <= 2 * 8


def test_the_dtype_of_the_parts_is_kept() -> None:
    assert encode_pixels(TinyCodec(torch.bfloat16), [pixels(1)], batch_size=1)[0].dtype == torch.bfloat16
    assert encode_text(TinyEncoder(torch.bfloat16), prompts(1), batch_size=1)[0].embeds.dtype == torch.bfloat16


def test_encoded_parts_need_no_gradient_and_may_be_trained_on() -> None:
    codec = TinyCodec()
    scale = torch.ones((), requires_grad=True)
    encode = codec.encode
    codec.encode = lambda p, generator=None: encode(p) * scale  # type: ignore[method-assign]
    (latent,) = encode_pixels(codec, [pixels(1)], batch_size=1)
    assert not latent.requires_grad
    (latent * torch.ones((), requires_grad=True)).sum().backward()


class Broken(TinyCodec):
    """Gives what `result` says."""

    def __init__(self, result: torch.Tensor) -> None:
        super().__init__()
        self.result = result

    def encode(self, pixels: torch.Tensor, *, generator: torch.Generator | None = None) -> torch.Tensor:
        return self.result


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_latents_that_are_not_finite_are_refused_with_the_pictures(value: float) -> None:
    with pytest.raises(NumericsError, match="picture 1"):
        encode_pixels(Broken(torch.full((1, 4, 2, 2), value)), [pixels(1)], batch_size=1)


@pytest.mark.parametrize("shape", [(2, 4, 2, 2), (1, 4, 1, 2, 2)])
def test_a_codec_that_breaks_its_contract_is_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(PluginError, match=r"Broken\.encode made"):
        encode_pixels(Broken(torch.zeros(shape)), [pixels(1)], batch_size=1)


def test_an_encoder_that_breaks_its_contract_is_named() -> None:
    class Short(TinyEncoder):
        def encode(self, prompts: Any, pictures: Any) -> Conditioning:
            return super().encode(prompts[:1], pictures[:1])

    with pytest.raises(PluginError, match="of 1 samples for 2 prompts"):
        encode_text(Short(), [TextInput("a"), TextInput("b")], batch_size=2)


def test_a_weight_is_the_mean_of_each_latent_place() -> None:
    weight = PixelInput(Picture("w", grey(51, (16, 32))), GEOMETRY)
    assert torch.allclose(encode_loss_map(weight, 8), torch.full((2, 4), 0.2))


def test_a_weight_that_the_codec_cannot_divide_is_named() -> None:
    weight = PixelInput(Picture("row 4", grey(51, (15, 30))), Geometry(15 * 30, 15 * 30, multiple=15))
    with pytest.raises(DataError, match="row 4"):
        encode_loss_map(weight, 8)


def test_live_examples_count_their_text_or_estimate_it_without_encoding() -> None:
    loader = Loader()
    records = [record(number, prompt="é" * number) for number in range(4)]

    def live(counter: TokenCounter | None, unconditional: bool = False) -> list[int]:
        parts = loader("encoder", "codec")
        inputs = DeclaredInputs(records, TinyRecipe(), unconditional=unconditional)
        examples = LiveExamples(inputs, parts, counter=counter)
        return [examples.text_length(index) for index in range(4)]

    assert live(None) == [1, 2, 4, 6], "the bytes of the prompt"
    assert live(lambda prompt, sizes: len(prompt) + 100 * len(sizes))[3] % 100 == 3
    assert live(lambda prompt, sizes: 9 if not prompt.strip() else 2, unconditional=True) == [9] * 4
    assert loader.encoder.prompts == []


def test_live_examples_tell_their_shape_without_encoding() -> None:
    loader = Loader()
    inputs = DeclaredInputs([record(number) for number in range(4)], TinyRecipe())
    live = LiveExamples(inputs, loader("encoder", "codec"))
    shapes = [live.shape(index) for index in range(4)]
    assert loader.codec.batches == []
    assert shapes == [
        (tuple(e.target.shape[-2:]), tuple(tuple(r.shape[-2:]) for r in e.references))
        for e in (live[index] for index in range(4))
    ]
