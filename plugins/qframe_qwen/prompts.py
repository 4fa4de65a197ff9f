"""The texts (templates) that Qwen-Image's prompts are embedded in, and the conversion of prompts to tokens.

Text that a user writes never becomes a special token.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any

import attrs

from qframe.errors import DataError, WeightsError, excerpt

logger = logging.getLogger(__name__)

IMAGE_PAD = "<|image_pad|>"
UNLIMITED = 2**62
"""A number of tokens that no prompt has."""
_SPECIAL = re.compile(r"(<\|[a-z_]+\|>)")
_SYSTEM = "<|im_start|>system\n"
_USER = "<|im_end|>\n<|im_start|>user\n"
_ASSISTANT = "<|im_end|>\n<|im_start|>assistant\n"


@attrs.frozen
class Template:
    """The text that a prompt is embedded in before the encoder reads it.

    Attributes:
        text: The text, with {} in the place of the prompt.
        dropped: How many tokens at the beginning are encoded, but cut from the result.
        pictures: How many pictures the text shows to the encoder.
        max_length: How many of the tokens after the dropped ones are kept if the user sets no limit; None keeps all.
    """

    text: str
    dropped: int
    pictures: int
    max_length: int | None


# diffusers: pipeline_qwenimage.py, pipeline_qwenimage_edit.py and pipeline_qwenimage_edit_plus.py,
# prompt_template_encode and its start_idx.
TEXT = Template(
    _SYSTEM
    + "Describe the image by detailing the color, shape, size, texture, quantity, text, spatial relationships of the "
    + "objects and background:"
    + _USER
    + "{}"
    + _ASSISTANT,
    dropped=34,
    pictures=0,
    max_length=512,
)
_EDIT_START = (
    _SYSTEM
    + "Describe the key features of the input image (color, shape, size, texture, objects, background), then explain "
    + "how the user's text instruction should alter or modify the image. Generate a new image that meets the user's "
    + "requirements while maintaining consistency with the original input where appropriate."
    + _USER
)
_PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
EDIT = Template(_EDIT_START + _PICTURE + "{}" + _ASSISTANT, dropped=64, pictures=1, max_length=None)


def edit_plus(pictures: int) -> Template:
    """Return the template of the edit-plus models for this number of pictures, announced as "Picture 1", ... ."""
    shown = "".join(f"Picture {number}: {_PICTURE}" for number in range(1, pictures + 1))
    return Template(_EDIT_START + shown + "{}" + _ASSISTANT, dropped=64, pictures=pictures, max_length=None)


def check_tokenizer(tokenizer: Any, template: Template, name: str) -> None:
    """Check that a tokenizer cuts the beginning of a template into exactly `template.dropped` tokens.

    Args:
        tokenizer: The tokenizer of the model.
        template: The template to check with.
        name: The model's name, for the message.

    Raises:
        WeightsError: The number of tokens is another one.
    """
    start = template.text.partition("<|vision_start|>" if template.pictures else "{}")[0]
    length = len(_ids(tokenizer, start))
    if length != template.dropped:
        raise WeightsError(
            f"model {name!r}: its tokenizer cuts the start of the prompt template into {length} tokens, "
            f"expected {template.dropped}",
            "The tokenizer must be Qwen2.5-VL's, or one that cuts this text alike.",
        )


def special_tokens(tokenizer: Any) -> frozenset[str]:
    """Return the special tokens of a tokenizer as they are written in a text, such as "<|im_end|>"."""
    return frozenset(str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)


def refuse_special_tokens(prompt: str, specials: frozenset[str]) -> None:
    """Raise an error if a prompt contains a special token, such as "<|im_end|>".

    Raises:
        DataError: The prompt contains one or more of `specials`; the message names them.
    """
    found = sorted(token for token in specials if token in prompt)
    if found:
        raise DataError(
            f"prompt {excerpt(prompt)!r} holds {', '.join(found)}, which would change the prompt's structure",
            "Take it out, or have it read as plain letters: encoder.options.special_tokens = 'literal'.",
        )


def tokenize(
    tokenizer: Any,
    template: Template,
    prompt: str,
    slots: Sequence[int],
    max_length: int | None,
    *,
    warn: bool = True,
) -> list[int]:
    """Return the token ids of a template with the prompt filled in, and with image tokens for each picture.

    If there are more tokens than the limit allows, the last ones are cut off, as in diffusers, and a warning is logged.

    Args:
        tokenizer: The tokenizer.
        template: The template.
        prompt: The prompt.
        slots: For each picture the number of its image tokens.
        max_length: How many of the tokens after the dropped ones are kept, not counting image tokens; None stands for
            the template's limit.
        warn: Whether a warning is logged for a prompt that is cut off.
    """
    image = tokenizer.convert_tokens_to_ids(IMAGE_PAD)
    remaining = iter(slots)
    ids: list[int] = []
    for token in _ids(tokenizer, template.text, prompt):
        ids.extend([image] * next(remaining) if token == image else [token])
    limit = max_length if max_length is not None else template.max_length
    if limit is None:
        return ids
    # Pictures are shown whole, however short the limit.
    after_pictures = len(ids) - ids[::-1].index(image) if slots else 0
    end = max(template.dropped + sum(slots) + limit, after_pictures)
    if len(ids) > end:
        if warn:
            logger.warning(
                "prompt %r has %d tokens, only the first %d are used",
                excerpt(prompt),
                len(ids) - template.dropped,
                end - template.dropped,
            )
        del ids[end:]
    return ids


def _ids(tokenizer: Any, template: str, prompt: str = "") -> list[int]:
    """Token ids of a template. Only the template's own special tokens become such; in the prompt none is looked for.

    The tokenizer's warning about long texts is off, because `tokenize` decides how long a prompt may be.
    """
    if any("\ud800" <= letter <= "\udfff" for letter in prompt):  # no tokenizer takes it
        raise DataError(f"prompt {excerpt(prompt)!a} holds half a character", "Write it anew.")
    ids: list[int] = []
    for piece in filter(None, _SPECIAL.split(template)):
        if _SPECIAL.fullmatch(piece):
            ids.append(tokenizer.convert_tokens_to_ids(piece))
        elif text := piece.replace("{}", prompt):
            ids.extend(tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False).input_ids)
    return ids
