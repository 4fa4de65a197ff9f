from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qframe.errors import ConfigError, PluginError
from qframe.plugins.discovery import Candidate
from qframe.plugins.distribution import DISTRIBUTION
from qframe.plugins.hookspecs import Component, Family, hookimpl
from qframe.plugins.offers import resolve
from qframe.plugins.registry import Broken, Registry, load_registry
from tests.fake_distributions import install, installed, registry_of

GOOD = """
from qframe import Component, hookimpl

@hookimpl
def qframe_components():
    return [Component("sampler", "{name}", "{target}", summary="fine")]
"""


def good(name: str, target: str = "somewhere:Sampler") -> str:
    return GOOD.format(name=name, target=target)


def offering(*declared: Component | Family) -> Any:
    return SimpleNamespace(
        qframe_components=hookimpl(lambda: [d for d in declared if isinstance(d, Component)]),
        qframe_families=hookimpl(lambda: [d for d in declared if isinstance(d, Family)]),
    )


def family(name: str) -> Family:
    roles = dict.fromkeys(("encoder", "denoiser", "codec", "schedule", "sampler"), "x")
    return Family(name, **roles, recipe="a:B", weights_licence="MIT", summary="")  # type: ignore[arg-type]


def foreign(registry: Registry) -> list[Broken]:
    return [broken for broken in registry.broken if not broken.distribution.startswith(DISTRIBUTION + " ")]


def reasons(registry: Registry, plugin: str) -> list[str]:
    return [broken.reason for broken in registry.broken if broken.plugin == plugin]


# What works


def test_every_bundled_plugin_works() -> None:
    assert load_registry().broken == ()


def test_the_registry_is_made_once() -> None:
    assert load_registry() is load_registry()


def test_samplers_come_through_the_public_door() -> None:
    registry = load_registry()
    for name in ("euler", "heun"):
        assert registry.plugin_of(registry.component("sampler", name)) == "samplers"


def test_third_party_plugin_is_found(tmp_path: Path) -> None:
    install(tmp_path, "acme-samplers", {"acme": "acme_plugin"}, {"acme_plugin": good("fast")})
    with installed(tmp_path) as registry:
        component = registry.component("sampler", "fast")
        plugin = next(p for p in registry.plugins if p.name == "acme")
    assert registry.plugin_of(component) == "acme"
    assert plugin.distribution == "acme-samplers 1.0"
    assert plugin.components == (component,)


def test_discovery_imports_no_torch() -> None:
    code = (
        "import sys; from qframe.plugins.registry import load_registry; load_registry().components(); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_components_are_listed_by_kind_and_name() -> None:
    parts = [Component("sampler", "b", "m:N"), Component("codec", "z", "m:N"), Component("sampler", "a", "m:N")]
    registry = registry_of(offering(*parts))
    assert [c.name for c in registry.components()] == ["z", "a", "b"]
    assert [c.name for c in registry.components("sampler")] == ["a", "b"]


def test_observers_are_called() -> None:
    seen: list[int] = []
    observer = SimpleNamespace(qframe_step_end=hookimpl(lambda run, step, metrics: seen.append(step)))
    registry_of(observer).hook.qframe_step_end(run=None, step=3, metrics={})
    assert seen == [3]


# What is broken, and says so


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import missing_package_of_acme", "ModuleNotFoundError: No module named 'missing_package_of_acme'"),
        ("def f(:\n    pass", "SyntaxError"),
        ("import sys; sys.exit('no licence')", "SystemExit: no licence"),
        ("raise RuntimeError('boom')", "RuntimeError: boom"),
    ],
)
def test_failing_import_is_recorded_and_the_rest_works(tmp_path: Path, text: str, reason: str) -> None:
    install(tmp_path, "acme", {"acme": "acme_broken"}, {"acme_broken": text})
    install(tmp_path, "zeta", {"zeta": "zeta_plugin"}, {"zeta_plugin": good("zeta-sampler")})
    sys.modules.pop("acme_broken", None)
    with installed(tmp_path) as registry:
        pass
    assert reason in reasons(registry, "acme")[0]
    assert registry.component("sampler", "zeta-sampler").name == "zeta-sampler"
    assert registry.component("sampler", "euler").name == "euler"


def test_failing_import_message_names_plugin_and_distribution(tmp_path: Path) -> None:
    install(tmp_path, "acme", {"acme": "no_such_module_of_acme"}, {})
    with installed(tmp_path) as registry:
        pass
    assert [str(broken) for broken in foreign(registry)] == [
        "plugin 'acme' (acme 1.0): ModuleNotFoundError: No module named 'no_such_module_of_acme'"
    ]


@pytest.fixture
def listening() -> Iterator[None]:
    """Ctrl-C is heard, also where the tests run under nohup."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("listening")
def test_ctrl_c_at_import_is_heard() -> None:
    def load() -> object:
        signal.raise_signal(signal.SIGINT)
        return SimpleNamespace()

    with pytest.raises(KeyboardInterrupt):
        Registry([Candidate("a", "d", "t", load)])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN])
@pytest.mark.usefixtures("listening")
def test_a_plugin_that_raises_keyboard_interrupt_is_named_and_stops_nothing(handler: Any) -> None:
    signal.signal(signal.SIGINT, handler)

    def load() -> object:
        raise KeyboardInterrupt

    plugin = SimpleNamespace(qframe_components=hookimpl(lambda: [Component("sampler", "zeta", "zeta:Sampler")]))
    registry = Registry([Candidate("a", "d", "t", load), Candidate("b", "d", "t", lambda: plugin)])
    assert reasons(registry, "a") == ["raised KeyboardInterrupt while it was imported"]
    assert registry.component("sampler", "zeta").name == "zeta"


@pytest.mark.parametrize("bundled", [False, True])
def test_a_slow_import_is_named(bundled: bool, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    clock = iter([0.0, 5.0])
    monkeypatch.setattr("qframe.plugins.registry.time.perf_counter", lambda: next(clock))
    plugin = SimpleNamespace(qframe_components=hookimpl(lambda: []))
    Registry([Candidate("acme", "acme 1.0", "acme", lambda: plugin, bundled)])
    said = "plugin 'acme' (acme 1.0) took 5.0 s to import, which delays every command; QFRAME_DISABLE_PLUGINS=acme"
    assert (said in caplog.text) != bundled


@pytest.mark.parametrize("name", ["", " ", "a b", "a\nb", "\x1b[31mred", "-x", "ümlaut", "x" * 65, 7])
def test_a_name_that_cannot_be_typed_or_shown_is_refused(name: Any) -> None:
    for declared in (Component("sampler", name, "zeta:Sampler"), family(name)):
        hook = "qframe_components" if isinstance(declared, Component) else "qframe_families"
        plugin = SimpleNamespace(**{hook: hookimpl(lambda declared=declared: [declared], specname=hook)})
        registry = Registry([Candidate("acme", "acme 1.0", "acme", lambda plugin=plugin: plugin)])
        (broken,) = registry.broken
        assert broken.reason.startswith(f"{hook} offers {name!r} at position 0, which is no name")
        assert broken.reason.isprintable()


def test_second_distribution_of_one_name_is_reported_and_the_first_kept(tmp_path: Path) -> None:
    install(tmp_path, "acme-one", {"acme": "acme_one"}, {"acme_one": good("one")})
    install(tmp_path, "acme-two", {"acme": "acme_two"}, {"acme_two": good("two")})
    with installed(tmp_path) as registry:
        pass
    assert registry.component("sampler", "one").name == "one"
    (broken,) = foreign(registry)
    assert broken.plugin == "acme"
    assert broken.distribution == "acme-two 1.0"
    assert "another distribution, acme-one 1.0, has a plugin of the same name" in broken.reason


def test_no_distribution_can_take_a_bundled_name(tmp_path: Path) -> None:
    install(tmp_path, "aaa-first", {"samplers": "aaa_plugin"}, {"aaa_plugin": good("euler", "aaa:Euler")})
    with installed(tmp_path) as registry:
        assert registry.component("sampler", "euler").target == "qframe.diffusion.samplers:EulerSampler"
    assert [broken.distribution for broken in foreign(registry)] == ["aaa-first 1.0"]


def test_a_distribution_called_qframe_is_a_stranger_like_any_other(tmp_path: Path) -> None:
    """The name belongs to another project on the package index, so that nobody may come first by it."""
    install(tmp_path, "qframe", {"samplers": "stranger"}, {"stranger": good("euler", "stranger:Euler")})
    with installed(tmp_path) as registry:
        assert registry.component("sampler", "euler").target == "qframe.diffusion.samplers:EulerSampler"
    assert [broken.distribution for broken in foreign(registry)] == ["qframe 1.0"]


def test_misspelt_hook_is_an_error_with_the_nearest_name() -> None:
    plugin = SimpleNamespace(qframe_componets=hookimpl(lambda: []))
    registry = registry_of(plugin, offering(Component("sampler", "s", "m:N")))
    assert "there is no hook 'qframe_componets'; did you mean 'qframe_components'" in reasons(registry, "a")[0]
    assert registry.component("sampler", "s").name == "s"


def test_hook_without_its_marker_is_an_error() -> None:
    plugin = SimpleNamespace(qframe_components=lambda: [])
    assert reasons(registry_of(plugin), "a") == ["qframe_components lacks @hookimpl, so it would never be called"]


def test_module_without_hooks_is_an_error() -> None:
    assert reasons(registry_of(SimpleNamespace()), "a")[0].startswith("has none of the hooks qframe_components")


def test_wrong_arguments_of_a_hook_are_an_error() -> None:
    plugin = SimpleNamespace(qframe_step_end=hookimpl(lambda run, stepp: None))
    assert "stepp" in reasons(registry_of(plugin), "a")[0]


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (None, "qframe_components returned None, expected a list of Component"),
        ("euler", "qframe_components returned a str, expected a list of Component"),
        (
            [Component("sampler", "s", "m:N"), "heun"],
            "qframe_components returned a str at position 1, expected Component",
        ),
        ([family("f")], "qframe_components returned a Family at position 0, expected Component"),
    ],
)
def test_wrong_return_type_is_named(result: object, reason: str) -> None:
    registry = registry_of(SimpleNamespace(qframe_components=hookimpl(lambda: result)))
    assert reasons(registry, "a") == [reason]
    assert registry.components() == ()


def test_a_broken_plugin_observes_nothing() -> None:
    seen: list[int] = []
    plugin = SimpleNamespace(
        qframe_components=hookimpl(lambda: None),
        qframe_step_end=hookimpl(lambda run, step, metrics: seen.append(step)),
    )
    registry_of(plugin).hook.qframe_step_end(run=None, step=1, metrics={})
    assert seen == []


def test_component_of_two_plugins_is_reported_by_both_names() -> None:
    first, second = Component("sampler", "s", "m:First"), Component("sampler", "s", "m:Second")
    registry = registry_of(offering(first), offering(second, Component("codec", "own", "m:N")))
    assert registry.component("sampler", "s") == first
    assert registry.component("codec", "own").name == "own"
    (broken,) = registry.broken
    assert broken.plugin == "b"
    assert "offers sampler 's', which plugin 'a' offers too" in broken.reason


def test_same_name_in_two_kinds_is_no_duplicate() -> None:
    registry = registry_of(offering(Component("sampler", "s", "m:N"), Component("codec", "s", "m:N")))
    assert registry.broken == ()


def test_family_of_two_plugins_is_reported_by_both_names() -> None:
    registry = registry_of(offering(family("f")), offering(family("f")))
    assert "offers family 'f', which plugin 'a' offers too" in reasons(registry, "b")[0]


# Asking for what is not there


def test_unknown_component_names_the_nearest_and_the_list() -> None:
    with pytest.raises(ConfigError) as caught:
        load_registry().component("sampler", "eular")
    assert caught.value.message == "no sampler 'eular'; did you mean 'euler'?"
    assert caught.value.hint is not None
    assert "Known: euler, heun" in caught.value.hint


def test_unknown_family_says_what_a_broken_plugin_might_have_offered() -> None:
    with pytest.raises(ConfigError) as caught:
        registry_of(SimpleNamespace(), offering(family("edit"))).family("inpaint")
    assert caught.value.hint is not None
    assert "Known: edit." in caught.value.hint
    assert "Not loaded: plugin 'a'" in caught.value.hint


@pytest.mark.parametrize("target", ["no.such.module:X", "qframe.errors:NoSuchClass"])
def test_target_that_does_not_exist_names_plugin_and_target(target: str) -> None:
    registry = registry_of(offering(Component("sampler", "s", target)))
    with pytest.raises(PluginError, match="plugin 'a': " + target):
        registry.resolve(registry.component("sampler", "s"))


def test_target_that_exits_at_import_is_a_plugin_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "exits_at_import.py").write_text("raise SystemExit(3)")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(PluginError, match="exits_at_import:X"):
        resolve("exits_at_import:X", "acme")


def test_no_target_resolves_to_none() -> None:
    registry = load_registry()
    assert registry.resolve(registry.component("sampler", "euler"), "options") is None


# Environment


def test_disabled_plugins_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QFRAME_DISABLE_PLUGINS", "samplers, shapes")
    registry = load_registry.__wrapped__()
    assert registry.components("sampler") == ()
    assert registry.disabled == ("samplers", "shapes")


def test_disabling_an_unknown_plugin_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QFRAME_DISABLE_PLUGINS", "sampler")
    registry = load_registry.__wrapped__()
    assert "did you mean 'samplers'" in reasons(registry, "sampler")[0]


def test_tracing_writes_what_is_loaded() -> None:
    environment = {**os.environ, "QFRAME_TRACE_PLUGINS": "1"}
    code = "import qframe.plugins.registry; qframe.plugins.registry.load_registry()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert re.search(r"samplers: loaded in [\d.]+ ms, 2 components, 0 families", done.stderr)
