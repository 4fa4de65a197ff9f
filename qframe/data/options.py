"""Settings of data sources that read files. Imports no torch."""

from __future__ import annotations

import re
from typing import Any

import attrs
from attrs.validators import and_, ge, le, optional

from qframe.files.text import text_problem

MOST_REPEATS = 10_000
"""The most times that a record can be repeated in an epoch."""
PLACEHOLDERS = ("caption", "trigger", "name")
"""What a template may hold in braces."""


def _usable(instance: object, attribute: attrs.Attribute[Any], value: str) -> None:
    if (problem := text_problem(value, "the text")) is not None:
        raise ValueError(problem)


def _templates(instance: object, attribute: attrs.Attribute[Any], value: str | tuple[str, ...] | None) -> None:
    for text in as_templates(value):
        _usable(instance, attribute, text)
        for name in re.findall(r"{(.*?)}", text):
            if name not in PLACEHOLDERS:
                known = ", ".join(f"{{{one}}}" for one in PLACEHOLDERS)
                raise ValueError(f"{{{name}}} stands for nothing; a template may hold {known}")


def as_templates(value: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the templates of the option `template`: none, one or several."""
    return () if value is None else (value,) if isinstance(value, str) else tuple(value)


@attrs.frozen(kw_only=True)
class SourceOptions:
    """The options that every data source of files has. A source with further options defines a subclass.

    Attributes:
        prompt: The caption of pictures that have none of their own; None makes a missing caption a problem.
        validation: The number of records that are kept from training, and sampled before and after it.
        allow_outside: Whether files may lie, or links may lead, outside of the data set's folder.
        repeats: How many times an epoch visits each record.
        trigger: A word that every prompt shall have. It takes the place of [trigger] in a caption; a caption without it
            gets it in front.
        prefix: A text that is put before every caption.
        suffix: A text that is put behind every caption.
        template: A text, or several, that captions are put into in the place of {caption}. {trigger} is the trigger
            word, {name} is the name of the picture's file. Of several templates, the repeats of a record take one after
            another.
        shuffle_tags: Whether a caption is a list of tags, whose order is drawn anew for each repeat.
        keep_tags: How many tags at the beginning keep their places.
        tag_separator: What stands between two tags.
        alpha_mask: Whether the transparency of a target is its loss map: the loss counts where the picture is opaque.
    """

    prompt: str | None = attrs.field(
        default=None,
        validator=optional(_usable),
        metadata={"help": "caption of pictures that have none of their own"},
    )
    validation: int = attrs.field(
        default=0, validator=ge(0), metadata={"help": "records kept from training, sampled before and after it"}
    )
    allow_outside: bool = attrs.field(
        default=False, metadata={"help": "true: files may lie, or links lead, outside of the data set's folder"}
    )
    repeats: int = attrs.field(
        default=1,
        validator=and_(ge(1), le(MOST_REPEATS)),
        metadata={"help": "how many times an epoch visits each record"},
    )
    trigger: str | None = attrs.field(
        default=None,
        validator=optional(_usable),
        metadata={"help": "word that every prompt gets: in the place of [trigger], else in front"},
    )
    prefix: str | None = attrs.field(
        default=None, validator=optional(_usable), metadata={"help": "text before every caption"}
    )
    suffix: str | None = attrs.field(
        default=None, validator=optional(_usable), metadata={"help": "text behind every caption"}
    )
    template: str | tuple[str, ...] | None = attrs.field(
        default=None,
        validator=_templates,
        metadata={"help": "text, or several, with {caption}, {trigger}, {name}; repeats take one after another"},
    )
    shuffle_tags: bool = attrs.field(
        default=False, metadata={"help": "true: captions are tags, in another order for each repeat"}
    )
    keep_tags: int = attrs.field(
        default=0, validator=ge(0), metadata={"help": "with shuffle_tags: so many tags keep their places"}
    )
    tag_separator: str = attrs.field(default=",", metadata={"help": "with shuffle_tags: what stands between two tags"})
    alpha_mask: bool = attrs.field(default=False, metadata={"help": "true: the loss counts where the target is opaque"})


@attrs.frozen(kw_only=True)
class FolderOptions(SourceOptions):
    """The options of the data source "folder".

    Attributes:
        references: Folders with references, in their order, named as in the data set's folder or as a path elsewhere;
            None recognises the usual names.
        loss_maps: The folder with loss maps; None recognises the usual names.
        captions: The folder with captions; None looks beside the targets, and recognises the usual names.
        caption_suffix: The suffix of captions; None takes .txt, else .caption.
        folder_repeats: Whether a folder named like `10_woman` repeats its pictures 10 times.
    """

    references: tuple[str, ...] | None = attrs.field(
        default=None, metadata={"help": "folders of references, in order; by default the usual names are recognised"}
    )
    loss_maps: str | None = attrs.field(
        default=None, metadata={"help": "folder of loss maps; by default the usual names are recognised"}
    )
    captions: str | None = attrs.field(
        default=None, metadata={"help": "folder of captions; by default they lie beside the targets"}
    )
    caption_suffix: str | None = attrs.field(
        default=None, metadata={"help": "suffix of captions; by default .txt, else .caption"}
    )
    folder_repeats: bool = attrs.field(
        default=True, metadata={"help": "true: pictures in a folder named like 10_woman count 10 times"}
    )
