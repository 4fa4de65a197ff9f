"""Makes the pictures of the tutorials, with the commands that the pages show: `python docs/make_pictures.py [PAGE...]`.

A page is run from top to bottom in an empty folder: its blocks of commands, and its Python. A picture that it shows,
`../images/tutorials/PAGE/NAME.png`, is the `NAME.png` that this left in the folder. Pages that train take minutes.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from qframe.cli import main

DOCS = Path(__file__).resolve().parent
TUTORIALS = DOCS / "tutorials"
IMAGES = DOCS / "images" / "tutorials"
LARGEST = 60_000  # bytes of a file
ENLARGED = 192  # pixels: smaller ones are shown with whole pixels repeated


def fenced(page: Path) -> list[tuple[str, str]]:
    """The fenced blocks of a page in order: language ("" where none is named) and text."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def command_lines(text: str) -> Iterator[list[str]]:
    """The arguments of every qframe command in a block; what else it holds is output, or another program's."""
    for line in text.splitlines():
        command = line.partition("  #")[0]
        if re.match(r"(qframe|\./run) ", command):
            yield shlex.split(command)[1:]


def needs_a_published_model(arguments: Sequence[str]) -> bool:
    """Whether a command names a configuration for a published model, and so cannot be run here."""
    return any(re.match(r"configs/(qwen|.*/)", argument) for argument in arguments)


def run(page: Path, shorten: Sequence[str] = ()) -> None:
    """Run a page's commands and Python in the current folder; `shorten` is added to commands that train.

    RuntimeError names a command that failed.
    """
    names: dict[str, Any] = {}
    for language, text in fenced(page):
        if language == "python":
            exec(compile(text, str(page), "exec"), names)
        for arguments in command_lines(text) if not language else ():
            if needs_a_published_model(arguments):
                continue
            if arguments[0] in ("train", "demo"):
                arguments = [*arguments, *shorten]
            if status := main(arguments):
                raise RuntimeError(f"{page.name}: exit status {status} of: qframe {shlex.join(arguments)}")


def shown(page: Path) -> dict[str, Path]:
    """The pictures that a page shows: names in the folder where it was run, and files of the documentation."""
    found = re.findall(r"!\[[^\]]*\]\(\.\./images/tutorials/([\w-]+)/([\w-]+\.png)\)", page.read_text(encoding="utf-8"))
    strangers = [f"{folder}/{name}" for folder, name in found if folder != page.stem]
    if strangers:
        raise ValueError(f"{page.name} shows pictures of other pages: {', '.join(strangers)}")
    return {name: IMAGES / page.stem / name for _, name in found}


def enlarged(picture: Image.Image) -> Image.Image:
    """The picture in whole multiples of its pixels, so that it can be looked at."""
    times = max(1, ENLARGED // max(picture.size))
    return picture.convert("RGB").resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)


def make(page: Path) -> None:
    """Run a page, and write the pictures that it shows."""
    files = shown(page)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        run(page)
        for name, file in files.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            with Image.open(name) as picture:
                enlarged(picture).save(file, optimize=True)
            if file.stat().st_size > LARGEST:
                raise RuntimeError(f"{file} has {file.stat().st_size} bytes, at most {LARGEST} are wanted")
        os.chdir(DOCS)


if __name__ == "__main__":
    named = [TUTORIALS / f"{name}.md" for name in sys.argv[1:]]
    for one in named or [page for page in sorted(TUTORIALS.glob("*.md")) if shown(page)]:
        make(one)
