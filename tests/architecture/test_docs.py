"""The documentation keeps its word: every feature is listed once, every test and file it names exists."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import attrs
import pytest

from tests.architecture.rules import LAYERS
from tests.architecture.source import ROOT

DOCS = ROOT / "docs"
# The ids that the project set out with: letter, and how many.
MISSION = {"A": 42, "B": 68, "C": 21, "D": 53, "E": 21, "F": 11, "G": 21, "H": 30, "I": 15}
IDS = [f"{letter}{number}" for letter, count in MISSION.items() for number in range(1, count + 1)]
STATUSES = {"built", "partly", "not yet"}


@attrs.frozen
class Row:
    """One row of a features table."""

    ids: tuple[str, ...]
    what: str
    status: str
    stands: str
    tests: tuple[str, ...]


def ids_in(cell: str) -> tuple[str, ...]:
    """The ids of "A3", "B28-B30" or "A3, B28-B30"."""
    found: list[str] = []
    for part in cell.replace(" ", "").split(","):
        first, _, last = part.partition("-")
        letter = first[0]
        found += [f"{letter}{number}" for number in range(int(first[1:]), int((last or first)[1:]) + 1)]
    return tuple(found)


def rows(text: str) -> list[Row]:
    found = []
    for line in text.splitlines():
        if not re.match(r"\| *[A-I]\d", line):
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        tests = tuple(re.findall(r"`(tests/[^`]+)`", cells[4]))
        found.append(Row(ids_in(cells[0]), cells[1], cells[2], cells[3], tests))
    return found


def unproven(row: Row) -> list[str]:
    """What is wrong with a row's status and tests."""
    name = ", ".join(row.ids)
    if row.status not in STATUSES:
        return [f"{name}: status {row.status!r} is none of {sorted(STATUSES)}"]
    if row.status != "not yet" and not row.tests:
        return [f"{name} is {row.status} but names no test"]
    if row.status == "partly" and not row.stands:
        return [f"{name} is built in part, and does not say which"]
    return [f"{name}: there is no {test}" for test in row.tests if not exists(test)]


def exists(test: str) -> bool:
    """Whether "tests/file.py", or "tests/file.py::test_name", or "...::Class::test_name" is there."""
    file, *names = test.split("::")
    if not (ROOT / file).is_file():
        return False
    body: list[ast.stmt] = ast.parse((ROOT / file).read_text(encoding="utf-8")).body
    for name in names:
        found = [n for n in body if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name == name]
        if not found:
            return False
        body = found[0].body
    return True


ARCHITECTURE = (DOCS / "architecture.md").read_text(encoding="utf-8")
FEATURES = rows((DOCS / "features.md").read_text(encoding="utf-8"))


def test_every_feature_of_the_mission_is_listed_exactly_once() -> None:
    listed = Counter(name for row in FEATURES for name in row.ids)
    assert {name: count for name, count in listed.items() if count != 1} == {}
    assert sorted(listed) == sorted(IDS)


def test_every_feature_that_is_built_names_tests_that_exist() -> None:
    assert [problem for row in FEATURES for problem in unproven(row)] == []


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("| A1 | x | done | | |", "status 'done'"),
        ("| A1 | x | built | | |", "names no test"),
        ("| A1 | x | built | | `tests/missing.py` |", "no tests/missing.py"),
        ("| A1 | x | partly | half | `tests/architecture/test_docs.py::test_missing` |", "test_missing"),
        ("| A1 | x | partly | | `tests/architecture/test_docs.py` |", "does not say which"),
        ("| A1 | x | not yet | | `tests/missing.py` |", "no tests/missing.py"),
    ],
)
def test_unproven_row_is_found(line: str, problem: str) -> None:
    (row,) = rows(line)
    (found,) = unproven(row)
    assert problem in found


def test_proven_row_passes() -> None:
    (row,) = rows("| B28-B30, B2 | a \\| b | built | | `tests/architecture/test_docs.py::test_proven_row_passes` |")
    assert row.ids == ("B28", "B29", "B30", "B2")
    assert unproven(row) == []


def pages() -> list[Path]:
    return [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]


def broken_links(page: Path, text: str) -> list[str]:
    """Relative links that lead nowhere, and links to a heading that is not there."""
    found = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            found.append(f"{page.relative_to(ROOT)}: {link}")
    return found


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ +(.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page, page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("index", sorted(DOCS.glob("*/index.md")), ids=lambda index: index.parent.name)
def test_an_index_links_every_page_beside_it(index: Path) -> None:
    linked = re.findall(r"\]\(([^)#\s]+)", index.read_text(encoding="utf-8"))
    assert {page.name for page in index.parent.glob("*.md")} - {"index.md", *linked} == set()


def test_the_first_page_links_every_page() -> None:
    linked = {(DOCS / link).resolve() for link in re.findall(r"\]\(([^)#\s]+)", (DOCS / "index.md").read_text("utf-8"))}
    assert {page for page in DOCS.rglob("*.md") if page != DOCS / "index.md"} - linked == set()


def test_broken_link_is_found() -> None:
    page = DOCS / "index.md"
    assert broken_links(page, "[a](missing.md), [b](features.md), [c](features.md#nowhere)") == [
        "docs/index.md: missing.md",
        "docs/index.md: features.md#nowhere",
    ]


def test_the_architecture_page_has_the_layers_of_the_rules() -> None:
    """All but the first: `__main__` alone."""
    section = ARCHITECTURE.partition("## Layers")[2].partition("\n## ")[0]
    shown = re.findall(r"^\| \d+ \| ([^|]+) \|", section, re.MULTILINE)
    assert [{frozenset(name.strip() for name in cell.split(",")) for cell in row.split("&#124;")} for row in shown] == [
        set(row) for row in LAYERS[1:]
    ]


def test_the_map_of_the_architecture_page_names_every_module_and_plugin() -> None:
    lines = re.findall(r"^```\n(qframe/.*?)^```$", ARCHITECTURE, re.DOTALL | re.MULTILINE)[0]
    named = set(re.findall(r"[\w]+(?=\.py|/)", lines))
    modules = {path.stem for path in (ROOT / "qframe").iterdir() if path.suffix == ".py" or path.is_dir()}
    plugins = {path.parent.name for path in (ROOT / "plugins").glob("*/__init__.py")}
    assert modules - {"__init__", "__main__", "__pycache__"} <= named
    assert plugins <= named


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_tests_named_in_the_text_exist(page: Path) -> None:
    named = re.findall(r"`(tests/[\w./-]+\.py(?:::\w+)+)`", page.read_text(encoding="utf-8"))
    assert [name for name in named if not exists(name)] == []


def without_a_test(text: str) -> list[str]:
    """Rows of the tables whose last column is `test`, that name none."""
    found, tested = [], False
    for line in text.splitlines():
        if not line.startswith("|"):
            tested = False
        elif re.search(r"\| test \|$", line):
            tested = True
        elif tested and not re.match(r"\|[-|]+$", line) and "`tests/" not in line.rsplit(" | ", 1)[-1]:
            found.append(line)
    return found


def test_every_difference_from_diffusers_names_its_test() -> None:
    text = (DOCS / "reference" / "differences-from-diffusers.md").read_text(encoding="utf-8")
    assert text.count("| test |") == text.count("|---|\n")
    assert without_a_test(text) == []


def test_a_difference_without_a_test_is_found() -> None:
    table = "| | ours | test |\n|---|---|---|\n| a | b | `tests/a.py` |\n| c | `tests/a.py` | |\n"
    assert without_a_test(table) == ["| c | `tests/a.py` | |"]
    assert without_a_test(table.replace("test |\n", "why |\n", 1)) == []


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_source_files_named_in_the_text_exist(page: Path) -> None:
    named = re.findall(r"`((?:qframe|plugins|tests|configs|docs)/[\w./-]+\.\w+)`", page.read_text(encoding="utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []
