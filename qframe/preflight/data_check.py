"""A data set read whole before anything is trained on it: every problem, every size, every token.

Pictures are read in threads (decoding lets go of Python's lock), one record's at a time and thread; what is kept of
a record is its sizes and digests.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import Literal, TypeVar

import attrs

from qframe.cache.lengths import estimated_tokens, latent_shape, text_tokens
from qframe.compose import Composition
from qframe.config.schema import TrainConfig
from qframe.errors import ConfigError, DataError
from qframe.interfaces import ExampleInputs, Record, RecordSource, Survey
from qframe.pictures.geometry import Size
from qframe.pictures.picture import Picture, PixelInput
from qframe.pictures.pixels import open_grey, open_picture, picture_size
from qframe.progress import SILENT, Progress
from qframe.train.order import SampleSize, make_order, sample_size

_ENLARGED = 4.0
"""A picture whose area grows by more than this is no longer what the model should learn: each side is doubled."""
_STRETCHED = 1.05
"""A target and its one reference whose aspect ratios differ by more do not lie over one another."""
_BATCHES = 500
"""Batches that the token figures are taken from."""
_MOST_THREADS = 8

_A = TypeVar("_A")
_B = TypeVar("_B")

Severity = Literal["error", "warning"]
Kind = Literal["data set", "record", "picture", "size", "mask", "prompt", "aspect ratio", "enlarged", "duplicate"]


@attrs.frozen
class Finding:
    """One line of the table. error: training would stop there; warning: it would go on, and perhaps learn nonsense."""

    severity: Severity
    kind: Kind
    origin: str
    message: str


@attrs.frozen(kw_only=True)
class TokenFigures:
    """What a forward pass computes, of the batches that the configuration makes. padded: beside the valid ones.

    exact: False where the encoder has no token counter, and text is counted in bytes.
    problem: why no batch can be made, in place of figures of any.
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
    """whole: places of the records that can be used, in the training records and then those for validation.

    shapes: (height, width) of targets after geometry, the most frequent first. tokens: of training records; None
    if no record can be used.
    """

    survey: Survey
    whole: Sequence[int]
    findings: Sequence[Finding]
    shapes: Sequence[tuple[Size, int]]
    tokens: TokenFigures | None

    @property
    def total(self) -> int:
        """Records in all."""
        return len(self.survey.records) + len(self.survey.validation)

    @property
    def errors(self) -> int:
        return sum(finding.severity == "error" for finding in self.findings)

    def record(self, place: int) -> Record:
        """The record at a place of `whole`."""
        return _at(self.survey, place)


def check_data(
    source: RecordSource,
    composition: Composition,
    train: TrainConfig,
    *,
    decode: bool = True,
    progress: Progress = SILENT,
) -> Report:
    """Everything that is wrong with a data set for one family, and how large its examples are.

    decode: False reads the pictures' headers alone: faster, but half a picture and an empty mask pass.
    """
    survey = source.survey()
    findings = [Finding("error", "data set", problem.origin, problem.message) for problem in survey.problems]
    checker = _Checker(composition, train, decode, survey)
    with progress.stage("checking the data set", len(survey.records) + len(survey.validation)) as stage:
        for place, seen in enumerate(_in_threads(checker.look, chain(survey.records, survey.validation))):
            checker.judge(place, seen)
            stage.advance(1)
    findings += checker.findings
    return Report(
        survey=survey,
        whole=checker.whole,
        findings=sorted(findings, key=lambda finding: finding.severity),
        shapes=checker.shapes.most_common(),
        tokens=_token_figures(checker, survey, composition, train),
    )


@attrs.frozen(eq=False)
class _Look:
    """A picture that could be read. blank: a mask that is black all over."""

    size: Size
    digest: str
    blank: bool = False


@attrs.define(eq=False)
class _Seen:
    """What was found of a record's pictures, by id; a picture that is missing here could not be read."""

    record: Record
    inputs: ExampleInputs | None = None
    looks: dict[int, _Look] = attrs.field(factory=dict)
    findings: list[Finding] = attrs.field(factory=list)

    def fitted(self, pixel: PixelInput) -> Size:
        """The size of an input in its geometry. DataError if a side would vanish."""
        return pixel.geometry.fit(*self.looks[id(pixel.picture)].size)


class _Checker:
    """`look` runs in threads and touches nothing of its own; `judge` takes records in order, in one thread."""

    def __init__(self, composition: Composition, train: TrainConfig, decode: bool, survey: Survey) -> None:
        self._recipe = composition.recipe
        self._compression: int = composition.specs["codec"].compression
        self._patch: int = composition.specs["denoiser"].patch
        self._drops = train.caption_dropout > 0
        counter = composition.token_counter()
        self.exact = counter is not None
        self._count = counter or estimated_tokens
        self._decode = decode
        self._told = {id(problem.picture) for problem in survey.problems if problem.picture is not None}
        self._unusable = survey.unusable
        self._targets: dict[str, str] = {}
        self._questions: dict[tuple[str, ...], str] = {}
        self.findings: list[Finding] = []
        self.whole: list[int] = []
        self.sizes: list[SampleSize] = []
        self.shapes: Counter[Size] = Counter()

    def look(self, record: Record) -> _Seen:
        seen = _Seen(record)
        for picture in (record.target, *record.references):
            self._look_at(picture, seen, mask=False)
        if record.loss_map is not None:
            self._look_at(record.loss_map, seen, mask=True)
        try:
            inputs = self._recipe.inputs(record)
            seen.inputs = inputs if self._drops else attrs.evolve(inputs, unconditional=None)
        except DataError as error:
            seen.findings.append(Finding("error", "record", record.origin, _after(record.origin, error)))
        return seen

    def _look_at(self, picture: Picture, seen: _Seen, *, mask: bool) -> None:
        if id(picture) in self._told:
            return
        try:
            if not self._decode:
                size, blank = picture_size(picture), False
            else:
                image = (open_grey if mask else open_picture)(picture)
                size, blank = (image.height, image.width), mask and image.getextrema()[1] == 0
            seen.looks[id(picture)] = _Look(size, picture.digest(), blank)
        except DataError as error:
            seen.findings.append(Finding("error", "picture", picture.origin, _after(picture.origin, error)))

    def judge(self, place: int, seen: _Seen) -> None:
        record = seen.record
        pictures = [record.target, *record.references, *([record.loss_map] if record.loss_map else [])]
        inputs = seen.inputs
        readable = all(id(picture) in seen.looks for picture in pictures)
        if inputs is not None and readable and self._fits(seen, inputs):
            self._compare(seen, inputs)
            text = self._text(seen, inputs)
            wrong = record.id in self._unusable or any(finding.severity == "error" for finding in seen.findings)
            if text is not None and not wrong:
                shape = latent_shape(inputs, seen.fitted, self._compression)
                self.whole.append(place)
                self.sizes.append(sample_size(shape, text, self._patch))
                self.shapes[seen.fitted(inputs.target)] += 1
        self._find_duplicates(seen)
        self.findings += seen.findings

    def _fits(self, seen: _Seen, inputs: ExampleInputs) -> bool:
        """Whether every picture has a size in its geometry; a finding for each that has none."""
        before = len(seen.findings)
        for pixel in (inputs.target, *inputs.references, *([inputs.loss_map] if inputs.loss_map else [])):
            try:
                seen.fitted(pixel)
            except DataError as error:
                seen.findings.append(Finding("error", "size", pixel.picture.origin, error.message))
        return len(seen.findings) == before

    def _text(self, seen: _Seen, inputs: ExampleInputs) -> int | None:
        """How many text tokens there will be; None, with a finding, if the encoder refuses the prompt."""
        try:
            return text_tokens(inputs, seen.fitted, self._count)
        except DataError as error:
            seen.findings.append(Finding("error", "prompt", seen.record.origin, error.message))
            return None

    def _compare(self, seen: _Seen, inputs: ExampleInputs) -> None:
        """Sizes of a record's pictures among each other, and before and after geometry."""
        record, looks = seen.record, seen.looks
        target = seen.fitted(inputs.target)
        given = looks[id(record.target)].size
        if target[0] * target[1] > _ENLARGED * given[0] * given[1]:
            message = f"{_named(given)} pixels are enlarged to {_named(target)}"
            seen.findings.append(Finding("warning", "enlarged", record.target.origin, message))
        if len(record.references) == 1:
            other = looks[id(record.references[0])].size
            apart = (given[0] * other[1]) / (given[1] * other[0])
            if max(apart, 1 / apart) > _STRETCHED:
                message = f"its reference has {_named(other)} pixels, the target {_named(given)}: another aspect ratio"
                seen.findings.append(Finding("warning", "aspect ratio", record.origin, message))
        if inputs.loss_map is not None and record.loss_map is not None:
            mask = looks[id(record.loss_map)]
            if mask.blank:
                message = "the mask is black all over, so nothing could be learned"
                seen.findings.append(Finding("error", "mask", record.loss_map.origin, message))
            if seen.fitted(inputs.loss_map) != target:
                message = f"the mask has {_named(mask.size)} pixels, its target {_named(given)}: another aspect ratio"
                seen.findings.append(Finding("error", "size", record.loss_map.origin, message))

    def _find_duplicates(self, seen: _Seen) -> None:
        record, looks = seen.record, seen.looks
        if (target := looks.get(id(record.target))) is None:
            return
        first = self._targets.setdefault(target.digest, record.origin)
        if first != record.origin:
            seen.findings.append(Finding("warning", "duplicate", record.origin, f"the same target as {first}"))
        if record.references and all(id(reference) in looks for reference in record.references):
            question = (record.prompt, *(looks[id(reference)].digest for reference in record.references))
            other = self._questions.setdefault(question, record.origin)
            if other not in (record.origin, first):
                message = f"the same prompt and references as {other}, with another target"
                seen.findings.append(Finding("warning", "duplicate", record.origin, message))


def _at(survey: Survey, place: int) -> Record:
    count = len(survey.records)
    return survey.records[place] if place < count else survey.validation[place - count]


def _token_figures(
    checker: _Checker, survey: Survey, composition: Composition, train: TrainConfig
) -> TokenFigures | None:
    trained = [place for place in checker.whole if place < len(survey.records)]
    sizes = checker.sizes[: len(trained)]
    if not sizes:
        return None
    valid: list[int] = []
    padded: list[int] = []
    samples: list[int] = []
    problem = None
    try:
        order = make_order(sizes, train, lambda index: _at(survey, trained[index]).origin)
        epoch = 0
        while epoch < len(sizes) and len(valid) < _BATCHES:
            own = [sizes[index] for index in order.batch(len(valid)).indices]
            epoch += len(own)
            samples.append(len(own))
            valid.append(sum(size.tokens for size in own))
            padding = composition.classes["denoiser"].padding
            padded.append(padding([size.grids for size in own], [size.text for size in own]))
    except ConfigError as error:
        problem = error.message
    return TokenFigures(
        batches=len(valid),
        samples=_mean(samples),
        valid=_mean(valid),
        smallest=min(valid, default=0),
        largest=max(valid, default=0),
        padded=_mean(padded),
        largest_sample=max(size.tokens for size in sizes),
        exact=checker.exact,
        problem=problem,
    )


def _in_threads(function: Callable[[_A], _B], items: Iterable[_A]) -> Iterator[_B]:
    """`map` in threads, in order; only a few results are ahead of the one that is asked for."""
    workers = min(_MOST_THREADS, os.cpu_count() or 1)
    waiting: deque[Future[_B]] = deque()
    # Around all threads: each silences Pillow's warnings by itself, which is not safe where several do.
    with warnings.catch_warnings(), ThreadPoolExecutor(workers) as pool:
        warnings.simplefilter("ignore")
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _after(origin: str, error: DataError) -> str:
    """The message without the origin in front, which the table has a column for."""
    return error.message.removeprefix(f"{origin}: ")


def _named(size: Size) -> str:
    return f"{size[1]} x {size[0]}"


def _mean(values: Sequence[int]) -> float:
    return sum(values) / len(values) if values else 0.0
