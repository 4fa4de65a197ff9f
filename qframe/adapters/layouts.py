"""Translates between the names of a network's layers and the names that LoRA files have for tensors. Reads no file.

A layout is the way in which a program names the tensors of a LoRA file. `LoraLayout` lists the layouts that qframe
writes. qframe reads more: the names of peft, names without a prefix, and flattened names (with "_" for ".") with other
prefixes than that of kohya.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal

import attrs

from qframe.config.schema import LoraLayout

Style = Literal["diffusers", "comfyui", "kohya", "peft", "diffsynth", "bare"]
"""The program whose prefix a tensor's name has in a LoRA file; "bare" is a name without a known prefix."""
Part = str
"""One of the tensors of a layer's update.

"down", "up", "alpha" and "magnitude" are those of `LoraLayer`. The tensors of LoKr and LoHa (`qframe.adapters.lycoris`)
have the names that LyCORIS gives them, such as "lokr_w1" or "hada_w2_a".
"""

_LONGEST_KEY = 512

_PREFIXES: tuple[tuple[str, Style], ...] = (
    ("transformer.base_model.model.", "peft"),
    ("base_model.model.transformer.", "peft"),
    ("base_model.model.", "peft"),
    ("transformer.", "diffusers"),
    ("model.diffusion_model.", "comfyui"),
    ("diffusion_model.", "comfyui"),
    ("pipe.dit.", "diffsynth"),
    ("lora_unet_", "kohya"),
    ("lora_transformer_", "kohya"),  # OneTrainer
    ("lycoris_", "kohya"),  # SimpleTuner
)
"""The prefixes that programs put before the name of a layer, the longer of two that begin alike first."""

_ADAPTER = r"(?:\.[\w-]+)?"  # the name of an adapter, which programs that save a live peft model leave inside
_ENDINGS: tuple[tuple[re.Pattern[str], Part], ...] = (
    (re.compile(rf"\.(?:lora_A|lora_down|lora\.down|lora_linear_layer\.down){_ADAPTER}\.weight$"), "down"),
    (re.compile(rf"\.(?:lora_B|lora_up|lora\.up|lora_linear_layer\.up){_ADAPTER}\.weight$"), "up"),
    (re.compile(r"\.alpha$"), "alpha"),
    (re.compile(rf"\.lora_magnitude_vector{_ADAPTER}(?:\.weight)?$"), "magnitude"),
)
_LYCORIS = re.compile(rf"\.((?:lokr_w[12](?:_[ab])?)|(?:hada_w[12]_[ab])){_ADAPTER}$")
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
    found = next(((match, part) for ending, part in _ENDINGS if (match := ending.search(key))), None)
    if found is None and (other := _LYCORIS.search(key)):
        found = (other, other[1])
    if found is None:
        return None
    match, part = found
    layer = key[: match.start()]
    for prefix, style in _PREFIXES:
        if layer.startswith(prefix):
            return TensorName(style, layer.removeprefix(prefix), part)
    return TensorName("bare", layer, part)


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
