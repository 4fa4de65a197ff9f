"""The command `qframe plugins list`."""

from __future__ import annotations

from collections.abc import Iterable

import click


@click.group()
def plugins() -> None:
    """List what plugins offer, and the plugins that are broken."""


@plugins.command("list")
def list_command() -> None:
    """List families and components by kind, each with its plugin, then the plugins and what is broken.

    QFRAME_DISABLE_PLUGINS=a,b leaves plugins out. QFRAME_TRACE_PLUGINS=1 prints every step of loading them.
    """
    from qframe.plugins.hookspecs import KINDS
    from qframe.plugins.registry import load_registry

    registry = load_registry()
    _section("families", [(f.name, registry.plugin_of(f), f.summary) for f in registry.families()])
    for kind in KINDS:
        _section(kind, [(c.name, registry.plugin_of(c), c.summary) for c in registry.components(kind)])
    _section("plugins", [(p.name, p.distribution, p.target) for p in registry.plugins])
    if registry.disabled:
        click.echo(f"disabled: {', '.join(registry.disabled)}\n")
    if registry.broken:
        click.echo("broken")
        for broken in registry.broken:
            click.echo(f"  {broken}")


def _section(title: str, rows: Iterable[tuple[str, str, str]]) -> None:
    """Print rows of three columns below a title; print nothing if there are no rows."""
    rows = list(rows)
    if not rows:
        return
    first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
    click.echo(title)
    for row in rows:
        click.echo(f"  {row[0]:<{first}}  {row[1]:<{second}}  {row[2]}".rstrip())
    click.echo()
