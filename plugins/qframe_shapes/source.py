"""The data source "shapes": the made-up world of coloured shapes as a data set of qframe.

The source draws a record when the record is accessed, and judges whether sampled pictures are right.
"""

import functools
import io
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from qframe.errors import ConfigError
from qframe.interfaces import LazyRecords, Record, RecordSource
from qframe.pictures.picture import Picture
from qframe_shapes import metrics, tasks, world
from qframe_shapes.options import ShapesOptions
from qframe_shapes.tasks import Episode

_VALIDATION_SEED_OFFSET = 1_000_003


class EpisodeRecords(LazyRecords):
    """A sequence of records, each of which is drawn when it is accessed, so that a long sequence costs nothing.

    Args:
        name: The first part of the ids of the records.
        count: Number of records.
        episode: Makes the episode with a given number, from 0 to `count` - 1.
    """

    def __init__(self, name: str, count: int, episode: Callable[[int], Episode]) -> None:
        self.name = name
        self.episode = episode
        self._count = count

    def __len__(self) -> int:
        return self._count

    def record(self, index: int) -> Record:
        """Draw the episode with this number."""
        episode = self.episode(index)
        name = f"{self.name}/{index}"
        return Record(
            id=name,
            origin=name,
            prompt=episode.prompt,
            target=_picture(f"{name}, target", world.render(episode.target)),
            references=() if episode.source is None else (_picture(f"{name}, source", world.render(episode.source)),),
            loss_map=_picture(f"{name}, weight", episode.loss_map()),
            group=_group(episode),
        )


class ShapesSource(RecordSource):
    """The data source of coloured shapes, whose validation records show combinations that no training record shows.

    Args:
        options: The options; None stands for the defaults.
        path: Must be None, because the pictures are drawn and not read.

    Raises:
        ConfigError: A path was given.
    """

    def __init__(self, options: ShapesOptions | None, path: Path | None) -> None:
        super().__init__(options, path)
        if path is not None:
            raise ConfigError(
                f"data.path is {path}, but the embedded data set 'shapes' is drawn, not read",
                "Leave out data.use to read your own pictures, or data.path to use the embedded ones.",
            )
        self._options = options if options is not None else ShapesOptions()

    def records(self) -> EpisodeRecords:
        """Return the training records of the mixture in the options; each record is drawn when it is accessed."""
        options = self._options
        name = f"shapes-{options.mixture}-seed{options.seed}"
        return EpisodeRecords(name, options.count, functools.partial(_training_episode, options))

    def validation(self) -> EpisodeRecords:
        """Return the validation records, which show combinations that training never shows, on the main canvas.

        Every other record asks for what the mixture teaches, the rest for operations that the base model knows.
        """
        options = self._options
        name = f"shapes-{options.mixture}-validation-seed{options.seed}"
        return EpisodeRecords(name, options.validation, functools.partial(_validation_episode, options))

    def success(self, record: Record, picture: Image.Image) -> bool | None:
        """Return whether a picture sampled for this record is right, as `metrics.judge` decides.

        Returns None if the record belongs to another data set.
        """
        for records in (self.records(), self.validation()):
            name, _, index = record.id.rpartition("/")
            if name == records.name:
                episode = records.episode(int(index))
                return metrics.judge(picture, episode.target, episode.described).success
        return None


def _group(episode: Episode) -> str:
    """The group of the record in reports: its operation; records in the unlearned colour have groups of their own."""
    purple = world.UNLEARNED_COLOUR in episode.prompt.split()
    return f"{episode.operation}, {world.UNLEARNED_COLOUR}" if purple else episode.operation


def _training_episode(options: ShapesOptions, index: int) -> Episode:
    if options.mixture == "base":
        return tasks.training_episode(options.seed, index)
    make = {
        "dot": tasks.lora_episode,
        "purple": tasks.colour_lora_episode,
        "purple-captions": tasks.caption_lora_episode,
    }[options.mixture]
    return make(options.seed, index, replay=options.replay)


def _validation_episode(options: ShapesOptions, index: int) -> Episode:
    rng = world.sample_rng(options.seed + _VALIDATION_SEED_OFFSET, index)
    new: dict[str, tasks.Maker] = {
        "dot": tasks.dot,
        "purple": tasks.recolour_purple,
        "purple-captions": tasks.caption_purple,
        "base": tasks.text_to_image,
    }
    captions = options.mixture == "purple-captions"
    known = [tasks.text_to_image] if captions else [tasks.EDIT_MAKERS[name] for name in tasks.EDITS]
    make = new[options.mixture] if index % 2 == 0 else known[index // 2 % len(known)]
    return tasks.accepted(make, rng, world.MAIN_CANVAS, "unseen")


def _picture(origin: str, image: Image.Image) -> Picture:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return Picture(origin, buffer.getvalue())
