"""A component for measuring: the linear layers of Qwen-Image's blocks with random weights, mapped from a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from qframe.files.model_folder import ModelFolder
from qframe.files.tensor_files import write_tensors
from qframe.interfaces import Loadable

_LAYERS = {
    **dict.fromkeys(("to_q", "to_k", "to_v", "to_out", "add_q", "add_k", "add_v", "to_add_out"), (1, 1)),
    **{f"{stream}_{name}": shape for stream in ("img", "txt") for name, shape in (("up", (4, 1)), ("down", (1, 4)))},
    **{f"{stream}_mod": (6, 1) for stream in ("img", "txt")},
}
"""The linear layers of a block with the numbers of widths that they give and take: transformer_qwenimage.py."""
_FOLDER = "network"


class Blocks(nn.Module):
    """The linear layers of some blocks; they are not connected, because nothing is computed with them."""

    def __init__(self, blocks: int, width: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict({name: nn.Linear(i * width, o * width) for name, (o, i) in _LAYERS.items()})
            for _ in range(blocks)
        )


class BlocksComponent(Loadable):
    """A component with such a network."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    @property
    def network(self) -> nn.Module:
        return self._module

    @classmethod
    def describe(cls, model: ModelFolder, options: Any) -> None:
        return None

    @classmethod
    def stored_dtype(cls, model: ModelFolder, options: Any) -> torch.dtype:
        return torch.bfloat16

    @classmethod
    def load(cls, model: ModelFolder, options: Any, *, device: torch.device, dtype: torch.dtype) -> Self:
        with torch.device("meta"):
            module = Blocks(**model.config(_FOLDER))
        for file in model.weight_files(_FOLDER):
            module.load_state_dict(load_file(file), assign=True, strict=False)
        return cls(module.to(device, dtype).eval().requires_grad_(False))

    @classmethod
    def ingredients(cls, model: ModelFolder, options: Any) -> dict[str, str]:
        return {"weights": model.digest(_FOLDER)}


def write_model(folder: Path, *, blocks: int, width: int) -> None:
    """Write a model folder with random weights in bfloat16, one file for each block."""
    target = folder / _FOLDER
    target.mkdir(parents=True)
    (target / "config.json").write_text(json.dumps({"blocks": blocks, "width": width}))
    with torch.device("meta"):
        shapes = Blocks(1, width).bfloat16().state_dict()
    generator = torch.Generator().manual_seed(0)

    def value(name: str) -> Tensor:
        return torch.randn(shapes[name].shape, generator=generator).mul_(0.02).bfloat16()

    for block in range(blocks):
        named = {name.replace("blocks.0.", f"blocks.{block}."): tensor for name, tensor in shapes.items()}
        write_tensors(
            target / f"{block:03d}.safetensors",
            named,
            value=lambda name, block=block: value(name.replace(f"blocks.{block}.", "blocks.0.")),  # type: ignore[misc]
        )
