"""Find a backbone's localisation heads: the few attention heads that say where, over many phrases and without masks.

`flmm_plugin.heads.attention_rules` has the rule; this runs it over a data set. Source: "Your Large Vision-Language
Model Only Needs A Few Attention Heads For Visual Grounding" (2025), which counts over about a thousand phrases.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from torch import Tensor

from flmm_plugin.errors import BadImage, BadText
from flmm_plugin.grounded_lmm import GroundedLMM
from flmm_plugin.heads.attention_rules import CANDIDATES, KEPT_HEADS, choose_maps
from flmm_plugin.heads.training_free import Method
from flmm_plugin.training.features import FrozenReader
from flmm_plugin.training.samples import TrainingSample


def localization_heads(
    lmm: GroundedLMM,
    samples: Sequence[TrainingSample],
    *,
    kept: int = KEPT_HEADS,
    candidates: int = CANDIDATES,
    problems: list[str] | None = None,
) -> Method:
    """Choose the attention heads that say where.

    Args:
        lmm: A model with any heads; their manifest has the prompt around the phrases.
        samples: Pictures and phrases; their masks are not looked at.
        kept: How many heads to choose.
        candidates: How many of a phrase's most concentrated heads count.
        problems: Filled with the samples that cannot be read, and why.

    Returns:
        The method; its string is a value of ``heads=``.

    Raises:
        UnknownArgument: No sample could be read.
    """
    found = choose_maps(_maps(FrozenReader(lmm), samples, [] if problems is None else problems), kept, candidates)
    return Method("localization-heads", found)


def _maps(reader: FrozenReader, samples: Iterable[TrainingSample], problems: list[str]) -> Iterator[Tensor]:
    """Attention maps ``[C, h, w]`` of every phrase."""
    from tqdm import tqdm

    for sample in tqdm(samples, desc="read the frozen LMM"):
        try:
            yield from reader.words(sample).attention
        except (BadImage, BadText) as exc:
            problems.append(f"{sample.key}: {exc}")
