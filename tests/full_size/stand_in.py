"""Writes a model folder with the layout, the shapes and the vocabulary of the published Qwen-Image-Edit.

Nearly all of the 57 GB are holes: the files are sparse, and a hole reads as zeros and takes no disk. Small tensors
(biases, norms, the first and the last layer) hold random numbers, and of a large matrix a few pages do. So the numbers
that a run computes pass through every block, gradients reach every adapter, and pictures and prompts make a
difference, although the folder takes a few hundred megabytes.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import attrs
import numpy as np
import torch
from diffusers import AutoencoderKLQwenImage, FlowMatchEulerDiscreteScheduler, QwenImageTransformer2DModel
from torch import nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.full_size.vocabulary import write_tokenizer
from tests.qwen.tiny import SCHEDULER

PAGE = 4096
"""The bytes that a file system stores or leaves out at once."""
WHOLE = 2 * 2**20
"""A tensor of at most this many bytes is random as a whole."""
EVERY, EVERY_WORD = 128, 4
"""Of a larger matrix one page in 128 is random, of the table of words one in 4, so that most prompts meet one."""
SHARD = 5_000_000_000
"""The most bytes in one file of weights; the published model has 9 and 4 files with it."""


@attrs.frozen(kw_only=True)
class Depth:
    """How many layers the networks of a stand-in have. All widths are those of the published model.

    Attributes:
        blocks: The blocks of the transformer.
        text: The layers of the text encoder.
        vision: The layers of the text encoder's vision tower.
    """

    blocks: int = 60
    text: int = 28
    vision: int = 32

    @classmethod
    def short(cls, blocks: int) -> Depth:
        """The depth with this many blocks, and at most as many layers in each part of the text encoder."""
        return cls(blocks=blocks, text=min(blocks, cls().text), vision=min(blocks, cls().vision))


def write_stand_in(folder: Path, depth: Depth, *, seed: int = 0) -> None:
    """Write the model folder.

    Args:
        folder: The folder to make.
        depth: How many layers its networks have.
        seed: Decides the random numbers.
    """
    generator = np.random.default_rng(seed)
    with torch.device("meta"):
        transformer = QwenImageTransformer2DModel(num_layers=depth.blocks)
        vae = AutoencoderKLQwenImage()
        encoder = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_dict(text_encoder_config(depth)))
    for name, network in (("transformer", transformer), ("vae", vae)):
        (folder / name).mkdir(parents=True)
        network.save_config(folder / name)
        write_weights(folder / name, "diffusion_pytorch_model", dict(network.state_dict()), generator)
    (folder / "text_encoder").mkdir()
    write_json(folder / "text_encoder" / "config.json", text_encoder_config(depth))
    write_weights(folder / "text_encoder", "model", published_names(encoder), generator)
    write_tokenizer(folder / "tokenizer")
    write_tokenizer(folder / "processor")
    Qwen2VLImageProcessorPil(
        patch_size=14, merge_size=2, temporal_patch_size=2, size={"shortest_edge": 56 * 56, "longest_edge": 12845056}
    ).save_pretrained(folder / "processor")
    FlowMatchEulerDiscreteScheduler(**SCHEDULER).save_config(folder / "scheduler")
    write_json(folder / "model_index.json", pipeline_config())


def pipeline_config() -> dict[str, Any]:
    """Return model_index.json of Qwen/Qwen-Image-Edit."""
    of_diffusers = {
        "scheduler": "FlowMatchEulerDiscreteScheduler",
        "transformer": "QwenImageTransformer2DModel",
        "vae": "AutoencoderKLQwenImage",
    }
    of_transformers = {
        "processor": "Qwen2VLProcessor",
        "text_encoder": "Qwen2_5_VLForConditionalGeneration",
        "tokenizer": "Qwen2Tokenizer",
    }
    return {
        "_class_name": "QwenImageEditPipeline",
        "_diffusers_version": "0.35.0.dev0",
        **{role: ["diffusers", name] for role, name in of_diffusers.items()},
        **{role: ["transformers", name] for role, name in of_transformers.items()},
    }


def text_encoder_config(depth: Depth) -> dict[str, Any]:
    """Return config.json of Qwen2.5-VL-7B-Instruct, as it lies in text_encoder/ of the published model."""
    text = {
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "hidden_act": "silu",
        "hidden_size": 3584,
        "initializer_range": 0.02,
        "intermediate_size": 18944,
        "max_position_embeddings": 128000,
        "max_window_layers": 28,
        "num_attention_heads": 28,
        "num_hidden_layers": depth.text,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {"mrope_section": [16, 24, 24], "rope_type": "default", "type": "default"},
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": 152064,
    }
    vision = {
        "depth": depth.vision,
        "fullatt_block_indexes": [layer for layer in (7, 15, 23, 31) if layer < depth.vision] or [depth.vision - 1],
        "hidden_act": "silu",
        "hidden_size": 1280,
        "in_channels": 3,
        "in_chans": 3,
        "initializer_range": 0.02,
        "intermediate_size": 3420,
        "model_type": "qwen2_5_vl",
        "num_heads": 16,
        "out_hidden_size": 3584,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "temporal_patch_size": 2,
        "tokens_per_second": 2,
        "window_size": 112,
    }
    tokens = {
        "image_token_id": 151655,
        "video_token_id": 151656,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "vision_token_id": 151654,
    }
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        **text,
        **tokens,
        "text_config": {**text, "model_type": "qwen2_5_vl_text"},
        "vision_config": vision,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.53.1",
    }


def published_names(encoder: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights of the text encoder by the names that they have in the published files.

    These are the names of earlier versions of transformers: model.layers.0..., visual.blocks.0..., lm_head.weight.
    """
    return {
        name.replace("model.language_model.", "model.").replace("model.visual.", "visual."): tensor
        for name, tensor in encoder.state_dict().items()
    }


def write_weights(folder: Path, stem: str, tensors: Mapping[str, torch.Tensor], generator: np.random.Generator) -> None:
    """Write sparse safetensors files in bfloat16, and their index if there are several of them.

    Args:
        folder: The folder of the component.
        stem: The beginning of the files' names.
        tensors: The names and the shapes of the weights; their values are not read.
        generator: Draws the numbers that are not zero.
    """
    shards = list(_shards(tensors))
    names = [
        f"{stem}-{place + 1:05d}-of-{len(shards):05d}" if len(shards) > 1 else stem for place in range(len(shards))
    ]
    for name, shard in zip(names, shards, strict=True):
        with (folder / f"{name}.safetensors").open("wb") as file:
            _write_file(file, shard, generator)
    if len(shards) > 1:
        total = sum(2 * tensor.numel() for tensor in tensors.values())
        places = {key: f"{name}.safetensors" for name, shard in zip(names, shards, strict=True) for key in shard}
        write_json(folder / f"{stem}.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": places})


def write_json(file: Path, value: object) -> None:
    """Write a value as JSON, as model folders have it."""
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _shards(tensors: Mapping[str, torch.Tensor]) -> Iterator[dict[str, tuple[int, ...]]]:
    """Fill one file after the other, as diffusers and transformers do; yield the shapes in each by name."""
    shard: dict[str, tuple[int, ...]] = {}
    size = 0
    for name, tensor in tensors.items():
        if shard and size + 2 * tensor.numel() > SHARD:
            yield shard
            shard, size = {}, 0
        shard[name] = tuple(tensor.shape)
        size += 2 * tensor.numel()
    yield shard


def _write_file(file: BinaryIO, shapes: Mapping[str, tuple[int, ...]], generator: np.random.Generator) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % PAGE)  # so that the data begin on a page
    file.write(struct.pack("<Q", len(text)) + text)
    first = 8 + len(text)
    for name, shape in shapes.items():
        start, end = header[name]["data_offsets"]
        for place, count in _filled(name, first + start, first + end):
            file.seek(place)
            file.write(_numbers(name, shape, count // 2, generator))
    file.truncate(first + end)


def _filled(name: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The pieces of a tensor that hold random numbers: the place of each in the file, and its bytes."""
    if end - start <= WHOLE:
        yield start, end - start
        return
    every = EVERY_WORD if name.endswith("embed_tokens.weight") else EVERY
    first = -(-start // PAGE) * PAGE
    for place in range(first, end - PAGE + 1, every * PAGE):
        yield place, PAGE


def _numbers(name: str, shape: tuple[int, ...], count: int, generator: np.random.Generator) -> bytes:
    """Random numbers in bfloat16: near 1 for the factors of a norm, of variance 1 / inputs for a matrix, else small."""
    values = generator.standard_normal(count, dtype=np.float32)
    leaf = name.rpartition(".")[2]
    squeezed = [side for side in shape if side > 1]
    if len(squeezed) > 1:
        values *= 1.0 if "embed_tokens" in name else 1 / math.sqrt(math.prod(squeezed[1:]))
    elif leaf in ("weight", "gamma"):
        values = 1 + 0.1 * values
    else:
        values *= 0.1
    return (values.view(np.uint32) >> 16).astype("<u2").tobytes()
