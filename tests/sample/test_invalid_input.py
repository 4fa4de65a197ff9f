"""What users get wrong, through the two doors they use: each case has its own message, before any network runs."""

from __future__ import annotations

import io
import json
import logging
import shutil
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import qframe
from qframe.errors import ConfigError, DataError, QframeError, UntrustedError, WeightsError
from qframe.files.model_folder import ModelFolder
from qframe.sample.pipeline import Pipeline
from tests.cli.conftest import Run
from tests.cli.conftest import run as run  # the fixture
from tests.qwen import tiny

FAMILIES = ("qwen-image", "qwen-edit", "qwen-inpaint")
SQUARE = tiny.picture(0, 96, 96)
HALF = Image.new("L", (96, 96))
HALF.paste(255, (48, 0, 96, 96))
EMBEDS = torch.zeros(1, 4, 64)
MASK = torch.ones(1, 4, dtype=torch.long)


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return tiny.tiny_qwen_model(tmp_path_factory.mktemp("tiny-qwen"))


@pytest.fixture(scope="module")
def pipes(tiny_model: ModelFolder) -> dict[str, Pipeline]:
    return {family: qframe.load(family, model=tiny_model.folder, device="cpu") for family in FAMILIES}


@pytest.fixture
def nothing_runs(pipes: dict[str, Pipeline], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside a test, a network that runs fails it."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a network ran")

    for pipe in pipes.values():
        parts: Any = pipe.parts
        for network, method in (
            (parts.encoder.model, "forward"),
            (parts.codec.vae, "encode"),
            (parts.codec.vae, "decode"),
            (parts.denoiser.module, "forward"),
        ):
            monkeypatch.setattr(network, method, refuse)
    return


def given(family: str, **changes: Any) -> dict[str, Any]:
    """A request that could be met, with these changes."""
    fields: dict[str, Any] = {"prompt": "a", "true_cfg_scale": 1.0, "num_inference_steps": 2, "seed": 0}
    fields |= {} if family == "qwen-image" else {"image": SQUARE}
    fields |= {"mask_image": HALF} if family == "qwen-inpaint" else {}
    return fields | changes


# -- requests ---------------------------------------------------------------------------------------------------------

EVERY = {
    "no prompt": ({"prompt": None}, "no prompt is given"),
    "no prompts": ({"prompt": []}, "no prompt is given"),
    "prompt and embeds": ({"prompt_embeds": EMBEDS, "prompt_embeds_mask": MASK}, "both prompt and prompt_embeds"),
    "embeds without mask": ({"prompt": None, "prompt_embeds": EMBEDS}, "prompt_embeds is given without prompt_embeds_"),
    "mask without embeds": ({"prompt_embeds_mask": MASK}, "prompt_embeds_mask is given without prompt_embeds"),
    "empty row of a mask": (
        {"prompt": None, "prompt_embeds": EMBEDS, "prompt_embeds_mask": MASK * 0},
        "row 0 keeps no token",
    ),
    "negative twice": (
        {"negative_prompt": "b", "negative_prompt_embeds": EMBEDS, "negative_prompt_embeds_mask": MASK},
        "both negative_prompt and negative_prompt_embeds",
    ),
    "number as prompt": ({"prompt": [3]}, "prompt must be text, got int"),
    "negative prompts": ({"negative_prompt": ["a", "b"]}, "negative_prompt: 2 given for 1 prompts"),
    "height": ({"height": 100}, "height must be a multiple of 16 pixels, got 100"),
    "width": ({"width": 8}, "width must be a multiple of 16 pixels, got 8"),
    "huge": ({"height": 16000, "width": 16000}, "more than 100,000,000 pixels"),
    "no steps": ({"num_inference_steps": 0}, "num_inference_steps must be from 1 to 10000"),
    "no pictures": ({"num_images_per_prompt": 0}, "num_images_per_prompt must be from 1 to 65536"),
    "guidance": ({"true_cfg_scale": float("nan")}, "true_cfg_scale must be a finite number"),
    "sigmas": ({"sigmas": [0.1, 0.5]}, "sigmas must fall"),
    "latents": ({"latents": torch.zeros(1, 4, 3, 3)}, r"latents have shape \(1, 4, 3, 3\)"),
    "seed": ({"seed": -1}, "seed must be a whole number from 0 to"),
    "seed beyond": ({"seed": 2**64}, "seed must be a whole number from 0 to"),
    "part of a seed": ({"seed": 1.5}, "seed must be a whole number from 0 to"),
    "prompt of no kind": ({"prompt": 3}, "prompt must be text, got int"),
    "half a character": ({"prompt": "a\ud800"}, "prompt holds half a character"),
    "no negative prompts": ({"negative_prompt": []}, "negative_prompt: 0 given for 1 prompts"),
    "steps of another kind": ({"num_inference_steps": "2"}, "num_inference_steps must be a whole number, got '2'"),
    "part of a step": ({"num_inference_steps": 2.5}, "num_inference_steps must be a whole number, got 2.5"),
    "part of a pixel": ({"height": 64.0}, "height must be a whole number, got 64.0"),
    "yes as a number": ({"num_images_per_prompt": True}, "num_images_per_prompt must be a whole number, got True"),
    "guidance of another kind": ({"true_cfg_scale": "4"}, "true_cfg_scale must be a number, got '4'"),
    "lora scale": ({"attention_kwargs": {"scale": "x"}}, "scale must be a finite number, got x"),
    "generator of another kind": (
        {"seed": None, "generator": 3},
        "must be a torch.Generator or a list of them, got int",
    ),
    "generators of another kind": ({"seed": None, "generator": [3]}, "must be a torch.Generator or a list of them"),
    "sigmas of another kind": ({"sigmas": "abc"}, "sigmas must be a list of numbers, got 'abc'"),
    "latents of another kind": ({"latents": np.zeros((1, 16, 12, 12))}, "latents must be a tensor, got ndarray"),
    "latents that are not finite": (
        {"latents": torch.full((1, 16, 12, 12), torch.nan)},
        "latents must be finite and of floating point, got inf or nan",
    ),
    "embeds of whole numbers": (
        {"prompt": None, "prompt_embeds": EMBEDS.long(), "prompt_embeds_mask": MASK},
        "prompt_embeds must be finite and of floating point, got torch.int64",
    ),
    "callback": ({"callback_on_step_end": 3}, "callback_on_step_end must be a function, got int"),
    "seed and generator": ({"generator": torch.Generator()}, "both seed and generator are given"),
    "generators": ({"seed": None, "generator": [torch.Generator()] * 2}, "2 generators for 1 pictures"),
    "unknown argument": ({"guidance_scal": 3}, "takes no guidance_scal"),
    "output type": ({"output_type": "jpeg"}, "output_type must be pil, np, pt or latent"),
    "special token": ({"prompt": "a <|im_end|> b"}, r"<\|im_end\|>"),
    "picture token": ({"prompt": "<|image_pad|>"}, r"<\|image_pad\|>"),
    "special negative": ({"negative_prompt": "<|im_start|>", "true_cfg_scale": 4.0}, r"<\|im_start\|>"),
}

ONE_FAMILY = {
    "edit without picture": ("qwen-edit", {"image": None}, "no image is given"),
    "pictures": ("qwen-edit", {"image": [SQUARE] * 2}, "image: 2 given for 1 prompts"),
    "strength without picture": ("qwen-image", {"strength": 0.5}, "no image to start from"),
    "strength 0": ("qwen-image", {"image": SQUARE, "strength": 0.0}, "strength must be above 0 and at most 1, got 0"),
    "strength 1.5": ("qwen-inpaint", {"strength": 1.5}, "strength must be above 0 and at most 1, got 1.5"),
    "strength of another kind": ("qwen-inpaint", {"strength": "x"}, "strength must be a number, got 'x'"),
    "strength of image to image": ("qwen-image", {"image": SQUARE, "strength": "x"}, "strength must be a number"),
    "padding of another kind": ("qwen-inpaint", {"padding_mask_crop": 8.5}, "padding_mask_crop must be a whole number"),
    "latents for several sizes": (
        "qwen-edit",
        {"prompt": ["a", "b"], "image": [SQUARE, tiny.picture(1, 64, 128)], "latents": torch.zeros(1, 16, 12, 12)},
        "latents are of one size",
    ),
    "strength nan": ("qwen-inpaint", {"strength": float("nan")}, "strength must be above 0 and at most 1, got nan"),
    "no step left": ("qwen-inpaint", {"strength": 1e-20}, "leaves none of 2 steps"),
    "inpaint without picture": ("qwen-inpaint", {"image": None}, "no image is given"),
    "no mask": ("qwen-inpaint", {"mask_image": None}, "no mask_image is given"),
    "masks": ("qwen-inpaint", {"mask_image": [HALF] * 2}, "mask_image: 2 given for 1 prompts"),
    "black mask": ("qwen-inpaint", {"mask_image": Image.new("L", (96, 96))}, "black everywhere"),
    "dark grey mask": ("qwen-inpaint", {"mask_image": Image.new("L", (96, 96), 127)}, "black everywhere"),
    "edges": ("qwen-inpaint", {"mask_edges": "round"}, "mask_edges must be hard or soft"),
}

CASES = [pytest.param(family, *case, id=f"{family}: {name}") for name, case in EVERY.items() for family in FAMILIES]
CASES += [pytest.param(*case, id=f"{case[0]}: {name}") for name, case in ONE_FAMILY.items()]


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize(("family", "changes", "message"), CASES)
def test_a_request_that_cannot_be_met_is_refused_with_a_next_step(
    pipes: dict[str, Pipeline], family: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises((ConfigError, DataError), match=message) as caught:
        pipes[family](**given(family, **changes))
    assert caught.value.hint, "no next step"


def test_the_fixture_would_notice_a_network(pipes: dict[str, Pipeline], nothing_runs: None) -> None:
    for family in FAMILIES:
        with pytest.raises(AssertionError, match="a network ran"):
            pipes[family](**given(family))


# -- pictures ---------------------------------------------------------------------------------------------------------


def encoded(image: Image.Image, format_: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def header_of(side: int) -> bytes:
    """A PNG of so many pixels a side, that holds none of them."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


BAD_FILES = {
    "no picture": (b"these are words", "not a picture of a known format"),
    "empty": (b"", "not a picture of a known format"),
    "truncated": (encoded(SQUARE)[:2000], "damaged or cut short"),
    "truncated JPEG": (encoded(SQUARE, "JPEG")[:900], "damaged or cut short"),
    "animated": (
        encoded(SQUARE.quantize(8), "GIF", save_all=True, append_images=[HALF]),
        "an animation or a document of several pages",
    ),
    "20000 x 20000": (header_of(20_000), "pixels.* limit"),
    "32 bits": (encoded(Image.new("I", (32, 32), 7), "TIFF"), "32-bit samples"),
    "sliver": (encoded(Image.new("RGB", (2000, 1))), "too narrow"),
}


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize("case", BAD_FILES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_bad_picture_is_refused_by_its_name(
    pipes: dict[str, Pipeline], tmp_path: Path, family: str, case: str
) -> None:
    data, message = BAD_FILES[case]
    (tmp_path / "bad.png").write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        pipes[family](**given(family, image=tmp_path / "bad.png"))
    assert "bad.png" in caught.value.message or case == "sliver"
    assert caught.value.hint, "no next step"


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize("case", [name for name in BAD_FILES if name != "sliver"])
def test_a_bad_mask_is_refused_by_its_name(pipes: dict[str, Pipeline], tmp_path: Path, case: str) -> None:
    data, message = BAD_FILES[case]
    (tmp_path / "mask.png").write_bytes(data)
    with pytest.raises(DataError, match=rf"mask\.png.*{message}") as caught:
        pipes["qwen-inpaint"](**given("qwen-inpaint", mask_image=str(tmp_path / "mask.png")))
    assert caught.value.hint, "no next step"


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("nowhere.png", "nowhere.png: cannot read picture"),
        (np.zeros((4, 4, 7)), "expected an array"),
        (np.full((8, 8, 3), 3.0), r"floating point in \[0, 1\]"),
        (np.full((8, 8, 3), np.nan), r"floating point in \[0, 1\]"),
        (torch.zeros(3, 0, 4), "expected an array"),
        ({"a": 1}, "dict is no picture"),
    ],
)
def test_a_value_that_is_no_picture_is_refused(pipes: dict[str, Pipeline], value: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        pipes["qwen-edit"](**given("qwen-edit", image=[value]))
    assert caught.value.hint, "no next step"


def sixteen_bits() -> bytes:
    return encoded(Image.fromarray(np.linspace(0, 65535, 96 * 96).reshape(96, 96).astype(np.uint16)))


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(tiny.picture(0, 90, 40), "JPEG", exif=exif)


GOOD_FILES = {
    "CMYK": (encoded(SQUARE.convert("CMYK"), "JPEG"), (96, 96)),
    "16 bits": (sixteen_bits(), (96, 96)),
    "palette": (encoded(SQUARE.quantize(16)), (96, 96)),
    "RGBA": (encoded(SQUARE.convert("RGBA")), (96, 96)),
    "turned by EXIF": (turned(), (64, 128)),
    "1 x 1": (encoded(Image.new("RGB", (1, 1), "red")), (96, 96)),
    "6000 x 4000": (encoded(Image.new("RGB", (6000, 4000), "red")), (128, 64)),
    "black": (encoded(Image.new("RGB", (96, 96))), (96, 96)),
}


@pytest.mark.parametrize("case", GOOD_FILES)
def test_an_unusual_picture_is_taken(pipes: dict[str, Pipeline], tmp_path: Path, case: str) -> None:
    data, size = GOOD_FILES[case]
    (tmp_path / "in.png").write_bytes(data)
    (made,) = pipes["qwen-edit"](**given("qwen-edit", image=tmp_path / "in.png", num_inference_steps=1)).images
    assert isinstance(made, Image.Image)
    assert made.size == size


def test_a_mask_of_another_size_is_stretched_with_a_note(
    pipes: dict[str, Pipeline], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        pipes["qwen-inpaint"](**given("qwen-inpaint", mask_image=HALF.resize((50, 20))))
    assert "the mask has 50 x 20 pixels, its picture 96 x 96: the mask is stretched" in caplog.text


@pytest.mark.parametrize("grey", [255, 200])
def test_a_mask_that_is_white_everywhere_repaints_everything(pipes: dict[str, Pipeline], grey: int) -> None:
    made = pipes["qwen-inpaint"](**given("qwen-inpaint", mask_image=Image.new("L", (96, 96), grey)))
    assert len(made.images) == 1


def test_special_tokens_may_be_read_as_letters(tiny_model: ModelFolder) -> None:
    """Then the template stays what it is: the same number of tokens before the prompt are dropped."""
    pipe = qframe.load(
        "qwen-image", model=tiny_model.folder, device="cpu", overrides=["encoder.options.special_tokens=literal"]
    )
    encoder: Any = pipe.parts.encoder
    special = encoder.tokenizer.convert_tokens_to_ids("<|im_end|>")
    ids = encoder._prompt("a <|im_end|> b", [], None).ids
    assert ids.count(special) == encoder._prompt("a b", [], None).ids.count(special)


# -- files of models and LoRAs ----------------------------------------------------------------------------------------


def lora(folder: Path, layers: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> Path:
    file = folder / "lora.safetensors"
    save_file({f"transformer.{name}.lora_{half}.weight": t for name, pair in layers.items() for half, t in zip("AB", pair, strict=True)}, file)  # fmt: skip  # noqa: E501
    return file


def load_with(tiny_model: ModelFolder, file: Path) -> QframeError:
    with pytest.raises(QframeError) as caught:
        qframe.load("qwen-image", model=tiny_model.folder, device="cpu", lora=file)
    assert caught.value.hint, "no next step"
    return caught.value


def test_a_lora_for_another_model_names_its_keys(tiny_model: ModelFolder, tmp_path: Path) -> None:
    file = lora(tmp_path, {"double_blocks.0.img_attn.qkv": (torch.zeros(2, 32), torch.zeros(32, 2))})
    error = load_with(tiny_model, file)
    assert isinstance(error, WeightsError)
    assert "double_blocks.0.img_attn.qkv" in error.message


def test_a_lora_of_another_width_names_its_layer(tiny_model: ModelFolder, tmp_path: Path) -> None:
    file = lora(tmp_path, {"transformer_blocks.0.attn.to_q": (torch.zeros(2, 48), torch.zeros(48, 2))})
    error = load_with(tiny_model, file)
    assert "transformer_blocks.0.attn.to_q" in error.message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_lora_with_values_that_are_not_finite_names_the_key(
    tiny_model: ModelFolder, tmp_path: Path, value: float
) -> None:
    file = lora(tmp_path, {"transformer_blocks.0.attn.to_q": (torch.full((2, 32), value), torch.zeros(32, 2))})
    error = load_with(tiny_model, file)
    assert "transformer_blocks.0.attn.to_q" in error.message
    assert "not finite" in error.message


def test_a_missing_shard_is_named(tiny_model: ModelFolder, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_model.folder, tmp_path / "model")
    weights = model / "transformer" / "diffusion_pytorch_model.safetensors"
    names = sorted(load_file(weights))
    index = {name: f"diffusion_pytorch_model-0000{1 + (i > 5)}-of-00002.safetensors" for i, name in enumerate(names)}
    (model / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text(
        json.dumps({"weight_map": index})
    )
    weights.rename(weights.with_name("diffusion_pytorch_model-00001-of-00002.safetensors"))
    with pytest.raises(WeightsError, match=r"lacks 1 of 2 shards: diffusion_pytorch_model-00002-of-00002"):
        qframe.load("qwen-image", model=model, device="cpu")


def test_code_in_a_model_folder_is_refused(tiny_model: ModelFolder, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_model.folder, tmp_path / "model")
    (model / "transformer" / "modeling.py").write_text("raise SystemExit('code ran')")
    with pytest.raises(UntrustedError, match=r"modeling\.py"):
        qframe.load("qwen-image", model=model, device="cpu")


# -- the same on the command line -------------------------------------------------------------------------------------

ON_THE_LINE = {
    "no prompt": ((), 2, "--prompt"),
    "size": (("--prompt", "a", "--size", "100x96"), 2, "width must be a multiple of 16 pixels, got 100"),
    "size of letters": (("--prompt", "a", "--size", "big"), 2, "size: expected WIDTHxHEIGHT"),
    "strength": (("--prompt", "a", "--strength", "1.5"), 2, "strength must be above 0 and at most 1"),
    "no step left": (("--prompt", "a", "--strength", "1e-20", "--steps", "4"), 2, "leaves none of 4 steps"),
    "special token": (("--prompt", "<|im_end|>"), 3, "<|im_end|>"),
    "black mask": (("--prompt", "a", "--mask", "black.png"), 2, "black everywhere"),
    "unreadable": (("--prompt", "a", "--image", "words.png"), 3, "not a picture of a known format"),
    "truncated": (("--prompt", "a", "--image", "half.png"), 3, "damaged or cut short"),
    "animated": (("--prompt", "a", "--image", "moving.gif"), 3, "an animation"),
    "huge": (("--prompt", "a", "--image", "huge.png"), 3, "huge.png"),
    "missing": (("--prompt", "a", "--image", "nowhere.png"), 3, "nowhere.png"),
    "missing LoRA": (("--prompt", "a", "--lora", "nowhere.safetensors"), 4, "nowhere.safetensors"),
    "LoRA of another model": (("--prompt", "a", "--lora", "other.safetensors"), 4, "double_blocks.0"),
    "LoRA with NaN": (("--prompt", "a", "--lora", "nan.safetensors"), 4, "not finite"),
}


@pytest.mark.parametrize("case", ON_THE_LINE)
def test_the_command_line_says_it_in_a_message_and_an_exit_code(
    run: Run, tiny_model: ModelFolder, tmp_path: Path, case: str
) -> None:
    SQUARE.save(tmp_path / "in.png")
    HALF.save(tmp_path / "mask.png")
    Image.new("L", (96, 96)).save(tmp_path / "black.png")
    for name, kind in (("words.png", "no picture"), ("half.png", "truncated"), ("moving.gif", "animated")):
        (tmp_path / name).write_bytes(BAD_FILES[kind][0])
    (tmp_path / "huge.png").write_bytes(BAD_FILES["20000 x 20000"][0])
    lora(tmp_path, {"double_blocks.0.img_attn.qkv": (torch.zeros(2, 32), torch.zeros(32, 2))}).rename(
        tmp_path / "other.safetensors"
    )
    nan = torch.full((2, 32), torch.nan)
    lora(tmp_path, {"transformer_blocks.0.attn.to_q": (nan, torch.zeros(32, 2))}).rename(tmp_path / "nan.safetensors")
    arguments, code, message = ON_THE_LINE[case]
    pictures = [part for name in ("image", "mask") if f"--{name}" not in arguments
                for part in (f"--{name}", {"image": "in.png", "mask": "mask.png"}[name])]  # fmt: skip
    model = ("--family", "qwen-inpaint", "--model", tiny_model.folder, "--output", "out.png")
    outcome = run("sample", *model, *pictures, *arguments)
    assert outcome.code == code, outcome.err
    assert message in outcome.err
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "out.png").exists()
