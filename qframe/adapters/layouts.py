"""How the layouts of other programs name the tensors of a LoRA file. Reads no file.

`LoraLayout` lists the layouts that qframe writes. It reads more: peft's own names, names without a prefix, and
flattened names under other prefixes than kohya's.
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
    """The name of a tensor in a LoRA file, taken apart.

    Attributes:
        style: How the name is spelled.
        layer: The name of the layer as the file spells it, without prefixes.
        part: Which of the layer's tensors it is.
    """

    style: Style
    layer: str
    part: Part

    @property
    def flat(self) -> bool:
        """Whether the name of the layer is flattened: it has "_" where the network's name has "."."""
        return self.style == "kohya"


def parse_name(key: str) -> TensorName | None:
    """Take the name of a tensor apart. The result is None if it is no name of a LoRA's tensor."""
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
    """Return the name that `layout` has for a part of a layer; None if the layout has no place for the part."""
    prefix, endings = _WRITTEN[layout]
    ending = endings.get(part)
    return None if ending is None else prefix + (flattened(layer) if layout == "kohya" else layer) + ending


def flattened(layer: str) -> str:
    """Return a layer's name as kohya's layout spells it, with "_" for "."."""
    return layer.replace(".", "_")


def by_flat_name(names: Iterable[str]) -> dict[str, list[str]]:
    """Group full names by their flattened form. A group has several names where flattening makes them equal."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(flattened(name), []).append(name)
    return found
