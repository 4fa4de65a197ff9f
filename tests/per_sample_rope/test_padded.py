"""The padded entry: what lies in the padding changes nothing, comes out as zero, and gets no gradient."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch

from qframe_qwen_per_sample_rope.transformer import PerSampleRopeTransformer
from tests.per_sample_rope.oracle import (
    CHANNELS,
    GRIDS,
    WIDTH,
    Padded,
    assert_same,
    one_by_one,
    packed,
    pad_samples,
    padded,
    relative_error,
    samples,
)

Own = PerSampleRopeTransformer


@pytest.mark.fast
@pytest.mark.parametrize("filling", [0.0, 1e3, float("inf"), float("nan")])
def test_what_lies_in_the_padding_changes_nothing(own: Own, filling: float) -> None:
    """E10: padding comes out exactly 0, everything else does not."""
    form = pad_samples(samples(), filling, extra=3)
    found = padded(own, form)
    assert torch.equal(found[~form.image_mask], torch.zeros(int((~form.image_mask).sum()), CHANNELS))
    assert (found[form.image_mask] != 0).all()
    assert torch.equal(found[form.image_mask], packed(own, samples()))


@pytest.mark.parametrize("filling", [0.0, float("nan")])
def test_padding_gets_no_gradient(own: Own, filling: float) -> None:
    """B60."""
    form = pad_samples(samples(), filling)
    form.hidden.requires_grad_()
    form.text.requires_grad_()
    padded(own, form).square().sum().backward()
    for given, mask in ((form.hidden, form.image_mask), (form.text, form.text_mask)):
        assert given.grad is not None
        assert (given.grad[~mask] == 0).all()
        assert (given.grad[mask].abs().sum(1) > 0).all()


@pytest.mark.fast
def test_with_and_without_a_mask(own: Own) -> None:
    """E7: without padding a mask changes nothing; with it, shapes and text lengths say as much as a mask."""
    uniform = pad_samples(samples([GRIDS[0]] * 3, [7] * 3))
    assert torch.equal(padded(own, uniform), padded(own, uniform, attention_mask=None))
    mixed = pad_samples(samples())
    lengths = [len(sample.text) for sample in samples()]
    assert torch.equal(padded(own, mixed), padded(own, mixed, attention_mask=None, txt_seq_lens=lengths))
    text_only = padded(own, mixed, attention_mask=None, encoder_hidden_states_mask=mixed.text_mask)
    assert torch.equal(padded(own, mixed), text_only)


@pytest.mark.parametrize("kind", [torch.bool, torch.int64, torch.int32, torch.uint8, torch.float32, torch.bfloat16])
def test_masks_of_any_dtype(own: Own, kind: torch.dtype) -> None:
    form = pad_samples(samples())
    wanted = padded(own, form)
    assert torch.equal(padded(own, form, attention_mask=form.mask.to(kind)), wanted)
    both = {"attention_mask": form.mask.to(kind), "encoder_hidden_states_mask": form.text_mask.to(kind)}
    assert torch.equal(padded(own, form, **both), wanted)


def test_text_must_be_marked_by_everything_that_is_given(own: Own) -> None:
    form = pad_samples(samples())
    wanted = padded(own, form)
    wide = form.mask.clone()
    wide[:, : form.text.shape[1]] = True
    lengths = [len(sample.text) for sample in samples()]
    assert torch.equal(padded(own, form, attention_mask=wide, encoder_hidden_states_mask=form.text_mask), wanted)
    everything = torch.ones_like(form.text_mask)
    assert torch.equal(padded(own, form, encoder_hidden_states_mask=everything), wanted)
    assert torch.equal(padded(own, form, attention_mask=wide, txt_seq_lens=lengths), wanted)


def test_flat_shapes_are_shared_and_nested_shapes_are_per_sample(own: Own) -> None:
    """E11."""
    form = pad_samples(samples([GRIDS[0]] * 3, [7, 4, 7]))
    nested = padded(own, form)
    assert torch.equal(padded(own, form, img_shapes=list(GRIDS[0])), nested)
    assert torch.equal(padded(own, form, img_shapes=[list(grid) for grid in GRIDS[0]]), nested)
    turned = [((1, 6, 4), (1, 2, 2)), GRIDS[0], GRIDS[0]]
    assert relative_error(padded(own, form, img_shapes=turned)[0], nested[0]) > 1e-3
    assert_same(padded(own, form, img_shapes=turned)[1:], nested[1:], 1e-6)


def test_text_keeps_the_positions_of_its_columns(own: Own, stock: Any) -> None:
    """A mask with holes, as diffusers understands it: hidden columns still count as positions."""
    batch = samples([GRIDS[1], GRIDS[1]], [6, 6])
    form = pad_samples(batch)
    mask = torch.tensor([[1, 0, 1, 1, 0, 1], [0, 1, 1, 1, 1, 0]])
    wanted = stock(
        hidden_states=form.hidden,
        encoder_hidden_states=form.text,
        encoder_hidden_states_mask=mask,
        timestep=form.time,
        img_shapes=form.shapes,
    ).sample
    assert_same(padded(own, form, attention_mask=None, encoder_hidden_states_mask=mask), wanted)


def test_pictures_may_be_padded_on_the_left(own: Own) -> None:
    form = pad_samples(samples())
    turned = attrs.evolve(form, hidden=form.hidden.flip(1), image_mask=form.image_mask.flip(1))
    backwards = [type(s)(s.tokens.flip(0), s.grids, s.text, s.time) for s in samples()]
    assert torch.equal(padded(own, turned)[turned.image_mask], packed(own, backwards))


def test_result_is_an_object_or_a_tuple(exact: Own) -> None:
    """E15: the picture stream alone."""
    form = pad_samples(samples())
    as_object = exact(form.hidden, form.text, None, form.time, form.shapes, attention_mask=form.mask)
    as_tuple = exact(form.hidden, form.text, None, form.time, form.shapes, attention_mask=form.mask, return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert torch.equal(as_object.sample, as_tuple[0])
    assert as_tuple[0].shape == form.hidden.shape


def test_one_sample_needs_no_mask(own: Own, stock: Any) -> None:
    (sample,) = samples(GRIDS[4:5], [4])
    assert_same(padded(own, pad_samples([sample]), attention_mask=None)[0], one_by_one(stock, [sample]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: {"attention_mask": f.mask[:, :-1]}, "attention_mask has 36 entries, the sequence has 37"),
        (lambda f: {"attention_mask": torch.cat([f.mask, f.mask], 1)}, "attention_mask has 74 entries, .* has 37"),
        (lambda f: {"attention_mask": f.mask[:5]}, r"attention_mask is \[6, 37\], got \[5, 37\]"),
        (lambda f: {"encoder_hidden_states_mask": f.text_mask[:, :4]}, "mask has 4 entries, the sequence has 9"),
        (
            lambda f: {"attention_mask": with_entry(f, 1, -1, True)},
            "sample 1: its grids have 9 tokens, its mask marks 10",
        ),
        (lambda f: {"attention_mask": with_entry(f, 4, 9, False)}, "sample 4: its grids have 27 .* its mask marks 26"),
        (lambda f: {"attention_mask": with_entry(f, 5, slice(9), False)}, "sample 5: 0 text tokens, at least 1"),
        (lambda f: {"attention_mask": f.mask * -1e4}, "sample 0: attention_mask marks with 1 and hides with 0"),
        (lambda f: {"attention_mask": f.mask * float("nan")}, "sample 0: attention_mask marks with 1"),
        (lambda f: {"img_shapes": f.shapes[:4]}, "sample 4: shapes of 4 samples, tensor of 6"),
        (lambda f: {"img_shapes": [[], *f.shapes[1:]]}, "img_shapes is a list of"),
        (lambda f: {"img_shapes": [*f.shapes[:5], [(1, 2, 8, 1)]]}, "sample 5: a grid is 3 positive integers"),
        (lambda f: {"img_shapes": [*f.shapes[:5], [(1, 2.9, 8)]]}, "sample 5: a grid is 3 positive integers"),
        (
            lambda f: {"img_shapes": [(1, 9, 9)], "attention_mask": None},
            "sample 0: its grids have 81 .* tensor 28 rows",
        ),
        (lambda f: {"img_shapes": [(1, 2, 2)], "attention_mask": None}, "sample 0: its grids have 4 .* tensor 28 rows"),
        (lambda f: {"txt_seq_lens": [5, 9, 5, 8, 10, 1]}, "sample 4: 10 text tokens, the tensor has 9 rows"),
        (lambda f: {"txt_seq_lens": [5, 9]}, "sample 2: 2 text lengths, 6 samples"),
        (lambda f: {"img_shapes": None}, "img_shapes are needed"),
    ],
)
def test_padded_input_that_does_not_fit_is_named(own: Own, change: Any, message: str) -> None:
    form = pad_samples(samples())
    with pytest.raises(ValueError, match=message):
        padded(own, form, **change(form))


def test_pictures_and_prompts_of_different_numbers_are_refused(own: Own) -> None:
    with pytest.raises(ValueError, match="sample 1: pictures of 2 samples, prompts of 1"):
        own(torch.zeros(2, 4, CHANNELS), torch.zeros(1, 3, WIDTH), None, torch.rand(2), [(1, 2, 2)])


def with_entry(form: Padded, sample: int, place: Any, value: bool) -> torch.Tensor:
    mask = form.mask.clone()
    mask[sample, place] = value
    return mask
