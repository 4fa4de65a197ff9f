"""LoRA on any network, and files other programs read."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from qframe.adapters import (
    LoraLayer,
    add_lora,
    add_updates,
    load_lora,
    lora_layers,
    merge_lora,
    read_lora,
    resolve_targets,
    save_lora,
)
from qframe.config.schema import LoraConfig
from qframe.errors import ConfigError, NumericsError, WeightsError

PRESETS = {"default": ("to_q",), "both": ("to_q", "to_k")}
INPUT = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k = nn.Linear(8, 6), nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.to_k(torch.relu(self.to_q(x)))
        return result


@pytest.fixture
def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(*(Block() for _ in range(12)))


def trained(
    network: nn.Module,
    *,
    rank: int = 3,
    alpha: float = 7.5,
    targets: tuple[str, ...] = ("both",),
    dora: bool = False,
) -> None:
    """An adapter whose update is not zero."""
    config = LoraConfig(rank=rank, alpha=alpha, targets=targets, dora=dora)
    parameters = add_lora(network, config, PRESETS, seed=0)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)


def fresh(network: nn.Module) -> nn.Sequential:
    copy = nn.Sequential(*(Block() for _ in range(12)))
    copy.load_state_dict({k.replace(".base_layer", ""): v for k, v in network.state_dict().items() if "lora" not in k})
    return copy


def test_a_new_adapter_changes_nothing_and_only_it_is_trained(network: nn.Sequential) -> None:
    before = network(INPUT)
    parameters = add_lora(network, LoraConfig(rank=2), PRESETS, seed=0)
    assert torch.equal(network(INPUT), before)
    assert all("lora_" in name for name in parameters)
    assert {name for name, p in network.named_parameters() if p.requires_grad} == set(parameters)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_new_dora_changes_nothing_and_its_magnitudes_are_trained(network: nn.Sequential, dtype: torch.dtype) -> None:
    network.to(dtype)
    before = network(INPUT.to(dtype))
    parameters = add_lora(network, LoraConfig(rank=2, dora=True), PRESETS, seed=0)
    assert torch.equal(network(INPUT.to(dtype)), before)
    magnitudes = {name: p for name, p in parameters.items() if "magnitude" in name}
    assert {name.partition(".lora_")[0] for name in magnitudes} == {f"{i}.to_q" for i in range(12)}
    assert {p.dtype for p in parameters.values()} == {torch.float32}
    network(INPUT.to(dtype)).float().square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in magnitudes.values())


def test_dora_is_its_formula(network: nn.Sequential) -> None:
    """W' = m (W + s BA) / |W + s BA|, the length of every row: arXiv 2402.09353, eq. 5."""
    trained(network, targets=("0.to_q",), dora=True)
    layer = lora_layers(network)["0.to_q"]
    assert layer.magnitude is not None
    linear = network[0].to_q.base_layer  # type: ignore[union-attr]
    moved = linear.weight + layer.alpha / layer.rank * layer.up @ layer.down
    weight = layer.magnitude[:, None] * nn.functional.normalize(moved, dim=1)
    torch.testing.assert_close(network[0].to_q(INPUT), nn.functional.linear(INPUT, weight, linear.bias))
    torch.testing.assert_close(linear.weight + layer.update(linear.weight), weight)


def test_rslora_is_the_equal_alpha(network: nn.Sequential, tmp_path: Path) -> None:
    """Held against peft, which divides by the root of the rank; every reader of the file divides by the rank."""
    from peft import LoraConfig as PeftLoraConfig
    from peft import inject_adapter_in_model

    theirs = fresh(network)
    inject_adapter_in_model(PeftLoraConfig(r=8, lora_alpha=6, use_rslora=True, target_modules=["to_q"]), theirs)
    config = LoraConfig(rank=8, alpha=6.0, rslora=True)
    add_lora(network, config, PRESETS, seed=0)
    scale = network[0].to_q.scaling["default"]  # type: ignore[union-attr]
    assert scale == pytest.approx(theirs[0].to_q.scaling["default"], rel=1e-7)  # type: ignore[union-attr]
    save_lora(tmp_path / "a", lora_layers(network))
    assert read_lora(tmp_path / "a")["0.to_q"].alpha / 8 == scale


def test_the_seed_decides_the_first_weights_and_leaves_the_global_generator_alone(network: nn.Sequential) -> None:
    one, two, three = fresh(network), fresh(network), fresh(network)
    torch.manual_seed(9)
    expected = torch.rand(1)
    torch.manual_seed(9)
    first = add_lora(one, LoraConfig(), PRESETS, seed=4)
    assert torch.equal(torch.rand(1), expected)
    again = add_lora(two, LoraConfig(), PRESETS, seed=4)
    other = add_lora(three, LoraConfig(), PRESETS, seed=5)
    names = [name for name in first if "lora_A" in name]
    assert all(torch.equal(first[name], again[name]) for name in names)
    assert not any(torch.equal(first[name], other[name]) for name in names)


def test_other_devices_are_not_reseeded(network: nn.Sequential, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    add_lora(network, LoraConfig(), PRESETS, seed=4)
    assert seeds == []


def test_an_adapter_is_trained_in_float32_whatever_the_network(network: nn.Sequential) -> None:
    """A step of AdamW is far below the last bit of a bfloat16 weight: most updates would round to nothing."""
    wide = {name: p.clone() for name, p in add_lora(fresh(network), LoraConfig(rank=2), PRESETS, seed=0).items()}
    network.to(torch.bfloat16)
    parameters = add_lora(network, LoraConfig(rank=2), PRESETS, seed=0)
    assert {p.dtype for p in parameters.values()} == {torch.float32}
    assert parameters.keys() == wide.keys()
    found = network(INPUT.bfloat16())
    assert found.dtype == torch.bfloat16
    found.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in parameters.values())


def test_a_saved_adapter_loads_with_its_alpha(network: nn.Sequential, tmp_path: Path) -> None:
    trained(network)
    save_lora(tmp_path / "a.safetensors", lora_layers(network))
    copy = fresh(network)
    assert not torch.allclose(copy(INPUT), network(INPUT), atol=1e-2)
    load_lora(copy, tmp_path / "a.safetensors")
    torch.testing.assert_close(copy(INPUT), network(INPUT))


def test_the_weight_scales_the_update(network: nn.Sequential, tmp_path: Path) -> None:
    trained(network, targets=("0.to_q",))
    save_lora(tmp_path / "a.safetensors", lora_layers(network))
    copy = fresh(network)
    base = copy[0].to_q(INPUT)
    load_lora(copy, tmp_path / "a.safetensors", 0.5)
    full = network[0].to_q(INPUT)
    torch.testing.assert_close(copy[0].to_q(INPUT), base + 0.5 * (full - base))


def test_two_files_add_up(network: nn.Sequential, tmp_path: Path) -> None:
    trained(network, targets=("0.to_q",))
    save_lora(tmp_path / "a.safetensors", lora_layers(network))
    copy = fresh(network)
    base = copy[0].to_q(INPUT)
    load_lora(copy, tmp_path / "a.safetensors", 1.0, adapter="one")
    load_lora(copy, tmp_path / "a.safetensors", 0.25, adapter="two")
    torch.testing.assert_close(copy[0].to_q(INPUT), base + 1.25 * (network[0].to_q(INPUT) - base))


def test_metadata_tells_diffusers_the_alpha(network: nn.Sequential, tmp_path: Path) -> None:
    trained(network)
    save_lora(tmp_path / "a.safetensors", lora_layers(network), metadata={"weights_licence": "apache-2.0"})
    with safe_open(tmp_path / "a.safetensors", framework="pt") as opened:
        header = opened.metadata()
    config = json.loads(header["lora_adapter_metadata"])
    assert (config["transformer.r"], config["transformer.lora_alpha"]) == (3, 7.5)
    assert header["weights_licence"] == "apache-2.0"


@pytest.mark.parametrize(
    ("prefix", "down", "up", "alpha"),
    [
        ("diffusion_model.", "lora_A", "lora_B", True),
        ("transformer.", "lora_A", "lora_B", True),
        ("", "lora_down", "lora_up", True),
        ("", "lora_A", "lora_B", True),
        ("base_model.model.", "lora_A", "lora_B", False),
    ],
)
def test_other_programs_keys_are_read(
    network: nn.Sequential, tmp_path: Path, prefix: str, down: str, up: str, alpha: bool
) -> None:
    trained(network, alpha=7.5 if alpha else 3.0)
    tensors = {}
    for name, layer in lora_layers(network).items():
        tensors[f"{prefix}{name}.{down}.weight"] = layer.down.clone()
        tensors[f"{prefix}{name}.{up}.weight"] = layer.up.clone()
        if alpha:
            tensors[f"{prefix}{name}.alpha"] = torch.tensor(layer.alpha)
    save_file(tensors, tmp_path / "other.safetensors")
    copy = fresh(network)
    load_lora(copy, tmp_path / "other.safetensors")
    torch.testing.assert_close(copy(INPUT), network(INPUT))


@pytest.mark.parametrize(
    ("noted", "alphas"),
    [
        ({"lora_alpha": 6}, [6.0, 6.0]),
        ({"lora_alpha": 6, "alpha_pattern": {"to_k": 9}}, [6.0, 9.0]),
        ({"lora_alpha": 6, "alpha_pattern": {"0.to_q": 2, "to_q": 5}}, [2.0, 6.0]),
        ({"lora_alpha": 6, "alpha_pattern": {"o_q": 9}}, [6.0, 6.0]),
        ({"lora_alpha": 6, "use_rslora": True}, [12.0, 12.0]),
    ],
)
def test_metadata_of_others_means_what_peft_means_by_it(
    network: nn.Sequential, tmp_path: Path, noted: dict[str, object], alphas: list[float]
) -> None:
    """Held against peft itself: patterns may be the ends of names, and rslora divides by the root of the rank."""
    from peft import LoraConfig as PeftLoraConfig
    from peft import inject_adapter_in_model

    generator = torch.Generator().manual_seed(3)
    shapes = {"0.to_q": (8, 6), "0.to_k": (6, 8)}
    halves = {
        name: (torch.randn(4, wide, generator=generator), torch.randn(out, 4, generator=generator))
        for name, (wide, out) in shapes.items()
    }
    tensors = {
        f"transformer.{n}.lora_{h}.weight": t for n, pair in halves.items() for h, t in zip("AB", pair, strict=True)
    }
    metadata = {f"transformer.{key}": value for key, value in noted.items()}
    save_file(tensors, tmp_path / "a.safetensors", {"lora_adapter_metadata": json.dumps(metadata)})
    assert [read_lora(tmp_path / "a.safetensors")[name].alpha for name in shapes] == alphas

    ours, theirs = fresh(network), fresh(network)
    load_lora(ours, tmp_path / "a.safetensors")
    inject_adapter_in_model(PeftLoraConfig(r=4, target_modules=list(shapes), **noted), theirs)  # type: ignore[arg-type]
    with torch.no_grad():
        for name, (down, up) in halves.items():
            layer = theirs.get_submodule(name)
            layer.lora_A["default"].weight.copy_(down)  # type: ignore[index, operator, union-attr]
            layer.lora_B["default"].weight.copy_(up)  # type: ignore[index, operator, union-attr]
    torch.testing.assert_close(ours(INPUT), theirs(INPUT))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ('{"transformer.lora_alpha": NaN}', "alpha is nan"),
        ('{"transformer.lora_alpha": 1, "transformer.alpha_pattern": {"(a+)+b": 2}}', "regular expression"),
    ],
)
def test_metadata_that_cannot_be_used_is_refused(
    network: nn.Sequential, tmp_path: Path, text: str, message: str
) -> None:
    trained(network)
    save_lora(tmp_path / "a.safetensors", lora_layers(network))
    save_file(load_file(tmp_path / "a.safetensors"), tmp_path / "b.safetensors", {"lora_adapter_metadata": text})
    with pytest.raises(WeightsError, match=message):
        read_lora(tmp_path / "b.safetensors")


def test_layers_of_several_ranks_and_alphas_load_with_their_own(network: nn.Sequential, tmp_path: Path) -> None:
    layers = {
        f"{i}.to_q": LoraLayer(torch.randn(1 + i % 3, 8), torch.randn(6, 1 + i % 3), 1.0 + i % 2) for i in range(12)
    }
    save_lora(tmp_path / "a.safetensors", layers)
    copy = fresh(network)
    load_lora(copy, tmp_path / "a.safetensors", 0.5)
    for name, layer in layers.items():
        plain = network.get_submodule(name)(INPUT)
        update = 0.5 * layer.alpha / layer.rank * (INPUT @ layer.down.T @ layer.up.T)
        torch.testing.assert_close(copy.get_submodule(name)(INPUT), plain + update)


def test_nine_hundred_layers_load_within_seconds(tmp_path: Path) -> None:
    """What peft does with patterns takes time by their number squared: it took half a minute."""
    network = nn.ModuleDict({f"block{i}": nn.ModuleList(nn.Linear(2, 2) for _ in range(15)) for i in range(60)})
    names = [name for name, part in network.named_modules() if isinstance(part, nn.Linear)]
    save_lora(tmp_path / "a.safetensors", {n: LoraLayer(torch.ones(1, 2), torch.ones(2, 1), 3.0) for n in names})
    started = time.process_time()
    load_lora(network, tmp_path / "a.safetensors")
    assert len(lora_layers(network)) == 900
    assert time.process_time() - started < 10


def test_an_adapter_upon_an_adapter_is_refused(network: nn.Sequential) -> None:
    """Layers that carry one already would silently have been left out."""
    trained(network, targets=("0.to_q",))
    with pytest.raises(ConfigError, match="carries an adapter already"):
        add_lora(network, LoraConfig(), PRESETS, seed=0)


def test_no_target_and_nothing_to_write_are_named(network: nn.Sequential, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="names no layer"):
        add_lora(network, LoraConfig(targets=()), PRESETS, seed=0)
    with pytest.raises(ConfigError, match="no trained adapter to write"):
        save_lora(tmp_path / "a.safetensors", lora_layers(network))


def test_merging_keeps_the_output_and_leaves_a_plain_network(network: nn.Sequential) -> None:
    trained(network)
    adapted = network(INPUT)
    merge_lora(network)
    torch.testing.assert_close(network(INPUT), adapted, rtol=1e-5, atol=1e-5)
    assert network.state_dict().keys() == nn.Sequential(*(Block() for _ in range(12))).state_dict().keys()


def test_dora_on_quantised_weights_is_refused_before_anything_changes(tmp_path: Path) -> None:
    class Quantised(nn.Parameter):
        """As quanto's: another class in the place of the weight."""

    plain = nn.Sequential(Block())
    trained(plain, targets=("0.to_q",), dora=True)
    save_lora(tmp_path / "a", lora_layers(plain))
    network = nn.Sequential(Block())
    network[0].to_q.weight = Quantised(torch.randn(6, 8))  # type: ignore[union-attr]
    names = network.state_dict().keys()
    with pytest.raises(ConfigError, match=r"0\.to_q: its weight is quantised \(Quantised\)"):
        add_lora(network, LoraConfig(dora=True), PRESETS, seed=0)
    with pytest.raises(ConfigError, match=r"0\.to_q: its weight is quantised \(Quantised\)"):
        load_lora(network, tmp_path / "a")
    assert network.state_dict().keys() == names


@pytest.mark.parametrize(("first", "second"), [(True, False), (False, True), (True, True)])
def test_dora_beside_another_adapter_is_refused_and_merged_in_any_order(
    network: nn.Sequential, tmp_path: Path, first: bool, second: bool
) -> None:
    """Peft would multiply what one does with the other, and merge them to something else again."""
    for name, dora in (("a", first), ("b", second)):
        own = fresh(network)
        trained(own, targets=("0.to_q",), rank=2 if name == "a" else 3, dora=dora)
        save_lora(tmp_path / name, lora_layers(own))
    copy = fresh(network)
    load_lora(copy, tmp_path / "a", adapter="a")
    with pytest.raises(ConfigError, match=r"0\.to_q carries an adapter already, and DoRA cannot be one of several"):
        load_lora(copy, tmp_path / "b", adapter="b")
    one, two = (read_lora(tmp_path / name) for name in ("a", "b"))
    forth, back = fresh(network), fresh(network)
    add_updates(forth, [(one, 1.0), (two, 0.5)])
    add_updates(back, [(two, 0.5), (one, 1.0)])
    assert torch.equal(forth[0].to_q.weight, back[0].to_q.weight)
    plain = network[0].to_q.weight
    expected = plain + one["0.to_q"].update(plain) + two["0.to_q"].update(plain, 0.5)
    torch.testing.assert_close(forth[0].to_q.weight, expected)


def test_merging_rounds_once(network: nn.Sequential) -> None:
    """Many small updates of a bfloat16 weight, each below its last bit, arrive together."""
    weight = network[0].to_q.weight
    layer = LoraLayer(torch.ones(1, 8), torch.full((6, 1), 2.0**-12), 1.0)
    with torch.no_grad():
        weight.fill_(1.0)
    network.to(torch.bfloat16)
    add_updates(network, [({"0.to_q": layer}, 1.0)] * 64)
    assert torch.equal(network[0].to_q.weight, torch.full_like(weight, 1.0 + 2.0**-6, dtype=torch.bfloat16))


def test_a_merge_that_would_not_stay_finite_is_refused(network: nn.Sequential) -> None:
    layer = LoraLayer(torch.full((1, 8), 1e38), torch.full((6, 1), 1e38), 1.0)
    with pytest.raises(NumericsError, match=r"0\.to_q: merged, its weight would not be finite"):
        add_updates(network, [({"0.to_q": layer}, 1.0)])


def test_a_target_that_matches_nothing_is_named(network: nn.Sequential) -> None:
    with pytest.raises(ConfigError, match="'to_v' matches no linear layer") as caught:
        add_lora(network, LoraConfig(targets=("to_v",)), PRESETS, seed=0)
    assert "Presets: both, default" in str(caught.value)


@pytest.mark.parametrize(
    ("target", "names"),
    [
        ("1?.to_q", ["10.to_q", "11.to_q"]),
        ("[02].to_*", ["0.to_q", "0.to_k", "2.to_q", "2.to_k"]),
        ("1.*", ["1.to_q", "1.to_k"]),
    ],
)
def test_a_target_may_have_wildcards(network: nn.Sequential, target: str, names: list[str]) -> None:
    assert resolve_targets(network, (target,), PRESETS) == names


def test_a_wildcard_that_matches_nothing_is_named(network: nn.Sequential) -> None:
    with pytest.raises(ConfigError, match=r"'9\?\.to_q' matches no linear layer"):
        resolve_targets(network, ("9?.to_q",), PRESETS)


def test_a_target_matches_whole_names_only(network: nn.Sequential) -> None:
    assert resolve_targets(network, ("1.to_q",), PRESETS) == ["1.to_q"]  # not 11.to_q


def _broken(tmp_path: Path, network: nn.Module, change: str) -> Path:
    trained(network, targets=("0.to_q",))
    file = tmp_path / "broken.safetensors"
    save_lora(file, lora_layers(network))
    tensors = load_file(file)
    down, up = "transformer.0.to_q.lora_A.weight", "transformer.0.to_q.lora_B.weight"
    if change == "nan":
        tensors[down][0, 0] = float("nan")
    elif change == "half":
        del tensors[up]
    elif change == "other model":
        tensors = {key.replace("0.to_q", "9.to_v"): tensor for key, tensor in tensors.items()}
    elif change == "shape":
        tensors[down] = torch.zeros(3, 5)
    elif change == "ranks":
        tensors[down] = torch.zeros(2, 8)
    elif change == "stray":
        tensors["transformer.0.to_q.dora_scale"] = torch.zeros(3)
    elif change == "nothing":
        tensors = {}
    elif change == "no rank":
        tensors = {down: torch.zeros(0, 8), up: torch.zeros(6, 0)}
    elif change == "integers":
        tensors[down] = tensors[down].to(torch.int8)
    elif change == "twice":
        tensors["0.to_q.lora_A.weight"] = tensors[down] * 2
    elif change == "alphas":
        tensors["transformer.0.to_q.alpha"] = torch.ones(3)
    elif change == "alpha nan":
        tensors["transformer.0.to_q.alpha"] = torch.tensor(float("nan"))
    save_file(tensors, file)
    return file


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("nan", "transformer.0.to_q.lora_A.weight: holds values that are not finite"),
        ("half", "0.to_q: only one of lora_A and lora_B"),
        ("other model", "9.to_v: the network has no such linear layer"),
        ("shape", "0.to_q: made for 5 -> 6 features, the network has 8 -> 6"),
        ("ranks", "do not belong together"),
        ("stray", "transformer.0.to_q.dora_scale: not part of a LoRA layer"),
        ("nothing", "no lora_A / lora_B"),
        ("no rank", "0.to_q: has rank 0, expected 1 to"),
        ("integers", "0.to_q: holds I8 and F32"),
        ("twice", "0.to_q.lora_A.weight: given twice"),
        ("alphas", r"0.to_q: its alpha is F32 of shape \[3\]"),
        ("alpha nan", "0.to_q: its alpha is nan"),
    ],
)
def test_a_file_that_cannot_be_used_says_why_and_changes_nothing(
    network: nn.Sequential, tmp_path: Path, change: str, message: str
) -> None:
    file = _broken(tmp_path, network, change)
    copy = fresh(network)
    before = copy(INPUT)
    with pytest.raises(WeightsError, match=message):
        load_lora(copy, file)
    assert torch.equal(copy(INPUT), before)


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    file = tmp_path / "lora.safetensors"
    file.write_bytes(b"\x80\x04\x95 this is a pickle")
    with pytest.raises(WeightsError, match="not a safetensors file"):
        read_lora(file)
    with pytest.raises(WeightsError, match="no such file"):
        read_lora(tmp_path / "missing.safetensors")


@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16], ids=str)
def test_under_autocast_an_adapter_keeps_no_copy_of_its_input_and_gives_the_same_bits(
    network: nn.Sequential, base: torch.dtype
) -> None:
    """Peft converts the input to float32, and autocast converts it back: no bit is gained by it."""
    network.to(base)
    trained(network)
    found = []
    for spared in (True, False):
        network.zero_grad()
        for part in network.modules():
            if hasattr(part, "lora_A") and not spared:
                del part._cast_input_dtype  # peft's own method is there again
        x = INPUT.bfloat16().requires_grad_()
        seen: list[Tensor] = []
        network[0].to_q.lora_A["default"].register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0]))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            made = network(x)
        made.float().square().sum().backward()
        assert (seen[0] is x) == spared
        found.append([made, x.grad, *(p.grad for p in network.parameters() if p.grad is not None)])
    assert len(found[0]) == 2 + 2 * 2 * 12
    assert all(torch.equal(own, peft) for own, peft in zip(*found, strict=True))


def test_without_autocast_an_adapter_converts_its_input(network: nn.Sequential) -> None:
    network.bfloat16()
    trained(network)
    assert network(INPUT.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("settings", [{"dora": True}, {"dropout": 0.5}], ids=str)
def test_dora_and_dropout_compute_in_float32_under_autocast(network: nn.Sequential, settings: dict[str, Any]) -> None:
    """Both multiply by numbers that bfloat16 would round."""
    add_lora(network.bfloat16(), LoraConfig(rank=2, **settings), PRESETS, seed=0)
    seen = []
    network[0].to_q.lora_A["default"].register_forward_pre_hook(lambda _, given: seen.append(given[0].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        network(INPUT.bfloat16())
    assert set(seen) == {torch.float32}
