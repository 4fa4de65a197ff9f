"""The weights of a network, written one tensor at a time: the files are those of diffusers, to the byte."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qframe.interfaces import SavedAs
from qframe_qwen.loading import load_weights
from qframe_qwen.saving import LARGEST_FILE, save_streamed
from tests.qwen import tiny


@pytest.mark.parametrize("largest", [LARGEST_FILE, "100KB"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_files_are_those_that_diffusers_writes(tmp_path: Path, largest: str, dtype: torch.dtype) -> None:
    """One file, or several and an index; the values may come from elsewhere than the network."""
    from diffusers import QwenImageTransformer2DModel

    model = tiny.tiny_qwen_model(tmp_path / "model")
    network = load_weights(
        QwenImageTransformer2DModel, model, "transformer", device=torch.device("cpu"), dtype=torch.float32
    )
    values = {name: parameter + 1 for name, parameter in network.named_parameters()}
    asked: list[str] = []
    saved_as = SavedAs(dtype, lambda name: (asked.append(name), values[name].to(dtype))[1])
    save_streamed(network, tmp_path / "streamed", saved_as, largest_file=largest)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(values[name])
    torch.nn.Module.to(network, dtype)
    network.save_pretrained(tmp_path / "whole", max_shard_size=largest)
    found, wanted = (
        {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("streamed", "whole")
    )
    assert found.keys() == wanted.keys()
    assert len(wanted) == 2 if largest == LARGEST_FILE else len(wanted) > 3
    assert [name for name in wanted if found[name] != wanted[name]] == []
    assert sorted(asked) == sorted(values)  # each once
