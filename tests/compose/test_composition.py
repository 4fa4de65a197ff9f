from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import attrs
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from qframe.compose import Composition, compose, find_device
from qframe.config import load_config
from qframe.errors import CompositionError, ConfigError, PluginError, WeightsError
from qframe.files.model_folder import ModelFolder
from qframe.interfaces import (
    PLAIN,
    CodecSpec,
    Conditioning,
    Denoiser,
    DenoiserSpec,
    Encoder,
    EncoderSpec,
    ExampleInputs,
    ForwardOptions,
    LatentCodec,
    PackedSequence,
    Plan,
    Recipe,
    Record,
    Request,
    Sampler,
    Schedule,
    Settled,
)
from qframe.plugins.hookspecs import Component, Family, hookimpl
from qframe.plugins.registry import Registry
from tests.fake_distributions import registry_of

LOADED: list[str] = []


class Loads:
    """What the fakes below share: loading writes down what was loaded."""

    model: ModelFolder
    options: Any
    device: torch.device
    dtype: torch.dtype

    @classmethod
    def load(cls, model: ModelFolder, options: Any, *, device: torch.device, dtype: torch.dtype) -> Any:
        LOADED.append(cls.__name__)
        part = cls()
        part.model, part.options, part.device, part.dtype = model, options, device, dtype
        return part

    @classmethod
    def ingredients(cls, model: ModelFolder, options: Any) -> dict[str, str]:
        return {"made of": f"{cls.__name__} {model.name} {options}"}


@attrs.frozen
class WidthOptions:
    width: int = 3584
    sees: bool = True


class FakeEncoder(Loads, Encoder):
    @classmethod
    def describe(cls, model: ModelFolder, options: Any) -> EncoderSpec:
        return EncoderSpec(text_space="qwen2.5-vl", width=options.width, pictures=options.sees)

    def encode(self, prompts: Sequence[str], pictures: Sequence[Sequence[Image.Image]]) -> Conditioning:
        raise NotImplementedError


class FakeCodec(Loads, LatentCodec):
    space = "qwen-image"

    @classmethod
    def describe(cls, model: ModelFolder, options: Any) -> CodecSpec:
        channels = model.config("vae")["z_dim"]
        return CodecSpec(latent_space=cls.space, channels=channels, compression=8)

    def encode(self, pixels: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        raise NotImplementedError

    def decode(self, latents: Tensor) -> Tensor:
        raise NotImplementedError


class FluxCodec(FakeCodec):
    space = "flux.1"


class FakeDenoiser(Loads, Denoiser):
    module = nn.Identity()
    takes_references = True

    @classmethod
    def describe(cls, model: ModelFolder, options: Any) -> DenoiserSpec:
        return DenoiserSpec(
            latent_space="qwen-image",
            text_space="qwen2.5-vl",
            token_channels=64,
            patch=2,
            text_width=3584,
            references=cls.takes_references,
        )

    def velocity(
        self,
        x: PackedSequence,
        sigma: Tensor,
        cond: Conditioning,
        references: PackedSequence | None = None,
        *,
        forward: ForwardOptions = PLAIN,
    ) -> Tensor:
        raise NotImplementedError

    def save(self, folder: Path, saved_as: Any = None) -> None:
        raise NotImplementedError


class PlainDenoiser(FakeDenoiser):
    takes_references = False


class MisdescribedDenoiser(FakeDenoiser):
    @classmethod
    def describe(cls, model: ModelFolder, options: Any) -> Any:
        return {"token_channels": 64}


class FakeSchedule(Loads, Schedule):
    refuses: ClassVar[str | None] = None

    @classmethod
    def describe(cls, model: ModelFolder, options: Any) -> None:
        if cls.refuses is not None:
            raise WeightsError(cls.refuses)

    def sigmas(self, steps: int, tokens: int, custom: Sequence[float] | None = None) -> Tensor:
        raise NotImplementedError

    def shift(self, sigma: Tensor, tokens: int) -> Tensor:
        raise NotImplementedError


class OptionSampler(Sampler):
    def __init__(self, options: WidthOptions) -> None:
        self.options = options

    def sample(self, *args: Any, **kwargs: Any) -> Tensor:
        raise NotImplementedError


class UnfinishedEncoder(Encoder):
    def encode(self, prompts: Sequence[str], pictures: Sequence[Sequence[Image.Image]]) -> Conditioning:
        raise NotImplementedError


class FakeRecipe(Recipe):
    references = True
    pictures = True

    def inputs(self, record: Record) -> ExampleInputs:
        raise NotImplementedError

    def request_for(self, record: Record) -> Request:
        raise NotImplementedError

    def settle(self, request: Request, parts: Any) -> tuple[Settled, ...]:
        raise NotImplementedError

    def plan(self, settled: Settled, parts: Any) -> Plan:
        raise NotImplementedError


BUNDLED: list[Path] = []


def bundled_model() -> Path:
    return BUNDLED[-1]


def make_registry() -> Registry:
    here = __name__
    width = f"{here}:WidthOptions"
    components = [
        Component("encoder", "qwen2.5-vl", f"{here}:FakeEncoder", options=width),
        Component("encoder", "unfinished", f"{here}:UnfinishedEncoder"),
        Component("codec", "qwen-vae", f"{here}:FakeCodec"),
        Component("codec", "not-a-codec", f"{here}:FakeEncoder"),
        Component("denoiser", "qwen-image", f"{here}:FakeDenoiser"),
        Component("denoiser", "plain", f"{here}:PlainDenoiser"),
        Component("denoiser", "misdescribed", f"{here}:MisdescribedDenoiser"),
        Component("schedule", "flow-match", f"{here}:FakeSchedule"),
        Component("sampler", "euler", "qframe.diffusion.samplers:EulerSampler"),
        Component("sampler", "with-options", f"{here}:OptionSampler", options=width),
        Component("model", "bundled", f"{here}:bundled_model"),
    ]
    family = Family(
        "edit",
        encoder="qwen2.5-vl",
        denoiser="qwen-image",
        codec="qwen-vae",
        schedule="flow-match",
        sampler="euler",
        recipe=f"{here}:FakeRecipe",
        settings=width,
        model="bundled",
        weights_licence="Apache-2.0",
        summary="",
    )
    homeless = attrs.evolve(family, name="homeless", model=None)
    flux = SimpleNamespace(
        qframe_components=hookimpl(lambda: [Component("codec", "flux-vae", f"{here}:FluxCodec")]),
    )
    qwen = SimpleNamespace(
        qframe_components=hookimpl(lambda: components), qframe_families=hookimpl(lambda: [family, homeless])
    )
    return registry_of(qwen, flux)


REGISTRY = make_registry()


@pytest.fixture(autouse=True)
def model(tmp_path: Path) -> Path:
    folder = make_model(tmp_path / "made")
    BUNDLED[:] = [folder]
    LOADED.clear()
    return folder


def make_model(folder: Path, channels: int = 16) -> Path:
    (folder / "vae").mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    (folder / "vae" / "config.json").write_text(json.dumps({"z_dim": channels}))
    return folder


def composed(*overrides: str, family: str = "edit") -> Composition:
    return compose(load_config(family=family, overrides=overrides, registry=REGISTRY), REGISTRY)


def refused(*overrides: str) -> str:
    with pytest.raises(CompositionError) as caught:
        composed(*overrides)
    return caught.value.message


# The check


def test_what_fits_is_composed_without_loading() -> None:
    composition = composed()
    assert {joint.state for joint in composition.joints} == {"ok"}
    assert LOADED == []


def test_the_table_shows_every_row() -> None:
    assert composed().table().splitlines() == [
        "denoiser 'qwen-image' (plugin a), codec 'qwen-vae' (plugin a), encoder 'qwen2.5-vl' (plugin a)",
        "  ok       latent space    codec gives qwen-image    denoiser wants qwen-image",
        "  ok       token channels  codec gives 64            denoiser wants 64",
        "  ok       text space      encoder gives qwen2.5-vl  denoiser wants qwen2.5-vl",
        "  ok       text width      encoder gives 3584        denoiser wants 3584",
        "  ok       pictures        encoder gives yes         recipe wants yes",
        "  ok       references      denoiser gives yes        recipe wants yes",
    ]


def test_codec_of_equal_shape_from_another_latent_space_is_refused_with_the_whole_table() -> None:
    lines = refused("codec.use=flux-vae").splitlines()
    assert lines[0] == (
        "cannot compose: denoiser 'qwen-image' (plugin a), codec 'flux-vae' (plugin b), encoder 'qwen2.5-vl' (plugin a)"
    )
    assert [line.split()[0] for line in lines[1:]] == ["MISMATCH", "ok", "ok", "ok", "ok", "ok"]
    assert "codec gives flux.1" in lines[1]
    assert "denoiser wants qwen-image" in lines[1]


def test_every_mismatch_is_in_the_table(tmp_path: Path) -> None:
    other = make_model(tmp_path / "other", channels=4)
    message = refused("codec.use=flux-vae", f"codec.model={other}", "encoder.options.width=64", "denoiser.use=plain")
    states = {line[11:25].strip(): line.split()[0] for line in message.splitlines()[1:]}
    assert states == {
        "latent space": "MISMATCH",
        "token channels": "MISMATCH",
        "text space": "ok",
        "text width": "MISMATCH",
        "pictures": "ok",
        "references": "MISMATCH",
    }


def test_an_encoder_that_sees_nothing_is_refused_by_a_recipe_that_shows_pictures() -> None:
    assert "MISMATCH pictures" in refused("encoder.options.sees=false")


def test_allowed_row_passes_and_is_marked() -> None:
    composition = composed("codec.use=flux-vae", 'compose.allow=["latent_space"]')
    assert composition.joints[0].state == "allowed"
    assert composition.config.compose.allow == ("latent_space",)


def test_allowing_one_row_does_not_allow_another() -> None:
    assert "MISMATCH text width" in refused("encoder.options.width=64", 'compose.allow=["latent_space"]')


def test_the_hint_is_an_override_that_works() -> None:
    with pytest.raises(CompositionError) as caught:
        composed("codec.use=flux-vae")
    assert caught.value.hint is not None
    assert "--set compose.allow='[\"latent_space\"]'" in caught.value.hint


# Plugins that break the contract


def test_class_of_another_kind_is_named() -> None:
    with pytest.raises(PluginError, match=r"plugin 'a': .*FakeEncoder is no subclass of qframe.interfaces.LatentCodec"):
        composed("codec.use=not-a-codec")


def test_unfinished_class_names_what_it_lacks() -> None:
    with pytest.raises(PluginError, match="lacks methods of Encoder: describe, ingredients, load"):
        composed("encoder.use=unfinished")


def test_wrong_spec_is_named() -> None:
    with pytest.raises(PluginError, match="describe returned a dict, expected a DenoiserSpec"):
        composed("denoiser.use=misdescribed")


# Model folders


def test_one_role_may_come_from_another_model(tmp_path: Path, model: Path) -> None:
    other = make_model(tmp_path / "other")
    composition = composed(f"codec.model={other}")
    assert composition.model("codec").folder == other
    assert composition.model("encoder").folder == model
    assert composition.model_name == "bundled"


def test_model_may_be_a_folder(tmp_path: Path) -> None:
    other = make_model(tmp_path / "other")
    assert composed(f"model={other}").model("denoiser").folder == other


def test_folder_without_a_component_names_the_file(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(WeightsError, match=r"vae/config\.json cannot be read"):
        composed(f"model={empty}")


def test_unknown_folder_lists_the_bundled_models() -> None:
    with pytest.raises(WeightsError) as caught:
        composed("model=./nowhere")
    assert caught.value.hint is not None
    assert "Bundled: bundled." in caught.value.hint


def test_family_without_a_model_asks_for_one() -> None:
    with pytest.raises(ConfigError) as caught:
        composed(family="homeless")
    assert "Give --model" in str(caught.value)


def test_bundled_model_that_is_not_there_is_the_plugins_fault(tmp_path: Path) -> None:
    BUNDLED[:] = [tmp_path / "gone"]
    with pytest.raises(WeightsError, match="model 'bundled' of plugin 'a'"):
        composed()


# Loading


def test_only_the_named_roles_are_loaded() -> None:
    parts = composed().load("codec")
    assert LOADED == ["FakeCodec", "FakeSchedule"]
    assert isinstance(parts.codec, FakeCodec)
    assert parts.loaded_denoiser is None
    assert parts.denoiser_spec.patch == 2
    assert parts.multiple == 16


def test_the_number_of_threads_is_set_only_where_it_is_configured() -> None:
    before = torch.get_num_threads()
    try:
        composed().load()
        assert torch.get_num_threads() == before
        composed("threads=3").load()
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_parts_are_loaded_with_options_device_and_dtype() -> None:
    parts = composed("encoder.dtype=bfloat16", "device=cpu").load("encoder", "denoiser")
    encoder: Any = parts.encoder
    denoiser: Any = parts.denoiser
    assert (encoder.options, encoder.dtype, encoder.device) == (WidthOptions(), torch.bfloat16, torch.device("cpu"))
    assert (denoiser.options, denoiser.dtype) == (None, torch.float32)


def test_sampler_is_built_with_its_options_if_it_declares_any() -> None:
    sampler: Any = composed("sampler.use=with-options", "sampler.options.width=7").load().sampler
    assert sampler.options == WidthOptions(7)
    assert type(composed().load().sampler).__name__ == "EulerSampler"


def test_recipe_has_settings_and_model(model: Path) -> None:
    recipe = composed("recipe.width=9").recipe
    assert recipe.settings == WidthOptions(9)
    assert recipe.model.folder == model


def test_licence_is_the_one_declared() -> None:
    assert composed().licence == "Apache-2.0"


def test_ingredients_are_those_of_the_component_and_the_dtype() -> None:
    own = {"class": "tests.compose.test_composition:FakeCodec", "dtype": "float32"}
    assert composed().ingredients("codec") == {"made of": "FakeCodec bundled None", **own}
    assert composed("codec.dtype=bfloat16").ingredients("codec")["dtype"] == "bfloat16"


# Devices


def test_auto_is_a_gpu_of_its_own_for_each_process_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    found = []
    for rank in ("0", "1", "2"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        found.append(str(find_device("device", "auto")))
    assert found == ["cuda:0", "cuda:1", "cuda:0"]
    monkeypatch.delenv("LOCAL_RANK")
    assert str(find_device("device", "auto")) == "cuda:0"


@pytest.mark.parametrize("named", ["xpu", "privateuseone", "mps"])
def test_any_accelerator_that_torch_has_found_is_a_device(named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not CUDA alone: also those of packages that extend torch (Ascend's NPU is one)."""
    module = SimpleNamespace(device_count=lambda: 2)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device(named))
    monkeypatch.setattr(torch, "get_device_module", lambda kind: module)
    assert find_device("device", "auto").type == named
    assert find_device("device", named) == torch.device(named)
    assert find_device("device", "cpu").type == "cpu"
    with pytest.raises(ConfigError, match="no device"):
        find_device("device", f"{named}:2")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_name_parses_everywhere_and_fails_where_it_is_used() -> None:
    composition = composed("denoiser.device=cuda:3")
    assert composition.device("codec") == find_device("device", "auto")
    with pytest.raises(ConfigError, match=r"denoiser\.device: this machine has no device 'cuda:3'") as caught:
        composition.load("denoiser")
    assert caught.value.hint is not None
    assert "Available: " in caught.value.hint
    assert "cpu" in caught.value.hint


def test_what_is_no_device_is_named_with_its_key() -> None:
    with pytest.raises(ConfigError, match="device: 'gpu' is not a device"):
        composed("device=gpu").device("codec")


def test_meta_is_no_device_to_compute_on() -> None:
    with pytest.raises(ConfigError, match="no device 'meta'"):
        find_device("device", "meta")


def test_dtype_auto_is_float32_on_a_cpu() -> None:
    assert composed("device=cpu").dtype("denoiser") == torch.float32


def test_planning_a_configuration_imports_no_torch() -> None:
    code = (
        "import sys, qframe.config as c\n"
        "try: c.load_config(family='qwen-image')\n"
        "except Exception as e: print(e)\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["False"]


def test_the_registry_is_asked_once_for_all_that_a_composition_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(family="edit", registry=REGISTRY)
    asked: list[str] = []
    choose = REGISTRY.choose
    monkeypatch.setattr(REGISTRY, "choose", lambda family, named: asked.append(family) or choose(family, named))
    for name in ("components", "families", "component", "family", "resolve", "plugin_of"):
        monkeypatch.setattr(REGISTRY, name, lambda *args: pytest.fail("asked again"))
    compose(config, REGISTRY)
    assert asked == ["edit"]


def test_two_classes_never_share_what_they_are_made_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """Codecs of two plugins whose fingerprints are equal: a cache must not give the latents of one to the other."""
    monkeypatch.setattr(Loads, "ingredients", classmethod(lambda cls, model, options: {"fingerprint": "1"}))
    one, other = composed().ingredients("codec"), composed("codec.use=flux-vae", "compose.allow=['latent_space']")
    assert one != other.ingredients("codec")
    assert {name: value for name, value in one.items() if name != "class"} == {"fingerprint": "1", "dtype": "float32"}


def test_a_schedule_that_does_not_fit_the_model_is_told_by_compose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeSchedule, "refuses", "the model folder has no scheduler")
    with pytest.raises(WeightsError, match="has no scheduler"):
        composed()
