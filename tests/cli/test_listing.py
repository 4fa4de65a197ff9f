"""plugins list, config show, compose: what can be asked before anything is computed."""

from __future__ import annotations

import json
import re
from pathlib import Path

from qframe.config import load_config
from tests.cli.conftest import Run


def test_plugins_list_shows_families_components_and_plugins(run: Run) -> None:
    outcome = run("plugins", "list")
    assert outcome.code == 0
    sections = outcome.out.split("\n\n")
    assert sections[0].startswith("families\n")
    assert re.search(r"^  qwen-edit +qwen-edit +\S", sections[0], re.M)
    assert re.search(r"^  heun +samplers +second order", outcome.out, re.M)
    assert re.search(r"^  samplers +qframe-diffusion \S+ +qframe\.diffusion\.plugin", outcome.out, re.M)


def test_config_show_gives_value_source_and_meaning(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("[lora]\nrank = 4\n")
    outcome = run("config", "show", "--family", "qwen-edit", "--config", "a.toml", "--set", "train.seed=3")
    assert outcome.code == 0
    assert re.search(r"^lora\.rank +4 +a\.toml:2 +rank of the update$", outcome.out, re.M)
    assert re.search(r"^train\.seed +3 +--set +decides order", outcome.out, re.M)
    assert re.search(r"^encoder\.use +\S+ +family qwen-edit +registered name", outcome.out, re.M)


def test_config_show_as_toml_loads_again(run: Run, tmp_path: Path) -> None:
    outcome = run("config", "show", "--family", "qwen-edit", "--set", "lora.rank=4", "--toml")
    (tmp_path / "b.toml").write_text(outcome.out)
    assert load_config("b.toml") == load_config(family="qwen-edit", overrides=["lora.rank=4"])


def test_config_errors_end_with_2_and_name_the_key(run: Run) -> None:
    outcome = run("config", "show", "--family", "qwen-edit", "--set", "lora.rnak=4")
    assert outcome.code == 2
    assert "lora.rnak (--set): unknown key; did you mean lora.rank?" in outcome.err


def test_data_path_chooses_the_folder_source(run: Run) -> None:
    outcome = run("config", "show", "--family", "qwen-edit", "--data", "pictures")
    assert outcome.code == 0, outcome.err
    assert re.search(r'^data\.use +"folder" +default', outcome.out, re.M)


def test_settings_of_a_family_s_data_set_are_not_talked_about_beside_ones_own(run: Run) -> None:
    shown = run("config", "show", "--family", "qwen-inpaint", "--data", "pictures")
    assert (shown.code, shown.err) == (0, "")
    assert "mixture" not in shown.out


def test_compose_prints_the_table_and_the_licence(run: Run, tiny_model: Path) -> None:
    outcome = run("compose", "--family", "qwen-edit", "--model", tiny_model)
    assert outcome.code == 0
    assert "ok       latent space" in outcome.out
    assert f"Weights: {tiny_model}, licence Apache-2.0 (as family 'qwen-edit' declares)." in outcome.out


def test_compose_refuses_what_does_not_fit_with_the_table(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "other" / "vae").mkdir(parents=True)
    for name in ("model_index.json", "vae/config.json"):
        (tmp_path / "other" / name).write_text((tiny_model / name).read_text())
    vae = json.loads((tmp_path / "other" / "vae" / "config.json").read_text())
    (tmp_path / "other" / "vae" / "config.json").write_text(
        json.dumps(vae | {"z_dim": 2, "latents_mean": [0.0, 0.0], "latents_std": [1.0, 1.0]})
    )
    outcome = run("compose", "--family", "qwen-edit", "--model", tiny_model, "--set", "codec.model=other")
    assert outcome.code == 2
    assert outcome.err.startswith("error: cannot compose: denoiser 'qwen-image' (plugin qwen)")
    assert re.search(r"MISMATCH token channels +codec gives 8 +denoiser wants 16", outcome.err)


def test_missing_model_folder_ends_with_4(run: Run) -> None:
    outcome = run("compose", "--family", "qwen-edit", "--model", "./nowhere")
    assert outcome.code == 4
    assert "error: model './nowhere': there is no such folder" in outcome.err
