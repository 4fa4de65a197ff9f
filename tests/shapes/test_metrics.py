import attrs
import numpy as np
import pytest
from PIL import Image, ImageFilter

from qframe_shapes import metrics, tasks, world

CIRCLE = world.Figure("circle", "red", "large", "top left")
SCENE = world.Scene(world.MAIN_CANVAS, "grey", (CIRCLE,))


def some_scenes(count: int) -> list[world.Scene]:
    scenes = []
    for i in range(count):
        rng = world.sample_rng(11, i)
        scene = world.random_scene(rng, world.CANVASES[i % len(world.CANVASES)], i % 3, colours=world.COLOURS)
        dotted = tuple(attrs.evolve(figure, dotted=bool(rng.random() < 0.3)) for figure in scene.objects)
        scenes.append(scene.evolve(objects=dotted))
    return scenes


def test_every_drawn_scene_passes_its_own_measure() -> None:
    for scene in some_scenes(200):
        assert metrics.judge(world.render(scene), scene).success, scene


def test_a_slight_blur_still_passes() -> None:
    for scene in some_scenes(100):
        picture = world.render(scene).filter(ImageFilter.GaussianBlur(0.7))
        assert metrics.judge(picture, scene).success, scene


@pytest.mark.parametrize(
    ("shown", "criterion"),
    [
        (SCENE.with_figure(colour="blue"), "colour"),
        (SCENE.with_figure(shape="cross"), "shape"),
        (SCENE.with_figure(size="small"), "scale"),
        (SCENE.with_figure(place="right"), "place"),
        (SCENE.with_figure(dotted=True), "dot"),
        (SCENE.evolve(background="white"), "background"),
        (SCENE.evolve(objects=()), "colour"),
        (SCENE.evolve(objects=(CIRCLE, world.Figure("cross", "blue", "small", "bottom right"))), "clean"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_scene_fails_by_the_criterion_that_is_wrong(shown: world.Scene, criterion: str) -> None:
    verdict = metrics.judge(world.render(shown), SCENE)
    assert criterion in verdict.failed
    assert str(verdict).startswith("failed: ")


def test_a_wanted_dot_that_is_missing_fails() -> None:
    wanted = SCENE.with_figure(dotted=True)
    assert metrics.judge(world.render(SCENE), wanted).failed == ("dot",)


def test_what_remains_of_a_small_figure_is_no_removal() -> None:
    """A small cross is under 5 % of a large canvas: the fraction of the whole background alone would let it pass."""
    canvas = world.Canvas(96, 96)
    left = world.Scene(canvas, "grey", (world.Figure("cross", "red", "small", "centre"),))
    assert metrics.judge(world.render(left), left.evolve(objects=())).failed == ("clean",)


def test_another_size_fails_before_anything_else() -> None:
    assert metrics.judge(Image.new("RGB", (48, 48)), SCENE).failed == ("size",)


def test_a_shifted_outline_fails() -> None:
    pixels = np.roll(world.render_array(SCENE), 6, axis=1)
    assert not metrics.judge(Image.fromarray(pixels), SCENE).success


def test_a_described_figure_is_judged_in_its_cell_alone() -> None:
    other = world.Figure("cross", "blue", "small", "bottom right")
    wanted = SCENE.evolve(objects=(CIRCLE, other))
    assert not metrics.judge(world.render(SCENE), wanted).success
    assert metrics.judge(world.render(SCENE), wanted, described="top left").success


def test_the_source_of_an_edit_never_passes_as_its_target() -> None:
    for i in range(100):
        rng = world.sample_rng(5, i)
        episode = tasks.EDIT_MAKERS[tasks.EDITS[i % len(tasks.EDITS)]](rng, world.CANVASES[i % 9])
        assert episode.source is not None
        assert not metrics.judge(world.render(episode.source), episode.target).success, episode


def test_psnr_of_a_known_error() -> None:
    black, grey = Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8), (51, 51, 51))
    assert metrics.psnr(black, black) == float("inf")
    assert metrics.psnr(black, grey) == pytest.approx(20 * np.log10(5))
    with pytest.raises(ValueError, match="different sizes"):
        metrics.psnr(black, Image.new("RGB", (9, 8)))
