"""LoRA adapters: adds them to networks, reads and writes their files, and merges them into weights.

The files are in the layouts of other programs (diffusers, ComfyUI, kohya), which can therefore use what qframe trains.
"""

from qframe.adapters.files import METADATA_OF_LAYOUTS, peft_metadata, read_lora, save_lora
from qframe.adapters.fitting import read_fitting
from qframe.adapters.header import StoredLayer, StoredLora, StoredTensor, describe_lora
from qframe.adapters.initial import as_new, frozen_files, initial_layers
from qframe.adapters.layer import LoraLayer
from qframe.adapters.network import (
    add_frozen,
    add_lora,
    add_updates,
    layer_names,
    load_lora,
    lora_layers,
    merge_lora,
    remove_loras,
    trained_alpha,
)
from qframe.adapters.outline import check_files, outlined
from qframe.adapters.targets import resolve_targets

__all__ = [
    "METADATA_OF_LAYOUTS",
    "LoraLayer",
    "StoredLayer",
    "StoredLora",
    "StoredTensor",
    "add_frozen",
    "add_lora",
    "add_updates",
    "as_new",
    "check_files",
    "describe_lora",
    "frozen_files",
    "initial_layers",
    "layer_names",
    "load_lora",
    "lora_layers",
    "merge_lora",
    "outlined",
    "peft_metadata",
    "read_fitting",
    "read_lora",
    "remove_loras",
    "resolve_targets",
    "save_lora",
    "trained_alpha",
]
