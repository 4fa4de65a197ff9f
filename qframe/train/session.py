"""Runs one session of a training run, from step 0 or from a checkpoint until the results are written."""

from __future__ import annotations

import contextlib
import json
import logging
import signal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from qframe import adapters
from qframe.cache import Cache, CachedExamples, DeclaredInputs
from qframe.cache.configured import made_by
from qframe.cache.live import LiveExamples
from qframe.config import dump_config
from qframe.config.folders import cache_folder
from qframe.errors import CacheError
from qframe.files.run_folder import resume_command
from qframe.files.sound_folders import SoundFolders
from qframe.files.storage import lock_folder, write_file
from qframe.interfaces import Plan
from qframe.train import resume as resuming
from qframe.train.arithmetic import declares_flops, measured_rate
from qframe.train.checks import check_training
from qframe.train.examples import check_run_records, encoded_examples
from qframe.train.kept import set_aside_newer
from qframe.train.loop import run_steps
from qframe.train.order import make_order, sample_sizes, total_steps
from qframe.train.parts import step_setup
from qframe.train.results import FitResult, save_result
from qframe.train.room import require_room
from qframe.train.run import Run
from qframe.train.samples import validation_plans
from qframe.train.sessions import describe_data, describe_machine, write_session
from qframe.train.signals import Stopped
from qframe.train.state import find_checkpoint, read_about, restore
from qframe.train.status import Status
from qframe.train.validation import Validation, result_lines
from qframe.train.watch import Watch

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from qframe.train.trainer import Trainer

_AHEAD = 2
_LOG_EVERY = 10
"""After how many steps metrics are read from a GPU, if `logging.every` does not say."""

_MADE_OF = ("encoder", "codec", "denoiser", "schedule")
"""Components whose change makes another run. A sampler has no part in training."""


def run_session(trainer: Trainer, resume: str | None, change: Sequence[str] = ()) -> FitResult:
    """Run a session of training, and return its results.

    The run's folder is locked meanwhile against other runs, and the hooks of plugins and loggers that observe the run
    are called.

    Args:
        trainer: The trainer with the settings, the records and the components.
        resume: None starts a new run; "latest" goes on from the newest checkpoint, and another text is the name or the
            path of the checkpoint to go on from.
        change: Settings that may differ from those of the checkpoint; `resume.CHANGEABLE` lists what may be named.

    Raises:
        ConfigError: A setting in `change` cannot change within a run.
        WeightsError: Another run writes into the folder, or the checkpoint cannot be used.
    """
    config, processes = trainer.config, trainer.processes
    folder = Path(processes.agree(lambda: str(resuming.run_folder(config, resume))))
    with lock_folder(folder) if processes.first else contextlib.nullcontext():
        processes.connect(trainer.composition.device("denoiser"), config.train.process_timeout)
        run = Run(folder=folder, config=attrs.evolve(trainer.asked, output=str(folder)))
        error: BaseException | None = None
        with trainer.registry.observing(trainer.loggers if processes.first else {}):
            session = Session(trainer, run, tuple(change))
            try:
                return session.fit(resume)
            except BaseException as raised:
                error = raised
                if isinstance(raised, Stopped):  # the last line of the command can be pasted
                    raised.hint = f"{raised.hint}\n{resume_command(folder)}"
                raise
            finally:
                session.status.end(error, trainer.global_step or run.step)
                if processes.first:
                    trainer.registry.tell("qframe_run_end", run=run, error=error)


@attrs.define(eq=False)
class Session:
    """One session of a training run; `fit` runs its stages from encoding to the results.

    Attributes:
        trainer: Loads the components, encodes the records, prepares the weights and samples pictures.
        run: The run that the session belongs to.
        change: Settings that the user wants to differ from those of the checkpoint that the session goes on from.
        toml: The run's configuration as TOML. The run's folder and every checkpoint hold a copy.
        validation: Keeps the sampled pictures in the run's folder, and judges them.
        sound: Remembers which checkpoints of the run are undamaged.
        status: Says in the run's folder what the session does.
    """

    trainer: Trainer
    run: Run
    change: tuple[str, ...] = ()
    toml: str = attrs.field(init=False)
    validation: Validation = attrs.field(init=False)
    sound: SoundFolders = attrs.field(init=False, factory=SoundFolders)
    status: Status = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.toml = dump_config(self.run.config)
        self.status = Status(self.run.folder, writes=self.trainer.processes.first)
        self.validation = Validation(self.run.folder / "samples", self.trainer.judge, self.trainer.sampled)

    def fit(self, resume: str | None) -> FitResult:
        """Encode the records, sample, train, sample again, write the results, and return them.

        Pictures are sampled before training only in a new run. Every process of the run must call this method.

        Args:
            resume: None starts a new run; "latest" goes on from the newest checkpoint, and another text is the name or
                the path of the checkpoint to go on from.
        """
        trainer, run, processes = self.trainer, self.run, self.trainer.processes
        checkpoint, changes = self._begin(resume)
        for choice in trainer.outlook.choices:
            log.info("memory: %s", choice)
        check_run_records(trainer)
        check_training(trainer.composition, trainer.inputs)
        if processes.first:
            require_room(trainer.composition, run.folder, kept=self._kept())
        made_of = json.loads(processes.agree(lambda: json.dumps(self._made_of())))  # one process reads the weights
        trainer.composition.remember_ingredients(made_of)
        if checkpoint is not None:
            resuming.check_parts(checkpoint, made_of)
        examples = self._encode(trainer.inputs)
        data = examples.digest()
        if checkpoint is not None:
            resuming.check_data(checkpoint, data)
            self.status.begin()
            if processes.first:
                self._write_config()  # with what changed, as nothing was refused
                if changes:
                    set_aside_newer(run.folder, run.step)
        held_out = self._encode(trainer.measured) if trainer.measured else None
        if processes.first:
            self._describe(examples, changes)
            self.validation.keep_inputs()
        plans = self._plans()
        if trainer.use_cache:
            trainer.release("encoder")
        trainer.loaded.codec_placement.free()
        self._prepare(checkpoint)
        if checkpoint is None and plans:
            self._sample("before", plans)
        about = {"data": data, "family": trainer.config.family, "made_of": made_of, "processes": processes.world}
        asked = self._train(examples, held_out, plans, about)
        weights = save_result(trainer, run.folder)
        if plans:
            if asked:
                raise _unsampled(asked, weights)
            try:
                self._sample("after", plans)
            except KeyboardInterrupt as stopped:
                raise _unsampled(signal.SIGINT, weights) from stopped
        processes.meet()  # what the first process wrote is there
        return self._result(weights)

    def _begin(self, resume: str | None) -> tuple[Path | None, list[str]]:
        """The checkpoint to continue from, if any, and the settings that changed since. A new run gets its folder."""
        trainer, run, processes = self.trainer, self.run, self.trainer.processes
        checkpoint, changes = None, list[str]()
        if resume is not None:
            checkpoint = Path(processes.agree(lambda: str(find_checkpoint(run.folder, resume, self.sound))))
            changes = resuming.check_changes(
                checkpoint, run.config, trainer.registry, processes=processes.world, change=self.change
            )
            for line in changes:
                trainer.progress.note(line)
            run.resumed_from = run.step = int(read_about(checkpoint)["step"])
            if trainer.config.train.epochs is None:
                resuming.check_length(run.step, trainer.config.train.max_steps, "train.max_steps")
        elif processes.first:
            self._write_config()
            run.rewind(0)  # what a run left here that ended before its first checkpoint
            self.status.begin()
        if processes.first:
            trainer.registry.tell("qframe_run_start", run=run)
        return checkpoint, changes

    def _prepare(self, checkpoint: Path | None) -> None:
        """Prepare the denoiser for training, as it was at a checkpoint if one is given."""
        state = self.trainer.prepare()
        if checkpoint is not None:
            restore(checkpoint, state, changed=resuming.hyperparameters(self.change))
            if self.trainer.processes.first:
                self.run.rewind(state.step)

    def _kept(self) -> int:
        """How many LoRAs the run will still keep. Where epochs give its length, a step is taken to be a full batch."""
        train = self.trainer.config.train
        steps = train.max_steps
        if train.epochs is not None:
            samples = train.batch_size * train.gradient_accumulation * self.trainer.processes.world
            steps = -(-len(self.trainer.records) * train.epochs // samples)
        every = 0 if train.keep_every is None else steps // train.keep_every - self.run.step // train.keep_every
        return max(every, 0) + train.keep_best

    def _write_config(self) -> None:
        write_file(self.run.folder / "config.toml", self.toml.encode())

    def _made_of(self) -> dict[str, dict[str, str]]:
        """The ingredients of each component. The cache's folder remembers digests of weights, in live training too."""
        trainer = self.trainer
        with Cache(cache_folder(trainer.config)) as cache:
            found = made_by(trainer.composition, cache, trainer.progress, roles=_MADE_OF)
        loras = resuming.lora_ingredients(trainer.config.lora)
        return {role: dict(ingredients) for role, ingredients in found.items()} | ({"lora": loras} if loras else {})

    def _encode(self, inputs: DeclaredInputs) -> CachedExamples | LiveExamples:
        """Encode this process's portion of these inputs, and wait for the others."""
        trainer, processes = self.trainer, self.trainer.processes
        examples = encoded_examples(trainer, inputs, trainer.cache_dir, processes.portion)
        processes.meet()
        if processes.world > 1 and isinstance(examples, CachedExamples) and (missing := examples.missing()):
            raise CacheError(
                f"{missing} entries that other processes encoded are not in the cache that this one sees",
                "Machines that train together need one cache folder: set cache.dir to a shared one.",
            )
        return examples

    def _describe(self, examples: CachedExamples | LiveExamples, changes: Sequence[str]) -> None:
        """Write what the session starts with into the run's folder, for `qframe report`."""
        trainer, composition = self.trainer, self.trainer.composition
        session = {
            "resumed_from": self.run.resumed_from,
            "changes": list(changes),
            "base_model": composition.model_name,
            "weights_licence": composition.licence,
            "sources": dict(trainer.sources),
            "data": describe_data(trainer.records, examples, composition.specs["codec"].compression),
            "machine": describe_machine(composition.device("denoiser"), trainer.processes.world),
        }
        write_session(self.run.folder, session)

    def _plans(self) -> list[Plan]:
        """The plans of the pictures that the run samples."""
        trainer = self.trainer
        if not trainer.sampled:
            return []
        parts = trainer.load("encoder", "codec")
        recipe, sample = trainer.composition.recipe, trainer.config.sample
        return validation_plans(trainer.sampled, recipe, parts, sample, trainer.progress)

    def _sample(self, moment: str, plans: Sequence[Plan]) -> None:
        """Sample the plans with the weights as they stand, and keep the pictures under the name of the moment."""
        trainer = self.trainer
        at = f"{moment} training" if moment in ("before", "after") else f"at {moment}"
        pictures = trainer.sample(plans, title=f"sampling {at}")
        if trainer.processes.first:
            files = self.validation.keep(moment, pictures)
            trainer.registry.tell("qframe_samples", run=self.run, step=trainer.global_step, files=files)

    def _train(
        self,
        examples: CachedExamples | LiveExamples,
        held_out: CachedExamples | LiveExamples | None,
        plans: Sequence[Plan],
        about: Mapping[str, Any],
    ) -> int:
        """Make the steps that are left, watched. Returns what `run_steps` returns: a signal that came late, or 0."""
        trainer, train, state = self.trainer, self.trainer.config.train, self.trainer.state
        assert state is not None  # it was prepared
        sizes = sample_sizes(examples, trainer.load("denoiser").denoiser_spec.patch)
        order = make_order(sizes, train, lambda index: trainer.records[index].id)
        steps = total_steps(order, train, trainer.processes.world)
        resuming.check_length(state.step, steps, "train.epochs")
        trainer.total_steps = steps
        self.status.note(steps=steps)
        device, world = trainer.composition.device("denoiser"), trainer.processes.world
        peak = measured_rate(device, train.precision) * world if declares_flops(trainer.denoiser) else None
        if train.mode == "lora":
            about = {**about, "adapter": adapters.peft_metadata(adapters.lora_layers(trainer.denoiser.module))}
        watch = Watch(
            trainer=trainer,
            run=self.run,
            state=state,
            max_steps=steps,
            held_out=held_out,
            sample=partial(self._sample, plans=plans) if plans else None,
            about=about,
            toml=self.toml,
            sound=self.sound,
        )
        watch.setup = step_setup(
            trainer,
            attrs.evolve(train, max_steps=steps),
            examples,
            order,
            progress=trainer.progress,
            observe=watch.observe,
            validate=watch.validate,
            validation_due=watch.due,
            save=watch.save,
            keep=watch.keep,
            keep_due=watch.keep_due,
            processes=trainer.processes,
            one_by_one=trainer.sharded,
            ahead=_AHEAD if trainer.use_cache else 0,  # live examples are encoded on the device, in this thread
            log_every=trainer.config.logging.every or (1 if device.type == "cpu" else _LOG_EVERY),
            peak=peak,
        )
        if state.step == 0 and (found := watch.validate(0)):
            watch.observe(0, found)
        return run_steps(watch.setup, state)

    def _result(self, weights: Path) -> FitResult:
        """Show how many samples were right before and after, and make the sheet of both."""
        before, after = self.validation.results("before"), self.validation.results("after")
        for line in result_lines(before, after):
            self.trainer.progress.note(line)
        sheet = self.validation.sheet() if self.trainer.processes.first else None
        return FitResult(folder=self.run.folder, weights=weights, sheet=sheet, before=before, after=after)


def _unsampled(number: int, weights: Path) -> Stopped:
    """The error that a signal with this number ended a run whose steps are all made."""
    return Stopped(
        number,
        f"stopped after the last step: {weights} is written, and no samples were made after training",
        "--resume makes them.",
    )
