from __future__ import annotations

from types import SimpleNamespace

import pytest

from qframe.errors import ConfigError, PluginError
from qframe.interfaces import Sampler
from qframe.plugins.hookspecs import Component, hookimpl
from qframe.plugins.offers import Offer
from qframe.plugins.registry import Registry, load_registry
from tests.fake_distributions import registry_of


def offer(target: str, options: str | None = None) -> Offer[Component]:
    return Offer(Component("sampler", "s", target, options=options), "acme")


def test_the_class_of_an_offer_implements_its_interface() -> None:
    assert issubclass(offer("qframe.diffusion.samplers:EulerSampler").implementation(Sampler), Sampler)
    with pytest.raises(PluginError, match=r"'acme': qframe.errors:DataError is no subclass of qframe.interfaces.Samp"):
        offer("qframe.errors:DataError").implementation(Sampler)
    with pytest.raises(PluginError, match=r"'acme': qframe.interfaces:Sampler lacks methods of Sampler: sample"):
        offer("qframe.interfaces:Sampler").implementation(Sampler)


def test_settings_are_an_attrs_class_or_nothing() -> None:
    assert offer("a:B").settings() is None
    assert offer("a:B", "qframe.config.schema:LoraConfig").settings() is not None
    with pytest.raises(PluginError, match=r"'acme': .*DataError is not an attrs class"):
        offer("a:B", "qframe.errors:DataError").settings()


def test_a_family_is_looked_up_with_its_recipe_its_transforms_and_the_components_that_are_named() -> None:
    wanted = {("sampler", "use"): ("sampler", "heun"), ("codec", "use"): ("codec", "qwen-vea")}
    chosen = load_registry().choose("qwen-edit-inpaint", wanted)
    assert chosen.recipe.declared.name == "qwen-edit"
    assert [one.declared.name for one in chosen.transforms] == list(chosen.family.transforms)
    assert chosen.component("sampler", "use").plugin == "samplers"
    with pytest.raises(ConfigError, match="no codec 'qwen-vea'; did you mean 'qwen-vae'"):
        chosen.component("codec", "use")


def test_models_that_ship_with_plugins_are_known_by_name() -> None:
    shipped = Component("model", "mine", "acme:folder")
    plugin = SimpleNamespace(
        qframe_components=hookimpl(lambda: [shipped]),
        qframe_families=hookimpl(lambda: [load_registry().choose("qwen-edit").family]),
    )
    registry: Registry = registry_of(plugin)
    assert {name: one.declared for name, one in registry.choose("qwen-edit").models.items()} == {"mine": shipped}
