"""LoRA adapters: adds them to networks, reads and writes their files, and merges them into weights.

The files are in the layouts of other programs (diffusers, ComfyUI, kohya), which can therefore use what qframe trains.
"""

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
