"""LoRA adapters: put on a network, written for other programs, read from them. The one place that touches peft.

Files are written in the diffusers layout *with* alpha in the safetensors metadata: without it diffusers takes
alpha = rank, a wrong scale, silently.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from qframe.errors import CheckpointError, ConfigError, UntrustedError, bullet_list
from qframe.schema import LoraConfig
from qframe.storage import write_file

_PREFIXES = ("transformer.", "diffusion_model.", "base_model.model.")
_DOWN = (".lora_A.weight", ".lora_A.default.weight", ".lora_down.weight")
_UP = (".lora_B.weight", ".lora_B.default.weight", ".lora_up.weight")
_METADATA_KEY = "lora_adapter_metadata"
_MOST_TENSORS = 20_000
_LARGEST_RANK = 4096


@attrs.frozen(eq=False)
class LoraLayer:
    """The update of one linear layer: scale * up @ down, scale = alpha / rank.

    down: [rank, in]. up: [out, rank].
    """

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])


def resolve_targets(module: nn.Module, targets: tuple[str, ...], presets: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Full names of the linear layers that `targets` (presets, or names that module paths end in) choose.

    ConfigError names a target that matches no linear layer, and what there is.
    """
    if not targets:
        raise ConfigError("lora.targets: names no layer", f"Presets: {', '.join(sorted(presets))}.")
    linears = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    chosen: set[str] = set()
    for target in targets:
        endings = presets.get(target, (target,))
        for ending in endings:
            found = [name for name in linears if name == ending or name.endswith("." + ending)]
            if not found:
                kinds = sorted({name.split(".", 2)[-1] if name[:1].isalpha() else name for name in linears})
                raise ConfigError(
                    f"lora.targets: {target!r} matches no linear layer of {type(module).__name__}",
                    f"Presets: {', '.join(sorted(presets))}. Layers end in: {', '.join(kinds[:24])}.",
                )
            chosen.update(found)
    return [name for name in linears if name in chosen]


def add_lora(
    module: nn.Module, config: LoraConfig, presets: Mapping[str, tuple[str, ...]], *, seed: int
) -> dict[str, nn.Parameter]:
    """Put a fresh adapter on `module`, freeze the rest, and return the trained parameters by name (float32).

    The adapter starts as no change at all: its second matrix is zero. ConfigError if `module` carries one already.
    """
    from peft import LoraConfig as PeftLoraConfig
    from peft import inject_adapter_in_model
    from peft.tuners.lora import LoraLayer as PeftLayer

    if any(isinstance(part, PeftLayer) for part in module.modules()):
        raise ConfigError(
            f"{type(module).__name__} carries an adapter already, and another one is trained on plain weights only",
            "Merge it into them (merge_lora), or load the network anew.",
        )
    names = resolve_targets(module, config.targets, presets)
    alpha = config.rank if config.alpha is None else config.alpha
    module.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed every other device for good
        inject_adapter_in_model(
            PeftLoraConfig(r=config.rank, lora_alpha=alpha, lora_dropout=config.dropout, target_modules=names), module
        )
    trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    for parameter in trained.values():
        parameter.data = parameter.data.float()  # peft gave it the base's dtype; bfloat16 rounds small updates away
    return trained


def lora_layers(module: nn.Module, *, adapter: str = "default") -> dict[str, LoraLayer]:
    """The adapter that `module` carries, by the name of the layer it changes."""
    from peft.tuners.lora import LoraLayer as PeftLayer

    return {
        name: LoraLayer(
            layer.lora_A[adapter].weight.detach(),
            layer.lora_B[adapter].weight.detach(),
            float(layer.lora_alpha[adapter]),
        )
        for name, layer in module.named_modules()
        if isinstance(layer, PeftLayer) and adapter in layer.lora_A
    }


def save_lora(file: Path, layers: Mapping[str, LoraLayer], *, metadata: Mapping[str, str] | None = None) -> None:
    """Write `layers` so that diffusers' `load_lora_weights` reads them with the right scale. Atomic.

    The file is read back and compared with `layers`: CheckpointError if it differs. ConfigError if there are none.
    """
    if not layers:
        raise ConfigError(f"{file}: there is no trained adapter to write", "Train one first.")
    tensors: dict[str, Tensor] = {}
    for name, layer in layers.items():
        tensors[f"transformer.{name}.lora_A.weight"] = layer.down.contiguous().cpu()
        tensors[f"transformer.{name}.lora_B.weight"] = layer.up.contiguous().cpu()
    header = {"format": "pt", **(metadata or {}), _METADATA_KEY: json.dumps(_peft_metadata(layers), sort_keys=True)}
    write_file(file, save(tensors, metadata=header))
    _check_written(file, layers)


def _peft_metadata(layers: Mapping[str, LoraLayer]) -> dict[str, Any]:
    first = next(iter(layers.values()))
    config: dict[str, Any] = {
        "r": first.rank,
        "lora_alpha": first.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "peft_type": "LORA",
        "target_modules": sorted(layers),
    }
    config["rank_pattern"] = {name: layer.rank for name, layer in layers.items() if layer.rank != first.rank}
    config["alpha_pattern"] = {name: layer.alpha for name, layer in layers.items() if layer.alpha != first.alpha}
    return {f"transformer.{key}": value for key, value in config.items()}


def _check_written(file: Path, layers: Mapping[str, LoraLayer]) -> None:
    written = read_lora(file)
    same = written.keys() == layers.keys() and all(
        torch.equal(written[name].down, layer.down.cpu())
        and torch.equal(written[name].up, layer.up.cpu())
        and written[name].alpha == layer.alpha
        for name, layer in layers.items()
    )
    if not same:
        raise CheckpointError(f"{file}: what was written does not read back as the weights in memory")


def read_lora(file: Path) -> dict[str, LoraLayer]:
    """The layers of a LoRA file: diffusers, peft, ComfyUI (`diffusion_model.` with `.alpha`) and bare names.

    Everything is checked before a tensor is used: CheckpointError names keys that belong to no layer, halves
    without a partner, shapes that do not fit and values that are not finite.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            header: dict[str, str] = opened.metadata() or {}
            keys = list(opened.keys())
            if len(keys) > _MOST_TENSORS:
                raise UntrustedError(f"{file}: {len(keys)} tensors, no LoRA has more than {_MOST_TENSORS}")
            tensors = {key: opened.get_tensor(key) for key in keys}
    except FileNotFoundError as error:
        raise CheckpointError(f"LoRA file {file}: there is no such file") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"LoRA file {file}: not a safetensors file ({error})",
            "Only safetensors files are read; pickles can run code.",
        ) from error
    return _pair(file, tensors, header)


def _pair(file: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> dict[str, LoraLayer]:
    found: dict[str, dict[str, Tensor]] = defaultdict(dict)
    problems: list[str] = []
    for key, tensor in tensors.items():
        for part, endings in (("down", _DOWN), ("up", _UP), ("alpha", (".alpha",))):
            ending = next((e for e in endings if key.endswith(e)), None)
            if ending is not None:
                parts = found[_layer_name(key.removesuffix(ending))]
                if part in parts:
                    problems.append(f"{key}: given twice, under several names")
                parts[part] = tensor
                break
        else:
            problems.append(f"{key}: not part of a LoRA layer")
    noted = _noted_alphas(file, header)
    layers: dict[str, LoraLayer] = {}
    for name, parts in found.items():
        down, up = parts.get("down"), parts.get("up")
        if down is None or up is None:
            problems.append(f"{name}: only one of lora_A and lora_B")
        elif not (down.is_floating_point() and up.is_floating_point()):
            problems.append(f"{name}: holds {down.dtype} and {up.dtype}, expected floating point")
        elif down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1]:
            problems.append(f"{name}: lora_A {list(down.shape)} and lora_B {list(up.shape)} do not belong together")
        elif not 1 <= down.shape[0] <= _LARGEST_RANK:
            problems.append(f"{name}: has rank {down.shape[0]}, expected 1 to {_LARGEST_RANK}")
        elif not all(bool(torch.isfinite(half.float()).all()) for half in (down, up)):
            problems.append(f"{name}: holds values that are not finite")
        elif "alpha" in parts and parts["alpha"].numel() != 1:
            problems.append(f"{name}: its alpha has shape {list(parts['alpha'].shape)}, expected one number")
        else:
            rank = int(down.shape[0])
            alpha = float(parts["alpha"]) if "alpha" in parts else noted.of(name, rank)
            if not math.isfinite(alpha):
                problems.append(f"{name}: its alpha is {alpha}")
            layers[name] = LoraLayer(down, up, alpha)
    if not found:
        problems.append("no lora_A / lora_B (or lora_down / lora_up) tensors")
    if problems:
        raise CheckpointError(f"LoRA file {file} cannot be used:\n{bullet_list(problems[:20])}")
    return layers


def _layer_name(key: str) -> str:
    for prefix in _PREFIXES:
        key = key.removeprefix(prefix)
    return key


@attrs.frozen
class _NotedAlphas:
    """What a file's metadata says of alpha, in peft's words."""

    default: float | None = None
    patterns: Mapping[str, float] = attrs.field(factory=dict)
    rslora: bool = False

    def of(self, name: str, rank: int) -> float:
        """Alpha of a layer, so that its scale is alpha / rank; where nothing is said the scale is 1, as in diffusers.

        A pattern names a layer or the end of its name; the first that does counts (peft: get_pattern_key).
        """
        alpha = next((a for key, a in self.patterns.items() if f".{name}".endswith(f".{key}")), self.default)
        if alpha is None:
            return float(rank)
        return alpha * math.sqrt(rank) if self.rslora else alpha  # rslora: scale is alpha / sqrt(rank)


def _noted_alphas(file: Path, header: Mapping[str, str]) -> _NotedAlphas:
    text = header.get(_METADATA_KEY)
    if text is None:
        return _NotedAlphas()
    try:
        config = json.loads(text)
        config = {key.removeprefix("transformer."): value for key, value in config.items()}
        patterns = {str(name): float(value) for name, value in (config.get("alpha_pattern") or {}).items()}
        regular = [key for key in patterns if re.fullmatch(r"[\w.]+", key) is None]
        if regular:
            raise ValueError(f"alpha_pattern {regular[0]!r} is a regular expression; only names are read")
        return _NotedAlphas(float(config["lora_alpha"]), patterns, bool(config.get("use_rslora")))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"LoRA file {file}: its {_METADATA_KEY} cannot be read ({error})") from error


def load_lora(module: nn.Module, file: Path, weight: float = 1.0, *, adapter: str = "default") -> None:
    """Put the adapter of a file on `module`, scaled by `weight`, beside those it carries already.

    CheckpointError names layers that the network does not have and shapes that do not fit: nothing is loaded in
    part.
    """
    from peft import LoraConfig as PeftLoraConfig
    from peft import inject_adapter_in_model
    from peft.tuners.lora import LoraLayer as PeftLayer

    layers = read_lora(file)
    _check_fits(module, file, layers)
    # peft compares every layer with every pattern, half a minute for the layers of Qwen-Image: exceptions only.
    rank = Counter(layer.rank for layer in layers.values()).most_common(1)[0][0]
    alpha = Counter(layer.alpha for layer in layers.values()).most_common(1)[0][0]
    inject_adapter_in_model(
        PeftLoraConfig(
            r=rank,
            lora_alpha=alpha * weight,
            target_modules=list(layers),
            rank_pattern={f"^{re.escape(name)}$": layer.rank for name, layer in layers.items() if layer.rank != rank},
            alpha_pattern={
                f"^{re.escape(name)}$": layer.alpha * weight for name, layer in layers.items() if layer.alpha != alpha
            },
        ),
        module,
        adapter_name=adapter,
    )
    for name, part in module.named_modules():
        if isinstance(part, PeftLayer):
            if name in layers:
                with torch.no_grad():
                    part.lora_A[adapter].weight.copy_(layers[name].down)
                    part.lora_B[adapter].weight.copy_(layers[name].up)
            part.set_adapter(list(part.lora_A))
    module.requires_grad_(False)


def _check_fits(module: nn.Module, file: Path, layers: Mapping[str, LoraLayer]) -> None:
    # A layer that carries an adapter already keeps its weight in `base_layer`; its own name stays.
    linears = {
        name: getattr(part, "base_layer", part)
        for name, part in module.named_modules()
        if isinstance(getattr(part, "base_layer", part), nn.Linear) and not name.endswith(".base_layer")
    }
    problems = []
    for name, layer in layers.items():
        if name not in linears:
            problems.append(f"{name}: the network has no such linear layer")
            continue
        linear = linears[name]
        wanted = (linear.in_features, linear.out_features)
        got = (layer.down.shape[1], layer.up.shape[0])
        if wanted != got:
            problems.append(
                f"{name}: made for {got[0]} -> {got[1]} features, the network has {wanted[0]} -> {wanted[1]}"
            )
    if problems:
        more = f"\n  ... and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise CheckpointError(
            f"LoRA file {file} does not fit {type(module).__name__} ({len(problems)} of {len(layers)} layers):\n"
            + bullet_list(problems[:10])
            + more,
            "It was made for another model.",
        )


def merge_lora(module: nn.Module) -> None:
    """Add every adapter's update into the weights it belongs to, for good, and take the adapters off.

    ConfigError if a weight is quantised: the update would be rounded away, or lost.
    """
    from peft.tuners.lora import LoraLayer as PeftLayer

    for name, part in module.named_modules():
        weight = part.get_base_layer().weight if isinstance(part, PeftLayer) else None
        if weight is not None and type(weight) is not nn.Parameter:
            raise ConfigError(
                f"{name}: its weight is quantised ({type(weight).__name__}), and nothing can be added to it exactly",
                "Save the LoRA, and merge it into a denoiser that is loaded without denoiser.quantise.",
            )
    for name, part in list(module.named_modules()):
        if isinstance(part, PeftLayer):
            part.merge(safe_merge=True)
            parent = module.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], part.get_base_layer())
    if hasattr(module, "peft_config"):
        del module.peft_config
