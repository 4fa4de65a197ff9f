"""Tells from the names of tensors which component of Qwen-Image a file of weights holds, and what else it holds.

Files of other programs put a prefix before the names, have other names, or keep scales and markers beside the weights.
Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import attrs

from qframe.errors import WeightsError
from qframe.files.weight_header import GGUF, StoredTensor, read_header
from qframe.plugins.distribution import install_hint

ANCHORS: Mapping[str, re.Pattern[str]] = {
    "transformer": re.compile(r"(?P<prefix>.*?)(?:txt_norm\.weight)"),
    "vae": re.compile(r"(?P<prefix>.*?)decoder\.(?:conv_in|conv1)\.weight"),
    "text_encoder": re.compile(r"(?P<prefix>.*?)(?:model\.)?visual\.patch_embed\.proj\.weight"),
}
"""For each component a tensor that every file of it has, and before it the prefix that all its tensors have."""
WORDS = {
    "transformer": "the transformer of a Qwen-Image model",
    "vae": "a VAE in the form of Qwen-Image's",
    "text_encoder": "the text encoder Qwen2.5-VL",
}
REFERENCES_AT_ZERO = "__index_timestep_zero__"
"""The marker by which ComfyUI's files say what `zero_cond_t` says in a configuration of diffusers."""
_SCALES = (".scale_weight", ".weight_scale", ".weight_scale_inv", "_scale_inv")
_MARKERS = re.compile(
    r"(?:.*\.)?(?:scaled_fp8|comfy_quant|scale_input|input_scale|position_ids|rotary_emb\.inv_freq|num_batches_tracked"
    r"|__x0__|__32x32__|" + REFERENCES_AT_ZERO + r")|padding/\d+"
)
_OTHER_SCALES = re.compile(
    r".*\.(?:weight_scale_2|weight_scalar|weight_codebook|weight_s_rel|weight_s_channel|absmax|quant_map|qweight|qzeros"
    r"|scales|nested_absmax|quant_state\..*|svd_up|svd_down|proj_up|proj_down|wscales|smooth_factor)"
)
_LORA = re.compile(r".*(?:lora_[AB]|lora_up|lora_down|lokr_|hada_|lora\.(?:up|down))")
_KINDS = (
    (re.compile(r".*\b(?:double_blocks|single_blocks)\."), "the transformer of a FLUX model"),
    (re.compile(r".*\bsingle_transformer_blocks\."), "the transformer of a FLUX model"),
    (
        re.compile(r".*\b(?:input|down)_blocks\..*(?:transformer_blocks|emb_layers)"),
        "the UNet of Stable Diffusion",
    ),
    (re.compile(r".*\bjoint_blocks\."), "the transformer of Stable Diffusion 3"),
    (re.compile(r".*\bblocks\.\d+\.cross_attn\."), "the transformer of a Wan model"),
    (re.compile(r".*\bcontrolnet_"), "a ControlNet"),
)
_FLOATS = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}


@attrs.frozen
class Named:
    """What the names of the tensors in a file of weights say.

    Attributes:
        prefix: What stands before the names of the component's tensors, and is cut off.
        weights: The component's tensors by their names without prefix; those of `scales` and `markers` are not among
            them.
        scales: The name of the scale of each weight that has one, both without prefix.
        markers: Names of tensors that say something and are no weights, without prefix.
        elsewhere: Names of tensors without that prefix; they belong to other components.
    """

    prefix: str
    weights: Mapping[str, StoredTensor]
    scales: Mapping[str, str]
    markers: tuple[str, ...]
    elsewhere: tuple[str, ...]

    @property
    def plain(self) -> bool:
        """Whether the weights can be read by name, with nothing beside them that changes what they mean."""
        return not (self.prefix or self.scales or self.markers or self.elsewhere)


def sort_names(tensors: Mapping[str, StoredTensor], component: str) -> Named:
    """Sort the tensors of a file or a folder by what their names say of them.

    Args:
        tensors: The tensors by name.
        component: The component that is looked for, a key of `ANCHORS`.
    """
    prefix = find_prefix(tensors, component) or ""
    own = {name.removeprefix(prefix): one for name, one in tensors.items() if name.startswith(prefix)}
    if not prefix:
        others = {found for other in ANCHORS if other != component and (found := find_prefix(tensors, other))}
        own = {name: one for name, one in own.items() if not name.startswith(tuple(others))}
    scales = {}
    for name in own:
        ending = next((one for one in _SCALES if name.endswith(one)), None)
        if ending is not None:
            scales[name.removesuffix(ending) + ("" if ending == "_scale_inv" else ".weight")] = name
    markers = tuple(name for name in own if _MARKERS.fullmatch(name))
    beside = {*scales.values(), *markers}
    held = {prefix + name for name in own}
    return Named(
        prefix=prefix,
        weights={name: one for name, one in own.items() if name not in beside},
        scales=scales,
        markers=markers,
        elsewhere=tuple(name for name in tensors if name not in held),
    )


def find_prefix(names: Iterable[str], component: str) -> str | None:
    """Return the prefix of a component's tensors; None if the component is not among them.

    Of several copies, the one that is no moving average is taken.
    """
    found = [match["prefix"] for name in names if (match := ANCHORS[component].fullmatch(name))]
    return min(found, key=lambda prefix: ("ema" in prefix, len(prefix)), default=None)


def not_in_file(file: Path, component: str) -> str | None:
    """Return None if a file of weights holds a component, else what it holds; see `Loadable.not_in_file`.

    Raises:
        WeightsError: The file cannot be read, or is a GGUF file, and the package that reads these is missing.
    """
    names = gguf_names(file) if file.suffix == GGUF else tuple(read_header(file, f"model {str(file)!r}"))
    if find_prefix(names, component) is not None:
        return None
    return what_holds(names)


def what_holds(names: Collection[str]) -> str:
    """Say in a few words what a file with tensors of these names holds."""
    if not names:
        return "a file without tensors"
    if any(_LORA.match(name) for name in names):
        return "a LoRA or another adapter, which is given as --lora"
    known = [words for component, words in WORDS.items() if find_prefix(names, component) is not None]
    known += [words for pattern, words in _KINDS if any(pattern.match(name) for name in names)]
    return " and ".join(dict.fromkeys(known)) if known else f"another model, with tensors such as {min(names)}"


def gguf_names(file: Path) -> tuple[str, ...]:
    """Return the names of the tensors in a GGUF file.

    Raises:
        WeightsError: The package gguf is missing, or the file cannot be read.
    """
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise WeightsError(
            f"model {str(file)!r}: a GGUF file is read by the package gguf, which is not installed",
            f"{install_hint('gguf')}. Or use weights in the safetensors format.",
        ) from error
    try:
        return tuple(tensor.name for tensor in GGUFReader(file).tensors)
    except (ValueError, KeyError, IndexError, OSError, TypeError) as error:
        raise WeightsError(
            f"model {str(file)!r}: this is no readable GGUF file: {error}", "Download this file again."
        ) from error


def refuse_unreadable(name: str, named: Named) -> None:
    """Refuse weights that are stored in a form which nothing here can read.

    Args:
        name: How messages name the model and the component.
        named: The sorted tensors.

    Raises:
        WeightsError: Weights are stored as whole numbers, or in blocks with scales of a kind that is not read.
    """
    strange = [one for one in named.weights if _OTHER_SCALES.fullmatch(one)]
    if strange:
        raise WeightsError(
            f"{name}: its weights are quantised in a form that qframe does not read; beside them lie "
            + ", ".join(strange[:3]),
            "Use the version of the model in bfloat16 or float8, and make it small by denoiser.quantise.",
        )
    whole = {one: tensor.dtype for one, tensor in named.weights.items() if tensor.dtype not in _FLOATS}
    if whole:
        shown = [f"{one} ({dtype})" for one, dtype in whole.items()]
        scaled = "; they have scales, but only float8 is read with scales" if set(whole) & set(named.scales) else ""
        raise WeightsError(
            f"{name}: {len(whole)} weights are stored as whole numbers or in another type that qframe does not read"
            f"{scaled}: {', '.join(shown[:5])}",
            "Use a version of the model with weights in float32, float16, bfloat16 or float8.",
        )


def refuse_misfits(
    name: str,
    missing: Collection[str],
    shapes: Mapping[str, tuple[object, object]],
    unused: Collection[str],
    advice: str | None = None,
) -> None:
    """Refuse weights that do not fit the network that a configuration describes, with advice for what was found.

    Args:
        name: How messages name the model and the component.
        missing: Weights that the network has and the files have not.
        shapes: The shape in the files and in the network, of the weights where they differ.
        unused: Weights that the files have and the network has not.
        advice: What to do next where weights have another shape; None for the advice that fits what was found.

    Raises:
        WeightsError: One of the collections is not empty.
    """
    if not (missing or shapes or unused):
        return
    found = []
    if missing:
        found.append(f"lacks {len(missing)} weights that its config.json calls for: {_some(missing)}")
    if shapes:
        first = [f"{one} is {list(a)}, expected {list(b)}" for one, (a, b) in sorted(shapes.items())[:3]]  # type: ignore[call-overload]
        found.append(f"has {len(shapes)} weights in another shape: {'; '.join(first)}")
    if unused:
        found.append(f"holds {len(unused)} weights its config.json has no place for: {_some(unused)}")
    raise WeightsError(
        f"{name} {'; it '.join(found)}", advice if advice and shapes else _advice(missing, shapes, unused)
    )


def _advice(missing: Collection[str], shapes: Collection[str], unused: Collection[str]) -> str:
    if any(_LORA.match(one) for one in unused):
        return "A LoRA was saved among these weights: give it as --lora, and the model without it."
    blocks = re.compile(r"(?:.*\.)?(?:transformer_blocks|layers|blocks)\.\d+\..*")
    if unused and all(blocks.fullmatch(one) for one in unused) and not (missing or shapes):
        return "The configuration asks for fewer blocks than the weights have: take both from the same model."
    if missing and all(blocks.fullmatch(one) for one in missing) and not (unused or shapes):
        return "The configuration asks for more blocks than the weights have: take both from the same model."
    if unused and len(missing) > len(unused) / 2:
        return f"The weights look like {what_holds(unused)}: take configuration and weights from the same model."
    return "Take the configuration and the weights from the same model; they do not belong together."


def _some(names: Collection[str]) -> str:
    return ", ".join(sorted(names)[:5])
