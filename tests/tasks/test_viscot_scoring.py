"""From replies to scores, and the judge that remembers."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from PIL import Image

from flmm_plugin.datasets.viscot import TABLE_SETS
from flmm_plugin.errors import OutputFailed
from flmm_plugin.records import error_json
from flmm_plugin.tasks.metrics.totals import is_complete, total
from flmm_plugin.tasks.task_files import TASKS_FOLDER, task_config
from flmm_plugin.tasks.viscot import judge as judging
from flmm_plugin.tasks.viscot import scoring
from flmm_plugin.tasks.viscot.judge import Judge
from tests.tasks import metric_names

DOC = {
    "question_id": 4, "image_path": "gone.png", "question": "Where?", "instruction": "", "answer": "Main Street",
    "box": [10.0, 20.0, 30.0, 40.0], "height": 50, "width": 100, "expected_items": 2, "with_boxes": True,
}  # fmt: skip
HIT = {"x_min": 0.1, "y_min": 0.4, "x_max": 0.3, "y_max": 0.8}
MISS = {"x_min": 0.5, "y_min": 0.4, "x_max": 0.9, "y_max": 0.8}


def reply(text: str = "main street", boxes: list[Any] | None = None, **more: Any) -> str:
    given = [HIT] if boxes is None else boxes
    return json.dumps({"text": text, "masks": [], "boxes": given, "scores": [0.5] * len(given), **more})


def test_a_reply_with_text_and_box() -> None:
    sample = scoring.score_reply(DOC, reply(visual_cot={"views": "both"}))
    assert sample["exact"] == {"score": 1.0}
    assert sample["anls"] == {"score": 1.0}
    assert sample["box_acc@0.5"]["score"] == 1.0
    assert sample["box_acc@0.5"]["box"] == pytest.approx([10, 20, 30, 40])
    assert sample["both_views"] == {"score": 1.0}
    assert (sample["boxes"], sample["errors"], sample["reversed_boxes"]) == ({"count": 1}, {"count": 0}, {"count": 0})
    assert sample["reference"]["answer"] == "Main Street"


def test_text_alone_answers_and_misses_the_box() -> None:
    for said in ("Main Street", "42", '"Main Street"', "[1, 2]", "{}"):
        sample = scoring.score_reply(DOC, said)
        assert sample["exact"]["score"] == float(said == "Main Street")
        assert (sample["box_acc@0.5"], sample["boxes"]) == ({"score": 0.0, "box": None}, {"count": 0})
        assert sample["errors"] == {"count": 0}
        assert "both_views" not in sample


def test_a_failed_sample_scores_nothing_and_counts() -> None:
    sample = scoring.score_reply({**DOC, "answer": ""}, error_json(RuntimeError("out of memory")))
    assert (sample["exact"]["score"], sample["anls"]["score"], sample["errors"]["count"]) == (0.0, 0.0, 1)


def test_the_best_of_several_boxes_counts() -> None:
    two = json.dumps({"text": "", "masks": [], "boxes": [MISS, HIT], "scores": [0.2, 0.9]})
    assert scoring.score_reply(DOC, two)["box_acc@0.5"]["score"] == 1.0
    unscored = json.dumps({"text": "", "masks": [], "boxes": [MISS, HIT], "scores": []})
    assert scoring.score_reply(DOC, unscored)["box_acc@0.5"]["score"] == 0.0


def test_a_reversed_truth_is_a_miss_and_counted() -> None:
    sample = scoring.score_reply({**DOC, "box": [30.0, 20.0, 10.0, 40.0]}, reply())
    assert (sample["box_acc@0.5"]["score"], sample["reversed_boxes"]["count"]) == (0.0, 1)


def test_the_picture_s_size_comes_from_wherever_it_is_stated(tmp_path: Path) -> None:
    bare = {**DOC, "height": None, "width": None}
    assert scoring.score_reply(bare, reply(size=[50, 100]))["box_acc@0.5"]["score"] == 1.0
    assert scoring.score_reply(bare, reply())["box_acc@0.5"]["box"] is None
    Image.new("RGB", (100, 50)).save(tmp_path / "there.png")
    shown = {**bare, "image_path": str(tmp_path / "there.png")}
    assert scoring.score_reply(shown, reply())["box_acc@0.5"]["score"] == 1.0


def test_the_result_says_which_true_box_it_was() -> None:
    for source, cut in (("benchmark_det", 0), ("benchmark", 1)):
        sample = scoring.score_reply({**DOC, "box_from": source}, reply())
        assert (sample["whole_number_boxes"], sample["reference"]["box_from"]) == ({"count": cut}, source)
        assert scoring.score_reply(scoring.logged_document(sample), reply()) == sample


@pytest.mark.parametrize("size", [[1e999, 2], "ab", [0, 5], [True, 2], {"a": 1}, 7, [[1], [2]]])
def test_a_size_that_is_none_is_not_taken(size: Any) -> None:
    said = json.dumps({"text": "", "boxes": [HIT], "size": size})
    assert scoring.score_reply({**DOC, "height": None, "width": None}, said)["box_acc@0.5"]["box"] is None
    assert scoring.score_reply(DOC, said)["box_acc@0.5"]["score"] == 1.0


def test_an_empty_answer_is_no_right_one() -> None:
    sample = scoring.score_reply({**DOC, "answer": ""}, reply(text=" "))
    assert (sample["exact"]["score"], sample["anls"]["score"], sample["box_acc@0.5"]["score"]) == (0.0, 0.0, 1.0)


def test_tasks_without_boxes_do_not_score_them() -> None:
    sample = scoring.score_reply({**DOC, "with_boxes": False}, "Main Street")
    assert set(sample) == {*metric_names.VISCOT_ANSWERS, "reference"}


def test_every_printed_metric_is_one_that_is_scored() -> None:
    listed = [entry["metric"] for entry in task_config("flmm_viscot_sroie")["metric_list"]]
    scored = (*metric_names.VISCOT_ANSWERS, *metric_names.VISCOT_BOXES, *scoring.KEPT)
    assert sorted(listed) == sorted(scored)


def test_every_task_file_says_what_its_name_says() -> None:
    marks = {"": "v1", "_v2": "v2", "_direct": "none"}
    names = set()
    for path in sorted((TASKS_FOLDER / "viscot").glob("flmm_*.yaml")):
        config = task_config(path.stem)
        form = next(form for form in ("_v2", "_direct", "") if path.stem.endswith(form))
        data = config["dataset_kwargs"]
        assert path.stem == f"flmm_viscot_{data['name']}{form}"
        assert config["generation_kwargs"]["flmm_visual_cot"] == marks[form]
        assert config["generation_kwargs"]["max_new_tokens"] == 32
        assert data.get("boxes", True) is (form != "_direct")
        names.add(path.stem)
    assert names == {f"flmm_viscot_{name}{form}" for name in TABLE_SETS for form in marks}
    for form in marks:
        group = yaml.safe_load((TASKS_FOLDER / f"viscot/_group_flmm_viscot{form}.yaml").read_text())
        assert group["group"] == f"flmm_viscot{form}"
        assert group["task"] == [f"flmm_viscot_{name}{form}" for name in TABLE_SETS]
        # An average over sets of different sizes that does not weigh them, as in the paper's table.
        assert all(not metric["weight_by_size"] for metric in group["aggregate_metric_list"])


def test_the_panel_names_every_tiny_task() -> None:
    group = yaml.safe_load((TASKS_FOLDER / "tiny/_group_flmm_all_tiny.yaml").read_text())
    assert set(group["task"]) == {path.stem for path in (TASKS_FOLDER / "tiny").glob("flmm_*.yaml")}


def test_totals_and_completeness() -> None:
    samples = [scoring.score_reply(DOC, text) for text in ("Main Street", "no")]
    assert scoring.percent([sample["exact"] for sample in samples]) == 50.0
    assert total([sample["items"] for sample in samples]) == 2
    assert is_complete([sample["complete"] for sample in samples]) == 1
    assert is_complete([samples[0]["complete"]]) == 0
    assert (scoring.percent([]), is_complete([])) == (0.0, 0)


# --- the judge -----------------------------------------------------------------------------------------------------


class Server:
    """Says "score: 0.7", or fails."""

    def __init__(self, says: Any = "score: 0.7") -> None:
        self.asked: list[Any] = []
        self.says = says

    def evaluate(self, request: Any) -> Any:
        self.asked.append(request)
        if isinstance(self.says, Exception):
            raise self.says
        return SimpleNamespace(content=self.says, model_used="judge-2")


def test_a_verdict_is_asked_once_and_kept_over_runs(tmp_path: Path) -> None:
    server = Server()
    first = Judge(server, "some/judge", tmp_path)
    verdict = first.verdict("Q?", "yes", "sure")
    assert verdict is not None
    assert (verdict.score, verdict.model, verdict.prompt) == (0.7, "judge-2", judging.PROMPT_VERSION)
    assert verdict.date[:2] == "20"
    assert first.verdict("Q?", "yes", "sure") == verdict
    assert Judge(Server(RuntimeError("asked again")), "some/judge", tmp_path).verdict("Q?", "yes", "sure") == verdict
    assert len(server.asked) == 1
    told = server.asked[0].messages[1]["content"]
    assert all(part in told for part in ("Q?", "yes", "sure"))
    assert Judge(server, "other", tmp_path).verdict("Q?", "yes", "sure") is not None
    assert len(server.asked) == 2


def test_a_half_written_line_is_asked_again(tmp_path: Path) -> None:
    judge = Judge(Server(), "j", tmp_path)
    for answer in ("a", "b"):
        judge.verdict("Q?", "yes", answer)
    judge.path.write_text(judge.path.read_text()[:-30])
    server = Server("score: 0.1")
    again = Judge(server, "j", tmp_path)
    scores = [verdict.score for answer in ("a", "b") if (verdict := again.verdict("Q?", "yes", answer))]
    assert (scores, len(server.asked)) == ([0.7, 0.1], 1)
    silent = Judge(Server(RuntimeError("asked again")), "j", tmp_path)
    assert [silent.verdict("Q?", "yes", answer) is not None for answer in ("a", "b")] == [True, True]


def test_a_failing_judge_is_given_up_and_nothing_of_it_kept(tmp_path: Path) -> None:
    server = Server(RuntimeError("no route"))
    judge = Judge(server, "j", tmp_path)
    assert [judge.verdict("Q?", "yes", str(number)) for number in range(6)] == [None] * 6
    assert len(server.asked) == 3
    assert not judge.path.exists()


@pytest.mark.parametrize("says", ["", " \n", None])
def test_a_reply_without_words_is_no_verdict(tmp_path: Path, says: Any) -> None:
    judge = Judge(Server(says), "j", tmp_path)
    assert judge.verdict("Q?", "yes", "a") is None
    assert not judge.path.exists()


@pytest.mark.parametrize("changed", ["address", "words", "temperature", "limit"])
def test_another_judge_or_another_question_is_asked(
    tmp_path: Path, changed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Judge(Server(), "j", tmp_path).verdict("Q?", "yes", "a")
    other = Server("score: 0.2")
    if changed == "address":
        other.base_url = "http://elsewhere/v1"  # type: ignore[attr-defined]
    else:
        name, value = {
            "words": ("_INSTRUCTIONS", "x"),
            "temperature": ("_TEMPERATURE", 0),
            "limit": ("_REPLY_TOKENS", 9),
        }[changed]
        monkeypatch.setattr(judging, name, value)
    found = Judge(other, "j", tmp_path).verdict("Q?", "yes", "a")
    assert found is not None
    assert found.score == 0.2


@pytest.mark.parametrize("score", ["NaN", "7", '"high"', "[1]"])
def test_a_score_that_is_none_is_not_read(tmp_path: Path, score: str) -> None:
    judge = Judge(Server(), "j", tmp_path)
    judge.verdict("Q?", "yes", "a")
    judge.path.write_text(judge.path.read_text().replace('"score": 0.7', f'"score": {score}') + "5\n[]\n")
    found = Judge(Server("score: 0.3"), "j", tmp_path).verdict("Q?", "yes", "a")
    assert found is not None
    assert found.score == 0.3


def test_a_store_that_cannot_be_written_is_named_first_and_costs_no_verdict_later(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputFailed):
        Judge(Server(), "j", tmp_path / "file")
    judge = Judge(Server(), "j", tmp_path)
    judge.path.mkdir()
    assert judge.verdict("Q?", "yes", "a") is not None


def test_without_a_key_there_is_no_judge(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("OPENAI_API_KEY", "API_TYPE", "MODEL_VERSION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    assert judging.judge_from_environment() is None
