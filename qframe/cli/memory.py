"""What commands say of memory: before they load anything, and when it runs out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from qframe.preflight import Forecast


@contextmanager
def foretold(forecast: Forecast) -> Iterator[None]:
    """Say what will be needed, refuse what cannot fit; inside, running out of memory names what would need less."""
    from qframe.preflight import explained

    click.echo(forecast.summary())
    for warning in forecast.check():
        click.echo(f"warning: {warning}", err=True)
    with explained(forecast):
        yield
