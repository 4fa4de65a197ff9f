"""Every sample of any batch comes out as diffusers' transformer gives it alone."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from diffusers.utils import logging as diffusers_logging
from optimum.quanto import QLinear, freeze, qint8, quantize
from torch.utils.flop_counter import FlopCounterMode

from qframe_qwen_per_sample_rope.transformer import PerSampleRopeTransformer
from tests.per_sample_rope.oracle import (
    BFLOAT16_BOUND,
    CHANNELS,
    ENTRIES,
    GRIDS,
    TEXTS,
    WIDTH,
    alone,
    assert_same,
    one_by_one,
    own_network,
    packed,
    pad_samples,
    padded,
    relative_error,
    samples,
    stock_network,
)

Own = PerSampleRopeTransformer
both_entries = pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)


@pytest.mark.fast
def test_parameters_are_those_of_the_original(stock: Any, exact: Own) -> None:
    """E1."""
    wanted, found = stock.state_dict(), exact.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert {name: exact.config[name] for name in stock.config if not name.startswith("_")} == {
        name: value for name, value in stock.config.items() if not name.startswith("_")
    }


def test_layers_are_taken_over_without_a_copy() -> None:
    stock = stock_network()
    own = Own.adopt(stock)
    assert {p.data_ptr() for p in own.parameters()} == {p.data_ptr() for p in stock.parameters()}
    assert_same(packed(own, samples()), one_by_one(stock, samples()))


@pytest.mark.fast
@both_entries
def test_a_uniform_batch_equals_the_original_on_that_batch(stock: Any, own: Own, entry: Any) -> None:
    """E2, E3, E6: several pictures per sample, positions shared by all."""
    batch = samples([GRIDS[0]] * 3, [7] * 3)
    form = pad_samples(batch)
    wanted = stock(
        hidden_states=form.hidden, encoder_hidden_states=form.text, timestep=form.time, img_shapes=form.shapes
    ).sample
    assert_same(entry(own, batch), wanted.flatten(0, 1))


@pytest.mark.fast
@both_entries
def test_every_sample_of_a_mixed_batch_equals_the_original_alone(stock: Any, own: Own, entry: Any) -> None:
    """E5, E9, E12: shapes, prompt lengths and numbers of pictures all differ."""
    batch = samples()
    found = entry(own, batch).split([len(sample.tokens) for sample in batch])
    for sample, own_rows in zip(batch, found, strict=True):
        assert_same(own_rows, alone(stock, sample))


@torch.no_grad()
def test_the_original_gets_this_batch_wrong(stock: Any) -> None:
    """Why this network exists: diffusers takes positions from sample 0, whatever it is told of the others."""
    batch = samples([((1, 2, 8),), ((1, 8, 2),)], [5, 5])
    form = pad_samples(batch)
    diffusers_logging.set_verbosity_error()
    wrong = stock(
        hidden_states=form.hidden, encoder_hidden_states=form.text, timestep=form.time, img_shapes=form.shapes
    ).sample[1]
    diffusers_logging.set_verbosity_warning()
    assert relative_error(wrong, alone(stock, batch[1])) > 0.01


@pytest.mark.fast
@both_entries
def test_groups_of_equal_samples_equal_the_whole_batch(own: Own, entry: Any) -> None:
    """E4, E8."""
    batch = samples()
    whole = entry(own, batch).split([len(sample.tokens) for sample in batch])
    for group in ([0, 2], [1], [3], [4], [5]):
        assert_same(entry(own, [batch[i] for i in group]), torch.cat([whole[i] for i in group]))


@both_entries
def test_order_in_the_batch_does_not_matter(stock: Any, own: Own, entry: Any) -> None:
    batch = samples()
    for seed in range(4):
        shuffled = random.Random(seed).sample(batch, len(batch))
        assert_same(entry(own, shuffled), one_by_one(stock, shuffled))


@pytest.mark.fast
def test_both_entries_agree(own: Own) -> None:
    batch = samples()
    assert_same(ENTRIES["padded"](own, batch), ENTRIES["packed"](own, batch), 1e-6)


@pytest.mark.parametrize("height", [300, 301])
def test_a_perceptron_in_halves_is_the_whole_one(height: int) -> None:
    """Batches of more than 512 rows, even and odd ones, take it in two parts: forward, and back to the weights."""
    stock = stock_network()
    own = own_network(stock)
    batch = samples([((1, height, 1),), ((1, 15, 20),)], [3, 4])
    parts: list[int] = []
    own.transformer_blocks[1].img_mlp.register_forward_hook(lambda module, given, result: parts.append(len(result)))
    found, wanted = packed(own, batch), one_by_one(stock, batch)
    assert parts == [300 + height % 2, 300]
    assert_same(found, wanted)
    name = "transformer_blocks.0.img_mlp.net.0.proj.weight"
    gradients = []
    for network, predicted in ((own, found), (stock, wanted)):
        predicted.square().mean().backward()
        gradients.append(network.get_parameter(name).grad)
    assert_same(*gradients)


def test_a_sample_does_not_see_its_neighbours(own: Own) -> None:
    """B62: not even numbers that are no numbers."""
    batch = samples()
    before = packed(own, batch)
    batch[1].tokens.fill_(float("nan"))
    after = packed(own, batch)
    lengths = [len(sample.tokens) for sample in batch]
    for i, (one, other) in enumerate(zip(before.split(lengths), after.split(lengths), strict=True)):
        if i == 1:
            assert other.isnan().all()
        else:
            assert_same(other, one)


@both_entries
def test_no_work_is_spent_on_padding(own: Own, stock: Any, entry: Any) -> None:
    """Products of matrices: as many as for the samples alone, and fewer than for a padded batch."""
    batch = samples()
    seen: dict[str, set[int]] = {
        "img_in": set(),
        "transformer_blocks.1.img_mlp": set(),
        "transformer_blocks.1.txt_mlp": set(),
    }
    hooks = [
        own.get_submodule(name).register_forward_hook(lambda m, given, r, name=name: seen[name].add(given[0].shape[0]))
        for name in seen
    ]
    work = []
    for run in (lambda: entry(own, batch), lambda: one_by_one(stock, batch), lambda: padded_stock(stock, batch)):
        with FlopCounterMode(display=False) as counter:
            run()
        work.append(counter.get_total_flops())
    for hook in hooks:
        hook.remove()
    assert list(seen.values()) == [{136}, {136}, {31}]
    assert work[0] <= work[1] < 0.9 * work[2]


def padded_stock(stock: Any, batch: Any) -> Any:
    form = pad_samples(batch)
    return stock(
        hidden_states=form.hidden,
        encoder_hidden_states=form.text,
        encoder_hidden_states_mask=form.text_mask,
        timestep=form.time,
        img_shapes=[list(GRIDS[0])],
    )


@both_entries
def test_the_result_is_where_and_in_what_the_network_is(
    own: Own, entry: Any, device: torch.device, dtype: torch.dtype
) -> None:
    """E18, E19: `pytest --dtype bfloat16 --device cuda`; every comparison with `own` heeds both."""
    seen = []
    hook = own.proj_out.register_forward_hook(lambda module, given, result: seen.append(result))
    entry(own, samples())
    hook.remove()
    assert [(result.dtype, result.device.type) for result in seen] == [(dtype, device.type)]


@both_entries
def test_quantised_layers_are_taken_over(entry: Any) -> None:
    """optimum-quanto's layers stay as they are; the two networks run the same ones."""
    stock = stock_network(large=False).requires_grad_(False)
    plain = packed(own_network(stock), samples())
    quantize(stock, weights=qint8)
    freeze(stock)
    own = Own.adopt(stock)
    assert isinstance(own.transformer_blocks[0].attn.to_q, QLinear)
    assert_same(entry(own, samples()), one_by_one(stock, samples()))
    assert relative_error(packed(own, samples()), plain) > 1e-4


@both_entries
def test_bfloat16_stays_within_its_precision(entry: Any) -> None:
    """E20: within `BFLOAT16_BOUND` of float32; and diffusers, in the same dtype, is no nearer to it."""
    stock = stock_network(large=False).requires_grad_(False).bfloat16()
    own = own_network(stock).bfloat16()
    low = [
        type(s)(s.tokens.bfloat16(), s.grids, s.text.bfloat16(), (s.time * 1000).bfloat16() / 1000) for s in samples()
    ]
    exact = [type(s)(s.tokens.float(), s.grids, s.text.float(), s.time.float()) for s in low]
    wanted = one_by_one(stock_in_float32(stock), exact)
    error = relative_error(entry(own, low), wanted)
    assert error < BFLOAT16_BOUND
    assert error < 1.25 * relative_error(one_by_one(stock, low).float(), wanted)


def stock_in_float32(stock: Any) -> Any:
    exact = stock_network(large=False).requires_grad_(False)
    exact.load_state_dict({name: value.float() for name, value in stock.state_dict().items()})
    return exact


def test_autocast_errs_no_more_than_the_original() -> None:
    """The trainer's bfloat16: weights in float32, products in bfloat16."""
    stock = stock_network(large=False).requires_grad_(False)
    own = own_network(stock)
    batch = samples()
    exact = one_by_one(stock, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, upstream = packed(own, batch), one_by_one(stock, batch)
    error = relative_error(found.float(), exact)
    assert error < BFLOAT16_BOUND
    assert error < 1.25 * relative_error(upstream.float(), exact)


@both_entries
def test_zero_cond_t_modulates_references_at_time_zero(zero_cond: Any, entry: Any) -> None:
    """Edit-2511."""
    stock, own = zero_cond
    batch = samples()
    assert_same(entry(own, batch), one_by_one(stock, batch))
    other = own_network(stock_network())
    assert relative_error(entry(other, batch[:1]), alone(stock, batch[0])) > 0.01


@both_entries
def test_layered_positions_equal_the_original(entry: Any) -> None:
    """use_layer3d_rope: the last picture lies at frame -1; text begins after the layers."""
    stock = stock_network(use_layer3d_rope=True).requires_grad_(False)
    batch = samples([((1, 2, 2),) * 5, ((1, 4, 2), (1, 2, 2)), ((1, 2, 3),) * 2], [4, 2, 6])
    assert_same(entry(own_network(stock), batch), one_by_one(stock, batch))


def test_additional_t_cond_equals_the_original() -> None:
    stock = stock_network(use_additional_t_cond=True).requires_grad_(False)
    own = own_network(stock)
    batch = samples()
    kinds = torch.tensor([0, 1, 1, 0, 1, 0])
    wanted = torch.cat(
        [
            stock(
                hidden_states=s.tokens[None],
                encoder_hidden_states=s.text[None],
                timestep=s.time[None],
                img_shapes=[list(s.grids)],
                additional_t_cond=kind[None],
            ).sample[0]
            for s, kind in zip(batch, kinds, strict=True)
        ]
    )
    assert_same(packed(own, batch, additional_t_cond=kinds), wanted)
    form = pad_samples(batch)
    assert_same(padded(own, form, additional_t_cond=kinds)[form.image_mask], wanted)
    with pytest.raises(ValueError, match="use_additional_t_cond"):
        packed(own, batch)


@both_entries
def test_guidance_is_embedded_as_in_flux(entry: Any) -> None:
    """E14. Diffusers has the flag and no layer: a hand-made embedding stands in for the oracle."""
    torch.manual_seed(0)
    own = Own(**(dict(stock_network().config) | {"guidance_embeds": True})).eval().requires_grad_(False)
    batch = samples()
    scales = torch.linspace(1, 5, 6)
    strong = packed(own, batch, guidance=scales)
    embed = own.time_text_embed
    expected = embed.timestep_embedder(embed.time_proj(torch.stack([s.time for s in batch])))
    expected = expected + embed.guidance_embedder(embed.time_proj(scales))
    form = pad_samples(batch)
    assert_same(padded(own, form, guidance=scales)[form.image_mask], strong)
    seen = []
    hook = embed.register_forward_hook(lambda module, given, result: seen.append(result))
    packed(own, batch[::-1], guidance=scales.flip(0))
    hook.remove()
    grids, lengths = [s.grids for s in batch[::-1]], [len(s.text) for s in batch[::-1]]
    order = own.layout(grids, lengths, device=torch.device("cpu")).order
    assert_same(seen[0], expected.flip(0)[list(order)])
    assert relative_error(packed(own, batch, guidance=scales + 1), strong) > 1e-4
    with pytest.raises(ValueError, match="guidance_embeds"):
        packed(own, batch)


def test_what_the_network_has_no_layer_for_is_refused(own: Own) -> None:
    with pytest.raises(ValueError, match="guidance is given"):
        packed(own, samples(), guidance=torch.ones(6))
    with pytest.raises(ValueError, match="additional_t_cond is given"):
        packed(own, samples(), additional_t_cond=torch.zeros(6).long())
    with pytest.raises(ValueError, match="attention_kwargs takes scale alone, got ip_adapter"):
        packed(own, samples(), attention_kwargs={"ip_adapter": 1})


def test_one_time_for_all_samples(exact: Own) -> None:
    """A 0-d or one-element timestep holds for the batch, as samplers give it."""
    batch = [type(s)(s.tokens, s.grids, s.text, torch.tensor(0.3)) for s in samples()]
    tokens, text = torch.cat([s.tokens for s in batch]), torch.cat([s.text for s in batch])
    found = exact.packed(
        tokens, text, torch.tensor(0.3), grids=[s.grids for s in batch], text_lengths=[len(s.text) for s in batch]
    )
    assert_same(found, packed(exact, batch))


def test_arguments_are_left_alone(own: Own) -> None:
    batch = samples()
    form = pad_samples(batch)
    before = [t.clone() for t in (form.hidden, form.text, form.time, form.mask)]
    kwargs = {"scale": 0.5}
    padded(own, form, attention_kwargs=kwargs)
    assert kwargs == {"scale": 0.5}
    assert all(torch.equal(a, b) for a, b in zip(before, (form.hidden, form.text, form.time, form.mask), strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": torch.zeros(100, CHANNELS)}, r"sample 4: its picture tokens end at 120, the tensor holds 100"),
        ({"tokens": torch.zeros(140, CHANNELS)}, r"sample 5: its picture tokens end at 136, the tensor holds 140"),
        ({"text": torch.zeros(30, WIDTH)}, r"sample 5: its text tokens end at 31, the tensor holds 30"),
        ({"text": torch.zeros(12, WIDTH)}, r"sample 1: its text tokens end at 14, the tensor holds 12"),
        ({"text_lengths": (5, 9, 0, 8, 3, 1)}, "sample 2: 0 text tokens, at least 1"),
        ({"text_lengths": (5, 9, 5, 8, 3)}, "sample 5: pictures of 6 samples, prompts of 5"),
        ({"grids": (*GRIDS[:3], (), *GRIDS[4:])}, "sample 3: 0 pictures, at least 1"),
        (
            {"grids": (*GRIDS[:3], ((1, 0, 4),), *GRIDS[4:])},
            r"sample 3: a grid is 3 positive integers, got \(1, 0, 4\)",
        ),
        (
            {"grids": (*GRIDS[:3], ((1, 2.0, 4),), *GRIDS[4:])},
            r"sample 3: a grid is 3 positive integers, got \(1, 2.0, 4\)",
        ),
        ({"timestep": torch.rand(4)}, "sample 4: 4 timesteps, 6 samples"),
    ],
)
def test_packed_input_that_does_not_fit_is_named(exact: Own, change: dict[str, Any], message: str) -> None:
    batch = samples()
    given: dict[str, Any] = {
        "tokens": torch.cat([s.tokens for s in batch]),
        "text": torch.cat([s.text for s in batch]),
        "timestep": torch.stack([s.time for s in batch]),
        "grids": GRIDS,
        "text_lengths": TEXTS,
    } | change
    with pytest.raises(ValueError, match=message):
        exact.packed(given.pop("tokens"), given.pop("text"), given.pop("timestep"), **given)


def test_not_a_number_passes_no_comparison() -> None:
    broken = torch.tensor([1.0, float("nan")])
    for pair in ((broken, torch.ones(2)), (torch.ones(2), broken), (broken, broken)):
        with pytest.raises(AssertionError):
            assert_same(*pair)
