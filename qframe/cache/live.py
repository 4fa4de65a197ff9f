"""Training without a cache: examples are encoded whenever they are asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from qframe.cache.declared import DeclaredInputs
from qframe.cache.encoding import encode_examples
from qframe.cache.lengths import Shape, estimated_tokens, fitted_size, latent_shape, text_tokens
from qframe.interfaces import Example, Parts, Record, TokenCounter


class LiveExamples(Sequence[Example]):
    """Examples that are encoded every time they are asked for: training without a cache."""

    def __init__(self, inputs: DeclaredInputs, parts: Parts, *, counter: TokenCounter | None = None) -> None:
        """Keep what is needed to encode the examples; nothing is encoded yet.

        Args:
            inputs: What the recipe wants encoded for each record.
            parts: The components, encoder and codec loaded.
            counter: What `Encoder.token_counter` gives. Without it `text_length` is an estimate.
        """
        self._inputs = inputs
        self._records = inputs.records
        self._parts = parts
        self._count = counter or estimated_tokens

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]  # slices are of no use here
        return encode_examples([self._inputs[index]], [self._records[index].id], self._parts)[0]

    def digest(self) -> str:
        """Return a sha256 over ids, prompts and the bytes of every picture, in order; a resumed run compares it."""
        return content_digest((record.id for record in self._records), map(_content, self._records))

    def shape(self, index: int) -> Shape:
        """Return the sides of an example's latents, from the pictures' headers. Nothing is decoded or encoded."""
        return latent_shape(self._inputs[index], fitted_size, self._parts.codec_spec.compression)

    def text_length(self, index: int) -> int:
        """Return the text tokens of an example: counted, or estimated where the encoder has no counter.

        Of the caption and the empty prompt that may replace it, the longer one counts.
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
