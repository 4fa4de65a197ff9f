from __future__ import annotations

import pytest
import torch

from qframe.errors import ConfigError
from qframe.interfaces import Conditioning
from qframe.sample.callbacks import TENSORS, StepState, replaced, tensors_of
from qframe.sample.conditioning import from_padded, to_padded

COND = Conditioning(torch.randn(5, 3), (2, 3))


def state(extras: bool = False) -> StepState:
    """Two samples of 1 and 2 tokens, with conditioning on one side."""
    slots = {"slots": torch.arange(5)} if extras else {}
    return StepState(torch.randn(3, 4), (1, 2), Conditioning(COND.embeds, COND.lengths, slots), None)


def test_padding_embeddings_and_back_changes_no_bit() -> None:
    embeds, mask = to_padded(COND)
    assert embeds.shape == (2, 3, 3)
    assert mask.tolist() == [[True, True, False], [True, True, True]]
    found = from_padded(embeds, mask)
    assert found.lengths == COND.lengths
    assert torch.equal(found.embeds, COND.embeds)


def test_equal_lengths_have_a_mask_too() -> None:
    _, mask = to_padded(Conditioning(torch.randn(4, 3), (2, 2)))
    assert mask.shape == (2, 2)
    assert mask.all()


def test_columns_are_cut_before_the_mask_is_read() -> None:
    """As diffusers cuts: a row padded on the left may lose everything, and says so."""
    embeds, mask = torch.randn(2, 4, 3), torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    assert from_padded(embeds, mask, 3).lengths == (3, 1)
    with pytest.raises(ConfigError, match="no token in row 1"):
        from_padded(embeds, mask, 2)


def test_a_callback_that_gives_back_what_it_got_changes_nothing() -> None:
    """Samples of several lengths are padded for it."""
    before = state(extras=True)
    tensors = tensors_of(before, TENSORS)
    assert tensors["latents"] is not None
    assert tensors["latents"].shape == (2, 2, 4)
    assert tensors["negative_prompt_embeds"] is None
    after = replaced(before, tensors)
    assert torch.equal(after.tokens, before.tokens)
    assert torch.equal(after.cond.embeds, before.cond.embeds)
    assert torch.equal(after.cond.extras["slots"], before.cond.extras["slots"])
    assert after.uncond is None


def test_a_callback_that_returns_nothing_costs_nothing() -> None:
    before = state()
    assert replaced(before, None) is before
    assert replaced(before, {"latents": before.tokens.new_zeros(2, 2, 4)}).cond is before.cond


def test_prompts_may_change_their_length_unless_the_encoder_says_more_of_each_token() -> None:
    given = {"prompt_embeds": torch.randn(2, 4, 3), "prompt_embeds_mask": torch.ones(2, 4)}
    assert replaced(state(), given).cond.lengths == (4, 4)
    with pytest.raises(ConfigError, match="must keep its length"):
        replaced(state(extras=True), given)
