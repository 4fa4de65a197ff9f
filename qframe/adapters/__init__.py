"""LoRA adapters: put on a network, written for other programs, read from them, and merged into weights."""

from qframe.adapters.files import METADATA_OF_LAYOUTS, read_lora, save_lora
from qframe.adapters.header import StoredLayer, StoredLora, StoredTensor, describe_lora
from qframe.adapters.layer import LoraLayer
from qframe.adapters.network import (
    add_lora,
    add_updates,
    layer_names,
    load_lora,
    lora_layers,
    merge_lora,
    read_fitting,
    resolve_targets,
    trained_alpha,
)
from qframe.adapters.outline import check_files, outlined

__all__ = [
    "METADATA_OF_LAYOUTS",
    "LoraLayer",
    "StoredLayer",
    "StoredLora",
    "StoredTensor",
    "add_lora",
    "add_updates",
    "check_files",
    "describe_lora",
    "layer_names",
    "load_lora",
    "lora_layers",
    "merge_lora",
    "outlined",
    "read_fitting",
    "read_lora",
    "resolve_targets",
    "save_lora",
    "trained_alpha",
]
