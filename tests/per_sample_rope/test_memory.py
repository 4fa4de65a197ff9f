"""What is kept for the backward pass, counted byte by byte: a packed batch keeps no more than its samples alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.per_sample_rope.oracle import (
    Sample,
    one_by_one,
    own_network,
    packed,
    pad_samples,
    samples,
    stock_network,
)


def kept_bytes(network: Any, run: Callable[[], Tensor]) -> int:
    """Bytes of all tensors, weights apart, that autograd holds when `run` is done."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    held: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(tensor.untyped_storage().nbytes() for tensor in held.values())


def learning(network: Any) -> Any:
    """Weights frozen but for the attention's first projections, as with a LoRA."""
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.endswith(("to_q.weight", "to_v.weight")))
    return network


def test_a_packed_batch_keeps_no_more_than_the_originals_samples_alone() -> None:
    stock = learning(stock_network())
    own = learning(own_network(stock))
    batch = samples()
    form = pad_samples(batch)
    packed_bytes = kept_bytes(own, lambda: packed(own, batch))
    alone = kept_bytes(stock, lambda: one_by_one(stock, batch))
    padded = kept_bytes(
        stock,
        lambda: (
            stock(
                hidden_states=form.hidden,
                encoder_hidden_states=form.text,
                encoder_hidden_states_mask=form.text_mask,
                timestep=form.time,
                img_shapes=[list(batch[0].grids)],
            ).sample
        ),
    )
    assert packed_bytes < 0.9 * alone
    assert packed_bytes < 0.75 * padded


def of_lengths(lengths: Sequence[int]) -> list[Sample]:
    return samples([((1, 1, length),) for length in lengths], [6] * len(lengths))


@pytest.mark.parametrize(
    "lengths",
    [(20,) * 8 + (28,) * 8, (18, 22, 26, 30) * 4, (*range(16, 24), *range(25, 33))],
    ids=["2 shapes", "4 shapes", "16 shapes"],
)
def test_more_shapes_of_as_many_tokens_keep_as_much(lengths: tuple[int, ...]) -> None:
    own = learning(own_network(stock_network()))
    assert sum(lengths) == 16 * 24
    uniform = kept_bytes(own, lambda: packed(own, of_lengths([24] * 16)))
    mixed = kept_bytes(own, lambda: packed(own, of_lengths(lengths)))
    assert 0.9 < mixed / uniform < 1.1
