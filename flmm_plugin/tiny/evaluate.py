"""Measure the embedded LMM on fresh scenes of any seed: chat, captions, grounding, and every control in the same table.

Everything goes through the public way in (:class:`flmm_plugin.grounded_lmm.GroundedLMM` on a picture), so what is
measured is what a user gets. Scenes of evaluation come from streams that training never draws.
"""

from __future__ import annotations

import re
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flmm_plugin.tasks.metrics.segmentation import IoUCounts, ciou, iou_counts, miou
from flmm_plugin.tiny import heads_path, language, tiny_path
from flmm_plugin.tiny.scenes import COLORS, SHAPES, BoolArray, Scene, render, sample_scene, visible_masks

Picture = npt.NDArray[np.uint8]
SIZE = 224
_BATCH = 16  # questions that are answered at once
#: The row that is no control.
MEASURED = "frozen LMM + heads"
#: Numbers of a row that tables show -> their headings.
HEADINGS = {
    "decoder_ciou": "mask decoder alone, cIoU",
    "refined_ciou": "refined, cIoU",
    "refined_miou": "refined, mIoU",
    "caption_refined_ciou": "in captions, cIoU",
    "refer_refined_ciou": "phrase lists, cIoU",
    "question_refined_ciou": "in questions, cIoU",
}
WHERE = ("caption", "refer", "question")
# Share of right answers by chance: one in so many.
_ANSWERS = {"color": 8, "size": 2, "shape": 6, "where": 9, "count": 5, "yes_no": 2, "choice": 4}


@dataclass(frozen=True)
class Asked:
    """One way of naming objects of a scene: a text, its phrases, and which object each names."""

    where: str
    turn: language.Turn

    def spans(self) -> list[tuple[int, int]]:
        """Character spans of the phrases in the text they stand in."""
        return [(start, end) for _, start, end, _ in self.turn.mentions]

    def targets(self) -> list[int]:
        """Indices into the scene's objects."""
        return [index for *_, index in self.turn.mentions]


def held_out(seed: int, scenes: int) -> Iterator[tuple[Scene, np.random.Generator]]:
    """Yield the evaluation scenes of a seed, each with its own generator for what is asked about it."""
    for number in range(scenes):
        rng = np.random.default_rng([seed, 30, number])
        yield sample_scene(rng), rng


def evaluate(
    *,
    seed: int = 1,
    scenes: int = 100,
    controls: bool = True,
    lmm_path: Path | None = None,
    heads_file: Path | None = None,
) -> dict[str, Any]:
    """Measure everything that the embedded model claims, on fresh scenes.

    Args:
        seed: Decides the scenes; any seed gives scenes that training never saw.
        scenes: Number of scenes to measure on.
        controls: Also the trained controls (same heads on a random-init LMM; refiner that sees the picture alone).
        lmm_path: Another checkpoint folder than the embedded one.
        heads_file: Other heads; their controls are looked for beside them.

    Returns:
        ``{"seed", "scenes", "chat": {kind: {"exact", "n", "chance"}}, "captions": {"precision", "recall", "n"},
        "grounding": [{"method", "decoder_ciou", "refined_ciou", "refined_miou", "caption_decoder_ciou", ...}],
        "keywords": {"precision", "recall", "f1"}, "provenance": {...}}``; a number that does not exist is None.
    """
    from flmm_plugin.grounded_lmm import GroundedLMM

    folder, heads = lmm_path or tiny_path(), heads_file or heads_path()
    embedded = lmm_path is None
    lmm = GroundedLMM.from_pretrained("flmm_tiny" if embedded else str(folder), heads=str(heads))
    world = [(scene, rng, render(scene, SIZE)) for scene, rng in held_out(seed, scenes)]
    chat = measure_chat(lmm, world)
    captions, keywords = measure_captions(lmm, world)
    asked = [asked_about(scene, np.random.default_rng([seed, 31, i])) for i, (scene, *_) in enumerate(world)]
    rows = [*measure_right_and_wrong(lmm, world, asked), *untrained_rows(world, asked)]
    if controls:
        rows.insert(1, _random_row(heads.parent / "control_random.safetensors", world, asked))
        rows.insert(3, _image_only_row(lmm, heads.parent / "control_image_only.safetensors", world, asked))
    lmm.seal.verify()
    return {
        "seed": seed,
        "scenes": scenes,
        "chat": chat,
        "captions": captions,
        "keywords": keywords,
        "grounding": rows,
        "provenance": provenance(lmm, heads),
    }


World = list[tuple[Scene, np.random.Generator, Picture]]


def _progress(items: list[Any], text: str) -> Any:
    from tqdm import tqdm

    return tqdm(items, desc=text)


def asked_about(scene: Scene, rng: np.random.Generator) -> list[Asked]:
    """Return all texts that name the objects of a scene: caption, list of expressions, questions."""
    turns = [language.question(scene, kind, rng) for kind in ("color", "size", "shape", "where")]
    return [
        Asked("caption", language.caption(scene)),
        Asked("refer", language.refer_list(scene, rng)),
        *(Asked("question", turn) for turn in turns if turn.mentions),
    ]


def measure_chat(lmm: Any, world: World) -> dict[str, dict[str, float]]:
    """Measure how often ``generate()`` answers exactly, with one question of each kind per scene."""
    hits: dict[str, list[bool]] = defaultdict(list)
    for kind in _progress(list(language.QUESTION_KINDS), "chat"):
        todo = []
        for scene, rng, picture in world:
            turn = language.question(scene, kind, rng)
            if kind == "yes_no":
                turn = language.yes_no_question(scene, rng, short_share=1.0)
            if turn.kind == kind:
                todo.append((turn, picture))
        for start in range(0, len(todo), _BATCH):
            part = todo[start : start + _BATCH]
            messages = [
                [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": t.question}]}]
                for t, _ in part
            ]
            answers = lmm.chat_batch(messages, [[p] for _, p in part], max_new_tokens=12, do_sample=False)
            hits[kind] += [a.text.strip() == t.answer for a, (t, _) in zip(answers, part, strict=True)]
    return {k: {"exact": float(np.mean(v)), "n": len(v), "chance": 1 / _ANSWERS[k]} for k, v in hits.items()}


_NAMED = re.compile(rf"\b({'|'.join(COLORS)}) ({'|'.join(SHAPES)})\b")


def measure_captions(lmm: Any, world: World) -> tuple[dict[str, float], dict[str, float]]:
    """Measure the (color, shape) pairs that free captions name, and the keyword selector on those captions.

    The selector is scored on phrases: of those it chose, how many hold a whole (colour, shape); of those said, how
    many it chose.
    """
    right = said = there = chosen_right = chosen = covered = wanted = 0
    for scene, _, picture in _progress(world, "captions"):
        answer = lmm.grounded_chat(picture, language.DESCRIBE_PROMPT, max_new_tokens=72, do_sample=False, refine=False)
        names = list(_NAMED.finditer(answer.text))
        found, truth = [(m[1], m[2]) for m in names], [(t.color, t.shape) for t in scene.things]
        right += sum(min(found.count(pair), truth.count(pair)) for pair in set(found))
        said, there = said + len(found), there + len(truth)
        spans = [g.span for g in answer.groundings if g.span is not None]
        chosen_right += sum(any(a <= m.start() and m.end() <= b for m in names) for a, b in spans)
        covered += sum(any(a <= m.start() and m.end() <= b for a, b in spans) for m in names)
        chosen, wanted = chosen + len(spans), wanted + len(names)
    precision, recall = chosen_right / max(chosen, 1), covered / max(wanted, 1)
    return (
        {"precision": right / max(said, 1), "recall": right / max(there, 1), "n": there},
        {"precision": precision, "recall": recall, "f1": 2 * precision * recall / max(precision + recall, 1e-9)},
    )


def predict(lmm: Any, picture: Picture, asked: Asked) -> list[tuple[BoolArray, BoolArray]]:
    """Return each phrase's mask by the mask decoder alone, and its refined one."""
    if asked.where == "refer":
        phrases = [asked.turn.answer[a:b] for a, b in asked.spans()]
        found = lmm.ground(picture, phrases)
    elif asked.where == "caption":
        found = lmm.ground_text(picture, asked.turn.question, asked.turn.answer, asked.spans())
    else:
        found = lmm.ground_text(picture, asked.turn.question, asked.turn.question, asked.spans(), where="question")
    return [(g.decoder_logits > 0, g.mask) for g in found]


#: Counts of pixels per phrase, by where the phrase stands; ``all`` has those of every place.
Counts = dict[str, list[IoUCounts]]


@dataclass
class Tally:
    """Counts of one method's masks, of the mask decoder alone and refined."""

    decoder: Counts = field(default_factory=lambda: defaultdict(list))
    refined: Counts = field(default_factory=lambda: defaultdict(list))

    def add(self, where: str, coarse: BoolArray, fine: BoolArray, target: BoolArray) -> None:
        """Count one phrase's two masks."""
        for place in ("all", where):
            self.decoder[place].append(iou_counts(coarse, target))
            self.refined[place].append(iou_counts(fine, target))

    def row(self, method: str) -> dict[str, Any]:
        """Return one line of the table; None where nothing was measured."""
        content: dict[str, Any] = {
            "method": method,
            "decoder_ciou": _ciou(self.decoder, "all"),
            "refined_ciou": _ciou(self.refined, "all"),
            "refined_miou": miou(self.refined["all"]) if "all" in self.refined else None,
        }
        for where in WHERE:
            content[f"{where}_decoder_ciou"] = _ciou(self.decoder, where)
            content[f"{where}_refined_ciou"] = _ciou(self.refined, where)
        return {**content, "n": len(self.refined["all"])}


def _ciou(counts: Counts, where: str) -> float | None:
    return ciou(counts[where]) if where in counts else None


def measure_grounding(method: str, lmm: Any, world: World, asked: list[list[Asked]]) -> dict[str, Any]:
    """Return the row of a method: cIoU of decoder and refiner, over all phrases and by where they stand."""
    right, _ = _tallies(method, lmm, world, asked)
    return right.row(method)


def measure_right_and_wrong(lmm: Any, world: World, asked: list[list[Asked]]) -> list[dict[str, Any]]:
    """Return the row of the LMM and of its control: each phrase's mask scored against the *next* object."""
    right, wrong = _tallies(MEASURED, lmm, world, asked)
    return [right.row(MEASURED), wrong.row("wrong phrase of the same scene")]


def _tallies(method: str, lmm: Any, world: World, asked: list[list[Asked]]) -> tuple[Tally, Tally]:
    right, wrong = Tally(), Tally()
    for (scene, _, picture), questions in _progress(list(zip(world, asked, strict=True)), method):
        masks = visible_masks(scene, SIZE)
        for item in questions:
            for index, (coarse, fine) in zip(item.targets(), predict(lmm, picture, item), strict=True):
                right.add(item.where, coarse, fine, masks[index])
                if len(masks) > 1:
                    wrong.add(item.where, coarse, fine, masks[(index + 1) % len(masks)])
    return right, wrong


def untrained_rows(world: World, asked: list[list[Asked]]) -> list[dict[str, Any]]:
    """Return the rows of two masks that look at nothing: the whole image, and a centered box of half its side."""
    quarter = SIZE // 4
    box = np.zeros((SIZE, SIZE), np.bool_)
    box[quarter:-quarter, quarter:-quarter] = True
    everything = np.ones((SIZE, SIZE), np.bool_)
    return [
        _fixed_row("whole image", world, asked, lambda _: everything),
        _fixed_row("centre box", world, asked, lambda _: box),
    ]


def _fixed_row(
    method: str, world: World, asked: list[list[Asked]], mask_of: Callable[[Picture], BoolArray]
) -> dict[str, Any]:
    """Return the row of a method that gives one mask per picture, whatever is asked."""
    tally = Tally()
    for (scene, _, picture), questions in zip(world, asked, strict=True):
        masks, mask = visible_masks(scene, SIZE), mask_of(picture)
        for item in questions:
            for index in item.targets():
                tally.add(item.where, mask, mask, masks[index])
    tally.decoder.clear()  # no mask decoder has a part in it
    return tally.row(method)


def _random_row(path: Path, world: World, asked: list[list[Asked]]) -> dict[str, Any]:
    """Control: the same recipe on an untrained LMM of the same shape."""
    from flmm_plugin.grounded_lmm import GroundedLMM
    from flmm_plugin.tiny.untrained import write_untrained

    with tempfile.TemporaryDirectory() as folder:
        place = write_untrained(Path(folder) / "flmm_tiny")
        untrained = GroundedLMM.from_pretrained(str(place), heads=str(path))
        return measure_grounding("same heads on a random-init LMM", untrained, world, asked)


def _image_only_row(lmm: Any, path: Path, world: World, asked: list[list[Asked]]) -> dict[str, Any]:
    """Control: heads trained to see the picture alone, attention and hidden states zeroed: what saliency gives."""
    import torch
    from PIL import Image

    from flmm_plugin.geometry import ImageGrid
    from flmm_plugin.heads import load_heads

    heads = load_heads(str(path), expect=lmm.backbone.facts)
    facts = lmm.backbone.facts
    vision = lmm.backbone.model.config.vision_config
    grid = ImageGrid.from_pad_then_resize(SIZE, SIZE, vision.image_size, vision.patch_size)

    @torch.no_grad()
    def mask_of(picture: Picture) -> BoolArray:
        maps = torch.zeros(1, facts.attention_maps, grid.height, grid.width)
        hidden = [torch.zeros(1, facts.layers, facts.hidden_size)]
        return np.asarray(heads(maps, hidden, Image.fromarray(picture), grid).logits[0].numpy() > 0)

    return _fixed_row("refiner that sees the image alone", world, asked, mask_of)


def provenance(lmm: Any, heads: Path) -> dict[str, Any]:
    """Return the versions, the machine and the heads that gave these numbers."""
    import platform

    import torch
    import transformers

    from flmm_plugin import __version__
    from flmm_plugin.heads import read_manifest

    return {
        "flmm_plugin": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": str(lmm.backbone.device),
        "dtype": str(lmm.backbone.dtype),
        "attention": lmm.backbone.kernel,
        "heads_sha256": read_manifest(str(heads)).sha256,  # of the tensors, as everywhere
    }
