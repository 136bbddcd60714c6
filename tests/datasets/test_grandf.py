"""GranD-f's files: what is read, and what damaged ones say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flmm_plugin.datasets.grandf import GranDfDataset
from flmm_plugin.errors import BadAnnotation, DataNotFound, UnknownArgument
from flmm_plugin.records import decode_rle, encode_rle
from flmm_plugin.tasks.gcg.benchmark import read_documents

SIZE = (6, 8)


def mask(number: int) -> Any:
    found = np.zeros(SIZE, dtype=bool)
    found[number % 5 : number % 5 + 2, 1:5] = True
    return found


def content() -> dict[str, dict[str, Any]]:
    """Two pictures with string ids: one with two labels, one with one; masks of both are mixed in the file."""
    images: list[dict[str, Any]] = [{"id": "sa_2", "height": 6, "width": 8}, {"id": "sa_1", "height": 6, "width": 8}]
    captions = [
        {"id": 0, "image_id": "sa_1", "caption": "A caf\u00e9.", "labels": ["caf\u00e9"]},
        {"id": 1, "image_id": "sa_2", "caption": "A dog on a bed.", "labels": ["dog", "bed"]},
    ]
    of = ["sa_2", "sa_1", "sa_2"]
    masks = [
        {"id": number, "image_id": image_id, "category_id": 1, "iscrowd": 0, "segmentation": encode_rle(mask(number))}
        for number, image_id in enumerate(of)
    ]
    return {
        "caption": {"images": images, "annotations": captions},
        "mask": {"images": images, "annotations": masks, "categories": [{"id": 1}]},
    }


def write(root: Path, files: dict[str, Any], split: str = "val") -> Path:
    folder = root / "GranDf" / "annotations" / "val_test"
    folder.mkdir(parents=True, exist_ok=True)
    (root / "GranDf_HA_images" / "val_test").mkdir(parents=True, exist_ok=True)
    for kind, data in files.items():
        path = folder / f"{split}_gcg_coco_{kind}_gt.json"
        path.write_bytes(data if isinstance(data, bytes) else json.dumps(data, ensure_ascii=False).encode())
    return folder


def test_pictures_come_with_their_labels_and_masks_in_file_order(tmp_path: Path) -> None:
    write(tmp_path, content())
    data = GranDfDataset(tmp_path, "val")
    assert [item.image_id for item in data] == ["sa_2", "sa_1"]
    first, second = data
    assert (first.caption, first.labels) == ("A dog on a bed.", ("dog", "bed"))
    assert second.labels == ("caf\u00e9",)
    assert [np.flatnonzero(decode_rle(code)).tolist() for code in first.masks] == [
        np.flatnonzero(mask(number)).tolist() for number in (0, 2)
    ]
    assert first.image_path == tmp_path / "GranDf_HA_images" / "val_test" / "sa_2.jpg"
    assert (len(data), data.problems, len(data.digest)) == (2, (), 64)


def test_numbers_as_ids_are_the_same_as_their_text(tmp_path: Path) -> None:
    files = json.loads(json.dumps(content()).replace('"sa_1"', "1").replace('"sa_2"', "2"))
    write(tmp_path, files)
    assert [(item.image_id, item.image_path.name) for item in GranDfDataset(tmp_path, "val")] == [
        ("2", "2.jpg"),
        ("1", "1.jpg"),
    ]


def test_other_numbers_of_labels_and_masks_are_kept_and_listed(tmp_path: Path) -> None:
    files = content()
    files["caption"]["annotations"][1]["labels"].append("lamp")
    write(tmp_path, files)
    data = GranDfDataset(tmp_path, "val")
    (problem,) = data.problems
    assert problem.where == "picture sa_2 has 3 labels and 2 masks"
    assert len(data) == 2


@pytest.mark.parametrize(
    ("annotations", "pictures"),
    [
        ("GranDf/annotations/val_test", "GranDf/GranDf_HA_images/val_test"),
        ("annotations/val_test", "GranDf_HA_images/val_test"),
    ],
)
def test_layouts(tmp_path: Path, annotations: str, pictures: str) -> None:
    written = write(tmp_path / "made", content())
    (tmp_path / "root" / annotations).parent.mkdir(parents=True)
    written.rename(tmp_path / "root" / annotations)
    (tmp_path / "root" / pictures).mkdir(parents=True)
    assert GranDfDataset(tmp_path / "root", "val").picture_folder == tmp_path / "root" / pictures


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataNotFound, match=r"caption of val.*GranD-f.*FLMM_DATA"):
        GranDfDataset(tmp_path, "val")
    folder = write(tmp_path, content())
    with pytest.raises(DataNotFound, match="test_gcg_coco_caption_gt"):
        GranDfDataset(tmp_path, "test")
    with pytest.raises(UnknownArgument, match="val, test"):
        GranDfDataset(tmp_path, "train")
    (tmp_path / "GranDf_HA_images" / "val_test").rmdir()
    with pytest.raises(DataNotFound, match="no pictures"):
        GranDfDataset(tmp_path, "val")
    assert folder.is_dir()


def damaged(change: Any) -> dict[str, Any]:
    files = content()
    change(files)
    return files


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: f.update(caption=json.dumps(f["caption"]).encode()[:-20]), "truncated"),
        (lambda f: f.update(caption="A caf\u00e9".encode("latin-1")), "not UTF-8"),
        (lambda f: f.update(mask=[1, 2]), "no lists `images` and `annotations`"),
        (lambda f: f["caption"]["images"].append({"id": "sa_1", "height": 6, "width": 8}), "two entries have id sa_1"),
        (
            lambda f: f["caption"]["annotations"].append(f["caption"]["annotations"][0]),
            "two entries have image_id sa_1",
        ),
        (lambda f: f["mask"]["annotations"].append(f["mask"]["annotations"][0]), "annotation 0 .* there twice"),
        (lambda f: f["mask"]["annotations"][0].update(segmentation=encode_rle(np.ones((8, 6)))), r"\[8, 6\]"),
        (lambda f: f["mask"]["annotations"][0]["segmentation"].update(counts="1"), "run-length code covers"),
        (lambda f: f["mask"]["annotations"][0].update(image_id="sa_9"), "take both files of one split"),
        (lambda f: f["mask"]["annotations"][0].update(iscrowd=1), "crowd"),
        (lambda f: f["caption"]["annotations"].pop(), "sa_2 .* has no caption"),
        (lambda f: f["caption"]["annotations"][0].pop("labels"), "labels"),
        (lambda f: f["caption"]["annotations"][0]["labels"].append(None), "a list of texts"),
        (lambda f: f["caption"]["annotations"][0].update(caption=None), "a list of texts"),
    ],
)
def test_damaged_files_say_what_is_wrong(tmp_path: Path, change: Any, said: str) -> None:
    write(tmp_path, damaged(change))
    with pytest.raises(BadAnnotation, match=said):
        GranDfDataset(tmp_path, "val")


def test_a_mask_without_a_pixel_is_noted(tmp_path: Path) -> None:
    files = content()
    files["mask"]["annotations"][1]["segmentation"] = {"size": list(SIZE), "counts": [48]}
    write(tmp_path, files)
    (problem,) = GranDfDataset(tmp_path, "val").problems
    assert str(problem) == "mask 0 of picture sa_1: mask without a pixel"


@pytest.mark.parametrize(
    ("place", "field", "value"),
    [
        (0, "height", True), (0, "height", 1e999), (0, "width", 10**7), (0, "file_name", "../x.jpg"), (0, "id", None),
        (0, "id", 1.5), (0, "id", ["sa_2"]),
    ],
)  # fmt: skip
def test_fields_that_are_no_numbers_are_named(tmp_path: Path, place: int, field: str, value: Any) -> None:
    files = content()
    files["caption"]["images"][place][field] = value
    write(tmp_path, files)
    with pytest.raises(BadAnnotation, match="gcg_coco_caption"):
        GranDfDataset(tmp_path, "val")


def test_pictures_are_opened_upright_as_opencv_does(tmp_path: Path) -> None:
    write(tmp_path, content())
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 8)).save(tmp_path / "GranDf_HA_images/val_test/sa_2.jpg", exif=exif)
    doc = read_documents("val", {"root": str(tmp_path), "sentence_encoder": "words"})[0]
    assert doc["image"].size == (doc["width"], doc["height"]) == (8, 6)
