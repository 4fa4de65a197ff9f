"""Measure on a GPU what qframe does there.

python -m tests.gpu [--parts NAMES] [--minutes M] [--device D] [--tiny] [--out DIR]

It runs from a clone, without installing anything and without a network. Each part is a process of its own with a time
limit, the most important part first, and the results are written after every part, so that no part can lose those
before it: DIR/results.json, DIR/results.md, and what each part said in DIR/PART.log. Each result stands beside its
prediction, which was written into the program before it was ever run on a GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.gpu.environment import NEEDED, ROOT, from_clone, missing
from tests.gpu.parts import PARTS, Part
from tests.gpu.results import Row, Rows, as_table


def run(arguments: Sequence[str] | None = None) -> int:
    """Read the command line, run the parts, and return the exit code: 0, 1 if a part failed, or 2 if it cannot run."""
    asked = _parser().parse_args(arguments)
    if absent := missing():
        _tell(f"these packages are missing: {' '.join(absent)}")
        return 2
    names = [name for name in (asked.parts or "").split(",") if name] or [part.name for part in PARTS]
    if unknown := set(names) - {part.name for part in PARTS}:
        _tell(f"there are no parts {', '.join(sorted(unknown))}; there are: {', '.join(part.name for part in PARTS)}")
        return 2
    about = _machine(asked.device)
    if asked.device.startswith("cuda") and about["device"] is None:
        _tell("torch finds no CUDA device here; --device cpu --tiny rehearses the program on a CPU")
        return 2
    out: Path = asked.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch, from_clone(Path(scratch) / "metadata") as environment:
        for part in PARTS:
            if part.name not in names:
                continue
            left = 60 * asked.minutes - (time.monotonic() - started)
            rows += _run_part(part, left, out, Path(scratch), environment, device=asked.device, tiny=asked.tiny)
            about["seconds"] = round(time.monotonic() - started, 1)
            _write(out, about, rows)
    print(as_table(rows))  # noqa: T201 (a program)
    _tell(f"{about['device'] or asked.device}, {about['seconds']:.0f} s; results in {out}")
    return 1 if any(row.failed for row in rows) else 0


def _parser() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {part.name:<10} {part.about} (at most {part.seconds:.0f} s)" for part in PARTS)
    parser = argparse.ArgumentParser(
        prog="python -m tests.gpu",
        description=__doc__,
        epilog=f"parts, in the order in which they run:\n{listed}\n\nneeds these packages, and a CUDA build of torch:\n"
        f"  {' '.join(sorted(NEEDED.values()))}\nWith pytest, the tests marked gpu run as well.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--parts", help="names of parts, with commas between [default: all]")
    parser.add_argument("--minutes", type=float, default=8.0, help="the most minutes in all [default: 8]")
    parser.add_argument("--device", default="cuda", help="the device, as torch writes it [default: cuda]")
    parser.add_argument("--tiny", action="store_true", help="networks of a few kilobytes: rehearses the program")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="the folder of the results")
    return parser


def _run_part(
    part: Part, left: float, out: Path, scratch: Path, environment: Mapping[str, str], *, device: str, tiny: bool
) -> list[Row]:
    """Run one part, and return its rows, and one more if it did not end well."""
    from tests.watched import run_watched

    if left < 5:
        return [Row(part=part.name, what=part.about, note="not run: the time is up")]
    _tell(f"{part.name}: {part.about} ...")
    file, folder = out / f"{part.name}.jsonl", scratch / part.name
    file.unlink(missing_ok=True)
    folder.mkdir()
    command = [
        sys.executable,
        "-m",
        "tests.gpu.asked",
        part.name,
        part.target,
        part.case,
        str(file),
        str(folder),
        device,
    ]
    limit = min(part.seconds * (10 if tiny else 1), left)
    watched = run_watched([*command, *(["tiny"] if tiny else [])], limit=limit, environment=environment, folder=ROOT)
    (out / f"{part.name}.log").write_text(watched.output, encoding="utf-8")
    rows = Rows(file, part.name).read()
    if watched.status is None:
        rows.append(
            Row(
                part=part.name,
                what="time",
                measured=round(watched.wall, 1),
                unit="s",
                note="its time was up",
                failed=True,
            )
        )
    elif watched.status != 0:
        last = " / ".join(watched.output.strip().splitlines()[-3:])
        rows.append(Row(part=part.name, what="exit status", measured=watched.status, note=last, failed=True))
    elif not rows:
        rows.append(Row(part=part.name, what="results", measured=0, note="it ended without any", failed=True))
    for row in rows:
        _tell("  " + as_table([row]).splitlines()[-1])
    return rows


def _machine(device: str) -> dict[str, Any]:
    """Return what `tests.gpu.machine` prints."""
    command = [sys.executable, "-m", "tests.gpu.machine", device]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _write(out: Path, about: Mapping[str, Any], rows: Sequence[Row]) -> None:
    found = [{**dataclasses.asdict(row), "reached": row.reached} for row in rows]
    (out / "results.json").write_text(json.dumps({"machine": about, "rows": found}, indent=2) + "\n", encoding="utf-8")
    facts = ", ".join(f"{name} {value}" for name, value in about.items() if value is not None)
    (out / "results.md").write_text(f"{facts}\n\n{as_table(rows)}\n", encoding="utf-8")


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201 (a program)


if __name__ == "__main__":
    sys.exit(run())
