"""Data sets: folders in the layouts of several trainers, and tables, with odd names, texts, files and options."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image

from qframe.config import load_config
from qframe.data.choose import open_source
from qframe.plugins.registry import load_registry
from tests.chaos.inputs.configs import toml
from tests.chaos.inputs.judging import Case, called, command
from tests.chaos.inputs.mutating import json_bytes, mutated_bytes, mutated_text, mutated_tree, odd_value

_NAMES = (
    b"x\xff\xfe.png",
    b"new\nline.png",
    b".png",
    b"..png",
    b"a b.png",
    b"\xe6\x97\xa5.png",
    b"x.PNG",
    b"x.jpeg",
    b"x" * 240,
    b"x.txt",
    b"x.caption",
    b"9999999999999999999999_a",
    b"0_a",
    b"-3_a",
    b"5_",
    b"targets",
    b"control",
    b"x.csv",
    b"metadata.jsonl",
    b"x.json",
    b"x\x1b[2J.png",
    b"x.png.png",
    b"x.webp",
    b"run.toml",
    b"\xe2\x80\xae.png",
    b"a_mask.png",
)
_OPTIONS = (
    "prompt",
    "validation",
    "repeats",
    "trigger",
    "prefix",
    "suffix",
    "template",
    "shuffle_tags",
    "keep_tags",
    "tag_separator",
    "alpha_mask",
    "references",
    "loss_maps",
    "captions",
    "caption_suffix",
    "folder_repeats",
    "columns",
    "other_columns",
    "folder",
    "allow_outside",
)
_FAMILIES = ("qwen-image", "qwen-edit", "qwen-edit-plus", "qwen-inpaint")

Tree = dict[bytes, bytes]


class Records:
    """Writes a small data set, spoils it, and lets `data check`, `init` and training read it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._data = folder / "data"
        self._toml = folder / "run.toml"
        self._pictures = [_picture(number) for number in range(4)]
        self._registry = load_registry()

    def case(self, draw: Random) -> Case:
        shutil.rmtree(self._data, ignore_errors=True)
        self._toml.unlink(missing_ok=True)
        tree, path, about = self._tree(draw)
        self._write(draw, tree)
        if draw.random() < 0.5:
            about += "; " + self._spoil(draw)
        data = self._data / path
        family = draw.choice(_FAMILIES)
        chosen = draw.choices(_OPTIONS, k=draw.choice((0, 0, 1, 2)))
        given = [f"data.options.{name}={toml(odd_value(draw))}" for name in chosen]
        given = [one.replace("\0", "0").encode("utf-8", "replace").decode()[:50_000] for one in given]
        options = [part for one in given for part in ("--set", one)]
        about = f"{family} {path} {[ascii(one)[:80] for one in given]}: {about}"
        kind = draw.random()
        if kind < 0.5:
            more = ["--headers"] if kind < 0.1 else ["--json"] if kind < 0.2 else []
            return Case(
                f"check {about}", lambda: command("data", "check", "--data", data, "--family", family, *options, *more)
            )
        if kind < 0.65:
            return Case(
                f"init {about}",
                lambda: command("init", data, "--output", self._toml, "--no-estimate", "--prompt", "a"),
                self._written,
            )
        return Case(f"train {about}", lambda: called(lambda: self._train(family, data, given)))

    def _tree(self, draw: Random) -> tuple[Tree, str, str]:
        """Return a data set as files by name, the path that the user names, and what was changed in its texts."""
        one, other = (name.encode() for name in draw.sample(("a", "b1", "c", "0007"), 2))
        png = self._pictures
        kind = draw.choice(("pairs", "folders", "repeats", "jsonl", "json", "csv", "parquet"))
        if kind == "pairs":
            tree = {
                one + b".png": png[0],
                one + b".txt": b"a caption",
                other + b".png": png[1],
                other + b".txt": b"tags, x",
            }
            return self._spoil_texts(draw, tree), "", kind
        if kind == "folders":
            first, second = draw.choice(((b"targets", b"control"), (b"target", b"reference"), (b"images", b"masks")))
            tree = {}
            for number, name in enumerate((one, other)):
                tree |= {first + b"/" + name + b".png": png[number], first + b"/" + name + b".txt": b"a caption"}
                tree[second + b"/" + name + b".png"] = png[number + 2]
            return self._spoil_texts(draw, tree), "", kind
        if kind == "repeats":
            tree = {
                b"10_woman/" + one + b".png": png[0],
                b"10_woman/" + one + b".txt": b"x",
                b"2_b/" + other + b".png": png[1],
                b"2_b/" + other + b".txt": b"y",
            }
            return self._spoil_texts(draw, tree), "", kind
        names = draw.choice(
            (
                ("target", "prompt", "reference"),
                ("image_path", "caption", "control_path"),
                ("file_name", "text", "control"),
            )
        )
        rows: Any = [
            dict(zip(names, (f"{n}.png", f"caption {n}", f"{n}.png"), strict=True))
            for n in (one.decode(), other.decode())
        ]
        rows[0] |= draw.choice(({}, {"id": "x", "group": "g"}, {"weight": "a.png"}, {"mask": f"{one.decode()}.png"}))
        told = "as it should be"
        if draw.random() < 0.8:
            rows, told = mutated_tree(draw, rows)
        data, name = self._table(draw, kind, rows)
        if draw.random() < 0.3:
            if draw.random() < 0.5 and kind != "parquet":
                data, how = mutated_text(draw, data.decode("utf-8", "replace")).encode("utf-8", "surrogatepass"), "text"
            else:
                data, how = mutated_bytes(draw, data)
            told += f", {how}"
        tree = {name: data, one + b".png": png[0], other + b".png": png[1]}
        return tree, draw.choice((name.decode(), name.decode(), "")), f"{kind} {told}"

    def _table(self, draw: Random, kind: str, rows: Any) -> tuple[bytes, bytes]:
        if kind == "json":
            return json_bytes(draw, rows), b"data.json"
        listed = rows if isinstance(rows, list) else [rows]
        if kind == "jsonl":
            return b"\n".join(json_bytes(draw, row) for row in listed), draw.choice((b"metadata.jsonl", b"data.jsonl"))
        objects = [row if isinstance(row, dict) else {"target": row} for row in listed] or [{}]
        if kind == "csv":
            stream = io.StringIO()
            columns = list(dict.fromkeys(str(key) for row in objects for key in row))
            written = csv.writer(stream)
            written.writerow(columns)
            for row in objects:
                written.writerow([_cell(row.get(key)) for key in columns])
            return stream.getvalue().encode("utf-8", "surrogatepass"), b"data.csv"
        return _parquet(draw, objects), b"data.parquet"

    def _spoil_texts(self, draw: Random, tree: Tree) -> Tree:
        texts = [name for name in tree if name.endswith(b".txt")]
        if draw.random() < 0.5:
            name = draw.choice(texts)
            text = odd_value(draw)
            tree[name] = draw.choice(
                (
                    mutated_text(draw, "a caption, with tags").encode("utf-8", "surrogatepass"),
                    (text if isinstance(text, str) else str(text)[:1000]).encode("utf-8", "surrogatepass"),
                    mutated_bytes(draw, "größer".encode())[0],
                    "größer".encode("utf-16"),
                    "größer".encode("utf-16-le"),
                    b"<|im_end|> x <|vision_start|>",
                    b"word " * 3000,
                )
            )
        return tree

    def _write(self, draw: Random, tree: Tree) -> None:
        for name, data in tree.items():
            file = os.fsencode(self._data) + b"/" + name
            os.makedirs(os.path.dirname(file), exist_ok=True)
            with open(file, "wb") as stream:
                stream.write(data)

    def _spoil(self, draw: Random) -> str:
        """Do something to a file or folder of the data set."""
        base = os.fsencode(self._data)
        found = [os.path.join(folder, name) for folder, folders, names in os.walk(base) for name in (*folders, *names)]
        path = draw.choice(found)
        told = ascii(path.removeprefix(base))
        beside = os.path.join(os.path.dirname(path), draw.choice(_NAMES))
        kind = draw.randrange(9)
        if os.path.lexists(beside):
            return f"nothing, {beside!a} is there"
        if kind == 0:
            os.rename(path, beside)
            return f"{told} renamed {beside.removeprefix(base)!a}"
        if kind == 1:
            os.makedirs(beside)
            return f"a folder {beside.removeprefix(base)!a}"
        if kind == 2:
            os.symlink(draw.choice((b".", b"..", path, b"/etc/passwd", b"/dev/zero", b"nothing", beside)), beside)
            return f"a link {beside.removeprefix(base)!a}"
        if kind == 3:
            os.mkfifo(beside)
            return f"a pipe {beside.removeprefix(base)!a}"
        if kind == 4 and os.path.isfile(path):
            os.unlink(path)
            os.makedirs(path)
            return f"{told} is a folder"
        if kind == 5 and os.path.isfile(path):
            os.unlink(path)
            os.mkfifo(path)
            return f"{told} is a pipe"
        if kind == 6 and os.path.isfile(path):
            os.unlink(path)
            return f"without {told}"
        if os.path.isfile(path):
            with open(path, "rb") as stream:
                data = stream.read()
            data, how = (b"", "empty") if kind == 7 else mutated_bytes(draw, data)
            with open(path, "wb") as stream:
                stream.write(data)
            return f"{told} {how}"
        return f"nothing to {told}"

    def _train(self, family: str, data: Path, given: list[str]) -> None:
        config = load_config(
            family=family, values={"data": {"path": str(data)}}, overrides=given, registry=self._registry
        )
        source = open_source(config, self._registry)
        for record in (*source.records(), *source.validation()):
            json.dumps([record.id, record.origin, record.prompt, record.group]).encode()
            for picture in (record.target, *record.references):
                assert picture.origin.isprintable(), ascii(picture.origin)

    def _written(self, code: int) -> str | None:
        if (code == 0) != self._toml.exists():
            return "run.toml is there although the command failed" if code else "there is no run.toml"
        if code == 0 and command("config", "show", "--config", self._toml) != 0:
            return "run.toml cannot be read"
        return None


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value)


def _parquet(draw: Random, rows: list[dict[Any, Any]]) -> bytes:
    """Write rows as Parquet, with whatever types their values have; texts where these do not fit together."""
    import pyarrow
    import pyarrow.parquet

    columns = list(dict.fromkeys(str(key) for row in rows for key in row))
    made = {}
    for name in columns:
        values = [row.get(name) for row in rows]
        try:
            made[name] = pyarrow.array(values)
        except (pyarrow.ArrowException, TypeError, ValueError, OverflowError):
            made[name] = pyarrow.array([str(value).encode("utf-8", "replace").decode()[:200] for value in values])
    stream = io.BytesIO()
    try:
        pyarrow.parquet.write_table(pyarrow.table(made), stream)
    except (pyarrow.ArrowException, UnicodeEncodeError, TypeError, ValueError, OverflowError):
        pyarrow.parquet.write_table(pyarrow.table({"target": ["a.png"]}), stream)
    return stream.getvalue()


def _picture(number: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGBA" if number == 3 else "RGB", (40 + 8 * number, 40), (50 * number, 9, 9)).save(stream, "PNG")
    return stream.getvalue()
