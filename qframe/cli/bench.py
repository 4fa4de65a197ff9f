"""`qframe bench NAME`: the benchmark of training, and those that plugins bring, each a command of its own."""

from __future__ import annotations

import click

from qframe.cli.bench_train import train
from qframe.cli.shared import examples, registry


class Benchmarks(click.Group):
    """Its commands are its own and the registered benchmarks; one is imported when it is named, none for listing."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.commands, *(component.name for component in registry().components("benchmark"))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        """The command of a benchmark. ConfigError with the nearest names; PluginError if it is no command."""
        from qframe.errors import PluginError

        if cmd_name in self.commands:
            return self.commands[cmd_name]
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
        rows = [(name, command.short_help or "") for name, command in self.commands.items()]
        rows += [(component.name, component.summary) for component in registry().components("benchmark")]
        with formatter.section("Benchmarks"):
            formatter.write_dl(rows)


@click.group(
    cls=Benchmarks,
    epilog=examples(
        "qframe bench train                           a training step, cached examples, their index",
        "qframe bench sample                          a sampling run, against diffusers' pipeline",
        "qframe bench transformer                     packed batches against diffusers, on this machine",
        "qframe bench transformer --help              its options",
    ),
)
def bench() -> None:
    """Measure what qframe promises about time and memory, side by side in one run."""


bench.add_command(train)
