"""What a step's number decides: the learning rate, and which samples it sees. Nothing here has a state."""

from __future__ import annotations

import functools
import math

import numpy as np
import numpy.typing as npt

from flmm_plugin.training.recipe import OptimiserRecipe

_ORDER_STREAM = 11


def decoder_steps(optimiser: OptimiserRecipe, steps: int) -> int:
    """Steps at the start in which the mask decoder learns alone."""
    return round(optimiser.decoder_first * steps)


def learning_rate(optimiser: OptimiserRecipe, step: int, steps: int) -> float:
    """The learning rate of a step (counted from 0); each of the two phases has the whole schedule."""
    alone = decoder_steps(optimiser, steps)
    if step < alone:
        peak = optimiser.lr if optimiser.decoder_lr is None else optimiser.decoder_lr
        return peak * rate(optimiser, step, alone)
    return optimiser.lr * rate(optimiser, step - alone, steps - alone)


def rate(optimiser: OptimiserRecipe, step: int, steps: int) -> float:
    """Share of the peak learning rate at a step (counted from 0): linear rise, then the schedule.

    >>> [round(rate(OptimiserRecipe(warmup=0.2), step, 10), 3) for step in (0, 1, 2, 6, 9)]
    [0.5, 1.0, 1.0, 0.5, 0.038]
    """
    warmup = math.ceil(optimiser.warmup * steps)
    if step < warmup:
        return (step + 1) / warmup
    if optimiser.schedule == "constant":
        return 1.0
    done = (step - warmup) / max(1, steps - warmup)
    return 1 - done if optimiser.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2


@functools.lru_cache(maxsize=2)
def data_order(samples: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """The order of an epoch, ``[samples]``."""
    order: npt.NDArray[np.int64] = np.random.default_rng([seed, _ORDER_STREAM, epoch]).permutation(samples)
    return order
