"""The joints of a composition: what one component gives, and what its neighbour wants."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal

import attrs

from qframe.errors import CompositionError, bullet_list
from qframe.interfaces import CodecSpec, DenoiserSpec, EncoderSpec, Recipe

State = Literal["ok", "allowed", "mismatch"]

_SHOWN: dict[State, str] = {"ok": "ok", "allowed": "allowed", "mismatch": "MISMATCH"}
_NAMES_ONLY = {"latent_space", "text_space"}  # a user may know that two names mean the same; sizes must be equal


@attrs.frozen
class Joint:
    """A property that two neighbours must agree on.

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
    encoder: EncoderSpec, codec: CodecSpec, denoiser: DenoiserSpec, recipe: Recipe, allow: Sequence[str]
) -> tuple[Joint, ...]:
    """Compare what every component gives with what its neighbour wants.

    Args:
        allow: Names of joints that may differ, as `compose.allow` writes them (with "_" for a space).
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
    return tuple(joints)


def joint_table(title: str, joints: Sequence[Joint]) -> str:
    """The table that `qframe compose` prints: the title, and one line for each joint."""
    names = max(len(joint.name) for joint in joints)
    gives = max(len(f"{joint.giver} gives {joint.gives}") for joint in joints)
    lines = [
        f"{_SHOWN[joint.state]:<8} {joint.name:<{names}}  {f'{joint.giver} gives {joint.gives}':<{gives}}  "
        f"{joint.taker} wants {joint.wants}"
        for joint in joints
    ]
    return f"{title}\n{bullet_list(lines)}"


def refuse_mismatches(title: str, joints: Sequence[Joint]) -> None:
    """Raise a CompositionError with the whole table if a joint does not fit and is not allowed to differ."""
    mismatches = [joint.name.replace(" ", "_") for joint in joints if joint.state == "mismatch"]
    if not mismatches:
        return
    remedy = "Choose components of one family"
    if set(mismatches) <= _NAMES_ONLY:
        remedy += f", or, where you know better, --set compose.allow='{json.dumps(mismatches)}'"
    raise CompositionError(f"cannot compose: {joint_table(title, joints)}", f"{remedy}.")
