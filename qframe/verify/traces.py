"""What a run has at every stage: ours, heard from outside, and an oracle's, which a plugin makes."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import attrs
import torch
from PIL import Image
from torch import Tensor
from torch.overrides import TorchFunctionMode

from qframe.errors import ConfigError
from qframe.interfaces import AfterStep, Conditioning, OnStep, Parts, Recipe, Request, Sampler, Velocity
from qframe.pictures.pixels import from_pixels
from qframe.sample.running import run_plan
from qframe.sample.settling import plan_request

# -- what a run leaves behind -----------------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class Encoded:
    """A picture through the codec. pixels: [C, H, W] in [-1, 1]. latents: [Z, h, w], normalised."""

    pixels: Tensor
    latents: Tensor


@attrs.frozen(eq=False, kw_only=True)
class Step:
    """One step. timestep: in [0, 1000]. guided: the velocity that is integrated, [N, C]. tokens: after it, [N, C].

    combined, norms: with rescaled guidance, both predictions joined [N, C], and the lengths of the positive prediction
    and of the joined one, [N, 1] each.
    """

    timestep: float
    guided: Tensor
    tokens: Tensor
    combined: Tensor | None = None
    norms: tuple[Tensor, Tensor] | None = None


@attrs.frozen(eq=False, kw_only=True)
class Trace:
    """What a run had at each stage.

    sigmas: [S + 1] float32. mu: logarithm of the time shift, None where there is none. encoded: in the order in which
    they were encoded. start: [N, C] at sigmas[0]. decoded: each [C, H, W] in [-1, 1]. reordered: sums were taken in
    another order than ours, because samples ran one by one, or through another network.
    """

    sigmas: Tensor
    mu: float | None
    encoded: tuple[Encoded, ...]
    cond: Conditioning
    uncond: Conditioning | None
    start: Tensor
    steps: tuple[Step, ...]
    decoded: tuple[Tensor, ...]
    pictures: tuple[Image.Image, ...]
    reordered: bool = False


class Oracle(ABC):
    """What a family is held against. Registered as kind "oracle", named by a Family.

    overrides: configuration under which both sides should be equal, as with `--set`. needs: the fields of the request
    that it cannot run without, beside the prompt.
    """

    overrides: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def trace(self, request: Request, parts: Parts, recipe: Recipe) -> Trace:
        """What the oracle makes of a request, with the networks of `parts`. ConfigError if it cannot."""

    @abstractmethod
    def mu(self, parts: Parts, tokens: int) -> float | None:
        """The mu of our own schedule, which its interface does not give."""

    @abstractmethod
    def notes(self, parts: Parts, recipe: Recipe) -> tuple[str, ...]:
        """What was set equal so that the rest can be compared, one sentence each."""


# -- listening --------------------------------------------------------------------------------------------------------


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Inside, `owner.name` is `value`."""
    own, real = name in vars(owner), getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, real)
        else:
            delattr(owner, name)


@contextmanager
def listening(owner: Any, name: str, hear: Callable[..., None]) -> Iterator[None]:
    """Inside, `hear(result, *args, **kwargs)` is told of every call of the method `owner.name`."""
    real = getattr(owner, name)

    @functools.wraps(real)  # diffusers looks at signatures
    def told(*args: Any, **kwargs: Any) -> Any:
        result = real(*args, **kwargs)
        hear(result, *args, **kwargs)
        return result

    with replaced(owner, name, told):
        yield


class Norms(TorchFunctionMode):
    """Inside, `heard` collects (tensor, norm) of every norm that is taken by name."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[tuple[Tensor, Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.norm, Tensor.norm):
            self.heard.append((args[0], result))
        return result


class Steps:
    """Collects steps while a run goes on: first `predicted`, then `stepped`, once per step each."""

    def __init__(self) -> None:
        self.done: list[Step] = []
        self._last: dict[str, Any] = {}

    def predicted(self, guided: Tensor, timestep: float, norms: Sequence[tuple[Tensor, Tensor]]) -> None:
        """The velocity of a step, and the two norms that guidance took of it, if any."""
        self._last = {"guided": rows(guided), "timestep": timestep}
        if len(norms) == 2:
            (_, positive), (combined, length) = norms
            self._last |= {"combined": rows(combined), "norms": (rows(positive), rows(length))}

    def stepped(self, tokens: Tensor) -> None:
        """The tokens after it."""
        self.done.append(Step(**self._last, tokens=rows(tokens)))


def rows(values: Tensor) -> Tensor:
    """[B, L, C] or [N, C] as a copy [N, C]."""
    return values.detach().reshape(-1, values.shape[-1]).clone()


# -- our side ---------------------------------------------------------------------------------------------------------


class _Heard(Sampler):
    """Another sampler, whose velocities are collected."""

    def __init__(self, sampler: Sampler, steps: Steps, norms: Norms) -> None:
        self._sampler, self._steps, self._norms = sampler, steps, norms

    def sample(
        self,
        velocity: Velocity,
        x: Tensor,
        sigmas: Tensor,
        *,
        after_step: AfterStep | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        def heard(tokens: Tensor, sigma: Tensor) -> Tensor:
            self._norms.heard.clear()
            found = velocity(tokens, sigma)
            self._steps.predicted(found, float(sigma * 1000), self._norms.heard)
            return found

        return self._sampler.sample(heard, x, sigmas, after_step=after_step, on_step=on_step)


@torch.no_grad()
def our_trace(request: Request, parts: Parts, recipe: Recipe, oracle: Oracle) -> Trace:
    """What our own path makes of a request whose pictures have one size."""
    encoded: list[Encoded] = []
    decoded: list[Tensor] = []
    steps, norms = Steps(), Norms()

    def encoding(latents: Tensor, pixels: Tensor, **_: Any) -> None:
        encoded.extend(map(Encoded, pixels.to(latents), latents))  # a codec rounds to its dtype first

    with listening(parts.codec, "encode", encoding), listening(parts.codec, "decode", lambda x, _: decoded.extend(x)):
        plan = plan_request(recipe, request, parts)
        guide, after_step = plan.guide, plan.after_step

        def heard_guide(positive: Tensor, negative: Tensor) -> Tensor:
            assert guide is not None
            with norms:
                return guide(positive, negative)

        def heard_step(tokens: Tensor, step: int) -> Tensor:
            tokens = tokens if after_step is None else after_step(tokens, step)
            steps.stepped(tokens)
            return tokens

        heard = attrs.evolve(plan, guide=None if guide is None else heard_guide, after_step=heard_step)
        pictures = run_plan(heard, parts.denoiser, _Heard(parts.sampler, steps, norms))
    return Trace(
        sigmas=plan.sigmas,
        mu=oracle.mu(parts, plan.start.lengths[0]),
        encoded=tuple(encoded),
        cond=plan.cond,
        uncond=plan.uncond,
        start=plan.start.tokens,
        steps=tuple(steps.done),
        decoded=tuple(decoded),
        pictures=tuple(map(from_pixels, pictures)),
    )


def traces(request: Request, parts: Parts, recipe: Recipe, oracle: Oracle) -> tuple[Trace, Trace]:
    """Ours and the oracle's, from equal random states. The request has generators of its own, left as they are."""
    found = our_trace(_again(request), parts, recipe, oracle)
    return found, oracle.trace(_again(request), parts, recipe)


def _again(request: Request) -> Request:
    generators = request.generator
    if generators is None:
        raise ConfigError("a comparison needs a generator", "Give generator=..., so that both sides draw the same.")
    if isinstance(generators, torch.Generator):
        return attrs.evolve(request, generator=generators.clone_state())
    return attrs.evolve(request, generator=[generator.clone_state() for generator in generators])
