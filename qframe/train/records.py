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
    """Records to train on, and those held out: the source's own validation records, then `data.holdout` of the rest.

    A record is held out by its id, whatever others there are: one that is added moves no other from side to side.
    DataError if nothing is left to train on, ConfigError if `validation.every` asks for a loss over nothing.
    """
    records, held = source.records(), list(source.validation())
    if not records:
        raise DataError("the data set has no records", "Check data.path, or data.use and its options.")
    share = config.data.holdout
    if share:
        out = [_fraction(record.id) < share for record in records]
        held += [record for record, is_out in zip(records, out, strict=True) if is_out]
        records = [record for record, is_out in zip(records, out, strict=True) if not is_out]
        if not records:
            raise DataError(f"data.holdout = {share} leaves no record to train on", "Lower it.")
    if config.validation.every is not None and not held:
        raise ConfigError(
            "validation.every is set, and no record is held out to take the loss over",
            "Set data.holdout (0.05 keeps a twentieth), or leave validation.every out.",
        )
    return records, held


def _fraction(text: str) -> float:
    """A number in [0, 1) that is a function of the text, and evenly spread."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big") / 2.0**56


def spread(records: Sequence[Record], count: int) -> list[Record]:
    """At most `count` of them, evenly from first to last."""
    if len(records) <= count:
        return list(records)
    return [records[place * len(records) // count] for place in range(count)]


def measured_records(held: Sequence[Record], config: Config) -> list[Record]:
    """Those held out that the validation loss is taken over: at most `validation.count`, none without `every`."""
    return [] if config.validation.every is None else spread(held, config.validation.count)


def sampled_records(
    source: RecordSource, records: Sequence[Record], held: Sequence[Record], config: Config, registry: Registry
) -> tuple[RecordSource, list[Record]]:
    """What is sampled, and the source that can judge it.

    The records of `sample.data`; else those held out; else the first `sample.count` of the data set itself. With
    `sample.prompts` each prompt takes the place of one record's own, in turn.
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
