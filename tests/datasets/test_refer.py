"""The reader of RefCOCO's official files."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from flmm_plugin.datasets.prepared import writing
from flmm_plugin.datasets.refer import (
    OFFICIAL_SIZES,
    SPLITTERS,
    ReferDataset,
    segmentation_rle,
    split_matches,
)
from flmm_plugin.errors import BadAnnotation, DataNotFound, UnknownArgument, UnsafePickle
from flmm_plugin.records import decode_rle
from flmm_plugin.tasks.refcoco.benchmark import read_documents

LAYOUTS = [
    ("coco/{name}", "coco/train2014"),
    ("{name}", "train2014"),
    ("{name}", "images/mscoco/images/train2014"),
]


@pytest.mark.parametrize(("annotations", "pictures"), LAYOUTS)
def test_every_layout_is_found(refer_folder: Callable[..., Any], annotations: str, pictures: str) -> None:
    folder = refer_folder(annotations=annotations, pictures=pictures)
    items = list(ReferDataset(folder.root, "refcoco", "val"))
    assert [item.ann_id for item in items] == [101, 102, 103]
    assert all(Image.open(item.image_path).size == (item.width, item.height) for item in items)
    assert items[0].sentences == ("The 0 Thing!", "thing no. 0, again")
    assert items[0].cleaned == ("the 0 thing", "thing no. 0, again")


def test_masks_lie_where_the_objects_are(refer_folder: Callable[..., Any]) -> None:
    folder = refer_folder()
    dataset = ReferDataset(folder.root, "refcoco", "val")
    for item in dataset:
        assert np.array_equal(dataset.mask(item), folder.mask(item.ann_id, item.image_id))


def test_the_root_comes_from_the_environment(refer_folder: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = refer_folder()
    monkeypatch.setenv("FLMM_DATA", str(folder.root))
    assert len(ReferDataset(None, "refcoco", "testA")) == 1
    monkeypatch.delenv("FLMM_DATA")
    monkeypatch.chdir(folder.root.parent)
    os.symlink(folder.root, folder.root.parent / "data")
    assert len(ReferDataset(None, "refcoco", "testA")) == 1


def test_split_rules_are_the_refer_api_s() -> None:
    asked = ("train", "val", "test", "testA", "testB", "testC")
    answers = {name: [split for split in asked if split_matches(name, split)] for name in ("testAB", "testC", "val")}
    assert answers == {"testAB": ["test", "testA", "testB"], "testC": ["test", "testC"], "val": ["val"]}


def test_sizes_of_lettered_splits_add_up() -> None:
    for name in ("refcoco", "refcoco+"):
        sizes = OFFICIAL_SIZES[name, "unc"]
        assert sizes["test"].refs == sizes["testA"].refs + sizes["testB"].refs
        assert sizes["test"].sentences == (sizes["testA"].sentences or 0) + (sizes["testB"].sentences or 0)
        assert sizes["test"].images == sizes["testA"].images + sizes["testB"].images
    # RefCOCO has 50,000 objects in all.
    assert sum(OFFICIAL_SIZES["refcoco", "unc"][split].refs for split in ("train", "val", "testA", "testB")) == 50_000


def change(path: Path, how: Callable[[Any], None]) -> None:
    """Rewrite a JSON file or a pickle after `how` changed its content in place."""
    form: Any = json if path.suffix == ".json" else pickle
    content = form.loads(path.read_bytes())
    how(content)
    path.write_bytes(json.dumps(content).encode() if form is json else pickle.dumps(content, protocol=2))


def test_what_is_ignored_or_odd_is_listed(refer_folder: Callable[..., Any]) -> None:
    folder = refer_folder()
    annotations = folder.root / "coco/refcoco"
    assert ReferDataset(folder.root, "refcoco", "val").problems == ()

    def spoil(content: Any) -> None:
        content["annotations"][0]["segmentation"].append([1, 2, 3, 4])
        content["annotations"][1]["segmentation"] = [[1, 2, 3, 4]]
        content["annotations"][3]["segmentation"] = []  # of another split

    def silence(refs: Any) -> None:
        refs[2]["sentences"] = []
        refs.append(refs[0])

    change(annotations / "instances.json", spoil)
    change(annotations / "refs(unc).p", silence)
    dataset = ReferDataset(folder.root, "refcoco", "val")
    assert [str(problem) for problem in dataset.problems] == [
        "ref 0 (image 11, annotation 101): polygon of fewer than 6 numbers, ignored",
        "ref 1 (image 11, annotation 102): object without a usable polygon; its target is empty",
        "ref 2 (image 12, annotation 103): ref without a sentence; counts as an error, and not at all per sentence",
        "ref 0 (image 11, annotation 101): ref is listed twice; both count",
        "ref 0 (image 11, annotation 101): polygon of fewer than 6 numbers, ignored",
    ]
    assert not dataset.mask(dataset[1]).any()
    assert np.array_equal(dataset.mask(dataset[0]), folder.mask(101, 11))
    assert [problem.where[:5] for problem in ReferDataset(folder.root, "refcoco", "testA").problems] == ["ref 3"]


@pytest.mark.parametrize(
    ("sentence", "read", "problems"),
    [
        ({"sent": None, "raw": None}, [], ["`raw`", "`sent`", "without a text"]),
        ({"sent": 5, "raw": ["a"]}, [], ["`raw`", "`sent`", "without a text"]),
        ({}, [], ["`sent`", "without a text"]),
        ({"sent": "\ud800"}, [], ["`sent`", "without a text"]),
        ({"sent": "a cat", "raw": None}, [("a cat", "a cat")], ["`raw`"]),
        ({"sent": None, "raw": "A cat"}, [("A cat", "A cat")], ["`sent`"]),
        ({"sent": "a cat"}, [("a cat", "a cat")], []),
        ({"sent": " ", "raw": "!"}, [("!", " ")], ["without words"]),
    ],
)
def test_a_sentence_without_a_text_is_counted_and_never_read_as_none(
    refer_folder: Callable[..., Any], sentence: Any, read: list[tuple[str, str]], problems: list[str]
) -> None:
    folder = refer_folder()
    path = folder.root / "coco/refcoco/refs(unc).p"
    change(path, lambda refs: refs[0]["sentences"].append(sentence))
    with writing():
        ReferDataset(folder.root, "refcoco", "val")
    prepared = ReferDataset(folder.root, "refcoco", "val")
    shutil.rmtree(folder.root / ".flmm")
    for dataset in (prepared, ReferDataset(folder.root, "refcoco", "val")):
        assert list(zip(dataset[0].sentences[2:], dataset[0].cleaned[2:], strict=True)) == read
        assert [one in str(problem) for one, problem in zip(problems, dataset.problems, strict=True)] == [True] * len(
            problems
        )


def test_an_object_of_another_picture_is_refused(refer_folder: Callable[..., Any]) -> None:
    folder = refer_folder()
    change(folder.root / "coco/refcoco/instances.json", lambda content: content["annotations"][0].update(image_id=12))
    with pytest.raises(BadAnnotation, match="image 12"):
        ReferDataset(folder.root, "refcoco", "val")


@pytest.mark.parametrize("value", [True, 11.5, float("inf"), float("nan"), "eleven", None, [11]])
@pytest.mark.parametrize("field", ["image_id", "ann_id", "ref_id"])
def test_an_id_that_is_none_is_refused(refer_folder: Callable[..., Any], field: str, value: Any) -> None:
    folder = refer_folder()
    change(folder.root / "coco/refcoco/refs(unc).p", lambda refs: refs[0].update({field: value}))
    with pytest.raises(BadAnnotation, match=r"refs\(unc\)\.p"):
        ReferDataset(folder.root, "refcoco", "val")


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/passwd", "", None, 5, "a\0b"])
def test_a_picture_is_inside_its_folder(refer_folder: Callable[..., Any], name: Any) -> None:
    folder = refer_folder()
    change(folder.root / "coco/refcoco/instances.json", lambda content: content["images"][0].update(file_name=name))
    with pytest.raises(BadAnnotation, match="ref 0"):
        ReferDataset(folder.root, "refcoco", "val")


@pytest.mark.parametrize(
    "segmentation",
    [[[500, 500, 600, 500, 600, 600]], [[-9, -9, -1, -9, -1, -1]], {"size": [60, 100], "counts": [6000]}],
)
def test_an_object_without_a_pixel_is_counted(refer_folder: Callable[..., Any], segmentation: Any) -> None:
    folder = refer_folder()
    path = folder.root / "coco/refcoco/instances.json"
    change(path, lambda content: content["annotations"][0].update(segmentation=segmentation))
    dataset = ReferDataset(folder.root, "refcoco", "val")
    assert not dataset.mask(dataset[0]).any()
    (problem,) = dataset.problems
    assert "without a pixel" in str(problem)


def test_a_huge_picture_claims_no_memory(refer_folder: Callable[..., Any]) -> None:
    folder = refer_folder()
    path = folder.root / "coco/refcoco/instances.json"
    change(path, lambda content: content["images"][0].update(height=900_000, width=900_000))
    change(path, lambda content: content["annotations"][0].update(segmentation=[]))
    with pytest.raises(BadAnnotation, match="900000 x 900000"):
        ReferDataset(folder.root, "refcoco", "val")


@pytest.mark.parametrize("what", ["images", "annotations"])
def test_an_id_that_means_two_things_is_refused(refer_folder: Callable[..., Any], what: str) -> None:
    folder = refer_folder()
    path = folder.root / "coco/refcoco/instances.json"
    change(path, lambda content: content[what].append(content[what][0]))
    assert len(ReferDataset(folder.root, "refcoco", "val")) == 3
    change(path, lambda content: content[what].append({**content[what][0], "height": 1, "iscrowd": 1}))
    with pytest.raises(BadAnnotation, match="twice"):
        ReferDataset(folder.root, "refcoco", "val")


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [(("refcoc", "val"), "'refcoco'"), (("refcoco", "testa"), "'testA'"), (("refcocog", "val", "umb"), "'umd'")],
)
def test_unknown_names_are_answered_with_the_nearest(tmp_path: Path, arguments: tuple[str, ...], hint: str) -> None:
    with pytest.raises(UnknownArgument, match=f"did you mean {hint}"):
        ReferDataset(tmp_path, *arguments)


def test_a_missing_file_is_named_with_its_source_and_command(refer_folder: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(DataNotFound, match=r"annotations of RefCOCO\+.*refcoco\+\.zip.*flmm data.*FLMM_DATA"):
        ReferDataset(tmp_path, "refcoco+", "val")
    folder = refer_folder(by="google")
    with pytest.raises(DataNotFound, match=r"refs\(unc\)\.p.*refcoco\.zip"):
        ReferDataset(folder.root, "refcoco", "val")
    refer_folder().root.joinpath("coco/train2014").rename(tmp_path / "elsewhere")
    with pytest.raises(DataNotFound, match=r"pictures of COCO train2014.*train2014\.zip"):
        ReferDataset(folder.root, "refcoco", "val")


def test_annotations_that_contradict_each_other_are_named(refer_folder: Callable[..., Any]) -> None:
    root = refer_folder().root
    instances = root / "coco/refcoco/instances.json"
    content = json.loads(instances.read_text())
    content["annotations"] = [one for one in content["annotations"] if one["id"] != 102]
    instances.write_text(json.dumps(content))
    with pytest.raises(BadAnnotation, match=r"ref 1 .*annotation 102"):
        ReferDataset(root, "refcoco", "val")
    instances.write_text(instances.read_text()[:-20])
    with pytest.raises(BadAnnotation, match="truncated"):
        ReferDataset(root, "refcoco", "val")
    refs = root / "coco/refcoco/refs(unc).p"
    refs.write_bytes(pickle.dumps({"not": "a list"}, 2))
    with pytest.raises(BadAnnotation, match="not a list of refs"):
        ReferDataset(root, "refcoco", "val")
    refs.write_bytes(b"cposix\nsystem\n(S'true'\ntR.")
    with pytest.raises(UnsafePickle):
        ReferDataset(root, "refcoco", "val")


def test_the_digest_tells_data_apart(refer_folder: Callable[..., Any]) -> None:
    root = refer_folder().root
    before = ReferDataset(root, "refcoco", "val").digest
    assert ReferDataset(root, "refcoco", "testA").digest == before
    instances = root / "coco/refcoco/instances.json"
    instances.write_text(instances.read_text() + "\n")
    assert ReferDataset(root, "refcoco", "val").digest != before


def test_overlapping_polygons_are_united() -> None:
    left, right = [0, 0, 6, 0, 6, 8, 0, 8], [4, 2, 9, 2, 9, 8, 4, 8]
    mask = decode_rle(segmentation_rle([left, right], 8, 10))
    expected = np.zeros((8, 10), dtype=bool)
    expected[0:8, 0:6] = expected[2:8, 4:9] = True
    assert np.array_equal(mask, expected)


def test_polygons_without_area_are_ignored_and_none_left_is_empty() -> None:
    square = [1, 1, 4, 1, 4, 4, 1, 4]
    assert segmentation_rle([[1, 1, 5, 5], square], 6, 6) == segmentation_rle([square], 6, 6)
    for nothing in ([], [[0, 0, 3, 3]], [[]]):
        assert not decode_rle(segmentation_rle(nothing, 6, 7)).any()
        assert segmentation_rle(nothing, 6, 7)["size"] == [6, 7]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=35, max_size=35), min_size=1, max_size=3))
def test_run_length_codes_of_every_form_are_united(bits: list[list[bool]]) -> None:
    masks = [np.array(one).reshape(5, 7) for one in bits]
    packed = [coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in masks]
    readable = [{"size": list(code["size"]), "counts": code["counts"].decode()} for code in packed]
    loose = [{"size": [5, 7], "counts": runs(mask)} for mask in masks]
    for form in (packed, readable, loose):
        assert np.array_equal(decode_rle(segmentation_rle(form, 5, 7)), np.logical_or.reduce(masks))
    assert np.array_equal(decode_rle(segmentation_rle(loose[0], 5, 7)), masks[0])


def runs(mask: Any) -> list[int]:
    """Uncompressed COCO counts: lengths of runs in column order, beginning with zeros."""
    counts, value, length = [], False, 0
    for pixel in mask.ravel(order="F"):
        if pixel != value:
            counts.append(length)
            value, length = bool(pixel), 0
        length += 1
    return [*counts, length]


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ("polygon", "list of polygons"),
        ([[1, 2, 3, 4, 5, 6, 7]], "x without its y"),
        ([[0, 0, float("nan"), 1, 2, 2]], "finite"),
        ([[0, 0, 1e300, 1, 2, 2]], "pixels away"),
        ([["a", "b"]], "flat list of numbers"),
        ({"size": [9, 9], "counts": [81]}, "on a picture of"),
        ({"size": [4, 5], "counts": [3]}, "covers 3 pixels"),
        ({"size": False, "counts": [20]}, "annotation 7"),
        ({"size": None, "counts": [20]}, "annotation 7"),
        ({"size": 5, "counts": [20]}, "annotation 7"),
        ({"size": [4, 1e999], "counts": [20]}, "annotation 7"),
        ({"size": [4, 5], "counts": [1e999]}, "annotation 7"),
        ({"size": [4, 5], "counts": None}, "annotation 7"),
        ({"size": [4, 5], "counts": "o" * 1000}, "annotation 7"),
        ([[0, 0, 10**400, 1, 2, 2]], "annotation 7"),
        ([[0, 0, True, 1, 2, 2]], "finite"),
        ([["0", "0", "3", "0", "3", "3"]], "finite"),
        ([5], "flat list"),
        ([None], "flat list"),
    ],
)
def test_broken_segmentations_are_named(segmentation: Any, message: str) -> None:
    with pytest.raises(BadAnnotation, match=message):
        segmentation_rle(segmentation, 4, 5, where="annotation 7")


def test_the_real_sample_reads(real_refer: Path) -> None:
    sizes = {}
    for name in SPLITTERS:
        splits = ("val", "test") if name == "refcocog" else ("val", "testA", "testB")
        for split in splits:
            dataset = ReferDataset(real_refer, name, split)
            sizes[name, split] = len(dataset)
            for item in dataset:
                assert Image.open(item.image_path).size == (item.width, item.height)
                assert 0 < dataset.mask(item).mean() < 1
    assert sizes == {
        ("refcoco", "val"): 5, ("refcoco", "testA"): 3, ("refcoco", "testB"): 3,
        ("refcoco+", "val"): 2, ("refcoco+", "testA"): 2, ("refcoco+", "testB"): 3,
        ("refcocog", "val"): 2, ("refcocog", "test"): 3,
    }  # fmt: skip


def test_pictures_are_opened_as_coco_annotates_them(refer_folder: Callable[..., Any]) -> None:
    folder = refer_folder()
    exif = Image.Exif()
    exif[0x0112] = 6
    for doc in read_documents("val", {"root": folder.root, "name": "refcoco"}):
        with Image.open(doc["image_path"]) as picture:
            picture.save(doc["image_path"], exif=exif)
        assert doc["image"].size == (doc["width"], doc["height"])
