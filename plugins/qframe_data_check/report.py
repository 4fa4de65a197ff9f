"""The values that `check_data` returns: findings, token figures, and the report that holds them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import attrs

from qframe.interfaces import Record, Survey
from qframe.pictures.geometry import Size

Severity = Literal["error", "warning", "note"]
"""With an error, training would stop. With a warning, it would go on, and perhaps learn something wrong. A note says
how something is understood."""

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

Kind = Literal[
    "data set",
    "record",
    "picture",
    "size",
    "mask",
    "prompt",
    "aspect ratio",
    "enlarged",
    "stretched",
    "duplicate",
]


@attrs.frozen
class Finding:
    """One thing that is wrong with a data set, or that its owner should know.

    Attributes:
        severity: "error" if training would stop at this record, "warning" if it would go on, "note" if all is well.
        kind: What the finding is about, such as "picture" or "prompt".
        origin: The file or the row of a table that the finding is about.
        cause: What is wrong. Findings with one cause have the same text.
        detail: What distinguishes the finding from others with the same cause, such as the size of a picture.
    """

    severity: Severity
    kind: Kind
    origin: str
    cause: str
    detail: str = ""

    @property
    def message(self) -> str:
        """What is wrong, with its detail."""
        return f"{self.cause} ({self.detail})" if self.detail else self.cause


def by_cause(findings: Sequence[Finding]) -> list[list[Finding]]:
    """Put findings of the same severity, kind and cause together: each list is a row of the table of the check."""
    found: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in findings:
        found.setdefault((finding.severity, finding.kind, finding.cause), []).append(finding)
    return list(found.values())


@attrs.frozen(kw_only=True)
class TokenFigures:
    """How many tokens the batches of training have, counted over batches made as the configuration says.

    A batch here is what one forward pass of training computes.

    Attributes:
        batches: How many batches were counted.
        samples: Mean number of samples in a batch.
        valid: Mean number of tokens in a batch, without padding.
        smallest: The number of tokens in the smallest batch, without padding.
        largest: The number of tokens in the largest batch, without padding.
        padded: Mean number of padding tokens that the denoiser computes in a batch in addition.
        largest_sample: The number of tokens of the largest sample.
        exact: True if text is counted in tokens; False if in bytes, because the encoder cannot count tokens.
        problem: Why no batch can be made under this configuration; None if batches can be made.
    """

    batches: int
    samples: float
    valid: float
    smallest: int
    largest: int
    padded: float
    largest_sample: int
    exact: bool
    problem: str | None = None


@attrs.frozen(kw_only=True)
class Report:
    """The result of checking a data set.

    Attributes:
        survey: The records that the data source listed, and the problems that it met while it listed them.
        usable: The numbers of the records without an error. Numbers count from 0 through the training records first and
            then through the validation records; `record` takes such a number.
        findings: What is wrong with the data set, errors first.
        shapes: Each size (height, width) in pixels that targets have after they were resized for training, with the
            number of targets of that size, most frequent first.
        tokens: How many tokens batches of the usable training records have; None if no training record is usable.
    """

    survey: Survey
    usable: Sequence[int]
    findings: Sequence[Finding]
    shapes: Sequence[tuple[Size, int]]
    tokens: TokenFigures | None

    @property
    def total(self) -> int:
        """The number of training records and validation records together."""
        return len(self.survey.records) + len(self.survey.validation)

    @property
    def errors(self) -> int:
        """The number of findings that are errors."""
        return self.count("error")

    def count(self, severity: Severity) -> int:
        """Return the number of findings of a severity."""
        return sum(finding.severity == severity for finding in self.findings)

    def record(self, place: int) -> Record:
        """Return the record with this number, counted from 0 through training records, then validation records."""
        return record_at(self.survey, place)


def record_at(survey: Survey, place: int) -> Record:
    """Return the record with this number, counted from 0 through training records, then validation records."""
    count = len(survey.records)
    return survey.records[place] if place < count else survey.validation[place - count]
