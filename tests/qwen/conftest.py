from __future__ import annotations

from typing import Any

import pytest
import torch

from qframe.checkpoint import Checkpoint
from qframe.interfaces import Parts
from qframe.samplers import EulerSampler
from qframe_qwen.codec import QwenCodec
from qframe_qwen.denoiser import StockDenoiser
from qframe_qwen.encoder import QwenVLEncoder
from qframe_qwen.options import QwenVLOptions
from qframe_qwen.schedule import FlowMatchSchedule
from tests.qwen import tiny


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return tiny.tiny_qwen_checkpoint(tmp_path_factory.mktemp("tiny-qwen"))


def load_parts(checkpoint: Checkpoint, options: QwenVLOptions | None = None, **replaced: Any) -> Parts:
    where = {"device": torch.device("cpu"), "dtype": torch.float32}
    parts = {
        "encoder_spec": QwenVLEncoder.describe(checkpoint, options),
        "codec_spec": QwenCodec.describe(checkpoint, None),
        "denoiser_spec": StockDenoiser.describe(checkpoint, None),
        "schedule": FlowMatchSchedule.load(checkpoint, None, **where),
        "sampler": EulerSampler(),
        "checkpoint": checkpoint,
        "loaded_encoder": QwenVLEncoder.load(checkpoint, options, **where),
        "loaded_codec": QwenCodec.load(checkpoint, None, **where),
        "loaded_denoiser": StockDenoiser.load(checkpoint, None, **where),
    }
    return Parts(**(parts | replaced))


@pytest.fixture(scope="session")
def parts(checkpoint: Checkpoint) -> Parts:
    return load_parts(checkpoint)


@pytest.fixture(scope="session")
def upstream_parts(checkpoint: Checkpoint) -> Parts:
    """With the positions of diffusers' edit pipeline."""
    return load_parts(checkpoint, QwenVLOptions(positions="upstream"))


@pytest.fixture(scope="session")
def text_pipeline(checkpoint: Checkpoint) -> Any:
    return tiny.upstream_text_to_image(checkpoint)


@pytest.fixture(scope="session")
def edit_pipeline(checkpoint: Checkpoint) -> Any:
    return tiny.upstream_edit(checkpoint)
