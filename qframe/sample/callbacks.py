"""What a caller may do between two steps, in the form of diffusers' `callback_on_step_end`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
from torch import Tensor

from qframe.diffusion.packing import pad, unpad
from qframe.errors import ConfigError
from qframe.interfaces import Conditioning
from qframe.sample.conditioning import from_padded, to_padded

StepCallback = Callable[[Any, int, Tensor, dict[str, Tensor | None]], Mapping[str, Tensor | None] | None]
"""`(pipeline, step, timestep, tensors by name) -> tensors by name that replace the run's own, or None`."""

TENSORS = (
    "latents",
    "prompt_embeds",
    "prompt_embeds_mask",
    "negative_prompt_embeds",
    "negative_prompt_embeds_mask",
)


@attrs.frozen(eq=False)
class StepState:
    """What a run holds between two steps.

    Attributes:
        tokens: The tokens [N, C] of all samples, one sample after the other.
        lengths: The number of tokens of each sample.
        cond: Conditioning of the prompts.
        uncond: Conditioning of the negative prompts; None without guidance.
    """

    tokens: Tensor
    lengths: tuple[int, ...]
    cond: Conditioning
    uncond: Conditioning | None


Steer = Callable[[StepState, int], StepState]
"""`(state after step i, i) -> the state that step i + 1 starts from`."""


def check_callback(callback: StepCallback | None, names: Sequence[str]) -> None:
    """Check a callback before a run.

    Args:
        callback: The caller's function; None where there is none.
        names: The names of the tensors that it wants.

    Raises:
        ConfigError: It cannot be called, or wants a tensor that does not exist.
    """
    if callback is not None and not callable(callback):
        raise ConfigError(
            f"callback_on_step_end must be a function, got {type(callback).__name__}",
            "It is called as (pipe, step, timestep, tensors).",
        )
    unknown = [name for name in names if name not in TENSORS]
    if unknown:
        raise ConfigError(
            f"callback_on_step_end_tensor_inputs: there is no {', '.join(map(repr, unknown))}",
            f"There are {', '.join(TENSORS)}.",
        )


def tensors_of(state: StepState, names: Sequence[str]) -> dict[str, Tensor | None]:
    """The tensors of a state, by name: latents [B, L, C], embeddings [B, T, D] and masks [B, T].

    Those of the negative prompt are None in a run without guidance.
    """
    found: dict[str, Tensor | None] = {"latents": pad(state.tokens, state.lengths)[0]}
    for side, cond in (("", state.cond), ("negative_", state.uncond)):
        embeds, mask = (None, None) if cond is None else to_padded(cond)
        found |= {f"{side}prompt_embeds": embeds, f"{side}prompt_embeds_mask": mask}
    return {name: found[name] for name in names}


def replaced(state: StepState, returned: Mapping[str, Tensor | None] | None) -> StepState:
    """The state, with the tensors that a callback returned in place of its own.

    Raises:
        ConfigError: A name is unknown, a shape does not fit, or a negative prompt comes to a run without guidance.
    """
    if returned is None:
        return state
    if not isinstance(returned, Mapping):
        raise ConfigError(
            f"callback_on_step_end returned a {type(returned).__name__}", "It may return None, or tensors by name."
        )
    unknown = [name for name in returned if name not in TENSORS]
    if unknown:
        raise ConfigError(
            f"callback_on_step_end returned {', '.join(map(repr, unknown))}", f"It may return {', '.join(TENSORS)}."
        )
    if (latents := returned.get("latents")) is not None:
        wanted = (len(state.lengths), max(state.lengths), state.tokens.shape[-1])
        _check_shape("latents", latents, wanted)
        state = attrs.evolve(state, tokens=unpad(latents, state.lengths).to(state.tokens))
    return attrs.evolve(
        state,
        cond=_replaced_side("", state.cond, returned),
        uncond=_replaced_side("negative_", state.uncond, returned),
    )


def _replaced_side(side: str, cond: Any, returned: Mapping[str, Tensor | None]) -> Any:
    """One side's conditioning (None without guidance), with the embeddings or the mask that a callback returned."""
    name = f"{side}prompt_embeds"
    embeds, mask = returned.get(name), returned.get(f"{name}_mask")
    if embeds is None and mask is None:
        return cond
    if cond is None:
        raise ConfigError(f"callback_on_step_end returned {name}, but this run has no guidance")
    own_embeds, own_mask = to_padded(cond)
    embeds, mask = own_embeds if embeds is None else embeds, own_mask if mask is None else mask
    _check_shape(name, embeds, (cond.batch_size, embeds.shape[1] if embeds.ndim == 3 else -1, own_embeds.shape[-1]))
    _check_shape(f"{name}_mask", mask, tuple(embeds.shape[:2]))
    found = from_padded(embeds.to(own_embeds), mask)
    if cond.extras and found.lengths != cond.lengths:
        raise ConfigError(f"callback_on_step_end: {name} must keep its length: this encoder says more of each token")
    return attrs.evolve(found, extras=cond.extras)


def _check_shape(name: str, tensor: Any, wanted: tuple[int, ...]) -> None:
    if not isinstance(tensor, Tensor):
        raise ConfigError(f"callback_on_step_end returned {name} as a {type(tensor).__name__}", "Return a tensor.")
    if tuple(tensor.shape) != wanted:
        raise ConfigError(f"callback_on_step_end returned {name} of shape {tuple(tensor.shape)}, expected {wanted}")
