"""What LoRA files call their tensors: the layouts of other programs, as names alone. Reads nothing.

`LoraLayout` lists those that are written. More are read: peft's own names and bare ones, and flattened names under
other prefixes than kohya's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import attrs

from qframe.config.schema import LoraLayout

Style = Literal["diffusers", "comfyui", "kohya", "peft", "bare"]
Part = Literal["down", "up", "alpha", "magnitude"]

_LONGEST_KEY = 512

_PREFIXES: tuple[tuple[str, Style], ...] = (
    ("base_model.model.", "peft"),
    ("transformer.", "diffusers"),
    ("diffusion_model.", "comfyui"),
    ("lora_unet_", "kohya"),
    ("lora_transformer_", "kohya"),  # OneTrainer
    ("lycoris_", "kohya"),  # SimpleTuner
)
_ENDINGS: tuple[tuple[str, Part], ...] = (
    (".lora_A.weight", "down"),
    (".lora_A.default.weight", "down"),
    (".lora_down.weight", "down"),
    (".lora_B.weight", "up"),
    (".lora_B.default.weight", "up"),
    (".lora_up.weight", "up"),
    (".alpha", "alpha"),
    (".lora_magnitude_vector", "magnitude"),
    (".lora_magnitude_vector.weight", "magnitude"),
    (".lora_magnitude_vector.default.weight", "magnitude"),
)
_WRITTEN: Mapping[LoraLayout, tuple[str, Mapping[Part, str]]] = {
    "diffusers": (
        "transformer.",
        {"down": ".lora_A.weight", "up": ".lora_B.weight", "magnitude": ".lora_magnitude_vector"},
    ),
    "comfyui": ("diffusion_model.", {"down": ".lora_A.weight", "up": ".lora_B.weight", "alpha": ".alpha"}),
    "kohya": ("lora_unet_", {"down": ".lora_down.weight", "up": ".lora_up.weight", "alpha": ".alpha"}),
}


@attrs.frozen
class TensorName:
    """A tensor's name, taken apart. layer: as the file spells it, without prefixes."""

    style: Style
    layer: str
    part: Part

    @property
    def flat(self) -> bool:
        """Whether `layer` has "_" where the network has "."."""
        return self.style == "kohya"


def parse_name(key: str) -> TensorName | None:
    """The parts of a tensor's name; None if it is not part of a LoRA layer."""
    if len(key) > _LONGEST_KEY:
        return None
    for ending, part in _ENDINGS:
        if key.endswith(ending):
            layer, style = key.removesuffix(ending), "bare"
            for prefix, named in _PREFIXES:
                if layer.startswith(prefix):
                    layer, style = layer.removeprefix(prefix), named
            return TensorName(style, layer, part)  # type: ignore[arg-type]
    return None


def tensor_name(layout: LoraLayout, layer: str, part: Part) -> str | None:
    """What `layout` calls a part of a layer; None where it has no place for it."""
    prefix, endings = _WRITTEN[layout]
    ending = endings.get(part)
    return None if ending is None else prefix + (flattened(layer) if layout == "kohya" else layer) + ending


def flattened(layer: str) -> str:
    """A layer's name as kohya's layout spells it."""
    return layer.replace(".", "_")


def by_flat_name(names: Iterable[str]) -> dict[str, list[str]]:
    """Full names by their flattened form: more than one where the form does not tell them apart."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(flattened(name), []).append(name)
    return found
