"""One step: gradients of all its samples, over all processes, and one update; or a named reason why there is none."""

from __future__ import annotations

import contextlib
import math
from typing import Any, cast

import torch
from torch import Tensor

from flmm_plugin.errors import TrainingStopped
from flmm_plugin.training.batches import Batch, Batches
from flmm_plugin.training.losses import TERMS, Prepared
from flmm_plugin.training.preparing import BAD_GRADIENT, BAD_LOSS
from flmm_plugin.training.processes import Processes
from flmm_plugin.training.recipe import TrainRecipe
from flmm_plugin.training.results import Progress
from flmm_plugin.training.run_folder import RunFolder
from flmm_plugin.training.schedule import decoder_steps, learning_rate

_BAD_IN_A_ROW = 25  # steps without a usable gradient after which a run has no future


class Stepper:
    """Learns from batches.

    A sample's loss is computed and sent back alone, so that memory does not grow with the batch; gradients are summed
    over the samples of a step and over all processes, which take every n-th sample each: two processes do what one
    does.

    Args:
        model: `HeadsLoss`, prepared by accelerate.
        optimizer: Likewise.
        batches: Where they come from.
        state: Of the run; counted on here.
        folder: Named in messages.
    """

    def __init__(self, model: Any, optimizer: Any, batches: Batches, state: Progress, folder: RunFolder) -> None:
        self.model, self.optimizer, self.state, self.folder = model, optimizer, state, folder
        self.batches, self.preparer, self.samples = batches, batches.preparer, batches.samples
        self.recipe: TrainRecipe = batches.recipe
        self.processes: Processes = batches.processes
        self.accelerator = self.processes.accelerator
        self._lost: list[Prepared] = []  # whose loss was not finite, in the step at hand

    def step(self, batch: Batch) -> dict[str, float]:
        """Gradients of all samples of a step, and one update. Returns mean losses and the like."""
        state, recipe, processes = self.state, self.recipe, self.processes
        if state.step % self.batches.steps_per_epoch == 0:
            state.unusable = 0
        usable, unusable, troubled = processes.summed(
            [len(batch.samples), batch.unusable, int(batch.trouble is not None)]
        )
        if troubled:
            raise batch.trouble or TrainingStopped("another process met a sample that cannot be used; it says which")
        state.unusable += unusable
        self._check_share()
        lr = learning_rate(recipe.optimiser, state.step, self.batches.steps)
        alone = state.step < decoder_steps(recipe.optimiser, self.batches.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        terms = torch.zeros(len(TERMS), dtype=torch.float64)
        pieces = self._pieces(batch.samples)
        for place, piece in enumerate(pieces):
            # DDP averages over processes what is to be summed.
            terms += self._backward(piece, processes.count / max(usable, 1), last=place == len(pieces) - 1, alone=alone)
        if alone:  # a gradient of zero would still let AdamW decay the parameters and count its steps
            for name, parameter in self.model.named_parameters():
                if "mask_decoder." not in name or "mask_refiner." in name:
                    parameter.grad = None
        norm = self._update(usable)
        processes.together(self._check_losses)
        state.step += 1
        means = (processes.reduced(terms) / max(usable, 1)).tolist()
        lines = {"loss": sum(means), **dict(zip(TERMS, means, strict=True))}
        return {**lines, "lr": lr, "gradient": norm, "samples": float(usable)}

    def _pieces(self, batch: list[Prepared]) -> list[list[Prepared]]:
        """What is sent back at once; every process has as many pieces, some of nothing."""
        if self.processes.one_call_per_step:
            return [batch]
        count = -(-self.recipe.batch_size // self.processes.count)
        return [batch[place : place + 1] for place in range(count)]

    def _backward(self, piece: list[Prepared], share: float, *, last: bool, alone: bool) -> Tensor:
        """Add the gradients of a piece; losses that are not finite do not count. Returns its summed terms, ``[5]``."""
        with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
            losses, anchor = self.model(piece, anchored=last, decoder_alone=alone)
            finite = torch.isfinite(losses).all(dim=1)
            self.accelerator.backward(losses[finite].sum() * share + anchor)
        self._lost += [sample for sample, good in zip(piece, finite.tolist(), strict=True) if not good]
        return cast(Tensor, losses.detach()[finite].double().sum(dim=0).cpu())

    def _update(self, usable: int) -> float:
        """Clip and step, unless there is nothing to step along. Returns the gradient's norm."""
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.recipe.optimiser.clip)
        size = 0.0 if norm is None else float(norm)
        # A scaler of fp16 skips such steps itself, and learns its scale from them.
        good = usable > 0 and (math.isfinite(size) or self.accelerator.scaler is not None)
        if good:
            self.optimizer.step()
        self.state.bad_in_a_row = 0 if good else self.state.bad_in_a_row + 1
        self.processes.together(lambda: None if good else self._note_gradient(usable, size))
        return size

    def _check_losses(self) -> None:
        lost, self._lost = self._lost, []
        for sample in lost:
            self.preparer.note(BAD_LOSS, sample.key, len(sample.masks))

    def _note_gradient(self, usable: int, size: float) -> None:
        where = f"step {self.state.step + 1}"
        if usable:
            self.preparer.note(BAD_GRADIENT, f"{where} (norm {size})")
        if self.state.bad_in_a_row >= _BAD_IN_A_ROW:
            raise TrainingStopped(
                f"{_BAD_IN_A_ROW} steps in a row gave no usable gradient, the last one {where}; lower optimiser.lr, "
                f"set precision=fp32, or look at {self.folder.problems}"
            )

    def _check_share(self) -> None:
        allowed = self.recipe.max_bad_share * len(self.samples)
        if self.state.unusable > max(allowed, 1):
            raise TrainingStopped(
                f"{self.state.unusable} of the {len(self.samples)} samples cannot be used in this epoch, more than "
                f"max_bad_share={self.recipe.max_bad_share:g}; {self.folder.problems} names them"
            )
