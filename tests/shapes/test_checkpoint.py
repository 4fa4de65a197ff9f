"""What ships, measured: the shipped weights do what the model card says, in qframe and in diffusers."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLQwenImage, QwenImageEditPipeline
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from qframe.files import storage
from qframe_shapes import tasks, vae
from qframe_shapes.assemble import BYTE_LIMIT, folder_bytes
from qframe_shapes.diffusers_sampling import diffusers_components, diffusers_sampler
from qframe_shapes.effects import measure_effects
from qframe_shapes.evaluate import (
    CANVASES,
    PAIR,
    UNLEARNED_GROUPS,
    UNSEEN,
    Group,
    Sample,
    SampleRequest,
    evaluate,
    run_group,
    standard_groups,
)
from qframe_shapes.sampling import card_sampler, qframe_sampler
from tests.qwen.tiny import PictureProcessor

STEPS = 12
WHOLE, FEW = 100, 16

# Demanded of 100 samples, on the main canvas. Pairs: the shape and colour were never together.
DEMANDED = {
    "text-to-image": {UNSEEN: 0.92, PAIR: 0.92},
    "recolour": {UNSEEN: 0.95, PAIR: 0.90},
    "reshape": {UNSEEN: 0.95, PAIR: 0.90},
    "background": {UNSEEN: 0.95, PAIR: 0.90},
    "remove": {UNSEEN: 0.95, PAIR: 0.90},
    "paint": {UNSEEN: 0.92, PAIR: 0.92},
}
DEMANDED_ELSEWHERE = 0.85
LEAST_OF_FEW = 11
"""Of 16. The samples are fixed by their seeds, but another machine rounds otherwise and changes some. A model that
succeeds 92 times in 100 falls below 11 of 16 with probability 0.001 (binomial); one that succeeds half of the time
passes with probability 0.1, and all twelve groups with less than 1e-11."""
UNLEARNED = 0.10


@pytest.fixture(scope="module")
def sample(shipped: Path) -> Sample:
    return card_sampler(shipped, steps=STEPS)


def few(operations: Sequence[str]) -> list[Group]:
    """One group per operation and kind on the main canvas; of painting, the hardest situation."""
    groups = [group for group in standard_groups(operations) if group.kind != CANVASES]
    return [group for group in groups if group.operation != "paint" or (group.situation, group.strength) == ("over", 1)]


def test_the_model_is_whole_and_small_and_names_no_folder(shipped: Path) -> None:
    assert storage.verify_folder(shipped) == []
    assert folder_bytes(shipped) <= BYTE_LIMIT
    assert not [path for path in shipped.rglob("*.json") if "_name_or_path" in path.read_text(encoding="utf-8")]


def test_the_vae_reconstructs_held_out_pictures(shipped: Path) -> None:
    model = AutoencoderKLQwenImage.from_pretrained(shipped / "vae", torch_dtype=torch.float32)
    assert vae.held_out_psnr(model, batches=5) >= 34.0


@pytest.mark.parametrize("group", few([*tasks.EDITS, "text-to-image", "paint"]), ids=str)
def test_a_few_samples_of_each_operation_succeed(sample: Sample, group: Group) -> None:
    results = run_group(sample, group, count=FEW, seed=0)
    failed = [f"{result.episode.prompt}: {result.verdict}" for result in results if not result.verdict.success]
    assert FEW - len(failed) >= LEAST_OF_FEW, failed


@pytest.mark.parametrize("group", UNLEARNED_GROUPS, ids=str)
def test_what_is_left_to_loras_is_not_learned(sample: Sample, group: Group) -> None:
    results = run_group(sample, group, count=FEW, seed=0)
    assert sum(result.verdict.success for result in results) <= 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_demanded_rates_are_met(sample: Sample) -> None:
    report = evaluate(sample, count=WHOLE, groups=(*standard_groups(), *UNLEARNED_GROUPS))
    missed = {}
    for group in report.groups:
        rate = report.rate(group)
        if group in UNLEARNED_GROUPS:
            good = rate < UNLEARNED
        elif group.kind == CANVASES:
            good = rate >= DEMANDED_ELSEWHERE
        else:
            good = rate >= DEMANDED[group.operation][group.kind]
        if not good:
            missed[f"{group.row}, {group.kind}"] = rate
    assert missed == {}


@pytest.mark.slow
def test_guidance_and_negative_prompts_push_in_the_right_direction(shipped: Path) -> None:
    effects = measure_effects(shipped, steps=STEPS)
    assert effects.success_with_guidance >= effects.success_without_guidance - 0.02
    assert effects.distance_when_named > effects.distance_without_negative + 10
    assert effects.distance_when_named > effects.distance_when_another_is_named + 10


@pytest.mark.slow
def test_twelve_steps_and_twenty_are_alike(shipped: Path) -> None:
    group = Group("reshape", UNSEEN)
    results = run_group(qframe_sampler(shipped, steps=20), group, count=WHOLE, seed=0)
    assert sum(result.verdict.success for result in results) >= WHOLE * DEMANDED[group.operation][group.kind]


@pytest.mark.parametrize("operation", ["text-to-image", "paint"])
def test_the_model_works_in_diffusers(shipped: Path, operation: str) -> None:
    situation = "empty" if operation == "paint" else ""
    sampler = diffusers_sampler(shipped, steps=STEPS)
    results = run_group(sampler, Group(operation, UNSEEN, situation), count=FEW, seed=0)
    assert sum(result.verdict.success for result in results) >= LEAST_OF_FEW


@pytest.fixture
def upstream_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Upstream brings every picture to a million pixels; here to the main canvas."""
    real = pipeline_qwenimage_edit.calculate_dimensions
    monkeypatch.setattr(pipeline_qwenimage_edit, "calculate_dimensions", lambda area, ratio: real(64 * 64, ratio))


@pytest.mark.usefixtures("upstream_sizes")
def test_the_model_edits_in_diffusers(shipped: Path) -> None:
    components = diffusers_components(shipped)
    pictures = Qwen2VLImageProcessorPil.from_pretrained(shipped / "processor")
    processor = PictureProcessor(pictures, components["tokenizer"])
    pipeline = QwenImageEditPipeline(**components, processor=processor)
    pipeline.set_progress_bar_config(disable=True)

    def sample(requests: Sequence[SampleRequest]) -> list[Image.Image]:
        return list(
            pipeline(
                image=[request.image for request in requests],
                prompt=[request.prompt for request in requests],
                generator=[torch.Generator().manual_seed(request.seed) for request in requests],
                num_inference_steps=STEPS,
                true_cfg_scale=1.0,
                height=requests[0].height,
                width=requests[0].width,
            ).images
        )

    results = run_group(sample, Group("recolour", UNSEEN), count=FEW, seed=0)
    assert sum(result.verdict.success for result in results) >= LEAST_OF_FEW
