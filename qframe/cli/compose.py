"""`qframe compose`: checks whether the chosen components fit each other, without reading a weight."""

from __future__ import annotations

import click

from qframe.cli.shared import (
    CONFIG,
    DEVICE,
    DTYPE,
    FAMILY,
    MODEL,
    OFFLOAD,
    SET,
    embedded_line,
    examples,
    licence_line,
    options,
    resolve,
)


@click.command(
    epilog=examples(
        "qframe compose --family qwen-edit",
        "qframe compose --family qwen-edit --set denoiser.use=qwen-image --set denoiser.model=DIR",
    )
)
@options(FAMILY, MODEL, DEVICE, DTYPE, OFFLOAD, CONFIG, SET)
@click.option("--json", "as_json", is_flag=True, help="Print the connections as JSON.")
@click.option(
    "--memory",
    is_flag=True,
    help="Also print what sampling would load, how much memory it would need, and whether that fits.",
)
def compose(
    family: str | None,
    model: str | None,
    config_file: str | None,
    overrides: tuple[str, ...],
    as_json: bool,
    memory: bool,
) -> None:
    """Check that the chosen components fit each other. No weight is read."""
    import json

    import attrs

    from qframe.compose import compose as check
    from qframe.config.schema import ROLES
    from qframe.plugins.registry import load_registry

    config = resolve(family, config_file, overrides, model=model).config
    composition = check(config, load_registry())
    if as_json:
        used = {role: getattr(config, role).use for role in ROLES}
        joints = [attrs.asdict(joint) for joint in composition.joints]
        told = {"family": config.family, "model": composition.model_name, "licence": composition.licence}
        click.echo(json.dumps({**told, "components": used, "joints": joints}, indent=2, default=str))
        return
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
