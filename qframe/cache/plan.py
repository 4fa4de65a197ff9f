"""Which entries the records of a data set need, and from which record each can be made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs

from qframe.cache.keys import ExampleKeys, Ingredients, KeyMaker, PictureDigests
from qframe.cache.portion import ALL, Portion
from qframe.interfaces import ExampleInputs, Recipe, Record, TextInput
from qframe.pictures.picture import PixelInput
from qframe.progress import SILENT, Progress


@attrs.define(eq=False)
class CachePlan:
    """Everything that must be in the cache before every record is an example.

    made_by: ingredients of "encoder" and "codec". unconditional: False leaves the empty prompts out.
    pixels, texts, weights: per key, a record (by its place) and the place of the input among that record's.
    """

    records: Sequence[Record]
    recipe: Recipe
    made_by: Mapping[str, Ingredients]
    digests: PictureDigests
    unconditional: bool
    ids: list[str] = attrs.field(factory=list, init=False)
    keys: list[ExampleKeys] = attrs.field(factory=list, init=False)
    pixels: dict[str, tuple[int, int]] = attrs.field(factory=dict, init=False)
    texts: dict[str, tuple[int, int]] = attrs.field(factory=dict, init=False)
    weights: dict[str, tuple[int, int]] = attrs.field(factory=dict, init=False)
    maker: KeyMaker = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.maker = KeyMaker.of(self.recipe, self.made_by, self.digests)

    def read(self, progress: Progress = SILENT, portion: Portion = ALL) -> None:
        """Find the keys of all records. DataError names a record or picture that is no good.

        Every picture's bytes must be hashed once. Builders that share the work begin at different ends of the data
        set and tell one another what they found.
        """
        if portion.count > 1:
            with progress.stage("hashing pictures", len(self.records)) as stage:
                for stretch in portion.stretches(len(self.records)):
                    for index in stretch:
                        self._hash(self.inputs(index))
                        stage.advance(1)
                    self.digests.save()
        with progress.stage("reading the data set", len(self.records)) as stage:
            for index in range(len(self.records)):
                self._add(index)
                stage.advance(1)
        self.digests.save()

    def every_key(self) -> list[str]:
        """The keys of all entries, each once."""
        return [*self.pixels, *self.weights, *self.texts]

    def inputs(self, index: int) -> ExampleInputs:
        """What the recipe wants encoded for a record."""
        inputs = self.recipe.inputs(self.records[index])
        return inputs if self.unconditional else attrs.evolve(inputs, unconditional=None)

    def pixel(self, where: tuple[int, int]) -> PixelInput:
        inputs = self.inputs(where[0])
        return (inputs.target, *inputs.references)[where[1]]

    def text(self, where: tuple[int, int]) -> TextInput:
        inputs = self.inputs(where[0])
        found = (inputs.conditioning, inputs.unconditional)[where[1]]
        assert found is not None  # `_add` saw it there
        return found

    def weight(self, where: tuple[int, int]) -> PixelInput:
        found = self.inputs(where[0]).loss_map
        assert found is not None  # `_add` saw it there
        return found

    def _add(self, index: int) -> None:
        keys = self.maker.example(self.inputs(index))
        self.ids.append(self.records[index].id)
        self.keys.append(keys)
        for place, key in enumerate((keys.target, *keys.references)):
            self.pixels.setdefault(key, (index, place))
        self.texts.setdefault(keys.conditioning, (index, 0))
        if keys.unconditional is not None:
            self.texts.setdefault(keys.unconditional, (index, 1))
        if keys.weight is not None:
            self.weights.setdefault(keys.weight, (index, 0))

    def _hash(self, inputs: ExampleInputs) -> None:
        texts = [text for text in (inputs.conditioning, inputs.unconditional) if text is not None]
        seen = [inputs.target, *inputs.references, *(pixels for text in texts for pixels in text.pictures)]
        for pixels in seen if inputs.loss_map is None else [*seen, inputs.loss_map]:
            self.digests(pixels.picture)
