import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from qframe_shapes import evaluate, world
from qframe_shapes.evaluate import Group, SampleRequest


def perfect(group: Group, count: int) -> evaluate.Sample:
    """A model that knows every answer, by prompt and source."""
    episodes = evaluate.episodes(group, count, 0)
    answers = {(e.prompt, e.source and world.render(e.source).tobytes()): world.render(e.target) for e in episodes}

    def sample(requests: Sequence[SampleRequest]) -> list[Image.Image]:
        return [answers[r.prompt, r.image and r.image.tobytes()] for r in requests]

    return sample


def copier(requests: Sequence[SampleRequest]) -> list[Image.Image]:
    return [r.image or Image.new("RGB", (r.width, r.height)) for r in requests]


def test_a_perfect_model_scores_100_and_one_that_copies_scores_0() -> None:
    for group in evaluate.standard_groups():
        report = evaluate.evaluate(perfect(group, 6), count=6, groups=[group])
        assert report.rate(group) == 1.0
        assert evaluate.evaluate(copier, count=6, groups=[group]).rate(group) == 0.0


def test_each_kind_holds_what_it_says() -> None:
    for group in evaluate.standard_groups():
        episodes = evaluate.episodes(group, 12, 0)
        assert {e.split for e in episodes} == {"pair" if group.kind == evaluate.PAIR else "unseen"}
        on_main = {e.target.canvas == world.MAIN_CANVAS for e in episodes}
        assert on_main == {group.kind != evaluate.CANVASES}


def test_requests_of_one_batch_share_a_canvas() -> None:
    seen = []

    def sample(requests: Sequence[SampleRequest]) -> list[Image.Image]:
        seen.append({(r.width, r.height) for r in requests})
        return copier(requests)

    evaluate.evaluate(sample, count=18, groups=[Group("recolour", evaluate.CANVASES)])
    assert all(len(sizes) == 1 for sizes in seen)


def test_the_report_is_saved_as_numbers_text_and_pictures(tmp_path: Path) -> None:
    groups = [Group("recolour", evaluate.UNSEEN), Group("paint", evaluate.UNSEEN, "empty", 0.85)]
    evaluate.evaluate(copier, count=3, groups=groups).save(tmp_path)
    rows = json.loads((tmp_path / "results.json").read_text())
    assert [(row["operation"], row["count"], row["successes"]) for row in rows] == [
        ("recolour", 3, 0),
        ("paint, an empty cell, strength 0.85", 3, 0),
    ]
    assert "| recolour | 0 % |" in (tmp_path / "table.md").read_text()
    assert len(list(tmp_path.glob("*.png"))) == 2
