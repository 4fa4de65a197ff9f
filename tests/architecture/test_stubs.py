"""The stub of the families' calls says what the classes of requests say, and completion and `help` see the same."""

from __future__ import annotations

import ast
import inspect

import qframe
from tests.architecture.stubs import STUB, class_name, stub


def statements(text: str) -> tuple[set[str], list[str]]:
    """The imports of a module, and its other statements in order, without their layout."""
    body = ast.parse(text).body
    imports = {ast.dump(one) for one in body if isinstance(one, ast.Import | ast.ImportFrom)}
    return imports, [ast.dump(one) for one in body if not isinstance(one, ast.Import | ast.ImportFrom)]


def test_the_stub_is_made_from_the_requests_of_the_families() -> None:
    assert statements(STUB.read_text(encoding="utf-8")) == statements(stub()), (
        "run python -m tests.architecture.stubs, then ruff check --fix and ruff format"
    )


def test_each_argument_of_a_call_is_in_the_stub_with_its_default() -> None:
    """What `inspect.signature(pipe)` shows, of a family with a transform."""
    (made,) = [
        one
        for one in ast.parse(STUB.read_text(encoding="utf-8")).body
        if isinstance(one, ast.ClassDef) and one.name == class_name("qwen-edit-inpaint")
    ]
    call = made.body[0]
    assert isinstance(call, ast.FunctionDef)
    arguments = [one.arg for one in (*call.args.args[1:], *call.args.kwonlyargs)]
    shown = inspect.signature(qframe.load("qwen-edit-inpaint", device="cpu")).parameters
    assert arguments == list(shown)
    assert shown["strength"].default == 0.6
    assert shown["prompt"].annotation == "str | Sequence[str] | None"
    assert "Sequence[PictureLike]" in shown["mask_image"].annotation
