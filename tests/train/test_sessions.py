"""What a run keeps of how it was started."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from qframe.interfaces import Record
from qframe.pictures.picture import Picture
from qframe.train.sessions import SESSIONS_FILE, describe_data, describe_machine, write_session

PICTURE = Picture("a picture", b"")


class Sizes:
    """Three examples: two of one shape, one with a reference."""

    shapes = (((4, 8), ()), ((4, 8), ()), ((2, 2), ((6, 2),)))
    texts = (5, 10, 30)

    def __len__(self) -> int:
        return len(self.shapes)

    def shape(self, index: int) -> tuple[tuple[int, int], tuple[tuple[int, int], ...]]:
        return self.shapes[index]

    def text_length(self, index: int) -> int:
        return self.texts[index]


def test_a_data_set_is_told_by_groups_shapes_in_pixels_and_lengths() -> None:
    records = [
        Record(id=str(index), origin="", prompt=prompt, target=PICTURE, group=group)
        for index, (prompt, group) in enumerate([("a", "x"), (" ", "x"), ("b", "y")])
    ]
    told = describe_data(records, Sizes(), compression=8)
    assert (told["records"], told["groups"], told["empty_captions"]) == (3, {"x": 2, "y": 1}, 1)
    assert told["text_tokens"] == [5, 15.0, 30]
    assert told["shapes"] == [
        {"target": [64, 32], "references": [], "count": 2},
        {"target": [16, 16], "references": [[16, 48]], "count": 1},
    ]


def test_sessions_are_told_one_after_another(tmp_path: Path) -> None:
    machine = describe_machine(torch.device("cpu"), processes=2)
    for resumed_from in (None, 7):
        write_session(tmp_path, {"resumed_from": resumed_from, "machine": machine})
    first, second = map(json.loads, (tmp_path / SESSIONS_FILE).read_text().splitlines())
    assert (first["resumed_from"], second["resumed_from"]) == (None, 7)
    assert first["started"] <= second["started"]
    assert second["machine"]["versions"]["torch"] == str(torch.__version__)
    assert (second["machine"]["device"], second["machine"]["processes"]) == ("cpu", 2)
