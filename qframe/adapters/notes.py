"""Reads what is noted of the scale of a LoRA, mostly as peft's configuration: in its file, or in a file next to it."""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import attrs

from qframe.errors import WeightsError
from qframe.files.lora_file import CHECKPOINT_FILES

METADATA_KEY = "lora_adapter_metadata"
"""The metadata key under which diffusers keeps the configuration of peft, which contains alpha."""

PEFT_WEIGHTS = "adapter_model.safetensors"
"""The name that peft gives to the file with the matrices."""

_PEFT_CONFIG = "adapter_config.json"
"""The name that peft gives to the file with the configuration, which lies in the same folder as `PEFT_WEIGHTS`."""

_LARGEST_CONFIG = 4 * 1024 * 1024


@attrs.frozen
class Notes:
    """What peft's configuration says of the alphas of a LoRA.

    Attributes:
        alpha: The alpha of every layer that no pattern names; None if it is not set.
        patterns: Alphas by the name of a layer, or by the end of its name.
        rslora: Whether updates are scaled by alpha over the root of the rank (rsLoRA).
        dora: Whether the LoRA is a DoRA.
        scale: The factor alpha / rank of a LoKr or LoHa, whose layers all have the same one.
    """

    alpha: float | None = None
    patterns: Mapping[str, float] = attrs.field(factory=dict)
    rslora: bool = False
    dora: bool = False
    scale: float = 1.0

    @cached_property
    def places(self) -> dict[str, int]:
        """The place of each pattern in their order."""
        return {pattern: place for place, pattern in enumerate(self.patterns)}

    def alpha_of(self, name: str, rank: int) -> float:
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


def read_notes(file: Path, metadata: Mapping[str, str]) -> Notes:
    """Return what is noted of the scale of a LoRA; without any note, what diffusers assumes: alpha is the rank.

    Args:
        file: The LoRA file. If it has the name that peft gives to its files, the configuration beside it is read; if it
            lies in a checkpoint of a run, what is written there.
        metadata: The metadata in the header of the LoRA file, which count before a configuration beside it.

    Raises:
        WeightsError: The configuration cannot be read, or says something that qframe cannot apply.
    """
    text, where = metadata.get(METADATA_KEY), f"LoRA file {file}: its {METADATA_KEY}"
    beside = file.with_name(_PEFT_CONFIG)
    try:
        if text is None and file.name in CHECKPOINT_FILES:
            where = str(file.parent)
            if (found := _of_checkpoint(file.parent)) is not None:
                return found
        if text is None and file.name == PEFT_WEIGHTS and beside.is_file():
            where = str(beside)
            if beside.stat().st_size > _LARGEST_CONFIG:
                raise ValueError("it is larger than any configuration of an adapter")
            text = beside.read_text(encoding="utf-8")
        return Notes() if text is None else _parsed(text)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, OSError) as error:
        raise WeightsError(f"{where} cannot be read ({error})") from error


def _of_checkpoint(folder: Path) -> Notes | None:
    """Return what a checkpoint of a run says of the scale of its LoRA; None if `folder` is no checkpoint.

    Checkpoints say it as peft does since qframe can start from a LoRA; before that, it follows from the configuration.
    """
    state, config = folder / "state.json", folder / "config.toml"
    if not (state.is_file() and config.is_file()):
        return None
    adapter = json.loads(state.read_text(encoding="utf-8")).get("adapter")
    if adapter is not None:
        return _parsed(json.dumps(adapter))
    tables = tomllib.loads(config.read_text(encoding="utf-8"))
    if tables.get("train", {}).get("mode", "lora") != "lora":
        raise ValueError("the run trains all weights, and no LoRA")
    lora = tables.get("lora", {})
    alpha = lora.get("alpha", lora.get("rank"))
    return Notes(None if alpha is None else float(alpha), {}, bool(lora.get("rslora")), bool(lora.get("dora")))


def _parsed(text: str) -> Notes:
    config = {key.removeprefix("transformer."): value for key, value in json.loads(text).items()}
    patterns = {str(name): float(value) for name, value in (config.get("alpha_pattern") or {}).items()}
    if config.get("peft_type") in ("LOKR", "LOHA"):
        if patterns or config.get("rank_pattern"):
            raise ValueError("alpha_pattern and rank_pattern are read for LoRA only")
        return Notes(scale=float(config["alpha"]) / int(config["r"]))
    regular = [key for key in patterns if re.fullmatch(r"[\w.]+", key) is None]
    if regular:
        raise ValueError(f"alpha_pattern {regular[0]!r} is a regular expression; only names are read")
    rslora, dora = bool(config.get("use_rslora")), bool(config.get("use_dora"))
    return Notes(float(config["lora_alpha"]), patterns, rslora, dora)
