"""What each process learns from in each step: a function of the recipe and the step's number alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from flmm_plugin.errors import TrainingStopped
from flmm_plugin.training.losses import Prepared
from flmm_plugin.training.preparing import Preparer
from flmm_plugin.training.processes import Processes
from flmm_plugin.training.recipe import TrainRecipe
from flmm_plugin.training.samples import TrainingSample, TrainingSet
from flmm_plugin.training.schedule import data_order


@dataclass(frozen=True, eq=False)
class Batch:
    """One process's share of a step.

    Attributes:
        samples: That can be used.
        unusable: How many cannot.
        trouble: What is to end the run for it; raised when all processes know, or they would wait for this one.
    """

    samples: list[Prepared]
    unusable: int
    trouble: TrainingStopped | None = None


class Batches:
    """The batches of one process.

    Args:
        samples: Of the training.
        preparer: Reads them.
        processes: Which share of a step is this process's.
        recipe: Seed, batch size, epochs.

    Attributes:
        steps_per_epoch: The last one of an epoch may be smaller.
        steps: Of the whole run.
    """

    def __init__(self, samples: TrainingSet, preparer: Preparer, processes: Processes, recipe: TrainRecipe) -> None:
        self.samples, self.preparer, self.processes, self.recipe = samples, preparer, processes, recipe
        self.steps_per_epoch = math.ceil(len(samples) / recipe.batch_size)
        self.steps = recipe.epochs * self.steps_per_epoch
        if recipe.steps is not None:
            self.steps = min(self.steps, recipe.steps)

    def after(self, step: int) -> Iterator[Batch]:
        """All batches that are left after so many steps. On a GPU the next one is read while this one is learnt."""
        plans = (self.of_step(number) for number in range(step, self.steps))
        if self.processes.device.type == "cpu":
            yield from map(self.read, plans)
            return
        with ThreadPoolExecutor(1) as thread:
            ahead = None
            for samples in plans:
                coming = thread.submit(self.read, samples)
                if ahead is not None:
                    yield ahead.result()
                ahead = coming
            if ahead is not None:
                yield ahead.result()

    def of_step(self, step: int) -> list[TrainingSample]:
        """This process's samples of a step, counted from 0."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order, size = data_order(len(self.samples), self.recipe.seed, epoch), self.recipe.batch_size
        chosen = order[place * size : (place + 1) * size]
        return [self.samples[int(index)] for index in chosen[self.processes.index :: self.processes.count]]

    def read(self, samples: Sequence[TrainingSample]) -> Batch:
        """The samples, ready; those that cannot be used are counted."""
        found: list[Prepared] = []
        for sample in samples:
            try:
                prepared = self.preparer.prepare(sample)
            except TrainingStopped as exc:
                return Batch(found, len(samples) - len(found), exc)
            if prepared is not None:
                found.append(prepared)
        return Batch(found, len(samples) - len(found))
