"""The configuration: its keys, the layers that it is merged from, and a strict reader. Imports no torch."""

from __future__ import annotations

from qframe.config.loading import Resolved, chosen_family, load_config, resolve_config
from qframe.config.stored import config_items, diff_config, dump_config

__all__ = [
    "Resolved",
    "chosen_family",
    "config_items",
    "diff_config",
    "dump_config",
    "load_config",
    "resolve_config",
]
