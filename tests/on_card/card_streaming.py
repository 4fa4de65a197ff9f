"""Streamed weights on the imitated card: results equal those of resident weights to the bit, and copies are counted."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import qframe
from qframe.adapters import LoraLayer, save_lora
from qframe.compose.streaming import StreamedNetwork, network
from qframe.compose.streaming.lane import Lane, Slot
from qframe.train.trainer import Trainer
from tests import imitated_card
from tests.on_card.card_sampling import REQUESTS
from tests.on_card.card_training import COMMON, PACKED, WAITS, Waits, lora, ragged_calls, train, waits
from tests.qwen import tiny
from tests.tiers import tiered

imitated_card.install()

__all__ = ["ragged_calls", "waits"]  # fixtures

LAYERS = 5
RECOMPUTED = ("train.gradient_checkpointing=true", "sample.count=1")
STREAMED = ("denoiser.resident_blocks=0", "encoder.resident_blocks=0")
ACCUMULATED = ("train.gradient_accumulation=2", "train.ema_decay=0.9", "validation.every=1")
BOTH = ("qwen-image", "qwen-per-sample-rope")

SOME = ("denoiser.resident_blocks=2", "encoder.resident_blocks=1", "train.offload_inputs=true")
RUNS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "stock": ("qwen-edit", (), STREAMED),
    "packed, some resident, inputs offloaded": ("qwen-edit", PACKED, SOME),
    "accumulation, average, validation": ("qwen-edit", ACCUMULATED, STREAMED),
    "per-sample RoPE, accumulation, average, validation": (
        "qwen-edit",
        ("denoiser.use=qwen-per-sample-rope", *ACCUMULATED),
        STREAMED,
    ),
    "DoRA": ("qwen-edit", ("lora.dora=true",), STREAMED),
    "DoRA, per-sample RoPE": ("qwen-edit", ("lora.dora=true", "denoiser.use=qwen-per-sample-rope"), STREAMED),
    "dropout": ("qwen-edit", ("lora.dropout=0.3",), STREAMED),
    "adapters outside of blocks": ("qwen-edit", ('lora.targets=["all-linear"]',), STREAMED),
    "live": ("qwen-edit", ("cache.enabled=false",), STREAMED),
    "references": ("qwen-edit-plus", (), STREAMED),
    "many references, packed": ("qwen-edit-plus", (*PACKED, "train.tokens_per_batch=480"), STREAMED),
    "inpainting": ("qwen-inpaint", (), STREAMED),
    "edit inside a mask": ("qwen-edit-inpaint", (), STREAMED),
    "float32": ("qwen-edit", ("dtype=float32", "train.precision=float32"), STREAMED),
    "float32 weights in bfloat16": ("qwen-edit", ("dtype=float32",), STREAMED),
    "inputs offloaded": ("qwen-edit", (), ("train.offload_inputs=true",)),
    "inputs offloaded, per-sample RoPE": (
        "qwen-edit",
        ("denoiser.use=qwen-per-sample-rope",),
        ("train.offload_inputs=true",),
    ),
    "4 bits, bitsandbytes": ("qwen-edit", ("denoiser.quantise.use=bitsandbytes",), STREAMED),
    "8 bits, bitsandbytes": (
        "qwen-edit",
        ("denoiser.quantise.use=bitsandbytes", "denoiser.quantise.options.weights=int8"),
        STREAMED,
    ),
    "8 bits": ("qwen-edit", ("denoiser.quantise.use=quanto", "encoder.quantise.use=quanto"), STREAMED),
    "8 bits, packed": ("qwen-edit", ("denoiser.quantise.use=quanto", *PACKED), STREAMED),
    "all but one resident": ("qwen-edit", (), ("denoiser.resident_blocks=4", "encoder.resident_blocks=3")),
    "more resident than there are": ("qwen-edit", (), ("denoiser.resident_blocks=9", "encoder.resident_blocks=9")),
}
IN_CI = (
    "per-sample RoPE, accumulation, average, validation",
    "DoRA, per-sample RoPE",
    "many references, packed",
    "4 bits, bitsandbytes",
)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny.tiny_qwen_model(tmp_path_factory.mktemp("tiny-streamed"), layers=LAYERS)
    sizes = {"recipe": {"min_area": 48 * 48, "max_area": 96 * 96, "multiple": 16, "side": 64}}
    (model.folder / "qframe.json").write_text(json.dumps(sizes))
    return model.folder


@pytest.fixture
def requested(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The list gets the number of blocks of the network and of the block, for each copy that is requested."""
    found: list[tuple[int, int]] = []
    copy = Lane.copy

    def counted(lane: Lane, weights: Any, slot: Slot) -> None:
        assert slot.holds is not None
        found.append((id(lane), slot.holds))
        copy(lane, weights, slot)

    monkeypatch.setattr(Lane, "copy", counted)
    return found


def equal_runs(folder: Path, model: Path, family: str, settings: tuple[str, ...], streamed: tuple[str, ...]) -> None:
    """Train twice, streamed and resident, and compare losses, norms of gradients and the LoRA to the bit."""
    settings = (*RECOMPUTED, *settings)
    found = train("card", family, folder / "streamed", model, *settings, *streamed)
    wanted = train("card", family, folder / "resident", model, *settings)
    assert found == wanted
    ours, theirs = lora(folder / "streamed"), lora(folder / "resident")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.slow
def test_streamed_training_equals_resident_training(
    tmp_path: Path, model: Path, requested: list[tuple[int, int]]
) -> None:
    """The denoiser takes packed batches, some of its blocks are resident, and inputs of blocks are offloaded.

    A frozen LoRA lies on its blocks beside the one that is trained.
    """
    frozen = f'lora.frozen=["{tiny.tiny_lora(model, tmp_path / "a.safetensors")}:0.5"]'
    equal_runs(tmp_path, model, "qwen-edit", (*PACKED, "sample.count=0", frozen), SOME)
    assert len({lane for lane, _ in requested}) == 2, "denoiser and encoder"


@pytest.mark.parametrize("name", tiered(RUNS, slow=IN_CI))
def test_streamed_training_equals_resident_training_with_every_option(name: str, tmp_path: Path, model: Path) -> None:
    equal_runs(tmp_path, model, *RUNS[name])


@pytest.mark.parametrize("denoiser", tiered(BOTH, slow=BOTH[:1]))
def test_weights_that_stay_mapped_train_like_resident_ones(
    denoiser: str, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "host_room", lambda: 0)
    equal_runs(tmp_path, model, "qwen-edit", (f"denoiser.use={denoiser}",), STREAMED)


@pytest.mark.parametrize("denoiser", tiered(BOTH, slow=[]))
def test_a_streamed_run_that_was_stopped_ends_as_a_resident_one_that_was_not(
    denoiser: str, tmp_path: Path, model: Path
) -> None:
    settings = (*RECOMPUTED, f"denoiser.use={denoiser}", "train.max_steps=3", "train.checkpoint_every=1")
    train("card", "qwen-edit", tmp_path / "whole", model, *settings)
    train("card", "qwen-edit", tmp_path / "parts", model, *settings, *STREAMED, "train.max_steps=1")
    train("card", "qwen-edit", tmp_path / "parts", model, *settings, *STREAMED, resume="latest")
    ours, theirs = lora(tmp_path / "parts"), lora(tmp_path / "whole")
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.slow
def test_a_step_waits_no_more_for_the_card_if_weights_are_streamed_from_pinned_memory(
    tmp_path: Path, model: Path, waits: Waits
) -> None:
    offloaded = ("train.gradient_checkpointing=true", "train.offload_inputs=true")
    undisturbed = ("sample.count=0", "train.max_steps=3", "logging.every=100", "train.checkpoint_every=100")
    train("card", "qwen-edit", tmp_path / "run", model, *undisturbed, *STREAMED, *offloaded)
    assert len(waits.steps) == 3
    assert waits.most_in_a_step == WAITS["edit"]
    assert not waits.elsewhere


def test_a_released_encoder_leaves_neither_host_memory_nor_slots(tmp_path: Path, model: Path) -> None:
    values = {"model": str(model), "output": str(tmp_path / "run"), "device": "card"}
    settings = [*COMMON, *RECOMPUTED, *STREAMED]
    trainer = Trainer(qframe.load_config(family="qwen-image", values=values, overrides=settings))
    streamed = trainer.load("encoder").encoder.streamed
    assert isinstance(streamed, StreamedNetwork)
    left = [weakref.ref(weights) for weights in streamed.ring.weights]
    del streamed
    gc.disable()  # only what `release` does counts
    try:
        trainer.release("encoder")
    finally:
        gc.enable()
    assert [one() for one in left] == [None] * 4


# Sampling


def random_lora(folder: Path) -> Path:
    """A file with a LoRA on a layer of every block."""
    layers = {
        f"transformer_blocks.{block}.attn.to_q": LoraLayer(torch.randn(2, 32), torch.randn(32, 2), 2.0)
        for block in range(LAYERS)
    }
    save_lora(folder / "lora.safetensors", layers)
    return folder / "lora.safetensors"


def sampled(name: str, model: Path, denoiser: str, **loading: Any) -> Tensor:
    """The latents of a request, in bfloat16, as users sample. Offloaded weights are off the card afterwards."""
    family, asked = REQUESTS[name]
    settings = [f"denoiser.use={denoiser}", *loading.pop("overrides", ())]
    pipe = qframe.load(family, model=model, device="card", overrides=settings, **loading)
    made = pipe(prompt="a dot", num_inference_steps=2, seed=0, output_type="latent", **asked).images
    assert isinstance(made, Tensor)
    if loading.get("offload", "none") != "none":
        parts = (pipe.parts.encoder, pipe.parts.denoiser, pipe.parts.codec)
        assert {p.device.type for part in parts for p in part.network.parameters()} == {"cpu"}
    return made.cpu()


@pytest.mark.parametrize("denoiser", [BOTH[0], pytest.param(BOTH[1], marks=pytest.mark.slow)])
def test_streamed_sampling_equals_resident_sampling(
    denoiser: str, model: Path, requested: list[tuple[int, int]]
) -> None:
    wanted = sampled("guided edit", model, denoiser)
    assert requested == []
    assert torch.equal(sampled("guided edit", model, denoiser, offload="stream", overrides=STREAMED), wanted)
    assert {block for _, block in requested} == set(range(LAYERS))


@pytest.mark.parametrize("denoiser", tiered(BOTH, slow=BOTH[1:]))
@pytest.mark.parametrize("name", tiered(REQUESTS, slow=["inpainting with a crop"]))
def test_every_family_and_transform_samples_streamed_weights(name: str, denoiser: str, model: Path) -> None:
    wanted = sampled(name, model, denoiser)
    some = ["denoiser.resident_blocks=2"]
    assert torch.equal(sampled(name, model, denoiser, offload="stream", overrides=STREAMED), wanted)
    assert torch.equal(sampled(name, model, denoiser, overrides=[*some, "encoder.resident_blocks=1"]), wanted)
    assert torch.equal(sampled(name, model, denoiser, offload="model", overrides=some), wanted)


@pytest.mark.parametrize("offload", tiered(["none", "stream"], slow=[]))
def test_quantised_weights_are_streamed(offload: Any, model: Path) -> None:
    quantised = ["denoiser.quantise.use=quanto", "encoder.quantise.use=quanto"]
    wanted = sampled("guided edit", model, "qwen-image", overrides=quantised)
    streamed = sampled("guided edit", model, "qwen-image", offload=offload, overrides=[*quantised, *STREAMED])
    assert torch.equal(streamed, wanted)


@pytest.mark.parametrize("offload", tiered(["none", "model", "stream"], slow=["stream"]))
def test_a_lora_is_sampled_on_streamed_weights(offload: Any, model: Path, tmp_path: Path) -> None:
    file = random_lora(tmp_path)
    wanted = sampled("edit", model, "qwen-image", lora=file)
    assert not torch.equal(sampled("edit", model, "qwen-image"), wanted)
    streamed = sampled("edit", model, "qwen-image", lora=file, offload=offload, overrides=STREAMED)
    assert torch.equal(streamed, wanted)


def test_a_pipeline_that_streamed_in_inference_mode_can_be_trained(model: Path) -> None:
    with torch.inference_mode():
        pipe = qframe.load("qwen-image", model=model, device="card", dtype="float32", overrides=STREAMED)
        pipe(prompt="a dot", height=64, width=64, num_inference_steps=1)
    denoiser = pipe.parts.denoiser
    assert not any(weight.is_inference() for weight in denoiser.module.parameters())
    denoiser.module.enable_gradient_checkpointing()
    denoiser.module.train()
    tokens = torch.randn(16, pipe.parts.denoiser_spec.token_channels, device="card").requires_grad_()
    text = torch.randn(5, pipe.parts.denoiser_spec.text_width, device="card")
    x = qframe.interfaces.PackedSequence(tokens, (((1, 4, 4),),))
    found = denoiser.velocity(x, torch.tensor([0.5], device="card"), qframe.interfaces.Conditioning(text, (5,)))
    found.square().sum().backward()
    assert tokens.grad is not None


@pytest.mark.slow
def test_loras_are_loaded_onto_and_merged_into_streamed_weights(tmp_path: Path, model: Path) -> None:
    """In float32: merged values are computed where the weights rest, and an imitated card computes as the CPU does."""
    file = random_lora(tmp_path)
    found = []
    for streamed in ((), STREAMED):
        values = {"model": str(model), "output": str(tmp_path / "run"), "device": "card"}
        settings = [*COMMON, *RECOMPUTED, *streamed, "dtype=float32"]
        trainer = Trainer(qframe.load_config(family="qwen-image", values=values, overrides=settings))
        for merge in (False, True):
            trainer.load_lora(file)
            asked = {"prompt": "a dot", "height": 96, "width": 96, "seed": 0, "output_type": "latent"}
            found.append([trainer.predict(**asked).images.cpu()])
            if merge:
                trainer.merge_lora()
                found[-1].append(trainer.predict(**asked).images.cpu())
    for plain, streamed_ in zip(found[:2], found[2:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(plain, streamed_, strict=True))
