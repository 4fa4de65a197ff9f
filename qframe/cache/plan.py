"""Lists which cache entries the records of a data set need, and which picture or prompt each entry is encoded from."""

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
    """The list of the entries that must be in the cache before every record can be read as an example.

    `read` fills `ids`, `keys`, `pixels`, `texts` and `loss_maps`; before, they are empty.

    Attributes:
        inputs: The pictures and prompts that the recipe wants encoded for each record.
        made_by: The ingredients of the roles "encoder" and "codec": what each component's output depends on.
        digests: Computes the digests of pictures, and remembers them.
        ids: The id of each record, in order.
        keys: The keys of each record's entries, in the order of the records.
        pixels: By key of an entry of latents, the picture that is encoded.
        texts: By key of an entry of conditioning, the prompt that is encoded, with its pictures.
        loss_maps: By key of the entry of a loss map, the picture of the loss map.
        maker: Computes the keys.
    """

    inputs: DeclaredInputs
    made_by: Mapping[str, Ingredients]
    digests: PictureDigests
    ids: list[str] = attrs.field(factory=list, init=False)
    keys: list[ExampleKeys] = attrs.field(factory=list, init=False)
    pixels: dict[str, PixelInput] = attrs.field(factory=dict, init=False)
    texts: dict[str, TextInput] = attrs.field(factory=dict, init=False)
    loss_maps: dict[str, PixelInput] = attrs.field(factory=dict, init=False)
    maker: KeyMaker = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.maker = KeyMaker.of(self.inputs.recipe, self.made_by, self.digests)

    def read(self, progress: Progress = SILENT, portion: Portion = ALL) -> None:
        """Compute the keys of all records. For this the bytes of every picture are hashed once.

        Processes that fill one cache together each need all keys. They begin to hash at different places of the data
        set, and store the digests in the cache, where each finds what the others have hashed already.

        Args:
            progress: Is told how far hashing and reading have come.
            portion: The portion that this process encodes; it decides where in the data set this process begins.

        Raises:
            DataError: A record or a picture cannot be used; the message names it.
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
        """Return the keys of all entries that the records need, without repeats."""
        return [*self.pixels, *self.loss_maps, *self.texts]

    def _add(self, inputs: ExampleInputs) -> None:
        keys = self.maker.example(inputs)
        self.keys.append(keys)
        for key, pixels in zip((keys.target, *keys.references), (inputs.target, *inputs.references), strict=True):
            self.pixels.setdefault(key, pixels)
        self.texts.setdefault(keys.conditioning, inputs.conditioning)
        if keys.unconditional is not None and inputs.unconditional is not None:
            self.texts.setdefault(keys.unconditional, inputs.unconditional)
        if keys.loss_map is not None and inputs.loss_map is not None:
            self.loss_maps.setdefault(keys.loss_map, inputs.loss_map)

    def _hash(self, inputs: ExampleInputs) -> None:
        texts = [text for text in (inputs.conditioning, inputs.unconditional) if text is not None]
        seen = [inputs.target, *inputs.references, *(pixels for text in texts for pixels in text.pictures)]
        for pixels in seen if inputs.loss_map is None else [*seen, inputs.loss_map]:
            self.digests(pixels.picture)
