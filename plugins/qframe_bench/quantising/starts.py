"""Starts with quantised weights, each in a process of its own, and measures their time and their host memory."""

from __future__ import annotations

import gc
import multiprocessing
import statistics
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import attrs
import psutil
import torch
from torch import nn

from qframe.compose.loading import Quantisation, load_component
from qframe.compose.stored_weights import DIGESTS, StoredWeights, remembered_digests, weights_key
from qframe.files.host_memory import give_back_memory
from qframe.files.model_folder import ModelFolder
from qframe.interfaces import FrozenLinear, Quantiser
from qframe.interfaces.quantiser import flattened
from qframe.plugins.registry import load_registry
from qframe_bench.measuring import Ratio, Seconds, table
from qframe_bench.quantising.network import BlocksComponent, write_model

_CPU = torch.device("cpu")
_SETTLED = 2.5
"""Seconds that files must be old before their digests are remembered, and a little more."""
_EVERY = 0.002
"""Seconds between two readings of the memory."""

AT_ONCE = "all layers tested first, then quantised"
UNSTORED = "quantised, not stored"
FIRST = "first start: quantised and stored"
SECOND = "second start: mapped"
MOVED = "second start elsewhere: source and result hashed"


@attrs.frozen(kw_only=True)
class Start:
    """What one start took.

    Attributes:
        wall: Seconds on the clock.
        processor: Seconds of processor time.
        peak: The most bytes of anonymous memory above what the process had before.
        left: The bytes of anonymous memory above that when everything was loaded.
        result: The bytes of the quantised weights.
    """

    wall: float
    processor: float
    peak: int
    left: int
    result: int


@attrs.frozen(kw_only=True)
class StartsReport:
    """The result of one run of `qframe bench quantise`.

    Attributes:
        source: The bytes of the weights before they are quantised.
        result: The bytes of the quantised weights.
        starts: The medians of each kind of start, by its name.
        ratios: What is promised of them.
    """

    source: int
    result: int
    starts: Mapping[str, Start]
    ratios: tuple[Ratio, ...]

    def __str__(self) -> str:
        rows = [
            [
                name,
                f"{one.wall:.2f} s",
                f"{one.processor:.2f} s",
                f"{one.peak / 1e6:.0f} MB",
                f"{one.peak / self.result:.2f}",
                f"{one.left / self.result:.2f}",
            ]
            for name, one in self.starts.items()
        ]
        return "\n".join(
            [
                f"weights of {self.source / 1e6:.0f} MB in bfloat16, {self.result / 1e6:.0f} MB quantised",
                table(["", "wall", "processor", "peak", "peak / result", "left / result"], rows),
                "",
                *map(str, self.ratios),
            ]
        )


def compare_starts(use: str, weights: str, *, blocks: int, width: int, repeats: int) -> StartsReport:
    """Start in every way, in turns.

    Args:
        use: The registered name of the quantiser.
        weights: Its option `weights`.
        blocks: How many blocks the network has.
        width: The width of the network.
        repeats: How often each way is measured.
    """
    found: dict[str, list[Start]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "model"
        write_model(model, blocks=blocks, width=width)
        source = sum(file.stat().st_size for file in model.rglob("*.safetensors"))
        time.sleep(_SETTLED)
        for turn in range(repeats):
            root = Path(scratch) / f"quantised-{turn}"
            for name in (AT_ONCE, UNSTORED, FIRST, SECOND, MOVED):
                if name == MOVED:  # on another machine the files are the same, and nobody has hashed them
                    (root / DIGESTS).unlink(missing_ok=True)
                found.setdefault(name, []).append(_in_process(model, root, use, weights, name))
    starts = {name: _median(ones) for name, ones in found.items()}
    result = starts[FIRST].result
    ratios = (
        Ratio(name="second start / first, processor time", value=_times(found, SECOND, FIRST), most=0.1),
        Ratio(name="second start elsewhere / first, processor time", value=_times(found, MOVED, FIRST)),
        Ratio(
            name="peak above the result / a block before quantising, not stored",
            value=(starts[UNSTORED].peak - result) * blocks / source,
            most=2.0,
        ),
        Ratio(name="peak of quantising / result, stored", value=starts[FIRST].peak / result, most=1.15),
    )
    return StartsReport(source=source, result=result, starts=starts, ratios=ratios)


def _times(found: Mapping[str, Sequence[Start]], one: str, other: str) -> float:
    return statistics.median(a.processor / b.processor for a, b in zip(found[one], found[other], strict=True))


def _median(ones: Sequence[Start]) -> Start:
    def middle(name: str) -> Any:
        return statistics.median(getattr(one, name) for one in ones)

    names = [field.name for field in attrs.fields(Start)]
    return Start(**{name: middle(name) for name in names})


def _in_process(model: Path, root: Path, use: str, weights: str, name: str) -> Start:
    """Start in a new process, and return what it took."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_start, args=(there, model, root, use, weights, name))
    process.start()
    there.close()
    try:
        found: Start = Start(**here.recv())
    finally:
        process.join()
    return found


def _start(connection: Connection, model: Path, root: Path, use: str, weights: str, name: str) -> None:
    """The work of the new process."""
    quantiser = _quantiser(use, weights)
    # Once without measuring: what the libraries load and allocate at their first use is no cost of a start's weights.
    quantiser.quantise(nn.Sequential(nn.Linear(64, 64, dtype=torch.bfloat16)).requires_grad_(False))
    folder = ModelFolder("bench", model)
    work = _at_once if name == AT_ONCE else _loaded
    with _Meter() as meter:
        network = work(folder, root if name in (FIRST, SECOND, MOVED) else None, quantiser)
        meter.finish()
    result = sum(
        tensor.nbytes
        for layer in network.modules()
        if isinstance(layer, FrozenLinear)
        for parameter in layer.parameters()
        for tensor in flattened(parameter).values()
    )
    connection.send(attrs.asdict(meter.start(result)))
    connection.close()


def _quantiser(use: str, weights: str) -> Quantiser:
    registry = load_registry()
    component = registry.component("quantiser", use)
    options = registry.resolve(component, "options")
    made: Quantiser = registry.resolve(component)(options(weights=weights))
    made.prepare(_CPU)
    return made


def _loaded(model: ModelFolder, root: Path | None, quantiser: Quantiser) -> nn.Module:
    """Load and quantise as `Composition.load` does, with the fingerprint of the source where weights are stored."""
    store = None
    if root is not None:
        digests = remembered_digests(root)
        named = BlocksComponent.ingredients(attrs.evolve(model, digests=digests), None)
        digests.save()
        key = weights_key({**named, "quantised": quantiser.ingredient()})
        store = StoredWeights(root=root, key=key, about={"role": "denoiser"})
    quantisation = Quantisation(quantiser=quantiser, device=_CPU, store=store)
    part = load_component(
        BlocksComponent, model, None, quantisation, device=_CPU, dtype=torch.bfloat16, role="denoiser", name="bench"
    )
    network: nn.Module = part.network
    return network


def _at_once(model: ModelFolder, root: Path | None, quantiser: Quantiser) -> nn.Module:
    """Quantise as qframe did before: every layer is tested first, and replaced ones live as long as the list."""
    network = BlocksComponent.load(model, None, device=_CPU, dtype=torch.bfloat16).network
    layers = quantiser.layers(network)
    assert all(bool(torch.isfinite(layer.weight).all()) for layer in layers.values())
    for name, layer in layers.items():
        found = quantiser.quantised(name, layer)
        assert found is not None
        network.set_submodule(name, found)
    return network


class _Meter:
    """Measures time, and the anonymous memory of this process, in a context."""

    def __init__(self) -> None:
        gc.collect()
        give_back_memory()
        self._before = _anonymous()
        self._peak = self._before
        self._over = threading.Event()
        self._watch = threading.Thread(target=self._read, daemon=True)
        self._seconds = Seconds(0.0, 0.0)
        self._left = 0

    def __enter__(self) -> _Meter:
        self._watch.start()
        self._began = (time.perf_counter(), time.process_time())
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._watch.join()

    def finish(self) -> None:
        """Read the clocks, and the memory that is left."""
        wall, processor = self._began
        self._seconds = Seconds(time.perf_counter() - wall, time.process_time() - processor)
        self._left = _anonymous() - self._before

    def start(self, result: int) -> Start:
        """Return what was measured; `result` is the bytes of the quantised weights."""
        return Start(
            wall=self._seconds.wall,
            processor=self._seconds.processor,
            peak=max(self._peak - self._before, 0),
            left=max(self._left, 0),
            result=result,
        )

    def _read(self) -> None:
        while not self._over.wait(_EVERY):
            self._peak = max(self._peak, _anonymous())


def _anonymous() -> int:
    """Return the bytes of anonymous memory of this process; where the system does not tell, all resident bytes."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))
    except (OSError, StopIteration):
        return int(psutil.Process().memory_info().rss)
