"""Turns a table about a data set into a data set of the draft."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qframe_config_tools.draft import DataSet, Draft
from qframe_config_tools.rules import Rule, UnfitError, flag


def flag_of(value: Any) -> bool:
    """Whether a setting is on; what is no flag counts as on, so that its own rule reports it."""
    try:
        return flag(value) if value is not None else False
    except UnfitError:
        return True


def data_set(
    one: Mapping[str, Any], draft: Draft, rules: Mapping[str, Rule], prefix: str, controls: list[str]
) -> list[DataSet]:
    """Return the data set of a table, or none if it has no path; `controls` are its folders of references."""
    own = Draft(program=draft.program, file=draft.file)
    own.apply(rules, {key: value for key, value in one.items() if not key.startswith("control_path")}, prefix)
    draft.left += own.left
    draft.needless |= own.needless
    found = {target: put.value for target, put in own.values.items()}
    path = found.pop("path", None)
    if path is None:
        draft.leave(prefix.rstrip("."), dict(one), "names no folder and no file")
        return []
    sides, dropout, weight = found.pop("sides", ()), found.pop("dropout", None), found.pop("weight", None)
    return [
        DataSet(
            path=draft.place(path),
            options=found,
            sides=tuple(sides),
            dropout=dropout,
            weight=weight,
            references=tuple(draft.beside(control, path) for control in controls),
        )
    ]
