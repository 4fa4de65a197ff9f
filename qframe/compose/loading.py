"""Loads one component, and quantises its weights if the configuration names a quantiser for them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import nn

from qframe.compose.placement import CPU
from qframe.compose.stored_weights import BlockWriter, StoredWeights, publish_weights
from qframe.errors import ConfigError
from qframe.files.host_memory import give_back_memory
from qframe.files.model_folder import ModelFolder
from qframe.interfaces import Loadable, Quantiser
from qframe.interfaces.quantiser import Keep
from qframe.progress import SILENT, Progress, Stage

_MEGABYTE = 1_000_000


@attrs.frozen(kw_only=True)
class Quantisation:
    """How the weights of a component are quantised while it is loaded.

    Attributes:
        quantiser: The quantiser.
        device: The device on which each layer is quantised.
        store: Where the quantised weights are stored and looked for; None quantises them at every start.
        progress: Is told how far the quantising has come.
    """

    quantiser: Quantiser
    device: torch.device
    store: StoredWeights | None = None
    progress: Progress = SILENT


@torch.inference_mode(False)
def load_component(
    kind: type[Loadable],
    model: ModelFolder,
    options: Any,
    quantisation: Quantisation | None = None,
    *,
    device: torch.device,
    dtype: torch.dtype,
    role: str,
    name: str,
) -> Any:
    """Load a component from its model folder onto a device.

    Weights that are to be quantised are mapped from their files where the component can do that, and then quantised one
    block after another, so that host memory never holds more than the result and a block or two. The weights can be
    trained on, even if the caller has entered `torch.inference_mode()`.

    Args:
        kind: The class of the component.
        model: The model folder.
        options: The settings of the component, an instance of the class that its plugin declares; None if it has none.
        quantisation: How the weights are quantised; None leaves them as they are.
        device: The device for the weights.
        dtype: The dtype of the weights before they are quantised.
        role: The role of the component, for the error.
        name: The registered name of the component, for the error.

    Raises:
        ConfigError: The weights are to be quantised, and the component's `network` is None.
        NumericsError: Weights that are to be quantised are not finite.
    """
    if quantisation is None:
        return kind.load(model, options, device=device, dtype=dtype)
    # In the dtype of the files the weights are mapped; each layer is converted when its turn comes.
    part = kind.load(model, options, device=CPU, dtype=kind.stored_dtype(model, options) or dtype)
    if part.network is None:
        raise ConfigError(
            f"{role}.quantise: {role} {name!r} shows no network to quantise",
            "Leave it out, or choose another component.",
        )
    _convert_others(part.network, quantisation.quantiser, dtype)
    store = quantisation.store
    if store is None:
        _quantise(part.network, quantisation, rest=device, dtype=dtype, role=role)
    else:
        with store.locked() as writable:
            if (store.folder.exists() or writable) and store.found():
                _use_stored(part.network, quantisation.quantiser, store, dtype)
            elif not (writable and _quantise_and_store(part.network, quantisation, device, dtype, role)):
                _quantise(part.network, quantisation, rest=device, dtype=dtype, role=role)
    part.network.to(device)
    give_back_memory()
    return part


def _convert_others(network: nn.Module, quantiser: Quantiser, dtype: torch.dtype) -> None:
    """Convert the parameters of all modules that the quantiser does not get; buffers keep the dtype that they have."""
    chosen = set(quantiser.layers(network).values())
    for module in network.modules():
        if module not in chosen:
            for parameter in module.parameters(recurse=False):
                if parameter.is_floating_point():
                    parameter.data = parameter.data.to(dtype)


def _quantise(
    network: nn.Module,
    quantisation: Quantisation,
    *,
    rest: torch.device,
    dtype: torch.dtype,
    role: str,
    keep: Keep | None = None,
) -> None:
    """Quantise a network, and report megabytes of weights as they are done.

    Args:
        network: The network.
        quantisation: The quantiser and its device.
        rest: The device on which the quantised layers stay.
        dtype: The dtype of the weights before they are quantised.
        role: The role of the component, for the progress.
        keep: Puts the layers of a block elsewhere first, for example into a file.
    """
    sizes = {name: layer.weight.nbytes for name, layer in quantisation.quantiser.layers(network).items()}
    total = max(1, sum(sizes.values()) // _MEGABYTE)
    with quantisation.progress.stage(f"quantising the {role}'s weights (MB)", total) as stage:
        meter = _Meter(stage, sizes, total)

        def kept(block: str, layers: Mapping[str, nn.Module]) -> Mapping[str, nn.Module]:
            found = layers if keep is None else keep(block, layers)
            meter.done(layers)
            return {name: layer.to(rest) for name, layer in found.items()}

        quantisation.quantiser.quantise(network, device=quantisation.device, dtype=dtype, keep=kept)
        meter.finish()


class _Meter:
    """Tells a stage in whole megabytes which layers are done."""

    def __init__(self, stage: Stage, sizes: Mapping[str, int], total: int) -> None:
        self._stage, self._sizes, self._total = stage, sizes, total
        self._bytes = self._told = 0

    def done(self, layers: Mapping[str, nn.Module]) -> None:
        self._bytes += sum(self._sizes[name] for name in layers)
        self._tell(self._bytes // _MEGABYTE)

    def finish(self) -> None:
        self._tell(self._total)

    def _tell(self, megabytes: int) -> None:
        megabytes = min(megabytes, self._total)
        if megabytes > self._told:
            self._stage.advance(megabytes - self._told)
            self._told = megabytes


def _quantise_and_store(
    network: nn.Module, quantisation: Quantisation, rest: torch.device, dtype: torch.dtype, role: str
) -> bool:
    """Quantise and store a network's weights; return False if nothing was quantised because there is no room."""
    quantiser, store = quantisation.quantiser, quantisation.store
    assert store is not None
    outlines = {name: _outline(layer, dtype) for name, layer in quantiser.layers(network).items()}
    sizes = [(quantiser.weight_bytes(name, layer), layer.bias) for name, layer in outlines.items()]
    size = sum(weight + (0 if bias is None else bias.nbytes) for weight, bias in sizes if weight is not None)

    def quantise(draft: Path) -> dict[str, str]:
        writer = BlockWriter(draft, quantiser, outlines, mapped=rest.type == "cpu")
        _quantise(network, quantisation, rest=rest, dtype=dtype, role=role, keep=writer.keep)
        return writer.finish(store.key, store.about)

    return publish_weights(store, size, quantise)


def _use_stored(network: nn.Module, quantiser: Quantiser, store: StoredWeights, dtype: torch.dtype) -> None:
    """Put the stored layers into a network; layers that the quantiser had left as they are get their dtype."""
    stored = store.read()
    for name, layer in quantiser.layers(network).items():
        if name in stored:
            made = quantiser.unpack(_outline(layer, dtype), stored[name])
            network.set_submodule(name, made.eval().requires_grad_(False))
        else:
            layer.to(dtype=dtype)


def _outline(layer: nn.Linear, dtype: torch.dtype) -> nn.Linear:
    """Return a layer of the same shape on the meta device."""
    return nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta", dtype=dtype)
