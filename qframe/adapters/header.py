"""Reads and checks the header of a LoRA file (names, shapes, ranks and alphas) before any matrix is read."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
from safetensors import SafetensorError, safe_open

from qframe.adapters.layer import as_float32
from qframe.adapters.layouts import Part, TensorName, parse_name
from qframe.adapters.lycoris import Kind, equal_rank, kind_of
from qframe.adapters.notes import Notes, read_notes
from qframe.errors import UntrustedError, WeightsError, bullet_list

_LARGEST_HEADER = 16 * 1024 * 1024
_MOST_BYTES = 64 * 1024**3
_MOST_TENSORS = 20_000
_LARGEST_RANK = 4096
_FLOATS = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})
_NUMBERS = _FLOATS | {"I64", "I32", "I16", "I8", "U8"}
_OTHER_KINDS = {".oft_": "OFT", ".diff": "differences of whole weights", ".on_input": "IA3", ".glora": "GLoRA"}
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
        kind: The kind of adapter. LoKr and LoHa are read as the LoRA that has the same update.
        parts: The update's tensors, by part: "down", "up", "alpha" and "magnitude", or those of LoKr or LoHa.
        rank: The rank of the update.
        alpha: The update is multiplied by alpha / rank.
        features: The numbers of the layer's input features and output features, in this order.
    """

    name: str
    kind: Kind
    parts: Mapping[Part, StoredTensor]
    rank: int
    alpha: float
    features: tuple[int, int]

    @property
    def scale(self) -> float:
        """The factor alpha / rank, by which the update is multiplied besides the scale that a user sets."""
        return self.alpha / self.rank

    @property
    def flat(self) -> bool:
        """Whether the file spells the layer's name with "_" for "."."""
        return self._first.name.flat

    @property
    def dtype(self) -> str:
        """The dtype of the layer's matrices as safetensors spells it, for example "BF16"."""
        return self._first.dtype

    @property
    def _first(self) -> StoredTensor:
        return next(tensor for part, tensor in self.parts.items() if part != "alpha")


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
    if not any(parts.keys() - {"alpha"} for parts in found.values()):
        problems.append("no lora_A / lora_B (or lora_down / lora_up) tensors")
    noted = read_notes(file, metadata)
    layers = []
    for layer, parts in found.items():
        try:
            layers.append(_stored_layer(layer, parts, noted, opened))
        except ValueError as error:
            problems.append(f"{layer}: {error}")
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
    if key.startswith(("lora_te", "text_encoder", "te_", "text_encoders.")):
        return " of the denoiser, but of one of a text encoder, which qframe does not adapt"
    if any(part in key for part in (".lokr_t", ".hada_t", ".lora_mid")):
        return ", but of an adapter of convolutions, which the denoiser has not"
    kind = next((kind for part, kind in _OTHER_KINDS.items() if part in key), None)
    return "" if kind is None else f", but of another kind of adapter: {kind}"


def _stored_layer(layer: str, parts: Mapping[Part, StoredTensor], noted: Notes, opened: Any) -> StoredLayer:
    """Describe the update of one layer. ValueError says what is wrong with its tensors or its alpha."""
    kind = kind_of(parts)
    dtypes = list(dict.fromkeys(tensor.dtype for part, tensor in parts.items() if part != "alpha"))
    if not set(dtypes) <= _FLOATS:
        raise ValueError(f"holds {' and '.join(dtypes)}, expected floating point")
    if kind == "LoRA":
        rank, features = _plain_rank(parts)
        divisor: int | None = rank
    elif "down" in parts or "up" in parts or "magnitude" in parts:
        raise ValueError(f"mixes LoRA and {kind}")
    else:
        rank, features, divisor = equal_rank({part: t.shape for part, t in parts.items() if part != "alpha"})
    if not 1 <= rank <= _LARGEST_RANK:
        raise ValueError(f"has rank {rank}, expected 1 to {_LARGEST_RANK}")
    if "alpha" not in parts:
        alpha = noted.alpha_of(layer, rank) if kind == "LoRA" else noted.scale * rank
    else:
        tensor = parts["alpha"]
        if tensor.dtype not in _NUMBERS or math.prod(tensor.shape) != 1:  # kohya's may be a whole number
            raise ValueError(f"its alpha is {tensor.dtype} of shape {list(tensor.shape)}, expected one number")
        alpha = float(opened.get_tensor(tensor.key))
        if kind != "LoRA":
            alpha = float(rank) if divisor is None else alpha / divisor * rank
    rounded = as_float32(alpha)
    if not math.isfinite(rounded):
        raise ValueError(f"its alpha is {alpha}")
    if rounded == 0.0:
        raise ValueError(f"its alpha is {alpha}, so that it would change nothing")
    return StoredLayer(layer, kind, parts, rank, alpha, features)


def _plain_rank(parts: Mapping[Part, StoredTensor]) -> tuple[int, tuple[int, int]]:
    """Return the rank of a LoRA's layer, and its input and output features."""
    if not {"down", "up"} <= parts.keys():
        raise ValueError("only one of lora_A and lora_B" if {"down", "up"} & parts.keys() else "no lora_A")
    down, up = parts["down"].shape, parts["up"].shape
    if len(down) != 2 or len(up) != 2 or down[0] != up[1]:
        raise ValueError(f"lora_A {list(down)} and lora_B {list(up)} do not belong together")
    if "magnitude" in parts and parts["magnitude"].shape != (up[0],):
        raise ValueError(f"its magnitude has shape {list(parts['magnitude'].shape)}, expected [{up[0]}]")
    return down[0], (down[1], up[0])


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
