"""LoRA adapters: put on a network, written for other programs, read from them, merged."""

from qframe.adapters.files import read_lora, save_lora
from qframe.adapters.header import StoredLayer, StoredLora, StoredTensor, describe_lora
from qframe.adapters.layer import LoraLayer
from qframe.adapters.layouts import LAYOUTS, Layout
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

__all__ = [
    "LAYOUTS",
    "Layout",
    "LoraLayer",
    "StoredLayer",
    "StoredLora",
    "StoredTensor",
    "add_lora",
    "add_updates",
    "describe_lora",
    "layer_names",
    "load_lora",
    "lora_layers",
    "merge_lora",
    "read_fitting",
    "read_lora",
    "resolve_targets",
    "save_lora",
    "trained_alpha",
]
