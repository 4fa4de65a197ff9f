"""The memory of a training run before it starts: what the key `memory` chooses, what is forecast, what would help."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qframe import preflight
from qframe.cache import DeclaredInputs
from qframe.cache.lengths import FittedSize
from qframe.compose import Composition, compose
from qframe.config.schema import Config
from qframe.preflight.choosing import Choice, chosen_for_training
from qframe.preflight.forecast import Forecast
from qframe.preflight.nominal import largest_area, nominal_size
from qframe.preflight.remedies import find_remedies
from qframe.train.checks import check_composition, check_settings
from qframe.train.examples import declared_inputs

if TYPE_CHECKING:
    from qframe.train.trainer import Trainer


class Outlook:
    """The outlook on the memory of a run.

    Attributes:
        choices: What the key `memory` chose, with the reasons.
    """

    def __init__(self, trainer: Trainer, composition: Composition) -> None:
        """Choose what the configuration leaves open.

        Args:
            trainer: The trainer. It knows its configuration, its records and its processes already.
            composition: The composition of that configuration.
        """
        self._trainer = trainer
        self._asked = trainer.asked
        self._counts = preflight.Counts()
        self.composition, self.choices = self._choose(composition)
        check_settings(self.composition.config, trainer.registry, trainer.processes)

    def forecast(self, size: FittedSize = nominal_size, *, processes: int | None = None) -> Forecast:
        """Forecast the memory of the run; for the arguments see `qframe.preflight.forecast_training`."""
        world = self._trainer.processes.world if processes is None else processes

        def again(config: Config) -> Forecast:
            check_settings(config, self._trainer.registry, self._trainer.processes, chosen=False)
            other, _ = self._choose(compose(config, self._trainer.registry).sharing(self.composition))
            check_settings(other.config, self._trainer.registry, self._trainer.processes)
            check_composition(other, self._trainer.processes)
            return self._forecast(other, size, world)

        found, area = self._forecast(self.composition, size, world), largest_area(self.composition)
        return found.advised(lambda own: find_remedies(self._asked, own, again, trains=True, area=area))

    def _choose(self, composition: Composition) -> tuple[Composition, tuple[Choice, ...]]:
        world = self._trainer.processes.world
        return chosen_for_training(composition, lambda one: self._forecast(one, nominal_size, world), processes=world)

    def _forecast(self, composition: Composition, size: FittedSize, processes: int) -> Forecast:
        return preflight.forecast_training(
            composition,
            self._inputs(composition),
            size,
            processes=processes,
            samples=bool(self._trainer.sampled),
            counts=self._counts,
        )

    def _inputs(self, composition: Composition) -> DeclaredInputs:
        recipe, own = composition.config.recipe, self._trainer.inputs
        if recipe == self._asked.recipe:
            return own
        found: DeclaredInputs = self._counts.once(
            ("inputs", repr(recipe)), lambda: declared_inputs(own.records, composition)
        )
        return found
