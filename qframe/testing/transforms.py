"""What every transform of plans does."""

from __future__ import annotations

import attrs
import torch

from qframe.compose.mixing import as_request
from qframe.interfaces import Parts, PlanTransform, Recipe, Request
from qframe.sample.planning import picture_count


class TransformContract:
    """Fixtures: transform; recipe, one that it wraps; parts, all loaded; asked, a request that uses its fields.

    The request's class is that of the mixed recipe, `transformed(type(recipe), type(transform)).request_type`.
    """

    def test_its_fields_have_defaults(self, transform: PlanTransform) -> None:
        """So that what the recipe is asked for can be asked of both."""
        assert issubclass(transform.request_type, Request)
        common = {field.name for field in attrs.fields(Request)}
        added = [field for field in attrs.fields(transform.request_type) if field.name not in common]
        assert all(field.default is not attrs.NOTHING for field in added)

    def test_the_parts_of_a_request_make_every_picture_once(
        self, transform: PlanTransform, recipe: Recipe, asked: Request
    ) -> None:
        parts = transform.split(asked, recipe)
        places = [place for places, _ in parts for place in places]
        assert sorted(places) == list(range(picture_count(asked)))
        assert all(picture_count(part) == len(places) for places, part in parts)
        assert all(type(part) is type(asked) for _, part in parts)

    def test_its_plan_makes_the_pictures_that_are_asked_for(
        self, transform: PlanTransform, recipe: Recipe, asked: Request, parts: Parts
    ) -> None:
        plan = transform.plan(asked, parts, recipe)
        assert plan.start.batch_size == plan.cond.batch_size == picture_count(asked)
        assert (plan.sigmas.diff() < 0).all()
        assert plan.sigmas[-1] == 0

    def test_seeds_decide_its_plan(
        self, transform: PlanTransform, recipe: Recipe, asked: Request, parts: Parts
    ) -> None:
        def start(seed: int) -> torch.Tensor:
            generator = torch.Generator().manual_seed(seed)
            return transform.plan(attrs.evolve(asked, generator=generator), parts, recipe).start.tokens

        assert torch.equal(start(3), start(3))
        assert not torch.equal(start(3), start(4))

    def test_an_optional_one_leaves_alone_what_does_not_ask_for_it(
        self, transform: PlanTransform, recipe: Recipe, asked: Request, parts: Parts
    ) -> None:
        if not transform.optional:
            return
        common = {field.name: getattr(asked, field.name) for field in attrs.fields(Request)}
        bare = as_request(type(asked), Request(**common))
        found = transform.plan(attrs.evolve(bare, generator=torch.Generator().manual_seed(3)), parts, recipe)
        wanted = recipe.plan(attrs.evolve(bare, generator=torch.Generator().manual_seed(3)), parts)
        assert torch.equal(found.start.tokens, wanted.start.tokens)
        assert torch.equal(found.sigmas, wanted.sigmas)
        assert (found.after_step is None) == (wanted.after_step is None)
