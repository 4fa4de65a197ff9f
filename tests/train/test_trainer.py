"""The whole trainer on a tiny random model: stages, run folders, resume, results other programs read."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import attrs
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import qframe
from qframe.adapters import describe_lora
from qframe.config.schema import Config
from qframe.data.options import FolderOptions
from qframe.errors import ConfigError, DataError, WeightsError
from qframe.plugins.registry import load_registry
from qframe.train.resume import run_folder
from qframe.train.run import Run
from qframe.train.signals import Stopped
from qframe.train.trainer import Trainer
from tests.qwen import tiny

STEPS = 4
PROMPT = "put a dot on the circle"


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that takes 64 x 64 pictures as they are."""
    model = tiny.tiny_qwen_model(tmp_path_factory.mktemp("tiny-trainer"))
    sizes = {"recipe": {"min_area": 48 * 48, "max_area": 96 * 96, "multiple": 16, "side": 64}}
    (model.folder / "qframe.json").write_text(json.dumps(sizes))
    return model.folder


@pytest.fixture
def config(model: Path, tmp_path: Path) -> Callable[..., Config]:
    def make(output: str = "run", *overrides: str) -> Config:
        settings = [
            f"train.max_steps={STEPS}",
            "train.batch_size=2",
            "train.learning_rate=0.05",
            "train.checkpoint_every=2",
            "train.caption_dropout=0.2",
            "lora.rank=4",
            "lora.alpha=10.0",
            "data.options.count=5",
            "data.options.validation=2",
            "sample.num_inference_steps=2",
            "sample.batch_size=2",
            "device=cpu",
        ]
        values = {"model": str(model), "output": str(tmp_path / output)}
        return qframe.load_config(family="qwen-edit", values=values, overrides=[*settings, *overrides])

    return make


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "lora.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_leaves_weights_pictures_metrics_and_its_configuration(
    config: Callable[..., Config], tmp_path: Path
) -> None:
    result = Trainer(config()).fit()
    run = tmp_path / "run"
    assert result.folder == run
    assert result.weights == run / "lora.safetensors"
    assert any(tensor.abs().max() > 0 for name, tensor in weights(run).items() if "lora_B" in name)
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics] == [1, 2, 3, 4]
    assert all(line["loss"] > 0 for line in metrics)
    for moment in ("before", "after"):
        assert len(list((run / "samples" / moment).glob("*.png"))) == 2
    with Image.open(run / "samples" / "sheet.png") as sheet:
        assert min(sheet.size) > 128
    rows = json.loads((run / "samples" / "records.json").read_text())
    assert [row["name"] for row in rows] == sorted(file.stem for file in (run / "samples" / "after").glob("*.png"))
    for file in (name for row in rows for name in (*row["references"], row["target"])):
        with Image.open(run / "samples" / file) as picture:
            assert picture.size == (64, 64)
    (session,) = map(json.loads, (run / "sessions.jsonl").read_text().splitlines())
    assert (session["resumed_from"], session["data"]["records"]) == (None, 5)
    assert session["weights_licence"] == "Apache-2.0"
    assert qframe.load_config(run / "config.toml") == config()


def test_one_seed_gives_one_result_and_another_gives_another(config: Callable[..., Config], tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        Trainer(config(name, f"train.seed={seed}", "data.options.validation=0", "sample.count=0")).fit()
    assert same(weights(tmp_path / "one"), weights(tmp_path / "again"))
    assert not same(weights(tmp_path / "one"), weights(tmp_path / "other"))


def test_gradient_checkpointing_changes_no_bit(config: Callable[..., Config], tmp_path: Path) -> None:
    for name, switch in (("plain", "false"), ("checkpointed", "true")):
        switches = (f"train.gradient_checkpointing={switch}", "lora.dropout=0.1")
        Trainer(config(name, "data.options.validation=0", "sample.count=0", *switches)).fit()
    assert same(weights(tmp_path / "plain"), weights(tmp_path / "checkpointed"))


def test_cached_and_live_training_agree(config: Callable[..., Config], tmp_path: Path) -> None:
    for name, *more in (("cached", "cache.batch_size=1"), ("live", "cache.enabled=false")):
        Trainer(config(name, "train.precision=float32", "data.options.validation=0", "sample.count=0", *more)).fit()
    cached, live = weights(tmp_path / "cached"), weights(tmp_path / "live")
    assert cached.keys() == live.keys()
    for name, tensor in cached.items():
        torch.testing.assert_close(tensor, live[name], rtol=1e-4, atol=1e-5)


def test_an_interrupted_run_resumes_bit_identical(config: Callable[..., Config], tmp_path: Path) -> None:
    Trainer(config("whole")).fit()

    class Interrupt:
        @qframe.hookimpl
        def qframe_step_end(self, run: Run, step: int) -> None:
            if step == 3:
                signal.raise_signal(signal.SIGINT)

    plugins = load_registry()._manager
    observer = Interrupt()
    plugins.register(observer)
    try:
        with pytest.raises(Stopped, match="stopped at step 3") as caught:
            Trainer(config("broken")).fit()
    finally:
        plugins.unregister(observer)
    assert caught.value.exit_code == 130
    assert not (tmp_path / "broken" / "lora.safetensors").exists()
    result = Trainer(config("broken")).fit(resume="latest")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "broken"))
    assert len(result.before) == len(result.after)
    lines = [json.loads(line)["step"] for line in (tmp_path / "broken" / "metrics.jsonl").read_text().splitlines()]
    assert lines == [1, 2, 3, 4]


def test_dora_and_rslora_train_and_resume_bit_identical(config: Callable[..., Config], tmp_path: Path) -> None:
    quiet = ("data.options.validation=0", "sample.count=0", "train.ema_decay=0.5")
    kind = ("lora.dora=true", "lora.rslora=true", "lora.dropout=0.1")
    Trainer(config("run", *quiet, *kind, "train.max_steps=2")).fit()
    Trainer(config("run", *quiet, *kind)).fit(resume="latest")
    Trainer(config("whole", *quiet, *kind)).fit()
    found = weights(tmp_path / "whole")
    assert same(weights(tmp_path / "run"), found)
    first, last = (
        load_file(tmp_path / "whole" / "checkpoints" / f"step-{step:08d}" / "weights.safetensors") for step in (2, 4)
    )
    magnitudes = [name for name in first if "lora_magnitude_vector" in name]
    assert len(magnitudes) == sum("lora_magnitude_vector" in name for name in found) > 0
    assert any(not torch.equal(first[name], last[name]) for name in magnitudes)
    assert {layer.scale for layer in describe_lora(tmp_path / "whole" / "lora.safetensors").layers} == {10.0 / 2}


def test_a_full_fine_tuning_writes_a_denoiser_that_loads(config: Callable[..., Config], model: Path) -> None:
    result = Trainer(config("full", "train.mode=full", "train.ema_decay=0.5", "train.learning_rate=0.001")).fit()
    pipe = qframe.load("qwen-edit", model=model, overrides=[f"denoiser.model={result.weights}"])
    trained = pipe.parts.denoiser.module.state_dict()
    start = qframe.load("qwen-edit", model=model).parts.denoiser.module.state_dict()
    assert trained.keys() == start.keys()
    assert any(not torch.equal(trained[name], start[name]) for name in start)


def test_a_full_fine_tuning_may_be_saved_in_bfloat16_and_stays_exact(
    config: Callable[..., Config], tmp_path: Path
) -> None:
    quiet = ("train.mode=full", "train.learning_rate=0.001", "data.options.validation=0", "sample.count=0")
    found = {}
    for dtype in ("float32", "bfloat16"):
        trainer = Trainer(config(dtype, *quiet, f"train.save_dtype={dtype}"))
        weights = next((trainer.fit().weights / "transformer").glob("*.safetensors"))
        last = tmp_path / dtype / "checkpoints" / f"step-{STEPS:08d}"
        found[dtype] = load_file(weights), load_file(last / "weights.safetensors")
        assert trainer.state is not None
        assert same(found[dtype][1], {name: p.detach() for name, p in trainer.state.parameters.items()})
    (exact, checkpoint), (rounded, other) = found["float32"], found["bfloat16"]
    assert same(checkpoint, other)
    assert {tensor.dtype for tensor in checkpoint.values()} == {torch.float32}
    assert same(rounded, {name: tensor.bfloat16() for name, tensor in exact.items()})


def test_prediction_from_the_trainer_equals_the_pipeline_with_its_lora(
    config: Callable[..., Config], model: Path, tmp_path: Path
) -> None:
    trainer = Trainer(config("run", "train.precision=float32"))  # as the pipeline on a CPU computes
    trainer.fit()
    request = {"prompt": PROMPT, "image": tiny.picture(3, 64, 64), "num_inference_steps": 2, "seed": 1}
    own = trainer.predict(**request, output_type="pt").images
    plain = qframe.load("qwen-edit", model=model)(**request, output_type="pt").images
    loaded = qframe.load("qwen-edit", model=model, lora=tmp_path / "run" / "lora.safetensors")
    torch.testing.assert_close(own, loaded(**request, output_type="pt").images, rtol=1e-4, atol=1e-5)
    assert (own - plain).abs().max() > 1e-3

    trainer.merge_lora()
    assert trainer.global_step == STEPS
    torch.testing.assert_close(own, trainer.predict(**request, output_type="pt").images, rtol=1e-3, atol=1e-4)


def test_prediction_is_guided_as_the_configuration_says(config: Callable[..., Config], model: Path) -> None:
    settings = ("train.precision=float32", "sample.num_inference_steps=2", "sample.true_cfg_scale=3.0")
    trainer = Trainer(config("run", *settings))  # as the pipeline on a CPU computes
    request = {"prompt": PROMPT, "image": tiny.picture(3, 64, 64), "seed": 1, "output_type": "pt"}
    guided = trainer.predict(**request, negative_prompt="a dog").images
    pipe = qframe.load("qwen-edit", model=model)
    steps = {"num_inference_steps": 2}
    assert torch.equal(guided, pipe(**request, **steps, true_cfg_scale=3.0, negative_prompt="a dog").images)
    assert not torch.equal(guided, trainer.predict(**request).images)
    told = trainer.predict(**request, true_cfg_scale=1.5, negative_prompt="a dog").images
    assert torch.equal(told, pipe(**request, **steps, true_cfg_scale=1.5, negative_prompt="a dog").images)


def test_what_the_parts_cannot_do_is_refused_before_anything_is_loaded(
    config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Trainer(config("plain", "train.gradient_checkpointing=true"))
    monkeypatch.setattr("qframe.train.checks.adapters.outlined", lambda composition: SimpleNamespace(module=object()))
    with pytest.raises(ConfigError, match=r"train\.gradient_checkpointing: this denoiser does not support it"):
        plain.fit()
    monkeypatch.undo()
    dropping = Trainer(config("dropping"))
    inputs = dropping.composition.recipe.inputs
    silent = lambda record: attrs.evolve(inputs(record), unconditional=None)  # noqa: E731
    monkeypatch.setattr(dropping.composition.recipe, "inputs", silent)
    with pytest.raises(ConfigError, match=r"train\.caption_dropout: the recipe of qwen-edit encodes no empty prompt"):
        dropping.fit()


def test_the_lora_gives_the_same_picture_in_the_diffusers_pipeline(
    config: Callable[..., Config], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit as upstream_module

    from qframe.files.model_folder import ModelFolder

    Trainer(config("run", "sample.count=0", "data.options.validation=0")).fit()
    file = tmp_path / "run" / "lora.safetensors"  # rank 4, alpha 10
    picture = tiny.picture(5, 64, 64)
    overrides = ["encoder.options.positions=upstream"]
    request = {"prompt": PROMPT, "image": picture, "num_inference_steps": 2, "output_type": "pt"}
    seeded = {"generator": torch.Generator().manual_seed(0)}
    ours = qframe.load("qwen-edit", model=model, lora=file, overrides=overrides)(**request, **seeded).images
    plain = qframe.load("qwen-edit", model=model, overrides=overrides)(
        **request, generator=torch.Generator().manual_seed(0)
    ).images

    monkeypatch.setattr(upstream_module, "calculate_dimensions", lambda area, ratio: (64, 64, None))
    pipeline = tiny.upstream_edit(ModelFolder.open(model))
    pipeline.load_lora_weights(str(file))
    theirs = pipeline(**request, true_cfg_scale=1.0, generator=torch.Generator().manual_seed(0)).images
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert (ours - plain).abs().max() > 1e-3


def test_nothing_is_overwritten_and_runs_are_numbered(
    config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    with pytest.raises(WeightsError, match=r"taken: this folder is not empty"):
        Trainer(config("taken")).fit()
    (tmp_path / "finished" / "checkpoints" / "step-00000001").mkdir(parents=True)
    (tmp_path / "finished" / "config.toml").touch()
    with pytest.raises(WeightsError, match=r"finished: this folder is not empty"):
        Trainer(config("finished")).fit()
    monkeypatch.chdir(tmp_path)
    unnamed = qframe.load_config(family="qwen-edit")
    assert run_folder(unnamed, None) == Path("runs/qwen-edit")
    begun = tmp_path / "runs" / "qwen-edit"
    begun.mkdir(parents=True)
    for name in ("config.toml", "sessions.jsonl", "report.html"):  # of a run that made no checkpoint
        (begun / name).touch()
    own = attrs.evolve(unnamed, output=str(begun))
    assert run_folder(own, None) == begun
    for name in ("qwen-edit-2", "qwen-edit-plus", "qwen-edit-11"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    assert run_folder(unnamed, None) == Path("runs/qwen-edit-12")
    assert run_folder(unnamed, "latest") == Path("runs/qwen-edit-11")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.batch_size=3", "train.batch_size: was 2, is 3"),
        ("train.batching=fixed", "train.batching: was 'bucketed', is 'fixed'"),
        ("train.tokens_per_batch=900", "train.tokens_per_batch: was None, is 900"),
        ("train.seed=7", "train.seed: was 0, is 7"),
        ("lora.rank=8", "lora.rank: was 4, is 8"),
        ("data.options.count=6", "data.options.count"),
        ("encoder.options.positions=upstream", "encoder.options.positions"),
    ],
)
def test_resuming_with_another_run_in_mind_is_refused(
    config: Callable[..., Config], override: str, message: str
) -> None:
    quiet = ("data.options.validation=0", "sample.count=0", "train.max_steps=2")
    Trainer(config("run", *quiet)).fit()
    with pytest.raises(WeightsError, match=message):
        Trainer(config("run", *quiet, override)).fit(resume="latest")


def test_more_steps_may_be_asked_for_when_resuming(config: Callable[..., Config], tmp_path: Path) -> None:
    quiet = ("data.options.validation=0", "sample.count=0")
    Trainer(config("run", *quiet, "train.max_steps=2")).fit()
    Trainer(config("run", *quiet)).fit(resume="latest")
    Trainer(config("whole", *quiet)).fit()
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))
    with pytest.raises(WeightsError):
        Trainer(config("run", *quiet, "train.seed=9")).fit(resume="latest")
    assert qframe.load_config(tmp_path / "run" / "config.toml") == config("run", *quiet)


def test_a_run_by_epochs_ends_with_its_last_epoch(config: Callable[..., Config], tmp_path: Path) -> None:
    quiet = ("data.options.validation=0", "sample.count=0", "train.gradient_accumulation=2", "train.lr_schedule=linear")
    Trainer(config("run", *quiet, "train.epochs=2")).fit()  # 5 examples, 2 in a batch: 3 batches, and so 2 steps
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["samples"] for line in lines] == [4, 2, 4, 2]
    assert [line["learning_rate"] for line in lines] == pytest.approx([0.05, 0.0375, 0.025, 0.0125])
    with pytest.raises(ConfigError, match=r"train\.epochs: a run of 2 steps, and step-00000004 is past it"):
        Trainer(config("run", *quiet, "train.epochs=1")).fit(resume="latest")
    with pytest.raises(WeightsError, match=r"train\.epochs: was 2, is None"):  # other batches make a step
        Trainer(config("run", *quiet)).fit(resume="latest")


def test_the_stored_configuration_names_its_folder_and_resumes(
    config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    quiet = ("data.options.validation=0", "sample.count=0")
    Trainer(attrs.evolve(config("", *quiet), output=None)).fit()
    (tmp_path / "runs" / "qwen-edit-2").mkdir()  # a later run, which --resume alone would mean
    stored = qframe.load_config("runs/qwen-edit/config.toml", overrides=[f"train.max_steps={STEPS + 1}"])
    assert Trainer(stored).fit(resume="latest").folder == Path("runs/qwen-edit")


def test_plugins_hear_at_the_start_that_a_run_resumes(config: Callable[..., Config]) -> None:
    quiet = ("data.options.validation=0", "sample.count=0")
    recorded: list[tuple[int | None, int]] = []

    class Listener:
        @qframe.hookimpl
        def qframe_run_start(self, run: Run) -> None:
            recorded.append((run.resumed_from, run.step))

    plugins = load_registry()._manager
    listener = Listener()
    plugins.register(listener)
    try:
        Trainer(config("run", *quiet)).fit()
        Trainer(config("run", *quiet, "train.max_steps=5")).fit(resume="latest")
    finally:
        plugins.unregister(listener)
    assert recorded == [(None, 0), (STEPS, STEPS)]


def test_resuming_reads_the_checkpoint_with_the_trainers_own_plugins(
    config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = config("run", "data.options.validation=0", "sample.count=0")
    Trainer(quiet).fit()
    registry = load_registry()

    def refuse() -> None:
        raise AssertionError("the installed plugins were asked, not the trainer's")

    monkeypatch.setattr("qframe.config.loading.load_registry", refuse)
    Trainer(quiet, registry=registry).fit(resume="latest")


def test_the_caches_folder_may_lie_in_the_home_folder(
    config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    Trainer(config("run", "cache.dir=~/examples")).cache()
    assert (tmp_path / "examples" / "index.sqlite").exists()


def test_what_stopped_before_its_first_checkpoint_is_told_how_to_start_again(config: Callable[..., Config]) -> None:
    """Its folder is not empty, so "leave --resume out" alone would be refused in turn."""
    with pytest.raises(ConfigError):
        Trainer(config("run", "lora.targets=['nothing']")).fit()
    with pytest.raises(WeightsError, match="remove the folder; then start without --resume"):
        Trainer(config()).fit(resume="latest")


def test_a_run_that_ended_before_its_first_checkpoint_can_begin_again(
    config: Callable[..., Config], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="matches no linear layer"):
        Trainer(config("run", "lora.targets=['attn.to_z']")).fit()
    assert (tmp_path / "run" / "config.toml").exists()
    Trainer(config("run")).fit()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == STEPS


def test_a_second_run_in_the_same_folder_is_refused(config: Callable[..., Config], tmp_path: Path) -> None:
    from qframe.files.storage import lock_folder

    with lock_folder(tmp_path / "run"), pytest.raises(WeightsError, match="another run is writing here"):
        Trainer(config()).fit()


def test_bad_input_is_named_before_any_work(config: Callable[..., Config], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere does not exist"):
        Trainer(qframe.load_config(family="qwen-edit", values={"model": config().model, "data": {"path": "nowhere"}}))
    with pytest.raises(ConfigError, match=r"lora\.targets: 'attn.to_z' matches no linear layer"):
        Trainer(config("run", "lora.targets=['attn.to_z']")).fit()
    assert not (tmp_path / "run" / "lora.safetensors").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["lora.targets=['attn.to_z']"], r"lora\.targets: 'attn.to_z' matches no linear layer"),
        (["lora.dora=true", "denoiser.quantise.use=quanto"], r"lora\.dora: the denoiser is quantised"),
    ],
)
def test_a_lora_that_cannot_be_is_refused_before_anything_is_loaded_or_encoded(
    config: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    overrides: list[str],
    message: str,
) -> None:
    trainer = Trainer(config("run", *overrides))
    monkeypatch.setattr(trainer, "load", lambda *roles: pytest.fail("a part was loaded"))
    with pytest.raises(ConfigError, match=message):
        trainer.fit()
    assert not (tmp_path / "cache").exists()


def test_sizes_that_the_model_cannot_take_are_refused_before_anything_is_encoded(
    config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(config("run", "recipe.multiple=8"))
    monkeypatch.setattr(trainer, "load", lambda *roles: pytest.fail("a part was loaded"))
    with pytest.raises(ConfigError, match=r"multiples of 8 pixels, codec and denoiser take multiples of 16"):
        trainer.cache()


def test_training_and_sampling_bring_pictures_to_the_same_areas(config: Callable[..., Config], tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, size in (("small", (56, 56)), ("large", (300, 150))):
        tiny.picture(0, *size).save(folder / f"{name}.png")
        tiny.picture(1, *size).save(folder / f"{name}_ref.png")
        (folder / f"{name}.txt").write_text(PROMPT)
    base = config("run", "recipe.areas=[4096, 18432]", "train.max_steps=1", "sample.count=0")
    data = attrs.evolve(base.data, use="folder", path=str(folder), options=FolderOptions())
    trainer = Trainer(attrs.evolve(base, data=data))
    examples = trainer.cache()
    sides = {trainer.records[index].id: examples.shape(index) for index in range(2)}
    assert sides == {"small": ((8, 8), ((8, 8),)), "large": ((12, 24), ((12, 24),))}
    image = Image.open(folder / "large_ref.png")
    sampled = trainer.predict(prompt=PROMPT, image=image, num_inference_steps=1).images[0]
    assert sampled.size == (24 * 8, 12 * 8)


def test_changed_pictures_are_seen_when_resuming(config: Callable[..., Config], tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(3):
        tiny.picture(index, 64, 64).save(folder / f"{index}.png")
        tiny.picture(index + 10, 64, 64).save(folder / f"{index}_ref.png")
        (folder / f"{index}.txt").write_text(PROMPT)

    def run(steps: int, enabled: bool, *, resume: str | None = None) -> None:
        values = {
            "model": config().model,
            "output": str(tmp_path / f"own-{enabled}"),
            "device": "cpu",
            "data": {"path": str(folder)},
            "cache": {"enabled": enabled},
            "sample": {"count": 0},
            "train": {"max_steps": steps},
        }
        Trainer(qframe.load_config(family="qwen-edit", values=values)).fit(resume)

    for enabled in (True, False):
        run(2, enabled)
        run(3, enabled, resume="latest")
        with pytest.raises(ConfigError, match="step-00000003 is past it"):
            run(2, enabled, resume="latest")
    tiny.picture(99, 64, 64).save(folder / "1_ref.png")
    for enabled in (True, False):
        with pytest.raises(WeightsError, match="the data set is not the one"):
            run(4, enabled, resume="latest")


def test_empty_prompts_are_encoded_only_where_captions_are_dropped(config: Callable[..., Config]) -> None:
    dropping = Trainer(config("a")).cache()
    assert dropping[0].unconditional is not None
    for setting in ("cache.enabled=true", "cache.enabled=false"):
        plain = Trainer(config("b", "train.caption_dropout=0.0", setting)).cache()
        assert plain[0].unconditional is None
        assert torch.equal(plain[0].conditioning.embeds, dropping[0].conditioning.embeds)


@pytest.mark.slow
def test_a_run_killed_at_any_moment_resumes_bit_identical(model: Path, tmp_path: Path) -> None:
    """SIGKILL from outside, several times, a resume after each: the weights are those of a run left in peace."""
    base = [sys.executable, "-m", "qframe", "train", "--family", "qwen-edit", "--model", str(model)]
    for setting in (
        "train.max_steps=18",
        "train.batch_size=2",
        "train.checkpoint_every=1",
        "train.learning_rate=0.01",
        "train.ema_decay=0.9",
        "train.gradient_accumulation=2",
        "data.options.count=5",
        "data.options.validation=0",
        "sample.count=0",
        "device=cpu",
    ):
        base += ["--set", setting]
    subprocess.run([*base, "--output", str(tmp_path / "whole")], check=True, capture_output=True)
    broken = [*base, "--output", str(tmp_path / "broken")]
    checkpoints = tmp_path / "broken" / "checkpoints"
    for kill in range(3):
        resume = ["--resume"] if checkpoints.exists() and any(checkpoints.glob("step-*")) else []
        process = subprocess.Popen([*broken, *resume], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        wanted = 5 * (kill + 1)
        while process.poll() is None and time.monotonic() < deadline:
            steps = [int(p.name.removeprefix("step-")) for p in checkpoints.glob("step-????????")]
            if steps and max(steps) >= wanted:
                time.sleep(0.003 * kill)  # into the middle of the next step or save
                break
            time.sleep(0.001)
        process.kill()
        process.wait()
    subprocess.run([*broken, "--resume"], check=True, capture_output=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "broken"))


@pytest.mark.parametrize("enabled", ["true", "false"])
def test_resuming_on_another_base_is_refused_by_name(
    config: Callable[..., Config], tmp_path: Path, model: Path, enabled: str
) -> None:
    """The adapter of one network would go on to be trained on another."""
    copy = tmp_path / "base"
    shutil.copytree(model, copy)
    quiet = ("data.options.validation=0", "sample.count=0", f"cache.enabled={enabled}", f"model={copy}")
    Trainer(config("run", *quiet)).fit()
    more = (*quiet, f"train.max_steps={STEPS + 1}")
    for folder, role in (("transformer", "denoiser"), ("text_encoder", "encoder"), ("scheduler", "schedule")):
        file = next(path for path in (copy / folder).iterdir() if path.suffix in (".safetensors", ".json"))
        whole = file.read_bytes()
        spoilt = bytearray(whole)
        spoilt[-3 if file.suffix == ".safetensors" else whole.index(b" ")] ^= 1 if file.suffix == ".safetensors" else 41
        file.write_bytes(spoilt)
        with pytest.raises(WeightsError, match=rf"(?s)the model is not the one .*{role}: .* was .*, is "):
            Trainer(config("run", *more)).fit(resume="latest")
        file.write_bytes(whole)
    Trainer(config("run", *more)).fit(resume="latest")


def test_weights_that_did_not_change_are_read_for_their_digest_once(
    config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A base of 40 GB is not read at every start."""
    read: list[str] = []
    digest = qframe.files.model_folder._file_digest
    monkeypatch.setattr(
        "qframe.files.model_folder._file_digest", lambda file, told: (read.append(file), digest(file, told))[1]
    )
    monkeypatch.setattr("qframe.files.digests._SETTLED", -1.0)  # the model's files are new
    quiet = ("data.options.validation=0", "sample.count=0")
    for name in ("first", "second"):
        Trainer(config(name, *quiet)).fit()
        Trainer(config(name, *quiet)).fit(resume="latest")
    names = [path.relative_to(path.parents[1]).as_posix() for path in map(Path, read)]
    assert "transformer/diffusion_pytorch_model.safetensors" in names
    assert len(names) == len(set(names))
