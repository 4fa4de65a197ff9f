"""Loads single components of a model folder, after checking their class and weights; no code of the folder is run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn

from qframe.errors import WeightsError
from qframe.files.model_folder import ModelFolder
from qframe.plugins.distribution import install_hint

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""The dtypes of weights by the names that safetensors has for them."""


def component_config(model: ModelFolder, subfolder: str, expected: str, *, file: str = "config.json") -> dict[str, Any]:
    """Read the configuration of a component, and check the class that it names and that no file of weights is missing.

    Args:
        model: The model folder.
        subfolder: The component's subfolder, such as "vae".
        expected: The name of the class that the configuration must name.
        file: The file name of the configuration.

    Raises:
        WeightsError: The file is missing or names another class, or shards of weights are missing.
    """
    config = model.read_json(f"{subfolder}/{file}")
    if not model.remote:  # weights from the hub are downloaded later
        model.check_shards(subfolder)
    named = config.get("_class_name") or next(iter(config.get("architectures") or []), None)
    if named != expected:
        raise WeightsError(
            f"model {model.name!r}: {subfolder}/{file} names the class {named!r}, expected {expected!r}",
            "Use a model of this family, or the plugin that knows this class.",
        )
    return config


def load_weights(cls: Any, model: ModelFolder, subfolder: str, *, device: torch.device, dtype: torch.dtype) -> Any:
    """Load a network of diffusers or transformers, and return it frozen and in evaluation mode.

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
    model.weight_files(subfolder)
    try:
        with _without_bars():
            module, report = cls.from_pretrained(
                model.folder / subfolder,
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
    except torch.OutOfMemoryError:
        raise
    except ImportError as error:
        raise _lacking(model, subfolder, error) from error
    except (SafetensorError, StrictDataclassError, RuntimeError, ValueError, TypeError, KeyError, OSError) as error:
        if "GPU" in str(error):  # diffusers' quantisers, where there is none
            raise _lacking(model, subfolder, error) from error
        raise WeightsError(
            f"model {model.name!r}: {subfolder} cannot be loaded from its config.json and weights: {error}",
            "Download the model again.",
        ) from error
    broken = sorted({*report["missing_keys"], *(str(key) for key in report["mismatched_keys"])})
    unused = sorted(report["unexpected_keys"])
    if unused and not broken:
        raise WeightsError(
            f"model {model.name!r}: {subfolder} holds {len(unused)} weights its config.json has no place for: "
            + ", ".join(unused[:5]),
            "The configuration and the weights do not belong together; download the model again.",
        )
    if broken:
        raise WeightsError(
            f"model {model.name!r}: {subfolder} lacks {len(broken)} weights that its config.json calls for, "
            f"or has them in another shape: {', '.join(broken[:5])}",
            "The configuration and the weights do not belong together; download the model again.",
        )
    return module.to(device).eval().requires_grad_(False)


def stored_dtype(model: ModelFolder, subfolder: str) -> torch.dtype | None:
    """Return the dtype that all weights of a component have in their files.

    None if they have several, are not plain floating-point numbers (but 4-bit weights, for example), or are not on this
    machine yet.
    """
    found = model.stored_dtypes(subfolder)
    return _DTYPES.get(next(iter(found))) if len(found) == 1 else None


def outline_of(cls: Any, config: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """Make a network on torch's meta device, where weights have names and shapes, but take no memory.

    Args:
        cls: The network's class, of diffusers.
        config: The configuration of the network.
        dtype: The dtype that the weights would have.
    """
    with torch.device("meta"):
        network = cls.from_config(dict(config))
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
