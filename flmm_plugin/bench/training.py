"""Epochs of training heads, fed in different ways, so that their costs can be compared.

- ``heads``: features lie in memory: what the heads themselves cost, and no arm can do without.
- ``cached``: features come from a full cache on disk.
- ``filling``: the first epoch with a cache: features are computed, rounded, compressed and written.
- ``no cache``: features are computed in every epoch (``flmm train --no-cache``).
- ``paper``: the same, read as the paper's method does, with SAM's image encoder for every sample.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flmm_plugin.bench import papers_way
from flmm_plugin.grounded_lmm import GroundedLMM
from flmm_plugin.training.batches import Preparer
from flmm_plugin.training.cache import CachedReader, FeatureCache
from flmm_plugin.training.features import FrozenFeatures, FrozenReader
from flmm_plugin.training.losses import HeadsLoss, Prepared
from flmm_plugin.training.models import load_lmm, trainable, without_encoder
from flmm_plugin.training.recipe import TrainRecipe, read_recipe
from flmm_plugin.training.samples import TrainingSample, TrainingSet

ARMS = ("heads", "cached", "filling", "no cache", "paper")


class PapersReader(FrozenReader):
    """Read samples as the paper's method does; the features are the same up to rounding."""

    def read(self, sample: TrainingSample) -> FrozenFeatures:
        """Read everything of one sample."""
        backbone, picture = self.lmm.backbone, sample.image_loader()
        passage = sample.passage(backbone.tokenizer)
        chat = self.lmm.encode([sample.prompt], [picture], self.heads.manifest.template)
        encoded = chat.extended([passage.ids], backbone.pad_id)
        ((maps, hidden, text),) = papers_way.read(backbone, encoded, [passage])
        selector = labels = None
        if sample.keywords:
            selector = text.float()
            labels = torch.zeros(len(passage.ids), dtype=torch.bool)
            labels[torch.tensor(passage.tokens)] = True
        assert self.heads.mask_refiner is not None
        self.heads.mask_refiner.clear_cache()
        embedding = self.heads.mask_refiner.encode_image(picture)
        grid = encoded.image_tokens[0][0].grid
        return FrozenFeatures(maps, hidden.float().split(passage.sizes), grid, embedding, selector, labels)


class Epochs:
    """The same epoch, fed in different ways. Every arm starts from the same heads.

    Args:
        recipe: Recipe whose model and heads learn.
        samples: Samples of one epoch, in order.
        folder: Folder of the feature caches, empty at first.
    """

    def __init__(self, recipe: TrainRecipe, samples: Sequence[TrainingSample], folder: Path) -> None:
        self.recipe, self.samples, self.folder = recipe, samples, folder
        self.lmm: GroundedLMM = load_lmm(recipe, "cpu")
        assert self.lmm.heads is not None
        self.reader, self.paper = FrozenReader(self.lmm), PapersReader(self.lmm)
        self.fresh = without_encoder(self.lmm.heads)
        self.fills = 0
        self.cache = self._filled()
        self.in_memory = {sample.key: CachedReader(self.reader, self.cache).read(sample) for sample in samples}

    def run(self, arm: str) -> None:
        """Run one epoch.

        Args:
            arm: Which way features come, one of `ARMS`.
        """
        loss = HeadsLoss(copy.deepcopy(self.fresh)).train()
        rate = self.recipe.optimiser.lr
        optimizer = torch.optim.AdamW(list(trainable(loss.heads).values()), lr=rate)
        assert self.reader.heads.mask_refiner is not None
        self.reader.heads.mask_refiner.clear_cache()
        if arm == "filling":
            self.fills += 1
            cache = FeatureCache.of_reader(self.folder / f"filling-{self.fills}", self.reader)
            self._learn(loss, optimizer, CachedReader(self.reader, cache).read)
            return
        sources: dict[str, Callable[[TrainingSample], FrozenFeatures]] = {
            "heads": lambda sample: self.in_memory[sample.key],
            "cached": CachedReader(self.reader, self.cache).read,
            "no cache": self.reader.read,
            "paper": self.paper.read,
        }
        self._learn(loss, optimizer, sources[arm])

    def checks(self) -> dict[str, float]:
        """Return how far what is timed lies apart, as shares of the largest value."""
        sample = next(one for one in self.samples if not one.keywords)
        plain, paper = self.reader.read(sample), self.paper.read(sample)
        cached = CachedReader(self.reader, self.cache).read(sample)
        return {
            "paper_attention": _apart(paper.attention, plain.attention),
            "paper_hidden": _apart(torch.cat(paper.hidden), torch.cat(plain.hidden)),
            "cached_attention": _apart(cached.attention, plain.attention),
            "cached_hidden": _apart(torch.cat(cached.hidden), torch.cat(plain.hidden)),
        }

    def _learn(self, loss: HeadsLoss, optimizer: Any, read: Callable[[TrainingSample], FrozenFeatures]) -> None:
        class Source:
            def read(self, sample: TrainingSample) -> FrozenFeatures:
                return read(sample)

        preparer = Preparer(Source(), self.lmm.backbone.tokenizer, "cpu", stop=True)
        size = self.recipe.batch_size
        for start in range(0, len(self.samples), size):
            optimizer.zero_grad(set_to_none=True)
            for sample in self.samples[start : start + size]:
                prepared = preparer.prepare(sample)
                assert isinstance(prepared, Prepared)
                losses, anchor = loss([prepared])
                (losses.sum() / size + anchor).backward()
            torch.nn.utils.clip_grad_norm_(loss.parameters(), self.recipe.optimiser.clip)
            optimizer.step()

    def _filled(self) -> FeatureCache:
        cache = FeatureCache.of_reader(self.folder / "full", self.reader)
        for sample in self.samples:
            CachedReader(self.reader, cache).read(sample)
        return cache


def _apart(these: Tensor, those: Tensor) -> float:
    return float((these - those).abs().max() / those.abs().max())


def embedded_epochs(folder: Path, samples: int, changes: Sequence[str] = ()) -> Epochs:
    """Make epochs of the embedded world.

    Args:
        folder: Folder of the feature caches, empty at first.
        samples: How many samples an epoch has; lists of expressions and narratives alike.
        changes: ``key=value`` changes of the recipe ``flmm_tiny``.
    """
    recipe = read_recipe("flmm_tiny", [f"data.scenes={max(6, samples)}", *changes])
    every = list(TrainingSet(recipe))
    step = len(every) / samples
    return Epochs(recipe, [every[int(place * step)] for place in range(samples)], folder)
