"""ReasonSeg's pairs of files: queries, shapes drawn in order, and what damaged ones say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flmm_plugin.adapters.answering.requests import Request, picture_of
from flmm_plugin.adapters.vlmevalkit.messages import document_of, message_of, request_of
from flmm_plugin.datasets.reasonseg import ReasonSegDataset, draw_shapes
from flmm_plugin.errors import BadAnnotation, DataNotFound, UnknownArgument
from flmm_plugin.records import Grounding, decode_rle, masks_json
from flmm_plugin.tasks.reasonseg.benchmark import read_documents
from flmm_plugin.tasks.reasonseg.scoring import giou, score_reply


def square(x0: float, y0: float, x1: float, y1: float) -> list[list[float]]:
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]


def annotation(**changes: Any) -> dict[str, Any]:
    shapes = [{"label": "target", "points": square(2, 2, 8, 6), "shape_type": "polygon"}]
    return {"text": ["the thing that barks", "a dog"], "is_sentence": False, "shapes": shapes, **changes}


def write(root: Path, name: str = "b", content: Any = None, split: str = "val") -> Path:
    folder = root / "ReasonSeg" / split
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 12)).save(folder / f"{name}.jpg")
    data = annotation() if content is None else content
    (folder / f"{name}.json").write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    return folder


def test_the_first_query_counts_and_pictures_come_by_name(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        write(tmp_path, name, annotation(is_sentence=name == "a"))
    data = ReasonSegDataset(tmp_path, "val")
    assert [item.name for item in data] == ["a", "b", "c"]
    assert [item.is_sentence for item in data] == [True, False, False]
    assert data[0].query == "the thing that barks"
    assert (data[0].height, data[0].width, len(data), data.official_size) == (12, 20, 3, 200)
    target, ignore = data[0].masks()
    assert target.shape == (12, 20)
    assert target.sum() == 7 * 5  # outlines are part of a shape
    assert target[2:7, 2:9].all()
    assert not ignore.any()


def test_cp1252_is_read_where_utf8_is_not(tmp_path: Path) -> None:
    text = json.dumps(annotation(text=["the caf\u00e9\u2019s sign"]), ensure_ascii=False)
    write(tmp_path, "old", text.encode("cp1252"))
    write(tmp_path, "new", text.encode())
    assert {item.query for item in ReasonSegDataset(tmp_path, "val")} == {"the caf\u00e9\u2019s sign"}


def test_smaller_shapes_win_over_larger_ones_in_any_file_order() -> None:
    shapes = [
        ("Target", [(4.9, 4.9), (7.9, 4.9), (7.9, 7.9), (4.9, 7.9)]),
        ("IGNORE region", [(0.0, 0.0), (15.0, 0.0), (15.0, 11.0), (0.0, 11.0)]),
        ("flag", [(0.0, 0.0), (19.0, 0.0), (19.0, 11.0)]),
    ]
    drawn = draw_shapes(shapes, 12, 20)
    assert (drawn == draw_shapes(shapes[::-1], 12, 20)).all()
    assert (drawn == 1).sum() == 4 * 4  # a target inside an ignored region survives; fractions are cut off
    assert (drawn[4:8, 4:8] == 1).all()
    assert (drawn == 255).sum() == 16 * 12 - 16
    assert not drawn[:, 16:].any()  # a flag is not drawn


def test_of_two_equal_shapes_the_earlier_one_wins() -> None:
    box = [(2.0, 2.0), (6.0, 2.0), (6.0, 6.0), (2.0, 6.0)]
    assert set(np.unique(draw_shapes([("target", box), ("ignore", box)], 9, 9))) == {0, 1}
    assert set(np.unique(draw_shapes([("ignore", box), ("target", box)], 9, 9))) == {0, 255}


@pytest.mark.parametrize("folder", ["reason_seg/ReasonSeg", "ReasonSeg", ""])
def test_layouts(tmp_path: Path, folder: str) -> None:
    made = write(tmp_path / "made").parent
    root = tmp_path / "ReasonSeg" if not folder else tmp_path / "root"
    (root / folder).parent.mkdir(parents=True, exist_ok=True)
    made.rename(root / folder)
    assert len(ReasonSegDataset(root, "val")) == 1


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataNotFound, match=r"val\.zip"):
        ReasonSegDataset(tmp_path, "val")
    with pytest.raises(UnknownArgument, match="train, val, test"):
        ReasonSegDataset(tmp_path, "testA")
    folder = write(tmp_path)
    (folder / "b.jpg").unlink()
    with pytest.raises(DataNotFound, match=r"b\.jpg"):
        ReasonSegDataset(tmp_path, "val")
    write(tmp_path)
    (folder / "b.json").unlink()
    with pytest.raises(BadAnnotation, match=r"b\.jpg"):
        ReasonSegDataset(tmp_path, "val")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (json.dumps(annotation()).encode()[:-9], "truncated"),
        (b'{"text": ["\x81\xff"]}', "neither UTF-8 nor cp1252"),
        ([1], "not an object"),
        (annotation(text=[]), "lacks a field"),
        (annotation(text="one string"), "list of queries"),
        (annotation(is_sentence="yes"), "true or false"),
        (annotation(text=[" ", "a dog"]), "has no words"),
        (annotation(text=[None]), "has no words"),
        (annotation(shapes=[{"label": None, "points": [[1, 2]]}]), "label of a shape"),
        (annotation(shapes=[{"label": "target", "points": [[1e300, 2]]}]), "no finite points"),
        (annotation(shapes=[{"label": "target", "points": []}]), "no finite points"),
        (annotation(shapes=[{"label": "target", "points": [[1, float("nan")]]}]), "no finite points"),
        ({"text": ["a"], "is_sentence": True}, "shapes"),
    ],
)
def test_damaged_files_say_what_is_wrong(tmp_path: Path, content: Any, said: str) -> None:
    write(tmp_path, content=content)
    with pytest.raises(BadAnnotation, match=said):
        ReasonSegDataset(tmp_path, "val")


def test_a_picture_without_a_size_is_damaged(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (folder / "b.jpg").write_bytes(b"no picture")
    with pytest.raises(BadAnnotation, match="no readable size"):
        ReasonSegDataset(tmp_path, "val")


@pytest.mark.parametrize("tag", range(1, 9))
def test_shapes_lie_on_the_upright_picture_as_labelme_and_opencv_show_it(tmp_path: Path, tag: int) -> None:
    """A perfect mask scores 1 and an empty one 0, whichever way the camera was held."""
    shapes = [{"label": "target", "points": square(180, 20, 215, 60)}]
    folder = write(tmp_path, "b", annotation(shapes=shapes))
    upright = np.zeros((160, 224, 3), dtype=np.uint8)
    upright[20:61, 180:216] = 255
    backwards = {
        1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[tag]  # fmt: skip
    picture = Image.fromarray(upright)
    exif = Image.Exif()
    exif[0x0112] = tag
    (picture.transpose(backwards) if backwards is not None else picture).save(folder / "b.jpg", exif=exif, quality=95)
    (doc,) = read_documents("val", {"root": str(tmp_path)})
    target = decode_rle(doc["mask"])
    assert target.sum() == 1476
    request = Request(0, "", None, True, {}, "flmm_reasonseg", "val", 0, False)
    in_the_kit = document_of(request_of(message_of(doc, "", {}, 0), None))
    for seen in (
        doc["image"],
        picture_of(request, json.loads(json.dumps(doc)), ""),
        picture_of(request, in_the_kit, ""),
    ):
        assert (seen.height, seen.width) == target.shape
        assert ((np.asarray(seen)[:, :, 0] > 127) == target).mean() > 0.99  # but for JPEG's blur
    for mask, score in ((target, 1.0), (np.zeros_like(target), 0.0)):
        logits = np.where(mask, 8, -8).astype(np.float32)
        sample = score_reply(doc, masks_json([Grounding.from_logits("it", logits)]))
        assert giou([sample["gIoU"]]) == pytest.approx(100 * score)


@pytest.mark.parametrize(
    "shapes",
    [
        [{"label": "target", "points": square(300, 300, 400, 400)}],
        [{"label": "ignore", "points": square(0, 0, 5, 5)}],
        [],
        [{"label": "target", "points": square(2, 2, 4, 4)}, {"label": "ignore", "points": square(3, 3, 4, 4)}],
    ],
    ids=["outside", "ignored alone", "none", "seen"],
)
def test_a_target_without_a_pixel_is_counted(tmp_path: Path, shapes: Any) -> None:
    write(tmp_path, "a", annotation(shapes=shapes))
    data = ReasonSegDataset(tmp_path, "val")
    assert len(data.problems) == (not data[0].masks()[0].any())
    assert all("empty mask" in str(problem) and problem.where == "a" for problem in data.problems)
