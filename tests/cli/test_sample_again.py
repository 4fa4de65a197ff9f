"""`qframe sample --from`: what a picture stores is enough to make it again, to the bit."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from qframe.adapters import LoraLayer, save_lora
from qframe.sample.jobs.picture_files import write_picture
from qframe.sample.jobs.stored import Stored, read_stored
from tests.cli.conftest import Run
from tests.pixels import pixels

TEXT = ("sample", "--family", "qwen-image", "--prompt", "a red circle", "--steps", 2, "--size", "64x32")
EDIT = ("sample", "--family", "qwen-edit", "--prompt", "make it blue", "--steps", 2, "--image", "in.png")
slow = partial(pytest.param, marks=pytest.mark.slow)
INPAINT = ("--image", "in.png", "--mask", "mask.png", "--mask-edges", "soft", "--strength", 0.7)


@pytest.fixture(autouse=True)
def inputs(run: Run) -> None:
    """in.png, other.png and mask.png, in the folder of the test."""
    Image.linear_gradient("L").resize((64, 64)).convert("RGB").save("in.png")
    Image.radial_gradient("L").resize((64, 64)).convert("RGB").save("other.png")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    mask.save("mask.png")


def make_lora(model: Path, file: Path, seed: int) -> None:
    name = "transformer_blocks.0.attn.to_q"
    weights = load_file(next((model / "transformer").glob("*.safetensors")))[f"{name}.weight"]
    rows, columns = weights.shape
    generator = torch.Generator().manual_seed(seed)
    down, up = torch.randn(2, columns, generator=generator), torch.randn(rows, 2, generator=generator)
    save_lora(file, {name: LoraLayer(down, up, 2.0)})


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(("qwen-edit", "--image", "in.png"), id="edit"),
        pytest.param(("qwen-edit-inpaint", *INPAINT), id="edit-inpaint"),
        slow(("qwen-image", "--guidance", 3, "--negative-prompt", "blue", "--size", "96x64"), id="text"),
        slow(("qwen-image", "--image", "in.png", "--strength", 0.5), id="image"),
        slow(("qwen-inpaint", *INPAINT), id="inpaint"),
        slow(("qwen-inpaint", *INPAINT, "--padding-mask-crop", 4), id="inpaint-crop"),
        slow(("qwen-edit-plus", "--image", "in.png", "--image", "other.png"), id="edit-plus"),
    ],
)
def test_every_family_of_the_embedded_model_repeats_its_pictures(run: Run, arguments: tuple[Any, ...]) -> None:
    """The second of two, so that its seed and its neighbours count too."""
    family, *rest = arguments
    made = run("sample", "--family", family, "--prompt", "a red circle", "--steps", 4, "--seed", 7, *rest,
               "--num-images", 2, "--output", "a.png")  # fmt: skip
    assert made.code == 0, made.err
    again = run("sample", "--from", "a-2.png", "--output", "again.png")
    assert again.code == 0, again.err
    assert Path("again.png").read_bytes() == Path("a-2.png").read_bytes()
    assert pixels("a-2.png") != pixels("a-1.png")


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_other_formats_repeat_too_and_have_a_name_of_their_own(run: Run, tiny_model: Path, suffix: str) -> None:
    assert run(*TEXT, "--model", tiny_model, "--output", f"a{suffix}").code == 0
    outcome = run("sample", "--from", f"a{suffix}")
    assert outcome.out.splitlines()[-1] == f"wrote a-again{suffix}"
    assert Path(f"a-again{suffix}").read_bytes() == Path(f"a{suffix}").read_bytes()


def test_explicit_options_win_over_stored_ones(run: Run, tiny_model: Path) -> None:
    model = ("--model", tiny_model)
    run(*TEXT, *model, "--output", "a.png")
    run(*TEXT, *model, "--seed", 3, "--guidance", 2, "--set", "sampler.use=heun", "--output", "b.png")
    options = ("--seed", 3, "--guidance", 2, "--set", "sampler.use=heun")
    assert run("sample", "--from", "a.png", *options, "--output", "c.png").code == 0
    assert Path("c.png").read_bytes() == Path("b.png").read_bytes()
    assert pixels("b.png") != pixels("a.png")
    assert read_stored(Path("c.png")) == read_stored(Path("b.png"))
    prompt = ("--prompt", "a blue square")
    assert run("sample", "--from", "b.png", *prompt, "--output", "d.png").code == 0
    assert read_stored(Path("d.png")).request == {**read_stored(Path("b.png")).request, "prompt": "a blue square"}


def test_components_and_loras_are_stored_and_used_again(run: Run, tiny_model: Path) -> None:
    make_lora(tiny_model, Path("a.safetensors"), 0)
    changed = ("--lora", "a.safetensors:0.5", "--set", "denoiser.use=qwen-per-sample-rope", "--set", "lora.rank=3")
    assert run(*TEXT, "--model", tiny_model, *changed, "--output", "a.png").code == 0
    stored = read_stored(Path("a.png"))
    assert stored.config == {"denoiser.use": "qwen-per-sample-rope"}
    assert [(lora.file, lora.weight) for lora in stored.loras] == [("a.safetensors", 0.5)]
    outcome = run("sample", "--from", "a.png", "--output", "b.png")
    assert "It names these files, which are read: a.safetensors." in outcome.out
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    make_lora(tiny_model, Path("a.safetensors"), 1)
    refused = run("sample", "--from", "a.png", "--output", "c.png")
    assert refused.code == 4
    assert "--lora a.safetensors: is not the file that it was made from" in refused.err
    assert run("sample", "--from", "a.png", "--lora", "a.safetensors:0.5", "--output", "c.png").code == 0
    assert pixels("c.png") != pixels("a.png")


def test_changed_and_missing_pictures_are_named_and_others_replace_them(run: Run, tiny_model: Path) -> None:
    assert run(*EDIT, "--model", tiny_model, "--output", "a.png").code == 0
    Path("in.png").rename("moved.png")
    missing = run("sample", "--from", "a.png", "--output", "b.png")
    assert missing.code == 3
    assert "--image in.png: cannot be read" in missing.err
    assert "or name others: --image FILE." in missing.err
    assert run("sample", "--from", "a.png", "--image", "moved.png", "--output", "b.png").code == 0
    pixels = [Image.open(name).tobytes() for name in ("a.png", "b.png")]
    assert pixels[0] == pixels[1]
    Path("other.png").rename("in.png")
    changed = run("sample", "--from", "a.png", "--output", "c.png")
    assert changed.code == 3
    assert "--image in.png: is not the file that it was made from" in changed.err


def test_a_changed_model_is_refused_unless_it_is_named(run: Run, tmp_path: Path) -> None:
    from tests.qwen.tiny import tiny_qwen_model

    tiny_qwen_model(tmp_path / "model")
    run(*TEXT, "--model", "model", "--output", "a.png")
    config = tmp_path / "model" / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text() + " ")
    refused = run("sample", "--from", "a.png", "--output", "b.png")
    assert refused.code == 4
    assert "model 'model' is not what it was" in refused.err
    assert run("sample", "--from", "a.png", "--model", "model", "--output", "b.png").code == 0


def test_a_picture_stores_no_more_than_it_is_said_to(
    run: Run, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    Path("model").symlink_to(tiny_model)
    assert run(*EDIT, "--model", "model", "--output", "a.png", "--set", "cache.dir=secret").code == 0
    text = Image.open("a.png").info["qframe"]
    for private in (str(tmp_path), str(tiny_model), "secret", str(Path.home())):
        assert private not in text
    assert list(Image.open("a.png").info) == ["qframe"]
    assert sorted(json.loads(text)) == sorted(field.name for field in attrs.fields(Stored))


def test_metadata_are_left_out_on_request(run: Run, tiny_model: Path) -> None:
    assert run(*TEXT, "--model", tiny_model, "--no-metadata", "--output", "a.png").code == 0
    assert Image.open("a.png").info == {}
    outcome = run("sample", "--from", "a.png", "--output", "b.png")
    assert outcome.code == 3
    assert "a.png: stores no request of qframe" in outcome.err


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"config": {"cache.dir": "/tmp"}}, 7, "sets 'cache.dir'"),
        ({"config": {"denoiser.use": "os.system"}}, 2, "denoiser.use"),
        ({"config": {"threads": 10**9}}, 2, "threads"),
        ({"family": "nobody"}, 2, "nobody"),
        ({"request": {"prompt": "a", "steps": -1, "strenght": 1}}, 2, "did you mean strength?"),
        ({"request": {"prompt": "a", "image": ["/dev/zero"]}, "files": {"/dev/zero": ""}}, 3, "not a file"),
        ({"request": {"prompt": "a", "image": ["in.png"]}}, 7, "names pictures without their digests"),
        ({"request": {"prompt": "a", "image": [3]}}, 7, "names pictures without their digests"),
        ({"request": {"prompt": "a", "image": "in.png"}}, 7, "the stored image is not a list"),
        ({"model": "\x1b[2Jgone"}, 7, "names that cannot be shown"),
        ({"config": {"sampler.\x1b[2J": 1}}, 7, "sets 'sampler.\\x1b[2J'"),
        ({"loras": [{"file": "/dev/zero", "weight": 1.0, "sha256": ""}]}, 4, "/dev/zero: not a file"),
        ({"model": "nowhere/to/be/found"}, 4, "nowhere/to/be/found"),
    ],
)
def test_pictures_of_strangers_end_in_a_message(
    run: Run, tiny_model: Path, changes: dict[str, Any], code: int, message: str
) -> None:
    stored = {
        "format": "qframe-picture-1",
        "family": "qwen-image",
        "model": str(tiny_model),
        "models": {},
        "request": {"prompt": "a"},
    }
    write_picture(Path("theirs.png"), Image.new("RGB", (8, 8)), json.dumps(stored | changes))
    outcome = run("sample", "--from", "theirs.png", "--output", "a.png")
    assert (outcome.code, "Traceback" in outcome.err) == (code, False), outcome.err
    assert message in outcome.err


def test_what_a_picture_brings_is_not_mixed_with_a_file(run: Run, tiny_model: Path) -> None:
    run(*TEXT, "--model", tiny_model, "--output", "a.png")
    assert "use --set" in run("sample", "--from", "a.png", "--config", "x.toml").err
    assert "--strength" in run("sample", "--from", "a.png", "--help").out
    Path("a-again.png").write_bytes(b"mine")
    assert "a-again.png exists already" in run("sample", "--from", "a.png").err
