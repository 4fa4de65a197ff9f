"""The parts of the program, the most important first. Imports nothing but the standard library."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """A part of the program, which runs in a process of its own.

    Attributes:
        name: The name of the part, for `--parts` and the table.
        about: What it shows, in a few words.
        seconds: The most seconds that it may take.
        target: "module:function" of what it runs: a function that takes a `tests.gpu.asked.Asked`.
        case: What distinguishes this part from others with the same function.
    """

    name: str
    about: str
    seconds: float
    target: str
    case: str = ""


PARTS = (
    Part(name="facts", about="training and sampling on the device equal the CPU's", seconds=75,
         target="tests.gpu.facts:run"),
    Part(name="pytest", about="the tests marked gpu, where pytest is installed", seconds=60,
         target="tests.gpu.facts:run_pytest"),
    Part(name="train", about="a default `qframe train` of the embedded model, from start to end", seconds=60,
         target="tests.gpu.commands:train"),
    Part(name="parity", about="`qframe verify` in bfloat16: every family against diffusers' pipeline", seconds=75,
         target="tests.gpu.commands:parity"),
    Part(name="t2i", about="full size, text to image 1024 x 1024, bfloat16 resident", seconds=75,
         target="tests.gpu.full_size:run", case="t2i bfloat16"),
    Part(name="edit", about="full size, edit 1 MP with a reference of 1 MP, bfloat16 resident", seconds=75,
         target="tests.gpu.full_size:run", case="edit bfloat16"),
    Part(name="t2i-int8", about="the same in int8", seconds=60, target="tests.gpu.full_size:run", case="t2i int8"),
    Part(name="edit-int8", about="the same in int8", seconds=60, target="tests.gpu.full_size:run", case="edit int8"),
    Part(name="streamed", about="full size on small cards", seconds=10, target="tests.gpu.full_size:streamed"),
    Part(name="ragged", about="a batch of mixed shapes against groups and against diffusers", seconds=60,
         target="tests.gpu.commands:ragged"),
    Part(name="sampling", about="sampling against diffusers' pipeline", seconds=60,
         target="tests.gpu.commands:sampling"),
)  # fmt: skip
"""All parts. Together they would take longer than eight minutes if each took all of its time; most take less."""
