"""The small world as a qframe data set: records drawn on demand, judged strictly."""

import functools
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import overload

from PIL import Image

from qframe.errors import ConfigError
from qframe.interfaces import Record, RecordSource
from qframe.pictures.picture import Picture
from qframe_shapes import metrics, tasks, world
from qframe_shapes.options import ShapesOptions
from qframe_shapes.tasks import Episode

_VALIDATION_SEED_OFFSET = 1_000_003


class EpisodeRecords(Sequence[Record]):
    """Episodes as records, each made when it is asked for, so that a long list costs nothing."""

    def __init__(self, name: str, count: int, episode: Callable[[int], Episode]) -> None:
        self.name = name
        self.episode = episode
        self._count = count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...

    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        if not -self._count <= index < self._count:
            raise IndexError(f"{self.name} holds {self._count} records, asked for number {index}")
        return self._record(index % self._count)

    def _record(self, index: int) -> Record:
        episode = self.episode(index)
        name = f"{self.name}/{index}"
        return Record(
            id=name,
            origin=name,
            prompt=episode.prompt,
            target=_picture(f"{name}, target", world.render(episode.target)),
            references=() if episode.source is None else (_picture(f"{name}, source", world.render(episode.source)),),
            loss_map=_picture(f"{name}, weight", episode.weight_picture()),
            group=_group(episode),
        )


class ShapesSource(RecordSource):
    """Scenes of coloured shapes; validation records are combinations that training records never show."""

    def __init__(self, options: ShapesOptions | None, path: Path | None) -> None:
        super().__init__(options, path)
        if path is not None:
            raise ConfigError(
                f"data.path is {path}, but the embedded data set 'shapes' is drawn, not read",
                "Leave out data.use to read your own pictures, or data.path to use the embedded ones.",
            )
        self._options = options if options is not None else ShapesOptions()

    def records(self) -> EpisodeRecords:
        """The training records; a base mixture of any length is made on demand."""
        options = self._options
        name = f"shapes-{options.mixture}-seed{options.seed}"
        return EpisodeRecords(name, options.count, functools.partial(_training_episode, options))

    def validation(self) -> EpisodeRecords:
        """Half new to the base model, half of the operations it knows; held-out combinations on the main canvas."""
        options = self._options
        name = f"shapes-{options.mixture}-validation-seed{options.seed}"
        return EpisodeRecords(name, options.validation, functools.partial(_validation_episode, options))

    def success(self, record: Record, picture: Image.Image) -> bool | None:
        """The strict verdict of ``metrics.judge``; None for a record that is not of this data set."""
        for records in (self.records(), self.validation()):
            name, _, index = record.id.rpartition("/")
            if name == records.name:
                episode = records.episode(int(index))
                return metrics.judge(picture, episode.target, episode.described).success
        return None


def _group(episode: Episode) -> str:
    """What reports sum over: the operation, and apart from it what is done in the unlearned colour."""
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
