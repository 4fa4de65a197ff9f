"""Plants faults on purpose and asserts that the tests named for each of them fail: `python -m tests.mutants`.

Every fault is one that the suite once did not see, or that only a GPU would show. The program copies the project into a
temporary folder, runs the named tests there once without a fault, and then once with each fault. It ends with exit
code 1 if a fault survives, or if its text is no longer in the file, and takes a few minutes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import attrs

ROOT = Path(__file__).parents[1]
_COPIED = ("qframe", "plugins", "tests", "configs", "docs", "pyproject.toml", "constraints.txt", "README.md")
_FAILED = 1  # pytest: tests ran, and some failed. Other codes mean that nothing was tested.


@attrs.frozen
class Mutant:
    """A fault that is planted by replacing one piece of text in one file.

    Attributes:
        name: What is wrong with it.
        file: The file, from the root of the project.
        old: The text to replace; it occurs once in the file.
        new: The text in its place.
        tests: The tests of which at least one must fail.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def plant(self, root: Path) -> None:
        path = root / self.file
        text = path.read_text(encoding="utf-8")
        if text.count(self.old) != 1:
            raise SystemExit(f"{self.name}: its text occurs {text.count(self.old)} times in {self.file}, expected once")
        path.write_text(text.replace(self.old, self.new), encoding="utf-8")


_ROPE = "plugins/qframe_qwen_per_sample_rope"
_TESTS = "tests/per_sample_rope"
_STEP = "        rate = state.optimizers.step(state.step, steps=config.max_steps)\n"
_AVERAGE = """        if state.average is not None:
            state.average.update(state.parameters, state.step)
"""
MUTANTS = (
    Mutant(
        "the average of the weights is updated before the step",
        "qframe/train/loop.py",
        _STEP + _AVERAGE,
        _AVERAGE + _STEP,
        ("tests/train/test_step.py::test_the_average_follows_the_weights_that_a_step_ends_with",),
    ),
    Mutant(
        "bfloat16 autocast is switched off",
        "qframe/train/precision.py",
        'enabled=train.precision == "bfloat16"',
        "enabled=False",
        ("tests/train/test_precision.py::test_every_stage_of_a_run_computes_in_bfloat16_by_default",),
    ),
    Mutant(
        "the seed of dropout lacks the step",
        "qframe/train/loop.py",
        '"dropout", step, micro',
        '"dropout", micro',
        ("tests/train/test_step.py::test_every_pass_of_every_step_drops_other_inputs",),
    ),
    Mutant(
        "queries are not converted before the ragged kernel",
        f"{_ROPE}/attention.py",
        "permuted(torch.cat([t, i]).to(text[2].dtype), ",
        "permuted(torch.cat([t, i]), ",
        (f"{_TESTS}/test_attention.py::test_the_ragged_kernel_gets_one_dtype_from_float32_weights_under_autocast",),
    ),
    Mutant(
        "noise does not depend on the step",
        "qframe/train/batch.py",
        'stream(config.seed, "noise", step, slot)',
        'stream(config.seed, "noise", slot)',
        ("tests/train/test_step.py::test_every_step_and_every_slot_draws_other_noise_and_another_sigma",),
    ),
    Mutant(
        "samples are computed outside of the precision of training",
        "qframe/sample/running.py",
        "            with computing():\n                return velocity(tokens, sigma)\n",
        "            return velocity(tokens, sigma)\n",
        ("tests/train/test_precision.py::test_every_stage_of_a_run_computes_in_bfloat16_by_default",),
    ),
    Mutant(
        "a compiled block repeats its modulation by an index",
        f"{_ROPE}/layout.py",
        "repeated(value, stream.owner)",
        "value[stream.owner]",
        (f"{_TESTS}/test_compile.py::test_the_compiled_modulation_has_exact_gradients_in_bfloat16",),
    ),
    Mutant(
        "the ragged attention permutes by an index",
        f"{_ROPE}/attention.py",
        "permuted(gathered, layout.parted, layout.joined)",
        "gathered[layout.parted]",
        (f"{_TESTS}/test_rows.py::test_the_backward_pass_of_ragged_attention_neither_sorts_nor_adds_up_rows",),
    ),
    Mutant(
        "CUDA's autocast makes layer norms float32",
        "qframe/diffusion/norms.py",
        "torch.autocast(kind, enabled=False)",
        "nullcontext()",
        (f"{_TESTS}/test_memory.py", "tests/diffusion/test_norms.py"),
    ),
    Mutant(
        "each adapter keeps a float32 copy of its input",
        "qframe/adapters/network.py",
        "        _spare_copies(module)\n",
        "        pass\n",
        (f"{_TESTS}/test_memory.py",),
    ),
    Mutant(
        "adapters with DoRA or dropout compute in bfloat16",
        "qframe/adapters/network.py",
        "    if not config.dora and config.dropout == 0:\n        _spare",
        "    if True:\n        _spare",
        ("tests/adapters/test_adapters.py::test_dora_and_dropout_compute_in_float32_under_autocast",),
    ),
    Mutant(
        "Heun's sampler waits for the device in every step",
        "qframe/diffusion/samplers.py",
        "            if end > 0:\n",
        "            if sigmas[step + 1] > 0:\n",
        ("tests/diffusion/test_samplers.py",),
    ),
    Mutant(
        "position tables are never let go",
        "qframe/diffusion/tables.py",
        "while self.nbytes > self.most_bytes:",
        "while False:",
        ("tests/diffusion/test_tables.py",),
    ),
)


def tell(line: str) -> None:
    print(line, flush=True)  # noqa: T201 (a program)


def python(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python on the code of the copy."""
    paths = os.pathsep.join([str(root), str(root / "plugins")])
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)


def run_tests(root: Path, tests: Sequence[str]) -> tuple[int, str]:
    """Run tests of the copy. Returns pytest's exit code and the end of what it wrote."""
    done = python(root, "-m", "pytest", "-q", "-x", "-m", "not gpu", "-p", "no:cacheprovider", *tests)
    return done.returncode, done.stdout[-2000:] + done.stderr[-500:]


def copy_project(root: Path) -> None:
    """Copy the project into the folder `root`, and check that Python imports the copy there."""
    for name in _COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, root / name)
    for module in ("qframe", "qframe_qwen"):
        found = python(root, "-c", f"import {module}; print({module}.__file__)").stdout.strip()
        if not Path(found).is_relative_to(root):
            raise SystemExit(f"{module} is imported from {found!r}, and not from the copy")


def main(arguments: Sequence[str] | None = None) -> int:
    """Plant the faults whose names contain one of the given texts, by default all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="only faults whose names contain one of these texts")
    names = parser.parse_args(arguments).names
    chosen = [one for one in MUTANTS if not names or any(name in one.name for name in names)]
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        copy_project(root)
        code, output = run_tests(root, sorted({test for one in chosen for test in one.tests}))
        if code != 0:
            tell(output)
            tell("the tests fail without a fault")
            return 1
        for one in chosen:
            started = time.monotonic()
            original = (root / one.file).read_text(encoding="utf-8")
            one.plant(root)
            code, output = run_tests(root, one.tests)
            (root / one.file).write_text(original, encoding="utf-8")
            seen = code == _FAILED
            survivors += not seen
            tell(f"{'seen' if seen else 'SURVIVED'}  {one.name}  ({time.monotonic() - started:.0f} s)")
            if not seen:
                tell(output)
    tell(f"{len(chosen) - survivors} of {len(chosen)} faults were seen")
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main())
