"""From records to cached examples: only what is missing is encoded, and what comes out is what live encoding gives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import attrs
import pytest
import torch
from PIL import Image

from qframe.cache import Cache, CachedExamples, DeclaredInputs, build_cache
from qframe.cache.encoding import encode_examples
from qframe.cache.live import LiveExamples
from qframe.errors import CacheError, DataError, NumericsError
from qframe.interfaces import Conditioning, Example, Record
from qframe.pictures.geometry import Geometry
from qframe.pictures.picture import Picture
from tests.cache.world import MADE_BY, Loader, TinyRecipe, grey, png, record, write_pictures

RECORDS = [record(number) for number in range(23)]


def build(
    folder: Path,
    records: list[Record] = RECORDS,
    loader: Loader | None = None,
    recipe: TinyRecipe | None = None,
    made_by: dict[str, dict[str, str]] = MADE_BY,
) -> CachedExamples:
    return build_cache(
        DeclaredInputs(records, recipe or TinyRecipe()), loader or Loader(), Cache(folder), made_by, batch_size=3
    )


def tensors(example: Example) -> list[torch.Tensor]:
    found = [example.target, *example.references]
    for conditioning in (example.conditioning, example.unconditional):
        if isinstance(conditioning, Conditioning):
            found += [conditioning.embeds, *(conditioning.extras[name] for name in sorted(conditioning.extras))]
    return found + ([] if example.loss_map is None else [example.loss_map])


def equal(left: Example, right: Example) -> bool:
    pairs = list(zip(tensors(left), tensors(right), strict=True))
    return left.id == right.id and all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


def close(left: Example, right: Example) -> bool:
    pairs = list(zip(tensors(left), tensors(right), strict=True))
    return left.id == right.id and all(torch.allclose(a.float(), b.float(), atol=1e-5) for a, b in pairs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cached_examples_are_what_live_encoding_gives(tmp_path: Path, dtype: torch.dtype) -> None:
    examples = build(tmp_path, loader=Loader(dtype))
    live = LiveExamples(DeclaredInputs(RECORDS, TinyRecipe()), Loader(dtype)("encoder", "codec"))
    assert len(examples) == len(live) == 23
    for index in range(23):
        assert examples[index].target.dtype == dtype
        assert close(examples[index], live[index])
        assert examples.shape(index) == live.shape(index)


def test_shapes_are_latent_sides_of_target_and_references(tmp_path: Path) -> None:
    examples = build(tmp_path)
    for index in range(len(examples)):
        example = examples[index]
        references = tuple(tuple(reference.shape[-2:]) for reference in example.references)
        assert examples.shape(index) == (tuple(example.target.shape[-2:]), references)


def test_text_lengths_are_those_of_the_longer_prompt_and_read_no_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = build(tmp_path)
    wanted = []
    for index in range(len(examples)):
        example = examples[index]
        assert example.unconditional is not None
        wanted.append(max(example.conditioning.lengths[0], example.unconditional.lengths[0]))
    assert len(set(wanted)) > 1
    monkeypatch.setattr(Cache, "get_all", lambda *args: pytest.fail("tensors were read"))
    assert [build(tmp_path).text_length(index) for index in range(len(wanted))] == wanted


def test_a_second_build_encodes_nothing_and_asks_for_no_part(tmp_path: Path) -> None:
    build(tmp_path)
    loader = Loader()
    build(tmp_path, loader=loader)
    assert loader.asked == []


def test_a_known_data_set_is_opened_without_opening_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = build(tmp_path)[4]

    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("a picture was opened")

    monkeypatch.setattr(Image, "open", fail)
    examples = build(tmp_path)
    examples.shape(4)
    assert equal(examples[4], before)


def test_one_call_encodes_and_keeps_one_example(tmp_path: Path) -> None:
    one = build(tmp_path, [RECORDS[4]])
    assert len(one) == 1
    loader = Loader()
    assert equal(build(tmp_path, [RECORDS[4]], loader)[0], one[0])
    assert loader.asked == []


def test_equal_parts_are_encoded_once(tmp_path: Path) -> None:
    loader = Loader()
    build(tmp_path, loader=loader)
    assert sum(loader.codec.batches) == 23 + 5, "23 targets, 5 references shared by all"
    assert len(loader.encoder.prompts) == 23 + 5, "23 captions, and an empty prompt for each set of references"


def test_pictures_of_one_size_share_a_batch(tmp_path: Path) -> None:
    loader = Loader()
    build(tmp_path, loader=loader)
    assert max(loader.codec.batches) == 3
    assert len(loader.codec.batches) < 28


def test_editing_one_caption_encodes_one_prompt(tmp_path: Path) -> None:
    build(tmp_path)
    loader = Loader()
    build(tmp_path, [record(0, prompt="another"), *RECORDS[1:]], loader)
    assert loader.asked == [("encoder",)]
    assert loader.encoder.prompts == ["another"]


def test_another_encoder_encodes_no_picture_and_another_codec_no_prompt(tmp_path: Path) -> None:
    build(tmp_path)
    loader = Loader()
    build(tmp_path, loader=loader, made_by={**MADE_BY, "encoder": {"weights": "new"}})
    assert loader.codec.batches == []
    assert len(loader.encoder.prompts) == 28
    loader = Loader()
    build(tmp_path, loader=loader, made_by={**MADE_BY, "codec": {"weights": "new"}})
    assert loader.encoder.prompts == []
    assert sum(loader.codec.batches) == 28


def test_another_geometry_or_recipe_version_encodes_everything(tmp_path: Path) -> None:
    build(tmp_path)
    for recipe in (TinyRecipe(Geometry(1, 48 * 48, multiple=16)), type("TinyRecipe", (TinyRecipe,), {"version": 2})()):
        loader = Loader()
        build(tmp_path, loader=loader, recipe=recipe)
        assert sum(loader.codec.batches) == 28
        assert len(loader.encoder.prompts) == 28


def test_renamed_and_touched_files_encode_nothing(tmp_path: Path) -> None:
    data, cache = tmp_path / "data", tmp_path / "cache"
    data.mkdir()
    before = build(cache, write_pictures(data, 6))
    for path in data.iterdir():
        os.utime(path)
    renamed = []
    for one in write_pictures(data, 6):
        assert isinstance(one.target.source, Path)
        moved = one.target.source.rename(data / f"new-{one.target.source.name}")
        renamed.append(attrs.evolve(one, id=f"new-{one.id}", target=Picture(moved.name, moved)))
    loader = Loader()
    after = build(cache, renamed, loader)
    assert loader.asked == []
    assert torch.equal(before[3].target, after[3].target)
    assert after[3].id == "new-r3"


def test_the_unconditional_side_is_made_with_the_example_s_own_pictures(tmp_path: Path) -> None:
    examples = build(tmp_path)
    one, two = examples[0].unconditional, examples[1].unconditional
    assert one is not None
    assert two is not None
    assert not torch.equal(one.embeds, two.embeds)


def test_a_loss_map_is_the_mean_over_a_latent_place(tmp_path: Path) -> None:
    picture = Image.new("L", (32, 32))
    picture.paste(255, (0, 0, 8, 4))
    path = tmp_path / "w.png"
    picture.save(path)
    weight = build(tmp_path / "cache", [record(0, loss_map=Picture("w", path))])[0].loss_map
    assert weight is not None
    assert weight.shape == (4, 4)
    assert weight[0, 0] == 0.5
    assert weight.sum() == 0.5


def test_a_loss_map_of_other_proportions_than_the_target_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"example r0: its loss map covers \(2, 4\)"):
        build(tmp_path, [record(0, loss_map=Picture("w", grey(9, (16, 32))))])[0]


def test_records_without_references_or_weights_are_examples_too(tmp_path: Path) -> None:
    example = build(tmp_path, [record(1, references=(), loss_map=None)])[0]
    assert example.references == ()
    assert example.loss_map is None


def test_a_picture_that_cannot_be_used_is_named_and_what_was_encoded_stays(tmp_path: Path) -> None:
    broken = record(22, target=Picture("row 22", png(7)[:60]))
    with pytest.raises(DataError, match="row 22: damaged"):
        build(tmp_path, [*RECORDS[:22], broken])


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, DataError])
def test_a_build_that_is_stopped_keeps_all_it_has_encoded(tmp_path: Path, stop: type[BaseException]) -> None:
    loader = Loader()
    encode = loader.encoder.encode

    def stopping(prompts: list[str], pictures: object) -> Conditioning:
        if len(loader.encoder.prompts) > 12:
            raise stop("now")
        return encode(prompts, pictures)

    loader.encoder.encode = stopping  # type: ignore[method-assign]
    with pytest.raises(stop):
        build(tmp_path, loader=loader)
    again = Loader()
    build(tmp_path, loader=again)
    assert again.codec.batches == []
    assert len(again.encoder.prompts) == 28 - 12, "one window of four batches was encoded whole"


def test_latents_that_are_not_finite_are_not_cached(tmp_path: Path) -> None:
    loader = Loader()
    loader.codec.encode = lambda pixels, generator=None: torch.full((len(pixels), 4, 2, 2), torch.nan)  # type: ignore[method-assign]
    with pytest.raises(NumericsError, match="target 0"):
        build(tmp_path, loader=loader)


def test_a_damaged_example_is_named_dropped_and_encoded_anew(tmp_path: Path) -> None:
    examples = build(tmp_path)
    before = [examples[index] for index in range(23)]
    (shard,) = (tmp_path / "shards").glob("*.safetensors")
    entry = Cache(tmp_path).locate([examples._keys[9].target])[examples._keys[9].target]
    data = bytearray(shard.read_bytes())
    data[entry.tensors[0].begin] ^= 1
    shard.write_bytes(data)
    with pytest.raises(CacheError, match=r"example r9: .* is damaged"):
        build(tmp_path)[9]
    loader = Loader()
    examples = build(tmp_path, loader=loader)
    assert loader.asked == [("codec",)]
    assert loader.codec.batches == [1]
    assert all(close(examples[index], before[index]) for index in range(23))


def test_several_data_sets_share_one_folder(tmp_path: Path) -> None:
    build(tmp_path, RECORDS[:10])
    loader = Loader()
    build(tmp_path, RECORDS[5:15], loader)
    assert len([prompt for prompt in loader.encoder.prompts if prompt]) == 5


def test_records_that_are_drawn_on_demand_are_not_kept(tmp_path: Path) -> None:
    import gc
    import weakref

    alive: weakref.WeakSet[Picture] = weakref.WeakSet()

    class Drawn(list[Record]):
        def __len__(self) -> int:
            return 40

        def __getitem__(self, index: int) -> Record:  # type: ignore[override]
            made = record(index)
            alive.add(made.target)
            return made

    examples = build(tmp_path, Drawn())
    gc.collect()
    assert len(alive) < 5
    assert len(examples) == 40


def test_encode_examples_keeps_order_and_ids() -> None:
    parts = Loader()("encoder", "codec")
    recipe = TinyRecipe()
    encoded = encode_examples([recipe.inputs(r) for r in RECORDS], [r.id for r in RECORDS], parts, batch_size=4)
    assert [one.id for one in encoded] == [r.id for r in RECORDS]
    live = LiveExamples(DeclaredInputs(RECORDS, recipe), parts)
    assert all(close(one, live[index]) for index, one in enumerate(encoded))


KILLS = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from qframe.cache import Cache, DeclaredInputs, build_cache
from tests.cache.world import MADE_BY, Loader, TinyRecipe, record

folder, rounds = Path(sys.argv[1]), int(sys.argv[2])
records = [record(number) for number in range(60)]

def build(pause):
    loader = Loader(neighbours=0.1)
    encode = loader.codec.encode
    def slow(pixels, generator=None):
        time.sleep(pause)
        return encode(pixels)
    loader.codec.encode = slow
    with Cache(folder, shard_seconds=0.0) as cache:
        return build_cache(DeclaredInputs(records, TinyRecipe()), loader, cache, MADE_BY, batch_size=3), loader

random_ = random.Random(0)
killed, limit = 0, 0.1
while killed < rounds:
    child = os.fork()
    if child == 0:
        build(0.02)
        os._exit(0)
    time.sleep(random_.uniform(0.0, limit))
    os.kill(child, signal.SIGKILL)
    if not os.WIFSIGNALED(os.waitpid(child, 0)[1]):
        break  # it was done
    killed += 1
    if not list(folder.glob("shards/*")):
        limit *= 1.5  # a busy machine must get somewhere, too
before = Cache(folder).stats().entries
examples, loader = build(0.0)
print(killed, before, sum(loader.codec.batches))
"""


def test_a_build_killed_again_and_again_ends_with_the_bits_of_an_uninterrupted_one(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLS, str(tmp_path / "killed"), "20"], capture_output=True, text=True, check=True
    )
    killed, kept, _ = map(int, done.stdout.split())
    assert killed > 5
    assert kept > 0, "every round was killed before it wrote anything: the test says nothing"
    records = [record(number) for number in range(60)]
    calm, finished = (build(tmp_path / name, records, Loader(neighbours=0.1)) for name in ("calm", "killed"))
    assert all(equal(calm[index], finished[index]) for index in range(60))
    assert Cache(tmp_path / "killed").verify() == []
    assert not [path for path in (tmp_path / "killed" / "shards").iterdir() if path.name.startswith(".")]


def test_several_builders_at_once_fill_one_cache(tmp_path: Path) -> None:
    code = KILLS.split("random_ = ")[0] + (
        "children = []\n"
        "for number in range(4):\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        records = records[number * 5:] + records[:number * 5]\n"
        "        build(0.001)\n"
        "        os._exit(0)\n"
        "    children.append(child)\n"
        "assert all(os.waitpid(child, 0)[1] == 0 for child in children)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path), "0"], check=True)
    records = [record(number) for number in range(60)]
    loader = Loader()
    examples = build(tmp_path, records, loader)
    assert loader.asked == []
    assert len(examples) == 60
    assert Cache(tmp_path).verify() == []
