"""LoRAs and the denoiser of a composition: whether they fit, told early; and merged, as a folder of its own."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from qframe.adapters.network import add_updates, layer_names, read_fitting
from qframe.compose import Composition
from qframe.errors import ConfigError, WeightsError
from qframe.files.storage import file_digest, publish_folder
from qframe.interfaces import Denoiser

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def outlined(composition: Composition) -> Denoiser | None:
    """The denoiser on the meta device: its layers' names and shapes, before a weight is read. None if untold."""
    found: Denoiser | None = composition.classes["denoiser"].outline(
        composition.model("denoiser"), composition.options("denoiser"), dtype=torch.float32
    )
    return found


def check_files(composition: Composition, files: Iterable[Path]) -> Denoiser | None:
    """WeightsError names what of `files` does not fit the denoiser, before its weights are read; the outline."""
    outline = outlined(composition)
    if outline is not None:
        for file in files:
            read_fitting(outline.module, file)
    return outline


def write_merged(
    composition: Composition,
    loras: Sequence[tuple[Path, float]],
    target: Path,
    *,
    dtype: torch.dtype | None = None,
) -> None:
    """Publish `target`: the denoiser of `composition` with the LoRAs, each times its weight, added for good.

    It is computed on the CPU, in float32, and written in `dtype`, by default that of the checkpoint. The folder is one
    that `denoiser.model` takes, appears whole or not at all, and must not exist. What can be known is checked before
    a weight is read: WeightsError names the file that does not fit.
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
    add_updates(module, [(read_fitting(module, file), weight) for file, weight in loras])
    about = {
        "base_model": composition.model("denoiser").name,
        "weights_licence": composition.licence,
        "merged": [{"lora": file.name, "sha256": file_digest(file), "weight": weight} for file, weight in loras],
    }

    def write(folder: Path) -> None:
        denoiser.save(folder)
        _check_written(target, folder, module)
        (folder / "about.json").write_text(json.dumps(about, indent=1), encoding="utf-8")

    publish_folder(target, write, expected_bytes=sum(p.nbytes for p in module.parameters()))


def stored_dtype(composition: Composition, layers: Sequence[str]) -> torch.dtype | None:
    """The dtype in which the checkpoint holds these layers; None if their weights are not here, or in another form."""
    wanted = {f"{name}.weight" for name in layers}
    for file in sorted(composition.model("denoiser").folder.rglob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118 - not a mapping
                if key in wanted:
                    return _DTYPES.get(opened.get_slice(key).get_dtype())
    return None


def _check_written(target: Path, folder: Path, module: nn.Module) -> None:
    """WeightsError unless the files hold the network's weights; of a layout with other names nothing is said."""
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
