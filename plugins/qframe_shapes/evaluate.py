"""Measure how often a model's pictures of the small world are right, by operation and by kind of unseen scene.

The model is given as a function from requests to pictures. Therefore the pipelines of qframe, of diffusers and of any
other program can be measured in the same way.
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
    """Samples that share one success rate.

    Attributes:
        operation: What is asked for, such as `recolour`.
        kind: In which respect training never showed the scenes; one of `KINDS`.
        situation: For painting only: where figures are before painting; one of `tasks.PAINT_SITUATIONS`. Else "".
        strength: For painting only: the strength of the sampling run, in (0, 1].
    """

    operation: str
    kind: str
    situation: str = ""
    strength: float = 1.0

    @property
    def row(self) -> str:
        """The name of the row that the group has in the table."""
        if self.operation != "paint":
            return self.operation
        place = {"empty": "an empty cell", "over": "over an object", "elsewhere": "another object elsewhere"}
        return f"paint, {place[self.situation]}, strength {self.strength:g}"


@attrs.frozen(eq=False)
class SampleRequest:
    """One picture that the model is asked to make.

    Attributes:
        operation: What is asked for, such as `recolour`.
        prompt: The caption or instruction.
        width: Width of the wanted picture in pixels.
        height: Height of the wanted picture in pixels.
        seed: Seed of the initial noise.
        image: The picture to edit or to paint into, RGB, of the wanted size; None for text to image.
        mask: For painting only: a grey picture of the wanted size, white where to repaint; else None.
        strength: For painting only: the strength of the sampling run, in (0, 1].
        negative_prompt: What to steer away from; it has an effect only if the model uses guidance.
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
"""A model under test: a function from requests of one operation and one size to their pictures, in the same order."""


@attrs.frozen(eq=False)
class Result:
    """One sampled picture and the verdict on it.

    Attributes:
        group: The group that the sample belongs to.
        episode: What was asked for, and the scene that would be right.
        picture: The picture that the model made.
        verdict: Whether the picture is right, and which criteria it fails.
    """

    group: Group
    episode: Episode
    picture: Image.Image
    verdict: Verdict


def standard_groups(operations: Sequence[str] = ("text-to-image", *tasks.EDITS, "paint")) -> tuple[Group, ...]:
    """Return the groups of the model card: every operation with every kind of scene that training never showed.

    Painting has six groups per kind: three situations with two strengths.
    """
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
"""What the base model never saw and must fail at: an operation (the dot), and recolouring to a colour (purple)."""


def episodes(group: Group, count: int, seed: int) -> list[Episode]:
    """Draw `count` episodes (tasks with their right results) of a group; the same arguments give the same episodes."""
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
    """Let a model sample the pictures of one group, and judge whether each of them is right.

    Args:
        sample: The model under test.
        group: The group whose episodes the model is asked for.
        count: Number of pictures.
        seed: Decides the episodes and the noise.
        batch_size: The largest number of requests in one call of `sample`.
    """
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
    """All results of an evaluation, with the methods that make the table and the contact sheets from them.

    Attributes:
        results: One result for each sampled picture.
    """

    results: tuple[Result, ...]

    def rate(self, group: Group) -> float:
        """Return the success rate of one group, from 0 to 1.

        Raises:
            ValueError: The evaluation did not include the group.
        """
        verdicts = [result.verdict.success for result in self.results if result.group == group]
        if not verdicts:
            raise ValueError(f"no results of {group}")
        return sum(verdicts) / len(verdicts)

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups of the evaluation, in the order in which they were run."""
        return tuple(dict.fromkeys(result.group for result in self.results))

    def to_json(self) -> list[dict[str, object]]:
        """Return one object per group, which JSON can hold.

        Each object has the group's operation and kind, how many samples and how many successes there were, and how many
        samples failed each criterion.
        """
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
        """Return the success rates in percent as a Markdown table with a row per operation and a column per kind."""
        lines = [f"| operation | {' | '.join(KINDS)} |", f"|---|{'---|' * len(KINDS)}"]
        for row in dict.fromkeys(group.row for group in self.groups):
            by_kind = {group.kind: group for group in self.groups if group.row == row}
            cells = [f"{100 * self.rate(by_kind[kind]):.0f} %" if kind in by_kind else "" for kind in KINDS]
            lines.append(f"| {row} | {' | '.join(cells)} |")
        return "\n".join(lines)

    def sheets(self, rows: int = 12) -> Iterator[tuple[str, Image.Image]]:
        """Draw one contact sheet per group, with the failures first.

        Args:
            rows: The largest number of samples on one sheet.

        Yields:
            The file name and the picture of each sheet.
        """
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
        """Write `results.json`, `table.md` and the contact sheets into a folder, which is made if it does not exist."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results.json").write_text(json.dumps(self.to_json(), indent=2) + "\n", encoding="utf-8")
        (folder / "table.md").write_text(self.table() + "\n", encoding="utf-8")
        for name, sheet in self.sheets():
            sheet.save(folder / name)


def evaluate(
    sample: Sample, *, count: int = 100, seed: int = 0, groups: Sequence[Group] | None = None, batch_size: int = 32
) -> Report:
    """Measure the success rates of a model.

    Args:
        sample: The model under test.
        count: Number of pictures per group.
        seed: Decides the episodes and the noise.
        groups: The groups to measure; None stands for `standard_groups()`.
        batch_size: The largest number of requests in one call of `sample`.
    """
    results: list[Result] = []
    for group in standard_groups() if groups is None else groups:
        done = run_group(sample, group, count=count, seed=seed, batch_size=batch_size)
        rate = sum(result.verdict.success for result in done) / len(done)
        logger.info("%s, %s: %.0f %% of %d", group.row, group.kind, 100 * rate, len(done))
        results += done
    return Report(tuple(results))
