"""Compares the speed of the packed forward and backward pass with that of one large product of matrices.

It also adds up how long each kind of operation takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import attrs
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from qframe.interfaces import Grid
from qframe_bench.measuring import matmul_ceiling, measure, table
from qframe_bench.transformer.contestants import networks, random_batch, run_packed
from qframe_bench.transformer.settings import Settings

_CEILING_SIDE = {"cpu": 1024}
_META = torch.device("meta")
# An operation or kernel belongs to the first component one of whose words is part of its name.
_COMPONENTS = {
    "attention": ("attention", "flash", "fmha", "softmax", "bmm"),
    "linear layers": ("mm", "gemm", "cutlass", "nvjet"),
    "copies": ("copy", "cat", "index", "memcpy", "memset"),
}
_REST = "norms, modulation, rotation"


@attrs.frozen(kw_only=True)
class Profile:
    """The speed of one forward and backward pass, and the time of its components.

    Attributes:
        operations: The number of multiplications and additions in all products of matrices of the pass.
        seconds: How long the pass took.
        ceiling: The operations per second that one large product of matrices reaches on the same device.
        components: The seconds that each kind of operation took, such as "attention" or "copies".
    """

    operations: int
    seconds: float
    ceiling: float
    components: dict[str, float]

    @property
    def utilisation(self) -> float:
        """The operations per second of the pass, divided by `ceiling`."""
        return self.operations / self.seconds / self.ceiling

    def as_text(self) -> str:
        """Return a line with the operations per second, and below it a table with a row per component."""
        total = sum(self.components.values())
        rows = [[name, f"{seconds:.3f} s", f"{seconds / total:.0%}"] for name, seconds in self.components.items()]
        return (
            f"{self.operations / 1e12:.3f} TFLOP in {self.seconds:.3f} s: {self.operations / self.seconds / 1e12:.3f} "
            f"TFLOP/s, {self.utilisation:.0%} of the {self.ceiling / 1e12:.3f} that one large product reaches\n"
            f"{table(['component', 'time', 'fraction'], rows)}"
        )


def profiled(settings: Settings, network: Any, grids: Sequence[tuple[Grid, ...]], texts: Sequence[int]) -> Profile:
    """Measure one packed forward and backward pass over a batch of random samples.

    Args:
        settings: The sizes, device and dtype of the network.
        network: The packed network that `networks` builds.
        grids: For each sample the grids of its pictures, each (frames, rows, columns) in tokens.
        texts: The number of tokens of each sample's prompt.
    """
    device, dtype = torch.device(settings.device), getattr(torch, settings.dtype)
    run = partial(run_packed, network, random_batch(settings, grids, texts))
    seconds = measure({"packed": run}, repeats=settings.repeats, device=device)["packed"].seconds
    return Profile(
        operations=operations(settings, grids, texts),
        seconds=seconds,
        ceiling=matmul_ceiling(device, dtype, side=_CEILING_SIDE.get(device.type, 8192)),
        components=components(run, device),
    )


def operations(settings: Settings, grids: Sequence[tuple[Grid, ...]], texts: Sequence[int]) -> int:
    """Count the multiplications and additions in all products of matrices of one packed forward and backward pass.

    The pass runs on torch's meta device, which computes no numbers. What a kernel or gradient checkpointing recomputes
    is not counted.

    Args:
        settings: The sizes of the network.
        grids: For each sample the grids of its pictures, each (frames, rows, columns) in tokens.
        texts: The number of tokens of each sample's prompt.
    """
    plain = attrs.evolve(settings, gradient_checkpointing=False)
    _, network = networks(plain, _META)
    batch = random_batch(plain, grids, texts, _META)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run_packed(network, batch)
    found: int = counter.get_total_flops()
    return found


def components(run: partial[None], device: torch.device) -> dict[str, float]:
    """Call `run` once under torch's profiler, and return the seconds that each kind of operation took.

    On CUDA the times of kernels are added up, on a CPU those of operations.
    """
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as profiler:
        run()
        if on_gpu:
            torch.cuda.synchronize(device)
    found = dict.fromkeys([*_COMPONENTS, _REST], 0.0)
    for event in profiler.key_averages():
        if on_gpu and event.device_type.name != "CUDA":
            continue
        microseconds = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        found[component_of(event.key)] += microseconds / 1e6
    return found


def component_of(operation: str) -> str:
    """Return the component, such as "attention" or "copies", that an operation or kernel of this name belongs to."""
    name = operation.lower()
    return next((part for part, words in _COMPONENTS.items() if any(word in name for word in words)), _REST)
