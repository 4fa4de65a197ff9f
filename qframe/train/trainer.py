"""The trainer: what `qframe train` runs and what Python code drives step by step."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import torch
from PIL import Image

from qframe import adapters
from qframe.cache import WHOLE, Cache, CachedExamples, Share, build_cache
from qframe.cache.configured import cache_folder, made_by
from qframe.cache.encoding import LiveExamples
from qframe.compose import Composition, compose
from qframe.compose.placement import Placement, rest_codec
from qframe.config import dump_config
from qframe.config.schema import Config, Precision, TrainConfig
from qframe.data.choose import open_source
from qframe.errors import CacheError, ConfigError
from qframe.files.storage import is_published, lock_folder, publish_folder, remove_published, write_file
from qframe.interfaces import Denoiser, Example, ForwardOptions, Parts, Plan, Record, RecordSource
from qframe.pictures.pixels import from_pixels
from qframe.plugins.registry import Registry, load_registry
from qframe.progress import SILENT, Progress
from qframe.sample.pipeline import Pipeline
from qframe.sample.plan_batches import group_plans, join_plans
from qframe.sample.running import run_plan
from qframe.sample.settling import plan_request
from qframe.train import resume as resuming
from qframe.train.distributed import ALONE, Processes
from qframe.train.held_out import held_out_losses
from qframe.train.loop import TrainingJob, run_steps
from qframe.train.optim import Optimizers, WeightAverage, optimizer_factory, schedule_factor
from qframe.train.order import BatchOrder, make_order, sample_sizes, token_budget, total_steps
from qframe.train.records import measured_records, sampled_records, split_records
from qframe.train.run import Run
from qframe.train.sessions import describe_data, describe_machine, write_session
from qframe.train.sharding import check_sharding, load_whole, shard
from qframe.train.state import TrainingState, find_checkpoint, read_about, restore, save_checkpoint
from qframe.train.streams import derived_seed
from qframe.train.validation import GroupResult, Validation, result_lines

_MADE_OF = ("encoder", "codec", "denoiser", "schedule")
"""Components whose change makes another run. A sampler has no part in training."""


@attrs.frozen(eq=False, kw_only=True)
class FitResult:
    """weights: the LoRA file, or the folder of the fine-tuned denoiser. sheet: before and after, side by side.

    Of several processes the first alone makes the sheet.
    """

    folder: Path
    weights: Path
    sheet: Path | None
    before: Sequence[GroupResult]
    after: Sequence[GroupResult]


class Trainer:
    """Trains one family on one data set. Everything it writes goes into one run folder.

    A stage loads only what it needs: caching the encoder and the codec, training the denoiser, sampling for
    validation plans made while the encoder was there. Errors come before any work: the composition is checked and
    the records are listed when the trainer is made.

    sources: where the values of the configuration come from (`qframe.config.Resolved.sources`), for the run's report.

    processes: those that train together (`qframe.train.distributed.joined`), each with a trainer of its own on which
    the same is called. Encoding, steps and samples are split; the first alone writes the run folder and is observed.
    """

    def __init__(
        self,
        config: Config,
        *,
        progress: Progress = SILENT,
        registry: Registry | None = None,
        processes: Processes = ALONE,
        sources: Mapping[str, str] | None = None,
    ) -> None:
        self.config = config
        self.sources = sources or {}
        self.progress = progress
        self.processes = processes
        self.registry = registry or load_registry()
        if config.devices and processes.world > 1:
            raise ConfigError(
                f"devices: {', '.join(config.devices)} are for one process, and there are {processes.world}",
                "Leave devices out: every process takes a GPU of its own.",
            )
        if config.train.batching == "packed":
            token_budget(config.train)
        optimizer_factory(config.train, self.registry)  # may lack a package
        self.composition: Composition = compose(config, self.registry)
        if self._shards:
            check_sharding(
                config, self.composition.classes["denoiser"], quantised="denoiser" in self.composition.quantisers
            )
        self.source: RecordSource = open_source(config, self.registry)
        self.records, held_out = split_records(self.source, config)
        self.measured = measured_records(held_out, config)
        self._judge, self._sampled = sampled_records(self.source, self.records, held_out, config, self.registry)
        self._loggers = {name: self._logger(name) for name in config.logging.use}  # may lack a package
        self.state: TrainingState | None = None
        self._steps: int | None = None  # of the whole run, once the examples are known
        self._parts: dict[str, Any] = {}
        self._codec = Placement()
        self._loaded_loras = self._merged_at = 0

    def _logger(self, name: str) -> Any:
        return self.registry.resolve(self.registry.component("logger", name))()

    # -- parts ------------------------------------------------------------------------------------------------

    def load(self, *roles: str) -> Parts:
        """The parts with (at least) these roles loaded; what was loaded before is kept."""
        missing = [role for role in roles if role not in self._parts]
        parts = self.composition.load(*(role for role in missing if role != "denoiser" or not self._shards))
        if self._shards and "denoiser" in missing:  # whole, it may not fit on the device
            whole = self.composition.load("denoiser", offloaded=True)
            parts = attrs.evolve(parts, loaded_denoiser=whole.denoiser)
        for role in missing:
            self._parts[role] = getattr(parts, role)
        if "codec" in missing:
            self._codec = rest_codec(parts.codec, self.composition.device("codec"), live=not self.config.cache.enabled)
        return attrs.evolve(parts, **{f"loaded_{role}": part for role, part in self._parts.items()})

    def release(self, *roles: str) -> None:
        """Forget loaded parts, so that their memory is free."""
        for role in roles:
            self._parts.pop(role, None)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @property
    def denoiser(self) -> Denoiser:
        """The denoiser as it stands, loaded if need be."""
        return self.load("denoiser").denoiser

    @property
    def global_step(self) -> int:
        return self._merged_at if self.state is None else self.state.step

    @property
    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """Those that step the weights; none before `prepare`."""
        return [] if self.state is None else self.state.optimizers.parts

    @property
    def learning_rate(self) -> float:
        """What the next step takes, by `train.lr_schedule`; of several optimizers, that of `train.learning_rate`."""
        train = self.config.train
        return train.learning_rate * schedule_factor(train, self.global_step, steps=self._steps)

    @property
    def use_cache(self) -> bool:
        return self.config.cache.enabled

    @property
    def cache_dir(self) -> Path:
        return cache_folder(self.config)

    @property
    def quantised(self) -> bool:
        """Whether the frozen weights of the denoiser are kept in fewer bits."""
        return "denoiser" in self.composition.quantisers

    @property
    def dtype(self) -> torch.dtype:
        """Of the denoiser's frozen weights."""
        return self.composition.dtype("denoiser")

    # -- caching ----------------------------------------------------------------------------------------------

    def cache(
        self, folder: Path | None = None, *, share: Share = WHOLE, records: Sequence[Record] | None = None
    ) -> CachedExamples | LiveExamples:
        """Encode what is not in the cache yet, and return the examples. With cache.enabled = false, live ones.

        records: by default those to train on.
        share: encode this share alone, where several processes fill one cache.
        ConfigError if the recipe's sizes do not fit the codec and the denoiser.
        """
        self._check_sizes()
        composition = self.composition
        drops = self.config.train.caption_dropout > 0
        if not self.config.cache.enabled:
            parts = self.load("encoder", "codec")
            return LiveExamples(
                self.records if records is None else records,
                composition.recipe,
                parts,
                unconditional=drops,
                counter=composition.token_counter(),
            )
        cache = Cache(folder or cache_folder(self.config))
        return build_cache(
            self.records if records is None else records,
            composition.recipe,
            self.load,
            cache,
            made_by(composition, cache, self.progress),
            batch_size=self.config.cache.batch_size,
            unconditional=drops,
            share=share,
            progress=self.progress,
        )

    def _check_training(self) -> None:
        # Of the denoiser's outline: told only once it is loaded, a mistake would cost the encoding before it.
        train, outline = self.config.train, adapters.outlined(self.composition)
        if train.gradient_checkpointing and outline is not None:
            _checkpointing(outline.module)
        if train.caption_dropout and self.composition.recipe.inputs(self.records[0]).unconditional is None:
            raise ConfigError(
                f"train.caption_dropout: the recipe of {self.config.family} encodes no empty prompt",
                "Set train.caption_dropout to 0.",
            )
        if train.mode != "lora":
            return
        if self.config.lora.dora and "denoiser" in self.composition.quantisers:
            raise ConfigError(
                "lora.dora: the denoiser is quantised, and DoRA needs the exact lengths of its rows",
                "Set lora.dora to false, or leave denoiser.quantise out.",
            )
        if outline is not None:
            adapters.resolve_targets(outline.module, self.config.lora.targets, outline.lora_presets)

    def _check_sizes(self) -> None:
        # Of one record: a recipe has one geometry for all. Only some pictures would show the mistake, and late.
        inputs = self.composition.recipe.inputs(self.records[0])
        specs = self.composition.specs
        needed = specs["codec"].compression * specs["denoiser"].patch
        for pixels in (inputs.target, *inputs.references):
            if pixels.geometry.multiple % needed:
                raise ConfigError(
                    f"the recipe brings pictures to multiples of {pixels.geometry.multiple} pixels, codec and denoiser "
                    f"take multiples of {needed}",
                    f"Set recipe.multiple to a multiple of {needed}.",
                )

    # -- training ---------------------------------------------------------------------------------------------

    def prepare(self) -> TrainingState:
        """The denoiser with what is trained on it, optimizers, and the weights' average: at step 0."""
        train = self.config.train
        denoiser = self.denoiser
        module = denoiser.module
        if train.mode == "lora":
            seed = derived_seed(train.seed, "adapter")
            trained = adapters.add_lora(module, self.config.lora, denoiser.lora_presets, seed=seed)
        else:
            module.requires_grad_(True).float()
        if self._shards:
            chosen = trained.values() if train.mode == "lora" else module.parameters()
            shard(denoiser, chosen, self.composition.device("denoiser"))
        if train.mode == "full":
            trained = dict(module.named_parameters())
        if train.gradient_checkpointing:
            _checkpointing(module)()
        optimizers = Optimizers(trained, train, denoiser.blocks, factory=optimizer_factory(train, self.registry))
        average = WeightAverage(trained, train.ema_decay) if train.ema_decay else None
        self.state = TrainingState(trained, optimizers, average)
        return self.state

    def fit(self, resume: str | None = None) -> FitResult:
        """Cache, sample, train, sample again. `resume`: "latest", or a checkpoint of the run folder."""
        processes = self.processes
        folder = Path(processes.agree(lambda: str(resuming.run_folder(self.config, resume))))
        with lock_folder(folder) if processes.first else contextlib.nullcontext():
            processes.connect(self.composition.device("denoiser"), self.config.train.process_timeout)
            run = Run(folder=folder, config=attrs.evolve(self.config, output=str(folder)))
            error: BaseException | None = None
            with self.registry.observing(self._loggers if processes.first else {}):
                try:
                    return self._fit(run, resume)
                except BaseException as raised:
                    error = raised
                    raise
                finally:
                    if processes.first:
                        self.registry.tell("qframe_run_end", run=run, error=error)

    def _fit(self, run: Run, resume: str | None) -> FitResult:
        text, processes = dump_config(run.config), self.processes
        checkpoint, changes = None, list[str]()
        if resume is not None:
            checkpoint = Path(processes.agree(lambda: str(find_checkpoint(run.folder, resume))))
            changes = resuming.check_changes(checkpoint, run.config, self.registry, processes=processes.world)
            for line in changes:
                self.progress.note(line)
            run.resumed_from = run.step = int(read_about(checkpoint)["step"])
            if self.config.train.epochs is None:
                resuming.check_length(run.step, self.config.train.max_steps, "train.max_steps")
        elif processes.first:
            write_file(run.folder / "config.toml", text.encode())
            run.rewind(0)  # what a run left here that ended before its first checkpoint
        if processes.first:
            self.registry.tell("qframe_run_start", run=run)

        self._check_training()
        made_of = json.loads(processes.agree(lambda: json.dumps(self._made_of())))  # weights are read once
        if checkpoint is not None:
            resuming.check_parts(checkpoint, made_of)
        examples = self._cache_together()
        data = examples.digest()
        if checkpoint is not None:
            resuming.check_data(checkpoint, data)
            if processes.first:
                write_file(run.folder / "config.toml", text.encode())  # with what changed, as nothing was refused
        held_out = self._cache_together(self.measured) if self.measured else None
        validation = Validation(run.folder / "samples", self._judge, self._sampled)
        if processes.first:
            self._write_session(run, examples, changes)
            validation.keep_inputs()
        plans = self._plans(self._sampled)
        if self.config.cache.enabled:
            self.release("encoder")
        self._codec.free()
        state = self.prepare()
        if checkpoint is not None:
            restore(checkpoint, state)
            if processes.first:
                run.rewind(state.step)
        if checkpoint is None and plans:
            self._keep_samples(run, validation, "before", plans)
        about = {"data": data, "family": self.config.family, "made_of": made_of, "processes": processes.world}
        sample = partial(self._keep_samples, run, validation, plans=plans)
        self._train(run, state, examples, held_out=held_out, sample=sample if plans else None, about=about, text=text)
        weights = self._save_result(run)
        if plans:
            self._keep_samples(run, validation, "after", plans)
        processes.meet()  # what the first one wrote is there
        before, after = validation.results("before"), validation.results("after")
        for line in result_lines(before, after):
            self.progress.note(line)
        sheet = validation.sheet() if processes.first else None
        return FitResult(folder=run.folder, weights=weights, sheet=sheet, before=before, after=after)

    def _write_session(self, run: Run, examples: CachedExamples | LiveExamples, changes: Sequence[str]) -> None:
        composition = self.composition
        session = {
            "resumed_from": run.resumed_from,
            "changes": list(changes),
            "base_model": composition.model_name,
            "weights_licence": composition.licence,
            "sources": dict(self.sources),
            "data": describe_data(self.records, examples, composition.specs["codec"].compression),
            "machine": describe_machine(composition.device("denoiser"), self.processes.world),
        }
        write_session(run.folder, session)

    def _made_of(self) -> dict[str, dict[str, str]]:
        """What each component is made of. The cache's folder remembers digests of weights, in live training too."""
        with Cache(cache_folder(self.config)) as cache:
            found = made_by(self.composition, cache, self.progress, roles=_MADE_OF)
        return {role: dict(ingredients) for role, ingredients in found.items()}

    def _cache_together(self, records: Sequence[Record] | None = None) -> CachedExamples | LiveExamples:
        """Every process encodes its share of the records (by default those to train on), and waits for the others."""
        examples = self.cache(share=self.processes.share, records=records)
        self.processes.meet()
        if self.processes.world > 1 and isinstance(examples, CachedExamples) and (missing := examples.missing()):
            raise CacheError(
                f"{missing} entries that other processes encoded are not in the cache that this one sees",
                "Machines that train together need one cache folder: set cache.dir to a shared one.",
            )
        return examples

    def _keep_samples(self, run: Run, validation: Validation, moment: str, plans: Sequence[Plan]) -> None:
        at = f"{moment} training" if moment in ("before", "after") else f"at {moment}"
        pictures = self.sample(plans, title=f"sampling {at}")
        if self.processes.first:
            files = validation.keep(moment, pictures)
            self.registry.tell("qframe_samples", run=run, step=self.global_step, files=files)

    def _train(
        self,
        run: Run,
        state: TrainingState,
        examples: CachedExamples | LiveExamples,
        *,
        held_out: Sequence[Example] | None,
        sample: Callable[[str], None] | None,
        about: Mapping[str, Any],
        text: str,
    ) -> None:
        """held_out: what the validation loss is taken over. sample: samples, under the name of the moment."""

        def loss_due(step: int) -> bool:
            return held_out is not None and _due(self.config.validation.every, step, train.max_steps)

        def samples_due(step: int) -> bool:
            return sample is not None and 0 < step < train.max_steps and _due(self.config.sample.every, step)

        def examine(step: int) -> Mapping[str, float]:
            found: Mapping[str, float] = {}
            if held_out is not None and loss_due(step):
                with self.averaged():
                    found = held_out_losses(job, held_out)
            if sample is not None and samples_due(step):
                sample(f"step-{step:06d}")
                job.denoiser.module.train()
            return found

        def observe(step: int, metrics: Mapping[str, float]) -> None:
            run.step = step
            if self.processes.first:
                run.log(step, metrics)
                self.registry.tell("qframe_step_end", run=run, step=step, metrics=metrics)

        def save() -> None:
            first = self.processes.first
            if first or self._shards:
                save_checkpoint(run.folder, state, config=text, about=about, keep=train.keep_checkpoints, writes=first)
            self.processes.meet()  # nobody goes on before the checkpoint is there

        train = self.config.train
        parts = self.load("denoiser")
        sizes = sample_sizes(examples, parts.denoiser_spec.patch)
        order = make_order(sizes, train, lambda index: self.records[index].id)
        steps = total_steps(order, train, self.processes.world)
        resuming.check_length(state.step, steps, "train.epochs")
        train = attrs.evolve(train, max_steps=steps)
        self._steps = steps
        job = self.job(
            train,
            examples,
            order,
            progress=self.progress,
            observe=observe,
            examine=examine,
            examines=lambda step: loss_due(step) or samples_due(step),
            save=save,
            processes=self.processes,
            one_by_one=self._shards,
        )
        if state.step == 0 and (found := examine(0)):
            observe(0, found)
        run_steps(job, state)

    def job(
        self,
        train: TrainConfig,
        examples: CachedExamples | LiveExamples,
        order: BatchOrder,
        **watched: Any,
    ) -> TrainingJob:
        """The steps over `examples`. watched: who hears of them, saves and takes part, as `TrainingJob` has it."""
        parts = self.load("denoiser")
        return TrainingJob(
            config=train,
            denoiser=parts.denoiser,
            schedule=parts.schedule,
            patch=parts.denoiser_spec.patch,
            forward=ForwardOptions(guidance=train.guidance_scale if parts.denoiser_spec.guidance else None),
            weigh=self.composition.recipe.loss_map,
            examples=examples,
            order=order,
            device=self.composition.device("denoiser"),
            **watched,
        )

    def _save_result(self, run: Run) -> Path:
        lora = self.config.train.mode == "lora"
        target = run.folder / ("lora.safetensors" if lora else "denoiser")
        first = self.processes.first
        if lora:
            return self.save_lora(target) if first else target
        about = {"weights_licence": self.composition.licence, "base_model": self.composition.model_name}

        def write(folder: Path) -> None:
            denoiser.save(folder)
            (folder / "about.json").write_text(json.dumps(about, indent=1), encoding="utf-8")

        if first and is_published(target):  # of fewer steps; the checkpoints hold it too
            remove_published(target)
        with self.averaged():
            denoiser = self._gathered() if self._shards else self.denoiser
            if first:
                with _rounded(denoiser.module, self.config.train.save_dtype):
                    publish_folder(target, write)
        return target

    def _gathered(self) -> Denoiser:
        """The fine-tuned denoiser with all of its weights on the CPU; in other processes than the first, as it is."""
        assert self.state is not None  # it was trained
        first = self.processes.first
        denoiser = self.composition.load("denoiser", offloaded=True).denoiser if first else self.denoiser
        self.processes.meet()  # loading takes longer than collectives wait
        load_whole(denoiser.module.float() if first else denoiser.module, self.state.parameters, keep=first)
        return denoiser

    # -- sampling ---------------------------------------------------------------------------------------------

    def _plans(self, records: Sequence[Record]) -> list[Plan]:
        if not records:
            return []
        parts = self.load("encoder", "codec")
        recipe, sample = self.composition.recipe, self.config.sample
        scale = 1.0 if sample.negative_prompt is None else sample.true_cfg_scale  # guidance needs both
        distilled = recipe.sampling.guidance if sample.guidance_scale is None else sample.guidance_scale
        plans = []
        with torch.inference_mode(), self.progress.stage("preparing samples", len(records)) as bar:
            for index, record in enumerate(records):
                request = attrs.evolve(
                    recipe.request_for(record),
                    num_inference_steps=sample.num_inference_steps,
                    true_cfg_scale=scale,
                    negative_prompt=sample.negative_prompt,
                    guidance_scale=distilled if parts.denoiser_spec.guidance else None,
                    generator=torch.Generator().manual_seed(derived_seed(sample.seed, "sample", index)),
                )
                plans.append(plan_request(recipe, request, parts))
                bar.advance(1)
        return plans

    def sample(self, plans: Sequence[Plan], *, title: str = "sampling") -> list[Image.Image]:
        """One picture per plan (of one sample each), with the weights as they stand (averaged, if averaging).

        Every process samples its share of them, and gets all.
        """
        parts = self.load("denoiser")
        parts.denoiser.module.eval()
        groups = group_plans(plans, self.config.sample.batch_size)
        if not self._shards:  # which all must gather at the same time
            groups = groups[self.processes.rank :: self.processes.world]
        pictures: dict[int, Image.Image] = {}
        stage = self.progress.stage(title, sum(map(len, groups)))
        # Weights that were gathered in inference mode cannot be trained on any more.
        quiet = torch.no_grad() if self._shards else torch.inference_mode()
        with self._codec.freed(), quiet, self.averaged(), stage as bar:
            for group in groups:
                made = run_plan(
                    join_plans([plans[i] for i in group]),
                    parts.denoiser,
                    parts.sampler,
                    guidance_batching=self.config.sample.guidance_batching,
                )
                for index, picture in zip(group, made, strict=True):
                    pictures[index] = from_pixels(picture)
                bar.advance(len(group))
        if self._shards:
            return [pictures[index] for index in range(len(plans))]
        return self.processes.exchange(pictures, len(plans))

    def predict(self, **request: Any) -> Any:
        """Sample with the weights as they stand: the arguments and the result of `qframe.load(...)(...)`.

        The number of steps, the scale of guidance and the negative prompt are those of `[sample]` where none are given.
        """
        sample = self.config.sample
        request = {
            "num_inference_steps": sample.num_inference_steps,
            "true_cfg_scale": sample.true_cfg_scale,
            "negative_prompt": sample.negative_prompt,
            **request,
        }
        self._refuse_shards("predict")
        pipe = Pipeline(self.composition, self.load("encoder", "codec", "denoiser"))
        pipe.parts.denoiser.module.eval()
        with self._codec.freed(), self.averaged():
            return pipe(**request)

    @property
    def _shards(self) -> bool:
        """Whether no process has all of the denoiser."""
        return self.config.train.shard == "full" and self.processes.world > 1

    def _refuse_shards(self, method: str) -> None:
        if self._shards:
            raise ConfigError(
                f"Trainer.{method}: train.shard is 'full', so no process has all of the denoiser",
                "Use what the run wrote: qframe.load(..., lora=...) or its `denoiser` folder.",
            )

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the trained weights are their average, if the run keeps one."""
        if self.state is None or self.state.average is None or self.state.step == 0:
            yield
            return
        parameters, average = self.state.parameters, self.state.average.values
        kept = {name: p.detach().clone() for name, p in parameters.items()}
        try:
            _overwrite(parameters, average)
            yield
        finally:
            _overwrite(parameters, kept)

    # -- adapters ---------------------------------------------------------------------------------------------

    def save_lora(self, path: str | Path) -> Path:
        """Write the adapter as it stands (averaged, if averaging) in the diffusers layout, alpha included."""
        with self.averaged():
            layers = adapters.lora_layers(self.denoiser.module)
            metadata = {"weights_licence": self.composition.licence, "base_model": self.composition.model_name}
            adapters.save_lora(Path(path), layers, metadata=metadata)
        return Path(path)

    def load_lora(self, path: str | Path, weight: float = 1.0) -> None:
        """Put a LoRA file's adapter on the denoiser."""
        self._loaded_loras += 1
        adapters.load_lora(self.denoiser.module, Path(path), weight, adapter=f"loaded_{self._loaded_loras}")

    def merge_lora(self) -> None:
        """Add the adapters into the weights they belong to, for good."""
        self._refuse_shards("merge_lora")
        self._merged_at = self.global_step
        adapters.merge_lora(self.denoiser.module)
        self.state = None


def _checkpointing(module: torch.nn.Module) -> Callable[[], None]:
    """What turns gradient checkpointing on."""
    enable: Callable[[], None] | None = getattr(module, "enable_gradient_checkpointing", None)
    if enable is None:
        raise ConfigError("train.gradient_checkpointing: this denoiser does not support it", "Set it to false.")
    return enable


def _due(every: int | None, step: int, last: int | None = None) -> bool:
    return every is not None and (step % every == 0 or step == last)


@contextlib.contextmanager
def _rounded(module: torch.nn.Module, dtype: Precision) -> Iterator[None]:
    """Inside, the module's parameters have this dtype; afterwards they are as they were, to the bit."""
    kept = [(parameter, parameter.data) for parameter in module.parameters()]
    try:
        for parameter, values in kept:
            parameter.data = values.to(getattr(torch, dtype))
        yield
    finally:
        for parameter, values in kept:
            parameter.data = values


def _overwrite(parameters: Mapping[str, torch.nn.Parameter], values: Mapping[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(values[name])
