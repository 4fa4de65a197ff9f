"""LoRA files: headers, metadata and values that no program should write, and files that are cut or overwritten."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import nn

from qframe.adapters import layer_names, load_lora, outlined
from qframe.cli import main
from qframe.compose import compose
from qframe.config import load_config
from tests.chaos.inputs.judging import Case, called, command
from tests.chaos.inputs.mutating import json_bytes, mutated_bytes, mutated_json, mutated_text, mutated_tree, odd_value

_LAYOUTS = ("diffusers", "comfyui", "kohya", "peft")
_DTYPES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I8": 1, "U8": 1, "I64": 8, "BOOL": 1, "F8_E4M3": 1}
_RANK = 2


class Loras:
    """Writes a LoRA in one of several spellings, changes it, and lets each command that reads LoRAs read it."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "lora.safetensors"
        self._beside = folder / "adapter_config.json"
        self._out = folder / "out.safetensors"
        self._folder = folder
        composition = compose(load_config(family="qwen-image"))
        found = outlined(composition)
        assert found is not None
        shapes = {name: part for name, part in found.module.named_modules() if isinstance(part, nn.Linear)}
        self._layers = {name: shapes[name] for name in layer_names(found.module)[:6]}
        self._module = nn.ModuleDict()

    def case(self, draw: Random) -> Case:
        header, data = self._lora(draw)
        raw, about = self._mutated(draw, header, data)
        for old in self._folder.iterdir():
            old.unlink()
        file = self._file
        if draw.random() < 0.15:
            file = self._folder / "adapter_model.safetensors"
            config = {"r": _RANK, "lora_alpha": 4, "peft_type": "LORA", "alpha_pattern": {}, "use_rslora": False}
            text, told = mutated_json(draw, config)
            self._beside.write_bytes(text)
            about += f"; beside it {told}"
        file.write_bytes(raw)
        kind = draw.random()
        if kind < 0.35:
            return Case(f"info: {about}", lambda: command("lora", "info", file, *(["--json"] if kind < 0.2 else [])))
        if kind < 0.7:
            layout, family = draw.choice(("diffusers", "comfyui", "kohya")), draw.random() < 0.5
            options = ["--family", "qwen-image"] if family else []
            return Case(
                f"convert to {layout}: {about}",
                lambda: command("lora", "convert", file, "--to", layout, "--output", self._out, *options),
                self._converted,
            )
        return Case(f"load: {about}", lambda: called(lambda: self._load(file, draw)))

    def _lora(self, draw: Random) -> tuple[dict[str, Any], bytes]:
        """A LoRA that is as it should be, as the header and the data of its file."""
        generator = torch.Generator().manual_seed(draw.randrange(2**31))
        layout = draw.choice(
            (
                "transformer.{}.lora_A.weight",
                "{}.lora_A.weight",
                "diffusion_model.{}.lora_A.weight",
                "base_model.model.{}.lora_A.weight",
                "lora_unet_{}.lora_down.weight",
                "{}.lokr",
                "{}.hada",
                "transformer.{}.lora_A.default.weight",
            )
        )
        header: dict[str, Any] = {}
        data = b""

        def add(key: str, tensor: torch.Tensor) -> None:
            nonlocal data
            raw = tensor.contiguous().numpy().tobytes()
            dtype = {torch.float32: "F32", torch.float16: "F16", torch.int64: "I64"}[tensor.dtype]
            header[key] = {
                "dtype": dtype,
                "shape": list(tensor.shape),
                "data_offsets": [len(data), len(data) + len(raw)],
            }
            data += raw

        dtype = draw.choice((torch.float32, torch.float16))
        for name, layer in draw.sample(list(self._layers.items()), draw.randrange(1, 4)):
            into, out = layer.in_features, layer.out_features
            made = lambda *shape: torch.randn(*shape, generator=generator).to(dtype)  # noqa: E731
            base = layout.format(name.replace(".", "_") if "unet" in layout else name)
            if layout.endswith((".lokr", ".hada")):
                base = base.rpartition(".")[0]
            if layout.endswith(".lokr"):
                add(f"{base}.lokr_w1", made(2, 2))
                add(f"{base}.lokr_w2_a", made(out // 2, _RANK))
                add(f"{base}.lokr_w2_b", made(_RANK, into // 2))
            elif layout.endswith(".hada"):
                for number in (1, 2):
                    add(f"{base}.hada_w{number}_a", made(out, _RANK))
                    add(f"{base}.hada_w{number}_b", made(_RANK, into))
            else:
                add(base, made(_RANK, into))
                add(base.replace("lora_A", "lora_B").replace("lora_down", "lora_up"), made(out, _RANK))
            if draw.random() < 0.5:
                stem = base.partition(".lora_")[0]
                add(f"{stem}.alpha", torch.tensor(float(_RANK)))
        if draw.random() < 0.5:
            config = {
                "transformer.r": _RANK,
                "transformer.lora_alpha": 4,
                "transformer.alpha_pattern": {"to_q": 8},
                "transformer.rank_pattern": {},
                "transformer.use_dora": False,
                "transformer.use_rslora": False,
            }
            if draw.random() < 0.6:
                config, _ = mutated_tree(draw, config)
            header["__metadata__"] = {
                "lora_adapter_metadata": json_bytes(draw, config).decode("utf-8", "replace"),
                "base_model": "x",
                "format": "pt",
            }
            if draw.random() < 0.3:
                names: Any = list(self._layers)
                header["__metadata__"]["qframe_layers"] = json_bytes(
                    draw, odd_value(draw) if draw.random() < 0.5 else names
                ).decode("utf-8", "replace")
        return header, data

    def _mutated(self, draw: Random, header: dict[str, Any], data: bytes) -> tuple[bytes, str]:
        kind = draw.random()
        if kind < 0.08:
            return _file(json.dumps(header).encode(), data), "as it should be"
        if kind < 0.2:
            values = bytearray(data)
            for _ in range(draw.choice((1, 3))):
                at = draw.randrange(max(1, len(values) - 4))
                values[at : at + 4] = struct.pack("<f", draw.choice((float("nan"), float("inf"), 3e38, 1e-40)))
            return _file(json.dumps(header).encode(), bytes(values[: len(data)])), "odd values"
        if kind < 0.5:
            changed, about = _laid_out(draw, header, data)
            return changed, about
        if kind < 0.75:
            text, about = mutated_json(draw, header)
            return _file(text, data), about
        raw, about = mutated_bytes(draw, _file(json.dumps(header).encode(), data))
        return raw, about

    def _load(self, file: Path, draw: Random) -> None:
        module = nn.Module()
        for name, layer in self._layers.items():
            *path, last = name.split(".")
            parent = module
            for part in path:
                if not hasattr(parent, part):
                    parent.add_module(part, nn.Module())
                parent = parent.get_submodule(part)
            parent.add_module(last, nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None))
        load_lora(module, file, draw.choice((1.0, 0.5, -1.0)))

    def _converted(self, code: int) -> str | None:
        left = sorted(path.name for path in self._folder.iterdir() if path.name.startswith("."))
        if left:
            return f"left {left}"
        if (code == 0) != self._out.exists():
            return "the output is there although the command failed" if code else "there is no output"
        if code == 0 and main(["--debug", "lora", "info", str(self._out)]) != 0:
            return "the output cannot be read"
        return None


def _file(header: bytes, data: bytes) -> bytes:
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data


def _laid_out(draw: Random, header: dict[str, Any], data: bytes) -> tuple[bytes, str]:
    """Change names, dtypes and shapes, and give each tensor the bytes that it needs then: the file itself is sound."""
    told, laid, parts = [], dict[str, Any](), list[bytes]()
    end = 0
    changed = draw.sample([key for key in header if key != "__metadata__"], 1)
    for key, entry in header.items():
        if key == "__metadata__":
            laid[key] = entry
            continue
        dtype, shape, name = entry["dtype"], list(entry["shape"]), key
        begin, stop = entry["data_offsets"]
        raw = data[begin:stop]
        if key in changed:
            kind = draw.randrange(4)
            if kind == 0:
                dtype = draw.choice(list(_DTYPES))
            elif kind == 1:
                shape = draw.choice(
                    (
                        [],
                        [0],
                        [1],
                        shape[::-1],
                        [*shape, 1],
                        [0, *shape[1:]],
                        shape[:1],
                        [draw.randrange(9) for _ in shape],
                        [3000, 2],
                    )
                )
            elif kind == 2:
                name = (
                    mutated_text(draw, key)
                    if draw.random() < 0.7
                    else draw.choice(("", ".", "alpha", "a.b.lora_A.weight", "x" * 3000, key.replace(".", "")))
                )
                if name in laid or name in header:
                    name = key
            else:
                continue
            told.append(f"{key}: {name!a} {dtype} {shape}")
            size = _DTYPES[dtype]
            for side in shape:
                size *= side
            raw = (raw * (size // max(1, len(raw)) + 1))[:size]
        laid[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(raw)]}
        end += len(raw)
        parts.append(raw)
    return _file(json.dumps(laid).encode("utf-8", "surrogatepass"), b"".join(parts)), "; ".join(
        told
    ) or f"without {changed}"
