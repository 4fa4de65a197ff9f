"""Implements `qframe.load`, which loads the pipeline of a family with its weights."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from qframe.adapters import check_files, load_lora, remove_loras
from qframe.compose import Composition, compose
from qframe.compose.placement import ORDER, Offload, place
from qframe.config import load_config
from qframe.errors import ConfigError
from qframe.files.lora_file import find_loras
from qframe.interfaces import Denoiser, Loadable
from qframe.preflight.outlook import sampling_outlook
from qframe.progress import SILENT, Progress
from qframe.progress.shown import default_progress
from qframe.sample.pipeline import Pipeline

log = logging.getLogger(__name__)


def load(
    family: str | None = None,
    *,
    model: str | Path | None = None,
    device: str | torch.device | None = None,
    devices: str | Sequence[str] | Mapping[str, str] | None = None,
    offload: Offload | None = None,
    memory: str | None = None,
    dtype: Literal["auto", "float32", "bfloat16"] | torch.dtype | None = None,
    lora: str | Path | Mapping[str | Path, float] | Sequence[str | Path] | None = None,
    components: Mapping[str, Any] | None = None,
    config: str | Path | None = None,
    overrides: str | Sequence[str] = (),
) -> Pipeline:
    """Load the pipeline of a family, with its weights.

    Args:
        family: The name of the family; it may also come from `config`.
        model: A folder in the diffusers layout, a hub id or the name of a bundled model; by default the family's own.
        device: The device that all components compute on.
        devices: Devices to spread the components over, or a device by role, for example {"encoder": "cuda:1"}.
        offload: "model" keeps on the device only the network that computes, "stream" only a few blocks of it.
        memory: How much memory of a GPU may be used, such as "24GB"; by default what is free on it. It decides what is
            offloaded where `offload` is not given; the pictures stay the same.
        dtype: The dtype of the weights.
        lora: LoRA files to put on the denoiser: one, several, or a mapping from file to scale. The folder of a run, or
            another folder with one LoRA, may stand for the file in it.
        components: Components by role: the name of a registered one, as in {"sampler": "heun"}, or an instance, which
            stays on the device where it is.
        config: A TOML file; every other argument overrides its values.
        overrides: One or several texts "key=value", as for `--set`.

    Raises:
        ConfigError: An argument or a value of the configuration cannot be met. It is raised before weights are read.
    """
    by_role = devices if isinstance(devices, Mapping) else {}
    chosen = {role: part for role, part in (components or {}).items() if isinstance(part, str)}
    given = {role: part for role, part in (components or {}).items() if role not in chosen}
    loras = _loras(lora)
    for role in by_role:
        if role not in ORDER:
            raise ConfigError(f"devices: no component {role!r}", f"Known: {', '.join(ORDER)}.")
    values: dict[str, Any] = {
        "model": str(model) if model is not None else None,
        "device": None if device is None else str(device),
        "devices": None if devices is None or by_role else [devices] if isinstance(devices, str) else list(devices),
        "offload": offload,
        "memory": memory,
        "dtype": None if dtype is None else str(dtype).removeprefix("torch."),
        **{role: {"use": chosen.get(role), "device": by_role.get(role)} for role in (*chosen, *by_role)},
    }
    overrides = (overrides,) if isinstance(overrides, str) else overrides
    resolved = load_config(config, family=family, values=values, overrides=overrides)
    return assemble(compose(resolved, given=given), loras, default_progress())


def assemble(composition: Composition, loras: Mapping[Path, float], progress: Progress = SILENT) -> Pipeline:
    """Load the weights of a composition into a pipeline.

    Args:
        composition: The checked composition.
        loras: LoRA files to put on the denoiser, with the scale of each.
        progress: Is told what takes long: quantising, and reading what was stored of it.
    """
    outlook = sampling_outlook(composition)
    for choice in outlook.choices:
        log.info("memory: %s", choice)
    composition = outlook.composition
    if loras:
        check_files(composition, loras)  # so that a wrong file is reported before minutes of loading
    log.info("weights of %s, licence %s", composition.model_name, composition.licence)
    moved = composition.config.offload or "none"
    parts = composition.load(*ORDER, offloaded=moved != "none", progress=progress)
    _put(parts.denoiser, loras)
    loaded: dict[str, Loadable] = {"encoder": parts.encoder, "denoiser": parts.denoiser, "codec": parts.codec}
    loaded = {role: part for role, part in loaded.items() if role not in composition.given}
    resident = {role: composition.resident_blocks(role) for role in ORDER}
    devices = {role: composition.device(role) for role in ORDER}
    return Pipeline(composition, parts, place(loaded, devices, moved, resident=resident))


def _put(denoiser: Denoiser, loras: Mapping[Path, float]) -> None:
    for number, (file, scale) in enumerate(loras.items()):
        load_lora(denoiser.module, file, scale, adapter=f"lora_{number}")
    if denoiser.streamed is not None:
        denoiser.streamed.settle()


def exchange_loras(pipe: Pipeline, loras: Mapping[Path, float]) -> None:
    """Take all LoRAs off the denoiser of a pipeline, and put others on it, without reading its weights again.

    Args:
        pipe: The pipeline. One that streams weights must have been assembled without LoRAs.
        loras: LoRA files to put on the denoiser, with the scale of each.
    """
    denoiser = pipe.parts.denoiser
    if denoiser.streamed is not None:
        denoiser.streamed.rest()
    remove_loras(denoiser.module)
    _put(denoiser, loras)


def _loras(lora: str | Path | Mapping[str | Path, float] | Sequence[str | Path] | None) -> dict[Path, float]:
    """Return the LoRA files that the argument of `load` means, with the scale of each; errors as in `find_loras`."""
    if lora is None:
        return {}
    if isinstance(lora, str | Path):
        return find_loras([(Path(lora), 1.0)])
    if not isinstance(lora, Iterable):
        raise ConfigError(f"lora must be a file, a list of files or a mapping, got {lora!r}", "Give a path.")
    given = lora.items() if isinstance(lora, Mapping) else [(file, 1.0) for file in lora]
    return find_loras((Path(file), scale) for file, scale in given)
