"""The plan of a cache: which entries the records of a data set need, and what each of them is made of."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from qframe.cache.declared import DeclaredInputs
from qframe.cache.keys import ExampleKeys, Ingredients, KeyMaker, PictureDigests
from qframe.cache.portion import ALL, Portion
from qframe.interfaces import ExampleInputs, TextInput
from qframe.pictures.picture import PixelInput
from qframe.progress import SILENT, Progress


@attrs.define(eq=False)
class CachePlan:
    """Lists the entries that must be in the cache before every record can be read as an example.

    Attributes:
        inputs: What the recipe declares for each record.
        made_by: The ingredients of "encoder" and "codec".
        digests: Hashes the pictures, and remembers the digests.
        ids: The id of each record, in order, once `read` has run.
        keys: The keys of each record, in order, once `read` has run.
        pixels: By key, the picture that an entry of latents is made of.
        texts: By key, the prompt with its pictures that an entry of conditioning is made of.
        weights: By key, the picture that the entry of a loss map is made of.
        maker: Makes the keys.
    """

    inputs: DeclaredInputs
    made_by: Mapping[str, Ingredients]
    digests: PictureDigests
    ids: list[str] = attrs.field(factory=list, init=False)
    keys: list[ExampleKeys] = attrs.field(factory=list, init=False)
    pixels: dict[str, PixelInput] = attrs.field(factory=dict, init=False)
    texts: dict[str, TextInput] = attrs.field(factory=dict, init=False)
    weights: dict[str, PixelInput] = attrs.field(factory=dict, init=False)
    maker: KeyMaker = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.maker = KeyMaker.of(self.inputs.recipe, self.made_by, self.digests)

    def read(self, progress: Progress = SILENT, portion: Portion = ALL) -> None:
        """Compute the keys of all records, for which the bytes of every picture are hashed once.

        Builders that share the work begin at different places of the data set, and find in the cache the digests that
        the others have computed. DataError names a record or picture that cannot be used.

        Args:
            progress: Is told how far reading has come.
            portion: The portion that this builder encodes; it decides the place at which hashing begins.
        """
        if portion.count > 1:
            with progress.stage("hashing pictures", len(self.inputs)) as stage:
                for stretch in portion.stretches(len(self.inputs)):
                    for index in stretch:
                        self._hash(self.inputs[index])
                        stage.advance(1)
                    self.digests.save()
        with progress.stage("reading the data set", len(self.inputs)) as stage:
            for index in range(len(self.inputs)):
                self.ids.append(self.inputs.records[index].id)
                self._add(self.inputs[index])
                stage.advance(1)
        self.digests.save()

    def every_key(self) -> list[str]:
        """Return the keys of all entries, each once."""
        return [*self.pixels, *self.weights, *self.texts]

    def _add(self, inputs: ExampleInputs) -> None:
        keys = self.maker.example(inputs)
        self.keys.append(keys)
        for key, pixels in zip((keys.target, *keys.references), (inputs.target, *inputs.references), strict=True):
            self.pixels.setdefault(key, pixels)
        self.texts.setdefault(keys.conditioning, inputs.conditioning)
        if keys.unconditional is not None and inputs.unconditional is not None:
            self.texts.setdefault(keys.unconditional, inputs.unconditional)
        if keys.weight is not None and inputs.loss_map is not None:
            self.weights.setdefault(keys.weight, inputs.loss_map)

    def _hash(self, inputs: ExampleInputs) -> None:
        texts = [text for text in (inputs.conditioning, inputs.unconditional) if text is not None]
        seen = [inputs.target, *inputs.references, *(pixels for text in texts for pixels in text.pictures)]
        for pixels in seen if inputs.loss_map is None else [*seen, inputs.loss_map]:
            self.digests(pixels.picture)
