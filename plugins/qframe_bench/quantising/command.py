"""The command `qframe bench quantise` and its options. torch is imported when the command runs."""

from __future__ import annotations

import json

import click

from qframe.cli.shared import examples


@click.command(
    epilog=examples(
        "qframe bench quantise                                      quanto in 8 bits, 12 blocks of width 1024",
        "qframe bench quantise --use bitsandbytes --weights nf4     another quantiser and format",
        "qframe bench quantise --blocks 16 --width 1536             a larger network",
    ),
)
@click.option("--use", default="quanto", show_default=True, help="Registered name of the quantiser.")
@click.option("--weights", default="qint8", show_default=True, help="Its option `weights`, the format.")
@click.option("--blocks", type=click.IntRange(min=1), default=12, show_default=True, help="Blocks of the network.")
@click.option("--width", type=click.IntRange(min=64), default=1024, show_default=True, help="Width of the network.")
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="Turns of each start.")
@click.option("--check", is_flag=True, help="End with exit code 1 if a limit is exceeded.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def quantise(use: str, weights: str, blocks: int, width: int, repeats: int, check: bool, as_json: bool) -> int:
    """Measure how long the first and the second start with quantised weights take, and how much host memory.

    The network has random weights in bfloat16 and the linear layers of Qwen-Image's blocks. Every start is a process of
    its own. Its memory is the anonymous memory above what it had before loading: mapped files do not count.
    """
    import attrs

    from qframe_bench.quantising.starts import compare_starts

    found = compare_starts(use, weights, blocks=blocks, width=width, repeats=repeats)
    click.echo(json.dumps(attrs.asdict(found), indent=2) if as_json else str(found))
    return int(check and not all(ratio.kept for ratio in found.ratios))
