"""The training loop: frozen features in, heads out; killed at any moment, it goes on to the same weights.

What a step sees is a function of the recipe and the step's number alone: the order of an epoch comes from the seed and
the epoch, the learning rate from the step. Weights, optimiser, random states and counters are in every checkpoint.

The frozen parts (LMM, SAM's image encoder) are outside of what accelerate wraps, and under a seal.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from flmm_plugin import files
from flmm_plugin.backbones.base import Backbone
from flmm_plugin.datasets.problems import Problem
from flmm_plugin.errors import FlmmError, TrainingStopped
from flmm_plugin.heads import GroundingHeads, save_heads
from flmm_plugin.json_lines import Log
from flmm_plugin.public import public
from flmm_plugin.training.batches import Batches
from flmm_plugin.training.building import trainable
from flmm_plugin.training.cache import CachedReader, FeatureCache
from flmm_plugin.training.cache_building import BuildReport, CacheEstimate, build, estimate
from flmm_plugin.training.checkpoints import Checkpoints
from flmm_plugin.training.features import FeatureSource, FrozenReader
from flmm_plugin.training.frozen import load_lmm, seals_of, without_encoder
from flmm_plugin.training.losses import HeadsLoss
from flmm_plugin.training.preparing import KINDS, Preparer
from flmm_plugin.training.processes import Processes
from flmm_plugin.training.recipe import TrainRecipe
from flmm_plugin.training.results import Progress, TrainedRun
from flmm_plugin.training.run_folder import RunFolder
from flmm_plugin.training.samples import TrainingSample, TrainingSet
from flmm_plugin.training.saving import Saver
from flmm_plugin.training.stepping import Stepper
from flmm_plugin.training.tracking import chosen_trackers, flat
from flmm_plugin.training.validation import Scores, Shown, ValidationReport, count

LOG_EVERY = 10  # steps between two lines of the log


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
        recipe: What to do.
        out: The run's folder: ``heads.safetensors`` (best), ``last.safetensors``, ``recipe.yaml``, ``log.jsonl``,
            ``problems.jsonl``, ``run.json``, checkpoints and, if not elsewhere, the feature cache.
        restart: Remove what an earlier run left in ``out``, its cache excepted.
        on_validation: Called on the main process after each validation.
        backbone: Loaded already; None: as the recipe says.
        progress: Show a bar.

    Raises:
        TrainingStopped: Nothing to learn from, too much that cannot be used, a full disk, or another recipe's folder.
        OutputFailed: A place cannot be written, or another process trains in it; said before anything is loaded.
        BadCheckpoint: All checkpoints of an earlier part of the run are damaged.
        FrozenWeightsChanged: The frozen models are not what they were.
    """
    return Trainer(
        recipe, out, restart=restart, on_validation=on_validation, backbone=backbone, progress=progress
    ).run()


class Trainer:
    """One run. Arguments as for `train`; use that.

    Attributes:
        lmm: The frozen model, with heads that are brought up to date for validating and saving.
        samples: To learn from.
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
        self.recipe, self.on_validation = recipe, on_validation
        trackers, self._advice = chosen_trackers(recipe.trackers)
        self.processes = Processes(recipe, trackers, Path(out))
        self.accelerator, self.main = self.processes.accelerator, self.processes.main
        self.folder = RunFolder(Path(out), recipe)
        self.log = Log(self.folder.log)
        self.checkpoints = Checkpoints(self.folder.checkpoints, recipe.saving.keep)
        self.saver = Saver(self.processes, self.folder, self.checkpoints)
        self._show = progress and self.main
        try:
            self.processes.by_main(lambda: self._open(restart))
            self._load(backbone)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let other runs into the folder; `run` does so at its end."""
        self.folder.close()

    def _open(self, restart: bool) -> None:
        """Take the run's folder, and see that all places can be written before anything is loaded."""
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
        data = ", ".join(f"{part.dataset} {part.split}" for part in self.samples.parts)
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
        self.source = self._source()
        stop = recipe.bad_samples == "stop"
        tokenizer, device = self.lmm.backbone.tokenizer, self.processes.device
        blank = recipe.control == "image_only"
        self.preparer = Preparer(self.source, tokenizer, device, stop=stop, blank=blank, heard_of=self._heard_of)
        self.scores: Scores | None = None
        self.state = Progress()
        self.batches = Batches(self.samples, self.preparer, self.processes, recipe)
        self.stepper = Stepper(self.model, self.optimizer, self.batches, self.state, self.folder)

    def run(self) -> TrainedRun:
        """All steps that the newest checkpoint does not hold yet."""
        try:
            self._resume()
            self.processes.by_main(self._announce)
            self.accelerator.init_trackers("flmm-train", config=flat(public(self.recipe.to_dict())))
            started, before = time.monotonic(), self.state.seconds
            stopped_early = self._exhausted
            with self._bar() as bar:
                for batch in () if stopped_early else self.batches.after(self.state.step):
                    lines = self.stepper.step(batch)
                    step = self.state.step
                    self.state.seconds = before + time.monotonic() - started
                    bar.update()
                    bar.set_postfix_str(_postfix(lines, self.scores), refresh=False)
                    if step % LOG_EVERY == 0 or step == self.batches.steps:
                        self.processes.by_main(partial(self._log, lines))
                    if self._validation_due(step):
                        stopped_early = self._validate()
                    if step % self.recipe.saving.every == 0 or step == self.batches.steps or stopped_early:
                        self._save()
                    if stopped_early:
                        break
            return self._finish(stopped_early)
        finally:
            if isinstance(self.source, CachedReader):
                self.source.cache.close()
            self.accelerator.end_training()  # also the end of what the processes have in common
            self.close()

    # The feature cache.

    def estimate(self) -> CacheEstimate | None:
        """What the cache will take, from reading a few samples; nothing is written. None: no cache, or not its turn.

        Raises:
            BadCache: The disk has no room for it.
        """
        told: list[CacheEstimate] = []
        if self.main and isinstance(self.source, CachedReader):
            told.append(estimate(self.source.reader, self.source.cache, [*self.samples, *self.held_out]))
            told[0].check_room()
        self.accelerator.wait_for_everyone()
        return told[0] if told else None

    def build_cache(self) -> BuildReport:
        """Read every sample once, each process its share. Returns what this process did.

        Raises:
            TrainingStopped: The cache is switched off.
        """
        if not isinstance(self.source, CachedReader):
            raise TrainingStopped("there is no feature cache to build; leave cache.enabled=true")

        def heard_of(sample: TrainingSample, problem: FlmmError) -> None:
            kind = next((name for error, name in KINDS.items() if isinstance(problem, error)), type(problem).__name__)
            self.preparer.note(kind, f"{sample.key} ({problem})", len(sample.grounded))

        samples = [*self.samples, *self.held_out]
        report = build(
            self.source, samples, rank=self.processes.index, world=self.processes.count, on_problem=heard_of,
            progress=self._show,
        )  # fmt: skip
        self.accelerator.wait_for_everyone()
        return report

    # Validating, saving.

    def _validation_due(self, step: int) -> bool:
        if not len(self.held_out):
            return False
        every = max(1, round(self.recipe.validation.every * self.batches.steps_per_epoch))
        return step % every == 0 or step == self.batches.steps

    def _validate(self) -> bool:
        """Measure, keep the heads if they are the best so far. Returns whether it is time to stop."""
        heads, options = self._synced(), self.recipe.validation
        mine = self.held_out[self.processes.index :: self.processes.count]
        wanted = options.pictures if self.main and self.on_validation is not None else 0
        measured: list[tuple[Tensor, list[Shown]]] = []
        self.processes.together(
            lambda: measured.append(count(heads, mine, self.preparer, pictures=wanted, progress=self._measuring))
        )
        counts, shown = measured[0]
        self.scores = Scores.of_counts(self.processes.summed(counts.tolist()))
        score = getattr(self.scores, options.metric)
        better = score is not None and (self.state.best is None or score > self.state.best)
        if better:
            self.state.best, self.state.best_step, self.state.stale = score, self.state.step, 0
        else:
            self.state.stale += 1
        self.processes.by_main(partial(self._report, self.scores, tuple(shown), better))
        return self._exhausted

    def _report(self, scores: Scores, shown: tuple[Shown, ...], better: bool) -> None:
        """Write down a validation."""
        numbers = {key: value for key, value in asdict(scores).items() if value is not None}
        self.log.write(step=self.state.step, epoch=self._epochs(), **_rounded(numbers), best=better)
        self.accelerator.log({f"validation/{key}": value for key, value in numbers.items()}, step=self.state.step)
        if better:
            self._write_heads(self.folder.heads)
        if self.on_validation is not None:
            self.on_validation(ValidationReport(self.state.step, self._epochs(), scores, shown, better))

    def _log(self, lines: dict[str, float]) -> None:
        self.folder.check()
        self.log.write(step=self.state.step, epoch=self._epochs(), **_rounded(lines))
        self.accelerator.log(lines, step=self.state.step)

    @property
    def _exhausted(self) -> bool:
        """Whether nothing got better for as long as the recipe has patience."""
        patience = self.recipe.validation.patience
        return patience is not None and self.state.stale >= patience

    def _measuring(self, samples: Sequence[TrainingSample]) -> Sequence[TrainingSample]:
        from tqdm import tqdm

        return cast("Sequence[TrainingSample]", tqdm(samples, desc="validate", leave=False, disable=not self._show))

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
        """The last heads, and proof that nothing else was trained."""
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
        self.processes.by_main(lambda: record(run, self.lmm, self.samples))
        return run

    def _write_last(self) -> None:
        for seal in self.seals:
            seal.verify()
        self._write_heads(self.folder.last)
        if self.state.best is None:
            self._write_heads(self.folder.heads)

    def _synced(self) -> GroundingHeads:
        """The heads of the LMM, with the weights that are being trained."""
        heads = self.lmm.heads
        assert heads is not None
        weights = self.processes.weights(self.model)
        own = {name.removeprefix("module.").removeprefix("heads."): value for name, value in weights.items()}
        misfit = heads.load_state_dict(own, strict=False)
        odd = [name for name in misfit.missing_keys if ".image_encoder." not in name] + misfit.unexpected_keys
        assert not odd, f"weights of another module: {odd[:3]}"
        return heads

    # Beginning, and going on.

    def _resume(self) -> None:
        content = self.saver.restore()
        if content is None:
            torch.manual_seed(self.recipe.seed + 1)
        else:
            for name, value in content["progress"].items():
                setattr(self.state, name, value)
            self.preparer.restore(content["problems"])
            if content["scores"] is not None:
                self.scores = Scores(**content["scores"])
        self.processes.by_main(lambda: self.folder.go_on_after(self.state.step))

    @property
    def _cache_folder(self) -> Path:
        options = self.recipe.cache
        return Path(options.folder) if options.folder else self.folder.features

    def _source(self) -> FeatureSource:
        reader, options = FrozenReader(self.lmm), self.recipe.cache
        if not options.enabled:
            return reader
        cap = None if options.cap_gb is None else int(options.cap_gb * 1e9)
        return CachedReader(reader, FeatureCache.of_reader(self._cache_folder, reader, cap_bytes=cap))

    def _announce(self) -> None:
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

    def _heard_of(self, problem: Problem) -> None:
        self.folder.name_problem(problem, self.processes.index)

    def _bar(self) -> Any:
        from tqdm import tqdm

        name = self.lmm.backbone.name.rstrip("/").rsplit("/", 1)[-1]
        return tqdm(
            total=self.batches.steps, initial=self.state.step, desc=f"train {name}", disable=not self._show, unit="step"
        )

    def _epochs(self) -> float:
        return round(self.state.step / self.batches.steps_per_epoch, 3)


def _postfix(lines: dict[str, float], scores: Scores | None) -> str:
    text = f"loss {lines['loss']:.3f}"
    return text if scores is None or scores.ciou is None else f"{text}, cIoU {100 * scores.ciou:.1f}"


def _rounded(lines: dict[str, Any]) -> dict[str, Any]:
    return {key: float(f"{value:.5g}") if isinstance(value, float) else value for key, value in lines.items()}
