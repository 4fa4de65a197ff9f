"""The key `memory` chooses only what is open, as little as is needed, and the presets fit their cards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import qframe
from qframe.cli import main
from qframe.config.memory import memory_bytes
from qframe.config.schema import Config
from qframe.preflight.forecast import CUDA, RESERVE
from qframe.train.trainer import Trainer
from qframe_plan.planning import CARD, Card, Setting, planned
from tests.full_size.stand_in import Depth, write_stand_in
from tests.qwen import tiny

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.tiny_qwen_model(tmp_path_factory.mktemp("tiny-plan"), layers=4).folder


def config(model: Path, *overrides: str) -> Config:
    return qframe.load_config(family="qwen-edit", values={"model": str(model)}, overrides=overrides)


def chosen(setting: Setting) -> dict[str, object]:
    return {choice.key: choice.value for choice in setting.choices}


def above_the_allowance(kibibytes: int) -> str:
    return f"{RESERVE // 1024 + kibibytes}KiB"


def test_amounts_of_memory_are_read_as_people_write_them() -> None:
    assert memory_bytes("24GB") == 24 * 10**9
    assert memory_bytes(" 1.5 gib ") == 3 * 2**29
    for wrong in ("", "24", "GB", "-3GB", "0GB", "24 G"):
        with pytest.raises(ValueError, match="expected"):
            memory_bytes(wrong)


@pytest.mark.slow
def test_nothing_is_chosen_where_all_fits_and_more_is_chosen_the_less_there_is(model: Path) -> None:
    ample = planned(config(model), "24GB")
    assert ample.fits
    assert chosen(ample) == {}
    parts = ample.forecast.needs[CARD]["training"]
    assert parts[CUDA] == RESERVE
    step = sum(parts.values()) - RESERVE
    smaller = planned(config(model), above_the_allowance(step // 1024 - 20))
    assert chosen(smaller).get("train.gradient_checkpointing") is True
    assert "denoiser.resident_blocks" not in chosen(smaller)
    least = planned(config(model), above_the_allowance(1))
    assert chosen(least)["denoiser.resident_blocks"] == 0
    assert chosen(least)["train.offload_inputs"] is True
    assert chosen(least)["cache.batch_size"] == 1
    assert chosen(least)["encoder.resident_blocks"] == 0
    assert not least.fits
    assert least.training < smaller.training < ample.training
    assert least.copies == 2 * 4
    assert all("would need" in choice.reason for choice in least.choices)


def test_keys_that_are_set_are_not_chosen(model: Path) -> None:
    own = (
        "denoiser.resident_blocks=2",
        "train.offload_inputs=false",
        "cache.batch_size=4",
        "encoder.resident_blocks=1",
    )
    found = chosen(planned(config(model, *own), above_the_allowance(1)))
    assert found == {"train.gradient_checkpointing": True}  # streamed blocks need it


def test_on_a_cpu_nothing_is_chosen(model: Path) -> None:
    settings = config(model, "device=cpu", "memory=1MB", "data.options.count=2")
    trainer = Trainer(settings)
    assert trainer.outlook.choices == ()
    assert trainer.config == trainer.asked


def test_a_step_takes_as_long_as_the_longer_of_computing_and_copying() -> None:
    assert Card(rate=100.0, bandwidth=10.0).seconds(200, 50) == 5.0
    assert Card(rate=100.0, bandwidth=10.0).seconds(900, 50) == 9.0
    assert Card(rate=100.0).seconds(200, 0) == 2.0
    assert Card(rate=100.0).seconds(200, 1) is None
    assert Card().seconds(200, 0) is None


def test_the_command_lists_settings_for_people_and_for_programs(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["plan", "--family", "qwen-image", "--model", str(model), "--memory", "24GB"]
    assert main([*arguments, "--json", "--rate", "1G", "--bandwidth", "1GB"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows[0]["weights"] == "bfloat16"
    assert rows[0]["fits"] is True
    assert rows[0]["seconds"]["this card"] == rows[0]["flops"] / 1e9
    assert main(["plan", "--family", "qwen-image", "--model", str(model), "--memory", "much"]) == 2
    assert '--memory: expected "auto" or an amount' in capsys.readouterr().err


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "model"
    write_stand_in(folder, Depth())
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("size", [24, 16, 12, 8])
def test_a_preset_fits_its_card_at_full_size_with_the_allowance_for_cuda(size: int, published: Path) -> None:
    preset = qframe.load_config(CONFIGS / f"qwen-edit-{size}gb.toml", values={"model": str(published)})
    assert preset.memory == f"{size}GB"
    found = planned(preset, preset.memory)
    assert found.fits
    assert all(parts[CUDA] == RESERVE for parts in found.forecast.needs[CARD].values())
    assert found.host < 48 * 2**30


@pytest.mark.slow
def test_an_edit_lora_at_a_megapixel_takes_at_most_six_gigabytes_encoding_included(published: Path) -> None:
    preset = qframe.load_config(
        CONFIGS / "qwen-edit-8gb.toml", values={"model": str(published)}, overrides=["codec.options.tiling=true"]
    )
    found = planned(preset, "6GB")
    assert found.fits
    assert "encoding prompts" in found.forecast.needs[CARD]
