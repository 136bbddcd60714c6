"""The reader of the Visual-CoT benchmark's official files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flmm_plugin.datasets.viscot import OFFICIAL_SIZES, TABLE_SETS, VisCotDataset, encloses, known_set, to_padded_square
from flmm_plugin.errors import BadAnnotation, DataNotFound, UnknownArgument
from flmm_plugin.tasks.viscot.benchmark import read_documents

ASK = "Please provide the bounding box coordinate of the region that can help you answer the question better."


def record(number: int, path: str, box: list[int], question: str = "What is it ?", answer: str = "a sign") -> Any:
    """Byte for byte as the official files have it, so that the reader is not tested with its own writer."""
    return {
        "dataset": "textvqa",
        "split": "val",
        "question_id": number,
        "image": [path, f"{path}###{box}"],
        "conversations": [
            {"from": "human", "value": f"<image>\n{question} {ASK}"},
            {"from": "gpt", "value": "[0.100, 0.200, 0.300, 0.400]"},
            {"from": "human", "value": "<image>"},
            {"from": "gpt", "value": answer},
        ],
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three questions about two pictures, 40 x 30 (width x height); ids are not contiguous, one box is reversed."""
    home = tmp_path / "viscot"
    (home / "benchmark").mkdir(parents=True)
    (home / "benchmark_det").mkdir()
    (home / "cot/textvqa").mkdir(parents=True)
    for name in ("a", "b"):
        Image.new("RGB", (40, 30)).save(home / f"cot/textvqa/{name}.jpg")
    records = [
        record(3, "cot/textvqa/a.jpg", [1, 2, 11, 12]),
        record(7, "cot/textvqa/b.jpg", [5, 5, 4, 9]),
        record(8, "cot/textvqa/a.jpg", [0, 0, 40, 30], "Where?", "at the left"),
    ]
    (home / "benchmark/textvqa.json").write_text(json.dumps(records, indent=4))
    lines = [{"question_id": number, "height": 30, "width": 40, "bbox": [0, 0, 1, 1]} for number in (3, 7)]
    (home / "benchmark_det/textvqa.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path


def test_records_are_read_as_they_stand(folder: Path) -> None:
    dataset = VisCotDataset(folder, "textvqa")
    assert [item.question_id for item in dataset] == [3, 7, 8]
    first = dataset[0]
    assert (first.question, first.answer, first.box) == ("What is it ?", "a sign", (1.0, 2.0, 11.0, 12.0))
    assert (first.size, first.split) == ((30, 40), "val")
    assert dataset[2].size is None
    assert first.image_path == folder / "viscot/cot/textvqa/a.jpg"
    assert [one.question_id for one in dataset if not encloses(one.box)] == [7]
    assert dataset.official_size.records == OFFICIAL_SIZES["textvqa"].records == 526


@pytest.mark.parametrize(
    ("annotations", "pictures"),
    [
        ("viscot_benchmark", "cot"),
        ("Visual-CoT/viscot_benchmark", "Visual-CoT/playground/data/cot"),
        (".", "images"),
        ("viscot/viscot_benchmark", "cot"),
    ],
)
def test_every_mirror_s_layout_is_found(folder: Path, tmp_path: Path, annotations: str, pictures: str) -> None:
    root = tmp_path / "other"
    (root / annotations).mkdir(parents=True)
    shutil.copytree(folder / "viscot/benchmark", root / annotations / "benchmark")
    shutil.copytree(folder / "viscot/cot", root / pictures)
    items = list(VisCotDataset(root, "textvqa"))
    assert all(item.image_path.is_file() for item in items)


def test_copies_with_another_ending_are_found(folder: Path) -> None:
    picture = folder / "viscot/cot/textvqa/a.jpg"
    picture.rename(picture.with_suffix(".png"))
    assert VisCotDataset(folder, "textvqa")[0].image_path.name == "a.png"


def test_a_missing_picture_is_named_not_hidden(folder: Path) -> None:
    (folder / "viscot/cot/textvqa/a.jpg").unlink()
    assert VisCotDataset(folder, "textvqa")[0].image_path == folder / "viscot/cot/textvqa/a.jpg"


def test_names_that_papers_use_and_names_that_nobody_uses(folder: Path) -> None:
    assert [known_set(name) for name in ("TextCaps", "Infographics", "sroie")] == [
        "textcap",
        "infographicsvqa",
        "sroie",
    ]
    with pytest.raises(UnknownArgument, match="did you mean 'docvqa'"):
        known_set("docvq")
    with pytest.raises(DataNotFound, match="flmm data download viscot"):
        VisCotDataset(folder, "sroie")


def test_boxes_are_the_benchmark_s_own_with_fractions(folder: Path) -> None:
    path = folder / "viscot/benchmark_det/textvqa.jsonl"
    fractions = {3: [1.5, 2.25, 11.875, 12.999], 7: [5.5, 5.5, 4.5, 9.5], 8: [0.0, 0.0, 41.0, 30.0]}
    lines = [{"question_id": at, "height": 30, "width": 40, "bbox": box} for at, box in fractions.items()]
    path.write_text("\n".join(map(json.dumps, lines)))
    dataset = VisCotDataset(folder, "textvqa")
    assert [item.box for item in dataset] == [tuple(fractions[3]), tuple(fractions[7]), (0.0, 0.0, 40.0, 30.0)]
    # The third line is of another box.
    assert [item.box_from for item in dataset] == ["benchmark_det", "benchmark_det", "benchmark"]
    assert dataset.boxes_from == {"benchmark_det": 2, "benchmark": 1}
    path.unlink()
    assert VisCotDataset(folder, "textvqa").boxes_from == {"benchmark": 3}


@pytest.mark.parametrize(
    "bbox", ["[1, 2, 3]", "[1, 2, 3, 1e999]", "[1, 2, 3, NaN]", "null", '"1234"', '["a", 1, 2, 3]', "[[1], 2, 3, 4]"]
)
def test_a_box_that_is_none_is_named(folder: Path, bbox: str) -> None:
    path = folder / "viscot/benchmark_det/textvqa.jsonl"
    path.write_text(path.read_text().replace("[0, 0, 1, 1]", bbox))
    with pytest.raises(BadAnnotation, match=r"line 1 of .*textvqa\.jsonl"):
        VisCotDataset(folder, "textvqa")


def test_the_sets_of_table_4_have_the_official_numbers() -> None:
    sizes = {name: tuple(OFFICIAL_SIZES[name]) for name in TABLE_SETS}
    assert sizes == {
        "docvqa": (888, 617), "textcap": (853, 755), "textvqa": (526, 496), "dude": (603, 492), "sroie": (686, 322),
        "infographicsvqa": (360, 216),
    }  # fmt: skip


def damaged(kind: str, text: str) -> bytes:
    records = json.loads(text)
    if kind == "truncated":
        return text.encode()[: len(text) // 2]
    if kind == "utf-16":
        return text.encode("utf-16")
    if kind == "empty":
        return b"[]"
    if kind == "object":
        return b'{"records": []}'
    if kind == "twice":
        records.append(records[0])
    if kind == "no box":
        records[1]["image"][1] = records[1]["image"][0]
    if kind == "three numbers":
        records[1]["image"][1] = "x.jpg###[1, 2, 3]"
    if kind == "two turns":
        del records[2]["conversations"][2:]
    if kind == "climbs":
        records[0]["image"][0] = "../../etc/passwd"
    if kind == "absolute":
        records[0]["image"][0] = "/etc/passwd"
    if kind == "no id":
        del records[0]["question_id"]
    if kind == "text":
        records[0] = "a record"
    return json.dumps(records).encode()


DAMAGE = (
    "truncated", "utf-16", "empty", "object", "twice", "no box", "three numbers", "two turns", "climbs", "absolute",
    "no id", "text",
)  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_files_are_named(folder: Path, kind: str) -> None:
    path = folder / "viscot/benchmark/textvqa.json"
    path.write_bytes(damaged(kind, path.read_text()))
    with pytest.raises(BadAnnotation, match=r"fetch (it|the file) again"):
        VisCotDataset(folder, "textvqa")


def test_string_ids_are_numbers(folder: Path) -> None:
    path = folder / "viscot/benchmark/textvqa.json"
    path.write_text(path.read_text().replace('"question_id": 3', '"question_id": "3"'))
    assert VisCotDataset(folder, "textvqa")[0].question_id == 3


def test_a_damaged_size_file_is_named(folder: Path) -> None:
    path = folder / "viscot/benchmark_det/textvqa.jsonl"
    path.write_text(path.read_text()[:-10])
    with pytest.raises(BadAnnotation, match=r"line 2 of .*textvqa\.jsonl"):
        VisCotDataset(folder, "textvqa")
    path.write_bytes(path.read_text().encode("utf-16"))
    with pytest.raises(BadAnnotation, match="UTF-8"):
        VisCotDataset(folder, "textvqa")


def test_the_world_writes_the_official_form(tmp_path: Path) -> None:
    from flmm_plugin.tiny.layouts_viscot import write_viscot

    write_viscot(tmp_path, scenes=6, names=("textcap", "sroie"))
    sizes = set()
    for name in ("textcap", "sroie"):
        dataset = VisCotDataset(tmp_path, name)
        assert len(dataset) == sum(encloses(one.box) for one in dataset) == 6
        told = json.loads((tmp_path / f"viscot/benchmark/{name}.json").read_text())
        for item, one in zip(dataset, told, strict=True):
            assert item.size is not None
            height, width = item.size
            assert Image.open(item.image_path).size == (width, height)
            assert 0 <= item.box[0] < item.box[2] <= width
            assert 0 <= item.box[1] < item.box[3] <= height
            relative = json.loads(one["conversations"][1]["value"])
            assert relative == pytest.approx(to_padded_square(item.box, item.size), abs=6e-4)
            assert item.answer
            assert "Please" not in item.question
            sizes.add(item.size)
    assert dataset[0].image_path.parent.name == "sroie"
    assert VisCotDataset(tmp_path, "textcap")[0].image_path.parent.name == "textvqa"
    assert (224, 224) in sizes


@pytest.mark.parametrize("box", ["nan, 2, 11, 12", "1, inf, 11, 12", "1, 2, 1e9, 12"])
def test_a_box_that_is_no_box_is_refused(folder: Path, box: str) -> None:
    path = folder / "viscot/benchmark/textvqa.json"
    path.write_text(path.read_text().replace("###[1, 2, 11, 12]", f"###[{box}]"))
    with pytest.raises(BadAnnotation, match="record 0"):
        VisCotDataset(folder, "textvqa")


@pytest.mark.parametrize("change", [{"question_id": True}, {"question_id": 3.5}, {"image": [5, "x###[1, 2, 3, 4]"]}])
def test_fields_of_another_kind_are_refused(folder: Path, change: Any) -> None:
    path = folder / "viscot/benchmark/textvqa.json"
    first, *rest = json.loads(path.read_text())
    path.write_text(json.dumps([{**first, **change}, *rest]))
    with pytest.raises(BadAnnotation, match="record 0"):
        VisCotDataset(folder, "textvqa")


def test_pictures_are_opened_as_they_are_stored(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(folder / "viscot/cot/textvqa/a.jpg", exif=exif)
    doc = read_documents("", {"root": str(folder), "name": "textvqa"})[0]
    assert doc["image"].size == (doc["width"], doc["height"]) == (40, 30)
