"""The loop and its state: exact, resumable, and honest about bad steps."""

from __future__ import annotations

import contextlib
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor

from qframe.adapters import add_lora
from qframe.config.schema import LoraConfig, TrainConfig
from qframe.errors import NumericsError, WeightsError
from qframe.files.storage import verify_folder
from qframe.interfaces import Example
from qframe.progress import SILENT
from qframe.train.loop import StepSetup, run_steps
from qframe.train.optim import Optimizers, WeightAverage
from qframe.train.order import make_order, sample_sizes, step_batches, total_steps
from qframe.train.signals import Stopped
from qframe.train.state import TrainingState, checkpoint_folder, find_checkpoint, restore, save_checkpoint
from tests.train.conftest import PATCH, FixedShares, HalvingSchedule, SizedList, ToyDenoiser

BASE = TrainConfig(
    max_steps=12,
    batch_size=2,
    gradient_accumulation=2,
    learning_rate=0.01,
    checkpoint_every=5,
    keep_checkpoints=3,
    precision="bfloat16",
)
VARIANTS = {
    "lora": BASE,
    "lora with dropout": BASE,
    "float32": attrs.evolve(BASE, precision="float32"),
    "average": attrs.evolve(BASE, ema_decay=0.9, caption_dropout=0.3),
    "packed": attrs.evolve(BASE, batching="packed", tokens_per_batch=40, caption_dropout=0.3),
    "fixed": attrs.evolve(BASE, batching="fixed"),
    "muon": attrs.evolve(BASE, mode="full", optimizer="muon", lr_schedule="cosine", warmup_steps=3),
}


class Scene:
    """One toy run in a folder, started as a new process would start it."""

    def __init__(self, folder: Path, examples: list[Example], config: TrainConfig, dropout: float = 0.0) -> None:
        self.folder, self.config = folder, config
        torch.manual_seed(0)
        denoiser = ToyDenoiser()
        if config.mode == "lora":
            lora = LoraConfig(rank=2, targets=("all",), dropout=dropout)
            trained = add_lora(denoiser.module, lora, denoiser.lora_presets, seed=1)
        else:
            trained = dict(denoiser.module.named_parameters())
        average = WeightAverage(trained, config.ema_decay) if config.ema_decay else None
        self.state = TrainingState(trained, Optimizers(trained, config, "blocks"), average)
        self.seen: list[tuple[int, Mapping[str, float]]] = []
        self.setup = StepSetup(
            config=config,
            denoiser=denoiser,
            schedule=HalvingSchedule(),
            patch=PATCH,
            examples=examples,
            order=make_order(sample_sizes(SizedList.of(examples), PATCH), config, str),
            device=torch.device("cpu"),
            progress=SILENT,
            observe=lambda step, metrics: self.seen.append((step, metrics)),
            save=partial(save_checkpoint, folder, self.state, config="", about={}, keep=config.keep_checkpoints),
        )

    def weights(self) -> dict[str, Tensor]:
        found = {name: p.detach().clone() for name, p in self.state.parameters.items()}
        if self.state.average is not None:
            found |= {f"average {name}": value.clone() for name, value in self.state.average.values.items()}
        return found


@pytest.fixture
def scene(tmp_path: Path, mixed_examples: list[Example]) -> Callable[..., Scene]:
    return lambda name="run", config=BASE, dropout=0.0: Scene(tmp_path / name, mixed_examples, config, dropout)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_resumed_run_ends_bit_identical(scene: Callable[..., Scene], variant: str) -> None:
    dropout = 0.3 if "dropout" in variant else 0.0
    whole, again = (scene(name, VARIANTS[variant], dropout) for name in ("whole", "again"))
    start = whole.weights()
    run_steps(whole.setup, whole.state)
    run_steps(again.setup, again.state)
    assert any(not torch.equal(start[name], value) for name, value in whole.weights().items())
    resumed = scene("whole", VARIANTS[variant], dropout)
    restore(checkpoint_folder(whole.folder, 5), resumed.state)

    assert resumed.state.step == 5
    run_steps(attrs.evolve(resumed.setup, save=lambda: None), resumed.state)
    for name, value in whole.weights().items():
        assert torch.equal(value, again.weights()[name]), f"two runs of one seed differ in {name}"
        assert torch.equal(value, resumed.weights()[name]), f"the resumed run differs in {name}"
    assert resumed.seen[-1][1]["loss"] == whole.seen[-1][1]["loss"]


def test_accumulation_equals_one_large_batch(scene: Callable[..., Scene]) -> None:
    split = scene("split", attrs.evolve(BASE, batch_size=3, gradient_accumulation=2, max_steps=1))
    joint = scene("joint", attrs.evolve(BASE, batch_size=6, gradient_accumulation=1, max_steps=1))
    order = [4, 0, 3, 5, 1, 2]
    for part, size in ((split, 3), (joint, 6)):
        batches = [order[i : i + size] for i in range(0, 6, size)]
        run_steps(attrs.evolve(part.setup, order=FixedShares(batches)), part.state)
    for name, value in split.weights().items():
        torch.testing.assert_close(value, joint.weights()[name], rtol=1e-5, atol=1e-6)


def test_a_step_says_how_many_tokens_of_which_kind_it_computed(
    scene: Callable[..., Scene], mixed_examples: list[Example]
) -> None:
    run = scene(config=attrs.evolve(BASE, batching="packed", tokens_per_batch=40, max_steps=4))
    run_steps(run.setup, run.state)
    sizes = sample_sizes(SizedList.of(mixed_examples), PATCH)
    for step, metrics in run.seen:
        portions = [run.setup.order.batch(2 * (step - 1) + micro) for micro in range(2)]
        indices = [index for portion in portions for index in portion.indices]
        assert metrics["samples"] == len(indices)
        assert metrics["text_tokens"] == sum(sizes[index].text for index in indices)
        assert metrics["target_tokens"] == sum(mixed_examples[i].target[0].numel() // PATCH**2 for i in indices)
        valid = metrics["target_tokens"] + metrics["reference_tokens"] + metrics["text_tokens"]
        assert valid == sum(sizes[index].tokens for index in indices)
        assert metrics["padded_tokens"] == 0


def test_max_steps_is_obeyed_and_the_end_is_saved(scene: Callable[..., Scene]) -> None:
    run = scene()
    run_steps(run.setup, run.state)
    assert [step for step, _ in run.seen] == list(range(1, 13))
    names = [p.name for p in checkpoint_folder(run.folder, 0).parent.iterdir()]
    assert sorted(names) == ["step-00000005", "step-00000010", "step-00000012"]


@pytest.mark.parametrize(
    "settings",
    [
        {"batching": "fixed"},
        {"batching": "bucketed"},
        {"batching": "packed", "tokens_per_batch": 40},
    ],
    ids=lambda settings: settings["batching"],
)
def test_epochs_are_obeyed_exactly_and_more_may_follow(
    scene: Callable[..., Scene], mixed_examples: list[Example], settings: dict[str, Any]
) -> None:
    """Two epochs, then a third of a resumed run, are three: each shows every example, and repeats only top-ups."""
    config = attrs.evolve(BASE, **settings, epochs=3, gradient_accumulation=2)
    whole, resumed = scene("whole", config), scene("part", config)
    order = whole.setup.order
    for part, epochs in ((whole, 3), (resumed, 2), (resumed, 3)):
        steps = total_steps(order, attrs.evolve(config, epochs=epochs))
        run_steps(attrs.evolve(part.setup, config=attrs.evolve(config, max_steps=steps), save=lambda: None), part.state)
    assert [m["samples"] for _, m in whole.seen] == [m["samples"] for _, m in resumed.seen]
    assert all(torch.equal(value, resumed.weights()[name]) for name, value in whole.weights().items())
    taken = [order.batch(number).indices for step, _ in whole.seen for number in step_batches(order, config, step - 1)]
    assert len(taken) == order.first_batch(3)
    for epoch in range(3):
        shown = Counter(i for batch in taken[order.first_batch(epoch) : order.first_batch(epoch + 1)] for i in batch)
        assert shown.keys() == set(range(len(mixed_examples)))
        assert shown.total() - len(shown) < 2 * config.batch_size  # no more than tops up one batch


def test_the_gradient_that_steps_is_clipped_to_its_length(scene: Callable[..., Scene]) -> None:
    """Same direction, the length that was asked for; the log tells the length before."""
    found: list[Tensor] = []
    told: list[float] = []
    for limit in (1e-3, 1e9):
        run = scene(f"clip-{limit}", attrs.evolve(BASE, max_steps=1, max_grad_norm=limit))
        parameters, step = list(run.state.parameters.values()), run.state.optimizers.step

        def measure(*args: Any, _of: Any = parameters, _step: Any = step, **kwargs: Any) -> float:
            found.append(torch.cat([p.grad.flatten() for p in _of if p.grad is not None]))
            return float(_step(*args, **kwargs))

        run.state.optimizers.step = measure  # type: ignore[method-assign]
        run_steps(run.setup, run.state)
        told.append(run.seen[0][1]["gradient_norm"])
    clipped, whole = found
    assert told == pytest.approx([whole.norm().item()] * 2)
    assert whole.norm() > 1e-2
    torch.testing.assert_close(clipped, whole * (1e-3 / whole.norm()), rtol=1e-3, atol=1e-9)


def test_the_loss_falls_when_it_can(scene: Callable[..., Scene]) -> None:
    run = scene(config=attrs.evolve(BASE, mode="full", max_steps=150, learning_rate=0.02, checkpoint_every=1000))
    run_steps(run.setup, run.state)
    losses = [metrics["loss"] for _, metrics in run.seen]
    assert sum(losses[-20:]) < 0.7 * sum(losses[:20])


def test_sigterm_saves_stops_and_names_the_next_step(scene: Callable[..., Scene]) -> None:
    run = scene()

    def observe(step: int, metrics: Mapping[str, float]) -> None:
        if step == 3:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Stopped, match="stopped at step 3") as caught:
        run_steps(attrs.evolve(run.setup, observe=observe), run.state)
    assert caught.value.exit_code == 143
    assert verify_folder(checkpoint_folder(run.folder, 3)) == []


def poison(examples: list[Example]) -> list[Example]:
    return [attrs.evolve(e, target=torch.full_like(e.target, float("nan"))) for e in examples]


def test_steps_that_are_not_finite_change_nothing_and_then_stop_the_run(scene: Callable[..., Scene]) -> None:
    run = scene(config=attrs.evolve(BASE, nan_patience=2))
    start = run.weights()
    with pytest.raises(NumericsError, match=r"3 steps in a row, up to step 3; examples .*example-"):
        run_steps(attrs.evolve(run.setup, examples=poison(list(run.setup.examples))), run.state)
    assert all(torch.equal(value, start[name]) for name, value in run.weights().items())
    assert [metrics["skipped"] for _, metrics in run.seen] == [1.0, 1.0, 1.0]


def test_a_frozen_weight_that_is_not_finite_is_named(scene: Callable[..., Scene]) -> None:
    run = scene(config=attrs.evolve(BASE, nan_patience=0))
    name, frozen = next(
        (name, one) for name, one in run.setup.denoiser.module.named_parameters() if not one.requires_grad
    )
    with torch.no_grad():
        frozen.view(-1)[0] = torch.nan
    with pytest.raises(NumericsError, match=f"weights of the denoiser are not finite: {name}"):
        run_steps(run.setup, run.state)


def test_one_bad_step_is_passed_over(scene: Callable[..., Scene]) -> None:
    run = scene(config=attrs.evolve(BASE, nan_patience=BASE.max_steps))
    examples = list(run.setup.examples)
    bad = attrs.evolve(examples[0], target=torch.full_like(examples[0].target, float("inf")))
    run_steps(attrs.evolve(run.setup, examples=[bad, *examples[1:]]), run.state)
    skipped = [metrics["skipped"] for _, metrics in run.seen]
    assert 0 < sum(skipped) < len(skipped)
    assert all(torch.isfinite(value).all() for value in run.weights().values())


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("variant", ["lora", "average", "muon"])
def test_a_gradient_that_is_not_finite_reaches_no_weight_though_the_loss_is(
    scene: Callable[..., Scene], variant: str, value: float
) -> None:
    """Clipping would scale an infinite gradient to NaN, and one step with it makes a weight NaN for good."""
    run = scene(config=attrs.evolve(VARIANTS[variant], max_steps=3))
    seen: list[dict[str, Tensor]] = []
    spoilt = next(iter(run.state.parameters.values()))
    spoilt.register_hook(lambda gradient: torch.full_like(gradient, value) if len(seen) == 1 else gradient)
    run_steps(
        attrs.evolve(run.setup, observe=lambda *given: (seen.append(run.weights()), run.seen.append(given))), run.state
    )
    first, second, third = seen
    assert all(torch.equal(second[name], tensor) for name, tensor in first.items())
    assert [metrics["skipped"] for _, metrics in run.seen] == [0.0, 1.0, 0.0]
    assert all(metrics["loss"] < 1e6 for _, metrics in run.seen)
    assert all(torch.isfinite(tensor).all() for tensor in third.values())
    assert any(not torch.equal(third[name], tensor) for name, tensor in second.items())


def checkpoints(run: Scene) -> list[Path]:
    run_steps(run.setup, run.state)
    return sorted((run.folder / "checkpoints").iterdir())


def test_a_damaged_newest_checkpoint_is_passed_over_by_name(
    scene: Callable[..., Scene], caplog: pytest.LogCaptureFixture
) -> None:
    run = scene()
    _, older, newest = checkpoints(run)
    file = newest / "weights.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert find_checkpoint(run.folder, "latest") == older
    assert str(file) in caplog.text
    with pytest.raises(WeightsError, match="not a sound checkpoint"):
        find_checkpoint(run.folder, newest.name)


def test_no_sound_checkpoint_is_an_error_never_a_fresh_start(scene: Callable[..., Scene]) -> None:
    run = scene()
    for folder in checkpoints(run):
        (folder / "optimizer.safetensors").unlink()
    with pytest.raises(WeightsError, match="every checkpoint is damaged"):
        find_checkpoint(run.folder, "latest")
    with pytest.raises(WeightsError, match="no checkpoint to resume"):
        find_checkpoint(run.folder / "elsewhere", "latest")


def test_retention_deletes_nothing_that_is_not_ours_and_keeps_a_sound_one(scene: Callable[..., Scene]) -> None:
    run = scene(config=attrs.evolve(BASE, keep_checkpoints=1, max_steps=5))
    run_steps(run.setup, run.state)
    (checkpoint_folder(run.folder, 5) / "weights.safetensors").write_bytes(b"damaged")
    later = scene(config=attrs.evolve(BASE, keep_checkpoints=1, max_steps=5))
    later.state.step = 7
    save_checkpoint(run.folder, later.state, config="", about={}, keep=1)
    left = sorted(p.name for p in (run.folder / "checkpoints").iterdir())
    assert left == ["step-00000007"]
    assert verify_folder(checkpoint_folder(run.folder, 7)) == []


@pytest.mark.parametrize("content", [None, "{"])
def test_retention_leaves_a_folder_whose_manifest_is_lost_and_goes_on(
    scene: Callable[..., Scene], content: str | None
) -> None:
    """One bit of one manifest must not stop the run at every later save."""
    run = scene()
    oldest = checkpoints(run)[0]
    (oldest / "manifest.json").unlink()
    if content is not None:
        (oldest / "manifest.json").write_text(content)
    run.state.step = 13
    save_checkpoint(run.folder, run.state, config="", about={}, keep=1)
    assert sorted(p.name for p in oldest.parent.iterdir()) == ["step-00000005", "step-00000013"]


@pytest.mark.parametrize("file", ["weights.safetensors", "manifest.json"])
def test_a_damaged_checkpoint_is_replaced_when_the_run_comes_by_again(
    scene: Callable[..., Scene], file: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Else "everything is saved" would be false, and a resumed run could never pass this step."""
    run = scene()
    newest = checkpoints(run)[-1]
    (newest / file).write_bytes(b"damaged")
    again = scene()
    restore(find_checkpoint(run.folder, "latest"), again.state)
    assert again.state.step == 10
    run_steps(again.setup, again.state)
    assert find_checkpoint(run.folder, "latest") == newest
    assert verify_folder(newest) == []
    assert f"{newest} is damaged" in caplog.text
    aside = [p for p in newest.parent.iterdir() if p.name.startswith("damaged-step-00000012-")]
    assert len(aside) == 1


def test_a_checkpoint_of_another_shape_is_refused_by_name(scene: Callable[..., Scene]) -> None:
    run = scene()
    checkpoints(run)
    other = scene("other", attrs.evolve(BASE, mode="full"))
    with pytest.raises(WeightsError, match="not in the checkpoint"):
        restore(find_checkpoint(run.folder, "latest"), other.state)


class Shown:
    """A stage that keeps what it is told."""

    def __init__(self) -> None:
        self.metrics: list[Mapping[str, float]] = []

    @contextlib.contextmanager
    def stage(self, name: str, total: int, *, done: int = 0) -> Iterator[Shown]:
        yield self

    def advance(self, count: int = 1, **metrics: float) -> None:
        self.metrics.append(metrics)

    def note(self, text: str) -> None:
        raise AssertionError(text)


def test_progress_shows_the_mean_loss_the_learning_rate_and_the_newest_validation(
    tmp_path: Path, mixed_examples: list[Example]
) -> None:
    scene = Scene(tmp_path, mixed_examples, attrs.evolve(BASE, max_steps=4))
    shown = Shown()
    run_steps(
        attrs.evolve(
            scene.setup,
            progress=shown,
            validation_due=lambda step: step == 2,
            validate=lambda step: {"val_loss": 0.75},
        ),
        scene.state,
    )
    losses = [metrics["loss"] for _, metrics in scene.seen if "loss" in metrics]
    means = [sum(losses[:count]) / count for count in range(1, 5)]
    assert [metrics["loss"] for metrics in shown.metrics] == pytest.approx(means)
    assert [metrics.get("val_loss") for metrics in shown.metrics] == [None, None, 0.75, 0.75]
    rates = [metrics["learning_rate"] for _, metrics in scene.seen if "learning_rate" in metrics]
    assert [metrics["lr"] for metrics in shown.metrics] == rates
