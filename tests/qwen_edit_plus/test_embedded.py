"""The embedded model under edit-plus: trained with one reference and the template of edits, it takes this one too."""

from __future__ import annotations

import pytest

import qframe
from qframe.pictures.geometry import Geometry
from qframe.sample.pipeline import Pipeline
from qframe_shapes.options import ShapesOptions
from qframe_shapes.source import ShapesSource

DOT = "dot"
COUNT = 8


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return qframe.load("qwen-edit-plus")


def test_encoder_and_codec_see_one_size(pipe: Pipeline) -> None:
    recipe = pipe.recipe
    assert recipe.geometry == recipe.encoder_geometry == Geometry(48 * 48, 96 * 96, 16)  # type: ignore[attr-defined]


def test_edits_that_the_model_knows_succeed(pipe: Pipeline) -> None:
    """24 of 24 where this was written, as with qwen-edit; a few may round otherwise elsewhere."""
    source = ShapesSource(ShapesOptions(validation=4 * COUNT), None)
    known = [record for record in source.validation() if not record.group.startswith(DOT)][:COUNT]
    assert len(known) == COUNT
    right = 0
    for record in known:
        asked = pipe.recipe.request_for(record)
        made = pipe(
            prompt=record.prompt,
            image=record.references,
            height=asked.height,
            width=asked.width,
            num_inference_steps=12,
            true_cfg_scale=1.0,
            seed=0,
        )
        right += bool(source.success(record, made.images[0]))  # type: ignore[arg-type]
    assert right >= COUNT - 2
