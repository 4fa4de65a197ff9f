"""The class `Trainer`, which `qframe train` uses, and whose stages Python code can also call one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from qframe.cache import ALL, CachedExamples, Portion
from qframe.cache.live import LiveExamples
from qframe.compose import Composition, compose
from qframe.config.folders import cache_folder
from qframe.config.schema import Config
from qframe.data.choose import open_source
from qframe.interfaces import Denoiser, Parts, Plan, Record, RecordSource
from qframe.plugins.registry import Registry, load_registry
from qframe.progress import Progress
from qframe.progress.shown import default_progress
from qframe.sample.pipeline import Pipeline
from qframe.train.checks import check_composition, check_settings, refuse_shards, shards
from qframe.train.distributed import ALONE, Processes
from qframe.train.examples import declared_inputs, encoded_examples
from qframe.train.optim import schedule_factor
from qframe.train.outlook import Outlook
from qframe.train.parts import LoadedParts, described, load_lora, merge_lora, prepare_training, registered_loggers
from qframe.train.precision import in_precision
from qframe.train.records import measured_records, sampled_records, split_records
from qframe.train.results import FitResult, averaged, write_lora
from qframe.train.samples import run_plans
from qframe.train.session import run_session
from qframe.train.state import TrainingState


class Trainer:
    """A trainer that trains a model of one family on one data set, and writes its results into one run folder.

    `fit` does everything. A stage loads only the components that it needs: caching encoder and codec, training the
    denoiser. Making a trainer loads no weights, but checks the settings and lists the records.

    Attributes (besides the arguments of the constructor):
        asked: The settings as they were given; `config` has what `outlook` chose by the key `memory`, too.
        composition: The components of the model, checked against each other.
        source: The data source that the records come from.
        inputs: For each record to train on, the pictures and prompts that the recipe wants encoded.
        measured: The same for the held-out records that the validation loss is computed over, if one is computed.
        sampled: The records that are sampled before and after training.
        judge: The data source that judges whether a sampled picture is right.
        loggers: The loggers that `logging.use` names, by name.
        state: The trained parameters, their optimizers and the step; None before `prepare` and after `merge_lora`.
        loaded: The components that are loaded at present.
        computing: Makes the context of a forward pass of the denoiser, in which it computes as `train.precision` says.
        total_steps: The number of optimizer steps of the whole run; None until `fit` has encoded the examples.
    """

    def __init__(
        self,
        config: Config,
        *,
        progress: Progress | None = None,
        registry: Registry | None = None,
        processes: Processes = ALONE,
        sources: Mapping[str, str] | None = None,
    ) -> None:
        """Check the settings and list the records.

        Args:
            config: The settings of the run.
            progress: Is told how far each stage has come; by default bars in a terminal or a notebook.
            registry: The plugins; by default all that are installed.
            processes: The processes that train together. Each has its own trainer, whose methods all must call alike.
            sources: Where each value of the configuration comes from (`qframe.config.Resolved.sources`).

        Raises:
            ConfigError: The settings contradict each other, or name something that is not installed.
            DataError: The records cannot be listed, or there are none.
        """
        self.asked = self.config = config
        self.sources = sources or {}
        self.progress = default_progress() if progress is None else progress
        self.processes = processes
        self.registry = registry or load_registry()
        check_settings(config, self.registry, processes, chosen=False)
        composition: Composition = compose(config, self.registry)
        check_composition(composition, processes)
        self.source: RecordSource = open_source(config, self.registry)
        records, held_out = split_records(self.source, config)
        self.inputs = declared_inputs(records, composition)
        self.measured = declared_inputs(measured_records(held_out, config), composition)
        self.judge, self.sampled = sampled_records(self.source, records, held_out, config, self.registry)
        self.loggers = registered_loggers(config, self.registry)
        self.outlook = Outlook(self, composition)
        self.composition, self.config = self.outlook.composition, self.outlook.composition.config
        self.state: TrainingState | None = None
        self.total_steps: int | None = None
        self.loaded = LoadedParts(self.composition, sharded=self.sharded, progress=self.progress)
        self.computing = in_precision(self.composition.device("denoiser"), config.train)
        self._loaded_loras = self._merged_at = 0

    __repr__ = described

    def load(self, *roles: str) -> Parts:
        """Load the components of these roles unless they are loaded, and return all components that are loaded now."""
        return self.loaded.load(*roles)

    def release(self, *roles: str) -> None:
        """Let go of the components of these roles, so that their memory can be freed."""
        self.loaded.release(*roles)

    @property
    def denoiser(self) -> Denoiser:
        """The denoiser with its present weights. It is loaded if it is not loaded yet."""
        return self.load("denoiser").denoiser

    @property
    def records(self) -> Sequence[Record]:
        """The records to train on."""
        return self.inputs.records

    @property
    def global_step(self) -> int:
        """The number of optimizer steps that the present weights have been trained for."""
        return self._merged_at if self.state is None else self.state.step

    @property
    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """The optimizers of the trained weights; empty before `prepare`."""
        return [] if self.state is None else self.state.optimizers.parts

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step: `train.learning_rate` times the factor of `train.lr_schedule`."""
        factor = schedule_factor(self.config.train, self.global_step, steps=self.total_steps)
        return self.config.train.learning_rate * factor

    @property
    def use_cache(self) -> bool:
        """Whether examples are read from the cache (`cache.enabled`), instead of being encoded at every step."""
        return self.config.cache.enabled

    @property
    def cache_dir(self) -> Path:
        """The cache's folder."""
        return cache_folder(self.config)

    @property
    def quantised(self) -> bool:
        """Whether the denoiser is quantised: its frozen weights are stored in fewer bits."""
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
        """Encode the entries that the cache lacks for these records, and return the records' examples.
        If `cache.enabled` is false, nothing is encoded yet: the returned examples are encoded each time they are read.

        Args:
            folder: The cache's folder; by default `cache_dir`.
            portion: The portion of the work that this process encodes, where several processes fill one cache.
            records: The records to encode; by default the records to train on.

        Raises:
            ConfigError: The recipe resizes pictures to sizes that codec and denoiser cannot take.
            DataError: A record or a picture cannot be used; the message names it.
        """
        inputs = self.inputs if records is None else declared_inputs(records, self.composition)
        return encoded_examples(self, inputs, folder or self.cache_dir, portion)

    def prepare(self) -> TrainingState:
        """Prepare the denoiser for training, and return the training state at step 0, which `state` keeps.

        The trained weights are a new LoRA if `train.mode` is "lora", else all weights of the denoiser.
        """
        device = self.composition.device("denoiser") if self.sharded else None
        self.state = prepare_training(self.denoiser, self.config, self.registry, device, self.dtype)
        return self.state

    def fit(self, resume: str | None = None, *, change: Sequence[str] = ()) -> FitResult:
        """Train: encode the records, sample, make all steps, sample again, and write the results into the run folder.

        `resume` is None, "latest", or a checkpoint's name or path; `change` names settings that may differ from its.
        """
        return run_session(self, resume, change)

    def sample(self, plans: Sequence[Plan], *, title: str = "sampling") -> list[Image.Image]:
        """Sample one picture for each plan with the present weights, and return the pictures in the order of the plans.

        If the run keeps a moving average of the weights, the average is used. Each plan must be for one picture. All
        processes must call this method with the same plans; each samples a portion of them, and all get all pictures.
        """
        parts = self.load("denoiser")
        parts.denoiser.module.eval()
        with self.loaded.codec_placement.freed(), self.averaged():
            run = partial(run_plans, processes=self.processes, sharded=self.sharded, progress=self.progress)
            return run(plans, parts, self.config.sample, computing=self.computing, title=title)

    def predict(self, **request: Any) -> Any:
        """Sample pictures with the present weights, or with their moving average if the run keeps one.

        Arguments and result are those of `Pipeline.__call__`, except that `num_inference_steps`, `true_cfg_scale` and
        `negative_prompt` have the values of `[sample]` if they are not given. A sharded denoiser is a ConfigError.
        """
        refuse_shards(self.sharded, "predict")
        names = ("num_inference_steps", "true_cfg_scale", "negative_prompt")
        request = {**{name: getattr(self.config.sample, name) for name in names}, **request}
        pipe = Pipeline(self.composition, self.load("encoder", "codec", "denoiser"), computing=self.computing)
        pipe.parts.denoiser.module.eval()
        with self.loaded.codec_placement.freed(), self.averaged():
            return pipe(**request)

    def averaged(self) -> AbstractContextManager[None]:
        """A context in which the trained weights are replaced by their moving average, if the run keeps one."""
        return averaged(self.state)

    def save_lora(self, path: str | Path, **about: str) -> Path:
        """Write the LoRA in training, or its moving average, to a file in the diffusers layout; return the path.

        `about` is more metadata for the file. Frozen LoRAs are not written.
        """
        return write_lora(self, Path(path), about)

    def load_lora(self, path: str | Path, scale: float = 1.0) -> None:
        """Put a LoRA file, whose update is multiplied by `scale`, on the denoiser, and freeze all parameters."""
        self._loaded_loras += 1
        load_lora(self.denoiser, Path(path), scale, adapter=f"loaded_{self._loaded_loras}")

    def merge_lora(self) -> None:
        """Add the updates of all adapters on the denoiser to its weights, and remove the adapters.
        Training cannot go on afterwards: `state` is None until `prepare` makes a new one. Raises ConfigError if the
        denoiser is sharded or quantised.
        """
        refuse_shards(self.sharded, "merge_lora")
        self._merged_at = self.global_step
        merge_lora(self.denoiser)
        self.state = None
