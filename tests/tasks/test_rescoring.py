"""Scoring kept predictions: the same numbers as when they were logged, intervals, and what damaged logs say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flmm_plugin.cli import main
from flmm_plugin.errors import BadAnnotation, DataNotFound, UnknownArgument
from flmm_plugin.records import encode_rle
from flmm_plugin.tasks import task_files
from flmm_plugin.tasks.gcg import scoring as gcg
from flmm_plugin.tasks.mask_scoring import ciou
from flmm_plugin.tasks.reasonseg import scoring as reasonseg
from flmm_plugin.tasks.refcoco import scoring as refcoco
from flmm_plugin.tasks.rescoring import Options, rescore
from flmm_plugin.tasks.sample_log import reply_of
from tests.tasks import metric_names

SIZE = (4, 10)
QUICK = Options(resamples=20)


def mask(x0: int, x1: int) -> dict[str, Any]:
    found = np.zeros(SIZE, dtype=bool)
    found[:, x0:x1] = True
    return encode_rle(found)


def reply(number: int) -> str:
    phrases = [{"phrase": "dog", "span": None, "mask": 0}]
    return json.dumps({"text": "A dog.", "masks": [mask(0, 1 + number)], "phrases": phrases})


def lines(module: Any, document: dict[str, Any], count: int = 6) -> list[dict[str, Any]]:
    """A sample log as lmms-eval writes it, documents out of order."""
    found = []
    for number in reversed(range(count)):
        said = reply(number)
        doc = {**document, "image_id": f"sa_{number}", "is_sentence": number % 2 == 0}
        found.append({"doc_id": number, "filtered_resps": said, "target": "", **module.score_reply(doc, said)})
    return found


COMMON: dict[str, Any] = {"image_path": "a.jpg", "height": 4, "width": 10, "expected_items": 6}
GCG = lines(gcg, {**COMMON, "caption": "A dog.", "labels": ["dog"], "masks": [mask(0, 4)], "sentence_encoder": "words"})
REASONSEG = lines(
    reasonseg, {**COMMON, "query": "what barks", "split": "test", "mask": mask(0, 4), "ignore": mask(8, 9)}
)
REFCOCO = lines(refcoco, {**COMMON, "expressions": ["dog"], "masks": [mask(0, 4)]})


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def written(task: str, samples: list[Any], printed: dict[str, float] | None = None) -> Path:
        path = tmp_path / f"20260101_000000_samples_{task}.jsonl"
        path.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
        if printed is not None:
            results = {"results": {task: {f"{name},none": value for name, value in printed.items()}}}
            path.with_name("20260101_000000_results.json").write_text(json.dumps(results))
        return path

    return written


@pytest.mark.parametrize(
    ("task", "samples"),
    [("flmm_reasonseg_test", REASONSEG), ("flmm_refcoco_val", REFCOCO)],
    ids=["reasonseg", "refcoco"],
)
@pytest.mark.parametrize("source", ["predictions", "counts", "auto"])
def test_every_metric_comes_again(write: Callable[..., Path], task: str, samples: list[Any], source: Any) -> None:
    result = rescore(write(task, samples), options=Options(source=source, resamples=20))
    assert (result.task, result.documents, result.changed) == (task, 6, 0)
    assert result.source == ("counts" if source == "counts" else "predictions")
    listed = metric_names.REASONSEG_TEST if task == "flmm_reasonseg_test" else metric_names.REFCOCO
    assert tuple(score.metric for score in result.scores) == tuple(listed)
    by_name = {score.metric: score for score in result.scores}
    expected = ciou([sample["cIoU"] for sample in samples])
    assert by_name["cIoU"].value == expected > 0
    assert by_name["items"].value == 6
    for score in result.scores:
        if score.metric in ("items", "errors", "complete"):
            assert score.interval is None
        else:
            assert score.interval is not None
            assert score.interval.low <= score.value <= score.interval.high  # type: ignore[operator]
    assert by_name["complete"].value == 1


def test_gcg_without_java_prints_all_that_needs_none(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    result = rescore(write("flmm_gcg_val", GCG), options=QUICK)
    by_name = {score.metric: score for score in result.scores}
    for metric in ("METEOR", "CIDEr"):
        assert by_name[metric].value is None
        assert "install a JRE" in by_name[metric].problem
    assert by_name["mIoU"].value == pytest.approx(100 * np.mean([1 / 4, 2 / 4, 3 / 4, 1, 4 / 5, 4 / 6]))
    assert by_name["mask_recall"].value == pytest.approx(100 * 5 / 6)


def test_another_encoder_gives_another_recall(write: Callable[..., Path], tmp_path: Path) -> None:
    options = Options(encoder=str(tmp_path / "none"), metrics=("mask_recall",), resamples=0)
    result = rescore(write("flmm_gcg_val", GCG), options=options)
    assert result.scores[0].value is None
    assert str(tmp_path / "none") in result.scores[0].problem


def test_predictions_are_what_is_scored_not_what_was_logged(write: Callable[..., Path]) -> None:
    altered = json.loads(json.dumps(REASONSEG))
    altered[0]["filtered_resps"] = reply(0)
    anew = rescore(write("flmm_reasonseg_test", altered), options=QUICK)
    logged = rescore(write("flmm_reasonseg_test", altered), options=Options(source="counts", resamples=0))
    assert anew.changed == 1
    assert anew.scores[0].value != logged.scores[0].value


def test_counts_serve_where_a_line_has_no_reference(write: Callable[..., Path]) -> None:
    old = [{key: value for key, value in line.items() if key != "reference"} for line in REFCOCO]
    path = write("flmm_refcoco_val", old)
    assert rescore(path, options=QUICK).source == "counts"
    with pytest.raises(UnknownArgument, match="--from counts"):
        rescore(path, options=Options(source="predictions"))


def test_replies_are_found_however_deep_lmms_eval_nests_them() -> None:
    assert [reply_of(nested) for nested in ("a", ["a"], [["a"]], [])] == [
        "a",
        "a",
        "a",
        "",
    ]


@pytest.mark.parametrize(
    ("damage", "error", "said"),
    [
        (lambda text: text[:-30], BadAnnotation, "line 6 is cut"),
        (lambda text: text + text.splitlines()[0] + "\n", BadAnnotation, "line 7: document 5 is there twice"),
        (lambda text: '"text"\n' + text, BadAnnotation, "line 1 is no sample"),
        (lambda text: text.replace('"mask"', '"musk"').replace('"doc_id"', '"id"'), BadAnnotation, "no doc_id"),
        (lambda text: text.replace('"is_sentence"', '"is"'), BadAnnotation, "document 0 lacks what"),
        (lambda text: "", DataNotFound, "no samples"),
    ],
)
def test_damaged_logs_say_which_line(
    write: Callable[..., Path], damage: Callable[[str], str], error: type[Exception], said: str
) -> None:
    path = write("flmm_reasonseg_test", REASONSEG)
    path.write_text(damage(path.read_text()))
    with pytest.raises(error, match=said):
        rescore(path, options=QUICK)


def test_logs_in_another_encoding_are_named(write: Callable[..., Path]) -> None:
    path = write("flmm_reasonseg_test", REASONSEG)
    path.write_bytes(path.read_text().replace("what barks", "\u00e9").encode("latin-1"))
    path.write_bytes(b'{"doc_id": 0, "target": "\xe9"}\n')
    with pytest.raises(BadAnnotation, match="not UTF-8"):
        rescore(path)


def test_a_log_of_another_task_is_refused(write: Callable[..., Path]) -> None:
    with pytest.raises(BadAnnotation, match="flmm_gcg_val"):
        rescore(write("flmm_reasonseg_test", REASONSEG), task="flmm_gcg_val")
    with pytest.raises(UnknownArgument, match="did you mean 'flmm_gcg_val'"):
        rescore(write("flmm_reasonseg_test", REASONSEG), task="flmm_gcg_vall")


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("flmm_reasonseg_val", "is a log of flmm_reasonseg_test by its name"),
        ("flmm_refcoco_val", "flmm_reasonseg_test"),
    ],
)
def test_a_log_is_of_the_task_that_its_name_says(write: Callable[..., Path], task: str, said: str) -> None:
    with pytest.raises(BadAnnotation, match=said):
        rescore(write("flmm_reasonseg_test", REASONSEG), task=task)
    renamed = write("flmm_mine", REASONSEG)
    assert rescore(renamed, "flmm_reasonseg_test", QUICK).documents == 6


def test_a_metric_that_the_run_did_not_log_is_no_other_task_s(write: Callable[..., Path]) -> None:
    without = [{name: one for name, one in line.items() if name != "gIoU"} for line in REFCOCO]
    path = write("flmm_refcoco_val", without)
    with pytest.raises(BadAnnotation, match="the run logged no gIoU") as raised:
        rescore(path, options=Options(source="counts", metrics=("gIoU",)))
    assert "is it a log" not in str(raised.value)
    with pytest.raises(BadAnnotation, match="is it a log of flmm_gcg_val"):
        rescore(write("flmm_gcg_val", [{"doc_id": 0, "filtered_resps": "x"}]))


@pytest.mark.parametrize(
    "damage",
    [
        lambda line: line["reference"].update(size=None),
        lambda line: line["reference"].update(size=["a", 10]),
        lambda line: line["reference"].update(masks=[{"size": [1e999, 2], "counts": "0"}]),
        lambda line: line.update(reference=5),
        lambda line: line.pop("filtered_resps"),
        lambda line: line["complete"].update(expected="x") or line.update(complete=None),
    ],
)
def test_damaged_references_name_their_document(
    write: Callable[..., Path], damage: Callable[[dict[str, Any]], Any]
) -> None:
    lines = json.loads(json.dumps(REFCOCO))
    damage(lines[2])
    with pytest.raises(BadAnnotation, match="document 3"):
        rescore(write("flmm_refcoco_val", lines), options=QUICK)


def test_damaged_counts_are_named(write: Callable[..., Path]) -> None:
    lines = json.loads(json.dumps(REFCOCO))
    lines[2]["cIoU"] = 5
    with pytest.raises(BadAnnotation, match="cIoU"):
        rescore(write("flmm_refcoco_val", lines), options=Options(source="counts"))


# --- logs of --predict_only ----------------------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small data root of every benchmark that is read from files."""
    from flmm_plugin.tiny.layouts import write_refer
    from flmm_plugin.tiny.layouts_gcg import write_grandf, write_reasonseg
    from flmm_plugin.tiny.layouts_png import write_png
    from flmm_plugin.tiny.layouts_viscot import write_viscot

    root = tmp_path / "data"
    write_refer(root, scenes=3)
    write_png(root, scenes=3)
    write_grandf(root, scenes=3, splits=("val",))
    write_reasonseg(root, scenes=3, splits=("val",))
    write_viscot(root, scenes=3, names=("sroie",))
    monkeypatch.setenv("FLMM_DATA", str(root))
    monkeypatch.setenv("FLMM_SENTENCE_ENCODER", "words")
    return root


def predicted(task: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A log of ``--predict_only`` as lmms-eval writes it, one request failed; and the numbers of a scored run."""
    from flmm_plugin.tasks.standalone import StandaloneTask

    plain = StandaloneTask(task)
    lines = []
    for number, doc in enumerate(plain.docs):
        said: Any = json.dumps({"text": "a red circle", "masks": [encode_rle(np.eye(224, dtype=bool))]})
        if number == 1:
            said = None
        target = plain.target(doc)
        lines.append({"doc_id": number, "target": target, "filtered_resps": said, "bypass": [[target], [said]]})
    scores = [plain.score(doc, line["filtered_resps"]) for doc, line in zip(plain.docs, lines, strict=True)]
    return lines, plain.numbers(scores)


FAMILIES = ("flmm_refcoco_val", "flmm_refcoco_val_per_sentence", "flmm_png", "flmm_keywords", "flmm_reasonseg_val",
            "flmm_gcg_val", "flmm_viscot_sroie", "flmm_viscot_sroie_direct")  # fmt: skip


@pytest.mark.parametrize("task", FAMILIES)
def test_predictions_alone_are_scored_from_the_data_set(
    world: Path, write: Callable[..., Path], task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")  # METEOR and CIDEr need Java
    lines, numbers = predicted(task)
    path = write(task, lines)
    result = rescore(path, options=Options(resamples=0))
    found = {score.metric: score.value for score in result.scores if score.value is not None}
    assert result.source == "data"
    assert {name: found[name] for name in numbers} == numbers
    assert found["errors"] > 0
    assert found["complete"] == 0
    with pytest.raises(UnknownArgument, match="has no counts"):
        rescore(path, options=Options(source="counts"))
    monkeypatch.setenv("FLMM_DATA", str(world / "nothing"))
    with pytest.raises(DataNotFound, match="--predict_only"):
        rescore(path)
    monkeypatch.setenv("FLMM_DATA", str(world))
    lines[0]["target"] = "another"
    with pytest.raises(BadAnnotation, match="does FLMM_DATA name"):
        rescore(write(task, lines))


@pytest.mark.parametrize("task", ["flmm_pope_direct", "flmm_tiny_mme", "flmm_tiny_choice"])
def test_data_that_the_harness_reads_is_said(write: Callable[..., Path], task: str) -> None:
    lines = [{"doc_id": 0, "target": "yes", "filtered_resps": "yes", "doc_hash": "a"}]
    if task != "flmm_tiny_choice":  # lmms-eval logs nothing in place of its accuracy
        lines[0]["bypass"] = [["yes"], ["yes"]]  # type: ignore[assignment]
    with pytest.raises(UnknownArgument, match="without --predict_only"):
        rescore(write(task, lines))


def test_predictions_of_other_data_are_refused(world: Path, write: Callable[..., Path]) -> None:
    path = write("flmm_reasonseg_val", predicted("flmm_reasonseg_val")[0])
    results = {"configs": {"flmm_reasonseg_val": {"metadata": {"annotations": "sha256:other"}}}}
    path.with_name("20260101_000000_results.json").write_text(json.dumps(results))
    with pytest.raises(BadAnnotation, match="another one than the run's"):
        rescore(path)


# --- task files ----------------------------------------------------------------------------------------------------


def test_every_task_s_functions_can_be_imported_without_lmms_eval() -> None:
    names = set(task_files.task_files())
    assert {"flmm_refcoco_val", "flmm_gcg_val", "flmm_gcg_test", "flmm_reasonseg_val", "flmm_reasonseg_test"} <= names
    assert tuple(task_files.aggregations("flmm_gcg_val")) == metric_names.GCG
    assert tuple(task_files.aggregations("flmm_reasonseg_val")) == metric_names.REASONSEG_VAL
    assert tuple(task_files.aggregations("flmm_reasonseg_test")) == metric_names.REASONSEG_TEST
    assert tuple(task_files.aggregations("flmm_reasonseg_tiny")) == metric_names.REASONSEG_TEST


# --- the command ---------------------------------------------------------------------------------------------------


def test_the_command_prints_values_intervals_and_what_the_run_printed(
    write: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write("flmm_reasonseg_test", REASONSEG, {"gIoU": 12.345, "items": 6})
    write("mme", [{"doc_id": 0, "filtered_resps": "yes"}])
    assert main(["score", str(path.parent), "--resamples", "30", "--metrics", "gIoU,items"]) == 0
    out = capsys.readouterr().out
    assert "flmm_reasonseg_test: 6 documents, scored anew from the predictions" in out
    assert "95 % interval" in out
    row = next(line.split() for line in out.splitlines() if line.split()[:1] == ["gIoU"])
    assert row[3] == ".."
    assert float(row[2]) <= float(row[1]) <= float(row[4])
    assert row[5] == "12.35"
    assert "mme" not in out


def test_the_command_s_json_is_what_it_printed(write: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    path = write("flmm_refcoco_val", REFCOCO)
    assert main(["score", str(path), "--json", "--resamples", "0"]) == 0
    content = json.loads(capsys.readouterr().out)
    (result,) = content["results"]
    assert result["documents"] == 6
    assert {score["metric"]: score["value"] for score in result["scores"]}["cIoU"] == pytest.approx(
        ciou([line["cIoU"] for line in REFCOCO])
    )
    assert all(score["interval"] is None for score in result["scores"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "--log_samples"),
        (["{path}", "--metrics", "gIou"], "has no metric gIou"),
        (["{other}"], "use --task"),
    ],
)
def test_the_command_names_the_fix(
    write: Callable[..., Path], capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    path = write("flmm_reasonseg_test", REASONSEG)
    other = path.with_name("other.jsonl")
    other.write_text(path.read_text())
    assert main(["score", *(word.format(path=path, other=other) for word in words)]) == 2
    assert said in capsys.readouterr().err


def test_one_bad_log_of_several_is_named_and_the_others_are_scored(
    write: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = write("flmm_refcoco_val", REFCOCO), write("flmm_reasonseg_test", REASONSEG)
    bad.write_text(bad.read_text()[:-30])
    assert main(["score", str(good.parent), "--resamples", "0"]) == 2
    said = capsys.readouterr()
    assert "flmm_refcoco_val: 6 documents" in said.out
    assert "BadAnnotation" in said.err
    assert "line 6 is cut" in said.err
    assert main(["score", str(good.parent), "--resamples", "0", "--json"]) == 2
    assert len(json.loads(capsys.readouterr().out)["results"]) == 1


def test_a_metric_that_was_asked_for_and_is_not_there_is_a_failure(
    write: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    path = write("flmm_gcg_val", GCG)
    assert main(["score", str(path), "--metrics", "METEOR,mIoU", "--resamples", "0"]) == 2
    assert "no METEOR" in capsys.readouterr().err
    assert main(["score", str(path), "--resamples", "0"]) == 0


@pytest.mark.parametrize("words", [["--level", "95"], ["--resamples", "many"], ["--from", "memory"]])
def test_wrong_options_exit_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["score", "x", *words])
    assert exit_.value.code == 2
    assert words[1] in capsys.readouterr().err
