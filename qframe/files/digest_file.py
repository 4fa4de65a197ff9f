"""Keeps digests of files in a small JSON file, for programs that have no cache open.

Imports no torch.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qframe.errors import QframeError
from qframe.files.digests import Stamp, stamp_of
from qframe.files.storage import write_file


class DigestFile:
    """A `DigestStore` in a small JSON file.

    A file that cannot be read holds no digests, and one that cannot be written keeps none: they only save time.
    """

    def __init__(self, path: Path) -> None:
        """Use the file at `path`; it is created when digests are first remembered."""
        self._path = path

    def recall_digest(self, path: str, stamp: Stamp) -> str | None:
        """Return the digest that was stored for the file at `path` with this stamp, or None if there is none."""
        row = self._rows().get(path)
        if not isinstance(row, list) or len(row) != 2 or row[0] != list(stamp):
            return None
        return str(row[1])

    def remember_digests(self, rows: Sequence[tuple[str, Stamp, str]]) -> None:
        """Store digests of files; those of files that are gone are left out."""
        kept = {path: row for path, row in self._rows().items() if os.path.exists(path)}
        kept |= {path: [list(stamp), digest] for path, stamp, digest in rows}
        with contextlib.suppress(OSError, QframeError):
            write_file(self._path, json.dumps(kept, indent=0, sort_keys=True).encode())

    def add_published(self, digests: Mapping[Path, str]) -> None:
        """Store digests of files that this process has just published, and hashed while it wrote them."""
        stamps = {path: stamp_of(os.path.abspath(path)) for path in digests}
        self.remember_digests(
            [(os.path.abspath(path), stamp, digests[path]) for path, stamp in stamps.items() if stamp is not None]
        )

    def _rows(self) -> dict[str, Any]:
        try:
            rows = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            return {}
        return rows if isinstance(rows, dict) else {}
