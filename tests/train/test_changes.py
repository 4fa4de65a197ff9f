"""Settings that change on the way: named by the user, or of no importance; and folders under another name."""
# ruff: noqa: F811 (fixtures of a neighbouring module are imported, and named as arguments)

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from PIL import Image
from torch import nn

import qframe
from qframe.cli import main
from qframe.config import dump_config
from qframe.config.schema import Config
from qframe.errors import ConfigError, WeightsError
from qframe.train.optim import Optimizers
from qframe.train.trainer import Trainer
from qframe_optimizers.options import AdamWOptions
from tests.train.test_trainer import config, model, same, weights  # noqa: F401 (fixtures)

QUIET = ("data.options.validation=0", "sample.count=0")
BEGUN = (*QUIET, "train.max_steps=2")


def logged(folder: Path, name: str) -> list[float]:
    return [json.loads(line)[name] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_named_change_holds_from_there_on_and_is_recorded(config: Callable[..., Config], tmp_path: Path) -> None:
    Trainer(config("run", *BEGUN)).fit()
    changed = config("run", *QUIET, "train.learning_rate=0.01", "train.weight_decay=0.5")
    with pytest.raises(WeightsError, match=r"train\.learning_rate: was 0.05, is 0.01") as caught:
        Trainer(changed).fit("latest")
    assert "--change train.learning_rate --change train.weight_decay" in str(caught.value.hint)
    trainer = Trainer(changed)
    trainer.fit("latest", change=["train.learning_rate", "train.weight_decay"])
    assert logged(tmp_path / "run", "learning_rate") == pytest.approx([0.05, 0.05, 0.01, 0.01])
    (group,) = trainer.optimizers[0].param_groups
    assert (group["weight_decay"], group["betas"]) == (0.5, (0.9, 0.999))
    sessions = [json.loads(line) for line in (tmp_path / "run" / "sessions.jsonl").read_text().splitlines()]
    assert sessions[-1]["resumed_from"] == 2
    assert "changed since the checkpoint: train.learning_rate was 0.05, is 0.01" in sessions[-1]["changes"]
    assert Trainer(changed).fit("latest"), "the new value is the one of the run now"


def test_options_of_the_optimizer_change_and_its_moments_stay(config: Callable[..., Config], tmp_path: Path) -> None:
    def whole(name: str, betas: str) -> dict[str, Any]:
        Trainer(config(name, *BEGUN)).fit()
        run = config(name, *QUIET, f"train.optimizer_options.betas={betas}")
        trainer = Trainer(run)
        trainer.fit("latest", change=["train.optimizer_options.betas"])
        assert list(trainer.optimizers[0].param_groups[0]["betas"]) == json.loads(betas)
        assert all(state["step"] == 4 for state in trainer.optimizers[0].state.values())
        return weights(tmp_path / name)

    Trainer(config("plain", *QUIET)).fit()
    assert same(whole("equal", "[0.9, 0.999]"), weights(tmp_path / "plain")), "naming what does not change"
    assert not same(whole("other", "[0.5, 0.9]"), weights(tmp_path / "plain"))


def test_what_would_corrupt_a_run_cannot_be_named(config: Callable[..., Config]) -> None:
    Trainer(config("run", *BEGUN)).fit()
    with pytest.raises(ConfigError, match=r"lora\.rank cannot change within a run"):
        Trainer(config("run", *QUIET, "lora.rank=8")).fit("latest", change=["lora.rank"])


def test_the_command_line_names_a_change_and_sets_it(
    config: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.toml"
    file.write_text(dump_config(config("run", *BEGUN)))
    longer = ("--set", "train.max_steps=3")
    assert main(["train", "--config", str(file)]) == 0
    assert main(["train", "--config", str(file), *longer, "--change", "train.learning_rate=0.02"]) == 2
    assert "--change goes with --resume" in capsys.readouterr().err
    assert main(["train", "--config", str(file), *longer, "--resume", "--change", "train.seed=3"]) == 2
    assert "These can: train.learning_rate" in capsys.readouterr().err
    assert main(["train", "--config", str(file), *longer, "--resume", "--change", "train.learning_rate=0.02"]) == 0
    assert logged(tmp_path / "run", "learning_rate") == pytest.approx([0.05, 0.05, 0.02])


def test_the_same_files_under_another_path_go_on(
    config: Callable[..., Config], tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures and model spelled differently, and moved; other pictures stay refused."""
    data = tmp_path / "pictures"
    data.mkdir()
    for name, colour in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (64, 64), colour).save(data / f"{name}.png")
        Image.new("RGB", (64, 64), "white").save(data / f"{name}_ref.png")
        (data / f"{name}.txt").write_text(f"make it {colour}")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model, tmp_path / "copy")

    def settings(output: str, path: str, model: Path, steps: int) -> Config:
        lines = ["train.learning_rate=0.05", f"train.max_steps={steps}", "sample.count=0", "device=cpu", "lora.rank=4"]
        values = {"model": str(model), "output": output, "data": {"path": path}}
        return qframe.load_config(family="qwen-edit", values=values, overrides=lines)

    Trainer(settings("run", str(data), model, 2)).fit()
    Trainer(settings("whole", str(data), model, 4)).fit()
    elsewhere = settings("run", "pictures/../pictures", tmp_path / "copy", 4)
    Trainer(elsewhere).fit("latest")
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))
    Image.new("RGB", (64, 64), "green").save(data / "a.png")
    with pytest.raises(WeightsError, match="the data set is not the one"):
        Trainer(elsewhere).fit("latest")


def test_a_state_does_not_bring_the_kernels_of_another_device(config: Callable[..., Config]) -> None:
    """A checkpoint of the fused kernels goes on where there are none, and the other way round."""
    run = config("run").train

    def optimizers(fused: bool) -> Optimizers:
        options = AdamWOptions(fused=fused)
        parameters = {"a": nn.Parameter(torch.ones(3))}
        return Optimizers(parameters, attrs.evolve(run, optimizer_options=options), "blocks")

    saved = optimizers(fused=True).state()
    loaded = optimizers(fused=False)
    loaded.load([{**saved[0], "groups": [{**saved[0]["groups"][0], "fused": True}]}])
    assert not loaded.parts[0].param_groups[0]["fused"]
    assert "fused" not in saved[0]["groups"][0]
