import io
from pathlib import Path

import pytest
from PIL import Image

from qframe.errors import ConfigError
from qframe.interfaces import Record
from qframe.pictures.picture import Picture
from qframe_shapes.options import ShapesOptions
from qframe_shapes.source import ShapesSource


def opened(picture: Picture) -> Image.Image:
    return Image.open(io.BytesIO(picture.read()))


def edit(record: Record) -> tuple[str, ...]:
    """What is shown and what is wanted. Either alone may occur in training: an edit's answer is a scene of its own."""
    return tuple(picture.digest() for picture in (*record.references, record.target))


def test_records_are_the_same_every_time_and_never_shown_in_validation() -> None:
    source, again = (ShapesSource(ShapesOptions(), None) for _ in range(2))
    edits = [edit(record) for record in source.records()]
    assert edits == [edit(record) for record in again.records()]
    assert len(edits) == ShapesOptions().count
    assert not set(edits) & {edit(record) for record in source.validation()}


@pytest.mark.parametrize("mixture", ["dot", "purple", "base"])
def test_the_wanted_picture_is_a_success_and_the_source_is_not(mixture: str) -> None:
    source = ShapesSource(ShapesOptions(mixture=mixture, count=20, validation=10), None)
    for record in [*source.records(), *source.validation()]:
        assert source.success(record, opened(record.target)) is True
        assert all(source.success(record, opened(reference)) is False for reference in record.references)


def test_a_replay_share_of_one_teaches_nothing_new() -> None:
    records = ShapesSource(ShapesOptions(replay=1.0, count=30), None).records()
    assert all(record.group != "dot" for record in records)


def test_weights_are_8_bit_pictures_of_the_targets_size() -> None:
    for record in ShapesSource(ShapesOptions(mixture="base", count=20), None).records():
        assert record.loss_map is not None
        weight = opened(record.loss_map)
        assert (weight.mode, weight.size) == ("L", opened(record.target).size)


def test_a_path_is_refused() -> None:
    with pytest.raises(ConfigError, match="drawn, not read"):
        ShapesSource(None, Path("pictures"))


def test_a_long_list_costs_nothing_until_it_is_read() -> None:
    records = ShapesSource(ShapesOptions(mixture="base", count=10**9), None).records()
    assert records[-1].id.endswith("/999999999")
    assert [record.id for record in records[3:5]] == [records[3].id, records[4].id]
