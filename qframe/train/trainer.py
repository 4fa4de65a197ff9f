"""The trainer: what `qframe train` runs and what Python code drives step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from qframe import adapters
from qframe.cache import ALL, Cache, CachedExamples, DeclaredInputs, Portion, build_cache
from qframe.cache.configured import cache_folder, made_by
from qframe.cache.live import LiveExamples
from qframe.compose import Composition, compose
from qframe.config.schema import Config
from qframe.data.choose import open_source
from qframe.errors import ConfigError
from qframe.interfaces import Denoiser, Parts, Plan, Record, RecordSource
from qframe.plugins.registry import Registry, load_registry
from qframe.progress import SILENT, Progress
from qframe.sample.pipeline import Pipeline
from qframe.train.checks import check_composition, check_settings, check_sizes, shards
from qframe.train.distributed import ALONE, Processes
from qframe.train.optim import schedule_factor
from qframe.train.parts import LoadedParts, prepare_training
from qframe.train.records import measured_records, sampled_records, split_records
from qframe.train.results import FitResult, averaged
from qframe.train.samples import run_plans
from qframe.train.session import run_session
from qframe.train.state import TrainingState


class Trainer:
    """Trains one family on one data set, and writes everything into one run folder.

    A stage loads only the parts that it needs: caching loads encoder and codec, training loads the denoiser, and the
    plans of validation samples are made while the encoder is loaded. Making a trainer checks the composition and lists
    the records, so that a mistake in the settings is told before any work.

    Attributes:
        composition: The components of the family, checked against each other.
        records, inputs: The records to train on, and what the recipe declares for each.
        measured: The records that the validation loss is taken over.
        sampled, judge: The records that are sampled before and after training, and the source that judges the samples.
        loggers: What `logging.use` names, by name.
        state: What training changes; None before `prepare`.
        loaded: The parts that are loaded at the moment.
        total_steps: Optimizer steps of the whole run; None until the examples are known.
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
        """Check the settings and list the records.

        Args:
            config: The settings of the run.
            progress: Shows how far each stage is.
            registry: The plugins; by default all that are installed.
            processes: The processes that train together (`qframe.train.distributed.joined`). Each has its own trainer,
                and all call the same methods. The work is split; the first process alone writes the run folder.
            sources: Where each value of the configuration comes from (`qframe.config.Resolved.sources`); reported.
        """
        self.config = config
        self.sources = sources or {}
        self.progress = progress
        self.processes = processes
        self.registry = registry or load_registry()
        check_settings(config, self.registry, processes)
        self.composition: Composition = compose(config, self.registry)
        check_composition(self.composition, processes)
        self.source: RecordSource = open_source(config, self.registry)
        records, held_out = split_records(self.source, config)
        self.inputs = self._declare(records)
        self.measured = measured_records(held_out, config)
        self.judge, self.sampled = sampled_records(self.source, records, held_out, config, self.registry)
        self.loggers = {name: self._logger(name) for name in config.logging.use}  # may lack a package
        self.state: TrainingState | None = None
        self.total_steps: int | None = None
        self.loaded = LoadedParts(self.composition, sharded=self.sharded)
        self._loaded_loras = self._merged_at = 0

    def _declare(self, records: Sequence[Record]) -> DeclaredInputs:
        drops = self.config.train.caption_dropout > 0
        return DeclaredInputs(records, self.composition.recipe, unconditional=drops)

    def _logger(self, name: str) -> Any:
        return self.registry.resolve(self.registry.component("logger", name))()

    def load(self, *roles: str) -> Parts:
        """The parts with (at least) these roles loaded; roles that were loaded before are kept."""
        return self.loaded.load(*roles)

    def release(self, *roles: str) -> None:
        """Forget loaded parts, so that their memory is free."""
        self.loaded.release(*roles)

    @property
    def denoiser(self) -> Denoiser:
        """The denoiser with its weights as they stand. It is loaded if it is not loaded yet."""
        return self.load("denoiser").denoiser

    @property
    def records(self) -> Sequence[Record]:
        return self.inputs.records

    @property
    def global_step(self) -> int:
        """How many optimizer steps the weights have made."""
        return self._merged_at if self.state is None else self.state.step

    @property
    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """The optimizers that step the weights; none before `prepare`."""
        return [] if self.state is None else self.state.optimizers.parts

    @property
    def learning_rate(self) -> float:
        """The rate of the next step, by `train.lr_schedule`; of several optimizers, that of `train.learning_rate`."""
        train = self.config.train
        return train.learning_rate * schedule_factor(train, self.global_step, steps=self.total_steps)

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
    def sharded(self) -> bool:
        """Whether the denoiser is sharded over several processes, so that no process holds all of its weights."""
        return shards(self.config, self.processes)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the denoiser's frozen weights."""
        return self.composition.dtype("denoiser")

    def cache(
        self, folder: Path | None = None, *, portion: Portion = ALL, records: Sequence[Record] | None = None
    ) -> CachedExamples | LiveExamples:
        """Encode what is not in the cache yet, and return the examples. With cache.enabled = false, live examples.

        Args:
            folder: The cache's folder, by default `cache_dir`.
            portion: Which portion of the work to encode here, where several processes fill one cache.
            records: What to encode, by default the records to train on.

        Raises:
            ConfigError: The recipe's sizes do not fit the codec and the denoiser.
        """
        inputs = self.inputs if records is None else self._declare(records)
        check_sizes(self.composition, inputs[0])
        if not self.use_cache:
            return LiveExamples(inputs, self.load("encoder", "codec"), counter=self.composition.token_counter())
        cache, size, progress = Cache(folder or self.cache_dir), self.config.cache.batch_size, self.progress
        ingredients = made_by(self.composition, cache, progress)
        return build_cache(inputs, self.load, cache, ingredients, batch_size=size, portion=portion, progress=progress)

    def prepare(self) -> TrainingState:
        """Make the training state at step 0: a new LoRA or all weights of the denoiser, and their optimizers."""
        device = self.composition.device("denoiser") if self.sharded else None
        self.state = prepare_training(self.denoiser, self.config, self.registry, device)
        return self.state

    def fit(self, resume: str | None = None) -> FitResult:
        """Cache, sample, train, sample again. `resume`: "latest", or a checkpoint of the run folder."""
        return run_session(self, resume)

    def sample(self, plans: Sequence[Plan], *, title: str = "sampling") -> list[Image.Image]:
        """One picture per plan (of one sample each), with the weights as they stand, or their average if the run
        averages. Of several processes each samples its portion, and all get all pictures.
        """
        parts = self.load("denoiser")
        parts.denoiser.module.eval()
        with self.loaded.codec_placement.freed(), self.averaged():
            return run_plans(
                plans,
                parts,
                self.config.sample,
                processes=self.processes,
                sharded=self.sharded,
                progress=self.progress,
                title=title,
            )

    def predict(self, **request: Any) -> Any:
        """Sample with the weights as they stand: the arguments and the result of `qframe.load(...)(...)`.

        The number of steps, the scale of guidance and the negative prompt are those of `[sample]` where none are given.
        """
        self._refuse_shards("predict")
        names = ("num_inference_steps", "true_cfg_scale", "negative_prompt")
        request = {**{name: getattr(self.config.sample, name) for name in names}, **request}
        pipe = Pipeline(self.composition, self.load("encoder", "codec", "denoiser"))
        pipe.parts.denoiser.module.eval()
        with self.loaded.codec_placement.freed(), self.averaged():
            return pipe(**request)

    def _refuse_shards(self, method: str) -> None:
        if self.sharded:
            raise ConfigError(
                f"Trainer.{method}: train.shard is 'full', so no process has all of the denoiser",
                "Use what the run wrote: qframe.load(..., lora=...) or its `denoiser` folder.",
            )

    def averaged(self) -> AbstractContextManager[None]:
        """Inside, the trained weights are their moving average, if the run keeps one."""
        return averaged(self.state)

    def save_lora(self, path: str | Path) -> Path:
        """Write the adapter as it stands (averaged, if averaging) in the diffusers layout, alpha included."""
        with self.averaged():
            layers = adapters.lora_layers(self.denoiser.module)
            metadata = {"weights_licence": self.composition.licence, "base_model": self.composition.model_name}
            adapters.save_lora(Path(path), layers, metadata=metadata)
        return Path(path)

    def load_lora(self, path: str | Path, scale: float = 1.0) -> None:
        """Put a LoRA file's adapter on the denoiser; `scale` multiplies what the adapter adds."""
        self._loaded_loras += 1
        adapters.load_lora(self.denoiser.module, Path(path), scale, adapter=f"loaded_{self._loaded_loras}")

    def merge_lora(self) -> None:
        """Add the adapters into the weights they belong to, for good."""
        self._refuse_shards("merge_lora")
        self._merged_at = self.global_step
        adapters.merge_lora(self.denoiser.module)
        self.state = None
