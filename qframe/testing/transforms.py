"""The contract tests that every transform must pass."""

from __future__ import annotations

import attrs
import torch

from qframe.interfaces import Parts, Plan, Recipe, RecipeTransform, Request, as_request
from qframe.sample.per_prompt import picture_count
from qframe.sample.settling import settle


class TransformContract:
    """The contract tests that every transform must pass.

    A subclass defines three pytest fixtures:
        transform: The transform around a recipe, `transformed(SomeRecipe, YourTransform)(settings, model)`.
        parts: The `Parts` of a family, with all components loaded.
        asked: A request of the transform's `request_type` that uses the fields of the transform, and whose pictures
            have one size.
    """

    def test_its_fields_have_defaults(self, transform: RecipeTransform) -> None:
        """A request of the inner recipe can then be turned into a request of the transform."""
        assert issubclass(transform.request_type, transform.inner.request_type)
        common = {field.name for field in attrs.fields(transform.inner.request_type)}
        added = [field for field in attrs.fields(transform.request_type) if field.name not in common]
        assert all(field.default is not attrs.NOTHING for field in added)

    def test_what_is_settled_makes_every_picture_once(
        self, transform: RecipeTransform, asked: Request, parts: Parts
    ) -> None:
        settled = settle(transform, asked, parts)
        places = [place for one in settled for place in one.places]
        assert sorted(places) == list(range(picture_count(asked)))
        assert all(picture_count(one.request) == len(one.places) for one in settled)

    def test_a_request_is_settled_without_weights(
        self, transform: RecipeTransform, asked: Request, parts: Parts
    ) -> None:
        """The command line can then refuse the request before it spends minutes on loading."""
        bare = attrs.evolve(parts, loaded_encoder=None, loaded_codec=None, loaded_denoiser=None)
        sizes = [one.size for one in settle(transform, asked, bare)]
        assert sizes == [one.size for one in settle(transform, asked, parts)]

    def test_its_plan_makes_the_pictures_that_are_asked_for(
        self, transform: RecipeTransform, asked: Request, parts: Parts
    ) -> None:
        plan = _plan(transform, asked, parts)
        assert plan.start.batch_size == plan.cond.batch_size == picture_count(asked)
        assert (plan.sigmas.diff() < 0).all()
        assert plan.sigmas[-1] == 0

    def test_seeds_decide_its_plan(self, transform: RecipeTransform, asked: Request, parts: Parts) -> None:
        """The seed is set after settling, as the command line does to make several pictures of one settled request."""

        def start(seed: int) -> torch.Tensor:
            (settled,) = settle(transform, asked, parts)
            return transform.plan(settled.seeded(seed), parts).start.tokens

        assert torch.equal(start(3), start(3))
        assert not torch.equal(start(3), start(4))

    def test_an_optional_one_leaves_alone_what_does_not_ask_for_it(
        self, transform: RecipeTransform, asked: Request, parts: Parts
    ) -> None:
        if not transform.optional:
            return
        bare = as_request(type(asked), as_request(transform.inner.request_type, asked))
        found, wanted = (
            _plan(recipe, attrs.evolve(bare, generator=torch.Generator().manual_seed(3)), parts)
            for recipe in (transform, transform.inner)
        )
        assert torch.equal(found.start.tokens, wanted.start.tokens)
        assert torch.equal(found.sigmas, wanted.sigmas)
        assert (found.after_step is None) == (wanted.after_step is None)


def _plan(recipe: Recipe, request: Request, parts: Parts) -> Plan:
    (settled,) = settle(recipe, request, parts)
    return recipe.plan(settled, parts)
