"""Places that cannot be written to: each command says which, and what to do; a complete cache is used."""

from __future__ import annotations

import shutil
import signal
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.cli.conftest import Run
from tests.privileges import ordinary_user, read_only

SMALL = [
    f"--set={setting}"
    for setting in (
        "data.options.count=4", "data.options.validation=0", "train.max_steps=1", "sample.count=1",
        "sample.num_inference_steps=1",
    )
]  # fmt: skip
TRAIN = ["train", "--family", "qwen-edit", *SMALL]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run and its cache."""
    from qframe.cli import main

    folder = tmp_path_factory.mktemp("made")
    assert main([*TRAIN, "--output", str(folder / "run"), f"--set=cache.dir={folder / 'cache'}"]) == 0
    return folder


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Path]:
    """An empty folder that cannot be written to, for a user who obeys the modes of files."""
    folder = tmp_path / "closed"
    folder.mkdir()
    read_only(folder)
    with ordinary_user():
        yield folder


@pytest.fixture
def mounted(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of a finished run and its cache that cannot be written to, as on a disk that is mounted read-only."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    folder = read_only(Path(shutil.copytree(made, tmp_path / "mounted")))
    with ordinary_user():
        yield folder


COMMANDS: dict[str, tuple[list[str], str]] = {
    "train": ([*TRAIN, "--output", "{closed}/run"], "--output"),
    "train into a cache": ([*TRAIN, "--output", "run", "--set=cache.dir={closed}/cache"], "cache.dir"),
    "cache build": (["cache", "build", "--family", "qwen-edit", *SMALL, "--set=cache.dir={closed}/cache"], "cache.dir"),
    "report": (["report", "{made}/run", "--output", "{closed}/page.html"], ""),
    "lora convert": (["lora", "convert", "{made}/run/lora.safetensors", "--to", "kohya", "--output", "{closed}/x.safetensors"], ""),  # noqa: E501
    "lora merge": (["lora", "merge", "--family", "qwen-edit", "--lora", "{made}/run/lora.safetensors", "--output", "{closed}/m"], ""),  # noqa: E501
    "data check": (["data", "check", "--family", "qwen-edit", "--set=data.options.count=2", "--set=data.options.validation=0", "--sheet", "{closed}/sheet.png"], ""),  # noqa: E501
    "demo": (["demo", "--output", "{closed}/demo"], "--output"),
    "bench": (["plugins", "list"], ""),
}  # fmt: skip
del COMMANDS["bench"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_place_that_cannot_be_written_to_is_named_with_the_next_step(
    command: str, run: Run, made: Path, closed: Path
) -> None:
    arguments, setting = COMMANDS[command]
    outcome = run(*(argument.format(closed=closed, made=made) for argument in arguments))
    assert outcome.code == 6, outcome.err
    assert "Permission denied" in outcome.err
    assert f"error: {closed}/" in outcome.err
    assert f"another place{f' ({setting})' if setting else ''}" in outcome.err
    assert not list(closed.iterdir())


def test_a_run_that_cannot_be_written_to_is_not_resumed(run: Run, mounted: Path) -> None:
    outcome = run(*TRAIN, "--output", mounted / "run", "--resume", "--set=train.max_steps=2")
    assert outcome.code == 6, outcome.err
    assert f"error: {mounted}/run/.qframe-lock: cannot be written" in outcome.err


def test_a_complete_cache_is_used_where_it_cannot_be_written_to(run: Run, mounted: Path, made: Path) -> None:
    cache = f"--set=cache.dir={mounted / 'cache'}"
    before = sorted(mounted.rglob("*"))
    built = run("cache", "build", "--family", "qwen-edit", *SMALL, cache)
    assert (built.code, "4 examples are ready" in built.out) == (0, True), built
    assert run("cache", "verify", mounted / "cache").code == 0
    assert run("cache", "stats", mounted / "cache").code == 0
    trained = run(*TRAIN, "--output", "run", cache)
    assert trained.code == 0, trained.err
    assert Path("run/lora.safetensors").read_bytes() == (made / "run" / "lora.safetensors").read_bytes()
    assert sorted(mounted.rglob("*")) == before


def test_what_a_closed_cache_lacks_is_said_before_anything_is_encoded(
    run: Run, mounted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import qframe.cache.examples as module

    monkeypatch.setattr(module, "encode_pixels", lambda *given, **named: pytest.fail("it was encoded"))
    more = [setting.replace("count=4", "count=5") for setting in SMALL]
    outcome = run("cache", "build", "--family", "qwen-edit", *more, f"--set=cache.dir={mounted / 'cache'}")
    assert outcome.code == 3
    assert "entries are missing, and this cache cannot be written to" in outcome.err
    assert "cache.dir" in outcome.err


def with_rows(made: Path, folder: Path, row: str) -> Path:
    """A copy of the cache in which every row of the index describes its entry by this text."""
    cache = Path(shutil.copytree(made / "cache", folder / "cache"))
    index = sqlite3.connect(cache / "index.sqlite")
    with index:
        index.execute("UPDATE entries SET tensors = ?", (row,))
    index.close()
    return cache


@pytest.mark.parametrize("row", ['{"not": "a list"', "[1]", "7", '[["latents", "F32", [2], 0, 9, "x"]]'])
def test_a_broken_row_of_the_index_is_named_and_built_again(
    row: str, run: Run, made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = with_rows(made, tmp_path, row)
    outcome = run("cache", "verify", cache)
    assert outcome.code == 0, outcome
    assert f"{cache}/index.sqlite: damaged" in caplog.text
    assert "built again" in caplog.text


def test_an_index_that_promises_more_than_a_shard_has_takes_no_memory_and_is_repaired(
    run: Run, made: Path, tmp_path: Path
) -> None:
    cache = with_rows(made, tmp_path, f'[["latents", "F32", [{10**12}], 0, {4 * 10**12}, "x"]]')
    outcome = run("cache", "verify", cache)
    assert outcome.code == 0  # rows have checksums: the index was built again from the shards, which are whole
    assert "all 16 entries are whole" in outcome.out + outcome.err
    assert run("cache", "verify", cache).code == 0


def test_the_disk_has_room_for_a_checkpoint_or_nothing_begins(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import qframe.train.session as module

    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=10**9, used=0, free=1000))
    monkeypatch.setattr(module.Session, "_encode", lambda *given: pytest.fail("it was encoded"))
    outcome = run(*TRAIN, "--output", "run")
    assert outcome.code == 6
    assert "wanted for one checkpoint and the result" in outcome.err


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_the_room_of_a_checkpoint_is_known_from_shapes(mode: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a twentieth of what is written: the rest are headers, texts and counters of the optimizer."""
    import qframe.train.session as module

    found: list[tuple[int, int]] = []

    def noted(composition: Any, folder: Path, *, kept: int) -> None:
        assert kept == 0
        sizes = module_of_room.saved_bytes(composition)
        assert sizes is not None
        found.append(sizes)

    import qframe.train.room as module_of_room

    monkeypatch.setattr(module, "require_room", noted)
    settings = [f"--set=train.mode={mode}", "--set=train.ema_decay=0.5", "--set=sample.count=0"]
    assert run(*TRAIN, *settings, "--output", "run").code == 0
    ((checkpoint, result),) = found
    written = sum(file.stat().st_size for file in Path("run/checkpoints/step-00000001").iterdir())
    made = Path("run/lora.safetensors" if mode == "lora" else "run/denoiser")
    saved = sum(file.stat().st_size for file in (made.rglob("*") if made.is_dir() else [made]))
    assert 0.95 * checkpoint <= written <= 1.05 * checkpoint + 50_000
    assert result <= saved <= 1.05 * result + 50_000


def test_ctrl_c_in_the_last_save_is_heard_and_the_samples_can_be_made(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    import qframe.train.watch as module

    save: Callable[..., Any] = module.save_checkpoint

    def interrupted(*given: Any, **named: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return save(*given, **named)

    with monkeypatch.context() as patched:
        patched.setattr(module, "save_checkpoint", interrupted)
        outcome = run(*TRAIN, "--output", "run")
    assert outcome.code == 130, outcome
    assert "lora.safetensors is written, and no samples were made" in outcome.err
    assert "--resume" in outcome.err
    assert Path("run/lora.safetensors").exists()
    assert run(*TRAIN, "--output", "run", "--resume").code == 0
    assert Path("run/samples/sheet.png").exists()
