"""Reads and checks the header of a LoRA file (names, shapes, ranks and alphas) before any matrix is read."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import attrs
from safetensors import SafetensorError, safe_open

from qframe.adapters.layer import as_float32
from qframe.adapters.layouts import Part, TensorName, parse_name
from qframe.errors import UntrustedError, WeightsError, bullet_list

METADATA_KEY = "lora_adapter_metadata"
"""The metadata key under which diffusers keeps the configuration of peft, which contains alpha."""

_LARGEST_HEADER = 16 * 1024 * 1024
_MOST_BYTES = 64 * 1024**3
_MOST_TENSORS = 20_000
_LARGEST_RANK = 4096
_FLOATS = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})
_NUMBERS = _FLOATS | {"I64", "I32", "I16", "I8", "U8"}
_SHOWN = 20
_LONGEST_LINE = 300


@attrs.frozen
class StoredTensor:
    """A tensor as the header of a LoRA file describes it.

    Attributes:
        key: The tensor's full name in the file.
        name: The same name, split into its parts.
        dtype: The dtype as safetensors spells it, for example "BF16".
        shape: The tensor's shape.
    """

    key: str
    name: TensorName
    dtype: str
    shape: tuple[int, ...]


@attrs.frozen
class StoredLayer:
    """The update of one layer as the header of a LoRA file describes it.

    Attributes:
        name: The layer's name as the file spells it, without the prefix.
        parts: The update's tensors, by part: "down", "up", "alpha" or "magnitude".
        rank: The rank of the update.
        alpha: The update is multiplied by alpha / rank.
    """

    name: str
    parts: Mapping[Part, StoredTensor]
    rank: int
    alpha: float

    @property
    def scale(self) -> float:
        """The factor alpha / rank, by which the update is multiplied besides the scale that a user sets."""
        return self.alpha / self.rank

    @property
    def features(self) -> tuple[int, int]:
        """The numbers of the layer's input features and output features, in this order."""
        return self.parts["down"].shape[1], self.parts["up"].shape[0]


@attrs.frozen
class StoredLora:
    """The content of a LoRA file without the values of its matrices.

    Attributes:
        file: The path of the file.
        size: The file's size in bytes.
        styles: The programs whose naming the file's tensors follow; more than one if the file mixes them.
        layers: The update of each layer.
        metadata: The metadata in the file's header.
    """

    file: Path
    size: int
    styles: tuple[str, ...]
    layers: tuple[StoredLayer, ...]
    metadata: Mapping[str, str]

    @property
    def dora(self) -> bool:
        """Whether the LoRA is a DoRA, which has a magnitude for each layer."""
        return any("magnitude" in layer.parts for layer in self.layers)


def describe_lora(file: Path) -> StoredLora:
    """Read a LoRA file's header and alphas, and return what the file holds. No matrix is read.

    Raises:
        WeightsError: The file cannot be used as a LoRA; the message names the tensors that are wrong.
        UntrustedError: The file, its header or its number of tensors is larger than that of any LoRA.
    """
    with open_lora(file) as opened:
        return stored_lora(file, opened)


@contextmanager
def open_lora(file: Path) -> Iterator[Any]:
    """A context that opens a LoRA file and yields what safetensors' `safe_open` returns.

    Raises:
        WeightsError: There is no such file, or it is not a safetensors file.
        UntrustedError: The file or its header is larger than that of any LoRA; nothing was read then.
    """
    try:
        if not file.is_file():
            raise WeightsError(f"LoRA file {file}: there is no such file")
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
        size = file.stat().st_size
        if length <= size and (length > _LARGEST_HEADER or size > _MOST_BYTES):
            raise UntrustedError(f"LoRA file {file}: {size} bytes with a header of {length}; no LoRA is so large")
        with safe_open(file, framework="pt") as opened:
            yield opened
    except (SafetensorError, OSError, UnicodeError) as error:
        raise WeightsError(
            f"LoRA file {file}: not a safetensors file ({error})",
            "Only safetensors files are read; pickles can run code.",
        ) from error


def stored_lora(file: Path, opened: Any) -> StoredLora:
    """Return what a LoRA file holds, as `describe_lora` does, for a file that `open_lora` has opened.

    Args:
        file: The path of the file, for messages.
        opened: The opened file that `open_lora` yields.

    Raises:
        WeightsError: The file cannot be used as a LoRA; the message names the tensors that are wrong.
        UntrustedError: The file has more tensors than any LoRA.
    """
    metadata: dict[str, str] = opened.metadata() or {}
    keys = list(opened.keys())
    if len(keys) > _MOST_TENSORS:
        raise UntrustedError(f"LoRA file {file}: {len(keys)} tensors, no LoRA has more than {_MOST_TENSORS}")
    found: dict[str, dict[Part, StoredTensor]] = defaultdict(dict)
    problems: list[str] = []
    for key in keys:
        name = parse_name(key)
        if name is None:
            problems.append(f"{key}: not part of a LoRA layer{_known_as(key)}")
            continue
        if name.part in found[name.layer]:
            problems.append(f"{key}: given twice, under several names")
        part = opened.get_slice(key)
        found[name.layer][name.part] = StoredTensor(key, name, part.get_dtype(), tuple(part.get_shape()))
    if not any({"down", "up"} & parts.keys() for parts in found.values()):
        problems.append("no lora_A / lora_B (or lora_down / lora_up) tensors")
    noted = _noted(file, metadata)
    layers = []
    for layer, parts in found.items():
        wrong = _wrong_parts(layer, parts)
        if wrong is None:
            rank = parts["down"].shape[0]
            alpha = noted.of(layer, rank) if "alpha" not in parts else float(opened.get_tensor(parts["alpha"].key))
            wrong = _wrong_alpha(layer, alpha)
            layers.append(StoredLayer(layer, parts, rank, alpha))
        if wrong is not None:
            problems.append(wrong)
    with_magnitude = any("magnitude" in layer.parts for layer in layers)
    if with_magnitude or noted.dora:
        bare = [layer.name for layer in layers if "magnitude" not in layer.parts]
        problems += [f"{name}: has no magnitude, and the file is DoRA" for name in bare]
    refuse(file, problems)
    styles = tuple(sorted({tensor.name.style for parts in found.values() for tensor in parts.values()}))
    return StoredLora(file, file.stat().st_size, styles, tuple(layers), metadata)


def _known_as(key: str) -> str:
    if key.endswith(".dora_scale"):
        return " that qframe reads: programs differ in which lengths dora_scale is divided by"
    if any(part in key for part in (".lokr_", ".hada_", ".oft_", ".diff", ".lora_mid")):
        return ", but of another kind of adapter"
    return ""


def _wrong_parts(layer: str, parts: Mapping[Part, StoredTensor]) -> str | None:
    if not {"down", "up"} <= parts.keys():
        return f"{layer}: only one of lora_A and lora_B" if {"down", "up"} & parts.keys() else f"{layer}: no lora_A"
    dtypes = [tensor.dtype for part, tensor in parts.items() if part != "alpha"]  # kohya's may be a whole number
    if not set(dtypes) <= _FLOATS:
        return f"{layer}: holds {' and '.join(dtypes)}, expected floating point"
    down, up = parts["down"].shape, parts["up"].shape
    if len(down) != 2 or len(up) != 2 or down[0] != up[1]:
        return f"{layer}: lora_A {list(down)} and lora_B {list(up)} do not belong together"
    if not 1 <= down[0] <= _LARGEST_RANK:
        return f"{layer}: has rank {down[0]}, expected 1 to {_LARGEST_RANK}"
    if "alpha" in parts and (parts["alpha"].dtype not in _NUMBERS or math.prod(parts["alpha"].shape) != 1):
        alpha = parts["alpha"]
        return f"{layer}: its alpha is {alpha.dtype} of shape {list(alpha.shape)}, expected one number"
    if "magnitude" in parts and parts["magnitude"].shape != (up[0],):
        return f"{layer}: its magnitude has shape {list(parts['magnitude'].shape)}, expected [{up[0]}]"
    return None


def _wrong_alpha(layer: str, alpha: float) -> str | None:
    rounded = as_float32(alpha)
    if not math.isfinite(rounded):
        return f"{layer}: its alpha is {alpha}"
    if rounded == 0.0:
        return f"{layer}: its alpha is {alpha}, so that it would change nothing"
    return None


def refuse(file: Path, problems: list[str], *, hint: str | None = None) -> None:
    """Raise a WeightsError that shows the problems of a LoRA file (at most 20), if `problems` is not empty."""
    if problems:
        more = f"\n  ... and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        shown = bullet_list(_printable(problem) for problem in problems[:_SHOWN])
        hint = hint or "Nothing of it was loaded. Use another file, or save this one again where it was made."
        raise WeightsError(f"LoRA file {file} cannot be used:\n{shown}{more}", hint)


def _printable(text: str) -> str:
    """Shorten a text that comes from a file, and replace characters that would change a terminal."""
    if len(text) > _LONGEST_LINE:
        text = f"{text[: _LONGEST_LINE // 2]}...{text[-_LONGEST_LINE // 2 :]}"
    return "".join(letter if letter.isprintable() else "?" for letter in text)


@attrs.frozen
class _Noted:
    """What peft's configuration in a file's metadata says of alphas.

    Attributes:
        alpha: The alpha of every layer that no pattern names; None if it is not set.
        patterns: Alphas by the name of a layer, or by the end of its name.
        rslora: Whether updates are scaled by alpha over the root of the rank (rsLoRA).
        dora: Whether the LoRA is a DoRA.
    """

    alpha: float | None = None
    patterns: Mapping[str, float] = attrs.field(factory=dict)
    rslora: bool = False
    dora: bool = False

    @cached_property
    def places(self) -> dict[str, int]:
        """The place of each pattern in their order."""
        return {pattern: place for place, pattern in enumerate(self.patterns)}

    def of(self, name: str, rank: int) -> float:
        """Return the alpha of a layer such that alpha / rank scales its update, also for rsLoRA.

        The first pattern that is the layer's name or the end of it counts (peft: `get_pattern_key`). Where nothing is
        said, alpha is the rank, as in diffusers.

        Args:
            name: The layer's name as the file spells it.
            rank: The layer's rank.
        """
        parts = name.split(".")
        endings = {".".join(parts[start:]) for start in range(len(parts))} & self.places.keys()
        alpha = self.patterns[min(endings, key=self.places.__getitem__)] if endings else self.alpha
        if alpha is None:
            return float(rank)
        return alpha * math.sqrt(rank) if self.rslora else alpha  # rslora: scale is alpha / sqrt(rank)


def _noted(file: Path, metadata: Mapping[str, str]) -> _Noted:
    text = metadata.get(METADATA_KEY)
    if text is None:
        return _Noted()
    try:
        config = json.loads(text)
        config = {key.removeprefix("transformer."): value for key, value in config.items()}
        patterns = {str(name): float(value) for name, value in (config.get("alpha_pattern") or {}).items()}
        regular = [key for key in patterns if re.fullmatch(r"[\w.]+", key) is None]
        if regular:
            raise ValueError(f"alpha_pattern {regular[0]!r} is a regular expression; only names are read")
        rslora, dora = bool(config.get("use_rslora")), bool(config.get("use_dora"))
        return _Noted(float(config["lora_alpha"]), patterns, rslora, dora)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise WeightsError(f"LoRA file {file}: its {METADATA_KEY} cannot be read ({error})") from error
