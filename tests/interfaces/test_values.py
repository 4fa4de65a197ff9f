from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

from qframe.errors import DataError
from qframe.interfaces import Conditioning, PackedSequence, Plan, Request
from qframe.pictures.picture import Picture

GRIDS = (((1, 2, 3),), ((1, 1, 1), (2, 1, 2)))


def sequence() -> PackedSequence:
    return PackedSequence(torch.randn(11, 4), GRIDS)


def plan(**changed: Any) -> Plan:
    values = {
        "start": PackedSequence(torch.randn(4, 2), (((1, 2, 2),),)),
        "cond": Conditioning(torch.randn(3, 5), (3,)),
        "sigmas": torch.tensor([1.0, 0.0]),
        "decode": lambda tokens: [],
    }
    return Plan(**(values | changed))


def test_lengths_count_the_tokens_of_each_sample() -> None:
    assert sequence().lengths == (6, 5)
    assert sequence().batch_size == 2


@pytest.mark.parametrize(
    ("shape", "grids", "message"),
    [
        ((10, 4), GRIDS, "add up to 11 tokens, the tensor holds 10"),
        ((1, 11, 4), GRIDS, r"\[N, C\]"),
        ((0, 4), (((1, 0, 3),),), "positive integers"),
        ((4, 4), (((2, 2),),), "three positive integers"),
    ],
)
def test_a_sequence_that_contradicts_itself_is_refused(shape: tuple[int, ...], grids: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PackedSequence(torch.zeros(shape), grids)


def test_values_cannot_be_changed() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        sequence().tokens = torch.zeros(1)  # type: ignore[misc]
    with pytest.raises(TypeError):
        Conditioning(torch.zeros(1, 2), (1,), {"a": torch.zeros(1)}).extras["b"] = torch.zeros(1)  # type: ignore[index]


def test_other_tokens_keep_the_grids() -> None:
    other = sequence().with_tokens(torch.zeros(11, 7))
    assert other.grids == GRIDS
    with pytest.raises(ValueError, match="add up"):
        sequence().with_tokens(torch.zeros(3, 7))


def conditioning() -> Conditioning:
    return Conditioning(torch.randn(5, 3), (2, 3), {"images": torch.arange(5)})


def test_split_and_join_undo_each_other() -> None:
    whole = conditioning()
    parts = whole.split()
    assert [part.lengths for part in parts] == [(2,), (3,)]
    assert parts[1].extras["images"].tolist() == [2, 3, 4]
    joined = Conditioning.join(parts)
    assert torch.equal(joined.embeds, whole.embeds)
    assert torch.equal(joined.extras["images"], whole.extras["images"])
    assert joined.lengths == whole.lengths


def test_conditionings_with_different_extras_do_not_join() -> None:
    with pytest.raises(ValueError, match="different extras"):
        Conditioning.join([conditioning(), Conditioning(torch.randn(1, 3), (1,))])


def test_casting_leaves_extras_alone() -> None:
    cast = conditioning().to(dtype=torch.bfloat16)
    assert cast.embeds.dtype == torch.bfloat16
    assert cast.extras["images"].dtype == torch.int64


@pytest.mark.parametrize(
    ("shape", "lengths", "extras", "message"),
    [
        ((5, 3), (2, 2), {}, "add up to 4"),
        ((2, 3), (2, 0), {}, "at least one text token"),
        ((1, 2, 3), (2,), {}, r"\[M, D\]"),
        ((2, 3), (2,), {"a": torch.zeros(3)}, "'a' has 3 rows"),
    ],
)
def test_a_conditioning_that_contradicts_itself_is_refused(
    shape: tuple[int, ...], lengths: tuple[int, ...], extras: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Conditioning(torch.zeros(shape), lengths, extras)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"guide": lambda positive, negative: positive}, "both a guide and an unconditional side"),
        ({"uncond": Conditioning(torch.zeros(1, 5), (1,))}, "both a guide and an unconditional side"),
        ({"sigmas": torch.tensor([0.0])}, "at least one step"),
        ({"cond": Conditioning(torch.zeros(2, 5), (1, 1))}, "conditioning has 2 samples"),
        ({"references": PackedSequence(torch.zeros(2, 2), (((1, 1, 1),),) * 2)}, "references has 2 samples"),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(**changed)


def test_a_picture_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 3: cannot read"):
        Picture("row 3", tmp_path / "none.png").read()


def test_a_pictures_digest_is_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"abc")
    assert Picture("file", tmp_path / "a.png").digest() == Picture("bytes", b"abc").digest()


def test_one_prompt_or_several() -> None:
    assert Request(prompt="a").prompt == ("a",)
    assert Request(prompt=["a", "b"], negative_prompt="n").negative_prompt == ("n",)
    assert Request(prompt="a").negative_prompt is None
