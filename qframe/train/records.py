"""Which records are trained on, which are held out for validation, and which are sampled."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import attrs

from qframe.config.schema import Config, DataConfig
from qframe.data.choose import open_source
from qframe.errors import ConfigError, DataError
from qframe.interfaces import Record, RecordSource
from qframe.plugins.registry import Registry


def split_records(source: RecordSource, config: Config) -> tuple[Sequence[Record], Sequence[Record]]:
    """The records to train on, and the records that are held out from training.

    Held out are the validation records of the source, and the fraction `data.holdout` of its other records. The id of a
    record alone decides, so that adding a record never moves another one from one side to the other.

    Raises:
        DataError: No record is left to train on.
        ConfigError: `validation.every` is set, and no record is held out.
    """
    records, held = source.records(), list(source.validation())
    if not records:
        raise DataError("the data set has no records", "Check data.path, or data.use and its options.")
    fraction = config.data.holdout
    if fraction:
        # The repeats of a record are on the record's side; of those that are held out, no repeat is needed.
        out = [_even_fraction(record.original or record.id) < fraction for record in records]
        held += [record for record, is_out in zip(records, out, strict=True) if is_out and not record.original]
        records = [record for record, is_out in zip(records, out, strict=True) if not is_out]
        if not records:
            raise DataError(f"data.holdout = {fraction} leaves no record to train on", "Lower it.")
    if config.validation.every is not None and not held:
        raise ConfigError(
            "validation.every is set, and no record is held out to take the loss over",
            "Set data.holdout (0.05 keeps a twentieth), or leave validation.every out.",
        )
    return records, held


def _even_fraction(text: str) -> float:
    """A number in [0, 1) that is a function of the text. Over many texts the numbers are evenly spread."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big") / 2.0**56


def spread(records: Sequence[Record], count: int) -> list[Record]:
    """At most `count` of the records, spread evenly from the first to the last."""
    if len(records) <= count:
        return list(records)
    return [records[place * len(records) // count] for place in range(count)]


def measured_records(held: Sequence[Record], config: Config) -> list[Record]:
    """The records that the validation loss is taken over: at most `validation.count` of those held out.

    There are none if `validation.every` is not set.
    """
    return [] if config.validation.every is None else spread(held, config.validation.count)


def sampled_records(
    source: RecordSource, records: Sequence[Record], held: Sequence[Record], config: Config, registry: Registry
) -> tuple[RecordSource, list[Record]]:
    """The records that are sampled before and after training, and the source that can judge the samples.

    They are the records of `sample.data` if it is set, else records that are held out, else the first `sample.count`
    records to train on. If `sample.prompts` is set, there is one sample per prompt: the prompts replace those of the
    records, which are used in turn.
    """
    sample = config.sample
    if sample.data is not None:
        use = registry.source_for(sample.data)
        options = registry.resolve(registry.component("source", use), "options")
        data = DataConfig(use=use, path=sample.data, options=None if options is None else options())
        source = open_source(attrs.evolve(config, data=data), registry)
        chosen = list(source.records())
    else:
        own = len(source.validation())
        chosen = list(held[:own]) or spread(held, sample.count) or list(records[: sample.count])
    if sample.prompts:
        if not chosen:
            raise ConfigError(
                "sample.prompts: there is no record whose pictures they could go with",
                "Set sample.count or sample.data.",
            )
        chosen = [
            # Under an id of its own: no data set can judge a prompt that is not its own.
            attrs.evolve(chosen[place % len(chosen)], prompt=prompt, id=f"prompt-{place}", group="")
            for place, prompt in enumerate(sample.prompts)
        ]
    return source, chosen
