"""The builder at tiny scale: every stage runs, resumes, and is skipped when its result is there."""

from pathlib import Path

import attrs
import pytest
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file

import qframe
from qframe.files import storage
from qframe.train import loop
from qframe_shapes import build as builder
from qframe_shapes.assemble import BYTE_LIMIT, folder_bytes
from qframe_shapes.build import STAGES, BuildConfig, build

TINY = BuildConfig(output=Path(), scale=0.0005, note="A remark.")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> BuildConfig:
    config = attrs.evolve(TINY, output=tmp_path_factory.mktemp("build"))
    build(config)
    return config


@pytest.mark.slow
def test_every_stage_leaves_a_published_result_and_is_not_run_again(
    built: BuildConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [storage.verify_folder(built.folder(name)) for name in STAGES] == [[]] * len(STAGES)
    monkeypatch.setattr(builder, "STAGES", dict.fromkeys(STAGES))  # calling one would raise
    build(built)


@pytest.mark.slow
def test_the_model_loads_is_small_and_carries_its_card(built: BuildConfig) -> None:
    shipped = built.folder("checkpoint")
    assert folder_bytes(shipped) < BYTE_LIMIT
    pipeline = qframe.load("qwen-edit", model=shipped)
    picture = Image.new("RGB", (48, 64), "red")
    (edited,) = pipeline(prompt="make the circle blue", image=picture, num_inference_steps=2, seed=0).images
    assert edited.size == (48, 64)
    card = (shipped / "README.md").read_text(encoding="utf-8")
    for expected in ("license: apache-2.0", "| recolour |", "--seed 0", "A remark.", "| denoiser |", " dB on held-out"):
        assert expected in card


@pytest.mark.slow
def test_a_killed_denoiser_stage_goes_on_to_identical_weights(
    built: BuildConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = (attrs.evolve(built, output=tmp_path / name, denoiser_steps=8000) for name in ("whole", "killed"))
    for config in (whole, killed):  # four steps each, a checkpoint after each
        config.output.mkdir()
        config.folder("start").symlink_to(built.folder("start"))
        config.output.joinpath("cache").symlink_to(built.output / "cache")
    build(whole, ("denoiser",))
    with monkeypatch.context() as patch:
        patch.setattr(loop, "optimizer_step", _killed_at(2, loop.optimizer_step))
        with pytest.raises(KeyboardInterrupt):
            build(killed, ("denoiser",))
    assert not killed.folder("denoiser").exists()
    build(killed, ("denoiser",))
    name = "transformer/diffusion_pytorch_model.safetensors"
    expected, found = (load_file(config.folder("denoiser") / name) for config in (whole, killed))
    assert expected.keys() == found.keys()
    assert all(found[key].equal(value) for key, value in expected.items())
    before = load_file(built.folder("start") / name)
    assert any(not found[key].equal(value.float()) for key, value in before.items()), "nothing was trained"


def _killed_at(step: int, original):  # type: ignore[no-untyped-def]
    def killed(setup: loop.StepSetup, state, *more):  # type: ignore[no-untyped-def]
        if state.step == step:
            raise KeyboardInterrupt
        return original(setup, state, *more)

    return killed


def test_a_stage_without_its_input_says_what_to_run_first(tmp_path: Path) -> None:
    result = CliRunner().invoke(builder.main, ["--output", str(tmp_path), "--stages", "whiten"])
    assert result.exit_code == 1
    assert "stage 'vae' has no result" in result.output
    assert "run it first" in result.output


def test_an_unknown_stage_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    result = CliRunner().invoke(builder.main, ["--output", str(tmp_path), "--stages", "vae,polish"])
    assert result.exit_code == 2
    assert "unknown stages polish" in result.output
    assert "denoiser" in result.output
