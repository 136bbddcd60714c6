"""Measure boxes that leave small parts of a mask out, on the embedded model's masks and on true ones.

A speck far from the thing stretches the box around all pixels of a mask; a rule that drops too much loses parts of what
is meant (several things, a thing behind another). On fresh scenes every thing is asked for alone, in a list and in a
caption, and several at once ("two circles"); each rule makes a box of the mask that comes back, and of the true one:

- ``predicted``: IoU with the box of the true mask. What a rule gains.
- ``coarse``: the same of the mask decoder's masks, which a visual chain of thought cuts around.
- ``true``: the rule on masks that are right, IoU with their own box. What a rule costs.

``ciou`` is of the masks themselves, if the rule cleaned them too. ``--refer ROOT`` adds the true masks of RefCOCO's
``instances.json`` files under a folder.

    python benchmarks/boxes.py --scenes 100 --seed 2026
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
import transformers

import flmm_plugin
from flmm_plugin import files
from flmm_plugin.grounded_lmm import GroundedLMM
from flmm_plugin.records import SPECK, Grounding, mask_box
from flmm_plugin.tasks.metrics.viscot import box_iou
from flmm_plugin.tiny import language
from flmm_plugin.tiny.evaluate import SIZE, held_out
from flmm_plugin.tiny.layouts_png import narrative
from flmm_plugin.tiny.scenes import Scene, render, visible_masks

Mask = npt.NDArray[np.bool_]
OF = ("predicted", "coarse", "true")
KINDS = ("alone", "list", "caption", "plural")


def larger_parts(mask: Mask, share: float) -> Mask:
    """The parts of a mask that have at least a share of the largest part's pixels."""
    number, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if number < 3:
        return mask
    areas = stats[1:, cv2.CC_STAT_AREA]
    return np.concatenate([[False], areas >= share * areas.max()])[labels]


def opened(mask: Mask, side: int) -> Mask:
    """Morphological opening with a square, or the mask itself where nothing is left."""
    found = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, np.ones((side, side), np.uint8)).astype(bool)
    return found if found.any() else mask


RULES: dict[str, Callable[[Mask], Mask]] = {
    "all pixels": lambda mask: mask,
    **{
        f"parts >= {share:.0%} of the largest": lambda mask, share=share: larger_parts(mask, share)  # type: ignore[misc]
        for share in (0.01, 0.02, 0.05, SPECK, 0.2, 0.3, 0.5)
    },
    "largest part": lambda mask: larger_parts(mask, 1.0),
    "opened, 3 x 3": lambda mask: opened(mask, 3),
    "opened, 5 x 5": lambda mask: opened(mask, 5),
}


@dataclass
class Tally:
    """Box IoUs of one rule by kind, and intersections and unions of masks."""

    ratios: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    intersection: int = 0
    union: int = 0

    def add(self, kind: str, mask: Mask, truth: Mask) -> None:
        """Count one mask."""
        self.ratios[kind].append(box_iou(mask_box(mask), mask_box(truth)))
        self.intersection += int((mask & truth).sum())
        self.union += int((mask | truth).sum())

    def row(self) -> dict[str, str]:
        """One line of the table: per kind the mean IoU and the share above 0.5."""
        cells = {}
        for kind, ratios in self.ratios.items():
            cells[kind] = f"{np.mean(ratios):.3f}"
            cells[f"{kind}_hit"] = f"{np.mean(np.array(ratios) > 0.5):.3f}"
            cells[f"{kind}_n"] = str(len(ratios))
        return {**cells, "ciou": f"{self.intersection / max(self.union, 1):.4f}"}


def asked(lmm: GroundedLMM, scene: Scene, rng: np.random.Generator) -> Iterator[tuple[str, Grounding, Mask]]:
    """Kind, grounding and true mask of everything that is asked about a scene."""
    picture, masks = render(scene, SIZE), visible_masks(scene, SIZE)
    for thing, truth in zip(scene.things, masks, strict=True):
        expressions = language.referring_expressions(scene, thing)
        if expressions and truth.any():
            (found,) = lmm.ground(picture, expressions[:1])
            yield "alone", found, truth
    listed = language.refer_list(scene, rng)
    phrases = [listed.answer[start:end] for _, start, end, _ in listed.mentions]
    for found, (*_, index) in zip(lmm.ground(picture, phrases), listed.mentions, strict=True):
        if masks[index].any():
            yield "list", found, masks[index]
    text, mentions = narrative(scene)
    some = [mention for mention in mentions if mention.objects]
    spans = [(mention.start, mention.end) for mention in some]
    for found, mention in zip(lmm.ground_text(picture, language.DESCRIBE_PROMPT, text, spans), some, strict=True):
        truth = np.logical_or.reduce([masks[index] for index in mention.objects])
        if truth.any():
            yield "plural" if mention.plural else "caption", found, truth


def refer_masks(root: Path) -> Iterator[Mask]:
    """True masks of every annotation of the ``instances.json`` files under a folder, each once."""
    from pycocotools import mask as coco_mask

    seen: set[int] = set()
    for path in sorted(root.rglob("instances.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        sizes = {one["id"]: (one["height"], one["width"]) for one in content["images"]}
        for one in content["annotations"]:
            if one["id"] not in seen and isinstance(one["segmentation"], list):
                seen.add(one["id"])
                codes = coco_mask.frPyObjects(one["segmentation"], *sizes[one["image_id"]])
                yield coco_mask.decode(coco_mask.merge(codes)).astype(bool)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--refer", type=Path, help="folder with RefCOCO's instances.json files")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "boxes.csv")
    args = parser.parse_args(argv)
    lmm = GroundedLMM.from_pretrained("flmm_tiny", device="cpu")
    tallies: dict[str, dict[str, Tally]] = {of: {rule: Tally() for rule in RULES} for of in OF}
    for number, (scene, _) in enumerate(held_out(args.seed, args.scenes)):
        for kind, found, truth in asked(lmm, scene, np.random.default_rng([args.seed, 31, number])):
            for rule, clean in RULES.items():
                tallies["predicted"][rule].add(kind, clean(found.mask), truth)
                tallies["coarse"][rule].add(kind, clean(found.decoder_logits > 0), truth)
                tallies["true"][rule].add(kind, clean(truth), truth)
    for truth in refer_masks(args.refer) if args.refer is not None else ():
        for rule, clean in RULES.items():
            tallies["true"][rule].add("refcoco", clean(truth), truth)
    refer = "" if args.refer is None else " --refer DATA"
    rows = [{"masks": of, "rule": rule, **tally.row()} for of, some in tallies.items() for rule, tally in some.items()]
    facts = {
        "command": f"python benchmarks/boxes.py --scenes {args.scenes} --seed {args.seed}{refer}",
        "flmm_plugin": flmm_plugin.__version__,
        "heads": lmm.heads.manifest.sha256 if lmm.heads is not None else "",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    write(args.out, rows, facts)
    return 0


def write(path: Path, rows: list[dict[str, str]], facts: Mapping[str, str]) -> None:
    """Write the table under what made it, and print it."""
    kinds = [*KINDS, *(["refcoco"] if any("refcoco" in row for row in rows) else [])]
    columns = ["masks", "rule", *(f"{kind}{end}" for kind in kinds for end in ("", "_hit", "_n")), "ciou"]
    out = io.StringIO()
    out.writelines(f"# {name}: {value}\n" for name, value in facts.items())
    table = csv.DictWriter(out, columns, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    files.write(path, out.getvalue())
    sys.stdout.write(out.getvalue())


if __name__ == "__main__":
    raise SystemExit(main())
