"""The parts of the rehearsal: the commands that a user would type, and what must be true of what they leave."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs
import tomli_w
from PIL import Image, ImageOps
from safetensors import safe_open
from safetensors.torch import load_file

from tests.full_size.stand_in import Depth, write_stand_in
from tests.full_size.streamed import CARD

PROMPT = "mirror the photograph from left to right"
IMPORTS = "imports alone"
"""The name of the part that only imports what all others import, so that its memory can be taken off theirs."""
SIDE = 256
"""Height and width in pixels of the pictures."""
BLOCK = 679_700_000
"""About the bytes of a block in bfloat16."""
LAYERS = 8
"""The attention layers of a block, each of which gets an adapter."""


@attrs.frozen
class Place:
    """The folder that a rehearsal works in, and how deep its model is.

    Attributes:
        folder: The folder, which exists.
        depth: The numbers of layers.
        streams: Whether the run computes on an imitated card, to which the weights are streamed from their files.
    """

    folder: Path
    depth: Depth
    streams: bool = False

    @property
    def model(self) -> Path:
        """The stand-in for the published model."""
        return self.folder / "model"

    @property
    def one_block(self) -> Path:
        """The stand-in of one block, for merging."""
        return self.folder / "one-block"

    @property
    def config(self) -> Path:
        """The configuration of the run."""
        return self.folder / "run.toml"

    @property
    def run(self) -> Path:
        """The folder of the run."""
        return self.folder / "run"

    @property
    def lora(self) -> Path:
        """The LoRA that the run trains."""
        return self.run / "lora.safetensors"


@attrs.frozen(kw_only=True)
class Part:
    """One part of the rehearsal, which runs in a process of its own.

    Attributes:
        name: What the part does.
        command: Returns the arguments of Python for the process.
        check: Returns what is wrong with what the process left, one line each. It gets the output of the process.
        stage: The stage of the forecast that the part is compared with: a device has one need for each stage.
    """

    name: str
    command: Callable[[Place], Sequence[str]]
    check: Callable[[Place, str], Sequence[str]] = lambda place, output: ()
    stage: str | None = None


def prepare(place: Place) -> None:
    """Write the model, two pairs of photographs, and the configuration."""
    write_stand_in(place.model, place.depth)
    write_stand_in(place.one_block, Depth.short(1))
    _write_photographs(place.folder / "data")
    config = {
        "family": "qwen-edit",
        "model": str(place.model),
        "output": str(place.run),
        "device": "cpu",
        "dtype": "bfloat16",
        "data": {"path": str(place.folder / "data")},
        "recipe": {"min_area": SIDE * SIDE, "max_area": SIDE * SIDE},
        "cache": {"dir": str(place.folder / "cache")},
        "train": {"max_steps": 1, "gradient_checkpointing": True, "checkpoint_every": 1},
        "sample": {"count": 0},
    }
    if place.streams:
        config |= {"device": CARD, "offload": "stream", "encoder": _STREAMED, "denoiser": _STREAMED}
        config["train"] |= {"offload_inputs": True}  # type: ignore[operator]
    place.config.write_text(tomli_w.dumps(config), encoding="utf-8")


_STREAMED = {"resident_blocks": 0}


def _write_photographs(folder: Path) -> None:
    from skimage import data

    folder.mkdir()
    for name in ("astronaut", "coffee"):
        photograph = Image.fromarray(getattr(data, name)()).resize((SIDE, SIDE))
        photograph.save(folder / f"{name}.png")
        ImageOps.mirror(photograph).save(folder / f"{name}_ref.png")
        (folder / f"{name}.txt").write_text(PROMPT, encoding="utf-8")


def streamed_parts() -> list[Part]:
    """Return the parts of a rehearsal that streams the weights, in the order in which they must run."""
    return [
        Part(name=IMPORTS, command=lambda place: _inside("imports", place)),
        Part(name="build the model", command=lambda place: _inside("build streamed", place, str(place.depth.blocks))),
        Part(name="cache of two pictures", command=lambda place: _qframe("cache", "build", place), check=_cache),
        Part(name="a LoRA step, save", command=lambda place: _qframe("train", place), check=_streamed_step),
        Part(name="a guided sampling step", command=_sample, check=_picture),
    ]


def parts(*, compare: bool) -> list[Part]:
    """Return the parts, in the order in which they must run; the last one, if `compare`, compares with diffusers."""
    found = [
        Part(name=IMPORTS, command=lambda place: _inside("imports", place)),
        Part(name="build the model", command=lambda place: _inside("build", place, str(place.depth.blocks))),
        Part(name="dry run", command=lambda place: _qframe("train", place, "--dry-run"), check=_dry_run),
        Part(name="load the denoiser", command=lambda place: _inside("load", place, "denoiser"), stage="denoiser"),
        Part(name="load the encoder", command=lambda place: _inside("load", place, "encoder"), stage="encoder"),
        Part(
            name="cache of two pictures",
            command=lambda place: _qframe("cache", "build", place),
            check=_cache,
            stage="encoding",
        ),
        Part(name="a LoRA step, save", command=lambda place: _qframe("train", place), check=_step, stage="training"),
        Part(
            name="resume, a step, save",
            command=lambda place: _qframe("train", place, "--resume", "--set", "train.max_steps=2"),
            check=_resume,
            stage="training",
        ),
        Part(name="a guided sampling step", command=_sample, check=_picture, stage="sampling"),
        Part(name="merge one block", command=lambda place: _inside("merge", place), check=_merged, stage="merge"),
    ]
    return [*found, *([Part(name="compare with diffusers", command=_verify, stage="sampling")] if compare else [])]


def _inside(what: str, place: Place, *arguments: str) -> tuple[str, ...]:
    return ("-m", "tests.full_size.inside", what, str(place.folder), *arguments)


def _qframe(*words: str | Place) -> tuple[str, ...]:
    given = [("--config", str(word.config)) if isinstance(word, Place) else (word,) for word in words]
    streams = any(isinstance(word, Place) and word.streams for word in words)
    return ("-m", "tests.full_size.streamed" if streams else "qframe", *(word for several in given for word in several))


def _sample(place: Place) -> tuple[str, ...]:
    return (
        *_qframe("sample", place),
        *("--image", str(place.folder / "data" / "coffee.png"), "--prompt", PROMPT, "--negative-prompt", "blurry"),
        *("--guidance", "4", "--steps", "1", "--size", f"{SIDE}x{SIDE}", "--lora", str(place.lora)),
        *("--output", str(place.folder / "sampled.png")),
    )


def _verify(place: Place) -> tuple[str, ...]:
    return (
        *_qframe("verify", place),
        *("--image", str(place.folder / "data" / "coffee.png"), "--prompt", PROMPT, "--negative-prompt", "blurry"),
        *("--steps", "2", "--size", f"{SIDE}x{SIDE}", "--batch", "1", "--dtype", "bfloat16", "--device", "cpu"),
    )


def _dry_run(place: Place, output: str) -> list[str]:
    counted = place.depth != Depth() or "denoiser  qwen-image, 20.43 B parameters" in output
    return [] if counted and "training on cpu" in output else ["the forecast does not show the published size"]


def _cache(place: Place, output: str) -> list[str]:
    return [] if "2 examples are ready" in output else ["there are no 2 examples"]


def _metrics(place: Place) -> list[dict[str, float]]:
    lines = (place.run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _step(place: Place, output: str) -> list[str]:
    """The step is finite, and every adapter of every block got a gradient, from the first block to the last."""
    (metrics,) = _metrics(place)
    wrong = [f"{name} is {metrics[name]}" for name in ("loss", "gradient_norm") if not _usual(metrics[name])]
    up = {name: tensor for name, tensor in load_file(place.lora).items() if ".lora_B." in name}
    if len(up) != LAYERS * place.depth.blocks:
        wrong.append(f"{len(up)} adapters were trained, not {LAYERS * place.depth.blocks}")
    # Nothing reads the text of the last block, so that three of its adapters get no gradient.
    still = [name for name, tensor in up.items() if not tensor.any() and not _reads_nothing(name, place)]
    if still or not all(bool(tensor.isfinite().all()) for tensor in up.values()):
        wrong.append(f"not changed by the step, or not finite: {', '.join(still[:3])} ({len(still)} in all)")
    return wrong


def _streamed_step(place: Place, output: str) -> list[str]:
    """The step is as it should be, and the blocks came to the card twice, but for those that slots still held."""
    copied = card_of(output).get("copied", 0)
    blocks = place.depth.blocks * BLOCK
    twice = 2 * (blocks - 2 * BLOCK) < copied < 2 * blocks + BLOCK
    return [*_step(place, output), *([] if twice else [f"{copied} bytes were copied to the card"])]


def card_of(output: str) -> dict[str, int]:
    """Return what a part that streams prints, bytes on the card ("card") and copied there ("copied"); else nothing."""
    lines = [line for line in output.splitlines() if line.startswith('{"card": ')]
    found: dict[str, int] = json.loads(lines[-1]) if lines else {}
    return found


def _reads_nothing(name: str, place: Place) -> bool:
    return f"transformer_blocks.{place.depth.blocks - 1}." in name and ("to_add_out" in name or "add_q_proj" in name)


def _resume(place: Place, output: str) -> list[str]:
    metrics = _metrics(place)
    sessions = [json.loads(line) for line in (place.run / "sessions.jsonl").read_text(encoding="utf-8").splitlines()]
    wrong = []
    if [line["step"] for line in metrics] != [1, 2] or not _usual(metrics[-1]["loss"]):
        wrong.append(f"the steps are {metrics}")
    if sessions[-1]["resumed_from"] != 1:
        wrong.append(f"the run went on from step {sessions[-1]['resumed_from']}")
    saved = sorted(path.name for path in (place.run / "checkpoints").iterdir())
    return [*wrong, *([] if "step-00000002" in saved else [f"the checkpoints are {saved}"])]


def _usual(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and value > 0


def _picture(place: Place, output: str) -> list[str]:
    with Image.open(place.folder / "sampled.png") as picture:
        varied = any(low != high for low, high in picture.convert("RGB").getextrema())  # type: ignore[misc]
        return [] if picture.size == (SIDE, SIDE) and varied else [f"a picture of {picture.size}, varied: {varied}"]


def _merged(place: Place, output: str) -> list[str]:
    """The weights that adapters changed are changed, and all others are those of the model."""
    wrong = []
    (before,) = (place.one_block / "transformer").glob("*.safetensors")
    (after,) = (place.folder / "merged" / "transformer").glob("*.safetensors")
    changed = []
    with safe_open(before, framework="pt") as one, safe_open(after, framework="pt") as other:
        for name in one.keys():  # noqa: SIM118 - not a mapping
            if not one.get_tensor(name).equal(other.get_tensor(name)):
                changed.append(name)
    if len(changed) != LAYERS:
        wrong.append(f"{len(changed)} weights changed: {', '.join(changed[:3])}")
    return wrong
