"""Merges LoRAs into the denoiser of a composition, and writes the result as a new model folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from qframe.adapters import add_updates, check_files, layer_names, read_fitting
from qframe.compose import Composition
from qframe.errors import ConfigError, WeightsError
from qframe.files.storage import file_digest, publish_folder
from qframe.interfaces import Denoiser

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def write_merged(
    composition: Composition,
    loras: Sequence[tuple[Path, float]],
    target: Path,
    *,
    dtype: torch.dtype | None = None,
) -> None:
    """Merge LoRAs into the denoiser of `composition`, and publish the result as a new model folder.

    The sums are computed on the CPU in float32. The folder appears whole or not at all.

    Args:
        composition: Names the denoiser and its model.
        loras: LoRA files, each with its scale.
        target: The folder to publish, which must not exist; `denoiser.model` can name it afterwards.
        dtype: The dtype in which the weights are written; by default the one that the model's files have.

    Raises:
        WeightsError: `target` exists, or a LoRA does not fit, which is told before weights are read if it can be; or
            the files do not read back as the merged weights.
        ConfigError: No dtype was given, and it cannot be told from the model's files.
    """
    if target.exists():
        raise WeightsError(f"{target}: exists already, and nothing is overwritten", "Give another --output.")
    outline = check_files(composition, [file for file, _ in loras])
    if outline is not None:
        dtype = dtype or stored_dtype(composition, layer_names(outline.module))
    if dtype is None:
        raise ConfigError(
            f"model {composition.model('denoiser').name!r}: the dtype of its weights cannot be told yet",
            "Say --dtype bfloat16 or float32.",
        )
    denoiser: Denoiser = composition.classes["denoiser"].load(
        composition.model("denoiser"), composition.options("denoiser"), device=torch.device("cpu"), dtype=dtype
    )
    module = denoiser.module
    add_updates(module, [(read_fitting(module, file), scale) for file, scale in loras])
    about = {
        "base_model": composition.model("denoiser").name,
        "weights_licence": composition.licence,
        "merged": [{"lora": file.name, "sha256": file_digest(file), "weight": scale} for file, scale in loras],
    }

    def write(folder: Path) -> None:
        denoiser.save(folder)
        _check_written(target, folder, module)
        (folder / "about.json").write_text(json.dumps(about, indent=1), encoding="utf-8")

    publish_folder(target, write, expected_bytes=sum(p.nbytes for p in module.parameters()))


def stored_dtype(composition: Composition, layers: Sequence[str]) -> torch.dtype | None:
    """Return the dtype in which the model's files hold the weights of these layers.

    None if the files are not on this machine, have other names for the weights, or hold them in another form.
    """
    wanted = {f"{name}.weight" for name in layers}
    for file in sorted(composition.model("denoiser").folder.rglob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118 - not a mapping
                if key in wanted:
                    return _DTYPES.get(opened.get_slice(key).get_dtype())
    return None


def _check_written(target: Path, folder: Path, module: nn.Module) -> None:
    """Raise WeightsError if files do not hold the weights of `module`. Files with other names are not checked."""
    state = module.state_dict()
    left = set(state)
    for key, tensor in _tensors(folder):
        if key in left:
            left.remove(key)
            if not torch.equal(tensor, state[key].cpu()):
                raise WeightsError(f"{target}: {key} does not read back as it is in memory")
    if left and len(left) < len(state):
        raise WeightsError(f"{target}: {min(left)} and {len(left) - 1} more weights were not written")


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    for file in sorted(folder.rglob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118 - not a mapping
                yield key, opened.get_tensor(key)
