"""Examples for training without a cache: they are encoded each time they are read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from qframe.cache.declared import DeclaredInputs
from qframe.cache.encoding import encode_examples
from qframe.cache.lengths import Shape, estimated_tokens, fitted_size, latent_shape, text_tokens
from qframe.compose.culprit import naming_culprit
from qframe.interfaces import Example, Parts, Record, TokenCounter


class LiveExamples(Sequence[Example]):
    """A sequence of training examples that are encoded each time they are read, for training without a cache."""

    def __init__(self, inputs: DeclaredInputs, parts: Parts, *, counter: TokenCounter | None = None) -> None:
        """Remember what is needed to encode the examples, and encode nothing yet.

        Args:
            inputs: The pictures and prompts that the recipe wants encoded for each record.
            parts: The components of the model; encoder and codec must be loaded.
            counter: Counts text tokens (`Encoder.token_counter` returns it). If it is None, `text_length` estimates.
        """
        self._inputs = inputs
        self._records = inputs.records
        self._parts = parts
        self._count = counter or estimated_tokens

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]  # slices are of no use here
        """Encode the inputs of the record at `index`, and return the example."""
        with naming_culprit(self._parts):
            return encode_examples([self._inputs[index]], [self._records[index].id], self._parts)[0]

    def digest(self) -> str:
        """Return a sha256 over the ids, the prompts and the bytes of every picture of all records, in order.

        A run that is resumed compares it with the digest in its checkpoint, and so notices that its data set changed.
        """
        return content_digest((record.id for record in self._records), map(_content, self._records))

    def shape(self, index: int) -> Shape:
        """Return the sides (h, w) that an example's latents will have, for the target and each reference.

        Only the headers of the pictures are read.
        """
        return latent_shape(self._inputs[index], fitted_size, self._parts.codec_spec.compression)

    def text_length(self, index: int) -> int:
        """Return the number of text tokens of an example's caption, or an estimate if the encoder cannot count them.

        If caption dropout may replace the caption by the empty prompt, the larger of the two numbers is returned.
        """
        return text_tokens(self._inputs[index], fitted_size, self._count)


def content_digest(ids: Iterable[str], contents: Iterable[str]) -> str:
    """Return a sha256 over the examples of a data set, in order.

    Args:
        ids: The id of each example.
        contents: For each example, a text that changes when its content changes.
    """
    total = hashlib.sha256()
    for name, content in zip(ids, contents, strict=True):
        total.update(f"{name}\0{content}\n".encode())
    return total.hexdigest()


def _content(record: Record) -> str:
    pictures = (record.target, *record.references, record.loss_map)
    return repr((record.prompt, [picture.digest() for picture in pictures if picture is not None]))
