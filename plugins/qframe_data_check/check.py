"""Reads a whole data set and finds every problem that training on it would meet.

Several threads open pictures at once, because decoding releases Python's global lock. A thread works on one record at
a time. Of a record's pictures only the sizes and the sha256 digests stay in memory.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import TypeVar

import attrs

from qframe.cache.lengths import estimated_tokens, latent_shape, text_tokens
from qframe.compose import Composition
from qframe.config.schema import TrainConfig
from qframe.errors import DataError
from qframe.interfaces import ExampleInputs, Record, RecordSource, Survey, TextInput
from qframe.pictures.geometry import Size
from qframe.pictures.picture import Picture, PixelInput
from qframe.pictures.pixels import open_grey, open_picture, picture_size
from qframe.progress import SILENT, Progress
from qframe.train.order import SampleSize, sample_size
from qframe.train.record_checks import about, about_prompt, same_proportions
from qframe_data_check.figures import token_figures
from qframe_data_check.report import SEVERITIES, Finding, Report, TokenFigures

_ENLARGED = 4.0
"""A picture is reported if geometry enlarges its area by more than this factor, which doubles each side."""
_STRETCHED = 1.05
"""A picture is reported if geometry changes its proportions by more than this factor."""
_LONG_CAPTION = 1024
"""A caption is reported if it has more tokens than this; where none are counted, four bytes stand for a token."""
_MOST_THREADS = 8

_A = TypeVar("_A")
_B = TypeVar("_B")


def check_data(
    source: RecordSource,
    composition: Composition,
    train: TrainConfig,
    *,
    decode: bool = True,
    progress: Progress = SILENT,
) -> Report:
    """Read every record of a data set, and report what would go wrong in training and how large the batches would be.

    The check loads no weights and writes no files.

    Args:
        source: The data set.
        composition: The components of the family to train; the recipe says which pictures and texts a record needs.
        train: Says how batches are made, and whether training sometimes drops a prompt (`caption_dropout`), for which
            the negative prompt must be encoded, too.
        decode: False reads only the headers of pictures, which is faster, but does not notice a picture that is cut
            short or a mask that is black all over.
        progress: Shows how many records have been read.
    """
    survey = source.survey()
    findings = [
        Finding("error", "data set", problem.origin, problem.message, problem.detail) for problem in survey.problems
    ]
    findings += [Finding("note", "data set", _name(source), note) for note in source.notes()]
    checker = _Checker(composition, train, decode, survey)
    with progress.stage("checking the data set", len(survey.records) + len(survey.validation)) as stage:
        for place, seen in enumerate(_in_threads(checker.look, chain(survey.records, survey.validation))):
            checker.judge(place, seen)
            stage.advance(1)
    findings += checker.findings
    return Report(
        survey=survey,
        usable=checker.usable,
        findings=sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)),
        shapes=checker.shapes.most_common(),
        tokens=checker.tokens(),
    )


@attrs.frozen(eq=False)
class _Look:
    """What is kept of a picture that could be read.

    Attributes:
        size: Height and width in pixels.
        digest: sha256 of the picture's bytes.
        blank: Whether the picture is a mask that is black all over.
    """

    size: Size
    digest: str
    blank: bool = False


@attrs.define(eq=False)
class _Seen:
    """What was read of one record, and what is wrong with it.

    Attributes:
        record: The record.
        inputs: What must be encoded of the record; None if the recipe refuses the record.
        looks: The pictures that could be read, by the `id()` of the picture object.
        findings: What is wrong with the record.
    """

    record: Record
    inputs: ExampleInputs | None = None
    looks: dict[int, _Look] = attrs.field(factory=dict)
    findings: list[Finding] = attrs.field(factory=list)

    def fitted(self, pixel: PixelInput) -> Size:
        """Return the size that a picture is resized to for training.

        Raises:
            DataError: A side would have no pixels.
        """
        return pixel.geometry.fit(*self.looks[id(pixel.picture)].size)


class _Checker:
    """Checks one record after another, in two steps.

    `look` reads a record; it runs in several threads, and changes no attribute. `judge` evaluates what was read; it
    takes the records in order, in one thread.

    Attributes:
        exact: Whether the encoder counts tokens; if it does not, text is counted in bytes.
        findings: What is wrong with the records that were judged.
        usable: Places of the records that can be trained on; see `Report.usable`.
        sizes: Token counts of the usable records, in the same order.
        shapes: How many targets have each size after geometry.
    """

    def __init__(self, composition: Composition, train: TrainConfig, decode: bool, survey: Survey) -> None:
        self._recipe = composition.recipe
        self._compression: int = composition.specs["codec"].compression
        self._composition, self._train, self._survey = composition, train, survey
        self._patch: int = composition.specs["denoiser"].patch
        counter = composition.token_counter()
        self.exact = counter is not None
        self._count = counter or estimated_tokens
        self._count_all = composition.token_counter(cut=False)
        self._token_bytes = composition.specs["encoder"].width * composition.dtype("encoder").itemsize
        self._decode = decode
        self._reported = {id(problem.picture) for problem in survey.problems if problem.picture is not None}
        self._targets: dict[str, str] = {}
        self._questions: dict[tuple[str, ...], str] = {}
        self.findings: list[Finding] = []
        self.usable: list[int] = []
        self.sizes: list[SampleSize] = []
        self.shapes: Counter[Size] = Counter()

    def look(self, record: Record) -> _Seen:
        """Read the pictures of a record, and ask the recipe what must be encoded of them."""
        seen = _Seen(record)
        for picture in (record.target, *record.references):
            self._look_at(picture, seen, mask=False)
        if record.loss_map is not None:
            self._look_at(record.loss_map, seen, mask=True)
        try:
            inputs = self._recipe.inputs(record)
            seen.inputs = inputs if self._train.caption_dropout > 0 else attrs.evolve(inputs, unconditional=None)
        except DataError as error:
            seen.findings.append(Finding("error", "record", record.origin, about(record.origin, error)))
        return seen

    def _look_at(self, picture: Picture, seen: _Seen, *, mask: bool) -> None:
        if id(picture) in self._reported:
            return
        try:
            if not self._decode:
                size, blank = picture_size(picture), False
            else:
                image = (open_grey if mask else open_picture)(picture)
                size, blank = (image.height, image.width), mask and image.getextrema()[1] == 0
            seen.looks[id(picture)] = _Look(size, picture.digest(), blank)
        except DataError as error:
            seen.findings.append(Finding("error", "picture", picture.origin, about(picture.origin, error)))

    def judge(self, place: int, seen: _Seen) -> None:
        """Add what is wrong with a record to `findings`, and the record to `usable` if nothing keeps it from use."""
        record = seen.record
        pictures = [record.target, *record.references, *([record.loss_map] if record.loss_map else [])]
        inputs = seen.inputs
        readable = all(id(picture) in seen.looks for picture in pictures)
        if inputs is not None and readable and self._fits(seen, inputs):
            self._compare(seen, inputs)
            text = self._text(seen, inputs)
            wrong = record.id in self._survey.unusable or any(finding.severity == "error" for finding in seen.findings)
            if text is not None and not wrong:
                shape = latent_shape(inputs, seen.fitted, self._compression)
                self.usable.append(place)
                self.sizes.append(sample_size(shape, text, self._patch))
                self.shapes[seen.fitted(inputs.target)] += 1
        self._find_duplicates(seen)
        self.findings += seen.findings

    def tokens(self) -> TokenFigures | None:
        """Token figures of the usable training records, once all records have been judged."""
        trained = [place for place in self.usable if place < len(self._survey.records)]

        def name(index: int) -> str:
            return self._survey.records[trained[index]].origin

        return token_figures(self.sizes[: len(trained)], self._composition, self._train, name, exact=self.exact)

    def _fits(self, seen: _Seen, inputs: ExampleInputs) -> bool:
        """Whether every picture has a size after geometry; a finding is added for each picture that has none."""
        before = len(seen.findings)
        for pixel in (inputs.target, *inputs.references, *([inputs.loss_map] if inputs.loss_map else [])):
            try:
                seen.fitted(pixel)
            except DataError as error:
                seen.findings.append(Finding("error", "size", pixel.picture.origin, error.message))
        return len(seen.findings) == before

    def _text(self, seen: _Seen, inputs: ExampleInputs) -> int | None:
        """The number of text tokens; None if the encoder refuses the prompt, which adds a finding."""
        try:
            tokens = text_tokens(inputs, seen.fitted, self._count)
        except DataError as error:
            message = about_prompt(inputs.conditioning.prompt, error)
            seen.findings.append(Finding("error", "prompt", seen.record.origin, message))
            return None
        self._judge_caption(seen, inputs.conditioning)
        return tokens

    def _judge_caption(self, seen: _Seen, text: TextInput) -> None:
        """Report a caption that is cut off, that costs much, or that was decoded wrongly before."""
        origin, sizes = seen.record.origin, [seen.fitted(picture) for picture in text.pictures]
        if "\N{REPLACEMENT CHARACTER}" in text.prompt:
            message = "the caption holds the sign that stands for characters which could not be decoded"
            seen.findings.append(Finding("warning", "prompt", origin, message))
        kept = self._count(text.prompt, sizes)
        if self._count_all is not None and (full := self._count_all(text.prompt, sizes)) > kept:
            message = "the caption is longer than the encoder takes, and its end is cut off"
            seen.findings.append(Finding("warning", "prompt", origin, message, f"{kept} of {full} tokens are used"))
        own = kept - self._count(" ", sizes) if self.exact else kept // 4
        if own > _LONG_CAPTION:
            size = kept * self._token_bytes / 2**20 if self.exact else own * self._token_bytes / 2**20
            message = f"the caption has over {_LONG_CAPTION} tokens, which cost memory and time in every step"
            seen.findings.append(
                Finding("warning", "prompt", origin, message, f"{own} tokens, {size:.1f} MiB in the cache")
            )

    def _compare(self, seen: _Seen, inputs: ExampleInputs) -> None:
        """Compare the sizes of a record's pictures with one another, and the target's before and after geometry."""
        record, looks = seen.record, seen.looks
        target = seen.fitted(inputs.target)
        given = looks[id(record.target)].size
        if target[0] * target[1] > _ENLARGED * given[0] * given[1]:
            message, detail = "is enlarged to over 4 times its area", f"{_named(given)} to {_named(target)} pixels"
            seen.findings.append(Finding("warning", "enlarged", record.target.origin, message, detail))
        for pixel in (inputs.target, *inputs.references):
            self._judge_rounding(seen, pixel)
        if len(record.references) == 1:
            other = looks[id(record.references[0])].size
            if not same_proportions(given, other):
                message = "its reference has other proportions than the target"
                detail = f"{_named(other)} pixels, the target {_named(given)}"
                seen.findings.append(Finding("warning", "aspect ratio", record.origin, message, detail))
        if inputs.loss_map is not None and record.loss_map is not None:
            mask = looks[id(record.loss_map)]
            if mask.blank:
                message = "the mask is black all over, so nothing could be learned"
                seen.findings.append(Finding("error", "mask", record.loss_map.origin, message))
            detail = f"{_named(mask.size)} pixels, its target {_named(given)}"
            if not same_proportions(mask.size, given):
                message = "the mask has other proportions than its target"
                seen.findings.append(Finding("error", "size", record.loss_map.origin, message, detail))
            elif seen.fitted(inputs.loss_map) != target:
                message = "the mask has another size than its target, and is resized to it"
                seen.findings.append(Finding("note", "size", record.loss_map.origin, message, detail))

    def _judge_rounding(self, seen: _Seen, pixel: PixelInput) -> None:
        """Report a picture whose proportions change much when its sides are rounded."""
        (height, width), (new_height, new_width) = seen.looks[id(pixel.picture)].size, seen.fitted(pixel)
        apart = (new_height * width) / (new_width * height)
        apart = max(apart, 1 / apart)
        if apart > _STRETCHED:
            message = f"is stretched by over 5 %, as its sides are rounded to multiples of {pixel.geometry.multiple}"
            detail = f"{width} x {height} to {new_width} x {new_height} pixels, {apart - 1:.0%}"
            seen.findings.append(Finding("warning", "stretched", pixel.picture.origin, message, detail))

    def _find_duplicates(self, seen: _Seen) -> None:
        """Report a record whose target, or whose prompt with its references, is also that of an earlier record."""
        record, looks = seen.record, seen.looks
        if (target := looks.get(id(record.target))) is None:
            return
        first = self._targets.setdefault(target.digest, record.origin)
        if first != record.origin:
            message = "has the same target as an earlier record"
            seen.findings.append(Finding("warning", "duplicate", record.origin, message, first))
        if record.references and all(id(reference) in looks for reference in record.references):
            question = (record.prompt, *(looks[id(reference)].digest for reference in record.references))
            other = self._questions.setdefault(question, record.origin)
            if other not in (record.origin, first):
                message = "has the same prompt and references as an earlier record, and another target"
                seen.findings.append(Finding("warning", "duplicate", record.origin, message, other))


def _in_threads(function: Callable[[_A], _B], items: Iterable[_A]) -> Iterator[_B]:
    """Call a function on every item in threads, and yield the results in order.

    Only a few items are taken ahead of the result that is asked for, so that memory stays small.
    """
    workers = min(_MOST_THREADS, os.cpu_count() or 1)
    waiting: deque[Future[_B]] = deque()
    # Opening a picture silences Pillow's warnings, which is not thread-safe; here it is done once for all threads.
    with warnings.catch_warnings(), ThreadPoolExecutor(workers) as pool:
        warnings.simplefilter("ignore")
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _name(source: RecordSource) -> str:
    """The name of a data set in the table: its path, or what the source is called."""
    return str(source.path) if source.path is not None else type(source).__name__


def _named(size: Size) -> str:
    return f"{size[1]} x {size[0]}"
