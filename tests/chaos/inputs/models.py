"""Model folders: configurations, indexes, tokenizers and weights of a model, changed in every way."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file, save

from qframe.compose import compose
from qframe.config import load_config
from tests.chaos.inputs.judging import Case, called
from tests.chaos.inputs.mutating import mutated_bytes, mutated_json, mutated_text
from tests.qwen import tiny

_ROLES = {
    "vae": "codec",
    "transformer": "denoiser",
    "text_encoder": "encoder",
    "tokenizer": "encoder",
    "processor": "encoder",
}


class Models:
    """Changes one file of a tiny model, and composes and loads what reads this file."""

    def __init__(self, folder: Path) -> None:
        self._whole = folder / "whole"
        self._model = folder / "model"
        tiny.tiny_qwen_model(self._whole, layers=1)
        self._files = sorted(path.relative_to(self._whole) for path in self._whole.rglob("*") if path.is_file())

    def case(self, draw: Random) -> Case:
        shutil.rmtree(self._model, ignore_errors=True)
        shutil.copytree(self._whole, self._model, copy_function=os.link)
        relative = draw.choice(self._files)
        told = self._spoil(draw, self._model / relative)
        role = _ROLES.get(relative.parts[0]) or draw.choice(("codec", "denoiser", "encoder"))
        roles = (role,) if draw.random() < 0.7 else ()
        family = draw.choice(("qwen-image", "qwen-edit")) if role != "encoder" else "qwen-edit"
        return Case(f"{family} {relative} {told} ({roles})", lambda: called(lambda: self._load(family, roles)))

    def _load(self, family: str, roles: tuple[str, ...]) -> None:
        config = load_config(family=family, values={"model": str(self._model), "device": "cpu"})
        composition = compose(config)
        parts = composition.load(*roles)
        parts.schedule.sigmas(4, 64)
        for role in roles:
            getattr(parts, role)

    def _spoil(self, draw: Random, file: Path) -> str:
        data = file.read_bytes()
        file.unlink()
        kind = draw.random()
        if kind < 0.05:
            if draw.random() < 0.5:
                file.mkdir()
            return "missing, or a folder"
        if file.suffix == ".json" and kind < 0.85:
            data, told = mutated_json(draw, json.loads(data))
        elif file.suffix == ".safetensors" and kind < 0.55:
            data, told = _tensors(draw, data, file.parent)
        elif file.suffix == ".safetensors" and kind < 0.75:
            shard, index = "model-00001-of-00001.safetensors", f"{file.name}.index.json"
            (file.parent / shard).write_bytes(data)
            names = _names(data)
            tree: Any = {"metadata": {"total_size": len(data)}, "weight_map": dict.fromkeys(names, shard)}
            text, told = mutated_json(draw, tree)
            (file.parent / index).write_bytes(text)
            return f"index {told}"
        elif file.suffix in (".jinja", ".txt") and kind < 0.6:
            data, told = mutated_text(draw, data.decode()).encode("utf-8", "surrogatepass"), "text"
        else:
            data, told = mutated_bytes(draw, data)
        file.write_bytes(data)
        return told


def _names(data: bytes) -> list[str]:
    size = int.from_bytes(data[:8], "little")
    return [name for name in json.loads(data[8 : 8 + size]) if name != "__metadata__"]


def _tensors(draw: Random, data: bytes, folder: Path) -> tuple[bytes, str]:
    """Change a tensor of a file of weights; the file stays sound."""
    file = folder / "changed.tmp"
    file.write_bytes(data)
    tensors = load_file(file)
    file.unlink()
    name = draw.choice(sorted(tensors))
    tensor, kind = tensors[name], draw.randrange(5)
    if kind == 0:
        tensors[f"{name}_scale"] = torch.ones(1)
    elif kind == 1:
        tensors[name] = tensor.to(
            draw.choice((torch.int8, torch.float16, torch.float64, torch.bool, torch.float8_e4m3fn))
        )
    elif kind == 2:
        tensors[name] = draw.choice((tensor[None].clone(), tensor.flatten().clone(), torch.zeros(0), torch.zeros(3, 3)))
    elif kind == 3:
        tensors[name] = torch.full_like(tensor, draw.choice((float("nan"), float("inf"))))
    else:
        del tensors[name]
    return save(tensors), f"tensor {name}, change {kind}"
