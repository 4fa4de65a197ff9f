"""Translates between the names of a network's layers and the names that LoRA files have for tensors. Reads no file.

A layout is the way in which a program names the tensors of a LoRA file. `LoraLayout` lists the layouts that qframe
writes. qframe reads more: the names of peft, names without a prefix, and flattened names (with "_" for ".") with other
prefixes than that of kohya.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import attrs

from qframe.config.schema import LoraLayout

Style = Literal["diffusers", "comfyui", "kohya", "peft", "bare"]
"""The program whose prefix a tensor's name has in a LoRA file; "bare" is a name without a known prefix."""
Part = Literal["down", "up", "alpha", "magnitude"]
"""One of the tensors of a layer's update; `LoraLayer` says what each of them means."""

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
    """The name of a tensor in a LoRA file, split into its parts.

    Attributes:
        style: The program whose prefix the name has; "bare" if it has none of the known prefixes.
        layer: The name of the layer as the file spells it, without the prefix.
        part: Which of the layer's tensors the name belongs to.
    """

    style: Style
    layer: str
    part: Part

    @property
    def flat(self) -> bool:
        """Whether the layer's name is flattened: it has "_" where the name of the network's layer has "."."""
        return self.style == "kohya"


def parse_name(key: str) -> TensorName | None:
    """Split the name of a tensor in a LoRA file into its parts. Return None if no known layout has such names."""
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
    """Return the name that a file in `layout` has for a layer's tensor; None if the layout cannot store this part."""
    prefix, endings = _WRITTEN[layout]
    ending = endings.get(part)
    return None if ending is None else prefix + (flattened(layer) if layout == "kohya" else layer) + ending


def flattened(layer: str) -> str:
    """Return a layer's name as the layout of kohya spells it: each "." is replaced by "_"."""
    return layer.replace(".", "_")


def by_flat_name(names: Iterable[str]) -> dict[str, list[str]]:
    """Return full names of layers, by their flattened form. Different full names can have the same flattened form."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(flattened(name), []).append(name)
    return found
