"""Documents of a split: their unit, their order, what they carry."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from flmm_plugin.errors import BadImage, UnknownArgument
from flmm_plugin.records import decode_rle
from flmm_plugin.tasks.refcoco.benchmark import read_documents

FIELDS = {
    "image_id", "image_path", "orientation", "height", "width", "ref_ids", "ann_ids", "expressions", "masks",
    "expected_items",
}  # fmt: skip


def test_a_picture_is_asked_for_the_first_sentence_of_each_object(refer_folder: Callable[..., Any]) -> None:
    folder = refer_folder()
    docs = read_documents("val", {"root": folder.root, "name": "refcoco"})
    assert [doc["expressions"] for doc in docs] == [["the 0 thing!", "the 1 thing!"], ["the 2 thing!"]]
    assert [doc["ann_ids"] for doc in docs] == [[101, 102], [103]]
    assert (len(docs), docs.items, docs.expected_items) == (2, 3, 3811)
    assert "expression" not in docs[0]
    for doc in docs:
        assert set(doc) == set(docs.features) == FIELDS
        for ann_id, rle in zip(doc["ann_ids"], doc["masks"], strict=True):
            assert np.array_equal(decode_rle(rle), folder.mask(ann_id, doc["image_id"]))


def test_per_sentence_documents_take_every_cleaned_sentence(refer_folder: Callable[..., Any]) -> None:
    docs = read_documents("val", {"root": refer_folder().root, "name": "refcoco", "unit": "per_sentence"})
    assert (len(docs), docs.items, docs.expected_items) == (6, 6, 10834)
    assert [doc["expression"] for doc in docs][:3] == ["the 0 thing", "thing no. 0, again", "the 1 thing"]
    assert all(doc["expressions"] == [doc["expression"]] and len(doc["masks"]) == 1 for doc in docs)


def test_the_picture_is_opened_only_when_asked_for(refer_folder: Callable[..., Any]) -> None:
    docs = read_documents("val", {"root": refer_folder().root, "name": "refcoco", "unit": "per_sentence"})
    assert docs[0]["image"].size == (100, 60)
    assert "image" not in dict(docs[0])
    json.dumps(docs[0])
    assert pickle.loads(pickle.dumps(docs[0]))["image"].size == (100, 60)
    with open(docs[0]["image_path"], "wb") as file:
        file.write(b"no picture")
    with pytest.raises(BadImage):
        docs[0]["image"]
    with pytest.raises(KeyError, match="colour"):
        docs[0]["colour"]


def test_an_empty_split_has_no_documents_but_one_to_look_at(refer_folder: Callable[..., Any]) -> None:
    docs = read_documents("testB", {"root": refer_folder().root, "name": "refcoco"})
    assert (len(docs), list(docs), docs.items) == (0, [], 0)
    assert not docs[0]["expressions"]
    with pytest.raises(IndexError):
        docs[1]
    assert docs.present == "test 1, testA 1, val 3"


def test_an_unknown_unit_is_refused(refer_folder: Callable[..., Any]) -> None:
    with pytest.raises(UnknownArgument, match="per_sentence"):
        read_documents("val", {"root": refer_folder().root, "name": "refcoco", "unit": "per_word"})
