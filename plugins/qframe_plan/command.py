"""The command `qframe plan`. It is imported only when it runs."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import click

from qframe.cli.shared import CONFIG, FAMILY, MODEL, SET, examples, options, resolve
from qframe.errors import ConfigError

if TYPE_CHECKING:
    from qframe_plan.planning import Card, Setting


def _amount(context: click.Context, option: click.Parameter, value: str | None) -> float | None:
    """Read "25e9", "25GB" or "150TFLOP" with a unit of a thousand, a million and so on."""
    if value is None:
        return None
    found = re.fullmatch(r"\s*([\d.]+(?:e\d+)?)\s*([KMGT]?)(?:B|FLOPS?)?(?:/s)?\s*", value, re.IGNORECASE)
    if found is None:
        raise click.BadParameter(f"expected a number such as 25e9 or 25GB, got {value!r}")
    return float(found[1]) * {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}[found[2].upper()]


@click.command(
    epilog=examples(
        "qframe plan --family qwen-edit --model DIR --memory 24GB",
        "qframe plan --config configs/qwen-edit-12gb.toml --memory 12GB --rate 60T --bandwidth 25GB",
        "qframe plan --family qwen-image --model DIR --memory 8GB --json",
    )
)
@options(FAMILY, MODEL)
@click.option("--memory", metavar="SIZE", required=True, help="The memory of the card, e.g. 24GB or 16GiB.")
@click.option(
    "--rate", metavar="NUMBER", callback=_amount, help="Operations that the card does in a second, e.g. 150T."
)
@click.option("--bandwidth", metavar="NUMBER", callback=_amount, help="Bytes that it is sent in a second, e.g. 25GB.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@options(CONFIG, SET)
def plan(
    family: str | None,
    model: str | None,
    memory: str,
    rate: float | None,
    bandwidth: float | None,
    as_json: bool,
    config_file: str | None,
    overrides: tuple[str, ...],
) -> None:
    """List settings with which training fits a card that need not be in this machine. No weight is read."""
    from qframe.config.memory import memory_bytes
    from qframe_plan.planning import CARDS, Card, plans

    try:
        size = memory_bytes(memory)
    except ValueError as error:
        raise ConfigError(f"--memory: {error}", "For example --memory 24GB.") from error
    config = resolve(family, config_file, overrides, model=model).config
    found = list(plans(config, memory))
    cards = CARDS if rate is None else {"this card": Card(rate=rate, bandwidth=bandwidth)}
    if as_json:
        click.echo(json.dumps([as_values(one, cards) for one in found], indent=2))
        return
    fitting = [one for one in found if one.fits]
    for one in fitting or [min(found, key=lambda one: one.peak)]:
        click.echo("\n".join(lines(one, size, cards)))
    if not fitting:
        click.echo("Nothing that is tried here fits. `qframe train --dry-run` names settings that need less.")


def as_values(setting: Setting, cards: dict[str, Card] | Any) -> dict[str, Any]:
    """Return a setting as values that JSON has."""
    return {
        "weights": setting.weights,
        "settings": list(setting.settings),
        "chosen": {choice.key: choice.value for choice in setting.choices},
        "fits": setting.fits,
        "peak": setting.peak,
        "stage": setting.stage,
        "training": setting.training,
        "host": setting.host,
        "copies": setting.copies,
        "copied": setting.copied,
        "flops": setting.flops,
        "seconds": {name: card.seconds(setting.flops, setting.copied) for name, card in cards.items()},
    }


def lines(setting: Setting, size: int, cards: dict[str, Card] | Any) -> list[str]:
    """Return a setting as lines of text."""
    from qframe.preflight.forecast import gib

    fits = "" if setting.fits else ", which does not fit"
    needed = f"{gib(setting.peak)} of {gib(size)} in {setting.stage}{fits}"
    found = [f"{setting.weights}: {needed}; a step {gib(setting.training)}, host memory {gib(setting.host)}"]
    found += [f"  --set {one}" for one in setting.settings]
    found += [f"  chosen: {choice}" for choice in setting.choices]
    if setting.copies:
        found.append(f"  {setting.copies} copies in a step, {setting.copied / 1e9:.1f} GB")
    times = {name: card.seconds(setting.flops, setting.copied) for name, card in cards.items()}
    told = [f"{name} {seconds:.1f} s" for name, seconds in times.items() if seconds is not None]
    if told:
        found.append(f"  a step takes at least: {', '.join(told)} (by arithmetic, not measured)")
    return found
