"""Checks the joints of a composition: the properties that one component gives and another component wants."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Literal

import attrs

from qframe.errors import CompositionError, bullet_list
from qframe.interfaces import CodecSpec, DenoiserSpec, EncoderSpec, Recipe

State = Literal["ok", "allowed", "mismatch"]

_SHOWN: dict[State, str] = {"ok": "ok", "allowed": "allowed", "mismatch": "MISMATCH"}
_NAMES_ONLY = {"latent_space", "text_space", "pipeline"}  # a user may know better about names; sizes must be equal


@attrs.frozen
class Joint:
    """A property on which two components (or a component and the recipe) must agree, and whether they do.

    Attributes:
        name: What the two must agree on, for example "latent space".
        giver: Role of the component that has the property.
        gives: The property as the giver has it.
        taker: Role of the component that depends on the property, or "recipe".
        wants: The property as the taker needs it.
        state: "ok" if both are equal; else "allowed" if `compose.allow` names the joint, and "mismatch" if not.
    """

    name: str
    giver: str
    gives: object
    taker: str
    wants: object
    state: State


def check_joints(
    encoder: EncoderSpec,
    codec: CodecSpec,
    denoiser: DenoiserSpec,
    recipe: Recipe,
    allow: Sequence[str],
    pipelines: tuple[Sequence[str], Sequence[str]] | None = None,
) -> tuple[Joint, ...]:
    """Compare the properties of the components with those that the denoiser and the recipe want.

    Args:
        encoder: The Spec of the encoder.
        codec: The Spec of the codec.
        denoiser: The Spec of the denoiser.
        recipe: The recipe of the family.
        allow: Names of joints that may differ, as `compose.allow` writes them (with "_" for a space).
        pipelines: The pipelines of diffusers that the model folder was made for, and those that the family serves; None
            if either is not said.
    """
    joints: list[Joint] = []

    def check(name: str, giver: str, gives: object, taker: str, wants: object) -> None:
        allowed: State = "allowed" if name.replace(" ", "_") in allow else "mismatch"
        joints.append(Joint(name, giver, gives, taker, wants, "ok" if gives == wants else allowed))

    tokens = codec.channels * denoiser.patch**2
    check("latent space", "codec", codec.latent_space, "denoiser", denoiser.latent_space)
    check("token channels", "codec", tokens, "denoiser", denoiser.token_channels)
    check("text space", "encoder", encoder.text_space, "denoiser", denoiser.text_space)
    check("text width", "encoder", encoder.width, "denoiser", denoiser.text_width)
    if recipe.pictures:
        check("pictures", "encoder", "yes" if encoder.pictures else "no", "recipe", "yes")
    if recipe.references:
        check("references", "denoiser", "yes" if denoiser.references else "no", "recipe", "yes")
    if pipelines is not None:
        named, served = (" or ".join(names) for names in pipelines)
        check("pipeline", "model", named, "family", named if set(pipelines[0]) & set(pipelines[1]) else served)
    return tuple(joints)


def joint_table(title: str, joints: Sequence[Joint]) -> str:
    """Return the table that `qframe compose` prints: the title, and one line for each joint."""
    names = max(len(joint.name) for joint in joints)
    gives = max(len(f"{joint.giver} gives {joint.gives}") for joint in joints)
    lines = [
        f"{_SHOWN[joint.state]:<8} {joint.name:<{names}}  {f'{joint.giver} gives {joint.gives}':<{gives}}  "
        f"{joint.taker} wants {joint.wants}"
        for joint in joints
    ]
    return f"{title}\n{bullet_list(lines)}"


def refuse_mismatches(title: str, joints: Sequence[Joint], fitting: Callable[[], Sequence[str]] = tuple) -> None:
    """Raise a CompositionError that shows every joint if any of them has the state "mismatch".

    Args:
        title: The first line of the table.
        joints: The joints.
        fitting: Returns the families that serve the pipeline which the model folder names.
    """
    mismatches = [joint.name.replace(" ", "_") for joint in joints if joint.state == "mismatch"]
    if not mismatches:
        return
    remedy = "Choose components of one family"
    if "pipeline" in mismatches:
        named = next(joint.gives for joint in joints if joint.name == "pipeline")
        families = " or ".join(fitting())
        serves = f"which family {families} serves: choose it" if families else "which no installed family serves"
        remedy = f"The model was made for {named}, {serves}"
    if set(mismatches) <= _NAMES_ONLY:
        remedy += f", or, where you know better, --set compose.allow='{json.dumps(mismatches)}'"
    raise CompositionError(f"cannot compose: {joint_table(title, joints)}", f"{remedy}.")
