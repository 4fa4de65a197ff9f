"""The tests on the imitated card that take little time."""

from __future__ import annotations

from tests.on_card.running import FAST, run_on_card


def test_the_fast_tests_on_the_card_pass_in_a_process_of_their_own() -> None:
    run_on_card("*", FAST)
