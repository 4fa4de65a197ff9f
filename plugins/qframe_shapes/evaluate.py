"""Success rates of a model in the small world, by operation and by what the model has never seen.

The model is a callable, so that qframe's pipelines, diffusers' and anybody's can be measured alike.
"""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import attrs
from PIL import Image

from qframe.pictures.contact_sheet import Row, contact_sheet
from qframe_shapes import tasks, world
from qframe_shapes.metrics import Verdict, judge
from qframe_shapes.tasks import Episode

logger = logging.getLogger(__name__)

UNSEEN, PAIR, CANVASES = "unseen", "held-out pair", "other canvases"
KINDS = (UNSEEN, PAIR, CANVASES)


@attrs.frozen
class Group:
    """What is measured together. kind: one of ``KINDS``. situation, strength: painting only."""

    operation: str
    kind: str
    situation: str = ""
    strength: float = 1.0

    @property
    def row(self) -> str:
        """The group's line in the table."""
        if self.operation != "paint":
            return self.operation
        place = {"empty": "an empty cell", "over": "over an object", "elsewhere": "another object elsewhere"}
        return f"paint, {place[self.situation]}, strength {self.strength:g}"


@attrs.frozen(eq=False)
class SampleRequest:
    """One picture wanted. seed: of its initial noise. Pictures are RGB of the canvas's size; mask white = repaint.

    negative_prompt: has an effect under guidance only.
    """

    operation: str
    prompt: str
    width: int
    height: int
    seed: int
    image: Image.Image | None = None
    mask: Image.Image | None = None
    strength: float = 1.0
    negative_prompt: str | None = None


Sample = Callable[[Sequence[SampleRequest]], Sequence[Image.Image]]
"""Requests of one operation and one canvas -> their pictures in the same order."""


@attrs.frozen(eq=False)
class Result:
    """One sampled picture and what became of it."""

    group: Group
    episode: Episode
    picture: Image.Image
    verdict: Verdict


def standard_groups(operations: Sequence[str] = ("text-to-image", *tasks.EDITS, "paint")) -> tuple[Group, ...]:
    """The groups of the model card: every operation times every kind; painting in three situations, two strengths."""
    groups = []
    for operation in operations:
        for kind in KINDS:
            if operation == "paint":
                groups += [
                    Group(operation, kind, situation, strength)
                    for strength in (1.0, 0.85)
                    for situation in tasks.PAINT_SITUATIONS
                ]
            else:
                groups.append(Group(operation, kind))
    return tuple(groups)


UNLEARNED_GROUPS = (Group(tasks.UNLEARNED_OPERATION, UNSEEN), Group(world.UNLEARNED_COLOUR, UNSEEN))
"""What the base model was never shown, and must fail at: an operation, and recolouring to a colour."""


def episodes(group: Group, count: int, seed: int) -> list[Episode]:
    """The group's episodes: a pure function of the arguments."""
    makers: dict[str, tasks.Maker] = {
        **tasks.EDIT_MAKERS,
        "text-to-image": tasks.text_to_image,
        "dot": tasks.dot,
        "purple": tasks.recolour_purple,
        "paint": lambda rng, canvas: tasks.paint(rng, canvas, group.situation),
    }
    canvases: Sequence[world.Canvas] = (world.MAIN_CANVAS,)
    if group.kind == CANVASES:
        canvases = tasks.TWO_CELL_CANVASES if group.situation == "elsewhere" else world.OTHER_CANVASES
    wanted: tasks.Split = "pair" if group.kind == PAIR else "unseen"
    offset = int(world.unit_hash(f"{group.operation} {group.kind} {group.situation}") * 2**31)
    return [
        tasks.accepted(makers[group.operation], world.sample_rng(seed + offset, i), canvases[i % len(canvases)], wanted)
        for i in range(count)
    ]


def run_group(sample: Sample, group: Group, *, count: int, seed: int, batch_size: int = 32) -> list[Result]:
    """Sample and judge one group."""
    wanted = episodes(group, count, seed)
    results: dict[int, Result] = {}
    for canvas in dict.fromkeys(episode.target.canvas for episode in wanted):
        indices = [i for i, episode in enumerate(wanted) if episode.target.canvas == canvas]
        for start in range(0, len(indices), batch_size):
            chunk = indices[start : start + batch_size]
            pictures = sample([_request(wanted[i], group, seed + i) for i in chunk])
            for i, picture in zip(chunk, pictures, strict=True):
                verdict = judge(picture, wanted[i].target, wanted[i].described)
                results[i] = Result(group, wanted[i], picture, verdict)
    return [results[i] for i in range(count)]


def _request(episode: Episode, group: Group, seed: int) -> SampleRequest:
    canvas = episode.target.canvas
    return SampleRequest(
        operation=episode.operation,
        prompt=episode.prompt,
        width=canvas.width,
        height=canvas.height,
        seed=seed,
        image=None if episode.source is None else world.render(episode.source),
        mask=None if episode.mask is None else episode.mask_picture(),
        strength=group.strength,
    )


@attrs.frozen(eq=False)
class Report:
    """All results of an evaluation."""

    results: tuple[Result, ...]

    def rate(self, group: Group) -> float:
        """Share of successes of one group, from 0 to 1; ValueError if it was not run."""
        verdicts = [result.verdict.success for result in self.results if result.group == group]
        if not verdicts:
            raise ValueError(f"no results of {group}")
        return sum(verdicts) / len(verdicts)

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups that were run, in order."""
        return tuple(dict.fromkeys(result.group for result in self.results))

    def to_json(self) -> list[dict[str, object]]:
        """One object per group: what, how many, how many right, and how often each criterion failed."""
        rows: list[dict[str, object]] = []
        for group in self.groups:
            results = [result for result in self.results if result.group == group]
            failures = Counter(name for result in results for name in result.verdict.failed)
            rows.append(
                {
                    "operation": group.row,
                    "kind": group.kind,
                    "count": len(results),
                    "successes": sum(result.verdict.success for result in results),
                    "failures": dict(failures),
                }
            )
        return rows

    def table(self) -> str:
        """Success rates in percent as a Markdown table: a row per operation, a column per kind."""
        lines = [f"| operation | {' | '.join(KINDS)} |", f"|---|{'---|' * len(KINDS)}"]
        for row in dict.fromkeys(group.row for group in self.groups):
            by_kind = {group.kind: group for group in self.groups if group.row == row}
            cells = [f"{100 * self.rate(by_kind[kind]):.0f} %" if kind in by_kind else "" for kind in KINDS]
            lines.append(f"| {row} | {' | '.join(cells)} |")
        return "\n".join(lines)

    def sheets(self, rows: int = 12) -> Iterator[tuple[str, Image.Image]]:
        """One contact sheet per group, failures first: (file name, picture)."""
        for group in self.groups:
            results = sorted(
                (result for result in self.results if result.group == group), key=lambda result: result.verdict.success
            )
            lines = [
                Row(
                    result.episode.prompt,
                    [
                        None if result.episode.source is None else world.render(result.episode.source),
                        world.render(result.episode.target),
                        result.picture,
                    ],
                    result.verdict.success,
                    "" if result.verdict.success else str(result.verdict),
                )
                for result in results[:rows]
            ]
            title = f"{group.row}, {group.kind}: {100 * self.rate(group):.0f} % of {len(results)}, failures first"
            name = f"{group.row}-{group.kind}".replace(",", "").replace(" ", "-")
            yield f"{name}.png", contact_sheet(lines, ("source", "wanted", "result"), title=title)

    def save(self, folder: Path) -> None:
        """Write results.json, table.md and the contact sheets."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results.json").write_text(json.dumps(self.to_json(), indent=2) + "\n", encoding="utf-8")
        (folder / "table.md").write_text(self.table() + "\n", encoding="utf-8")
        for name, sheet in self.sheets():
            sheet.save(folder / name)


def evaluate(
    sample: Sample, *, count: int = 100, seed: int = 0, groups: Sequence[Group] | None = None, batch_size: int = 32
) -> Report:
    """Run groups (by default ``standard_groups()``) of ``count`` samples each through a model."""
    results: list[Result] = []
    for group in standard_groups() if groups is None else groups:
        done = run_group(sample, group, count=count, seed=seed, batch_size=batch_size)
        rate = sum(result.verdict.success for result in done) / len(done)
        logger.info("%s, %s: %.0f %% of %d", group.row, group.kind, 100 * rate, len(done))
        results += done
    return Report(tuple(results))
