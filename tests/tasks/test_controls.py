"""Controls made of a log: what each rewrites, what it leaves, and what the scoring then gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flmm_plugin.cli import main
from flmm_plugin.errors import UnknownArgument
from flmm_plugin.records import decode_rle, encode_rle, error_json, parse_masks_json
from flmm_plugin.tasks import controls
from flmm_plugin.tasks.controls import RUN, Logged, controlled, fitted, rewritten
from flmm_plugin.tasks.keywords import scoring as keywords
from flmm_plugin.tasks.refcoco import scoring as refcoco
from flmm_plugin.tasks.viscot import scoring as viscot

SIZE = (8, 8)


def column(at: int, size: tuple[int, int] = SIZE) -> Any:
    found = np.zeros(size, dtype=bool)
    found[:, at] = True
    return found


def masks_reply(masks: list[Any], text: str = "") -> str:
    phrases = [{"phrase": f"p{at}", "span": None, "mask": at} for at in range(len(masks))]
    return json.dumps({"text": text, "phrases": phrases, "masks": [encode_rle(mask) for mask in masks]})


def written(tmp_path: Path, task: str, lines: list[dict[str, Any]]) -> Path:
    path = tmp_path / f"20260101_000000_samples_{task}.jsonl"
    path.write_text("".join(json.dumps({"doc_id": at, **line}) + "\n" for at, line in enumerate(lines)))
    return path


@pytest.fixture
def refs(tmp_path: Path) -> Path:
    """Three pictures of two objects, all found; picture i has them in columns 2i and 2i + 1."""
    lines = []
    for number in range(3):
        masks = [column(2 * number), column(2 * number + 1)]
        doc = {
            "expressions": ["one", "two"], "masks": [encode_rle(mask) for mask in masks], "height": 8, "width": 8,
            "image_path": f"{number}.jpg", "expected_items": 6,
        }  # fmt: skip
        lines.append({"filtered_resps": masks_reply(masks), **refcoco.score_reply(doc, masks_reply(masks))})
    return written(tmp_path, "flmm_refcoco_val", lines)


def test_controls_of_masks(refs: Path) -> None:
    result = controlled(refs)
    assert list(result.values) == [RUN, "whole", "centre", "wrong_phrase", "other_picture", "truth"]
    assert result.values[RUN]["cIoU"] == 100
    assert "items" not in result.values[RUN]
    assert result.values["whole"]["cIoU"] == pytest.approx(100 / 8)  # one column of eight
    assert result.values["wrong_phrase"]["mIoU"] == 0
    assert result.values["other_picture"]["gIoU"] == 0
    assert result.values["truth"] == {}  # nothing to change in a perfect reply
    # The centre box is columns 2-5, rows 2-5: pictures 1 and 2 have four of its pixels under each mask.
    assert result.values["centre"]["mIoU"] == pytest.approx(100 * (4 / (16 + 8 - 4)) * 4 / 6)


def test_only_the_metrics_that_were_asked_for(refs: Path) -> None:
    assert set(controlled(refs, metrics=("cIoU",)).values["whole"]) == {"cIoU"}


def test_every_document_exchanges_its_reply_with_another_picture() -> None:
    lines = [
        {"doc_id": at, "filtered_resps": str(at), "reference": {"image_path": f"{at // 2}.jpg"}} for at in range(10)
    ]
    found = controls.logged(lines)
    assert sorted(one.other for one in found) == list(range(10))
    assert all(one.other // 2 != at // 2 for at, one in enumerate(found))
    assert [one.other for one in controls.logged(lines)] == [one.other for one in found]


def test_masks_of_another_picture_are_stretched() -> None:
    wide = Logged(masks_reply([column(0, (2, 2))]), {"size": [2, 2]}, 1)
    tall = Logged(masks_reply([column(2, (8, 4))]), {"size": [8, 4]}, 0)
    first, second = rewritten("other_picture", [wide, tall])
    assert parse_masks_json(first).masks[0].tolist() == [[False, True], [False, True]]
    assert parse_masks_json(second).masks[0].shape == (8, 4)
    assert fitted(column(1), (4, 4)).sum() == 0  # an odd column falls between the pixels that are kept


def test_one_mask_alone_takes_another_pictures() -> None:
    one, other = (Logged(masks_reply([column(at)]), {"size": list(SIZE)}, 1 - at) for at in range(2))
    first, second = (parse_masks_json(reply).masks[0] for reply in rewritten("wrong_phrase", [one, other]))
    assert np.array_equal(first, column(1))
    assert np.array_equal(second, column(0))


def test_boxes_go_with_their_masks_and_texts_stay() -> None:
    reply = json.dumps({**json.loads(masks_reply([column(2)], "red")), "boxes": [{"x_min": 0.1}]})
    (whole,) = rewritten("whole", [Logged(reply, {"size": list(SIZE)}, 0)])
    parsed = parse_masks_json(whole)
    assert parsed.boxes == ({"x_min": 0.0, "y_min": 0.0, "x_max": 1.0, "y_max": 1.0},)
    assert parsed.text == "red"
    assert parsed.masks[0].all()


@pytest.mark.parametrize("broken", ["Yes", "", "[]", '{"masks": [{"size": [2, 2], "counts": "?"}]}'])
def test_replies_that_are_no_masks_stay(broken: str) -> None:
    one = Logged(broken, {"size": list(SIZE)}, 0)
    for control in ("whole", "centre", "wrong_phrase", "other_picture"):
        assert rewritten(control, [one]) == [broken]
    with pytest.raises(UnknownArgument, match="no control 'half'"):
        rewritten("half", [one])


def test_questions(tmp_path: Path) -> None:
    lines = []
    for number, answer in enumerate(["red", "blue", "red"]):
        doc = {
            "question": "?", "answer": answer, "box": [0.0, 0.0, 4.0, 8.0], "height": 8, "width": 8,
            "image_path": f"{number}.jpg", "question_id": number, "with_boxes": True, "expected_items": 3,
        }  # fmt: skip
        reply = json.dumps({
            "text": answer, "masks": [encode_rle(column(1))], "size": [8, 8],
            "boxes": [{"x_min": 0.0, "y_min": 0.0, "x_max": 0.5, "y_max": 1.0}],
        })  # fmt: skip
        lines.append({"filtered_resps": reply, **viscot.score_reply(doc, reply)})
    result = controlled(written(tmp_path, "flmm_viscot_sroie", lines))
    assert result.values[RUN] == {"exact": 100.0, "anls": 100.0, "box_acc@0.5": 100.0}
    assert result.values["constant"] == {"exact": pytest.approx(200 / 3), "anls": pytest.approx(200 / 3)}
    assert result.values["whole"] == {"box_acc@0.5": 0.0}  # IoU 0.5 is not above 0.5
    assert result.values["truth"] == {}


def test_a_control_has_no_failed_requests(tmp_path: Path) -> None:
    doc = {
        "question": "?", "answer": "red", "box": [0.0, 0.0, 4.0, 8.0], "height": 8, "width": 8, "image_path": "a.jpg",
        "question_id": 0, "with_boxes": False, "expected_items": 3,
    }  # fmt: skip
    reply = error_json(RuntimeError("no memory"))
    result = controlled(
        written(tmp_path, "flmm_viscot_sroie", [{"filtered_resps": reply, **viscot.score_reply(doc, reply)}])
    )
    assert (result.values[RUN]["exact"], result.values["constant"]["exact"]) == (0, 100)


def test_texts(tmp_path: Path) -> None:
    text = "A dog and a cat."
    doc = {
        "text": text, "spans": [(2, 5), (12, 15)], "expressions": ["dog", "cat"], "image_path": "a.jpg",
        "height": 8, "width": 8, "expected_narratives": 1,
    }  # fmt: skip
    reply = json.dumps({"text": text, "masks": [], "phrases": [{"phrase": "dog", "span": [2, 5]}]})
    path = written(tmp_path, "flmm_keywords", [{"filtered_resps": reply, **keywords.score_reply(doc, reply)}])
    result = controlled(path)
    assert (result.values[RUN]["precision"], result.values[RUN]["recall"]) == (100, 50)
    assert (result.values["whole"]["precision"], result.values["whole"]["recall"]) == (40, 100)
    assert result.values["truth"]["F1"] == 100
    assert "centre" not in result.values


def test_the_command(refs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["score", str(refs), "--controls", "--resamples", "0", "--metrics", "cIoU,P@0.5"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "flmm_refcoco_val: controls" in said
    assert said.split("controls")[1].splitlines()[1].split() == ["metric", "run", *list(controls.CONTROLS)[:4], "truth"]
    assert "12.50" in said
    assert "centre: every mask is a centred box" in said
    assert main([*command, "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)["results"]
    assert listed["controls"]["whole"]["cIoU"] == pytest.approx(12.5)


def test_a_log_without_references_has_no_controls(refs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [json.loads(line) for line in refs.read_text().splitlines()]
    refs.write_text("".join(json.dumps({k: v for k, v in line.items() if k != "reference"}) + "\n" for line in lines))
    with pytest.raises(UnknownArgument, match="no whole reference"):
        controlled(refs)
    assert main(["score", str(refs), "--controls", "--resamples", "0"]) == 0
    assert "no controls:" in capsys.readouterr().err


def test_stock_scores_on_the_world_come_again_and_have_controls(tmp_path: Path) -> None:
    pytest.importorskip("lmms_eval")
    from loguru import logger

    from flmm_plugin.tasks.pope_viscot import scoring as pope
    from flmm_plugin.tasks.rescoring import Options, rescore
    from flmm_plugin.tasks.tiny import scoring as mme

    cases: list[tuple[str, Callable[..., Any], str, float, float]] = [
        ("flmm_tiny_pope_direct", pope.score, "pope_accuracy", 0.75, 0.5),
        ("flmm_tiny_mme", mme.score, "mme_perception_score", 75 + 50, 50),
    ]
    for task, score, metric, value, constant in cases:
        lines = []
        for number in range(4):
            truth = "yes" if number % 2 else "no"
            doc = {"question": "?", "question_id": str(number // 2), "category": "color", "answer": truth}
            reply = truth if number else "yes"
            lines.append({"filtered_resps": reply, **dict(score(doc, [reply]))})
        path = written(tmp_path, task, lines)
        again = rescore(path, options=Options(resamples=0))
        assert (again.source, again.changed) == ("predictions", 0)
        said: list[str] = []
        sink = logger.add(lambda message, said=said: said.append(str(message)))  # type: ignore[misc]
        assert main(["score", str(path), "--resamples", "5"]) == 0
        logger.remove(sink)
        assert said == []  # lmms-eval's score of MME logs every category, every time
        values = controlled(path).values
        assert values[RUN][metric] == value
        assert values["constant"][metric] == constant


def test_masks_come_back_as_they_were() -> None:
    mask = np.random.default_rng(0).random(SIZE) > 0.5
    (truth,) = rewritten("truth", [Logged("", {"phrases": ["a"], "masks": [encode_rle(mask)]}, 0)])
    assert np.array_equal(decode_rle(json.loads(truth)["masks"][0]), mask)
