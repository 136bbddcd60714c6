"""Train heads on frozen features; a run that is killed at any moment goes on to the same weights.

What a step sees is a function of the recipe and of the step's number alone: the seed and the epoch give the order of
the samples, the step gives the learning rate. Weights, optimiser, random states and counters are in every checkpoint.
LMM and SAM's image encoder are frozen: they are outside of what accelerate wraps, and under a seal.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from flmm_plugin import files
from flmm_plugin.backbones.base import Backbone
from flmm_plugin.errors import TrainingStopped
from flmm_plugin.heads import GroundingHeads, save_heads
from flmm_plugin.json_lines import Log
from flmm_plugin.measured import Stopwatch, remember_model
from flmm_plugin.redaction import public
from flmm_plugin.training.batches import BAD_GRADIENT, BAD_LOSS, Batch, Batches, Preparer
from flmm_plugin.training.cache import BuildReport, CachedReader, CacheEstimate, FeatureCache, build, estimate
from flmm_plugin.training.checkpoint import Checkpoints, Saver
from flmm_plugin.training.distributed import Processes, chosen_trackers, flat
from flmm_plugin.training.features import HEADS_STAGE, FrozenReader
from flmm_plugin.training.losses import TERMS, HeadsLoss, Prepared
from flmm_plugin.training.models import load_lmm, seals_of, trainable, without_encoder
from flmm_plugin.training.recipe import OptimiserRecipe, TrainRecipe
from flmm_plugin.training.run_folder import RunFolder
from flmm_plugin.training.samples import TrainingSample, TrainingSet
from flmm_plugin.training.validation import Scores, ValidationReport, count

LOG_EVERY = 10  # steps between two lines of the log
_BAD_IN_A_ROW = 25  # steps without a usable gradient after which the run stops


@dataclass
class Progress:
    """Counters of a run: plain data, in every checkpoint."""

    step: int = 0  # steps done
    unusable: int = 0  # samples of the current epoch that could not be used, over all processes
    best: float | None = None  # score of the best validation, None before the first
    best_step: int = 0
    stale: int = 0  # validations since the best one
    bad_in_a_row: int = 0  # steps without a usable gradient, up to now
    seconds: float = 0.0  # duration so far, in all parts of the run


@dataclass(frozen=True)
class TrainedRun:
    """Result of a run."""

    heads: Path  # file of the best heads
    last: Path  # file of the heads after the last step
    steps: int  # steps done
    best_step: int
    scores: Scores | None  # of the last validation; None without one
    best_score: float | None  # of the best heads, by the recipe's metric
    problems: dict[str, int] = field(default_factory=dict)  # counts of what could not be used, by kind
    seconds: float = 0.0  # duration, in all parts of the run
    stopped_early: bool = False  # the recipe's patience ended it


def train(
    recipe: TrainRecipe,
    out: str | Path,
    *,
    restart: bool = False,
    on_validation: Callable[[ValidationReport], None] | None = None,
    backbone: Backbone | None = None,
    progress: bool = True,
) -> TrainedRun:
    """Train heads; a run that was killed goes on.

    Args:
        recipe: Model, data and all numbers of the training.
        out: The run's folder: ``heads.safetensors`` (best), ``last.safetensors``, ``recipe.yaml``, ``log.jsonl``,
            ``problems.jsonl``, ``run.json``, checkpoints and, if not elsewhere, the feature cache.
        restart: Remove what an earlier run left in ``out``, its cache excepted.
        on_validation: Called on the main process after each validation.
        backbone: A model that is loaded already; None: as the recipe says.
        progress: Show a bar on stderr, on the main process.

    Raises:
        TrainingStopped: Nothing to learn from, too much that cannot be used, a full disk, or another recipe's folder.
        OutputFailed: A place cannot be written, or another process trains in it; said before anything is loaded.
        BadCheckpoint: All checkpoints of an earlier part of the run are damaged.
        FrozenWeightsChanged: The weights of the frozen models changed.
    """
    return Trainer(
        recipe, out, restart=restart, on_validation=on_validation, backbone=backbone, progress=progress
    ).run()


class Trainer:
    """One run. Arguments as for `train`; use that.

    Attributes:
        lmm: The frozen model, with heads that are brought up to date for validating and saving.
    """

    def __init__(
        self,
        recipe: TrainRecipe,
        out: str | Path,
        *,
        restart: bool = False,
        on_validation: Callable[[ValidationReport], None] | None = None,
        backbone: Backbone | None = None,
        progress: bool = True,
    ) -> None:
        self.recipe = recipe
        self.on_validation = on_validation
        trackers, self._advice = chosen_trackers(recipe.trackers)
        self.processes = Processes(recipe, trackers, Path(out))
        self.accelerator = self.processes.accelerator
        self.main = self.processes.main
        self.folder = RunFolder(Path(out), recipe)
        self.log = Log(self.folder.log)
        self.checkpoints = Checkpoints(self.folder.checkpoints, recipe.saving.keep)
        self.saver = Saver(self.processes, self.folder, self.checkpoints)
        self._show = progress and self.main
        self.watch = Stopwatch()
        try:
            self.processes.by_main(lambda: self._open(restart))
            self._load(backbone)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Release the run's folder for other runs; `run` does so at its end."""
        self.folder.close()

    def run(self) -> TrainedRun:
        """Do all steps that the newest checkpoint does not hold yet."""
        try:
            self._resume()
            self.processes.by_main(self._log_beginning)
            self.accelerator.init_trackers("flmm-train", config=flat(public(self.recipe.to_dict())))
            started, before = time.monotonic(), self.state.seconds
            stopped_early = self._early_stop
            with self._bar() as bar:
                for batch in () if stopped_early else self.batches.after(self.state.step):
                    with self.watch.lap(*[HEADS_STAGE] * len(batch.samples)):
                        lines = self.step(batch)
                    step = self.state.step
                    self.state.seconds = before + time.monotonic() - started
                    bar.update()
                    bar.set_postfix_str(_postfix(lines, self.scores), refresh=False)
                    if step % LOG_EVERY == 0 or step == self.batches.steps:
                        self.processes.by_main(partial(self._log_step, lines))
                    if self._validation_due(step):
                        self._validate()
                        stopped_early = self._early_stop
                    if step % self.recipe.saving.every == 0 or step == self.batches.steps or stopped_early:
                        self._save()
                    if stopped_early:
                        break
            return self._finish(stopped_early)
        finally:
            self._remember_times()
            self.accelerator.end_training()  # ends the process group, too
            self.close()

    def step(self, batch: Batch) -> dict[str, float]:
        """Make one update from the gradients of all samples of a step, over all processes.

        Returns:
            Losses (means over samples), learning rate, norm of the gradient and number of samples.
        """
        state, numbers = self.state, self.recipe.optimiser
        usable = self._usable(batch)
        rate = learning_rate(numbers, state.step, self.batches.steps)
        decoder_alone = state.step < decoder_steps(numbers, self.batches.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        terms, not_finite = self._backward(batch, usable, decoder_alone)
        size = self._update(usable, not_finite, decoder_alone)
        state.step += 1
        means = (self.processes.reduced(terms) / max(usable, 1)).tolist()
        losses_by_name = {"loss": sum(means), **dict(zip(TERMS, means, strict=True))}
        return {**losses_by_name, "lr": rate, "gradient": size, "samples": float(usable)}

    def _usable(self, batch: Batch) -> int:
        """Count the samples of a step that all processes can use.

        Raises:
            TrainingStopped: On all processes, or the others would wait for the gradients of the one that stopped.
        """
        if self.state.step % self.batches.steps_per_epoch == 0:
            self.state.unusable = 0
        mine = [len(batch.samples), batch.unusable, int(batch.stop is not None)]
        usable, unusable, stopped = self.processes.summed(mine)
        if stopped:
            raise batch.stop or TrainingStopped("another process met a sample that cannot be used; it says which")
        self.state.unusable += unusable
        self._name_problems()
        self._check_share()
        return usable

    def _backward(self, batch: Batch, usable: int, decoder_alone: bool) -> tuple[Tensor, list[Prepared]]:
        """Add up gradients, one sample at a time: memory does not grow with the batch.

        Returns:
            Sums of the losses of this process, ``float64[5]``, and its samples whose losses are not finite.
        """
        # DDP averages over processes what is to be summed.
        share = self.processes.count / max(usable, 1)
        terms = torch.zeros(len(TERMS), dtype=torch.float64)
        not_finite: list[Prepared] = []
        pieces = self._pieces(batch.samples)
        for place, piece in enumerate(pieces):
            last = place == len(pieces) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                losses, anchor = self.model(piece, anchored=last, decoder_alone=decoder_alone)
                finite = torch.isfinite(losses).all(dim=1)
                self.accelerator.backward(losses[finite].sum() * share + anchor)
            terms += losses.detach()[finite].double().sum(dim=0).cpu()
            not_finite += [sample for sample, good in zip(piece, finite.tolist(), strict=True) if not good]
        return terms, not_finite

    def _update(self, usable: int, not_finite: Sequence[Prepared], decoder_alone: bool) -> float:
        """Clip the gradient and make the optimiser's step, if the gradient is good; return its norm.

        Raises:
            TrainingStopped: There were too many bad ones in a row, or the recipe says to stop at the first.
        """
        if decoder_alone:  # a gradient of zero would still let AdamW decay the others and count their steps
            for name, parameter in self.model.named_parameters():
                if "mask_decoder." not in name or "mask_refiner." in name:
                    parameter.grad = None
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.recipe.optimiser.clip)
        size = 0.0 if norm is None else float(norm)
        # A scaler of fp16 skips steps that are not finite itself, and learns its scale from them.
        good = usable > 0 and (math.isfinite(size) or self.accelerator.scaler is not None)
        if good:
            self.optimizer.step()
        self.state.bad_in_a_row = 0 if good else self.state.bad_in_a_row + 1
        self.processes.together(lambda: self._check_update(not_finite, good, usable, size))
        return size

    # The feature cache.

    def estimate(self) -> CacheEstimate | None:
        """Estimate the size of the cache from a few samples; nothing is written. None: no cache, or not its turn.

        Raises:
            BadCache: The disk has no room for it.
        """
        found: CacheEstimate | None = None
        if self.main and isinstance(self.source, CachedReader):
            found = estimate(self.source.reader, self.source.cache, [*self.samples, *self.held_out])
            found.check_room()
        self.accelerator.wait_for_everyone()
        return found

    def build_cache(self) -> BuildReport:
        """Read every sample once, each process its share. Returns what this process did.

        Raises:
            TrainingStopped: The cache is switched off.
        """
        if not isinstance(self.source, CachedReader):
            raise TrainingStopped("there is no feature cache to build; leave cache.enabled=true")
        report = build(
            self.source, [*self.samples, *self.held_out], rank=self.processes.index, processes=self.processes.count,
            on_problem=self.preparer.note_error, progress=self._show,
        )  # fmt: skip
        self._name_problems()
        self._remember_times()
        self.accelerator.wait_for_everyone()
        return report

    def _remember_times(self) -> None:
        """Note how long this process took for the frozen models and for the heads, for the next plan."""
        if self.main:
            reader = self.source.reader if isinstance(self.source, CachedReader) else self.source
            for watch in (reader.watch, self.watch):
                remember_model(watch, self.lmm.backbone, self.recipe.batch_size)

    # Beginning, and going on.

    def _open(self, restart: bool) -> None:
        """Take the run's folder, and check that all places can be written before anything is loaded."""
        self.folder.open(restart=restart)
        self.checkpoints.sweep()
        if self.recipe.cache.enabled:
            files.make_folder(self._cache_folder)

    def _load(self, backbone: Backbone | None) -> None:
        recipe = self.recipe
        self.samples = TrainingSet(recipe)
        self.held_out = TrainingSet(recipe, recipe.validation.parts)
        if not len(self.samples):
            raise TrainingStopped("the data has no sample to learn from; look at data.root and data.parts")
        data = ", ".join(dict.fromkeys(f"{part.dataset} {part.split}" for part in self.samples.parts))
        self.lmm = load_lmm(recipe, str(self.processes.device), backbone, data)
        assert self.lmm.heads is not None
        self.seals = seals_of(self.lmm) if self.main else []
        trained = HeadsLoss(without_encoder(self.lmm.heads)).to(self.processes.device).train()
        trained.heads.mask_decoder.to(memory_format=torch.channels_last)  # a third faster on CPUs
        numbers = recipe.optimiser
        optimizer = torch.optim.AdamW(
            list(trainable(trained.heads).values()),
            lr=numbers.lr,
            betas=numbers.betas,
            weight_decay=numbers.weight_decay,
        )
        self.model, self.optimizer = self.accelerator.prepare(trained, optimizer)
        self.source: CachedReader | FrozenReader = FrozenReader(self.lmm)
        if recipe.cache.enabled:
            cap = None if recipe.cache.cap_gb is None else int(recipe.cache.cap_gb * 1e9)
            cache = FeatureCache.of_reader(self._cache_folder, self.source, cap_bytes=cap)
            self.source = CachedReader(self.source, cache)
        self.preparer = Preparer(
            self.source,
            self.lmm.backbone.tokenizer,
            self.processes.device,
            stop=recipe.bad_samples == "stop",
            blank=recipe.control == "image_only",
        )
        self.scores: Scores | None = None
        self.state = Progress()
        self.batches = Batches(self.samples, self.preparer, self.processes, recipe)

    def _resume(self) -> None:
        content = self.saver.restore()
        if content is None:
            torch.manual_seed(self.recipe.seed + 1)
        else:
            self.state = Progress(**content["progress"])
            self.preparer.restore(content["problems"])
            if content["scores"] is not None:
                self.scores = Scores(**content["scores"])
        self.processes.by_main(lambda: self.folder.go_on_after(self.state.step))

    def _log_beginning(self) -> None:
        self.log.write(
            phase="begin" if not self.state.step else "go on",
            step=self.state.step,
            steps=self.batches.steps,
            samples=len(self.samples),
            phrases=self.samples.phrases,
            held_out=len(self.held_out),
            trained_parameters=sum(one.numel() for one in self.model.parameters() if one.requires_grad),
            processes=self.processes.count,
            device=str(self.processes.device),
        )
        for problem in (*self.samples.problems, *self.held_out.problems):
            self.folder.name_problem(problem)
        if self._advice:
            print(self._advice, file=sys.stderr)  # the result has standard output for itself

    @property
    def _cache_folder(self) -> Path:
        options = self.recipe.cache
        return Path(options.folder) if options.folder else self.folder.features

    # Within a step.

    def _pieces(self, batch: list[Prepared]) -> list[list[Prepared]]:
        """Split a batch into its backward passes, padded with empty ones so that all processes make equally many."""
        if self.processes.one_call_per_step:
            return [batch]
        calls = -(-self.recipe.batch_size // self.processes.count)
        return [batch[place : place + 1] for place in range(calls)]

    def _check_update(self, not_finite: Sequence[Prepared], good: bool, usable: int, size: float) -> None:
        """Name losses and gradients that are not finite.

        Raises:
            TrainingStopped: There were too many in a row, or the recipe says to stop at the first.
        """
        where = f"step {self.state.step + 1}"
        try:
            for sample in not_finite:
                self.preparer.note(BAD_LOSS, sample.key, len(sample.masks))
            if not good and usable:
                self.preparer.note(BAD_GRADIENT, f"{where} (norm {size})")
        finally:
            self._name_problems()
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

    def _name_problems(self) -> None:
        for problem in self.preparer.new_problems():
            self.folder.name_problem(problem, self.processes.index)

    # Validating.

    def _validation_due(self, step: int) -> bool:
        if not len(self.held_out):
            return False
        every = max(1, round(self.recipe.validation.every * self.batches.steps_per_epoch))
        return step % every == 0 or step == self.batches.steps

    def _validate(self) -> None:
        """Measure the heads, and keep them if they are the best so far."""
        heads, options = self._synced(), self.recipe.validation
        mine = self.held_out[self.processes.index :: self.processes.count]
        wanted = options.pictures if self.main and self.on_validation is not None else 0
        counts, shown = self.processes.together(
            lambda: count(heads, _bar(mine, self._show), self.preparer, pictures=wanted)
        )
        self._name_problems()
        self.scores = Scores.of_counts(self.processes.summed(counts.tolist()))
        score = getattr(self.scores, options.metric)
        better = score is not None and (self.state.best is None or score > self.state.best)
        if better:
            self.state.best, self.state.best_step, self.state.stale = score, self.state.step, 0
        else:
            self.state.stale += 1
        report = ValidationReport(self.state.step, self._epochs(), self.scores, tuple(shown), better)
        self.processes.by_main(partial(self._log_validation, report))

    def _log_validation(self, report: ValidationReport) -> None:
        numbers = {key: value for key, value in asdict(report.scores).items() if value is not None}
        self.log.write(step=report.step, epoch=report.epoch, **_rounded(numbers), best=report.best)
        self.accelerator.log({f"validation/{key}": value for key, value in numbers.items()}, step=report.step)
        if report.best:
            self._write_heads(self.folder.heads)
        if self.on_validation is not None:
            self.on_validation(report)

    def _log_step(self, lines: dict[str, float]) -> None:
        self.folder.check()
        self.log.write(step=self.state.step, epoch=self._epochs(), **_rounded(lines))
        self.accelerator.log(lines, step=self.state.step)

    @property
    def _early_stop(self) -> bool:
        """True if no validation was better for as long as the recipe has patience."""
        patience = self.recipe.validation.patience
        return patience is not None and self.state.stale >= patience

    # Saving.

    def _save(self) -> None:
        scores = None if self.scores is None else asdict(self.scores)
        content = {"progress": asdict(self.state), "problems": self.preparer.state(), "scores": scores}
        self.saver.save(self.state.step, content)

    def _write_heads(self, path: Path) -> None:
        heads = self.lmm.heads
        assert heads is not None
        notes = {
            "recipe": public(self.recipe.to_dict()),
            "step": self.state.step,
            "scores": None if self.scores is None else asdict(self.scores),
            "data": self.samples.digests,
            "frozen": [seal.digest for seal in self.seals],
        }
        heads.manifest = replace(heads.manifest, notes=notes)
        storage = self.recipe.saving.storage
        self.saver.guarded(self.state.step, lambda: save_heads(path, heads, storage=storage))

    def _finish(self, stopped_early: bool) -> TrainedRun:
        """Write the last heads, and verify that nothing else was trained."""
        self._synced()
        self.processes.by_main(self._write_last)
        run = TrainedRun(
            heads=self.folder.heads,
            last=self.folder.last,
            steps=self.state.step,
            best_step=self.state.best_step or self.state.step,
            scores=self.scores,
            best_score=self.state.best,
            problems=self.preparer.counts,
            seconds=round(self.state.seconds, 1),
            stopped_early=stopped_early,
        )
        record = partial(self.folder.record, processes=self.processes.count, seals=self.seals)
        self.processes.by_main(lambda: record(asdict(run), self.lmm, self.samples))
        return run

    def _write_last(self) -> None:
        for seal in self.seals:
            seal.verify()
        self._write_heads(self.folder.last)
        if self.state.best is None:
            self._write_heads(self.folder.heads)

    def _synced(self) -> GroundingHeads:
        """Copy the weights that are being trained into the heads of the LMM, and return those."""
        heads = self.lmm.heads
        assert heads is not None
        weights = self.processes.weights(self.model)
        own = {name.removeprefix("module.").removeprefix("heads."): value for name, value in weights.items()}
        misfit = heads.load_state_dict(own, strict=False)
        wrong = [name for name in misfit.missing_keys if ".image_encoder." not in name] + misfit.unexpected_keys
        assert not wrong, f"weights of another module: {wrong[:3]}"
        return heads

    def _bar(self) -> Any:
        from tqdm import tqdm

        name = self.lmm.backbone.name.rstrip("/").rsplit("/", 1)[-1]
        return tqdm(
            total=self.batches.steps, initial=self.state.step, desc=f"train {name}", disable=not self._show, unit="step"
        )

    def _epochs(self) -> float:
        return round(self.state.step / self.batches.steps_per_epoch, 3)


def decoder_steps(optimiser: OptimiserRecipe, steps: int) -> int:
    """Return the number of steps, at the start, in which the mask decoder learns alone."""
    return round(optimiser.decoder_first * steps)


def learning_rate(optimiser: OptimiserRecipe, step: int, steps: int) -> float:
    """Return the learning rate of a step (counted from 0); each of the two phases has the whole schedule."""
    alone = decoder_steps(optimiser, steps)
    if step < alone:
        peak = optimiser.lr if optimiser.decoder_lr is None else optimiser.decoder_lr
        return peak * share_of_peak(optimiser, step, alone)
    return optimiser.lr * share_of_peak(optimiser, step - alone, steps - alone)


def share_of_peak(optimiser: OptimiserRecipe, step: int, steps: int) -> float:
    """Return the share of the peak learning rate at a step (counted from 0): a linear rise, then the schedule.

    >>> [round(share_of_peak(OptimiserRecipe(warmup=0.2), step, 10), 3) for step in (0, 1, 2, 6, 9)]
    [0.5, 1.0, 1.0, 0.5, 0.038]
    """
    warmup = math.ceil(optimiser.warmup * steps)
    if step < warmup:
        return (step + 1) / warmup
    if optimiser.schedule == "constant":
        return 1.0
    done = (step - warmup) / max(1, steps - warmup)
    return 1 - done if optimiser.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2


def _bar(samples: Sequence[TrainingSample], show: bool) -> Iterable[TrainingSample]:
    from tqdm import tqdm

    return cast("Iterable[TrainingSample]", tqdm(samples, desc="validate", leave=False, disable=not show))


def _postfix(lines: dict[str, float], scores: Scores | None) -> str:
    text = f"loss {lines['loss']:.3f}"
    return text if scores is None or scores.ciou is None else f"{text}, cIoU {100 * scores.ciou:.1f}"


def _rounded(lines: dict[str, Any]) -> dict[str, Any]:
    return {key: float(f"{value:.5g}") if isinstance(value, float) else value for key, value in lines.items()}
