"""The examples in configs/ are configurations that work."""

from __future__ import annotations

from pathlib import Path

import pytest

from qframe.config import dump_config, load_config
from qframe.errors import ConfigError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.toml"))


def test_there_are_examples() -> None:
    assert len(CONFIGS) >= 4


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_an_example_loads_and_survives_being_stored(file: Path, tmp_path: Path) -> None:
    config = load_config(file)
    stored = tmp_path / "config.toml"
    stored.write_text(dump_config(config))
    assert load_config(stored) == config


def test_a_bundled_configuration_is_found_by_its_name_where_no_file_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    wanted = load_config(CONFIGS[0])
    for name in (CONFIGS[0].stem, CONFIGS[0].name, f"configs/{CONFIGS[0].name}"):
        assert load_config(name) == wanted
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        load_config("qwen-edit-25gb")
    assert CONFIGS[0].stem in str(caught.value.hint)
    (tmp_path / CONFIGS[0].stem).write_text("family = 'qwen-image'")
    assert load_config(CONFIGS[0].stem).family == "qwen-image"


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_an_example_says_how_to_run_it(file: Path) -> None:
    assert f"--config configs/{file.name}" in file.read_text()
