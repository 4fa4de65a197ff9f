"""Make a tiny random Qwen-Image model in the diffusers layout, and diffusers' pipelines on it to compare with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from PIL import Image
from safetensors import safe_open
from torch import nn
from transformers import Qwen2Tokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from qframe.adapters import LoraLayer, save_lora
from qframe.files.model_folder import ModelFolder
from qframe_qwen.oracle_runs import PictureProcessor
from qframe_shapes import text

# From scheduler/scheduler_config.json of Qwen/Qwen-Image.
SCHEDULER = {
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 8192,
    "max_shift": 0.9,
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "shift_terminal": 0.02,
    "time_shift_type": "exponential",
    "use_dynamic_shifting": True,
}
AREA = 96 * 96
ENCODER_AREA = 64 * 64
MULTIPLE = 32


def tiny_qwen_model(
    folder: Path, *, seed: int = 0, z_dim: int = 4, zero_cond_t: bool = False, layers: int = 2
) -> ModelFolder:
    """Write a tiny Qwen-Image model with random weights into a folder.

    The transformer's matrices are large enough that another prompt changes the latents by about 1.
    """
    torch.manual_seed(seed)
    vae = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=z_dim,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.1 * (i - 1) for i in range(z_dim)],
        latents_std=[0.5 + 0.1 * i for i in range(z_dim)],
    )
    transformer = QwenImageTransformer2DModel(
        in_channels=4 * z_dim,
        out_channels=z_dim,
        num_layers=layers,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=text.WIDTH,
        axes_dims_rope=(4, 6, 6),
        zero_cond_t=zero_cond_t,
    )
    enlarge(transformer)
    tokenizer = text.new_tokenizer()
    encoder = text.new_text_encoder(tokenizer, seed)

    vae.save_pretrained(folder / "vae")
    transformer.save_pretrained(folder / "transformer")
    FlowMatchEulerDiscreteScheduler(**SCHEDULER).save_pretrained(folder / "scheduler")
    encoder.save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")
    text.new_image_processor().save_pretrained(folder / "processor")
    (folder / "model_index.json").write_text("{}")  # it names no pipeline, and so serves every family
    recipe = {"min_area": AREA, "max_area": AREA, "multiple": MULTIPLE, "side": 64}
    recipe |= {"encoder_min_area": ENCODER_AREA, "encoder_max_area": ENCODER_AREA}
    (folder / "qframe.json").write_text(json.dumps({"recipe": recipe}))
    return ModelFolder.open(folder)


def enlarge(module: nn.Module, factor: float = 5.0) -> None:
    """Multiply all matrices by `factor`; with the usual small values, no test would notice a wrong prompt."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(factor)


def upstream_text_to_image(model: ModelFolder) -> Any:
    from transformers import Qwen2_5_VLForConditionalGeneration

    folder = model.folder
    pipeline = QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
        vae=AutoencoderKLQwenImage.from_pretrained(folder / "vae").eval(),
        text_encoder=Qwen2_5_VLForConditionalGeneration.from_pretrained(folder / "text_encoder").eval(),
        tokenizer=Qwen2Tokenizer.from_pretrained(folder / "tokenizer"),
        transformer=QwenImageTransformer2DModel.from_pretrained(folder / "transformer").eval(),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def upstream_edit(model: ModelFolder) -> Any:
    return _with_pictures(QwenImageEditPipeline, model)


def upstream_edit_plus(model: ModelFolder) -> Any:
    return _with_pictures(QwenImageEditPlusPipeline, model)


def _with_pictures(pipeline_class: Any, model: ModelFolder) -> Any:
    parts = upstream_text_to_image(model).components
    processor = PictureProcessor(
        Qwen2VLImageProcessorPil.from_pretrained(model.folder / "processor"), parts["tokenizer"]
    )
    pipeline = pipeline_class(**parts, processor=processor)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def picture(seed: int, width: int, height: int) -> Image.Image:
    """A picture of random colours that change slowly, so that resizing does not change it much."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 6, 6, generator=generator)
    fine = nn.functional.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)
    return Image.fromarray((fine[0].permute(1, 2, 0) * 255).byte().numpy())


def tiny_lora(folder: Path, file: Path, *, seed: int = 9) -> Path:
    """Write a LoRA with random values for some layers of the transformer of a tiny model, inside of its blocks."""
    wanted = [f"transformer_blocks.{block}.attn.{name}" for block in range(2) for name in ("to_q", "to_v")]
    generator, layers = torch.Generator().manual_seed(seed), {}
    with safe_open(next((folder / "transformer").glob("*.safetensors")), framework="pt") as stored:
        for name in wanted:
            out, into = stored.get_slice(f"{name}.weight").get_shape()
            down, up = torch.randn(2, into, generator=generator), torch.randn(out, 2, generator=generator)
            layers[name] = LoraLayer(down * 0.3, up * 0.3, 2.0)
    save_lora(file, layers)
    return file
