"""A folder of pictures: what belongs together by its name, and every mistake told at once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qframe.data.folder import FolderSource
from qframe.data.options import FolderOptions
from qframe.errors import DataError
from qframe.interfaces import Record


def write(root: Path, *names: str) -> None:
    """Files by name; captions say their own name."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"caption {name}\n", encoding="utf-8")


def read(root: Path, **options: object) -> list[Record]:
    return list(FolderSource(FolderOptions(**options), root).records())  # type: ignore[arg-type]


def problems(root: Path, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        read(root, **options)
    return caught.value.message


def references(record: Record) -> list[str]:
    return [picture.origin for picture in record.references]


def test_a_target_is_a_picture_with_a_caption_beside_it(tmp_path: Path) -> None:
    write(tmp_path, "b.png", "b.txt", "a.jpg", "a.txt", "inner/c.WEBP", "inner/c.txt")
    records = read(tmp_path)
    assert [record.id for record in records] == ["a", "b", "inner/c"]
    assert [record.target.origin for record in records] == ["a.jpg", "b.png", "inner/c.WEBP"]
    assert records[2].prompt == "caption inner/c.txt"
    assert records[0].target.source == tmp_path / "a.jpg"


def test_references_lie_beside_the_target(tmp_path: Path) -> None:
    write(tmp_path, "a.png", "a.txt", "a_ref.png", "b.png", "b.txt", "b_ref2.png", "b_ref1.jpg", "b_ref10.png")
    for number in range(3, 10):
        write(tmp_path, f"b_ref{number}.png")
    one, many = read(tmp_path)
    assert references(one) == ["a_ref.png"]
    assert references(many)[:3] == ["b_ref1.jpg", "b_ref2.png", "b_ref3.png"]
    assert references(many)[9] == "b_ref10.png"


def test_a_mask_is_a_weight_by_another_name(tmp_path: Path) -> None:
    write(tmp_path, "a.png", "a.txt", "a_mask.png", "b.png", "b.txt", "mask/b.png")
    weights = [record.loss_map for record in read(tmp_path)]
    assert [weight and weight.origin for weight in weights] == ["a_mask.png", "mask/b.png"]
    write(tmp_path, "a_weight.png")
    assert "a second loss map (after a_mask.png)" in problems(tmp_path)


def test_or_in_folders_of_their_own(tmp_path: Path) -> None:
    write(tmp_path, "a.png", "a.txt", "in/b.png", "in/b.txt", "control/a.jpg", "control1/in/b.png", "control2/in/b.png")
    one, two = read(tmp_path)
    assert references(one) == ["control/a.jpg"]
    assert references(two) == ["control1/in/b.png", "control2/in/b.png"]


def test_weights_lie_beside_the_target_or_in_a_folder(tmp_path: Path) -> None:
    write(tmp_path, "a.png", "a.txt", "a_weight.png", "b.png", "b.txt", "weight/b.png", "c.png", "c.txt")
    weights = [record.loss_map and record.loss_map.origin for record in read(tmp_path)]
    assert weights == ["a_weight.png", "weight/b.png", None]


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    write(tmp_path, "a.png", "a.txt", "README.txt", "license.txt", "notes.md", "a.json", ".hidden.png", ".git/x.png")
    assert [record.id for record in read(tmp_path)] == ["a"]


def test_a_prompt_for_all_serves_pictures_without_captions(tmp_path: Path) -> None:
    write(tmp_path, "a.png", "b.png", "b.txt")
    assert [record.prompt for record in read(tmp_path, prompt="in my style")] == ["in my style", "caption b.txt"]


def test_captions_may_have_a_byte_order_mark(tmp_path: Path) -> None:
    write(tmp_path, "a.png")
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf\xe6\xb1\x89\xe5\xad\x97 \n")
    assert read(tmp_path)[0].prompt == "汉字"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["a.png"], "a.png: there is no caption (.txt file of the same name)"),
        (["a.png", "a.jpg", "a.txt"], "a.png: another picture has the same name; rename one of them (a.jpg)"),
        (["a.png", "a.txt", "b.txt"], "b.txt: belongs to no target: there is no target picture of this name"),
        (["a.png", "a.txt", "b_ref.png"], "b_ref.png: belongs to no target"),
        (["a.png", "a.txt", "control/b.png"], "control/b.png: belongs to no target"),
        (["a.png", "a.txt", "a_ref.png", "a_ref2.png"], "its references cannot be put in order"),
        (["a.png", "a.txt", "a_ref1.png", "a_ref3.png"], "its references cannot be put in order"),
        (["a.png", "a.txt", "a_ref.png", "control/a.png"], "its references cannot be put in order"),
        (["a.png", "a.txt", "a_weight.png", "weight/a.png"], "weight/a.png: a second loss map"),
        (["a.png", "a.txt", "b.heic"], "b.heic: pictures of this format are not read"),
    ],
)
def test_a_mistake_is_told_with_the_file(tmp_path: Path, files: list[str], message: str) -> None:
    write(tmp_path, *files)
    assert message in problems(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b" \n", "the caption is empty"), (b"caf\xe9", r"not UTF-8 (byte 3)"), (b"x" * 1_000_001, "larger than")],
)
def test_a_bad_caption_is_told_with_the_file(tmp_path: Path, content: bytes, message: str) -> None:
    write(tmp_path, "a.png")
    (tmp_path / "a.txt").write_bytes(content)
    assert f"a.txt: {message}" in problems(tmp_path)


def test_problems_of_one_cause_are_one_line(tmp_path: Path) -> None:
    write(tmp_path, *(f"{number:02}.png" for number in range(30)))
    message = problems(tmp_path)
    assert f"{tmp_path}: 30 problems" in message
    assert message.count("\n") == 1
    assert "30 times: there is no caption" in message
    assert message.endswith(
        "00.png, 01.png, 02.png, 03.png, 04.png, 05.png, 06.png, 07.png, 08.png, 09.png and 20 more"
    )


def test_an_empty_folder_and_a_file_are_refused(tmp_path: Path) -> None:
    assert "no pictures found" in problems(tmp_path)
    write(tmp_path, "x.png")
    assert "not a folder" in problems(tmp_path / "x.png")


def test_links_to_files_outside_are_refused_unless_allowed(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", "a.png", "a.txt")
    data = tmp_path / "data"
    data.mkdir()
    for name in ("a.png", "a.txt"):
        (data / name).symlink_to(tmp_path / "elsewhere" / name)
    message = problems(data)
    assert f"2 times: leads outside of {data}" in message
    assert "a.png" in message
    assert "a.txt" in message
    assert [record.id for record in read(data, allow_outside=True)] == ["a"]


def test_links_to_files_inside_are_files(tmp_path: Path) -> None:
    write(tmp_path, "a.png", "a.txt", "b.txt")
    (tmp_path / "b.png").symlink_to("a.png")
    assert [record.id for record in read(tmp_path)] == ["a", "b"]


def test_linked_folders_are_refused_unless_allowed_and_never_walked_twice(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", "a.png", "a.txt")
    write(tmp_path / "data", "b.png", "b.txt")
    (tmp_path / "data" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "elsewhere")
    assert "a link to a folder" in problems(tmp_path / "data")
    assert [record.id for record in read(tmp_path / "data", allow_outside=True)] == ["b", "more/a"]


def test_dangling_links_and_special_files_are_reported(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", "b.txt")
    (tmp_path / "a.png").symlink_to("gone.png")
    os.mkfifo(tmp_path / "b.png")
    message = problems(tmp_path)
    assert "a.png: no such file" in message
    assert "b.png: not a file" in message


def test_records_kept_for_validation_are_not_trained_on_and_stay_the_same(tmp_path: Path) -> None:
    write(tmp_path, *(f"{number}.{suffix}" for number in range(9) for suffix in ("png", "txt")))
    source = FolderSource(FolderOptions(validation=3), tmp_path)
    kept = {record.id for record in source.validation()}
    assert len(kept) == 3
    assert kept.isdisjoint(record.id for record in source.records())
    assert len(source.records()) == 6
    assert kept == {record.id for record in FolderSource(FolderOptions(validation=3), tmp_path).validation()}


def test_keeping_every_record_for_validation_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.png", "a.txt")
    assert "leaves none to train on" in problems(tmp_path, validation=1)


def test_no_path_is_an_error_that_names_the_option() -> None:
    with pytest.raises(DataError, match="--data"):
        FolderSource(None, None)
