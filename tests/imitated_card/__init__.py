"""An imitated accelerator: devices "card:0" and "card:1", with memories of their own, on a machine without a GPU.

The values of a card's tensors are held in the memory of the CPU, so results are real. `install` registers the backend
with torch, for the whole process and for good: a test that needs a card belongs into tests/on_card, whose files run in
processes of their own. docs/guides/test-without-a-gpu.md says what is imitated, and what is not.
"""

from tests.imitated_card.backend import CARDS, NAME, install
from tests.imitated_card.kept import Kept, kept_for_backward
from tests.imitated_card.meter import METER

__all__ = ["CARDS", "METER", "NAME", "Kept", "install", "kept_for_backward"]
