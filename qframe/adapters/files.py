"""Writes LoRA files in the layouts of other programs, and reads LoRA files of these programs and of qframe.

In the diffusers layout, alpha is written into the metadata of the file. If it were missing, diffusers would take the
rank for alpha, and scale the update wrongly without an error.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from qframe.adapters.header import StoredLora, open_lora, refuse, stored_lora
from qframe.adapters.layer import LoraLayer
from qframe.adapters.layouts import by_flat_name, flattened, tensor_name
from qframe.adapters.lycoris import as_lora
from qframe.adapters.notes import METADATA_KEY
from qframe.config.schema import LoraLayout
from qframe.errors import ConfigError, QframeError, WeightsError
from qframe.files.storage import write_file

log = logging.getLogger(__name__)

NAMES_KEY = "qframe_layers"
"""The metadata key under which a file with flattened names ("_" for ".") keeps the full names of its layers."""

METADATA_OF_LAYOUTS = frozenset({"format", METADATA_KEY, NAMES_KEY})
"""The metadata keys that depend on a file's layout, and must not be copied into a file of another layout."""

_LENGTH = 8
"""The number of bytes at the beginning of a safetensors file that give the length of its header."""


def save_lora(
    file: Path,
    layers: Mapping[str, LoraLayer],
    *,
    layout: LoraLayout = "diffusers",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a LoRA file in the layout of another program.

    The new file is read back and compared with `layers`. Only then does it replace, in one step, a file that was at
    this path before.

    Args:
        file: The file to write.
        layers: The updates of the LoRA, by the full name of the network's layer that each of them changes.
        layout: The program in whose layout the tensors are named.
        metadata: More metadata for the file's header.

    Raises:
        ConfigError: `layers` is empty, or the layout cannot store the magnitudes of DoRA, or would give two layers the
            same name.
        WeightsError: What was read back differs from `layers`. A file that was there before stays as it was.
    """
    if not layers:
        raise ConfigError(f"{file}: there is no trained adapter to write", "Train one first.")
    tensors: dict[str, Tensor] = {}
    homeless = []
    for name, layer in layers.items():
        for part, tensor in {**layer.tensors, "alpha": torch.tensor(layer.alpha)}.items():
            key = tensor_name(layout, name, part)
            if key is not None:
                tensors[key] = tensor.detach().cpu().contiguous()
            elif part != "alpha":
                homeless.append(name)
    if homeless:
        raise ConfigError(
            f"{file}: the layout {layout!r} has no place for the magnitudes of DoRA, which {len(homeless)} layers have "
            f"({', '.join(homeless[:3])}, ...)",
            "Write it as 'diffusers', or merge it into the model: qframe lora merge.",
        )
    header = {"format": "pt", **(metadata or {}), **_scale_metadata(file, layout, layers)}

    def check(written: Path) -> None:
        try:
            read = read_lora(written)
        except QframeError as error:
            raise WeightsError(f"{file}: what was written cannot be read back: {error.message}") from error
        wrong = sorted(read.keys() ^ layers.keys()) or [n for n in layers if not layers[n].equals(read[n])]
        if wrong:
            raise WeightsError(
                f"{file}: what was written does not read back as the weights in memory: {', '.join(wrong[:5])}",
                "The disk or the memory may be faulty. A former file was left as it is.",
            )

    write_file(file, _in_order(save(tensors, metadata=header)), check=check)


def _in_order(data: bytes) -> bytes:
    """Return the bytes of a safetensors file with its metadata sorted by key.

    safetensors writes metadata in a different order every time, so that the files of two equal runs would differ.
    """
    end = _LENGTH + int.from_bytes(data[:_LENGTH], "little")
    header = json.loads(data[_LENGTH:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _LENGTH)  # tensors begin at a multiple of 8 bytes
    return b"".join((len(text).to_bytes(_LENGTH, "little"), text, memoryview(data)[end:]))


def _scale_metadata(file: Path, layout: LoraLayout, layers: Mapping[str, LoraLayer]) -> dict[str, str]:
    if layout == "diffusers":
        return {METADATA_KEY: json.dumps(peft_metadata(layers), sort_keys=True)}
    if layout == "comfyui":
        return {}  # alpha is stored with each layer; if it were in the metadata too, diffusers would apply it twice
    clashes = [" and ".join(names) for names in by_flat_name(layers).values() if len(names) > 1]
    if clashes:
        raise ConfigError(f"{file}: the layout {layout!r} does not tell apart {clashes[0]}", "Choose another layout.")
    return {NAMES_KEY: json.dumps(list(layers))}


def peft_metadata(layers: Mapping[str, LoraLayer]) -> dict[str, Any]:
    """Return peft's configuration of a LoRA, as diffusers stores it: its keys begin with the name of the network."""
    first = next(iter(layers.values()))
    config: dict[str, Any] = {
        "r": first.rank,
        "lora_alpha": first.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "peft_type": "LORA",
        "target_modules": sorted(layers),
        "use_dora": first.magnitude is not None,
        "use_rslora": False,
    }
    config["rank_pattern"] = {name: layer.rank for name, layer in layers.items() if layer.rank != first.rank}
    config["alpha_pattern"] = {name: layer.alpha for name, layer in layers.items() if layer.alpha != first.alpha}
    return {f"transformer.{key}": value for key, value in config.items()}


def read_lora(file: Path, *, names: Iterable[str] | None = None) -> dict[str, LoraLayer]:
    """Read a LoRA file in the layout of diffusers, peft, ComfyUI, kohya or DiffSynth, or without a prefix in its names.

    A LoKr or a LoHa is read as the LoRA that has the same update, in float32.

    Args:
        file: The LoRA file.
        names: The full names of the network's layers. They are needed to read a file with flattened names (the layout
            of kohya), unless qframe wrote the file and so stored the full names in its metadata. They also tell whether
            the names in the file have an unknown prefix: it is taken off if all layers are the network's then.

    Returns:
        The updates of the LoRA, by the full name of the network's layer that each of them changes, in the dtype of the
        file.

    Raises:
        WeightsError: The file cannot be used, because a tensor belongs to no layer, or a matrix lacks its counterpart,
            or shapes do not fit together, or an alpha or a value is not finite. The message names the tensors.
        UntrustedError: The file, its header or its number of tensors is larger than that of any LoRA.
    """
    with open_lora(file) as opened:
        stored = stored_lora(file, opened)
        full = _full_names(stored, None if names is None else tuple(names))
        layers: dict[str, LoraLayer] = {}
        problems = []
        for layer in stored.layers:
            parts = {part: opened.get_tensor(t.key) for part, t in layer.parts.items() if part != "alpha"}
            problems += [
                f"{layer.parts[part].key}: holds values that are not finite"
                for part, tensor in parts.items()
                if not bool(torch.isfinite(tensor.float()).all())
            ]
            down, up = (parts["down"], parts["up"]) if layer.kind == "LoRA" else as_lora(parts)
            layers[full[layer.name]] = LoraLayer(down, up, layer.alpha, parts.get("magnitude"))
    refuse(file, problems)
    return layers


def _full_names(stored: StoredLora, names: tuple[str, ...] | None) -> dict[str, str]:
    """Return the full name of each layer by the name that the file has for it."""
    flat = {layer.name for layer in stored.layers if layer.flat}
    full = {layer.name: layer.name for layer in stored.layers if layer.name not in flat}
    if names is not None:
        full = _without_prefix(stored.file, full, frozenset(names))
    if not flat:
        return full
    known = _recorded_names(stored) if names is None else names
    if known is None:
        raise WeightsError(
            f"LoRA file {stored.file}: its layers are spelled with '_' for '.' ({min(flat)}), and only the network "
            "that it was made for tells their names",
            "Name the model (--model, --family); from Python, pass the names of the network's layers.",
        )
    spelled, dotted = by_flat_name(known), set(full.values())
    problems = []
    for name in sorted(flat):
        match spelled.get(name, []):
            case [only] if only not in dotted:
                full[name] = only
            case []:
                problems.append(f"{name}: the network has no such layer")
            case several:
                problems.append(f"{name}: may be any of {', '.join(several)}")
    refuse(stored.file, problems, hint="It was made for another network, or its names begin in an unknown way.")
    return full


def _without_prefix(file: Path, full: dict[str, str], names: frozenset[str]) -> dict[str, str]:
    """Take an unknown prefix off the layers that the network does not have, if all of them are its layers then."""
    strange = [name for name in full if name not in names]
    if not strange:
        return full
    parts = strange[0].split(".")
    for length in range(1, len(parts)):
        prefix = ".".join(parts[:length]) + "."
        bare = {name: name.removeprefix(prefix) for name in strange}
        found = set(bare.values()) & names
        if len(found) == len(strange) and not found & (full.keys() - bare.keys()):
            log.warning("LoRA file %s: the names of its layers begin with %r, which was taken off", file, prefix)
            return full | bare
    return full


def _recorded_names(stored: StoredLora) -> tuple[str, ...] | None:
    """Return the full names that a file of qframe keeps in its metadata; None if it keeps none that fit its layers."""
    try:
        names = json.loads(stored.metadata.get(NAMES_KEY, "[]"))
    except (ValueError, RecursionError):
        return None
    flat = {layer.name for layer in stored.layers if layer.flat}
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return tuple(names) if {flattened(name) for name in names} == flat else None
