"""Loads single components of a model folder, after checking their class and weights; no code of the folder is run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from qframe.errors import QframeError, WeightsError
from qframe.files.model_folder import ModelFolder
from qframe.files.weight_header import GGUF, is_standard, variant_of
from qframe.plugins.distribution import install_hint
from qframe_qwen.named_tensors import (
    ANCHORS,
    REFERENCES_AT_ZERO,
    Named,
    refuse_misfits,
    refuse_unreadable,
    sort_names,
)
from qframe_qwen.reading import load_gguf, read_weights

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""The dtypes of weights by the names that safetensors has for them."""


def component_config(model: ModelFolder, subfolder: str, expected: str, *, file: str = "config.json") -> dict[str, Any]:
    """Read the configuration of a component, and check the class that it names and the headers of its weights.

    Args:
        model: The model folder.
        subfolder: The component's subfolder, such as "vae".
        expected: The name of the class that the configuration must name.
        file: The file name of the configuration.

    Raises:
        WeightsError: The file is missing or names another class, shards of weights are missing or do not fit their
            index, or weights are stored in a form that is not read.
    """
    config = model.read_json(f"{subfolder}/{file}")
    named = config.get("_class_name") or next(iter(as_list(config.get("architectures"))), None)
    if named != expected:
        raise WeightsError(
            f"model {model.name!r}: {subfolder}/{file} names the class {named!r}, expected {expected!r}",
            "Use a model of this family, or the plugin that knows this class.",
        )
    if not model.remote:  # weights from the hub are downloaded later
        model.check_shards(subfolder)
        if subfolder in ANCHORS:
            check_stored(model, subfolder, config)
    return config


def as_list(value: Any) -> list[Any]:
    """Return a value of a configuration that should be a list, and an empty list for anything else."""
    return value if isinstance(value, list) else []


def check_stored(model: ModelFolder, subfolder: str, config: Mapping[str, Any]) -> Named:
    """Sort the tensors of a component by name, and refuse what cannot be read; only the headers of files are read.

    Raises:
        WeightsError: Weights are stored in a form that is not read, or the file says something of itself that the
            configuration denies.
    """
    found = sort_names(model.stored(subfolder), subfolder)
    name = _name(model, subfolder)
    if "quantization_config" not in config:  # else the libraries know what the numbers mean
        refuse_unreadable(name, found)
    if REFERENCES_AT_ZERO in found.markers and not config.get("zero_cond_t"):
        raise WeightsError(
            f"{name}: the marker {REFERENCES_AT_ZERO} says that references are modulated at time 0, and "
            f"{subfolder}/config.json does not (zero_cond_t)",
            "Give the folder of the model that these weights were made for (Qwen-Image-Edit-2511) as --model.",
        )
    return found


@contextmanager
def refused_by_library(model: ModelFolder, what: str) -> Iterator[None]:
    """A context in which whatever a library raises on reading files becomes a WeightsError that names them.

    The libraries check little of what they read, so that a wrong file raises whatever its content leads to.

    Args:
        model: The model folder.
        what: The files that are read, for example "tokenizer/".
    """
    try:
        yield
    except (QframeError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        told = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise WeightsError(
            f"model {model.name!r}: {what} cannot be used: {told}",
            "Take these files from the copy of the model that its weights are from.",
        ) from error


def load_weights(cls: Any, model: ModelFolder, subfolder: str, *, device: torch.device, dtype: torch.dtype) -> Any:
    """Load a network of diffusers or transformers, and return it frozen and in evaluation mode.

    Files that are named and made as the libraries do are read by the libraries. All others (single files, names with
    prefixes, float8 with scales) are read tensor by tensor into the network that the configuration describes.

    Args:
        cls: The network's class.
        model: The model folder.
        subfolder: The component's subfolder.
        device: The device that the weights are moved to.
        dtype: The dtype that the weights are converted to.

    Raises:
        WeightsError: Weights are missing, damaged, unused or of another shape (for missing ones, diffusers and
            transformers would fill in random values), or this machine lacks the library or the device that quantised
            weights need.
    """
    files = model.weight_files(subfolder)
    config = model.config(subfolder)
    stored = check_stored(model, subfolder, config)
    with _without_bars():
        if files[0].suffix == GGUF:
            module = load_gguf(cls, model, subfolder, dtype)
        elif "quantization_config" in config or (stored.plain and all(is_standard(file.name) for file in files)):
            module = _by_library(cls, model, subfolder, variant_of(files[0].name), dtype)
        else:
            with refused_by_library(model, f"{subfolder}/config.json"):
                module = read_weights(
                    cls, config, files, stored, dtype, _name(model, subfolder), subfolder, _advice(model)
                )
    return module.to(device).eval().requires_grad_(False)


def _by_library(cls: Any, model: ModelFolder, subfolder: str, variant: str | None, dtype: torch.dtype) -> Any:
    """Let diffusers or transformers read a subfolder, and refuse what they would fill in at random or leave out."""
    try:
        module, report = cls.from_pretrained(
            model.folder / subfolder,
            dtype=dtype,
            variant=variant,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except ImportError as error:
        raise _lacking(model, subfolder, error) from error
    except Exception as error:  # the libraries check little of a configuration: it raises whatever its values lead to
        if "GPU" in str(error):  # diffusers' quantisers, where there is none
            raise _lacking(model, subfolder, error) from error
        raise WeightsError(
            f"model {model.name!r}: {subfolder} cannot be loaded from its config.json and weights: "
            f"{type(error).__name__}: {error}",
            "Take the configuration and the weights from the same model.",
        ) from error
    shapes = {str(key[0]): (key[1], key[2]) for key in report["mismatched_keys"]}
    refuse_misfits(_name(model, subfolder), report["missing_keys"], shapes, report["unexpected_keys"])
    return module


def _advice(model: ModelFolder) -> str | None:
    """Say where the configuration of a single file came from, and which one it needs."""
    if model.file is None:
        return None
    return (
        f"Its configuration came from {model.folder}. Give the folder or hub id of the model that the file was made "
        f"for as --model, and the file for its component, for example --set denoiser.model={model.file}."
    )


def _name(model: ModelFolder, subfolder: str) -> str:
    return f"model {model.name!r}" if model.file is not None else f"model {model.name!r}: {subfolder}"


def stored_dtype(model: ModelFolder, subfolder: str) -> torch.dtype | None:
    """Return the dtype that all weights of a component have in their files.

    None if they have several, are not plain floating-point numbers (but 4-bit weights, for example), or are not on this
    machine yet.
    """
    found = {one.dtype for one in sort_names(model.stored(subfolder), subfolder).weights.values()}
    return _DTYPES.get(next(iter(found))) if len(found) == 1 else None


def outline_of(cls: Any, model: ModelFolder, subfolder: str, dtype: torch.dtype) -> Any:
    """Make a network on torch's meta device, where weights have names and shapes, but take no memory.

    Args:
        cls: The network's class, of diffusers.
        model: The model folder.
        subfolder: The subfolder that has the configuration of the network.
        dtype: The dtype that the weights would have.

    Raises:
        WeightsError: The configuration describes no network of this class.
    """
    with refused_by_library(model, f"{subfolder}/config.json"), torch.device("meta"):
        network = cls.from_config(model.config(subfolder))
    nn.Module.to(network, dtype)  # diffusers' own `to` would warn of modules to keep in float32; there are none
    return network.eval().requires_grad_(False)


def _lacking(model: ModelFolder, subfolder: str, error: Exception) -> WeightsError:
    """Make the error for quantised weights that need a library or a device which this machine lacks."""
    method = model.read_json(f"{subfolder}/config.json").get("quantization_config", {}).get("quant_method", "none")
    return WeightsError(
        f"model {model.name!r}: {subfolder} (quantised: {method}) cannot be loaded on this machine: {error}",
        f"Weights in 4 bits need a CUDA device and the package bitsandbytes ({install_hint('bitsandbytes')}). "
        "A model that is not quantised runs anywhere; denoiser.quantise makes its weights small as well.",
    )


@contextmanager
def _without_bars() -> Iterator[None]:
    """A context in which diffusers and transformers draw no progress bars, which would mix with those of qframe."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    shown = [logging for logging in (of_diffusers, of_transformers) if logging.is_progress_bar_enabled()]
    for logging in shown:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        for logging in shown:
            logging.enable_progress_bar()
