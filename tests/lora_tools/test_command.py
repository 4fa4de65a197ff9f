"""`qframe lora`: what files hold, other layouts, merging, on a tiny checkpoint of Qwen-Image's architecture."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from PIL import Image
from safetensors.torch import load_file, save_file

import qframe
from qframe.adapters import LoraLayer, add_updates, describe_lora, layer_names, read_lora, save_lora
from qframe.files.storage import verify_folder
from tests.cli.conftest import Run

NAMES = [f"transformer_blocks.{block}.attn.{part}" for block in range(2) for part in ("to_q", "to_out.0")]


@pytest.fixture
def layers(tiny_model: Path) -> dict[str, LoraLayer]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: LoraLayer(torch.randn(4, 32, generator=generator), torch.randn(32, 4, generator=generator) * 0.1, 10.0)
        for name in NAMES
    }


@pytest.fixture
def file(layers: dict[str, LoraLayer], tmp_path: Path) -> Path:
    about = {"base_model": "tiny", "weights_licence": "apache-2.0"}
    save_lora(tmp_path / "a.safetensors", layers, metadata=about)
    return tmp_path / "a.safetensors"


def transformer(folder: Path) -> QwenImageTransformer2DModel:
    return QwenImageTransformer2DModel.from_pretrained(folder / "transformer")  # type: ignore[no-any-return]


def test_info_says_what_a_file_holds(run: Run, file: Path) -> None:
    outcome = run("lora", "info", file)
    assert outcome.code == 0, outcome.err
    rows = {line[:13].strip(): line[13:] for line in outcome.out.splitlines()[1:11]}
    assert rows == {
        "layout": "diffusers",
        "kind": "LoRA",
        "layers": "4",
        "rank": "4",
        "alpha": "10",
        "scale": "2.5",
        "dtype": "F32",
        "size": f"{file.stat().st_size / 1e6:.1f} MB",
        "base model": "tiny",
        "licence": "apache-2.0",
    }
    assert "2 x transformer_blocks.*.attn.to_out.0" in outcome.out


def test_info_as_json_names_every_layer(run: Run, file: Path, layers: dict[str, LoraLayer]) -> None:
    told = json.loads(run("lora", "info", file, "--json").out)
    assert [layer["name"] for layer in told["layers"]] == sorted(layers)
    assert told["layers"][0] == {
        "name": "transformer_blocks.0.attn.to_out.0",
        "kind": "LoRA",
        "rank": 4,
        "alpha": 10.0,
        "scale": 2.5,
        "in": 32,
        "out": 32,
        "dtype": "F32",
    }
    assert (told["layouts"], told["dora"], told["base_model"]) == (["diffusers"], False, "tiny")


def test_info_of_another_programs_file_needs_no_model(run: Run, file: Path, layers: dict[str, LoraLayer]) -> None:
    save_lora(file, {**layers, NAMES[0]: LoraLayer(torch.ones(2, 32), torch.ones(32, 2), 1.0)}, layout="kohya")
    save_file(load_file(file), file)
    out = run("lora", "info", file).out
    assert "kohya" in out
    assert "2 to 4" in out
    assert "0.5 to 2.5" in out
    assert "not given" in out
    assert "2 x transformer_blocks_*_attn_to_q" in out


def test_info_of_what_is_no_lora_ends_with_4(run: Run, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"no")
    outcome = run("lora", "info", tmp_path / "x")
    assert outcome.code == 4
    assert "not a safetensors file" in outcome.err


def test_converting_there_and_back_loses_nothing(run: Run, file: Path, layers: dict[str, LoraLayer]) -> None:
    way = [("comfyui", "b"), ("kohya", "c"), ("diffusers", "d")]
    source: Path | str = file
    for layout, target in way:
        outcome = run("lora", "convert", source, "--to", layout, "--output", target)
        assert outcome.code == 0, outcome.err
        assert outcome.out == f"wrote {target}\n"
        source = target
    read = read_lora(Path("d"))
    assert all(read[name].equals(layers[name]) for name in layers)
    assert describe_lora(Path("d")).metadata == describe_lora(file).metadata
    assert "diffusion_model.transformer_blocks.0.attn.to_q.alpha" in load_file("b")
    assert "lora_unet_transformer_blocks_0_attn_to_q.alpha" in load_file("c")


def test_converting_refuses_what_exists_and_what_cannot_be_written(
    run: Run, file: Path, layers: dict[str, LoraLayer]
) -> None:
    outcome = run("lora", "convert", file, "--to", "kohya", "--output", file)
    assert outcome.code == 4
    assert "exists already" in outcome.err
    dora = {name: LoraLayer(one.down, one.up, one.alpha, torch.ones(32)) for name, one in layers.items()}
    save_lora(file, dora)
    outcome = run("lora", "convert", file, "--to", "comfyui", "--output", "b")
    assert outcome.code == 2
    assert "no place for the magnitudes of DoRA" in outcome.err
    assert "qframe lora merge" in outcome.err
    assert not Path("b").exists()


def test_flattened_names_are_told_by_a_model(
    run: Run, file: Path, layers: dict[str, LoraLayer], tiny_model: Path
) -> None:
    save_lora(Path("kohya"), layers, layout="kohya")
    save_file(load_file("kohya"), "kohya")
    outcome = run("lora", "convert", "kohya", "--to", "diffusers", "--output", "b")
    assert outcome.code == 4
    assert "--model" in outcome.err
    outcome = run("lora", "convert", "kohya", "--to", "diffusers", "--output", "b", "--model", tiny_model)
    assert outcome.code == 0, outcome.err
    read = read_lora(Path("b"))
    assert all(read[name].equals(layers[name]) for name in layers)
    outcome = run("lora", "convert", "kohya", "--to", "diffusers", "--output", "c", "--set", "denoiser.model=elsewhere")
    assert outcome.code == 2  # half of a choice is not ignored
    assert "no family is chosen" in outcome.err


def test_merging_writes_a_denoiser_that_qframe_and_diffusers_read(
    run: Run, file: Path, layers: dict[str, LoraLayer], tiny_model: Path
) -> None:
    save_lora(Path("b.safetensors"), dict(list(layers.items())[:1]), layout="comfyui")
    outcome = run(
        "lora", "merge", "--model", tiny_model, "--lora", f"{file}:0.5", "--lora", "b.safetensors", "--output", "merged"
    )
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines()[-1] == "wrote merged; use it with --set denoiser.model=merged"
    expected = transformer(tiny_model)
    assert set(NAMES) <= set(layer_names(expected))
    add_updates(expected, [(layers, 0.5), (dict(list(layers.items())[:1]), 1.0)])
    merged = transformer(Path("merged")).state_dict()
    start = transformer(tiny_model).state_dict()
    assert all(torch.equal(tensor, merged[name]) for name, tensor in expected.state_dict().items())
    assert {name for name in start if not torch.equal(start[name], merged[name])} == {f"{n}.weight" for n in NAMES}
    pipe = qframe.load("qwen-edit", model=tiny_model, overrides=["denoiser.model=merged"])
    assert torch.equal(pipe.parts.denoiser.module.state_dict()[f"{NAMES[0]}.weight"], merged[f"{NAMES[0]}.weight"])
    assert verify_folder(Path("merged")) == []
    about = json.loads(Path("merged/about.json").read_text())
    assert [(one["lora"], one["weight"]) for one in about["merged"]] == [("a.safetensors", 0.5), ("b.safetensors", 1.0)]


def test_every_layout_and_the_merged_model_give_the_same_picture(run: Run, file: Path, tiny_model: Path) -> None:
    what = ("--family", "qwen-image", "--model", tiny_model, "--prompt", "a", "--steps", 2, "--size", "64x32")
    for layout in ("comfyui", "kohya"):
        run("lora", "convert", file, "--to", layout, "--output", layout)
    run("lora", "merge", "--model", tiny_model, "--lora", "kohya", "--output", "merged")
    ways = {
        "plain": (),
        "diffusers": ("--lora", file),
        "comfyui": ("--lora", "comfyui"),
        "kohya": ("--lora", "kohya"),
        "merged": ("--set", "denoiser.model=merged"),
    }
    for name, way in ways.items():
        outcome = run("sample", *what, *way, "--output", f"{name}.png")
        assert outcome.code == 0, outcome.err
    found = {name: np.asarray(Image.open(f"{name}.png"), dtype=int) for name in ways}
    assert abs(found["diffusers"] - found["plain"]).max() > 8
    assert np.array_equal(found["comfyui"], found["diffusers"])
    assert np.array_equal(found["kohya"], found["diffusers"])
    assert abs(found["merged"] - found["diffusers"]).max() <= 1


def test_merging_keeps_the_dtype_of_the_checkpoint(run: Run, file: Path, tiny_model: Path) -> None:
    half = {name: tensor.bfloat16() for name, tensor in transformer(tiny_model).state_dict().items()}
    config = (tiny_model / "transformer" / "config.json").read_text()
    Path("half/transformer").mkdir(parents=True)
    Path("half/transformer/config.json").write_text(config)
    Path("half/transformer/qframe.json").write_text(json.dumps({"latent_space": "tiny"}))
    save_file(half, "half/transformer/diffusion_pytorch_model.safetensors", {"format": "pt"})
    common = ("lora", "merge", "--model", tiny_model, "--family", "qwen-image", "--lora", file)
    allow = ("--set", "denoiser.model=half", "--set", 'compose.allow=["latent_space"]')
    for name, options in (("own", ()), ("wide", ("--dtype", "float32"))):
        outcome = run(*common, *allow, *options, "--output", name)
        assert outcome.code == 0, outcome.err
    dtypes = [
        {t.dtype for t in load_file(f"{n}/transformer/diffusion_pytorch_model.safetensors").values()}
        for n in ("own", "wide")
    ]
    assert dtypes == [{torch.bfloat16}, {torch.float32}]


def test_merging_refuses_before_a_weight_is_read(
    run: Run, file: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qframe_qwen.denoiser import StockDenoiser

    monkeypatch.setattr(StockDenoiser, "load", lambda *_, **__: pytest.fail("the weights were read"))
    save_lora(Path("other"), {"blocks.0.to_q": LoraLayer(torch.ones(2, 32), torch.ones(32, 2), 1.0)})
    outcome = run("lora", "merge", "--model", tiny_model, "--lora", "other", "--output", "merged")
    assert outcome.code == 4
    assert "blocks.0.to_q: the network has no such linear layer" in outcome.err
    Path("merged").mkdir()
    outcome = run("lora", "merge", "--model", tiny_model, "--lora", file, "--output", "merged")
    assert outcome.code == 4
    assert "merged: exists already" in outcome.err
    outcome = run("lora", "merge", "--model", "nowhere", "--lora", file, "--output", "new")
    assert outcome.code == 2
    assert "fits no family" in outcome.err
    outcome = run("lora", "merge", "--model", tiny_model, "--lora", f"{file}:nan", "--output", "new")
    assert outcome.code == 2
    assert not Path("new").exists()


def test_a_merge_that_fails_while_writing_leaves_nothing(
    run: Run, file: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qframe_qwen.denoiser import StockDenoiser

    whole = StockDenoiser.save

    def save(self: StockDenoiser, folder: Path, saved_as: Any = None) -> None:
        whole(self, folder, saved_as)
        (weights,) = (folder / "transformer").glob("*.safetensors")
        tensors = load_file(weights)
        tensors["proj_out.weight"] = tensors["proj_out.weight"] + 1
        save_file(tensors, weights)

    monkeypatch.setattr(StockDenoiser, "save", save)
    outcome = run("lora", "merge", "--model", tiny_model, "--lora", file, "--output", "merged")
    assert outcome.code == 4
    assert "merged: proj_out.weight does not read back as it is in memory" in outcome.err
    assert not [path for path in Path().iterdir() if "merged" in path.name]


def test_help_of_the_group_imports_no_torch() -> None:
    script = (
        "import sys; from qframe.cli import main; main(['lora', 'convert', '--help']); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, check=False).returncode == 0
