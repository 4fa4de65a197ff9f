"""The draft of a configuration that is made of another program's file, with what could not be expressed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from qframe_config_tools.rules import About, Rule, UnfitError


@attrs.frozen
class Left:
    """A setting that the configuration lacks.

    Attributes:
        key: The key in the other program's file.
        value: Its value.
        why: Why nothing expresses it.
    """

    key: str
    value: Any
    why: str

    def __str__(self) -> str:
        return f"{self.key} = {shown(self.value)}: {self.why}"


@attrs.frozen
class Put:
    """A value of the configuration, with the key that it comes from, and how it differs from that."""

    value: Any
    source: str
    remark: str = ""


@attrs.define(kw_only=True)
class DataSet:
    """A data set of the other program.

    Attributes:
        path: Its folder or file.
        options: The options of its source.
        weight: How much of an epoch it is; None where the program has no such number.
        sides: The sides, in pixels, of squares whose areas pictures are brought to.
        dropout: The probability that a caption is dropped.
        references: Folders of references.
    """

    path: str
    options: dict[str, Any] = attrs.field(factory=dict)
    weight: float | None = None
    sides: tuple[int, ...] = ()
    dropout: float | None = None
    references: tuple[str, ...] = ()


@attrs.define(kw_only=True)
class Draft:
    """A configuration in the making.

    Attributes:
        program: The other program's name.
        file: Its file.
        family: The family that the file speaks of; None where it does not say.
        values: The values by dotted key.
        left: What nothing expresses.
        needless: Keys for which there is no need, with the reason.
        sets: The data sets.
    """

    program: str
    file: Path
    family: str | None = None
    values: dict[str, Put] = attrs.field(factory=dict)
    left: list[Left] = attrs.field(factory=list)
    needless: dict[str, str] = attrs.field(factory=dict)
    sets: list[DataSet] = attrs.field(factory=list)

    def put(self, target: str, value: Any, source: str, remark: str = "") -> None:
        """Set a value, unless it is None."""
        if isinstance(value, About):
            value, remark = value.value, value.remark
        if value is not None:
            self.values[target] = Put(value, source, remark)

    def assume(self, target: str, value: Any, default_of: str) -> None:
        """Set a value that the other program has by default, if its file did not give another one."""
        if target not in self.values:
            self.values[target] = Put(value, f"default of {default_of}")

    def leave(self, key: str, value: Any, why: str) -> None:
        """Note what nothing expresses."""
        self.left.append(Left(key, value, why))

    def apply(self, rules: Mapping[str, Rule], settings: Mapping[str, Any], prefix: str = "") -> None:
        """Apply a rule to every setting; a setting without one is left, as nothing is known of it."""
        for key, value in settings.items():
            rule, name = rules.get(key), f"{prefix}{key}"
            if value is None:
                continue
            if rule is None:
                self.leave(name, value, "qframe knows no such setting")
            elif rule.needless:
                self.needless[name] = rule.why
            else:
                self._read(rule, name, value)

    def _read(self, rule: Rule, name: str, value: Any) -> None:
        try:
            found = rule.read(value)
        except UnfitError as why:
            self.leave(name, value, str(why))
            return
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError):  # readers meet values of any type
            self.leave(name, value, "is not of the form that the program has here")
            return
        for target, one in found.items():
            self.put(target, one, name)

    def place(self, path: str) -> str:
        """Return where a path of the other program leads to from here; the path itself if nothing is there."""
        found = self.find(path)
        return path if found is None else str(found)

    def find(self, path: str) -> Path | None:
        """Return a file or folder that the file names: as seen from here, from the file, or from a folder above it."""
        try:
            for folder in (Path(), self.file.parent, *list(self.file.resolve().parents)[1:4]):
                if (folder / path).exists():
                    return folder / path
        except (OSError, ValueError):
            return None
        return None

    def beside(self, path: str, data: str) -> str:
        """Return the path of a folder as `data.options.references` names it: from the folder of the data set."""
        if os.path.isabs(path):
            return path
        return Path(os.path.relpath(self.place(path), self.place(data))).as_posix()


def shown(value: Any) -> str:
    """Return a value as a comment shows it, on one line and shortened."""
    try:
        text = json.dumps(value, default=str, ensure_ascii=False)
    except (ValueError, RecursionError, TypeError):
        text = type(value).__name__
    return text if len(text) <= 60 else text[:57] + "..."
