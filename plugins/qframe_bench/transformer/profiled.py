"""Measures how close the packed pass comes to the speed of the machine, and how long each kind of operation takes."""

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
    """What was measured of one forward and backward pass.

    Attributes:
        operations: The number of multiplications and additions in all products of matrices.
        seconds: How long the pass took.
        ceiling: The operations per second of one large product of matrices.
        components: The seconds that each kind of operation took.
    """

    operations: int
    seconds: float
    ceiling: float
    components: dict[str, float]

    @property
    def utilisation(self) -> float:
        """The operations per second as a fraction of the ceiling."""
        return self.operations / self.seconds / self.ceiling

    def as_text(self) -> str:
        """The rates, and below them a table with a row per component."""
        total = sum(self.components.values())
        rows = [[name, f"{seconds:.3f} s", f"{seconds / total:.0%}"] for name, seconds in self.components.items()]
        return (
            f"{self.operations / 1e12:.3f} TFLOP in {self.seconds:.3f} s: {self.operations / self.seconds / 1e12:.3f} "
            f"TFLOP/s, {self.utilisation:.0%} of the {self.ceiling / 1e12:.3f} that one large product reaches\n"
            f"{table(['component', 'time', 'fraction'], rows)}"
        )


def profiled(settings: Settings, network: Any, grids: Sequence[tuple[Grid, ...]], texts: Sequence[int]) -> Profile:
    """Profile the packed forward and backward pass over random samples of these grids and prompt lengths."""
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
    """Count the operations of one forward and backward pass, which runs on the meta device and so computes no numbers.

    What a kernel or gradient checkpointing recomputes is not counted.
    """
    plain = attrs.evolve(settings, gradient_checkpointing=False)
    _, network = networks(plain, _META)
    batch = random_batch(plain, grids, texts, _META)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run_packed(network, batch)
    found: int = counter.get_total_flops()
    return found


def components(run: partial[None], device: torch.device) -> dict[str, float]:
    """The seconds of each component in one pass, added up over kernels on CUDA and over operations on a CPU."""
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
    """The component that an operation or a kernel of this name belongs to."""
    name = operation.lower()
    return next((part for part, words in _COMPONENTS.items() if any(word in name for word in words)), _REST)
