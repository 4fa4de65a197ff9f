"""Requests checked as far as that goes without weights: by the checks of the recipe itself."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import attrs

from qframe.compose import Composition
from qframe.interfaces import Encoder, Request


class Rehearsal:
    """Plans requests up to the first use of a network, which stands in for everything that is loaded."""

    def __init__(self, composition: Composition) -> None:
        self._recipe = composition.recipe
        # A stand-in for each network: a recipe checks all that it can before it asks one for anything.
        unloaded = cast("Any", _Unloaded())
        self._parts = attrs.evolve(
            composition.load(),
            loaded_encoder=cast("Any", _TextsOnly(composition.outlines.get("encoder"))),
            loaded_codec=unloaded,
            loaded_denoiser=unloaded,
        )

    def check(self, request: Request) -> None:
        """ConfigError or DataError for what the recipe refuses before a model runs. Its pictures are decoded."""
        with _unheard():  # the run itself says it once more
            for _, part in self._recipe.split(request):
                try:
                    self._recipe.plan(part, self._parts)
                except _ReachedError:
                    continue


class _ReachedError(Exception):
    """A network is needed: everything that comes before it has passed."""


class _Unloaded:
    def __getattr__(self, name: str) -> Any:
        raise _ReachedError(name)


class _TextsOnly(_Unloaded):
    """An encoder that can refuse prompts and nothing else."""

    def __init__(self, outline: Encoder | None) -> None:
        self._outline = outline

    def check(self, prompts: Sequence[str]) -> None:
        if self._outline is not None:
            self._outline.check(prompts)


@contextmanager
def _unheard() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
