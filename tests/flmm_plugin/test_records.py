"""Records, and the JSON that crosses harness borders."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

import flmm_plugin
from flmm_plugin.errors import BadAnnotation, BadImage, FlmmError, UnknownArgument
from flmm_plugin.records import (
    EMPTY_BOX,
    Grounding,
    Groundings,
    answer_of,
    checked_rle,
    decode_rle,
    encode_rle,
    error_json,
    mask_box,
    masks_json,
    parse_masks_json,
)


def square(value: float = 2.0) -> Grounding:
    logits = np.full((4, 6), -3.0, np.float32)
    logits[1:3, 2:5] = value
    return Grounding.from_logits("the red circle", logits, span=(4, 18))


masks = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40))


@settings(max_examples=60, deadline=None)
@given(masks)
def test_rle_round_trip_and_agreement_with_pycocotools(mask: np.ndarray) -> None:
    rle = encode_rle(mask)
    json.dumps(rle)
    assert np.array_equal(decode_rle(rle), mask)
    assert coco_mask.area({"size": rle["size"], "counts": rle["counts"].encode()}) == mask.sum()


def test_rle_of_uncompressed_counts() -> None:
    expected = np.zeros((2, 3), bool)
    expected[:, 1] = True
    assert np.array_equal(decode_rle({"size": [2, 3], "counts": [2, 2, 2]}), expected)


@pytest.mark.parametrize(
    "rle",
    [
        {},
        {"size": [2, 3]},
        {"size": [2, 3], "counts": [2, 2]},
        {"size": [2, 3], "counts": [8, -4, 2]},
        {"size": [2, 3], "counts": "\x01\x02"},
        {"size": [2, 3], "counts": "o"},
        {"size": [0, 3], "counts": []},
        {"size": [2], "counts": "06"},
        {"size": [3, 3], "counts": encode_rle(np.ones((2, 3), bool))["counts"]},
        {"size": [1 << 20, 1 << 20], "counts": [1 << 40]},
        {"size": [1 << 14, 1 << 15], "counts": [1 << 29]},
        {"size": False, "counts": "06"},
        {"size": None, "counts": "06"},
        {"size": 5, "counts": "06"},
        {"size": [2, float("inf")], "counts": "06"},
        {"size": [2, float("nan")], "counts": "06"},
        {"size": [2.5, 3], "counts": "06"},
        {"size": ["2", "3"], "counts": "06"},
        {"size": [True, 6], "counts": "06"},
        {"size": [-2, -3], "counts": "06"},
        {"size": [2, 3, 1], "counts": "06"},
        {"size": [2, 3], "counts": [float("inf")]},
        {"size": [2, 3], "counts": [float("nan"), 6]},
        {"size": [2, 3], "counts": ["6"]},
        {"size": [2, 3], "counts": [True, 5]},
        {"size": [2, 3], "counts": [10**400, 6]},
        {"size": [2, 3], "counts": [-(1 << 63), 6]},
        {"size": [2, 3], "counts": [0] * 7 + [6]},
        {"size": [2, 3], "counts": None},
        {"size": [2, 3], "counts": 6},
        {"size": [2, 3], "counts": {"0": 6}},
        {"size": [2, 3], "counts": "\u0436"},
        {"size": [2, 3], "counts": "ooooooo0"},
        "text",
        None,
    ],
)
def test_rle_that_does_not_fill_its_picture_is_refused(rle: object) -> None:
    with pytest.raises(BadAnnotation):
        decode_rle(rle)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [[10, 10], [1 << 14, 1 << 14]])
@pytest.mark.parametrize("letter", "o0PP_?1")
def test_long_codes_are_refused_in_linear_time(size: list[int], letter: str) -> None:
    start = time.process_time()
    with pytest.raises(BadAnnotation):
        decode_rle({"size": size, "counts": letter * 1_000_000})
    assert time.process_time() - start < 2


def test_a_code_of_another_size_is_refused_before_it_is_read() -> None:
    code = encode_rle(np.ones((2, 3), bool))
    assert decode_rle(code, (2, 3)).all()
    for read in (decode_rle, checked_rle):
        with pytest.raises(BadAnnotation, match="picture of"):
            read(code, (3, 2))


@settings(max_examples=60, deadline=None)
@given(masks)
def test_all_forms_are_rewritten_as_we_write_them(mask: np.ndarray) -> None:
    code = encode_rle(mask)
    flat = mask.ravel(order="F")
    ends = [0, *(np.flatnonzero(flat[1:] != flat[:-1]) + 1), flat.size]
    runs = [int(run) for run in np.diff(ends)]
    listed = {"size": list(mask.shape), "counts": [0, *runs] if flat[0] else runs}
    raw = {"size": code["size"], "counts": code["counts"].encode()}
    assert checked_rle(listed) == checked_rle(raw) == checked_rle(code) == code
    assert np.array_equal(decode_rle(listed), mask)
    assert np.array_equal(decode_rle(raw), mask)


def test_mask_must_have_two_axes() -> None:
    with pytest.raises(BadAnnotation, match="one at a time"):
        encode_rle(np.zeros((1, 2, 3), bool))


def test_a_speck_does_not_stretch_the_box_and_a_part_does() -> None:
    logits = np.full((60, 80), -1.0, np.float32)
    logits[20:40, 10:30] = 1.0
    logits[2, 70] = logits[50:54, 78:80] = 1.0  # 1 and 8 pixels of 409
    speck = Grounding.from_logits("a", logits)
    assert speck.box == (10.0, 20.0, 30.0, 40.0)
    assert speck.mask[2, 70]  # the mask itself is as the heads made it
    assert mask_box(speck.mask) == (10.0, 2.0, 80.0, 54.0)
    logits[5:15, 60:64] = 1.0  # a tenth of the largest part
    assert Grounding.from_logits("two", logits).box == (10.0, 5.0, 64.0, 40.0)


def test_grounding_derives_mask_box_and_score_from_logits() -> None:
    grounding = square()
    assert grounding.mask.sum() == 6
    assert grounding.box == (2.0, 1.0, 5.0, 3.0)
    assert grounding.score == pytest.approx(1 / (1 + np.exp(-2.0)), abs=1e-6)
    assert grounding.decoder_logits is grounding.logits


def test_empty_and_extreme_masks() -> None:
    empty = Grounding.from_logits("nothing", np.full((3, 3), -1e6, np.float32))
    assert empty.box == EMPTY_BOX
    assert empty.score == 0.0
    assert not empty.mask.any()
    full = Grounding.from_logits("all", np.full((3, 4), 1e6, np.float32))
    assert full.box == (0.0, 0.0, 4.0, 3.0)
    assert full.score == 1.0
    one = np.zeros((5, 5), bool)
    one[4, 0] = True
    assert mask_box(one) == (0.0, 4.0, 1.0, 5.0)


def test_masks_json_speaks_the_sam3_form_and_parses_back() -> None:
    text = "see the red circle"
    content = json.loads(masks_json([square()], text, size=(4, 6)))
    assert content["phrases"] == [{"phrase": "the red circle", "span": [4, 18], "mask": 0}]
    assert content["boxes"] == [{"x_min": 2 / 6, "y_min": 0.25, "x_max": 5 / 6, "y_max": 0.75}]
    assert content["size"] == [4, 6]
    assert "error" not in content
    reply = parse_masks_json(json.dumps(content))
    assert reply.error is None
    assert reply.text == text
    assert np.array_equal(reply.masks[0], square().mask)
    assert reply.scores == (pytest.approx(square().score, abs=1e-5),)


def test_reply_without_phrases_or_boxes_is_fine() -> None:
    bare = json.dumps({"masks": [encode_rle(np.eye(3, dtype=bool))]})
    reply = parse_masks_json(bare)
    assert reply.error is None
    assert reply.masks[0].sum() == 3
    assert reply.scores == ()


def test_error_reply_keeps_type_and_message() -> None:
    reply = parse_masks_json(error_json(BadImage("a.png is not a picture; give a PNG")))
    assert reply.masks == ()
    assert reply.error == {"type": "BadImage", "message": "a.png is not a picture; give a PNG"}


@settings(max_examples=80, deadline=None)
@given(
    st.one_of(
        st.text(),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["masks", "size", "counts", "boxes", "scores", "phrases", "error"]), inner
                )
            ),
            max_leaves=8,
        ).map(json.dumps),
    )
)
def test_parsing_never_raises(reply: str) -> None:
    parsed = parse_masks_json(reply)
    assert parsed.error is not None or all(mask.ndim == 2 for mask in parsed.masks)


@pytest.mark.parametrize("said", ["The cat is left.", "{}", '{"cat": "left"}'])
def test_plain_text_reply_is_an_error_with_its_text_kept(said: str) -> None:
    reply = parse_masks_json(said)
    assert reply.error is not None
    assert reply.text == answer_of(said) == said
    assert reply.masks == ()


@pytest.mark.parametrize(
    "reply",
    [
        "", "{", '{"text": "A dog.", "masks": [{"size"', "null", "[]", "5", None, 5, b"{}", ["a"],
        '{"text": 5}', '{"text": ["a"]}', '{"text": "A dog.", "masks": 5}', '{"text": "A dog.", "masks": [null]}',
        '{"text": "A dog.", "scores": [NaN], "masks": []}', '{"masks": [], "scores": [1e999]}',
        '{"text": "A dog.", "boxes": [{"x_min": Infinity}]}', '{"text": "A dog.", "masks": [], "phrases": [5]}',
        '{"text": "A dog.", "masks": [], "error": ""}', '{"text": "A dog.", "error": {"type": "x"}}',
        '{"masks": [{"size": [1e999, 2], "counts": "06"}]}', "[" * 100_000, '{"text":' * 100_000,
    ],
    ids=lambda reply: repr(reply)[:40],
)  # fmt: skip
def test_a_failed_reply_says_nothing(reply: Any) -> None:
    parsed = parse_masks_json(reply)
    assert parsed.error is not None
    assert (parsed.masks, parsed.phrases, parsed.boxes, parsed.scores) == ((), (), (), ())
    assert not parsed.text or parsed.text == reply != '{"text":' * 100_000
    assert answer_of(reply) is None or not reply.startswith("{")


def test_masks_of_a_reply_are_bounded_together() -> None:
    code = {"size": [1 << 14, 1 << 13], "counts": [1 << 27]}
    for claimed in (3, 10_000):
        parsed = parse_masks_json(json.dumps({"masks": [code] * claimed}))
        assert parsed.error is not None
        assert "together" in parsed.error["message"]
    small = json.dumps({"masks": [encode_rle(np.eye(3, dtype=bool))] * 200})
    assert len(parse_masks_json(small, (3, 3)).masks) == 200


def test_package_exports_are_lazy_and_named() -> None:
    assert flmm_plugin.Grounding is Grounding
    assert flmm_plugin.FlmmError is FlmmError
    assert set(flmm_plugin.__all__) <= set(dir(flmm_plugin))
    assert all(getattr(flmm_plugin, name) is not None for name in flmm_plugin.__all__)
    with pytest.raises(AttributeError, match="it offers"):
        flmm_plugin.nothing_of_the_kind  # noqa: B018
    code = "import flmm_plugin, flmm_plugin.records, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


# --- groundings that show themselves -------------------------------------------------------------------------------


def two_squares() -> Groundings:
    """Groundings of two squares on a grey picture, 40 wide and 30 high."""
    picture = Image.new("RGB", (40, 30), (128, 128, 128))
    found = []
    for phrase, left in (("left one", 2), ("right one", 22)):
        logits = np.full((30, 40), -4.0, np.float32)
        logits[5:15, left : left + 10] = 4.0
        found.append(Grounding.of(phrase, lambda values=logits: values, picture=picture))
    return Groundings(found)


def test_a_grounding_says_in_one_line_what_it_is() -> None:
    assert repr(two_squares()[0]) == "Grounding('left one', box=(2, 5, 12, 15), score=0.98, 8.3% of 40 x 30)"


def test_groundings_are_drawn_and_saved(tmp_path: Path) -> None:
    found = two_squares()
    drawn = found.overlay()
    assert drawn.width >= 40
    assert np.asarray(drawn).std() > 10
    assert found[0].overlay().size != drawn.size  # one line of the legend less
    assert found._repr_png_()[:4] == b"\x89PNG"
    found.save(tmp_path / "drawn.png")
    assert Image.open(tmp_path / "drawn.png").size == drawn.size
    with pytest.raises(UnknownArgument, match="json"):
        found.save(tmp_path / "drawn.gif")
    unknown = Groundings([Grounding.from_logits("thing", np.ones((4, 4), np.float32))])
    assert unknown._repr_png_() is None
    with pytest.raises(BadImage, match="picture"):
        unknown.overlay()


def test_a_coco_file_of_groundings_is_read_by_pycocotools(tmp_path: Path) -> None:
    found = two_squares()
    empty = Grounding.from_logits("nothing", np.full((30, 40), -1.0, np.float32))
    Groundings([*found, empty]).save(tmp_path / "masks.json")
    coco = COCO(tmp_path / "masks.json")
    assert [one["phrase"] for one in coco.dataset["annotations"]] == ["left one", "right one"]
    assert coco.anns[2]["bbox"] == [22, 5, 10, 10]
    assert (coco.annToMask(coco.anns[2]) == found[1].mask).all()


def test_groundings_become_detections_of_supervision() -> None:
    pytest.importorskip("supervision", reason="needs supervision: pip install supervision")
    detections = two_squares().to_supervision()
    assert detections.xyxy.tolist() == [[2, 5, 12, 15], [22, 5, 32, 15]]
    assert detections.mask.sum() == 200
