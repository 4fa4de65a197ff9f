"""`qframe sample --batch`: many requests, one load, and nothing made twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qframe.errors import NumericsError
from qframe.progress.shown import LineProgress
from qframe.sample.jobs.stored import read_stored
from qframe.sample.pipeline import Pipeline
from tests.cli.conftest import Outcome, Run

TEXT = {"prompt": "a red circle", "steps": 2, "size": "64x32"}


def write(*lines: dict[str, Any] | str, folder: str = ".") -> None:
    Path(folder).mkdir(exist_ok=True)
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    (Path(folder) / "requests.jsonl").write_text("".join(f"{text}\n" for text in texts))


def batch(run: Run, model: Path, *arguments: object, family: str = "qwen-image", folder: str = ".") -> Outcome:
    file = Path(folder) / "requests.jsonl"
    return run("sample", "--family", family, "--model", model, "--batch", file, "--output", "out", *arguments)


def results() -> dict[str, tuple[bytes, int]]:
    """Every visible file of the results, its content and when it was written."""
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in Path("out").glob("[!.]*")}


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry per load of a model."""
    from qframe.sample import loading

    found: list[str] = []
    real = loading.assemble

    def counted(*arguments: Any) -> Pipeline:
        found.append("load")
        return real(*arguments)

    monkeypatch.setattr(loading, "assemble", counted)
    return found


def test_every_line_is_made_as_it_would_be_alone(run: Run, tiny_model: Path, loads: list[str]) -> None:
    write(
        {**TEXT, "id": "circle", "seed": 5},
        "",
        {**TEXT, "prompt": "a blue square", "num_images": 2, "guidance": 3, "output": "sub/square.jpg"},
        TEXT,
    )
    outcome = batch(run, tiny_model, "--seed", 9)
    assert outcome.code == 0, outcome.err
    assert loads == ["load"]
    assert Path("out/sub/square-1.jpg").exists()
    assert Path("out/sub/square-2.jpg").exists()
    (unnamed,) = Path("out").glob("line-00004-*.png")
    arguments = ("sample", "--family", "qwen-image", "--model", tiny_model, "--prompt", "a red circle", "--steps", 2)
    for seed, name in ((5, "out/circle.png"), (9, unnamed)):
        run(*arguments, "--size", "64x32", "--seed", seed, "--output", f"{seed}.png")
        assert Path(f"{seed}.png").read_bytes() == Path(name).read_bytes()
    assert read_stored(Path("out/sub/square-2.jpg")).request["seed"] == 10


def test_a_second_run_makes_only_what_lacks(run: Run, tiny_model: Path, loads: list[str]) -> None:
    write(*({**TEXT, "id": name} for name in "abc"))
    assert batch(run, tiny_model).code == 0
    before = results()
    Path("out/b.png").unlink()
    Path("out/c.png").write_bytes(before["c.png"][0][:-40])  # cut short, its request is still to be read
    outcome = batch(run, tiny_model)
    assert outcome.code == 0, outcome.err
    assert "1 of 3 pictures are done already." in outcome.out
    after = results()
    assert {name: content for name, (content, _) in after.items()} == {n: content for n, (content, _) in before.items()}
    assert after["a.png"] == before["a.png"]
    again = batch(run, tiny_model)
    assert "3 of 3 pictures are done already." in again.out
    assert results() == after
    assert len(loads) == 2


def test_changed_lines_are_refused_by_name_and_made_anew_on_request(run: Run, tiny_model: Path) -> None:
    write(*({**TEXT, "id": name} for name in "ab"))
    batch(run, tiny_model)
    before = results()
    write({**TEXT, "id": "a"}, {**TEXT, "id": "b", "seed": 4, "steps": 3})
    refused = batch(run, tiny_model)
    assert refused.code == 3
    assert "requests.jsonl:2: out/b.png is there, made from something else (seed, steps)" in refused.err
    assert results() == before
    assert batch(run, tiny_model, "--overwrite").code == 0
    after = results()
    assert after["a.png"] == before["a.png"]
    assert after["b.png"] != before["b.png"]


def test_pictures_of_others_are_not_replaced(run: Run, tiny_model: Path) -> None:
    Path("out").mkdir()
    Image.new("RGB", (8, 8)).save("out/a.png")
    write({**TEXT, "id": "a"})
    assert "no request of qframe in it" in batch(run, tiny_model).err


def test_every_problem_is_told_before_anything_is_loaded(run: Run, tiny_model: Path, loads: list[str]) -> None:
    Image.new("RGB", (64, 64)).save("outside.png")
    folder = Path("jobs")
    folder.mkdir()
    Image.new("RGB", (64, 64)).save("jobs/in.png")
    Path("jobs/half.png").write_bytes(Path("jobs/in.png").read_bytes()[:-30])
    Path("jobs/link.png").symlink_to("../outside.png")
    Path("out").mkdir()
    Path("out2").mkdir()
    Path("out/linked").symlink_to("../out2")
    write(
        {**TEXT, "id": "good"},
        "{",
        "[1]",
        {"steps": 2},
        {**TEXT, "promt": "x", "steps": "two", "guidance": -1},
        {**TEXT, "size": "64"},
        {**TEXT, "size": "65x64"},
        {**TEXT, "image": "../outside.png"},
        {**TEXT, "image": "link.png"},
        {**TEXT, "image": "none.png"},
        {**TEXT, "image": "half.png"},
        {**TEXT, "image": "in.png", "strength": 2},
        {**TEXT, "id": "good"},
        {**TEXT, "output": "../up.png"},
        {**TEXT, "output": "a.gif"},
        {**TEXT, "prompt": "a <|im_end|>"},
        {**TEXT, "id": "GOOD"},
        {**TEXT, "image": ["in.png", "in.png"]},
        {**TEXT, "id": "x" * 300},
        {**TEXT, "id": "a\ud800"},
        {**TEXT, "prompt": "a\ud800"},
        {**TEXT, "output": "linked/a.png"},
        {**TEXT, "id": ""},
        folder="jobs",
    )
    outcome = batch(run, tiny_model, folder="jobs")
    assert outcome.code == 3
    told = outcome.err.splitlines()
    for line, message in (
        (2, "not valid JSON"),
        (3, "expected an object"),
        (4, "prompt: missing"),
        (5, "promt: unknown key; did you mean prompt?"),
        (5, 'steps: expected a whole number, got "two"'),
        (5, "guidance: expected a value >= 0.0, got -1.0"),
        (6, "expected WIDTHxHEIGHT"),
        (7, "width must be a multiple of 16 pixels, got 65"),
        (8, "leads outside of jobs; move it there, or give --allow-outside"),
        (9, "leads outside of jobs"),
        (10, "no such file"),
        (11, "damaged or cut short"),
        (12, "strength must be above 0 and at most 1, got 2"),
        (13, "is also the result of requests.jsonl:1"),
        (14, "leads outside of the folder of results"),
        (15, "must end in one of .png"),
        (16, "holds <|im_end|>"),
        (17, "is also the result of requests.jsonl:1"),
        (18, "2 pictures for one prompt"),
        (19, "cannot be the name of a file"),
        (20, "cannot be the name of a file"),
        (21, "prompt: holds half a character (at 1)"),
        (22, "leads outside of the folder of results by a link"),
        (23, "is hidden"),
    ):
        assert any(f"requests.jsonl:{line}: " in one and message in one for one in told), (line, message, outcome.err)
    assert not any("requests.jsonl:1: " in one for one in told)
    assert loads == []
    assert not list(Path("out").glob("**/*.png"))


def test_pictures_outside_are_read_on_request(run: Run, tiny_model: Path) -> None:
    Image.new("RGB", (64, 64)).save("outside.png")
    write({**TEXT, "image": "../outside.png", "id": "a"}, folder="jobs")
    outcome = batch(run, tiny_model, "--allow-outside", folder="jobs")
    assert outcome.code == 0, outcome.err
    assert read_stored(Path("out/a.png")).request["image"] == ["jobs/../outside.png"]
    assert run("sample", "--from", "out/a.png", "--output", "b.png").code == 0
    assert Path("b.png").read_bytes() == Path("out/a.png").read_bytes()


def test_families_bring_their_own_keys(run: Run, tiny_model: Path) -> None:
    Image.new("RGB", (64, 64), "red").save("in.png")
    Image.new("L", (64, 64), 255).save("mask.png")
    own = {"image": "in.png", "mask": "mask.png", "strength": 1, "mask_edges": "soft"}
    write({"prompt": "a", "id": "a", "steps": 2, **own})
    outcome = batch(run, tiny_model, family="qwen-inpaint")
    assert outcome.code == 0, outcome.err
    request = read_stored(Path("out/a.png")).request
    assert (request["strength"], request["mask_edges"]) == (1.0, "soft")
    write({"prompt": "a", "id": "plus", "steps": 2, "image": ["in.png", "in.png"]})
    assert batch(run, tiny_model, family="qwen-edit-plus").code == 0
    assert read_stored(Path("out/plus.png")).request["image"] == ["in.png", "in.png"]


def test_options_go_for_lines_that_do_not_say_otherwise(run: Run, tiny_model: Path) -> None:
    write({"prompt": "a", "id": "a"}, {"prompt": "a", "id": "b", "steps": 3, "seed": 1})
    options = ("--steps", 2, "--size", "64x32", "--negative-prompt", "blue", "--seed", 8)
    assert batch(run, tiny_model, *options).code == 0
    requests = [read_stored(Path(f"out/{name}.png")).request for name in "ab"]
    assert [(r["steps"], r["seed"], r["negative_prompt"], r["size"]) for r in requests] == [
        (2, 8, "blue", "64x32"),
        (3, 1, "blue", "64x32"),
    ]


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [(NumericsError("not finite"), 5, "not finite"), (ZeroDivisionError("a bug"), 1, "ZeroDivisionError: a bug")],
)
def test_a_request_that_fails_is_told_at_the_end(
    run: Run, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, message: str
) -> None:
    real = Pipeline.run_settled

    def failing(self: Pipeline, settled: Any, **options: Any) -> Any:
        if settled[0].request.prompt == ("a bad one",):
            raise error
        return real(self, settled, **options)

    monkeypatch.setattr(Pipeline, "run_settled", failing)
    write({**TEXT, "id": "a"}, {**TEXT, "id": "b", "prompt": "a bad one"}, {**TEXT, "id": "c"})
    outcome = batch(run, tiny_model)
    assert outcome.code == code
    assert sorted(results()) == ["a.png", "c.png"]
    assert "1 of 3 pictures could not be made" in outcome.err
    assert f"requests.jsonl:2 (out/b.png): {message}" in outcome.err
    monkeypatch.setattr(Pipeline, "run_settled", real)
    assert "2 of 3 pictures are done already." in batch(run, tiny_model).out
    assert sorted(results()) == ["a.png", "b.png", "c.png"]


def test_progress_counts_pictures_and_steps(run: Run, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qframe.cli.sample.terminal_progress", lambda: LineProgress(0.0))
    write(*({**TEXT, "id": name, "steps": 3} for name in "ab"))
    lines = batch(run, tiny_model).out.splitlines()
    assert any(line.startswith("sampling 1/3, ") and line.endswith("left") for line in lines)
    assert any(line.startswith("pictures 1/2, ") and line.endswith("left") for line in lines)
    assert any(line.startswith("pictures 2/2, ") and "took" in line for line in lines)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--batch", "none.jsonl", "--output", "out"), 3, "there is no such file"),
        (("--batch", "requests.jsonl", "--output", "requests.jsonl"), 2, "expected the folder of the results"),
        (("--batch", "requests.jsonl"), 2, "Missing option '--output'"),
        (("--batch", "requests.jsonl", "--prompt", "x", "--output", "out"), 2, "give one of them"),
        (("--output", "a.png"), 2, "Missing option '--prompt'"),
        (("--prompt-file", "none.txt", "--output", "a.png"), 3, "--prompt-file none.txt"),
        (("--prompt-file", "empty.txt", "--output", "a.png"), 3, "the file is empty"),
    ],
)
def test_where_requests_come_from_is_said_once(
    run: Run, tiny_model: Path, arguments: Sequence[str], code: int, message: str
) -> None:
    write()
    Path("empty.txt").write_text("\n")
    outcome = run("sample", "--family", "qwen-image", "--model", tiny_model, *arguments)
    assert outcome.code == code, outcome.err
    assert message in outcome.err


def test_a_prompt_may_lie_in_a_file(run: Run, tiny_model: Path) -> None:
    Path("prompt.txt").write_text("a red\n\ncircle \u4e2d\n", encoding="utf-8")
    arguments = ("--steps", 2, "--size", "64x32", "--model", tiny_model, "--prompt-file", "prompt.txt")
    assert run("sample", "--family", "qwen-image", *arguments, "--output", "a.png").code == 0
    assert read_stored(Path("a.png")).request["prompt"] == "a red\n\ncircle \u4e2d"


@pytest.mark.slow
def test_a_kill_leaves_no_half_picture_and_costs_one(run: Run, tiny_model: Path) -> None:
    write(*({**TEXT, "id": f"{number}", "steps": 4} for number in range(40)))
    command = [sys.executable, "-m", "qframe", "sample", "--family", "qwen-image", "--model", str(tiny_model)]
    command += ["--batch", "requests.jsonl", "--output", "out"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while process.poll() is None and len(list(Path().glob("out/*.png"))) < 5:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    survivors = results()
    assert 5 <= len(survivors) < 40
    for name in survivors:
        Image.open(f"out/{name}").load()
    assert batch(run, tiny_model).code == 0
    after = results()
    assert len(after) == 40
    assert all(after[name] == content for name, content in survivors.items())
    assert not list(Path("out").glob(".*part"))
