"""Make the tokenizer, the image processor and the text encoder of the embedded model.

They are instances of the classes that the published models use, but tiny. The tokenizer is a byte-level BPE with
Qwen2's pre-tokenizer and with the special tokens in Qwen2's order. It is trained until each word of its training text
is one token. The system prompts of the two pipelines then have 34 and 64 tokens, as with the published vocabulary; the
pipelines cut off these numbers of tokens. The encoder has random weights and is never trained, because random
projections of words and pixels are enough for the denoiser.
"""

import json
import math
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from qframe_shapes import vocabulary

WIDTH = 64
"""The width of a text token, which is the `joint_attention_dim` of the transformer."""

PATCH, MERGE = 8, 2
MIN_PIXELS, MAX_PIXELS = 48 * 48, 96 * 96

TEXT_TEMPLATE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
"""The template of diffusers' `pipeline_qwenimage.py`; 34 tokens come before the prompt."""

EDIT_TEMPLATE = (
    "<|im_start|>system\nDescribe the key features of the input image (color, shape, size, texture, objects, "
    "background), then explain how the user's text instruction should alter or modify the image. Generate a new image "
    "that meets the user's requirements while maintaining consistency with the original input where appropriate."
    "<|im_end|>\n<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{}<|im_end|>\n<|im_start|>assistant\n"
)
"""The template of diffusers' `pipeline_qwenimage_edit.py`; 64 tokens come before `<|vision_start|>`."""

SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
"""The special tokens in the order of Qwen2.5-VL's tokenizer_config.json; their ids follow those of the words."""

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def new_tokenizer() -> Qwen2Tokenizer:
    """Train the tokenizer; the result is the same on every machine."""
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=100_000, min_frequency=1, show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    bpe.train_from_iterator(_training_texts(), trainer)
    state = json.loads(bpe.to_str())["model"]
    vocab = {**state["vocab"], **{token: len(state["vocab"]) + i for i, token in enumerate(SPECIAL_TOKENS)}}
    tokenizer = Qwen2Tokenizer(
        vocab=vocab, merges=[tuple(merge) for merge in state["merges"]], model_max_length=1024,
        pad_token="<|endoftext|>", eos_token="<|im_end|>", unk_token=None, padding_side="right",
    )  # fmt: skip
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL_TOKENS)})
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _training_texts() -> list[str]:
    words = vocabulary.training_words()
    prompts = [TEXT_TEMPLATE.format(""), EDIT_TEMPLATE.format("")]
    for token in SPECIAL_TOKENS:
        prompts = [prompt.replace(token, "\n") for prompt in prompts]
    return [*prompts, *words, *(f" {word}" for word in words), *vocabulary.PUNCTUATION.split()]


def new_image_processor() -> Qwen2VLImageProcessorPil:
    """Make the image processor, which cuts a picture so that the encoder has one image token per 16 x 16 pixels.

    The image processor does not resize a picture whose area lies between 48 x 48 and 96 x 96 pixels.
    """
    return Qwen2VLImageProcessorPil(
        patch_size=PATCH, merge_size=MERGE, temporal_patch_size=2,
        size={"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS},
    )  # fmt: skip


def new_text_encoder(tokenizer: Qwen2Tokenizer, seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """Make a frozen Qwen2.5-VL with random weights, width 64 and two layers, in evaluation mode.

    The random weights are scaled so that the variance of the activations stays the same from layer to layer. Therefore
    the layers change the embeddings noticeably, and the output depends on the words of the prompt, on their order, and
    on the picture.

    Args:
        tokenizer: The tokenizer that the encoder reads the tokens of.
        seed: The seed of the weights.
    """
    token = {name: tokenizer.convert_tokens_to_ids(name) for name in SPECIAL_TOKENS}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": 4096, "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0},
            "bos_token_id": token["<|endoftext|>"], "eos_token_id": token["<|im_end|>"],
            "pad_token_id": token["<|endoftext|>"],
        },
        vision_config={
            "depth": 2, "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_heads": 4, "patch_size": PATCH,
            "spatial_merge_size": MERGE, "temporal_patch_size": 2, "window_size": 8 * PATCH * MERGE,
            "out_hidden_size": WIDTH, "fullatt_block_indexes": [1],
        },
        image_token_id=token["<|image_pad|>"], video_token_id=token["<|video_pad|>"],
        vision_start_token_id=token["<|vision_start|>"], vision_end_token_id=token["<|vision_end|>"],
        tie_word_embeddings=True,
    )  # fmt: skip
    encoder = Qwen2_5_VLForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, module in encoder.named_modules():
            if isinstance(module, nn.Linear | nn.Conv3d) and name != "lm_head":
                gain = 0.5 if name.endswith(("o_proj", "down_proj")) else 1.0
                module.weight.normal_(0.0, gain / math.sqrt(module.weight[0].numel()), generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.Embedding):
                module.weight.normal_(0.0, 1.0, generator=generator)
    return encoder.eval().requires_grad_(False)


def save_text(folder: Path, seed: int) -> None:
    """Write `tokenizer/`, `processor/` and `text_encoder/` (in bfloat16) into `folder`; `seed` decides the weights."""
    tokenizer = new_tokenizer()
    tokenizer.save_pretrained(folder / "tokenizer")
    tokenizer.save_pretrained(folder / "processor")
    new_image_processor().save_pretrained(folder / "processor")
    (folder / "processor" / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    new_text_encoder(tokenizer, seed).to(torch.bfloat16).save_pretrained(folder / "text_encoder")
