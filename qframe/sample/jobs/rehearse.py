"""Requests are settled before any weights are loaded, so that a mistake in the last one is told before the first
runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs
from PIL import Image
from torch import Tensor

from qframe.compose import Composition
from qframe.interfaces import Request, Settled
from qframe.sample.settling import settle

ROOM = 2 * 2**30
"""Bytes of opened pictures that are kept until their requests run."""


class Rehearsal:
    """Settles the requests of a command line without weights, and keeps what it settled for the run.

    So each picture is decoded once. When the pictures that are kept fill `room`, the requests that follow are checked
    just as well, and settled again when they run: a file of thousands of requests does not fill the memory.
    """

    def __init__(self, composition: Composition, room: int | None = None) -> None:
        """Prepare a rehearsal.

        Args:
            composition: The components that will run the requests.
            room: Bytes of opened pictures that may be kept; None is `ROOM`.
        """
        self._recipe = composition.recipe
        # The outline of the encoder has no weights; it can refuse a prompt.
        self._parts = attrs.evolve(composition.load(), loaded_encoder=composition.outlines.get("encoder"))
        self._room = ROOM if room is None else room

    def settle(self, request: Request) -> tuple[Settled, ...] | None:
        """Settle a request; None if there is no room to keep it.

        Raises:
            ConfigError: The request cannot be met.
            DataError: A picture or a prompt cannot be used.
        """
        settled = settle(self._recipe, request, self._parts)
        size = sum({id(image): _bytes(image) for image in _pictures(settled)}.values())
        if size > self._room:
            return None
        self._room -= size
        return settled


def _pictures(value: Any) -> Iterable[Image.Image | Tensor]:
    """The pictures and tensors that a settled request holds."""
    if isinstance(value, Image.Image | Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _pictures(one)
    elif attrs.has(type(value)):
        for field in attrs.fields(type(value)):
            yield from _pictures(getattr(value, field.name))


def _bytes(value: Image.Image | Tensor) -> int:
    return value.nbytes if isinstance(value, Tensor) else value.width * value.height * len(value.getbands())
