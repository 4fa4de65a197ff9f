"""Files in every layout: what is written is what is read, and what cannot be used is refused from the header."""

from __future__ import annotations

import json
import random
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from qframe.adapters import LoraLayer, describe_lora, load_lora, read_lora, save_lora
from qframe.config.schema import LoraLayout
from qframe.errors import ConfigError, QframeError, UntrustedError, WeightsError

LAYOUTS = get_args(LoraLayout)
NAMES = ("blocks.0.attn.to_out.0", "blocks.1.to_q", "proj_out")


def layer(
    rank: int, alpha: float, *, dora: bool = False, dtype: torch.dtype = torch.float32, seed: int = 0
) -> LoraLayer:
    generator = torch.Generator().manual_seed(seed)
    down, up = torch.randn(rank, 8, generator=generator), torch.randn(6, rank, generator=generator)
    magnitude = torch.rand(6, generator=generator).to(dtype) if dora else None
    return LoraLayer(down.to(dtype), up.to(dtype), alpha, magnitude)


def layers(**settings: Any) -> dict[str, LoraLayer]:
    """Of several ranks and alphas, none of which is the rank."""
    return {name: layer(2 + i, 7.5 + 3 * i, seed=i, **settings) for i, name in enumerate(NAMES)}


def same(found: dict[str, LoraLayer], wanted: dict[str, LoraLayer]) -> bool:
    return found.keys() == wanted.keys() and all(found[name].equals(wanted[name]) for name in wanted)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_what_is_written_is_what_is_read(tmp_path: Path, layout: LoraLayout, dtype: torch.dtype) -> None:
    wanted = layers(dtype=dtype)
    save_lora(tmp_path / "a.safetensors", wanted, layout=layout, metadata={"base_model": "m"})
    assert same(read_lora(tmp_path / "a.safetensors"), wanted)
    described = describe_lora(tmp_path / "a.safetensors")
    assert described.styles == (layout,)
    assert described.metadata["base_model"] == "m"
    assert [one.scale for one in described.layers] == [one.alpha / one.rank for one in described.layers]


def test_equal_layers_make_the_same_file(tmp_path: Path) -> None:
    """The library that writes them orders metadata at random."""
    about = {f"key {number}": '\u00e4\u20ac"\\\n\x01' for number in range(8)}
    file = tmp_path / "lora.safetensors"
    save_lora(file, layers(), metadata=about)
    with safe_open(file, framework="pt") as opened:
        assert list(opened.metadata().values()).count(about["key 0"]) == len(about)
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0
    keys = list(json.loads(data[8 : 8 + length])["__metadata__"])
    assert keys == sorted(keys)
    assert len(keys) > len(about)
    save_lora(file, layers(), metadata=dict(reversed(about.items())))
    assert file.read_bytes() == data


def test_layouts_pass_from_hand_to_hand_without_loss(tmp_path: Path) -> None:
    """Alpha = 16 sqrt(8) has no short form: as text in the metadata and as a tensor it must be the same number."""
    wanted = {**layers(), "x": layer(8, 16 * 8**0.5, seed=9)}
    way: tuple[LoraLayout, ...] = ("diffusers", "comfyui", "kohya", "comfyui", "kohya", "diffusers")
    save_lora(tmp_path / "0", wanted, layout=way[0])
    for step, (_, layout) in enumerate(pairwise(way)):
        save_lora(tmp_path / str(step + 1), read_lora(tmp_path / str(step)), layout=layout)
    assert same(read_lora(tmp_path / "5"), wanted)
    assert describe_lora(tmp_path / "5").metadata == describe_lora(tmp_path / "0").metadata


def test_names_of_tensors_are_those_that_other_programs_look_for(tmp_path: Path) -> None:
    one = {"blocks.0.attn.to_out.0": layer(2, 3.0)}
    expected = {
        "diffusers": {"transformer.blocks.0.attn.to_out.0.lora_A.weight"},
        "comfyui": {
            "diffusion_model.blocks.0.attn.to_out.0.lora_A.weight",
            "diffusion_model.blocks.0.attn.to_out.0.alpha",
        },
        "kohya": {"lora_unet_blocks_0_attn_to_out_0.lora_down.weight", "lora_unet_blocks_0_attn_to_out_0.alpha"},
    }
    for layout in LAYOUTS:
        save_lora(tmp_path / layout, one, layout=layout)
        tensors = load_file(tmp_path / layout)
        assert expected[layout] <= tensors.keys()
        assert {key: tensor.item() for key, tensor in tensors.items() if key.endswith(".alpha")} == {
            key: 3.0 for key in expected[layout] if key.endswith(".alpha")
        }


@pytest.mark.parametrize(("layout", "down", "up"), [("comfyui", "lora_A", "lora_B"), ("kohya", "lora_down", "lora_up")])
def test_a_program_that_adds_alpha_over_rank_adds_the_same(
    tmp_path: Path, layout: LoraLayout, down: str, up: str
) -> None:
    """By the rule of ComfyUI and kohya's programs, from the tensors as they lie in the file."""
    save_lora(tmp_path / "a", layers(), layout=layout)
    tensors = load_file(tmp_path / "a")
    weight = torch.randn(6, 8, generator=torch.Generator().manual_seed(5))
    found = {}
    for key in [key for key in tensors if key.endswith(".alpha")]:
        first, second = (tensors[key.replace("alpha", f"{half}.weight")] for half in (down, up))
        found[key.removesuffix(".alpha")] = tensors[key].item() / first.shape[0] * (second @ first)
    wanted = {name if layout == "comfyui" else name.replace(".", "_"): one for name, one in layers().items()}
    prefix = {"comfyui": "diffusion_model.", "kohya": "lora_unet_"}[layout]
    assert found.keys() == {prefix + name for name in wanted}
    for name, one in wanted.items():
        torch.testing.assert_close(found[prefix + name], one.update(weight))


def test_alpha_is_written_in_one_place_only(tmp_path: Path) -> None:
    """Diffusers multiplies by both: the scale of a file that has it twice would be its square."""
    for layout in LAYOUTS:
        save_lora(tmp_path / layout, layers(), layout=layout)
        beside = any(key.endswith(".alpha") for key in load_file(tmp_path / layout))
        assert beside != ("lora_adapter_metadata" in describe_lora(tmp_path / layout).metadata)


def test_dora_is_written_where_it_has_a_place_and_refused_by_name_elsewhere(tmp_path: Path) -> None:
    wanted = layers(dora=True)
    save_lora(tmp_path / "a", wanted)
    assert same(read_lora(tmp_path / "a"), wanted)
    assert json.loads(describe_lora(tmp_path / "a").metadata["lora_adapter_metadata"])["transformer.use_dora"] is True
    for layout in ("comfyui", "kohya"):
        with pytest.raises(ConfigError, match=f"'{layout}' has no place for the magnitudes of DoRA"):
            save_lora(tmp_path / layout, wanted, layout=layout)
        assert not (tmp_path / layout).exists()


def network(*names: str) -> nn.Module:
    """A network with linear layers of these names."""
    root = nn.Module()
    for name in names:
        *path, last = name.split(".")
        parent = root
        for step in path:
            parent.add_module(step, getattr(parent, step, nn.Module()))
            parent = getattr(parent, step)
        parent.add_module(last, nn.Linear(8, 6))
    return root


def plain_tensors() -> dict[str, Tensor]:
    return {"x.lora_A.weight": torch.ones(2, 8), "x.lora_B.weight": torch.ones(6, 2)}


@pytest.mark.parametrize("prefix", ["lora_unet_", "lora_transformer_", "lycoris_"])
def test_flattened_names_are_told_by_the_network(tmp_path: Path, prefix: str) -> None:
    save_lora(tmp_path / "a", layers(), layout="kohya")
    tensors = {key.replace("lora_unet_", prefix): tensor for key, tensor in load_file(tmp_path / "a").items()}
    save_file(tensors, tmp_path / "a")
    with pytest.raises(WeightsError, match="only the network that it was made for tells their names"):
        read_lora(tmp_path / "a")
    assert same(read_lora(tmp_path / "a", names=NAMES), layers())
    load_lora(network(*NAMES), tmp_path / "a")


def test_flattened_names_that_fit_no_layer_or_several_are_refused(tmp_path: Path) -> None:
    save_lora(tmp_path / "a", {"key.q": layer(2, 3.0)}, layout="kohya")
    save_file(load_file(tmp_path / "a"), tmp_path / "a")  # as kohya's own programs write it
    with pytest.raises(WeightsError, match="key_q: the network has no such layer"):
        load_lora(network("key.k"), tmp_path / "a")
    with pytest.raises(WeightsError, match=r"key_q: may be any of key\.q, key_q"):
        read_lora(tmp_path / "a", names=["key.q", "key_q"])
    with pytest.raises(ConfigError, match=r"does not tell apart key\.q and key_q"):
        save_lora(tmp_path / "b", {"key.q": layer(2, 3.0), "key_q": layer(2, 3.0)}, layout="kohya")


def test_names_that_a_file_brings_along_must_be_its_own(tmp_path: Path) -> None:
    save_lora(tmp_path / "a", {"to.q": layer(2, 3.0)}, layout="kohya")
    for names in ('["other"]', "[1]", "{}", "[" * 100_000, "no json"):
        save_file(load_file(tmp_path / "a"), tmp_path / "b", {"qframe_layers": names})
        with pytest.raises(WeightsError, match="only the network"):
            read_lora(tmp_path / "b")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("damage", ["value", "name", "scale", "torn"])
def test_a_save_that_does_not_read_back_leaves_the_former_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: LoraLayout, damage: str
) -> None:
    from safetensors.torch import save

    def damaged(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
        key = min(tensors)
        if damage == "value":
            tensors = {**tensors, key: tensors[key] * 1.0000002}
        elif damage == "name":
            tensors = {k.replace("proj_out", "proj_in"): t for k, t in tensors.items()}
            metadata = {k: text.replace("proj_out", "proj_in") for k, text in metadata.items()}
        elif damage == "scale":
            tensors = {k: t * 2 if k.endswith(".alpha") else t for k, t in tensors.items()}
            metadata = {k: text.replace('lora_alpha": 7.5', 'lora_alpha": 8') for k, text in metadata.items()}
        data = save(tensors, metadata=metadata)
        return data[:-4] if damage == "torn" else data

    file = tmp_path / "a.safetensors"
    save_lora(file, {"former": layer(2, 3.0)}, layout=layout)
    former = file.read_bytes()
    monkeypatch.setattr("qframe.adapters.files.save", damaged)
    with pytest.raises(WeightsError, match=r"a\.safetensors: what was written (does not read|cannot be read) back"):
        save_lora(file, layers(), layout=layout)
    assert file.read_bytes() == former
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


# -- headers ---------------------------------------------------------------------------------------------------------


def with_header(file: Path, header: dict[str, Any] | bytes, size: int) -> Path:
    """A safetensors file with this header over `size` bytes of zeros, which take no room on the disk."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + size)
    return file


def claimed(rank: int) -> tuple[dict[str, Any], int]:
    half = rank * 8 * 4
    return {
        "x.lora_A.weight": {"dtype": "F32", "shape": [rank, 8], "data_offsets": [0, half]},
        "x.lora_B.weight": {"dtype": "F32", "shape": [8, rank], "data_offsets": [half, 2 * half]},
    }, 2 * half


def test_ranks_are_capped_before_a_tensor_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header, size = claimed(50_000_000)  # 3.2 GB
    file = with_header(tmp_path / "a", header, size)
    monkeypatch.setattr(torch, "isfinite", lambda tensor: pytest.fail("values were read"))
    with pytest.raises(WeightsError, match="x: has rank 50000000, expected 1 to 4096"):
        read_lora(file)


def test_files_larger_than_any_lora_are_refused_by_their_size(tmp_path: Path) -> None:
    header, size = claimed(4)
    with pytest.raises(UntrustedError, match="no LoRA is so large"):
        read_lora(with_header(tmp_path / "a", b" " * (17 * 2**20), 0))
    with pytest.raises(UntrustedError, match="no LoRA is so large"):
        read_lora(with_header(tmp_path / "b", header, size + 2**37))
    many = {f"x{i}.alpha": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(20_001)}
    with pytest.raises(UntrustedError, match="20001 tensors"):
        read_lora(with_header(tmp_path / "c", many, 0))


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("x.dora_scale", "programs differ in which lengths dora_scale is divided by"),
        ("x.oft_blocks", "another kind of adapter: OFT"),
        ("x.lokr_w1", "x: mixes LoRA and LoKr"),
        ("y.lokr_w1", "y: lokr_w1 has not two dimensions"),
        ("lora_te_x.weight", "of a text encoder, which qframe does not adapt"),
        ("x" * 600 + ".alpha", "not part of a LoRA layer"),
        ("x\x1b[31m.weight", r"x\?\[31m\.weight: not part"),
    ],
)
def test_keys_of_no_layer_are_named(tmp_path: Path, key: str, words: str) -> None:
    save_file({**plain_tensors(), key: torch.ones(6)}, tmp_path / "a")
    with pytest.raises(WeightsError, match=words):
        read_lora(tmp_path / "a")


def test_alpha_may_be_a_whole_number_as_some_programs_write_it(tmp_path: Path) -> None:
    save_file({**plain_tensors(), "x.alpha": torch.tensor(5)}, tmp_path / "a")
    assert read_lora(tmp_path / "a")["x"].alpha == 5.0


@pytest.mark.parametrize(
    ("alpha", "words"),
    [
        (torch.tensor(0.0), "alpha is 0.0, so that it would change nothing"),
        (torch.tensor(1e300, dtype=torch.float64), "alpha is 1e\\+300"),
        (torch.tensor(True), "its alpha is BOOL"),
    ],
)
def test_scales_that_cannot_be_meant_are_refused(tmp_path: Path, alpha: Tensor, words: str) -> None:
    save_file({**plain_tensors(), "x.alpha": alpha}, tmp_path / "a")
    with pytest.raises(WeightsError, match=words):
        read_lora(tmp_path / "a")


def test_half_a_dora_is_refused(tmp_path: Path) -> None:
    save_lora(tmp_path / "a", layers(dora=True))
    tensors = load_file(tmp_path / "a")
    metadata = dict(describe_lora(tmp_path / "a").metadata)
    del tensors["transformer.proj_out.lora_magnitude_vector"]
    save_file(tensors, tmp_path / "b", metadata)
    with pytest.raises(WeightsError, match="proj_out: has no magnitude, and the file is DoRA"):
        read_lora(tmp_path / "b")
    save_file({k: t for k, t in tensors.items() if "magnitude" not in k}, tmp_path / "b", metadata)
    with pytest.raises(WeightsError, match="has no magnitude, and the file is DoRA"):
        read_lora(tmp_path / "b")
    tensors["transformer.proj_out.lora_magnitude_vector"] = torch.ones(5)
    save_file(tensors, tmp_path / "b", metadata)
    with pytest.raises(WeightsError, match=r"its magnitude has shape \[5\], expected \[6\]"):
        read_lora(tmp_path / "b")


def _mutated(data: bytes, chance: random.Random) -> bytes:
    """One of: a changed byte of the header, a changed number, a removed or doubled piece, a cut, other words."""
    (length,) = struct.unpack("<Q", data[:8])
    header, rest = data[8 : 8 + length], data[8 + length :]
    place = chance.randrange(length)
    piece = header[place : place + chance.randrange(1, 40)]
    digits = [i for i, byte in enumerate(header) if chr(byte).isdigit()]
    digit = chance.choice(digits)
    kinds = [
        header[:place] + bytes([chance.randrange(256)]) + header[place + 1 :],
        header[:digit] + chance.choice([b"0", b"-1", b"99999999999", b"1e9", b"3.5", b"null"]) + header[digit + 1 :],
        header.replace(piece, b""),
        header[:place] + piece + header[place:],
        header[:place],
        header.replace(b"F32", chance.choice([b"I8", b"BOOL", b"F4", b"F8_E8M0", b"F64", b"U16", b"C64"]), 1),
        header.replace(b"lora_alpha", chance.choice([b"lora_alpho", b"use_rslora", b"use_dora", b"alpha_pattern"])),
        header.replace(b"7.5", chance.choice([b"NaN", b"1e999", b"1" * 400, b"[]", b"{}", b"true", b"\\\\u0000"])),
    ]
    changed = chance.choice(kinds)
    size = chance.choice([len(changed), len(changed), len(changed), chance.randrange(2**16), chance.getrandbits(64)])
    return struct.pack("<Q", size) + changed + chance.choice([rest, rest, rest[: chance.randrange(len(rest))], b""])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_header_is_read_or_refused(tmp_path: Path, layout: LoraLayout) -> None:
    """Never another error: 200 changed headers of every layout, read, described and loaded."""
    save_lora(tmp_path / "a", layers(dora=layout == "diffusers"), layout=layout)
    data = (tmp_path / "a").read_bytes()
    chance, messages = random.Random(7), []
    for _ in range(200):
        (tmp_path / "b").write_bytes(_mutated(data, chance))
        try:
            describe_lora(tmp_path / "b")
            assert read_lora(tmp_path / "b", names=NAMES)
        except QframeError as error:
            messages.append(str(error))
    assert 100 < len(messages) < 200
    assert all(str(tmp_path / "b") in message for message in messages)
