"""Which settings a resumed run may change: decided for every key, on purpose."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from qframe.config.schema import ROLES, Config
from qframe.errors import ConfigError
from qframe.train.resume import _FREE, CHANGEABLE, check_changeable

_OF_COMPONENTS = [
    f"{role}.{key}" for role in ROLES if role != "sampler" for key in ("use", "dtype", "options", "quantise.")
]
REFUSED = {
    "the model is another": ("family", "dtype", "recipe", "compose.", *_OF_COMPONENTS),
    "the data are others, or in another order": (
        *(f"data.{key}" for key in ("use", "options", "holdout")),
        "train.batch",
        "train.tokens_per_batch",
    ),
    "what is trained is another": (
        *(f"lora.{key}" for key in ("rank", "alpha", "dropout", "dora", "rslora", "targets")),
        "train.mode",
    ),
    "the steps to come are others": (
        "train.epochs",  # but for more of them
        "train.gradient_accumulation",
        "train.seed",
        "train.precision",
        "train.optimizer",
        "train.learning_rate",
        "train.weight_decay",
        "train.lr_",
        "train.warmup_steps",
        "train.max_grad_norm",
        "train.ema_decay",
        "train.timestep_density",
        "train.logit_",
        "train.loss_weighting",
        "train.sigma_floor",
        "train.caption_dropout",
        "train.guidance_scale",
    ),
}


def keys(section: type = Config, prefix: str = "") -> Iterator[str]:
    hints = typing.get_type_hints(section)
    for field in attrs.fields(section):
        kind = hints[field.name]
        name = f"{prefix}{field.name}"
        yield from keys(kind, f"{name}.") if attrs.has(kind) else (name,)


@pytest.mark.parametrize("key", list(keys()))
def test_every_setting_is_free_to_change_or_refused_on_purpose(key: str) -> None:
    """Whoever adds a key decides whether a resumed run may change it."""
    reasons = [reason for reason, prefixes in REFUSED.items() if key.startswith(prefixes)]
    assert key.startswith(_FREE) != bool(reasons), "free and refused" if reasons else "in neither list"
    assert len(reasons) <= 1


def test_no_free_setting_is_left_of_keys_that_are_gone() -> None:
    known = [*keys(), "train.optimizer_options."]
    assert [free for free in (*_FREE, *CHANGEABLE) if not any(key.startswith(free) for key in known)] == []


@pytest.mark.parametrize("key", CHANGEABLE)
def test_what_may_change_if_it_is_named_is_refused_otherwise(key: str) -> None:
    assert not key.startswith(_FREE)
    check_changeable([f"{key}betas" if key.endswith(".") else key])


def test_what_would_make_a_checkpoint_useless_cannot_be_named() -> None:
    with pytest.raises(ConfigError, match=r"--change: lora.rank, data.path cannot change within a run") as caught:
        check_changeable(["lora.rank", "train.learning_rate", "data.path"])
    assert "train.lr_schedule" in str(caught.value.hint)


def test_the_guide_lists_what_may_change() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "resume-and-checkpoints.md").read_text(encoding="utf-8")
    table = guide.partition("## What may change")[2].partition("Anything else")[0]
    listed = tuple(name.removesuffix("*") for name in re.findall(r"`([a-z_.*]+)`", table))
    devices = ("denoiser.device", "codec.device", "schedule.device")  # "and those of other components"
    models = tuple(f"{role}.model" for role in ROLES)  # likewise
    assert [key for key in keys() if key.startswith(_FREE) and not key.startswith((*listed, *devices, *models))] == []


def test_the_guide_lists_what_may_change_if_it_is_named() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "resume-and-checkpoints.md").read_text(encoding="utf-8")
    section = guide.partition("## Change a setting on the way")[2].partition("\n## ")[0]
    assert [key for key in CHANGEABLE if f"`{key.removesuffix('.')}`" not in section] == []
