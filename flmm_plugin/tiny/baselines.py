"""Do I need trained heads? The shipped ones beside the methods that need no training, on the same fresh scenes.

All of them read the same frozen LMM through the same interface (``heads=``), and prompt the same small SAM: the trained
refiner's own copy, which learnt on, or the untouched one.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flmm_plugin.grounded_lmm import GroundedLMM
from flmm_plugin.heads.training_free import NAMES
from flmm_plugin.heads_choice import choose_heads
from flmm_plugin.tiny.evaluate import SIZE, asked_about, held_out, measure_grounding, provenance
from flmm_plugin.tiny.scenes import render
from flmm_plugin.training.localization import localization_heads
from flmm_plugin.training.recipe import DataPart, read_recipe
from flmm_plugin.training.samples import TrainingSet

COLUMNS = {
    "method": "heads",
    "prompt": "prompt given to SAM",
    "decoder_ciou": "without SAM, cIoU",
    "refined_ciou": "with SAM, cIoU",
    "refined_miou": "with SAM, mIoU",
    "caption_refined_ciou": "in captions, cIoU",
    "refer_refined_ciou": "phrase lists, cIoU",
    "question_refined_ciou": "in questions, cIoU",
    "n": "phrases",
}
CHOSEN_FROM = 60  # training pictures that localisation heads are chosen by


def measure_training_free(*, seed: int = 1, scenes: int = 100, chosen_from: int = CHOSEN_FROM) -> dict[str, Any]:
    """Every method on ``scenes`` fresh scenes.

    Args:
        seed: Draws the scenes; no training uses them.
        scenes: Number of scenes, each asked about in all ways.
        chosen_from: Training pictures over which localisation heads are counted; their masks are not looked at.

    Returns:
        ``{"seed", "scenes", "rows": [{"method", "prompt", "decoder_ciou", ...}], "provenance": {...}}``.
    """
    from flmm_plugin.tiny import heads_path

    lmm = GroundedLMM.from_pretrained()
    world = [(scene, rng, render(scene, SIZE)) for scene, rng in held_out(seed, scenes)]
    asked = [asked_about(scene, np.random.default_rng([seed, 31, i])) for i, (scene, *_) in enumerate(world)]
    part = DataPart("refcoco", "train", limit=chosen_from)
    recipe = read_recipe("flmm_tiny", [f"data.scenes={chosen_from}"])
    chosen = localization_heads(lmm, TrainingSet(recipe, [part]))
    rows = []
    for name in ("auto", *NAMES, str(chosen)):
        heads = choose_heads(lmm.backbone, name)
        row = measure_grounding(
            "trained (shipped)" if name == "auto" else name, GroundedLMM(lmm.backbone, heads), world, asked
        )
        prompts = heads.manifest.sam_prompts if heads is not None and heads.mask_refiner is not None else {}
        rows.append({**row, "prompt": " + ".join(prompt for prompt, given in prompts.items() if given) or "nothing"})
    lmm.seal.verify()
    facts = {**provenance(lmm, heads_path()), "localisation heads chosen from": f"{chosen_from} training pictures"}
    return {"seed": seed, "scenes": scenes, "rows": rows, "provenance": facts}


def as_csv(measured: Mapping[str, Any]) -> str:
    """The table with readable headings, and where it comes from in ``#`` lines above."""
    out = io.StringIO()
    out.write(f"# flmm tiny baselines --seed {measured['seed']} --scenes {measured['scenes']}\n")
    for name, value in measured["provenance"].items():
        out.write(f"# {name}: {value}\n")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS.values())
    writer.writerows([_cell(row[name]) for name in COLUMNS] for row in measured["rows"])
    return out.getvalue()


def as_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table for a terminal."""
    names = [COLUMNS[name] for name in COLUMNS]
    cells = [[_cell(row[name]) for name in COLUMNS] for row in rows]
    widths = [max(len(line[at]) for line in [names, *cells]) for at in range(len(names))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in [names, *cells]
    )


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)
