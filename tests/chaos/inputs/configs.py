"""Configurations: files of TOML and of other programs, and overrides on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import tomli

import qframe
from qframe.config import dump_config, load_config
from qframe.config.stored import config_items
from tests.chaos.inputs.judging import Case, command
from tests.chaos.inputs.mutating import mutated_bytes, mutated_text, mutated_tree, odd_value

_FAMILIES = ("qwen-image", "qwen-edit", "qwen-edit-plus", "qwen-inpaint", "qwen-edit-inpaint")
_ELSEWHERE = (
    {"job": "extension", "config": {"name": "x", "process": [{"type": "sd_trainer", "network": {"linear": 16}}]}},
    {"--model_type": "lora", "--lora_rank": 16, "--learning_rate": "1e-4", "model_family": "qwen_image"},
    {"training_method": "LORA", "__version": 10, "lora_rank": 16, "concepts": [{"path": "x"}]},
)


class Configs:
    """Changes example configurations and single values, and lets `config show` and `compose` read them."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "run.toml"
        examples = sorted((Path(qframe.__file__).parents[1] / "configs").glob("*.toml"))
        self._texts = [path.read_text(encoding="utf-8") for path in examples]
        full = [load_config(family=family) for family in _FAMILIES]
        self._texts += [dump_config(config) for config in full]
        self._trees = [tomli.loads(text) for text in self._texts]
        self._keys = sorted({key for config in full for key in config_items(config)})

    def case(self, draw: Random) -> Case:
        kind = draw.random()
        then = draw.choice((("config", "show"), ("config", "show"), ("compose",)))
        if kind < 0.35:
            given = [f"{key}={toml(odd_value(draw))}" for key in draw.choices(self._keys, k=draw.choice((1, 1, 2)))]
            if draw.random() < 0.2:
                given = [mutated_text(draw, given[0])[:20_000]]
            given = [one.replace("\0", "0").encode("utf-8", "replace").decode() for one in given]
            options = [part for one in given for part in ("--set", one)]
            family = draw.choice(_FAMILIES)
            about = f"{family}: {[ascii(one)[:200] for one in given]}"
            return Case(about, lambda: command(*then, "--family", family, *options))
        if kind < 0.6:
            tree, about = mutated_tree(draw, draw.choice(self._trees))
            data = _document(tree).encode("utf-8", "surrogatepass")
        elif kind < 0.85:
            data, about = mutated_text(draw, draw.choice(self._texts)).encode("utf-8", "surrogatepass"), "text"
        elif kind < 0.95:
            data, about = mutated_bytes(draw, draw.choice(self._texts).encode())
        else:
            tree, about = mutated_tree(draw, draw.choice(_ELSEWHERE))
            data = json.dumps(tree, indent=1).encode("utf-8", "surrogatepass")
        self._file.write_bytes(data)
        return Case(f"{then}: {about}", lambda: command(*then, "--config", self._file))


def toml(value: Any) -> str:
    """A value as TOML spells it; what TOML has not is spelled in some way."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if value is None:
        return "null"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(key)} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        try:
            return "[" + ", ".join(map(toml, value)) + "]"
        except RecursionError:
            return "[" * 3000
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value)


def _key(key: Any) -> str:
    text = str(key)
    return text if text.replace("_", "").replace("-", "").isalnum() and text.isascii() else json.dumps(text)


def _document(tree: Any) -> str:
    """A tree as a document of TOML, as far as it is one."""
    if not isinstance(tree, dict):
        return toml(tree)
    plain = [f"{_key(key)} = {toml(value)}" for key, value in tree.items() if not isinstance(value, dict)]
    tables = []
    for key, value in tree.items():
        if isinstance(value, dict):
            tables += [f"[{_key(key)}]", *(f"{_key(name)} = {toml(item)}" for name, item in value.items())]
    return "\n".join([*plain, *tables]) + "\n"
