"""What a recipe wants encoded for the records of a data set, asked of the recipe once for each record."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from qframe.interfaces import ExampleInputs, Recipe, Record


class DeclaredInputs(Sequence[ExampleInputs]):
    """The inputs of every record, in order. `Recipe.inputs` is called once per record, when its inputs are first read.

    Inputs that were read are kept until `forget`, and with them the pictures of records that are drawn on demand.

    Attributes:
        records: The records, in the order of the examples that are made of them.
        recipe: Declares the inputs.
    """

    def __init__(self, records: Sequence[Record], recipe: Recipe, *, unconditional: bool = True) -> None:
        """`unconditional`: False leaves out the empty prompts, which only caption dropout needs."""
        self.records = records
        self.recipe = recipe
        self._unconditional = unconditional
        self._declared: list[ExampleInputs | None] = [None] * len(records)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> ExampleInputs:  # type: ignore[override]  # slices are of no use here
        """The inputs of the record at this place. DataError names a record that the recipe cannot use."""
        found = self._declared[index]
        if found is None:
            found = self.recipe.inputs(self.records[index])
            if not self._unconditional:
                found = attrs.evolve(found, unconditional=None)
            self._declared[index] = found
        return found

    def forget(self) -> None:
        """Let go of all inputs, so that records that are drawn on demand do not stay in memory."""
        self._declared = [None] * len(self.records)
