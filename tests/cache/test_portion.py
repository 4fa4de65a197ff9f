"""Several builders of one cache: disjoint portions, together everything, with the bits of a single build."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qframe.cache import ALL, Cache, CachedExamples, DeclaredInputs, Portion, build_cache
from qframe.errors import ConfigError
from qframe.interfaces import Record
from qframe.pictures.picture import Picture
from tests.cache.world import MADE_BY, Loader, TinyRecipe, record, write_pictures

RECORDS = [record(number) for number in range(23)]


def build(
    folder: Path,
    portion: Portion = ALL,
    records: list[Record] = RECORDS,
) -> tuple[CachedExamples, Loader]:
    loader = Loader(neighbours=0.1)
    return build_cache(
        DeclaredInputs(records, TinyRecipe()), loader, Cache(folder), MADE_BY, batch_size=1, portion=portion
    ), loader


@pytest.mark.parametrize("count", [1, 2, 3, 7, 40])
def test_portions_are_disjoint_and_together_are_everything(count: int) -> None:
    portions = [Portion(number, count) for number in range(1, count + 1)]
    for index in range(50):
        assert sum(portion.owns(index) for portion in portions) == 1
    for portion in portions:
        assert sorted(i for stretch in portion.stretches(23) for i in stretch) == list(range(23))
    firsts = [next(iter(portion.stretches(23))) for portion in portions]
    assert sorted(i for first in firsts for i in first) == list(range(23))


def test_builders_of_all_portions_encode_each_part_once_and_give_the_bits_of_one(tmp_path: Path) -> None:
    whole, alone = build(tmp_path / "one")
    batches, prompts = 0, []
    for number in (2, 3, 1):
        examples, loader = build(tmp_path / "three", Portion(number, 3))
        assert loader.codec.batches, "a portion without pictures says nothing"
        batches += sum(loader.codec.batches)
        prompts += loader.encoder.prompts
        if number != 1:
            assert examples.missing() > 0
    assert examples.missing() == 0
    assert batches == sum(alone.codec.batches)
    assert sorted(prompts) == sorted(alone.encoder.prompts)
    for index in range(len(whole)):
        assert torch.equal(whole[index].target, examples[index].target)
        assert torch.equal(whole[index].conditioning.embeds, examples[index].conditioning.embeds)


def test_builders_tell_one_another_the_digests_of_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the others have hashed their stretch, a builder reads only its own from disk to find its keys."""
    import time

    data = tmp_path / "data"
    data.mkdir()
    records = [Record(id=r.id, origin=r.id, prompt=r.prompt, target=r.target) for r in write_pictures(data, 12)]
    later = time.time_ns() + 10_000_000_000
    monkeypatch.setattr(time, "time_ns", lambda: later)
    build(tmp_path / "cache", Portion(1, 2), records)
    monkeypatch.setattr(Picture, "digest", lambda self: pytest.fail("hashed again"))
    build(
        tmp_path / "cache",
        Portion(2, 2),
        [Record(id=r.id, origin="", prompt="", target=Picture("", r.target.source)) for r in records],
    )


def test_a_share_is_given_by_hand_or_by_torchrun() -> None:
    assert Portion.parse("2/4") == Portion(2, 4)
    assert Portion.of_environment({"RANK": "3", "WORLD_SIZE": "4"}) == Portion(4, 4)
    assert Portion.of_environment({}) == Portion(1, 1)
    for wrong in ("0/4", "5/4", "1", "a/b", "1/0", "-1/4", "1/4/2"):
        with pytest.raises(ConfigError, match="--shard"):
            Portion.parse(wrong)
    with pytest.raises(ConfigError, match="RANK"):
        Portion.of_environment({"RANK": "4", "WORLD_SIZE": "4"})
