"""Times the packed transformer against diffusers', forward and backward with a LoRA, side by side in one run.

python -m qframe_qwen_per_sample_rope.bench --size 8

Two samples have two pictures of s x s tokens, two have two of 2s x 2s. Weights are random. Contestants take turns, so
that other work on the machine falls on all of them, and on a CPU it is the process's own time that counts; what is
printed are medians and their ratios.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import attrs
import click
import torch
from diffusers import QwenImageTransformer2DModel
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from qframe.packing import pad
from qframe.types import Grid
from qframe_qwen_per_sample_rope.transformer import PerSampleRopeTransformer

_CHANNELS, _HEAD = 64, 64
_TEXTS = {"text 77": (77, 77, 77, 77), "text mixed": (77, 31, 120, 54)}


@attrs.frozen(eq=False)
class Batch:
    """Samples packed: tokens [N, C], text [M, D], and the grids and text lengths of each."""

    tokens: Tensor
    text: Tensor
    grids: tuple[tuple[Grid, ...], ...]
    text_lengths: tuple[int, ...]

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(sum(f * h * w for f, h, w in own) for own in self.grids)

    def take(self, samples: Sequence[int]) -> Batch:
        """Some of its samples."""
        tokens, text = self.tokens.split(list(self.lengths)), self.text.split(list(self.text_lengths))
        return Batch(
            torch.cat([tokens[i] for i in samples]),
            torch.cat([text[i] for i in samples]),
            tuple(self.grids[i] for i in samples),
            tuple(self.text_lengths[i] for i in samples),
        )


def run_packed(network: PerSampleRopeTransformer, batch: Batch) -> None:
    """One forward and backward pass of the packed entry."""
    time = torch.full((len(batch.grids),), 0.5, device=batch.tokens.device)
    out = network.packed(batch.tokens, batch.text, time, grids=batch.grids, text_lengths=batch.text_lengths)
    out.float().square().mean().backward()


def run_stock(network: nn.Module, batch: Batch, *, masked: bool = False) -> None:
    """One forward and backward pass of diffusers' transformer over the batch, padded to its longest sample.

    masked: pass a mask even where prompts are equal. Of mixed shapes it takes sample 0's positions for all: the
    result is wrong, the work is what a padded pass costs.
    """
    hidden, _ = pad(batch.tokens, batch.lengths)
    text, mask = pad(batch.text, batch.text_lengths)
    if masked and mask is None:
        mask = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)
    out = network(
        hidden_states=hidden,
        encoder_hidden_states=text,
        encoder_hidden_states_mask=mask,
        timestep=torch.full((len(batch.grids),), 0.5, device=hidden.device),
        img_shapes=[list(batch.grids[batch.lengths.index(max(batch.lengths))])],
        return_dict=False,
    )[0]
    out.float().square().mean().backward()


def run_groups(network: nn.Module, groups: Sequence[Batch]) -> None:
    """One forward and backward pass of diffusers' transformer per group of one shape."""
    for group in groups:
        run_stock(network, group)


def medians(contestants: dict[str, Callable[[], None]], repeats: int, device: torch.device) -> dict[str, float]:
    """Seconds of each, the median of `repeats` turns after one that does not count."""
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(repeats + 1):
        for name, run in contestants.items():
            started = _now(device)
            run()
            seconds = _now(device) - started
            if turn:
                found[name].append(seconds)
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def networks(width: int, layers: int, device: torch.device, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    """Diffusers' transformer and ours around the same frozen layers, both with the same LoRA on the attention."""
    torch.manual_seed(0)
    with device:
        stock = QwenImageTransformer2DModel(
            in_channels=_CHANNELS,
            out_channels=_CHANNELS // 4,
            num_layers=layers,
            attention_head_dim=_HEAD,
            num_attention_heads=width // _HEAD,
            joint_attention_dim=width,
            axes_dims_rope=(16, 24, 24),
        ).to(dtype)
    stock.requires_grad_(False)
    names = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
    inject_adapter_in_model(LoraConfig(r=16, target_modules=names), stock)
    return stock.train(), PerSampleRopeTransformer.adopt(stock)


@click.command()
@click.option("--size", default=8, show_default=True, help="s: sides of the small pictures, in tokens")
@click.option("--width", default=256, show_default=True, help="width of the transformer, a multiple of 64")
@click.option("--layers", default=4, show_default=True)
@click.option("--repeats", default=5, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--dtype", default="float32", show_default=True, type=click.Choice(["float32", "bfloat16"]))
def main(size: int, width: int, layers: int, repeats: int, device: str, dtype: str) -> None:
    """Packed against two uniform groups, against padding with a mask, and a uniform batch against diffusers."""
    where, kind = torch.device(device), {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]
    stock, own = networks(width, layers, where, kind)
    small, large = ((1, size, size),) * 2, ((1, 2 * size, 2 * size),) * 2
    grids = (small, small, large, large)
    rows = sum(f * h * w for own_grids in grids for f, h, w in own_grids)
    click.echo(f"s = {size}, width {width}, {layers} layers, {device} {dtype}, medians of {repeats}")
    for name, texts in _TEXTS.items():
        tokens = torch.randn(rows, _CHANNELS, device=where, dtype=kind)
        batch = Batch(tokens, torch.randn(sum(texts), width, device=where, dtype=kind), grids, texts)
        groups = batch.take([0, 1]), batch.take([2, 3])
        uniform = batch.take([2, 2, 3, 3]) if len(set(texts)) == 1 else groups[1]
        seconds = medians(
            {
                "packed": partial(run_packed, own, batch),
                "groups": partial(run_groups, stock, groups),
                "padded": partial(run_stock, stock, batch, masked=True),
                "uniform": partial(run_packed, own, uniform),
                "uniform, diffusers": partial(run_stock, stock, uniform),
            },
            repeats,
            where,
        )
        click.echo(f"{name}: " + ", ".join(f"{key} {value:.3f} s" for key, value in seconds.items()))
        click.echo(f"  packed / two uniform groups through diffusers  {seconds['packed'] / seconds['groups']:.2f}")
        click.echo(f"  packed / padded to the longest, with a mask    {seconds['packed'] / seconds['padded']:.2f}")
        click.echo(
            f"  uniform batch / the same through diffusers     {seconds['uniform'] / seconds['uniform, diffusers']:.2f}"
        )


def _now(device: torch.device) -> float:
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


if __name__ == "__main__":
    main()
