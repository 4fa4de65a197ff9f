"""Registers the data source that qframe itself brings, a folder of pictures. Imports no torch."""

from __future__ import annotations

from qframe.plugins.hookspecs import Component, hookimpl


@hookimpl
def qframe_components() -> list[Component]:
    return [
        Component(
            "source",
            "folder",
            "qframe.data.folder:FolderSource",
            options="qframe.data.options:FolderOptions",
            summary="pictures in a folder, captions and references next to them",
        ),
    ]
