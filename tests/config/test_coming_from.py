"""The tables from old keys to new: every new key exists, and every old one of the first documents is there."""

from __future__ import annotations

import re
from pathlib import Path

import attrs

from qframe.config.schema import Config
from qframe.config.strict import fields_of, nested

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "coming-from.md"
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in PAGE.read_text(encoding="utf-8").splitlines()
    if line.startswith(("| `", "| section "))
]
OLD = (
    *("train.gradient_checkpointing", "train.mixed_precision", "train.max_grad_norm"),
    *("cache.vae_encoder_device", "cache.text_encoder_device", "cache.cache_dir", "cache.use_cache"),
    *("predict.devices.vae", "predict.devices.text_encoder", "predict.devices.transformer"),
)
"""The whole example of that trainer's documents."""


def keys(cls: type, prefix: str = "") -> set[str]:
    found = set()
    for name, attribute in fields_of(cls).items():
        found.add(prefix + name)
        inner = nested(attribute)
        if inner is not None and attrs.has(inner):
            found |= keys(inner, f"{prefix}{name}.")
    return found


OPEN = ("recipe.", "data.options.", "denoiser.options.", "encoder.options.")
"""Tables whose keys a plugin declares."""


def test_every_new_key_exists() -> None:
    known = keys(Config)
    named = {row[0]: [key for key in re.findall(r"`([\w.]+)`", row[1]) if not key.startswith(OPEN)] for row in ROWS}
    assert len(named) > 100
    assert {old: set(new) - known for old, new in named.items() if not set(new) <= known} == {}
    assert all("`" in row[1] for row in ROWS)


def test_every_setting_of_the_first_trainers_example_has_a_row() -> None:
    assert set(OLD) <= {row[0].strip("`") for row in ROWS}
