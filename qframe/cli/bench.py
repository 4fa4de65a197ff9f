"""`qframe bench NAME`: the benchmarks that plugins bring, each a command of its own."""

from __future__ import annotations

import click

from qframe.cli.shared import examples, registry


class Benchmarks(click.Group):
    """Its commands are the registered benchmarks; one is imported when it is named, none for listing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [component.name for component in registry().components("benchmark")]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        """The command of a benchmark. ConfigError with the nearest names; PluginError if it is no command."""
        from qframe.errors import PluginError

        plugins = registry()
        component = plugins.component("benchmark", cmd_name)
        found = plugins.resolve(component)
        if not isinstance(found, click.Command):
            raise PluginError(
                f"plugin {plugins.plugin_of(component)!r}: {component.target} is no click command",
                "Reinstall or update the plugin, or report this to its author.",
            )
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(component.name, component.summary) for component in registry().components("benchmark")]
        if rows:
            with formatter.section("Benchmarks"):
                formatter.write_dl(rows)


@click.group(
    cls=Benchmarks,
    epilog=examples(
        "qframe bench transformer                     packed batches against diffusers, on this machine",
        "qframe bench transformer --help              its options",
    ),
)
def bench() -> None:
    """Measure what qframe promises about time and memory, side by side in one run."""
