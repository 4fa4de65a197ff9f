"""What a comparison finds and what it forgives, on made-up traces; and that wrong arithmetic does not go unseen."""

from __future__ import annotations

import json
from typing import Any

import attrs
import pytest
import torch
from PIL import Image

from qframe.compose import compose
from qframe.config import load_config
from qframe.errors import ConfigError, PluginError
from qframe.interfaces import Conditioning, Encoded, Step, Trace
from qframe.pictures.geometry import Geometry
from qframe.plugins.hookspecs import Component
from qframe.plugins.offers import Offer
from qframe.plugins.registry import load_registry
from qframe.testing.listening import Norms
from qframe_verify.compare import EXACT, FLOAT32, Report, batch_rows, compare
from qframe_verify.examples import example_part, example_picture, example_size
from qframe_verify.run import oracle_of, verify


def trace(**changes: Any) -> Trace:
    generator = torch.Generator().manual_seed(0)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    steps = tuple(
        Step(
            timestep=t,
            guided=some(6, 4),
            tokens=some(6, 4),
            combined=some(6, 4),
            norms=(some(6, 1).abs(), some(6, 1).abs()),
        )
        for t in (1000.0, 500.0)
    )
    values = {
        "sigmas": torch.tensor([1.0, 0.5, 0.0]),
        "mu": 0.5,
        "encoded": (Encoded(some(3, 8, 8), some(4, 1, 1)),),
        "cond": Conditioning(some(5, 3), (2, 3)),
        "uncond": Conditioning(some(2, 3), (1, 1)),
        "start": some(6, 4),
        "steps": steps,
        "decoded": (some(3, 8, 8).clamp(-1, 1),),
        "pictures": (Image.new("RGB", (8, 8), (10, 20, 30)),),
    }
    return Trace(**(values | changes))


SAME = trace()


def missed(ours: Trace, **options: Any) -> set[str]:
    return {row.feature for row in compare(ours, SAME, **options) if not row.equal}


def test_every_feature_from_A19_to_A31_has_its_row() -> None:
    rows = compare(SAME, trace())
    assert {row.feature for row in rows} == {f"A{number}" for number in range(19, 32)}
    assert [row.stage for row in rows if row.feature == "A26"] == ["latents after step 1", "latents after step 2"]
    assert all(row.equal and row.absolute == 0 for row in rows)


def changed_step(**changes: Any) -> Trace:
    return attrs.evolve(SAME, steps=(SAME.steps[0], attrs.evolve(SAME.steps[1], **changes)))


MOVED = {
    "A19": attrs.evolve(SAME, sigmas=torch.tensor([1.0, 0.5, 1e-9])),
    "A20": attrs.evolve(SAME, mu=0.5 + 1e-12),
    "A21": changed_step(timestep=500.0001),
    "A22": attrs.evolve(SAME, encoded=(Encoded(SAME.encoded[0].pixels + 1e-2, SAME.encoded[0].latents),)),
    "A23": attrs.evolve(SAME, cond=Conditioning(SAME.cond.embeds, (3, 2))),
    "A24": attrs.evolve(SAME, start=SAME.start.roll(1, 0)),
    "A25": attrs.evolve(SAME, encoded=(Encoded(SAME.encoded[0].pixels, SAME.encoded[0].latents * 1.01),)),
    "A26": changed_step(tokens=SAME.steps[1].tokens + 1e-3),
    "A27": changed_step(combined=SAME.steps[1].combined * 1.001),  # type: ignore[operator]
    "A28": changed_step(norms=(SAME.steps[1].norms[0], SAME.steps[1].norms[1] * 1.001)),  # type: ignore[index]
    "A29": changed_step(guided=-SAME.steps[1].guided),
    "A30": attrs.evolve(SAME, decoded=(SAME.decoded[0].flip(-1),)),
    "A31": attrs.evolve(SAME, pictures=(Image.new("RGB", (8, 8), (10, 22, 30)),)),
}


@pytest.mark.parametrize("feature", MOVED)
def test_a_difference_is_found_at_its_stage_and_nowhere_else(feature: str) -> None:
    assert missed(MOVED[feature]) == {feature}


def test_other_numbers_of_things_and_other_shapes_are_misses_with_a_reason() -> None:
    fewer = attrs.evolve(SAME, steps=SAME.steps[:1])
    rows = [row for row in compare(fewer, SAME) if row.feature == "A26" and not row.equal]
    assert [(row.stage, row.note, row.absolute) for row in rows] == [("number of steps", "1 here, 2 there", None)]
    (row,) = [row for row in compare(attrs.evolve(SAME, start=SAME.start[:3]), SAME) if not row.equal]
    assert (row.feature, row.note) == ("A24", "shape (3, 4) here, (6, 4) there")


def test_values_that_are_not_finite_are_a_miss_even_on_both_sides() -> None:
    broken = attrs.evolve(SAME, start=torch.full((6, 4), torch.nan))
    (row,) = [row for row in compare(broken, broken) if not row.equal]
    assert (row.feature, row.note) == ("A24", "values that are not finite")


def test_what_neither_side_has_is_no_miss() -> None:
    unguided = tuple(attrs.evolve(step, combined=None, norms=None) for step in SAME.steps)
    plain = attrs.evolve(SAME, uncond=None, steps=unguided, encoded=())
    rows = compare(plain, plain)
    assert all(row.equal for row in rows)
    assert {row.feature for row in rows if row.note == "not part of this run"} == {"A22", "A23", "A25", "A27", "A28"}
    assert missed(plain) == {"A22", "A23", "A25", "A27", "A28"}


def test_tolerances() -> None:
    """float32: 1e-4 relative and 1e-6; more only where sums are taken in another order; one unit of bfloat16."""
    assert (FLOAT32.rtol, FLOAT32.atol) == (1e-4, 1e-6)
    near = attrs.evolve(SAME, start=SAME.start + 9e-7)
    assert missed(near) == set()
    assert missed(near, tolerance=EXACT) == {"A24"}
    further = attrs.evolve(SAME, start=SAME.start + 5e-6)
    assert missed(further) == {"A24"}
    assert all(row.equal for row in compare(further, attrs.evolve(SAME, reordered=True)))
    largest = float(SAME.start.abs().max())
    for units, found in ((0.9, set()), (1.1, {"A24"})):
        other = attrs.evolve(SAME, start=SAME.start + units * 2**-7 * largest)
        assert missed(other, tolerance=None) == found
    moved = changed_step(tokens=SAME.steps[1].tokens + 2**-7 * 6 * float(SAME.steps[1].tokens.abs().max()))
    assert missed(moved, tolerance=None, amplified=7.0) == set()  # 2 steps, 7 times
    assert missed(moved, tolerance=None, amplified=2.0) == {"A26"}


def test_a_picture_may_round_to_the_next_level() -> None:
    assert missed(attrs.evolve(SAME, pictures=(Image.new("RGB", (8, 8), (10, 21, 30)),))) == set()


def test_a_batch_shows_the_worst_of_each_feature() -> None:
    rows = batch_rows(compare(MOVED["A26"], SAME), 3)
    assert len(rows) == 13
    assert {row.feature for row in rows} == {"A32"}
    assert [row.stage for row in rows if not row.equal] == ["3 at once, A26: latents after step 2"]


def test_a_report_is_text_and_json() -> None:
    report = Report(title="these two", notes=("they are alike",), rows=tuple(compare(MOVED["A24"], SAME)))
    assert report.misses == 1
    lines = report.as_text().splitlines()
    assert lines[:2] == ["these two", "note: they are alike"]
    (line,) = [line for line in lines if "MISS" in line]
    assert line.startswith("A24  initial latents")
    assert lines[-1] == f"{len(report.rows) - 1} of {len(report.rows)} within tolerance"
    read = json.loads(json.dumps(report.as_json()))
    assert read["misses"] == 1
    assert read["rows"][0] == {
        "feature": "A19",
        "stage": "sigmas",
        "absolute": 0.0,
        "relative": 0.0,
        "tolerance": {"rtol": 0.0, "atol": 0.0},
        "equal": True,
        "note": "",
    }


def test_norms_are_heard_whatever_they_are_called_as() -> None:
    values = torch.ones(2, 3)
    with Norms() as norms:
        values.norm(dim=-1)
        torch.norm(values, dim=-1)
    assert [tensor is values for tensor, _ in norms.heard] == [True, True]


def test_example_pictures_must_be_resized_and_parts_lie_inside() -> None:
    geometry = Geometry(96 * 96, 96 * 96, 32)
    size = example_size(geometry)
    assert geometry.fit(*size) != size
    assert example_picture(size).size == size[::-1]
    for seed in range(3):
        part = example_part(size, seed)
        assert part.getextrema() == (0, 255)
        left, upper, right, lower = part.getbbox() or (0, 0, 0, 0)
        assert 0 < left < right < size[1] or seed == 2
        assert upper >= 0
        assert lower <= size[0]


def test_a_family_without_an_oracle_is_told_which_have_one() -> None:
    registry = load_registry()
    family = attrs.evolve(registry.family("qwen-edit"), oracle=None)
    with pytest.raises(ConfigError, match="names no oracle") as caught:
        oracle_of(family, registry)
    assert "qwen-edit" in str(caught.value.hint)


def test_an_oracle_that_is_none_is_a_broken_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = load_registry()
    wrong = Component("oracle", "wrong", "qframe.diffusion.samplers:EulerSampler")
    monkeypatch.setattr(registry, "offer", lambda kind, name: Offer(wrong, "mine"))
    with pytest.raises(PluginError, match=r"plugin 'mine': .* is no subclass of qframe\.interfaces\.Oracle"):
        oracle_of(registry.family("qwen-edit"), registry)


@pytest.mark.parametrize(
    ("override", "first"),
    [
        ("encoder.options.positions=mrope", "A23"),  # what is different on purpose is seen
        ("sampler.use=heun", "A21"),
        ("recipe.max_area=4096", None),  # followed by the oracle, since diffusers has no such setting
    ],
)
def test_what_is_different_shows_where_it_begins(override: str, first: str | None) -> None:
    registry = load_registry()
    oracle = oracle_of(registry.family("qwen-edit"), registry)
    composition = compose(load_config(None, family="qwen-edit", overrides=[*oracle.overrides, override]))
    report = verify(composition, oracle, {"num_inference_steps": 2, "negative_prompt": " "}, batch=1)
    assert next((row.feature for row in report.rows if not row.equal), None) == first


def test_one_step_cannot_be_compared() -> None:
    registry = load_registry()
    oracle = oracle_of(registry.family("qwen-image"), registry)
    with pytest.raises(ConfigError, match="diffusers makes NaN of it"):
        verify(compose(load_config(None, family="qwen-image")), oracle, {"num_inference_steps": 1})
