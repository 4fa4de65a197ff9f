"""Runs that start from a LoRA or keep one frozen, LoRAs that are kept on the way, and how a user names them."""
# ruff: noqa: F811 (fixtures of a neighbouring module are imported, and named as arguments)

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
import torch
from safetensors.torch import load_file, save_file

import qframe
from qframe.adapters import describe_lora, lora_layers, read_lora, save_lora
from qframe.config import dump_config
from qframe.config.schema import Config
from qframe.errors import ConfigError, ResourceError, WeightsError
from qframe.files.lora_file import best_file, find_lora, kept_file
from qframe.train.kept import best_loss, keep_best, set_aside_newer
from qframe.train.room import saved_bytes
from qframe.train.session import Session
from qframe.train.signals import Stopped
from qframe.train.state import checkpoint_folder
from qframe.train.trainer import Trainer
from tests.train.test_trainer import config, model, same, weights  # noqa: F401 (fixtures)

QUIET = ("data.options.validation=0", "sample.count=0")
VALIDATED = ("sample.count=0", "validation.every=1", "validation.count=1")


@pytest.fixture(scope="module")
def first(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step, whose checkpoint and result have rank 3 and alpha 5."""
    folder = tmp_path_factory.mktemp("first") / "run"
    values = {"model": str(model), "output": str(folder), "device": "cpu"}
    settings = [*QUIET, "train.max_steps=1", "lora.rank=3", "lora.alpha=5.0", "data.options.count=5"]
    more = ["train.learning_rate=0.05", "train.ema_decay=0.5"]
    made = qframe.load_config(family="qwen-edit", values=values, overrides=[*settings, *more])
    return Trainer(made).fit().folder


def from_lora(file: Path | str, *settings: str) -> Callable[[Callable[..., Config], str], Config]:
    """A configuration that starts from a LoRA: neither rank nor alpha is given."""

    def make(config: Callable[..., Config], output: str) -> Config:
        made = config(output, *QUIET, *settings)
        return attrs.evolve(made, lora=attrs.evolve(made.lora, rank=None, alpha=None, targets=None, init=str(file)))

    return make


def test_a_run_starts_from_the_weights_of_a_lora_and_goes_on_bit_for_bit(
    config: Callable[..., Config], first: Path, tmp_path: Path
) -> None:
    make = from_lora(first / "lora.safetensors")
    trainer = Trainer(make(config, "run"))
    trainer.prepare()
    found, wanted = lora_layers(trainer.denoiser.module), read_lora(first / "lora.safetensors")
    assert all(found[name].equals(layer) for name, layer in wanted.items())
    assert found.keys() == wanted.keys()
    Trainer(make(config, "run")).fit()
    stored = describe_lora(tmp_path / "run" / "lora.safetensors")
    assert {(layer.rank, layer.alpha) for layer in stored.layers} == {(3, 5.0)}
    Trainer(attrs.evolve(make(config, "two"), train=attrs.evolve(make(config, "two").train, max_steps=2))).fit()
    Trainer(make(config, "two")).fit("latest")
    assert same(weights(tmp_path / "run"), weights(tmp_path / "two"))


def test_the_command_line_takes_rank_and_alpha_from_the_file(model: Path, first: Path) -> None:
    """Also where the family or the model has a default of its own, as the embedded model has for the rank."""
    init = f"lora.init={json.dumps(str(first / 'lora.safetensors'))}"
    made = qframe.load_config(family="qwen-edit", overrides=[init])
    assert (made.lora.rank, made.lora.alpha, made.lora.targets) == (None, None, None)
    assert qframe.load_config(family="qwen-edit", overrides=[init, "lora.rank=8"]).lora.rank == 8
    plain = qframe.load_config(family="qwen-edit")
    assert (plain.lora.rank, plain.lora.targets) == (16, ("attention+mlp",))


def test_a_stored_configuration_with_a_start_reads_as_it_was(
    config: Callable[..., Config], first: Path, tmp_path: Path
) -> None:
    made = from_lora(first / "lora.safetensors")(config, "run")
    (tmp_path / "run.toml").write_text(dump_config(made))
    assert qframe.load_config(tmp_path / "run.toml") == made


def test_another_rank_than_that_of_the_file_is_refused_before_any_work(
    config: Callable[..., Config], first: Path
) -> None:
    made = from_lora(first / "lora.safetensors")(config, "run")
    with pytest.raises(ConfigError, match=r"lora.init starts from this LoRA, but lora.rank is 8, and the file has 3"):
        Trainer(attrs.evolve(made, lora=attrs.evolve(made.lora, rank=8))).fit()


def test_resume_compares_what_is_in_the_files_and_not_where_they_lie(
    config: Callable[..., Config], first: Path, tmp_path: Path
) -> None:
    copied = Path(shutil.copy(first / "lora.safetensors", tmp_path / "a.safetensors"))
    half = [f'lora.frozen=["{copied}:0.5"]', "train.max_steps=2"]
    Trainer(from_lora(copied, *half)(config, "run")).fit()
    other = Path(shutil.move(copied, tmp_path / "b.safetensors"))
    moved = [f'lora.frozen=["{other}:0.5"]', "train.max_steps=3"]
    assert Trainer(from_lora(other, *moved)(config, "run")).fit("latest")
    scaled = [f'lora.frozen=["{other}:0.4"]', "train.max_steps=4"]
    with pytest.raises(WeightsError, match=r"scale of frozen 1 was 0\.5, is 0\.4"):
        Trainer(from_lora(other, *scaled)(config, "run")).fit("latest")
    layers = read_lora(other)
    name = next(iter(layers))
    save_lora(other, {**layers, name: attrs.evolve(layers[name], up=layers[name].up + 1)})
    with pytest.raises(WeightsError, match="lora: init was "):
        Trainer(from_lora(other, *moved)(config, "run")).fit("latest")


def test_a_frozen_lora_is_in_training_and_samples_and_not_in_the_result(
    config: Callable[..., Config], first: Path, tmp_path: Path
) -> None:
    """The first loss is that of a run whose model has the LoRA merged in; the result is the trained LoRA alone."""
    frozen = f'lora.frozen=["{first}:0.5"]'
    trainer = Trainer(config("run", *QUIET, frozen, "train.max_steps=1", "train.precision=float32"))
    trainer.fit()
    plain = Trainer(config("plain", *QUIET, "train.max_steps=1", "train.precision=float32"))
    plain.load_lora(first, 0.5)
    plain.merge_lora()
    plain.fit()
    losses = [
        json.loads((tmp_path / run / "metrics.jsonl").read_text().splitlines()[0])["loss"] for run in ("run", "plain")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert {layer.rank for layer in describe_lora(tmp_path / "run" / "lora.safetensors").layers} == {4}
    assert (
        lora_layers(trainer.denoiser.module, adapter="frozen_0").keys() == read_lora(first / "lora.safetensors").keys()
    )
    assert all(
        "frozen" not in name for name in load_file(checkpoint_folder(tmp_path / "run", 1) / "weights.safetensors")
    )


@pytest.mark.parametrize("key", ["init", "frozen"])
def test_a_full_fine_tuning_trains_on_no_lora(config: Callable[..., Config], first: Path, key: str) -> None:
    value = json.dumps(str(first)) if key == "init" else json.dumps([str(first)])
    with pytest.raises(ConfigError, match=rf"lora\.{key}: train.mode = 'full' trains the weights"):
        Trainer(config("run", *QUIET, "train.mode=full", f"lora.{key}={value}"))


@pytest.mark.parametrize("setting", ["lora.init=''", "lora.frozen=['']"])
def test_an_empty_file_name_is_refused(config: Callable[..., Config], setting: str) -> None:
    with pytest.raises(ConfigError, match="expected a name or a path, got an empty text"):
        config("run", setting)


def test_frozen_loras_are_counted_in_the_forecast(config: Callable[..., Config], first: Path) -> None:
    stored = describe_lora(first / "lora.safetensors")
    size = sum(4 * layer.rank * sum(layer.features) for layer in stored.layers)
    with_one, without = (
        Trainer(config("run", *QUIET, *more)).outlook.forecast().needs[torch.device("cpu")]["training"]
        for more in ([f'lora.frozen=["{first}"]'], [])
    )
    assert sum(with_one.values()) - sum(without.values()) == size


def test_a_checkpoint_is_a_lora_by_its_averaged_weights_and_its_alpha(first: Path, tmp_path: Path) -> None:
    """What `--lora` reads of it is the result, which the run wrote at the same step."""
    result = read_lora(first / "lora.safetensors")
    for path in (checkpoint_folder(first, 1), f"{first}@1", f"{first}@00000001", f"{first}@latest"):
        file = find_lora(Path(path))
        assert file == checkpoint_folder(first, 1) / "average.safetensors"
        found = read_lora(file)
        assert found.keys() == result.keys()
        assert all(found[name].equals(layer) for name, layer in result.items())


def test_a_checkpoint_of_an_earlier_version_has_its_alpha_in_the_configuration(first: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint_folder(first, 1), tmp_path / "old"))
    about = json.loads((folder / "state.json").read_text())
    del about["adapter"]
    (folder / "state.json").write_text(json.dumps(about))
    assert {layer.alpha for layer in describe_lora(folder / "weights.safetensors").layers} == {5.0}


def test_a_damaged_checkpoint_is_no_lora(first: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint_folder(first, 1), tmp_path / "damaged"))
    data = bytearray((folder / "average.safetensors").read_bytes())
    data[-3] ^= 1
    (folder / "average.safetensors").write_bytes(data)
    with pytest.raises(WeightsError, match=r"the checkpoint is damaged.*content differs"):
        find_lora(folder)


def test_a_checkpoint_of_all_weights_is_no_lora(tmp_path: Path, first: Path) -> None:
    folder = Path(shutil.copytree(checkpoint_folder(first, 1), tmp_path / "full"))
    about = {
        name: value for name, value in json.loads((folder / "state.json").read_text()).items() if name != "adapter"
    }
    (folder / "state.json").write_text(json.dumps(about))
    (folder / "config.toml").write_text('[train]\nmode = "full"\n')
    with pytest.raises(WeightsError, match="the run trains all weights, and no LoRA"):
        read_lora(folder / "weights.safetensors")


@pytest.mark.parametrize(
    ("moment", "told"),
    [
        ("7", "What there is: {run}@1."),
        ("best", "A run keeps it with train.keep_best=true and validation.every. What there is: {run}@1."),
        ("x", "Give a step, best or latest."),
    ],
)
def test_a_moment_that_is_not_there_is_told_with_those_that_are(first: Path, moment: str, told: str) -> None:
    with pytest.raises(WeightsError, match="the run has no such LoRA") as caught:
        find_lora(Path(f"{first}@{moment}"))
    assert told.format(run=first) in str(caught.value.hint)


def test_a_run_keeps_loras_of_steps_and_the_best_one(config: Callable[..., Config], tmp_path: Path) -> None:
    """What is kept of a step is what a run that ends there writes; none is deleted with the checkpoints."""
    keeping = ("train.keep_every=1", "train.keep_best=true", "train.keep_checkpoints=1", "train.ema_decay=0.5")
    run = Trainer(config("run", *VALIDATED, *keeping, "train.max_steps=3")).fit().folder
    assert sorted(file.name for file in (run / "kept").iterdir()) == [
        "best.safetensors",
        *(f"step-0000000{step}.safetensors" for step in (1, 2, 3)),
    ]
    assert [folder.name for folder in (run / "checkpoints").iterdir()] == ["step-00000003"]
    assert same(load_file(kept_file(run, 3)), weights(run))
    short = Trainer(config("short", *VALIDATED, "train.max_steps=2", "train.ema_decay=0.5")).fit().folder
    assert same(load_file(find_lora(Path(f"{run}@2"))), weights(short))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["val_loss"] for line in lines if line.get("val_loss") is not None and line["step"]}
    best = min(losses, key=lambda step: losses[step])
    about = describe_lora(find_lora(Path(f"{run}@best"))).metadata
    assert (about["qframe_step"], float(about["qframe_val_loss"])) == (str(best), losses[best])
    assert same(load_file(best_file(run)), load_file(kept_file(run, best)))


def test_the_best_is_replaced_by_a_smaller_loss_alone(config: Callable[..., Config], tmp_path: Path) -> None:
    trainer = Trainer(config("run", *QUIET))
    trainer.prepare()
    kept = [keep_best(trainer, tmp_path, step, loss) for step, loss in enumerate((0.5, 0.5, float("nan"), 0.4, 0.6), 1)]
    assert kept == [True, False, False, True, False]
    assert best_loss(tmp_path) == 0.4
    best_file(tmp_path).write_bytes(b"cut short")
    assert keep_best(trainer, tmp_path, 6, 0.9), "a file that cannot be read is replaced"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["train.keep_best=true"], "the validation loss decides what is best, and none is computed"),
        (["train.mode=full", "train.keep_every=1"], "train.keep_every: only LoRAs are kept"),
    ],
)
def test_what_cannot_be_kept_is_refused(config: Callable[..., Config], settings: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Trainer(config("run", *QUIET, *settings))


def test_room_for_kept_loras_is_asked_for_at_the_start(
    config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(config("run", *VALIDATED, "train.keep_every=2", "train.keep_best=true", "train.max_steps=9"))
    checkpoint, result = saved_bytes(trainer.composition) or (0, 0)
    asked: list[tuple[int, str]] = []

    def refuse(folder: Path, size: int, *, what: str = "") -> None:
        asked.append((size, what))
        raise ResourceError("full", "")

    monkeypatch.setattr("qframe.train.room.require_space", refuse)
    with pytest.raises(ResourceError):
        trainer.fit()
    assert asked == [(checkpoint + 6 * result, "one checkpoint, the result and 5 kept LoRAs")]


def test_with_other_settings_what_is_newer_is_set_aside(config: Callable[..., Config], tmp_path: Path) -> None:
    """Without that, the checkpoint of step 4 would stay that of the settings before, and so would `RUN@4`."""
    keeping = (*QUIET, "train.keep_every=4")
    Trainer(config("run", *keeping)).fit()
    before = load_file(kept_file(tmp_path / "run", 4))
    changed = config("run", *keeping, "train.learning_rate=0.01")
    Trainer(changed).fit("step-00000002", change=["train.learning_rate"])
    folder = tmp_path / "run"
    assert not same(load_file(kept_file(folder, 4)), before)
    file = checkpoint_folder(folder, 4) / "weights.safetensors"
    found, result = read_lora(file), read_lora(folder / "lora.safetensors")
    assert all(found[name].equals(layer) for name, layer in result.items())
    assert len(list((folder / "checkpoints").glob("aside-*-step-00000004"))) == 1
    (old,) = (folder / "kept").glob("aside-*-step-00000004.safetensors")
    assert same(load_file(old), before)


def test_the_best_of_a_later_step_is_set_aside_too(tmp_path: Path) -> None:
    best = best_file(tmp_path)
    best.parent.mkdir()
    tensors = {"a.lora_A.weight": torch.ones(1, 2), "a.lora_B.weight": torch.ones(2, 1)}
    save_file(tensors, best, {"qframe_step": "5", "qframe_val_loss": "0.5"})
    assert set_aside_newer(tmp_path, 5) == []
    (moved,) = set_aside_newer(tmp_path, 4)
    assert (best.exists(), moved.exists()) == (False, True)


def test_the_last_line_of_a_stopped_run_can_be_pasted(
    config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(session: Session, resume: str | None) -> None:
        session.status.begin()
        raise Stopped(15, "stopped at step 3; everything is saved", "Continue with --resume.")

    monkeypatch.setattr(Session, "fit", stop)
    with pytest.raises(Stopped) as caught:
        Trainer(config("my run", *QUIET)).fit()
    folder = tmp_path / "my run"
    last = str(caught.value).splitlines()[-1]
    assert shlex.split(last) == [
        *("qframe", "train", "--config", str(folder / "config.toml"), "--output", str(folder), "--resume"),
    ]
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["error"]) == ("stopped", "stopped at step 3; everything is saved")
