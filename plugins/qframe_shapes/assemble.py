"""Put the trained networks together into one model folder that the pipelines of diffusers and of qframe can load.

The folder has the diffusers layout, and its `model_index.json` names QwenImageEditPipeline. The file `qframe.json`
holds the areas of pictures, which belong to no single component, and all pipelines that the model serves. The published
Qwen models use an area of a million pixels.
"""

import json
import math
from pathlib import Path

import diffusers
import torch
from diffusers import AutoencoderKLQwenImage, FlowMatchEulerDiscreteScheduler, QwenImageTransformer2DModel
from torch import nn

from qframe.files import storage
from qframe_shapes import text
from qframe_shapes.frame_vae import Z_DIM

BYTE_LIMIT = 16 * 1000 * 1000
"""The largest size of the model folder in bytes, so that the wheel that contains the folder stays small."""

MODEL_INDEX = {
    "_class_name": "QwenImageEditPipeline",
    "_diffusers_version": diffusers.__version__,
    "processor": ["transformers", "Qwen2VLProcessor"],
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
    "tokenizer": ["transformers", "Qwen2Tokenizer"],
    "transformer": ["diffusers", "QwenImageTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKLQwenImage"],
}

_AREAS = {"min_area": text.MIN_PIXELS, "max_area": text.MAX_PIXELS}
QFRAME_SETTINGS = {
    "recipe": {**_AREAS, **{f"encoder_{name}": area for name, area in _AREAS.items()}, "multiple": 16, "side": 64},
    # The model was trained for the tasks of all of these; model_index.json has room for one.
    "pipelines": [
        "QwenImagePipeline",
        "QwenImageInpaintPipeline",
        "QwenImageEditPipeline",
        "QwenImageEditInpaintPipeline",
        "QwenImageEditPlusPipeline",
    ],
}


def new_transformer(seed: int) -> QwenImageTransformer2DModel:
    """Make an untrained denoiser of 3 million parameters.

    The modulation layers and the output layer start at zero, so that every block starts as the identity (adaLN-Zero:
    Peebles and Xie 2022, Scalable Diffusion Models with Transformers, section 3.2).
    """
    transformer = QwenImageTransformer2DModel(
        patch_size=2, in_channels=4 * Z_DIM, out_channels=Z_DIM, num_layers=5, attention_head_dim=32,
        num_attention_heads=4, joint_attention_dim=text.WIDTH, axes_dims_rope=(8, 12, 12),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    zeroed = ("img_mod.1", "txt_mod.1", "norm_out.linear", "proj_out")
    with torch.no_grad():
        for name, module in transformer.named_modules():
            if isinstance(module, nn.Linear):
                module.bias.zero_()
                if name.endswith(zeroed):
                    module.weight.zero_()
                else:
                    bound = math.sqrt(6 / (module.in_features + module.out_features))
                    module.weight.uniform_(-bound, bound, generator=generator)
    return transformer


def new_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Make the scheduler with the configuration that Qwen/Qwen-Image has in `scheduler/scheduler_config.json`."""
    return FlowMatchEulerDiscreteScheduler(
        base_image_seq_len=256, base_shift=0.5, max_image_seq_len=8192, max_shift=0.9, num_train_timesteps=1000,
        shift=1.0, shift_terminal=0.02, time_shift_type="exponential", use_dynamic_shifting=True,
    )  # fmt: skip


def assemble(
    target: Path,
    *,
    vae: AutoencoderKLQwenImage,
    transformer: QwenImageTransformer2DModel,
    text_seed: int,
) -> int:
    """Write the model folder `target` in bfloat16, completely or not at all, and return its size in bytes.

    A model folder that was published as `target` before is replaced.

    Args:
        target: The folder to write.
        vae: The trained codec.
        transformer: The trained denoiser.
        text_seed: The seed of the random text encoder.

    Raises:
        ValueError: The folder would be larger than `BYTE_LIMIT`.
    """

    def write(folder: Path) -> None:
        text.save_text(folder, text_seed)
        _save_bfloat16(vae, folder / "vae")
        _save_bfloat16(transformer, folder / "transformer")
        new_scheduler().save_pretrained(folder / "scheduler")
        (folder / "model_index.json").write_text(json.dumps(MODEL_INDEX, indent=2) + "\n", encoding="utf-8")
        (folder / "qframe.json").write_text(json.dumps(QFRAME_SETTINGS, indent=2) + "\n", encoding="utf-8")
        if folder_bytes(folder) > BYTE_LIMIT:
            raise ValueError(f"the model folder has {folder_bytes(folder)} bytes, but at most {BYTE_LIMIT} are allowed")

    if storage.is_published(target):
        storage.remove_published(target)
    storage.publish_folder(target, write)
    return folder_bytes(target)


def _save_bfloat16(model: AutoencoderKLQwenImage | QwenImageTransformer2DModel, folder: Path) -> None:
    """Save a copy of the network in bfloat16 and leave out the path that the network was loaded from."""
    copy = type(model).from_config({key: value for key, value in model.config.items() if key != "_name_or_path"})
    copy.load_state_dict(model.state_dict())
    copy.to(torch.bfloat16).save_pretrained(folder)


def folder_bytes(folder: Path) -> int:
    """Return the total size in bytes of all files in a folder and its subfolders."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
