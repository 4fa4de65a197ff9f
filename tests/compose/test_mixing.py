"""Recipes whose plans pass through transforms, and families that name both."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import attrs
import pytest
import torch
from torch import Tensor

from qframe.compose import recipe_class
from qframe.compose.mixing import transformed
from qframe.config import load_config
from qframe.errors import ConfigError, PluginError
from qframe.files.model_folder import ModelFolder
from qframe.interfaces import (
    Example,
    ExampleInputs,
    ForwardOptions,
    Parts,
    Plan,
    Recipe,
    RecipeTransform,
    Record,
    Request,
    Settled,
    SettledAround,
    as_request,
)
from qframe.pictures.geometry import Geometry
from qframe.plugins.hookspecs import Component, Family, hookimpl
from qframe.plugins.registry import Registry
from tests.fake_distributions import registry_of

HERE = __name__
MODEL: Any = None
PARTS: Any = None


@attrs.frozen(eq=False, kw_only=True)
class PictureRequest(Request):
    image: str = "of the recipe"


@attrs.frozen(eq=False, kw_only=True)
class BlurRequest(Request):
    image: str = "of the transform"
    blur: tuple[float, ...] = attrs.field(default=(1.0,), converter=tuple, metadata={"help": "how much"})


@attrs.frozen(kw_only=True)
class SomeSettings:
    area: int = 3


class SomeRecipe(Recipe):
    """Its plans are the words that say how they came about."""

    version: ClassVar[int] = 7
    references: ClassVar[bool] = True
    request_type: ClassVar[type[Request]] = PictureRequest

    def __init__(self, settings: Any, model: ModelFolder) -> None:
        super().__init__(settings, model)
        self.geometry = Geometry(16, 16, 4)

    def inputs(self, record: Record) -> ExampleInputs:
        return f"inputs of {record}"  # type: ignore[return-value]

    def request_for(self, record: Record) -> Request:
        return PictureRequest(prompt=str(record), image="its own")

    def settle(self, request: Request, parts: Parts) -> tuple[Settled, ...]:
        assert isinstance(request, PictureRequest)
        none = torch.zeros(2)
        return (
            Settled(
                places=(0,),
                request=request,
                size=(4, 4),
                grid=(1, 1, 1),
                sigmas=none,
                shown=((),),
                forward=ForwardOptions(),
            ),
        )

    def plan(self, settled: Settled, parts: Parts) -> Plan:
        assert type(settled) is Settled
        return f"plan of {settled.request.prompt[0]}"  # type: ignore[index, return-value]


@attrs.frozen(eq=False, kw_only=True)
class SettledBlur(SettledAround):
    blur: tuple[float, ...]


class Blur(RecipeTransform):
    request_type: ClassVar[type[Request]] = BlurRequest
    optional: ClassVar[bool] = True

    def settle(self, request: Request, parts: Parts) -> tuple[Settled, ...]:
        given = as_request(BlurRequest, request)
        return tuple(SettledBlur.of(one, blur=given.blur) for one in self.inner.settle(request, parts))

    def plan(self, settled: Settled, parts: Parts) -> Plan:
        assert isinstance(settled, SettledBlur)
        return f"{self.inner.plan(settled.inner, parts)}, blurred by {settled.blur}"  # type: ignore[return-value]


class Sharpen(RecipeTransform):
    """Says nothing of how a request is settled: as the inner recipe does."""

    request_type: ClassVar[type[Request]] = Request
    optional: ClassVar[bool] = False

    def plan(self, settled: Settled, parts: Parts) -> Plan:
        return f"{self.inner.plan(settled, parts)}, sharpened"  # type: ignore[return-value]


class NoGeometry(SomeRecipe):
    def __init__(self, settings: Any, model: ModelFolder) -> None:
        Recipe.__init__(self, settings, model)


def make_registry() -> Registry:
    own = Family(
        "own",
        encoder="e",
        denoiser="d",
        codec="c",
        schedule="s",
        sampler="s",
        recipe=f"{HERE}:SomeRecipe",
        settings=f"{HERE}:SomeSettings",
        weights_licence="",
        summary="",
    )
    taken = attrs.evolve(own, name="taken", recipe="own", settings=None)
    families = [
        own,
        taken,
        attrs.evolve(taken, name="mixed", transforms=("sharpen", "blur")),
        attrs.evolve(taken, name="chain", recipe="taken"),
        attrs.evolve(taken, name="orphan", recipe="gone"),
        attrs.evolve(taken, name="misspelt", transforms=("blurr",)),
        attrs.evolve(taken, name="wrong", transforms=("recipe",)),
    ]
    components = [
        Component("transform", "blur", f"{HERE}:Blur"),
        Component("transform", "sharpen", f"{HERE}:Sharpen"),
        Component("transform", "recipe", f"{HERE}:SomeRecipe"),
    ]
    return registry_of(
        SimpleNamespace(
            qframe_families=hookimpl(lambda: families),
            qframe_components=hookimpl(lambda: components),
        )
    )


REGISTRY = make_registry()


def found(family: str) -> type[Recipe]:
    return recipe_class(REGISTRY.choose(family))


def test_a_plan_passes_through_the_transforms_in_their_order() -> None:
    recipe = found("mixed")(None, MODEL)
    request = recipe.request_type(prompt="a", blur=[2.0])  # type: ignore[call-arg]
    (settled,) = recipe.settle(request, PARTS)
    assert recipe.plan(settled, PARTS) == "plan of a, sharpened, blurred by (2.0,)"
    assert (settled.places, settled.request) == ((0,), request)


def test_another_generator_reaches_every_recipe_inside() -> None:
    """What was settled once is run with several seeds."""
    recipe = found("mixed")(None, MODEL)
    (settled,) = recipe.settle(recipe.request_type(prompt="a"), PARTS)
    seeded = settled.seeded(5)
    assert isinstance(seeded, SettledBlur)
    assert seeded.inner.request.generator is seeded.request.generator
    assert [one.initial_seed() for one in seeded.request.generator] == [5]  # type: ignore[union-attr]
    assert settled.request.generator is None


def test_a_mixed_request_has_the_fields_of_both_and_those_of_the_recipe_win() -> None:
    kind = transformed(SomeRecipe, Blur).request_type
    request: Any = kind(prompt="a", blur=[2.0])
    assert issubclass(kind, PictureRequest)
    assert kind.__name__ == "PictureBlurRequest"
    assert (request.image, request.blur) == ("of the recipe", (2.0,))
    assert attrs.fields_dict(kind)["blur"].metadata == {"help": "how much"}
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        request.blur = ()


def test_a_field_that_both_read_differently_is_named() -> None:
    """One picture per prompt, and a set of them per prompt, must not be taken for each other."""

    @attrs.frozen(eq=False, kw_only=True)
    class ListRequest(Request):
        image: tuple[str, ...] = attrs.field(default=(), converter=tuple)

    class ListRecipe(SomeRecipe):
        request_type: ClassVar[type[Request]] = ListRequest

    with pytest.raises(PluginError, match="ListRequest and BlurRequest both take 'image', and read it differently"):
        transformed(ListRecipe, Blur)


def test_a_recipe_that_adds_no_fields_takes_the_request_of_the_transform() -> None:
    plain = type("Plain", (SomeRecipe,), {"request_type": Request})
    assert transformed(plain, Blur).request_type is BlurRequest


def test_a_mixed_recipe_is_known_and_described_as_the_recipe_itself() -> None:
    """Cache keys hold its name and version; the composition check asks for its references."""
    kind = found("mixed")
    assert (kind.__module__, kind.__qualname__, kind.version, kind.references) == (HERE, "SomeRecipe", 7, True)
    assert kind(None, MODEL).geometry == Geometry(16, 16, 4)


def test_a_record_asks_for_what_it_asks_the_recipe_for() -> None:
    recipe = transformed(SomeRecipe, Blur)(None, MODEL)
    record: Any = "r"
    request: Any = recipe.request_for(record)
    assert (type(request), request.prompt, request.image) == (recipe.request_type, ("r",), "its own")
    assert recipe.inputs(record) == "inputs of r"


def test_a_transform_that_needs_its_fields_cannot_be_trained_with() -> None:
    record: Any = "r"
    with pytest.raises(ConfigError, match=r"samples only.*Sharpen"):
        transformed(SomeRecipe, Sharpen)(None, MODEL).inputs(record)


class Trained(Sharpen):
    trains: ClassVar[bool] = True

    def loss_map(self, example: Example, generator: torch.Generator) -> Tensor | None:
        return torch.rand(2, 2, generator=generator)

    def request_for(self, record: Record) -> Request:
        return attrs.evolve(super().request_for(record), height=64)


def test_a_transform_that_fills_its_fields_from_a_record_trains_and_says_where_the_loss_counts() -> None:
    recipe = transformed(SomeRecipe, Trained)(None, MODEL)
    record: Any = "r"
    example: Any = "e"
    assert recipe.inputs(record) == "inputs of r"
    assert recipe.request_for(record).height == 64
    drawn = [recipe.loss_map(example, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])  # type: ignore[arg-type]
    assert not torch.equal(drawn[0], drawn[2])  # type: ignore[arg-type]


def test_a_recipe_without_a_geometry_is_named() -> None:
    with pytest.raises(PluginError, match="NoGeometry has no geometry"):
        transformed(NoGeometry, Blur)(None, MODEL)


def test_as_request_keeps_what_the_other_kind_has() -> None:
    request = BlurRequest(prompt=["a", "b"], height=64, blur=[3.0])
    assert as_request(PictureRequest, request, width=32, blur=(4.0,)).width == 32
    assert as_request(PictureRequest, request).image == "of the transform"
    assert as_request(BlurRequest, request, blur=(4.0,)).blur == (4.0,)
    assert as_request(Request, request).prompt == ("a", "b")


# Families


def test_a_family_may_take_the_recipe_and_the_settings_of_another() -> None:
    assert found("taken") is SomeRecipe
    assert REGISTRY.choose("mixed").recipe.declared.name == "own"


@pytest.mark.parametrize(
    ("family", "reason"), [("orphan", "'gone', which does not exist"), ("chain", "'taken', which")]
)
def test_a_family_that_takes_no_recipe_is_named(family: str, reason: str) -> None:
    with pytest.raises(PluginError, match=f"plugin 'a': family '{family}' takes the recipe of family {reason}"):
        found(family)


def test_unknown_transform_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="no transform 'blurr'; did you mean 'blur'"):
        found("misspelt")


def test_class_that_is_no_transform_is_named() -> None:
    with pytest.raises(PluginError, match=r"SomeRecipe is no subclass of qframe.interfaces.RecipeTransform"):
        found("wrong")


def test_settings_of_a_taken_recipe_are_read_from_the_configuration() -> None:
    config = load_config(family="qwen-inpaint", overrides=["recipe.side=32"])
    assert config.recipe.side == 32
    with pytest.raises(ConfigError, match=r"recipe\.sid.*did you mean recipe\.side"):
        load_config(family="qwen-inpaint", overrides=["recipe.sid=32"])


@pytest.mark.parametrize("target", ["", "a:b:c"])
def test_a_recipe_is_a_class_or_a_family(target: str) -> None:
    with pytest.raises(ValueError, match="recipe"):
        attrs.evolve(REGISTRY.family("own"), recipe=target)
