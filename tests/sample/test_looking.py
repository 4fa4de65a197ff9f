"""Latents made visible: of a call that ended, and of a step while it runs; pictures and bars in notebooks."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image, ImageChops

import qframe
from qframe.diffusion.packing import pack_latents
from qframe.errors import ConfigError
from qframe.progress import SILENT
from qframe.progress.shown import BarProgress, default_progress
from qframe.sample.outputs import PipelineOutput
from qframe.sample.pipeline import Pipeline

CALL: dict[str, Any] = {"prompt": "a red circle", "num_inference_steps": 3, "height": 32, "width": 48, "seed": 0}


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return qframe.load("qwen-image", device="cpu")


def equal(a: Image.Image, b: Image.Image) -> bool:
    return a.size == b.size and ImageChops.difference(a, b).getbbox() is None


def test_latents_of_a_call_decode_to_its_pictures(pipe: Pipeline) -> None:
    wanted = pipe(**CALL, num_images_per_prompt=2).images
    tokens: Any = pipe(**CALL, num_images_per_prompt=2, output_type="latent").images
    assert all(map(equal, pipe.decode(tokens, 32, 48), wanted))  # type: ignore[arg-type]
    dense = torch.randn(1, pipe.parts.codec_spec.channels, 4, 6)
    packed = pack_latents(dense, pipe.parts.denoiser_spec.patch)
    found = (pipe.decode(dense, output_type="pt"), pipe.decode(packed, 32, 48, output_type="pt"))
    assert torch.equal(*found)  # type: ignore[arg-type]


def test_a_callback_looks_at_every_step(pipe: Pipeline) -> None:
    seen: list[Image.Image] = []

    def look(pipe: Pipeline, step: int, timestep: Any, tensors: Any) -> dict[str, Any]:
        seen.extend(pipe.preview(tensors))  # type: ignore[arg-type]
        return {}

    (wanted,) = pipe(**CALL, callback_on_step_end=look).images
    assert len(seen) == 3
    assert equal(seen[-1], wanted)  # type: ignore[arg-type]
    assert not equal(seen[0], seen[-1])
    with pytest.raises(ConfigError, match="no call is running"):
        pipe.preview({"latents": torch.zeros(1, 6, 16)})


@pytest.mark.parametrize("size", [(None, None), (48, 48)])
def test_latents_of_another_shape_say_what_was_expected(pipe: Pipeline, size: Any) -> None:
    tokens: Any = pipe(**CALL, output_type="latent").images
    with pytest.raises(ConfigError, match=r"latents have shape \(1, \d+, \d+\), expected"):
        pipe.decode(tokens, *size)


def test_a_codec_given_tokens_says_what_it_takes(pipe: Pipeline) -> None:
    tokens: Any = pipe(**CALL, output_type="latent").images
    with pytest.raises(ConfigError, match=r"decode takes latents \[B, \d+, h, w\], got shape") as caught:
        pipe.parts.codec.decode(tokens)
    assert "pipe.decode" in str(caught.value.hint)


def test_a_notebook_shows_pictures_and_progress(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    output = pipe(**CALL)
    page = output._repr_html_()
    assert page is not None
    assert page.count("<img") == 1
    assert "data:image/png;base64," in page
    many = PipelineOutput([Image.new("RGB", (8, 8))] * 20)
    assert str(many._repr_html_()).endswith("<p>and 12 more</p>")
    assert pipe(**CALL, output_type="pt")._repr_html_() is None
    assert default_progress() is SILENT, "the output of the tests is no terminal"
    shell = type("ZMQInteractiveShell", (), {})()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert isinstance(default_progress(), BarProgress)


def test_a_terminal_shows_progress_unless_it_is_told_not_to(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    pipe(**CALL)
    assert "sampling" in capsys.readouterr().out
    pipe(**CALL, progress=SILENT)
    assert capsys.readouterr().out == ""
