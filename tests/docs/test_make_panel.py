"""The panel's files: every main metric beside its controls, from logs; nothing of the machine in them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from flmm_plugin.records import encode_rle
from flmm_plugin.tasks.controls import CONTROLS
from flmm_plugin.tasks.refcoco import scoring as refcoco
from flmm_plugin.tasks.task_files import TASKS_FOLDER, aggregations

ROOT = Path(__file__).resolve().parents[2]


def test_it_shows_the_whole_group_and_metrics_that_exist(script: ModuleType) -> None:
    import yaml

    pytest.importorskip("lmms_eval")
    group = yaml.safe_load((TASKS_FOLDER / "tiny/_group_flmm_all_tiny.yaml").read_text())["task"]
    assert list(script.MAIN) == group
    for task, metrics in script.MAIN.items():
        assert set(metrics) <= set(aggregations(task)), task
    assert {*script.HEADINGS, "truth"} == set(CONTROLS)


def written_run(folder: Path, replies: list[Any], cut: int) -> Path:
    """A run on three pictures of one object each, as lmms-eval leaves it; its metrics are what `cut` says."""
    folder.mkdir(parents=True)
    stem = "20260101_000000"
    with (folder / f"{stem}_samples_flmm_tiny_refcoco.jsonl").open("w") as file:
        for number, mask in enumerate(replies):
            target = np.zeros((8, 8), bool)
            target[:, number] = True
            doc = {
                "expressions": ["a"], "masks": [encode_rle(target)], "height": 8, "width": 8,
                "image_path": f"{number}.jpg", "expected_items": None,
            }  # fmt: skip
            reply = json.dumps({"masks": [encode_rle(mask)], "phrases": [{"phrase": "a", "mask": 0}]})
            line = {"doc_id": number, "filtered_resps": reply, "input": "q", "target": "", "doc_hash": str(number)}
            file.write(json.dumps({**line, **refcoco.score_reply(doc, reply)}) + "\n")
    content = {
        "results": {"flmm_tiny_refcoco": {"cIoU,none": float(cut), "mIoU,none": float(cut), "P@0.5,none": 0.0}},
        "config": {"model": "flmm_tiny", "model_args": ""}, "n-samples": {"flmm_tiny_refcoco": {"effective": 3}},
    }  # fmt: skip
    (folder / f"{stem}_results.json").write_text(json.dumps(content))
    return folder


def test_a_run_stands_beside_its_controls(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lmms_eval")
    monkeypatch.setattr(script, "MAIN", {"flmm_tiny_refcoco": ("cIoU", "mIoU", "P@0.5")})
    right = []
    for number in range(3):
        mask = np.zeros((8, 8), bool)
        mask[:4, number] = True  # the upper half of its target
        right.append(mask)
    folders = {
        "flmm": written_run(tmp_path / "flmm", right, 50),
        script.UNTRAINED: written_run(tmp_path / "untrained", right, 7),
    }
    text = script.controls_csv(folders)
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert comments[0].startswith("# make panel")
    rows = list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))
    assert [row["metric"] for row in rows] == ["cIoU", "mIoU", "P@0.5"]
    first = rows[0]
    assert (first["run"], first["95 % interval"], first["documents"]) == ("50.00", "50.00 to 50.00", "3")
    assert (first["whole image"], first["another picture's reply"], first["untrained LMM"]) == ("12.50", "0.00", "7.00")
    assert first["truth itself"] == "100.00"
    assert first["constant answer"] == ""
    script.refuse_paths("controls.csv", text, (str(tmp_path), str(ROOT), str(Path.home())))


def samples(folder: Path, task: str, lines: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"20260101_000000_samples_{task}.jsonl"
    path.write_text("".join(json.dumps({"doc_id": at, **line}) + "\n" for at, line in enumerate(lines)))
    return path


def test_picked_words_have_controls_too(script: ModuleType, tmp_path: Path) -> None:
    # Two questions about each of three pictures; "Yes" is right four times of six and picked every time.
    wanted = ["Yes", "No", "Yes", "Yes", "No", "Yes"]
    lines = [
        {"target": word, "input_media": [f"{at // 2}.png"], "acc": {"picked": "Yes"}} for at, word in enumerate(wanted)
    ]
    found = script.picked_controls(samples(tmp_path, "flmm_tiny_choice", lines), "acc")
    two_thirds = pytest.approx(200 / 3)
    assert found == {"other_picture": {"acc": two_thirds}, "constant": {"acc": two_thirds}, "truth": {"acc": 100}}
    lines = [{**line, "acc": {"picked": line["target"]}} for line in lines]
    mixed = script.picked_controls(samples(tmp_path, "flmm_tiny_choice", lines), "acc")
    assert mixed["other_picture"]["acc"] < 100
    assert script.share([]) is None


def test_second_looks_are_told_apart_by_what_is_asked_for(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "provenance", lambda folder: ["seed: 0"])
    rights = {"direct": (1, 1, 1), "v1": (1, 0, 1), "v2": (1, 0, 0)}
    for look, (viscot, pope) in script.LOOKS.items():
        color, where, there = (float(one) for one in rights[look])
        questions = [("What color is the star?", color), ("Where is the star?", where)]
        lines = [{"reference": {"question": text}, "exact": {"score": score}} for text, score in questions]
        samples(tmp_path, viscot, lines)
        said = {"reference": {"question": "Is there a star?"}, "pope_accuracy": {"score": there}}
        samples(tmp_path, pope, [said, said])
    text = script.second_look_csv({"flmm": tmp_path})
    assert "# seed: 0" in text
    rows = {row["asked for"]: row for row in csv.DictReader(line for line in text.splitlines() if line[0] != "#")}
    shown = ("questions", "right, direct", "right, v1", "right, v2")
    assert [rows["colour"][name] for name in shown] == ["1", "100.00", "100.00", "100.00"]
    assert [rows["place in the picture"][name] for name in shown] == ["1", "100.00", "0.00", "0.00"]
    assert [rows["whether there is one"][name] for name in shown] == ["2", "100.00", "100.00", "0.00"]
    assert [rows["colour"][name] for name in shown] != [rows["size, against the picture"][name] for name in shown]


def test_files_that_name_the_machine_are_refused(script: ModuleType) -> None:
    with pytest.raises(SystemExit, match=r"tables.md would name /house/of/somebody"):
        script.refuse_paths("tables.md", "file: /house/of/somebody/x.json", ("/", "/house/of/somebody"))


def test_the_documented_table_is_the_committed_one() -> None:
    from flmm_plugin.reports import tables

    if not (ROOT / "docs" / "results" / "panel" / "controls.csv").is_file():
        pytest.skip("make panel writes it")
    assert tables.main(["--check", str(ROOT / "docs" / "panel.md")]) == 0
