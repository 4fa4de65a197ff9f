"""The examples in configs/ are configurations that work."""

from __future__ import annotations

from pathlib import Path

import pytest

from qframe.config import dump_config, load_config

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.toml"))


def test_there_are_examples() -> None:
    assert len(CONFIGS) >= 4


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_an_example_loads_and_survives_being_stored(file: Path, tmp_path: Path) -> None:
    config = load_config(file)
    stored = tmp_path / "config.toml"
    stored.write_text(dump_config(config))
    assert load_config(stored) == config


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_an_example_says_how_to_run_it(file: Path) -> None:
    assert f"--config configs/{file.name}" in file.read_text()
