"""The examples of a training run: what is to be encoded of each record, and the records once they are encoded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qframe.cache import Cache, CachedExamples, DeclaredInputs, Portion, build_cache
from qframe.cache.configured import made_by
from qframe.cache.live import LiveExamples
from qframe.compose import Composition
from qframe.interfaces import Record
from qframe.preflight.training import MOST_ENCODED
from qframe.train.checks import check_sizes
from qframe.train.record_checks import check_records

if TYPE_CHECKING:
    from qframe.train.trainer import Trainer


def declared_inputs(records: Sequence[Record], composition: Composition) -> DeclaredInputs:
    """Return, for each record, the pictures and prompts that the recipe wants encoded; the recipe is asked when needed.

    The empty prompt is included only if captions are dropped in training.
    """
    drops = composition.config.train.caption_dropout > 0
    return DeclaredInputs(records, composition.recipe, unconditional=drops)


def check_run_records(trainer: Trainer) -> None:
    """Check all records that a run uses: those to train on, those held out, and those that are sampled.

    Raises:
        DataError: Records cannot be used; the message names all of them, by cause.
    """
    check_records(
        trainer.composition,
        trainer.inputs,
        held_out=trainer.measured,
        sampled=trainer.sampled,
        progress=trainer.progress,
    )


def encoded_examples(
    trainer: Trainer, inputs: DeclaredInputs, folder: Path, portion: Portion
) -> CachedExamples | LiveExamples:
    """Encode what the cache in `folder` lacks of this portion, and return all examples; see `Trainer.cache`."""
    config, composition, progress = trainer.config, trainer.composition, trainer.progress
    check_records(composition, inputs, progress=progress)
    check_sizes(composition, inputs[0])
    if not config.cache.enabled:
        return LiveExamples(inputs, trainer.load("encoder", "codec"), counter=composition.token_counter())
    cache, size = Cache(folder), config.cache.batch_size or MOST_ENCODED
    ingredients = made_by(composition, cache, progress)
    return build_cache(inputs, trainer.load, cache, ingredients, batch_size=size, portion=portion, progress=progress)
