import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from qframe_shapes import tasks, world

SPLIT_OF_2000 = {"train": 1466, "unseen": 258, "pair": 276}


def test_the_world_is_drawn_without_torch() -> None:
    code = (
        "import sys, qframe_shapes.evaluate, qframe_shapes.plugin, qframe_shapes.files;sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_colours_are_further_apart_than_twice_the_tolerance() -> None:
    colours = np.array(list(world.PALETTE.values()))
    distance = np.abs(colours[:, None] - colours[None]).max(axis=-1)
    assert distance[~np.eye(len(colours), dtype=bool)].min() > 80


def test_a_sample_depends_only_on_seed_and_index() -> None:
    once = [tasks.training_episode(3, i) for i in range(40)]
    again = [tasks.training_episode(3, i) for i in reversed(range(40))]
    assert once == again[::-1]
    assert once != [tasks.training_episode(4, i) for i in range(40)]


def test_a_scene_is_drawn_the_same_every_time() -> None:
    scene = tasks.training_episode(0, 7).target
    assert (world.render_array(scene) == world.render_array(scene)).all()


def test_a_known_scene_has_known_pixels() -> None:
    """A golden picture: the split and the shipped model depend on drawings that never change."""
    circle = world.Figure("circle", "red", "large", "bottom right")
    pixels = world.render_array(world.Scene(world.MAIN_CANVAS, "white", (circle,)))
    assert tuple(pixels[48, 48]) == world.PALETTE["red"]
    assert tuple(pixels[0, 0]) == world.PALETTE["white"]
    assert world.shape_coverage("circle", "large").sum() == pytest.approx(np.pi * 14**2, rel=0.005)
    assert world.shape_coverage("triangle", "small").sum() == pytest.approx(2 * 9**2, rel=0.01)
    assert world.shape_coverage("square", "small").sum() == 18**2


@pytest.mark.parametrize("canvas", world.CANVASES, ids=str)
def test_cells_lie_on_the_token_grid_inside_the_canvas(canvas: world.Canvas) -> None:
    for place in canvas.places:
        x, y = canvas.corner(place)
        assert x % world.TOKEN == 0
        assert y % world.TOKEN == 0
        assert 0 <= x <= canvas.width - world.CELL
        assert 0 <= y <= canvas.height - world.CELL
    assert len({canvas.corner(place) for place in canvas.places}) == len(canvas.places)


def test_an_odd_axis_has_no_middle() -> None:
    assert world.Canvas(48, 48).places == ("top left", "top right", "bottom left", "bottom right")
    assert "left" in world.Canvas(80, 64).places
    assert "top" not in world.Canvas(80, 64).places
    with pytest.raises(ValueError, match="no place 'centre'"):
        world.Canvas(48, 48).corner("centre")


def test_overlapping_figures_are_refused() -> None:
    figures = tuple(world.Figure("circle", "red", "small", place) for place in ("top left", "top"))
    with pytest.raises(ValueError, match="overlap"):
        world.Scene(world.MAIN_CANVAS, "white", figures)


def test_a_canvas_that_is_no_multiple_of_a_token_is_refused() -> None:
    with pytest.raises(ValueError, match="width is 50"):
        world.Canvas(50, 64)


def test_training_shows_nothing_that_is_held_out() -> None:
    episodes = [tasks.training_episode(0, i) for i in range(3000)]
    for episode in episodes:
        for scene in filter(None, (episode.source, episode.target)):
            assert world.split(scene) == "train"
            assert not any(f.dotted or f.colour == world.UNLEARNED_COLOUR for f in scene.objects)
        assert world.UNLEARNED_COLOUR not in episode.prompt
        assert "dot" not in episode.prompt


def test_colours_without_a_name_stay_away_from_what_is_held_out() -> None:
    episodes = [tasks.training_episode(0, i) for i in range(3000)]
    shown = [e for e in episodes if e.source and any(f.colour not in world.PALETTE for f in e.source.objects)]
    assert len(shown) > 600
    for episode in shown:
        assert episode.source is not None
        (figure,) = episode.source.objects
        shapes = {f.shape for scene in (episode.source, episode.target) for f in scene.objects}
        avoided = {world.UNLEARNED_COLOUR, episode.source.background, episode.target.background}
        avoided |= {colour for shape, colour in world.HELD_OUT_PAIRS if shape in shapes}
        for name in avoided:
            assert np.abs(np.subtract(world.rgb(figure.colour), world.PALETTE[name])).max() > 80
        kept = {f.colour for f in episode.target.objects}
        assert kept <= {figure.colour} or episode.operation == "recolour"


def test_a_colour_is_a_name_or_six_hexadecimal_digits() -> None:
    assert world.rgb("red") == (220, 40, 40)
    assert world.rgb("#0a10ff") == (10, 16, 255)
    with pytest.raises(ValueError, match="colour 'mauve': neither #rrggbb nor one of red, green"):
        world.Figure("circle", "mauve", "small", "top")


def test_the_split_of_a_scene_never_changes() -> None:
    """Golden: a shipped model was trained on one side of exactly this split."""
    scenes = [world.random_scene(world.sample_rng(1, i), world.MAIN_CANVAS) for i in range(2000)]
    counts = Counter(world.split(scene) for scene in scenes)
    assert counts == Counter(SPLIT_OF_2000)


def test_the_mixture_is_as_described() -> None:
    episodes = [tasks.training_episode(1, i) for i in range(3000)]
    edits = sum(episode.operation in tasks.EDITS for episode in episodes) / len(episodes)
    described = sum(episode.described is not None for episode in episodes) / len(episodes)
    main = sum(episode.target.canvas == world.MAIN_CANVAS for episode in episodes) / len(episodes)
    assert edits == pytest.approx(0.6, abs=0.03)
    assert described == pytest.approx(0.1, abs=0.03)
    assert main == pytest.approx(0.6, abs=0.03)


def test_weights_are_three_to_one_and_only_in_the_described_cell_where_one_is_described() -> None:
    edit = tasks.recolour(world.sample_rng(0, 0), world.MAIN_CANVAS)
    assert set(np.unique(np.asarray(edit.loss_map()))) == {85, 255}
    described = tasks.described_figure(world.sample_rng(0, 0), world.MAIN_CANVAS)
    weights = np.asarray(described.loss_map())
    assert set(np.unique(weights)) == {0, 255}
    assert (weights == 255).sum() == world.CELL**2


def test_a_mask_covers_the_cell_that_is_painted() -> None:
    episode = tasks.paint(world.sample_rng(0, 0), world.MAIN_CANVAS, "elsewhere")
    assert episode.source is not None
    assert episode.mask is not None
    changed = (world.render_array(episode.source) != world.render_array(episode.target)).any(axis=-1)
    assert changed.any()
    assert (np.asarray(episode.mask_picture()) == 255)[changed].all()
    assert np.asarray(episode.mask_picture(6)).sum() > np.asarray(episode.mask_picture()).sum()


def test_edits_change_only_what_they_name() -> None:
    for i in range(50):
        rng = world.sample_rng(2, i)
        episode = tasks.recolour(rng, world.MAIN_CANVAS)
        assert episode.source is not None
        assert episode.target.with_figure(colour=episode.source.objects[0].colour) == episode.source
        assert episode.target.objects[0].colour in episode.prompt
