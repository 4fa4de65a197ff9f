"""The class that Python callers sample with: called like a pipeline of diffusers, and made by `qframe.load`."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal, overload

import attrs
import numpy as np
from torch import Tensor

from qframe.compose import Composition
from qframe.compose.culprit import naming_culprit
from qframe.compose.placement import Placement
from qframe.diffusion.gradients import without_gradients
from qframe.errors import ConfigError, nearest
from qframe.interfaces import Grid, Parts, Plan, Recipe, Request, Settled
from qframe.progress import SILENT, Progress
from qframe.progress.shown import default_progress
from qframe.sample.as_input import resized
from qframe.sample.callbacks import TENSORS, StepCallback, StepState, check_callback, replaced, tensors_of
from qframe.sample.conditioning import encode_padded
from qframe.sample.latents import as_latents
from qframe.sample.outputs import OutputType, Pictures, PipelineOutput, as_output, require_finite
from qframe.sample.request_checks import check_request
from qframe.sample.running import Computing, sample_plan
from qframe.sample.settling import filled, settle


@attrs.frozen(eq=False, kw_only=True)
class _Watch:
    """What every step of a run is reported to.

    Attributes:
        progress: Shows the steps.
        callback: The caller's function; None where there is none.
        tensors: The names of the tensors that the callback gets.
    """

    progress: Progress = SILENT
    callback: StepCallback | None = None
    tensors: tuple[str, ...] = ("latents",)


class Pipeline:
    """A pipeline that samples one family with loaded components.

        pipe = qframe.load("qwen-edit", model="...")
        pipe(prompt="make the circle blue", image="a.png", negative_prompt=" ", seed=0).images[0]

    While it runs, a callback can read its state by the names that diffusers' pipelines have, and end the run after the
    current step by setting `_interrupt` to True.
    """

    _callback_tensor_inputs = TENSORS

    def __init__(
        self,
        composition: Composition,
        parts: Parts,
        placement: Placement | None = None,
        computing: Computing = nullcontext,
    ) -> None:
        """Make a pipeline of components that are loaded already; `qframe.load` is the usual way.

        Args:
            composition: The checked composition.
            parts: Its components, all loaded.
            placement: Moves the weights where they do not stay on the device that computes; None where they do.
            computing: Makes the context in which each forward pass of the denoiser computes.
        """
        self.composition = composition
        self.recipe = composition.recipe
        self.parts = parts
        self._interrupt = False
        self._guidance_scale: float | None = None
        self._attention_kwargs: Mapping[str, Any] = {}
        self._num_timesteps = 0
        self._current_timestep: Tensor | None = None
        self._current_pictures: tuple[int, ...] = ()
        self._current_grids: tuple[tuple[Grid, ...], ...] = ()
        self.placement = placement or Placement()
        self._computing = computing
        self.__signature__ = _signature(self.recipe)

    def __repr__(self) -> str:
        made = self.composition
        devices = {str(made.device(role)) for role in ("encoder", "denoiser", "codec")}
        dtype = str(made.dtype("denoiser")).removeprefix("torch.")
        return f"Pipeline({made.family.name!r}, {made.model_name!r}, {', '.join(sorted(devices))}, {dtype})"

    @overload
    def __call__(self, *positional: Any, return_dict: Literal[True] = True, **arguments: Any) -> PipelineOutput: ...

    @overload
    def __call__(self, *positional: Any, return_dict: Literal[False], **arguments: Any) -> tuple[Pictures]: ...

    @overload
    def __call__(self, *positional: Any, return_dict: bool, **arguments: Any) -> PipelineOutput | tuple[Pictures]: ...

    def __call__(
        self,
        *positional: Any,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        seed: int | None = None,
        progress: Progress | None = None,
        **request: Any,
    ) -> PipelineOutput | tuple[Pictures]:
        """Make pictures. Further arguments are the fields of the recipe's request, named as in diffusers' pipelines.

        Args:
            positional: The first of these fields by position, see `Recipe.positional`: `pipe("a circle")`, or for an
                edit `pipe(image, "make it red")`.
            output_type: The form of the pictures, see `PipelineOutput`.
            return_dict: False returns the tuple `(images,)`.
            callback_on_step_end: Called as `(pipe, step, timestep, tensors)` after every step. The tensors that it
                returns by name replace latents or embeddings (`qframe.sample.callbacks.TENSORS`). If the pictures of a
                request have several sizes, it sees those of one size after those of another, each from step 0;
                `current_pictures` says which.
            callback_on_step_end_tensor_inputs: The names of the tensors that the callback gets.
            seed: In place of `generator`: picture i is drawn from seed + i, whatever else is in the batch.
            progress: Shows the steps; by default as bars in a terminal or a notebook. `qframe.progress.SILENT` shows
                nothing.
            request: Fields of the recipe's request.

        Raises:
            CompositionError: A component that was put into `parts` does not fit the others.
            ConfigError: An argument is unknown, or a value cannot be met. No model has run by then.
            DataError: A picture or a prompt cannot be used. No model has run by then.
        """
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ConfigError(
                f"output_type must be pil, np, pt or latent, got {output_type!r}", "Leave it out for pil."
            )
        check_callback(callback_on_step_end, callback_on_step_end_tensor_inputs or ())
        self.composition.check(self.parts)
        asked = self._request(self._by_name(positional, request))
        _check_seed(seed, asked)
        settled = settle(self.recipe, asked, self.parts)
        images = self.run_settled(
            settled if seed is None else [one.seeded(int(seed)) for one in settled],
            output_type=output_type,
            progress=default_progress() if progress is None else progress,
            callback=callback_on_step_end,
            tensors=callback_on_step_end_tensor_inputs or (),
        )
        return PipelineOutput(images) if return_dict else (images,)

    @property
    def guidance_scale(self) -> float | None:
        """The `guidance_scale` of the call that runs, or of the last call."""
        return self._guidance_scale

    @property
    def attention_kwargs(self) -> Mapping[str, Any]:
        """The `attention_kwargs` of the call that runs, or of the last call."""
        return self._attention_kwargs

    @property
    def num_timesteps(self) -> int:
        """The number of steps of the plan that runs, without those that a strength leaves out."""
        return self._num_timesteps

    @property
    def current_timestep(self) -> Tensor | None:
        """The noise level of the step that runs, as a scalar timestep in [0, 1000]; None while nothing is sampled."""
        return self._current_timestep

    @property
    def current_pictures(self) -> tuple[int, ...]:
        """The places, in the call's result, of the pictures that are being sampled; empty while nothing is sampled."""
        return self._current_pictures

    @property
    def interrupt(self) -> bool:
        """Whether a callback has asked to end the run."""
        return self._interrupt

    @without_gradients()
    def encode_prompt(self, prompt: str | Sequence[str], **request: Any) -> tuple[Tensor, Tensor]:
        """Encode prompts into what a call takes as `prompt_embeds` [B, T, D] and `prompt_embeds_mask` [B, T].

        A negative prompt is encoded in the same way, given as `prompt`.

        Args:
            prompt: One or more prompts.
            request: The other fields of a request on which embeddings depend, such as the `image` of an edit.
        """
        asked = filled(self.recipe, self._request({"prompt": prompt, **request}))
        check_request(asked, self.recipe.sampling, self.parts)
        with self.placement.freed():
            return encode_padded(self.parts.encoder, asked, self.recipe.shown(asked))

    @without_gradients()
    def decode(
        self, latents: Tensor, height: int | None = None, width: int | None = None, *, output_type: OutputType = "pil"
    ) -> Pictures:
        """Decode latents into pictures, such as those of a call with `output_type="latent"`.

        Args:
            latents: Tokens [B, L, C], or latents [B, Z, h, w].
            height: The height of the pictures in pixels; not needed for latents [B, Z, h, w].
            width: Their width.
            output_type: The form of the pictures, see `PipelineOutput`; not "latent".

        Raises:
            ConfigError: The shape is another one; the message says which it must be.
        """
        dense = as_latents(latents, None if height is None or width is None else (height, width), self.parts)
        with self.placement.freed(), naming_culprit(self.parts):
            return as_output(list(self.parts.codec.decode(dense)), output_type)

    def preview(self, tensors: Mapping[str, Tensor]) -> Pictures:
        """Decode the latents of a step to PIL pictures, within a callback that `pipe(...)` calls.

        The pictures are noisy, but for the last step; they show where the run is going.

        Args:
            tensors: What the callback gets, with "latents" among them.

        Raises:
            ConfigError: No call is running.
        """
        if not self._current_grids:
            raise ConfigError("preview: no call is running", "Call it in callback_on_step_end, or use decode.")
        ((_, rows, columns),) = self._current_grids[0]
        cell = self.parts.multiple
        return self.decode(tensors["latents"], rows * cell, columns * cell)

    def run(self, request: Request, *, output_type: OutputType = "pil", progress: Progress = SILENT) -> Pictures:
        """Make the pictures of a request. The other arguments are the same as in `Pipeline.__call__`."""
        return self.run_settled(settle(self.recipe, request, self.parts), output_type=output_type, progress=progress)

    @without_gradients()
    def run_settled(
        self,
        settled: Sequence[Settled],
        *,
        output_type: OutputType = "pil",
        progress: Progress = SILENT,
        callback: StepCallback | None = None,
        tensors: Sequence[str] = ("latents",),
    ) -> Pictures:
        """Make the pictures of a request that `qframe.sample.settling.settle` has settled already.

        Args:
            settled: All values that `settle` returned for one request.
            output_type: Same as in `Pipeline.__call__`.
            progress: Same as in `Pipeline.__call__`.
            callback: Same as `callback_on_step_end` in `Pipeline.__call__`.
            tensors: Same as `callback_on_step_end_tensor_inputs` in `Pipeline.__call__`.
        """
        watch = _Watch(progress=progress, callback=callback, tensors=tuple(tensors))
        request = settled[0].request
        self._interrupt = False
        self._guidance_scale, self._attention_kwargs = request.guidance_scale, request.attention_kwargs or {}
        found: dict[int, Tensor] = {}
        with self.placement.freed(), naming_culprit(self.parts):
            # All are planned before the first step: an encoder that moves on and off the device moves once.
            planned = deque((one.places, one.exact, self.recipe.plan(one, self.parts)) for one in settled)
            while planned:
                places, exact, plan = planned.popleft()
                tokens = self._sample(plan, places, watch)
                decode, lengths = plan.decode, plan.start.lengths
                del plan  # decoding takes the most memory, and needs nothing of it
                rows = list(tokens.split(lengths)) if output_type == "latent" else decode(tokens)
                require_finite(rows)
                if exact and output_type != "latent":
                    rows = [resized(row, size) for row, size in zip(rows, exact, strict=True)]
                found.update(zip(places, rows, strict=True))
        return as_output([found[place] for place in sorted(found)], output_type)

    def _sample(self, plan: Plan, places: tuple[int, ...], watch: _Watch) -> Tensor:
        """The final tokens of a plan; of an interrupted call those of the last step that ran, or the start."""
        if self._interrupt:
            return plan.start.tokens
        timesteps, callback = plan.sigmas * 1000, watch.callback
        self._num_timesteps = timesteps.shape[0] - 1
        self._current_timestep, self._current_pictures = timesteps[0], places
        self._current_grids = plan.start.grids

        def steer(state: StepState, step: int) -> StepState:
            assert callback is not None
            return replaced(state, callback(self, step, timesteps[step], tensors_of(state, watch.tensors)))

        try:
            with watch.progress.stage("sampling", self._num_timesteps) as bar:

                def on_step(step: int) -> bool:
                    bar.advance(1)
                    self._current_timestep = timesteps[step + 1]
                    return self._interrupt

                return sample_plan(
                    plan,
                    self.parts.denoiser,
                    self.parts.sampler,
                    on_step,
                    steer=None if callback is None else steer,
                    guidance_batching=self.composition.config.sample.guidance_batching,
                    computing=self._computing,
                )
        finally:
            self._current_timestep, self._current_pictures, self._current_grids = None, (), ()

    def _by_name(self, positional: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call by name. ConfigError if too many are given by position, or one is given twice."""
        names = self.recipe.positional
        if len(positional) > len(names):
            raise ConfigError(
                f"{len(positional)} arguments by position, family {self.composition.family.name!r} takes "
                f"{', '.join(names)}",
                "Name the others.",
            )
        found = dict(zip(names, positional, strict=False))
        twice = sorted(set(found) & set(named))
        if twice:
            raise ConfigError(f"{', '.join(twice)}: given by position and by name", "Give it once.")
        return found | dict(named)

    def _request(self, fields: Mapping[str, Any]) -> Request:
        kind = self.recipe.request_type
        known = {field.name for field in attrs.fields(kind)}
        unknown = sorted(set(fields) - known)
        if unknown:
            allowed = sorted(known | _own_arguments())
            meant = {name: _meant(name, allowed) for name in unknown}
            near = ", ".join(f"{found} for {name}" for name, found in meant.items() if found)
            raise ConfigError(
                f"family {self.composition.family.name!r} takes no {', '.join(unknown)}",
                (f"Did you mean {near}? " if near else "") + f"It takes {', '.join(allowed)}.",
            )
        return kind(**fields)


def _check_seed(seed: Any, request: Request) -> None:
    """ConfigError for a seed that is no whole number in range, or that is given together with a generator."""
    if seed is None:
        return
    if not isinstance(seed, int | np.integer) or not 0 <= seed < 2**62:
        raise ConfigError(f"seed must be a whole number from 0 to 2^62, got {seed!r}", "Leave it out for a random one.")
    if request.generator is not None:
        raise ConfigError("both seed and generator are given", "Give one of them.")


def _meant(name: str, allowed: Sequence[str]) -> str | None:
    """Return the argument that a slip means: one that contains it, else one that is spelled alike."""
    containing = [known for known in allowed if name in known]
    return next(iter([*containing, *nearest(name, allowed, 1, cutoff=0.7)]), None)


def _signature(recipe: Recipe) -> inspect.Signature:
    """Return the signature of a call for one family, with its own fields, for `help`, `inspect` and completion."""
    kinds, fields = inspect.Parameter, {}
    for field in (one for one in attrs.fields(recipe.request_type) if one.init):
        kind = kinds.POSITIONAL_OR_KEYWORD if field.name in recipe.positional else kinds.KEYWORD_ONLY
        made_anew = field.default is attrs.NOTHING or isinstance(field.default, attrs.Factory)  # type: ignore[arg-type]
        default = None if made_anew else field.default
        fields[field.name] = inspect.Parameter(field.name, kind, default=default, annotation=_taken(field))
    own = inspect.signature(Pipeline.__call__).parameters.values()
    called = [parameter for parameter in own if parameter.kind is parameter.KEYWORD_ONLY]
    first = [fields.pop(name) for name in recipe.positional]
    return inspect.Signature([*first, *fields.values(), *called], return_annotation=PipelineOutput)


def _taken(field: attrs.Attribute[Any]) -> Any:
    """Return the annotation of what a caller gives for a field: a converter may take more than the field holds."""
    converter: Any = field.converter
    if not inspect.isfunction(converter):
        return field.type
    return next(iter(inspect.signature(converter).parameters.values())).annotation


def _own_arguments() -> set[str]:
    """The names of the arguments of a call that are not fields of a request."""
    parameters = inspect.signature(Pipeline.__call__).parameters.values()
    return {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
