"""The rehearsal at full size, in short: a few blocks of full width, and the vocabulary of the published model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from qframe_qwen.prompts import EDIT, TEXT, check_tokenizer
from qframe_shapes.text import SPECIAL_TOKENS
from tests.full_size.__main__ import run
from tests.full_size.stand_in import EVERY, PAGE, write_weights
from tests.full_size.vocabulary import write_tokenizer

GIB = 2**30


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import Qwen2Tokenizer

    folder = tmp_path_factory.mktemp("vocabulary") / "tokenizer"
    write_tokenizer(folder)
    return Qwen2Tokenizer.from_pretrained(folder, local_files_only=True)


@pytest.mark.slow
def test_the_published_vocabulary_has_the_ids_and_the_template_lengths_of_the_published_model(tokenizer: Any) -> None:
    assert (len(tokenizer.get_vocab()), tokenizer.vocab_size) == (151665, 151643)
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(151643, 151657))
    # From the documentation of Qwen's tokenizer, and from the vocabulary itself.
    assert tokenizer("Hello, world!").input_ids == [9707, 11, 1879, 0]
    assert tokenizer.decode(tokenizer("水彩 éœ 🎨 zażółć\n\n  x").input_ids) == "水彩 éœ 🎨 zażółć\n\n  x"
    assert (TEXT.dropped, EDIT.dropped) == (34, 64)
    for template in (TEXT, EDIT):
        check_tokenizer(tokenizer, template, "stand-in")


@pytest.mark.slow
def test_every_word_of_the_vocabulary_is_cut_into_itself(tokenizer: Any) -> None:
    """A merge that is missing, or in the wrong place, would leave words in pieces."""
    words = {place: tokenizer.decode([place]) for place in range(256, 151643, 7)}
    words = {
        place: word for place, word in words.items() if word.removeprefix(" ").isascii() and word.strip().isalpha()
    }
    assert len(words) > 8000
    assert {place: ids for place, word in words.items() if (ids := tokenizer(word).input_ids) != [place]} == {}


def test_a_sparse_file_has_the_shapes_that_it_was_asked_for_and_numbers_where_it_has_any(tmp_path: Path) -> None:
    shapes = {"norm.weight": (3000,), "big.weight": (1024, 8192), "big.bias": (1024,), "last.weight": (7, 3)}
    with torch.device("meta"):
        tensors = {name: torch.empty(shape) for name, shape in shapes.items()}
    write_weights(tmp_path, "model", tensors, np.random.default_rng(0))
    file = tmp_path / "model.safetensors"
    with safe_open(file, framework="pt") as opened:
        found = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == shapes
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    for small in ("norm.weight", "big.bias", "last.weight"):
        assert bool((found[small] != 0).all())
    assert abs(found["norm.weight"].float().mean().item() - 1) < 0.01
    filled = found["big.weight"].float()
    assert abs((filled != 0).float().mean().item() * EVERY - 1) < 0.05
    assert abs(filled[filled != 0].square().mean().item() * 8192 - 1) < 0.05
    assert 512 * file.stat().st_blocks < file.stat().st_size / 8 + 4 * PAGE


@pytest.mark.slow
@pytest.mark.skipif(
    "QFRAME_REHEARSE" not in os.environ,
    reason="takes eight minutes on two cores, beside the rehearsal below: set QFRAME_REHEARSE=1 to run it",
)
def test_blocks_of_full_width_are_streamed_from_their_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results.json"
    arguments = ["--blocks", "4", "--stream", "--folder", str(tmp_path / "work"), "--json", str(results)]
    assert run(arguments) == 0, capsys.readouterr()
    rows = {row["part"]: row for row in json.loads(results.read_text())["parts"]}
    step = rows["a LoRA step, save"]
    assert step["card"] < 2 * GIB, "two slots, what is not streamed, and what computing takes"
    assert step["mapped"] > 2.5 * GIB


@pytest.mark.slow
def test_four_blocks_of_full_width_go_through_every_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results.json"
    assert run(["--blocks", "4", "--folder", str(tmp_path / "work"), "--json", str(results)]) == 0, capsys.readouterr()
    rows = {row["part"]: row for row in json.loads(results.read_text())["parts"]}
    assert len(rows) == 10
    assert max(row["anonymous"] for row in rows.values()) < 5 * GIB
    # Loading takes no memory of its own: the weights of 2.6 GiB are mapped, and only in part.
    assert rows["load the denoiser"]["forecast_mapped"] > 2.5 * GIB
    assert rows["load the denoiser"]["anonymous"] < rows["imports alone"]["anonymous"] + GIB / 4
    # The step has all weights in memory as mapped files, and beside them what is forecast and little more.
    step = rows["a LoRA step, save"]
    assert step["mapped"] > 2.5 * GIB
    assert step["anonymous"] < step["forecast_own"] + GIB
