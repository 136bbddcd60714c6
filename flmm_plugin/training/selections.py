"""What a trained keyword selector takes in texts that it did not learn from, at several thresholds (Table 6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flmm_plugin.backbones.base import Backbone
from flmm_plugin.errors import BadImage, BadText, HeadsMismatch
from flmm_plugin.grounded_lmm import GroundedLMM
from flmm_plugin.grounding import chosen_phrases
from flmm_plugin.heads import load_heads
from flmm_plugin.heads.checkpoint import HEADS_NAME
from flmm_plugin.passages import text_offsets
from flmm_plugin.training.features import FrozenReader
from flmm_plugin.training.frozen import load_lmm
from flmm_plugin.training.recipe import TrainRecipe
from flmm_plugin.training.samples import TrainingSet
from flmm_plugin.words import Span


@dataclass(frozen=True)
class SelectedText:
    """One text, and whose words are taken in it; spans are characters ``[start, end)``.

    Attributes:
        text: The whole text.
        wanted: Its annotated phrases.
        picked: By threshold, in the order asked for.
    """

    text: str
    wanted: tuple[Span, ...]
    picked: tuple[tuple[Span, ...], ...]


def select(
    recipe: TrainRecipe, folder: Path, thresholds: Sequence[float], *, backbone: Backbone | None = None
) -> list[SelectedText]:
    """Read the held-out texts of a finished run; those it cannot use are left out, as in its validation.

    Args:
        recipe: Of the run.
        folder: Of the run.
        thresholds: Scores above which a token is taken.
        backbone: Loaded already.

    Raises:
        HeadsMismatch: The run trained no selector.
    """
    lmm = load_lmm(recipe, "cpu" if backbone is None else str(backbone.device), backbone)
    heads = load_heads(folder / HEADS_NAME, expect=lmm.backbone.facts, refiner=False, device=lmm.backbone.output_device)
    selector = heads.keyword_selector
    if selector is None:
        raise HeadsMismatch(f"the heads in {folder} have no keyword selector; train with heads.selector=true")
    reader = FrozenReader(GroundedLMM(lmm.backbone, heads))
    found: list[SelectedText] = []
    for sample in TrainingSet(recipe, recipe.validation.parts):
        if not sample.keywords:
            continue
        try:
            hidden = reader.words(sample).selector_hidden
        except (BadImage, BadText):
            continue
        if hidden is None:
            continue
        ids, offsets = text_offsets(lmm.backbone.tokenizer, sample.text)
        chosen = [chosen_phrases(selector, hidden, ids, sample.text, offsets, limit) for limit in thresholds]
        picked = tuple(tuple(span for _, span in one.phrases if span is not None) for one in chosen)
        found.append(SelectedText(sample.text, sample.spans, picked))
    return found
