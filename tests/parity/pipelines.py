"""A tiny model, and for each family qframe's pipeline and diffusers' pipeline around the same networks."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import qframe
from qframe.progress import SILENT
from qframe.sample.pipeline import Pipeline
from qframe.testing.listening import listening, replaced
from qframe_qwen.oracle_arguments import AREA, SMALL_AREA
from qframe_qwen.oracle_runs import ReferenceMode, build, picture_processor
from tests.qwen import tiny
from tests.qwen.calls import UPSTREAM, family_of

_AREAS = {AREA: tiny.AREA, SMALL_AREA: tiny.ENCODER_AREA}
_LARGE = 3 / 5
"""What the matrices of the tiny model are multiplied by: those of runs that start from pictures must be smaller."""


class Pair:
    """The two pipelines of one family.

    Attributes:
        name: The name of the family as in `tests.qwen.calls`.
        ours: qframe's pipeline.
    """

    def __init__(self, name: str, model: Path) -> None:
        self.name = name
        settings = ["encoder.options.positions=upstream"] if "edit" in name else []
        self.ours: Pipeline = qframe.load(family_of(name), model=model, device="cpu", overrides=settings)

    @cached_property
    def theirs(self) -> Any:
        """The pipeline of diffusers around the networks of qframe's."""
        logging.getLogger("diffusers").setLevel(logging.ERROR)
        processor = picture_processor(self.ours.parts) if "edit" in self.name else None
        return build(UPSTREAM[self.name], self.ours.parts, processor)

    def run_ours(self, arguments: dict[str, Any]) -> Any:
        return self.ours(**arguments, progress=SILENT)

    def run_theirs(self, arguments: dict[str, Any]) -> Any:
        """Run diffusers' pipeline, where it is an edit with the areas of the tiny model.

        As the page of differences says, the reference of editing inside a mask is the mode of the posterior.
        """
        with ExitStack() as inside:
            if "edit" in self.name:
                inside.enter_context(_tiny_areas(UPSTREAM[self.name]))
            if self.name == "qwen-edit-inpaint":
                reference = ReferenceMode(self.theirs)
                inside.enter_context(listening(self.theirs, "_encode_vae_image", reference.hear))
                inside.enter_context(reference.shown())
            return self.theirs(**arguments)


def tiny_model(folder: Path) -> Path:
    """Write the tiny model that the comparisons are made with."""
    from diffusers import QwenImageTransformer2DModel

    tiny.tiny_qwen_model(folder)
    transformer = QwenImageTransformer2DModel.from_pretrained(folder / "transformer")
    tiny.enlarge(transformer, _LARGE)
    transformer.save_pretrained(folder / "transformer")
    return folder


def _tiny_areas(kind: type[Any]) -> AbstractContextManager[None]:
    """Return a context in which diffusers' pipeline resizes pictures to the areas of the tiny model."""
    module = sys.modules[kind.__module__]
    real: Callable[[int, float], Any] = module.calculate_dimensions
    return replaced(module, "calculate_dimensions", lambda area, ratio: real(_AREAS[area], ratio))
