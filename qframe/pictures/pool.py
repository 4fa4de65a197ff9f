"""Opens pictures in several threads, while the caller uses those that were opened before."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from PIL import Image

from qframe.pictures.picture import PixelInput
from qframe.pictures.pixels import open_fitted

THREADS = min(8, os.cpu_count() or 1)
"""How many pictures are decoded at once. More threads would only wait for the disk and take memory."""


def open_groups(
    groups: Iterable[Sequence[PixelInput]], *, channels: int = 3
) -> Generator[list[Image.Image], None, None]:
    """Open pictures as `open_fitted` does, and yield those of one group after another, in the order of the group.

    While the caller uses a group, the next one is opened. So at most two groups are in memory, and `THREADS` pictures
    in the size of their files. The caller closes the generator (`contextlib.closing`), also after an error: that ends
    the threads, which first finish the pictures that they are opening.

    Args:
        groups: The pictures.
        channels: See `open_fitted`.

    Raises:
        DataError: A picture cannot be used; if there are several, the error is that of the first one.
    """
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="qframe pictures")

    def begin(group: Sequence[PixelInput]) -> list[Future[Image.Image]]:
        return [pool.submit(open_fitted, pixels, channels=channels) for pixels in group]

    try:
        begun: list[Future[Image.Image]] | None = None
        for group in groups:
            following = begin(group)
            if begun is not None:
                yield [future.result() for future in begun]
            begun = following
        if begun is not None:
            yield [future.result() for future in begun]
    finally:
        pool.shutdown(cancel_futures=True)
