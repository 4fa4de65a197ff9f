"""`qframe plugins list`: the plugins that are installed, what they offer, and which are broken."""

from __future__ import annotations

import json
from collections.abc import Iterable

import click


@click.group()
def plugins() -> None:
    """See what plugins offer, and which plugins are broken."""


@plugins.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def list_command(as_json: bool) -> None:
    """List the families and components that can be chosen, each with its plugin, and what could not be loaded.

    QFRAME_DISABLE_PLUGINS=a,b leaves the plugins a and b out; QFRAME_TRACE_PLUGINS=1 shows how each plugin loads.
    """
    from qframe.plugins.hookspecs import KINDS
    from qframe.plugins.registry import load_registry

    registry = load_registry()
    if as_json:
        offered = [(family, "family") for family in registry.families()]
        offered += [(component, component.kind) for component in registry.components()]  # type: ignore[misc]
        told = [
            {"kind": kind, "name": one.name, "plugin": registry.plugin_of(one), "summary": one.summary}
            for one, kind in offered
        ]
        plugins_ = [{"name": p.name, "distribution": p.distribution, "target": p.target} for p in registry.plugins]
        failed = [{"plugin": b.plugin, "distribution": b.distribution, "reason": b.reason} for b in registry.broken]
        click.echo(json.dumps({"offered": told, "plugins": plugins_, "broken": failed}, indent=2))
        return
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
