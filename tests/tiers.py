"""Which cases of a parametrised test run where: by default, with `--slow` and in CI, or only with `--thorough`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def tiered(names: Iterable[str], *, slow: Iterable[str], fast: Iterable[str] = ()) -> list[Any]:
    """Return the cases of a test that combines many options, each marked with the tier that it runs in.

    Args:
        names: All cases.
        slow: Those that CI runs: together they reach every branch of the code that is tested.
        fast: Those that run by default, too. All other cases run only with `./run test --thorough`.
    """
    everything, in_ci, by_default = list(names), set(slow), set(fast)
    assert in_ci | by_default <= set(everything), (in_ci | by_default) - set(everything)
    return [
        name
        if name in by_default
        else pytest.param(name, marks=pytest.mark.slow if name in in_ci else pytest.mark.thorough)
        for name in everything
    ]
