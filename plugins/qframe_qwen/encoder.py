"""The encoder `qwen2.5-vl`, which turns prompts (for edits with pictures) into Qwen2.5-VL's last hidden states."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import attrs
import torch
from PIL import Image
from torch import Tensor, nn

from qframe.diffusion.packing import unpad
from qframe.errors import DataError, WeightsError
from qframe.files.model_folder import ModelFolder
from qframe.interfaces import Conditioning, Encoder, EncoderSpec, TokenCounter
from qframe.pictures.geometry import Size
from qframe_qwen.loading import component_config, load_weights, refused_by_library, stored_dtype
from qframe_qwen.named_tensors import not_in_file
from qframe_qwen.options import QwenVLOptions
from qframe_qwen.prompts import (
    EDIT,
    IMAGE_PAD,
    TEXT,
    UNLIMITED,
    Template,
    check_tokenizer,
    edit_plus,
    refuse_special_tokens,
    special_tokens,
    tokenize,
)
from qframe_qwen.spaces import TEXT_SPACE

_CLASS = "Qwen2_5_VLForConditionalGeneration"
_FOLDER = "text_encoder"
_PROCESSOR_FILES = ("processor/preprocessor_config.json", "processor/processor_config.json")


@attrs.frozen(eq=False)
class _Prompt:
    """A prompt in its template, as tokens.

    Attributes:
        ids: The ids of all tokens.
        dropped: How many tokens at the beginning belong to the template alone and are no conditioning.
    """

    ids: list[int]
    dropped: int


class QwenVLEncoder(Encoder):
    """The encoder that wraps transformers' Qwen2_5_VLForConditionalGeneration without its output head.

    By default image tokens have three-dimensional positions, with which the model was trained; diffusers' edit
    pipelines lose them (diffusers #14194). Pictures are prepared with PIL, so torchvision is not needed.

    Attributes:
        model: The network without its output head; None in an encoder that only counts tokens.
        tokenizer: Qwen2's tokenizer.
        image_processor: Cuts pictures into the patches that the network sees; None if the encoder takes no pictures.
        options: The template, the positions, and how special tokens and long prompts are treated.
    """

    def __init__(self, model: Any, tokenizer: Any, image_processor: Any | None, options: QwenVLOptions) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.options = options
        self._specials = special_tokens(tokenizer)
        self._image_pad = tokenizer.convert_tokens_to_ids(IMAGE_PAD)

    @property
    def network(self) -> nn.Module:
        network: nn.Module = self.model
        return network

    @classmethod
    def block_lists(cls) -> tuple[str, ...]:
        return ("visual.blocks", "language_model.layers")

    @classmethod
    def absent(cls, model: ModelFolder, options: Any) -> str | None:
        if model.file is not None or model.has(_FOLDER):
            return None
        return f"model {model.name!r}: there is no folder {_FOLDER!r}"

    @classmethod
    def describe(cls, model: ModelFolder, options: Any) -> EncoderSpec:
        config = component_config(model, _FOLDER, _CLASS)
        options = options or QwenVLOptions()
        pictures = options.template != "text" and any(model.has(file) for file in _PROCESSOR_FILES)
        if options.template in ("edit", "edit-plus") and not pictures:
            raise WeightsError(
                f"model {model.name!r}: no {_PROCESSOR_FILES[0]}, without which its encoder sees no pictures",
                "Use an edit model, or encoder.options.template = 'text'.",
            )
        text = config.get("text_config")
        width = config.get("hidden_size") or (text.get("hidden_size") if isinstance(text, dict) else None)
        if not isinstance(width, int):
            raise WeightsError(f"model {model.name!r}: {_FOLDER}/config.json has no hidden_size")
        return EncoderSpec(text_space=TEXT_SPACE, width=width, pictures=pictures)

    @classmethod
    def load(cls, model: ModelFolder, options: Any, *, device: torch.device, dtype: torch.dtype) -> Self:
        from transformers import Qwen2_5_VLForConditionalGeneration

        options = options or QwenVLOptions()
        spec = cls.describe(model, options)
        tokenizer = _tokenizer(model, spec)
        # The head is left out: hidden states do not need it, and its logits would be the largest tensor of the run. It
        # is mapped from its file at most, and never moved to the device.
        host = torch.device("cpu")
        with_head = load_weights(Qwen2_5_VLForConditionalGeneration, model, _FOLDER, device=host, dtype=dtype)
        network = with_head.model.to(device)
        return cls(network, tokenizer, _image_processor(model) if spec.pictures else None, options)

    @classmethod
    def outline(cls, model: ModelFolder, options: Any, *, dtype: torch.dtype) -> Self:
        from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel

        options = options or QwenVLOptions()
        spec = cls.describe(model, options)
        tokenizer = _tokenizer(model, spec)
        processor = _image_processor(model) if spec.pictures else None
        with refused_by_library(model, f"{_FOLDER}/config.json"), torch.device("meta"):
            network = Qwen2_5_VLModel(Qwen2_5_VLConfig.from_dict(model.config(_FOLDER)))
        return cls(network.to(dtype).eval().requires_grad_(False), tokenizer, processor, options)

    @classmethod
    def not_in_file(cls, file: Path) -> str | None:
        return not_in_file(file, _FOLDER)

    @classmethod
    def stored_dtype(cls, model: ModelFolder, options: Any) -> torch.dtype | None:
        return stored_dtype(model, _FOLDER)

    @classmethod
    def ingredients(cls, model: ModelFolder, options: Any) -> dict[str, str]:
        return {
            "weights": model.digest(_FOLDER),
            "tokenizer": model.digest("tokenizer"),
            "processor": model.digest("processor"),
            # transformers' code computes positions and prepares pictures, and has changed between versions.
            "transformers": importlib.metadata.version("transformers"),
            **{name: str(value) for name, value in attrs.asdict(options or QwenVLOptions()).items()},
        }

    @classmethod
    def token_counter(cls, model: ModelFolder, options: Any, *, cut: bool = True) -> TokenCounter:
        """Return a function that counts the tokens that `encode` returns for a prompt with pictures of given sizes.

        The function runs the same code as `encode`, but with the tokenizer and the image processor alone, without
        weights. It raises DataError for a prompt that `encode` would refuse. With `cut` False it counts all tokens of a
        prompt that `encode` would cut off.
        """
        options = options or QwenVLOptions()
        spec = cls.describe(model, options)
        processor = _image_processor(model) if spec.pictures else None
        reader = cls(None, _tokenizer(model, spec), processor, options)

        def count(prompt: str, sizes: Sequence[Size]) -> int:
            slots = [reader._slots(size) for size in sizes]
            reader.check([prompt])
            template = reader._template(prompt, len(slots))
            limit = reader.options.max_length if cut else UNLIMITED
            return len(tokenize(reader.tokenizer, template, prompt, slots, limit, warn=False)) - template.dropped

        return count

    @torch.no_grad()
    def encode(
        self, prompts: Sequence[str], pictures: Sequence[Sequence[Image.Image]], *, max_length: int | None = None
    ) -> Conditioning:
        """Encode prompts, each with its own pictures, in one pass of the network.

        Args:
            prompts: The prompts.
            pictures: For each prompt its pictures, already resized; an empty sequence for a prompt without pictures.
            max_length: How many tokens of a prompt are kept, not counting image tokens. If the options have a limit,
                too, the smaller one counts; if there is neither, the limit of the template counts.

        Raises:
            DataError: A prompt contains a special token, unless the options allow it, or has another number of pictures
                than the template shows, or the encoder takes no pictures.
        """
        if len(prompts) != len(pictures):
            raise ValueError(f"{len(prompts)} prompts, {len(pictures)} lists of pictures")
        vision = self._look([picture for shown in pictures for picture in shown])
        slots = iter(vision.slots)
        rows = [
            self._prompt(prompt, [next(slots) for _ in shown], max_length)
            for prompt, shown in zip(prompts, pictures, strict=True)
        ]
        hidden = self._hidden([row.ids for row in rows], vision)
        kept = [part[row.dropped :] for row, part in zip(rows, hidden, strict=True)]
        return Conditioning(torch.cat(kept), tuple(len(part) for part in kept))

    def check(self, prompts: Sequence[str]) -> None:
        if self.options.special_tokens == "refuse":
            for prompt in prompts:
                refuse_special_tokens(prompt, self._specials)

    def _prompt(self, prompt: str, slots: Sequence[int], max_length: int | None) -> _Prompt:
        self.check([prompt])
        template = self._template(prompt, len(slots))
        limits = [limit for limit in (self.options.max_length, max_length) if limit is not None]
        return _Prompt(tokenize(self.tokenizer, template, prompt, slots, min(limits, default=None)), template.dropped)

    def _template(self, prompt: str, pictures: int) -> Template:
        named = {
            "text": TEXT,
            "edit": EDIT,
            "edit-plus": edit_plus(max(pictures, 1)),
            "auto": EDIT if pictures else TEXT,
        }[self.options.template]
        if pictures != named.pictures:
            raise DataError(
                f"prompt {prompt!r} comes with {pictures} pictures, the encoder's template "
                f"{self.options.template!r} shows {named.pictures}",
                "Give as many pictures as the family takes.",
            )
        return named

    def _look(self, pictures: Sequence[Image.Image]) -> _Vision:
        if not pictures:
            return _Vision(None, None, ())
        if self.image_processor is None:
            raise DataError(
                "pictures were given to an encoder that does not look at any",
                "Use a family that takes pictures, and a model with a folder 'processor'.",
            )
        seen = self.image_processor(images=list(pictures), return_tensors="pt")
        merged = self.image_processor.merge_size**2
        slots = tuple(int(grid.prod()) // merged for grid in seen["image_grid_thw"])
        device = self.execution_device
        return _Vision(seen["pixel_values"].to(device), seen["image_grid_thw"].to(device), slots)

    def _slots(self, size: Size) -> int:
        """Return the number of image tokens of a picture of this size."""
        if self.image_processor is None:
            return 0  # `encode` refuses the picture
        patches = self.image_processor.get_number_of_image_patches(*size)
        return int(patches) // int(self.image_processor.merge_size) ** 2

    def _hidden(self, rows: Sequence[list[int]], vision: _Vision) -> list[Tensor]:
        """Return the last hidden states of each prompt, [its tokens, D].

        Rows are padded on the right. Attention is causal, so that the padding changes no prompt's result.
        """
        lengths = [len(ids) for ids in rows]
        input_ids = torch.zeros(len(rows), max(lengths), dtype=torch.long)
        mask = torch.zeros_like(input_ids)
        for row, ids in enumerate(rows):
            input_ids[row, : len(ids)] = torch.tensor(ids)
            mask[row, : len(ids)] = 1
        mrope = vision.pixels is not None and self.options.positions == "mrope"
        device = self.execution_device
        hidden = self.model(
            input_ids=input_ids.to(device),
            attention_mask=mask.to(device),
            pixel_values=vision.pixels,
            image_grid_thw=vision.grids,
            mm_token_type_ids=(input_ids == self._image_pad).int().to(device) if mrope else None,
            use_cache=False,
        ).last_hidden_state
        return list(unpad(hidden, lengths).split(lengths))


@attrs.frozen(eq=False)
class _Vision:
    """The input of the vision tower, for all pictures of a batch.

    Attributes:
        pixels: [patches, values of a patch]; None without pictures.
        grids: [pictures, 3], the patches of each picture along time, height and width; None without pictures.
        slots: For each picture the number of its image tokens.
    """

    pixels: Tensor | None
    grids: Tensor | None
    slots: tuple[int, ...]


def _tokenizer(model: ModelFolder, spec: EncoderSpec) -> Any:
    from transformers import Qwen2Tokenizer

    if not model.has("tokenizer"):
        raise WeightsError(f"model {model.name!r}: there is no folder 'tokenizer'")
    with refused_by_library(model, "the tokenizer in tokenizer/"):
        tokenizer = Qwen2Tokenizer.from_pretrained(model.folder / "tokenizer", local_files_only=True)
    for template in (TEXT, EDIT) if spec.pictures else (TEXT,):
        check_tokenizer(tokenizer, template, model.name)
    return tokenizer


def _image_processor(model: ModelFolder) -> Any:
    # The PIL back end, also where torchvision is installed: the same picture gives the same numbers everywhere.
    from transformers import Qwen2VLImageProcessorPil

    with refused_by_library(model, "the image processor in processor/ (preprocessor_config.json)"):
        processor = Qwen2VLImageProcessorPil.from_pretrained(model.folder / "processor", local_files_only=True)
        processor(images=[Image.new("RGB", (56, 56))], return_tensors="pt")  # a wrong value shows only in its use
    return processor
