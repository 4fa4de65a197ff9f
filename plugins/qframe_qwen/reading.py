"""Reads weights, tensor by tensor, into the network that a configuration describes: single files, float8 with scales.

diffusers reads folders alone for some of the classes, and knows none of the names under which other programs keep
scales.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import Tensor

from qframe.errors import WeightsError
from qframe.files.model_folder import ModelFolder
from qframe.plugins.distribution import install_hint
from qframe_qwen.named_tensors import Named, refuse_misfits

_BLOCK = 128  # the side of the blocks that have a scale of their own, as in quantization_config.weight_block_size
_FLOAT8 = ("F8_E4M3", "F8_E5M2")


def read_weights(
    cls: Any,
    config: Mapping[str, Any],
    files: Iterable[Path],
    stored: Named,
    dtype: torch.dtype,
    name: str,
    subfolder: str,
    advice: str | None = None,
) -> Any:
    """Make a network, and read its weights from files. A weight in float8 is multiplied by its scale.

    Args:
        cls: The network's class, of diffusers or transformers.
        config: The configuration of the network.
        files: The safetensors files.
        stored: The sorted tensors of the files.
        dtype: The dtype that the weights are converted to.
        name: How messages name the model and the component.
        subfolder: The component's subfolder.
        advice: What to do next where the weights are of another size than the configuration; None for general advice.

    Raises:
        WeightsError: Weights and network do not fit each other, or a scale has a form that is not read.
    """
    if subfolder == "text_encoder":  # transformers renames weights of older files, and ties some
        state = _read(files, stored, dtype, name)
        settings = cls.config_class.from_dict(dict(config))
        module, report = cls.from_pretrained(
            None, config=settings, state_dict=state, dtype=dtype, output_loading_info=True
        )
        shapes = {str(key[0]): (key[1], key[2]) for key in report["mismatched_keys"]}
        refuse_misfits(name, report["missing_keys"], shapes, report["unexpected_keys"])
        return module
    with init_empty_weights():
        network = cls.from_config(dict(config))
    expected = network.state_dict()
    names = _vae_names(stored.weights) if subfolder == "vae" else {key: key for key in stored.weights}
    found = {own: stored.weights[key].shape for own, key in names.items()}
    differ = {key: (found[key], tuple(own.shape)) for key, own in expected.items() if key in found}
    refuse_misfits(
        name,
        expected.keys() - found.keys(),
        {key: shapes for key, shapes in differ.items() if shapes[0] != shapes[1]},
        found.keys() - expected.keys(),
        advice,
    )
    state = _read(files, stored, dtype, name)
    network.load_state_dict({own: state[key] for own, key in names.items()}, assign=True)
    return network


def _read(files: Iterable[Path], stored: Named, dtype: torch.dtype, name: str) -> dict[str, Tensor]:
    """Read the weights from their files, by their names without prefix, in `dtype`."""
    lone = sorted(set(stored.scales) - set(stored.weights))
    if lone:
        raise WeightsError(
            f"{name}: there are scales of {len(lone)} weights that are not there: {', '.join(lone[:3])}",
            "Take the whole file from where it was published.",
        )
    found: dict[str, Tensor] = {}
    scales: dict[str, Tensor] = {}
    beside = {scale: weight for weight, scale in stored.scales.items()}
    for file in files:
        with safe_open(file, framework="pt", device="cpu") as opened:
            for full in opened.keys():  # noqa: SIM118  # it is no mapping
                own = full.removeprefix(stored.prefix)
                if full in stored.elsewhere:
                    continue
                if own in beside:
                    scales[beside[own]] = opened.get_tensor(full)
                elif own in stored.weights:
                    value = opened.get_tensor(full)
                    found[own] = value if own in stored.scales else value.to(dtype)
    for weight, scale in scales.items():
        if stored.weights[weight].dtype not in _FLOAT8:
            if scale.numel() == 0 or bool((scale == 1).all()):
                found[weight] = found[weight].to(dtype)
                continue
            raise WeightsError(
                f"{name}: {weight} has a scale ({stored.scales[weight]}), and is stored as "
                f"{stored.weights[weight].dtype}: only float8 is read with scales",
                "Use the version of the model in bfloat16 or float8.",
            )
        found[weight] = _scaled(found[weight], scale, f"{name}: {stored.scales[weight]}").to(dtype)
    return found


def _scaled(weight: Tensor, scale: Tensor, name: str) -> Tensor:
    """Multiply a weight in float8 by its scale: one number, one for each row, or one for each block of 128 x 128."""
    wide = weight.float()
    if scale.numel() == 0:
        return wide  # some files keep an empty scale, which stands for 1
    if not scale.is_floating_point() or scale.dtype == torch.float8_e8m0fnu:
        raise WeightsError(
            f"{name} is stored as {str(scale.dtype).removeprefix('torch.')}, and only scales in float32, float16 and "
            "bfloat16 are read",
            "Use the version of the model in bfloat16, or in float8 with a scale for each weight.",
        )
    factor = scale.float()
    if factor.numel() == 1:
        return wide * factor.reshape(())
    rows = wide.shape[0]
    if factor.shape in ((rows,), (rows, 1)):
        return wide * factor.reshape(rows, *[1] * (wide.ndim - 1))
    if wide.ndim == 2 and factor.shape == tuple(-(-side // _BLOCK) for side in wide.shape):
        full = factor.repeat_interleave(_BLOCK, 0).repeat_interleave(_BLOCK, 1)
        return wide * full[: wide.shape[0], : wide.shape[1]]
    raise WeightsError(
        f"{name} has the shape {list(scale.shape)} for a weight of {list(weight.shape)}: qframe reads one scale for a "
        f"weight, for each row, or for each block of {_BLOCK} x {_BLOCK}",
        "Use the version of the model in bfloat16, or in float8 with a scale for each weight.",
    )


def _vae_names(stored: Iterable[str]) -> dict[str, str]:
    """Return for each weight of a VAE its name in the file by diffusers' name; ComfyUI has the names of Wan's code."""
    names = {name: name for name in stored}
    if "decoder.conv1.weight" not in names:
        return names
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    converted: dict[str, str] = convert_wan_vae_to_diffusers(names)
    return converted


def load_gguf(cls: Any, model: ModelFolder, subfolder: str, dtype: torch.dtype) -> Any:
    """Load a transformer from a GGUF file by diffusers' quantiser: its weights stay in blocks, and are for sampling.

    Raises:
        WeightsError: A library is missing, the network's class cannot be read from GGUF, or the file cannot be read.
    """
    from diffusers import GGUFQuantizationConfig

    if subfolder != "transformer" or not hasattr(cls, "from_single_file"):
        raise WeightsError(
            f"model {model.name!r}: {cls.__name__} is not read from GGUF files",
            "Only the denoiser 'qwen-image' is. Use weights in the safetensors format.",
        )
    try:
        network = cls.from_single_file(
            str(model.file),
            quantization_config=GGUFQuantizationConfig(compute_dtype=dtype),
            config=str(model.folder),
            subfolder=subfolder,
            dtype=dtype,
            local_files_only=True,
        )
    except ImportError as error:
        raise WeightsError(f"model {model.name!r}: {error}", f"{install_hint('gguf')}.") from error
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # diffusers raises whatever the content of the file leads to
        raise WeightsError(
            f"model {model.name!r} cannot be loaded with {subfolder}/config.json: {type(error).__name__}: {error}",
            "Take the file and --model from the same model, or use weights in the safetensors format.",
        ) from error
    missing = [key for key, value in network.state_dict().items() if value.is_meta]
    refuse_misfits(f"model {model.name!r}", missing, {}, ())
    return network
