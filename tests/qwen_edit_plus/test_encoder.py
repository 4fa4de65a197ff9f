"""The encoder with several pictures to a prompt."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image

from qframe.errors import DataError
from qframe.interfaces import Encoder, EncoderSpec, Parts
from qframe.testing import EncoderContract
from qframe_qwen.encoder import QwenVLEncoder
from qframe_qwen.options import QwenVLOptions
from qframe_qwen.prompts import edit_plus, tokenize
from tests.qwen import tiny
from tests.qwen.test_encoder import PROMPTS, recorded_positions
from tests.qwen_edit_plus.conftest import Oracle

SIZES = [(64, 64), (96, 48), (48, 80)]
one_oracle = pytest.mark.parametrize("oracle", [False], indirect=True, ids=["any"])
"""Both models have the same encoder."""


class TestEditPlusEncoder(EncoderContract):
    @pytest.fixture
    def encoder(self, parts: Parts) -> Encoder:
        return parts.encoder

    @pytest.fixture
    def spec(self, parts: Parts) -> EncoderSpec:
        return parts.encoder_spec


def pictures(count: int, first: int = 0) -> list[Image.Image]:
    return [tiny.picture(first + i, *SIZES[i % len(SIZES)]) for i in range(count)]


def processed(pipeline: Any, prompt: str, images: list[Image.Image]) -> Any:
    """What transformers' own processor makes of a prompt and its pictures."""
    return pipeline.processor(
        text=[edit_plus(len(images)).text.format(prompt)], images=images, padding=True, return_tensors="pt",
        return_mm_token_type_ids=True,
    )  # fmt: skip


@one_oracle
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_conditioning_equals_the_pipelines_with_its_positions(oracle: Oracle, prompt: str, count: int) -> None:
    images = pictures(count)
    wanted, mask = oracle.pipeline.encode_prompt(prompt, image=images)
    found = oracle.parts.encoder.encode([prompt], [images])
    assert mask is None
    torch.testing.assert_close(found.embeds, wanted[0], rtol=1e-5, atol=1e-5)


def test_tokens_number_the_pictures(parts: Parts) -> None:
    tokenizer: Any = parts.encoder.tokenizer  # type: ignore[attr-defined]
    wanted = tokenizer(edit_plus(2).text.format("swap them")).input_ids
    assert tokenize(tokenizer, edit_plus(2), "swap them", [1, 1], None) == wanted
    assert "user\nPicture 1: <|vision_start|><|image_pad|><|vision_end|>Picture 2: " in tokenizer.decode(wanted)


@one_oracle
def test_image_positions_are_those_of_qwen2_5_vls_definition(
    oracle: Oracle, parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: Qwen2_5_VLModel.get_rope_index, one prompt at a time; ours are encoded together."""
    sets = [pictures(count) for count in (2, 1, 3)]
    seen = recorded_positions(parts, monkeypatch)
    parts.encoder.encode(PROMPTS[:3], sets)
    for row, (prompt, images) in enumerate(zip(PROMPTS[:3], sets, strict=True)):
        one = processed(oracle.pipeline, prompt, images)
        wanted, _ = oracle.pipeline.text_encoder.model.get_rope_index(
            one["input_ids"],
            mm_token_type_ids=one["mm_token_type_ids"],
            image_grid_thw=one["image_grid_thw"],
            attention_mask=one["attention_mask"],
        )
        assert torch.equal(seen[0][:, row, : wanted.shape[-1]], wanted[:, 0])


def test_image_positions_by_hand(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wang et al. 2024, Qwen2-VL, section 2.1: what follows a picture starts after its longer side."""
    seen = recorded_positions(parts, monkeypatch)
    parts.encoder.encode(["blue"], [pictures(2)])  # 4 x 4 and 3 x 6 image tokens
    positions = seen[0][:, 0]
    tokenizer: Any = parts.encoder.tokenizer  # type: ignore[attr-defined]
    announced = len(tokenizer("Picture 1: ").input_ids)
    first = 64 + announced + 1  # after <|vision_start|>
    assert positions[:, first : first + 16].tolist() == [
        [first] * 16,
        [first + place // 4 for place in range(16)],
        [first + place % 4 for place in range(16)],
    ]
    after = first + 4  # <|vision_end|>, "Picture 2: ", <|vision_start|>
    assert positions[:, first + 16].tolist() == [after] * 3
    second = after + 1 + announced + 1
    start = first + 16 + 1 + announced + 1
    assert positions[:, start : start + 18].tolist() == [
        [second] * 18,
        [second + place // 6 for place in range(18)],
        [second + place % 6 for place in range(18)],
    ]
    assert positions[:, start + 18].tolist() == [second + 6] * 3


@one_oracle
def test_the_upstream_switch_changes_the_conditioning(oracle: Oracle, parts: Parts) -> None:
    right, upstream = (one.encoder.encode(["blue"], [pictures(2)]).embeds for one in (parts, oracle.parts))
    assert ((right - upstream).norm() / right.norm()).item() > 0.05


@pytest.mark.parametrize("positions", ["mrope", "upstream"])
def test_prompts_with_different_numbers_of_pictures_do_not_see_each_other(parts: Parts, positions: Any) -> None:
    loaded: Any = parts.encoder
    options = QwenVLOptions(template="edit-plus", positions=positions)
    encoder = QwenVLEncoder(loaded.model, loaded.tokenizer, loaded.image_processor, options)
    sets = [pictures(3), pictures(1, first=5), pictures(2, first=7)]
    together = encoder.encode(PROMPTS[:3], sets).split()
    for prompt, images, found in zip(PROMPTS[:3], sets, together, strict=True):
        alone = encoder.encode([prompt], [images])
        assert found.lengths == alone.lengths
        torch.testing.assert_close(found.embeds, alone.embeds, rtol=1e-5, atol=1e-5)


def test_the_order_of_pictures_matters(parts: Parts) -> None:
    images = [tiny.picture(seed, 64, 64) for seed in range(2)]
    there, back = (parts.encoder.encode(["blue"], [order]).embeds for order in (images, images[::-1]))
    assert ((there - back).norm() / there.norm()).item() > 0.05


def test_special_tokens_are_refused_here_too(parts: Parts) -> None:
    with pytest.raises(DataError, match="would change the prompt's structure"):
        parts.encoder.encode(["Picture 3: <|vision_start|><|image_pad|><|vision_end|>"], [pictures(2)])


def test_a_prompt_without_pictures_is_refused(parts: Parts) -> None:
    with pytest.raises(DataError, match="0 pictures"):
        parts.encoder.encode(["blue"], [()])


def test_a_limit_does_not_count_pictures(parts: Parts) -> None:
    loaded: Any = parts.encoder
    options = QwenVLOptions(template="edit-plus", max_length=40)
    encoder = QwenVLEncoder(loaded.model, loaded.tokenizer, loaded.image_processor, options)
    (length,) = encoder.encode(["a red square " * 20], [pictures(2)]).lengths
    assert length == 16 + 18 + 40


def test_the_token_counter_says_what_encoding_gives(parts: Parts) -> None:
    count = QwenVLEncoder.token_counter(parts.model, QwenVLOptions(template="edit-plus"))
    assert count is not None
    for shown in (1, 2, 3):
        images = pictures(shown)
        counted = count("make it blue", [(image.height, image.width) for image in images])
        assert (counted,) == parts.encoder.encode(["make it blue"], [images]).lengths
