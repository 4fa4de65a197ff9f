"""Caption dropout: what replaces a caption is the empty prompt made with the very picture, cached and live alike."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qframe.cache import Cache, DeclaredInputs, build_cache
from qframe.cache.live import LiveExamples
from qframe.config.schema import TrainConfig
from qframe.interfaces import Conditioning
from qframe.pictures.pixels import open_fitted
from qframe.train.batch import make_batch
from qframe.train.streams import stream
from tests.cache.world import MADE_BY, Loader, TinyEncoder, TinyRecipe, record
from tests.train.conftest import HalvingSchedule

RECORDS = [record(number) for number in range(10)]
CONFIG = TrainConfig(caption_dropout=0.4, seed=7)


def oracle(index: int, *, dropped: bool) -> torch.Tensor:
    """Straight from the encoder: the prompt, or none, with this record's own picture."""
    inputs = TinyRecipe().inputs(RECORDS[index])
    pictures = [open_fitted(reference) for reference in inputs.references]
    encoded: Conditioning = TinyEncoder().encode(["" if dropped else RECORDS[index].prompt], [pictures])
    return encoded.embeds


@pytest.mark.parametrize("mode", ["cached", "live"])
def test_dropped_captions_give_the_empty_prompt_of_their_own_picture(tmp_path: Path, mode: str) -> None:
    if mode == "cached":
        examples = build_cache(DeclaredInputs(RECORDS, TinyRecipe()), Loader(), Cache(tmp_path), MADE_BY)
    else:
        examples = LiveExamples(DeclaredInputs(RECORDS, TinyRecipe()), Loader()("encoder", "codec"))
    drops = 0
    for step in range(1, 7):
        slots = range(len(RECORDS))
        batch = make_batch(
            [examples[index] for index in slots],
            slots,
            step=step,
            config=CONFIG,
            schedule=HalvingSchedule(),
            patch=1,
        )
        for index, one in enumerate(batch.cond.split()):
            # The draw is the first of the slot's own stream, whatever else is in the batch.
            dropped = (
                torch.rand((), generator=stream(CONFIG.seed, "noise", step, index)).item() < CONFIG.caption_dropout
            )
            drops += dropped
            torch.testing.assert_close(one.embeds, oracle(index, dropped=dropped), msg=f"step {step}, record {index}")
    assert 12 < drops < 36, "of 60, at a rate of 0.4"


def test_empty_prompts_with_different_pictures_differ_in_the_oracle_too() -> None:
    assert not torch.equal(oracle(0, dropped=True), oracle(1, dropped=True))
    assert torch.equal(oracle(0, dropped=True), oracle(5, dropped=True)), "these share a picture"
