"""What commands print about memory before they load anything, and when memory runs out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from qframe.progress.shown import chosen_progress

if TYPE_CHECKING:
    from qframe.preflight import Forecast
    from qframe.preflight.choosing import Choice


@contextmanager
def with_forecast(forecast: Forecast, choices: Sequence[Choice] = ()) -> Iterator[None]:
    """Print a forecast of memory and what was chosen, and give a context whose errors name settings that need less.

    Raises:
        ResourceError: The weights alone do not fit, or, in the context, memory runs out.
    """
    from qframe.preflight import explained

    if chosen_progress() != "none":  # with --quiet
        click.echo(forecast.summary())
        show_choices(choices)
    for warning in forecast.check():
        click.echo(f"warning: {warning}", err=True)
    with explained(forecast):
        yield


def show_choices(choices: Sequence[Choice]) -> None:
    """Print what the key `memory` chose, one line for each key."""
    for choice in choices:
        click.echo(f"memory: {choice}")
