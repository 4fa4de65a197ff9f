"""Training runs on the imitated card: they equal those of the CPU, and wait for the card only where it is listed."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import qframe
from qframe.train import loop
from qframe.train.trainer import Trainer
from qframe_qwen_per_sample_rope import attention
from tests import imitated_card
from tests.imitated_card import METER
from tests.qwen import tiny

imitated_card.install()

COMMON = (
    "train.max_steps=2",
    "train.batch_size=2",
    "train.learning_rate=0.0001",
    "lora.rank=4",
    "data.options.count=4",
    "data.options.validation=2",
    "sample.num_inference_steps=1",
)
FLOAT32 = ("train.precision=float32", "dtype=float32")
PACKED = ("denoiser.use=qwen-per-sample-rope", "train.batching=packed", "train.tokens_per_batch=160")

RUNS: dict[str, tuple[str, tuple[str, ...]]] = {
    "text to image": ("qwen-image", ()),
    "edit, live, checkpointing, average, validation": (
        "qwen-edit",
        ("cache.enabled=false", "train.gradient_checkpointing=true", "train.ema_decay=0.9", "validation.every=1"),
    ),
    "references": ("qwen-edit-plus", ()),
    "inpainting": ("qwen-inpaint", ()),
    "edit inside a mask": ("qwen-edit-inpaint", ()),
    "packed batches": ("qwen-edit", PACKED),
    "packed batches, checkpointing": ("qwen-edit", (*PACKED, "train.gradient_checkpointing=true")),
    "packed batches of many references": ("qwen-edit-plus", (*PACKED, "train.tokens_per_batch=480")),
    "inpainting, per-sample RoPE": ("qwen-inpaint", ("denoiser.use=qwen-per-sample-rope",)),
    "edit inside a mask, per-sample RoPE": ("qwen-edit-inpaint", ("denoiser.use=qwen-per-sample-rope",)),
    "text to image, packed": ("qwen-image", PACKED),
    "full": ("qwen-edit", ("train.mode=full",)),
    "full, per-sample RoPE": (
        "qwen-edit",
        (
            "train.mode=full",
            "denoiser.use=qwen-per-sample-rope",
        ),
    ),
    "quantised base": ("qwen-edit", ("denoiser.quantise.use=quanto",)),
    "accumulation, guidance": ("qwen-edit", ("train.gradient_accumulation=2", 'sample.negative_prompt=" "')),
}

WAITS = {
    # Whether loss and gradient are finite, for an optimizer that cannot skip a step on the device by itself. Those that
    # are fused can, which AdamW is on CUDA; the imitated card has no fused kernels.
    "item at qframe/train/loop.py:optimizer_step": 1,
    # diffusers sends the length of padded prompts, one number, to the device in every pass that has a mask.
    "copy from pageable memory at plugins/qframe_qwen/denoiser.py:_run": 1,
}
"""How often the host waits in one step of a cached run, by function, each with its reason. It may only get shorter."""


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny.tiny_qwen_model(tmp_path_factory.mktemp("tiny-card"))
    sizes = {"recipe": {"min_area": 48 * 48, "max_area": 96 * 96, "multiple": 16, "side": 64}}
    (model.folder / "qframe.json").write_text(json.dumps(sizes))
    return model.folder


@pytest.fixture(autouse=True)
def ragged_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Per-sample RoPE takes the kernel for sequences of different lengths on the card, as it does on a GPU.

    The list gets the number of samples of each call.
    """
    calls: list[int] = []
    attend = attention._attend_ragged

    def counted(text: Any, image: Any, layout: Any) -> Any:
        calls.append(len(layout.ends) - 1)
        return attend(text, image, layout)

    monkeypatch.setattr(attention, "_is_ampere", lambda device: device.type == "card")
    monkeypatch.setattr(attention, "_attend_ragged", counted)
    return calls


def train(
    device: str, family: str, folder: Path, model: Path, *overrides: str, resume: str | None = None
) -> list[float]:
    """Train, and return the losses and the norms of the gradients, one after another."""
    values = {"model": str(model), "output": str(folder), "device": device}
    config = qframe.load_config(family=family, values=values, overrides=[*COMMON, *overrides])
    Trainer(config).fit(resume)
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in metrics if "loss" in line for name in ("loss", "gradient_norm")]


def lora(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "lora.safetensors")


def test_the_default_run_samples_trains_and_equals_that_of_the_cpu(tmp_path: Path, model: Path) -> None:
    """In float32, tightly. Pictures are sampled before training: tables left from that must not stop the first step."""
    found = train("card", "qwen-edit", tmp_path / "card", model, *FLOAT32)
    wanted = train("cpu", "qwen-edit", tmp_path / "cpu", model, *FLOAT32)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=0)
    ours, theirs = lora(tmp_path / "card"), lora(tmp_path / "cpu")
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-3, atol=1e-6)
    assert len(list((tmp_path / "card" / "samples" / "before").glob("*.png"))) == 2


@pytest.fixture
def waits_of_steps(monkeypatch: pytest.MonkeyPatch) -> list[Counter[str]]:
    """The list gets the waits of each training step, by function, beyond those that are listed."""
    steps: list[Counter[str]] = []
    step = loop.optimizer_step

    def counted(*args: object, **kwargs: object) -> object:
        with METER.counting_waits() as found:
            result = step(*args, **kwargs)  # type: ignore[arg-type]
        steps.append(Counter({place: n for place, n in found.items() if n > WAITS.get(place, 0)}))
        return result

    monkeypatch.setattr(loop, "optimizer_step", counted)
    return steps


UNDISTURBED = ("sample.count=0", "train.max_steps=3", "logging.every=100")


def test_a_step_waits_for_the_card_only_where_it_is_listed(
    tmp_path: Path, model: Path, waits_of_steps: list[Counter[str]]
) -> None:
    train("card", "qwen-edit", tmp_path / "run", model, *UNDISTURBED)
    assert len(waits_of_steps) == 3
    assert waits_of_steps[1:] == [{}, {}]


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_runs_end_with_losses_near_those_of_the_cpu(
    name: str, tmp_path: Path, model: Path, ragged_calls: list[int]
) -> None:
    """In bfloat16, as users train. Autocast rounds other operations on a CPU than on CUDA, so the last bits differ.

    A loss is a mean over all tokens. The norm of the gradients amplifies roundings: the model's matrices are large.
    """
    family, overrides = RUNS[name]
    found = train("card", family, tmp_path / "card", model, *overrides)
    wanted = train("cpu", family, tmp_path / "cpu", model, "dtype=bfloat16", *overrides)
    torch.testing.assert_close(found[::2], wanted[::2], rtol=0.03, atol=0)
    torch.testing.assert_close(found[1::2], wanted[1::2], rtol=0.03, atol=0)
    if PACKED[1] in overrides:
        assert max(ragged_calls) > 1, "no packed batch went through the ragged kernel"


@pytest.mark.slow
def test_components_on_two_cards_train_as_on_one(tmp_path: Path, model: Path) -> None:
    apart = ("encoder.device=card:1", "codec.device=card:1", "cache.enabled=false")
    found = train("card:0", "qwen-edit", tmp_path / "two", model, *FLOAT32, *apart)
    wanted = train("card:0", "qwen-edit", tmp_path / "one", model, *FLOAT32, "cache.enabled=false")
    assert found == wanted


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_weights_of_one_that_was_not_stopped(tmp_path: Path, model: Path) -> None:
    every = ("train.checkpoint_every=1", "sample.count=0")
    train("card", "qwen-edit", tmp_path / "whole", model, *every)
    train("card", "qwen-edit", tmp_path / "parts", model, *every, "train.max_steps=1")
    train("card", "qwen-edit", tmp_path / "parts", model, *every, resume="latest")
    ours, theirs = lora(tmp_path / "parts"), lora(tmp_path / "whole")
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
