"""`qframe compose`: checks whether the chosen components fit each other, without reading a weight."""

from __future__ import annotations

import click

from qframe.cli.shared import CONFIG, FAMILY, MODEL, SET, embedded_line, examples, licence_line, options, resolve


@click.command(
    epilog=examples(
        "qframe compose --family qwen-edit",
        "qframe compose --family qwen-edit --set denoiser.use=qwen-image --set denoiser.model=DIR",
    )
)
@options(FAMILY, MODEL, CONFIG, SET)
@click.option(
    "--memory",
    is_flag=True,
    help="Also print what sampling would load, how much memory it would need, and whether that fits.",
)
def compose(
    family: str | None, model: str | None, config_file: str | None, overrides: tuple[str, ...], memory: bool
) -> None:
    """Check that the chosen components fit each other. No weight is read."""
    from qframe.compose import compose as check
    from qframe.config.schema import ROLES
    from qframe.plugins.registry import load_registry

    config = resolve(family, config_file, overrides, model=model).config
    composition = check(config, load_registry())
    line = embedded_line(config, load_registry(), data=False)
    if line:
        click.echo(line)
    click.echo(composition.table())
    for role in ROLES:
        origin = composition.model(role).name if role in composition.models else "no model"
        click.echo(f"  {role:<9} {getattr(config, role).use}, {origin}")
    click.echo(licence_line(composition.model_name, composition.family))
    if memory:
        from qframe.cli.memory import show_choices
        from qframe.preflight.outlook import sampling_outlook

        outlook = sampling_outlook(composition)
        show_choices(outlook.choices)
        click.echo("\n".join(outlook.forecast.table()))
