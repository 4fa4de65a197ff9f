"""The values that a check of a data set returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import attrs

from qframe.interfaces import Record, Survey
from qframe.pictures.geometry import Size

Severity = Literal["error", "warning"]
"""error: training would stop there. warning: training would go on, and perhaps learn something wrong."""

Kind = Literal["data set", "record", "picture", "size", "mask", "prompt", "aspect ratio", "enlarged", "duplicate"]


@attrs.frozen
class Finding:
    """One thing that is wrong with a data set: one row of the table that `qframe data check` prints.

    Attributes:
        severity: Whether training would stop there.
        kind: What the finding is about.
        origin: The file or the row of a table that the finding is about.
        message: What is wrong.
    """

    severity: Severity
    kind: Kind
    origin: str
    message: str


@attrs.frozen(kw_only=True)
class TokenFigures:
    """How many tokens a forward pass of training has, taken over batches that the configuration makes.

    Attributes:
        batches: How many batches the figures are taken from.
        samples: Mean number of samples in a batch.
        valid: Mean number of tokens in a batch, padding left out.
        smallest: The number of tokens in the smallest batch, padding left out.
        largest: The number of tokens in the largest batch, padding left out.
        padded: Mean number of tokens of padding that are computed beside the valid ones.
        largest_sample: The number of tokens of the largest sample.
        exact: False if the encoder cannot count tokens, so that text is counted in bytes.
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
    """Everything that a check found out about a data set.

    Attributes:
        survey: The records that the data source listed, and the problems that it met while it listed them.
        usable: The places of the records that can be trained on. Places count through the training records first and
            then through those for validation; see `record`.
        findings: What is wrong with the data set, errors first.
        shapes: (height, width) of targets after geometry and how many targets have that size, most frequent first.
        tokens: Figures over the usable training records; None if no training record is usable.
    """

    survey: Survey
    usable: Sequence[int]
    findings: Sequence[Finding]
    shapes: Sequence[tuple[Size, int]]
    tokens: TokenFigures | None

    @property
    def total(self) -> int:
        """The number of records, those for validation included."""
        return len(self.survey.records) + len(self.survey.validation)

    @property
    def errors(self) -> int:
        """The number of findings that are errors."""
        return sum(finding.severity == "error" for finding in self.findings)

    def record(self, place: int) -> Record:
        """The record at a place, which counts through the training records first and then those for validation."""
        return record_at(self.survey, place)


def record_at(survey: Survey, place: int) -> Record:
    """The record at a place, which counts through the training records first and then those for validation."""
    count = len(survey.records)
    return survey.records[place] if place < count else survey.validation[place - count]
