from __future__ import annotations

import contextlib
import enum
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qframe.config import config_items, diff_config, dump_config, load_config, resolve_config
from qframe.config.filling import declared_settings, known_keys
from qframe.config.foreign import FORMER_VALUES, NAMES_ELSEWHERE
from qframe.config.reading import LARGEST_FILE
from qframe.config.schema import Config, LoraConfig
from qframe.config.strict import fields_of, nested, show
from qframe.errors import ConfigError, PluginError, QframeError
from qframe.plugins.hookspecs import Component, Family, hookimpl
from qframe.plugins.registry import Registry
from tests.fake_distributions import registry_of


class Mode(enum.Enum):
    FAST = "fast"
    SLOW = "slow"


@attrs.frozen(kw_only=True)
class Inner:
    depth: int = 1


@attrs.frozen(kw_only=True)
class Options:
    template: Literal["auto", "edit"] = "auto"
    areas: tuple[int, ...] = ()
    pair: tuple[int, float] = (1, 1.0)
    weights: dict[str, float] = attrs.field(factory=dict)
    where: Path | None = None
    mode: Mode = Mode.FAST
    either: int | str = 0
    inner: Inner = attrs.field(factory=Inner)


@attrs.frozen(kw_only=True)
class OtherOptions:
    strength: float = 0.5

    def __attrs_post_init__(self) -> None:
        if self.strength == 0.25:
            raise ValueError("strength may be anything but a quarter")


@attrs.frozen(kw_only=True)
class Needy:
    token: str


HERE = __name__


def make_registry() -> Registry:
    components = [
        Component("encoder", "enc", "a:B", options=f"{HERE}:Options"),
        Component("encoder", "enc-two", "a:B", options=f"{HERE}:OtherOptions"),
        Component("encoder", "needy", "a:B", options=f"{HERE}:Needy"),
        Component("encoder", "wrong", "a:B", options=f"{HERE}:make_registry"),
        *(Component(kind, "plain", "a:B") for kind in ("denoiser", "codec", "schedule", "sampler")),
        Component("sampler", "plain-two", "a:B"),
        Component("model", "tiny", "a:b", defaults={"train": {"max_steps": 40, "seed": 9}}),
        Component("source", "built-in", "a:B", options=f"{HERE}:OtherOptions"),
        Component("source", "folder", "a:B"),
        Component("source", "jsonl", "a:B", suffixes=(".jsonl",)),
        Component("source", "parquet", "a:B", suffixes=(".parquet",)),
    ]
    family = Family(
        "edit",
        encoder="enc",
        denoiser="plain",
        codec="plain",
        schedule="plain",
        sampler="plain",
        recipe="a:B",
        settings=f"{HERE}:Inner",
        options={
            "encoder": {"options": {"template": "edit"}},
            "data": {"options": {"strength": 0.75}},
            "train": {"max_steps": 300, "batch_size": 5},
        },
        model="tiny",
        data="built-in",
        weights_licence="MIT",
        summary="",
    )
    bare = attrs.evolve(family, name="bare", options={}, settings=None, model=None, data=None)
    plugin = SimpleNamespace(
        qframe_components=hookimpl(lambda: components), qframe_families=hookimpl(lambda: [family, bare])
    )
    return registry_of(plugin)


REGISTRY = make_registry()


def load(*overrides: str, family: str | None = "edit", path: Path | None = None, **values: Any) -> Any:
    return load_config(path, family=family, overrides=overrides, values=values, registry=REGISTRY)


def lines(*overrides: str, **more: Any) -> list[str]:
    """The problems that loading reports, one a line."""
    with pytest.raises(ConfigError) as caught:
        load(*overrides, **more)
    head, *rest = caught.value.message.splitlines()
    assert head == f"configuration has {len(rest)} problem{'s' if len(rest) > 1 else ''}:"
    return [line.strip() for line in rest]


def toml(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text)
    return path


# Layers


def test_family_lies_under_file_under_values_under_overrides(tmp_path: Path) -> None:
    path = toml(tmp_path, "[train]\nbatch_size = 2\nseed = 2\nwarmup_steps = 2")
    config = load("train.warmup_steps=4", path=path, model="real", train={"seed": 3, "warmup_steps": 3})
    train = config.train
    assert (train.max_steps, train.batch_size, train.seed, train.warmup_steps) == (300, 2, 3, 4)


def test_defaults_of_a_bundled_model_lie_between_the_family_and_the_user() -> None:
    train = load("train.seed=1").train
    assert (train.max_steps, train.batch_size, train.seed) == (40, 5, 1)
    named = load(family="bare", model="tiny").train
    assert (named.max_steps, named.seed) == (40, 9)
    sources = resolve_config(family="edit", registry=REGISTRY).sources
    assert sources["train.max_steps"] == "model tiny"


def test_only_a_model_has_defaults() -> None:
    with pytest.raises(ValueError, match="only a model has defaults"):
        Component("sampler", "euler", "a:B", defaults={"train": {"max_steps": 1}})


def test_family_chooses_components_model_and_data() -> None:
    config = load()
    assert (config.encoder.use, config.sampler.use, config.model, config.data.use) == (
        "enc",
        "plain",
        "tiny",
        "built-in",
    )


def test_file_may_name_the_family(tmp_path: Path) -> None:
    assert load(family=None, path=toml(tmp_path, 'family = "edit"')).family == "edit"


def test_argument_for_the_family_stands_above_the_file(tmp_path: Path) -> None:
    assert load(family="bare", path=toml(tmp_path, 'family = "edit"')).family == "bare"


def test_no_family_lists_those_there_are() -> None:
    with pytest.raises(ConfigError) as caught:
        load(family=None)
    assert "bare, edit" in str(caught.value)


def test_unknown_family_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="no family 'edti'; did you mean 'edit'"):
        load(family="edti")


def test_none_in_values_means_not_given() -> None:
    assert load(model=None, data={"path": None}, train={"max_steps": None}) == load()


def test_options_become_what_the_component_declares() -> None:
    options = load("encoder.options.areas=[1, 2]").encoder.options
    assert options == Options(template="edit", areas=(1, 2))


def test_options_of_a_component_that_declares_none_are_none() -> None:
    assert load().codec.options is None


def test_recipe_settings_become_what_the_family_declares() -> None:
    assert load("recipe.depth=4").recipe == Inner(depth=4)
    assert load(family="bare").recipe is None


def test_data_path_chooses_the_source_by_suffix() -> None:
    assert load(data={"path": "pictures"}).data.use == "folder"
    assert load(data={"path": "rows.jsonl"}).data.use == "jsonl"
    assert load(data={"path": "rows.parquet"}).data.use == "parquet"
    assert load("data.use=built-in", data={"path": "pictures"}).data.use == "built-in"


def test_another_component_drops_the_family_options_of_the_former() -> None:
    resolved = resolve_config(family="edit", overrides=["encoder.use=enc-two"], registry=REGISTRY)
    assert resolved.config.encoder.options == OtherOptions()
    assert resolved.dropped == ("encoder.options.template",)


def test_naming_the_familys_own_component_keeps_its_options() -> None:
    assert load("encoder.use=enc").encoder.options.template == "edit"


def test_user_options_of_the_former_component_are_an_error(tmp_path: Path) -> None:
    path = toml(tmp_path, "[encoder.options]\nareas = [1]")
    assert lines("encoder.use=enc-two", path=path) == [
        f"encoder.options.areas ({path}:2): unknown key; known here: strength"
    ]


# Overrides


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ('"3"', "3"), ("three", "three"), ("", ""), ("a = b", "a = b"), ("3\nfamily = 'x'", "3\nfamily = 'x'")],
)
def test_override_is_toml_else_text(text: str, value: object) -> None:
    assert load(f"encoder.options.either={text}").encoder.options.either == value


@pytest.mark.parametrize("override", ["train", "=3", "train..seed=1", "train.s eed=1", ".".join("a" * 40) + "=1"])
def test_override_without_a_key_is_an_error(override: str) -> None:
    (line,) = lines(override)
    assert line.startswith("--set: expected key=value with a dotted key, got")


# Strictness


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ('cache.enabled="false"', 'cache.enabled (--set): expected true or false, got "false"'),
        ("cache.enabled=1", "cache.enabled (--set): expected true or false, got 1"),
        ("train.max_steps=3.7", "train.max_steps (--set): expected a whole number, got 3.7"),
        ("train.max_steps=3.0", "train.max_steps (--set): expected a whole number, got 3.0"),
        ("train.max_steps=true", "train.max_steps (--set): expected a whole number, got true"),
        ('train.max_steps="3"', 'train.max_steps (--set): expected a whole number, got "3"'),
        ("train.max_steps=0", "train.max_steps (--set): expected a value >= 1, got 0"),
        ("train.max_steps=99999999999999999999", "train.max_steps (--set): expected a whole number of at most 64 bits"),
        ("lora.rank=5000", "lora.rank (--set): expected a value >= 1 and <= 1024, got 5000"),
        ("train.learning_rate=nan", "train.learning_rate (--set): expected a finite number, got nan"),
        ("lora.alpha=-inf", "lora.alpha (--set): expected a finite number, got -inf"),
        ("lora.alpha=0.0", "lora.alpha (--set): expected a value > 0.0, got 0.0"),
        ("train.learning_rate=true", "train.learning_rate (--set): expected a number, got true"),
        ("model=3", "model (--set): expected a string, got 3"),
        ("lora.targets=all", 'lora.targets (--set): expected a list, each a string, got "all"'),
        ('lora.targets=["a", 3]', "lora.targets.1 (--set): expected a string, got 3"),
        ("train=3", "train (--set): expected a table, got 3"),
        ("train.mode=half", 'train.mode (--set): expected one of "lora", "full", got "half"'),
        ("encoder.options=3", "encoder.options (--set): expected a table, got 3"),
        ("encoder.options.pair=[1]", "encoder.options.pair (--set): expected a list of 2, got 1 values"),
        ("encoder.options.weights.x=a", 'encoder.options.weights.x (--set): expected a number, got "a"'),
        ("encoder.options.mode=medium", 'encoder.options.mode (--set): expected one of "fast", "slow", got "medium"'),
        ("encoder.options.either=1.5", "encoder.options.either (--set): expected a whole number or a string, got 1.5"),
        ("encoder.options.inner.depth=x", 'encoder.options.inner.depth (--set): expected a whole number, got "x"'),
        ("encoder.options.where=3", "encoder.options.where (--set): expected a path, got 3"),
        ("data.options.strength=0.25", "data.options (--set): strength may be anything but a quarter"),
        ("codec.options.x=1", "codec.options (--set): codec 'plain' (plugin a) takes no options"),
        ("recipe.dept=1", "recipe.dept (--set): unknown key; did you mean recipe.depth?"),
        ("train.max_stps=1", "train.max_stps (--set): unknown key; did you mean train.max_steps?"),
        ("max_steps=1", "max_steps (--set): unknown key; did you mean train.max_steps?"),
        ("trian.max_steps=1", "trian (--set): unknown key; did you mean train?"),
        ("cache.zzz=1", "cache.zzz (--set): unknown key; known here: dir, enabled, batch_size"),
        (
            "sampler.use=plane",
            "sampler.use (--set): no sampler 'plane'; did you mean 'plain'? (known: plain, plain-two)",
        ),
        ("data.use=3", "data.use (--set): expected a string, got 3"),
        ("encoder.use=needy", "encoder.options.token: missing, expected a string"),
    ],
)  # fmt: skip
def test_wrong_value_says_where_and_what_was_expected(override: str, message: str) -> None:
    assert lines(override) == [message]


def test_a_value_of_an_earlier_version_leads_to_the_new_one() -> None:
    (line,) = lines("offload=group")
    assert line.startswith('offload (--set): expected one of "none", "model", "stream", got "group"; use "stream"')
    assert line.endswith(FORMER_VALUES["offload", "group"])


def test_whole_number_passes_for_a_number() -> None:
    rate = load("train.learning_rate=1").train.learning_rate
    assert rate == 1.0
    assert isinstance(rate, float)


def test_every_error_is_reported_at_once(tmp_path: Path) -> None:
    path = toml(tmp_path, '[train]\nmax_steps = 0\nmode = "half"\n\n[lora]\nrnak = 3')
    assert lines("cache.enabled=3", path=path) == [
        "cache.enabled (--set): expected true or false, got 3",
        f"lora.rnak ({path}:6): unknown key; did you mean lora.rank?",
        f"train.max_steps ({path}:2): expected a value >= 1, got 0",
        f'train.mode ({path}:3): expected one of "lora", "full", got "half"',
    ]


def test_options_without_a_data_set_are_an_error() -> None:
    message = "data.options (--set): a data set that is not chosen (data.use) takes no options"
    assert lines("data.options.x=1", family="bare") == [message]


def test_very_many_errors_are_cut_short(tmp_path: Path) -> None:
    path = toml(tmp_path, "\n".join(f"key_{i}=1" for i in range(20_000)))
    started = time.process_time()
    with pytest.raises(ConfigError) as caught:
        load(path=path)
    assert caught.value.message.splitlines()[-1].strip() == "and 19960 more"
    assert time.process_time() - started < 5


def test_options_class_that_is_no_attrs_class_is_the_plugins_fault() -> None:
    with pytest.raises(PluginError, match=r"plugin 'a': .*make_registry is not an attrs class"):
        load("encoder.use=wrong")


def test_values_may_hold_finished_sections() -> None:
    assert load(lora=LoraConfig(rank=3)).lora.rank == 3


def test_environment_is_not_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    assert load("output=$SECRET/${SECRET}").output == "$SECRET/${SECRET}"


# Files


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read \(No such file"):
        load(path=tmp_path / "none.toml")


def test_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a file"):
        load(path=tmp_path)


def test_endless_file_is_refused() -> None:
    with pytest.raises(ConfigError, match="not a file"):
        load(path=Path("/dev/zero"))


def test_large_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="larger than 262144 bytes"):
        load(path=toml(tmp_path, "#" * (LARGEST_FILE + 1)))


@pytest.mark.parametrize("separator", [".", " . ", '."\u2028".', '."\x85".'])
def test_long_dotted_key_is_refused_at_once(tmp_path: Path, separator: str) -> None:
    path = toml(tmp_path, "a = 1\n" + separator.join("a" * 30_000) + " = 1")
    started = time.process_time()
    with pytest.raises(ConfigError, match=r"run\.toml:2: more than 32 dots in a line"):
        load(path=path)
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    "text", ["a" + " " * 200_000 + "b", "[" * 200_000, "a" * 200_000, "'" * 200_000, "=" * 200_000]
)
def test_long_lines_are_read_at_once(tmp_path: Path, text: str) -> None:
    path = toml(tmp_path, text)
    started = time.process_time()
    with pytest.raises(ConfigError):
        load(path=path)
    assert time.process_time() - started < 1


@pytest.mark.parametrize("text", ["[train", "a = 1\na = 2", "x = " + "[" * 5000, "x = " + "{a=" * 60 + "1" + "}" * 60])
def test_what_is_not_usable_toml_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError):
        load(path=toml(tmp_path, text))


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"not UTF-8 \(byte 2\); save it as UTF-8"):
        load(path=path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-8"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_marks_and_line_ends_of_any_editor_are_read(tmp_path: Path, encoding: str, end: str) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(f'family = "edit"{end}output = "ä"{end}'.encode(encoding))
    assert load_config(path, registry=REGISTRY).output == "ä"


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("[train]\nseed = 1\nmode = 'lora'\nseed = 2", ":4: train.seed is given twice", "Line 2 has it, too"),
        ("[train]\nseed = 1\n[lora]\n[train]\nmode = 'lora'", ":4: train is given twice", "Line 1 has it, too"),
        ('output = "C:\\new\\data"', ":1: not valid TOML", "in single quotes, 'C:\\new\\data'"),
        ("output = \u201ca\u201d", ":1: not valid TOML", "Curly quotes"),
        ("[train]\u00a0\nseed = 1", ":1: not valid TOML", "an unusual space"),
        ("a = 1\rb = 2", "not valid TOML", "carriage return"),
        ("[cache]\nenabled = True", ":2: not valid TOML", "true and false"),
        ("output = runs/mine", ":1: not valid TOML", "Put text in quotes"),
        ('family = "edit"\noutput: "a"', ":2: not valid TOML", "an equals sign"),
        ("job: extension\nconfig:\n  name: a", "this is a job file of ai-toolkit, in YAML", "qframe config convert"),
        ('{"--model_type": "lora"}', "this is a configuration of SimpleTuner, in JSON", "qframe config convert"),
        (
            '{"__version": 10, "training_method": "LORA"}',
            "this is a configuration of OneTrainer, in JSON",
            "qframe config convert",
        ),
        ("network_dim = 16", "a file of arguments of kohya's programs", "coming-from.md"),
        ("[[datasets]]\nimage_directory = 'a'", "this is a data set of kohya's programs", "qframe config convert"),
        ("#!/bin/sh\naccelerate launch train.py --a 1", "a command line of a training script", "qframe config convert"),
        ("learning: 1\nsteps: 3", "this is a YAML file; a configuration", "coming-from.md"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_the_advice_that_fits(
    tmp_path: Path, text: str, message: str, hint: str
) -> None:
    path = tmp_path / "run.toml"
    path.write_text(text, newline="")
    with pytest.raises(ConfigError) as caught:
        load(path=path)
    assert message in caught.value.message
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize("key", ["model", "output", "data.path", "cache.dir", "denoiser.model"])
@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_text_is_no_name(key: str, text: str) -> None:
    assert lines(f'{key}="{text}"')[0].endswith("(is a variable of the shell not set?)")


@pytest.mark.parametrize(
    ("override", "most"),
    [
        ("train.batch_size=1000000000", "65536"),
        ("train.gradient_accumulation=1000000000", "65536"),
        ("cache.batch_size=1000000000", "65536"),
        ("sample.batch_size=1000000000", "65536"),
        ("sample.num_inference_steps=1000000000", "10000"),
        ("train.learning_rate=1e300", "1000.0"),
    ],
)
def test_what_would_fill_the_memory_or_is_a_slip_is_refused(override: str, most: str) -> None:
    assert f"<= {most}, got" in lines(override)[0]


def test_a_family_that_is_no_text_is_refused_even_where_it_is_overridden(tmp_path: Path) -> None:
    path = toml(tmp_path, "family = 3")
    assert lines(path=path) == ["family (argument): expected a string"]


def test_the_higher_layer_decides_between_steps_and_epochs(tmp_path: Path) -> None:
    path = toml(tmp_path, "[train]\nepochs = 3")
    assert (load(path=path).train.epochs, load("train.max_steps=5", path=path).train.epochs) == (3, None)
    assert load("train.max_steps=5", path=path).train.max_steps == 5
    both = toml(tmp_path, "[train]\nepochs = 3\nmax_steps = 7")
    assert load(path=both).train.epochs == 3


def test_every_name_of_another_trainer_leads_to_a_key() -> None:
    known = known_keys(declared_settings({}, REGISTRY.choose("edit"))[0])
    assert {key for key in NAMES_ELSEWHERE.values() if key not in known and not key.startswith("data.options")} == set()
    assert not NAMES_ELSEWHERE.keys() & {key.rpartition(".")[2] for key in known} - {"alpha", "guidance_scale"}
    assert lines("train.lr=1e-4") == ["train.lr (--set): unknown key; here it is train.learning_rate"]
    assert lines("lora.dim=8") == ["lora.dim (--set): unknown key; here it is lora.rank"]


# Provenance, storing, comparing


def test_every_key_has_a_source(tmp_path: Path) -> None:
    path = toml(tmp_path, '[train]\nseed = 1\n\n[encoder.options]\nareas = [\n  1,\n]\n[cache]\ndir = """\nx = 1"""\n')
    resolved = resolve_config(path, family="edit", overrides=["lora.rank=3"], values={"output": "x"}, registry=REGISTRY)
    assert set(resolved.sources) == set(config_items(resolved.config))
    expected = {
        "family": "argument",
        "train.seed": f"{path}:2",
        "train.max_steps": "model tiny",
        "train.batch_size": "family edit",
        "train.warmup_steps": "default",
        "encoder.options.areas": f"{path}:5",
        "encoder.options.template": "family edit",
        "encoder.options.inner.depth": "default",
        "cache.dir": f"{path}:9",
        "lora.rank": "--set",
        "output": "argument",
        "model": "family edit",
    }
    assert {key: resolved.sources[key] for key in expected} == expected


@pytest.mark.parametrize("family", ["edit", "bare"])
def test_dumped_configuration_loads_to_an_equal_one(tmp_path: Path, family: str) -> None:
    overrides = [] if family == "bare" else ["encoder.options.where=a/b", "encoder.options.mode=slow"]
    config = load("lora.alpha=3", *overrides, family=family, data={"path": "rows.jsonl"})
    assert load(family=None, path=toml(tmp_path, dump_config(config))) == config


def test_dumped_configuration_with_another_component_loads_to_an_equal_one(tmp_path: Path) -> None:
    config = load("encoder.use=enc-two", "data.use=folder")
    assert load(family=None, path=toml(tmp_path, dump_config(config))) == config


def test_difference_names_key_old_and_new() -> None:
    before, after = load(), load("lora.rank=3", "encoder.use=enc-two")
    assert diff_config(before, before) == []
    assert ("lora.rank", 16, 3) in diff_config(before, after)
    assert ("encoder.options.strength", None, 0.5) in diff_config(before, after)
    assert ("encoder.options.mode", Mode.FAST, None) in diff_config(before, after)


def test_a_model_that_is_no_text_is_a_problem_like_any_other() -> None:
    assert lines(model=["a", "b"]) == ['model (argument): expected a string, got ["a", "b"]']


@pytest.mark.parametrize("key", ["output", "data.path", "lora.targets"])
def test_text_with_a_nul_is_refused(key: str) -> None:
    """The functions of the system that take a path fail at it in ways of their own."""
    value = '["a\\u0000"]' if key == "lora.targets" else '"a\\u0000b"'
    (line,) = lines(f"{key}={value}")
    assert "expected text without NUL characters" in line


# Anything at all

KEYS = st.sampled_from(["train", "lora", "max_steps", "rank", "encoder", "options", "use", "family", "data", "x", "0"])
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.datetimes()
    | st.binary(max_size=3)
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)


def survives(call: Any) -> None:
    """The call succeeds, or fails with an error meant for users."""
    with contextlib.suppress(QframeError):
        call()


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(KEYS, VALUES, max_size=5))
def test_any_values_end_in_a_configuration_or_a_message(values: dict[str, Any]) -> None:
    survives(lambda: load_config(family="edit", values=values, registry=REGISTRY))


@settings(max_examples=300, deadline=None)
@given(st.lists(KEYS, min_size=1, max_size=4), st.text(max_size=20) | SCALARS.map(str))
def test_any_override_ends_in_a_configuration_or_a_message(key: list[str], value: str) -> None:
    survives(lambda: load(".".join(key) + "=" + value))


@settings(max_examples=300, deadline=None)
@given(text=st.text(alphabet="abtrain[]{}=.,\"'\n #013-+e_:T", max_size=60))
def test_any_file_ends_in_a_configuration_or_a_message(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.toml"
    path.write_text(text)
    survives(lambda: load(path=path))


@settings(max_examples=300, deadline=None)
@given(
    rank=st.integers(1, 1024),
    rate=st.floats(1e-9, 1e3),
    text=st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=30).filter(str.strip),
    flag=st.booleans(),
)
def test_round_trip_holds_for_any_values(
    tmp_path_factory: pytest.TempPathFactory, rank: int, rate: float, text: str, flag: bool
) -> None:
    values = {"lora": {"rank": rank}, "train": {"learning_rate": rate}, "output": text, "cache": {"enabled": flag}}
    config = load_config(family="edit", values=values, registry=REGISTRY)
    path = tmp_path_factory.getbasetemp() / "round.toml"
    path.write_bytes(dump_config(config).encode())
    assert load_config(path, registry=REGISTRY) == config


# The documentation


def documented_keys() -> list[str]:
    """One row of docs/reference/config.md per key of the schema."""

    def rows(cls: type, prefix: tuple[str, ...]) -> Iterator[str]:
        for name, field in fields_of(cls).items():
            inner = nested(field)
            if inner is not None:
                yield from rows(inner, (*prefix, name))
                continue
            default = field.default
            shown = "" if default is attrs.NOTHING else "-" if default is None else show(default)
            meaning = str(field.metadata["help"]).replace("|", "\\|")
            yield f"| `{'.'.join((*prefix, name))}` | {shown} | {meaning} |"

    return list(rows(Config, ()))


def test_reference_lists_every_key_as_the_schema_has_it() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "config.md").read_text(encoding="utf-8")
    listed = [line for line in page.splitlines() if line.startswith("| `")]
    assert listed == documented_keys()
