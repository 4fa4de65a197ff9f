"""Training runs on the imitated card: they equal those of the CPU, and wait for the card only where it is listed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import qframe
from qframe.train import loop, session
from qframe.train.loop import StepSetup
from qframe.train.state import TrainingState
from qframe.train.trainer import Trainer
from qframe_qwen import denoiser as stock
from qframe_qwen_per_sample_rope import attention
from tests import imitated_card
from tests.imitated_card import METER
from tests.qwen import tiny
from tests.tiers import tiered

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
FUSED = "train.optimizer_options.fused=true"
"""As by default on CUDA: the device leaves a step out that is not finite."""
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
    # torchao does not run here: this card answers for `linear` before its tensors are asked.
    "quantised base and encoder, nf4": (
        "qwen-edit",
        ("denoiser.quantise.use=bitsandbytes", "encoder.quantise.use=bitsandbytes"),
    ),
    "accumulation, guidance": ("qwen-edit", ("train.gradient_accumulation=2", 'sample.negative_prompt=" "')),
    "another optimizer": ("qwen-edit", ("train.optimizer=muon",)),
}

_PADDED = "copy from pageable memory at plugins/qframe_qwen/denoiser.py:_run"
_DECIDED = "item at qframe/train/loop.py:optimizer_step"
_LIVE = {
    "copy from pageable memory at plugins/qframe_qwen/codec.py:_normalisation": 4,
    "copy from pageable memory at plugins/qframe_qwen/codec.py:encode": 2,
    "copy from pageable memory at plugins/qframe_qwen/encoder.py:_hidden": 12,
    "copy from pageable memory at plugins/qframe_qwen/encoder.py:_look": 4,
    "copy to the host at plugins/qframe_qwen/encoder.py:_hidden": 22,
    "copy to the host at qframe/cache/encoding.py:encode_pixels": 2,
    "copy to the host at qframe/interfaces/sequences.py:to": 2,
    "index from the host at plugins/qframe_qwen/encoder.py:_hidden": 8,
    "item at plugins/qframe_qwen/encoder.py:_hidden": 14,
    "item at qframe/cache/encoding.py:_require_finite": 4,
    "nonzero at plugins/qframe_qwen/encoder.py:_hidden": 6,
    "repeat_interleave at plugins/qframe_qwen/encoder.py:_hidden": 2,
    "unique at plugins/qframe_qwen/encoder.py:_hidden": 2,
}
"""Live examples are encoded within the step. They go through the CPU, as the cache does, and transformers' vision model
asks the device for the sizes of pictures again and again."""
WAITS: dict[str, dict[str, int]] = {
    # diffusers sends the length of padded prompts, one number, to the device in every pass that has a mask.
    "edit": {_PADDED: 1},
    "references": {_PADDED: 1},
    "edit inside a mask": {_PADDED: 1},
    "full": {_PADDED: 1},
    "quantised base": {_PADDED: 1},
    "accumulation, guidance": {_PADDED: 1},
    "edit, live, checkpointing, average, validation": {**_LIVE, _PADDED: 1},
    # Whether loss and gradient are finite: this optimizer cannot leave a step out on the device by itself.
    "another optimizer": {_PADDED: 1, _DECIDED: 1},
}
"""How often the host waits at most in one step, by run and by function, each with its reason. It may only get shorter.

In a run that is not listed, the host waits in no step.
"""
READ = {"copy to the host at qframe/train/readings.py:read": 2}
"""The waits of one reading, which is made every `logging.every` steps: one for the losses, one for the norms."""


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
    fused = () if "train.optimizer=muon" in overrides else (FUSED,)
    config = qframe.load_config(family=family, values=values, overrides=[*COMMON, *fused, *overrides])
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


@attrs.define(eq=False)
class Waits:
    """The waits of the host in a training run, by what it was doing.

    Attributes:
        steps: Those of each optimizer step.
        readings: Those of each reading of the metrics.
        apart: Those while it saved or validated.
        loop: Those of everything from the first step to the end of the last one.
    """

    steps: list[Counter[str]] = attrs.field(factory=list)
    readings: list[Counter[str]] = attrs.field(factory=list)
    apart: list[Counter[str]] = attrs.field(factory=list)
    loop: list[Counter[str]] = attrs.field(factory=list)

    @property
    def most_in_a_step(self) -> dict[str, int]:
        """How often the host waits at most in one step, by place."""
        return {place: max(step[place] for step in self.steps) for step in self.steps for place in step}

    @property
    def elsewhere(self) -> Counter[str]:
        """The waits of the loop that belong to nothing else."""
        return sum(self.loop, Counter()) - sum((*self.steps, *self.readings, *self.apart), Counter())


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    found = Waits()

    def counting(function: Callable[..., Any], kept: list[Counter[str]]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            with METER.counting_waits() as seen:
                kept.append(seen)
                return function(*args, **kwargs)

        return counted

    run_steps = session.run_steps

    def run(setup: StepSetup, state: TrainingState) -> int:
        apart = {name: counting(getattr(setup, name), found.apart) for name in ("save", "validate")}
        return run_steps(attrs.evolve(setup, **apart), state)

    monkeypatch.setattr(session, "run_steps", counting(run, found.loop))
    monkeypatch.setattr(loop, "optimizer_step", counting(loop.optimizer_step, found.steps))
    monkeypatch.setattr(loop, "read", counting(loop.read, found.readings))
    return found


FAST = ("edit",)
WAITING = (
    "packed batches of many references",
    "edit, live, checkpointing, average, validation",
    "inpainting, per-sample RoPE",
    "quantised base",
    "another optimizer",
)


@pytest.mark.parametrize("name", tiered(("edit", *RUNS), fast=FAST, slow=WAITING))
def test_a_run_waits_for_the_card_only_where_it_is_listed(name: str, tmp_path: Path, model: Path, waits: Waits) -> None:
    """In every step, the first one too, and in everything between two steps but saving and validating."""
    family, overrides = RUNS.get(name, ("qwen-edit", ()))
    settings = ("sample.count=0", "train.max_steps=3", "logging.every=2", "train.checkpoint_every=100")
    train("card", family, tmp_path / "run", model, *overrides, *settings)
    assert len(waits.steps) == 3
    assert waits.most_in_a_step == WAITS.get(name, {})
    readings = 3 if "validation.every=1" in overrides else 2  # of steps 1 and 2, and of step 3
    assert [dict(one) for one in waits.readings if one] == [READ] * readings
    assert not waits.elsewhere


@pytest.mark.parametrize(
    "denoiser", tiered(["qwen-image", "qwen-per-sample-rope"], fast=["qwen-per-sample-rope"], slow=["qwen-image"])
)
def test_samples_of_different_sizes_let_no_step_wait(
    denoiser: str, tmp_path: Path, model: Path, waits: Waits, monkeypatch: pytest.MonkeyPatch, ragged_calls: list[int]
) -> None:
    """Denoiser qwen-image computes them in groups, the other one in the order of their lengths."""
    rows = []
    for row, size in enumerate([(64, 64), (96, 48), (48, 96)] * 2):
        for kind in ("target", "reference"):
            tiny.picture(10 * row + len(kind), *size).save(tmp_path / f"{kind}-{row}.png")
        prompt = "swap " * (3 - row % 3)  # each size has one length, so that no prompt is padded
        rows.append({"target": f"target-{row}.png", "prompt": prompt, "references": [f"reference-{row}.png"]})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    groups: list[int] = []
    monkeypatch.setattr(stock, "_of_group", lambda forward, place: groups.append(place) or forward)
    values = {"model": str(model), "output": str(tmp_path / "run"), "device": "card"}
    settings = ("train.max_steps=2", "train.batching=fixed", "train.batch_size=4", "sample.count=0", "lora.rank=4")
    config = qframe.load_config(
        family="qwen-edit-plus",
        values={**values, "data": {"path": str(tmp_path / "rows.jsonl")}},
        overrides=[*settings, FUSED, f"denoiser.use={denoiser}", "logging.every=100"],
    )
    Trainer(config).fit()
    assert len(waits.steps) == 2
    assert waits.most_in_a_step == {}
    assert not waits.elsewhere
    assert max(groups) > 0 if denoiser == "qwen-image" else max(ragged_calls) == 4


@pytest.mark.slow
def test_a_step_that_is_not_finite_is_left_out_by_the_card(
    tmp_path: Path, model: Path, waits: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, moments, the optimizer's counter and the average keep all bits, and the host is not asked."""
    states: list[list[Tensor]] = []
    counted, forward = loop.optimizer_step, loop._forward

    def values(state: TrainingState) -> list[Tensor]:
        (optimizer,) = state.optimizers.parts
        moments = [value for parameter in state.parameters.values() for value in optimizer.state[parameter].values()]
        assert state.average is not None
        kept = [*state.parameters.values(), *moments, *state.average.values.values()]
        assert {value.device.type for value in kept} == {"card"}
        return [value.detach().cpu().clone() for value in kept]

    def step(setup: StepSetup, state: TrainingState, *more: Any) -> object:
        spoilt = state.step == 1
        with monkeypatch.context() as patch:
            if spoilt:
                patch.setattr(loop, "_forward", lambda *args, **kwargs: forward(*args, **kwargs) * torch.inf)
            result = counted(setup, state, *more)
        states.append(values(state))
        return result

    monkeypatch.setattr(loop, "optimizer_step", step)
    settings = ("sample.count=0", "train.max_steps=3", "logging.every=100", "train.ema_decay=0.9")
    train("card", "qwen-edit", tmp_path / "run", model, *settings)
    first, second, third = states
    assert len(first) > 2 * len(lora(tmp_path / "run"))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(second, third, strict=True))
    assert all(one.isfinite().all() for one in third)
    assert not any(place.startswith("item") for seen in waits.steps for place in seen)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["skipped"] for line in lines] == [0.0, 1.0, 0.0]


NEAR = (
    "edit, live, checkpointing, average, validation",
    "packed batches, checkpointing",
    "edit inside a mask, per-sample RoPE",
    "quantised base and encoder, nf4",
)


@pytest.mark.parametrize("name", tiered(RUNS, slow=NEAR))
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
