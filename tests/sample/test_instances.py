"""Components as instances and from a notebook: they are used, checked against the others, and left where they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch

import qframe
from qframe.compose import compose
from qframe.config import load_config
from qframe.diffusion.samplers import EulerSampler
from qframe.errors import CompositionError, ConfigError
from qframe.interfaces import CodecSpec
from qframe.plugins.registry import load_registry
from qframe.sample.pipeline import Pipeline
from qframe_shapes.files import model_folder

CALL: dict[str, Any] = {"prompt": "a red circle", "num_inference_steps": 2, "height": 32, "width": 32, "seed": 0}
ROLES = ("encoder", "denoiser", "codec", "schedule", "sampler")


class Still(EulerSampler):
    """A sampler that makes no step."""

    def sample(self, velocity: Any, x: torch.Tensor, sigmas: torch.Tensor, **given: Any) -> torch.Tensor:
        return x


@pytest.fixture(scope="module")
def lender() -> Pipeline:
    return qframe.load("qwen-image", device="cpu")


@pytest.fixture
def pipe(lender: Pipeline) -> Pipeline:
    """A pipeline whose parts a test may replace."""
    return Pipeline(lender.composition, attrs.evolve(lender.parts))


@pytest.fixture
def registered() -> Iterator[None]:
    registry = load_registry()
    before = dict(registry._components), dict(registry._families)
    yield
    registry._components, registry._families = before


def pixels(pipe: Pipeline) -> np.ndarray[Any, Any]:
    return np.asarray(pipe(**CALL, output_type="np").images)


def test_an_instance_serves_for_every_role_and_for_files_that_the_model_lacks(lender: Pipeline, tmp_path: Path) -> None:
    for file in model_folder().rglob("*"):
        if file.is_file() and not {"text_encoder", "vae", "transformer"} & set(file.parts):
            (tmp_path / file.relative_to(model_folder())).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file.relative_to(model_folder())).symlink_to(file)
    given = {role: getattr(lender.parts, role) for role in ROLES}
    allowed = "compose.allow=['pipeline']"
    pipe = qframe.load("qwen-image", model=tmp_path, components=given, device="cpu", overrides=allowed)
    assert all(getattr(pipe.parts, role) is part for role, part in given.items())
    assert np.array_equal(pixels(pipe), pixels(lender))
    assert "denoiser StockDenoiser (an instance)" in pipe.composition.table()


@pytest.mark.parametrize("role", ROLES)
def test_a_part_of_a_pipeline_can_be_replaced(pipe: Pipeline, lender: Pipeline, role: str) -> None:
    before = pixels(pipe)
    other = getattr(lender.parts, role)
    setattr(pipe.parts, role, other)
    assert getattr(pipe.parts, role) is other
    assert np.array_equal(pixels(pipe), before)


def test_a_replaced_sampler_is_the_one_that_samples(pipe: Pipeline) -> None:
    before = pixels(pipe)
    pipe.parts.sampler = Still()
    assert not np.array_equal(pixels(pipe), before)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("wrong", [3, Still])
def test_what_cannot_play_a_role_is_refused(pipe: Pipeline, role: str, wrong: Any) -> None:
    config = load_config(family="qwen-image")
    for put in (lambda: setattr(pipe.parts, role, wrong), lambda: compose(config, given={role: wrong})):
        with pytest.raises(ConfigError, match=rf"{role}: .*expected") as caught:
            put()
        assert "write-a-plugin" in str(caught.value.hint) or "qframe.register" in str(caught.value.hint)
    with pytest.raises(ConfigError, match="cannot be set"):
        pipe.parts.codec_spec = 3  # type: ignore[assignment]


def test_a_part_that_does_not_fit_is_refused_before_anything_runs(pipe: Pipeline, lender: Pipeline) -> None:
    codec = type(lender.parts.codec)(lender.parts.codec.vae)  # type: ignore[call-arg, attr-defined]
    codec.spec = attrs.evolve(lender.parts.codec_spec, latent_space="of somebody else")
    with pytest.raises(CompositionError, match="of somebody else"):
        compose(load_config(family="qwen-image"), given={"codec": codec})
    pipe.parts.codec = codec
    with pytest.raises(CompositionError, match="of somebody else"):
        pipe(**CALL)
    codec.spec = 3
    with pytest.raises(ConfigError, match="expected a CodecSpec"):
        pipe.parts.codec = codec
    codec.spec = None  # what its class says of the model folder
    pipe.parts.codec = codec
    assert isinstance(pipe.parts.codec_spec, CodecSpec)
    assert pixels(pipe).shape == (1, 32, 32, 3)


def test_the_output_of_an_instance_is_not_stored(lender: Pipeline) -> None:
    made = compose(load_config(family="qwen-image"), given={"codec": lender.parts.codec})
    with pytest.raises(ConfigError, match="nobody knows what the output of an instance depends on"):
        made.ingredients("codec")
    config = load_config(family="qwen-image", overrides=["denoiser.resident_blocks=1"])
    with pytest.raises(ConfigError, match=r"denoiser: an instance is used as it is"):
        compose(config, given={"denoiser": lender.parts.denoiser})


@pytest.mark.usefixtures("registered")
def test_a_class_of_a_notebook_is_chosen_by_its_name() -> None:
    qframe.register(qframe.Component("sampler", "still", EulerSampler))
    qframe.register(qframe.Component("sampler", "still", Still))  # the cell is run again
    config = load_config(family="qwen-image", overrides=["sampler.use=still"])
    assert isinstance(compose(config).load().sampler, Still)
    family = attrs.evolve(load_registry().family("qwen-image"), name="mine", sampler="still")
    qframe.register(family)
    assert load_config(family="mine").sampler.use == "still"


@pytest.mark.parametrize(
    ("declared", "match"),
    [
        (Still, "takes a Component or a Family"),
        (qframe.Component("sampler", "euler", Still), "plugin 'samplers' offers 'euler' already"),
        (qframe.Component("sampler", "a b", Still), "'a b' is no name"),
    ],
)
@pytest.mark.usefixtures("registered")
def test_what_cannot_be_registered_is_refused(declared: Any, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        qframe.register(declared)


def test_values_are_shown_in_a_line(pipe: Pipeline) -> None:
    trainer = qframe.Trainer(qframe.load_config(family="qwen-image"))
    shown = [repr(value) for value in (pipe, pipe.parts, pipe.composition, trainer, trainer.config)]
    shown += [repr(pipe.parts.encoder.encode(["a"], [[]])), repr(trainer.records[0].target)]
    assert all(len(one) < 200 and "object at" not in one for one in shown), shown
    assert all("qwen-image" in one and "shapes" in one and "cpu" in one for one in (shown[0], shown[3]))
