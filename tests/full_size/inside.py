"""What runs inside a process of the rehearsal, beside the commands of qframe.

python -m tests.full_size.inside WHAT FOLDER [ARGUMENT]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from tests.full_size.parts import Place, prepare
from tests.full_size.stand_in import Depth


def imports() -> None:
    """Import what a run imports."""
    import diffusers
    import peft
    import transformers

    import qframe.train.trainer

    names = [diffusers.QwenImageTransformer2DModel, transformers.Qwen2_5_VLForConditionalGeneration, peft.LoraConfig]
    click.echo(", ".join(name.__name__ for name in (*names, qframe.train.trainer.Trainer)))


def load(place: Place, role: str) -> None:
    """Load one component, as Python code would."""
    from qframe.compose import compose
    from qframe.config import load_config

    network = getattr(compose(load_config(place.config)).load(role), role).network
    click.echo(f"{sum(weight.numel() for weight in network.parameters()):,} parameters")


def merge(place: Place) -> int:
    """Merge the adapters of the first block into the stand-in of one block."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    from qframe.cli import main

    lora = place.folder / "first-block.safetensors"
    with safe_open(place.lora, framework="pt") as opened:
        names = [name for name in opened.keys() if "transformer_blocks.0." in name]  # noqa: SIM118 - not a mapping
        save_file({name: opened.get_tensor(name) for name in names}, lora, metadata=opened.metadata())
    target = place.folder / "merged"
    arguments = ("--family", "qwen-edit", "--model", str(place.one_block), "--lora", str(lora))
    return main(["lora", "merge", *arguments, "--output", str(target)])


def forecast(place: Place) -> None:
    """Print, as JSON by stage, the bytes that qframe forecasts: those of its own, and those that are mapped."""
    from qframe.cache.lengths import fitted_size
    from qframe.compose import compose
    from qframe.config import load_config
    from qframe.preflight import forecast_sampling, forecast_training
    from qframe.train.trainer import Trainer

    trainer = Trainer(load_config(place.config))
    stages = {}
    for found in (
        forecast_training(trainer.composition, trainer.inputs, fitted_size),
        forecast_sampling(trainer.composition),
    ):
        for needs in found.needs.values():
            for stage, parts in needs.items():
                mapped = sum(size for name, size in parts.items() if name in found.mapped)
                stages[stage] = {"own": sum(parts.values()) - mapped, "mapped": mapped}
    for role in ("encoder", "denoiser"):
        stages[role] = {"own": 0, "mapped": trainer.composition.weights(role)}
    one = compose(load_config(place.config, values={"model": str(place.one_block)})).outlines["denoiser"]
    changed = [part.weight.nbytes for name, part in one.network.named_modules() if name.endswith(_CHANGED)]
    # Merging copies the weights that it changes, and the pages of a mapping that it writes are no longer mapped.
    stages["merge"] = {"own": sum(changed), "mapped": sum(weight.nbytes for weight in one.network.parameters())}
    click.echo(json.dumps(stages))


_CHANGED = tuple(
    f"attn.{name}"
    for name in (
        *("to_q", "to_k", "to_v", "to_out.0"),
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    )
)


def run(what: str, folder: str, *arguments: str) -> int:
    """Do what the command line says."""
    place = Place(Path(folder), Depth())
    match what:
        case "imports":
            imports()
        case "build":
            prepare(Place(Path(folder), Depth.short(int(arguments[0]))))
        case "build streamed":
            prepare(Place(Path(folder), Depth.short(int(arguments[0])), streams=True))
        case "load":
            load(place, *arguments)
        case "merge":
            return merge(place)
        case "forecast":
            forecast(place)
        case _:
            raise ValueError(what)
    return 0


if __name__ == "__main__":
    sys.exit(run(*sys.argv[1:]))
