"""The page about a run: what it shows, what it never does, and how it looks in a browser."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from PIL import Image

from qframe.errors import WeightsError
from qframe_report.curves import FRAME, make_panel, number
from qframe_report.page import LARGEST_PICTURES, chosen_moments, write_report
from qframe_report.pictures import Album
from qframe_report.reading import Moment, Series, read_run
from tests import browser

EVIL = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>"
VOID = {"meta", "link", "img", "br", "line", "path", "input"}
PANELS = ["Loss", "Validation loss", "Gradient norm", "Learning rate", "Tokens per step", "Time per step"]


class Page(HTMLParser):
    """Elements by name with their attributes, and the text of the page."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.source = file.read_text(encoding="utf-8")
        self._open: list[str] = []
        self.feed(self.source)
        assert self._open == [], "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def curves(self) -> list[str]:
        return [str(svg["aria-label"]) for svg in self.all("svg") if svg.get("role") == "img"]


def picture(file: Path, colour: tuple[int, int, int], side: int = 48) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), colour).save(file)


def make_run(
    folder: Path,
    *,
    steps: int = 40,
    max_steps: int = 40,
    moments: tuple[str, ...] = ("before", "step-000020", "after"),
    prompts: tuple[str, ...] = ("make it red", "make it blue"),
    rate: float = 1e-4,
    side: int = 48,
) -> Path:
    """What a run of two records leaves in its folder."""
    folder.mkdir(parents=True)
    config = {
        "family": "qwen-edit",
        "model": "tiny",
        "lora": {"rank": 8},
        "train": {"mode": "lora", "max_steps": max_steps, "learning_rate": rate},
    }
    (folder / "config.toml").write_text(tomli_w.dumps(config))
    with (folder / "metrics.jsonl").open("w") as stream:
        for step in range(1, steps + 1):
            metrics: dict[str, Any] = {
                "loss": 0.5 / step + 0.1,
                "gradient_norm": 1.0 + step % 3,
                "learning_rate": rate,
                "seconds": 0.25,
                "skipped": float(step == 3),
                "samples": 2,
                "target_tokens": 512,
                "reference_tokens": 512,
                "text_tokens": 60,
                "padded_tokens": 4,
            }
            if step % 10 == 0:
                metrics |= {"val_loss": 0.4 / step, "val_loss_q0": 0.1, "val_loss_q1": 0.2 / step}
            stream.write(json.dumps({"step": step, **metrics}) + "\n")
    rows = []
    for place, prompt in enumerate(prompts):
        name = f"{place:03d}-r{place}"
        inputs = [f"inputs/{name}-reference-1.png", f"inputs/{name}-target.png"]
        for file in inputs:
            picture(folder / "samples" / file, (40, 90, 160), side)
        for index, moment in enumerate(moments):
            picture(folder / "samples" / moment / f"{name}.png", (60 * index, 120, 40), side)
        about = {"name": name, "id": f"r{place}", "prompt": prompt, "group": f"group {place}"}
        rows.append({**about, "references": inputs[:1], "target": inputs[1]})
    for index, moment in enumerate(moments):
        groups = [{"group": row["group"], "count": 4, "judged": 4, "right": index} for row in rows]
        (folder / "samples" / f"{moment}.json").write_text(json.dumps(groups))
    if rows:
        (folder / "samples" / "records.json").write_text(json.dumps(rows))
    session = {
        "started": "2026-01-02T03:04:05+00:00",
        "resumed_from": None,
        "changes": [],
        "base_model": "tiny",
        "weights_licence": "Apache-2.0",
        "sources": {"train.learning_rate": "run.toml:7", "train.max_steps": "--set", "lora.rank": "default"},
        "data": {
            "records": 12,
            "groups": {"group 0": 7, "group 1": 5},
            "text_tokens": [20, 25.5, 31],
            "shapes": [{"target": [512, 256], "references": [[128, 64]], "count": 12}],
            "kinds_of_shapes": 1,
        },
        "machine": {"versions": {"torch": "9.9.9"}, "device": "cpu", "threads": 3, "processes": 1, "system": "Linux"},
    }
    resumed = {**session, "started": "2026-01-03T03:04:05+00:00", "resumed_from": 20, "changes": ["x was 1, is 2"]}
    (folder / "sessions.jsonl").write_text(json.dumps(session) + "\n" + json.dumps(resumed) + "\n")
    if steps == max_steps:
        (folder / "lora.safetensors").write_bytes(b"")
    return folder


def report(*runs: Path) -> Page:
    return Page(write_report(runs, runs[0].parent / "page.html"))


def test_the_page_of_a_run_shows_everything_that_it_kept(tmp_path: Path) -> None:
    page = report(make_run(tmp_path / "mine"))
    assert [words.partition(".")[0] for words in page.curves()] == PANELS
    assert len(page.all("img")) == 2 * (2 + 3)
    for words in (
        "mine",
        "40 of 40, finished",
        "make it red",
        "0% → 50%",
        "50% (2 of 4)",
        "25% (2 of 8)",
        "step 20",
        "run.toml:7",
        "--set",
        "512 × 256 with 128 × 64",
        "20 to 31, 25.5 on average",
        "Apache-2.0",
        "9.9.9",
        "2026-01-02 03:04:05 UTC",
        "resumed from step 20",
        "x was 1, is 2",
        "1 (loss or gradient not finite): 3",
        "quantile 1 of 2",
    ):
        assert words in page.text, words
    assert "is missing" not in page.text
    assert "There is no" not in page.text


def test_the_page_asks_for_nothing_and_runs_nothing(tmp_path: Path) -> None:
    page = report(make_run(tmp_path / "mine"))
    links = [value for _, a in page.elements for name, value in a.items() if name in ("src", "href", "srcset", "data")]
    assert all(str(link).startswith(("data:", "#")) for link in links)
    assert not re.search(r"url\(|@import", page.source)
    assert not {"script", "iframe", "object", "embed", "form", "base"} & {tag for tag, _ in page.elements}
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert str(policy).startswith("default-src 'none'; img-src data:;")


def test_what_a_run_holds_is_text_wherever_it_stands(tmp_path: Path) -> None:
    """Caption, group, base model, source, change, group of the data, version, folder name."""
    run = make_run(tmp_path / "a<b>&'\"", prompts=(EVIL,))
    rows = json.loads((run / "samples" / "records.json").read_text())
    rows[0]["group"] = EVIL
    (run / "samples" / "records.json").write_text(json.dumps(rows))
    (run / "samples" / "after.json").write_text(json.dumps([{"group": EVIL, "judged": 1, "right": 1}]))
    session = json.loads((run / "sessions.jsonl").read_text().splitlines()[0])
    session |= {"base_model": EVIL, "changes": [EVIL], "sources": {"lora.rank": EVIL}, "started": EVIL}
    session["data"]["groups"] = {EVIL: 3}
    session["machine"] |= {"versions": {EVIL: EVIL}, "device": EVIL}
    (run / "sessions.jsonl").write_text(json.dumps(session))
    (run / "config.toml").write_text(tomli_w.dumps({"family": EVIL, EVIL: EVIL, "lora": {"rank": 8}}))
    (run / "metrics.jsonl").write_text(json.dumps({"step": 1, "val_loss": 1, f"val_loss_{EVIL}": 1.0}))
    page = report(run)
    assert "script" not in {tag for tag, _ in page.elements}
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert all(str(image["src"]).startswith("data:image/") for image in page.all("img"))
    assert page.text.count(EVIL) >= 10
    assert any(EVIL in str(image["alt"]) or "alert" in str(image["alt"]) for image in page.all("img"))


def test_every_picture_and_curve_is_told_in_words(tmp_path: Path) -> None:
    page = report(make_run(tmp_path / "mine"))
    assert all(image["alt"] for image in page.all("img"))
    assert "Sample (step 20) of the record 'make it red'" in {image["alt"] for image in page.all("img")}
    assert all("at step 1 to" in words or "at step 10 to" in words for words in page.curves())
    headings = [tag for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert Counter(headings)["h1"] == 1
    assert page.all("html") == [{"lang": "en"}]


def test_a_run_that_goes_on_is_shown_as_far_as_it_is(tmp_path: Path) -> None:
    run = make_run(tmp_path / "mine", steps=7, moments=("before",))
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 8, "loss": 0.')  # a kill, or a write in progress
    page = report(run)
    assert "7 of 40, not finished" in page.text
    assert "Validation loss" not in page.text
    assert len(page.all("img")) == 2 * 3


def test_sources_are_those_of_the_session_that_changed_a_value(tmp_path: Path) -> None:
    run = make_run(tmp_path / "mine")
    sessions = (
        {"train.max_steps": "more.toml:3", "train.learning_rate": "runs/mine/config.toml:9"},
        {"train.max_steps": "config.toml:8", "train.learning_rate": "config.toml:9"},
    )
    with (run / "sessions.jsonl").open("a") as stream:
        stream.writelines(json.dumps({"started": "", "sources": sources}) + "\n" for sources in sessions)
    assert read_run(run).sources == {
        "train.max_steps": "more.toml:3",
        "train.learning_rate": "run.toml:7",
        "lora.rank": "default",
    }


def test_a_run_by_epochs_has_ended_when_its_weights_are_those_of_its_last_step(tmp_path: Path) -> None:
    run = make_run(tmp_path / "mine")
    with (run / "config.toml").open("a") as stream:
        stream.write("epochs = 2\n")  # of [train], the last table
    assert "40, finished" in report(run).text
    (run / "metrics.jsonl").write_text(json.dumps({"step": 41, "loss": 1.0}))
    later = (run / "lora.safetensors").stat().st_mtime + 5
    os.utime(run / "metrics.jsonl", (later, later))
    assert "41, not finished" in report(run).text


def test_a_run_of_an_earlier_version_says_what_is_not_known(tmp_path: Path) -> None:
    run = make_run(tmp_path / "old")
    (run / "sessions.jsonl").unlink()
    (run / "samples" / "records.json").unlink()
    page = report(run)
    assert "There is no sessions.jsonl" in page.text
    assert "samples/records.json is missing" in page.text
    assert len(page.all("img")) == 2 * 3
    assert "Where it comes from" in page.text
    assert "not known" in page.text


def test_a_run_that_only_began_has_a_page(tmp_path: Path) -> None:
    run = tmp_path / "begun"
    run.mkdir()
    (run / "config.toml").write_text('family = "qwen-edit"')
    page = report(run)
    for words in ("holds no step yet", "No pictures were sampled yet", "No step was logged yet"):
        assert words in page.text
    assert page.curves() == []


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("config.toml", b"family = ", "config.toml is damaged"),
        ("samples/records.json", b'[{"name": 1}]', "records.json is damaged"),
        ("samples/records.json", b"[[[", "records.json is damaged"),
        ("samples/after.json", b"[1]", "after.json is damaged"),
        ("samples/after/000-r0.png", b"\x89PNG\r\n\x1a\n cut", "after/000-r0.png"),
        ("samples/inputs/000-r0-target.png", None, "inputs/000-r0-target.png"),
        ("sessions.jsonl", b"[]\n{", "There is no sessions.jsonl"),
        ("metrics.jsonl", b'[]\n{"step": "x", "loss": 1}\n{"step": 1, "loss": "1", "seconds": true}', "holds no step"),
    ],
)
def test_what_is_damaged_is_left_out_and_named(tmp_path: Path, file: str, content: bytes | None, words: str) -> None:
    run = make_run(tmp_path / "mine")
    (run / file).unlink()
    if content is not None:
        (run / file).write_bytes(content)
    assert words in report(run).text


@pytest.mark.parametrize("place", ["../secret.png", "inputs/../../secret.png", "/secret.png", "inputs/.."])
def test_a_file_outside_the_inputs_is_never_read(tmp_path: Path, place: str) -> None:
    run = make_run(tmp_path / "mine", prompts=("one",), moments=())
    picture(run / "secret.png", (255, 0, 0))
    rows = json.loads((run / "samples" / "records.json").read_text())
    rows[0]["references"] = [str(run / "secret.png") if place.startswith("/") else place]
    (run / "samples" / "records.json").write_text(json.dumps(rows))
    page = report(run)
    assert "samples/records.json is damaged" in page.text
    assert page.all("img") == []


def test_runs_side_by_side_are_compared(tmp_path: Path) -> None:
    one, two = make_run(tmp_path / "one"), make_run(tmp_path / "two", rate=3e-4, steps=30)
    page = report(one, two)
    differing = page.source.partition("What differs between the runs</caption>")[2].partition("</table>")[0]
    assert "train.learning_rate" in differing
    assert "0.0003" in differing
    assert "lora.rank" not in differing
    assert [words.partition(".")[0] for words in page.curves()] == [*PANELS[:5], "Padding per step", "Time per step"]
    assert all("one: from" in words and "two: from" in words for words in page.curves())
    first = page.source.partition('class="film"')[2].partition("</article>")[0]
    assert re.findall(r'<span class="run">(\w+)</span> (\w+)', first) == [
        ("one", "before"),
        ("one", "after"),
        ("two", "before"),
        ("two", "after"),
    ]


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    page = report(make_run(tmp_path / "a" / "run"), make_run(tmp_path / "b" / "run"))
    assert "run (1) · run (2)" in page.text
    assert all("run (2): from" in words for words in page.curves())


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="there is no run here"):
        write_report([tmp_path], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


# -- size -----------------------------------------------------------------------------------------------------


def test_pictures_stay_within_the_budget(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (700, 900, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    album = Album(200_000)
    made = [album.add(tmp_path / "noise.png") for _ in range(5)]
    kept = [thumbnail for thumbnail in made if thumbnail is not None]
    assert (len(kept) + album.dropped, album.damaged) == (5, [])
    assert 0 < sum(len(thumbnail.uri) for thumbnail in kept) <= 200_000
    assert {(thumbnail.width, thumbnail.height) for thumbnail in kept} == {(320, 249)}
    # The most that a page shows, each as bad as noise, would be more than the budget: it is needed, and it holds.
    assert len(kept[0].uri) * 20 * 10 > LARGEST_PICTURES


def test_a_long_run_makes_no_large_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "long", steps=20_000, max_steps=20_000, moments=())
    assert len(report(run).source) < 200_000


def test_of_many_moments_the_ends_and_what_lies_evenly_between_are_shown() -> None:
    moments = [Moment(key=f"step-{step}", step=step, results={}) for step in range(0, 101)]
    assert [moment.step for moment in chosen_moments(moments, 5)] == [0, 25, 50, 75, 100]
    assert chosen_moments(moments[:3], 5) == moments[:3]


# -- curves ---------------------------------------------------------------------------------------------------


def series(values: Any) -> Series:
    array = np.asarray(values, dtype=np.float64)
    return Series(np.arange(1, len(array) + 1), array)


def points(path: str) -> np.ndarray[Any, Any]:
    return np.array([[float(n) for n in pair.split(",")] for pair in re.findall(r"[-\d.]+,[-\d.]+", path)])


@pytest.mark.parametrize("length", [1, 2, 7, 240, 241, 5000])
@pytest.mark.parametrize("smooth", [True, False])
def test_curves_lie_in_their_frame_and_are_thinned(length: int, smooth: bool) -> None:
    values = np.random.default_rng(length).standard_cauchy(length)  # with peaks that no frame should hold
    panel = make_panel("Loss", "", [(0, "loss", series(values))], smooth=smooth)
    assert panel is not None
    (line,) = panel.lines
    drawn = points(line.path + line.band)
    assert 0 < len(points(line.path)) <= max(240, 2)
    assert (drawn[:, 0] >= FRAME.left - 0.1).all()
    assert (drawn[:, 0] <= FRAME.right + 0.1).all()
    assert (drawn[:, 1] >= FRAME.top - 0.1).all()
    assert (drawn[:, 1] <= FRAME.bottom + 0.1).all()


def test_an_average_of_equal_values_is_that_value_from_the_first_step_on() -> None:
    panel = make_panel("Loss", "", [(0, "loss", series([0.25] * 200))], smooth=True)
    assert panel is not None
    assert np.ptp(points(panel.lines[0].path)[:, 1]) == 0
    assert panel.lines[0].last == "0.25"


def test_one_peak_does_not_flatten_the_rest_and_is_reported() -> None:
    values = np.linspace(1.0, 0.5, 200)
    values[10] = 1e6
    panel = make_panel("Gradient norm", "", [(0, "norm", series(values))], smooth=True)
    assert panel is not None
    (line,) = panel.lines
    assert np.ptp(np.delete(points(line.band)[:, 1], [10, 389])) > 0.8 * (FRAME.bottom - FRAME.top)
    assert np.ptp(points(line.path)[:, 1]) > 0.8 * (FRAME.bottom - FRAME.top)
    assert panel.note.endswith(" Values above the frame: 1.")
    assert "lowest 0.5 at step 200" in panel.summary


def test_what_is_not_averaged_is_drawn_whole() -> None:
    panel = make_panel("Validation loss", "", [(0, "all", series([9.0, *[1.0, 0.9] * 30]))], smooth=False)
    assert panel is not None
    assert points(panel.lines[0].path)[0, 1] == FRAME.top
    assert panel.note == ""


def test_a_thinned_curve_keeps_the_extremes_of_every_stretch() -> None:
    values = np.zeros(10_000)
    values[5000], values[5001] = 1.0, -1.0
    panel = make_panel("Loss", "", [(0, "loss", series(values))], smooth=True)
    assert panel is not None
    drawn = points(panel.lines[0].band)[:, 1]
    assert (drawn.min(), drawn.max()) == (FRAME.top, FRAME.bottom)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (3.08e-7, "3.08e-07"), (0.53213, "0.532"), (120, "120"), (12_345, "12.35k"), (2.5e6, "2.5M")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text


def strips(runs: list[Path], file: Path) -> list[int]:
    """How many samples each strip of the page has, apart from inputs, sorted."""
    page = write_report(runs, file).read_text(encoding="utf-8")
    return sorted(part.count("<figure>") for part in page.split('<article class="strip">')[1:])


def test_runs_are_compared_by_the_ids_of_their_records(tmp_path: Path) -> None:
    """Their places among the records differ, and with them the names of their files; prompts may have been edited."""
    one, other = make_run(tmp_path / "a"), make_run(tmp_path / "b", prompts=("edited red", "edited blue", "new"))
    rows = json.loads((other / "samples" / "records.json").read_text())
    for row, record in zip(rows, ("new", "r0", "r1"), strict=True):
        row["id"] = record
    (other / "samples" / "records.json").write_text(json.dumps(rows))
    assert strips([one, other], tmp_path / "page.html") == [2, 4, 4]
    (one / "samples" / "records.json").unlink()
    assert strips([one, other], tmp_path / "page.html") == [2, 4, 4], "the names of the files hold the ids"


def test_own_prompts_of_two_runs_are_compared_only_if_they_are_the_same(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, prompts=prompts) for name, prompts in (("a", ("x", "y")), ("b", ("x", "z")))]
    for run in runs:
        file = run / "samples" / "records.json"
        file.write_text(file.read_text().replace('"id": "r', '"id": "prompt-'))
    assert strips(runs, tmp_path / "page.html") == [2, 2, 4]


# -- in a browser ---------------------------------------------------------------------------------------------

RENDERED = """JSON.stringify({
  title: document.title,
  wide: document.documentElement.scrollWidth,
  pictures: [...document.images].map(i => [i.complete && i.naturalWidth, i.getBoundingClientRect().width]),
  curves: [...document.querySelectorAll('svg.curve')].map(s => {
    const box = s.getBoundingClientRect(), lines = [...s.querySelectorAll('path.line')];
    return [box.width, box.height, Math.min(...lines.map(l => l.getTotalLength()))];
  }),
  smallest: Math.min(...[...document.querySelectorAll('svg.curve text')].map(t => t.getBoundingClientRect().height)),
  ink: getComputedStyle(document.body).color,
})"""


@pytest.mark.slow
@pytest.mark.skipif(browser.FOUND is None, reason="no Chromium is installed (Debian: apt-get install chromium)")
def test_the_page_opens_in_a_browser_on_a_phone_and_on_a_desk(tmp_path: Path) -> None:
    run = make_run(tmp_path / "mine", prompts=(EVIL, "make it blue"), side=640)
    file = write_report([run], tmp_path / "page.html")
    inks = []
    with browser.browser(tmp_path / "profile") as opened:
        for width, dark in ((390, False), (1200, False), (1200, True)):
            opened.open(file, width=width, dark=dark)
            shown = json.loads(opened.value(RENDERED))
            assert opened.complaints() == []
            assert [url for url in opened.requests() if not url.startswith("data:")] == [file.resolve().as_uri()]
            assert shown["title"] == "mine – qframe report"
            assert shown["wide"] == width, "the page does not scroll sideways"
            assert len(shown["pictures"]) == 10
            assert all(natural == 320 and drawn > 60 for natural, drawn in shown["pictures"])
            assert len(shown["curves"]) == len(PANELS)
            assert all(w > 250 and h > 140 and length > 50 for w, h, length in shown["curves"])
            assert shown["smallest"] >= 9, "labels can be read"
            inks.append(shown["ink"])
            opened.screenshot(tmp_path / "shot.png")
            with Image.open(tmp_path / "shot.png") as taken:
                assert taken.width == width
                assert len(np.unique(np.asarray(taken.convert("RGB")).reshape(-1, 3), axis=0)) > 20
    assert inks[0] == inks[1] != inks[2], "dark where the system is dark"
