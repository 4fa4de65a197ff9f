"""What a component implements: five abstract classes, the Recipe that joins them, data sources, and Specs.

`qframe` is the door for declaring (no torch); this module is the door for implementing. A class here names
every method that must exist; one that is missing is reported when the class is instantiated.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

import attrs
import torch
from PIL import Image
from torch import Tensor, nn

from qframe.checkpoint import Checkpoint
from qframe.errors import PluginError, QframeError
from qframe.geometry import Geometry, Size
from qframe.types import (
    PLAIN,
    AfterStep,
    Conditioning,
    Example,
    ExampleInputs,
    ForwardOptions,
    Grid,
    PackedSequence,
    Picture,
    Plan,
    Record,
    Request,
    Velocity,
)

_T = TypeVar("_T")

TokenCounter = Callable[[str, Sequence[Size]], int]
"""`(prompt, sizes of the pictures shown with it) -> text tokens`, without a network."""

OnStep = Callable[[int], bool]
"""Called after every step with its number; returns True to stop sampling there."""


@attrs.frozen(kw_only=True)
class EncoderSpec:
    """What an encoder gives. text_space names what its vectors mean; width is D; pictures: it looks at pictures."""

    text_space: str
    width: int
    pictures: bool


@attrs.frozen(kw_only=True)
class CodecSpec:
    """What a codec gives. latent_space names what its latents mean; channels is Z; compression is H / h."""

    latent_space: str
    channels: int
    compression: int
    pixel_channels: int = 3


@attrs.frozen(kw_only=True)
class DenoiserSpec:
    """What a denoiser wants. token_channels is C = Z patch patch; references: it takes reference tokens.

    guidance: it is guidance-distilled, and takes the scale as an input of every forward pass.
    """

    latent_space: str
    text_space: str
    token_channels: int
    patch: int
    text_width: int
    references: bool
    guidance: bool = False


class Loadable(ABC):
    """A part that comes out of a checkpoint.

    `options` is an instance of the class its Component declares, or None if it declares none. placed_on: where it
    computes while its weights rest elsewhere; placement sets it. group_offload: what moves at a time when its weights
    are offloaded in groups; block_level needs repeated blocks in a child of the network, and a run that enters the
    network by `forward`. entered_by_forward: it does; else the next group cannot be fetched ahead.
    """

    group_offload: ClassVar[Literal["block_level", "leaf_level"]] = "leaf_level"
    entered_by_forward: ClassVar[bool] = False
    placed_on: torch.device | None = None

    @property
    def network(self) -> nn.Module | None:
        """Its weights, which placement and quantisation see; None for a part that has none, or keeps them in place."""
        return None

    @property
    def execution_device(self) -> torch.device:
        """Where it computes, and so where its inputs belong: not always where its weights are."""
        if self.placed_on is not None:
            return self.placed_on
        first = None if self.network is None else next(self.network.parameters(), None)
        return torch.device("cpu") if first is None else first.device

    @classmethod
    def outline(cls, checkpoint: Checkpoint, options: Any, *, dtype: torch.dtype) -> Self | None:
        """The part with its network on the meta device: shapes without weights, from configuration files alone.

        None where it cannot be told; then nothing is estimated.
        """
        return None

    @classmethod
    @abstractmethod
    def describe(cls, checkpoint: Checkpoint, options: Any) -> Any:
        """Its Spec, from configuration files alone: no weight is read. CheckpointError names what is missing."""

    @classmethod
    @abstractmethod
    def load(cls, checkpoint: Checkpoint, options: Any, *, device: torch.device, dtype: torch.dtype) -> Self:
        """The part itself, weights on `device` in `dtype`, in evaluation mode, without gradients."""

    @classmethod
    @abstractmethod
    def fingerprint(cls, checkpoint: Checkpoint, options: Any) -> str:
        """sha256 over everything that its output depends on: weights, configuration, options. Loads nothing."""

    @classmethod
    def ingredients(cls, checkpoint: Checkpoint, options: Any) -> Mapping[str, str]:
        """The same by name: digests, settings, versions. What the cache's keys hold, and `qframe cache explain` tells.

        By default the fingerprint alone; a component that names more tells its users which of them changed.
        """
        return {"fingerprint": cls.fingerprint(checkpoint, options)}


class Encoder(Loadable):
    """Prompts, with pictures where the model looks at them, to conditioning."""

    @abstractmethod
    def encode(
        self, prompts: Sequence[str], pictures: Sequence[Sequence[Image.Image]], *, max_length: int | None = None
    ) -> Conditioning:
        """Conditioning of B prompts, each with its own pictures (RGB, already at the size the recipe chose).

        `pictures` has one entry per prompt, empty where there are none. A sample's result does not depend on
        its neighbours. max_length: tokens kept of a prompt, its pictures not counted; None: the encoder's own limit.
        """

    def check(self, prompts: Sequence[str]) -> None:
        """DataError for a prompt that `encode` refuses, whatever pictures come with it. Runs no network."""

    @classmethod
    def token_counter(cls, checkpoint: Checkpoint, options: Any) -> TokenCounter | None:
        """What tells how many text tokens `encode` gives, reading no weights; None if only encoding tells.

        The counter raises DataError for a prompt that `encode` refuses.
        """
        return None


class LatentCodec(Loadable):
    """Pixels to normalised latents and back."""

    @property
    def decoder(self) -> nn.Module | None:
        """The part of the network that only `decode` runs, which training can do without; None if it is not apart."""
        return None

    @abstractmethod
    def encode(self, pixels: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Pixels [B, C, H, W] in [-1, 1] to latents [B, Z, h, w], normalised by the checkpoint's mean and std.

        Without a generator the posterior's mode, with one a sample of it.
        """

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, Z, h, w] to pixels [B, C, H, W] in [-1, 1]."""


class Denoiser(Loadable):
    """Predicts the velocity of noisy tokens.

    module: the network; what LoRA, compilation and quantisation see. blocks: the attribute of `module` that
    holds the repeated blocks. lora_presets: named sets of target modules, "default" among them.
    """

    blocks: ClassVar[str] = "transformer_blocks"
    lora_presets: ClassVar[Mapping[str, tuple[str, ...]]]
    module: nn.Module

    @property
    def network(self) -> nn.Module:
        return self.module

    def like(self) -> Tensor:
        """An empty tensor where the network computes, in its dtype: what inputs are brought to."""
        weight = next(p for p in self.module.parameters() if p.is_floating_point())
        return torch.empty(0, dtype=weight.dtype, device=self.execution_device)

    @abstractmethod
    def velocity(
        self,
        x: PackedSequence,
        sigma: Tensor,
        cond: Conditioning,
        references: PackedSequence | None = None,
        *,
        forward: ForwardOptions = PLAIN,
    ) -> Tensor:
        """Velocity [N, C] of x at sigma [B]. Stateless: what training uses.

        Samples may differ in shape and prompt length; a sample's result does not depend on its neighbours.
        """

    def bind(
        self,
        cond: Conditioning,
        references: PackedSequence | None,
        grids: tuple[tuple[Grid, ...], ...],
        *,
        forward: ForwardOptions = PLAIN,
    ) -> Velocity:
        """`velocity` with its arguments fixed for one sampling run: what a sampler integrates.

        Override to compute once what does not change between steps. Keep nothing on the module.
        """

        def velocity(tokens: Tensor, sigma: Tensor) -> Tensor:
            return self.velocity(
                PackedSequence(tokens, grids), sigma.expand(len(grids)), cond, references, forward=forward
            )

        return velocity

    def end_run(self) -> None:
        """Called when a sampling run is over, however it ended: a step cache on the network forgets that run."""

    @classmethod
    def padding(cls, grids: Sequence[tuple[Grid, ...]], text: Sequence[int]) -> int:
        """How many tokens `velocity` computes beside the valid ones: of samples with these grids (target, then
        references) and prompt lengths. By default none.
        """
        return 0

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the network into `folder`, which then is a checkpoint that `load` reads (safetensors)."""


class Schedule(Loadable):
    """Which noise levels a checkpoint was made for.

    Apart from the Sampler, because published checkpoints carry a schedule of their own, whatever integrates it.
    """

    @abstractmethod
    def sigmas(self, steps: int, tokens: int, custom: Sequence[float] | None = None) -> Tensor:
        """[steps + 1] float32, descending, ending in 0, for a target of `tokens` tokens.

        custom: unshifted sigmas of the user's own; then `steps` is their number.
        """

    @abstractmethod
    def shift(self, sigma: Tensor, tokens: int) -> Tensor:
        """Sigmas in (0, 1) moved as this schedule moves them for `tokens` tokens; training densities use it."""


class Sampler(ABC):
    """Integrates a velocity from the first sigma to the last."""

    @abstractmethod
    def sample(
        self,
        velocity: Velocity,
        x: Tensor,
        sigmas: Tensor,
        *,
        after_step: AfterStep | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Tokens [N, C] at sigmas[-1], from tokens x [N, C] at sigmas[0]; sigmas [S + 1] float32, descending.

        After step i (to sigmas[i + 1]) tokens pass through `after_step(tokens, i)`; then `on_step(i)` may stop.
        """


@attrs.frozen(eq=False, kw_only=True)
class Parts:
    """The components of one family, as far as this stage loaded them, and what is known of all of them."""

    encoder_spec: EncoderSpec
    codec_spec: CodecSpec
    denoiser_spec: DenoiserSpec
    schedule: Schedule
    sampler: Sampler
    checkpoint: Checkpoint
    loaded_encoder: Encoder | None = None
    loaded_codec: LatentCodec | None = None
    loaded_denoiser: Denoiser | None = None

    @property
    def encoder(self) -> Encoder:
        return _needed(self.loaded_encoder, "encoder")

    @property
    def codec(self) -> LatentCodec:
        return _needed(self.loaded_codec, "codec")

    @property
    def denoiser(self) -> Denoiser:
        return _needed(self.loaded_denoiser, "denoiser")

    @property
    def multiple(self) -> int:
        """Sides of a picture must be multiples of this many pixels."""
        return self.codec_spec.compression * self.denoiser_spec.patch


def _needed(part: _T | None, name: str) -> _T:
    if part is None:
        raise QframeError(f"the {name} is needed here, but this stage did not load it", "This is a bug in a recipe.")
    return part


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

    def __init__(self, settings: Any, checkpoint: Checkpoint) -> None:
        self.settings = settings
        self.checkpoint = checkpoint

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
        return example.weight

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


class Quantiser(ABC):
    """Makes the frozen weights of a network smaller. Registered as kind "quantiser", built with its options.

    A quantised layer stays a torch.nn.Linear to whoever looks, so that LoRA can be put on it; gradients run through
    it to its inputs, none into it.
    """

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def quantise(self, network: nn.Module) -> None:
        """Replace the linear layers of `network` that it chooses, in place, where their weights lie.

        NumericsError names a layer with weights that are not finite: they would be saturated in silence.
        """

    @abstractmethod
    def weight_bytes(self, name: str, layer: nn.Linear) -> int | None:
        """Bytes that the weight of this layer will take; None where it is left as it is. Shapes alone are read."""

    @abstractmethod
    def fingerprint(self) -> str:
        """What quantised values depend on: back end, its version, options."""


class OptimizerFactory(ABC):
    """Builds what steps the trained weights. Registered as kind "optimizer", built with its options.

    ConfigError from `__init__` where it needs a package that is not there: it is asked before anything is encoded.
    """

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def build(
        self, parameters: Mapping[str, nn.Parameter], *, learning_rate: float, weight_decay: float, blocks: str
    ) -> Sequence[torch.optim.Optimizer]:
        """Optimizers that share the parameters out among themselves; they are stepped one after the other.

        The rate that a group is built with is its peak: the schedule scales it in every step. blocks: the name of the
        repeated blocks, which the names of their parameters begin with. State may be tensors, numbers, text, None, and
        lists, tuples and dicts of them, on parameters and in groups.
        """

    def state_bytes(self, parameters: Mapping[str, nn.Parameter], *, blocks: str) -> int:
        """Bytes that its state will take; shapes alone are read. By default two moments of each parameter."""
        return 2 * sum(parameter.nbytes for parameter in parameters.values())


class PlanTransform(ABC):
    """Makes another task of a recipe's plans: how tasks mix. Registered as kind "transform", named by a Family.

    request_type: the Request whose fields it takes; those that the recipe's own lacks are added to it. optional: a
    request that uses none of them is the recipe's own, so that a family with this transform can be trained. trains: it
    can be anyway, since `request_for` fills them from a record. Its examples are the recipe's, in one cache.
    """

    request_type: ClassVar[type[Request]]
    optional: ClassVar[bool]
    trains: ClassVar[bool] = False

    def split(self, request: Request, recipe: Recipe) -> list[tuple[tuple[int, ...], Request]]:
        """As `Recipe.split`. Override where pictures that it adds decide the size."""
        return recipe.split(request)

    def shown(self, request: Request, recipe: Recipe) -> list[tuple[Image.Image, ...]]:
        """As `Recipe.shown`. Override where the recipe is shown other pictures than the request has."""
        return recipe.shown(request)

    def loss_weight(self, example: Example, generator: torch.Generator, recipe: Recipe) -> Tensor | None:
        """As `Recipe.loss_weight`. Override where the task is to make a part of a picture."""
        return recipe.loss_weight(example, generator)

    def request_for(self, record: Record, request: Request) -> Request:
        """As `Recipe.request_for`. request: the recipe's own, of the class that has the fields of both.

        By default as it is. Override where fields that it adds are needed, and set `trains`.
        """
        return request

    @abstractmethod
    def plan(self, request: Request, parts: Parts, recipe: Recipe) -> Plan:
        """As `Recipe.plan`: what it makes of `recipe.plan(...)`, which takes `request`, changed or not."""


@attrs.frozen(eq=False)
class Problem:
    """What keeps a part of a data set from being used. origin: file or row. picture: the one it is about, if any."""

    origin: str
    message: str
    picture: Picture | None = None


@attrs.frozen(eq=False, kw_only=True)
class Survey:
    """A data set looked at as a whole.

    records: also those that `problems` are about, as far as they can be named; their ids are in `unusable`.
    """

    records: Sequence[Record]
    validation: Sequence[Record] = ()
    problems: Sequence[Problem] = ()
    unusable: frozenset[str] = frozenset()


class RecordSource(ABC):
    """A data set: records, cheap to list, nothing opened. Registered as kind "source".

    Built with its options (None if it declares none) and the path a user gave, if any.
    """

    def __init__(self, options: Any, path: Path | None) -> None:
        self.options = options
        self.path = path

    @abstractmethod
    def records(self) -> Sequence[Record]:
        """All training records, always in the same order."""

    def validation(self) -> Sequence[Record]:
        """Records kept from training, sampled before and after it. By default none."""
        return ()

    def survey(self) -> Survey:
        """Everything there is and everything that is wrong with it, as far as listing tells: for `qframe data check`.

        By default what `records` and `validation` give.
        """
        return Survey(records=self.records(), validation=self.validation())

    def success(self, record: Record, picture: Image.Image) -> bool | None:
        """Whether a sampled picture does what the record asks; None where only a person can tell.

        Reports sum over `record.group`.
        """
        return None
