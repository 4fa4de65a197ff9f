"""How the program judges that counts what a LoRA has learned."""

from __future__ import annotations

import attrs
import pytest

from tests.shapes.quality import Count, Learned, worse

PLAIN = Learned(Count(95, 100), Count(99, 100))
FOUND = {"no training": Learned(Count(0, 100), Count(100, 100)), "plain": PLAIN}


def test_a_difference_that_may_be_chance_is_none() -> None:
    assert not Count(90, 100).worse_than(Count(95, 100))
    assert Count(80, 100).worse_than(Count(95, 100))
    assert not Count(95, 100).worse_than(Count(80, 100))
    assert not Count(0, 0).worse_than(Count(0, 0))


def test_a_count_tells_its_wilson_interval() -> None:
    """The bounds for 90 of 100 are those of Wilson's formula with z = 1.96."""
    assert str(Count(90, 100)) == "90 of 100 (83 to 94 %)"


@pytest.mark.parametrize(
    ("name", "one", "wrong"),
    [
        ("two processes", PLAIN, []),
        ("two processes", attrs.evolve(PLAIN, new=Count(70, 100)), ["two processes: new 70 of 100"]),
        ("quantised", attrs.evolve(PLAIN, known=Count(80, 100)), ["quantised: known 80 of 100"]),
        ("no training", attrs.evolve(PLAIN, new=Count(94, 100)), ["plain: nothing was learned"]),
    ],
)
def test_a_way_that_has_learned_less_is_named(name: str, one: Learned, wrong: list[str]) -> None:
    found = worse({**FOUND, name: one})
    assert len(found) == len(wrong)
    assert all(line.startswith(start) for line, start in zip(found, wrong, strict=True))
