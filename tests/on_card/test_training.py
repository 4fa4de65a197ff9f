"""The slow tests in card_training.py: a file of its own, so that they run beside others."""

from __future__ import annotations

import pytest

from tests.on_card.running import run_slow_on_card


@pytest.mark.slow
def test_the_slow_tests_pass_in_a_process_of_their_own(request: pytest.FixtureRequest) -> None:
    run_slow_on_card(request, "training")
