"""Documents of panoptic narratives, and the way from replies to printed numbers."""

from __future__ import annotations

import importlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from flmm_plugin.datasets.png import PngDataset, PngPhrase
from flmm_plugin.errors import BadAnnotation, UnknownArgument
from flmm_plugin.records import decode_rle, encode_rle, error_json
from flmm_plugin.tasks.mask_scoring import ciou
from flmm_plugin.tasks.metrics.bootstrap import statistic_of
from flmm_plugin.tasks.metrics.totals import is_complete, total
from flmm_plugin.tasks.png import scoring
from flmm_plugin.tasks.png.benchmark import QUESTION, kinds_of, read_documents, targets_of
from flmm_plugin.tasks.standalone import score_document
from flmm_plugin.tasks.task_files import aggregations
from tests.tasks import metric_names

Folder = Callable[..., Any]

FIELDS = {
    "narrative", "image_id", "image_path", "orientation", "map_path", "height", "width", "question", "text", "pieces",
    "grounded", "expressions", "spans", "segment_ids", "kinds", "expected_items", "expected_narratives", "left_out",
}  # fmt: skip


def reply(masks: list[Any]) -> str:
    return json.dumps({"masks": [encode_rle(mask) for mask in masks]})


def test_a_document_is_a_narrative_with_all_its_phrases(png_folder: Folder) -> None:
    folder = png_folder()
    docs = read_documents("val", {"root": folder.root})
    assert (len(docs), docs.items) == (2, 5)
    first = docs[0]
    assert set(first) == set(docs.features) == FIELDS
    assert first["question"] == QUESTION
    assert [first["pieces"][index] for index in first["grounded"]] == first["expressions"]
    assert [first["text"][start:end] for start, end in first["spans"]] == first["expressions"]
    assert first["kinds"] == [["singular", "thing"], ["singular", "thing"], ["plural", "thing"], ["singular", "stuff"]]
    assert (first["expected_items"], first["narrative"], docs[1]["narrative"]) == (None, 0, 2)
    json.dumps(first)
    assert pickle.loads(pickle.dumps(first))["image"].size == (30, 20)
    with pytest.raises(KeyError):
        first["colour"]
    for mask, ids in zip(targets_of(first), first["segment_ids"], strict=True):
        assert np.array_equal(mask, folder.mask(*ids))


def test_who_counts_decides_on_the_kinds() -> None:
    def phrase(plural: bool, *things: bool) -> PngPhrase:
        return PngPhrase(0, "x", (0, 1), tuple(range(len(things))), things, plural)

    two = phrase(False, True, False)
    assert (kinds_of(two, "flmm"), kinds_of(two, "bcv")) == (("singular", "stuff"), ("plural", "stuff"))
    one = phrase(True, False)
    assert (kinds_of(one, "flmm"), kinds_of(one, "bcv")) == (("plural", "thing"), ("singular", "stuff"))


def test_an_unknown_way_of_counting_is_refused(png_folder: Folder) -> None:
    with pytest.raises(UnknownArgument, match="flmm, bcv"):
        read_documents("val", {"root": png_folder().root, "kinds": "coco"})


def printed(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """The numbers of the template's aggregations, as lmms-eval would call them."""
    aggregations = {**dict.fromkeys(scoring.RECALLS, scoring.average_recall), "acc@0.5": scoring.accuracy,
                    "pixel_acc": scoring.pixel_acc, "cIoU": ciou, "items": total,
                    "errors": total, "complete": is_complete,
                    "skipped_phrases": scoring.skips, "skipped_narratives": scoring.skips}  # fmt: skip
    return {name: how([sample[name] for sample in samples if name in sample]) for name, how in aggregations.items()}


def test_perfect_and_partial_replies(png_folder: Folder) -> None:
    folder = png_folder()
    docs = read_documents("val", {"root": folder.root})
    perfect = [scoring.score_reply(doc, reply(targets_of(doc))) for doc in docs]
    assert set(perfect[0]) == {*metric_names.PNG, "reference"}
    numbers = printed(perfect)
    assert all(numbers[name] == pytest.approx(99.999) for name in scoring.RECALLS)
    assert (numbers["acc@0.5"], numbers["pixel_acc"], numbers["cIoU"]) == (100, 100, 100)
    assert (numbers["items"], numbers["errors"], numbers["complete"]) == (5, 0, 0)
    # What a log has is enough to score it again, and intervals are drawn around the same values.
    logged = json.loads(json.dumps(perfect[0]))
    again = scoring.score_reply(scoring.logged_document(logged), reply(targets_of(docs[0])))
    assert json.loads(json.dumps(again)) == logged
    assert [decode_rle(rle).sum() for rle in perfect[0]["reference"]["masks"]] == [100, 100, 200, 400]

    # The first thing right, the second one confused with it, half of the two cats, no grass.
    masks = [folder.mask(300), folder.mask(300), folder.mask(70000), folder.mask()]
    numbers = printed([scoring.score_reply(docs[0], reply(masks))])
    step = 1e-5
    singular = [1 - step, step, step]
    assert numbers["AR"] == pytest.approx(100 * np.mean([*singular, 0.5 + step]))
    assert numbers["AR_thing"] == pytest.approx(100 * np.mean([1 - step, step, 0.5 + step]))
    assert numbers["AR_stuff"] == pytest.approx(100 * step)
    assert numbers["AR_singular"] == pytest.approx(100 * np.mean(singular))
    assert numbers["AR_plural"] == pytest.approx(100 * (0.5 + step))
    assert numbers["acc@0.5"] == 25
    assert numbers["pixel_acc"] == pytest.approx(100 * np.mean([1, 400 / 600, 500 / 600, 200 / 600]))
    assert numbers["cIoU"] == pytest.approx(100 * (100 + 0 + 100 + 0) / (100 + 200 + 200 + 400))
    assert numbers["complete"] == 0
    functions = aggregations("flmm_png")
    for name in (*scoring.RECALLS, "acc@0.5", "pixel_acc", "cIoU"):
        ratio = statistic_of(functions[name])
        assert ratio([scoring.score_reply(docs[0], reply(masks))[name]]) == pytest.approx(numbers[name])


def test_only_a_file_of_the_official_size_can_be_complete(png_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = png_folder()
    dataset = PngDataset(folder.root)
    monkeypatch.setattr("flmm_plugin.tasks.png.benchmark.OFFICIAL_NARRATIVES", {"val": dataset.in_file})
    docs = read_documents("val", {"root": folder.root})
    assert (docs[0]["expected_items"], docs[0]["expected_narratives"]) == (5, 2)
    samples = [scoring.score_reply(doc, "") for doc in docs]
    assert [printed(samples[:count])["complete"] for count in (1, 2)] == [0, 1]


def test_a_kind_without_phrases_has_no_number(png_folder: Folder) -> None:
    docs = read_documents("val", {"root": png_folder().root})
    numbers = printed([scoring.score_reply(docs[1], reply(targets_of(docs[1])))])
    assert numbers["AR_stuff"] == pytest.approx(99.999)
    assert numbers["AR_plural"] is numbers["AR_thing"] is None


def test_failed_and_short_replies_are_empty_predictions(png_folder: Folder) -> None:
    docs = read_documents("val", {"root": png_folder().root})
    for said in (error_json(BadAnnotation("x")), "no masks here", reply([np.ones((30, 20), bool)] * 4)):
        sample = scoring.score_reply(docs[0], said)
        assert sample["errors"] == {"count": 4}
        assert sample["cIoU"] == {"I": [0] * 4, "U": [100, 100, 200, 400]}
    assert scoring.score_reply(docs[0], reply(targets_of(docs[0])[:3]))["errors"] == {"count": 1}


def test_a_damaged_map_skips_its_narrative_and_is_counted(png_folder: Folder) -> None:
    folder = png_folder()
    docs = read_documents("val", {"root": folder.root})
    answer = reply(targets_of(docs[0]))
    (folder.maps / "000000000139.png").write_bytes(b"no map")
    with pytest.raises(BadAnnotation):
        scoring.score_reply(docs[0], answer)
    sample = score_document("flmm_png", scoring.score_reply, docs[0], answer)
    assert sample == scoring.skipped(docs[0])
    other = score_document("flmm_png", scoring.score_reply, docs[1], reply(targets_of(docs[1])))
    assert other != scoring.skipped(docs[1])
    numbers = printed([sample, other])
    # One narrative names nothing and was left out when the file was read.
    assert (numbers["skipped_phrases"], numbers["skipped_narratives"]) == (4, 2)
    assert (numbers["items"], numbers["complete"], numbers["cIoU"]) == (1, 0, 100)


def test_the_template_lists_the_metrics_with_their_aggregations() -> None:
    template = Path(scoring.__file__).with_name("_png_yaml")
    yaml.SafeLoader.add_constructor("!function", lambda loader, node: node.value)
    content = yaml.safe_load(template.read_text())
    assert [entry["metric"] for entry in content["metric_list"]] == list(metric_names.PNG)
    for entry in content["metric_list"]:
        module, _, name = entry["aggregation"].rpartition(".")
        assert callable(getattr(importlib.import_module(module), name))


def test_the_curve_is_a_picture_with_a_line_per_kind(png_folder: Folder, tmp_path: Path) -> None:
    folder = png_folder()
    docs = read_documents("val", {"root": folder.root})
    masks = [folder.mask(300), folder.mask(300), folder.mask(70000), folder.mask()]
    sums = scoring.curves([scoring.score_reply(docs[0], reply(masks))["recall_curve"]])
    assert {name: one.items for name, one in sums.items()} == {
        "AR": 4, "AR_thing": 3, "AR_stuff": 1, "AR_singular": 3, "AR_plural": 1,
    }  # fmt: skip
    drawn = Image.open(scoring.draw_curves(sums, tmp_path / "new" / "curve.png", "title"))
    colors = {tuple(pixel) for pixel in np.asarray(drawn.convert("RGB")).reshape(-1, 3)}
    # matplotlib's first five colours: one line each.
    for name in ("1f77b4", "ff7f0e", "2ca02c", "d62728", "9467bd"):
        assert tuple(bytes.fromhex(name)) in colors
    empty = {"AR": scoring.curves([])["AR"]}
    assert Image.open(scoring.draw_curves(empty, tmp_path / "empty.png")).size == drawn.size


def test_the_task_draws_into_the_output_path_only(png_folder: Folder, tmp_path: Path) -> None:
    task_module = pytest.importorskip("flmm_plugin.tasks.png.task")
    docs = read_documents("val", {"root": png_folder().root})
    sample = scoring.score_reply(docs[0], reply(targets_of(docs[0])))["recall_curve"]
    stand_in = SimpleNamespace(config=SimpleNamespace(task="flmm_png"))
    draw = task_module.PanopticNarrativeGrounding._recall_curve
    assert draw(stand_in, [sample], args=SimpleNamespace(output_path=None)) == ""
    assert (
        draw(stand_in, [sample], args=SimpleNamespace(output_path=str(tmp_path / "out"))) == "flmm_png_recall_curve.png"
    )
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["flmm_png_recall_curve.png"]
