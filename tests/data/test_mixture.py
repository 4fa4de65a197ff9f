"""Several data sets at once: weights, options of each, names that tell them apart, and what is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import qframe
from qframe.config import dump_config
from qframe.data.choose import open_source
from qframe.data.mixture import MixtureSource
from qframe.errors import ConfigError, DataError
from qframe.interfaces import RecordSource
from qframe.plugins.registry import load_registry
from qframe.train.records import split_records
from tests.data.test_folder import write


def config(sets: list[dict[str, Any]], **more: Any) -> Any:
    return qframe.load_config(family="qwen-image", values={"data": {"sets": sets, **more}})


def mixture(sets: list[dict[str, Any]], **more: Any) -> RecordSource:
    return open_source(config(sets, **more), load_registry())


@pytest.fixture
def two(tmp_path: Path) -> tuple[str, str]:
    """A folder of two records, and a table of six."""
    write(tmp_path, *(f"faces/{n}.{suffix}" for n in "ab" for suffix in ("png", "txt")))
    write(tmp_path, *(f"style/{n}.png" for n in range(6)))
    rows = "".join(f'{{"image": "{n}.png", "caption": "number {n}"}}\n' for n in range(6))
    (tmp_path / "style" / "rows.jsonl").write_text(rows)
    return str(tmp_path / "faces"), str(tmp_path / "style" / "rows.jsonl")


def test_records_of_all_sets_come_with_the_options_of_their_own(two: tuple[str, str]) -> None:
    faces, style = two
    source = mixture(
        [{"path": faces, "options": {"trigger": "sks"}}, {"path": style, "options": {"prefix": "in ink:"}}]
    )
    records = list(source.records())
    assert [record.id for record in records][:3] == ["faces/a", "faces/b", "rows.jsonl/rows-1"]
    assert [record.prompt for record in records][1:3] == ["sks, caption faces/b.txt", "in ink: number 0"]
    assert records[0].origin == "faces/a.png"
    assert records[0].target.origin == "faces/a.png"
    assert source.records()[0].target is records[0].target  # its digest is computed once
    assert len({record.id for record in records}) == 8


def test_weights_are_the_parts_of_an_epoch(two: tuple[str, str]) -> None:
    faces, style = two
    source = mixture([{"path": faces, "weight": 3}, {"path": style, "weight": 1.0}])
    records = source.records()
    visits = Counter(record.original or record.id for record in records)
    assert [visits["faces/a"], visits["faces/b"]] == [9, 9]
    assert sum(visits.values()) == 24
    assert len({record.id for record in records}) == 24
    assert [record.id for record in records[:2]] == ["faces/a", "faces/b"]
    assert source.notes() == [
        "faces: 2 records, visited 18 times, 75% of an epoch",
        "rows.jsonl: 6 records, visited 6 times, 25% of an epoch",
    ]


def test_weights_count_with_repeats_inside(two: tuple[str, str]) -> None:
    faces, style = two
    sets = [{"path": faces, "weight": 1, "options": {"repeats": 3}}, {"path": style, "weight": 1}]
    records = mixture(sets).records()
    assert Counter(record.id.partition("/")[0] for record in records) == {"faces": 6, "rows.jsonl": 6}


def test_repeats_are_never_on_both_sides_of_a_hold_out(two: tuple[str, str]) -> None:
    faces, style = two
    settings = config([{"path": faces, "weight": 9}, {"path": style, "weight": 1}], holdout=0.4)
    trained, held = split_records(open_source(settings, load_registry()), settings)
    assert held
    assert {record.original or record.id for record in trained}.isdisjoint(record.id for record in held)
    assert not any(record.original for record in held)


def test_problems_of_all_sets_are_told_with_their_set(two: tuple[str, str]) -> None:
    faces, style = two
    Path(faces, "c.png").write_text("no caption")
    source = mixture([{"path": faces}, {"path": style, "options": {"columns": {"target": "picture"}}}])
    survey = source.survey()
    assert any(problem.origin == "faces/c.png" for problem in survey.problems)
    assert any(problem.origin.startswith("rows.jsonl/") for problem in survey.problems)
    assert "faces/c" in survey.unusable
    with pytest.raises(DataError, match="there is no caption"):
        source.records()


def test_validation_records_of_each_set_are_kept(two: tuple[str, str]) -> None:
    faces, style = two
    source = mixture([{"path": faces, "options": {"validation": 1}}, {"path": style, "options": {"validation": 2}}])
    kept = [record.id for record in source.validation()]
    assert [id_.partition("/")[0] for id_ in kept] == ["faces", "rows.jsonl", "rows.jsonl"]
    assert len(source.records()) == 5


def test_the_embedded_set_mixes_with_ones_own_and_judges_its_own(two: tuple[str, str]) -> None:
    options = {"count": 3, "validation": 1, "mixture": "purple-captions"}
    source = mixture([{"path": two[0]}, {"use": "shapes", "options": options}])
    assert isinstance(source, MixtureSource)
    record = source.records()[3]
    assert record.id.startswith("shapes/shapes-")
    from qframe.pictures.pixels import open_picture

    assert source.success(record, open_picture(record.target)) is True
    assert source.success(source.records()[0], open_picture(record.target)) is None


def test_sets_of_the_same_name_are_numbered(tmp_path: Path) -> None:
    for parent in ("x", "y"):
        write(tmp_path, f"{parent}/cats/a.png", f"{parent}/cats/a.txt")
    sets = [{"path": str(tmp_path / parent / "cats")} for parent in ("x", "y")]
    assert [record.id for record in mixture(sets).records()] == ["cats/a", "cats-2/a"]


def test_all_mistakes_in_the_sets_are_told_at_once(two: tuple[str, str]) -> None:
    sets = [
        {"path": two[0], "weight": 1, "options": {"repeat": 2, "template": "{x}"}},
        {"path": two[1], "wait": 2},
        {"weight": 3},
        {"use": "folders", "path": two[0]},
    ]
    with pytest.raises(ConfigError) as caught:
        config(sets)
    for part in (
        "data.sets.0.options.repeat (argument): unknown key; did you mean data.sets.0.options.repeats?",
        "data.sets.1.wait (argument): unknown key; did you mean data.sets.1.weight?",
        "data.sets.2 (argument): has neither path nor use",
        "data.sets.3.use (argument): no source 'folders'",
        "some sets have a weight and some have none",
    ):
        assert part in caught.value.message, caught.value.message


@pytest.mark.parametrize("weight", [0, -1, 1e300])
def test_weights_are_bounded(two: tuple[str, str], weight: float) -> None:
    with pytest.raises(ConfigError, match=r"data.sets.0.weight .*expected a value"):
        config([{"path": two[0], "weight": weight}])


def test_one_record_against_a_million_is_refused_before_it_is_made(two: tuple[str, str]) -> None:
    sets = [{"path": two[0], "weight": 1e6}, {"use": "shapes", "weight": 1e-3, "options": {"count": 400}}]
    with pytest.raises(DataError, match="Lower repeats or weights"):
        mixture(sets).records()


def test_a_path_of_a_higher_layer_takes_the_place_of_sets_and_both_in_one_are_refused(
    two: tuple[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "run.toml"
    file.write_text(f'family = "qwen-image"\n[[data.sets]]\npath = "{two[0]}"\n')
    loaded = qframe.load_config(file)
    assert (loaded.data.use, loaded.data.sets[0].use) == (None, "folder")
    over = qframe.load_config(file, values={"data": {"path": two[1]}})
    assert (over.data.sets, over.data.use) == ((), "jsonl")
    file.write_text(f'family = "qwen-image"\n[data]\npath = "{two[1]}"\n[[data.sets]]\npath = "{two[0]}"\n')
    with pytest.raises(ConfigError, match="given together with data"):
        qframe.load_config(file)


def test_a_configuration_with_sets_is_written_and_read_again(two: tuple[str, str], tmp_path: Path) -> None:
    options = {"template": ["a {caption}"]}
    first = config([{"path": two[0], "weight": 2, "options": options}, {"path": two[1], "weight": 1}])
    (tmp_path / "run.toml").write_text(dump_config(first))
    assert qframe.load_config(tmp_path / "run.toml") == first
