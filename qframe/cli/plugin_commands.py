"""Commands that plugins offer: a click group lists them by what plugins declare, and imports one when it is called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from qframe.errors import PluginError, nearest
from qframe.plugins.hookspecs import Component, Kind
from qframe.plugins.registry import Registry, load_registry


def registry() -> Registry:
    """Return the registry of the installed plugins, after naming each broken plugin on stderr."""
    found = load_registry()
    for broken in found.broken:
        click.echo(f"warning: {broken}", err=True)
    return found


class PluginGroup(click.Group):
    """A click group that has the commands of one kind of component in addition to the commands that were added to it.

    A help text shows the name and the summary that the plugin declared, so that nothing of the plugin is imported for
    it. The module of a command is imported when that command is called. A command that was added to the group hides a
    component of the same name.
    """

    def __init__(self, *args: Any, kind: Kind, heading: str = "Commands", **attributes: Any) -> None:
        """Make an empty group.

        Args:
            args: Passed on to `click.Group`.
            kind: The kind of the components that are commands of this group, for example "benchmark".
            heading: The line above the list of commands in the help text.
            attributes: Passed on to `click.Group`.
        """
        super().__init__(*args, **attributes)
        self.kind = kind
        self.heading = heading

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands in alphabetical order, without importing a plugin's command."""
        return sorted({*self.commands, *self._components(load_registry())})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of this name, or None if there is none; imports the command if a plugin offers it.

        Raises:
            PluginError: The module of a plugin's command cannot be imported, or its target is no click command.
        """
        if cmd_name in self.commands:
            return self.commands[cmd_name]
        plugins = load_registry()
        component = self._components(plugins).get(cmd_name)
        if component is None:
            return None
        found = plugins.resolve(component)
        if not isinstance(found, click.Command):
            raise PluginError(
                f"plugin {plugins.plugin_of(component)!r}: {component.target} is no click command",
                "Reinstall or update the plugin, or report this to its author.",
            )
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the first argument names, as click does, but suggest commands of plugins too.

        If there is no such command, each broken plugin is named on stderr, because the command may be that plugin's.

        Raises:
            click.UsageError: There is no such command.
        """
        name = args[0]
        if self.get_command(ctx, name) is None and not ctx.resilient_parsing:
            registry()
            near = " or ".join(map(repr, nearest(name, self.list_commands(ctx))))
            ctx.fail(f"No such command {name!r}." + (f" Did you mean {near}?" if near else ""))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands into the help text, each with its short help."""
        components = self._components(registry())
        names = self.list_commands(ctx)
        width = formatter.width - 6 - max(map(len, names), default=0)
        rows = [
            (name, self.commands[name].get_short_help_str(width) if name in self.commands else components[name].summary)
            for name in names
        ]
        if rows:
            with formatter.section(self.heading):
                formatter.write_dl(rows)

    def _components(self, plugins: Registry) -> Mapping[str, Component]:
        return {component.name: component for component in plugins.components(self.kind)}
