"""What is kept for the backward pass, counted byte by byte: a packed batch keeps no more than its samples alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from qframe.adapters import add_lora
from qframe.config.schema import LoraConfig
from qframe.diffusion.norms import keep_stream_dtype
from qframe_bench.measuring import peak_bytes
from qframe_bench.transformer import contestants, tables
from tests.bench.test_transformer import TINY
from tests.cuda_autocast import cuda_autocast
from tests.per_sample_rope.oracle import (
    Sample,
    one_by_one,
    own_network,
    packed,
    pad_samples,
    samples,
    stock_network,
)


def kept_bytes(network: Any, run: Callable[[], Any], *, tables: bool = True) -> int:
    """Bytes of all tensors, weights apart, that autograd holds when `run` is done."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    held: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights and (tables or not tensor.is_complex()):
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


ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
EDIT = samples([((1, 8, 16), (1, 8, 16))], [46])  # an edit of 1 MP with a reference of 1 MP, scaled down by 32
NETWORKS: dict[str, tuple[Callable[[Any], Any], Callable[..., Tensor]]] = {
    "qwen-image": (lambda stock: stock, one_by_one),
    "qwen-per-sample-rope": (own_network, packed),
}
both_networks = pytest.mark.parametrize("kind", NETWORKS)


def network_with_lora(kind: str) -> Any:
    """A network in bfloat16 of one block, with a LoRA on its attention, as a run has it on a card."""
    shape = {"num_layers": 1, "attention_head_dim": 32, "num_attention_heads": 3, "axes_dims_rope": (8, 12, 12)}
    network = NETWORKS[kind][0](stock_network(large=False, **shape)).bfloat16()
    keep_stream_dtype(network)  # as `StockDenoiser.load` does; the other network has done it already
    add_lora(network, LoraConfig(rank=1, targets=tuple(f"attn.{name}" for name in ATTENTION)), {}, seed=0)
    return network


def run_edit(kind: str, network: Any) -> Tensor:
    batch = [Sample(s.tokens.bfloat16(), s.grids, s.text.bfloat16(), s.time) for s in EDIT]
    return NETWORKS[kind][1](network, batch)


def kept_by_block(kind: str, autocast: Callable[[], AbstractContextManager[Any]]) -> float:
    """Bytes that one block keeps for the backward pass, per token and channel, without the shared position tables."""
    network = network_with_lora(kind)
    (block,) = network.transformer_blocks
    given: list[Any] = []
    hook = block.register_forward_pre_hook(lambda _, args, named: given.append((args, named)), with_kwargs=True)
    with autocast(), torch.no_grad():
        run_edit(kind, network)
    hook.remove()
    args, named = tree_map(learned, given[0])
    with autocast():
        bytes_kept = kept_bytes(network, lambda: block(*args, **named), tables=False)
    return bytes_kept / ((2 * 128 + 46) * 96)


def learned(value: Any) -> Any:
    """A stream as an earlier block would give it: it needs a gradient."""
    is_stream = isinstance(value, Tensor) and value.shape[-2:] in {(256, 96), (46, 96)}
    return value.detach().requires_grad_() if is_stream else value


@both_networks
def test_cudas_autocast_keeps_no_more_bytes_than_that_of_a_cpu(kind: str) -> None:
    """36 bytes per token and channel are 0.99 GiB at 1 MP and 1 MP. It was 46.2 (1.28 GiB) on CUDA, 42.1 on a CPU.

    The stream, the outputs of both norms, of attention and of the perceptron's first layer, and queries, keys and
    values once in bfloat16 and twice in normalising: 2 more bytes would be one more copy of a stream.
    """
    found = kept_by_block(kind, cuda_autocast)
    assert found == kept_by_block(kind, partial(torch.autocast, "cpu", dtype=torch.bfloat16))
    assert found < 36.2


@both_networks
def test_modulated_inputs_reach_the_layers_in_the_dtype_that_they_compute_in(kind: str) -> None:
    """Else autocast would convert the same input again for each of the layers that read it."""
    network = network_with_lora(kind)
    found: dict[str, torch.dtype] = {}
    for name, layer in network.named_modules():
        if (isinstance(layer, torch.nn.Linear) and ".attn." in name) or name.endswith("_mlp.net.0.proj"):
            layer.register_forward_pre_hook(lambda _, given, name=name: found.update({name: given[0].dtype}))
    with cuda_autocast():
        run_edit(kind, network)
    assert len(found) == 3 * len(ATTENTION) + 2  # the frozen layer and both matrices of its adapter
    assert set(found.values()) == {torch.bfloat16}


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
