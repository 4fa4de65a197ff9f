"""Gradients of any batch are those of diffusers' transformer over its samples one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qframe.adapters import add_lora
from qframe.config.schema import LoraConfig
from tests.per_sample_rope.oracle import (
    ENTRIES,
    Sample,
    assert_same,
    one_by_one,
    own_network,
    packed,
    relative_error,
    samples,
    stock_network,
)

TARGETS = ("attn.to_q", "attn.add_k_proj", "attn.to_out.0", "img_mlp.net.2", "img_mod.1", "txt_in", "proj_out")
both_entries = pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)


def inputs_and_weights(
    network: nn.Module, predict: Callable[[Any, Sequence[Sample]], Tensor], names: Sequence[str]
) -> dict[str, Tensor]:
    """Gradients of a weighted sum of the prediction: of all tokens, all text, and the named parameters."""
    network.zero_grad()
    batch = samples()
    for sample in batch:
        sample.tokens.requires_grad_()
        sample.text.requires_grad_()
    predicted = predict(network, batch)
    (predicted * torch.linspace(-1, 1, predicted.numel()).reshape(predicted.shape)).sum().backward()
    found = {f"tokens {i}": grad(sample.tokens) for i, sample in enumerate(batch)}
    found |= {f"text {i}": grad(sample.text) for i, sample in enumerate(batch)}
    return found | {name: grad(network.get_parameter(name)).clone() for name in names}


def grad(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad


def assert_gradients_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Each within 1e-5 of its own size, or of a thousandth of the largest: some are sums that cancel."""
    assert found.keys() == wanted.keys()
    largest = max(value.norm().item() for value in wanted.values())
    for name in wanted:
        assert found[name].isfinite().all(), name
        error = (found[name] - wanted[name]).norm().item()
        assert error < 1e-5 * max(wanted[name].norm().item(), 1e-3 * largest), name


@both_entries
@pytest.mark.parametrize("zero_cond_t", [False, True])
def test_gradients_of_inputs_and_weights_equal_the_originals(entry: Any, zero_cond_t: bool) -> None:
    stock = stock_network(zero_cond_t=zero_cond_t)
    # The last block's text path leads nowhere, in diffusers as here.
    names = [name for name, _ in stock.named_parameters() if not unused(name)]
    found = inputs_and_weights(own_network(stock), entry, names)
    assert_gradients_same(found, inputs_and_weights(stock, one_by_one, names))


def unused(name: str) -> bool:
    return name.startswith("transformer_blocks.1.") and any(
        part in name for part in ("txt_mlp", "to_add_out", "add_q_proj", "norm_added_q")
    )


def with_lora(network: nn.Module) -> dict[str, nn.Parameter]:
    trained = add_lora(network, LoraConfig(rank=2, targets=TARGETS), {}, seed=3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():  # the second matrix starts at zero, and would give the first no gradient
        for parameter in trained.values():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return trained


@both_entries
def test_gradients_of_a_lora_equal_the_originals(entry: Any) -> None:
    """E6, E9 for training: peft finds the same layers by the same names."""
    stock = stock_network()
    own = own_network(stock)
    names = [name for name in with_lora(stock) if not unused(name)]
    assert [name for name in with_lora(own) if not unused(name)] == names
    assert len(names) > 20
    wanted = inputs_and_weights(stock, one_by_one, names)
    assert_gradients_same(inputs_and_weights(own, entry, names), wanted)


@both_entries
@pytest.mark.parametrize("every", [1, 2])
def test_gradient_checkpointing_changes_nothing(entry: Any, every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    own = own_network(stock_network())
    names = list(with_lora(own))
    names = [name for name in names if not unused(name)]
    own.train()
    plain = inputs_and_weights(own, entry, names)
    own.enable_gradient_checkpointing(every=every)
    run = []
    for number, block in enumerate(own.transformer_blocks):
        block.register_forward_pre_hook(lambda module, given, number=number: run.append(number))
    again = inputs_and_weights(own, entry, names)
    assert all(torch.equal(again[name], plain[name]) for name in plain)
    assert sorted(run) == ([0, 0, 1, 1] if every == 1 else [0, 0, 1])
    own.disable_gradient_checkpointing()
    run.clear()
    inputs_and_weights(own, entry, names)
    assert run == [0, 1]


def test_checkpointing_less_than_every_block_is_refused() -> None:
    with pytest.raises(ValueError, match="0-th"):
        own_network(stock_network()).enable_gradient_checkpointing(every=0)


def test_a_samples_lora_gradient_does_not_depend_on_its_neighbours() -> None:
    """B62: a batch of six gives the sum of what its samples give alone."""
    own = own_network(stock_network())
    trained = {name: p for name, p in with_lora(own).items() if not unused(name)}
    batch = samples()
    packed(own, batch).square().sum().backward()
    whole = {name: grad(parameter).clone() for name, parameter in trained.items()}
    own.zero_grad()
    for sample in batch:
        packed(own, [sample]).square().sum().backward()
    assert_gradients_same({name: grad(p) for name, p in trained.items()}, whole)


def test_lora_scale_is_taken_from_attention_kwargs() -> None:
    """Half the scale is half the LoRA, here as in diffusers; and it is put back."""
    stock = stock_network()
    own = own_network(stock)
    with_lora(stock), with_lora(own)
    batch = samples()[:1]
    (sample,) = batch
    plain = packed(own, batch)
    wanted = stock(
        hidden_states=sample.tokens[None],
        encoder_hidden_states=sample.text[None],
        timestep=sample.time[None],
        img_shapes=[list(sample.grids)],
        attention_kwargs={"scale": 0.5},
    ).sample[0]
    assert_same(packed(own, batch, attention_kwargs={"scale": 0.5}), wanted)
    assert relative_error(wanted, plain) > 0.01
    assert torch.equal(packed(own, batch), plain)
