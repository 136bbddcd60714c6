"""Somebody's own data: what a COCO file with phrases says, and every odd entry of it by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flmm_plugin.data.own import OwnSplit, add, own_sets, own_split, remove
from flmm_plugin.datasets.own import OwnDataset
from flmm_plugin.datasets.refer import ReferDataset
from flmm_plugin.errors import BadAnnotation, DataNotFound, UnknownArgument

HEIGHT, WIDTH = 20, 30
Read = Callable[..., OwnDataset]


def picture(number: int, name: str = "", **more: Any) -> dict[str, Any]:
    return {"id": number, "file_name": name or f"{number}.jpg", "height": HEIGHT, "width": WIDTH, **more}


def thing(number: int, words: Any = "the dog", left: int = 2, **more: Any) -> dict[str, Any]:
    corners = [left, 2, left + 6, 2, left + 6, 8, left, 8]
    return {"id": number, "image_id": 1, "phrase": words, "segmentation": [corners], **more}


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def reading(annotations: list[Any], images: list[Any] | None = None) -> OwnDataset:
        path = tmp_path / "refs.json"
        content = {"images": [picture(1)] if images is None else images, "annotations": annotations}
        path.write_text(json.dumps(content), encoding="utf-8")
        return OwnDataset("mine", "test", OwnSplit(path, tmp_path / "photos"))

    return reading


def test_the_same_words_are_one_phrase_of_several_objects(read: Read) -> None:
    whole = {"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT * WIDTH]}
    found = read([
        thing(1, "both Dogs"), thing(2, " both dogs ", left=20), thing(3, None, phrase="a cat", segmentation=[]),
        {**thing(4), "phrase": "everything", "segmentation": whole},
        {key: value for key, value in thing(5, left=12).items() if key != "phrase"} | {"caption": "the dog"},
    ])  # fmt: skip
    assert found.problems == ()
    assert [(item.phrase, item.ann_ids) for item in found] == [
        ("both Dogs", (1, 2)), ("a cat", ()), ("everything", (4,)), ("the dog", (5,)),
    ]  # fmt: skip
    assert [int(item.mask().sum()) for item in found] == [72, 0, HEIGHT * WIDTH, 36]
    assert np.flatnonzero(found[0].mask().any(axis=0)).tolist() == [*range(2, 8), *range(20, 26)]


@pytest.mark.parametrize(
    ("annotation", "kept", "said"),
    [
        (thing(2, "dog", segmentation=[[1, 1, 2]]), 0, "without a pixel"),
        (thing(2, "dog", segmentation=[[40, 2, 50, 2, 50, 9]]), 0, "without a pixel"),
        (thing(2, "dog", segmentation=[[1, 1, 2, 2, 3]]), 0, "without a pixel"),
        (thing(2, "dog", segmentation=[[1, 1, 9, 1, 9, 9, 2]]), 0, "bad mask"),
        (thing(2, "dog", segmentation={"size": [5, 5], "counts": "0"}), 0, "bad mask"),
        (thing(2, "dog", segmentation="x"), 0, "bad mask"),
        ({"id": 2, "image_id": 1, "phrase": "dog"}, 0, "no segmentation"),
        (thing(2, "dog", image_id=7), 0, "image_id is of no picture"),
        (thing(2, "dog", image_id=None), 0, "needs id and image_id"),
        (thing(1, "dog"), 0, "its id is another's"),
        (thing(2, " \u200b "), 0, "phrase is empty"),
        (thing(2, 5), 0, "no text in phrase or caption"),
        (thing(2, "\ud800"), 0, "no text in phrase or caption"),
        ("x", 0, "needs id and image_id"),
        (thing(2, "dog", bbox=[20, 2, 30, 6]), 1, "box reaches out"),
        (thing(2, "dog", bbox=[1, 2]), 1, "box is not"),
        (thing(2, "the dog"), 0, "object is listed twice"),
        (thing(2, "the dog", segmentation=[]), -1, "to mean nothing, and something"),
    ],
)  # fmt: skip
def test_every_odd_annotation_is_listed(read: Read, annotation: Any, kept: int, said: str) -> None:
    found = read([thing(1), annotation])
    assert len(found) == 1 + kept
    assert any(said in str(problem) for problem in found.problems), found.problems


def test_one_bad_object_spoils_the_whole_phrase(read: Read) -> None:
    found = read([thing(1, "dogs"), thing(2, "dogs", segmentation=[[1, 1, 2]]), thing(3, "cat")])
    assert [item.phrase for item in found] == ["cat"]
    assert sum(problem.dropped for problem in found.problems) == 1


@pytest.mark.parametrize(
    ("images", "kept", "said"),
    [
        ([picture(1), picture(1, "b.jpg")], 1, "its id is another's"),
        ([picture(1), picture(2, "1.jpg")], 1, "listed twice"),
        ([picture(1), picture(2)], 1, "without a phrase"),
        ([picture(1, "../1.jpg")], 0, "needs id, file_name"),
        ([picture(1, height=0)], 0, "needs id, file_name"),
        ([{"id": 1}], 0, "needs id, file_name"),
    ],
)
def test_every_odd_picture_is_listed(read: Read, images: list[Any], kept: int, said: str) -> None:
    found = read([thing(1)], images)
    assert len(found) == kept
    assert any(said in str(problem) for problem in found.problems), found.problems


def test_what_is_no_coco_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "refs.json"
    for text, said in (("[]", "list `images`"), ('{"images": []}', "list `annotations`"), ("{", "not JSON")):
        path.write_text(text)
        with pytest.raises(BadAnnotation, match=said):
            OwnDataset("mine", "test", OwnSplit(path, tmp_path))
    with pytest.raises(DataNotFound, match="flmm data add mine"):
        OwnDataset("mine", "test", OwnSplit(tmp_path / "gone.json", tmp_path))


def test_the_registry_remembers_replaces_and_forgets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLMM_CACHE", str(tmp_path))
    first, second = OwnSplit(tmp_path / "a.json", tmp_path), OwnSplit(tmp_path / "b.json", tmp_path)
    add("mine", "test", first)
    add("mine", "train", first)
    add("mine", "test", second)
    assert own_sets() == {"mine": {"test": second, "train": first}}
    for wrong, said in ((("mine", "val"), "--split val"), (("mime", "test"), "did you mean 'mine'")):
        with pytest.raises(UnknownArgument, match=said):
            own_split(*wrong)
    for name, split in (("a b", "test"), ("../x", "test"), ("x", "a/b"), ("mine_train", "test")):
        with pytest.raises(UnknownArgument):
            add(name, split, first)
    remove("mine", "test")
    assert list(own_split("mine", "train").annotations.parts)[-1] == "a.json"
    remove("mine")
    assert own_sets() == {}
    with pytest.raises(UnknownArgument, match="mine"):
        remove("mine")
    (tmp_path / "own" / "broken.json").write_text('{"test": 5}')
    with pytest.raises(BadAnnotation, match="delete it"):
        own_sets()


def test_real_annotations_mean_the_same_as_ones_own(real_refer: Path, tmp_path: Path) -> None:
    refer = ReferDataset(real_refer, "refcoco", "val")
    images = {
        one.image_id: picture(one.image_id, one.image_path.name, height=one.height, width=one.width) for one in refer
    }
    annotations = [
        {"id": one.ref_id, "image_id": one.image_id, "phrase": text, "segmentation": one.segmentation}
        for one in refer
        for text in one.sentences[:1]
    ]
    path = tmp_path / "refs.json"
    path.write_text(json.dumps({"images": list(images.values()), "annotations": annotations}))
    own = OwnDataset("mine", "test", OwnSplit(path, refer.picture_folder))
    assert own.problems == ()
    assert [item.rle() for item in own] == [refer.rle(one) for one in refer]
    assert all(item.image_path.is_file() for item in own)
