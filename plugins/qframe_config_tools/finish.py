"""Makes a configuration of a draft: chooses the family, joins the data sets, and leaves out what qframe refuses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from qframe.config import resolve_config
from qframe.config.writing import SCHEMA_LINE, assign, commented, inline
from qframe.errors import ConfigError, QframeError, bullet_list
from qframe.plugins.registry import Registry
from qframe_config_tools.draft import DataSet, Draft, Put, shown

_ORDER = ("", "denoiser", "encoder", "codec", "recipe", "data", "cache", "lora", "train", "sample", "logging")


def finish(draft: Draft, family: str | None, registry: Registry) -> str:
    """Return the text of the configuration. What qframe refuses goes to `draft.left`.

    Args:
        draft: The draft, which is changed.
        family: The family that the user names; it goes before the one that the file speaks of.
        registry: The plugins.

    Raises:
        ConfigError: The file trains a model for which there is no family, and the user names none.
    """
    chosen = family or _family(draft)
    registry.family(chosen)
    _join_data(draft)
    _drop_refused(draft, chosen, registry)
    return _text(draft, chosen)


def _family(draft: Draft) -> str:
    if draft.family is not None:
        return draft.family
    other = next((one for one in draft.left if "no family" in one.why), None)
    if other is not None:
        raise ConfigError(
            f"{draft.file}: trains {other.value}, for which qframe has no family",
            "--family NAME converts the other settings; `qframe plugins list` shows all families.",
        )
    most = max((len(one.references) for one in draft.sets), default=0)
    return ("qwen-image", "qwen-edit", "qwen-edit-plus")[min(most, 2)]


def _join_data(draft: Draft) -> None:
    """Put what all data sets share into the values, and write them as `data.path` or `data.sets`."""
    common = {key: draft.values.pop(key) for key in list(draft.values) if key.startswith("data.options.")}
    for target, shared in common.items():
        for data in draft.sets:
            data.options.setdefault(target.removeprefix("data.options."), shared.value)
    rates = {one.dropout for one in draft.sets if one.dropout is not None}
    if len(rates) == 1:
        draft.put("train.caption_dropout", rates.pop(), "the data sets' caption dropout")
    elif rates:
        draft.leave("caption dropout", sorted(rates), "a run has one: train.caption_dropout")
    sides = sorted({side for one in draft.sets for side in one.sides})
    if sides and "recipe.areas" not in draft.values:
        remark = "each picture is brought to the nearest of these areas" if len(sides) > 1 else ""
        draft.put("recipe.areas", [side * side for side in sides], "the data sets' resolution", remark)
    for one in draft.sets:
        if one.references:
            one.options["references"] = list(one.references)
            one.options["allow_outside"] = True
        if one.options.get("caption_suffix") == ".txt":
            del one.options["caption_suffix"]  # which is what is taken by default
        if one.path.lower().endswith((".jsonl", ".json", ".csv")):
            for name in ("caption_suffix", "folder_repeats"):
                one.options.pop(name, None)
            one.options["allow_outside"] = True
    if len(draft.sets) == 1:
        (one,) = draft.sets
        if one.path:
            draft.put("data.path", one.path, "the data set", _whether_there(draft, one))
        for name, value in one.options.items():
            if name == "repo":
                draft.put("data.use", "datasets", "the data set")
            draft.put(f"data.options.{name}", value, "the data set")
    elif draft.sets:
        weights = all(one.weight is not None for one in draft.sets)
        tables = [
            {"path": one.path, **({"weight": one.weight} if weights else {}), "options": one.options}
            for one in draft.sets
        ]
        missing = [told for one in draft.sets if (told := _whether_there(draft, one))]
        draft.put("data.sets", tables, "the data sets", missing[0] if missing else "")


def _whether_there(draft: Draft, one: DataSet) -> str:
    return "" if draft.find(one.path) else "is not here: put in the path that it has on this machine"


def _drop_refused(draft: Draft, family: str, registry: Registry) -> None:
    """Leave out each value that qframe refuses, one after another, with its reason."""

    def refused(values: Mapping[str, Put]) -> QframeError | None:
        try:
            resolve_config(values=nested(values, family), registry=registry)
        except QframeError as error:
            return error
        return None

    if refused(draft.values) is None:
        return
    kept: dict[str, Put] = {}
    # A switch comes before what it switches on: the options of a component that is not chosen are refused.
    for target in sorted(draft.values, key=lambda target: ("options" in target, target)):
        one = draft.values[target]
        problem = refused({**kept, target: one})
        if problem is None:
            kept[target] = one
        else:
            lines = problem.message.splitlines()
            told = lines[1].strip() if len(lines) > 1 else lines[0]
            draft.leave(one.source, one.value, f"is refused as {told}")
    draft.values = kept


def nested(values: Mapping[str, Put], family: str) -> dict[str, Any]:
    """Return the values as nested tables."""
    found: dict[str, Any] = {"family": family}
    for target, one in values.items():
        *tables, name = target.split(".")
        table = found
        for part in tables:
            table = table.setdefault(part, {})
        table[name] = one.value
    return found


def _text(draft: Draft, family: str) -> str:
    lines = [SCHEMA_LINE, *commented([f"Made by `qframe config convert` of {draft.file}, a file of {draft.program}."])]
    lines += ["# Each value says which setting it comes from.", "", assign("family", family, "the task")]
    sections = sorted({target.rpartition(".")[0] for target in draft.values} - {"data.options"})
    sections.sort(key=lambda name: _ORDER.index(name.partition(".")[0]) if name.partition(".")[0] in _ORDER else 99)
    for section in sections:
        rows = {target: one for target, one in draft.values.items() if target.rpartition(".")[0] == section}
        if section == "data":
            rows |= {target: one for target, one in draft.values.items() if target.startswith("data.options.")}
        if section:
            lines += ["", f"[{section}]"]
        lines += [line for target, one in rows.items() for line in _row(target, one, section)]
    if "data.options.prompt" in draft.values and "data" not in sections:
        lines += ["", "[data]"]
    if draft.left:
        lines += ["", "# What qframe cannot express:", *commented([f"  {one}" for one in draft.left])]
    if draft.needless:
        lines += ["", "# What qframe does not need:"]
        lines += commented([f"  {key}: {why}" for key, why in draft.needless.items()])
    return "\n".join(lines) + "\n"


def _row(target: str, one: Put, section: str) -> list[str]:
    name = target.removeprefix(f"{section}.") if section else target
    comment = one.source + (f"; {one.remark}" if one.remark else "")
    if name == "sets":
        rows = [f"    {inline(attrs_of(table))}," for table in one.value]
        return [f"sets = [  # {comment}", *rows, "]"]
    if name.startswith("options."):  # of data, below its path
        value = inline(one.value) if isinstance(one.value, dict) else assign("x", one.value).partition(" = ")[2]
        return [f"{name} = {value}  # {comment}"]
    return [assign(name, one.value, comment)]


def attrs_of(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table without empty tables."""
    return {key: value for key, value in table.items() if value != {}}


def report(draft: Draft) -> list[str]:
    """Return the lines that the command prints: what was taken over, and what was not, by name and why."""
    lines = [f"{draft.file}: a file of {draft.program}; {len(draft.values)} values were taken over"]
    if draft.left:
        lines += ["cannot be expressed:", bullet_list([str(one) for one in draft.left])]
    if draft.needless:
        lines.append(f"not needed: {', '.join(draft.needless)}")
    for target, one in draft.values.items():
        if one.remark:
            lines.append(f"note: {target} = {shown(one.value)}: {one.remark}")
    return lines


def as_json(draft: Draft, family: str, output: str | None) -> dict[str, Any]:
    """Return what `--json` prints."""
    return {
        "program": draft.program,
        "family": family,
        "output": output,
        "values": {target: attrs.asdict(one) for target, one in draft.values.items()},
        "left": [attrs.asdict(one) for one in draft.left],
        "needless": draft.needless,
    }
