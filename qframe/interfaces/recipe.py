"""The contract of a recipe: it joins the components for one task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from qframe.errors import PluginError
from qframe.files.model_folder import ModelFolder
from qframe.interfaces.examples import Example, ExampleInputs, Record
from qframe.interfaces.parts import Parts
from qframe.interfaces.plan import Plan
from qframe.interfaces.request import Request
from qframe.pictures.geometry import Geometry


class Recipe(ABC):
    """Joins the components for one task. Built with the settings its family declares and the checkpoint it serves.

    The checkpoint is there for what belongs to no component (areas, default sigmas); no weight is read from it.
    version: raised when `inputs` means something else than before; part of every cache key.
    request_type: the Request (or a subclass) whose fields the task takes. references: its plans have references.
    pictures: its prompts come with pictures, which the encoder must look at.
    positional: the arguments that a call takes by position, as diffusers' pipeline of the task does.
    geometry: what pictures of its task are brought into, and so the size of a result where a request names none; set
    by `__init__` where there is one, and needed by transforms.
    """

    version: ClassVar[int] = 1
    request_type: ClassVar[type[Request]] = Request
    references: ClassVar[bool] = False
    pictures: ClassVar[bool] = False
    positional: ClassVar[tuple[str, ...]] = ("prompt", "negative_prompt")
    geometry: Geometry

    def __init__(self, settings: Any, model: ModelFolder) -> None:
        self.settings = settings
        self.model = model

    @abstractmethod
    def inputs(self, record: Record) -> ExampleInputs:
        """What must be encoded to train on this record. Opens no picture, so that cached training never does.

        DataError names the record and what it lacks.
        """

    def loss_weight(self, example: Example, generator: torch.Generator) -> Tensor | None:
        """Where the loss counts in one step of training, [h, w] in [0, 1], and how much; None: everywhere alike.

        By default the example's weight map. generator: for what is drawn anew in every step; it is a function of (seed,
        step, place in the batch), so that a resumed run draws the same.
        """
        return example.loss_map

    @abstractmethod
    def request_for(self, record: Record) -> Request:
        """The request that asks for this record's target: what validation samples with."""

    def split(self, request: Request) -> list[tuple[tuple[int, ...], Request]]:
        """Parts of a request whose pictures have one size each, and so one plan, with their places in the result.

        By default the request itself. Override where pictures that a user gives decide the size.
        """
        return [(tuple(range(request.prompt_count * request.num_images_per_prompt)), request)]

    def shown(self, request: Request) -> list[tuple[Image.Image, ...]]:
        """Per prompt of a request, the pictures that the encoder sees with it, at the size it sees them.

        By default none. A recipe whose `pictures` is True overrides it, and its `plan` uses it.
        """
        if self.pictures:
            raise PluginError(
                f"recipe {type(self).__qualname__} shows its encoder pictures and does not say which",
                "It overrides `shown`: see qframe.interfaces.Recipe.",
            )
        return [()] * request.prompt_count

    @abstractmethod
    def plan(self, request: Request, parts: Parts) -> Plan:
        """Everything a sampling run needs. Encoder, codec and denoiser are loaded here.

        ConfigError or DataError explains a request that cannot be met, before any model work.
        """
