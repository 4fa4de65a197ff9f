"""Writes a network of diffusers in the layout of diffusers, one tensor at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards

from qframe.files.tensor_files import write_tensors
from qframe.interfaces import SavedAs

LARGEST_FILE = "10GB"  # ModelMixin.save_pretrained in diffusers' modeling_utils.py; so are the names and the index
_PATTERN = "diffusion_pytorch_model{suffix}.safetensors"
_INDEX = "diffusion_pytorch_model.safetensors.index.json"


def save_streamed(module: Any, folder: Path, saved_as: SavedAs, *, largest_file: str = LARGEST_FILE) -> None:
    """Write the files that `module.save_pretrained` would write if the network had other values.

    Args:
        module: The network; its own values are not written, and it may be sharded.
        folder: The folder to write into.
        saved_as: The dtype and the values to write.
        largest_file: The size above which the weights are split into several files.
    """
    module.save_config(folder)
    shapes = {name: torch.empty(p.shape, dtype=saved_as.dtype, device="meta") for name, p in module.named_parameters()}
    split = split_torch_state_dict_into_shards(shapes, max_shard_size=largest_file, filename_pattern=_PATTERN)
    for file, names in split.filename_to_tensors.items():
        tensors = {name: shapes[name] for name in names}
        write_tensors(folder / file, tensors, value=saved_as.value, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": dict(split.metadata), "weight_map": split.tensor_to_filename}
        (folder / _INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
