"""The verdict: what is compared, what a difference is blamed on, and how it is told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from flmm_plugin.adapters.preservation import report
from flmm_plugin.adapters.preservation.verdict import (
    CHECKS,
    Answer,
    Check,
    RunRecord,
    Verdict,
    compare,
    decide,
    logits_check,
)

EQUAL = logits_check(True, "[1, 3, 5], torch.equal")


def answer(number: int, **other: Any) -> Answer:
    facts: dict[str, Any] = {
        "key": f"generate_until/mme/{number}/0", "task": "mme", "doc_id": number, "question": f"question {number} ?",
        "text": f"yes {number}", "ids": (5, number, 2), "prompt": f"p{number}",
        "inputs": {"pixel_values": f"x{number}"},
    }  # fmt: skip
    return Answer(**{**facts, **other})


def record(role: str = "stock", *answers: Answer, **other: Any) -> RunRecord:
    answers = answers or (answer(0), answer(1), answer(2))
    facts: dict[str, Any] = {
        "adapter": "llava_hf", "settings": {"batch_size": 1}, "answers": {one.key: one for one in answers},
        "metrics": {"mme": {"score,none": 12.5}}, "weights": {"a.weight": "1", "b.weight": "2"},
    }  # fmt: skip
    return RunRecord(role, **{**facts, **other})


def changed(**other: Any) -> RunRecord:
    """The F-LMM run with something else about document 1."""
    return record("F-LMM", answer(0), answer(1, **other), answer(2))


def judged(ours: RunRecord, logits: Check | None = EQUAL, stock: RunRecord | None = None) -> Verdict:
    stock = stock or record()
    return decide([stock, ours], compare(stock, ours, logits))


def differing(verdict: Verdict) -> dict[str, int]:
    return {check.name: check.differing for check in verdict.checks if check.differing}


def test_equal_arms_are_unchanged() -> None:
    verdict = judged(record("F-LMM"))
    assert (verdict.status, verdict.exit_status, verdict.mode, verdict.first) == ("unchanged", 0, "exact", None)
    assert [check.name for check in verdict.checks] == list(CHECKS)
    compared = {check.name: check.compared for check in verdict.checks}
    assert compared == {
        "weights": 2, "questions": 3, "prompts": 3, "pictures": 3, "generated ids": 3, "texts": 3,
        "log-likelihoods": 0, "metrics": 1, "logits": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("ours", "check"),
    [
        (changed(question="question one ?"), "questions"),
        (changed(prompt="other"), "prompts"),
        (changed(inputs={"pixel_values": "other"}), "pictures"),
        (changed(ids=(5, 1, 9, 2)), "generated ids"),
        (changed(text="Yes 1"), "texts"),
        (record("F-LMM", weights={"a.weight": "1", "b.weight": "3"}), "weights"),
        (record("F-LMM", weights={"a.weight": "1"}), "weights"),
        (record("F-LMM", metrics={"mme": {"score,none": 12.500000000000002}}), "metrics"),
        (record("F-LMM", metrics={}), "metrics"),
    ],
)
def test_one_difference_is_a_change_and_is_named(ours: RunRecord, check: str) -> None:
    verdict = judged(ours)
    assert (verdict.status, verdict.exit_status) == ("changed", 1)
    assert differing(verdict) == {check: 1}
    assert verdict.first is not None
    assert verdict.first.name == check
    assert check in verdict.reason


def test_logits_that_are_not_equal_are_a_change() -> None:
    assert differing(judged(record("F-LMM"), logits_check(False, "1 of 15 differ"))) == {"logits": 1}


def test_absent_logits_are_said_not_hidden() -> None:
    verdict = judged(record("F-LMM"), logits_check(None, "stock has no logits"))
    logits = verdict.checks[-1]
    assert (verdict.status, logits.compared, logits.detail) == ("unchanged", 0, "stock has no logits")


def test_the_first_difference_is_the_first_in_the_order_of_a_computation_and_of_the_requests() -> None:
    wrong = {"prompt": "other", "text": "no"}
    ours = record("F-LMM", answer(0), answer(1, **wrong), answer(2, **wrong))
    verdict = judged(ours)
    assert verdict.first is not None
    assert verdict.first.name == "prompts"
    assert verdict.first.first is not None
    assert verdict.first.first.where == "mme document 1"


def test_log_likelihoods_are_compared_as_numbers_and_nan_equals_nan() -> None:
    def scored(*scores: tuple[float, bool]) -> list[Answer]:
        return [answer(n, text="", ids=None, prompt=None, inputs={}, score=s) for n, s in enumerate(scores)]

    left = record("stock", *scored((1.5, True), (float("nan"), False), (2.0, True)))
    assert judged(record("F-LMM", *left.answers.values()), stock=left).unchanged
    right = record("F-LMM", *scored((1.5, False), (float("nan"), False), (2.0, True)))
    verdict = judged(right, stock=left)
    assert differing(verdict) == {"log-likelihoods": 1}
    assert {check.name: check.compared for check in verdict.checks}["texts"] == 0


def test_a_tensor_that_one_adapter_does_not_pass_is_named_and_not_held_against_the_other() -> None:
    verdict = judged(changed(inputs={"pixel_values": "x1", "token_type_ids": "t"}))
    assert verdict.unchanged
    assert verdict.checks[3].detail == "in one run only: token_type_ids"


def test_ids_that_only_one_run_shows_are_counted_beside() -> None:
    verdict = judged(changed(ids=None))
    assert (verdict.checks[4].compared, verdict.checks[4].detail) == (2, "1 seen in one run only")


def test_weights_that_change_during_the_run_are_a_change_even_if_nothing_else_is() -> None:
    verdict = judged(record("F-LMM", weights_after=("b.weight",)))
    assert verdict.status == "changed"
    assert "b.weight" in verdict.reason


@pytest.mark.parametrize(
    ("stock", "ours", "why"),
    [
        (record(), record("F-LMM", answer(0)), "one run only"),
        (record(answers={}), record("F-LMM", answers={}), "one run only"),
        (
            record("stock", answer(0, error="RuntimeError: no", text=""), answer(1), answer(2)),
            record("F-LMM"),
            "failed on 1",
        ),
        (record(), record("F-LMM", grounded={"asked": 3, "failed": 3}), "every grounding request"),
    ],
)
def test_what_cannot_be_compared_is_no_proof(stock: RunRecord, ours: RunRecord, why: str) -> None:
    verdict = judged(ours, stock=stock)
    assert (verdict.status, verdict.exit_status) == ("uncomparable", 2)
    assert why in verdict.reason


# --- noise ---------------------------------------------------------------------------------------------------------


def measured(same: RunRecord, ours: RunRecord, again: RunRecord | None = None, base: Check = EQUAL) -> Verdict:
    """Stock differs from itself in one text under the settings of the F-LMM run."""
    stock = record()
    repeat = compare(same, again, EQUAL) if again else ()
    return decide(
        [stock, ours, same], compare(stock, ours, EQUAL), noise=compare(stock, same, EQUAL),
        same=compare(same, ours, base), repeat=repeat,
    )  # fmt: skip


OTHER = record("stock, settings of F-LMM", answer(0), answer(1, text="YES", ids=(7, 2)), answer(2))


def test_what_the_settings_do_is_not_blamed_on_the_plugin() -> None:
    verdict = measured(OTHER, replace(OTHER, role="F-LMM"))
    assert (verdict.status, verdict.mode) == ("unchanged", "measured")
    assert "comes from the settings" in verdict.reason
    assert differing(verdict) == {"generated ids": 1, "texts": 1}
    rows = report.table(verdict)
    assert rows[0][2:5] == ["stock : F-LMM differing", "stock : stock differing", "same settings : F-LMM differing"]
    assert next(row for row in rows if row[0] == "texts")[1:5] == ["3", "1", "1", "0"]


def test_what_differs_beyond_the_settings_is_blamed_on_the_plugin() -> None:
    verdict = measured(OTHER, changed(text="no"))
    assert verdict.status == "changed"
    assert verdict.first is not None
    assert verdict.first.first is not None
    assert "'YES'" in verdict.first.first.left


def test_a_stock_model_that_does_not_repeat_itself_sets_the_floor() -> None:
    again = record("stock again", answer(0), answer(1), answer(2, text="hm"))
    ours = record("F-LMM", answer(0, text="hm"), answer(1, text="YES", ids=(7, 2)), answer(2))
    verdict = measured(OTHER, ours, again)
    assert verdict.status == "unchanged"
    assert "own noise" in verdict.reason
    louder = record("F-LMM", answer(0, text="hm"), answer(1, text="so"), answer(2, text="hm"))
    assert measured(OTHER, louder, again).status == "changed"


def test_no_noise_excuses_other_weights_or_other_prompts() -> None:
    again = record("stock again", answer(0, prompt="q"), answer(1, prompt="q"), answer(2, prompt="q"))
    assert measured(OTHER, replace(OTHER, role="F-LMM", weights={"a.weight": "9"}), again).status == "changed"
    ours = record("F-LMM", answer(0, prompt="q"), answer(1, text="YES", ids=(7, 2)), answer(2))
    assert measured(OTHER, ours, again).status == "changed"


# --- told ----------------------------------------------------------------------------------------------------------


def test_the_line_says_what_was_proven_over_what() -> None:
    assert report.line(judged(record("F-LMM"))) == (
        "CHAT UNCHANGED (exact): every compared bit is the same [3 requests of mme, stock run llava_hf]"
    )


def test_the_first_differing_sample_stands_side_by_side() -> None:
    text = report.as_text(judged(changed(text="no, there is none", ids=(8, 2))))
    assert "first difference: generated ids, mme document 1" in text
    assert "question: 'question 1 ?'" in text
    left, _, right = next(line for line in text.splitlines() if "'yes 1'" in line).partition(" | ")
    assert left.startswith("'yes 1'")
    assert right.startswith("'no, there is none'")


def test_junit_has_a_failure_per_check_and_holds_any_text(tmp_path: Path) -> None:
    verdict = judged(changed(text="\x00<b>&]]>\x1b", ids=(9,)))
    path = tmp_path / "new" / "verdict.xml"
    report.write_files(verdict, tmp_path, path)
    suite = ElementTree.parse(path).getroot()
    cases = {case.get("name"): [child.tag for child in case] for case in suite.iter("testcase")}
    assert cases["texts"] == cases["generated ids"] == cases["chat is unchanged"] == ["failure"]
    assert cases["weights"] == cases["could be compared"] == []
    assert cases["log-likelihoods"] == ["skipped"]
    assert [suite.get(name) for name in ("tests", "failures", "errors", "skipped")] == ["11", "3", "0", "1"]
    content = json.loads((tmp_path / "verdict.json").read_text())
    assert (content["status"], content["exit_status"]) == ("changed", 1)
    assert [check["name"] for check in content["checks"]] == list(CHECKS)


def test_junit_of_what_could_not_be_compared_is_an_error() -> None:
    suite = ElementTree.fromstring(report.as_junit(judged(record("F-LMM", answer(0)))))
    assert (suite.get("errors"), suite.get("failures")) == ("1", "0")


def test_an_answer_survives_its_record() -> None:
    for one in (answer(1), answer(2, ids=None, score=(float("inf"), False), error="x")):
        assert Answer.from_json(json.loads(json.dumps(one.as_json()))) == one


def test_a_verdict_tells_no_place_of_the_machine_that_made_it() -> None:
    settings = {"batch_size": 1, "pretrained": "/Users/ann/llava"}
    ours = record("F-LMM", settings=settings, provenance={"heads": "/Users/ann/h"})
    verdict = replace(judged(ours), reason="see /Users/ann/log.txt", notes=("read /Users/ann/x.json",))
    told = json.dumps(report.as_json(verdict)) + report.as_text(verdict) + report.as_junit(verdict)
    assert "ann" not in told
    assert '"pretrained": "llava"' in told
