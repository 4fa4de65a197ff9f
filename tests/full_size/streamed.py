"""Runs a command of qframe on an imitated card, to which weights are streamed from their mapped files.

python -m tests.full_size.streamed ARGUMENTS OF QFRAME

No host memory is pinned for weights, as on a machine whose memory is much smaller than they are: every block is read
from its file whenever it is copied to the card. What lies on the imitated card lies in fact in anonymous memory of this
process, so that its slots and buffers count there. The last line of the output is JSON: the most bytes that were on the
card at once, and how many bytes were copied to it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import click

from tests import imitated_card
from tests.imitated_card import METER

CARD = "card"


def run(arguments: Sequence[str]) -> int:
    """Run the command, print what the card saw, and return the exit code."""
    imitated_card.install()
    from qframe.cli import main
    from qframe.compose.streaming import network

    network.host_room = lambda: 0
    status = main(list(arguments))
    click.echo(json.dumps({"card": METER.peak[0], "copied": METER.bytes_copied["to card"]}))
    return status


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
