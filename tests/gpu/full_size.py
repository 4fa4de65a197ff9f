"""LoRA steps at the published size, with weights drawn on the card: time, share of its arithmetic, memory.

The predictions. Counted by `operations`, a step of text to image at 1024 x 1024 (4,096 picture tokens and 64 of text)
has 6.95e13 operations forward and 8.2e13 backward; an edit at 1 MP with a reference of 1 MP (8,192 and 1,470) has
2.01e14 and 2.69e14. Gradient checkpointing adds one forward pass. A large product of matrices in bfloat16 reaches about
650e12 a second on an H100 or H200. At 60 % of that, a step takes 0.39 s and 1.20 s without checkpointing, and 0.57 s
and 1.72 s with it. Weights in int8 are unpacked in every pass, which moves about 100 GB and so adds about 0.04 s.
"""

from __future__ import annotations

import gc
import json
import math
from pathlib import Path
from typing import Any

import attrs
import torch
from PIL import Image
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from qframe import adapters
from qframe.cache.lengths import fitted_size
from qframe.compose import Composition
from qframe.config import load_config
from qframe.config.schema import Config
from qframe.interfaces import Conditioning, PackedSequence
from qframe.preflight import Forecast, forecast_training
from qframe.train.trainer import Trainer
from qframe_bench.measuring import matmul_ceiling
from tests.gpu.asked import Asked
from tests.gpu.stand_ins import CLOCK, NAME

GIB = 2**30
WARM, STEPS = 3, 12
"""The steps that are not measured, and all steps."""
ROOM = 0.93
"""The part of a card's memory that a run without gradient checkpointing may be forecast to need."""
RATE, SHARE, UNPACKING = 650e12, 0.60, 0.04
"""The predictions: operations per second of a product of matrices, the share of them, seconds per pass in int8."""
REACH = {"t2i bfloat16": 0.5, "edit bfloat16": 1.2}
SHARE_REACH = 0.60
"""What is to be reached on an H100 or H200: seconds per step at most, and share at least."""


@attrs.frozen(kw_only=True)
class Case:
    """What is trained.

    Attributes:
        family: The family.
        side: Height and width in pixels of the target, and of the reference if there is one.
        reference: Whether there is a reference.
        text: The tokens of a prompt, those of the picture that the encoder sees among them.
    """

    family: str
    side: int
    reference: bool
    text: int


CASES = {
    "t2i": Case(family="qwen-image", side=1024, reference=False, text=64),
    "edit": Case(family="qwen-edit", side=1024, reference=True, text=1470),
}


def run(asked: Asked) -> None:
    """Train a few steps, without gradient checkpointing if that fits on the card, and add rows of what was measured."""
    device = torch.device(asked.device)
    total = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    _, forecast = _trainer(asked, checkpointing=False)
    checkpointing = total is not None and forecast.peak(_first(forecast)) > ROOM * total
    if not checkpointing and _steps(asked, checkpointing=False):
        return
    if not checkpointing:
        asked.rows.add("without gradient checkpointing", note="ran out of memory, against the forecast")
        gc.collect()
        torch.cuda.empty_cache()
    _steps(asked, checkpointing=True)


def _steps(asked: Asked, *, checkpointing: bool) -> bool:
    """Train, and add the rows. False if memory ran out."""
    device = torch.device(asked.device)
    trainer, forecast = _trainer(asked, checkpointing=checkpointing)
    CLOCK.steps = (WARM, STEPS)
    try:
        trainer.fit()
    except torch.OutOfMemoryError:
        if checkpointing:
            raise
        return False
    seconds = (CLOCK.ends[STEPS] - CLOCK.ends[WARM]) / (STEPS - WARM)
    lines = (Path(trainer.config.output or "") / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    forward, backward = operations(trainer.composition, _case(asked))
    done, passes = (2 * forward + backward, 3) if checkpointing else (forward + backward, 2)
    trainer.release("denoiser", "encoder", "codec")
    del trainer
    rate = matmul_ceiling(device, torch.bfloat16, side=256 if asked.tiny else 8192)
    large = device.type == "cuda" and any(name in torch.cuda.get_device_name(device) for name in ("H100", "H200"))
    unpacking = UNPACKING * passes if asked.case.endswith("int8") else 0.0
    expected = done / (SHARE * RATE) + unpacking
    how = "with" if checkpointing else "without"
    asked.rows.add(
        "seconds per step", seconds, "s", predicted=expected,
        reach=REACH.get(asked.case) if large else None,
        note=f"{how} gradient checkpointing, {done / 1e12:.4g} TFLOP a step",
        failed=not all(loss is not None and math.isfinite(loss) for loss in losses),
    )  # fmt: skip
    asked.rows.add(
        "share of the rate of a product of matrices", done / seconds / rate, better="higher",
        predicted=done / expected / RATE,
        reach=SHARE_REACH if large and not unpacking else None, note=f"of {rate / 1e12:.4g} TFLOP/s, measured",
    )  # fmt: skip
    asked.rows.add(
        "peak memory", None if CLOCK.peak is None else CLOCK.peak / GIB, "GiB",
        predicted=forecast.peak(_first(forecast)) / GIB,
        note="predicted: the forecast" + ("" if CLOCK.peak is not None else "; not measured on a CPU"),
    )  # fmt: skip
    return True


def streamed(asked: Asked) -> None:
    """Say that training with streamed weights is not measured yet."""
    for memory in (24, 16, 12, 8):
        asked.rows.add(f"edit 1 MP + 1 MP, streamed, {memory} GB", note="not measured by this program yet")


def _first(forecast: Forecast) -> torch.device:
    return next(device for device, stages in forecast.needs.items() if "training" in stages)


def _case(asked: Asked) -> Case:
    case = CASES[asked.case.split()[0]]
    return attrs.evolve(case, side=64, text=12) if asked.tiny else case


def _trainer(asked: Asked, *, checkpointing: bool) -> tuple[Trainer, Forecast]:
    trainer = Trainer(_config(asked, checkpointing=checkpointing))
    return trainer, forecast_training(trainer.composition, trainer.inputs, fitted_size)


def _config(asked: Asked, *, checkpointing: bool) -> Config:
    case = _case(asked)
    model, data = asked.folder / "model", asked.folder / "data"
    width = 64 if asked.tiny else 3584
    if not model.exists():
        _write_model(model, tiny=asked.tiny, width=width)
        _write_pictures(data, case)
    area = case.side**2
    return load_config(
        family=case.family,
        values={
            "model": str(model),
            "output": str(asked.folder / ("recomputed" if checkpointing else "plain")),
            "device": asked.device,
            "dtype": "bfloat16",
            "encoder": {"use": NAME, "options": {"tokens": case.text, "width": width}},
            "codec": {"use": NAME},
            "denoiser": {
                "use": NAME,
                "options": {"device": asked.device},
                **({"quantise": {"use": "quanto"}} if asked.case.endswith("int8") else {}),
            },
            "data": {"use": "folder", "path": str(data)},
            "recipe": {"min_area": area, "max_area": area},
            "cache": {"dir": str(asked.folder / "cache")},
            "train": {"max_steps": STEPS, "gradient_checkpointing": checkpointing, "checkpoint_every": 1000},
            "sample": {"count": 0},
        },
    )


def _write_model(folder: Path, *, tiny: bool, width: int) -> None:
    """Write the configuration files of a model folder; its weights are never read."""
    network: dict[str, Any] = {
        "_class_name": "QwenImageTransformer2DModel",
        "attention_head_dim": 128,
        "axes_dims_rope": [16, 56, 56],
        "guidance_embeds": False,
        "in_channels": 64,
        "joint_attention_dim": width,
        "num_attention_heads": 24,
        "num_layers": 60,
        "out_channels": 16,
        "patch_size": 2,
    }
    if tiny:
        network |= {"attention_head_dim": 32, "axes_dims_rope": [8, 12, 12], "num_attention_heads": 2, "num_layers": 2}
    shift = {"base_shift": 0.5, "max_shift": 0.9, "base_image_seq_len": 256, "max_image_seq_len": 8192}
    schedule = {
        "num_train_timesteps": 1000,
        "shift": 1.0,
        "shift_terminal": 0.02,
        "use_dynamic_shifting": True,
        **shift,
    }
    files: dict[str, dict[str, Any]] = {
        "model_index.json": {"_class_name": "QwenImageEditPipeline"},
        "qframe.json": {"pipelines": ["QwenImagePipeline", "QwenImageEditPipeline"]},  # it is sampled as both
        "transformer/config.json": network,
        "vae/config.json": {"_class_name": "AutoencoderKLQwenImage"},
        "scheduler/scheduler_config.json": {"_class_name": "FlowMatchEulerDiscreteScheduler", **schedule},
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content), encoding="utf-8")


def _write_pictures(folder: Path, case: Case) -> None:
    folder.mkdir()
    for name in ("one", "two"):
        for kind in ("", "_ref") if case.reference else ("",):
            Image.effect_noise((case.side, case.side), 64).convert("RGB").save(folder / f"{name}{kind}.png")
        (folder / f"{name}.txt").write_text("a picture", encoding="utf-8")


def operations(composition: Composition, case: Case) -> tuple[int, int]:
    """Count the multiplications and additions of the products of matrices in a LoRA step.

    The step runs on the meta device, where tensors have no numbers. What a kernel computes twice is counted once.

    Args:
        composition: The denoiser, its LoRA, and the size of its patches.
        case: The shapes.

    Returns:
        The operations of the forward pass, and of the backward pass.
    """
    meta = torch.device("meta")
    outline = composition.outline("denoiser", torch.bfloat16)
    adapters.add_lora(outline.module, composition.config.lora, outline.lora_presets, seed=0)
    nn.Module.to(outline.module, torch.bfloat16)
    spec = composition.specs["denoiser"]
    side = case.side // composition.specs["codec"].compression // spec.patch
    grids = (((1, side, side),),)

    def picture() -> PackedSequence:
        return PackedSequence(torch.empty(side * side, spec.token_channels, device=meta), grids)

    cond = Conditioning(torch.empty(case.text, spec.text_width, device=meta), (case.text,))
    reference = picture() if case.reference else None
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        predicted = outline.velocity(picture(), torch.empty(1, device=meta), cond, reference)
        forward = int(counter.get_total_flops())
        predicted.sum().backward()
        return forward, int(counter.get_total_flops()) - forward
