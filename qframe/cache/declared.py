"""A sequence that asks a recipe which pictures and prompts must be encoded for each record, once for each record."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from qframe.interfaces import ExampleInputs, Recipe, Record


class DeclaredInputs(Sequence[ExampleInputs]):
    """The inputs of every record, in order: the pictures and prompts that the recipe wants encoded for the record.

    `Recipe.inputs` is called when the inputs of a record are first read. The result is kept until `forget` is called;
    where a data source draws pictures on demand, the drawn pictures stay in memory as long.

    Attributes:
        records: The records, in the order of the examples that are made of them.
        recipe: The recipe, whose `inputs` is called with a record.
        checked: Whether all records were checked (`qframe.train.record_checks`).
    """

    def __init__(self, records: Sequence[Record], recipe: Recipe, *, unconditional: bool = True) -> None:
        """Remember the records and the recipe, without calling the recipe.

        Args:
            records: The records.
            recipe: The recipe.
            unconditional: Whether the empty prompts are kept among the inputs; only caption dropout needs them.
        """
        self.records = records
        self.recipe = recipe
        self.checked = False
        self._unconditional = unconditional
        self._declared: list[ExampleInputs | None] = [None] * len(records)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> ExampleInputs:  # type: ignore[override]  # slices are of no use here
        """Return the inputs of the record at `index`. Raises DataError, which names the record, if it is unusable."""
        found = self._declared[index]
        if found is None:
            found = self.recipe.inputs(self.records[index])
            if not self._unconditional:
                found = attrs.evolve(found, unconditional=None)
            self._declared[index] = found
        return found

    def forget(self) -> None:
        """Drop all inputs that are kept, so that the memory of their pictures is freed."""
        self._declared = [None] * len(self.records)
