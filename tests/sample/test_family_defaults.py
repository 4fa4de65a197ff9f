"""What is sampled with by default comes from the family, and the core has no number of any family."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest

from qframe.compose import compose
from qframe.config import load_config
from qframe.errors import ConfigError, PluginError
from qframe.files.model_folder import ModelFolder
from qframe.interfaces import Request, SamplingDefaults
from qframe.plugins.registry import load_registry
from qframe.sample.jobs.asked import Asked, make_request
from qframe.sample.pipeline import Pipeline
from qframe.sample.settling import settle
from qframe.sample.starts import first_step
from qframe_qwen.recipe import TextToImageRecipe
from tests.qwen import tiny

ROOT = Path(__file__).resolve().parents[2]
FOREIGN = SamplingDefaults(steps=8, guidance=1.0, negative_prompt="", prompt_tokens=77)


class ForeignRecipe(TextToImageRecipe):
    """Text to image by a family with numbers of its own."""

    sampling: ClassVar[SamplingDefaults] = FOREIGN


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return tiny.tiny_qwen_model(tmp_path_factory.mktemp("tiny-qwen"))


@pytest.fixture
def pipe(model: ModelFolder) -> Pipeline:
    """The bundled components, joined by the foreign recipe."""
    composition = compose(load_config(family="qwen-image", values={"model": str(model.folder), "device": "cpu"}))
    composition = attrs.evolve(composition, recipe=ForeignRecipe(None, composition.models["model"]))
    return Pipeline(composition, composition.load("encoder", "codec", "denoiser"))


def test_a_foreign_family_samples_with_its_own_numbers(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[int | None] = []
    encoder: Any = pipe.parts.encoder
    encode = encoder.encode

    def recorded(*given: Any, max_length: int | None = None, **more: Any) -> Any:
        limits.append(max_length)
        return encode(*given, max_length=max_length, **more)

    monkeypatch.setattr(encoder, "encode", recorded)
    steps: list[int] = []
    arguments: dict[str, Any] = {"seed": 0, "callback_on_step_end": lambda pipe, step, *_: steps.append(step)}
    pipe(prompt="a", negative_prompt="b", **arguments)
    assert steps == list(range(8))
    assert limits == [77]  # the negative prompt is not encoded at a guidance of 1


def test_its_requests_on_the_command_line_take_them_too() -> None:
    plain = make_request(Asked(prompt="a"), Request, FOREIGN, (), {})
    guided = make_request(Asked(prompt="a", guidance=3.0), Request, FOREIGN, (), {})
    assert (plain.num_inference_steps, plain.max_sequence_length, plain.negative_prompt) == (8, 77, None)
    assert (guided.true_cfg_scale, guided.negative_prompt) == (3.0, ("",))


def test_what_a_request_says_goes_before_the_family(pipe: Pipeline) -> None:
    request = Request(prompt="a", num_inference_steps=3, true_cfg_scale=2.0, negative_prompt="b", max_sequence_length=5)
    (settled,) = settle(pipe.recipe, request, pipe.parts)
    assert (settled.steps, settled.guidance, settled.prompt_tokens) == (3, 2.0, 5)


def test_only_a_family_limits_the_length_of_a_prompt(pipe: Pipeline) -> None:
    assert settle(pipe.recipe, Request(prompt="a", max_sequence_length=5000), pipe.parts)
    with pytest.raises(ConfigError, match="max_sequence_length must be between 1 and 1024, got 5000"):
        settle(TextToImageRecipe(None, pipe.parts.model), Request(prompt="a", max_sequence_length=5000), pipe.parts)


@pytest.mark.parametrize(("partial_step", "first"), [("runs", 0), ("skipped", 1)])
def test_a_family_says_whether_a_step_runs_that_a_strength_covers_in_part(partial_step: Any, first: int) -> None:
    assert first_step(3, 0.7, attrs.evolve(FOREIGN, partial_step=partial_step)) == first


def test_a_recipe_without_defaults_is_named(pipe: Pipeline) -> None:
    class Silent(TextToImageRecipe):
        def __getattribute__(self, name: str) -> Any:
            if name == "sampling":
                raise AttributeError(name)
            return super().__getattribute__(name)

    with pytest.raises(PluginError, match="Silent does not say what it samples with"):
        settle(Silent(None, pipe.parts.model), Request(prompt="a"), pipe.parts)


# -- the core ---------------------------------------------------------------------------------------------------------

# Numbers of Qwen-Image, and names that would hold them. 512 and 1024 also count bytes and pixels elsewhere in the core;
# rooms that deal with requests have none of them.
ROOMS = ("interfaces", "sample", "compose", "config", "diffusion", "plugins")
NUMBERS = {50, 512, 4.0}
ALLOWED = {
    ("config/schema.py", 1024),
    ("config/reading.py", 1024),
    ("config/training.py", 1024),
    ("diffusion/attention.py", 1024),  # tokens up to which a CPU is faster without fused attention
}


def numbers_of_families(root: Path) -> list[str]:
    """Where a module of these rooms has a default or a constant that is a number of Qwen-Image, or its prompt."""
    found = []
    for room in ROOMS:
        for file in sorted((root / room).rglob("*.py")):
            name = file.relative_to(root).as_posix()
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if not isinstance(node, ast.Constant) or isinstance(node.value, bool):
                    continue
                number = isinstance(node.value, int | float) and node.value in {*NUMBERS, 1024}
                # An int 4 is a count; only 4.0 is a scale.
                if (
                    number
                    and not (node.value == 4 and isinstance(node.value, int))
                    and (name, node.value) not in ALLOWED
                ):
                    found.append(f"{name}:{node.lineno}: {node.value}")
    return found


def test_the_core_has_no_number_of_a_family() -> None:
    assert numbers_of_families(ROOT / "qframe") == []


def test_such_a_number_would_be_found(tmp_path: Path) -> None:
    for room in ROOMS:
        (tmp_path / room).mkdir()
    (tmp_path / "sample" / "bad.py").write_text(
        "STEPS = 50\nSCALE: float = 4.0\nTOKENS = 512\nLONGEST = 1024\nCOUNT = 4\n"
    )
    assert numbers_of_families(tmp_path) == [
        f"sample/bad.py:{line}: {number}" for line, number in ((1, 50), (2, 4.0), (3, 512), (4, 1024))
    ]


def test_every_bundled_family_declares_its_numbers() -> None:
    from qframe.compose import recipe_class

    registry = load_registry()
    for family in registry.families():
        sampling = recipe_class(registry.choose(family.name)).sampling
        assert (sampling.steps, sampling.guidance, sampling.negative_prompt) == (50, 4.0, " "), family.name
        assert (sampling.prompt_tokens, sampling.longest_prompt, sampling.partial_step) == (512, 1024, "runs")
