"""Draws the rooms of the core as an SVG picture, from the imports as they are: `python -m tests.architecture.drawing`.

The picture stands in docs/images/rooms.svg, and a test compares it with what this module draws. Every arrow points
down. An arrow is left out where others already lead there: from cli one can reach everything, and a line to
everything would show nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tests.architecture.rules import LAYERS, Modules, core
from tests.architecture.source import ROOT, project

PICTURE = ROOT / "docs" / "images" / "rooms.svg"

_WIDTH, _ROW, _BOX, _HEIGHT = 960, 84, 132, 40
_COLUMNS = {"left": 160, "middle": 480, "right": 800}
_MOVED = {"interfaces": "middle", "data": "left", "adapters": "middle", "cache": "right"}
"""Rooms that stand in another column than the order of `LAYERS` gives, so that no arrow runs behind a box."""
_STYLE = (
    "text{font:15px sans-serif;fill:#1f2937;text-anchor:middle}"
    "rect{fill:#f8fafc;stroke:#475569;stroke-width:1.5;rx:8}"
    "path{fill:none;stroke:#64748b;stroke-width:1.3}"
    "marker path{fill:#64748b;stroke:none}"
)


def arrows(modules: Modules) -> dict[str, set[str]]:
    """The rooms that each room imports from, imports inside functions included."""
    found: dict[str, set[str]] = {}
    for module in core(modules):
        if module.name in ("qframe", "qframe.__main__"):
            continue  # the two doors: the lazy exports of one, and the command line behind the other
        room = module.name.split(".")[1]
        targets = {item.target.split(".")[1] for item in module.imports if item.target.startswith("qframe.")}
        found.setdefault(room, set()).update(targets - {room})
    return found


def reduced(graph: Mapping[str, set[str]]) -> dict[str, list[str]]:
    """The same graph without the arrows that a longer way already implies."""

    def reach(start: set[str]) -> set[str]:
        seen: set[str] = set()
        queue = list(start)
        while queue:
            room = queue.pop()
            if room not in seen:
                seen.add(room)
                queue += graph.get(room, ())
        return seen

    return {
        room: sorted(target for target in targets if target not in reach(set(targets) - {target}))
        for room, targets in sorted(graph.items())
    }


def places() -> dict[str, tuple[float, float]]:
    """Where the middle of each room's box lies: its row is its layer."""
    found = {}
    for row, cells in enumerate(LAYERS[1:]):  # the first row is __main__ alone
        rooms = [room for cell in cells for room in sorted(cell)]
        columns = {1: ["middle"], 2: ["left", "right"], 3: ["left", "middle", "right"]}[len(rooms)]
        for room, column in zip(rooms, columns, strict=True):
            found[room] = (_COLUMNS[_MOVED.get(room, column)], _ROW * (row + 0.5))
    return found


def drawing(modules: Modules) -> str:
    """The picture as SVG text, the same for the same imports."""
    return "\n".join(_lines(reduced(arrows(modules)))) + "\n"


def _lines(graph: Mapping[str, list[str]]) -> Iterator[str]:
    at = places()
    height = _ROW * (len(LAYERS) - 1)
    yield f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img">'
    yield "<title>The rooms of qframe/. An arrow leads from a room to one that it imports from.</title>"
    yield f"<style>{_STYLE}</style>"
    yield '<rect style="fill:#ffffff;stroke:none" width="100%" height="100%"/>'
    yield (
        '<marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L10 5L0 10z"/></marker>'
    )
    for room, targets in graph.items():
        for target in targets:
            (x, y), (to_x, to_y) = at[room], at[target]
            start, end = y + _HEIGHT / 2, to_y - _HEIGHT / 2
            bend = min((end - start) / 2, _ROW / 2)
            yield (
                f'<path marker-end="url(#head)" d="M{x:.0f} {start:.0f}C{x:.0f} {start + bend:.0f} '
                f'{to_x:.0f} {end - bend:.0f} {to_x:.0f} {end:.0f}"/>'
            )
    for room, (x, y) in at.items():
        yield f'<rect x="{x - _BOX / 2:.0f}" y="{y - _HEIGHT / 2:.0f}" width="{_BOX}" height="{_HEIGHT}"/>'
        yield f'<text x="{x:.0f}" y="{y + 5:.0f}">{room}</text>'
    yield "</svg>"


if __name__ == "__main__":
    PICTURE.write_text(drawing(project()), encoding="utf-8")
