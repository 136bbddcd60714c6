"""Synthetic scenes in the layout of panoptic narrative grounding: narratives, and a segment for every pixel.

A narrative is the caption of a scene (all things in reading order), then the things that share a colour or a shape (a
plural phrase), then the ground they lie on (stuff). Every fourth picture is described a second time, as a list of
referring expressions. As in the released files, some narratives name nothing: readers must count and skip them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from flmm_plugin.tiny import language
from flmm_plugin.tiny.layouts import PICTURE_SIZE, coco_box, save_jpeg
from flmm_plugin.tiny.scenes import GROUNDS, SHAPES, Scene, sample_scene, visible_masks

_STREAM = 70
_RETOLD = 4
_NAMELESS = 20


@dataclass(frozen=True)
class _Mention:
    """A phrase of a narrative: its characters, and the objects it names; no object means the ground."""

    start: int
    end: int
    objects: tuple[int, ...]
    plural: bool = False


def write_png(
    root: Path, *, scenes: int | Mapping[str, int] = 60, seed: int = 1000, splits: Sequence[str] = ("val",)
) -> Path:
    """Write ``root/coco/annotations/{png_coco,panoptic}_<split>2017.json``, panoptic maps and pictures.

    ``scenes`` may give the pictures of each split by its name.
    """
    for split_number, split in enumerate(splits):
        year = f"{split}2017"
        pictures, maps = root / "coco" / year, root / "coco" / "annotations" / f"panoptic_{year}"
        pictures.mkdir(parents=True, exist_ok=True)
        maps.mkdir(parents=True, exist_ok=True)
        content: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": _categories()}
        narratives: list[dict[str, Any]] = []
        for number in range(scenes[split] if isinstance(scenes, Mapping) else scenes):
            rng = np.random.default_rng([seed, _STREAM, split_number, number])
            scene = sample_scene(rng)
            image_id = 700_000 + 10_000 * split_number + number
            name = f"{image_id:012d}"
            save_jpeg(scene, pictures / f"{name}.jpg")
            segments, annotation = _panoptic(scene, rng)
            _colors(segments).save(maps / f"{name}.png")
            size = {"height": PICTURE_SIZE, "width": PICTURE_SIZE}
            content["images"].append({"id": image_id, "file_name": f"{name}.jpg", **size})
            content["annotations"].append(
                {"image_id": image_id, "file_name": f"{name}.png", "segments_info": annotation}
            )
            ids = [info["id"] if info["area"] else None for info in annotation]
            texts = [narrative(scene)]
            if number % _RETOLD == _RETOLD - 1:
                turn = language.refer_list(scene, rng)
                texts.append((turn.answer, [_Mention(start, end, (index,)) for _, start, end, index in turn.mentions]))
            if number % _NAMELESS == _NAMELESS - 1:
                texts.append(("This is an image.", []))
            for annotator, (text, mentions) in enumerate(texts):
                narratives.append(
                    {
                        "image_id": str(image_id), "annotator_id": str(annotator), "caption": text,
                        "segments": _pieces(text, mentions, ids),
                    }
                )  # fmt: skip
        folder = root / "coco" / "annotations"
        (folder / f"png_coco_{year}.json").write_text(json.dumps(narratives))
        (folder / f"panoptic_{year}.json").write_text(json.dumps(content))
    return root


def _categories() -> list[dict[str, Any]]:
    names = [(shape, 1, "shape") for shape in SHAPES] + [(f"{ground} ground", 0, "ground") for ground in GROUNDS]
    return [
        {"id": number, "name": name, "isthing": isthing, "supercategory": above}
        for number, (name, isthing, above) in enumerate(names, start=1)
    ]


def _panoptic(scene: Scene, rng: np.random.Generator) -> tuple[npt.NDArray[np.int64], list[dict[str, Any]]]:
    """The segment id of every pixel, and one entry per object (seen or not) and one for the ground, in that order."""
    ids = [int(one) for one in rng.choice(np.arange(1, 1 << 24), len(scene.things) + 1, replace=False, shuffle=False)]
    masks = visible_masks(scene, PICTURE_SIZE)
    masks.append(~np.logical_or.reduce(masks))
    categories = [SHAPES.index(thing.shape) + 1 for thing in scene.things]
    categories.append(len(SHAPES) + GROUNDS.index(scene.ground) + 1)
    segments = np.zeros((PICTURE_SIZE, PICTURE_SIZE), np.int64)
    infos = []
    for number, category, mask in zip(ids, categories, masks, strict=True):
        segments[mask] = number
        area = int(mask.sum())
        infos.append({"id": number, "category_id": category, "iscrowd": 0, "bbox": coco_box(mask), "area": area})
    return segments, infos


def _colors(segments: npt.NDArray[np.int64]) -> Image.Image:
    """COCO's PNG form of a panoptic map: R + 256 G + 65536 B."""
    return Image.fromarray(np.stack([segments & 255, segments >> 8 & 255, segments >> 16], -1).astype(np.uint8))


def narrative(scene: Scene) -> tuple[str, list[_Mention]]:
    """The caption, what several things share, and the ground."""
    turn = language.caption(scene)
    text = turn.answer
    mentions = [_Mention(start, end, (index,)) for _, start, end, index in turn.mentions]
    for attribute in ("color", "shape"):
        same = [
            i for i, one in enumerate(scene.things) if getattr(one, attribute) == getattr(scene.things[0], attribute)
        ]
        if len(same) > 1:
            thing = scene.things[0]
            noun = f"{thing.color} objects" if attribute == "color" else language.plural(thing.shape)
            text += " There are "
            start = len(text)
            text += f"{language.NUMBER_WORDS[len(same)]} {noun}"
            mentions.append(_Mention(start, len(text), tuple(same), plural=True))
            text += "."
            break
    text += " The "
    start = len(text)
    text += f"{scene.ground} ground"
    mentions.append(_Mention(start, len(text), ()))
    return text + ".", mentions


def _pieces(text: str, mentions: Sequence[_Mention], ids: Sequence[int | None]) -> list[dict[str, Any]]:
    """The narrative cut into utterances; a space before a phrase belongs to the phrase."""
    pieces: list[dict[str, Any]] = []

    def add(start: int, end: int, mention: _Mention | None) -> None:
        objects = () if mention is None else mention.objects or (len(ids) - 1,)
        named = [str(ids[index]) for index in objects if ids[index] is not None]
        plural = mention is not None and mention.plural
        piece = {"utterance": text[start:end], "segment_ids": named, "noun": mention is not None, "plural": plural}
        if end > start:
            pieces.append(piece)

    done = 0
    for mention in mentions:
        start = mention.start - (text[mention.start - 1 : mention.start] == " ")
        add(done, start, None)
        add(start, mention.end, mention)
        done = mention.end
    add(done, len(text), None)
    return pieces
