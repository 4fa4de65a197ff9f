"""What is kept for the backward pass, counted byte by byte: a packed batch keeps no more than its samples alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor

from qframe_bench.measuring import peak_bytes
from qframe_bench.transformer import contestants, tables
from tests.bench.test_transformer import TINY
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


@pytest.mark.slow
@pytest.mark.parametrize("texts", [(77, 77, 77, 77), (77, 31, 120, 54)], ids=["text 77", "text mixed"])
def test_a_packed_step_peaks_no_higher_than_the_grouped_runs(texts: tuple[int, ...]) -> None:
    """Forward and backward, counted allocation by allocation: the same on every run, so no margin is needed."""
    settings = attrs.evolve(TINY, width=256, head=64, layers=4, text_width=256)
    stock, own = contestants.networks(settings)
    batch = contestants.random_batch(settings, tables.seeds(8), texts)
    cpu = torch.device("cpu")
    runs = (partial(contestants.run_packed, own, batch), partial(contestants.run_groups, stock, batch.by_shape()))
    for run in runs:  # gradients exist from then on
        run()
    found, grouped = (peak_bytes(run, cpu) for run in runs)
    assert found <= grouped
    assert found < 0.75 * peak_bytes(partial(contestants.run_padded, stock, batch), cpu)


@pytest.mark.slow
def test_peak_memory_is_flat_in_the_number_of_shapes() -> None:
    settings = attrs.evolve(TINY, width=128, head=64, layers=2, text_width=128)
    _, own = contestants.networks(settings)
    peaks = []
    for count in (1, 2, 4, 8, 16):
        batch = contestants.random_batch(settings, tables.shapes_of(8, count), [77] * 16)
        contestants.run_packed(own, batch)
        peaks.append(peak_bytes(partial(contestants.run_packed, own, batch), torch.device("cpu")))
    assert max(peaks) < 1.1 * min(peaks)
