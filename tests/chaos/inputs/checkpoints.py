"""Training runs: checkpoints, metrics and sessions as a faulty disk, another program or another version left them."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import nn

from qframe.config import dump_config, load_config
from qframe.config.schema import TrainConfig
from qframe.files.lora_file import find_lora
from qframe.files.storage import MANIFEST, file_digest
from qframe.plugins.registry import load_registry
from qframe.train import resume
from qframe.train.optim import Optimizers, WeightAverage
from qframe.train.run import Run
from qframe.train.state import TrainingState, find_checkpoint, read_about, restore, save_checkpoint
from tests.chaos.inputs.judging import Case, called, command
from tests.chaos.inputs.mutating import json_bytes, mutated_bytes, mutated_json, mutated_text, mutated_tree

_MADE_OF = {role: {"class": "x", "weights": "0" * 64} for role in ("encoder", "codec", "denoiser", "schedule")}


class Checkpoints:
    """Spoils a file of a run, with or without the right checksum; then goes on from it, or reports it."""

    def __init__(self, folder: Path) -> None:
        self._whole = folder / "whole"
        self._run = folder / "run"
        self._registry = load_registry()
        self._config = load_config(family="qwen-edit", values={"output": str(self._run)})
        state = _state()
        toml = dump_config(self._config)
        for _ in range(2):
            for parameter in state.parameters.values():
                parameter.grad = torch.ones_like(parameter)
            state.optimizers.step(state.step)
            state.step += 1
            about = {"data": "d", "family": "qwen-edit", "made_of": _MADE_OF, "processes": 1}
            save_checkpoint(self._whole, state, config=toml, about=about, keep=2)
        (self._whole / "config.toml").write_text(toml)
        steps = [json.dumps({"step": step, "loss": 0.5, "learning_rate": 1e-4}) for step in range(1, 5)]
        (self._whole / "metrics.jsonl").write_text("\n".join(steps) + "\n")
        session = {
            "resumed_from": None,
            "changes": [],
            "base_model": "x",
            "weights_licence": "y",
            "sources": {"model": "default"},
            "data": {"records": 2, "shapes": [[64, 64, 2]], "groups": [["a", 2]]},
            "machine": {"device": "cpu", "torch": "2"},
        }
        (self._whole / "sessions.jsonl").write_text(json.dumps(session) + "\n")

    def case(self, draw: Random) -> Case:
        shutil.rmtree(self._run, ignore_errors=True)
        shutil.copytree(self._whole, self._run)
        newest = self._run / "checkpoints" / "step-00000002"
        about = self._spoil_checkpoint(draw, newest) if draw.random() < 0.65 else self._spoil_run(draw)
        before = _digests(self._run / "checkpoints")
        kind = draw.random()
        if kind < 0.6:
            wanted = draw.choice(("latest", "latest", "step-00000002", str(newest)))
            return Case(
                f"resume {wanted}: {about}",
                lambda: called(lambda: self._resume(wanted)),
                lambda code: None if _digests(self._run / "checkpoints") == before else "the checkpoints are changed",
            )
        if kind < 0.9:
            page = self._run / "page.html"
            return Case(
                f"report: {about}",
                lambda: command("report", self._run, "--output", page),
                lambda code: None if (code == 0) == page.exists() else "the page does not go with it",
            )
        return Case(f"its LoRA: {about}", lambda: called(lambda: find_lora(self._run)))

    def _resume(self, wanted: str) -> None:
        """Go on from a checkpoint as a session does, with a tiny network."""
        checkpoint = find_checkpoint(self._run, wanted)
        resume.check_changes(checkpoint, self._config, self._registry)
        step = int(read_about(checkpoint)["step"])
        resume.check_length(step, 10, "train.max_steps")
        resume.check_parts(checkpoint, _MADE_OF)
        resume.check_data(checkpoint, "d")
        state = _state()
        restore(checkpoint, state)
        assert state.step == step
        run = Run(folder=self._run, config=self._config)
        run.rewind(state.step)
        json.dumps(run.logged())
        for parameter in state.parameters.values():
            parameter.grad = torch.ones_like(parameter)
        state.optimizers.step(state.step)

    def _spoil_checkpoint(self, draw: Random, folder: Path) -> str:
        """Spoil a file of a checkpoint; mostly the manifest says what the file holds then."""
        file = draw.choice(sorted(folder.iterdir()))
        data = file.read_bytes()
        if file.name == MANIFEST or (file.suffix == ".json" and draw.random() < 0.85):
            data, told = mutated_json(draw, json.loads(data))
        elif file.suffix == ".safetensors" and draw.random() < 0.6:
            data, told = _tensors(draw, file)
        elif file.suffix == ".toml" and draw.random() < 0.6:
            data, told = mutated_text(draw, data.decode()).encode("utf-8", "surrogatepass"), "text"
        else:
            data, told = mutated_bytes(draw, data)
        file.write_bytes(data)
        if draw.random() < 0.15:
            name = draw.choice(("slices.json", "average.safetensors", "x"))
            (folder / name).write_bytes(_slices(draw) if name == "slices.json" else b"{}")
            told += f", and {name}"
        if draw.random() < 0.1:
            gone = draw.choice(sorted(folder.iterdir()))
            gone.unlink()
            told += f", without {gone.name}"
        if file.name != MANIFEST and draw.random() < 0.9:
            _sign(folder)
            told += ", signed"
        return f"{file.name} {told}"

    def _spoil_run(self, draw: Random) -> str:
        name = draw.choice(("config.toml", "metrics.jsonl", "metrics.jsonl", "sessions.jsonl", "sessions.jsonl"))
        file = self._run / name
        text = file.read_text()
        kind = draw.random()
        if name != "config.toml" and kind < 0.7:
            rows = [json.loads(line) for line in text.splitlines()]
            at = draw.randrange(len(rows))
            row, told = mutated_tree(draw, rows[at])
            lines = [json.dumps(one).encode() for one in rows]
            lines[at] = json_bytes(draw, row)
            file.write_bytes(b"\n".join(lines) + b"\n")
        elif kind < 0.85:
            file.write_bytes(mutated_text(draw, text).encode("utf-8", "surrogatepass"))
            told = "text"
        elif kind < 0.9:
            file.unlink()
            file.mkdir()
            told = "a folder"
        else:
            data, told = mutated_bytes(draw, text.encode())
            file.write_bytes(data)
        return f"{name} {told}"


def _state() -> TrainingState:
    torch.manual_seed(0)
    parameters = {"layer": nn.Parameter(torch.randn(4, 3)), "bias": nn.Parameter(torch.randn(3))}
    return TrainingState(parameters, Optimizers(parameters, TrainConfig(), "blocks"), WeightAverage(parameters, 0.9))


def _tensors(draw: Random, file: Path) -> tuple[bytes, str]:
    """Change a tensor of a safetensors file; the file stays sound."""
    tensors = load_file(file)
    if not tensors:
        return file.read_bytes(), "nothing, it has no tensors"
    name = draw.choice(sorted(tensors))
    kind = draw.randrange(5)
    if kind == 0:
        tensors[name + "x"] = tensors.pop(name)
    elif kind == 1:
        tensors[name] = tensors[name].to(
            draw.choice((torch.int8, torch.float16, torch.bool, torch.complex64, torch.float8_e4m3fn))
        )
    elif kind == 2:
        shape = draw.choice(((), (0,), (1,), (4, 3, 1), (12,), (3, 4)))
        tensors[name] = torch.zeros(shape)
    elif kind == 3:
        tensors[name] = (
            torch.full_like(tensors[name], float("nan")) if tensors[name].is_floating_point() else tensors[name]
        )
    else:
        del tensors[name]
    return save(tensors), f"tensor {name}, change {kind}"


def _slices(draw: Random) -> bytes:
    entry = {"shape": [4, 3], "slices": [{"file": "weights.safetensors", "begin": [0, 0], "shape": [4, 3]}]}
    bias = {"shape": [3], "slices": [{"file": "weights.safetensors", "begin": [0], "shape": [3]}]}
    tree: Any = {
        "format": "qframe-slices-1",
        "tensors": {
            "weights": {"layer": entry, "bias": bias},
            "optimizer": {},
            "average": {"layer": entry, "bias": bias},
        },
    }
    return mutated_json(draw, tree)[0]


def _sign(folder: Path) -> None:
    listed = {
        path.name: {"sha256": file_digest(path), "size": path.stat().st_size}
        for path in folder.iterdir()
        if path.name != MANIFEST
    }
    (folder / MANIFEST).write_text(json.dumps({"format": "qframe-manifest-1", "files": listed}))


def _digests(folder: Path) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}
