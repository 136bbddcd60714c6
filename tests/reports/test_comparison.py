"""Measured beside published: nothing that was measured differently stands unmarked, and no difference is made of it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from flmm_plugin.errors import DataNotFound, UnknownArgument
from flmm_plugin.reports.comparison import EMBEDDED, NOT_WHOLE, Cell, ComparisonTable, compare
from flmm_plugin.reports.rendering import render
from flmm_plugin.reports.result_files import read_results
from flmm_plugin.reports.table_layouts import LAYOUTS, TABLE_NAMES, layouts_of
from tests.reports.conftest import chat_sample

WHOLE = {"cIoU": 75.3, "items": 3811, "complete": 1}
LLAVA = "pretrained=llava-hf/llava-1.5-7b-hf"


def table(name: str, *folders: Path) -> ComparisonTable:
    return compare(LAYOUTS[name], read_results(folders))


def cell(of: ComparisonTable, label: str, column: str, variant: str = "") -> Cell:
    rows = [row for row in of.rows if row.label == label and row.variant == variant and row.kind != "published"]
    assert len(rows) == 1, [(row.label, row.variant) for row in of.rows]
    return next(one for one in rows[0].cells if one.column.name == column)


def sentences(one: Cell) -> list[str]:
    return [mark.sentence for mark in one.marks]


def test_a_whole_split_by_the_papers_protocol_stands_unmarked(write_run: Callable[..., Path]) -> None:
    made = table("1", write_run("a", "flmm_llava", {"flmm_refcoco_val": WHOLE}, arguments=LLAVA, record={}))
    one = cell(made, "F-LMM (LLaVA-1.5-7B)", "RefCOCO val")
    assert (one.text, sentences(one)) == ("75.3", [])
    minus = cell(made, "F-LMM (LLaVA-1.5-7B) minus published", "RefCOCO val")
    assert minus.text == "+0.1"
    assert "feedfacefeedface" in one.provenance.as_line()
    assert one.provenance.n == "3811"


OWN_HEADS = {"sha256": "beef", "created_by": "flmm train 0.1", "sam": "vit_b", "prompts": "box", "merge": "mean"}


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"heads": {"sha256": "a", "released": "frozen.pth"}, "preprocessing": "paper"}, ["precision: float32"]),
        ({"heads": OWN_HEADS, "dtype": None},
         ["precision: not", "heads: not the released ones, but flmm train 0.1, SHA-256 beef", "refiner: sam vit_b",
          "refiner: prompts box"]),
        ({"heads": {"released": "frozen.pth"}, "options": {"load_in_4bit": "True"}, "preprocessing": "stock"},
         ["precision: weights quantised to 4 bits", "precision: float32", "preprocessing: "]),
    ],
)  # fmt: skip
def test_a_difference_from_the_paper_says_what_it_may_be_due_to(
    write_run: Callable[..., Path], record: Any, said: list[str]
) -> None:
    tasks = {"flmm_refcoco_val": WHOLE, "mme": {"mme_perception_score": 1500.0}}
    made = table("1", write_run("a", "flmm_llava", tasks, arguments=LLAVA, record=record, counts={"mme": (2374, 2374)}))
    label = "F-LMM (LLaVA-1.5-7B) minus published"
    masks, chat = (sentences(cell(made, label, column)) for column in ("RefCOCO val", "MME perception"))
    assert [one[: len(start)] for one, start in zip(masks, said, strict=True)] == said
    assert any(one.startswith("stock task of lmms-eval") for one in chat)
    assert not [one for one in chat if one.startswith(("heads", "refiner", "preprocessing"))]
    for form in ("md", "csv", "latex", "html"):
        assert said[0] in render([made], form)


def test_part_of_a_split_is_marked_and_never_subtracted_nor_best(write_run: Callable[..., Path]) -> None:
    part = {"cIoU": 99.9, "items": 8, "complete": 0}
    made = table("1", write_run("a", "flmm_llava", {"flmm_refcoco_val": part}, arguments=LLAVA, record={}))
    one = cell(made, "F-LMM (LLaVA-1.5-7B)", "RefCOCO val")
    assert sentences(one) == [NOT_WHOLE]
    assert not one.best
    minus = cell(made, "F-LMM (LLaVA-1.5-7B) minus published", "RefCOCO val")
    assert (minus.value, sentences(minus)[0]) == (None, NOT_WHOLE)
    best = [row.label for row in made.rows for c in row.cells if c.best and c.column.name == "RefCOCO val"]
    assert best == ["F-LMM (HPT-Air-1.5-8B)"]


def test_another_protocol_makes_a_row_of_its_own_with_a_mark(write_run: Callable[..., Path]) -> None:
    both = {"flmm_refcoco_val": WHOLE, "flmm_refcoco_val_per_sentence": {**WHOLE, "cIoU": 70.0, "items": 10834}}
    made = table("A2", write_run("a", "flmm_llava", both, arguments=LLAVA, record={}))
    assert cell(made, "F-LMM (LLaVA-1.5-7B)", "RefCOCO val").text == "75.3"
    other = cell(made, "F-LMM (LLaVA-1.5-7B)", "RefCOCO val", "every sentence")
    assert other.text == "70.0"
    assert any("every expression" in sentence for sentence in sentences(other))
    lisa = next(row for row in made.rows if row.label == "LISA-7B")
    assert lisa.cells[0].marks == other.marks


def test_stock_beside_ours_and_their_difference(write_run: Callable[..., Path]) -> None:
    log = {"mme": [chat_sample(0, "Is it?", "Yes", "Yes")]}
    whole = {"mme": (2374, 2374)}
    ours = write_run("a", "flmm_llava", {"mme": {"mme_perception_score": 1510.9}}, arguments=LLAVA, record={},
                     counts=whole, samples=log)  # fmt: skip
    stock = write_run("b", "llava_hf", {"mme": {"mme_perception_score": 1510.9}}, arguments=LLAVA, counts=whole,
                      samples=log)  # fmt: skip
    made = table("1", ours, stock)
    label = "F-LMM (LLaVA-1.5-7B) minus llava_hf (LLaVA-1.5-7B)"
    assert cell(made, label, "MME perception").text == "0"
    beside = cell(made, "llava_hf (LLaVA-1.5-7B)", "MME perception")
    assert any("does not record: kernel, dtype" in sentence for sentence in sentences(beside))


@pytest.mark.parametrize("changed", ["other questions", "other number"])
def test_arms_asked_differently_are_not_subtracted(write_run: Callable[..., Path], changed: str) -> None:
    asked = [chat_sample(0, "Is it?", "Yes", "Yes")]
    other = [chat_sample(0, "Is it not?", "Yes", "Yes")] if changed == "other questions" else asked
    n = 2374 if changed == "other questions" else 100
    score = {"mme": {"mme_perception_score": 1500.0}}
    ours = write_run("a", "flmm_llava", score, arguments=LLAVA, record={}, counts={"mme": (2374, 2374)},
                     samples={"mme": asked})  # fmt: skip
    stock = write_run("b", "llava_hf", score, arguments=LLAVA, counts={"mme": (n, 2374)}, samples={"mme": other})
    made = table("1", ours, stock)
    assert not [row for row in made.rows if row.kind == "difference" and "minus llava_hf" in row.label]
    marks = sentences(cell(made, "llava_hf (LLaVA-1.5-7B)", "MME perception"))
    assert "scored on other documents than F-LMM (LLaVA-1.5-7B)" in marks


def test_other_conditions_are_named(write_run: Callable[..., Path]) -> None:
    first = write_run("a", "flmm_llava", {"flmm_refcoco_val": WHOLE}, arguments=LLAVA, record={})
    second = write_run("b", "flmm_llava", {"flmm_refcoco_val": WHOLE}, arguments=f"{LLAVA},merge=max",
                       record={"dtype": "bfloat16", "options": {"merge": "max"}})  # fmt: skip
    made = table("1", first, second)
    rows = [row for row in made.rows if row.kind == "flmm"]
    assert [row.label for row in rows] == ["F-LMM (LLaVA-1.5-7B)", "F-LMM (LLaVA-1.5-7B) [merge=max]"]
    marks = [sentences(next(c for c in row.cells if c.column.name == "RefCOCO val")) for row in rows]
    assert ["measured differently from F-LMM (LLaVA-1.5-7B): dtype float32 and bfloat16"] in marks
    assert [] in marks


def test_the_embedded_model_never_stands_beside_the_paper_unmarked(write_run: Callable[..., Path]) -> None:
    made = table("1", write_run("a", "flmm_tiny", {"flmm_refcoco_val": WHOLE}, record={}))
    assert sentences(cell(made, "F-LMM (embedded model)", "RefCOCO val")) == [EMBEDDED]


def test_a_judge_is_named_with_its_number(write_run: Callable[..., Path]) -> None:
    judged = write_run(
        "a", "flmm_llava", {"mmvet": {"gpt_eval_score": 31.0}}, arguments=LLAVA, record={},
        counts={"mmvet": (218, 218)}, metadata={"mmvet": {"gpt_eval_model_name": "gpt-9"}},
    )  # fmt: skip
    made = table("1", judged)
    one = cell(made, "F-LMM (LLaVA-1.5-7B)", "MMVet")
    assert "judged by gpt-9" in sentences(one)
    assert one.provenance.judge == "gpt-9"


def test_runs_of_one_model_make_one_row_and_the_newest_number_counts(write_run: Callable[..., Path]) -> None:
    old = write_run("a", "flmm_llava", {"flmm_refcoco_val": WHOLE}, arguments=LLAVA, record={})
    new = write_run("b", "flmm_llava", {"flmm_refcoco_val": {**WHOLE, "cIoU": 76.0}, "flmm_refcoco+_val": WHOLE},
                    arguments=LLAVA, record={}, date="20260202_000000")  # fmt: skip
    made = table("A2", new, old)
    assert cell(made, "F-LMM (LLaVA-1.5-7B)", "RefCOCO val").text == "76.0"
    assert cell(made, "F-LMM (LLaVA-1.5-7B)", "RefCOCO+ val").text == "75.3"


def test_heads_are_known_by_their_tensors_not_by_their_path(write_run: Callable[..., Path]) -> None:
    runs = [
        write_run(name, "flmm_llava", {task: WHOLE}, arguments=f"{LLAVA},heads={name}/h.safetensors", record={},
                  date=f"2026010{at}_000000")
        for at, (name, task) in enumerate((("a", "flmm_refcoco_val"), ("b", "flmm_refcoco+_val")), start=1)
    ]  # fmt: skip
    rows = [row for row in table("A2", *runs).rows if row.kind == "flmm"]
    assert len(rows) == 1


def test_a_judge_of_the_log_is_named_with_prompt_and_date(write_run: Callable[..., Path]) -> None:
    verdict = {"score": 1.0, "model": "judge-7", "prompt": "v1", "date": "2026-01-02T03:04:05"}
    log = {"flmm_viscot_sroie": [{"doc_id": 0, "input": "q", "target": "a", "filtered_resps": "a", "judged": verdict}]}
    run = write_run("a", "flmm_deepseekvl", {"flmm_viscot_sroie": {"judged": 50.0, "complete": 1}}, record={},
                    arguments="pretrained=deepseek-vl-7b", samples=log)  # fmt: skip
    one = cell(table("4", run), "F-LMM (DeepSeekVL-7B)", "VisCoT SROIE", "visual CoT")
    assert sentences(one) == ["judged by judge-7, prompt v1, 2026-01-02"]


def test_ablation_rows_name_their_heads(write_run: Callable[..., Path]) -> None:
    heads = {"sha256": "a", "sam": "vit_b", "prompts": "mask + box"}
    run = write_run("a", "flmm_deepseekvl", {"flmm_png": {"AR": 60.0, "AR_thing": 59.0, "complete": 1}},
                    arguments="pretrained=deepseek-ai/deepseek-vl-1.3b-chat", record={"heads": heads})  # fmt: skip
    made = table("5a", run)
    assert cell(made, "F-LMM (DeepSeekVL-1.3B)", "PNG all", "mask + box").text == "60.0"
    assert cell(made, "F-LMM (DeepSeekVL-1.3B) minus published", "PNG all", "mask + box").text == "-3.7"
    assert cell(table("5b", run), "F-LMM (DeepSeekVL-1.3B)", "PNG all", "SAM ViT-B").text == "60.0"


def test_visual_cot_is_another_row(write_run: Callable[..., Path]) -> None:
    where = "pretrained=deepseek-ai/deepseek-vl-7b-chat"
    pope = {"pope": {"pope_accuracy": 0.87, "pope_f1_score": 0.86}}
    plain = write_run("a", "flmm_deepseekvl", pope, arguments=where, record={}, counts={"pope": (9000, 9000)})
    cot = write_run("b", "flmm_deepseekvl", pope, arguments=f"{where},visual_cot=v1", counts={"pope": (9000, 9000)},
                    record={"options": {"visual_cot": "v1"}})  # fmt: skip
    made = table("4", plain, cot)
    assert cell(made, "F-LMM (DeepSeekVL-7B)", "POPE accuracy", "no visual CoT").text == "87.0"
    minus = cell(made, "F-LMM (DeepSeekVL-7B) minus published", "POPE accuracy", "visual CoT")
    assert minus.text == "-1.0"


def test_published_numbers_are_printed_as_the_paper_prints_them() -> None:
    for layout in LAYOUTS.values():
        made = compare(layout, [])
        printed = {(c.published.row, c.column.name): c.text for c in cells(made) if c.published}
        assert printed
        assert all(c.published.value == c.text for c in cells(made) if c.published)


def cells(made: ComparisonTable) -> Iterable[Any]:
    return (one for row in made.rows for one in row.cells)


def test_names_of_tables() -> None:
    assert [layout.table for layout in layouts_of(["5", "a1"])] == ["5a", "5b", "A1"]
    assert len(layouts_of(["all"])) == len(TABLE_NAMES) + 1
    with pytest.raises(UnknownArgument, match="'7'"):
        layouts_of(["7"])


def test_folders_without_results_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(DataNotFound, match="absent"):
        read_results([tmp_path / "absent"])
    with pytest.raises(DataNotFound, match="holds"):
        read_results([tmp_path])
    (tmp_path / "x_results.json").write_text('{"results": {')
    with pytest.raises(DataNotFound, match="cut off"):
        read_results([tmp_path])


@pytest.mark.parametrize("place", ["config", "results", "configs", "n-samples", "flmm", "metric", "date"])
def test_what_is_of_another_kind_is_read_or_named(write_run: Callable[..., Path], place: str) -> None:
    run = write_run("a", "flmm_llava", {"flmm_refcoco_val": {"cIoU": 75.2, "items": 8}}, record={})
    file = next(run.rglob("*_results.json"))
    whole = file.read_text()
    for value in (None, 5, "x", [1], {"a": 1}, float("inf"), float("nan"), 10**400, {"a": [None]}, "\ud800"):
        content = json.loads(whole)
        if place == "metric":
            content["results"]["flmm_refcoco_val"]["items,none"] = value
        else:
            content[place] = value
        file.write_text(json.dumps(content))
        with contextlib.suppress(DataNotFound):
            render([compare(LAYOUTS["A2"], read_results([file]))], "md")


@pytest.mark.parametrize("content", [b"", b"[", b"\xff", b"[" * 100_000, b"[1]", b"5", b'{"config": {}}'])
def test_result_files_that_are_none_are_named(write_run: Callable[..., Path], content: bytes) -> None:
    file = next(write_run("a", "flmm_llava", {"flmm_refcoco_val": {"cIoU": 75.2}}, record={}).rglob("*_results.json"))
    file.write_bytes(content)
    with pytest.raises(DataNotFound, match=file.name):
        read_results([file])


def test_options_and_labels_hold_no_absolute_path(write_run: Callable[..., Path]) -> None:
    arguments = "pretrained=/Users/ann/llava-1.5-7b-hf,heads=/Users/ann/h.safetensors"
    record = {"options": {"sam_checkpoint": "/Users/ann/sam.pth"}}
    tasks = {"flmm_refcoco_val": {"cIoU": 75.2, "items": 8}}
    (run,) = read_results([write_run("a", "flmm_llava", tasks, arguments=arguments, record=record)])
    assert run.options["heads"] == "h.safetensors"
    assert run.options["sam_checkpoint"] == "sam.pth"
    for form in ("md", "csv", "latex", "html"):
        assert "/Users" not in render([compare(LAYOUTS["A2"], [run])], form)
