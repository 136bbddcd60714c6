"""Panoptic narratives in their official layout: what is read, and what is said about files that are damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flmm_plugin.datasets.png import Narrative, PngDataset, phrase_mask
from flmm_plugin.datasets.problems import counted
from flmm_plugin.errors import BadAnnotation, DataNotFound, UnknownArgument

Folder = Callable[..., Any]


def test_phrases_their_segments_and_their_places_in_the_narrative(png_folder: Folder) -> None:
    folder = png_folder()
    dataset = PngDataset(folder.root)
    assert (len(dataset), dataset.in_file, dataset.phrases) == (2, 3, 5)
    first: Narrative = dataset[0]
    assert first.text == "There is a brown cat and another, so two cats on grass."
    assert [first.text[slice(*phrase.span)] for phrase in first.phrases] == [p.text for p in first.phrases]
    assert [phrase.text for phrase in first.phrases] == ["a brown cat", "another", "two cats", "grass"]
    assert [phrase.piece for phrase in first.phrases] == [1, 3, 5, 7]
    assert [phrase.plural for phrase in first.phrases] == [False, False, True, False]
    assert [phrase.things for phrase in first.phrases] == [(True,), (True,), (True, True), (False,)]
    assert (first.image_id, first.height, first.width) == (139, 20, 30)
    assert first.image_path == folder.pictures / "000000000139.jpg"
    # A number where the files usually have text.
    assert (dataset[1].index, dataset[1].image_id) == (2, 785)


def test_masks_are_unions_of_segments_whose_ids_take_one_to_three_bytes(png_folder: Folder) -> None:
    folder = png_folder()
    dataset = PngDataset(folder.root)
    expected = [folder.mask(300), folder.mask(70000), folder.mask(300, 70000), folder.mask(5)]
    for mask, target in zip(dataset.masks(dataset[0]), expected, strict=True):
        assert mask.dtype == bool
        assert np.array_equal(mask, target)
    assert np.array_equal(dataset.masks(dataset[1])[0], folder.mask(5))
    assert expected[2].sum() == 200


def test_masks_equal_a_walk_over_every_pixel(png_folder: Folder) -> None:
    folder = png_folder()
    rng = np.random.default_rng(0)
    colors = rng.integers(0, 3, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(colors).save(folder.maps / "000000000139.png")
    named = [1 + 256 * 2 + 65536, 2 + 256, 0]
    slow = np.zeros((20, 30), dtype=bool)
    for y in range(20):
        for x in range(30):
            red, green, blue = (int(value) for value in colors[y, x])
            slow[y, x] = red + 256 * green + 65536 * blue in named

    def name_them(content: list[Any]) -> None:
        content[0]["segments"] = [{"utterance": "it", "segment_ids": [str(n) for n in named], "plural": True}]

    def list_them(content: dict[str, Any]) -> None:
        content["annotations"][0]["segments_info"] = [{"id": number, "category_id": 1} for number in named]

    folder.change(folder.narratives, name_them)
    folder.change(folder.panoptic, list_them)
    dataset = PngDataset(folder.root)
    assert 0 < slow.sum() < slow.size
    assert np.array_equal(dataset.masks(dataset[0])[0], slow)


@pytest.mark.parametrize(
    ("annotations", "maps", "pictures"),
    [
        ("panoptic_narrative_grounding/annotations",
         "panoptic_narrative_grounding/annotations/panoptic_segmentation/val2017",
         "panoptic_narrative_grounding/images/val2017"),
        ("annotations", "panoptic_val2017", "val2017"),
        ("coco/annotations", "coco/panoptic_val2017", "coco/val2017"),
        ("png/annotations", "coco/annotations/panoptic_val2017", "coco/images/val2017"),
        # As COCO's own archive of archives unpacks.
        ("coco/annotations", "coco/annotations/panoptic_val2017/panoptic_val2017", "coco/val2017"),
    ],
)  # fmt: skip
def test_layouts(png_folder: Folder, annotations: str, maps: str, pictures: str) -> None:
    folder = png_folder(annotations, maps, pictures)
    dataset = PngDataset(folder.root)
    assert len(dataset) == 2
    assert dataset[0].map_path.parent == folder.maps
    assert dataset[0].image_path.parent == folder.pictures


def test_missing_parts_are_named_with_their_source(tmp_path: Path, png_folder: Folder) -> None:
    with pytest.raises(DataNotFound, match=r"png_coco_val2017.json.*narrative-grounding"):
        PngDataset(tmp_path / "empty")
    folder = png_folder()
    folder.panoptic.rename(folder.root / "elsewhere.json")
    with pytest.raises(DataNotFound, match=r"panoptic_val2017.json.*panoptic_annotations_trainval2017"):
        PngDataset(folder.root)
    with pytest.raises(UnknownArgument, match="train, val"):
        PngDataset(folder.root, "testA")


def kinds(dataset: PngDataset) -> dict[str, int]:
    return counted(dataset.problems)


def test_nothing_is_left_out_silently(png_folder: Folder) -> None:
    folder = png_folder()

    def change(content: list[Any]) -> None:
        pieces = content[0]["segments"]
        pieces[1]["segment_ids"] = ["300", "70000"]  # singular, two segments: stays
        pieces[3]["segment_ids"] = ["999"]  # unknown: leaves
        pieces[5]["segment_ids"] = ["300", "998"]  # one unknown: stays with the other
        pieces[8] = {"utterance": " ", "segment_ids": ["5"], "plural": False}  # no words: leaves
        content.append({**content[2], "image_id": "11"})  # not in the panoptic annotation
        content.append(content[2])  # told twice: both stay
        content.append({"image_id": "139"})  # no segments at all
        content.append({**content[2], "segments": [{"utterance": 7, "segment_ids": ["5"]}]})

    folder.change(folder.narratives, change)
    dataset = PngDataset(folder.root)
    assert kinds(dataset) == {
        "singular phrase with several segments": 1,
        "segment is not in the panoptic annotation": 2,
        "names a segment and has no words": 1,
        "no phrase names a segment": 1,
        "picture is not in the panoptic annotation": 1,
        "listed twice, word by word; both count": 1,
        "a field is missing or strange": 2,
    }
    assert [phrase.text for phrase in dataset[0].phrases] == ["a brown cat", "two cats", "grass"]
    assert dataset[0].phrases[1].segment_ids == (300,)
    assert (dataset.in_file, len(dataset), dataset.phrases) == (7, 3, 5)
    # Two phrases of the first narrative, and the one of picture 11.
    assert sum(problem.dropped for problem in dataset.problems) == 3
    listed = [str(problem) for problem in dataset.problems]
    assert "narrative 0 (image 139), phrase 'another', segment 999: segment is not in the panoptic annotation" in listed
    assert any("narrative 5" in line and "KeyError" in line for line in listed)


def test_duplicate_ids_of_the_panoptic_annotation(png_folder: Folder) -> None:
    folder = png_folder()

    def change(content: dict[str, Any]) -> None:
        first = content["annotations"][0]
        first["segments_info"].append({"id": 5, "category_id": 1})
        content["annotations"].append({**first, "file_name": "000000000785.png"})

    folder.change(folder.panoptic, change)
    dataset = PngDataset(folder.root)
    assert kinds(dataset) == {
        "segment is listed twice, the first time counts": 1,
        "picture is annotated twice, the first time counts": 1,
        "no phrase names a segment": 1,
    }
    assert dataset[0].phrases[3].things == (False,)
    assert dataset[0].map_path.name == "000000000139.png"


def test_a_missing_panoptic_map_costs_its_narratives_alone(png_folder: Folder) -> None:
    folder = png_folder()
    (folder.maps / "000000000139.png").unlink()
    dataset = PngDataset(folder.root)
    assert [narrative.image_id for narrative in dataset] == [785]
    assert kinds(dataset) == {"no panoptic map in panoptic_val2017": 1, "no phrase names a segment": 1}
    (folder.maps / "000000000785.png").unlink()
    with pytest.raises(BadAnnotation, match="no narrative"):
        PngDataset(folder.root)


@pytest.mark.parametrize("which", ["narratives", "panoptic"])
def test_damaged_json(png_folder: Folder, which: str) -> None:
    folder = png_folder()
    path: Path = getattr(folder, which)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(BadAnnotation, match="not JSON"):
        PngDataset(folder.root)
    path.write_bytes(whole.replace(b"grass", "gr\u00e4s".encode("cp1252")))
    with pytest.raises(BadAnnotation, match="not UTF-8"):
        PngDataset(folder.root)
    path.write_bytes(b"\xef\xbb\xbf" + whole)  # with a byte-order mark it is still JSON
    assert len(PngDataset(folder.root)) == 2
    path.write_text(json.dumps({"other": []}))
    with pytest.raises(BadAnnotation, match=r"not a list of narratives|not a COCO panoptic annotation"):
        PngDataset(folder.root)


def test_damaged_panoptic_maps(png_folder: Folder) -> None:
    folder = png_folder()
    dataset = PngDataset(folder.root)
    path = folder.maps / "000000000139.png"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadAnnotation, match="panoptic map"):
        dataset.masks(dataset[0])
    Image.new("RGB", (20, 30)).save(path)
    with pytest.raises(BadAnnotation, match="30 x 20"):
        dataset.masks(dataset[0])
    assert dataset.masks(dataset[1])[0].any()


def test_a_map_without_a_segment_is_named_and_not_an_empty_target(png_folder: Folder) -> None:
    folder = png_folder()
    dataset = PngDataset(folder.root)
    path = folder.maps / "000000000139.png"
    colors = np.array(Image.open(path))
    colors[colors[:, :, 2] > 0] = (5, 0, 0)  # segment 70000 becomes grass
    Image.fromarray(colors).save(path)
    with pytest.raises(BadAnnotation, match="no pixel of segment 70000"):
        dataset.masks(dataset[0])


def test_the_digest_tells_two_roots_apart(png_folder: Folder) -> None:
    folder = png_folder()
    before = PngDataset(folder.root).digest
    assert before == PngDataset(folder.root).digest
    folder.change(folder.narratives, lambda content: content[0].update(annotator_id="5"))
    assert before != PngDataset(folder.root).digest


def test_phrase_mask_of_no_segment_is_empty() -> None:
    assert not phrase_mask(np.ones((2, 3), np.int64), [7]).any()
