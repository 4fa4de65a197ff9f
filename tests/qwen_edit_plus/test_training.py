"""Training on records with one to three references, through the cache, in mixed batches."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qframe.cache.encoding import encode_examples
from qframe.diffusion.packing import pack_pictures
from qframe.files.model_folder import ModelFolder
from qframe.interfaces import Conditioning, Example, PackedSequence, Parts, Record
from qframe.pictures.picture import Picture
from qframe_qwen.denoiser import StockDenoiser
from qframe_qwen_edit.plus import EditPlusRecipe
from qframe_qwen_per_sample_rope.denoiser import PerSampleRopeDenoiser
from tests.cli.conftest import Run
from tests.pixels import pixels
from tests.qwen import tiny
from tests.qwen_edit_plus.conftest import Oracle

SIZES = [(64, 64), (96, 48), (40, 90)]
COUNTS = [1, 3, 2, 1, 2]
# Four records to train on and four to a batch: each step sees one, two and three references.
OVERRIDES = [
    text
    for override in (
        "train.max_steps=3", "train.batch_size=4", "train.batching=fixed",
        "train.caption_dropout=0.5",
        "data.options.validation=1", "sample.num_inference_steps=2", "train.learning_rate=0.1",
    )
    for text in ("--set", override)
]  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """rows.jsonl: records with one to three references, of different sizes."""
    folder = tmp_path / "data"
    folder.mkdir()
    rows = []
    for row, count in enumerate(COUNTS):
        names = [f"{row}-{place}.png" for place in range(count)]
        for place, name in enumerate(names):
            tiny.picture(10 * row + place, *SIZES[(row + place) % 3]).save(folder / name)
        tiny.picture(100 + row, *SIZES[row % 3]).save(folder / f"{row}.png")
        rows.append({"target": f"{row}.png", "prompt": "swap " * (row + 1), "references": names})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "rows.jsonl"


@pytest.fixture
def model_path(model: ModelFolder) -> Path:
    return model.folder


def records(data: Path) -> list[Record]:
    def picture(name: str) -> Picture:
        return Picture(name, data.parent / name)

    return [
        Record(
            id=row["target"],
            origin=row["target"],
            prompt=row["prompt"],
            target=picture(row["target"]),
            references=tuple(map(picture, row["references"])),
        )
        for row in map(json.loads, data.read_text().splitlines())
    ]


def examples(recipe: EditPlusRecipe, data: Path, parts: Parts) -> list[Example]:
    found = records(data)
    return encode_examples([recipe.inputs(record) for record in found], [record.id for record in found], parts)


def test_mixed_numbers_of_references_train_from_the_cache_and_the_lora_samples(
    run: Run, model_path: Path, data: Path
) -> None:
    train = ("train", "--family", "qwen-edit-plus", "--model", model_path, "--data", data, *OVERRIDES)
    outcome = run(*train, "--output", "runs/a")
    assert outcome.code == 0, outcome.err
    assert any(line.startswith("training 3/3, ") for line in outcome.out.splitlines())
    losses = [json.loads(line)["loss"] for line in Path("runs/a/metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 3
    assert all(math.isfinite(loss) for loss in losses)
    assert Path("runs/a/samples/sheet.png").exists()

    again = run(*train, "--output", "runs/b")  # everything is in the cache now
    assert again.code == 0, again.err
    one, other = (load_file(f"runs/{name}/lora.safetensors") for name in "ab")
    assert all(torch.equal(value, other[name]) for name, value in one.items())

    sample = ("sample", "--family", "qwen-edit-plus", "--model", model_path, "--prompt", "swap", "--steps", 2)
    images = ("--image", data.parent / "1-0.png", "--image", data.parent / "1-1.png")
    for name, lora in {
        "without": (),
        "none": ("--lora", "runs/a/lora.safetensors:0"),
        "with": ("--lora", "runs/a/lora.safetensors"),
    }.items():
        sampled = run(*sample, *images, *lora, "--output", f"{name}.png")
        assert sampled.code == 0, sampled.err
    pictures = {name: pixels(f"{name}.png") for name in ("without", "none", "with")}
    assert pictures["none"] == pictures["without"] != pictures["with"]


def test_cached_and_live_training_are_the_same(run: Run, model_path: Path, data: Path) -> None:
    train = ("train", "--family", "qwen-edit-plus", "--model", model_path, "--data", data, *OVERRIDES)
    for name, more in (("a", ()), ("b", ("--set", "cache.enabled=false"))):
        assert run(*train, *more, "--output", f"runs/{name}").code == 0
    one, other = (load_file(f"runs/{name}/lora.safetensors") for name in "ab")
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-3, atol=1e-3)


def test_records_without_references_are_named_with_their_row(run: Run, model_path: Path, data: Path) -> None:
    with data.open("a") as rows:
        rows.write(json.dumps({"target": "0.png", "prompt": "alone", "id": "alone"}) + "\n")
    outcome = run("train", "--family", "qwen-edit-plus", "--model", model_path, "--data", data, *OVERRIDES)
    assert outcome.code == 3
    assert "rows.jsonl, row 6" in outcome.err
    assert "0 reference pictures, family qwen-edit-plus takes 1 to 8" in outcome.err


def test_the_embedded_model_and_its_data_serve_by_default(run: Run) -> None:
    overrides = [text for text in OVERRIDES if text not in ("--set", "data.options.validation=1")]
    more = ("data.options.count=3", "data.options.validation=1", *overrides)
    outcome = run("train", "--family", "qwen-edit-plus", *(text for one in more for text in ("--set", one)))
    assert outcome.code == 0, outcome.err


# -- what a batch of such records is ----------------------------------------------------------------------------------


def test_an_examples_references_keep_their_order_and_sizes(model: ModelFolder, parts: Parts, data: Path) -> None:
    recipe = EditPlusRecipe(None, model)
    found = examples(recipe, data, parts)
    assert [len(one.references) for one in found] == COUNTS
    for one, record in zip(found, records(data), strict=True):
        (alone,) = encode_examples([recipe.inputs(record)], [record.id], parts)
        for latents, wanted in zip((one.target, *one.references), (alone.target, *alone.references), strict=True):
            torch.testing.assert_close(latents, wanted, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(one.conditioning.embeds, alone.conditioning.embeds, rtol=1e-5, atol=1e-5)


def batch(found: list[Example]) -> tuple[PackedSequence, torch.Tensor, Conditioning, PackedSequence]:
    return (
        pack_pictures([(one.target,) for one in found], 2),
        torch.linspace(0.2, 0.9, len(found)),
        Conditioning.join([one.conditioning for one in found]),
        pack_pictures([one.references for one in found], 2),
    )


@pytest.mark.parametrize("denoiser_class", [StockDenoiser, PerSampleRopeDenoiser])
@torch.no_grad()
def test_a_mixed_batch_equals_its_samples_alone(
    oracle: Oracle, parts: Parts, data: Path, denoiser_class: type[StockDenoiser] | type[PerSampleRopeDenoiser]
) -> None:
    """With references of several sizes and numbers, `zero_cond_t` off and on."""
    found = examples(EditPlusRecipe(None, oracle.model), data, parts)
    denoiser = denoiser_class.load(oracle.model, None, device=torch.device("cpu"), dtype=torch.float32)
    together = denoiser.velocity(*batch(found)).split(list(batch(found)[0].lengths))
    x, sigma, _, _ = batch(found)
    for place, one in enumerate(found):
        target, _, cond, given = batch([one])
        alone = oracle.parts.denoiser.velocity(target, sigma[place : place + 1], cond, given)
        torch.testing.assert_close(together[place], alone, rtol=1e-3, atol=1e-4)
    assert x.batch_size == len(COUNTS)


@torch.no_grad()
def test_zero_cond_t_is_read_from_the_model(oracle: Oracle, parts: Parts, data: Path) -> None:
    """The same weights with and without it: it moves the prediction, so the tests above see it."""
    found = examples(EditPlusRecipe(None, oracle.model), data, parts)
    flag = oracle.model.config("transformer")["zero_cond_t"]
    network = oracle.parts.denoiser.module
    assert network.zero_cond_t == flag
    right = oracle.parts.denoiser.velocity(*batch(found))
    other = parts.denoiser.velocity(*batch(found))  # the same weights, with the flag
    assert ((right - other).abs().max() > 0.01) == (not flag)
