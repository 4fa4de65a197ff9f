"""Checks every record of a run before any weight is read, so that all that is wrong is told at once, with its file.

No picture is decoded: that a picture is damaged is found by `qframe data check`, or when it is encoded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from qframe.cache import DeclaredInputs
from qframe.compose import Composition
from qframe.data.problems import Problems, printable
from qframe.errors import DataError, excerpt
from qframe.interfaces import ExampleInputs, Record, TextInput
from qframe.pictures.geometry import Size
from qframe.pictures.pixels import picture_size
from qframe.progress import SILENT, Progress

SAME_PROPORTIONS = 1.05
"""A loss map is resized to its target if their proportions differ by no more than this factor."""
_PICTURE = (1024, 1024)
"""The size that pictures are assumed to have where only the caption of a record is checked."""
_NAMED = 5


def check_records(
    composition: Composition,
    inputs: DeclaredInputs,
    *,
    held_out: DeclaredInputs | None = None,
    sampled: Sequence[Record] = (),
    progress: Progress = SILENT,
) -> None:
    """Check the records of a run: what the recipe needs of them, their prompts, and the proportions of loss maps.

    The inputs of one run are checked once; a second call returns at once. Captions that will be cut off are told as a
    note.

    Args:
        composition: The components of the run.
        inputs: What is encoded of the records to train on.
        held_out: What is encoded of the records that the validation loss is computed over.
        sampled: The records that are sampled.
        progress: Is told how far the check is.

    Raises:
        DataError: Records cannot be used; the message names all of them, by cause.
    """
    if inputs.checked:
        return
    checker = _Checker(composition)
    unchecked = {record.id for record in sampled}
    several = [inputs] if held_out is None else [inputs, held_out]
    with progress.stage("checking the records", sum(map(len, several)) + len(sampled)) as stage:
        for declared in several:
            for index, record in enumerate(declared.records):
                checker.check(record, declared, index)
                unchecked.discard(record.id)
                stage.advance(1)
        for record in sampled:
            if record.id in unchecked:
                checker.check_sampled(record)
            stage.advance(1)
    checker.problems.raise_any(
        "the data set", "Correct these records, or take them out. `qframe data check` reads every picture, too."
    )
    if checker.cut:
        shown = ", ".join(checker.cut[:_NAMED]) + (" ..." if len(checker.cut) > _NAMED else "")
        progress.note(f"{len(checker.cut)} captions are longer than the encoder takes, the rest is cut off: {shown}")
    for declared in several:
        declared.checked = True


class _Checker:
    """Checks one record after another, and collects what is wrong."""

    def __init__(self, composition: Composition) -> None:
        self._recipe = composition.recipe
        self._count, self._count_all = composition.token_counter(), composition.token_counter(cut=False)
        self._prompts: dict[tuple[str, int], tuple[str | None, bool]] = {}
        self.problems = Problems()
        self.cut: list[str] = []

    def check(self, record: Record, inputs: DeclaredInputs, index: int) -> None:
        try:
            declared = inputs[index]
        except DataError as error:
            self.problems.add(record.origin, about(record.origin, error))
            return
        self._check_prompt(record, declared.conditioning)
        if declared.loss_map is not None and record.loss_map is not None:
            problem = loss_map_problem(record, declared)
            if problem is not None:
                self.problems.add(record.loss_map.origin, problem)

    def check_sampled(self, record: Record) -> None:
        """Check a record that is sampled: it need not be one that could be trained on."""
        try:
            self._recipe.request_for(record)
        except DataError as error:
            self.problems.add(record.origin, about(record.origin, error))
            return
        with contextlib.suppress(DataError):
            self._check_prompt(record, self._recipe.inputs(record).conditioning)

    def _check_prompt(self, record: Record, text: TextInput) -> None:
        """Check a prompt, which is counted once for all records that have it."""
        key = (text.prompt, len(text.pictures))
        if key not in self._prompts:
            self._prompts[key] = self._judged(text)
        problem, cut = self._prompts[key]
        if problem is not None:
            self.problems.add(record.origin, problem)
        elif cut:
            self.cut.append(printable(record.origin))

    def _judged(self, text: TextInput) -> tuple[str | None, bool]:
        """Why the encoder refuses a prompt, None if it takes it, and whether it cuts the prompt off."""
        if self._count is None or self._count_all is None:
            return None, False
        sizes = [picture.geometry.fit(*_PICTURE) for picture in text.pictures]
        try:
            return None, self._count_all(text.prompt, sizes) > self._count(text.prompt, sizes)
        except DataError as error:
            return about_prompt(text.prompt, error), False


def about(origin: str, error: DataError) -> str:
    """Return the message of an error without the origin that it begins with, as the origin is told beside it."""
    return error.message.removeprefix(f"{origin}: ")


def about_prompt(prompt: str, error: DataError) -> str:
    """Return the message of an error about a prompt without the prompt, so that one cause has one message."""
    return error.message.replace(f"prompt {excerpt(prompt)!r}", "the prompt")


def loss_map_problem(record: Record, inputs: ExampleInputs) -> str | None:
    """Return why a record's loss map does not fit its target; None if it does, or if finding out would be slow."""
    assert record.loss_map is not None
    if not all(isinstance(picture.source, Path | bytes) for picture in (record.target, record.loss_map)):
        return None
    try:
        mask, target = picture_size(record.loss_map), picture_size(record.target)
    except DataError:
        return None  # encoding, or the check of the whole data set, names the picture
    return None if same_proportions(mask, target) else "the mask has other proportions than its target"


def same_proportions(one: Size, other: Size) -> bool:
    """Whether two pictures (height, width) have the same proportions, up to 5 %."""
    apart = (one[0] * other[1]) / (one[1] * other[0])
    return max(apart, 1 / apart) <= SAME_PROPORTIONS
