"""Each picture and each mask of a request is decoded once, by whichever door the request comes in."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import qframe
from qframe.config.training import SampleConfig
from qframe.files.model_folder import ModelFolder
from qframe.interfaces import Record
from qframe.pictures import pixels
from qframe.pictures.picture import Picture
from qframe.progress import SILENT
from qframe.sample.jobs import rehearse
from qframe.train.samples import validation_plans
from tests.cli.conftest import Run
from tests.cli.conftest import run as run  # the fixture
from tests.qwen import tiny

FAST: dict[str, Any] = {"num_inference_steps": 1, "true_cfg_scale": 1.0, "seed": 0}
SIZES = {"in.png": (96, 96), "tall.png": (64, 128)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return tiny.tiny_qwen_model(tmp_path_factory.mktemp("tiny-qwen"))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Counter[str]:
    """How often each file was decoded, by name; the files lie in the folder in which the test runs."""
    monkeypatch.chdir(tmp_path)
    for number, (name, size) in enumerate(SIZES.items()):
        tiny.picture(number, *size).save(name)
        tiny.picture(10 + number, *size).convert("L").save(f"mask-of-{name}")
    counted: Counter[str] = Counter()
    real = pixels._load

    def counting(picture: Any, *rest: Any, **more: Any) -> Any:
        counted[Path(picture.origin.split()[-1]).name] += 1
        return real(picture, *rest, **more)

    monkeypatch.setattr(pixels, "_load", counting)
    return counted


BOTH = {"image": ["in.png", "tall.png"], "mask_image": ["mask-of-in.png", "mask-of-tall.png"]}
ONE = {"image": "in.png", "mask_image": "mask-of-in.png"}
CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "edit": ("qwen-edit", {"image": "in.png"}),
    "edit, two prompts and one picture": ("qwen-edit", {"image": "in.png", "prompt": ["a", "b"]}),
    "edit, two sizes": ("qwen-edit", {"image": BOTH["image"], "prompt": ["a", "b"]}),
    "image to image": ("qwen-image", {"image": "in.png"}),
    "references": ("qwen-edit-plus", {"image": BOTH["image"]}),
    "mask": ("qwen-inpaint", ONE),
    "mask and crop": ("qwen-inpaint", {**ONE, "padding_mask_crop": 4}),
    "mask, two sizes": ("qwen-inpaint", {**BOTH, "prompt": ["a", "b"]}),
    "edit in a mask": ("qwen-edit-inpaint", ONE),
    "edit in a mask and crop": ("qwen-edit-inpaint", {**ONE, "padding_mask_crop": 4}),
    "edit in masks and crops of two sizes": (
        "qwen-edit-inpaint",
        {**BOTH, "prompt": ["a", "b"], "padding_mask_crop": 4, "num_images_per_prompt": 2},
    ),
}


@pytest.mark.parametrize("family", ["qwen-image", "qwen-edit", "qwen-inpaint", "qwen-edit-inpaint"])
def test_the_samples_of_a_training_run_decode_each_picture_once(
    model: ModelFolder, decoded: Counter[str], family: str
) -> None:
    """Also where a record has no mask, and a transform draws one of the target's size."""
    pipe = qframe.load(family, model=model.folder, device="cpu")
    target = Picture("in.png", Path("in.png"))
    references = (Picture("tall.png", Path("tall.png")),) if "edit" in family else ()
    record = Record(id="a", origin="row 1", prompt="a", target=target, references=references)
    sample = SampleConfig(num_inference_steps=2)
    validation_plans([record], pipe.recipe, pipe.parts, sample, SILENT)
    opened = references or ((target,) if family == "qwen-inpaint" else ())
    assert decoded == Counter(one.origin for one in opened)


@pytest.mark.parametrize("case", CALLS)
def test_a_call_decodes_each_picture_and_mask_once(model: ModelFolder, decoded: Counter[str], case: str) -> None:
    family, given = CALLS[case]
    pipe = qframe.load(family, model=model.folder, device="cpu")
    pipe(**{"prompt": "a", **FAST, **given})
    named = [name for key in ("image", "mask_image") if key in given for name in _listed(given[key])]
    assert decoded == Counter(named)


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


@pytest.mark.parametrize("crop", [(), ("--padding-mask-crop", 4)], ids=["whole", "crop"])
@pytest.mark.parametrize("family", ["qwen-inpaint", "qwen-edit-inpaint"])
def test_rehearsal_and_run_of_a_command_line_decode_once(
    run: Run, model: ModelFolder, decoded: Counter[str], family: str, crop: tuple[Any, ...]
) -> None:
    outcome = run(
        *("sample", "--family", family, "--model", model.folder, "--prompt", "a", "--steps", 2, "--num-images", 2),
        *("--image", "in.png", "--mask", "mask-of-in.png", *crop, "--output", "out.png"),
    )
    assert outcome.code == 0, outcome.err
    assert decoded == {"in.png": 1, "mask-of-in.png": 1}


@pytest.mark.parametrize(("room", "times"), [(rehearse.ROOM, 1), (0, 2)], ids=["kept", "no room"])
def test_a_file_of_requests_decodes_once_while_there_is_room(
    run: Run, model: ModelFolder, decoded: Counter[str], monkeypatch: pytest.MonkeyPatch, room: int, times: int
) -> None:
    """Without room a request is settled again when it runs, so that thousands of them do not fill the memory."""
    monkeypatch.setattr(rehearse, "ROOM", room)
    lines = [{"prompt": "a", "image": name, "mask": f"mask-of-{name}", "id": name[:-4]} for name in SIZES]
    Path("requests.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    outcome = run(
        *("sample", "--family", "qwen-inpaint", "--model", model.folder, "--batch", "requests.jsonl"),
        *("--steps", 2, "--output", "out"),
    )
    assert outcome.code == 0, outcome.err
    assert decoded == {name: times for one in SIZES for name in (one, f"mask-of-{one}")}
